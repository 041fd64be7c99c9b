//! Tells news from old reports, for what takes effect in memory at once.
//!
//! A report that was held up (by a broker's queue, by the device's own) must not overwrite a newer one, and must not count as
//! fresh because it has just arrived. The device's timestamps and the local monotonic clock suffice: arrival − timestamp
//! is smallest for a report that was not held up, and what is above that is its delay. While timestamps rise that smallest value only
//! creeps, as a clock drifts: a jump is delay, however long it lasts. It can also be a reboot of which nobody heard the
//! first part; that device counts as late until it reboots within hearing or is taken out and heard again, because what
//! is unclear is not fresh. Nothing here is stored; which boot
//! a *row* belongs to is [`boots`](crate::boots)' business, under the database's clock.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

/// Estimates and clocks may be wrong by this, in milliseconds.
const TOLERANCE: i64 = 2_000;
/// A device's clock may lose one millisecond in so many.
const DRIFT: i64 = 1_000;
/// Above this a timestamp is Unix time and not the time since boot.
const UNIX: i64 = 100_000_000_000;
/// A new offset that has held this long (at the pace of the arrivals) is the device's: it has rebooted.
const REBOOT_HOLDS: i64 = 1_000;
/// The same where it looks like old reports: the device's clock was set back.
const SET_BACK_HOLDS: i64 = 5_000;
/// How much the offset of reports on time may differ from one to the next.
const STEADY: i64 = 500;

/// What one report is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// The newest there is, taken this many milliseconds before it arrived.
    News {
        /// Milliseconds.
        delay: i64,
    },
    /// Either the device has just rebooted or this is an old copy: good enough to stop for, not to start for.
    Doubtful,
    /// Older than what is known.
    Late,
}

/// The pace of one device's reports.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    known: Option<Known>,
    candidate: Option<Candidate>,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    offset: i64,
    newest: i64,
    heard_at: i64,
    /// Until when the drift is in the offset.
    drifted_at: i64,
}

#[derive(Clone, Copy, Debug)]
struct Candidate {
    offset: i64,
    since: i64,
}

impl Pace {
    /// Judges a report with the device's `timestamp` that arrived at `at` (milliseconds of any monotonic clock).
    pub fn hear(&mut self, timestamp: u64, at: i64) -> Heard {
        let timestamp = i64::try_from(timestamp).unwrap_or(i64::MAX);
        let offset = at.saturating_sub(timestamp);
        let Some(known) = self.known.as_mut() else { return self.rebase(offset, timestamp, at) };
        if timestamp > known.newest {
            let drift = at.saturating_sub(known.drifted_at).max(0) / DRIFT;
            let punctual = known.offset.saturating_add(drift);
            let delay = offset.saturating_sub(punctual);
            (known.newest, known.heard_at) = (timestamp, at);
            if delay <= TOLERANCE {
                known.offset = punctual.min(offset);
                known.drifted_at = if delay <= 0 { at } else { known.drifted_at.saturating_add(drift * DRIFT) };
                self.candidate = None;
            } else {
                // Reports that are late say nothing of the clock: they must not make themselves punctual.
                known.drifted_at = at;
                return Heard::News { delay: offset.saturating_sub(known.offset) };
            }
            return Heard::News { delay: delay.max(0) };
        }
        let may_be_new = timestamp != known.newest && offset >= known.offset.saturating_add(known.newest) - TOLERANCE;
        let silent = at.saturating_sub(known.heard_at) >= REBOOT_HOLDS;
        // The time since boot is never set back, so what is below the newest and of the same boot is an old copy.
        let may_be_set_back = timestamp >= UNIX;
        let believed = (may_be_new || may_be_set_back)
            && self.held(offset, at, if may_be_new { REBOOT_HOLDS } else { SET_BACK_HOLDS });
        if believed || (may_be_new && silent) {
            return self.rebase(offset, timestamp, at);
        }
        if may_be_new { Heard::Doubtful } else { Heard::Late }
    }

    fn rebase(&mut self, offset: i64, newest: i64, heard_at: i64) -> Heard {
        self.known = Some(Known { offset, newest, heard_at, drifted_at: heard_at });
        self.candidate = None;
        Heard::News { delay: 0 }
    }

    /// Whether reports have come with this offset for `time` milliseconds.
    fn held(&mut self, offset: i64, at: i64, time: i64) -> bool {
        match self.candidate {
            Some(candidate) if (offset - candidate.offset).abs() <= STEADY => at - candidate.since >= time,
            _ => {
                self.candidate = Some(Candidate { offset, since: at });
                false
            }
        }
    }
}

/// What later reports of the same run say of the start that one report implies.
///
/// A run is what one subscription hears of a device without its timestamps falling or its implied start jumping: it
/// is of one boot. Read from a broker's queue, its first reports are late and its last ones are not, the implied start sinking by
/// the time between two reports, so a report that waits for a decision learns from those behind it by how much it was
/// late. See [`boots`](crate::boots).
#[derive(Clone, Debug)]
pub struct Lateness {
    implied: i64,
    least: Arc<AtomicI64>,
}

impl Lateness {
    /// By how many milliseconds it was later than the most punctual report of its run, as far as is known by now.
    pub fn known(&self) -> i64 {
        self.implied.saturating_sub(self.least.load(Ordering::Relaxed)).max(0)
    }
}

/// The run that one device's reports are in.
#[derive(Clone, Debug, Default)]
pub struct Run {
    last: i64,
    last_implied: i64,
    least: Arc<AtomicI64>,
    has_begun: bool,
}

impl Run {
    /// Adds a report that arrived at `at`.
    pub fn hear(&mut self, timestamp: u64, at: i64) -> Lateness {
        let timestamp = i64::try_from(timestamp).unwrap_or(i64::MAX);
        let implied = at.saturating_sub(timestamp);
        let least = self.least.load(Ordering::Relaxed);
        let continues = self.has_begun
            && timestamp >= self.last
            && implied >= self.last_implied.saturating_sub(TOLERANCE)
            && implied <= least.saturating_add(TOLERANCE);
        if continues {
            self.least.fetch_min(implied, Ordering::Relaxed);
        } else {
            self.least = Arc::new(AtomicI64::new(implied));
        }
        (self.last, self.last_implied, self.has_begun) = (timestamp, implied, true);
        Lateness { implied, least: Arc::clone(&self.least) }
    }
}

#[cfg(test)]
mod tests {
    use super::{Heard, Pace, Run};

    const NEWS: Heard = Heard::News { delay: 0 };

    fn running(from: u64, offset: i64, count: u64) -> Pace {
        let mut pace = Pace::default();
        for n in 0..count {
            let timestamp = from + n * 50;
            assert_eq!(pace.hear(timestamp, offset + i64::try_from(timestamp).expect("small")), NEWS);
        }
        pace
    }

    #[test]
    fn an_old_report_that_comes_late_is_not_news() {
        let mut pace = running(100, 1_000_000, 1_000);

        assert_eq!(pace.hear(20_000, 1_050_200), Heard::Late);
        assert_eq!(pace.hear(50_050, 1_050_250), Heard::Late, "a copy of the newest");
        assert_eq!(pace.hear(50_100, 1_050_150), Heard::News { delay: 50 });
    }

    #[test]
    fn a_backlog_is_news_of_its_own_age_until_it_has_drained() {
        let mut pace = running(100, 1_000_000, 100);

        assert_eq!(pace.hear(6_000, 1_066_000), Heard::News { delay: 60_000 });
        assert_eq!(pace.hear(36_000, 1_066_010), Heard::News { delay: 30_010 });
        assert_eq!(pace.hear(66_000, 1_066_020), Heard::News { delay: 20 });
    }

    #[test]
    fn a_reboot_is_doubtful_for_a_second_and_then_believed() {
        let mut pace = running(100, 1_000_000, 1_000);
        let rebooted = 1_050_100;

        assert_eq!(pace.hear(50, rebooted + 50), Heard::Doubtful);
        assert_eq!(pace.hear(500, rebooted + 500), Heard::Doubtful);
        assert_eq!(pace.hear(1_050, rebooted + 1_050), NEWS);
        assert_eq!(pace.hear(1_100, rebooted + 1_100), NEWS);
    }

    #[test]
    fn a_reboot_after_a_silence_is_believed_at_once() {
        let mut pace = running(100, 1_000_000, 1_000);

        assert_eq!(pace.hear(50, 1_053_000), NEWS);
    }

    #[test]
    fn reports_that_are_all_late_keep_their_age_however_long_that_lasts() {
        let mut pace = running(100, 1_000_000, 100);
        for n in 100..20_000 {
            let timestamp = 100 + n * 50;
            let at = 1_060_000 + i64::try_from(timestamp).expect("small");
            let Heard::News { delay } = pace.hear(timestamp, at) else { panic!("it is newer") };
            assert_eq!(delay, 60_000, "report {n}");
        }
        assert_eq!(pace.hear(1_060_100, 2_060_200), Heard::News { delay: 100 }, "what was held up has drained");
    }

    #[test]
    fn old_copies_that_come_steadily_are_never_believed() {
        let mut pace = running(100, 1_000_000, 12_000);
        for n in 0..2_000 {
            let timestamp = 400_000 + n * 50;
            assert_eq!(pace.hear(timestamp, 1_200_000 + i64::try_from(timestamp).expect("small")), Heard::Late);
        }
    }

    #[test]
    fn a_slow_clock_stays_punctual_over_a_day_and_over_a_silence() {
        let mut pace = Pace::default();
        let slow = |real: i64| u64::try_from(real - real / 2_000).expect("positive");
        for real in (100..86_400_000).step_by(1_000) {
            let Heard::News { delay } = pace.hear(slow(real), real) else { panic!("it is newer") };
            assert!(delay <= 2, "after {real} ms: {delay}");
        }
        let real = 2 * 86_400_000;
        assert_eq!(pace.hear(slow(real), real), NEWS);
    }

    #[test]
    fn a_reboot_whose_first_part_nobody_heard_is_late_until_one_is_heard() {
        let mut pace = running(100, 1_000_000, 10);
        let rebooted = 1_060_000;
        assert_eq!(pace.hear(10_000, rebooted + 10_000), Heard::News { delay: 60_000 });
        assert_eq!(pace.hear(12_000, rebooted + 12_000), Heard::News { delay: 60_000 });

        assert_eq!(pace.hear(50, rebooted + 20_000), NEWS, "it reboots within hearing, after a silence");
    }

    #[test]
    fn a_clock_set_back_by_an_hour_is_believed_after_some_seconds() {
        let mut pace = running(1_700_000_000_000, 0, 10);
        let back = 3_600_000;

        assert_eq!(pace.hear(1_699_996_400_500, 1_699_996_400_500 + back), Heard::Late);
        assert_eq!(pace.hear(1_699_996_403_500, 1_699_996_403_500 + back), Heard::Late);
        assert_eq!(pace.hear(1_699_996_405_500, 1_699_996_405_500 + back), NEWS);
    }

    #[test]
    fn a_report_from_a_backlog_learns_from_those_behind_it_how_late_it_was() {
        let mut run = Run::default();
        let backlog: Vec<_> =
            (0..600_u32).map(|n| run.hear(100 + u64::from(n) * 100, 1_060_000 + i64::from(n) / 10)).collect();

        assert_eq!(backlog[0].known(), 59_841);
        assert_eq!(backlog[599].known(), 0);
    }

    #[test]
    fn a_reboot_begins_a_run_and_so_does_a_report_that_is_later_than_those_before() {
        let mut run = Run::default();
        let old = run.hear(50_000, 1_050_000);
        let rebooted = run.hear(100, 1_052_000);
        let on_time = run.hear(200, 1_052_100);
        assert_eq!((old.known(), rebooted.known(), on_time.known()), (0, 0, 0));

        let unheard = run.hear(10_000, 1_070_000);
        assert_eq!(unheard.known(), 0, "it may be of another boot");
        let copy = run.hear(50_000, 1_070_010);
        assert_eq!((unheard.known(), copy.known()), (0, 0), "a stray copy of an older boot says nothing of this one");
    }
}

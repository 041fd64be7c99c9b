//! One check's whole state in one `u64`, and the pure step that changes it.
//!
//! Two Schmitt triggers side by side: "at least degraded" and "unhealthy". Each flips on after `fall` results in a row
//! that say so and off after `rise` that do not; so three levels are damped by the rule HAProxy has for two.
//! The second implies the first, because every unhealthy result is also at least degraded.

use crate::Status;

// Bits, from the lowest: what is known, then the two triggers with their streaks of contrary results, then an epoch.
const KNOWN: u64 = 1;
const BAD: u64 = 1 << 1;
const DOWN: u64 = 1 << 2;
const PASSED: u64 = 1 << 3;
const STALE: u64 = 1 << 4;
const STUCK: u64 = 1 << 5;
const BAD_STREAK: u32 = 8;
const DOWN_STREAK: u32 = 16;
const EPOCH: u32 = 32;

/// Status, streaks, flags and epoch of one check. The epoch counts changes of the damped status, modulo 2³².
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Word(u64);

impl Word {
    /// The damped status; none before the first result.
    pub(crate) const fn status(self) -> Option<Status> {
        if self.0 & KNOWN == 0 {
            None
        } else if self.0 & DOWN != 0 {
            Some(Status::Unhealthy)
        } else if self.0 & BAD != 0 {
            Some(Status::Degraded)
        } else {
            Some(Status::Healthy)
        }
    }

    /// Whether any result was better than unhealthy.
    pub(crate) const fn has_passed(self) -> bool {
        self.0 & PASSED != 0
    }

    pub(crate) const fn is_stale(self) -> bool {
        self.0 & STALE != 0
    }

    pub(crate) const fn is_stuck(self) -> bool {
        self.0 & STUCK != 0
    }

    #[cfg(test)]
    pub(crate) const fn epoch(self) -> u32 {
        (self.0 >> EPOCH) as u32
    }

    #[must_use]
    pub(crate) const fn stale(self, on: bool) -> Self {
        self.flag(STALE, on)
    }

    #[must_use]
    pub(crate) const fn stuck(self, on: bool) -> Self {
        self.flag(STUCK, on)
    }

    const fn flag(self, bit: u64, on: bool) -> Self {
        if on { Self(self.0 | bit) } else { Self(self.0 & !bit) }
    }

    const fn streak(self, at: u32) -> u8 {
        ((self.0 >> at) & 0xff) as u8
    }

    const fn with_streak(self, at: u32, streak: u8) -> Self {
        Self(self.0 & !(0xff << at) | (streak as u64) << at)
    }

    /// One trigger's move: `result` says whether the condition held.
    const fn trigger(self, bit: u64, at: u32, result: bool, rise: u8, fall: u8) -> Self {
        let on = self.0 & bit != 0;
        if on == result {
            return self.with_streak(at, 0);
        }
        let streak = self.streak(at).saturating_add(1);
        let needed = if on { rise } else { fall };
        if streak >= needed { self.flag(bit, !on).with_streak(at, 0) } else { self.with_streak(at, streak) }
    }

    /// The word after one more result. The first result counts at once: nothing else is known.
    #[must_use]
    pub(crate) const fn step(self, result: Status, rise: u8, fall: u8) -> Self {
        let (rise, fall) = if self.0 & KNOWN == 0 { (1, 1) } else { (rise, fall) };
        let down = matches!(result, Status::Unhealthy);
        let bad = !matches!(result, Status::Healthy);
        let mut next = self.trigger(BAD, BAD_STREAK, bad, rise, fall).trigger(DOWN, DOWN_STREAK, down, rise, fall);
        if !down {
            next = next.flag(PASSED, true);
        }
        let changed = self.0 & (KNOWN | BAD | DOWN) != (next.0 | KNOWN) & (KNOWN | BAD | DOWN);
        let mut bits = next.0 | KNOWN;
        if changed {
            bits = bits.wrapping_add(1 << EPOCH);
        }
        Self(bits)
    }
}

impl std::fmt::Debug for Word {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Word")
            .field("status", &self.status())
            .field("bad_streak", &self.streak(BAD_STREAK))
            .field("down_streak", &self.streak(DOWN_STREAK))
            .field("stale", &self.is_stale())
            .field("stuck", &self.is_stuck())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::Word;
    use crate::Status::{self, Degraded, Healthy, Unhealthy};

    const ALL: [Status; 3] = [Healthy, Degraded, Unhealthy];

    /// The rule in its slow, obvious form: look back over all results. `holds` is the trigger's condition.
    fn trigger(results: &[Status], rise: usize, fall: usize, holds: impl Fn(Status) -> bool) -> bool {
        let mut on = holds(results[0]);
        let mut contrary = 0;
        for result in &results[1..] {
            contrary = if holds(*result) == on { 0 } else { contrary + 1 };
            if contrary >= if on { rise } else { fall } {
                on = !on;
                contrary = 0;
            }
        }
        on
    }

    fn reference(results: &[Status], rise: usize, fall: usize) -> Status {
        if trigger(results, rise, fall, |r| r == Unhealthy) {
            Unhealthy
        } else if trigger(results, rise, fall, |r| r != Healthy) {
            Degraded
        } else {
            Healthy
        }
    }

    #[test]
    fn every_sequence_of_seven_results_under_every_rise_and_fall_up_to_four_agrees_with_the_reference() {
        let mut sequences = 0_u32;
        for rise in 1_u8..=4 {
            for fall in 1_u8..=4 {
                for length in 1_u32..=7 {
                    for code in 0..3_usize.pow(length) {
                        let mut results = Vec::new();
                        let (mut word, mut rest, mut changes) = (Word::default(), code, 0);
                        for _ in 0..length {
                            results.push(ALL[rest % 3]);
                            rest /= 3;
                            let before = word.status();
                            word = word.step(*results.last().unwrap(), rise, fall);
                            changes += u32::from(before != word.status());
                        }
                        let expected = reference(&results, usize::from(rise), usize::from(fall));
                        assert_eq!(word.status(), Some(expected), "rise {rise} fall {fall} {results:?}");
                        assert_eq!(word.epoch(), changes, "rise {rise} fall {fall} {results:?}");
                        assert_eq!(word.has_passed(), results.iter().any(|r| *r != Unhealthy));
                        sequences += 1;
                    }
                }
            }
        }
        assert_eq!(sequences, 16 * (3..=2187).filter(|n| [3, 9, 27, 81, 243, 729, 2187].contains(n)).sum::<u32>());
    }

    #[test]
    fn unhealthy_implies_at_least_degraded_in_every_reachable_word() {
        for rise in 1_u8..=3 {
            for fall in 1_u8..=3 {
                let mut seen = std::collections::BTreeSet::new();
                let mut open = vec![Word::default()];
                while let Some(word) = open.pop() {
                    // The epoch grows for ever; without it the set of words is finite.
                    if !seen.insert(word.0 & 0xffff_ffff) {
                        continue;
                    }
                    assert!(word.0 & super::DOWN == 0 || word.0 & super::BAD != 0, "{word:?}");
                    open.extend(ALL.map(|result| word.step(result, rise, fall)));
                }
                assert!(seen.len() > 4, "the walk saw {} words", seen.len());
            }
        }
    }

    #[test]
    fn flags_leave_status_and_streaks_alone() {
        let word = Word::default().step(Healthy, 2, 3).step(Unhealthy, 2, 3);
        let flagged = word.stale(true).stuck(true);

        assert!(flagged.is_stale() && flagged.is_stuck());
        assert_eq!(flagged.stale(false).stuck(false), word);
        assert_eq!(flagged.step(Unhealthy, 2, 3).step(Unhealthy, 2, 3).status(), Some(Unhealthy));
    }
}

//! Decides which boot of a device a reading belongs to, and so when it was taken.
//!
//! The firmware stamps milliseconds since boot: the numbers begin again at every reboot and wrap at 2^32. Two control
//! layers, brokers that redeliver and devices that reboot must still come to one row for each reading. So the layers keep
//! what they know of a device's boots in the database, decide under the device's row lock, and name a reading by
//! *start of its boot + its timestamp*; the start of a boot is fixed by whoever saw it first.
//!
//! Pure: arrival times are arguments, in milliseconds by the database's clock. For each reading `b` = arrived − timestamp
//! is what it says of the start of its boot: never earlier than the truth, later by whatever delayed the reading. So
//! the smallest `b` seen (`earliest`) is the best estimate of the start, and `earliest + newest` (`end`) the time of the
//! newest reading known. A boot cannot begin before the end of the one before it; everything follows from that:
//!
//! | timestamp | `b` | it is |
//! |---|---|---|
//! | above 10^11 | – | Unix time, taken as it is |
//! | any | before the start of the current boot | a late reading of an older one; if it also lies after that one's end, the current boot's start had been learnt late |
//! | any | at the start, ± 2 s | the current boot's next, a copy, or out of order |
//! | any | after the start, before the end − 0.5 s | late, of the current boot |
//! | above the newest once 2^32 is added | then within 10 minutes of the start | the current boot's, wrapped |
//! | any | 2^32 before the start of the oldest known, ± 10 minutes | that one's, from before its wrap: nobody had heard it before |
//! | any | from the end − 0.5 s on | a new boot, once [`PATIENCE`] has passed; until then undecided |
//!
//! Patience, because one case cannot be told at once: the first readings of a boot, heard again through a slow path, look
//! like a boot that begins now. While a boot is alive its end moves on, so a copy is recognised as one a little
//! later; the end of a boot that is over stands still, and the new one is believed.
//!
//! Meanwhile the layer also hears what came behind it, and how late it was ([`Lateness`](crate::pace::Lateness)).
//!
//! And what a broker may have kept for a session that was taken up again is first looked for under all known boots.
//!
//! What remains: a copy delayed by more than its boot has been up, on another path than those two, may be taken for
//! a new boot and be stored twice; the layer counts where that may have happened. No reading is lost by any error here: a row is
//! named by device, time *and* the digest of its payload.

use std::time::Duration;

use crate::contract::UNIX_TIME_ABOVE;

/// How far the start a reading implies may be from the start known, and still mean it: two boots less than this apart are taken
/// for one, and the clocks of the database's nodes must agree within it.
pub const TOLERANCE: i64 = 2_000;

/// How much earlier than the end of the one before a boot may seem to begin. Smaller: the delay of a path cancels out here, only
/// clocks count (NTP keeps them within milliseconds), and a copy whose boot ended just then must not seem new.
const CLOCKS: i64 = 500;

/// How long a new boot is not yet believed: time enough for the other layer to write what it heard, and the end to move on.
pub const PATIENCE: Duration = Duration::from_secs(4);

/// How far a wrapped timestamp may be from where it is expected: drift of a crystal over 49 days, and delay.
const WRAP_FITS: i64 = 10 * 60 * 1_000;

/// The firmware's counter has 32 bits.
const WRAP: i64 = 1 << 32;

/// One boot of a device. Times are milliseconds since 1970 by the database's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Boot {
    /// The start as its first writer took it: names the boot and its readings, never changed.
    pub started: i64,
    /// The smallest start any reading has implied.
    pub earliest: i64,
    /// The largest timestamp seen, without wraps.
    pub newest: i64,
}

impl Boot {
    /// When the newest known reading was taken.
    const fn end(&self) -> i64 {
        self.earliest.saturating_add(self.newest)
    }
}

/// A reading as it is to be placed.
#[derive(Clone, Copy, Debug)]
pub struct Sighting {
    /// The device's own.
    pub timestamp: u64,
    /// When it was heard, by the database's clock.
    pub arrived: i64,
    /// Whether it has waited for [`PATIENCE`] since it was first tried.
    pub patient: bool,
}

/// Where a reading belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// It says so itself.
    UnixTime(i64),
    /// `at` = the boot's start + the timestamp.
    InBoot {
        /// When it was taken.
        at: i64,
        /// Which boot: its [`Boot::started`].
        started: i64,
        /// The timestamp without wraps.
        timestamp: i64,
    },
    /// A new boot or a copy: ask again after [`PATIENCE`].
    Undecided,
}

/// What is known of one device's boots, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Boots {
    known: Vec<Boot>,
}

impl Boots {
    /// From the database, in any order.
    pub fn new(mut known: Vec<Boot>) -> Self {
        known.sort_by_key(|boot| boot.started);
        Self { known }
    }

    /// The boots, oldest first.
    pub fn known(&self) -> &[Boot] {
        &self.known
    }

    /// Places one reading and learns from it.
    pub fn place(&mut self, sighting: Sighting) -> Placement {
        let Ok(raw) = i64::try_from(sighting.timestamp) else {
            // Beyond any calendar; the contract's check refuses it earlier.
            return Placement::UnixTime(i64::MAX);
        };
        if sighting.timestamp > UNIX_TIME_ABOVE {
            return Placement::UnixTime(raw);
        }
        let implied = sighting.arrived.saturating_sub(raw);
        let Some(current) = self.known.last() else {
            return self.begin(implied, raw);
        };
        let (timestamp, start) = unwrapped(current, raw, implied);
        let home = self.home(start);
        let is_current = home.saturating_add(1) == self.known.len();
        let may_begin_now = start >= current.end() - CLOCKS && (start - current.earliest).abs() > TOLERANCE;
        if is_current && may_begin_now {
            return if sighting.patient { self.begin(implied, raw) } else { Placement::Undecided };
        }
        let (timestamp, start) = self.wraps_at(home, raw, implied).unwrap_or((timestamp, start));
        self.learn(home, timestamp, start)
    }

    /// The boot whose life a reading with this implied start falls into.
    fn home(&self, start: i64) -> usize {
        let fits = |(index, boot): (usize, &Boot)| {
            let after_the_one_before = match index.checked_sub(1).and_then(|before| self.known.get(before)) {
                Some(before) => start >= before.end(),
                None => true,
            };
            after_the_one_before || start >= boot.earliest - TOLERANCE
        };
        (0..self.known.len())
            .rev()
            .find(|index| self.known.get(*index).is_some_and(|boot| fits((*index, boot))))
            .unwrap_or(0)
    }

    /// The timestamp and implied start by the counter of the boot that a late reading is of: an older one that had wrapped, or the
    /// oldest known, first heard after it had wrapped.
    fn wraps_at(&self, home: usize, raw: i64, implied: i64) -> Option<(i64, i64)> {
        let boot = self.known.get(home)?;
        let (is_oldest, is_over) = (home == 0, home.saturating_add(1) < self.known.len());
        let (wraps, timestamp, start) = nearest(boot, raw, implied);
        let fits = (start - boot.earliest).abs() <= WRAP_FITS;
        (fits && ((wraps > 0 && is_over) || (wraps == -1 && is_oldest))).then_some((timestamp, start))
    }

    fn learn(&mut self, index: usize, timestamp: i64, start: i64) -> Placement {
        let Some(boot) = self.known.get_mut(index) else { return Placement::Undecided };
        // A start that is much too early is believed only from a reading that moves the boot on: a stray copy from an older
        // boot must not drag the estimate with it.
        if timestamp > boot.newest || start >= boot.earliest - TOLERANCE {
            boot.earliest = boot.earliest.min(start);
        }
        boot.newest = boot.newest.max(timestamp);
        Placement::InBoot { at: boot.started.saturating_add(timestamp), started: boot.started, timestamp }
    }

    fn begin(&mut self, start: i64, timestamp: i64) -> Placement {
        let after = self.known.last().map_or(i64::MIN, |boot| boot.started.saturating_add(1));
        let started = start.max(after);
        self.known.push(Boot { started, earliest: start, newest: timestamp });
        Placement::InBoot { at: started.saturating_add(timestamp), started, timestamp }
    }
}

/// The timestamp and implied start as they are if the counter has wrapped since the boot began.
fn unwrapped(boot: &Boot, raw: i64, implied: i64) -> (i64, i64) {
    let (wraps, timestamp, start) = nearest(boot, raw, implied);
    if wraps < 1 {
        return (raw, implied);
    }
    let distance = (start - boot.earliest).abs();
    let moves_on = timestamp > boot.newest;
    let cannot_be_new = implied < boot.end() - CLOCKS;
    if distance <= WRAP_FITS && (moves_on || distance <= TOLERANCE || cannot_be_new) {
        return (timestamp, start);
    }
    (raw, implied)
}

/// How often the counter has wrapped since the boot began (−1: it wrapped just after this reading, and `started` is that moment),
/// if the reading is of this boot; with the timestamp and the implied start as they are then.
fn nearest(boot: &Boot, raw: i64, implied: i64) -> (i64, i64, i64) {
    let wraps = (implied - boot.earliest + WRAP / 2).div_euclid(WRAP);
    let beyond = wraps.saturating_mul(WRAP);
    (wraps, raw.saturating_add(beyond), implied.saturating_sub(beyond))
}

#[cfg(test)]
#[path = "boots_tests.rs"]
mod tests;

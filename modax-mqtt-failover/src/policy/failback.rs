//! When to go back to a more preferred broker.

use std::time::{Duration, Instant};

/// A return that lasts this many times the wait was right,
const LASTING: u32 = 10;
/// and none that was over sooner: a broker that is found slow only some time after each return is not one to go back to.
const LEAST_LASTING: Duration = Duration::from_secs(60);
/// A wait that grows is at least as long, doubled: nothing doubled is nothing.
const LEAST_DOUBLED: Duration = Duration::from_secs(1);
/// The wait doubles so often at most.
const MOST_DOUBLINGS: u32 = 6;
/// Between tries of a move that did not come about, at least.
const AGAIN: Duration = Duration::from_secs(5);

/// The time a more preferred broker has to be reachable, growing with every return that did not last.
#[derive(Clone, Copy, Debug)]
pub struct Failback {
    after: Option<Duration>,
    doublings: u32,
    /// When we came back last.
    returned: Option<Instant>,
    not_before: Option<Instant>,
}

impl Failback {
    /// Never, unless there is a time.
    #[must_use]
    pub const fn new(after: Option<Duration>) -> Self {
        Self { after, doublings: 0, returned: None, not_before: None }
    }

    /// Whether there is anything to watch.
    #[must_use]
    pub const fn is_wanted(&self) -> bool {
        self.after.is_some()
    }

    /// How long a broker has to be reachable now.
    #[must_use]
    pub fn hysteresis(&self) -> Option<Duration> {
        let after = self.after?;
        let grown = |doublings| after.max(LEAST_DOUBLED).saturating_mul(2_u32.saturating_pow(doublings));
        Some(if self.doublings == 0 { after } else { grown(self.doublings) })
    }

    /// When to go back to a broker that has been reachable since then.
    #[must_use]
    pub fn due(&self, reachable_since: Instant) -> Option<Instant> {
        let at = reachable_since.checked_add(self.hysteresis()?)?;
        Some(self.not_before.map_or(at, |not_before| at.max(not_before)))
    }

    /// We came back.
    pub fn returned(&mut self, now: Instant) {
        self.returned = Some(now);
    }

    /// The move did not come about.
    pub fn failed(&mut self, now: Instant) {
        self.doublings = self.doublings.saturating_add(1).min(MOST_DOUBLINGS);
        // The broker has been reachable for long: the time that it has to be would hold up nothing.
        let wait = self.hysteresis().unwrap_or_default().max(AGAIN);
        self.not_before = now.checked_add(wait);
    }

    /// The connection that served us ended by a fault.
    pub fn lost(&mut self, now: Instant) {
        let (Some(after), Some(returned)) = (self.hysteresis(), self.returned.take()) else { return };
        if now.saturating_duration_since(returned) < after.saturating_mul(LASTING).max(LEAST_LASTING) {
            self.doublings = self.doublings.saturating_add(1).min(MOST_DOUBLINGS);
        } else {
            self.doublings = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f08_a_short_wait_grows_as_well_and_only_a_return_of_a_minute_ends_that() {
        for after in [Duration::ZERO, Duration::from_millis(500)] {
            let (mut failback, mut now) = (Failback::new(Some(after)), Instant::now());
            let mut waits = vec![failback.hysteresis().unwrap()];
            for _ in 0..7 {
                failback.returned(now);
                now += Duration::from_millis(59_999);
                failback.lost(now);
                waits.push(failback.hysteresis().unwrap());
            }
            let grown = [2, 4, 8, 16, 32, 64, 64].map(Duration::from_secs);
            assert_eq!((waits[0], &waits[1..]), (after, &grown[..]));

            failback.returned(now);
            failback.lost(now + Duration::from_secs(640));
            assert_eq!(failback.hysteresis(), Some(after), "it lasted");
            failback.returned(now);
            failback.lost(now + Duration::from_secs(60));
            assert_eq!(failback.hysteresis(), Some(after), "a minute is enough for a short wait");
        }
    }
}

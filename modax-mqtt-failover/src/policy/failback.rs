//! When to go back to a more preferred broker.

use std::time::{Duration, Instant};

/// A return that lasts this many times the wait was right.
const LASTING: u32 = 10;
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
        self.after.map(|after| after.saturating_mul(2_u32.saturating_pow(self.doublings)))
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
        if now.saturating_duration_since(returned) < after.saturating_mul(LASTING) {
            self.doublings = self.doublings.saturating_add(1).min(MOST_DOUBLINGS);
        } else {
            self.doublings = 0;
        }
    }
}

//! The slowest answer of late.

use std::time::{Duration, Instant};

/// It is remembered for one to two of these.
const REMEMBERED: Duration = Duration::from_secs(15);

/// The slowest answer of the period that runs, and of the one before it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slowest {
    since: Instant,
    now: Duration,
    before: Duration,
}

impl Slowest {
    pub(super) const fn since(now: Instant) -> Self {
        Self { since: now, now: Duration::ZERO, before: Duration::ZERO }
    }

    pub(super) fn longest(&self) -> Duration {
        self.now.max(self.before)
    }

    pub(super) fn measure(&mut self, now: Instant, took: Duration) {
        if now.saturating_duration_since(self.since) >= REMEMBERED {
            *self = Self { since: now, now: Duration::ZERO, before: self.now };
        }
        self.now = self.now.max(took);
    }
}

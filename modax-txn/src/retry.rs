//! When to try again, and when to leave it to a person.

use std::time::Duration;

/// How a message that the sink could not take is tried again.
///
/// A message is parked when its `attempts` are used up **and** the sink has meanwhile confirmed something else, so that the
/// message is to blame and not the sink; or when `patience` has passed since its first failure. An outage of the broker
/// therefore parks nothing before `patience`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RetryPolicy {
    /// First wait; it doubles each time. Default 100 ms: a broker that fails over is back within a second or so.
    pub first: Duration,
    /// Longest wait. Default 5 s: bounds how late a message is after the sink came back.
    pub cap: Duration,
    /// Attempts before a message is parked while others get through. Default 10, about 25 s.
    pub attempts: u32,
    /// How long a message may fail, whatever else gets through, before it is parked. Default 1 hour: longer than a repair of the broker.
    pub patience: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            first: Duration::from_millis(100),
            cap: Duration::from_secs(5),
            attempts: 10,
            patience: Duration::from_secs(3600),
        }
    }
}

impl RetryPolicy {
    /// Sets the first wait; default 100 ms.
    #[must_use]
    pub const fn first(mut self, first: Duration) -> Self {
        self.first = first;
        self
    }

    /// Sets the longest wait; default 5 s.
    #[must_use]
    pub const fn cap(mut self, cap: Duration) -> Self {
        self.cap = cap;
        self
    }

    /// Sets the attempts before a message is parked while others get through; default 10.
    #[must_use]
    pub const fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts;
        self
    }

    /// Sets how long a message may fail before it is parked in any case; default 1 hour.
    #[must_use]
    pub const fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// The wait after attempt number `attempt` (from 1): half of the doubled time is fixed, half is jitter.
    #[must_use]
    pub(crate) fn wait(&self, attempt: u32, jitter: &mut Jitter) -> Duration {
        let doublings = attempt.saturating_sub(1).min(20);
        let full = self.first.saturating_mul(1 << doublings).min(self.cap);
        jitter.half_of(full)
    }
}

/// A small seeded source of jitter: relays that failed together do not come back together, and a test replays.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Jitter(u64);

impl Jitter {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// A time from half of `full` to all of it.
    pub(crate) fn half_of(&mut self, full: Duration) -> Duration {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        let half = full / 2;
        // The top bits of xorshift are its good ones; 1024 steps are fine enough for a wait.
        let share = u32::try_from(self.0 >> 54).unwrap_or(0);
        half + (half / 1024).saturating_mul(share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_cap_and_never_pass_it() {
        let policy = RetryPolicy::default();
        let mut jitter = Jitter::new(7);
        for attempt in 1..100 {
            let full = Duration::from_millis(100).saturating_mul(1 << (attempt - 1).min(20)).min(policy.cap);
            let wait = policy.wait(attempt, &mut jitter);
            assert!(wait >= full / 2 && wait <= full, "attempt {attempt}: {wait:?} of {full:?}");
        }
    }
}

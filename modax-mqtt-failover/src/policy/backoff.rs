//! How long to wait before the next try: full jitter below an exponential ceiling, and no giving up.
//!
//! Full jitter, because 500 clients that lost one broker in the same millisecond must not come back to it in the same
//! millisecond. No limit on tries, because a plant that was dark for a night has to come back by itself.

use std::time::Duration;

use crate::config::ConfigError;

/// The ceiling of waits for one broker, growing from `base` by `factor` up to `cap`.
///
/// # A herd
///
/// These waits spread out clients that come back to a broker which has failed them. The first move to *another* broker is
/// not spread: it is made at once, because the customer's bound is the time to the next broker, and one accepts 500
/// connections in a fraction of a second. With 500 clients that lost one broker in the same instant, at defaults:
///
/// - each other broker is dialled 500 times at once, by each client in turn until one accepts;
/// - a broker that refuses is dialled at most 100 times within 10 ms, 2,000 times in the first second, and then 500 times
///   a second for ever: once a second by each client.
///
/// What spreads the first move out is where clients go to: [`Selection::round_robin`](crate::Selection::round_robin) with
/// lists that begin at different brokers shares them out, and so do lists of different order with the default.
#[derive(Clone, Copy, Debug, PartialEq)]
#[must_use]
pub struct Backoff {
    pub(crate) base: Duration,
    pub(crate) factor: f64,
    pub(crate) cap: Duration,
}

impl Default for Backoff {
    /// 100 ms (a broker that restarts is back in about that), doubling, 2 s (the customer's bound is 5 s to the next
    /// broker; one try each second on average is no load to anybody).
    fn default() -> Self {
        Self { base: Duration::from_millis(100), factor: 2.0, cap: Duration::from_secs(2) }
    }
}

impl Backoff {
    /// Ceiling of the first wait; default 100 ms, about what a broker needs to restart.
    pub fn base(mut self, base: Duration) -> Self {
        self.base = base;
        self
    }

    /// Growth from one ceiling to the next, 1 to 100; default 2: the cap is reached after six failures.
    pub fn factor(mut self, factor: f64) -> Self {
        self.factor = factor;
        self
    }

    /// Highest ceiling, at most an hour; default 2 s, so that a broker that is back is found well within 5 s.
    pub fn cap(mut self, cap: Duration) -> Self {
        self.cap = cap;
        self
    }

    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let error = |field, limit| Err(ConfigError::OutOfRange { field, limit });
        if self.base.is_zero() || self.base > self.cap {
            return error("retry.base", "more than 0 and at most retry.cap");
        }
        if self.cap > Duration::from_secs(3600) {
            return error("retry.cap", "at most an hour");
        }
        if !(1.0..=100.0).contains(&self.factor) {
            return error("retry.factor", "1 to 100");
        }
        Ok(())
    }

    /// The longest wait after this many failures in a row.
    #[must_use]
    pub fn ceiling(&self, failures: u32) -> Duration {
        let exponent = i32::try_from(failures.saturating_sub(1).min(64)).unwrap_or(64);
        let seconds = self.base.as_secs_f64() * self.factor.powi(exponent);
        if seconds.is_finite() && seconds < self.cap.as_secs_f64() {
            Duration::from_secs_f64(seconds.max(0.0))
        } else {
            self.cap
        }
    }

    /// A wait drawn evenly from zero to the ceiling.
    #[must_use]
    pub fn wait(&self, failures: u32, jitter: &mut Jitter) -> Duration {
        self.ceiling(failures).mul_f64(jitter.fraction())
    }
}

#[cfg(feature = "backoff")]
#[cfg_attr(docsrs, doc(cfg(feature = "backoff")))]
impl From<backoff::ExponentialBackoff> for Backoff {
    /// Keeps interval, multiplier and highest interval. Not kept, because they would break the promise of this crate:
    /// `max_elapsed_time` (it would give up) and `randomization_factor` (the jitter here is full, and stays below the
    /// cap).
    fn from(policy: backoff::ExponentialBackoff) -> Self {
        let cap = policy.max_interval.max(Duration::from_millis(1));
        let base = policy.initial_interval.clamp(Duration::from_millis(1), cap);
        let factor = if policy.multiplier.is_finite() { policy.multiplier.clamp(1.0, 100.0) } else { 2.0 };
        Self { base, factor, cap }
    }
}

/// A seeded source of evenly spread fractions (SplitMix64): the same seed, the same waits.
#[derive(Clone, Debug)]
pub struct Jitter(u64);

impl Jitter {
    /// Starts from `seed`.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number, all 64 bits of it.
    pub fn next_number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// The next number from 0 up to, not including, 1.
    pub fn fraction(&mut self) -> f64 {
        (self.next_number() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

//! One for each broker: closed passes, open does not until its time, half open passes once.

use std::time::{Duration, Instant};

use crate::policy::backoff::{Backoff, Jitter};

/// A connection that lived this long ends a row of failures.
const STABLE: Duration = Duration::from_secs(5);
/// A failure puts a broker behind the others for this long.
const DEMOTION: Duration = Duration::from_secs(30);
/// How often a broker is tried that a person has to mend.
const PARKED: Duration = Duration::from_secs(60);

/// What may be tried now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerState {
    /// Passes.
    Closed,
    /// Passes nothing before this time; then it is half open.
    Open(Instant),
    /// Its one try is under way.
    HalfOpen,
}

/// How a broker failed, from what costs least to try again to what costs most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    /// It had accepted us and closed the connection: it lives.
    Dropped,
    /// It refused, or closed before it accepted: quick to find out.
    Unreachable,
    /// It said nothing: each try costs a whole deadline.
    Silent,
}

/// The circuit breaker of one broker.
#[derive(Clone, Debug)]
pub struct Breaker {
    state: BreakerState,
    failures: u32,
    /// The last failure: how, its stamp, and when.
    failed: Option<(Failure, u64, Instant)>,
    up_since: Option<Instant>,
}

impl Default for Breaker {
    fn default() -> Self {
        Self { state: BreakerState::Closed, failures: 0, failed: None, up_since: None }
    }
}

impl Breaker {
    /// When a try may begin: now, at a later time, or not while one is under way.
    #[must_use]
    pub fn ready_at(&self, now: Instant) -> Option<Instant> {
        match self.state {
            BreakerState::Closed => Some(now),
            BreakerState::Open(until) => Some(until.max(now)),
            BreakerState::HalfOpen => None,
        }
    }

    /// The last failure and its stamp, while that still puts this broker behind others.
    #[must_use]
    pub fn demoted(&self, now: Instant) -> Option<(Failure, u64)> {
        let recent = self.failed.filter(|(_, _, at)| now.saturating_duration_since(*at) < DEMOTION);
        recent.map(|(failure, stamp, _)| (failure, stamp))
    }

    /// Failures in a row.
    #[must_use]
    pub const fn failures(&self) -> u32 {
        self.failures
    }

    /// A try begins.
    pub fn attempt(&mut self) {
        self.state = BreakerState::HalfOpen;
    }

    /// The try was given up for another broker's sake, which proves nothing: as before it.
    pub fn release(&mut self, now: Instant) {
        self.state = if self.failures == 0 { BreakerState::Closed } else { BreakerState::Open(now) };
    }

    /// The broker accepted us. The row of failures ends only when that lasts.
    pub fn succeed(&mut self, now: Instant) {
        self.state = BreakerState::Closed;
        self.up_since = Some(now);
    }

    /// A try failed, or an established connection was lost. `how` ends with a
    /// stamp that grows from failure to failure over all brokers.
    pub fn fail(&mut self, now: Instant, how: (Failure, u64), backoff: &Backoff, jitter: &mut Jitter) {
        let (failure, stamp) = how;
        if self.up_since.take().is_some_and(|since| now.saturating_duration_since(since) >= STABLE) {
            self.failures = 0;
        }
        self.failures = self.failures.saturating_add(1);
        self.failed = Some((failure, stamp, now));
        self.state = BreakerState::Open(now + backoff.wait(self.failures, jitter));
    }

    /// A person has to mend it; tried once a minute all the same.
    pub fn park(&mut self, now: Instant, stamp: u64) {
        self.up_since = None;
        self.failures = self.failures.saturating_add(1);
        self.failed = Some((Failure::Unreachable, stamp, now));
        self.state = BreakerState::Open(now + PARKED);
    }

    /// Keeps the broker alone for at least this long.
    pub fn hold(&mut self, until: Instant) {
        self.state = match self.state {
            BreakerState::Open(other) => BreakerState::Open(other.max(until)),
            BreakerState::Closed | BreakerState::HalfOpen => BreakerState::Open(until),
        };
    }
}

//! Settings of the relay, each with its reason.

use std::time::Duration;

use crate::{retry::RetryPolicy, schema::ConfigError};

/// Settings of the state machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RelayConfig {
    /// How long the lease runs.
    pub lease: Duration,
    /// Shortest wait between reads.
    pub poll_interval: Duration,
    /// Longest wait between reads.
    pub idle_poll_interval: Duration,
    /// Most messages in the sink's hands.
    pub inflight: usize,
    /// How failures are tried again.
    pub retry: RetryPolicy,
}

impl Default for RelayConfig {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(3),
            poll_interval: Duration::from_millis(25),
            idle_poll_interval: Duration::from_millis(250),
            inflight: 128,
            retry: RetryPolicy::default(),
        }
    }
}

impl RelayConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// The first field that cannot work.
    pub fn check(&self) -> Result<(), ConfigError> {
        let checks = [
            ("lease", self.lease < Duration::from_millis(300), "at least 300 ms"),
            ("lease", self.lease > Duration::from_secs(3600), "at most an hour"),
            ("poll_interval", self.poll_interval < Duration::from_millis(1), "at least 1 ms"),
            ("idle_poll_interval", self.idle_poll_interval < self.poll_interval, "not below poll_interval"),
            ("inflight", self.inflight == 0, "at least 1"),
            ("inflight", self.inflight > 10_000, "at most 10,000"),
            ("retry.first", self.retry.first.is_zero(), "above zero"),
            ("retry.cap", self.retry.cap < self.retry.first, "not below retry.first"),
            ("retry.attempts", self.retry.attempts == 0, "at least 1"),
        ];
        match checks.iter().find(|(_, wrong, _)| *wrong) {
            Some(&(field, _, reason)) => Err(ConfigError::Field { field, reason }),
            None => Ok(()),
        }
    }
}

//! Settings of the relay, each with its reason.

use std::time::Duration;

use crate::{retry::RetryPolicy, schema::ConfigError};

/// Settings of the state machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RelayConfig {
    /// How long the lease runs without being renewed. Default 3 s: another relay takes over that long after a kill -9, and a busy machine does
    /// not lose its lease by a pause of a second.
    pub lease: Duration,
    /// Shortest wait between reads, while there is work. Default 25 ms: what a message of another process waits at most then.
    pub poll_interval: Duration,
    /// Longest wait between reads, approached by doubling. Default 250 ms: four index probes a second when idle.
    pub idle_poll_interval: Duration,
    /// Most messages in the sink's hands. Default 128: fills a broker's round trip of 10 ms at ten thousand messages a second.
    pub inflight: usize,
    /// How failures are tried again. Default: see [`RetryPolicy`].
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

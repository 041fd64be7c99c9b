//! The limits of patience.

use std::time::Duration;

use crate::config::ConfigError;

/// How a silent broker is found out.
///
/// ```
/// use std::time::Duration;
/// use modax_mqtt_failover::{LivenessConfig, config::Config};
///
/// # fn main() -> Result<(), modax_mqtt_failover::ConfigError> {
/// // A link by satellite: answers take 600 ms, and each packet costs.
/// let patient = LivenessConfig::default()
///     .floor(Duration::from_secs(1))
///     .first(Duration::from_secs(3))
///     .probe_interval(Duration::from_secs(30));
/// let mut config = Config::from_urls("buoy-3", ["mqtt://10.0.0.1"])?;
/// config.liveness = patient;
/// config.check()?;
///
/// config.liveness = patient.first(Duration::from_millis(500));
/// assert_eq!(config.check().unwrap_err().to_string(), "liveness.first: liveness.floor to 10 s");
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct LivenessConfig {
    pub(super) floor: Duration,
    pub(super) first: Duration,
    pub(super) probe_interval: Duration,
    pub(super) slow_after: Duration,
}

impl Default for LivenessConfig {
    fn default() -> Self {
        Self {
            floor: Duration::from_millis(100),
            first: Duration::from_secs(1),
            probe_interval: Duration::from_secs(1),
            slow_after: Duration::from_secs(5),
        }
    }
}

impl LivenessConfig {
    /// The shortest deadline for an answer; default 100 ms, because 50 ms were seen to condemn healthy brokers on a
    /// busy machine. Above it the deadline is srtt + 8 · rttvar, or twice the slowest answer of the last half minute, and
    /// double after each verdict since which nothing was acknowledged, up to 10 s.
    pub fn floor(mut self, floor: Duration) -> Self {
        self.floor = floor;
        self
    }

    /// The deadline before anything was measured, a prompt CONNACK included; default 1 s: longer than a round trip over
    /// nearly any link, and two of them are well within the customer's 5 s.
    pub fn first(mut self, first: Duration) -> Self {
        self.first = first;
        self
    }

    /// Silence after which a broker is asked whether it is there; default 1 s, so that a hung one is noticed within 1.5 s
    /// for two small packets a second. Apart from the keep-alive that the
    /// broker is told: a client may ask more often than it promised.
    pub fn probe_interval(mut self, interval: Duration) -> Self {
        self.probe_interval = interval;
        self
    }

    /// How long a broker may answer probes without acknowledging before it is left; default 5 s, the customer's bound
    /// to the next broker. Twice the mean time of an acknowledgement, where that is longer. So long, and for eight suspicions,
    /// bytes that make no whole packet are waited for where hardly more come than answers to probes would be: they may be
    /// swallowed by a packet that never ends.
    pub fn slow_after(mut self, limit: Duration) -> Self {
        self.slow_after = limit;
        self
    }

    pub(crate) const fn probes_every(&self) -> Duration {
        self.probe_interval
    }

    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let error = |field, limit| Err(ConfigError::OutOfRange { field, limit });
        if self.floor < Duration::from_millis(1) || self.floor > LONGEST {
            return error("liveness.floor", "1 ms to 10 s");
        }
        if self.first < self.floor || self.first > LONGEST {
            return error("liveness.first", "liveness.floor to 10 s");
        }
        if self.probe_interval < Duration::from_millis(10) || self.probe_interval > Duration::from_secs(3600) {
            return error("liveness.probe_interval", "10 ms to 1 h");
        }
        if self.slow_after < self.floor || self.slow_after > Duration::from_secs(3600) {
            return error("liveness.slow_after", "liveness.floor to 1 h");
        }
        Ok(())
    }
}

/// No deadline grows beyond this, however slow a link has been.
pub(super) const LONGEST: Duration = Duration::from_secs(10);

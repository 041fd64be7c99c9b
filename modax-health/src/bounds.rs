//! How long it takes until a fault is seen, computed from the configuration.

use std::{sync::Arc, time::Duration};

use crate::CheckConfig;

/// How whoever probes this instance does it (a load balancer, a kubelet): what [`Bounds::drain`] is computed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prober {
    /// Time between two probes. Default 2 s: what the MODAX plants' HAProxy is set to.
    pub interval: Duration,
    /// Longest wait for an answer. Default 1 s: above any healthy answer by two orders.
    pub timeout: Duration,
    /// Failures in a row until the instance is out of rotation. Default 3, HAProxy's own default.
    pub fall: u32,
    /// Successes in a row until it is back. Default 2, HAProxy's own default.
    pub rise: u32,
}

impl Default for Prober {
    fn default() -> Self {
        Self { interval: Duration::from_secs(2), timeout: Duration::from_secs(1), fall: 3, rise: 2 }
    }
}

impl Prober {
    /// Longest time from a change of the answer to 503 until this prober has taken the instance out.
    ///
    /// The change may fall just after a probe, hence `fall` whole intervals, and the last probe may take its timeout.
    #[must_use]
    pub fn detection(&self) -> Duration {
        self.interval.max(self.timeout).saturating_mul(self.fall.max(1)).saturating_add(self.timeout)
    }
}

/// The longest times of one check.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CheckBounds {
    /// Name of the check.
    pub name: Arc<str>,
    /// From a lasting fault to the status that says so.
    pub detection: Duration,
    /// From a lasting recovery to the status that says so, unless a run is stuck.
    pub recovery: Duration,
}

/// The longest times of a registry, as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Bounds {
    /// Each check, in the order of the builder.
    pub checks: Vec<CheckBounds>,
    /// How long [`drain`](crate::Registry::drain) waits: until the prober has surely seen the 503.
    pub drain: Duration,
}

impl CheckBounds {
    pub(crate) fn of(config: &CheckConfig) -> Self {
        // A fault may fall just after a run began that will still pass; the next begins one period later. Each of the
        // `fall` runs that follow takes a period (or its timeout, when that is longer), the last one its timeout.
        let period = config.longest_period();
        let after = |runs: u8| period.saturating_mul(u32::from(runs.max(1))).saturating_add(config.timeout);
        Self { name: Arc::clone(&config.name), detection: after(config.fall), recovery: after(config.rise) }
    }
}

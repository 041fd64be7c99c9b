//! Things that happened, in the past tense.

use std::{sync::Arc, time::Duration};

use crate::Status;

/// A transition. Nothing is sent for a check that stays what it was.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A check's damped status changed; `from` is none for its first result.
    CheckChanged {
        /// Name of the check.
        check: Arc<str>,
        /// What it was.
        from: Option<Status>,
        /// What it is.
        to: Status,
    },
    /// A run passed its deadline and could not be ended: the check is not started again before it ends.
    CheckStuck {
        /// Name of the check.
        check: Arc<str>,
        /// Age of the run.
        age: Duration,
    },
    /// A stuck run ended after all.
    CheckUnstuck {
        /// Name of the check.
        check: Arc<str>,
        /// Age the run reached.
        age: Duration,
    },
    /// No run of a check ended within its `stale_after`.
    CheckStale {
        /// Name of the check.
        check: Arc<str>,
    },
    /// A watchdog was not bumped within its limit: the process is no longer live.
    WatchdogMissed {
        /// Name of the watchdog.
        watchdog: Arc<str>,
    },
    /// A missed watchdog was bumped again.
    WatchdogRecovered {
        /// Name of the watchdog.
        watchdog: Arc<str>,
    },
    /// The status of the whole changed.
    StatusChanged {
        /// What it was.
        from: Status,
        /// What it is.
        to: Status,
    },
    /// Readiness changed.
    ReadyChanged {
        /// Whether the instance is ready.
        ready: bool,
    },
    /// Draining began; it never ends.
    DrainStarted,
    /// The reader was too slow: this many events were shed.
    Lagged {
        /// Number of events.
        missed: u64,
    },
}

//! The only thing liveness may depend on: a counter that a loop must bump.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// Evidence that a loop still turns. Cheap to clone; all clones are the same watchdog.
///
/// It holds a number and nothing else, so liveness cannot wait for a socket, a pool or another process.
///
/// Bump it in the loop whose death only a restart would cure, once a turn: [`bump`](Self::bump) is one relaxed atomic
/// addition. The scheduler notices that the number stands still.
#[derive(Clone, Debug)]
pub struct Watchdog {
    name: Arc<str>,
    limit: Duration,
    bumps: Arc<AtomicU64>,
}

impl Watchdog {
    /// A watchdog that is missed when it is not bumped for `limit`.
    ///
    /// Choose `limit` well above the longest turn of the loop: a restart in vain is worse than one a few seconds late.
    pub fn new(name: impl Into<Arc<str>>, limit: Duration) -> Self {
        Self { name: name.into(), limit, bumps: Arc::new(AtomicU64::new(0)) }
    }

    /// Says that the loop still turns. Never blocks, reads no clock.
    pub fn bump(&self) {
        self.bumps.fetch_add(1, Ordering::Relaxed);
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The longest time between two bumps.
    pub fn limit(&self) -> Duration {
        self.limit
    }

    /// How often it was bumped.
    pub fn bumps(&self) -> u64 {
        self.bumps.load(Ordering::Relaxed)
    }
}

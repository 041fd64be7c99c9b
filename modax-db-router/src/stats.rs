//! Counters since the start of a router.

use std::sync::atomic::{AtomicU64, Ordering};

/// A snapshot of a router's counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Writes acknowledged as committed.
    pub writes_committed: u64,
    /// Writes that ended in an error other than an unknown outcome.
    pub writes_failed: u64,
    /// Writes whose outcome stayed unknown.
    pub writes_unknown: u64,
    /// Commits without an answer that the rule settled.
    pub commits_settled: u64,
    /// Committed writes for which a standby's copy is proved.
    pub commits_synchronous: u64,
    /// Attempts beyond the first.
    pub write_retries: u64,
    /// Reads answered.
    pub reads: u64,
    /// Reads that were tried again on another server.
    pub read_retries: u64,
    /// Reads that failed.
    pub reads_failed: u64,
    /// Calls waiting for a primary now.
    pub held: u64,
    /// Calls refused because too many were waiting.
    pub shed: u64,
    /// Failovers and restarts of the primary that were followed.
    pub failovers: u64,
    /// Times that several servers wrote at once.
    pub split_brains: u64,
    /// Times that a server on a history left behind was refused.
    pub stale_primaries_refused: u64,
    /// Connections in use that were cut because their server was fenced, demoted or lost.
    pub connections_severed: u64,
    /// Probes sent.
    pub probes: u64,
    /// Probes that failed.
    pub probes_failed: u64,
}

/// The living counters behind [`Stats`].
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) writes_committed: AtomicU64,
    pub(crate) writes_failed: AtomicU64,
    pub(crate) writes_unknown: AtomicU64,
    pub(crate) commits_settled: AtomicU64,
    pub(crate) commits_synchronous: AtomicU64,
    pub(crate) write_retries: AtomicU64,
    pub(crate) reads: AtomicU64,
    pub(crate) read_retries: AtomicU64,
    pub(crate) reads_failed: AtomicU64,
    pub(crate) shed: AtomicU64,
    pub(crate) failovers: AtomicU64,
    pub(crate) split_brains: AtomicU64,
    pub(crate) stale_primaries_refused: AtomicU64,
    pub(crate) connections_severed: AtomicU64,
    pub(crate) probes: AtomicU64,
    pub(crate) probes_failed: AtomicU64,
}

impl Counters {
    pub(crate) fn read(&self, held: usize) -> Stats {
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            writes_committed: value(&self.writes_committed),
            writes_failed: value(&self.writes_failed),
            writes_unknown: value(&self.writes_unknown),
            commits_settled: value(&self.commits_settled),
            commits_synchronous: value(&self.commits_synchronous),
            write_retries: value(&self.write_retries),
            reads: value(&self.reads),
            read_retries: value(&self.read_retries),
            reads_failed: value(&self.reads_failed),
            held: held as u64,
            shed: value(&self.shed),
            failovers: value(&self.failovers),
            split_brains: value(&self.split_brains),
            stale_primaries_refused: value(&self.stale_primaries_refused),
            connections_severed: value(&self.connections_severed),
            probes: value(&self.probes),
            probes_failed: value(&self.probes_failed),
        }
    }
}

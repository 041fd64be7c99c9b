//! Counters since the start of a router.

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

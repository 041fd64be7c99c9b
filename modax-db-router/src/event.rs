//! What happened, in the past tense.

use std::time::Duration;

use crate::lsn::Timeline;
use crate::observation::ProbeFailure;
use crate::topology::NodeId;

/// Something that happened to the cluster, as this router saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The first primary was found and accepted.
    PrimaryFound {
        /// Which server.
        node: NodeId,
        /// On which timeline.
        timeline: Timeline,
    },
    /// The primary stopped answering, or answers that it is none; writes wait.
    PrimaryLost {
        /// Which server.
        node: NodeId,
        /// Why, if its probes failed; `None` if it answers and is no longer a primary.
        failure: Option<ProbeFailure>,
    },
    /// Writes go to a primary again: another one, or the same after a restart (`from` and `to` are then equal).
    FailedOver {
        /// The primary before.
        from: NodeId,
        /// The primary now.
        to: NodeId,
        /// The timeline it writes.
        timeline: Timeline,
        /// From the last good answer of the old one until writes were open again.
        outage: Duration,
        /// Bytes that the old history had, as far as was seen, and the new one has not. Zero if nothing was lost.
        cut_bytes: Option<u64>,
    },
    /// Several servers write different histories at once: writes stopped.
    SplitBrain {
        /// Which servers.
        nodes: Vec<NodeId>,
    },
    /// A server on a history left behind offers itself; it is refused.
    Fenced {
        /// Which server.
        node: NodeId,
        /// The timeline it is on.
        timeline: Timeline,
        /// Why it is refused.
        why: crate::fence::Refusal,
    },
    /// An operator accepted a server's history by `accept_history`.
    HistoryAccepted {
        /// Which server.
        node: NodeId,
    },
    /// The primary has `default_transaction_read_only` on; writes wait.
    Draining {
        /// Which server.
        node: NodeId,
    },
    /// A replica is not read any more.
    ReplicaEjected {
        /// Which server.
        node: NodeId,
        /// Why.
        why: Ejection,
    },
    /// A replica is read again.
    ReplicaReturned {
        /// Which server.
        node: NodeId,
    },
    /// This listener was too slow: events were dropped before it read them.
    Lagged {
        /// How many.
        missed: u64,
    },
    /// The router was closed; nothing follows.
    Closed,
}

/// Why a replica is not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ejection {
    /// Its probes failed.
    Unreachable(ProbeFailure),
    /// It has replayed what the current history has not.
    Divergent,
    /// It belongs to another database cluster.
    Foreign,
}

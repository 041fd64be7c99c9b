//! An immutable picture of all servers: what the router knew when it decided.

use std::fmt;
use std::time::{Duration, Instant};

use crate::fence::Lineage;
use crate::lsn::{Lsn, SystemId, Timeline};
use crate::observation::{Incarnation, ProbeFailure, StartTime};

/// A server by its address. Displayed as `host:port`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(std::sync::Arc<str>);

impl NodeId {
    /// The server at that address, as the connection URL names it.
    #[must_use]
    pub fn new(host: &str, port: u16) -> Self {
        // An IPv6 address has colons of its own.
        let text = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        Self(text.into())
    }

    /// `host:port`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a server is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Role {
    /// It writes the current history.
    Primary,
    /// It replays.
    Replica,
    /// Never seen, or out of reach for so long that its last role means nothing.
    Unknown,
}

/// What a server may be used for, and if not, why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NodeState {
    /// Usable in its role.
    Usable,
    /// No probe has answered yet.
    Unseen,
    /// Its last probes failed.
    Unreachable(ProbeFailure),
    /// Out of recovery, with `default_transaction_read_only` on: an operator is moving writes away; they wait.
    Draining,
    /// On a history this router has seen left behind, or beyond the point where the current one branched off.
    Fenced,
    /// A replica that cannot show that it is on the current history: reads with a bound or a token avoid it.
    Unproven,
    /// One of several servers that write at once: nobody may write until one is left.
    SplitBrain,
    /// Out of recovery, and not yet confirmed as the only one.
    Unconfirmed,
}

impl fmt::Display for NodeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usable => f.write_str("usable"),
            Self::Unseen => f.write_str("not seen yet"),
            Self::Unreachable(failure) => write!(f, "{failure}"),
            Self::Draining => f.write_str("draining"),
            Self::Fenced => f.write_str("on a history left behind"),
            Self::Unproven => f.write_str("history not proved"),
            Self::SplitBrain => f.write_str("one of several that write"),
            Self::Unconfirmed => f.write_str("not confirmed yet"),
        }
    }
}

/// One server in a [`Topology`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Node {
    /// Its address.
    pub id: NodeId,
    /// What it is.
    pub role: Role,
    /// The timeline it is proved to be on.
    pub timeline: Option<Timeline>,
    /// End of what it wrote or replayed when last seen.
    pub position: Option<Lsn>,
    /// Bytes it has not replayed, against the newest position of the primary this router has seen.
    pub lag_bytes: Option<u64>,
    /// How old its data was when this picture was made; `None` if that cannot be proved.
    pub lag: Option<Duration>,
    /// What it may be used for.
    pub state: NodeState,
    /// Its data contained all that was committed at this moment of our own clock.
    pub fresh_at: Option<Instant>,
    /// Start of the life of the server in which it was last seen.
    pub(crate) started: Option<StartTime>,
}

impl Node {
    /// How old its data may be at `now`, by this router's own clock; `None` if nothing can be proved.
    #[must_use]
    pub fn staleness(&self, now: Instant) -> Option<Duration> {
        self.fresh_at.map(|at| now.saturating_duration_since(at))
    }
}

/// Why writes have nowhere to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WritesClosed {
    /// No server is out of recovery, or the primary does not answer.
    NoPrimary,
    /// The primary is being drained by an operator (`default_transaction_read_only`).
    Draining,
    /// Two servers write different histories at once.
    SplitBrain,
    /// The only server out of recovery is on a history that this router has seen left behind.
    StalePrimary,
    /// A new head was seen and the old one has not been ruled out yet.
    Unconfirmed,
    /// `pause_writes` was called.
    Paused,
}

impl fmt::Display for WritesClosed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoPrimary => "no primary is known",
            Self::Draining => "the primary is being drained",
            Self::SplitBrain => "several servers write at once",
            Self::StalePrimary => "the only writable server is on a history left behind",
            Self::Unconfirmed => "the old primary has not been ruled out yet",
            Self::Paused => "writes are paused",
        })
    }
}

/// What is known of all servers at one moment. Never changes; a newer one replaces it.
#[derive(Clone, Debug, PartialEq)]
pub struct Topology {
    pub(crate) epoch: u64,
    pub(crate) nodes: Vec<Node>,
    pub(crate) writable: Result<(usize, Incarnation), WritesClosed>,
    pub(crate) system: Option<SystemId>,
    pub(crate) lineage: Lineage,
    pub(crate) made_at: Option<Instant>,
}

impl Topology {
    /// A picture of servers of which nothing is known yet.
    #[must_use]
    pub fn unseen(ids: impl IntoIterator<Item = NodeId>) -> Self {
        let nodes = ids
            .into_iter()
            .map(|id| Node {
                id,
                role: Role::Unknown,
                timeline: None,
                position: None,
                lag_bytes: None,
                lag: None,
                state: NodeState::Unseen,
                fresh_at: None,
                started: None,
            })
            .collect();
        Self {
            epoch: 0,
            nodes,
            writable: Err(WritesClosed::NoPrimary),
            system: None,
            lineage: Lineage::default(),
            made_at: None,
        }
    }

    /// Counts changes of routing: a primary, a role or a state. Positions alone do not count.
    #[must_use]
    pub const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// All servers, in the order of the connection URL.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The server that may be written, if there is one.
    #[must_use]
    pub fn primary(&self) -> Option<&Node> {
        self.writable.ok().and_then(|(index, _)| self.nodes.get(index))
    }

    /// The server that has the newest data: the primary, also while new writes wait for a planned switchover.
    pub(crate) fn newest(&self) -> Option<&Node> {
        match self.writable {
            Ok((index, _)) => self.nodes.get(index),
            Err(WritesClosed::Paused | WritesClosed::Draining) => {
                self.lineage.current().and_then(|life| self.node(&life.node))
            }
            Err(_) => None,
        }
    }

    /// Why nobody may write, if nobody may.
    #[must_use]
    pub fn writes_closed(&self) -> Option<WritesClosed> {
        self.writable.err()
    }

    /// The life of the primary that may be written, if there is one.
    #[must_use]
    pub fn incarnation(&self) -> Option<Incarnation> {
        self.writable.ok().map(|(_, incarnation)| incarnation)
    }

    /// The database cluster these servers belong to, once one of them has been accepted.
    #[must_use]
    pub const fn system(&self) -> Option<SystemId> {
        self.system
    }

    /// The lives of the current history's primaries, as far as this router saw them.
    #[must_use]
    pub const fn lineage(&self) -> &Lineage {
        &self.lineage
    }

    /// All servers and what they may be used for.
    #[cfg(feature = "tokio")]
    pub(crate) fn states(&self) -> Vec<(NodeId, NodeState)> {
        self.nodes.iter().map(|node| (node.id.clone(), node.state)).collect()
    }

    /// The server with that address.
    #[must_use]
    pub fn node(&self, id: &NodeId) -> Option<&Node> {
        self.nodes.iter().find(|node| node.id == *id)
    }
}

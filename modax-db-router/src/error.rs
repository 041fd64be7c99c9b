//! What went wrong, and what the caller may do: one enum per operation.

use std::fmt;
use std::time::Duration;

use crate::commit::UnknownBecause;
use crate::plan::LeftOut;
use crate::policy::retry::Reaction;
use crate::topology::{NodeId, NodeState, WritesClosed};

/// Why the configuration cannot serve. Never contains a password.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The connection URL could not be read.
    #[error("connection URL: {reason}")]
    Url {
        /// What is wrong with it.
        reason: String,
    },
    /// The URL names no host.
    #[error("connection URL: no host")]
    NoHost,
    /// The URL lists hosts and ports in different numbers.
    #[error("connection URL: {hosts} hosts and {ports} ports")]
    PortCount {
        /// Hosts listed.
        hosts: usize,
        /// Ports listed.
        ports: usize,
    },
    /// The URL names one server twice; it would be taken for two.
    #[error("connection URL: {node} stands there twice")]
    Duplicate {
        /// Which.
        node: NodeId,
    },
    /// The URL asks for TLS, which this version does not speak; it will not connect without.
    #[error("sslmode={mode} asks for TLS, which this version does not support")]
    TlsUnsupported {
        /// The value in the URL.
        mode: String,
    },
    /// The host is not on this machine, and nothing says that plain text is meant.
    #[error(
        "host {node} is off loopback: passwords and data would travel in plain text; say sslmode=disable if that is meant"
    )]
    PlaintextOffLoopback {
        /// Which.
        node: NodeId,
    },
    /// A Patroni URL could not be read.
    #[error("patroni URL {url}: {reason}")]
    Patroni {
        /// The URL, without credentials.
        url: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A setting that cannot work.
    #[error("{setting}: {reason}")]
    Setting {
        /// Which.
        setting: &'static str,
        /// Why not.
        reason: &'static str,
    },
    /// `build` was called outside of a tokio runtime.
    #[error("no tokio runtime: build the router inside one")]
    NoRuntime,
}

/// Why there is no connection to the primary.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AcquireError {
    /// No server could be written within the deadline. Nothing was sent.
    #[error("no primary within {waited:?}: {why}{}", list(.nodes, .reasons))]
    NoPrimary {
        /// Why writes were closed at the end of the wait.
        why: WritesClosed,
        /// How long this call waited.
        waited: Duration,
        /// The servers and their states then: a refused login shows here.
        nodes: Vec<(NodeId, NodeState)>,
        /// What the last probe of a server met, in the words of the server or of the operating system.
        reasons: Vec<(NodeId, String)>,
    },
    /// The primary is known, and no connection to it could be had within the deadline. Nothing was sent.
    #[error("no connection to {node} within {waited:?}")]
    NoConnection {
        /// The primary.
        node: NodeId,
        /// How long this call waited.
        waited: Duration,
        /// The last refusal, if the server gave one.
        #[source]
        source: Option<tokio_postgres::Error>,
    },
    /// Too many calls are waiting for a primary already.
    #[error("{limit} calls are waiting for a primary already")]
    HoldFull {
        /// The configured limit.
        limit: usize,
    },
    /// The router was closed.
    #[error("router closed")]
    Closed,
}

impl AcquireError {
    /// Whether the same call may succeed later without any change by the caller.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        !matches!(self, Self::Closed)
    }
}

/// Why a history was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AcceptError {
    /// No server of that address is in the connection URL.
    #[error("no such server")]
    UnknownNode,
    /// The server was in recovery, or not reachable, when last seen.
    #[error("the server was not out of recovery when last seen")]
    NotWriting,
    /// The router was closed.
    #[error("router closed")]
    Closed,
}

impl AcceptError {
    /// Whether the same call may succeed later without any change by the caller.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::NotWriting)
    }
}

/// Why a write was not acknowledged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// No server could be written within the deadline. Nothing was committed.
    #[error("no primary within {waited:?}: {why}{}", list(.nodes, .reasons))]
    NoPrimary {
        /// Why writes were closed at the end of the wait.
        why: WritesClosed,
        /// How long this call waited.
        waited: Duration,
        /// The servers and their states then: a refused login shows here.
        nodes: Vec<(NodeId, NodeState)>,
        /// What the last probe of a server met, in the words of the server or of the operating system.
        reasons: Vec<(NodeId, String)>,
        /// What the last attempt met, if there was one.
        #[source]
        source: Option<tokio_postgres::Error>,
    },
    /// Too many calls are waiting for a primary already. Nothing was sent.
    #[error("{limit} calls are waiting for a primary already")]
    HoldFull {
        /// The configured limit.
        limit: usize,
    },
    /// It certainly did not happen, and attempts or time are used up. Also when the connection ended under the work
    /// [`BROKEN_ATTEMPTS`](crate::policy::retry::BROKEN_ATTEMPTS) times: a statement may be what ends it.
    #[error("not committed after {attempts} attempts")]
    NotCommitted {
        /// How often the work was begun.
        attempts: u32,
        /// What the last attempt met; `None` if the deadline passed or the link to the primary was cut.
        #[source]
        source: Option<tokio_postgres::Error>,
    },
    /// `COMMIT` was sent, its answer did not come, and the rule cannot settle what became of it; or statements may have
    /// run outside of the transaction ([`UnknownBecause`] tells).
    #[error("outcome unknown on {node}: {because}")]
    OutcomeUnknown {
        /// The server that was written.
        node: NodeId,
        /// Why it could not be settled.
        because: UnknownBecause,
        /// How often the work was begun.
        attempts: u32,
        /// What ended the wait for the answer.
        #[source]
        source: Option<tokio_postgres::Error>,
    },
    /// The work's own error: the server refused a statement. The transaction was rolled back.
    #[error("statement failed: {}", describe(.0))]
    Statement(#[source] tokio_postgres::Error),
    /// The server that acknowledged it turned out to be on a history left behind: it is not part of the database.
    #[error("{node} acknowledged on a history that was left behind")]
    StalePrimary {
        /// Which server.
        node: NodeId,
    },
    /// A clone of the [`Tx`](crate::Tx) outlived the work: what it may still send could fall outside of the
    /// transaction. Nothing was committed.
    #[error("a clone of the transaction outlived the work; nothing was committed")]
    TxKept,
    /// The router was closed. Nothing was committed.
    #[error("router closed")]
    Closed,
}

impl WriteError {
    /// Whether the same call may succeed later without any change by the caller, and repeating it does no harm.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::NoPrimary { .. } | Self::HoldFull { .. } | Self::NotCommitted { .. } | Self::StalePrimary { .. } => {
                true
            }
            Self::Statement(error) => {
                error.code().is_some_and(|code| crate::policy::retry::react(code.code()) != Reaction::Callers)
            }
            Self::OutcomeUnknown { .. } | Self::TxKept | Self::Closed => false,
        }
    }

    /// Whether the write may have happened: repeat it only under the same idempotency key.
    #[must_use]
    pub const fn outcome_unknown(&self) -> bool {
        matches!(self, Self::OutcomeUnknown { .. })
    }
}

/// Why a read brought no rows.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// Within the deadline no server was allowed to answer.
    #[error("no server could serve the read within {waited:?}{}", list(.left_out, .reasons))]
    NoNode {
        /// Why each server was left out at the end of the wait.
        left_out: Vec<(NodeId, LeftOut)>,
        /// What the last probe of a server met, in the words of the server or of the operating system.
        reasons: Vec<(NodeId, String)>,
        /// How long this call waited.
        waited: Duration,
    },
    /// Servers were there, and none answered within the deadline; or the link ended under the statement
    /// [`BROKEN_ATTEMPTS`](crate::policy::retry::BROKEN_ATTEMPTS) times: the statement may be what ends it.
    #[error("no answer within {waited:?}; the last server asked was {node}")]
    NoAnswer {
        /// The last server asked.
        node: NodeId,
        /// How long this call waited.
        waited: Duration,
        /// What it said, if anything.
        #[source]
        source: Option<tokio_postgres::Error>,
    },
    /// The token's write lies beyond the point where the current history branched off, or beyond all that the primary
    /// has: it was lost in a failover, or an older copy of the database was put in its place.
    #[error("the write of this token is not part of the current history")]
    TokenLost,
    /// It cannot be shown whether the token's write survived: this router did not see where its history ended.
    #[error("it is not known whether the write of this token is part of the current history")]
    TokenUnproven,
    /// The token is of another database cluster.
    #[error("the token belongs to another database cluster")]
    TokenForeign,
    /// The server refused the statement.
    #[error("statement failed: {}", describe(.0))]
    Statement(#[source] tokio_postgres::Error),
    /// The router was closed.
    #[error("router closed")]
    Closed,
}

impl ReadError {
    /// Whether the same call may succeed later without any change by the caller.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::NoNode { .. } | Self::NoAnswer { .. })
    }
}

/// ` (db1:5432 login or probe refused: no such role, db2:5432 not reachable)`.
fn list<W: fmt::Display>(nodes: &[(NodeId, W)], reasons: &[(NodeId, String)]) -> String {
    let reason = |node| reasons.iter().find(|(of, _)| of == node).map_or(String::new(), |(_, why)| format!(": {why}"));
    let states: Vec<String> = nodes.iter().map(|(node, state)| format!("{node} {state}{}", reason(node))).collect();
    if states.is_empty() { String::new() } else { format!(" ({})", states.join(", ")) }
}

/// The server's own words where there are any: tokio-postgres prints only `db error`.
pub(crate) fn describe(error: &tokio_postgres::Error) -> String {
    match (error.as_db_error(), std::error::Error::source(error)) {
        (Some(db), _) => format!("{} ({})", db.message(), db.code().code()),
        (None, Some(source)) if !error.to_string().contains(&source.to_string()) => format!("{error}: {source}"),
        (None, _) => error.to_string(),
    }
}

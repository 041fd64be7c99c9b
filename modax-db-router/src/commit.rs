//! The rule that settles a commit whose answer did not come.
//!
//! `pg_xact_status` alone lies: after a promotion, and after a crash restart in place on the same timeline, a lost
//! transaction's number is given to somebody else, and the server then says `committed` of that other transaction.
//! So before `COMMIT` is sent the router holds the number and a position `L1` of the log taken after the number was
//! assigned; and it knows, for each restart and promotion it saw, the *floor* up to which the log survived.
//!
//! - `L1` lies beyond a floor: not committed, and nobody needs to be asked;
//! - all floors are known and `L1` lies below them: the number was not given away, `pg_xact_status` may be believed;
//! - a floor is unknown: only `aborted` may be believed, which is true of a lost transaction too.
//!
//! Pure: evidence and floors in, verdict out.

use std::fmt;

use crate::fence::{Floor, Lineage};
use crate::lsn::Lsn;
use crate::observation::Incarnation;

/// What was held before `COMMIT` was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// The transaction's number; `None` if none had been assigned.
    pub xid: Option<u64>,
    /// `L1`: a position of the log taken after the number was assigned.
    pub lsn: Lsn,
    /// The life of the primary that was written.
    pub origin: Incarnation,
}

/// Why an outcome cannot be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum UnknownBecause {
    /// No transaction number had been assigned: there is nothing to ask about.
    NoTransactionId,
    /// This router did not see where a restart or a promotion cut the log.
    FloorUnknown,
    /// The server no longer keeps, or does not yet know, that transaction number (22023).
    NotOnRecord,
    /// Nobody who could say it was reached before the deadline.
    Deadline,
    /// The transaction was still in progress at the deadline: waiting for its standby, perhaps.
    StillInProgress,
    /// `BEGIN` failed, and the statements behind it may have been committed one by one.
    BeginFailed,
    /// The work ended the transaction itself (`COMMIT`, `ROLLBACK`, `PREPARE TRANSACTION`): what it did before may be
    /// committed, what it did behind ran outside of the router's transaction.
    EndedByHand,
    /// The router was closed before it could be settled.
    Closed,
}

impl fmt::Display for UnknownBecause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoTransactionId => "no transaction number had been assigned",
            Self::FloorUnknown => "it is not known where a restart or promotion cut the log",
            Self::NotOnRecord => "the server has no record of the transaction number",
            Self::Deadline => "nobody who could say was reached before the deadline",
            Self::StillInProgress => "still in progress at the deadline",
            Self::BeginFailed => "BEGIN failed, and statements may have run without a transaction",
            Self::EndedByHand => "the work itself ended the transaction",
            Self::Closed => "the router was closed",
        })
    }
}

/// What the rule says before anybody is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It did not happen.
    NotCommitted,
    /// Ask `pg_xact_status` of the current primary.
    Ask {
        /// The number to ask about.
        xid: u64,
        /// Whether the number cannot have been given away, so that `committed` speaks of this transaction.
        believe_committed: bool,
    },
    /// It cannot be settled.
    Unknown(UnknownBecause),
}

/// What the server's answer means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// It happened.
    Committed,
    /// It did not happen.
    NotCommitted,
    /// Ask again.
    InProgress,
    /// It cannot be settled.
    Unknown(UnknownBecause),
}

/// Applies the rule to `evidence`, by what is known of the current history.
#[must_use]
pub fn judge(evidence: &Evidence, lineage: &Lineage) -> Verdict {
    let Some(xid) = evidence.xid else { return Verdict::Unknown(UnknownBecause::NoTransactionId) };
    let Some(floors) = lineage.floors_since(&evidence.origin) else {
        return Verdict::Ask { xid, believe_committed: false };
    };
    let mut believe_committed = true;
    for floor in floors {
        match floor {
            Floor::At(at) if evidence.lsn > at => return Verdict::NotCommitted,
            Floor::At(_) | Floor::Clean => {}
            Floor::Unknown => believe_committed = false,
        }
    }
    Verdict::Ask { xid, believe_committed }
}

/// Reads the answer of `pg_xact_status`; `None` is SQL's NULL (too old to be on record).
#[must_use]
pub fn read_status(status: Option<&str>, believe_committed: bool) -> Settled {
    match status {
        Some("aborted") => Settled::NotCommitted,
        Some(_) if !believe_committed => Settled::Unknown(UnknownBecause::FloorUnknown),
        Some("committed") => Settled::Committed,
        Some("in progress") => Settled::InProgress,
        Some(_) | None => Settled::Unknown(UnknownBecause::NotOnRecord),
    }
}

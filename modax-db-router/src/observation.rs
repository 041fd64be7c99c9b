//! What one probe of one server saw.
//!
//! Everything here is readable by a role without any privilege, in one round trip, except
//! the timeline a standby is receiving, which needs `pg_monitor`.

use crate::lsn::{Lsn, ParseLsnError, SystemId, Timeline};

/// When the server's postmaster started, in microseconds of the server's own clock.
///
/// Compared for equality only: another value is another life of that server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StartTime(i64);

impl StartTime {
    /// Microseconds since the Unix epoch by the server's clock.
    #[must_use]
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }
}

/// One life of one primary: its cluster, its timeline, its start and where its recovery ended. A restart or a promotion
/// makes another, and so does the crash of a single backend: the server recovers in place then, and keeps its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Incarnation {
    /// Which database cluster.
    pub system: SystemId,
    /// Which history branch it writes.
    pub timeline: Timeline,
    /// When it started.
    pub started: StartTime,
    /// Where recovery ended when it began; `None` after a clean start.
    pub floor: Option<Lsn>,
}

/// What the server was doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Activity {
    /// Out of recovery: it writes its own log.
    Writing {
        /// Timeline of the live log.
        timeline: Timeline,
        /// Position up to which the log is written.
        insert: Lsn,
        /// Where recovery ended when this life of the server began: what lies beyond it in an older life was cut off.
        /// `None` after a clean start, when nothing was recovered.
        floor: Option<Lsn>,
    },
    /// In recovery: it replays somebody else's log.
    Replaying {
        /// Position up to which the log is replayed; `None` before the first record.
        replayed: Option<Lsn>,
        /// The highest timeline this server has certainly replayed from. The control file lags behind, so it is a lower bound.
        at_least: Timeline,
        /// The timeline it is receiving now, where the role may see it (`pg_monitor`).
        received: Option<Timeline>,
    },
}

/// One probe's facts.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Observation {
    /// Identity of the database cluster.
    pub system: SystemId,
    /// Start of the postmaster.
    pub started: StartTime,
    /// Writing or replaying, and where.
    pub activity: Activity,
    /// `default_transaction_read_only`: an operator is draining this server of writes.
    pub read_only: bool,
    /// Whether `synchronous_standby_names` is set, so that a commit waits for a copy.
    pub synchronous: bool,
}

impl Observation {
    /// A server with this identity doing this, neither draining nor synchronous.
    #[must_use]
    pub const fn new(system: SystemId, started: StartTime, activity: Activity) -> Self {
        Self { system, started, activity, read_only: false, synchronous: false }
    }

    /// The life of the primary this is, if it is one.
    #[must_use]
    pub const fn incarnation(&self) -> Option<Incarnation> {
        match self.activity {
            Activity::Writing { timeline, floor, .. } => {
                Some(Incarnation { system: self.system, timeline, started: self.started, floor })
            }
            Activity::Replaying { .. } => None,
        }
    }

    /// Whether the server was out of recovery.
    #[must_use]
    pub const fn is_head(&self) -> bool {
        matches!(self.activity, Activity::Writing { .. })
    }

    /// The highest timeline this server is proved to be on.
    #[must_use]
    pub fn timeline(&self) -> Timeline {
        match self.activity {
            Activity::Writing { timeline, .. } => timeline,
            Activity::Replaying { at_least, received, .. } => received.map_or(at_least, |seen| seen.max(at_least)),
        }
    }

    /// Its position: the end of what it wrote or replayed.
    #[must_use]
    pub const fn position(&self) -> Option<Lsn> {
        match self.activity {
            Activity::Writing { insert, .. } => Some(insert),
            Activity::Replaying { replayed, .. } => replayed,
        }
    }
}

/// Why a probe brought no facts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProbeFailure {
    /// No answer within the probe's deadline: frozen, cut off or overloaded.
    TimedOut,
    /// Nobody listens, or the link broke.
    Unreachable,
    /// The server said that it is starting, stopping or recovering (57P01 to 57P03).
    NotAccepting,
    /// The server has no connection left for us (53300).
    TooManyConnections,
    /// Password, `pg_hba.conf`, database name or a privilege that was revoked: no retry helps until that is changed.
    Rejected,
    /// It answered, and the answer was not understood.
    Unreadable,
}

impl std::fmt::Display for ProbeFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::TimedOut => "no answer within the deadline",
            Self::Unreachable => "not reachable",
            Self::NotAccepting => "starting, stopping or recovering",
            Self::TooManyConnections => "no connection slot left",
            Self::Rejected => "login or probe refused",
            Self::Unreadable => "answer not understood",
        })
    }
}

/// The probe. `OFFSET 0` keeps the one call of `pg_is_in_recovery()` from being evaluated again: a promotion between
/// two calls would give columns that contradict each other.
pub const PROBE: &str = "SELECT r.recovering, \
    CASE WHEN r.recovering THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END, \
    CASE WHEN r.recovering THEN NULL ELSE pg_walfile_name(pg_current_wal_lsn()) END, \
    CASE WHEN r.recovering THEN NULL ELSE pg_last_wal_replay_lsn() END, \
    (SELECT system_identifier FROM pg_control_system()), \
    (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint, \
    current_setting('default_transaction_read_only'), \
    current_setting('synchronous_standby_names'), \
    (SELECT greatest(min_recovery_end_timeline, (SELECT timeline_id FROM pg_control_checkpoint())) FROM pg_control_recovery()), \
    (SELECT received_tli FROM pg_stat_wal_receiver WHERE status = 'streaming') \
    FROM (SELECT pg_is_in_recovery() AS recovering OFFSET 0) AS r";

/// Reads the row that [`PROBE`] returns, column by column as text.
///
/// # Errors
/// [`ParseObservationError`] names the column that was missing or not understood.
pub fn parse_probe<'a>(column: impl Fn(usize) -> Option<&'a str>) -> Result<Observation, ParseObservationError> {
    let required = |index, name| column(index).ok_or(ParseObservationError(name));
    let lsn = |index, name| -> Result<Option<Lsn>, ParseObservationError> {
        column(index).map(|text| text.parse().map_err(|_: ParseLsnError| ParseObservationError(name))).transpose()
    };
    let recovering = required(0, "pg_is_in_recovery")? == "t";
    let system = required(4, "system_identifier")?.parse().map_err(|_| ParseObservationError("system_identifier"))?;
    let started = required(5, "pg_postmaster_start_time")?
        .parse()
        .map_err(|_| ParseObservationError("pg_postmaster_start_time"))?;
    let number = |text: &str| text.parse().map(Timeline::new).map_err(|_| ParseObservationError("timeline"));
    let activity = if recovering {
        Activity::Replaying {
            replayed: lsn(1, "pg_last_wal_replay_lsn")?,
            at_least: number(required(8, "min_recovery_end_timeline")?)?,
            received: column(9).map(number).transpose()?,
        }
    } else {
        Activity::Writing {
            timeline: Timeline::from_wal_file_name(required(2, "pg_walfile_name")?)
                .map_err(|_| ParseObservationError("pg_walfile_name"))?,
            insert: lsn(1, "pg_current_wal_insert_lsn")?.ok_or(ParseObservationError("pg_current_wal_insert_lsn"))?,
            floor: lsn(3, "pg_last_wal_replay_lsn")?,
        }
    };
    Ok(Observation {
        system: SystemId::new(system),
        started: StartTime::from_micros(started),
        activity,
        read_only: required(6, "default_transaction_read_only")? == "on",
        synchronous: !required(7, "synchronous_standby_names")?.trim().is_empty(),
    })
}

/// A column of the probe's row was missing or not understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("column {0} of the probe was missing or not understood")]
pub struct ParseObservationError(&'static str);

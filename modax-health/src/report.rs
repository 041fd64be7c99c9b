//! One snapshot of everything, from which all encoders read: they cannot disagree.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{Need, Scope, Status};

/// An error text that stays inside the process: it is not in `Debug`, not in any rendering, only in
/// [`expose`](Self::expose), whose callers can be searched for.
#[derive(Clone, PartialEq, Eq)]
pub struct Detail(Arc<str>);

/// Longest detail kept, in bytes: an error that quotes a whole answer must not live here for ever.
const DETAIL_BYTES: usize = 1024;

impl Detail {
    pub(crate) fn new(mut text: String) -> Self {
        if text.len() > DETAIL_BYTES {
            let end = (0..=DETAIL_BYTES).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
            text.truncate(end);
        }
        Self(text.into())
    }

    /// The text, for a log that only operators read.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Detail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<withheld>")
    }
}

/// What a check's status rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Condition {
    /// No run ended yet.
    Pending,
    /// A result younger than `stale_after`.
    Fresh,
    /// The last result is too old to count.
    Stale {
        /// Age of the last result.
        age: Duration,
    },
    /// A run passed its deadline and has not ended.
    Stuck {
        /// Age of the run.
        age: Duration,
    },
}

impl Condition {
    /// The lower-case word of the wire formats.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Fresh => "fresh",
            Self::Stale { .. } => "stale",
            Self::Stuck { .. } => "stuck",
        }
    }
}

/// Upper bounds of the buckets of a run's duration, in seconds; one more bucket has no bound.
pub(crate) const BUCKETS: [f64; 6] = [0.001, 0.005, 0.025, 0.1, 0.5, 2.5];

/// What was counted for one check since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Runs begun.
    pub started: u64,
    /// Results that were healthy or degraded.
    pub passed: u64,
    /// Results that were unhealthy, of any cause.
    pub failed: u64,
    /// Of these, for passing the deadline; a stuck run counts once each interval.
    pub timed_out: u64,
    /// Of these, for a panic.
    pub panicked: u64,
    /// Changes of the damped status.
    pub transitions: u64,
    /// Sum of the durations of the runs that ended.
    pub duration_sum: Duration,
    pub(crate) buckets: [u64; 7],
}

impl Counts {
    pub(crate) fn observe(&mut self, took: Duration) {
        self.duration_sum = self.duration_sum.saturating_add(took);
        let at = BUCKETS.iter().position(|bound| took.as_secs_f64() <= *bound).unwrap_or(BUCKETS.len());
        if let Some(bucket) = self.buckets.get_mut(at) {
            *bucket = bucket.saturating_add(1);
        }
    }
}

/// One check in a [`Report`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CheckReport {
    /// Its name.
    pub name: Arc<str>,
    /// Whether the service can work without it.
    pub need: Need,
    /// Whether all instances look at the same thing.
    pub scope: Scope,
    /// The damped status; unhealthy while there is no result, or none that still counts.
    pub status: Status,
    /// What that status rests on.
    pub condition: Condition,
    /// The reason of the last failure, if its author marked it public.
    pub reason: Option<Arc<str>>,
    /// The reason of the last failure, for the process itself.
    pub detail: Option<Detail>,
    /// How long the last run took that ended.
    pub duration: Option<Duration>,
    /// When the damped status last changed, as time since the Unix epoch.
    pub changed_at: Option<Duration>,
    /// Counters since the start.
    pub counts: Counts,
}

impl CheckReport {
    /// Whether its failure takes this instance out of rotation.
    #[must_use]
    pub fn can_unready(&self) -> bool {
        self.need == Need::Required && self.scope == Scope::Private
    }

    /// What its status means for the whole.
    #[must_use]
    pub fn weighed(&self) -> Status {
        self.need.weigh(self.status)
    }
}

/// One watchdog in a [`Report`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct WatchdogReport {
    /// Its name.
    pub name: Arc<str>,
    /// Whether it was not bumped within its limit.
    pub missed: bool,
    /// Time since the scheduler last saw it move.
    pub age: Duration,
}

/// Everything known at one moment.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Report {
    /// The worst of all checks, an optional one counting as degraded at most; unhealthy when not live.
    pub status: Status,
    /// No watchdog is overdue.
    pub live: bool,
    /// Requests may come: see the crate's documentation for the rule.
    pub ready: bool,
    /// The startup phase is over. Once true it stays true.
    pub started: bool,
    /// The instance is leaving.
    pub draining: bool,
    /// When the snapshot was taken.
    pub taken_at: Instant,
    /// The same moment as time since the Unix epoch, for people.
    pub unix_time: Duration,
    /// The checks, in the order of the builder.
    pub checks: Vec<CheckReport>,
    /// The watchdogs, in the order of the builder.
    pub watchdogs: Vec<WatchdogReport>,
}

impl Report {
    /// The check of that name.
    #[must_use]
    pub fn check(&self, name: &str) -> Option<&CheckReport> {
        self.checks.iter().find(|check| &*check.name == name)
    }

    /// The few bits a probe needs.
    #[must_use]
    pub fn state(&self) -> State {
        let bits = [(State::LIVE, self.live), (State::STARTED, self.started), (State::READY, self.ready)];
        let flags = bits.iter().filter(|(_, on)| *on).fold(0, |word, (bit, _)| word | bit);
        let draining = if self.draining { State::DRAINING } else { 0 };
        State(flags | draining | (self.status as u64) << State::STATUS)
    }

    /// Readiness in three values: unhealthy when not ready, else degraded or healthy.
    #[must_use]
    pub fn readiness(&self) -> Status {
        match (self.ready, self.status) {
            (false, _) => Status::Unhealthy,
            (true, Status::Healthy) => Status::Healthy,
            (true, _) => Status::Degraded,
        }
    }

    #[cfg_attr(not(feature = "tokio"), expect(dead_code, reason = "only the registry drains"))]
    pub(crate) fn drained(&self) -> Self {
        Self { draining: true, ready: false, ..self.clone() }
    }

    #[cfg_attr(not(feature = "tokio"), expect(dead_code, reason = "only the driver can die"))]
    pub(crate) fn dead(&self) -> Self {
        Self { live: false, ready: false, status: Status::Unhealthy, ..self.clone() }
    }
}

/// What a probe needs, in one word that is read with one atomic load.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct State(pub(crate) u64);

impl State {
    pub(crate) const LIVE: u64 = 1;
    pub(crate) const STARTED: u64 = 1 << 1;
    pub(crate) const READY: u64 = 1 << 2;
    pub(crate) const DRAINING: u64 = 1 << 3;
    pub(crate) const DEAD: u64 = 1 << 4;
    const STATUS: u32 = 8;

    /// Whether a restart would not help: no watchdog is overdue and the scheduler exists.
    #[must_use]
    pub const fn is_live(self) -> bool {
        self.0 & Self::LIVE != 0 && self.0 & Self::DEAD == 0
    }

    /// Whether the startup phase is over.
    #[must_use]
    pub const fn is_started(self) -> bool {
        self.0 & Self::STARTED != 0
    }

    /// Whether requests may come.
    #[must_use]
    pub const fn is_ready(self) -> bool {
        self.0 & Self::READY != 0 && self.0 & (Self::DRAINING | Self::DEAD) == 0
    }

    /// Whether the instance is leaving.
    #[must_use]
    pub const fn is_draining(self) -> bool {
        self.0 & Self::DRAINING != 0
    }

    /// The status of the whole.
    #[must_use]
    pub const fn status(self) -> Status {
        if self.0 & Self::DEAD != 0 {
            return Status::Unhealthy;
        }
        match (self.0 >> Self::STATUS) & 3 {
            0 => Status::Healthy,
            1 => Status::Degraded,
            _ => Status::Unhealthy,
        }
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State")
            .field("live", &self.is_live())
            .field("started", &self.is_started())
            .field("ready", &self.is_ready())
            .field("draining", &self.is_draining())
            .field("status", &self.status())
            .finish()
    }
}

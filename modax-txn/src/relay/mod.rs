//! The relay's state machine: who owns the outbox, what is read, what goes to the sink, what is recorded.
//!
//! Pure: no clock, no connection, no task. Feed one [`Input`], drain [`poll_output`](Dispatch::poll_output), then wait until
//! [`poll_timeout`](Dispatch::poll_timeout). The driver of this crate runs it on tokio-postgres; the tests run thousands of them in
//! virtual time against a model of the database.
//!
//! How messages are found is the business of [`Statement::Fetch`] alone: today a scan of what is pending, in order. A scan, because
//! messages become visible in commit order, not in the order of their numbers: a cursor on the number loses rows.

mod config;
mod statements;
mod step;

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

pub use config::RelayConfig;
pub use step::{Answer, Fetched, Input, Outcome, Output, Settlement, Statement};

use crate::{
    event::{Event, Stats},
    lease::Lease,
    message::MessageId,
    retry::Jitter,
    window::{Stage, Window},
};

/// Most outcomes in one statement: keeps its locks short.
const RECORD_ROWS: usize = 500;
/// Time between sweeps; what is swept is hours old, but for parked messages that expire.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);
/// So long a sweep that is due waits for a moment with nothing else to do; under load there is none. Five sweeps a second then
/// keep up with thousands of messages.
const SWEEP_PATIENCE: Duration = Duration::from_millis(200);
/// First and longest wait after a failed statement: a primary that fails over is away for seconds, and one probe a second is cheap.
const DATABASE_BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// A message is buffered up to this many times the in-flight limit, outcomes to be recorded included.
const AHEAD: usize = 3;
/// So many failures in a row, and the sink itself is taken to be away: its first success then ends all backoffs.
const OUTAGE: u32 = 3;

#[derive(Debug)]
enum Phase {
    /// Another relay owns the outbox, or nobody knows.
    Standby { claim_at: Instant },
    /// This relay owns it, or did when it last heard of the database.
    Owner { lease: Lease, is_suspended: bool },
    /// Nothing more happens.
    Stopped,
}

/// The statement that is out.
#[derive(Debug)]
struct Running {
    sent_at: Instant,
    /// Outcomes it records.
    recording: BTreeMap<MessageId, Settlement>,
    /// Rows it may read at most.
    limit: usize,
}

/// The relay's state machine; see the [module](self).
#[derive(Debug)]
pub struct Dispatch {
    config: RelayConfig,
    phase: Phase,
    window: Window,
    unrecorded: BTreeMap<MessageId, Settlement>,
    running: Option<Running>,
    /// A statement failed: none before this, and the first one asks whether the lease is still ours.
    database_retry_at: Option<Instant>,
    database_failures: u32,
    must_verify: bool,
    is_woken: bool,
    /// The last read was full.
    has_more: bool,
    was_fetch: bool,
    poll_at: Instant,
    poll_wait: Duration,
    sweep_at: Instant,
    is_stopping: bool,
    last_delivery: Option<Instant>,
    failures_in_a_row: u32,
    jitter: Jitter,
    outputs: VecDeque<Output>,
    stats: Stats,
}

impl Dispatch {
    /// A relay that owns nothing yet. `seed` is for jitter only. Call [`handle_timeout`](Self::handle_timeout) to begin.
    #[must_use]
    pub fn new(config: RelayConfig, seed: u64, now: Instant) -> Self {
        Self {
            config,
            phase: Phase::Standby { claim_at: now },
            window: Window::default(),
            unrecorded: BTreeMap::new(),
            running: None,
            database_retry_at: None,
            database_failures: 0,
            must_verify: false,
            is_woken: false,
            has_more: false,
            was_fetch: false,
            poll_at: now,
            poll_wait: config.poll_interval,
            sweep_at: now + SWEEP_INTERVAL,
            is_stopping: false,
            last_delivery: None,
            failures_in_a_row: 0,
            jitter: Jitter::new(seed),
            outputs: VecDeque::new(),
            stats: Stats::default(),
        }
    }

    /// Takes in what happened at `now`.
    pub fn handle_input(&mut self, now: Instant, input: Input) {
        match input {
            Input::Woken => {
                self.is_woken = true;
                self.poll_wait = self.config.poll_interval;
            }
            Input::Answered { id, answer } => self.answered(now, id, answer),
            Input::DatabaseFailed { reason } => self.database_failed(now, reason),
            Input::Stop => self.is_stopping = true,
            Input::Claimed { .. }
            | Input::ClaimRefused { .. }
            | Input::Renewed { .. }
            | Input::Fetched { .. }
            | Input::Recorded { .. }
            | Input::Swept { .. }
            | Input::Released => self.statement_done(now, input),
        }
        self.step(now);
    }

    /// Does what has become due by `now`.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.step(now);
    }

    /// The next thing to be done outside.
    #[must_use = "an output that is not carried out stalls the relay"]
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`handle_timeout`](Self::handle_timeout) is to be called if nothing happens before.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let statement = if self.running.is_some() { None } else { self.statement_due() };
        let certain = match &self.phase {
            Phase::Owner { lease, is_suspended: false } => Some(lease.until()),
            Phase::Owner { .. } | Phase::Standby { .. } | Phase::Stopped => None,
        };
        [statement, certain, self.window.next_timer()].into_iter().flatten().min()
    }

    /// Counters and gauges.
    #[must_use]
    pub fn stats(&self) -> Stats {
        Stats {
            is_owner: matches!(self.phase, Phase::Owner { is_suspended: false, .. }),
            inflight: self.window.inflight(),
            buffered: self.window.buffered(),
            unrecorded: self.unrecorded.len() + self.running.as_ref().map_or(0, |running| running.recording.len()),
            ..self.stats
        }
    }

    fn step(&mut self, now: Instant) {
        if self.is_stopping {
            // What the sink gave back meanwhile is another relay's to try.
            self.window.forget_waiting();
        }
        for id in self.window.handle_timeout(now) {
            self.settle(id, Outcome::Expired);
        }
        if let Phase::Owner { lease, is_suspended } = &mut self.phase {
            let epoch = lease.epoch;
            if !lease.is_certain(now) && !*is_suspended {
                *is_suspended = true;
                self.event(Event::Suspended { epoch });
            }
        }
        self.publish(now);
        if self.running.is_none()
            && let Some(statement) = self.next_statement(now)
        {
            self.run(now, statement);
        }
    }

    /// Hands over what may go, as long as the lease is certain.
    fn publish(&mut self, now: Instant) {
        let Phase::Owner { lease, is_suspended: false } = self.phase else { return };
        if self.is_stopping {
            return;
        }
        while self.window.inflight() < self.config.inflight {
            let Some((id, entry)) = self.window.begin_next() else { return };
            if entry.is_expired(now) {
                self.settle(id, Outcome::Expired);
                continue;
            }
            entry.attempts = entry.attempts.saturating_add(1);
            let mut message = entry.message.clone();
            message.attempt = entry.attempts;
            message.epoch = lease.epoch;
            message.age = entry.age(now);
            message.expires_in = entry.expires_at.map(|at| at.saturating_duration_since(now));
            let not_after = entry.expires_at.map_or(lease.until(), |at| at.min(lease.until()));
            self.stats.published += 1;
            self.outputs.push_back(Output::Publish { message, not_after });
        }
    }

    fn answered(&mut self, now: Instant, id: MessageId, answer: Answer) {
        let Some(entry) = self.window.get_mut(id) else { return };
        if entry.stage != Stage::Inflight {
            return;
        }
        match answer {
            Answer::Confirmed { by } => {
                let event = Event::Delivered { id, age: entry.age(now), attempts: entry.attempts, by };
                self.settle(id, Outcome::Delivered);
                self.event(event);
                self.last_delivery = Some(now);
                if std::mem::take(&mut self.failures_in_a_row) >= OUTAGE {
                    self.window.end_backoffs(now);
                }
            }
            Answer::Rejected { reason } => self.settle(id, Outcome::Rejected { reason }),
            Answer::Expired => self.settle(id, Outcome::Expired),
            Answer::Unsent => {
                entry.attempts = entry.attempts.saturating_sub(1);
                self.stats.published -= 1;
                self.window.put_back(id);
            }
            Answer::Retry { reason } => {
                let first_failure = *entry.first_failure.get_or_insert(now);
                let attempts = entry.attempts;
                let policy = self.config.retry;
                self.failures_in_a_row = self.failures_in_a_row.saturating_add(1);
                let others_pass = self.last_delivery.is_some_and(|at| at > first_failure);
                let is_over = attempts >= policy.attempts
                    && (others_pass || now.saturating_duration_since(first_failure) >= policy.patience);
                if is_over {
                    self.settle(id, Outcome::Parked { reason });
                } else {
                    self.window.put_off(id, now + policy.wait(attempts, &mut self.jitter));
                    self.stats.retried += 1;
                    self.event(Event::Retrying { id, attempts, reason: reason.clone() });
                    self.unrecorded.insert(id, Settlement { id, attempts, outcome: Outcome::Retried { reason } });
                }
            }
        }
    }

    /// Notes the outcome; it is recorded by the next statement.
    fn settle(&mut self, id: MessageId, outcome: Outcome) {
        let Some(attempts) = self.window.get(id).map(|entry| entry.attempts) else { return };
        match &outcome {
            Outcome::Delivered => self.stats.delivered += 1,
            Outcome::Expired => {
                self.stats.expired += 1;
                self.event(Event::Expired { id });
            }
            Outcome::Rejected { reason } => {
                self.stats.rejected += 1;
                self.event(Event::Rejected { id, reason: reason.clone() });
            }
            Outcome::Parked { reason } => {
                self.stats.parked += 1;
                self.event(Event::Parked { id, reason: reason.clone() });
            }
            Outcome::Retried { .. } => {}
        }
        self.window.settle(id, outcome == Outcome::Delivered);
        self.unrecorded.insert(id, Settlement { id, attempts, outcome });
    }

    fn event(&mut self, event: Event) {
        self.outputs.push_back(Output::Event(event));
    }
}

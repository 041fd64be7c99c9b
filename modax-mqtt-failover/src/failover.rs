//! Decides which broker to use next, and when.
//!
//! Pure: no clock, no socket, no randomness that was not passed in. One attempt at a time holds the client identity,
//! because two CONNECTs under one identity would throw each other out.
//!
//! A broker that failed goes to the end of the list; another one is tried at once; each has its own breaker with full
//! jitter, and none is ever given up. The CONNACK deadline doubles with every full round over all brokers, because a
//! cluster that elects a leader may accept a connection and answer 8 s later.

mod words;

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

pub use words::{Input, Output};

use crate::{
    breaker::{Breaker, Failure},
    config::{Config, Topology},
    packet::{ConnectCode, Version},
    policy::{
        backoff::{Backoff, Jitter},
        selection::{Candidate, Selection},
    },
};

/// First deadline for dialling and for CONNACK, each.
const FIRST_DEADLINE: Duration = Duration::from_secs(1);
/// The deadline stops growing here.
const LAST_DEADLINE: Duration = Duration::from_secs(30);
/// Takeovers are counted within this time, and after too many there is one try in it.
const TAKEOVER_WINDOW: Duration = Duration::from_secs(30);
/// So many takeovers say that another client uses our identity.
const TAKEOVERS: usize = 3;
/// A connection that the broker closes sooner than this after accepting it may have been taken over. Less than the 4 s
/// after which NATS resets a connection whose publish it cannot store: that broker is electing, nobody took our place.
const TAKEOVER_LIFE: Duration = Duration::from_secs(3);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Idle,
    Waiting { until: Instant },
    Dialling { attempt: u64, broker: usize, until: Instant },
    Greeting { attempt: u64, broker: usize, until: Instant, wipe: bool },
    Established { attempt: u64, broker: usize, since: Instant },
    Stopped,
}

/// The state machine. See the head of this file.
#[derive(Debug)]
pub struct Failover {
    topology: Topology,
    selection: Selection,
    backoff: Backoff,
    /// Whether an old session takes a connection of its own to throw away.
    wipes: bool,
    jitter: Jitter,
    breakers: Vec<Breaker>,
    state: State,
    attempts: u64,
    stamp: u64,
    /// Failures since a broker accepted us.
    failures: u32,
    last: Option<usize>,
    /// The broker that has our session.
    home: Option<usize>,
    /// The broker whose old session was thrown away in this run of attempts.
    wiped: Option<usize>,
    /// A connection that the broker ended soon after accepting it: where.
    ousted: Option<usize>,
    /// The broker of the present connection said that it was taken over.
    taken_over: bool,
    takeovers: VecDeque<Instant>,
    contested: bool,
    outputs: VecDeque<Output>,
}

impl Failover {
    /// Not started.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        Self {
            topology: config.topology,
            selection: config.selection,
            backoff: config.retry,
            // MQTT 5 throws it away and begins the next in one CONNECT.
            wipes: config.topology == Topology::Independent
                && !config.clean_session
                && config.speaks() == Version::V311,
            jitter: Jitter::new(config.seed),
            breakers: vec![Breaker::default(); config.brokers.len()],
            state: State::Idle,
            attempts: 0,
            stamp: 0,
            failures: 0,
            last: None,
            home: None,
            wiped: None,
            ousted: None,
            taken_over: false,
            takeovers: VecDeque::new(),
            contested: false,
            outputs: VecDeque::new(),
        }
    }

    /// Takes in what happened. What belongs to an older attempt is ignored.
    pub fn handle_input(&mut self, now: Instant, input: Input) {
        match (input, self.state) {
            (Input::Start, State::Idle) => self.choose(now),
            (Input::Opened { attempt }, State::Dialling { attempt: current, broker, .. }) if attempt == current => {
                self.greet(now, attempt, broker);
            }
            (Input::Answered { attempt, code }, State::Greeting { attempt: current, broker, wipe, .. })
                if attempt == current =>
            {
                match (code, wipe) {
                    (ConnectCode::Accepted, true) => self.leave(now, attempt, broker),
                    (ConnectCode::Accepted, false) => self.establish(now, attempt, broker),
                    (code, _) => self.refused(now, broker, code),
                }
            }
            (Input::TakenOver { attempt }, State::Established { attempt: current, .. }) if attempt == current => {
                self.taken_over = true;
            }
            (Input::Lost { attempt, by_peer }, state) if self.current() == Some(attempt) => {
                self.lost(now, state, by_peer);
            }
            (Input::Stop, _) => self.state = State::Stopped,
            (
                Input::Start
                | Input::TakenOver { .. }
                | Input::Opened { .. }
                | Input::Answered { .. }
                | Input::Lost { .. },
                State::Idle
                | State::Waiting { .. }
                | State::Dialling { .. }
                | State::Greeting { .. }
                | State::Established { .. }
                | State::Stopped,
            ) => {}
        }
    }

    /// Acts on a deadline.
    pub fn handle_timeout(&mut self, now: Instant) {
        match self.state {
            State::Waiting { until } if until <= now => self.choose(now),
            State::Dialling { attempt, broker, until } if until <= now => {
                self.outputs.push_back(Output::GiveUp { attempt, broker, reason: "connecting took too long" });
                self.fail(now, broker, Failure::Silent);
            }
            State::Greeting { attempt, broker, until, .. } if until <= now => {
                self.outputs.push_back(Output::GiveUp { attempt, broker, reason: "no CONNACK in time" });
                self.fail(now, broker, Failure::Silent);
            }
            State::Idle
            | State::Waiting { .. }
            | State::Dialling { .. }
            | State::Greeting { .. }
            | State::Established { .. }
            | State::Stopped => {}
        }
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to call [`handle_timeout`](Self::handle_timeout).
    #[must_use]
    pub const fn poll_timeout(&self) -> Option<Instant> {
        match self.state {
            State::Waiting { until } | State::Dialling { until, .. } | State::Greeting { until, .. } => Some(until),
            State::Idle | State::Established { .. } | State::Stopped => None,
        }
    }

    /// The attempt under way or established.
    #[must_use]
    pub const fn current(&self) -> Option<u64> {
        match self.state {
            State::Dialling { attempt, .. } | State::Greeting { attempt, .. } | State::Established { attempt, .. } => {
                Some(attempt)
            }
            State::Idle | State::Waiting { .. } | State::Stopped => None,
        }
    }

    /// Dial and CONNACK deadline now: doubled with every full round of failures.
    fn patience(&self) -> Duration {
        let brokers = u32::try_from(self.breakers.len()).unwrap_or(u32::MAX).max(1);
        let rounds = self.failures.checked_div(brokers).unwrap_or(0).min(16);
        FIRST_DEADLINE.saturating_mul(2_u32.saturating_pow(rounds)).min(LAST_DEADLINE)
    }

    fn choose(&mut self, now: Instant) {
        let (mut ready, mut earliest, mut earliest_alive) = (Vec::new(), None, None);
        let earlier = |than: Option<Instant>, at| Some(than.map_or(at, |other: Instant| other.min(at)));
        for (index, breaker) in self.breakers.iter().enumerate() {
            let (Some(at), demoted) = (breaker.ready_at(now), breaker.demoted(now)) else { continue };
            if at <= now {
                ready.push(Candidate { index, demoted });
                continue;
            }
            earliest = earlier(earliest, at);
            if matches!(demoted, Some((Failure::Dropped, _))) {
                earliest_alive = earlier(earliest_alive, at);
            }
        }
        self.selection.rank(&mut ready, self.last, self.breakers.len());
        // A try with a silent one costs a whole deadline: one that lives and may be tried soon is worth the wait.
        let worth = earliest_alive.filter(|at| at.saturating_duration_since(now) < FIRST_DEADLINE);
        match (ready.first(), worth, earliest) {
            (Some(Candidate { demoted: Some((Failure::Silent, _)), .. }), Some(until), _) => {
                self.state = State::Waiting { until };
            }
            (Some(candidate), _, _) => self.dial(now, candidate.index),
            (None, _, Some(until)) => self.state = State::Waiting { until },
            // Unreachable while there is a broker: each is ready, open until a time, or under way.
            (None, _, None) => self.state = State::Waiting { until: now + FIRST_DEADLINE },
        }
    }

    fn dial(&mut self, now: Instant, broker: usize) {
        if let Some(breaker) = self.breakers.get_mut(broker) {
            breaker.attempt();
        }
        self.attempts = self.attempts.saturating_add(1);
        self.last = Some(broker);
        self.wiped = self.wiped.filter(|wiped| *wiped == broker);
        let deadline = now + self.patience();
        self.state = State::Dialling { attempt: self.attempts, broker, until: deadline };
        self.outputs.push_back(Output::Dial { attempt: self.attempts, broker, deadline });
    }

    fn greet(&mut self, now: Instant, attempt: u64, broker: usize) {
        let stranger = self.home.is_some() && self.home != Some(broker) && self.wiped != Some(broker);
        let wipe = stranger && self.wipes;
        self.state = State::Greeting { attempt, broker, until: now + self.patience(), wipe };
        self.outputs.push_back(Output::Greet { attempt, broker, wipe });
    }

    /// The stale session is gone; the same broker again, for good.
    fn leave(&mut self, now: Instant, attempt: u64, broker: usize) {
        self.outputs.push_back(Output::Leave { attempt });
        self.wiped = Some(broker);
        self.dial(now, broker);
    }

    fn establish(&mut self, now: Instant, attempt: u64, broker: usize) {
        if let Some(breaker) = self.breakers.get_mut(broker) {
            breaker.succeed(now);
        }
        self.failures = 0;
        self.wiped = None;
        self.home = Some(broker);
        self.state = State::Established { attempt, broker, since: now };
        self.outputs.push_back(Output::Established { attempt, broker });
        self.count_takeover(now, broker);
    }

    /// A broker that closed our connection soon after accepting it, and accepts us again, gave our place to another.
    /// One that died would not.
    fn count_takeover(&mut self, now: Instant, broker: usize) {
        let Some(ousted) = self.ousted.take() else { return };
        if ousted != broker && self.topology == Topology::Independent {
            return;
        }
        self.takeovers.push_back(now);
        while self.takeovers.front().is_some_and(|at| now.saturating_duration_since(*at) > TAKEOVER_WINDOW) {
            self.takeovers.pop_front();
        }
        if self.takeovers.len() >= TAKEOVERS {
            self.contested = true;
            self.outputs.push_back(Output::DuplicateClientId { broker, takeovers: self.takeovers.len() });
        }
    }

    fn refused(&mut self, now: Instant, broker: usize, code: ConnectCode) {
        if code.is_transient() {
            return self.fail(now, broker, Failure::Unreachable);
        }
        self.stamp = self.stamp.saturating_add(1);
        self.failures = self.failures.saturating_add(1);
        if let Some(breaker) = self.breakers.get_mut(broker) {
            breaker.park(now, self.stamp);
        }
        self.outputs.push_back(Output::Parked { broker, code });
        self.choose(now);
    }

    fn lost(&mut self, now: Instant, state: State, by_peer: bool) {
        match state {
            State::Dialling { broker, .. } => {
                self.fail(now, broker, if by_peer { Failure::Unreachable } else { Failure::Silent });
            }
            State::Greeting { broker, .. } => self.fail(now, broker, Failure::Unreachable),
            State::Established { broker, since, .. } => {
                let lived = now.saturating_duration_since(since);
                let told = std::mem::take(&mut self.taken_over);
                self.ousted = (told || (by_peer && lived < TAKEOVER_LIFE)).then_some(broker);
                if lived >= TAKEOVER_WINDOW {
                    self.contested = false;
                    self.takeovers.clear();
                }
                self.fail(now, broker, if by_peer { Failure::Dropped } else { Failure::Silent });
            }
            State::Idle | State::Waiting { .. } | State::Stopped => {}
        }
    }

    fn fail(&mut self, now: Instant, broker: usize, failure: Failure) {
        self.stamp = self.stamp.saturating_add(1);
        self.failures = self.failures.saturating_add(1);
        if let Some(breaker) = self.breakers.get_mut(broker) {
            breaker.fail(now, (failure, self.stamp), &self.backoff, &mut self.jitter);
        }
        if self.contested {
            for breaker in &mut self.breakers {
                breaker.hold(now + TAKEOVER_WINDOW);
            }
        }
        self.choose(now);
    }
}

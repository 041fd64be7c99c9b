//! Decides which broker to use next, and when.
//!
//! Pure: no clock, no socket, no randomness that was not passed in. Where racing is wanted, candidates race below CONNECT
//! only; one attempt at a time holds the client identity, because two CONNECTs under one identity would throw each other out.
//!
//! A broker that failed goes to the end of the list; another one is tried at once; each has its own breaker with full
//! jitter, and none is ever given up. The CONNACK deadline doubles with every full round over all brokers, because a
//! cluster that elects a leader may accept a connection and answer 8 s later. Where scouts are out nobody has to guess:
//! a CONNECT waits until its broker answers or closes, or until a scout is acknowledged (see [`crate::scout`]); and after
//! one that got no answer the next waits for a scout as well, because a node that elects holds our identity with each.

mod losses;
mod patience;
mod planned;
mod race;
mod words;

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use planned::Planned;
use race::Dial;
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
/// A node that elects holds a CONNECT for 4 s and then closes. While scouts are out it is waited for that long: the
/// identity is held there, and one more CONNECT elsewhere would have it held there too.
const HELD: Duration = Duration::from_millis(4500);
/// Takeovers are counted within this time, and in the end there is one try in it.
const TAKEOVER_WINDOW: Duration = Duration::from_secs(30);
/// The first wait after too many of them, doubled with each further one: a link that breaks again and again looks the
/// same until it holds.
const FIRST_HOLD: Duration = Duration::from_secs(4);
/// So many takeovers say that another client uses our identity.
const TAKEOVERS: usize = 3;
/// A connection that the broker closes sooner than this after accepting it may have been taken over. Less than the 4 s
/// after which NATS resets a connection whose publish it cannot store: that broker is electing, nobody took our place.
const TAKEOVER_LIFE: Duration = Duration::from_secs(3);

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Idle,
    Waiting { until: Instant },
    Dialling(Vec<Dial>),
    Greeting { attempt: u64, broker: usize, since: Instant, wipe: bool, planned: bool },
    Established { attempt: u64, broker: usize, since: Instant },
    Stopped,
}

/// A connection that its broker ended soon after accepting it.
#[derive(Clone, Copy, Debug)]
struct Ousted {
    broker: usize,
    /// The broker said that another client took it over; else that is yet to be seen.
    told: bool,
}

/// The state machine. See the head of this file.
#[derive(Debug)]
pub struct Failover {
    topology: Topology,
    selection: Selection,
    backoff: Backoff,
    /// Whether an old session takes a connection of its own to throw away.
    wipes: bool,
    /// Whether several transports are opened side by side.
    racing: bool,
    jitter: Jitter,
    breakers: Vec<Breaker>,
    state: State,
    /// The connection of a planned move, beside the established one.
    planned: Option<Planned>,
    attempts: u64,
    stamp: u64,
    /// Failures since a broker accepted us.
    failures: u32,
    last: Option<usize>,
    /// The broker that has our session.
    home: Option<usize>,
    /// The broker whose old session was thrown away in this run of attempts.
    wiped: Option<usize>,
    /// Until when each broker may hold our identity in a CONNECT that we gave up.
    held: Vec<Option<Instant>>,
    scouting: bool,
    /// A CONNECT got no answer since the last one that did.
    unanswered: bool,
    /// To be tried next, whatever the ranking says.
    favoured: Option<usize>,
    ousted: Option<Ousted>,
    /// The broker of the present connection said that it was taken over.
    taken_over: bool,
    /// The broker of the present connection ends it on a message of ours.
    ends_on_message: bool,
    takeovers: VecDeque<Instant>,
    /// What looked like one to a broker that had to say so, and did not.
    untold: VecDeque<Instant>,
    /// Connections that nodes of a cluster ended soon after accepting them.
    short_lived: VecDeque<Instant>,
    contested: bool,
    /// Waits since it is contested.
    holds: u32,
    /// Whether a broker says so when another client takes our place (MQTT 5, 3.1.4-3).
    tells: bool,
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
            racing: config.racing,
            jitter: Jitter::new(config.seed),
            breakers: vec![Breaker::default(); config.brokers.len()],
            state: State::Idle,
            planned: None,
            attempts: 0,
            stamp: 0,
            failures: 0,
            last: None,
            home: None,
            wiped: None,
            held: vec![None; config.brokers.len()],
            scouting: false,
            unanswered: false,
            favoured: None,
            ousted: None,
            taken_over: false,
            ends_on_message: false,
            takeovers: VecDeque::new(),
            untold: VecDeque::new(),
            short_lived: VecDeque::new(),
            contested: false,
            holds: 0,
            tells: config.speaks() == Version::V5,
            outputs: VecDeque::new(),
        }
    }

    /// Takes in what happened. What belongs to an older attempt is ignored.
    pub fn handle_input(&mut self, now: Instant, input: Input) {
        match input {
            Input::Start if self.state == State::Idle => self.choose(now),
            Input::Opened { attempt } if self.is_beside(attempt) => self.planned_opened(now),
            Input::Opened { attempt } => self.opened(now, attempt),
            Input::Answered { attempt, code } if self.is_beside(attempt) => self.planned_answered(now, code),
            Input::Answered { attempt, code } => self.answered(now, attempt, code),
            Input::Lost { attempt, .. } if self.is_beside(attempt) => self.not_returned(now, "it closed", true),
            Input::Lost { attempt, by_peer } => self.lost(now, attempt, by_peer),
            Input::TakenOver { attempt } => {
                let serves = matches!(self.state, State::Established { attempt: present, .. } if present == attempt);
                self.taken_over |= serves;
            }
            Input::EndedOn { attempt, alone } => self.ended_on(attempt, alone),
            Input::Left { attempt } => self.left(now, attempt),
            Input::Proven { broker, since } => self.proven(now, broker, since),
            Input::Scouting(scouting) => self.scouting = scouting,
            Input::Unfit { broker } if matches!(self.state, State::Established { .. }) => {
                self.blame(now, broker, Failure::Unreachable);
                self.failures = 0;
            }
            Input::Start | Input::Unfit { .. } => {}
            Input::Return { broker } => self.begin_return(now, broker),
            Input::Switch { attempt } => self.switch(now, attempt),
            Input::Stop => {
                self.planned = None;
                self.state = State::Stopped;
            }
        }
    }

    /// Acts on a deadline.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.planned_timeout(now);
        match self.state {
            State::Waiting { until } if until <= now => self.choose_any(now),
            State::Dialling(_) => self.race_timeout(now),
            State::Greeting { attempt, broker, since, planned, .. }
                if since + self.greeting_patience(since, broker, planned) <= now =>
            {
                self.held_by(broker, since);
                self.unanswered = true;
                self.outputs.push_back(Output::GiveUp { attempt, broker, reason: "no CONNACK in time" });
                self.fail(now, broker, Failure::Silent);
            }
            State::Idle
            | State::Waiting { .. }
            | State::Greeting { .. }
            | State::Established { .. }
            | State::Stopped => {}
        }
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Whether there is a next thing to do.
    #[must_use]
    pub fn has_output(&self) -> bool {
        !self.outputs.is_empty()
    }

    /// This broker is known to work: it is tried first after the next loss.
    pub const fn favour(&mut self, broker: usize) {
        self.favoured = Some(broker);
    }

    /// When to call [`handle_timeout`](Self::handle_timeout).
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        match &self.state {
            State::Waiting { until } => Some(*until),
            State::Dialling(dials) => self.race_due(dials),
            State::Greeting { broker, since, planned, .. } => {
                Some(*since + self.greeting_patience(*since, *broker, *planned))
            }
            State::Established { .. } => self.planned.as_ref().and_then(Planned::due),
            State::Idle | State::Stopped => None,
        }
    }

    /// The attempt that holds the client identity: it greets, or it serves.
    #[must_use]
    pub const fn holder(&self) -> Option<u64> {
        match &self.state {
            State::Greeting { attempt, .. } | State::Established { attempt, .. } => Some(*attempt),
            State::Idle | State::Waiting { .. } | State::Dialling(_) | State::Stopped => None,
        }
    }

    /// The attempt that holds the identity, or else the newest that is being dialled.
    #[must_use]
    pub fn current(&self) -> Option<u64> {
        match &self.state {
            State::Dialling(dials) => dials.last().map(|dial| dial.attempt),
            _ => self.holder(),
        }
    }

    /// Whether a planned move is under way.
    #[must_use]
    pub const fn is_moving(&self) -> bool {
        self.planned.is_some()
    }

    /// All attempts under way or established.
    #[must_use]
    pub fn under_way(&self) -> Vec<u64> {
        let dials = match &self.state {
            State::Dialling(dials) => dials.as_slice(),
            _ => &[],
        };
        let beside = self.planned.as_ref().map(Planned::attempt);
        dials.iter().map(|dial| dial.attempt).chain(self.holder()).chain(beside).collect()
    }

    /// To which broker an attempt goes, while it is under way or established.
    #[must_use]
    pub fn broker_of(&self, wanted: u64) -> Option<usize> {
        match &self.state {
            State::Greeting { attempt, broker, .. } | State::Established { attempt, broker, .. }
                if *attempt == wanted =>
            {
                Some(*broker)
            }
            State::Dialling(dials) => dials.iter().find(|dial| dial.attempt == wanted).map(|dial| dial.broker),
            _ => self.planned.as_ref().filter(|planned| planned.attempt() == wanted).map(Planned::broker),
        }
    }

    /// The order in which brokers other than `except` would be tried now, and those that failed lately last.
    #[must_use]
    pub fn ranking(&self, now: Instant, except: usize) -> Vec<usize> {
        let others = self.breakers.iter().enumerate().filter(|(index, _)| *index != except);
        let mut ranked: Vec<_> =
            others.map(|(index, breaker)| Candidate { index, demoted: breaker.demoted(now) }).collect();
        self.selection.rank(&mut ranked, self.last, self.breakers.len());
        ranked.into_iter().map(|candidate| candidate.index).collect()
    }

    fn choose(&mut self, now: Instant) {
        let waits_for_scout = self.scouting && self.unanswered && !self.contested && self.favoured.is_none();
        if waits_for_scout {
            // As long as the identity is held at most: a scout may be kept from what we may do.
            self.state = State::Waiting { until: now + HELD };
        } else {
            self.choose_any(now);
        }
    }

    fn choose_any(&mut self, now: Instant) {
        if let Some(favoured) = self.favoured.take().filter(|_| !self.contested) {
            return self.dial(now, favoured);
        }
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

    /// Whether a broker may hold, under our identity, what another one left behind.
    fn has_stale_session(&self, broker: usize) -> bool {
        let stranger = self.home.is_some() && self.home != Some(broker) && self.wiped != Some(broker);
        stranger && self.wipes
    }

    fn greet(&mut self, now: Instant, attempt: u64, broker: usize) {
        let wipe = self.has_stale_session(broker);
        self.state = State::Greeting { attempt, broker, since: now, wipe, planned: false };
        self.outputs.push_back(Output::Greet { attempt, broker, wipe, beside: false });
    }

    fn answered(&mut self, now: Instant, answered: u64, code: ConnectCode) {
        let State::Greeting { attempt, broker, wipe, planned, .. } = self.state else { return };
        if attempt != answered {
            return;
        }
        match (code, wipe) {
            (ConnectCode::Accepted, true) => {
                // The stale session is gone; the same broker again, for good.
                self.outputs.push_back(Output::Leave { attempt });
                self.wiped = Some(broker);
                self.dial(now, broker);
            }
            (ConnectCode::Accepted, false) => self.establish(now, attempt, broker, planned),
            (code, _) => self.refused(now, broker, code),
        }
    }

    fn establish(&mut self, now: Instant, attempt: u64, broker: usize, planned: bool) {
        if let Some(breaker) = self.breakers.get_mut(broker) {
            breaker.succeed(now);
        }
        self.failures = 0;
        self.wiped = None;
        self.home = Some(broker);
        self.last = Some(broker);
        self.favoured = None;
        self.taken_over = false;
        self.ends_on_message = false;
        self.held.fill(None);
        self.unanswered = false;
        self.state = State::Established { attempt, broker, since: now };
        self.outputs.push_back(Output::Established { attempt, broker, planned });
        self.count_takeover(now, broker);
    }
}

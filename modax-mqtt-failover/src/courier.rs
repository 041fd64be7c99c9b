//! Carries messages to whichever broker works: the session, the choice of broker and the judge of silence, as one
//! state machine that the driver and the simulation run alike.
//!
//! Pure. Give it every input, drain [`poll_output`](Courier::poll_output), call [`handle_timeout`](Courier::handle_timeout)
//! at [`poll_timeout`](Courier::poll_timeout). Each attempt to reach a broker has a number; an input that names an
//! older attempt than the current one is ignored, so that a late word from a dead connection changes nothing.

mod aside;
mod connection;
mod reports;
mod suspect;
mod switchover;
mod words;

use std::{collections::VecDeque, time::Instant};

use aside::{Aside, Word};
use suspect::Suspicion;
use switchover::Switchover;
use words::Left;
pub use words::{Input, Output};

use crate::{
    broker::Broker,
    config::Config,
    event::{Event, Stats, Status},
    failover::{self, Failover},
    liveness::{self, Liveness},
    packet::{Packet, Version},
    queue::Admitted,
    session::{self, Session},
};

/// The state machine. See the head of this file.
#[derive(Debug)]
pub struct Courier {
    config: Config,
    session: Session,
    failover: Failover,
    liveness: Liveness,
    aside: Aside,
    suspicion: Suspicion,
    switchover: Option<Switchover>,
    /// Of a planned move: since when nothing new was sent, and where it came from.
    moving_since: Option<Instant>,
    moved_from: Option<usize>,
    /// What a session that takes over still has to say and to hear.
    adopted: Vec<session::Output>,
    held: Vec<Packet>,
    /// Packets written of the current attempt, and the places of probes among those sent.
    sent: u64,
    probes: VecDeque<u64>,
    attempt: u64,
    /// When CONNECT was said last, until it is answered.
    greeted: Option<Instant>,
    serving: Option<usize>,
    /// A node of a cluster reached by a failover that has acknowledged nothing yet.
    electing: bool,
    /// What the last CONNACK said.
    session_present: bool,
    /// The broker that served us last, and what is known of the outage.
    left: Option<Left>,
    /// Why the verdict fell, until the loss is reported.
    verdict: Option<(String, Instant)>,
    status: Status,
    stats: Stats,
    stopped: bool,
    outputs: VecDeque<Output>,
}

impl Courier {
    /// Not started.
    #[must_use]
    pub fn new(config: &Config, now: Instant) -> Self {
        let session = Session::new(config);
        Self {
            aside: Aside::new(config, &session, now),
            suspicion: Suspicion::new(config),
            config: config.clone(),
            session,
            failover: Failover::new(config),
            liveness: Liveness::new(config.liveness, config.keep_alive, now),
            sent: 0,
            probes: VecDeque::new(),
            attempt: 0,
            greeted: None,
            switchover: None,
            moving_since: None,
            moved_from: None,
            adopted: Vec::new(),
            held: Vec::new(),
            electing: false,
            serving: None,
            session_present: false,
            left: None,
            verdict: None,
            status: Status { since: Some(now), ..Status::default() },
            stats: Stats::default(),
            stopped: false,
            outputs: VecDeque::new(),
        }
    }

    /// Takes in what happened.
    pub fn handle_input(&mut self, now: Instant, input: Input) {
        match input {
            Input::Start => self.failover.handle_input(now, failover::Input::Start),
            Input::Opened { attempt } if Aside::owns(attempt) => self.aside.tell(now, attempt, Word::Opened),
            Input::Closed { attempt, reason, .. } if Aside::owns(attempt) => {
                self.aside.tell(now, attempt, Word::Closed(reason));
            }
            Input::Received { attempt, packet } if Aside::owns(attempt) => {
                self.aside.tell(now, attempt, Word::Received(packet));
            }
            Input::Opened { attempt } => self.failover.handle_input(now, failover::Input::Opened { attempt }),
            Input::Closed { attempt, reason, by_peer } => self.closed(now, attempt, reason, by_peer),
            Input::Heard { attempt, bytes } if self.is_serving(attempt) => {
                self.liveness.handle_input(now, liveness::Input::Heard(bytes));
            }
            Input::Received { attempt, packet } if self.is_beside(attempt) => self.received_beside(now, packet),
            Input::Received { attempt, packet } if self.failover.holder() == Some(attempt) => {
                self.liveness.handle_input(now, liveness::Input::Packet);
                self.session.handle_input(now, session::Input::Received(packet));
            }
            Input::Written { attempt, packets, stalled } if self.failover.holder() == Some(attempt) => {
                self.written(now, packets, stalled);
            }
            Input::Heard { .. } | Input::Received { .. } | Input::Written { .. } => {}
            Input::Publish(admitted) => self.session.handle_input(now, session::Input::Publish(admitted)),
            Input::Subscribe { filter, qos } => self.tell_session(now, session::Input::Subscribe { filter, qos }),
            Input::Unsubscribe { filter } => self.tell_session(now, session::Input::Unsubscribe { filter }),
            Input::Acknowledge { id, serial } => self.tell_session(now, session::Input::Acknowledge { id, serial }),
            Input::Abandon { id, serial } => self.tell_session(now, session::Input::Abandon { id, serial }),
            Input::Paused(paused) => self.liveness.handle_input(now, liveness::Input::Paused(paused)),
            Input::Late(late) => self.liveness.handle_input(now, liveness::Input::Late(late)),
            Input::Stop => self.stop(now),
        }
        self.settle_machines(now);
    }

    /// Acts on whatever is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.failover.handle_timeout(now);
        self.liveness.handle_timeout(now);
        self.session.handle_timeout(now);
        self.aside.handle_timeout(now);
        self.settle_machines(now);
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to call [`handle_timeout`](Self::handle_timeout).
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let machines = [self.failover.poll_timeout(), self.liveness.poll_timeout(), self.session.poll_timeout()];
        let moves = [self.switchover.as_ref().and_then(Switchover::due), self.return_due().map(|(_, at)| at)];
        let beside = moves.into_iter().chain([self.aside.poll_timeout(), self.suspicion.due()]);
        machines.into_iter().chain(beside).flatten().min()
    }

    /// Which MQTT is spoken.
    #[must_use]
    pub const fn version(&self) -> Version {
        self.session.version()
    }

    /// How many more messages may be handed in.
    #[must_use]
    pub fn room(&self) -> usize {
        if self.stopped { 0 } else { self.session.room() }
    }

    /// Messages sent or to be sent again, without an outcome.
    #[must_use]
    pub fn inflight(&self) -> usize {
        self.session.inflight()
    }

    /// Messages that a broker has on this connection, or had in this session, without an outcome.
    #[must_use]
    pub fn on_the_wire(&self) -> usize {
        self.session.ledger().on_the_wire()
    }

    /// The attempt that carries messages, or did last.
    #[must_use]
    pub const fn attempt(&self) -> u64 {
        self.attempt
    }

    /// Grows with each new session that carries messages.
    #[must_use]
    pub const fn generation(&self) -> u64 {
        self.session.generation()
    }

    /// The attempt that is not read while readers are full, or in a rest. One whose CONNACK is to come is read in any case.
    #[must_use]
    pub fn unread_attempt(&self) -> Option<u64> {
        (self.serving.is_some() || self.stopped).then_some(self.attempt)
    }

    /// The state now.
    #[must_use]
    pub const fn status(&self) -> &Status {
        &self.status
    }

    /// The counters of sending and receiving; those of the queue are the queue's.
    #[must_use]
    pub fn stats(&self) -> Stats {
        Stats { inflight: self.session.inflight(), resent: self.session.resent(), ..self.stats }
    }

    /// Everything without an outcome, in order of admission, with how often it was sent. Ends their account.
    pub fn drain(&mut self) -> Vec<(Admitted, u32)> {
        self.session.drain()
    }

    fn tell_session(&mut self, now: Instant, input: session::Input) {
        let is_wish = matches!(input, session::Input::Subscribe { .. } | session::Input::Unsubscribe { .. });
        if let Some(beside) = self.switchover.as_mut().and_then(Switchover::session).filter(|_| is_wish) {
            beside.handle_input(now, input.clone());
        }
        self.session.handle_input(now, input);
    }

    fn is_serving(&self, attempt: u64) -> bool {
        self.serving.is_some() && self.failover.holder() == Some(attempt)
    }

    fn broker(&self, index: usize) -> Broker {
        self.config.brokers.get(index).cloned().unwrap_or_else(|| Broker::new("unknown", 0))
    }

    fn emit(&mut self, event: Event) {
        self.outputs.push_back(Output::Event(event));
    }

    /// Lets each machine's outputs be the others' inputs until all are quiet.
    fn settle_machines(&mut self, now: Instant) {
        loop {
            if let Some(output) = self.failover.poll_output() {
                self.on_failover(now, output);
            } else if let Some(output) = self.session.poll_output() {
                self.on_session(now, output);
            } else if let Some(output) = self.liveness.poll_output() {
                self.on_liveness(now, output);
            } else if !self.take_aside(now) && !self.settle_suspicion(now) {
                self.settle_switchover(now);
                if self.failover.has_output() {
                    continue;
                }
                self.settle_aside(now);
                if !self.failover.has_output() && !self.aside.has_output() {
                    break;
                }
            }
        }
        self.liveness.handle_input(now, liveness::Input::Waiting(self.session.waiting_since()));
    }

    fn stop(&mut self, now: Instant) {
        self.stopped = true;
        for attempt in self.failover.under_way() {
            if Some(attempt) != self.failover.holder() {
                self.drop_beside(attempt);
            }
        }
        self.switchover = None;
        if let Some(attempt) = self.failover.holder() {
            self.session.handle_input(now, session::Input::Goodbye);
            while let Some(output) = self.session.poll_output() {
                self.on_session(now, output);
            }
            self.outputs.push_back(Output::HangUp { attempt });
        }
        self.failover.handle_input(now, failover::Input::Stop);
        self.liveness.handle_input(now, liveness::Input::Closed);
        self.serving = None;
        self.status = Status { since: Some(now), ..Status::default() };
    }
}

//! Carries messages to whichever broker works: the session, the choice of broker and the judge of silence, as one
//! state machine that the driver and the simulation run alike.
//!
//! Pure. Give it every input, drain [`poll_output`](Courier::poll_output), call [`handle_timeout`](Courier::handle_timeout)
//! at [`poll_timeout`](Courier::poll_timeout). Each attempt to reach a broker has a number; an input that names an
//! older attempt than the current one is ignored, so that a late word from a dead connection changes nothing.

mod reports;
mod words;

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use words::Left;
pub use words::{Input, Output};

use crate::{
    broker::Broker,
    config::{Config, Topology},
    event::{Event, Stats, Status},
    failover::{self, Failover},
    liveness::{self, Liveness},
    packet::{ConnectCode, Packet, Version},
    queue::Admitted,
    reason::Reason,
    session::{self, Session},
};

/// The state machine. See the head of this file.
#[derive(Debug)]
pub struct Courier {
    brokers: Vec<Broker>,
    topology: Topology,
    keep_alive: Duration,
    session: Session,
    failover: Failover,
    liveness: Liveness,
    /// Packets written of the current attempt, and the places of probes among those sent.
    sent: u64,
    probes: VecDeque<u64>,
    attempt: u64,
    /// When CONNECT was said last.
    greeted: Instant,
    dialled: usize,
    serving: Option<usize>,
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
        Self {
            brokers: config.brokers.clone(),
            topology: config.topology,
            keep_alive: config.keep_alive,
            session: Session::new(config),
            failover: Failover::new(config),
            liveness: Liveness::new(config.liveness, config.keep_alive, now),
            sent: 0,
            probes: VecDeque::new(),
            attempt: 0,
            greeted: now,
            dialled: 0,
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
            Input::Opened { attempt } => self.failover.handle_input(now, failover::Input::Opened { attempt }),
            Input::Closed { attempt, reason, by_peer } => {
                if self.failover.current() == Some(attempt) {
                    self.lose(now, attempt, reason, by_peer);
                }
            }
            Input::Heard { attempt } if self.is_serving(attempt) => {
                self.liveness.handle_input(now, liveness::Input::Heard);
            }
            Input::Received { attempt, packet } if self.failover.current() == Some(attempt) => {
                self.session.handle_input(now, session::Input::Received(packet));
            }
            Input::Written { attempt, packets, stalled } if self.failover.current() == Some(attempt) => {
                self.written(now, packets, stalled);
            }
            Input::Heard { .. } | Input::Received { .. } | Input::Written { .. } => {}
            Input::Publish(admitted) => self.session.handle_input(now, session::Input::Publish(admitted)),
            Input::Subscribe { filter, qos } => self.tell_session(now, session::Input::Subscribe { filter, qos }),
            Input::Unsubscribe { filter } => self.tell_session(now, session::Input::Unsubscribe { filter }),
            Input::Acknowledge { id, serial } => self.tell_session(now, session::Input::Acknowledge { id, serial }),
            Input::Abandon { id, serial } => self.tell_session(now, session::Input::Abandon { id, serial }),
            Input::Paused(paused) => self.liveness.handle_input(now, liveness::Input::Paused(paused)),
            Input::Stop => self.stop(now),
        }
        self.settle_machines(now);
    }

    /// Acts on whatever is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.failover.handle_timeout(now);
        self.liveness.handle_timeout(now);
        self.session.handle_timeout(now);
        self.settle_machines(now);
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to call [`handle_timeout`](Self::handle_timeout).
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let all = [self.failover.poll_timeout(), self.liveness.poll_timeout(), self.session.poll_timeout()];
        all.into_iter().flatten().min()
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
        self.session.handle_input(now, input);
    }

    fn is_serving(&self, attempt: u64) -> bool {
        self.serving.is_some() && self.failover.current() == Some(attempt)
    }

    fn broker(&self, index: usize) -> Broker {
        self.brokers.get(index).cloned().unwrap_or_else(|| Broker::new("unknown", 0))
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
            } else {
                break;
            }
        }
        self.liveness.handle_input(now, liveness::Input::Waiting(self.session.waiting_since()));
    }

    fn on_failover(&mut self, now: Instant, output: failover::Output) {
        match output {
            failover::Output::Dial { attempt, broker, deadline } => {
                self.attempt = attempt;
                self.dialled = broker;
                self.outputs.push_back(Output::Dial { attempt, broker, deadline });
            }
            failover::Output::Greet { broker, wipe, .. } => {
                self.sent = 0;
                self.greeted = now;
                self.probes.clear();
                self.session.handle_input(now, session::Input::Greet { broker, wipe });
            }
            failover::Output::Leave { attempt } => {
                // The next attempt already has its number; this one only says goodbye.
                self.outputs.push_back(Output::Send { attempt, packet: Packet::Disconnect(Reason::SUCCESS) });
                self.outputs.push_back(Output::HangUp { attempt });
                self.session.handle_input(now, session::Input::Lost);
            }
            failover::Output::Established { broker, .. } => self.establish(now, broker),
            failover::Output::GiveUp { attempt, broker, reason } => {
                self.outputs.push_back(Output::HangUp { attempt });
                self.session.handle_input(now, session::Input::Lost);
                self.connect_failed(broker, reason.to_owned());
            }
            failover::Output::Parked { broker, code } => {
                self.session.handle_input(now, session::Input::Lost);
                let broker = self.broker(broker);
                self.stats.connect_failures = self.stats.connect_failures.saturating_add(1);
                self.emit(Event::Parked { broker, reason: code.to_string() });
            }
            failover::Output::DuplicateClientId { broker, takeovers } => {
                let takeovers = u32::try_from(takeovers).unwrap_or(u32::MAX);
                let broker = self.broker(broker);
                self.emit(Event::DuplicateClientId { broker, takeovers });
            }
        }
    }

    fn answered(&mut self, now: Instant, code: ConnectCode, session_present: bool) {
        self.session_present = session_present;
        if code != ConnectCode::Accepted {
            self.outputs.push_back(Output::HangUp { attempt: self.attempt });
            if code.is_transient() {
                self.session.handle_input(now, session::Input::Lost);
                self.connect_failed(self.dialled, code.to_string());
            }
        }
        self.failover.handle_input(now, failover::Input::Answered { attempt: self.attempt, code });
        // Before the session's next outputs: a resend belongs after the word that we are connected.
        while let Some(output) = self.failover.poll_output() {
            self.on_failover(now, output);
        }
    }

    fn establish(&mut self, now: Instant, broker: usize) {
        let left = self.left.take();
        self.serving = Some(broker);
        let session_present = self.session_present;
        let name = self.broker(broker);
        self.status = Status { connected: Some(name.clone()), session_present, since: Some(now) };
        self.stats.connects = self.stats.connects.saturating_add(1);
        let same_broker = left.is_some_and(|left| left.broker == broker);
        // What the broker wants instead of ours counts (MQTT 5, 3.2.2.3.14).
        let told = self.session.limits().keep_alive_seconds;
        let keep_alive = told.map_or(self.keep_alive, |seconds| Duration::from_secs(seconds.into()));
        self.liveness.handle_input(now, liveness::Input::KeepAlive(keep_alive));
        let electing = self.topology == Topology::Cluster && left.is_some();
        self.liveness.handle_input(now, liveness::Input::Opened { same_broker, electing });
        let took = now.saturating_duration_since(self.greeted);
        self.liveness.handle_input(now, liveness::Input::Accepted(took));
        let outage = left.map(|left| now.saturating_duration_since(left.silent_since));
        self.emit(Event::Connected { broker: name.clone(), session_present, outage });
        if let (Some(left), Some(outage)) = (left.filter(|_| !same_broker), outage) {
            self.stats.failovers = self.stats.failovers.saturating_add(1);
            let from = Some(self.broker(left.broker));
            self.emit(Event::FailedOver { from, to: name, detected: left.detected, outage });
        }
    }

    /// The broker ends the connection, and says why.
    fn dismissed(&mut self, now: Instant, reason: Reason) {
        let Some(attempt) = self.failover.current() else { return };
        self.outputs.push_back(Output::HangUp { attempt });
        if reason == Reason::SESSION_TAKEN_OVER {
            self.failover.handle_input(now, failover::Input::TakenOver { attempt });
        }
        self.lose(now, attempt, format!("the broker said: {reason}"), true);
    }

    /// We end the connection.
    fn abandon(&mut self, now: Instant, reason: String, silent_since: Instant) {
        let Some(attempt) = self.failover.current() else { return };
        self.outputs.push_back(Output::HangUp { attempt });
        self.verdict = Some((reason.clone(), silent_since));
        self.lose(now, attempt, reason, false);
    }

    fn lose(&mut self, now: Instant, attempt: u64, reason: String, by_peer: bool) {
        let verdict = self.verdict.take();
        self.session.handle_input(now, session::Input::Lost);
        self.liveness.handle_input(now, liveness::Input::Closed);
        match self.serving.take() {
            Some(broker) => {
                let silent_since = verdict.map_or(now, |(_, since)| since);
                let detected = now.saturating_duration_since(silent_since);
                self.left = Some(Left { broker, silent_since, detected });
                self.status = Status { since: Some(now), ..Status::default() };
                let broker = self.broker(broker);
                self.emit(Event::Disconnected { broker, reason });
            }
            None => self.connect_failed(self.dialled, reason),
        }
        self.failover.handle_input(now, failover::Input::Lost { attempt, by_peer });
    }

    fn connect_failed(&mut self, broker: usize, reason: String) {
        self.stats.connect_failures = self.stats.connect_failures.saturating_add(1);
        let broker = self.broker(broker);
        self.emit(Event::ConnectFailed { broker, reason });
    }

    fn stop(&mut self, now: Instant) {
        self.stopped = true;
        if let Some(attempt) = self.failover.current() {
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

//! Looks for a broker that acknowledges while the client's own connection gets no answer.
//!
//! Pure. Each scout is a short connection under a derived identity: CONNECT, one empty QoS 1 message, and gone. A node
//! that acknowledges proves that the cluster stores again; one that holds the scout has only held a scout. See
//! [`Scouting`] for why, and for what it costs.
//!
//! Bounded: [`MOST`] connections a node, one new connection an interval over all nodes, and a longer interval when an
//! outage lasts longer than any election.

mod words;

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
pub use words::{Input, Output};

use crate::{
    packet::{Connect, ConnectCode, Packet, PacketId, Publish, PublishProperties, Qos},
    policy::{backoff::Jitter, scouting::Scouting},
    reason::Reason,
};

/// Attempts of scouts have numbers from here on, so that they never meet those of the client.
pub const FIRST_ATTEMPT: u64 = 1 << 62;
/// Connections to one node at a time; the oldest makes room. With the interval this bounds what a slow node may take.
pub const MOST: usize = 4;
/// An ordinary failover is over before the first scout leaves.
const HEAD_START: Duration = Duration::from_millis(100);
/// No election takes longer; from here on there is one scout a second.
const LONG: Duration = Duration::from_secs(15);
const SELDOM: Duration = Duration::from_secs(1);
/// Between scouts to a node that was left because it said nothing at all.
const SILENT: Duration = Duration::from_secs(2);
/// Between scouts to a node that takes no connections: its turns go to the others.
const ABSENT: Duration = Duration::from_secs(1);
/// A node that refused a scout gets no other for this long: a person has to change its rights.
const REFUSED: Duration = Duration::from_secs(60);
/// Between visits to one node while all is well, and after one that failed.
const VISIT: Duration = Duration::from_secs(60);
const VISIT_AGAIN: Duration = Duration::from_secs(5);
/// A visit that takes longer has failed.
const VISIT_DEADLINE: Duration = Duration::from_secs(5);
/// Longest for a transport.
const DIALLING: Duration = Duration::from_secs(5);
/// Identities in use in turn: a node that holds one for 4 s must not hold the next.
const IDENTITIES: u64 = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Dialling,
    Greeting,
    Publishing,
}

#[derive(Clone, Copy, Debug)]
struct Trip {
    attempt: u64,
    broker: usize,
    begun: Instant,
    /// Only to be greeted, while all is well.
    visit: bool,
    stage: Stage,
}

#[derive(Clone, Copy, Debug)]
struct Node {
    /// No scout before this.
    not_before: Instant,
    silent: bool,
    visit_at: Instant,
}

/// The state machine. See the head of this file.
#[derive(Debug)]
pub struct Scout {
    /// One for each broker, with its credentials; the identity is added.
    connects: Vec<Connect>,
    topic: Option<Arc<str>>,
    every: Duration,
    jitter: Jitter,
    nodes: Vec<Node>,
    serving: Option<usize>,
    /// Since when the search goes on, and when the next scout leaves.
    search: Option<(Instant, Instant)>,
    trips: VecDeque<Trip>,
    attempts: u64,
    /// Where the next scout goes.
    turn: usize,
    outputs: VecDeque<Output>,
}

impl Scout {
    /// At rest. `connects` are what the client would say to each broker; without a topic nothing ever happens.
    #[must_use]
    pub fn new(connects: Vec<Connect>, scouting: &Scouting, seed: u64, now: Instant) -> Self {
        let mut jitter = Jitter::new(seed ^ FIRST_ATTEMPT);
        let nodes = connects
            .iter()
            .map(|_| Node { not_before: now, silent: false, visit_at: now + VISIT_AGAIN.mul_f64(jitter.fraction()) })
            .collect();
        Self {
            connects,
            topic: scouting.probe_topic().cloned(),
            every: scouting.every,
            jitter,
            nodes,
            serving: None,
            search: None,
            trips: VecDeque::new(),
            attempts: FIRST_ATTEMPT,
            turn: 0,
            outputs: VecDeque::new(),
        }
    }

    /// Whether scouts are out, and some broker takes them: then nobody has to wait on a connection of his own.
    #[must_use]
    pub fn is_seeking(&self, now: Instant) -> bool {
        self.search.is_some() && self.nodes.iter().any(|node| node.silent || node.not_before <= now + SILENT)
    }

    /// Takes in what happened. What belongs to a scout that is gone is ignored.
    pub fn handle_input(&mut self, now: Instant, input: Input) {
        if self.topic.is_none() {
            return;
        }
        match input {
            Input::Seek(true) if self.search.is_none() => {
                let wait = HEAD_START + self.every.mul_f64(self.jitter.fraction());
                self.search = Some((now, now + wait));
            }
            Input::Seek(true) => {}
            Input::Seek(false) => self.rest(now),
            Input::Serving(broker) => self.serving = broker,
            Input::Silent { broker } => {
                if let Some(node) = self.nodes.get_mut(broker) {
                    node.silent = true;
                }
                self.not_before(broker, now + SILENT);
            }
            Input::Opened { attempt } => self.opened(attempt),
            Input::Closed { attempt } => {
                if let Some(trip) = self.take(attempt) {
                    self.failed(now, trip);
                    if trip.stage == Stage::Dialling {
                        self.not_before(trip.broker, now + ABSENT);
                    }
                }
            }
            Input::Received { attempt, packet } => self.received(now, attempt, &packet),
            Input::Stop => {
                self.rest(now);
                self.topic = None;
            }
        }
    }

    /// Sends whoever is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.topic.is_none() {
            return;
        }
        while let Some(trip) =
            self.trips.front().copied().filter(|trip| trip.visit && trip.begun + VISIT_DEADLINE <= now)
        {
            self.take(trip.attempt);
            self.hang_up(trip.attempt);
            self.failed(now, trip);
        }
        match self.search {
            Some((since, next)) if next <= now => {
                let mean =
                    if now.saturating_duration_since(since) < LONG { self.every } else { self.every.max(SELDOM) };
                let wait = mean.mul_f64(0.75 + self.jitter.fraction() / 2.0);
                self.search = Some((since, now + wait));
                self.send_one(now);
            }
            Some(_) => {}
            None => self.visit(now),
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

    /// When to call [`handle_timeout`](Self::handle_timeout).
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.topic.as_ref()?;
        if let Some((_, next)) = self.search {
            return Some(next);
        }
        let overdue = self.trips.front().map(|trip| trip.begun + VISIT_DEADLINE);
        overdue.or_else(|| self.next_visit().map(|(_, at)| at))
    }

    /// The node whose visit is due first; there is none while nobody serves us.
    fn next_visit(&self) -> Option<(usize, Instant)> {
        let serving = self.serving?;
        let others = self.nodes.iter().enumerate().filter(|(index, _)| *index != serving);
        others.map(|(index, node)| (index, node.visit_at)).min_by_key(|(_, at)| *at)
    }

    fn visit(&mut self, now: Instant) {
        let due = self.next_visit().filter(|(_, at)| *at <= now && self.trips.is_empty());
        if let Some((broker, _)) = due {
            self.depart(now, broker, true);
        }
    }

    /// To each node in turn; past those that want none now.
    fn send_one(&mut self, now: Instant) {
        let count = self.nodes.len();
        for _ in 0..count {
            let broker = self.turn.checked_rem(count).unwrap_or(0);
            self.turn = broker.saturating_add(1);
            let Some(node) = self.nodes.get_mut(broker).filter(|node| node.not_before <= now) else { continue };
            if node.silent {
                node.not_before = now + SILENT;
            }
            let there = self.trips.iter().filter(|trip| trip.broker == broker);
            if there.clone().count() >= MOST
                && let Some(oldest) = there.map(|trip| trip.attempt).next()
            {
                self.take(oldest);
                self.hang_up(oldest);
            }
            return self.depart(now, broker, false);
        }
    }

    fn depart(&mut self, now: Instant, broker: usize, visit: bool) {
        self.attempts = self.attempts.saturating_add(1);
        let attempt = self.attempts;
        self.trips.push_back(Trip { attempt, broker, begun: now, visit, stage: Stage::Dialling });
        self.outputs.push_back(Output::Dial { attempt, broker, deadline: now + DIALLING });
    }

    fn opened(&mut self, attempt: u64) {
        let Some(trip) = self.trips.iter_mut().find(|trip| trip.attempt == attempt) else { return };
        trip.stage = Stage::Greeting;
        let Some(connect) = self.connects.get(trip.broker) else { return };
        let turn = attempt.saturating_sub(FIRST_ATTEMPT).checked_rem(IDENTITIES).unwrap_or(0);
        let connect = derived(connect, &format!("~scout{turn}"));
        self.outputs.push_back(Output::Send { attempt, packet: Packet::Connect(connect) });
    }

    fn received(&mut self, now: Instant, attempt: u64, packet: &Packet) {
        let Some(trip) = self.trips.iter_mut().find(|trip| trip.attempt == attempt) else { return };
        match (packet, trip.stage) {
            (Packet::ConnAck { code: ConnectCode::Accepted, .. }, Stage::Greeting) if trip.visit => {
                let trip = *trip;
                self.goodbye(attempt);
                self.rest_from(now, trip.broker, VISIT);
            }
            (Packet::ConnAck { code: ConnectCode::Accepted, .. }, Stage::Greeting) => {
                trip.stage = Stage::Publishing;
                let Some(topic) = self.topic.clone() else { return };
                let publish = Publish {
                    topic,
                    payload: Bytes::new(),
                    qos: Qos::AtLeastOnce,
                    retain: false,
                    duplicate: false,
                    id: Some(PacketId::FIRST),
                    properties: PublishProperties::default(),
                };
                self.outputs.push_back(Output::Send { attempt, packet: Packet::Publish(publish) });
            }
            (Packet::PubAck { code, .. }, Stage::Publishing) if *code < 0x80 => {
                let (broker, since) = (trip.broker, trip.begun);
                self.goodbye(attempt);
                if let Some(node) = self.nodes.get_mut(broker) {
                    node.silent = false;
                }
                self.outputs.push_back(Output::Proven { broker, since });
            }
            (answer, stage) if may_pass(answer, stage) => {
                let trip = *trip;
                self.goodbye(attempt);
                self.failed(now, trip);
                self.not_before(trip.broker, now + ABSENT);
            }
            // A refusal for good, or nonsense.
            _ => {
                let broker = trip.broker;
                self.goodbye(attempt);
                self.rest_from(now, broker, REFUSED);
                self.not_before(broker, now + REFUSED);
            }
        }
    }

    fn not_before(&mut self, broker: usize, at: Instant) {
        if let Some(node) = self.nodes.get_mut(broker) {
            node.not_before = node.not_before.max(at);
        }
    }

    fn failed(&mut self, now: Instant, trip: Trip) {
        self.rest_from(now, trip.broker, if trip.visit { VISIT_AGAIN } else { VISIT });
    }

    fn rest_from(&mut self, now: Instant, broker: usize, wait: Duration) {
        let wait = wait.mul_f64(0.75 + self.jitter.fraction() / 2.0);
        if let Some(node) = self.nodes.get_mut(broker) {
            node.visit_at = now + wait;
        }
    }

    /// The search is over: whoever is out is called back.
    fn rest(&mut self, now: Instant) {
        if self.search.take().is_none() {
            return;
        }
        for node in &mut self.nodes {
            node.silent = false;
            node.visit_at = node.visit_at.max(now + VISIT_AGAIN);
        }
        for trip in std::mem::take(&mut self.trips) {
            self.hang_up(trip.attempt);
        }
    }

    fn take(&mut self, attempt: u64) -> Option<Trip> {
        let place = self.trips.iter().position(|trip| trip.attempt == attempt)?;
        self.trips.remove(place)
    }

    fn goodbye(&mut self, attempt: u64) {
        self.take(attempt);
        self.outputs.push_back(Output::Send { attempt, packet: Packet::Disconnect(Reason::SUCCESS) });
        self.hang_up(attempt);
    }

    fn hang_up(&mut self, attempt: u64) {
        self.outputs.push_back(Output::HangUp { attempt });
    }
}

/// A refusal that a node which starts, ends or is busy gives.
fn may_pass(answer: &Packet, stage: Stage) -> bool {
    match (answer, stage) {
        (Packet::ConnAck { code, .. }, Stage::Greeting) => code.is_transient(),
        (Packet::PubAck { code, .. }, Stage::Publishing) => Reason::new(*code).is_transient(),
        (Packet::Disconnect(reason), _) => reason.is_transient(),
        _ => false,
    }
}

/// What a connection of ours under another name says: nothing that outlives it.
pub(crate) fn derived(connect: &Connect, suffix: &str) -> Connect {
    // An identity has at most 65535 bytes; the beginning of a longer one tells as much.
    let room = usize::from(u16::MAX).saturating_sub(suffix.len());
    let mut end = connect.client_id.len().min(room);
    while !connect.client_id.is_char_boundary(end) {
        end = end.saturating_sub(1);
    }
    let name = connect.client_id.get(..end).unwrap_or_default();
    Connect {
        client_id: Arc::from(format!("{name}{suffix}")),
        clean_session: true,
        session_expiry_seconds: 0,
        will: None,
        will_delay_seconds: 0,
        ..connect.clone()
    }
}

//! One MQTT session over however many connections: what was sent, what was received, what is wanted.
//!
//! Pure, and the same for every broker. A *generation* is the life of one session on one broker (or cluster): it ends
//! when a CONNACK says that the session is gone, or when another broker answers. Packet identifiers are reused for a
//! resend, with DUP, only within a generation; everywhere else a message is published again under a new one. Sending
//! again what was sent is the whole point: raw clients forget it here (fault F21).

mod gate;
mod incoming;
mod ledger;
mod limits;
mod presence;
mod resume;
mod succession;
mod words;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

pub use gate::Gate;
use incoming::Incoming;
use presence::Presence;
pub use words::{End, Input, Output};

use crate::{
    config::{Config, Topology},
    event::Filter,
    inflight::Inflight,
    packet::{Connect, ConnectCode, Credentials, Limits, Packet, PacketId, Qos, Version},
    queue::Admitted,
    reason::Reason,
    subscription::Subscriptions,
};

/// QoS 0 messages handed to the socket and not yet written; more wait in the queue, where its policy holds.
const UNWRITTEN_LIMIT: usize = 1024;
/// So long after an unanswered CONNECT a session that is called present may be one that it began.
const DOUBT: Duration = Duration::from_secs(600);
/// So many connections that end on one message say that brokers do not take it.
const OFTEN: u32 = 3;
/// Filters in one SUBSCRIBE; some brokers refuse more than a few dozen.
const FILTERS_A_PACKET: usize = 32;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Down,
    Greeting { broker: usize, wipe: bool },
    Up,
}

#[derive(Debug)]
enum Request {
    Subscribe(Vec<(Filter, Qos)>),
    Unsubscribe(Vec<Filter>),
    /// The message said on each connection.
    Announce,
}

/// A SUBSCRIBE, an UNSUBSCRIBE or an announcement without an answer.
#[derive(Debug)]
struct Control {
    sequence: u64,
    request: Request,
}

/// The state machine. See the head of this file.
#[derive(Debug)]
pub struct Session {
    version: Version,
    connect: Connect,
    broker_credentials: Vec<Option<Credentials>>,
    topology: Topology,
    max_inflight: usize,
    limits: Limits,
    /// Whether it was told that the present broker takes no higher level.
    told_lowered: bool,
    state: State,
    /// The broker of the last accepted connection.
    last_broker: Option<usize>,
    /// The last CONNECT where our session lives was not answered: it may have begun another session in its place, which
    /// the next CONNACK would call present.
    doubtful: bool,
    /// The same of an earlier one: a broker that was stopped reads it when it goes on, whatever happened meanwhile.
    doubtful_until: Option<Instant>,
    /// The broker counts against us what we do not know of: the next CONNECT begins a new session.
    begins_anew: bool,
    /// The generation in which a broker last closed for more than it takes (0x93).
    overfull_in: Option<u64>,
    /// Grows with each new session on a broker.
    generation: u64,
    next_id: PacketId,
    inflight: Inflight,
    subscriptions: Subscriptions,
    /// To be withdrawn from a session that goes on.
    unwanted: BTreeSet<Filter>,
    control: BTreeMap<PacketId, Control>,
    /// A wish found no packet identifier.
    starved: bool,
    incoming: Incoming,
    presence: Presence,
    /// QoS 0 messages of this connection that are not written yet, with their place.
    unwritten: VecDeque<(u64, Admitted)>,
    /// Packets of this connection.
    sent: u64,
    /// The place of the last one that wants an answer.
    asked: u64,
    /// (packets written, when), ascending; only where, and as far back as, something unanswered reaches.
    written: VecDeque<(u64, Instant)>,
    resent: u64,
    /// Nothing new is sent: another connection is about to take over.
    holds: bool,
    gate: Gate,
    /// Messages whose outcome this connection brought.
    answers: u64,
    outputs: VecDeque<Output>,
}

impl Session {
    /// Not connected, with nothing on its way.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        let keep_alive_seconds = u16::try_from(config.keep_alive.as_secs()).unwrap_or(u16::MAX);
        let connect = Connect {
            client_id: config.client_id.clone(),
            clean_session: config.clean_session,
            session_expiry_seconds: config.session_expiry_seconds(),
            receive_maximum: config.receive_maximum,
            max_packet_bytes: config.max_packet_bytes,
            keep_alive_seconds,
            credentials: config.credentials.clone(),
            will: config.will.as_ref().map(presence::will),
            will_delay_seconds: config.will_delay_seconds(),
        };
        let presence = Presence::new(config);
        let mut subscriptions = Subscriptions::default();
        if let Some(topic) = presence.watched() {
            subscriptions.want(topic, Qos::AtMostOnce);
        }
        Self {
            version: config.speaks(),
            connect,
            broker_credentials: config.broker_credentials.clone(),
            topology: config.topology,
            max_inflight: usize::from(config.max_inflight),
            limits: Limits::default(),
            told_lowered: false,
            state: State::Down,
            last_broker: None,
            doubtful: false,
            doubtful_until: None,
            begins_anew: false,
            overfull_in: None,
            generation: 0,
            next_id: PacketId::FIRST,
            inflight: Inflight::default(),
            subscriptions,
            unwanted: BTreeSet::new(),
            control: BTreeMap::new(),
            starved: false,
            incoming: Incoming::default(),
            presence,
            unwritten: VecDeque::new(),
            sent: 0,
            asked: 0,
            written: VecDeque::new(),
            resent: 0,
            holds: false,
            gate: Gate::Open,
            answers: 0,
            outputs: VecDeque::new(),
        }
    }

    /// Takes in what happened.
    pub fn handle_input(&mut self, now: Instant, input: Input) {
        match input {
            Input::Greet { broker, wipe } => self.greet(broker, wipe),
            Input::Received(packet) => self.receive(now, packet),
            Input::Lost => self.lose(now),
            Input::Publish(admitted) => self.publish(now, admitted),
            Input::Subscribe { filter, qos } => self.subscribe(filter, qos),
            Input::Unsubscribe { filter } => self.unsubscribe(filter),
            Input::Acknowledge { id, serial } => match self.incoming.acknowledge(id, serial) {
                Some(answer) if self.is_up() => self.send(answer),
                // QoS 2 goes on with the session: the answer follows when the broker asks again.
                Some(_) => {}
                None => self.outputs.push_back(Output::LateAck),
            },
            Input::Abandon { id, serial } => self.incoming.abandon(id, serial),
            Input::Flushed(packets) => self.flushed(now, packets),
            Input::Hold(holds) => self.holds = holds,
            Input::Gate(gate) => self.set_gate(now, gate),
            Input::Reject { message, reason } => self.give_up(message, reason),
            Input::Probe if self.is_up() => self.send(Packet::PingReq),
            Input::Goodbye if self.state != State::Down => self.send(Packet::Disconnect(Reason::SUCCESS)),
            Input::Probe | Input::Goodbye => {}
        }
    }

    /// Gives up messages whose time to live has ended, and asks again for filters.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.ask_refused(now);
        while let Some(entry) = self.inflight.expire(now) {
            let end = End::Expired;
            self.outputs.push_back(Output::Settled { admitted: entry.admitted, attempts: entry.attempts, end });
        }
        if self.is_up() {
            self.release_left_open();
        }
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to call [`handle_timeout`](Self::handle_timeout).
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        [self.inflight.next_expiry(), self.ask_at()].into_iter().flatten().min()
    }

    /// Which MQTT is spoken.
    #[must_use]
    pub const fn version(&self) -> Version {
        self.version
    }

    /// Messages sent or to be sent again, without an outcome.
    #[must_use]
    pub fn inflight(&self) -> usize {
        self.inflight.len().saturating_add(self.unwritten.len())
    }

    /// Whether a SUBSCRIBE or UNSUBSCRIBE has no answer yet.
    #[must_use]
    pub fn is_asking(&self) -> bool {
        !self.control.is_empty()
    }

    /// What it says to a broker, with that broker's credentials.
    #[must_use]
    pub fn connect_to(&self, broker: usize) -> Connect {
        let own = self.broker_credentials.get(broker).cloned().flatten();
        let mut connect = self.connect.clone();
        connect.credentials = own.or(connect.credentials);
        connect
    }

    /// PUBLISH packets that were sent again so far.
    #[must_use]
    pub const fn resent(&self) -> u64 {
        self.resent
    }

    /// Grows with each new session on a broker.
    #[must_use]
    pub const fn generation(&self) -> u64 {
        self.generation
    }

    /// The wanted filters.
    #[must_use]
    pub const fn subscriptions(&self) -> &Subscriptions {
        &self.subscriptions
    }

    /// Since when the oldest packet without an answer has been on the wire.
    #[must_use]
    pub fn waiting_since(&self) -> Option<Instant> {
        let control = self.control.values().map(|control| control.sequence).min();
        let oldest = [self.inflight.oldest_unanswered(), control].into_iter().flatten().min()?;
        self.written_at(oldest)
    }

    /// Ends it: everything without an outcome, in order of admission, with how often it was sent.
    pub fn drain(&mut self) -> Vec<(Admitted, u32)> {
        let unwritten = self.unwritten.drain(..).map(|(_, admitted)| (admitted, 1));
        let mut left: Vec<_> = unwritten.collect();
        left.extend(self.inflight.drain().into_iter().map(|entry| (entry.admitted, entry.attempts)));
        left.sort_by_key(|(admitted, _)| admitted.id);
        left
    }

    fn is_up(&self) -> bool {
        self.state == State::Up
    }

    fn greet(&mut self, broker: usize, wipe: bool) {
        self.state = State::Greeting { broker, wipe };
        (self.sent, self.asked) = (0, 0);
        self.answers = 0;
        self.written.clear();
        let mut connect = self.connect_to(broker);
        if wipe {
            connect.clean_session = true;
            connect.will = None;
        }
        // MQTT 5 throws an old session away and begins a lasting one in the same CONNECT.
        let stranger = self.last_broker.is_some_and(|last| last != broker) && self.topology == Topology::Independent;
        connect.clean_session |= (stranger || self.begins_anew) && self.version == Version::V5;
        self.send(Packet::Connect(connect));
    }

    fn receive(&mut self, now: Instant, packet: Packet) {
        match (packet, self.state) {
            (Packet::ConnAck { session_present, code, limits }, State::Greeting { broker, wipe }) => {
                self.limit(limits);
                self.outputs.push_back(Output::Answered { code, session_present });
                if code != ConnectCode::Accepted {
                    // It is known that no session began there.
                    self.state = State::Down;
                } else if !wipe {
                    self.resume(now, broker, session_present);
                }
            }
            (Packet::Publish(publish), State::Up) => self.deliver(publish),
            (Packet::PubAck { id, code }, State::Up) => self.acknowledged(now, id, code, Qos::AtLeastOnce),
            (Packet::PubRec { id, code }, State::Up) => self.received(now, id, code),
            // 0x92 as well: the broker had it, and had forgotten that it was not released.
            (Packet::PubComp { id, .. }, State::Up) => self.acknowledged(now, id, 0, Qos::ExactlyOnce),
            (Packet::PubRel { id, .. }, State::Up) => {
                let known = self.incoming.release(id);
                let code = self.code_for(if known { Reason::SUCCESS } else { Reason::PACKET_ID_NOT_FOUND });
                self.send(Packet::PubComp { id, code });
            }
            (Packet::SubAck { id, codes }, State::Up) => {
                self.subscribed(now, id, &codes);
                self.ask_again();
            }
            (Packet::UnsubAck(id), State::Up) => {
                self.unsubscribed(id);
                self.ask_again();
            }
            (Packet::PingResp, State::Up) => self.outputs.push_back(Output::ProbeAnswered),
            (Packet::Connect(_) | Packet::Subscribe { .. } | Packet::Unsubscribe { .. } | Packet::PingReq, _) => {
                self.violation("a packet that only clients send");
            }
            (Packet::Disconnect(reason), _) => self.dismissed(reason),
            (Packet::Auth, _) => self.violation("AUTH, although no method was agreed on"),
            (_, State::Greeting { .. }) => self.violation("a packet before CONNACK"),
            (_, State::Up | State::Down) => self.violation("a second CONNACK"),
        }
    }

    /// The broker broke the protocol; MQTT 5 lets us say so before we hang up (4.13.1).
    fn violation(&mut self, what: &'static str) {
        if self.version == Version::V5 && self.is_up() {
            self.send(Packet::Disconnect(Reason::PROTOCOL_ERROR));
        }
        self.outputs.push_back(Output::Violation(what));
    }

    /// The reason as it stands in an acknowledgement; 3.1.1 has none.
    fn code_for(&self, reason: Reason) -> u8 {
        if self.version == Version::V5 { reason.number() } else { 0 }
    }

    fn lose(&mut self, now: Instant) {
        if let State::Greeting { broker, wipe: false } = self.state
            && (self.last_broker == Some(broker) || self.topology == Topology::Cluster)
        {
            self.doubtful = true;
            self.doubtful_until = now.checked_add(DOUBT);
        }
        // A broker of 3.1.1 that takes no such message can only close the connection: nobody is to wait for that unawares.
        if let Some(entry) = self.inflight.oldest_sent()
            && entry.attempts % OFTEN == 0
            && (entry.attempts / OFTEN).is_power_of_two()
        {
            let (topic, attempts) = (Arc::clone(&entry.admitted.message.topic), entry.attempts);
            self.outputs.push_back(Output::Stuck { topic, attempts });
        }
        self.state = State::Down;
        self.inflight.disconnect();
        self.forget_requests();
        self.incoming.disconnect();
        for (_, admitted) in std::mem::take(&mut self.unwritten) {
            self.outputs.push_back(Output::Settled { admitted, attempts: 1, end: End::Broken });
        }
        self.written.clear();
        // What was not handed out yet belongs to a connection that is gone.
        self.outputs.retain(|output| !matches!(output, Output::Send(_)));
    }
}

//! The broker's state: sessions, subscriptions, retained messages. Synchronous, behind one lock; whatever it wants
//! to send goes into the connections' bounded queues in the order in which it was decided.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{Connect, LastWill, Packet, Publish};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::script::{BrokerCounts, Script};
use super::seen::Seen;
use super::wire::Answer;

/// Unacknowledged or waiting messages of one session; older ones are shed beyond.
const QUEUE: usize = 100_000;

/// Packets that wait for one connection's socket. A client that reads too slowly for this is disconnected.
pub(super) const OUTGOING: usize = 100_000;

#[derive(Debug)]
pub(super) struct Hub {
    pub(super) script: Script,
    /// Publishes since the script was set.
    pub(super) publishes: u64,
    pub(super) seen: Seen,
    pub(super) fired: BrokerCounts,
    sessions: BTreeMap<String, Session>,
    retained: BTreeMap<String, Publish>,
    connections: BTreeMap<u64, Connection>,
    accepted: u64,
}

#[derive(Debug, Default)]
struct Session {
    persistent: bool,
    online: Option<u64>,
    /// Filter to granted QoS.
    subscriptions: BTreeMap<String, u8>,
    /// QoS 1 messages without a PUBACK, oldest first.
    unacknowledged: VecDeque<Publish>,
    last_id: u16,
}

#[derive(Debug)]
struct Connection {
    ended: CancellationToken,
    attached: Option<Attached>,
}

#[derive(Debug)]
struct Attached {
    client_id: String,
    outgoing: mpsc::Sender<Answer>,
    will: Option<LastWill>,
}

impl Hub {
    pub(super) fn new(script: Script) -> Self {
        Self {
            script,
            publishes: 0,
            seen: Seen::default(),
            fired: BrokerCounts::default(),
            sessions: BTreeMap::new(),
            retained: BTreeMap::new(),
            connections: BTreeMap::new(),
            accepted: 0,
        }
    }

    pub(super) fn set(&mut self, script: Script) {
        self.script = script;
        self.publishes = 0;
    }

    pub(super) fn accept(&mut self) -> (u64, CancellationToken) {
        self.accepted += 1;
        let ended = CancellationToken::new();
        self.connections.insert(self.accepted, Connection { ended: ended.clone(), attached: None });
        (self.accepted, ended)
    }

    pub(super) fn connections(&self) -> usize {
        self.connections.len()
    }

    /// Binds the connection to its session and returns whether one is present, and what to send again.
    pub(super) fn attach(
        &mut self,
        number: u64,
        connect: Connect,
        outgoing: mpsc::Sender<Answer>,
    ) -> (bool, Vec<Packet>) {
        let client_id = connect.client_id;
        if let Some(older) = self.sessions.get(&client_id).and_then(|session| session.online) {
            self.fired.takeovers += 1;
            self.end(older);
            self.detach(older, false);
        }
        let stored = self.sessions.get(&client_id).is_some_and(|session| session.persistent) && !connect.clean_session;
        let claimed = self.script.session_present.unwrap_or(stored);
        if claimed != stored {
            self.fired.session_lies += 1;
        }
        if !stored || !claimed {
            self.sessions.remove(&client_id);
        }
        let session = self.sessions.entry(client_id.clone()).or_default();
        session.persistent = !connect.clean_session;
        session.online = Some(number);
        let again = session.unacknowledged.iter_mut().map(|publish| {
            publish.dup = true;
            Packet::Publish(publish.clone())
        });
        let again = again.collect();
        if let Some(connection) = self.connections.get_mut(&number) {
            connection.attached = Some(Attached { client_id, outgoing, will: connect.last_will });
        }
        (claimed, again)
    }

    /// Forgets the connection; its will is published unless it ended in order.
    pub(super) fn detach(&mut self, number: u64, in_order: bool) {
        let Some(Connection { attached: Some(attached), .. }) = self.connections.remove(&number) else { return };
        if let Some(session) = self.sessions.get_mut(&attached.client_id)
            && session.online == Some(number)
        {
            session.online = None;
            if !session.persistent {
                self.sessions.remove(&attached.client_id);
            }
        }
        if let Some(will) = attached.will.filter(|_| !in_order) {
            self.publish(&will.topic, will.message, (will.qos as u8).min(1), will.retain);
        }
    }

    pub(super) fn end(&self, number: u64) {
        if let Some(connection) = self.connections.get(&number) {
            connection.ended.cancel();
        }
    }

    pub(super) fn disconnect(&self, client_id: &str) {
        if let Some(number) = self.sessions.get(client_id).and_then(|session| session.online) {
            self.end(number);
        }
    }

    /// Behind what is on its way to the client; the connection ends with it.
    pub(super) fn say_goodbye(&mut self, client_id: &str, code: u8) {
        let online = self.sessions.get(client_id).and_then(|session| session.online);
        let connection = online.and_then(|number| self.connections.get(&number));
        if let Some(attached) = connection.and_then(|connection| connection.attached.as_ref()) {
            let _ = attached.outgoing.try_send(Answer::Goodbye(code));
            self.fired.goodbyes += 1;
        }
    }

    pub(super) fn disconnect_all(&self) {
        self.connections.values().for_each(|connection| connection.ended.cancel());
    }

    pub(super) fn forget(&mut self) {
        self.sessions.retain(|_, session| session.online.is_some());
        self.sessions.values_mut().for_each(|session| session.persistent = false);
        self.retained.clear();
    }

    pub(super) fn client_id(&self, number: u64) -> String {
        let attached = self.connections.get(&number).and_then(|connection| connection.attached.as_ref());
        attached.map(|attached| attached.client_id.clone()).unwrap_or_default()
    }

    /// Routes one message to every subscriber, once for each, at the highest granted QoS that matches.
    pub(super) fn publish(&mut self, topic: &str, payload: Bytes, qos: u8, retain: bool) {
        let publish = Publish::from_bytes(topic, quality(qos), payload);
        if retain && publish.payload.is_empty() {
            self.retained.remove(topic);
        } else if retain {
            self.retained.insert(topic.to_owned(), Publish { retain: true, ..publish.clone() });
        }
        let Self { sessions, connections, fired, .. } = self;
        for session in sessions.values_mut() {
            let matching = session.subscriptions.iter().filter(|(filter, _)| matches(topic, filter));
            if let Some(granted) = matching.map(|(_, granted)| *granted).max() {
                session.deliver(publish.clone(), qos.min(granted), connections, fired);
            }
        }
    }

    pub(super) fn subscribe(&mut self, number: u64, filter: &str, granted: u8) {
        let client_id = self.client_id(number);
        let Self { sessions, connections, fired, retained, .. } = self;
        let Some(session) = sessions.get_mut(&client_id) else { return };
        session.subscriptions.insert(filter.to_owned(), granted);
        for (_, publish) in retained.iter().filter(|(topic, _)| matches(topic, filter)) {
            session.deliver(publish.clone(), granted.min(publish.qos as u8), connections, fired);
        }
    }

    pub(super) fn unsubscribe(&mut self, number: u64, filter: &str) {
        let client_id = self.client_id(number);
        if let Some(session) = self.sessions.get_mut(&client_id) {
            session.subscriptions.remove(filter);
        }
    }

    pub(super) fn acknowledged(&mut self, number: u64, packet_id: u16) {
        self.seen.acks += 1;
        let client_id = self.client_id(number);
        if let Some(session) = self.sessions.get_mut(&client_id) {
            session.unacknowledged.retain(|publish| publish.pkid != packet_id);
        }
    }
}

impl Session {
    fn deliver(
        &mut self,
        mut publish: Publish,
        qos: u8,
        connections: &BTreeMap<u64, Connection>,
        fired: &mut BrokerCounts,
    ) {
        publish.qos = quality(qos);
        if qos > 0 {
            if self.unacknowledged.len() >= QUEUE.min(usize::from(u16::MAX) - 1) {
                self.unacknowledged.pop_front();
                fired.shed += 1;
            }
            publish.pkid = self.free_id();
            self.unacknowledged.push_back(publish.clone());
        }
        let Some(connection) = self.online.and_then(|number| connections.get(&number)) else { return };
        if let Some(attached) = &connection.attached
            && attached.outgoing.try_send(Packet::Publish(publish).into()).is_err()
        {
            connection.ended.cancel();
        }
    }

    fn free_id(&mut self) -> u16 {
        loop {
            self.last_id = self.last_id.checked_add(1).unwrap_or(1);
            if !self.unacknowledged.iter().any(|publish| publish.pkid == self.last_id) {
                return self.last_id;
            }
        }
    }
}

pub(super) fn quality(qos: u8) -> QoS {
    match qos {
        0 => QoS::AtMostOnce,
        1 => QoS::AtLeastOnce,
        _ => QoS::ExactlyOnce,
    }
}

/// MQTT 3.1.1, section 4.7: `+` is one level, `#` the rest and its parent; wildcards do not reach `$` topics.
pub(super) fn matches(topic: &str, filter: &str) -> bool {
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        return false;
    }
    let (mut levels, mut wanted) = (topic.split('/'), filter.split('/'));
    loop {
        match (levels.next(), wanted.next()) {
            (_, Some("#")) | (None, None) => return true,
            (Some(level), Some(want)) if want == "+" || want == level => {}
            _ => return false,
        }
    }
}

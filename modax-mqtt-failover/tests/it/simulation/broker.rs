//! A broker that does what it is told, wrong things included.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use modax_mqtt_failover::{
    Bytes, Qos, Version,
    packet::{ConnectCode, Limits, Packet, PacketId, Publish, PublishProperties},
};

/// What a broker keeps of a client.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stored {
    pub(crate) filters: BTreeSet<Arc<str>>,
    /// Sent to the client and not acknowledged, in order, each with whether its PUBREC came; and what waits for it.
    pub(crate) outgoing: Vec<(PacketId, Publish, bool)>,
    pub(crate) waiting: VecDeque<Publish>,
    /// Tells sessions of one broker apart.
    pub(crate) serial: u64,
    /// QoS 2 messages received and not released, and all that this session has received.
    pub(crate) received: BTreeSet<PacketId>,
    pub(crate) exactly_once: BTreeSet<u64>,
    /// A CONNECT was not answered, so that the client cannot know that this is still the session it knew.
    pub(crate) doubted: bool,
    /// It began at another node of the cluster.
    pub(crate) moved: bool,
    /// When it ends unless the client comes back (MQTT 5).
    pub(crate) ends: Option<Instant>,
    next: u16,
}

/// What goes wrong with one broker now.
#[derive(Clone, Debug, Default)]
pub(crate) struct Mood {
    pub(crate) down: bool,
    /// Accepts connections and does nothing (SIGSTOP).
    pub(crate) frozen: bool,
    pub(crate) connack_delay: Duration,
    pub(crate) eof_before_connack: bool,
    /// Of each 16 acknowledgements so many are not sent, sent twice, or held back and sent after the next.
    pub(crate) acks_missing: u64,
    pub(crate) acks_doubled: u64,
    pub(crate) acks_held: u64,
    /// Of each 16 QoS 1 and 2 messages so many are refused (MQTT 5).
    pub(crate) acks_refusing: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Broker {
    pub(crate) version: Version,
    /// What it says that it takes (MQTT 5), and holds the client to.
    pub(crate) limits: Limits,
    pub(crate) now: Option<Instant>,
    /// Messages it refused. Where the refusal is lost, one may be sent and taken later: its place is no rule then.
    pub(crate) refused: BTreeSet<u64>,
    pub(crate) expired: u64,
    /// Closes the connection on some messages.
    pub(crate) picky: bool,
    pub(crate) mood: Mood,
    pub(crate) keeps_sessions: bool,
    pub(crate) session: Option<Stored>,
    /// Order of first receipts, by topic.
    pub(crate) received: BTreeMap<Arc<str>, Vec<u64>>,
    pub(crate) connection: Option<Connection>,
    /// What arrived while it was frozen.
    pub(crate) unread: Vec<(u64, Packet)>,
    pub(crate) sessions: u64,
    pub(crate) spoilt: Spoilt,
}

/// Answers that were not sent, sent twice, and held back.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Spoilt {
    pub(crate) missing: u64,
    pub(crate) doubled: u64,
    pub(crate) held: u64,
}

#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) attempt: u64,
    pub(crate) greeted: bool,
    pub(crate) clean: bool,
    /// How long the session outlives it (MQTT 5).
    pub(crate) expiry: Duration,
    /// Messages it takes part in without an answer (MQTT 5).
    pub(crate) open: BTreeSet<PacketId>,
    pub(crate) session_present: bool,
    pub(crate) unanswered: BTreeSet<PacketId>,
    pub(crate) held: Vec<Packet>,
}

impl Broker {
    /// What the broker sends back for one packet, each after a delay; `draw` is a source of numbers.
    pub(crate) fn receive(
        &mut self,
        attempt: u64,
        packet: Packet,
        mut draw: impl FnMut(u64) -> u64,
    ) -> Vec<(Duration, Packet)> {
        let mood = self.mood.clone();
        if mood.down || mood.frozen {
            return Vec::new();
        }
        let Some(connection) = self.connection.as_mut().filter(|connection| connection.attempt == attempt) else {
            return Vec::new();
        };
        let now = Duration::ZERO;
        match packet {
            Packet::Connect(connect) => {
                assert!(!connection.greeted, "a second CONNECT on one connection");
                connection.greeted = true;
                let old = self.version == Version::V311;
                connection.clean = connect.clean_session && old;
                connection.expiry = Duration::from_secs(connect.session_expiry_seconds.into());
                let over = |session: &Stored| session.ends.is_some_and(|at| self.now.is_some_and(|now| at <= now));
                self.expired += u64::from(self.session.as_ref().is_some_and(over));
                if connect.clean_session || self.session.as_ref().is_some_and(over) {
                    self.session = None;
                }
                connection.session_present = self.session.is_some();
                if self.session.is_none() {
                    self.sessions += 1;
                    self.session = Some(Stored { serial: self.sessions, ..Stored::default() });
                }
                let session = self.session.get_or_insert_default();
                session.ends = None;
                // As mosquitto counts: what it has not been released from has its place on each connection. A client that cannot
                // know whether this is its session cannot know of those, and another node may have had places for more.
                if !session.doubted && !session.moved {
                    connection.open.clone_from(&session.received);
                }
                let mut answers = vec![(
                    mood.connack_delay,
                    Packet::ConnAck {
                        session_present: connection.session_present,
                        code: ConnectCode::Accepted,
                        limits: self.limits,
                    },
                )];
                let again = session.outgoing.iter().cloned().map(|(id, publish, received)| {
                    if received {
                        Packet::PubRel { id, code: 0 }
                    } else {
                        Packet::Publish(Publish { duplicate: true, ..publish })
                    }
                });
                answers.extend(again.map(|packet| (mood.connack_delay, packet)));
                answers.extend(self.feed().into_iter().map(|(_, packet)| (mood.connack_delay, packet)));
                answers
            }
            Packet::Publish(publish) => {
                let sequence = u64::from_be_bytes(publish.payload.as_ref().try_into().expect("eight bytes"));
                let limit = self.limits.max_packet_bytes.map(|bytes| usize::try_from(bytes).expect("small"));
                assert!(
                    limit.is_none_or(|limit| publish.encoded_bytes() <= limit),
                    "{sequence} is larger than allowed"
                );
                if let Some(id) = publish.id {
                    connection.open.insert(id);
                    let most = usize::from(self.limits.receive_maximum);
                    assert!(connection.open.len() <= most, "more than {most} messages without an answer");
                    let new = !self.session.as_ref().is_some_and(|session| session.received.contains(&id));
                    if new && draw(16) < mood.acks_refusing {
                        self.refused.insert(sequence);
                        connection.open.remove(&id);
                        let (qos, code) = (publish.qos, 0x97);
                        let once = qos == Qos::AtLeastOnce;
                        return vec![(
                            now,
                            if once { Packet::PubAck { id, code } } else { Packet::PubRec { id, code } },
                        )];
                    }
                }
                if publish.duplicate {
                    assert!(connection.session_present, "DUP on a session that has just begun");
                }
                let seen = self.received.entry(publish.topic).or_default();
                if !seen.contains(&sequence) {
                    seen.push(sequence);
                }
                let Some(id) = publish.id else { return Vec::new() };
                if publish.qos == Qos::ExactlyOnce {
                    let session = self.session.get_or_insert_default();
                    if session.received.insert(id) {
                        let most = if self.version == Version::V311 { 8 } else { usize::MAX };
                        let known = session.doubted || session.moved;
                        assert!(known || session.received.len() <= most, "more than {most} half-way");
                        let first = session.exactly_once.insert(sequence);
                        assert!(first || session.doubted, "message {sequence} arrived twice in one session");
                    }
                    let answer = Packet::PubRec { id, code: 0 };
                    return spoil(&mood, &mut self.spoilt, &mut draw, answer);
                }
                assert!(connection.unanswered.insert(id), "packet id {id} is in use");
                if draw(16) < mood.acks_missing {
                    self.spoilt.missing += 1;
                    return Vec::new();
                }
                let ack = Packet::PubAck { id, code: 0 };
                connection.unanswered.remove(&id);
                connection.open.remove(&id);
                if draw(16) < mood.acks_held {
                    self.spoilt.held += 1;
                    connection.held.push(ack);
                    return Vec::new();
                }
                let mut answers = vec![(now, ack.clone())];
                if draw(16) < mood.acks_doubled {
                    self.spoilt.doubled += 1;
                    answers.push((now, ack));
                }
                answers.extend(connection.held.drain(..).rev().map(|held| (now, held)));
                answers
            }
            Packet::PubRel { id, .. } => {
                let known = self.session.get_or_insert_default().received.remove(&id);
                let code = if known || self.version == Version::V311 { 0 } else { 0x92 };
                let answers = spoil(&mood, &mut self.spoilt, &mut draw, Packet::PubComp { id, code });
                if !answers.is_empty() {
                    connection.open.remove(&id);
                }
                answers
            }
            Packet::Subscribe { id, filters, .. } => {
                let codes = filters.iter().map(|(_, qos)| qos.level()).collect();
                let session = self.session.get_or_insert_default();
                session.filters.extend(filters.into_iter().map(|(filter, _)| filter));
                vec![(now, Packet::SubAck { id, codes })]
            }
            Packet::PubAck { id, .. } => {
                self.acknowledged(id, Qos::AtLeastOnce);
                self.feed()
            }
            Packet::PubRec { id, .. } => {
                let known =
                    self.session.as_mut().and_then(|session| session.outgoing.iter_mut().find(|sent| sent.0 == id));
                if let Some((_, publish, received)) = known {
                    assert_eq!(publish.qos, Qos::ExactlyOnce, "PUBREC for QoS 1");
                    *received = true;
                }
                spoil(&mood, &mut self.spoilt, &mut draw, Packet::PubRel { id, code: 0 })
            }
            Packet::PubComp { id, .. } => {
                self.acknowledged(id, Qos::ExactlyOnce);
                self.feed()
            }
            Packet::PingReq => {
                let mut answers: Vec<_> = connection.held.drain(..).map(|held| (now, held)).collect();
                answers.push((now, Packet::PingResp));
                answers
            }
            Packet::Disconnect(_) => {
                self.end(attempt);
                Vec::new()
            }
            other => panic!("a client never sends {other:?}"),
        }
    }

    /// A command for the client, kept while it is away; `None` when no session wants it.
    pub(crate) fn command(&mut self, sequence: u64, qos: Qos) -> Option<Vec<(Duration, Packet)>> {
        let session = self.session.as_mut().filter(|session| !session.filters.is_empty())?;
        session.waiting.push_back(Publish {
            topic: Arc::from("commands/a"),
            payload: Bytes::copy_from_slice(&sequence.to_be_bytes()),
            qos,
            retain: false,
            duplicate: false,
            id: None,
            properties: PublishProperties::default(),
        });
        Some(self.feed())
    }

    fn acknowledged(&mut self, id: PacketId, qos: Qos) {
        if let Some(session) = self.session.as_mut() {
            session.outgoing.retain(|(sent, publish, received)| {
                // An answer to the second of two PUBRELs may come when its identifier is another message's already.
                !(*sent == id && publish.qos == qos && *received == (qos == Qos::ExactlyOnce))
            });
        }
    }

    /// The connection ended, from either side.
    pub(crate) fn end(&mut self, attempt: u64) {
        let ended = self.connection.take_if(|connection| connection.attempt == attempt);
        let Some(ended) = ended else { return };
        if ended.clean {
            self.session = None;
        }
        if let (Version::V5, Some(session)) = (self.version, self.session.as_mut()) {
            session.ends = self.now.and_then(|now| now.checked_add(ended.expiry));
        }
    }

    pub(crate) fn die(&mut self) {
        self.connection = None;
        self.unread.clear();
        self.mood.down = true;
        if !self.keeps_sessions {
            self.session = None;
        }
    }

    fn feed(&mut self) -> Vec<(Duration, Packet)> {
        let mut sent = Vec::new();
        let (Some(session), Some(_)) = (self.session.as_mut(), self.connection.as_ref()) else { return sent };
        while session.outgoing.len() < 10 {
            let Some(mut publish) = session.waiting.pop_front() else { break };
            session.next = session.next % 30 + 1;
            let Some(id) = PacketId::new(session.next).filter(|id| session.outgoing.iter().all(|sent| sent.0 != *id))
            else {
                session.waiting.push_front(publish);
                break;
            };
            publish.id = Some(id);
            session.outgoing.push((id, publish.clone(), false));
            sent.push((Duration::ZERO, Packet::Publish(publish)));
        }
        sent
    }
}

/// An answer of QoS 2, which may be missing or come twice.
fn spoil(
    mood: &Mood,
    spoilt: &mut Spoilt,
    draw: &mut impl FnMut(u64) -> u64,
    answer: Packet,
) -> Vec<(Duration, Packet)> {
    if draw(16) < mood.acks_missing {
        spoilt.missing += 1;
        return Vec::new();
    }
    let twice = draw(16) < mood.acks_doubled;
    spoilt.doubled += u64::from(twice);
    vec![(Duration::ZERO, answer); 1 + usize::from(twice)]
}

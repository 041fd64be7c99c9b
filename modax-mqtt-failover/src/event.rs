//! Things that happened, the state now, and the counters.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{broker::Broker, reason::Rejection};

/// Something that happened. Never holds a payload or a password.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A broker accepted us.
    Connected {
        /// Which one.
        broker: Broker,
        /// Whether it still had our session.
        session_present: bool,
        /// How long there was no connection; `None` for the first one.
        outage: Option<Duration>,
    },
    /// An established connection ended.
    Disconnected {
        /// To which broker.
        broker: Broker,
        /// Why.
        reason: String,
    },
    /// A broker is late; it is being probed.
    Suspected {
        /// Which one.
        broker: Broker,
        /// What is missing.
        reason: String,
    },
    /// Another broker took over.
    FailedOver {
        /// The one that was left.
        from: Option<Broker>,
        /// The one that serves us.
        to: Broker,
        /// From the first unanswered packet (or the break itself) to the verdict.
        detected: Duration,
        /// From the same moment to the acceptance by the next broker.
        outage: Duration,
    },
    /// A more preferred broker works again and serves us; nothing had failed.
    FailedBack {
        /// The one that was left.
        from: Broker,
        /// The one that serves us.
        to: Broker,
        /// How long nothing new was sent: what was on its way was waited for.
        gap: Duration,
    },
    /// The way back to a more preferred broker did not come about; the present one serves on.
    NotFailedBack {
        /// The one that was meant.
        to: Broker,
        /// Why.
        reason: String,
    },
    /// The silent session on another broker stands ([`Standby::Probe`](crate::Standby)).
    StandbyReady {
        /// Which one.
        broker: Broker,
    },
    /// The silent session on another broker ended, or cannot stand; it is tried again, elsewhere too.
    StandbyLost {
        /// Which one.
        broker: Broker,
        /// Why.
        reason: String,
    },
    /// One attempt to connect failed.
    ConnectFailed {
        /// To which broker.
        broker: Broker,
        /// Why.
        reason: String,
    },
    /// A broker refused us for a reason that a person has to mend; it is tried again once a minute.
    Parked {
        /// Which one.
        broker: Broker,
        /// Why.
        reason: String,
    },
    /// Another client uses our identity: brokers close our connection soon after accepting it, again and again.
    /// From here on there is one try after 4 s, then after 8 s, and so on up to one each 30 s. Three times within 30 s are
    /// enough, or 10 with MQTT 5 before a broker that does not say who took over, as it should.
    DuplicateClientId {
        /// Where it was seen last.
        broker: Broker,
        /// How often within 30 s.
        takeovers: u32,
    },
    /// A broker refused a filter that had been granted before, for a reason that [may pass](crate::Reason::is_transient), or
    /// takes none of its kind (wildcards, a shared group, so long a filter) where another one did. The stream stays and gets a
    /// [`GapReason::RefusedForNow`](crate::GapReason) now and when it is granted again; the event comes once until then. The
    /// next broker is asked at once. This one is asked again after 1 s, 2 s and so on, each 64 s in the end and for ever, but
    /// not for a kind that it takes none of.
    SubscriptionPostponed {
        /// Which filter.
        filter: String,
        /// The broker's code; [`Reason::new`](crate::Reason::new) names it.
        code: u8,
    },
    /// A broker refused a filter at its first time, or for good; its stream ends with a
    /// [`GapReason::Refused`](crate::GapReason).
    SubscriptionRefused {
        /// Which filter.
        filter: String,
        /// The broker's code; [`Reason::new`](crate::Reason::new) names it.
        code: u8,
    },
    /// A broker grants less than was asked for. Said once a connection where it takes no messages of the level asked for;
    /// those are [rejected](crate::Rejection::Qos).
    QosLowered {
        /// Which filter; `None` where messages to publish are meant.
        filter: Option<String>,
        /// The level asked for.
        requested: u8,
        /// The level granted.
        granted: u8,
    },
    /// A message was refused by a broker, or not given to one that takes no such message.
    Rejected {
        /// Its topic.
        topic: String,
        /// Why.
        reason: Rejection,
    },
    /// The message of `on_connect` was refused by a broker, or not given to one that takes no such message.
    AnnouncementRefused {
        /// Why.
        reason: Rejection,
    },
    /// Connection after connection ended while this message, the oldest on its way, waited for an answer; said at the
    /// 3rd, 6th, 12th… time. A broker of MQTT 3.1.1 that does not take a message (too large, its QoS, its topic) can only
    /// close the connection. What follows is in the crate's section *A message on which brokers close the connection*: it is
    /// [`Rejected`](Self::Rejected), or sent again until it expires where a broker that works badly looks the same.
    MessageStuck {
        /// Its topic.
        topic: String,
        /// How often it was sent.
        attempts: u32,
    },
    /// A broker sent a QoS 2 message, not marked as a copy, under the packet identifier of one that it has not released.
    /// MQTT lets a client see nothing but a copy in it (4.3.3), so it is not delivered: unless it is a copy whose mark is
    /// missing, **the broker has lost a message**, and may go on to lose more. Said once a connection. The readers of its topic
    /// have a [`GapReason::PacketIdReused`](crate::GapReason) for each stretch of them, and
    /// [`Stats::reused_ids`](crate::Stats) counts all.
    ///
    /// mosquitto 2.0 does this where `max_inflight_messages` is 0 and more than 65,535 QoS 2 messages are on their way to one
    /// slow reader. Its default of 20, or QoS 1, prevents it.
    PacketIdReused {
        /// Which broker.
        broker: Broker,
        /// The packet identifier.
        id: u16,
    },
    /// A message was dropped from a full queue by its policy.
    Shed {
        /// Its topic.
        topic: String,
    },
    /// A message was given up because its time to live ended.
    Expired {
        /// Its topic.
        topic: String,
    },
    /// A connection ended while this message of QoS 0 was being written, and nobody can say how much of it arrived. It is not
    /// sent again: QoS 0 is at most once.
    Undelivered {
        /// Its topic.
        topic: String,
    },
    /// A message that the broker had for our session was acknowledged and given to nobody: no filter of ours wants it, as where
    /// an earlier program of this client id asked for it. [`Stats::unmatched`] counts these, those of QoS 0, and what a
    /// dropped stream had not handed out.
    Unmatched {
        /// Its topic.
        topic: String,
    },
    /// Some of the disk queue's files could not be read when it was opened; said once, before anything else. What stood there is
    /// lost, or comes again where it was an outcome; every other message is sent. The file goes when all in it has its outcome:
    /// [`disk::salvage`](crate::disk::salvage), or a copy, has to come before the start.
    QueueDamaged {
        /// How many: as [`Stats::damaged`].
        stretches: u64,
        /// How long they are together.
        bytes: u64,
    },
    /// The disk queue found no room to write that messages have their outcome: were the process to end now, the next
    /// start would send them again. Said when it begins; [`Stats::unwritten`] counts them until they are written.
    OutcomesUnwritten {
        /// How many.
        messages: usize,
    },
    /// A broker answers probes promptly and does not acknowledge.
    BrokerSlow {
        /// Which one.
        broker: Broker,
    },
    /// A certificate or key file has changed; dials from here on use the new one.
    CertificatesReloaded,
    /// A certificate or key file has changed and cannot be used; dials go on with what was read before.
    CertificatesRefused {
        /// Which file, and what is wrong with it.
        reason: String,
    },
    /// The reader of this stream was too slow.
    Lagged {
        /// Events it missed.
        missed: u64,
    },
    /// The client ended; nothing follows.
    Closed,
}

/// The state now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Status {
    /// The broker that serves us.
    pub connected: Option<Broker>,
    /// Whether it still had our session when it accepted us.
    pub session_present: bool,
    /// When this state began.
    pub since: Option<Instant>,
}

impl Status {
    /// Whether a broker serves us.
    #[must_use]
    pub const fn is_connected(&self) -> bool {
        self.connected.is_some()
    }
}

/// Counters since the start, and four levels now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Messages admitted; with a queue on disk, once they are written. One that a disk refuses is none, unless it came by
    /// [`try_publish`](crate::Client::try_publish): then it counts here and as undelivered.
    pub admitted: u64,
    /// Messages a broker acknowledged (QoS 0: written).
    pub acked: u64,
    /// PUBLISH packets that were sent again.
    pub resent: u64,
    /// Messages given up because their time to live ended.
    pub expired: u64,
    /// Messages dropped from a full queue by its policy.
    pub shed: u64,
    /// Messages refused, by a broker or because they could not be encoded.
    pub rejected: u64,
    /// Messages left undelivered by `close`, those of QoS 0 whose connection ended while they were being written, and those
    /// of `try_publish` that the disk refused.
    pub undelivered: u64,
    /// Messages received from brokers.
    pub received: u64,
    /// Received messages that matched no subscription, or whose stream was dropped before it handed them out;
    /// acknowledged and dropped.
    pub unmatched: u64,
    /// QoS 0 messages dropped because their reader was too slow.
    pub overflowed: u64,
    /// Acknowledgements from the program that came after their connection had ended.
    pub late_acks: u64,
    /// Acknowledgements from brokers that belong to nothing we sent on this connection.
    pub stray_acks: u64,
    /// QoS 2 messages that were not delivered because the broker sent them under the packet identifier of another one; see
    /// [`Event::PacketIdReused`].
    pub reused_ids: u64,
    /// Connections that were accepted.
    pub connects: u64,
    /// Attempts that failed.
    pub connect_failures: u64,
    /// Times another broker took over.
    pub failovers: u64,
    /// Times we went back to a more preferred broker.
    pub failbacks: u64,
    /// Stretches of the disk queue's files that could not be read when it was opened; all other messages were. A write that a
    /// crash cut short is none: nobody was told that it was on disk.
    pub damaged: u64,
    /// Messages with an outcome that the disk queue could not write down yet: after a crash they would be sent again.
    pub unwritten: usize,
    /// Messages in the queue now, in flight included.
    pub queue_messages: usize,
    /// What they cost, in bytes.
    pub queue_bytes: usize,
    /// Messages sent or to be sent again, without an outcome.
    pub inflight: usize,
}

/// Why a reader may have missed messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum GapReason {
    /// The broker did not have our session, so it kept nothing for us.
    SessionLost,
    /// Another broker serves us; what the old one held for us stays there.
    BrokerChanged,
    /// The link broke, and for QoS 0 a broker keeps nothing.
    Reconnected,
    /// The reader was so slow that QoS 0 messages had to be dropped.
    Overflowed,
    /// The broker sent a QoS 2 message under the packet identifier of another one; see [`Event::PacketIdReused`]. Told again
    /// only once something was delivered in between.
    PacketIdReused,
    /// A broker refuses the filter that another one, or itself, had granted, or grants it again.
    RefusedForNow {
        /// The broker's code.
        code: u8,
    },
    /// The broker refused the filter; the stream ends.
    Refused {
        /// The broker's code.
        code: u8,
    },
}

/// A filter with the topic shared, as the machines pass it around.
pub(crate) type Filter = Arc<str>;

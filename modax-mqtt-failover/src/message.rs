//! What is published, and what became of it.

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;

use crate::{
    broker::Broker,
    packet::{Publish, Qos},
    properties::UserProperties,
    reason::Rejection,
};

/// Our own identity of a message, in order of admission. Packet identifiers belong to a session and are reused; this
/// one is not, as long as the client lives, nor while a queue on disk holds the message. A start that finds its queue empty
/// counts from 0 again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageId(u64);

impl MessageId {
    /// The identity with this number.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number; one client's only ever grow.
    #[must_use]
    pub const fn number(self) -> u64 {
        self.0
    }
}

/// A message to publish.
///
/// ```
/// # use modax_mqtt_failover::Message;
/// # use std::time::Duration;
/// let reading = Message::new("plant/press/temperature", "21.5").at_least_once().expires_in(Duration::from_secs(60));
/// assert_eq!(reading.topic(), "plant/press/temperature");
/// ```
#[derive(Clone, PartialEq, Eq)]
#[must_use]
pub struct Message {
    pub(crate) topic: Arc<str>,
    pub(crate) payload: Bytes,
    pub(crate) qos: Qos,
    pub(crate) retained: bool,
    pub(crate) expires_in: Option<Duration>,
    pub(crate) user_properties: UserProperties,
}

impl Message {
    /// A message with QoS 1 ([`Qos::AtLeastOnce`]: the lowest level at which a broker says that it has it), not
    /// retained, that never expires.
    pub fn new(topic: impl Into<String>, payload: impl Into<Bytes>) -> Self {
        Self {
            topic: Arc::from(topic.into()),
            payload: payload.into(),
            qos: Qos::AtLeastOnce,
            retained: false,
            expires_in: None,
            user_properties: UserProperties::default(),
        }
    }

    /// QoS 0: no acknowledgement, so a break at the wrong moment loses it.
    pub fn at_most_once(self) -> Self {
        self.qos(Qos::AtMostOnce)
    }

    /// QoS 1, the default.
    pub fn at_least_once(self) -> Self {
        self.qos(Qos::AtLeastOnce)
    }

    /// QoS 2: once within one session of one broker; where a session is lost, or another independent broker takes over,
    /// it may arrive twice.
    pub fn exactly_once(self) -> Self {
        self.qos(Qos::ExactlyOnce)
    }

    /// Any level; default 1: losing is a decision of the caller's, and 2 costs two more packets.
    pub fn qos(mut self, qos: Qos) -> Self {
        self.qos = qos;
        self
    }

    /// Asks the broker to keep it for subscribers to come; default: not, because what is kept is given to everybody later.
    pub fn retained(mut self) -> Self {
        self.retained = true;
        self
    }

    /// Gives it up when it could not be sent within this time of its admission; default: never, because losing is a
    /// decision of the caller's. With a queue on disk that hangs, `publish` waits longer than that: as long as the disk does.
    ///
    /// Clocks that are set do not matter while the process runs. What a [disk queue](crate::Queue::disk) keeps for the next
    /// start expires by the wall clock, the only one that both of them have: where it was set in between, by an hour say, the
    /// message expires that hour sooner, or later. The receipt of [`Client::recovered`](crate::Client::recovered) tells it.
    pub fn expires_in(mut self, time: Duration) -> Self {
        self.expires_in = Some(time);
        self
    }

    /// Adds a user property: a name and a value beside the payload, which brokers hand on unchanged. A name may stand
    /// there twice. Needs MQTT 5: a client of 3.1.1 refuses the message
    /// ([`PublishError::NeedsVersion5`](crate::PublishError)), because dropping what was asked for would be silent.
    pub fn user_property(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.user_properties.push(name, value);
        self
    }

    /// Its user properties.
    #[must_use]
    pub const fn user_properties(&self) -> &UserProperties {
        &self.user_properties
    }

    /// Where it goes.
    #[must_use]
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// What it says.
    #[must_use]
    pub fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// Bytes it counts for in the queue: topic, payload and user properties plus a fixed share for bookkeeping.
    #[must_use]
    pub fn cost_bytes(&self) -> usize {
        let carried = self.payload.len().saturating_add(self.user_properties.encoded_bytes());
        self.topic.len().saturating_add(carried).saturating_add(Self::OVERHEAD_BYTES)
    }

    /// What one queued message costs beside its own bytes, measured roughly and rounded up.
    pub(crate) const OVERHEAD_BYTES: usize = 128;

    /// What one that arrived costs in memory, roughly.
    pub(crate) fn held_bytes(publish: &Publish) -> usize {
        let texts = publish.topic.len().saturating_add(publish.properties.user.held_bytes());
        texts.saturating_add(publish.payload.len()).saturating_add(Self::OVERHEAD_BYTES)
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("topic", &self.topic)
            .field("payload_bytes", &self.payload.len())
            .field("qos", &self.qos)
            .field("retained", &self.retained)
            .field("expires_in", &self.expires_in)
            .field("user_properties", &self.user_properties)
            .finish()
    }
}

/// What became of a message that was admitted.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// A broker has it (QoS 0: it was written to the socket, which is all that can be known).
    Acked {
        /// Which one.
        broker: Broker,
        /// How many times it was sent, from 1.
        attempts: u32,
        /// From admission to acknowledgement.
        latency: Duration,
    },
    /// Its time to live ended first.
    Expired {
        /// Whether it had been sent, so that a broker may have it all the same; always true of what a disk queue brought from
        /// an earlier process, which may have sent it.
        maybe_delivered: bool,
    },
    /// Dropped from a full queue by its policy; this process never sent it.
    Shed,
    /// The broker refused it, or takes no such message. What comes after it goes on. Whether publishing it again may help
    /// says [`Rejection::is_transient`]: a broker over its quota (0x97) rejects too, because to wait for it would hold up
    /// everything behind.
    Rejected {
        /// Why; shows as a sentence.
        reason: Rejection,
        /// Whether it had been sent before and got no answer, so that a broker may have it all the same; always true of what
        /// a disk queue brought from an earlier process, which may have sent it.
        maybe_delivered: bool,
    },
    /// The client was closed, or its runtime ended, first; or its connection ended while it was being written (QoS 0, which
    /// is not sent again).
    Undelivered {
        /// Whether it had been sent, so that a broker may have it all the same; always true of what a disk queue brought from
        /// an earlier process, which may have sent it.
        maybe_delivered: bool,
    },
}

impl Outcome {
    /// Whether a broker acknowledged it.
    #[must_use]
    pub const fn is_acked(&self) -> bool {
        matches!(self, Self::Acked { .. })
    }
}

/// A message that [`close`](crate::Client::close) could not deliver.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Undelivered {
    /// Where it was to go.
    pub topic: String,
    /// What it says.
    pub payload: Bytes,
    /// Whether it had been sent, so that a broker may have it all the same; always true of what a disk queue brought from
    /// an earlier process, which may have sent it.
    pub maybe_delivered: bool,
}

impl fmt::Debug for Undelivered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Undelivered")
            .field("topic", &self.topic)
            .field("payload_bytes", &self.payload.len())
            .field("maybe_delivered", &self.maybe_delivered)
            .finish()
    }
}

/// What [`close`](crate::Client::close) leaves behind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Closed {
    /// Everything admitted and not acknowledged, in order of admission. QoS 0 messages that were on their way on a connection
    /// which broke, or ended with the close, have their outcome alone.
    pub undelivered: Vec<Undelivered>,
}

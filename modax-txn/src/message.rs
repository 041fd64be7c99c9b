//! What is to be sent: identity, destination, key, payload.
//!
//! A message gets its identity from the client, never from a sequence of the database: after an
//! asynchronous failover the sequence hands out the same numbers again, and an inbox that knew them
//! would drop new messages as duplicates.

use std::{collections::BTreeMap, fmt, str::FromStr, time::Duration};

use bytes::Bytes;
use uuid::Uuid;

/// Longest topic or key, in bytes: what MQTT can carry as one string.
pub const MAX_NAME_BYTES: usize = 65_535;
/// Largest payload, in bytes: 1 MiB, because a relay holds a window of them in memory.
pub const MAX_PAYLOAD_BYTES: usize = 1024 * 1024;
/// Most headers of one message.
pub const MAX_HEADERS: usize = 64;
/// Longest idempotency key, in bytes: fits a B-tree page of PostgreSQL with room to spare.
pub const MAX_IDEMPOTENCY_KEY_BYTES: usize = 512;
/// Longest `expires_in`: about a hundred years, far inside what PostgreSQL can add to a timestamp.
const MAX_EXPIRES_IN: Duration = Duration::from_secs(100 * 366 * 24 * 3600);

/// Identity of one message, made by the client: a UUID of version 7, which carries its time.
///
/// The time is the producer's wall clock in milliseconds; [`Inbox`](crate::Inbox) uses it to tell a
/// message that is too old to be judged, never to order messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageId(Uuid);

impl MessageId {
    /// Makes an identity from a time (milliseconds since 1970) and ten random bytes.
    #[must_use]
    pub const fn from_parts(unix_millis: u64, random: &[u8; 10]) -> Self {
        Self(uuid::Builder::from_unix_timestamp_millis(unix_millis, random).into_uuid())
    }

    /// Takes over an identity made elsewhere. Any UUID will do; only version 7 carries a time.
    #[must_use]
    pub const fn from_uuid(uuid: Uuid) -> Self {
        Self(uuid)
    }

    /// The UUID.
    #[must_use]
    pub const fn as_uuid(&self) -> &Uuid {
        &self.0
    }

    /// When the identity was made, in milliseconds since 1970; `None` if it is not of version 7.
    #[must_use]
    pub fn unix_millis(&self) -> Option<u64> {
        if self.0.get_version_num() != 7 {
            return None;
        }
        u64::try_from(self.0.as_u128() >> 80).ok()
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// The text is not a UUID.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a message id: expected a UUID")]
pub struct ParseMessageIdError(());

impl FromStr for MessageId {
    type Err = ParseMessageIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Uuid::parse_str(text).map(Self).map_err(|_| ParseMessageIdError(()))
    }
}

#[cfg(feature = "serde")]
impl serde::Serialize for MessageId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(feature = "serde")]
impl<'de> serde::Deserialize<'de> for MessageId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// The caller's own name for a request; the same name means the same request.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IdempotencyKey(String);

impl IdempotencyKey {
    /// Checks and wraps a key: 1 to 512 bytes, no NUL.
    ///
    /// # Errors
    /// [`InvalidMessage::IdempotencyKey`] when it is empty, too long or contains NUL.
    pub fn new(key: impl Into<String>) -> Result<Self, InvalidMessage> {
        let key = key.into();
        if key.is_empty() || key.len() > MAX_IDEMPOTENCY_KEY_BYTES || key.contains('\0') {
            return Err(InvalidMessage::IdempotencyKey { bytes: key.len() });
        }
        Ok(Self(key))
    }

    /// The key as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for IdempotencyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a message cannot be written to the outbox. The message is the caller's to mend: none of these passes by itself.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidMessage {
    /// The topic is empty, too long, or holds NUL or a wildcard (`+`, `#`), which no publish may carry (MQTT 3.1.1, 3.3.2.1).
    #[error("topic of {bytes} bytes is empty, too long, or holds NUL, `+` or `#`")]
    Topic {
        /// Its length.
        bytes: usize,
    },
    /// The key is empty, too long, or holds NUL. A message without order has no key at all.
    #[error("key of {bytes} bytes is empty, too long, or holds NUL")]
    Key {
        /// Its length.
        bytes: usize,
    },
    /// The payload is larger than [`MAX_PAYLOAD_BYTES`].
    #[error("payload of {bytes} bytes is above the limit of {MAX_PAYLOAD_BYTES}")]
    Payload {
        /// Its length.
        bytes: usize,
    },
    /// There are too many headers, or one is too long, has no name, or holds NUL.
    #[error("headers: more than {MAX_HEADERS}, or one without a name, too long, or with NUL")]
    Headers,
    /// The idempotency key is empty, too long, or holds NUL.
    #[error("idempotency key of {bytes} bytes is empty, longer than {MAX_IDEMPOTENCY_KEY_BYTES}, or holds NUL")]
    IdempotencyKey {
        /// Its length.
        bytes: usize,
    },
    /// `expires_in` is zero or longer than a hundred years.
    #[error("expires_in of {0:?} is zero or longer than a hundred years")]
    ExpiresIn(Duration),
}

/// A message to be written to the outbox.
///
/// ```
/// use std::time::Duration;
/// use modax_txn::Message;
///
/// let message = Message::to("modax/control/commands")
///     .key("ESP32_FIELD_001")
///     .payload(&b"{\"command\":\"stop\"}"[..])
///     .expires_in(Duration::from_secs(5));
/// # assert_eq!(message.topic(), "modax/control/commands");
/// ```
#[derive(Clone, PartialEq, Eq)]
#[must_use = "a message does nothing until it is enqueued"]
pub struct Message {
    pub(crate) id: Option<MessageId>,
    pub(crate) topic: String,
    pub(crate) key: Option<String>,
    pub(crate) payload: Bytes,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) idempotency_key: Option<String>,
    pub(crate) expires_in: Option<Duration>,
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("id", &self.id)
            .field("topic", &self.topic)
            .field("key", &self.key)
            .field("payload_bytes", &self.payload.len())
            .field("expires_in", &self.expires_in)
            .finish_non_exhaustive()
    }
}

impl Message {
    /// A message without payload or key to `topic`. Nothing is checked before it is enqueued.
    pub fn to(topic: impl Into<String>) -> Self {
        Self {
            id: None,
            topic: topic.into(),
            key: None,
            payload: Bytes::new(),
            headers: BTreeMap::new(),
            idempotency_key: None,
            expires_in: None,
        }
    }

    /// Sets the identity, for a caller that wants to know it before the insert or makes it elsewhere. Default: made when enqueued.
    pub fn id(mut self, id: MessageId) -> Self {
        self.id = Some(id);
        self
    }

    /// Messages of one key are delivered in their order; across keys there is none. Default: no key, no order.
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Sets the payload, at most [`MAX_PAYLOAD_BYTES`]. Default: empty.
    pub fn payload(mut self, payload: impl Into<Bytes>) -> Self {
        self.payload = payload.into();
        self
    }

    /// Sets the payload to `value` as JSON.
    ///
    /// # Errors
    /// Whatever `value`'s own serialization reports.
    #[cfg(feature = "serde")]
    #[cfg_attr(docsrs, doc(cfg(feature = "serde")))]
    pub fn json<T: serde::Serialize + ?Sized>(self, value: &T) -> Result<Self, serde_json::Error> {
        let text = serde_json::to_vec(value)?;
        Ok(self.payload(text))
    }

    /// The same key enqueues once: a repeat writes nothing and answers with the first message's id
    /// ([`EnqueueReceipt::is_duplicate`](crate::EnqueueReceipt::is_duplicate)), for as long as the row is kept.
    /// Default: no key, each call enqueues one.
    pub fn idempotency_key(mut self, key: impl Into<String>) -> Self {
        self.idempotency_key = Some(key.into());
        self
    }

    /// The message is not published once this time has passed since it was enqueued (by the database's clock).
    /// Default: never. It is checked again just before publishing.
    pub fn expires_in(mut self, expires_in: Duration) -> Self {
        self.expires_in = Some(expires_in);
        self
    }

    /// Adds a header, which the sink may carry (a trace parent, a content type). The last one of a name wins.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.insert(name.into(), value.into());
        self
    }

    /// The topic.
    #[must_use]
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// Checks everything the database or an MQTT broker would refuse later.
    ///
    /// # Errors
    /// The first fault found.
    pub fn validate(&self) -> Result<(), InvalidMessage> {
        let topic = &self.topic;
        if !is_name(topic) || topic.contains(['+', '#']) {
            return Err(InvalidMessage::Topic { bytes: topic.len() });
        }
        if let Some(key) = &self.key
            && !(is_name(key) && key.len() <= MAX_KEY_BYTES)
        {
            return Err(InvalidMessage::Key { bytes: key.len() });
        }
        if self.payload.len() > MAX_PAYLOAD_BYTES {
            return Err(InvalidMessage::Payload { bytes: self.payload.len() });
        }
        let sound =
            |(name, value): (&String, &String)| is_name(name) && value.len() <= MAX_NAME_BYTES && !value.contains('\0');
        if self.headers.len() > MAX_HEADERS || !self.headers.iter().all(sound) {
            return Err(InvalidMessage::Headers);
        }
        if let Some(key) = &self.idempotency_key {
            IdempotencyKey::new(key.as_str())?;
        }
        if let Some(expires_in) = self.expires_in
            && (expires_in.is_zero() || expires_in > MAX_EXPIRES_IN)
        {
            return Err(InvalidMessage::ExpiresIn(expires_in));
        }
        Ok(())
    }
}

/// Longest key, in bytes: it stands in an index (parked keys), whose rows PostgreSQL limits to about 2,700 bytes.
pub const MAX_KEY_BYTES: usize = 1024;

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.len() <= MAX_NAME_BYTES && !text.contains('\0')
}

/// A message on its way to the [`Sink`](crate::Sink).
#[derive(Clone)]
#[non_exhaustive]
pub struct OutgoingMessage {
    /// Its identity: the same in every repetition. Receivers that remember it act once.
    pub id: MessageId,
    /// Where to.
    pub topic: String,
    /// What it is ordered by, if anything.
    pub key: Option<String>,
    /// What it says.
    pub payload: Bytes,
    /// What the producer added.
    pub headers: BTreeMap<String, String>,
    /// How long ago it was enqueued, by the database's clock, when this attempt began.
    pub age: Duration,
    /// How long it may still be published; `None`: for ever. A sink that queues must pass this on.
    pub expires_in: Option<Duration>,
    /// Which attempt this is, from 1.
    pub attempt: u32,
    /// The relay's term. It never falls among the first receipts of one key, as long as the database does not fall back behind it.
    pub epoch: u64,
}

impl OutgoingMessage {
    /// A message as a test of a sink or of the state machine wants it: everything but these two is empty; the fields are public.
    #[must_use]
    pub fn new(id: MessageId, topic: impl Into<String>) -> Self {
        Self {
            id,
            topic: topic.into(),
            key: None,
            payload: Bytes::new(),
            headers: BTreeMap::new(),
            age: Duration::ZERO,
            expires_in: None,
            attempt: 1,
            epoch: 0,
        }
    }
}

impl fmt::Debug for OutgoingMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutgoingMessage")
            .field("id", &self.id)
            .field("topic", &self.topic)
            .field("key", &self.key)
            .field("payload_bytes", &self.payload.len())
            .field("age", &self.age)
            .field("expires_in", &self.expires_in)
            .field("attempt", &self.attempt)
            .field("epoch", &self.epoch)
            .finish_non_exhaustive()
    }
}

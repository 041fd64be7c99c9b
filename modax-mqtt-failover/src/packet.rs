//! Control packets as the session sees them, the same for MQTT 3.1.1 and 5.
//!
//! `driver/wire.rs` converts from and to the codec, so that the session is written once and builds without a runtime.

use std::{fmt, num::NonZeroU16, sync::Arc};

use bytes::Bytes;

use crate::{properties::UserProperties, reason::Reason};

/// Which MQTT is spoken; all brokers of one client speak the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// MQTT 3.1.1, the default: every broker speaks it.
    #[default]
    V311,
    /// MQTT 5: reasons, limits, expiry, user properties.
    V5,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V311 => "MQTT 3.1.1",
            Self::V5 => "MQTT 5",
        })
    }
}

/// How hard a broker and a client try to hand over one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Qos {
    /// Sent once; lost when the link breaks at the wrong moment.
    AtMostOnce,
    /// Sent until acknowledged; may arrive twice.
    AtLeastOnce,
    /// Arrives once within one session of one broker.
    ExactlyOnce,
}

impl Qos {
    /// The level as the number on the wire: 0, 1 or 2.
    #[must_use]
    pub const fn level(self) -> u8 {
        match self {
            Self::AtMostOnce => 0,
            Self::AtLeastOnce => 1,
            Self::ExactlyOnce => 2,
        }
    }

    /// The level with this number on the wire, if there is one.
    #[must_use]
    pub const fn from_level(level: u8) -> Option<Self> {
        match level {
            0 => Some(Self::AtMostOnce),
            1 => Some(Self::AtLeastOnce),
            2 => Some(Self::ExactlyOnce),
            _ => None,
        }
    }
}

/// A packet identifier: 1 to 65535. Zero does not exist on the wire (MQTT 3.1.1, 2.3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PacketId(NonZeroU16);

impl PacketId {
    /// The first identifier of a session.
    pub const FIRST: Self = Self(NonZeroU16::MIN);

    /// The identifier with this number, unless it is zero.
    #[must_use]
    pub const fn new(number: u16) -> Option<Self> {
        match NonZeroU16::new(number) {
            Some(number) => Some(Self(number)),
            None => None,
        }
    }

    /// The number on the wire.
    #[must_use]
    pub const fn number(self) -> u16 {
        self.0.get()
    }

    /// The identifier after this one; 1 follows 65535.
    #[must_use]
    pub const fn following(self) -> Self {
        match self.0.checked_add(1) {
            Some(number) => Self(number),
            None => Self::FIRST,
        }
    }
}

impl fmt::Display for PacketId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a client says first.
#[derive(Clone, PartialEq, Eq)]
pub struct Connect {
    /// Identity of the session on the broker.
    pub client_id: Arc<str>,
    /// Whether an older session under this identity is thrown away. In 3.1.1 this one then ends with the connection; in
    /// 5 (Clean Start) `session_expiry_seconds` says that alone.
    pub clean_session: bool,
    /// How long the broker keeps the session after the connection (MQTT 5 only).
    pub session_expiry_seconds: u32,
    /// QoS 1 and 2 messages the broker may send without an answer (MQTT 5 only).
    pub receive_maximum: u16,
    /// The largest packet the broker may send; `None` for any (MQTT 5 only).
    pub max_packet_bytes: Option<u32>,
    /// Seconds after which the broker may give the client up; 0 switches that off.
    pub keep_alive_seconds: u16,
    /// User name and password.
    pub credentials: Option<Credentials>,
    /// What the broker publishes when the connection ends without a DISCONNECT.
    pub will: Option<Publish>,
    /// How long it waits with that for us to come back (MQTT 5 only).
    pub will_delay_seconds: u32,
}

impl fmt::Debug for Connect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connect")
            .field("client_id", &self.client_id)
            .field("clean_session", &self.clean_session)
            .field("keep_alive_seconds", &self.keep_alive_seconds)
            .finish_non_exhaustive()
    }
}

/// User name and password; neither is ever shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    user: Arc<str>,
    password: Arc<str>,
}

impl Credentials {
    /// Keeps the pair.
    #[must_use]
    pub fn new(user: impl Into<Arc<str>>, password: impl Into<Arc<str>>) -> Self {
        Self { user: user.into(), password: password.into() }
    }

    /// The user name, for the CONNECT packet.
    #[must_use]
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The password, for the CONNECT packet.
    #[must_use]
    pub fn password(&self) -> &str {
        &self.password
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(…)")
    }
}

/// One application message on the wire.
#[derive(Clone, PartialEq, Eq)]
pub struct Publish {
    /// Where it goes.
    pub topic: Arc<str>,
    /// What it says.
    pub payload: Bytes,
    /// Level of this hop.
    pub qos: Qos,
    /// Whether the broker keeps it, or kept it.
    pub retain: bool,
    /// Whether it may have been sent before.
    pub duplicate: bool,
    /// Present for QoS 1 and 2.
    pub id: Option<PacketId>,
    /// What MQTT 5 carries beside; empty in 3.1.1.
    pub properties: PublishProperties,
}

/// What MQTT 5 carries beside a message, as far as this crate uses it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PublishProperties {
    /// Names and values.
    pub user: UserProperties,
    /// Seconds after which the broker may drop it.
    pub expiry_seconds: Option<u32>,
}

impl Publish {
    /// Size of the whole packet in MQTT 5.
    #[must_use]
    pub fn encoded_bytes(&self) -> usize {
        let properties = self.properties.encoded_bytes();
        let id = if self.id.is_some() { 2 } else { 0 };
        let parts = [2, self.topic.len(), id, varint_bytes(properties), properties, self.payload.len()];
        let remaining = parts.into_iter().fold(0, usize::saturating_add);
        remaining.saturating_add(varint_bytes(remaining)).saturating_add(1)
    }
}

impl PublishProperties {
    /// Their length on the wire, without that length's own bytes.
    #[must_use]
    pub fn encoded_bytes(&self) -> usize {
        let expiry = if self.expiry_seconds.is_some() { 5 } else { 0 };
        self.user.encoded_bytes().saturating_add(expiry)
    }
}

/// Bytes of a variable byte integer (MQTT 5, 1.5.5).
pub(crate) const fn varint_bytes(number: usize) -> usize {
    match number {
        0..0x80 => 1,
        0x80..0x4000 => 2,
        0x4000..0x20_0000 => 3,
        _ => 4,
    }
}

impl fmt::Debug for Publish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publish")
            .field("topic", &self.topic)
            .field("payload_bytes", &self.payload.len())
            .field("qos", &self.qos)
            .field("retain", &self.retain)
            .field("duplicate", &self.duplicate)
            .field("id", &self.id)
            .field("properties", &self.properties)
            .finish()
    }
}

/// What a broker says in CONNACK that it takes (MQTT 5). The default is no limit, as in 3.1.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// QoS 1 and 2 messages it takes without having answered.
    pub receive_maximum: u16,
    /// The highest level it takes.
    pub max_qos: Qos,
    /// Whether it keeps retained messages.
    pub retain_available: bool,
    /// Whether it takes filters with wildcards.
    pub wildcards_available: bool,
    /// Whether it takes shared subscriptions.
    pub shared_available: bool,
    /// The largest packet it takes.
    pub max_packet_bytes: Option<u32>,
    /// The keep-alive it wants instead of ours.
    pub keep_alive_seconds: Option<u16>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            receive_maximum: u16::MAX,
            max_qos: Qos::ExactlyOnce,
            retain_available: true,
            wildcards_available: true,
            shared_available: true,
            max_packet_bytes: None,
            keep_alive_seconds: None,
        }
    }
}

/// A broker's answer to CONNECT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConnectCode {
    /// Welcome.
    Accepted,
    /// The broker does not speak this version.
    ProtocolVersion,
    /// The client identity is not allowed.
    ClientId,
    /// Not now.
    Unavailable,
    /// Wrong user name or password.
    Credentials,
    /// Known, but not allowed.
    NotAuthorised,
    /// Any other reason of MQTT 5.
    Refused(Reason),
}

impl ConnectCode {
    /// Whether trying again without a change by a person may help.
    #[must_use]
    pub const fn is_transient(self) -> bool {
        match self {
            Self::Accepted | Self::Unavailable => true,
            Self::ProtocolVersion | Self::ClientId | Self::Credentials | Self::NotAuthorised => false,
            Self::Refused(reason) => reason.is_transient(),
        }
    }
}

impl fmt::Display for ConnectCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Refused(reason) => return reason.fmt(f),
            Self::Accepted => "accepted",
            Self::ProtocolVersion => "protocol version refused",
            Self::ClientId => "client identity refused",
            Self::Unavailable => "broker unavailable",
            Self::Credentials => "user name or password refused",
            Self::NotAuthorised => "not authorised",
        })
    }
}

/// One control packet.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Packet {
    /// Client to broker, once a connection.
    Connect(Connect),
    /// Answer to [`Packet::Connect`].
    ConnAck {
        /// Whether the broker still has the session.
        session_present: bool,
        /// Accepted, or why not.
        code: ConnectCode,
        /// What the broker takes.
        limits: Limits,
    },
    /// A message, either way.
    Publish(Publish),
    /// Answer to a QoS 1 message.
    PubAck {
        /// Which one.
        id: PacketId,
        /// 0x80 and above is a refusal (MQTT 5); always 0 in 3.1.1.
        code: u8,
    },
    /// First answer to a QoS 2 message.
    PubRec {
        /// Which one.
        id: PacketId,
        /// 0x80 and above is a refusal (MQTT 5); always 0 in 3.1.1.
        code: u8,
    },
    /// The sender's release of a QoS 2 message.
    PubRel {
        /// Which one.
        id: PacketId,
        /// 0x92: nothing is known of it (MQTT 5); always 0 in 3.1.1.
        code: u8,
    },
    /// Last answer to a QoS 2 message.
    PubComp {
        /// Which one.
        id: PacketId,
        /// 0x92: nothing is known of it (MQTT 5); always 0 in 3.1.1.
        code: u8,
    },
    /// Client to broker: send me these.
    Subscribe {
        /// Answered under this identifier.
        id: PacketId,
        /// Filters with the highest level wanted.
        filters: Vec<(Arc<str>, Qos)>,
    },
    /// Answer to [`Packet::Subscribe`], one code a filter: 0 to 2 granted, 0x80 and above refused.
    SubAck {
        /// Which one.
        id: PacketId,
        /// In the order of the filters.
        codes: Vec<u8>,
    },
    /// Client to broker: send me these no more.
    Unsubscribe {
        /// Answered under this identifier.
        id: PacketId,
        /// The filters, letter for letter.
        filters: Vec<Arc<str>>,
    },
    /// Answer to [`Packet::Unsubscribe`].
    UnsubAck(PacketId),
    /// Are you there?
    PingReq,
    /// Yes.
    PingResp,
    /// Goodbye, in MQTT 5 either way; with [`Reason::SUCCESS`] the broker drops the will.
    Disconnect(Reason),
    /// Further steps of a login that nobody asked for (MQTT 5).
    Auth,
}

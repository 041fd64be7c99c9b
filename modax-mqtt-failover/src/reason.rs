//! What a broker's "no" means: a reason code of MQTT 5, or our own knowledge of what the broker takes.

use std::fmt;

use crate::packet::Qos;

/// A reason code (MQTT 5, 2.4): a number that has a name in the standard. 0x80 and above is a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reason(u8);

impl Reason {
    /// Done; in DISCONNECT a goodbye in order.
    pub const SUCCESS: Self = Self(0x00);
    /// The packet breaks the protocol.
    pub const PROTOCOL_ERROR: Self = Self(0x82);
    /// Another connection uses our identity.
    pub const SESSION_TAKEN_OVER: Self = Self(0x8E);
    /// This packet identifier is taken.
    pub const PACKET_ID_IN_USE: Self = Self(0x91);
    /// The packet is larger than the other side takes.
    pub const PACKET_TOO_LARGE: Self = Self(0x95);
    /// The broker takes no shared subscriptions.
    pub const NO_SHARED_SUBSCRIPTIONS: Self = Self(0x9E);
    /// The broker takes no filters with wildcards.
    pub const NO_WILDCARDS: Self = Self(0xA2);
    /// Nothing is known of this packet identifier.
    pub const PACKET_ID_NOT_FOUND: Self = Self(0x92);

    /// More messages with QoS 1 or 2 than it takes without an answer.
    pub const RECEIVE_MAXIMUM_EXCEEDED: Self = Self(0x93);

    /// The reason with this number, known or not.
    #[must_use]
    pub const fn new(number: u8) -> Self {
        Self(number)
    }

    /// The number on the wire.
    #[must_use]
    pub const fn number(self) -> u8 {
        self.0
    }

    /// Whether it is a failure.
    #[must_use]
    pub const fn is_failure(self) -> bool {
        self.0 >= 0x80
    }

    /// Whether the same may succeed later although nobody changes anything.
    #[must_use]
    pub const fn is_transient(self) -> bool {
        matches!(
            self.0,
            0x00..=0x7F | 0x80 | 0x83 | 0x88 | 0x89 | 0x8B | 0x8D | 0x91 | 0x93 | 0x96 | 0x97 | 0x9C | 0x9F | 0xA0
        )
    }

    /// Whether a goodbye with this reason may be about a packet of ours, and not about the broker or other clients.
    pub(crate) const fn may_be_our_packet(self) -> bool {
        matches!(self.0, 0x80..=0x83 | 0x87 | 0x90 | 0x94 | 0x95 | 0x99..=0x9B)
    }

    /// Its name in the standard (MQTT 5, table 2-6), in lower case.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self.0 {
            0x00 => "success",
            0x04 => "disconnect with will message",
            0x10 => "no matching subscribers",
            0x11 => "no subscription existed",
            0x18 => "continue authentication",
            0x19 => "re-authenticate",
            0x80 => "unspecified error",
            0x81 => "malformed packet",
            0x82 => "protocol error",
            0x83 => "implementation specific error",
            0x84 => "unsupported protocol version",
            0x85 => "client identifier not valid",
            0x86 => "bad user name or password",
            0x87 => "not authorised",
            0x88 => "server unavailable",
            0x89 => "server busy",
            0x8A => "banned",
            0x8B => "server shutting down",
            0x8C => "bad authentication method",
            0x8D => "keep alive timeout",
            0x8E => "session taken over",
            0x8F => "topic filter invalid",
            0x90 => "topic name invalid",
            0x91 => "packet identifier in use",
            0x92 => "packet identifier not found",
            0x93 => "receive maximum exceeded",
            0x94 => "topic alias invalid",
            0x95 => "packet too large",
            0x96 => "message rate too high",
            0x97 => "quota exceeded",
            0x98 => "administrative action",
            0x99 => "payload format invalid",
            0x9A => "retain not supported",
            0x9B => "QoS not supported",
            0x9C => "use another server",
            0x9D => "server moved",
            0x9E => "shared subscriptions not supported",
            0x9F => "connection rate exceeded",
            0xA0 => "maximum connect time",
            0xA1 => "subscription identifiers not supported",
            0xA2 => "wildcard subscriptions not supported",
            _ => "a reason this version does not know",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:#04x})", self.name(), self.0)
    }
}

/// Why a message was rejected. Shows as a sentence for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Rejection {
    /// The broker answered it with this reason.
    Broker(Reason),
    /// The broker takes no packet of this size (MQTT 5, 3.2.2.3.6). It was not sent there.
    TooLarge {
        /// Size of its packet.
        bytes: usize,
        /// What the broker takes.
        limit_bytes: u32,
    },
    /// The broker takes no level above this one (MQTT 5, 3.2.2.3.4). It was not sent there.
    Qos {
        /// The highest it takes.
        highest: Qos,
    },
    /// The broker keeps no retained messages (MQTT 5, 3.2.2.3.5). It was not sent there.
    Retained,
    /// Brokers closed each of the last `times` connections on which it was sent alone, at once and after a quiet time: the
    /// only way in which a broker of MQTT 3.1.1 can refuse a message. One that took it and died of it looks the same. See
    /// [`ClientBuilder::reject_after_closes`](crate::ClientBuilder::reject_after_closes).
    ClosesConnection {
        /// Connections in a row.
        times: u32,
    },
    /// It has user properties, and the session speaks 3.1.1. A client refuses such a message, and a disk queue that holds
    /// one, before it comes to that.
    NeedsVersion5,
}

impl Rejection {
    /// Whether publishing the same message again later may succeed although nobody changes anything.
    #[must_use]
    pub const fn is_transient(self) -> bool {
        matches!(self, Self::Broker(reason) if reason.is_transient())
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broker(reason) => write!(f, "the broker refused it: {reason}"),
            Self::TooLarge { bytes, limit_bytes } => {
                write!(f, "its packet has {bytes} bytes, and the broker takes {limit_bytes}")
            }
            Self::Qos { highest } => write!(f, "the broker takes nothing above QoS {}", highest.level()),
            Self::Retained => f.write_str("the broker keeps no retained messages"),
            Self::ClosesConnection { times } => {
                write!(f, "the broker closes the connection on this message (sent alone {times} times)")
            }
            Self::NeedsVersion5 => f.write_str("it has user properties, and this client speaks MQTT 3.1.1"),
        }
    }
}

//! What a session is told and what it says.

use std::time::Duration;

use super::Gate;
use crate::{
    event::{Filter, GapReason},
    message::MessageId,
    packet::{ConnectCode, Packet, PacketId, Publish, Qos},
    queue::Admitted,
    reason::{Reason, Rejection},
};

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Input {
    /// A transport stands: say CONNECT.
    Greet {
        /// Which broker of the list.
        broker: usize,
        /// Only to throw an old session away.
        wipe: bool,
    },
    /// A packet arrived.
    Received(Packet),
    /// The transport is gone.
    Lost,
    /// Send this message; only while there is [`room`](super::Session::room).
    Publish(Admitted),
    /// This filter is wanted.
    Subscribe {
        /// The filter.
        filter: Filter,
        /// The level.
        qos: Qos,
    },
    /// This filter is wanted no more.
    Unsubscribe {
        /// The filter.
        filter: Filter,
    },
    /// The program is done with a delivery.
    Acknowledge {
        /// Its packet identifier.
        id: PacketId,
        /// Its serial number.
        serial: u64,
    },
    /// The program dropped a QoS 2 delivery instead.
    Abandon {
        /// Its packet identifier.
        id: PacketId,
        /// Its serial number.
        serial: u64,
    },
    /// So many packets of this connection have been written to the socket, whole.
    Flushed(u64),
    /// Whether nothing new is to be sent, because another connection is about to take over.
    Hold(bool),
    /// What may be sent from here on.
    Gate(Gate),
    /// Give this message up.
    Reject {
        /// Which message.
        message: MessageId,
        /// Why.
        reason: Rejection,
    },
    /// Ask whether the broker is there.
    Probe,
    /// Say DISCONNECT.
    Goodbye,
}

/// How the wait for an outcome ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum End {
    /// Acknowledged (QoS 0: written).
    Acked,
    /// Refused by the broker, or not given to it because it takes no such message.
    Rejected(Rejection),
    /// Its time to live ended.
    Expired,
    /// QoS 0, and the connection broke before it was certainly written.
    Broken,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Output {
    /// Write this packet; the packets of a connection count from 1.
    Send(Packet),
    /// The broker answered CONNECT.
    Answered {
        /// How.
        code: ConnectCode,
        /// Whether it says that it has our session.
        session_present: bool,
    },
    /// A message has its outcome.
    Settled {
        /// The message.
        admitted: Admitted,
        /// How often it was sent.
        attempts: u32,
        /// What became of it.
        end: End,
    },
    /// A message for the program; with a serial number when it has to be acknowledged.
    Deliver {
        /// The message.
        publish: Publish,
        /// Binds the acknowledgement to this delivery.
        serial: Option<u64>,
    },
    /// Readers of this filter may have missed messages.
    Gap {
        /// Which filter.
        filter: Filter,
        /// Why.
        reason: GapReason,
    },
    /// The broker granted this filter.
    Granted {
        /// Which filter.
        filter: Filter,
        /// The level.
        qos: Qos,
    },
    /// The broker refused this filter; it is not wanted any more.
    Refused {
        /// Which filter.
        filter: Filter,
        /// The broker's code.
        code: u8,
    },
    /// The broker refused this filter, which was granted before, for a reason that may pass; it is asked again.
    Postponed {
        /// Which filter.
        filter: Filter,
        /// The broker's code.
        code: u8,
    },
    /// The broker grants less than was asked for.
    QosLowered {
        /// Which filter; `None` where messages to publish are meant.
        filter: Option<Filter>,
        /// Asked for.
        requested: Qos,
        /// Granted.
        granted: u8,
    },
    /// The message said on each connection was refused, or not given to a broker that takes no such message.
    AnnouncementRefused(Rejection),
    /// Connection after connection ends while this message waits for its first answer.
    Stuck {
        /// Its topic.
        topic: Filter,
        /// How often it was sent.
        attempts: u32,
    },
    /// The broker used the identifier of a QoS 2 message that it has not released for another one.
    PacketIdReused {
        /// Which identifier.
        id: PacketId,
        /// For the first time on this connection.
        first: bool,
    },
    /// A packet was acknowledged after this time on the wire.
    Acknowledged(Duration),
    /// A request of ours was answered: SUBACK, UNSUBACK, or the PUBACK of what is said on each connection.
    RequestAnswered,
    /// A PINGRESP arrived.
    ProbeAnswered,
    /// An acknowledgement arrived that belongs to nothing of ours.
    StrayAck,
    /// The program acknowledged a delivery whose connection had ended.
    LateAck,
    /// The broker said goodbye (MQTT 5): hang up.
    Dismissed(Reason),
    /// The broker broke the protocol: hang up.
    Violation(&'static str),
}

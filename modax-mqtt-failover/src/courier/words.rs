//! What a courier is told and what it says.

use std::time::{Duration, Instant};

use crate::{
    event::{Event, Filter, GapReason},
    message::{MessageId, Outcome},
    packet::{Packet, PacketId, Publish, Qos},
    queue::Admitted,
};

/// What happened outside.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Input {
    /// Begin.
    Start,
    /// The transport of this attempt stands.
    Opened {
        /// Which attempt.
        attempt: u64,
    },
    /// The transport could not be opened, or ended.
    Closed {
        /// Which attempt.
        attempt: u64,
        /// Why, for people.
        reason: String,
        /// Whether the other side ended it.
        by_peer: bool,
    },
    /// Bytes arrived, whether or not they complete a packet.
    Heard {
        /// On which attempt.
        attempt: u64,
        /// How many, also of what is around packets, such as TLS records.
        bytes: u64,
    },
    /// A packet arrived.
    Received {
        /// On which attempt.
        attempt: u64,
        /// The packet.
        packet: Packet,
    },
    /// So many packets of this attempt have been written, whole; and since when the socket has taken nothing although
    /// something waits.
    Written {
        /// On which attempt.
        attempt: u64,
        /// Counted from 1, in the order of [`Output::Send`].
        packets: u64,
        /// `None` when nothing waits.
        stalled: Option<Instant>,
    },
    /// A message to send; only while there is [`room`](super::Courier::room).
    Publish(Admitted),
    /// A filter is wanted.
    Subscribe {
        /// The filter.
        filter: Filter,
        /// The level.
        qos: Qos,
    },
    /// A filter is wanted no more.
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
    /// Whether reading stopped because a reader is slow.
    Paused(bool),
    /// So much later than [`poll_timeout`](super::Courier::poll_timeout) asked for did we come back, and have read nothing yet.
    Late(Duration),
    /// Say goodbye and stop for good.
    Stop,
}

/// What is to be done outside.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Output {
    /// Open a transport.
    Dial {
        /// Its number.
        attempt: u64,
        /// To which broker of the list.
        broker: usize,
        /// When it is given up, with all that belongs to it: names, addresses, handshakes.
        deadline: Instant,
    },
    /// Write this packet.
    Send {
        /// On which attempt.
        attempt: u64,
        /// The packet.
        packet: Packet,
    },
    /// Close the transport, after what can be written without waiting.
    HangUp {
        /// Which attempt.
        attempt: u64,
    },
    /// A message has its outcome.
    Settled {
        /// Which message.
        id: MessageId,
        /// What became of it.
        outcome: Outcome,
    },
    /// A message for the program; with a serial number when it has to be acknowledged.
    Deliver {
        /// The message.
        publish: Publish,
        /// Binds the acknowledgement to this delivery.
        serial: Option<u64>,
    },
    /// A broker granted this filter.
    Granted {
        /// Which filter.
        filter: Filter,
        /// The level.
        qos: Qos,
    },
    /// Readers of this filter may have missed messages, or will get none.
    Gap {
        /// Which filter.
        filter: Filter,
        /// Why.
        reason: GapReason,
    },
    /// Something happened that people want to know.
    Event(Event),
}

/// The broker that was left last.
#[derive(Clone, Copy, Debug)]
pub(super) struct Left {
    pub(super) broker: usize,
    /// When it stopped answering, as far as we can tell.
    pub(super) silent_since: Instant,
    /// From then to the verdict.
    pub(super) detected: Duration,
}

//! What scouts are told and what they say.

use std::time::Instant;

use crate::packet::Packet;

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Input {
    /// Whether the client is without a broker that acknowledges.
    Seek(bool),
    /// The broker that serves the client now: it needs no visit.
    Serving(Option<usize>),
    /// This broker was left because it said nothing.
    Silent {
        /// Which one.
        broker: usize,
    },
    /// The transport of a scout stands.
    Opened {
        /// Which attempt.
        attempt: u64,
    },
    /// It could not be opened, or ended.
    Closed {
        /// Which attempt.
        attempt: u64,
    },
    /// A packet arrived on it.
    Received {
        /// Which attempt.
        attempt: u64,
        /// The packet.
        packet: Packet,
    },
    /// No more scouts.
    Stop,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Output {
    /// Open a transport.
    Dial {
        /// Its number.
        attempt: u64,
        /// To which broker of the list.
        broker: usize,
        /// When it is given up.
        deadline: Instant,
    },
    /// Write this packet.
    Send {
        /// On which attempt.
        attempt: u64,
        /// The packet.
        packet: Packet,
    },
    /// Close the transport.
    HangUp {
        /// Which attempt.
        attempt: u64,
    },
    /// A broker acknowledged.
    Proven {
        /// Which one.
        broker: usize,
        /// When the scout left: whoever has waited since before then waits in vain.
        since: Instant,
    },
}

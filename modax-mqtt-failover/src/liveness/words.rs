//! What the judge of silence is told and what it says.

use std::{
    fmt,
    time::{Duration, Instant},
};

/// What was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Input {
    /// A broker accepted us; everything before is forgotten but the measured times.
    Opened {
        /// Whether it is the broker of the measured times.
        same_broker: bool,
        /// Whether it is a node of a cluster that may be electing a leader: then its first silence is borne longer.
        electing: bool,
    },
    /// It took so long to accept us: a first measure, where it is short enough to trust.
    Accepted(Duration),
    /// What the broker was promised from here on: a packet within this time; zero for never.
    KeepAlive(Duration),
    /// The connection ended.
    Closed,
    /// So many bytes arrived; at least one.
    Heard(u64),
    /// A packet is all there.
    Packet,
    /// Something was handed to the socket for the last time now.
    Sent,
    /// Since when bytes wait for the socket without any progress, if they do.
    Stalled(Option<Instant>),
    /// A probe was handed to the socket.
    ProbeSent,
    /// A PINGRESP arrived.
    ProbeAnswered,
    /// Since when the oldest unacknowledged packet has been on the wire, if there is one.
    Waiting(Option<Instant>),
    /// A packet was acknowledged after this time on the wire.
    Acknowledged(Duration),
    /// Something else that was waited for was answered, such as a SUBSCRIBE.
    Answered,
    /// Whether we read nothing because our reader is slow; then silence proves nothing.
    Paused(bool),
    /// So much later than asked for did we come back, and have read nothing yet.
    Late(Duration),
}

/// Why a broker was suspected or left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// A probe was not answered in time.
    ProbeUnanswered,
    /// An acknowledgement is overdue.
    AckOverdue,
    /// The socket takes no more bytes.
    WriteStalled,
    /// Probes are answered, packets are not acknowledged.
    Slow,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ProbeUnanswered => "no answer to a probe",
            Self::AckOverdue => "an acknowledgement is overdue",
            Self::WriteStalled => "the socket takes no more bytes",
            Self::Slow => "it answers probes and does not acknowledge",
        })
    }
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Output {
    /// Send a PINGREQ.
    Probe,
    /// The broker is late.
    Suspected(Reason),
    /// It answers probes and does not acknowledge.
    Slow,
    /// Leave it. `since` is when the first unanswered packet went out.
    Dead {
        /// Why.
        reason: Reason,
        /// Since when it has been silent, as far as we can tell.
        since: Instant,
    },
}

//! What the choice of broker is told and what it says.

use std::time::Instant;

use crate::packet::ConnectCode;

/// What happened.
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
    /// The attempt failed or its connection ended.
    Lost {
        /// Which attempt.
        attempt: u64,
        /// Whether the other side closed it; else we left it.
        by_peer: bool,
    },
    /// The broker said that another client took over our session, and ends the attempt: its loss follows.
    TakenOver {
        /// Which attempt.
        attempt: u64,
    },
    /// The broker answered CONNECT.
    Answered {
        /// Which attempt.
        attempt: u64,
        /// How.
        code: ConnectCode,
    },
    /// Stop for good.
    Stop,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Output {
    /// Open a transport.
    Dial {
        /// Its number from here on; numbers only grow.
        attempt: u64,
        /// To which broker of the list.
        broker: usize,
        /// When it is given up.
        deadline: Instant,
    },
    /// Send CONNECT on it.
    Greet {
        /// Which attempt.
        attempt: u64,
        /// To which broker of the list.
        broker: usize,
        /// Only to throw an old session away: leave again after CONNACK.
        wipe: bool,
    },
    /// Say goodbye and hang up: the old session is gone.
    Leave {
        /// Which attempt.
        attempt: u64,
    },
    /// The attempt serves us.
    Established {
        /// Which attempt.
        attempt: u64,
        /// To which broker of the list.
        broker: usize,
    },
    /// Hang up.
    GiveUp {
        /// Which attempt.
        attempt: u64,
        /// To which broker of the list.
        broker: usize,
        /// What was overdue.
        reason: &'static str,
    },
    /// The broker refused for a reason that a person has to mend.
    Parked {
        /// Which broker of the list.
        broker: usize,
        /// Its answer.
        code: ConnectCode,
    },
    /// Another client uses our identity.
    DuplicateClientId {
        /// Where it was seen last.
        broker: usize,
        /// How often within 30 s.
        takeovers: usize,
    },
}

//! What the choice of broker is told and what it says.

use std::time::Instant;

use crate::packet::ConnectCode;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    /// The broker ends the attempt on a message of ours, as far as we can tell, and gives our place to nobody: its loss
    /// follows.
    EndedOn {
        /// Which attempt.
        attempt: u64,
        /// The message was sent alone, on a connection that had stood quiet before: then the losses that led there were no
        /// takeovers either.
        alone: bool,
    },
    /// The broker answered CONNECT.
    Answered {
        /// Which attempt.
        attempt: u64,
        /// How.
        code: ConnectCode,
    },
    /// A scout that left at `since` was acknowledged by this broker: whoever has waited since before then waits in vain.
    Proven {
        /// Which broker of the list.
        broker: usize,
        /// When the scout left.
        since: Instant,
    },
    /// Whether scouts are out: then nobody has to give up a CONNECT to find out where another would be answered.
    Scouting(bool),
    /// We left the established connection for a broker that acknowledges.
    Left {
        /// Which attempt.
        attempt: u64,
    },
    /// The standby fell at this broker: others are tried before it.
    Unfit {
        /// Which broker of the list.
        broker: usize,
    },
    /// Go to this broker, which works, while the present one serves.
    Return {
        /// Which broker of the list.
        broker: usize,
    },
    /// Whatever the old connection had to finish is finished: go.
    Switch {
        /// The attempt that is ready.
        attempt: u64,
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
        /// While another connection serves.
        beside: bool,
    },
    /// It has lost the race below CONNECT, or is needed no more: hang up, and blame nobody.
    Drop {
        /// Which attempt.
        attempt: u64,
    },
    /// A planned move may begin: this connection stands beside the one that serves. Answer with [`Input::Switch`].
    Ready {
        /// Which attempt.
        attempt: u64,
        /// To which broker of the list.
        broker: usize,
        /// Whether the broker has accepted us; else CONNECT follows the switch.
        greeted: bool,
    },
    /// The planned move did not come about; the old connection serves on.
    NotReturned {
        /// To which broker of the list.
        broker: usize,
        /// Why not.
        reason: &'static str,
    },
    /// Say goodbye and hang up: the old session is gone, or another connection takes over.
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
        /// Whether this was planned: a return to a more preferred broker.
        planned: bool,
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

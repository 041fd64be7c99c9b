//! What goes into the state machine and what comes out.

use std::time::{Duration, Instant};

use crate::{
    event::Event,
    message::{MessageId, OutgoingMessage},
};

/// A row as it was read.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// The message; `attempt` and `epoch` are filled in when it is published.
    pub message: OutgoingMessage,
    /// Attempts recorded so far, by any relay.
    pub attempts: u32,
    /// Why it can never be published, if so: it was not written by [`Outbox`](crate::Outbox).
    pub fault: Option<String>,
}

/// What has become of a message, to be recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// The sink confirmed.
    Delivered,
    /// Its time passed first.
    Expired,
    /// The sink refused or dropped it.
    Rejected {
        /// Why.
        reason: String,
    },
    /// Its budget is used up.
    Parked {
        /// The last failure.
        reason: String,
    },
    /// It failed and stays pending; only the count of attempts is recorded.
    Retried {
        /// Why.
        reason: String,
    },
}

/// One line to be recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settlement {
    /// Which message. Never its sequence number: a failover may give that to another one.
    pub id: MessageId,
    /// Attempts so far.
    pub attempts: u32,
    /// What has become of it.
    pub outcome: Outcome,
}

/// One statement to be run; at most one is out at a time. Each but `Claim` and `Sweep` must do nothing unless the epoch is still this
/// relay's, in the same statement.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Statement {
    /// Take the lease if it has run out. Answer: [`Input::Claimed`] or [`Input::ClaimRefused`].
    Claim,
    /// Extend the lease. Answer: [`Input::Renewed`].
    Renew {
        /// This relay's term.
        epoch: u64,
    },
    /// Read pending messages in order. Answer: [`Input::Fetched`].
    Fetch {
        /// Most rows.
        limit: usize,
        /// Messages in memory, not to be read.
        exclude: Vec<MessageId>,
        /// Keys of which enough is in memory; only expired messages of them are read.
        full_keys: Vec<String>,
    },
    /// Record outcomes and extend the lease. Answer: [`Input::Recorded`].
    Record {
        /// This relay's term.
        epoch: u64,
        /// The outcomes.
        settlements: Vec<Settlement>,
    },
    /// Expire parked messages and delete what is past its retention. Answer: [`Input::Swept`].
    Sweep,
    /// Give the lease back. Answer: [`Input::Released`].
    Release {
        /// This relay's term.
        epoch: u64,
    },
}

/// What the sink answered.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Answer {
    /// It has the message.
    Confirmed {
        /// Who, if it said.
        by: Option<String>,
    },
    /// It may work later.
    Retry {
        /// Why.
        reason: String,
    },
    /// It never will, or must not.
    Rejected {
        /// Why.
        reason: String,
    },
    /// The message expired inside the sink.
    Expired,
    /// The sink was not asked: [`Output::Publish::not_after`] had passed.
    Unsent,
}

/// Something that happened outside.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Input {
    /// A message was committed in this process.
    Woken,
    /// The lease is this relay's.
    Claimed {
        /// Its term.
        epoch: u64,
    },
    /// Another relay has the lease.
    ClaimRefused {
        /// Time left on it.
        left: Duration,
    },
    /// Whether the lease is still this relay's; if so it was extended.
    Renewed {
        /// Whether it is.
        held: bool,
    },
    /// What was read, in order.
    Fetched {
        /// The rows.
        messages: Vec<Fetched>,
    },
    /// Whether the lease is still this relay's; if so everything was recorded.
    Recorded {
        /// Whether it is.
        held: bool,
    },
    /// A sweep is done.
    Swept {
        /// Parked messages that expired.
        expired: Vec<MessageId>,
        /// Whether a limit was hit and there is more to delete.
        more: bool,
    },
    /// The lease was given back.
    Released,
    /// The statement that was out failed, or took too long; whether it took effect is unknown. The connection is gone.
    DatabaseFailed {
        /// Why.
        reason: String,
    },
    /// The sink answered.
    Answered {
        /// For which message.
        id: MessageId,
        /// What.
        answer: Answer,
    },
    /// Stop in order.
    Stop,
}

/// Something to be done outside.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Output {
    /// Run this statement.
    Run(Statement),
    /// Hand this message to the sink.
    Publish {
        /// The message.
        message: OutgoingMessage,
        /// Not once this has passed: the lease or the message may be over. Look at the clock at the last moment.
        not_after: Instant,
    },
    /// Drop whatever the sink has in hand.
    Abort,
    /// Tell whoever listens.
    Event(Event),
    /// The relay has stopped; nothing follows.
    Stopped,
}

//! What happened, and what has been counted.

use std::time::Duration;

use crate::message::MessageId;

/// Something that happened to a relay or to a message in its hands.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// This relay owns the outbox from now on.
    LeaseAcquired {
        /// Its term.
        epoch: u64,
    },
    /// The lease could not be renewed in time (database away, process stopped): nothing is published until it is.
    Suspended {
        /// The term in question.
        epoch: u64,
    },
    /// The lease was found to be still this relay's; publishing goes on.
    Resumed {
        /// The term that goes on.
        epoch: u64,
    },
    /// Another relay owns the outbox; this one has dropped everything it had in hand.
    LeaseLost {
        /// The term that ended.
        epoch: u64,
    },
    /// The lease was given back in an orderly stop.
    LeaseReleased {
        /// The term that ended.
        epoch: u64,
    },
    /// The sink confirmed.
    Delivered {
        /// Which message.
        id: MessageId,
        /// How long ago it had been enqueued.
        age: Duration,
        /// Attempts it took.
        attempts: u32,
        /// Who confirmed, if the sink said.
        by: Option<String>,
    },
    /// Its time passed before it could be published.
    Expired {
        /// Which message.
        id: MessageId,
    },
    /// The sink refused it, or dropped it for a condition.
    Rejected {
        /// Which message.
        id: MessageId,
        /// Why.
        reason: String,
    },
    /// It failed and will be tried again.
    Retrying {
        /// Which message.
        id: MessageId,
        /// Attempts so far.
        attempts: u32,
        /// Why.
        reason: String,
    },
    /// Its retry budget is used up; it is kept for a person and holds its key.
    Parked {
        /// Which message.
        id: MessageId,
        /// The last failure.
        reason: String,
    },
    /// A statement failed or took too long; the connection is given back and another one is asked for.
    DatabaseFailed {
        /// Why, without any secret.
        reason: String,
    },
    /// Rows whose retention had passed were deleted.
    Swept {
        /// Settled messages.
        messages: u64,
        /// Inbox entries.
        inbox: u64,
        /// Idempotency keys.
        idempotency_keys: u64,
    },
    /// Parked messages older than their retention were deleted undelivered.
    ParkedDiscarded {
        /// How many.
        messages: u64,
    },
    /// This receiver was too slow and missed events. The recorded status of each message is complete all the same.
    Lagged {
        /// How many were missed.
        missed: u64,
    },
}

/// Counters and gauges of one relay since it was spawned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Whether this relay owns the outbox now.
    pub is_owner: bool,
    /// Its latest term; 0 before the first.
    pub epoch: u64,
    /// Times the lease was acquired.
    pub leases_acquired: u64,
    /// Times it was lost.
    pub leases_lost: u64,
    /// Rows read.
    pub fetched: u64,
    /// Attempts handed to the sink.
    pub published: u64,
    /// Messages the sink confirmed.
    pub delivered: u64,
    /// Messages whose time passed.
    pub expired: u64,
    /// Messages refused or dropped by the sink.
    pub rejected: u64,
    /// Attempts that failed and were put off.
    pub retried: u64,
    /// Messages parked.
    pub parked: u64,
    /// Statements or connections that failed.
    pub database_failures: u64,
    /// Messages in the sink's hands now.
    pub inflight: usize,
    /// Messages read but not yet published.
    pub buffered: usize,
    /// Outcomes not yet recorded in the database.
    pub unrecorded: usize,
    /// Age of the oldest message of the last read that found any, when it was read; zero after a read that found none.
    pub oldest_age: Duration,
}

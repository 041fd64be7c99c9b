//! A database write and a message publish as one unit.
//!
//! | promise | proved by |
//! |---|---|
//! | **Atomic**: committed means delivered, at least once; rolled back, or crashed before the commit, means never | `a_message_exists_exactly_when_its_transaction_commits`, `f57_a_server_that_crashes_while_it_is_drained_costs_nothing` |
//! | **Once**: with an [`Inbox`] in the consumer's own transaction the effect happens once; older than the inbox remembers is [`Once::TooOld`], never a guess | `f61_…`, `f60_the_inbox_forgets_and_says_so_instead_of_guessing` |
//! | **In order per key**: first receipts of a key come in the order of its transactions, if each locks the key's row before it enqueues; also when transactions overlap, messages are retried or the relay changes. No order across keys | `messages_of_a_key_follow_the_lock_not_the_start_of_their_transactions`, `f57_f58_no_history_…` |
//! | **One owner**: a relay that was killed is replaced within its lease; one that was frozen and comes back moves nothing and starts nothing | `f57_a_relay_killed_at_any_moment_…`, `f58_a_frozen_relay_that_comes_back_…` |
//! | **Through failover**: the relay follows the primary, and what is read again is recognised by an identity the client made, not by a sequence | `f62_the_relay_follows_a_promotion_…` |
//! | **Never late**: a message past its [`expires_in`](Message::expires_in), or dropped by a condition the sink checks at the last moment, is recorded and not published | `an_expired_message_is_recorded_…`, `a_condition_checked_at_the_last_moment_…` |
//! | **Idempotent**: the same [`IdempotencyKey`] with the same request replays its outcome; with another request it is a conflict | `the_same_request_under_a_key_is_replayed_…`, `of_many_claims_at_once_…` |
//! | **Cheap for the caller**: one statement in the caller's transaction, no NOTIFY | `nothing_in_the_transaction_notifies_…` |
//! | **Bounded**: settled rows, inbox entries and keys are deleted after their retention | `f60_settled_rows_are_swept_…` |
//!
//! # What is not promised
//! - Delivery exactly once on the wire: a confirmation that is lost makes a repetition. It carries the same id.
//! - What a relay had handed to the sink when it was frozen may still go out when it wakes up, at most one message of a key. If its
//!   successor delivered it, it is a repetition; if the successor expired or rejected it, it arrives after all, late and out of its
//!   place. Only the receiver can refuse that: let it compare times, or let the sink's connection be taken over by the successor.
//! - Order when the key's row is not locked first, and order between a parked message given up by [`Outbox::discard`] and the rest.
//! - An end to what is pending: while the sink is away, messages without `expires_in` stay in the table ([`Outbox::backlog`]).
//! - A count of the attempts that killed the process: a message that does is tried again by the next relay.
//! - Anything about commits that PostgreSQL itself loses: after an asynchronous failover a published message may have no row.
//! - Clocks: leases run by the database's clock and the local monotonic one, never the wall clock. A machine that is suspended as a
//!   whole (not its process) may stop its monotonic clock; its lease then seems to go on until the first statement answers.
//!
//! # How it works
//! [`Outbox::enqueue`] inserts a row in the caller's transaction. The relay that holds the lease reads what is pending in the order of
//! the rows' numbers, hands it to the [`Sink`] with many messages in flight but only one of a key, and records the outcome by a
//! statement that carries the fence: it changes nothing unless the lease's epoch and token are still this relay's. It reads by status,
//! not by a cursor: messages become visible in commit order, and a cursor on the number would pass over those that commit late. A scan
//! is in order for a key whose row is locked first, since then number, commit and visibility agree.
//!
//! The state machine is [`relay::Dispatch`]: pure, without clock or connection. [`Relay`] drives it on tokio. Without the default
//! feature `tokio` the messages, the sink trait and the state machine remain.
//!
//! # Never panics
//! Library code neither panics nor unwraps; a panic in a sink is a failed attempt.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::disallowed_methods,
        clippy::disallowed_types
    )
)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod event;
mod lease;
mod message;
pub mod relay;
mod retry;
mod schema;
mod sink;
mod window;

#[cfg(feature = "tokio")]
mod database;
#[cfg(feature = "tokio")]
mod driver;
#[cfg(feature = "tokio")]
mod idempotency;
#[cfg(feature = "tokio")]
mod inbox;
#[cfg(feature = "tokio")]
mod outbox;
#[cfg(feature = "tokio")]
mod status;

#[cfg(feature = "tokio")]
pub use driver::{BoxConnection, Connections, Events, Relay, RelayBuilder, Stopped};
pub use event::{Event, Stats};
#[cfg(feature = "tokio")]
pub use idempotency::{Claim, DEFAULT_IDEMPOTENCY_RETENTION, IdempotencyError, IdempotencyKeys};
#[cfg(feature = "tokio")]
pub use inbox::{DEFAULT_INBOX_RETENTION, Inbox, InboxError, Once};
pub use message::{
    IdempotencyKey, InvalidMessage, MAX_HEADERS, MAX_IDEMPOTENCY_KEY_BYTES, MAX_KEY_BYTES, MAX_NAME_BYTES,
    MAX_PAYLOAD_BYTES, Message, MessageId, OutgoingMessage, ParseMessageIdError,
};
#[cfg(feature = "tokio")]
pub use outbox::{EnqueueError, EnqueueReceipt, MAX_BATCH, Outbox};
pub use retry::RetryPolicy;
pub use schema::{ConfigError, Schema};
#[cfg(feature = "tokio")]
pub use schema::{MIGRATE_DEADLINE, MigrateError, Migrated};
pub use sink::{BoxError, Confirmation, Sink, SinkError};
#[cfg(feature = "tokio")]
pub use status::{Backlog, MessageStatus, State, StatusError};
#[cfg(feature = "tokio")]
pub use tokio_postgres;

/// The example of the README, compiled.
#[cfg(all(doctest, feature = "tokio"))]
#[doc = include_str!("../README.md")]
struct Readme;

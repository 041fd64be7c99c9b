//! A database write and a message publish as one unit.
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
mod driver;
#[cfg(feature = "tokio")]
mod idempotency;
#[cfg(feature = "tokio")]
mod inbox;
#[cfg(feature = "tokio")]
mod outbox;

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
pub use outbox::{Backlog, EnqueueError, EnqueueReceipt, MAX_BATCH, MessageStatus, Outbox, State, StatusError};
pub use retry::RetryPolicy;
pub use schema::{ConfigError, Schema};
#[cfg(feature = "tokio")]
pub use schema::{MIGRATE_DEADLINE, MigrateError, Migrated};
pub use sink::{BoxError, Confirmation, Sink, SinkError};
#[cfg(feature = "tokio")]
pub use tokio_postgres;

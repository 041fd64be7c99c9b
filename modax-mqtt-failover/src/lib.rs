//! An MQTT client that outlives its brokers.
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

pub use bytes::Bytes;

mod broker;
pub mod config;
mod event;
mod liveness;
mod message;
pub mod packet;
mod policy;
mod queue;

#[cfg(feature = "tokio")]
mod client;
#[cfg(feature = "tokio")]
mod delivery;
#[cfg(feature = "tokio")]
mod driver;
#[cfg(feature = "tokio")]
mod handover;
#[cfg(feature = "tokio")]
mod receipt;

pub use broker::{AddressError, Broker};
pub use config::{ConfigError, TopicError, Topology};
pub use event::{Event, GapReason, Stats, Status};
pub use liveness::LivenessConfig;
pub use message::{Closed, Message, MessageId, Outcome, Undelivered};
pub use packet::Qos;
pub use policy::{backoff::Backoff, selection::Selection};
pub use queue::{Queue, WhenFull};

#[cfg(feature = "tokio")]
pub use client::{Client, ClientBuilder, Events, PublishError, SubscribeError};
#[cfg(feature = "tokio")]
pub use delivery::{Delivery, Received, Subscription};
#[cfg(feature = "tokio")]
pub use receipt::Receipt;

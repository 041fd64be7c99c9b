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

pub mod breaker;
pub mod broker;
pub mod config;
pub mod courier;
mod event;
pub mod failover;
pub mod inflight;
pub mod liveness;
mod message;
pub mod packet;
pub mod policy;
pub mod queue;
pub mod session;
pub mod subscription;

#[cfg(feature = "tokio")]
mod builder;
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
pub use builder::ClientBuilder;
#[cfg(feature = "tokio")]
pub use client::{Client, Events, PublishError, SubscribeError};
#[cfg(feature = "tokio")]
pub use delivery::{Delivery, Received, Subscription};
#[cfg(feature = "tokio")]
pub use receipt::Receipt;

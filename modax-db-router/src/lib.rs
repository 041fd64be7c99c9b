//! PostgreSQL primary/replica routing inside the client.
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

pub mod commit;
mod event;
pub mod fence;
mod lsn;
pub mod monitor;
pub mod observation;
mod plan;
pub mod policy;
pub mod staleness;
mod topology;

#[cfg(feature = "tokio")]
mod config;
#[cfg(feature = "tokio")]
#[expect(clippy::disallowed_methods, reason = "the driver is the only owner of clock, sockets and tasks")]
mod driver;
#[cfg(feature = "tokio")]
mod error;
#[cfg(feature = "tokio")]
mod read;
#[cfg(feature = "tokio")]
mod router;
#[cfg(feature = "tokio")]
mod stats;
#[cfg(feature = "tokio")]
mod write;

pub use event::{Ejection, Event};
pub use fence::Fence;
pub use lsn::{Lsn, ParseLsnError, ParseTokenError, SystemId, Timeline, WriteToken};
pub use monitor::Monitor;
pub use plan::{LeftOut, Plan, ReadPreference, ReadRequest, TokenFate, plan};
pub use topology::{Node, NodeId, NodeState, Role, Topology, WritesClosed};

#[cfg(feature = "tokio")]
pub use config::Config;
#[cfg(feature = "tokio")]
pub use driver::{events::Events, pool::Connection};
#[cfg(feature = "tokio")]
pub use error::{AcceptError, AcquireError, ConfigError, ReadError, WriteError};
#[cfg(feature = "tokio")]
pub use read::{Read, Rows};
#[cfg(feature = "tokio")]
pub use router::{Router, RouterBuilder};
#[cfg(feature = "tokio")]
pub use stats::Stats;
#[cfg(feature = "tokio")]
pub use tokio_postgres;
#[cfg(feature = "tokio")]
pub use write::{Durability, Tx, Writer, Written};

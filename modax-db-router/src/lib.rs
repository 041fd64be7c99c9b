//! PostgreSQL primary/replica routing inside the client.
//!
//! A [`Router`] is given one libpq URL with all servers of a streaming-replication cluster. It finds out by itself who
//! is the primary, follows a failover or a switchover, refuses a primary whose history was left behind, and says of
//! every write whether it is committed. It needs no proxy, no extension and no privilege; Patroni's REST API may help
//! as a hint (feature `patroni`). PostgreSQL 14 or later.
//!
//! # What it promises
//!
//! | when | the caller sees | tested by |
//! |---|---|---|
//! | the primary is killed | [`Router::write`] and [`Router::execute`] wait for the next one within their deadline; no acknowledged write is lost (with synchronous replication), none runs twice | drill `f38_no_acknowledged_write_is_lost_or_doubled_when_the_primary_is_killed` |
//! | the primary freezes or its network goes dark | the same: nothing waits for its socket | drill `f36_a_frozen_primary_hangs_nobody_and_is_refused_when_it_comes_back` |
//! | the old primary comes back | it is refused, whatever it says of itself: [`Event::Fenced`] | the same drill; table `stale.txt` |
//! | two servers write different histories at once | writes stop: [`Event::SplitBrain`] | drill `f36_two_primaries_at_once_stop_all_writes_until_one_is_left`; table `split.txt` |
//! | the answer to `COMMIT` does not come | committed, not committed, or [`WriteError::OutcomeUnknown`]; never a guess | [`commit`], with its model in `commit_rule.rs`; drill `f38_a_cut_commit_is_settled_while_new_writes_are_held` |
//! | a clone of a [`Tx`] outlives its work | nothing is committed by it; the clone is cut off | drill `a_write_that_failed_inside_is_never_called_committed` |
//! | a read has a bound or a token | never older than that; who cannot prove it is left out | drill `f40_a_replica_whose_replay_is_paused_serves_no_read_with_a_token_or_a_bound`, and `f40_a_replica_that_grew_old_while_a_read_waited_for_its_connection_does_not_answer_it` |
//! | there is no primary | reads without a bound go on; writes end with [`WriteError::NoPrimary`] at their deadline | drill `f37_without_a_primary_reads_go_on_and_writes_end_with_a_typed_error` |
//! | a future is dropped in the middle | its connection is closed, never reused | drill `f43_an_abandoned_transaction_never_reaches_the_next_user` |
//! | a process freezes in a transaction | the server ends its session after [`Config::idle_in_transaction_timeout`]; nobody waits for its locks longer | drill `f02_a_process_that_freezes_in_a_write_does_not_keep_its_locks` |
//! | a commit is called [`Durability::Synchronous`] | there is evidence of a copy | drill `f39_a_commit_is_called_synchronous_only_with_evidence` |
//!
//! Nothing waits without a deadline: connect, login, probe, checkout, statement of a write, `COMMIT`. The one wait that
//! is the caller's own is a statement on a connection taken by [`Router::primary`]; it is cut when the server is lost.
//!
//! # What it does not promise
//!
//! - It judges by what *this router* has seen. A router born after a failover cannot know that the server it finds
//!   first was left behind; if it finds two, it writes neither.
//! - A server that is stopped, rebuilt on another branch and promoted to the *same* timeline number while this router
//!   cannot see it looks like one that was restarted. The same
//!   holds for the followers of a fork that bears the current number, if the fork's own primary is never seen.
//! - Two replicas may show commits in different orders. That is PostgreSQL's own behaviour.
//! - A synchronous copy is no proof against a split brain: an old follower still acknowledges an old primary.
//! - Transactions begun by hand ([`Router::primary`]), COPY and cursors are cut by a failover, with an error whose
//!   `is_closed()` is true: nothing can carry them over.
//! - Sessions end with the write or the read: each begins with the settings of the login, whatever the one before it
//!   left there. For a session that lasts take [`Router::primary`].
//! - TLS: a URL that asks for it is refused ([`ConfigError::TlsUnsupported`]), and a host off loopback is refused
//!   unless `sslmode=disable` says that plain text is meant.
//!
//! # What the role needs
//!
//! | privilege | what it adds |
//! |---|---|
//! | none | everything in the table above; but which history a *standby* replays is known only from its control file, which lags behind: after a failover it is [`NodeState::Unproven`] until then, and a standby that follows a primary this router cannot see is found out late |
//! | `pg_monitor` | the timeline a standby is receiving, at once |
//!
//! # When writes stay closed
//!
//! [`Topology::writes_closed`] says why. [`WritesClosed::StalePrimary`] and [`WritesClosed::SplitBrain`] may need a
//! person: after a restore from a backup, or after a server took the lead with a history that was left behind, nobody
//! but the operators can say which history is the database. Compare the servers, stop the ones that are wrong, and if
//! the one that is left is still refused, call [`Router::accept_history`] in each router: it gives up what the other
//! history had beyond.
//!
//! # Where to start reading
//!
//! The state machine is [`monitor`] ([`observation`]s in, [`Topology`] out) with the memory of histories in [`fence`];
//! the rule of the ambiguous commit is [`commit`]; who may answer a read is [`plan()`]. All of that is pure and builds
//! without tokio (`--no-default-features`). The driver alone owns clock, sockets and tasks. Nothing here panics.
//!
//! ```no_run
//! # #[cfg(feature = "tokio")]
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use modax_db_router::{ReadPreference, Router};
//! use std::time::Duration;
//!
//! let router = Router::builder("postgresql://modax@127.0.0.1:5601,127.0.0.1:5602,127.0.0.1:5603/modax")?.build()?;
//! let written = router
//!     .write(|tx| async move { tx.execute("INSERT INTO readings (device, value) VALUES ($1, $2)", &[&7_i32, &0.5_f64]).await })
//!     .await?;
//! let mut read = router.read(ReadPreference::PreferReplica).max_staleness(Duration::from_secs(5));
//! if let Some(token) = &written.token {
//!     read = read.at_least(token);
//! }
//! let rows = read.query("SELECT value FROM readings WHERE device = $1", &[&7_i32]).await?;
//! println!("{} rows from {}", rows.rows.len(), rows.node);
//! # Ok(())
//! # }
//! ```
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
#![cfg_attr(
    not(feature = "tokio"),
    allow(rustdoc::broken_intra_doc_links, reason = "the manual speaks of the router, which is not built then")
)]

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

#[cfg(all(doctest, feature = "tokio"))]
#[doc = include_str!("../README.md")]
struct Readme;

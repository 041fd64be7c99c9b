//! Drills against real PostgreSQL servers that are killed, frozen, promoted and brought back.
//!
//! A drill that finds no server fails; it does not skip.

#[path = "drill/commit.rs"]
mod commit;
#[path = "drill/failover.rs"]
mod failover;
#[path = "drill/ledger.rs"]
mod ledger;
#[path = "drill/locks.rs"]
mod locks;
#[cfg(feature = "patroni")]
#[path = "drill/patroni.rs"]
mod patroni;
#[path = "drill/reads.rs"]
mod reads;
#[path = "drill/sessions.rs"]
mod sessions;
#[path = "drill/writes.rs"]
mod writes;

//! Drills against real PostgreSQL servers that are killed, frozen, promoted and brought back.
//!
//! A drill that finds no server fails; it does not skip.

#[path = "drill/failover.rs"]
mod failover;
#[path = "drill/ledger.rs"]
mod ledger;
#[path = "drill/reads.rs"]
mod reads;
#[path = "drill/writes.rs"]
mod writes;

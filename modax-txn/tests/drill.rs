//! Drills against real PostgreSQL servers: what is promised about transactions, and what survives when something is killed.
//!
//! A drill that finds no server fails.

// Files of this binary stand in `drill/`, beside its root.
#[path = "drill/faults.rs"]
mod faults;
#[path = "drill/outbox.rs"]
mod outbox;
#[path = "drill/plant.rs"]
mod plant;
#[path = "drill/relay.rs"]
mod relay;
#[path = "drill/tables.rs"]
mod tables;

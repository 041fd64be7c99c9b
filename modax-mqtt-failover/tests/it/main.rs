//! Fast tests: no servers, no waiting but for events.

mod agenda;
mod breaker_tests;
mod busy;
mod client;
mod damage;
mod disk;
mod ends;
mod f21;
mod failback_tests;
mod failover_tests;
mod faults;
mod fsync;
mod full_disk;
mod identity;
mod liveness_tests;
#[cfg(feature = "metrics")]
mod metrics;
mod poison;
mod properties;
mod scouting;
#[cfg(all(feature = "ring", feature = "tracing"))]
mod secrets;
mod session_tables;
mod simulation;
mod storm;
mod switchover;
#[cfg(feature = "ring")]
mod tls;
mod transport;
mod version5;
mod witness_tests;

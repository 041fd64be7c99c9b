//! Fast tests: no servers, no real clock.

#[cfg(feature = "axum")]
mod endpoints;
#[cfg(feature = "tower")]
mod faults;
mod properties;
#[cfg(feature = "tokio")]
mod registry;
mod simulation;
mod table;
mod world;

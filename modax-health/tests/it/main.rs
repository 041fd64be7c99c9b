//! Fast tests: no servers, no real clock.

mod endpoints;
mod faults;
mod properties;
mod registry;
mod simulation;
mod table;
mod world;

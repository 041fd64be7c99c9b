//! Fast tests without any server.

mod simulation;
mod world;

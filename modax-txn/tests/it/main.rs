//! Fast tests without any server.

mod database;
mod machine;
mod messages;
mod simulation;
mod world;

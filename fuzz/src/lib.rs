//! Fuzz targets: each takes bytes that somebody else wrote and checks that a parser neither panics nor contradicts itself.
//!
//! Plain `cargo test` replays the corpora and a few thousand seeded variations of them. See `README.md` for fuzzing
//! with coverage.

#![forbid(unsafe_code)]

mod mqtt;
mod outbox;
mod postgres;
mod queue;
mod stream;

/// One target; its corpus is the folder of that name in `corpus`.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// What it is called.
    pub name: &'static str,
    /// Panics when the parser is wrong; a parser that panics does so itself.
    pub check: fn(&[u8]),
    /// Variations of each input that a replay checks: fewer of what takes longer.
    pub variations: u64,
}

const fn target_of(name: &'static str, check: fn(&[u8]), variations: u64) -> Target {
    Target { name, check, variations }
}

/// All targets.
pub const TARGETS: [Target; 15] = [
    target_of("broker_url", mqtt::broker_url, 2_000),
    target_of("topic", mqtt::topic, 2_000),
    target_of("filter", mqtt::filter, 2_000),
    target_of("identity", mqtt::identity, 2_000),
    target_of("lsn", postgres::lsn, 2_000),
    target_of("write_token", postgres::write_token, 2_000),
    target_of("probe_row", postgres::probe_row, 2_000),
    target_of("message_id", outbox::message_id, 2_000),
    target_of("schema_name", outbox::schema_name, 2_000),
    target_of("stream_311", stream::stream_311, 100),
    target_of("stream_5", stream::stream_5, 100),
    target_of("echo", stream::echo, 100),
    target_of("queue_recovery", queue::recovery, 200),
    target_of("queue_damage", queue::damage, 200),
    target_of("queue_operations", queue::operations, 200),
];

/// The target with this name.
pub fn target(name: &str) -> Option<Target> {
    TARGETS.into_iter().find(|target| target.name == name)
}

fn text(data: &[u8]) -> Option<&str> {
    std::str::from_utf8(data).ok()
}

//! Fuzz targets: each takes bytes that somebody else wrote and checks that a parser neither panics nor contradicts itself.
//!
//! Plain `cargo test` replays the corpora and a few thousand seeded variations of them. See `README.md` for fuzzing
//! with coverage.

#![forbid(unsafe_code)]

mod mqtt;
mod outbox;
mod postgres;

/// One target; its corpus is the folder of that name in `corpus`.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// What it is called.
    pub name: &'static str,
    /// Panics when the parser is wrong; a parser that panics does so itself.
    pub check: fn(&[u8]),
}

/// All targets.
pub const TARGETS: [Target; 9] = [
    Target { name: "broker_url", check: mqtt::broker_url },
    Target { name: "topic", check: mqtt::topic },
    Target { name: "filter", check: mqtt::filter },
    Target { name: "identity", check: mqtt::identity },
    Target { name: "lsn", check: postgres::lsn },
    Target { name: "write_token", check: postgres::write_token },
    Target { name: "probe_row", check: postgres::probe_row },
    Target { name: "message_id", check: outbox::message_id },
    Target { name: "schema_name", check: outbox::schema_name },
];

/// The target with this name.
pub fn target(name: &str) -> Option<Target> {
    TARGETS.into_iter().find(|target| target.name == name)
}

fn text(data: &[u8]) -> Option<&str> {
    std::str::from_utf8(data).ok()
}

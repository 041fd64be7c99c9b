//! Bytes that make no whole packet yet: the beginning of a large one, or answers that one which never ends has swallowed.

use std::time::{Duration, Instant};

/// So many suspicions are ended by such bytes.
const MOST_SUSPICIONS: u32 = 8;
/// A large packet over a bad link brings more than so many bytes for each suspicion. Of those answers one or two come, each of
/// 2 bytes or in a TLS record of about 30.
const BYTES_OF_ANSWERS: u64 = 64;
/// More than this is the beginning of a large packet, behind which every acknowledgement waits.
const LARGE: u64 = 4096;

/// What came since the last whole packet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Partial {
    /// When that one was there.
    pub(super) since: Instant,
    suspicions: u32,
    bytes: u64,
}

impl Partial {
    pub(super) const fn since(now: Instant) -> Self {
        Self { since: now, suspicions: 0, bytes: 0 }
    }

    pub(super) fn hear(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_add(bytes);
    }

    pub(super) fn suspect(&mut self) {
        self.suspicions = self.suspicions.saturating_add(1);
    }

    pub(super) const fn is_large(&self) -> bool {
        self.bytes > LARGE
    }

    /// Whether hardly more came than answers to probes, all the time since `grace` and for so long.
    pub(super) fn is_answers_only(&self, now: Instant, grace: Instant, limit: Duration) -> bool {
        let answers = u64::from(self.suspicions).saturating_mul(BYTES_OF_ANSWERS);
        self.suspicions >= MOST_SUSPICIONS && self.bytes <= answers && self.since.max(grace) + limit <= now
    }
}

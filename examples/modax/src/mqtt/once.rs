//! `modax sub --dedup`: which deliveries are repeats.

use std::hash::{BuildHasher as _, RandomState};
use std::num::NonZeroUsize;

use bytes::Bytes;
use modax_mqtt_failover::Delivery;
use modax_mqtt_failover::dedup::{Dedup, DedupStats, Identity, Verdict};
use serde_json::Value;

/// Remembers what was printed.
pub(super) struct Once {
    /// Of the payload; none means all of it.
    fields: Vec<String>,
    dedup: Dedup,
    /// Two keys of this process's own: 128 bits remembered for each message, however long it is, and nobody can
    /// choose two that are taken for one.
    keys: [RandomState; 2],
}

impl Once {
    pub(super) fn new(fields: Vec<String>, window: NonZeroUsize) -> Self {
        Self { fields, dedup: Dedup::new(window), keys: [RandomState::new(), RandomState::new()] }
    }

    /// Whether this delivery is known to have been printed; one that cannot be told apart is not.
    pub(super) fn is_repeat(&mut self, delivery: &Delivery) -> bool {
        self.is_known(delivery.topic(), delivery.payload())
    }

    pub(super) fn stats(&self) -> DedupStats {
        self.dedup.stats()
    }

    fn is_known(&mut self, topic: &str, payload: &[u8]) -> bool {
        let Some(identity) = self.identity(topic, payload) else { return false };
        self.dedup.check(&identity) == Verdict::Repeat
    }

    fn identity(&self, topic: &str, payload: &[u8]) -> Option<Identity> {
        let fields = if self.fields.is_empty() {
            Vec::new()
        } else {
            let payload: Value = serde_json::from_slice(payload).ok()?;
            self.fields.iter().map(|field| payload.get(field).map(Value::to_string)).collect::<Option<Vec<_>>>()?
        };
        let whole = if self.fields.is_empty() { payload } else { &[] };
        let halves = self.keys.iter().map(|key| key.hash_one((topic, &fields, whole)));
        Some(Identity::Opaque(Bytes::from(halves.flat_map(u64::to_le_bytes).collect::<Vec<u8>>())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn once(fields: &[&str]) -> Once {
        Once::new(fields.iter().map(ToString::to_string).collect(), NonZeroUsize::new(100).unwrap())
    }

    #[test]
    fn without_fields_topic_and_payload_make_the_identity() {
        let mut once = once(&[]);
        assert!(!once.is_known("a", b"x"));
        assert!(once.is_known("a", b"x"));
        assert!(!once.is_known("b", b"x"));
        assert!(!once.is_known("a", b"y"));
    }

    #[test]
    fn fields_make_the_identity_and_a_payload_without_them_is_never_a_repeat() {
        let mut once = once(&["device", "at"]);
        assert!(!once.is_known("t", br#"{"device":"d","at":1,"value":2}"#));
        assert!(once.is_known("t", br#"{"at":1,"device":"d","value":3}"#));
        assert!(!once.is_known("t", br#"{"device":"d","at":"1"}"#));
        for other in [&b"no json"[..], br#"{"device":"d"}"#, b"7"] {
            assert!(!once.is_known("t", other));
            assert!(!once.is_known("t", other));
        }
    }
}

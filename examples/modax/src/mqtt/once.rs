//! `modax sub --dedup`: what makes two deliveries the same.

use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, RandomState};
use std::num::NonZeroUsize;

use bytes::Bytes;
use modax_mqtt_failover::dedup::{Dedup, Identity};
use modax_mqtt_failover::{Delivery, UserProperties};
use serde_json::value::RawValue;

/// Remembers what was printed: by these fields of the payload, or without any by what the message says that it is, else
/// by topic and payload.
pub(super) fn once(fields: Vec<String>, window: NonZeroUsize) -> Dedup {
    let known_by = KnownBy { fields, keys: [RandomState::new(), RandomState::new()] };
    Dedup::new(window).by(move |delivery: &Delivery| {
        known_by.identity(delivery.user_properties(), delivery.topic(), delivery.payload())
    })
}

struct KnownBy {
    /// Of the payload; none means all of it.
    fields: Vec<String>,
    /// Two keys of this process's own: 128 bits remembered for each message, however long it is, and nobody can
    /// choose two that are taken for one.
    keys: [RandomState; 2],
}

impl KnownBy {
    fn identity(&self, properties: &UserProperties, topic: &str, payload: &[u8]) -> Option<Identity> {
        if self.fields.is_empty() {
            return Identity::of(properties).or_else(|| Some(self.hashed(topic, &[], payload)));
        }
        // As they are written: read as a number, two ids beyond 64 bits could become one.
        let payload: BTreeMap<String, &RawValue> = serde_json::from_slice(payload).ok()?;
        let fields = self.fields.iter().map(|field| payload.get(field).map(|value| value.get()));
        Some(self.hashed(topic, &fields.collect::<Option<Vec<_>>>()?, &[]))
    }

    fn hashed(&self, topic: &str, fields: &[&str], payload: &[u8]) -> Identity {
        let halves = self.keys.iter().map(|key| key.hash_one((topic, fields, payload)));
        Identity::Opaque(Bytes::from(halves.flat_map(u64::to_le_bytes).collect::<Vec<u8>>()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known_by(fields: &[&str]) -> KnownBy {
        let fields = fields.iter().map(ToString::to_string).collect();
        KnownBy { fields, keys: [RandomState::new(), RandomState::new()] }
    }

    fn plain(known_by: &KnownBy, topic: &str, payload: &[u8]) -> Option<Identity> {
        known_by.identity(&UserProperties::default(), topic, payload)
    }

    #[test]
    fn without_fields_topic_and_payload_make_the_identity() {
        let by = known_by(&[]);
        let known = plain(&by, "a", b"x");
        assert!(known.is_some());
        assert_eq!(plain(&by, "a", b"x"), known);
        assert_ne!(plain(&by, "b", b"x"), known);
        assert_ne!(plain(&by, "a", b"y"), known);
    }

    #[test]
    fn without_fields_what_a_message_says_that_it_is_comes_first() {
        let by = known_by(&[]);
        let says = |id: &str, payload: &[u8]| by.identity(&[("modax-id", id)].into_iter().collect(), "a", payload);
        assert_eq!(says("p:0000000000000001:1", b"x"), Identity::parse("p:0000000000000001:1"));
        assert_ne!(says("p:0000000000000001:2", b"x"), says("p:0000000000000001:1", b"x"));
        assert_eq!(says("no identity", b"x"), plain(&by, "a", b"x"));
    }

    #[test]
    fn fields_make_the_identity_and_a_payload_without_them_has_none() {
        let by = known_by(&["device", "at"]);
        let known = plain(&by, "t", br#"{"device":"d","at":1,"value":2}"#);
        assert!(known.is_some());
        assert_eq!(plain(&by, "t", br#"{"at":1,"device":"d","value":3}"#), known);
        assert_ne!(plain(&by, "t", br#"{"device":"d","at":"1"}"#), known);
        for other in [&b"no json"[..], br#"{"device":"d"}"#, b"7"] {
            assert_eq!(plain(&by, "t", other), None);
        }
    }

    #[test]
    fn numbers_that_no_machine_holds_are_told_apart() {
        let by = known_by(&["id"]);
        let of = |id: &str| plain(&by, "t", format!("{{\"id\": {id} }}").as_bytes());
        let ids = [
            "18446744073709551616",
            "18446744073709551617",
            "-9223372036854775809",
            "-9223372036854775810",
            "0.1234567890123456789",
            "0.1234567890123456788",
            "1e400",
            "[18446744073709551616]",
            "[18446744073709551617]",
        ];
        for (place, id) in ids.iter().enumerate() {
            assert!(of(id).is_some(), "{id}");
            assert_eq!(of(id), of(id));
            assert!(ids.iter().skip(place + 1).all(|other| of(other) != of(id)), "{id}");
        }
    }
}

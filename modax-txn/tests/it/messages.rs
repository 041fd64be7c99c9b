//! Identities, limits and names.

use std::time::Duration;

use modax_txn::{ConfigError, IdempotencyKey, InvalidMessage, MAX_PAYLOAD_BYTES, Message, MessageId, Schema};

#[test]
fn an_identity_carries_its_time_and_survives_being_written_down() {
    let id = MessageId::from_parts(1_767_225_600_123, &[0xAB; 10]);
    assert_eq!(id.unix_millis(), Some(1_767_225_600_123));
    assert_eq!(id.to_string().parse(), Ok(id));
    assert_eq!(id.as_uuid().get_version_num(), 7);
    assert!("not an id".parse::<MessageId>().is_err());
    assert_eq!(MessageId::from_uuid(uuid::Uuid::from_u128(5)).unix_millis(), None);
    let ids: std::collections::BTreeSet<_> = (0..1000).map(|_| MessageId::new()).collect();
    assert_eq!(ids.len(), 1000);
}

#[test]
fn limits_are_exact() {
    let topic = |n: usize| Message::to("t".repeat(n)).validate();
    assert_eq!(topic(65_535), Ok(()));
    assert_eq!(topic(65_536), Err(InvalidMessage::Topic { bytes: 65_536 }));
    let payload = |n: usize| Message::to("t").payload(vec![0; n]).validate();
    assert_eq!(payload(MAX_PAYLOAD_BYTES), Ok(()));
    assert_eq!(payload(MAX_PAYLOAD_BYTES + 1), Err(InvalidMessage::Payload { bytes: MAX_PAYLOAD_BYTES + 1 }));
    let key = |n: usize| Message::to("t").key("k".repeat(n)).validate();
    assert_eq!(key(1024), Ok(()));
    assert_eq!(key(1025), Err(InvalidMessage::Key { bytes: 1025 }));
    let headers = |n: usize| (0..n).fold(Message::to("t"), |m, i| m.header(i.to_string(), "")).validate();
    assert_eq!(headers(64), Ok(()));
    assert_eq!(headers(65), Err(InvalidMessage::Headers));
    assert!(IdempotencyKey::new("k".repeat(512)).is_ok());
    assert!(IdempotencyKey::new("k".repeat(513)).is_err());
    assert!(Message::to("t").expires_in(Duration::MAX).validate().is_err());
}

#[test]
fn a_payload_is_not_shown_in_debug_output() {
    let shown = format!("{:?}", Message::to("t").payload("secret"));
    assert!(!shown.contains("secret") && shown.contains("payload_bytes: 6"), "{shown}");
}

#[test]
fn a_schema_name_is_an_identifier_or_refused() {
    for name in ["a", "modax_txn", "Upper", "_x9"] {
        assert_eq!(Schema::new(name).expect("sound").quoted(), format!("\"{name}\""));
    }
    let long = "x".repeat(64);
    for name in ["", "9a", "a-b", "a b", "a\"b", "a.b", "ü", "pg_x", long.as_str()] {
        assert_eq!(Schema::new(name).err(), Some(ConfigError::SchemaName { name: name.to_owned() }));
    }
}

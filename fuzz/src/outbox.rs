//! What comes back to the outbox, and what is put into SQL text.

use modax_txn::{MessageId, Schema};

use crate::text;

/// A message's identity: what is shown is read as the same.
pub(crate) fn message_id(data: &[u8]) {
    let Some(id) = text(data).and_then(|text| text.parse::<MessageId>().ok()) else { return };
    assert_eq!(id.to_string().parse(), Ok(id));
}

/// The name of a schema stands in SQL text: no name that is taken can end its quotes.
pub(crate) fn schema_name(data: &[u8]) {
    let Some(schema) = text(data).and_then(|name| Schema::new(name).ok()) else { return };
    let inner = schema.quoted().strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    let inner = inner.unwrap_or_else(|| panic!("{} is not quoted", schema.quoted()));
    assert!(inner.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_'), "{inner}");
    assert_eq!(inner, schema.name());
}

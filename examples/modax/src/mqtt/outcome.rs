//! What became of a message, as a line.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use modax_mqtt_failover::{Outcome, UserProperties};
use serde_json::{Value, json};

/// The final line of a message that was admitted; `line` says which.
pub(super) fn describe(mut line: Value, outcome: &Outcome) -> Value {
    for field in ["broker", "attempts", "latency_us"] {
        line[field] = Value::Null;
    }
    let name = match outcome {
        Outcome::Acked { broker, attempts, latency, .. } => {
            line["broker"] = json!(broker.to_string());
            line["attempts"] = json!(attempts);
            line["latency_us"] = json!(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
            "acked"
        }
        Outcome::Expired { maybe_delivered, .. } => {
            line["maybe_delivered"] = json!(maybe_delivered);
            "expired"
        }
        Outcome::Shed => "shed",
        Outcome::Rejected { reason, maybe_delivered, .. } => {
            line["error"] = json!(reason.to_string());
            line["maybe_delivered"] = json!(maybe_delivered);
            "rejected"
        }
        Outcome::Undelivered { maybe_delivered, .. } => {
            line["maybe_delivered"] = json!(maybe_delivered);
            "undelivered"
        }
        other => {
            line["error"] = json!(format!("{other:?}"));
            "undelivered"
        }
    };
    line["outcome"] = json!(name);
    line
}

/// Adds `user_properties` where there are any: names with their value, or the list of values of a name that repeats.
pub(crate) fn put_properties(line: &mut Value, properties: &UserProperties) {
    let mut object = serde_json::Map::new();
    for (name, value) in properties.iter() {
        match object.get_mut(name) {
            None => {
                object.insert(name.to_owned(), json!(value));
            }
            Some(Value::Array(values)) => values.push(json!(value)),
            Some(first) => *first = json!([first.take(), value]),
        }
    }
    if !object.is_empty() {
        line["user_properties"] = Value::Object(object);
    }
}

/// Adds `payload`, or `payload_base64` where the bytes are not text.
pub(crate) fn put_payload(line: &mut Value, payload: &[u8]) {
    match std::str::from_utf8(payload) {
        Ok(text) => line["payload"] = json!(text),
        Err(_) => line["payload_base64"] = json!(STANDARD.encode(payload)),
    }
}

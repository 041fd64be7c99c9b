//! A line of `modax pub` as a message.

use std::collections::BTreeMap;

use bytes::Bytes;
use modax_mqtt_failover::Message;
use serde::Deserialize;
use serde_json::Value;

use super::qos;
use crate::args::PubArgs;

/// A line that names its own topic or quality of service.
#[derive(Deserialize)]
struct Envelope {
    payload: String,
    #[serde(default)]
    topic: Option<String>,
    #[serde(default)]
    qos: Option<u8>,
    #[serde(default)]
    user_properties: BTreeMap<String, Values>,
}

/// One value of a user property, or several under one name.
#[derive(Deserialize)]
#[serde(untagged)]
enum Values {
    One(String),
    Several(Vec<String>),
}

/// What a message line looks like, for people.
const LINE: &str = "a message line is {\"topic\": string, \"payload\": string, \"qos\": 0, 1 or 2, \"user_properties\": {name: string}}";

/// The message that a line says, or why it says none.
pub(super) fn message(args: &PubArgs, bytes: Vec<u8>) -> Result<Message, String> {
    let envelope = if args.plain { None } else { serde_json::from_slice::<Envelope>(&bytes).ok() };
    let (topic, payload, level, properties) = match envelope {
        Some(line) => {
            let level = line.qos.unwrap_or(args.qos);
            (line.topic, Bytes::from(line.payload), level, line.user_properties)
        }
        // A mistake in a message's own fields must not send the whole line as a payload.
        None if !args.plain && is_meant_as_message(&bytes) => {
            return Err(LINE.to_owned());
        }
        None => (None, Bytes::from(bytes), args.qos, BTreeMap::new()),
    };
    let topic = topic.or_else(|| args.topic.clone()).ok_or("no topic: neither in the line nor by --topic")?;
    if level > 2 {
        return Err(format!("qos {level} is none: 0, 1 or 2"));
    }
    let mut message = Message::new(topic, payload).qos(qos(level));
    for (name, values) in properties {
        let values = match values {
            Values::One(value) => vec![value],
            Values::Several(values) => values,
        };
        message = values.into_iter().fold(message, |message, value| message.user_property(name.as_str(), value));
    }
    if let Some(time) = args.expires_in {
        message = message.expires_in(time);
    }
    Ok(message)
}

/// An object with a text as its payload, or with a topic beside a payload of whatever kind.
fn is_meant_as_message(line: &[u8]) -> bool {
    let Ok(value) = serde_json::from_slice::<Value>(line) else { return false };
    let payload = value.get("payload");
    payload.is_some_and(Value::is_string) || (payload.is_some() && value.get("topic").is_some())
}

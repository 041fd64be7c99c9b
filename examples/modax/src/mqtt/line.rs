//! A line of `modax pub` as a message.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use modax_mqtt_failover::Message;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::Value;

use super::qos;
use crate::args::PubArgs;

/// A line that names its own topic or quality of service. A field that is none of these is refused: left out in silence, it
/// would be missed by whoever meant it.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    #[serde(default)]
    payload: Option<String>,
    /// Of what is no text.
    #[serde(default)]
    payload_base64: Option<String>,
    #[serde(default, deserialize_with = "no_null")]
    topic: Option<String>,
    #[serde(default, deserialize_with = "no_null")]
    qos: Option<u8>,
    #[serde(default)]
    retained: bool,
    /// What `sub` says of a copy, so that its lines can be published again; of a new message it says nothing.
    #[serde(default, rename = "duplicate")]
    _duplicate: bool,
    #[serde(default)]
    user_properties: Properties,
}

/// A field that is there says something.
fn no_null<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// Names with their values, in the order of the line; a name may come twice, as in MQTT.
#[derive(Default)]
struct Properties(Vec<(String, Values)>);

impl<'de> Deserialize<'de> for Properties {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Properties;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of names and values")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Properties, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Properties(pairs))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

/// One value of a user property, or several under one name.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a string, or several in an array")]
enum Values {
    One(String),
    Several(Vec<String>),
}

/// What a message line looks like, for people.
const LINE: &str = "a message line is {\"topic\": string, \"payload\" or \"payload_base64\": string, \"qos\": 0, 1 or 2, \"retained\": true or false, \"user_properties\": {name: string}}; with --plain every line is a payload";

/// The message that a line says, or why it says none.
pub(super) fn message(args: &PubArgs, bytes: Vec<u8>) -> Result<Message, String> {
    let (line, payload) =
        if args.plain || !is_meant_as_message(&bytes) { (Line::default(), Bytes::from(bytes)) } else { parse(&bytes)? };
    let topic = line.topic.or_else(|| args.topic.clone()).ok_or("no topic: neither in the line nor by --topic")?;
    let level = line.qos.unwrap_or(args.qos);
    if level > 2 {
        return Err(format!("qos {level} is none: 0, 1 or 2"));
    }
    let mut message = Message::new(topic, payload).qos(qos(level));
    if line.retained {
        message = message.retained();
    }
    for (name, values) in line.user_properties.0 {
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

/// An object with a text as its payload, or with a topic beside a payload of whatever type; or what begins as one, names its
/// payload and is no JSON. A mistake in it must not send the whole line as a payload.
fn is_meant_as_message(line: &[u8]) -> bool {
    let Ok(value) = serde_json::from_slice::<Value>(line) else {
        let named = b"\"payload";
        return line.trim_ascii_start().starts_with(b"{") && line.windows(named.len()).any(|part| part == named);
    };
    let mut payloads = ["payload", "payload_base64"].into_iter().filter_map(|name| value.get(name)).peekable();
    (payloads.peek().is_some() && value.get("topic").is_some()) || payloads.any(Value::is_string)
}

/// The fields and the payload, or which of them is wrong.
fn parse(line: &[u8]) -> Result<(Line, Bytes), String> {
    let mut json = serde_json::Deserializer::from_slice(line);
    let wrong = |error: &dyn fmt::Display| format!("{error}; {LINE}");
    let mut line: Line = serde_path_to_error::deserialize(&mut json).map_err(|error| wrong(&error))?;
    json.end().map_err(|error| wrong(&error))?;
    let payload = match (line.payload.take(), line.payload_base64.take()) {
        (Some(text), None) => Bytes::from(text),
        (None, Some(text)) => STANDARD.decode(text).map_err(|error| wrong(&format!("payload_base64: {error}")))?.into(),
        (Some(_), Some(_)) => return Err(wrong(&"payload and payload_base64: one of them")),
        (None, None) => return Err(wrong(&"payload: null is none")),
    };
    Ok((line, payload))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_that_is_wrong_or_unknown_is_named() {
        let error = |line: &str| parse(line.as_bytes()).err().unwrap_or_default();
        for (line, named) in [
            (r#"{"payload":"a","retain":true}"#, "retain: unknown field `retain`"),
            (r#"{"payload":"a","qos":"1"}"#, "qos: invalid type: string"),
            (r#"{"payload":5,"topic":"t"}"#, "payload: invalid type: integer `5`"),
            (r#"{"payload":null,"topic":"t"}"#, "payload: null"),
            (r#"{"payload":"a","topic":null}"#, "topic: invalid type: null"),
            (r#"{"payload":"a","qos":null}"#, "qos: invalid type: null"),
            (r#"{"payload":"a","payload_base64":"YQ=="}"#, "payload and payload_base64: one"),
            (r#"{"payload_base64":"YQ"}"#, "payload_base64: Invalid padding"),
            (r#"{"payload":"a","payload":"b"}"#, "duplicate field `payload`"),
            (r#"{"payload":"a"}{"payload":"b"}"#, "trailing characters"),
            (
                r#"{"payload":"a","user_properties":{"p":1}}"#,
                "user_properties.p: expected a string, or several in an array",
            ),
        ] {
            assert!(error(line).starts_with(named), "{line}: {}", error(line));
        }
    }

    #[test]
    fn a_line_of_sub_can_be_published_again() {
        let line =
            r#"{"topic":"t","qos":2,"duplicate":true,"retained":true,"payload":"a","user_properties":{"p":["1","2"]}}"#;
        let (line, payload) = parse(line.as_bytes()).unwrap();
        assert_eq!((line.topic.as_deref(), line.qos, line.retained, &*payload), (Some("t"), Some(2), true, &b"a"[..]));
        assert_eq!(parse(br#"{"payload_base64":"/wA="}"#).unwrap().1, [0xFF, 0][..]);
        for line in [&br#"{"payload_base64":"/wA="}"#[..], br#"{"payload":null,"payload_base64":"/wA="}"#] {
            assert!(is_meant_as_message(line), "{}", String::from_utf8_lossy(line));
        }
        let (line, _) = parse(br#"{"payload":"","user_properties":{"b":"1","a":"2","b":["3"]}}"#).unwrap();
        assert_eq!(line.user_properties.0.iter().map(|(name, _)| &**name).collect::<String>(), "bab");
    }

    #[test]
    fn what_begins_as_a_message_and_is_no_json_is_no_payload() {
        for line in
            [&b"{\"topic\":\"t\",\"payload\":\"\xff\"}"[..], br#" {"payload":"a",}"#, br#"{"payload":"\udc80"}"#]
        {
            assert!(is_meant_as_message(line) && parse(line).is_err(), "{}", String::from_utf8_lossy(line));
        }
        for line in [&b"{21.5}"[..], b"payload", br#"{"temperature":21.5}"#, br#"["payload"]"#] {
            assert!(!is_meant_as_message(line), "{}", String::from_utf8_lossy(line));
        }
    }
}

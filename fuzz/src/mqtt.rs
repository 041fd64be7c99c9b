//! What users and peers give to the MQTT client.

use modax_mqtt_failover::broker::Address;
use modax_mqtt_failover::config::{TopicError, check_filter, check_topic};
use modax_mqtt_failover::dedup::Identity;
use modax_mqtt_failover::subscription::matches;
use modax_txn::Message;

use crate::text;

/// A broker's URL: what is shown of it leads to the same broker.
pub(crate) fn broker_url(data: &[u8]) {
    let Some(url) = text(data) else { return };
    let Ok(address) = Address::parse(url) else { return };
    let scheme = if address.broker.is_tls() { "mqtts" } else { "mqtt" };
    let shown = format!("{scheme}://{}", address.broker);
    let again = Address::parse(&shown).unwrap_or_else(|error| panic!("{shown} was shown and is refused: {error}"));
    assert_eq!(again.broker, address.broker);
    assert_eq!(again.credentials, None, "no password is shown");
}

/// A topic to publish to: whatever the outbox takes, the client takes, or a message would wait there for ever.
pub(crate) fn topic(data: &[u8]) {
    let Some(topic) = text(data) else { return };
    let by_client = check_topic(topic);
    // As a filter, `$share/` says something else: a share of what the rest of it matches (MQTT 5, 4.8.2).
    if by_client.is_ok() && !topic.starts_with("$share/") {
        let as_filter = check_filter(topic);
        // Brokers may close on these, in a filter again and again.
        assert!(
            matches!(as_filter, Ok(()) | Err(TopicError::Control | TopicError::TooDeep)),
            "a topic is a filter: {as_filter:?}"
        );
        assert!(matches(topic, topic), "a topic matches itself");
    }
    if Message::to(topic).validate().is_ok() {
        assert!(by_client.is_ok(), "the outbox takes {topic:?}, the client does not: {by_client:?}");
    }
}

/// A filter and, on the next line, a topic: the verdict is that of a slow reference.
pub(crate) fn filter(data: &[u8]) {
    let Some((filter, topic)) = text(data).and_then(|text| text.split_once('\n')) else { return };
    let verdict = matches(filter, topic);
    if check_filter(filter).is_ok() && check_topic(topic).is_ok() && !filter.starts_with("$share/") {
        assert_eq!(verdict, reference(filter, topic), "{filter:?} and {topic:?}");
    }
}

/// What a message says that it is: two texts are never one identity, or a consumer would drop a message.
pub(crate) fn identity(data: &[u8]) {
    let Some(text) = text(data) else { return };
    if let Some(identity) = Identity::parse(text) {
        assert_eq!(identity.to_string(), text);
    }
}

/// MQTT 3.1.1, 4.7, as it is written: by recursion over the levels.
fn reference(filter: &str, topic: &str) -> bool {
    fn levels(filter: &[&str], topic: &[&str]) -> bool {
        match (filter, topic) {
            (["#"], _) | ([], []) => true,
            ([want, filter @ ..], [level, topic @ ..]) => (*want == "+" || want == level) && levels(filter, topic),
            _ => false,
        }
    }
    let hidden = topic.starts_with('$') && (filter.starts_with('+') || filter.starts_with('#'));
    !hidden && levels(&filter.split('/').collect::<Vec<_>>(), &topic.split('/').collect::<Vec<_>>())
}

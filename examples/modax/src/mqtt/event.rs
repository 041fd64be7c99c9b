//! What the client tells about its connections, as JSON lines on stderr.

use std::time::Duration;

use modax_mqtt_failover::{Event, Events};
use serde_json::{Value, json};

use crate::output;

/// Prints events until the client is gone.
pub(crate) async fn print(mut events: Events) {
    while let Some(event) = events.next().await {
        let (name, fields) = describe(&event);
        output::event(name, fields);
    }
}

fn describe(event: &Event) -> (&'static str, Value) {
    match event {
        Event::Connected { broker, session_present, outage } => (
            "connected",
            json!({ "broker": broker.to_string(), "session_present": session_present, "outage_ms": outage.map(ms) }),
        ),
        Event::Disconnected { broker, reason } => {
            ("disconnected", json!({ "broker": broker.to_string(), "reason": reason }))
        }
        Event::Suspected { broker, reason } => ("suspected", json!({ "broker": broker.to_string(), "reason": reason })),
        Event::FailedOver { from, to, detected, outage } => (
            "failed_over",
            json!({
                "from": from.as_ref().map(ToString::to_string),
                "to": to.to_string(),
                "detected_ms": ms(*detected),
                "outage_ms": ms(*outage),
            }),
        ),
        Event::FailedBack { from, to, gap } => {
            ("failed_back", json!({ "from": from.to_string(), "to": to.to_string(), "gap_ms": ms(*gap) }))
        }
        Event::NotFailedBack { to, reason } => ("not_failed_back", json!({ "to": to.to_string(), "reason": reason })),
        Event::StandbyReady { broker } => ("standby_ready", json!({ "broker": broker.to_string() })),
        Event::StandbyLost { broker, reason } => {
            ("standby_lost", json!({ "broker": broker.to_string(), "reason": reason }))
        }
        Event::ConnectFailed { broker, reason } => {
            ("connect_failed", json!({ "broker": broker.to_string(), "reason": reason }))
        }
        Event::Parked { broker, reason } => ("parked", json!({ "broker": broker.to_string(), "reason": reason })),
        Event::SubscriptionRefused { filter, code } => {
            ("subscription_refused", json!({ "filter": filter, "code": code }))
        }
        Event::Shed { topic } => ("shed", json!({ "topic": topic })),
        Event::Expired { topic } => ("expired", json!({ "topic": topic })),
        Event::BrokerSlow { broker } => ("broker_slow", json!({ "broker": broker.to_string() })),
        Event::CertificatesReloaded => ("certificates_reloaded", json!({})),
        Event::CertificatesRefused { reason } => ("certificates_refused", json!({ "reason": reason })),
        Event::Lagged { missed } => ("lagged", json!({ "missed": missed })),
        Event::Closed => ("closed", json!({})),
        Event::DuplicateClientId { .. } => ("duplicate_client_id", json!({ "detail": format!("{event:?}") })),
        Event::QosLowered { filter, requested, granted } => {
            ("qos_lowered", json!({ "filter": filter, "requested": requested, "granted": granted }))
        }
        Event::Rejected { topic, reason } => ("rejected", json!({ "topic": topic, "reason": reason.to_string() })),
        Event::MessageStuck { topic, attempts } => ("message_stuck", json!({ "topic": topic, "attempts": attempts })),
        other => ("other", json!({ "detail": format!("{other:?}") })),
    }
}

/// Milliseconds with three decimals.
pub(crate) fn ms(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

//! What the client tells about its connections, as JSON lines on stderr.

use std::collections::BTreeMap;
use std::time::Duration;

use modax_mqtt_failover::{Event, Events, GapReason};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};

use crate::output;

/// A refusal that repeats, a client that tries again at once, is one line in so long, with a count.
const REPEATS_EVERY: Duration = Duration::from_secs(1);

/// Prints events until the client is gone.
pub(crate) async fn print(mut events: Events) {
    let mut repeats = Repeats::default();
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            () = sleep_until(repeats.due()), if !repeats.counts.is_empty() => {
                repeats.tell(Instant::now());
                continue;
            }
        };
        let Some(event) = event else { break };
        if let Event::ConnectFailed { broker, reason } = &event
            && repeats.holds(broker.to_string(), reason.clone(), Instant::now())
        {
            continue;
        }
        let (name, fields) = describe(&event);
        output::event(name, fields);
    }
    repeats.tell_all();
}

/// Failed attempts to connect by broker and reason: when the last line was told, and how many have come since.
#[derive(Default)]
struct Repeats {
    counts: BTreeMap<(String, String), (Instant, u64)>,
}

impl Repeats {
    /// Whether that one is only counted. The first of its kind is not.
    fn holds(&mut self, broker: String, reason: String, now: Instant) -> bool {
        if let Some((_, count)) = self.counts.get_mut(&(broker.clone(), reason.clone())) {
            *count += 1;
            return true;
        }
        self.counts.insert((broker, reason), (now, 0));
        false
    }

    /// When the next line may be due.
    fn due(&self) -> Instant {
        self.counts.values().map(|(told, _)| *told + REPEATS_EVERY).min().unwrap_or_else(Instant::now)
    }

    /// Tells what has repeated, and forgets what has not.
    fn tell(&mut self, now: Instant) {
        self.counts.retain(|(broker, reason), (told, count)| {
            if *told + REPEATS_EVERY > now {
                return true;
            }
            tell(broker, reason, *count);
            let is_repeating = *count > 0;
            (*told, *count) = (now, 0);
            is_repeating
        });
    }

    fn tell_all(self) {
        for ((broker, reason), (_, count)) in self.counts {
            tell(&broker, &reason, count);
        }
    }
}

fn tell(broker: &str, reason: &str, count: u64) {
    if count > 0 {
        output::event("connect_failed", json!({ "broker": broker, "reason": reason, "count": count }));
    }
}

/// Tells why a reader may have missed messages.
pub(crate) fn gap(reason: GapReason) {
    let (name, code) = match reason {
        GapReason::SessionLost => ("session_lost", None),
        GapReason::BrokerChanged => ("broker_changed", None),
        GapReason::Reconnected => ("reconnected", None),
        GapReason::Overflowed => ("overflowed", None),
        GapReason::PacketIdReused => ("packet_id_reused", None),
        GapReason::RefusedForNow { code } => ("refused_for_now", Some(code)),
        GapReason::Refused { code } => ("refused", Some(code)),
        _ => ("other", None),
    };
    let mut fields = json!({ "reason": name });
    if let Some(code) = code {
        fields["code"] = json!(code);
    }
    output::event("gap", fields);
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
        Event::SubscriptionPostponed { filter, code } => {
            ("subscription_postponed", json!({ "filter": filter, "code": code }))
        }
        Event::Shed { topic } => ("shed", json!({ "topic": topic })),
        Event::Expired { topic } => ("expired", json!({ "topic": topic })),
        Event::Undelivered { topic } => ("undelivered", json!({ "topic": topic })),
        Event::Unmatched { topic } => ("unmatched", json!({ "topic": topic })),
        Event::QueueDamaged { stretches, bytes } => {
            ("queue_damaged", json!({ "stretches": stretches, "bytes": bytes }))
        }
        Event::OutcomesUnwritten { messages } => ("outcomes_unwritten", json!({ "messages": messages })),
        Event::BrokerSlow { broker } => ("broker_slow", json!({ "broker": broker.to_string() })),
        Event::CertificatesReloaded => ("certificates_reloaded", json!({})),
        Event::CertificatesRefused { reason } => ("certificates_refused", json!({ "reason": reason })),
        Event::Lagged { missed } => ("lagged", json!({ "missed": missed })),
        Event::Closed => ("closed", json!({})),
        Event::DuplicateClientId { broker, takeovers } => {
            ("duplicate_client_id", json!({ "broker": broker.to_string(), "takeovers": takeovers }))
        }
        Event::QosLowered { filter, requested, granted } => {
            ("qos_lowered", json!({ "filter": filter, "requested": requested, "granted": granted }))
        }
        Event::Rejected { topic, reason } => ("rejected", json!({ "topic": topic, "reason": reason.to_string() })),
        Event::MessageStuck { topic, attempts } => ("message_stuck", json!({ "topic": topic, "attempts": attempts })),
        Event::PacketIdReused { broker, id } => ("packet_id_reused", json!({ "broker": broker.to_string(), "id": id })),
        other => ("other", json!({ "detail": format!("{other:?}") })),
    }
}

/// Milliseconds with three decimals.
pub(crate) fn ms(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_refusals_are_counted_and_told_once_a_second() {
        let mut repeats = Repeats::default();
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let refused = |repeats: &mut Repeats, broker: &str, ms| repeats.holds(broker.into(), "refused".into(), at(ms));
        assert!(!refused(&mut repeats, "a", 0), "the first is told at once");
        assert!(refused(&mut repeats, "a", 10) && refused(&mut repeats, "a", 20));
        assert!(!refused(&mut repeats, "b", 30), "another broker is told by itself");
        assert_eq!(repeats.due(), at(1000));
        repeats.tell(at(1000));
        assert_eq!(repeats.counts[&("a".into(), "refused".into())], (at(1000), 0), "told, and waited for again");
        assert_eq!(repeats.due(), at(1030));
        repeats.tell(at(2000));
        assert!(repeats.counts.is_empty(), "what does not repeat is forgotten");
        assert!(!refused(&mut repeats, "a", 2001));
    }
}

//! Counters, levels and times by the `metrics` facade, for whatever recorder the application has installed.
//!
//! Every client reports by itself; without a recorder that costs a few nanoseconds. Install the recorder before the client
//! is built, or what happened before is missing from the counters. All have the label `client`, the client's identity; those
//! marked have the label `broker`, host and port without credentials. There is no label for topics: nobody knows how many
//! there will be.
//!
//! | counter | what it counts |
//! |---|---|
//! | `modax_mqtt_messages_admitted_total` | messages admitted |
//! | `modax_mqtt_messages_resent_total` | PUBLISH packets that were sent again |
//! | `modax_mqtt_messages_received_total` | messages received from brokers |
//! | `modax_mqtt_messages_unmatched_total` | received messages that matched no subscription |
//! | `modax_mqtt_messages_overflowed_total` | QoS 0 messages dropped because their reader was too slow |
//! | `modax_mqtt_acknowledgements_late_total` | acknowledgements by the program after their connection had ended |
//! | `modax_mqtt_acknowledgements_stray_total` | acknowledgements by brokers that belong to nothing we sent |
//! | `modax_mqtt_messages_reused_ids_total` | QoS 2 messages not delivered: sent under another one's packet identifier |
//! | `modax_mqtt_queue_damaged_total` | unreadable stretches of the disk queue's files when it was opened |
//! | `modax_mqtt_outcomes_total` | outcomes of messages, with the label `outcome`: `acked`, `expired`, `shed`, `rejected`, `undelivered` |
//! | `modax_mqtt_connects_total` | connections that were accepted (`broker`) |
//! | `modax_mqtt_connect_failures_total` | attempts that failed (`broker`) |
//! | `modax_mqtt_disconnects_total` | established connections that ended (`broker`) |
//! | `modax_mqtt_suspicions_total` | times a broker was late and probed (`broker`) |
//! | `modax_mqtt_failovers_total` | times another broker took over (`broker`: that one) |
//! | `modax_mqtt_failbacks_total` | times we went back to a more preferred broker (`broker`: that one) |
//! | `modax_mqtt_duplicate_client_id_total` | times another client was found to use our identity (`broker`) |
//!
//! | gauge | what it shows |
//! |---|---|
//! | `modax_mqtt_connected` | 1 for the broker that serves us, 0 for those that did (`broker`) |
//! | `modax_mqtt_queue_messages` | messages in the queue, in flight included |
//! | `modax_mqtt_queue_bytes` | what they cost, in bytes |
//! | `modax_mqtt_inflight_messages` | messages sent or to be sent again, without an outcome |
//! | `modax_mqtt_unwritten_outcomes` | outcomes that a full disk did not take: after a crash their messages are sent again |
//!
//! | histogram | what it measures |
//! |---|---|
//! | `modax_mqtt_acknowledgement_seconds` | from admission to acknowledgement, of each message acknowledged |
//! | `modax_mqtt_failover_detection_seconds` | from the first unanswered packet (or the break itself) to the verdict |
//! | `modax_mqtt_failover_outage_seconds` | from the same moment to the acceptance by the next broker |
//!
//! ```
//! modax_mqtt_failover::metrics::describe(); // for recorders that show help texts; after the recorder is installed
//! ```

use std::sync::{Arc, Mutex, PoisonError};

use ::metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};

use crate::{
    broker::Broker,
    event::{Event, Stats, Status},
    message::Outcome,
};

/// Name, help text, and where it stands.
type Counted = (&'static str, &'static str, fn(&Stats) -> u64);

/// Counters that are read, rather than told.
const COUNTED: [Counted; 9] = [
    ("modax_mqtt_messages_admitted_total", "Messages admitted", |stats| stats.admitted),
    ("modax_mqtt_messages_resent_total", "PUBLISH packets that were sent again", |stats| stats.resent),
    ("modax_mqtt_messages_received_total", "Messages received from brokers", |stats| stats.received),
    ("modax_mqtt_messages_unmatched_total", "Received messages that matched no subscription", |stats| stats.unmatched),
    ("modax_mqtt_messages_overflowed_total", "QoS 0 messages dropped for a slow reader", |stats| stats.overflowed),
    ("modax_mqtt_acknowledgements_late_total", "Acknowledgements by the program that came too late", |stats| {
        stats.late_acks
    }),
    ("modax_mqtt_acknowledgements_stray_total", "Acknowledgements by brokers for nothing we sent", |stats| {
        stats.stray_acks
    }),
    ("modax_mqtt_messages_reused_ids_total", "QoS 2 messages sent under another one's packet identifier", |stats| {
        stats.reused_ids
    }),
    ("modax_mqtt_queue_damaged_total", "Unreadable stretches of the disk queue's files", |stats| stats.damaged),
];

const OUTCOMES: &str = "modax_mqtt_outcomes_total";
const CONNECTS: &str = "modax_mqtt_connects_total";
const CONNECT_FAILURES: &str = "modax_mqtt_connect_failures_total";
const DISCONNECTS: &str = "modax_mqtt_disconnects_total";
const SUSPICIONS: &str = "modax_mqtt_suspicions_total";
const FAILOVERS: &str = "modax_mqtt_failovers_total";
const FAILBACKS: &str = "modax_mqtt_failbacks_total";
const DUPLICATE_CLIENT_ID: &str = "modax_mqtt_duplicate_client_id_total";
const CONNECTED: &str = "modax_mqtt_connected";
const QUEUE_MESSAGES: &str = "modax_mqtt_queue_messages";
const QUEUE_BYTES: &str = "modax_mqtt_queue_bytes";
const INFLIGHT: &str = "modax_mqtt_inflight_messages";
const UNWRITTEN: &str = "modax_mqtt_unwritten_outcomes";
const ACKNOWLEDGEMENT: &str = "modax_mqtt_acknowledgement_seconds";
const DETECTION: &str = "modax_mqtt_failover_detection_seconds";
const OUTAGE: &str = "modax_mqtt_failover_outage_seconds";

/// Tells the recorder that is installed what each of them means, and in which unit.
pub fn describe() {
    for (name, text, _) in COUNTED {
        describe_counter!(name, Unit::Count, text);
    }
    let counters = [
        (OUTCOMES, "Outcomes of messages"),
        (CONNECTS, "Connections that were accepted"),
        (CONNECT_FAILURES, "Attempts to connect that failed"),
        (DISCONNECTS, "Established connections that ended"),
        (SUSPICIONS, "Times a broker was late and probed"),
        (FAILOVERS, "Times another broker took over"),
        (FAILBACKS, "Times a more preferred broker took over again"),
        (DUPLICATE_CLIENT_ID, "Times another client was found to use our identity"),
    ];
    for (name, text) in counters {
        describe_counter!(name, Unit::Count, text);
    }
    describe_gauge!(CONNECTED, Unit::Count, "1 for the broker that serves us");
    describe_gauge!(QUEUE_MESSAGES, Unit::Count, "Messages in the queue, in flight included");
    describe_gauge!(QUEUE_BYTES, Unit::Bytes, "What the messages in the queue cost");
    describe_gauge!(INFLIGHT, Unit::Count, "Messages sent or to be sent again, without an outcome");
    describe_gauge!(UNWRITTEN, Unit::Count, "Outcomes that a full disk did not take");
    describe_histogram!(ACKNOWLEDGEMENT, Unit::Seconds, "From admission to acknowledgement");
    describe_histogram!(DETECTION, Unit::Seconds, "From the first unanswered packet to the verdict");
    describe_histogram!(OUTAGE, Unit::Seconds, "From the first unanswered packet to the next broker");
}

/// Reports for one client.
pub(crate) struct Meter {
    client: Arc<str>,
    reported: Mutex<Reported>,
}

/// What the recorder knows.
#[derive(Default)]
struct Reported {
    stats: Stats,
    connected: Option<Broker>,
}

impl Meter {
    pub(crate) fn new(client: Arc<str>) -> Self {
        Self { client, reported: Mutex::default() }
    }

    pub(crate) fn event(&self, event: &Event) {
        match event {
            Event::Connected { broker, .. } => self.count(CONNECTS, broker),
            Event::ConnectFailed { broker, .. } | Event::Parked { broker, .. } => self.count(CONNECT_FAILURES, broker),
            Event::Disconnected { broker, .. } => self.count(DISCONNECTS, broker),
            Event::Suspected { broker, .. } => self.count(SUSPICIONS, broker),
            Event::FailedOver { to, detected, outage, .. } => {
                self.count(FAILOVERS, to);
                histogram!(DETECTION, "client" => self.client()).record(detected.as_secs_f64());
                histogram!(OUTAGE, "client" => self.client()).record(outage.as_secs_f64());
            }
            Event::FailedBack { to, .. } => self.count(FAILBACKS, to),
            Event::DuplicateClientId { broker, .. } => self.count(DUPLICATE_CLIENT_ID, broker),
            // Counted as outcomes, shown as levels, or seldom enough to be read.
            _ => {}
        }
    }

    pub(crate) fn outcome(&self, outcome: &Outcome) {
        let word = match outcome {
            Outcome::Acked { latency, .. } => {
                histogram!(ACKNOWLEDGEMENT, "client" => self.client()).record(latency.as_secs_f64());
                "acked"
            }
            Outcome::Expired { .. } => "expired",
            Outcome::Shed => "shed",
            Outcome::Rejected { .. } => "rejected",
            Outcome::Undelivered { .. } => "undelivered",
        };
        counter!(OUTCOMES, "client" => self.client(), "outcome" => word).increment(1);
    }

    /// What has changed since the last time. Two clients of one identity, in one process, add to one counter.
    pub(crate) fn measure(&self, stats: &Stats, status: &Status) {
        let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        if reported.stats != *stats {
            for (name, _, read) in COUNTED {
                let more = read(stats).saturating_sub(read(&reported.stats));
                if more > 0 {
                    counter!(name, "client" => self.client()).increment(more);
                }
            }
            let levels = [
                (QUEUE_MESSAGES, stats.queue_messages),
                (QUEUE_BYTES, stats.queue_bytes),
                (INFLIGHT, stats.inflight),
                (UNWRITTEN, stats.unwritten),
            ];
            for (name, level) in levels {
                gauge!(name, "client" => self.client()).set(level as f64);
            }
            reported.stats = *stats;
        }
        if reported.connected != status.connected {
            for (broker, level) in [(&reported.connected, 0.0), (&status.connected, 1.0)] {
                if let Some(broker) = broker {
                    gauge!(CONNECTED, "client" => self.client(), "broker" => broker.to_string()).set(level);
                }
            }
            reported.connected.clone_from(&status.connected);
        }
    }

    fn count(&self, name: &'static str, broker: &Broker) {
        counter!(name, "client" => self.client(), "broker" => broker.to_string()).increment(1);
    }

    fn client(&self) -> Arc<str> {
        Arc::clone(&self.client)
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, collections::BTreeMap};

    use ::metrics::{Counter, Gauge, GaugeFn, Histogram, Key, KeyName, Metadata, Recorder, SharedString};

    use super::*;

    #[derive(Default)]
    struct Levels(RefCell<BTreeMap<String, Arc<Level>>>);

    #[derive(Default)]
    struct Level(Mutex<f64>);

    impl GaugeFn for Level {
        fn increment(&self, _: f64) {}
        fn decrement(&self, _: f64) {}
        fn set(&self, value: f64) {
            *self.0.lock().unwrap() = value;
        }
    }

    impl Recorder for Levels {
        fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
            Counter::noop()
        }
        fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
            Gauge::from_arc(Arc::clone(self.0.borrow_mut().entry(key.name().to_owned()).or_default()))
        }
        fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
            Histogram::noop()
        }
    }

    #[test]
    fn every_level_is_shown() {
        let levels = Levels::default();
        let stats = Stats { queue_messages: 1, queue_bytes: 2, inflight: 3, unwritten: 4, ..Stats::default() };
        let status = Status { connected: Some(Broker::new("a", 1)), ..Status::default() };
        ::metrics::with_local_recorder(&levels, || Meter::new(Arc::from("me")).measure(&stats, &status));

        let shown = levels.0.borrow();
        let shown = |name| shown.get(name).map(|level| *level.0.lock().unwrap());
        let names = [QUEUE_MESSAGES, QUEUE_BYTES, INFLIGHT, UNWRITTEN, CONNECTED];
        assert_eq!(names.map(shown), [Some(1.0), Some(2.0), Some(3.0), Some(4.0), Some(1.0)]);
    }
}

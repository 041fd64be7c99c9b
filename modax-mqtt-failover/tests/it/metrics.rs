//! What a recorder of the `metrics` facade hears of a client.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder, SharedString, Unit,
};
use modax_mqtt_failover::{Client, Event, Message, Queue, WhenFull};
use modax_testbed::broker::{Script, ScriptedBroker};

const DEADLINE: Duration = Duration::from_secs(60);

#[derive(Clone, Default)]
struct Heard {
    /// By name and labels.
    values: Arc<Mutex<BTreeMap<String, f64>>>,
    described: Arc<Mutex<BTreeSet<String>>>,
}

struct Place(Heard, String);

impl Place {
    fn of(heard: &Heard, key: &Key) -> Arc<Self> {
        let labels: Vec<_> = key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
        Arc::new(Self(heard.clone(), format!("{}{{{}}}", key.name(), labels.join(","))))
    }

    fn change(&self, change: impl FnOnce(&mut f64)) {
        change(self.0.values.lock().unwrap().entry(self.1.clone()).or_default());
    }
}

impl CounterFn for Place {
    fn increment(&self, value: u64) {
        self.change(|count| *count += value as f64);
    }
    fn absolute(&self, value: u64) {
        self.change(|count| *count = value as f64);
    }
}

impl GaugeFn for Place {
    fn increment(&self, value: f64) {
        self.change(|level| *level += value);
    }
    fn decrement(&self, value: f64) {
        self.change(|level| *level -= value);
    }
    fn set(&self, value: f64) {
        self.change(|level| *level = value);
    }
}

/// Counts the samples.
impl HistogramFn for Place {
    fn record(&self, value: f64) {
        assert!(value.is_finite() && value >= 0.0, "{value} seconds");
        self.change(|count| *count += 1.0);
    }
}

impl Heard {
    fn describe(&self, name: &KeyName) {
        self.described.lock().unwrap().insert(name.as_str().to_owned());
    }

    /// The sum over all labels that hold these words; `None` where there is none.
    fn value(&self, name: &str, words: &[&str]) -> Option<f64> {
        let values = self.values.lock().unwrap();
        let fits = |key: &&String| key.split('{').next() == Some(name) && words.iter().all(|word| key.contains(word));
        let found: Vec<_> = values.keys().filter(fits).map(|key| values[key]).collect();
        (!found.is_empty()).then(|| found.iter().sum())
    }
}

impl Recorder for Heard {
    fn describe_counter(&self, name: KeyName, _: Option<Unit>, _: SharedString) {
        self.describe(&name);
    }
    fn describe_gauge(&self, name: KeyName, _: Option<Unit>, _: SharedString) {
        self.describe(&name);
    }
    fn describe_histogram(&self, name: KeyName, _: Option<Unit>, _: SharedString) {
        self.describe(&name);
    }
    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(Place::of(self, key))
    }
    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(Place::of(self, key))
    }
    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(Place::of(self, key))
    }
}

/// A client's life under a recorder of this thread, on which all of it runs.
fn recorded(life: impl Future<Output = ()>) -> Heard {
    let heard = Heard::default();
    metrics::with_local_recorder(&heard, || {
        modax_mqtt_failover::metrics::describe();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { tokio::time::timeout(DEADLINE, life).await.expect("in time") });
    });
    heard
}

#[test]
fn a_recorder_hears_of_messages_failovers_and_levels_and_never_of_topics_or_passwords() {
    let heard = recorded(async {
        let brokers =
            [ScriptedBroker::start(Script::new()).await.unwrap(), ScriptedBroker::start(Script::new()).await.unwrap()];
        let urls = brokers.each_ref().map(|broker| broker.url().replace("mqtt://", "mqtt://someone:canary@"));
        let client = Client::builder("measured").brokers(urls).unwrap().build().unwrap();
        let mut events = client.events();
        for _ in 0..3 {
            let receipt = client.publish(Message::new("plant/canary/topic", "payload")).await.unwrap();
            assert!(receipt.acked().await.is_acked());
        }
        brokers[0].stop();
        while !matches!(events.next().await.expect("an event"), Event::FailedOver { .. }) {}
        drop(client.close(Duration::from_secs(5)).await);
    });

    assert_eq!(heard.value("modax_mqtt_messages_admitted_total", &["client=measured"]), Some(3.0));
    assert_eq!(heard.value("modax_mqtt_outcomes_total", &["outcome=acked"]), Some(3.0));
    assert_eq!(heard.value("modax_mqtt_acknowledgement_seconds", &["client=measured"]), Some(3.0));
    assert_eq!(heard.value("modax_mqtt_connects_total", &["broker=127.0.0.1:"]), Some(2.0));
    assert_eq!(heard.value("modax_mqtt_disconnects_total", &["broker=127.0.0.1:"]), Some(1.0));
    assert_eq!(heard.value("modax_mqtt_failovers_total", &["broker=127.0.0.1:"]), Some(1.0));
    assert_eq!(heard.value("modax_mqtt_failover_outage_seconds", &[]), Some(1.0));
    assert_eq!(heard.value("modax_mqtt_failover_detection_seconds", &[]), Some(1.0));
    assert_eq!(heard.value("modax_mqtt_queue_messages", &[]), Some(0.0));
    assert_eq!(heard.value("modax_mqtt_connected", &[]), Some(0.0), "a closed client is connected to nobody");

    let keys: Vec<_> = heard.values.lock().unwrap().keys().cloned().collect();
    assert!(keys.iter().all(|key| !key.contains("canary") && !key.contains("plant")), "{keys:?}");
    let described = heard.described.lock().unwrap();
    for key in &keys {
        let name = key.split('{').next().unwrap_or(key);
        assert!(described.contains(name), "{name} has no description");
        let unit = ["_total", "_seconds", "_bytes", "_messages", "_outcomes", "_connected"]
            .iter()
            .any(|unit| name.ends_with(unit));
        assert!(name.starts_with("modax_mqtt_") && unit, "{name} breaks the conventions");
    }
}

#[test]
fn a_recorder_hears_what_was_shed_and_what_was_left() {
    let heard = recorded(async {
        let queue = Queue::memory().max_messages(2).when_full(WhenFull::ShedOldest);
        let client = Client::builder("full").brokers(["mqtt://127.0.0.1:1"]).unwrap().queue(queue).build().unwrap();
        for _ in 0..5 {
            drop(client.try_publish(Message::new("t", "payload")).unwrap());
        }
        drop(client.close(Duration::ZERO).await);
    });

    assert_eq!(heard.value("modax_mqtt_messages_admitted_total", &["client=full"]), Some(5.0));
    assert_eq!(heard.value("modax_mqtt_outcomes_total", &["outcome=shed"]), Some(3.0));
    assert_eq!(heard.value("modax_mqtt_outcomes_total", &["outcome=undelivered"]), Some(2.0));
    let levels =
        ["modax_mqtt_queue_messages", "modax_mqtt_queue_bytes"].map(|name| heard.value(name, &["client=full"]));
    assert_eq!(levels, [Some(0.0); 2], "a closed client holds nothing");
}

#[test]
fn every_name_that_is_documented_is_described_and_the_other_way_round() {
    let heard = recorded(async {});
    let source = include_str!("../../src/metrics.rs");
    let rows = source.lines().filter_map(|line| line.strip_prefix("//! | `")?.split('`').next());
    let documented: BTreeSet<_> = rows.map(str::to_owned).collect();

    assert_eq!(documented, *heard.described.lock().unwrap());
}

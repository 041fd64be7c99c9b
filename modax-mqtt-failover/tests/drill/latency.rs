//! A round trip that jumps from milliseconds to seconds, through a proxy before a real broker.

use std::time::Duration;

use modax_mqtt_failover::{Client, Message};
use modax_testbed::{
    Ground,
    proxy::{Direction, Fault, Proxy},
};

use crate::{
    DEADLINE,
    scale::{count, row},
    serving,
};

/// Messages at each round trip.
const MESSAGES: u64 = 8;
/// Connections that stood at each round trip. The deadline of an acknowledgement doubles with each, from 100 ms on, and is
/// waited for twice.
const MOST_CONNECTS: u64 = 10;
/// At 5 s each of six connections takes four CONNECTs, with deadlines of 1, 2, 4 and 8 s.
const LEARNED: Duration = Duration::from_secs(240);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f09_a_round_trip_that_jumps_from_milliseconds_to_seconds_is_learned_and_every_message_is_acknowledged() {
    let ground = Ground::start().await.expect("a ground");
    let broker = ground.mosquitto().await.expect("mosquitto");
    let proxy = Proxy::start(broker.addr()).await.expect("a proxy");
    let client = Client::builder("drill").brokers([proxy.url("mqtt")]).unwrap().build().expect("a client");
    serving(&client).await;

    for milliseconds in [50, count("DRILL_ROUND_TRIP_MS", 2000)] {
        let (before, delayed) = (client.stats(), proxy.fired().latency);
        let fixed = Duration::from_millis(milliseconds.into()) / 2;
        proxy.set(Direction::Both, Fault::Latency { fixed, jitter: Duration::ZERO });
        let mut receipts = Vec::new();
        for number in 0..MESSAGES {
            receipts.push(client.publish(Message::new("drill/x", number.to_string())).await.expect("admitted"));
        }
        for receipt in receipts {
            let outcome = tokio::time::timeout(LEARNED, receipt.acked()).await;
            assert!(outcome.expect("it is learned in time").is_acked(), "at {milliseconds} ms");
        }
        assert!(proxy.fired().latency > delayed, "nothing was delayed");
        let after = client.stats();
        let connects = after.connects - before.connects;
        assert!(connects <= MOST_CONNECTS, "{connects} connections at {milliseconds} ms");
        row(&format!(
            "round trip of {milliseconds} ms: {MESSAGES} messages acknowledged, {connects} connections, {} tries without \
             CONNACK, {} resent",
            after.connect_failures - before.connect_failures,
            after.resent - before.resent
        ));
    }

    // It is known, and nobody is left for it.
    let connects = client.stats().connects;
    let receipt = client.publish(Message::new("drill/x", "last")).await.expect("admitted");
    let outcome = tokio::time::timeout(DEADLINE, receipt.acked()).await.expect("in time");
    assert!(outcome.is_acked());
    assert_eq!(client.stats().connects, connects);
    proxy.clear();
    client.close(DEADLINE).await;
    ground.stop().await;
}

//! What a broker keeps for a session while its client is away, and what becomes of it.

use std::{ops::Range, time::Duration};

use modax_mqtt_failover::{Client, Message, Qos, Received, Subscription, Version};
use modax_testbed::{Ground, Mosquitto, wait};

use crate::DEADLINE;

const KEPT: Range<u32> = 0..600;

fn client(broker: &Mosquitto, id: &str, version: Version) -> Client {
    Client::builder(id).brokers([broker.url()]).unwrap().version(version).build().unwrap()
}

/// Leaves a session with messages, and nobody connected to it.
async fn session_with_messages(broker: &Mosquitto, version: Version, qos: Qos) {
    let first = client(broker, "away", version);
    let publisher = client(broker, "publisher", version);
    let mut stream = first.subscribe("drill/#", qos).await.unwrap();
    // Not acknowledged: it shows that the subscription stands.
    let probe = async {
        loop {
            drop(publisher.publish(Message::new("drill/probe", "")).await.unwrap().acked().await);
            if tokio::time::timeout(Duration::from_millis(100), stream.next()).await.is_ok() {
                return;
            }
        }
    };
    tokio::time::timeout(DEADLINE, probe).await.expect("a subscription in time");
    first.close(DEADLINE).await;
    for number in KEPT {
        let receipt = publisher.publish(Message::new("drill/kept", number.to_string()).qos(qos)).await.unwrap();
        assert!(receipt.acked().await.is_acked());
    }
    publisher.close(DEADLINE).await;
}

async fn take(stream: &mut Subscription, count: usize) -> Vec<u32> {
    let mut taken = Vec::new();
    while taken.len() < count {
        match tokio::time::timeout(DEADLINE, stream.next()).await.expect("in time") {
            Some(Received::Delivery(delivery)) => {
                if delivery.topic() == "drill/kept" {
                    taken.push(std::str::from_utf8(delivery.payload()).unwrap().parse().unwrap());
                }
                delivery.ack();
            }
            Some(_) => {}
            None => panic!("the stream ended after {} of {count}", taken.len()),
        }
    }
    taken
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_session_kept_waits_for_a_program_that_subscribes_late() {
    let ground = Ground::start().await.expect("a ground");
    for (version, qos) in
        [(Version::V311, Qos::AtLeastOnce), (Version::V311, Qos::ExactlyOnce), (Version::V5, Qos::AtLeastOnce)]
    {
        let broker = ground.mosquitto().await.expect("mosquitto");
        session_with_messages(&broker, version, qos).await;
        let late = client(&broker, "away", version);
        wait::until(DEADLINE, "the broker sends what it kept", async || late.stats().received >= 20).await.unwrap();

        let mut stream = late.subscribe("drill/#", qos).await.unwrap();

        assert_eq!(take(&mut stream, KEPT.len()).await, KEPT.collect::<Vec<_>>());
        assert_eq!(late.stats().unmatched, 0);
        late.close(DEADLINE).await;
    }
    ground.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_before_a_close_does_not_come_again() {
    let ground = Ground::start().await.expect("a ground");
    let broker = ground.mosquitto().await.expect("mosquitto");
    session_with_messages(&broker, Version::V311, Qos::AtLeastOnce).await;
    let mut seen = Vec::new();
    for _ in 0..3 {
        let client = client(&broker, "away", Version::V311);
        let mut stream = client.subscribe("drill/#", Qos::AtLeastOnce).await.unwrap();
        seen.extend(take(&mut stream, 200).await);
        client.close(DEADLINE).await;
    }
    assert_eq!(seen, KEPT.collect::<Vec<_>>());
    ground.stop().await;
}

//! Our client, with its defaults but for the window.

use std::time::{Duration, Instant};

use bytes::Bytes;
use modax_mqtt_failover::{Client, Message, Outcome, Queue, Topology};
use tokio::sync::mpsc;

use crate::{
    contestant::{Broker, INFLIGHT, Latency, PAYLOAD},
    figures::at,
};

fn client(brokers: &[Broker]) -> Client {
    Client::builder("ours")
        .brokers(brokers.iter().map(|broker| broker.url()))
        .and_then(|builder| {
            let builder = builder.topology(Topology::Independent).max_inflight(INFLIGHT);
            builder.queue(Queue::memory().max_messages(10_000)).build()
        })
        .expect("a client")
}

pub(crate) async fn throughput(broker: Broker, messages: u32) -> f64 {
    let client = client(std::slice::from_ref(&broker));
    let payload = Bytes::from_static(&PAYLOAD);
    client.publish(Message::new("bench", payload.clone())).await.expect("admitted").acked().await;
    let started = Instant::now();
    let (hand_over, mut receipts) = mpsc::channel(20_000);
    let publisher = client.clone();
    tokio::spawn(async move {
        for _ in 0..messages {
            let receipt = publisher.publish(Message::new("bench", payload.clone())).await.expect("admitted");
            hand_over.send(receipt).await.expect("a counter");
        }
    });
    let mut acked = 0;
    while let Some(receipt) = receipts.recv().await {
        acked += u32::from(receipt.acked().await.is_acked());
    }
    assert_eq!(acked, messages);
    let rate = f64::from(messages) / started.elapsed().as_secs_f64();
    client.close(Duration::from_secs(5)).await;
    rate
}

pub(crate) async fn latency(broker: &Broker) -> Latency {
    let client = client(std::slice::from_ref(broker));
    client.publish(Message::new("bench", "x")).await.expect("admitted").acked().await;
    let mut tick = tokio::time::interval(Duration::from_millis(1));
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..2000 {
        tick.tick().await;
        let started = Instant::now();
        let receipt = client.publish(Message::new("bench", "x")).await.expect("admitted");
        waiting.spawn(async move {
            receipt.acked().await;
            started.elapsed().as_secs_f64() * 1e6
        });
    }
    let taken = waiting.join_all().await;
    client.close(Duration::from_secs(5)).await;
    Latency { p50: at(&taken, 50), p99: at(&taken, 99) }
}

/// 1000 messages a second, so many, each with its number; each acknowledgement reported.
pub(crate) async fn publish(brokers: Vec<Broker>, messages: u32, acked: mpsc::UnboundedSender<(Instant, usize)>) {
    let client = client(&brokers);
    let mut tick = tokio::time::interval(Duration::from_millis(1));
    for number in 0..messages {
        tick.tick().await;
        let receipt = client.publish(Message::new("bench", number.to_string())).await.expect("admitted");
        let (acked, brokers) = (acked.clone(), brokers.clone());
        tokio::spawn(async move {
            if let Outcome::Acked { broker, .. } = receipt.acked().await {
                let index = brokers.iter().position(|one| one.addr().port() == broker.port());
                let _ = acked.send((Instant::now(), index.expect("one of ours")));
            }
        });
    }
    // The client goes on until it is no longer wanted.
    std::future::pending::<()>().await;
}

/// Publishes once, then only waits until another broker serves; then publishes again.
pub(crate) async fn idle(brokers: Vec<Broker>, acked: mpsc::UnboundedSender<(Instant, usize)>) {
    let client = client(&brokers);
    for (index, next) in brokers.iter().enumerate() {
        while client.status().connected.map(|broker| broker.port()) != Some(next.addr().port()) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        client.publish(Message::new("bench", "x")).await.expect("admitted").acked().await;
        let _ = acked.send((Instant::now(), index));
    }
}

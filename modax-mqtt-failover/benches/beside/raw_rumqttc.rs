//! rumqttc's own event loop, driven as its users drive it.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use rumqttc::{AsyncClient, Event, EventLoop, MqttOptions, Outgoing, Packet, QoS};
use tokio::sync::mpsc;

use crate::{
    contestant::{Broker, INFLIGHT, Latency, PAYLOAD},
    figures::at,
};

/// With its defaults: it is no faster without Nagle's algorithm, neither in throughput nor in latency.
fn options(broker: &Broker, keep_alive: Option<Duration>) -> MqttOptions {
    let mut options = MqttOptions::new("peer", broker.addr().ip().to_string(), broker.addr().port());
    options.set_inflight(INFLIGHT);
    if let Some(time) = keep_alive {
        options.set_keep_alive(time);
    }
    options
}

async fn connected(broker: &Broker) -> (AsyncClient, EventLoop) {
    let (client, mut events) = AsyncClient::new(options(broker, None), 100);
    while !matches!(events.poll().await, Ok(Event::Incoming(Packet::ConnAck(_)))) {}
    (client, events)
}

pub(crate) async fn throughput(broker: Broker, messages: u32) -> f64 {
    let (client, mut events) = connected(&broker).await;
    let started = Instant::now();
    let publisher = tokio::spawn(async move {
        for _ in 0..messages {
            client.publish("bench", QoS::AtLeastOnce, false, PAYLOAD.to_vec()).await.expect("taken");
        }
        // Kept until the loop below has counted all.
        std::future::pending::<()>().await;
    });
    let mut acked = 0;
    while acked < messages {
        if let Ok(Event::Incoming(Packet::PubAck(_))) = events.poll().await {
            acked += 1;
        }
    }
    publisher.abort();
    f64::from(messages) / started.elapsed().as_secs_f64()
}

pub(crate) async fn latency(broker: &Broker) -> Latency {
    let (client, mut events) = connected(broker).await;
    let (note, mut published) = mpsc::unbounded_channel();
    let publisher = tokio::spawn(async move {
        let mut tick = tokio::time::interval(Duration::from_millis(1));
        for _ in 0..2000 {
            tick.tick().await;
            let _ = note.send(Instant::now());
            client.publish("bench", QoS::AtLeastOnce, false, "x").await.expect("taken");
        }
        std::future::pending::<()>().await;
    });
    // It says under which identifier it sent what, in order; a channel keeps the times in the same order.
    let (mut sent, mut taken) = (BTreeMap::new(), Vec::new());
    while taken.len() < 2000 {
        match events.poll().await {
            Ok(Event::Outgoing(Outgoing::Publish(id))) => {
                sent.insert(id, published.recv().await.expect("a publisher"));
            }
            Ok(Event::Incoming(Packet::PubAck(ack))) => {
                let started = sent.remove(&ack.pkid).expect("sent before");
                taken.push(started.elapsed().as_secs_f64() * 1e6);
            }
            _ => {}
        }
    }
    publisher.abort();
    Latency { p50: at(&taken, 50), p99: at(&taken, 99) }
}

pub(crate) async fn publish(
    brokers: Vec<Broker>,
    keep_alive: Option<Duration>,
    at_once: bool,
    messages: u32,
    acked: mpsc::UnboundedSender<(Instant, usize)>,
) {
    let (client, mut events) = AsyncClient::new(options(&brokers[0], keep_alive), 100);
    tokio::spawn(async move {
        let mut tick = tokio::time::interval(Duration::from_millis(1));
        for number in 0..messages {
            tick.tick().await;
            if client.publish("bench", QoS::AtLeastOnce, false, number.to_string()).await.is_err() {
                return;
            }
        }
        std::future::pending::<()>().await;
    });
    let (mut active, mut works) = (0, false);
    loop {
        match events.poll().await {
            Ok(Event::Incoming(Packet::ConnAck(_))) => works = true,
            Ok(Event::Incoming(Packet::PubAck(_))) => {
                let _ = acked.send((Instant::now(), active));
            }
            Ok(_) => {}
            Err(_) => {
                active = (active + 1) % brokers.len();
                events.mqtt_options = options(&brokers[active], keep_alive);
                if !(std::mem::take(&mut works) && at_once) {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
        }
    }
}

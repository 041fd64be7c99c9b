//! Ours beside rumqttc on the same brokers in the same run, interleaved: throughput, a killed broker, a hung broker.
//!
//! `cargo bench -p modax-mqtt-failover --bench beside_rumqttc` (or `make bench-mqtt`). Read the ratios; absolute figures
//! are those of one machine at one load. The peer is rumqttc's own event loop, driven as its users drive it: the next
//! broker in the list after an error, with a pause of 10 ms.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use modax_mqtt_failover::{Client, Message, Queue, Topology};
use modax_testbed::{Ground, Mosquitto, TestbedError};
use rumqttc::{AsyncClient, Event, MqttOptions, Packet, QoS};
use tokio::sync::watch;

const INFLIGHT: u16 = 100;
const MESSAGES: u32 = 50_000;
const ROUNDS: usize = 7;
const KILLS: usize = 20;
const STOPS: usize = 3;
/// A client that waits for longer than this has not failed over. Two of the peer's keep-alives, and some.
const GIVE_UP: Duration = Duration::from_secs(30);

#[tokio::main]
async fn main() -> Result<(), TestbedError> {
    println!("load at the start: {}", load());
    throughput().await?;
    let kill = |broker: Broker| async move { broker.kill().await };
    let ours = outages("SIGKILL", KILLS, "ours, defaults", ours, kill).await?;
    let peer = outages("SIGKILL", KILLS, "rumqttc", rumqttc, kill).await?;
    ratio("SIGKILL, median outage, ours / rumqttc", median(&ours), median(&peer));
    let stop = |broker: Broker| async move { broker.stop() };
    let ours = outages("SIGSTOP", STOPS * 3, "ours, defaults", self::ours, stop).await?;
    let peer = outages("SIGSTOP", STOPS, "rumqttc, keep-alive 5 s", rumqttc, stop).await?;
    ratio("SIGSTOP, median outage, ours / rumqttc at keep-alive 5 s", median(&ours), median(&peer));
    println!("load at the end: {}", load());
    Ok(())
}

type Broker = std::sync::Arc<Mosquitto>;

/// Messages a second over one broker, with the same window, the two in turn.
async fn throughput() -> Result<(), TestbedError> {
    let ground = Ground::start().await?;
    let broker = ground.mosquitto().await?;
    let (mut ours, mut peer) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let one = our_throughput(&broker).await;
        let other = rumqttc_throughput(&broker).await;
        // The first round warms up.
        if round > 0 {
            ours.push(one);
            peer.push(other);
        }
    }
    println!("QoS 1, 64 B, {INFLIGHT} in flight, one mosquitto, {ROUNDS} rounds of {MESSAGES} messages, msg/s:");
    row("ours", &ours);
    row("rumqttc", &peer);
    let ratios: Vec<f64> = ours.iter().zip(&peer).map(|(one, other)| one / other).collect();
    row("ours / rumqttc, round by round", &ratios);
    ground.stop().await;
    Ok(())
}

async fn our_throughput(broker: &Mosquitto) -> f64 {
    let client = Client::builder("ours")
        .brokers([broker.url()])
        .and_then(|builder| builder.max_inflight(INFLIGHT).queue(Queue::memory().max_messages(10_000)).build())
        .expect("a client");
    let payload = bytes::Bytes::from_static(&[b'x'; 64]);
    client.publish(Message::new("bench", payload.clone())).await.expect("admitted").acked().await;
    let started = Instant::now();
    let (hand_over, mut receipts) = tokio::sync::mpsc::channel(20_000);
    let publisher = client.clone();
    tokio::spawn(async move {
        for _ in 0..MESSAGES {
            let receipt = publisher.publish(Message::new("bench", payload.clone())).await.expect("admitted");
            hand_over.send(receipt).await.expect("a counter");
        }
    });
    let mut acked = 0;
    while let Some(receipt) = receipts.recv().await {
        acked += u32::from(receipt.acked().await.is_acked());
    }
    assert_eq!(acked, MESSAGES);
    let rate = f64::from(MESSAGES) / started.elapsed().as_secs_f64();
    client.close(Duration::from_secs(5)).await;
    rate
}

async fn rumqttc_throughput(broker: &Mosquitto) -> f64 {
    let mut options = MqttOptions::new("peer", broker.addr().ip().to_string(), broker.addr().port());
    options.set_inflight(INFLIGHT);
    let (client, mut events) = AsyncClient::new(options, 100);
    while !matches!(events.poll().await, Ok(Event::Incoming(Packet::ConnAck(_)))) {}
    let started = Instant::now();
    tokio::spawn(async move {
        for _ in 0..MESSAGES {
            client.publish("bench", QoS::AtLeastOnce, false, vec![b'x'; 64]).await.expect("taken");
        }
        // Kept until the loop below has counted all.
        std::future::pending::<()>().await;
    });
    let mut acked = 0;
    while acked < MESSAGES {
        if let Ok(Event::Incoming(Packet::PubAck(_))) = events.poll().await {
            acked += 1;
        }
    }
    f64::from(MESSAGES) / started.elapsed().as_secs_f64()
}

/// Time from the fault to the first acknowledgement after it, again and again, in milliseconds.
async fn outages<C, F, B, Broken>(
    fault: &str,
    times: usize,
    who: &str,
    client: C,
    break_it: B,
) -> Result<Vec<f64>, TestbedError>
where
    C: Fn(Vec<Broker>, watch::Sender<Instant>) -> F,
    F: Future<Output = ()> + Send + 'static,
    B: Fn(Broker) -> Broken,
    Broken: Future<Output = ()>,
{
    let mut measured = Vec::new();
    for _ in 0..times {
        let ground = Ground::start().await?;
        let brokers = vec![Broker::new(ground.mosquitto().await?), Broker::new(ground.mosquitto().await?)];
        let (acked, mut seen) = watch::channel(Instant::now());
        let task = tokio::spawn(client(brokers.clone(), acked));
        // Warm: a second of traffic, for the round trips that a deadline is made of.
        let warm = Instant::now() + Duration::from_secs(1);
        while *seen.borrow() < warm {
            seen.changed().await.expect("a client");
        }
        let broken = Instant::now();
        break_it(brokers[0].clone()).await;
        // Acknowledgements on their way when the broker broke are not the next broker's.
        let settled = Instant::now() + Duration::from_millis(1);
        let first = tokio::time::timeout(GIVE_UP, seen.wait_for(|at| *at > settled)).await;
        let outage = first.map_or(GIVE_UP, |at| at.expect("a client").saturating_duration_since(broken));
        measured.push(outage.as_secs_f64() * 1000.0);
        task.abort();
        brokers[0].cont();
        ground.stop().await;
    }
    row(&format!("{fault} of the active broker, {who}, n = {times}, ms"), &measured);
    Ok(measured)
}

/// 1000 messages a second, each acknowledgement reported.
async fn ours(brokers: Vec<Broker>, acked: watch::Sender<Instant>) {
    let client = Client::builder("ours")
        .brokers(brokers.iter().map(|broker| broker.url()))
        .and_then(|builder| builder.topology(Topology::Independent).build())
        .expect("a client");
    let mut tick = tokio::time::interval(Duration::from_millis(1));
    loop {
        tick.tick().await;
        let receipt = client.publish(Message::new("bench", "x")).await.expect("admitted");
        let acked = acked.clone();
        tokio::spawn(async move {
            if receipt.acked().await.is_acked() {
                acked.send_replace(Instant::now());
            }
        });
    }
}

async fn rumqttc(brokers: Vec<Broker>, acked: watch::Sender<Instant>) {
    let options = |broker: &Broker| {
        let mut options = MqttOptions::new("peer", broker.addr().ip().to_string(), broker.addr().port());
        options.set_keep_alive(Duration::from_secs(5)).set_inflight(INFLIGHT);
        options
    };
    let (client, mut events) = AsyncClient::new(options(&brokers[0]), 100);
    tokio::spawn(async move {
        let mut tick = tokio::time::interval(Duration::from_millis(1));
        loop {
            tick.tick().await;
            if client.publish("bench", QoS::AtLeastOnce, false, "x").await.is_err() {
                break;
            }
        }
    });
    let mut active = 0;
    loop {
        match events.poll().await {
            Ok(Event::Incoming(Packet::PubAck(_))) => {
                acked.send_replace(Instant::now());
            }
            Ok(_) => {}
            Err(_) => {
                active = (active + 1) % brokers.len();
                events.mqtt_options = options(&brokers[active]);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

fn row(name: &str, figures: &[f64]) {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (least, most) = (sorted.first().copied().unwrap_or(0.0), sorted.last().copied().unwrap_or(0.0));
    println!("  {name:<50} median {:>10.2}  min {least:>10.2}  max {most:>10.2}", median(figures));
}

fn ratio(name: &str, ours: f64, peer: f64) {
    println!("  {name}: {:.4}", ours / peer);
}

fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn load() -> String {
    std::fs::read_to_string("/proc/loadavg").unwrap_or_default().split(' ').next().unwrap_or("?").to_owned()
}

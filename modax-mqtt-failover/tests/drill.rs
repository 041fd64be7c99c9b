//! Real brokers, killed and stopped under load; an oracle on each broker, outside the code under test, counts what
//! was lost, repeated and out of order. A machine without mosquitto or NATS fails: it does not skip.

#[path = "drill/version5.rs"]
mod version5;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use modax_mqtt_failover::{Client, Event, Message, Outcome, Qos, Received, Topology, Version};
use modax_testbed::{Ground, Mosquitto, wait};
use rumqttc::{AsyncClient, MqttOptions, Packet, QoS};
use tokio::sync::Notify;

const DEADLINE: Duration = Duration::from_secs(30);
/// Messages a second, over four topics.
const RATE: u32 = 500;
/// The same for a cluster that writes each message to the disks of three nodes on one machine.
const CLUSTER_RATE: u32 = 100;
const TOPICS: u64 = 4;

/// First receipts by topic, and repeats, of one broker.
#[derive(Default)]
struct Seen {
    first: BTreeMap<String, Vec<u64>>,
    repeats: u64,
}

/// Subscribes on one broker for as long as the drill runs; reconnects by itself when the broker comes back.
struct Oracle {
    seen: Arc<Mutex<Seen>>,
    task: tokio::task::JoinHandle<()>,
}

impl Oracle {
    async fn start(port: u16) -> Self {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let ready = Arc::new(Notify::new());
        let task = tokio::spawn(watch(port, Arc::clone(&seen), Arc::clone(&ready)));
        tokio::time::timeout(DEADLINE, ready.notified()).await.expect("the oracle is subscribed");
        Self { seen, task }
    }
}

async fn watch(port: u16, seen: Arc<Mutex<Seen>>, ready: Arc<Notify>) {
    let mut options = MqttOptions::new(format!("oracle-{port}"), "127.0.0.1", port);
    options.set_clean_session(true).set_keep_alive(Duration::from_secs(5));
    let (client, mut events) = AsyncClient::new(options, 100);
    loop {
        match events.poll().await {
            Ok(rumqttc::Event::Incoming(Packet::ConnAck(_))) => {
                client.subscribe("drill/#", QoS::AtLeastOnce).await.expect("room");
            }
            Ok(rumqttc::Event::Incoming(Packet::SubAck(_))) => ready.notify_one(),
            Ok(rumqttc::Event::Incoming(Packet::Publish(publish))) => {
                let number: u64 = String::from_utf8_lossy(&publish.payload).parse().expect("a number");
                let mut seen = seen.lock().unwrap();
                let first = seen.first.entry(publish.topic).or_default();
                if first.contains(&number) {
                    seen.repeats += 1;
                } else {
                    first.push(number);
                }
            }
            Ok(_) => {}
            // Only between two tries to reach a broker that was killed on purpose.
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

impl Drop for Oracle {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Publishes until told to stop; returns how many were admitted, and every outcome.
struct Load {
    stop: Arc<Notify>,
    task: tokio::task::JoinHandle<Vec<Outcome>>,
}

impl Load {
    /// One of the topics has QoS `highest`, the others QoS 1.
    fn start(client: &Client, rate: u32, highest: Qos) -> Self {
        let stop = Arc::new(Notify::new());
        let task = tokio::spawn(publish(client.clone(), rate, highest, Arc::clone(&stop)));
        Self { stop, task }
    }

    async fn end(self) -> Vec<Outcome> {
        self.stop.notify_one();
        tokio::time::timeout(DEADLINE, self.task).await.expect("every message has its outcome").expect("no panic")
    }
}

async fn publish(client: Client, rate: u32, highest: Qos, stop: Arc<Notify>) -> Vec<Outcome> {
    let mut tick = tokio::time::interval(Duration::from_secs(1) / rate);
    let mut receipts = Vec::new();
    for number in 0_u64.. {
        tokio::select! {
            _ = tick.tick() => {}
            () = stop.notified() => break,
        }
        let message = Message::new(format!("drill/{}", number % TOPICS), number.to_string());
        let message = if number % TOPICS == TOPICS - 1 { message.qos(highest) } else { message };
        receipts.push(client.publish(message).await.expect("admitted"));
    }
    let mut outcomes = Vec::new();
    for receipt in receipts {
        outcomes.push(receipt.acked().await);
    }
    outcomes
}

/// The word of the oracles on all that was admitted. Mosquitto gives to its subscribers before it acknowledges, and
/// is given a moment for the way to the oracle.
async fn judge(outcomes: &[Outcome], oracles: &[Oracle]) {
    let admitted = u64::try_from(outcomes.len()).unwrap();
    assert!(outcomes.iter().all(Outcome::is_acked), "{:?}", outcomes.iter().find(|outcome| !outcome.is_acked()));
    let lost = || {
        let seen: Vec<_> = oracles.iter().map(|oracle| oracle.seen.lock().unwrap()).collect();
        let arrived = |number: &u64| {
            let topic = format!("drill/{}", number % TOPICS);
            seen.iter().any(|seen| seen.first.get(&topic).is_some_and(|first| first.contains(number)))
        };
        (0..admitted).filter(|number| !arrived(number)).count()
    };
    let settled = wait::until(DEADLINE, "every message at an oracle", || async { lost() == 0 }).await;
    assert!(settled.is_ok(), "{} of {admitted} lost", lost());
    for oracle in oracles {
        let seen = oracle.seen.lock().unwrap();
        for (topic, first) in &seen.first {
            let out = first.windows(2).find(|pair| pair[0] > pair[1]);
            assert!(out.is_none(), "{topic} out of order at {out:?}");
        }
        eprintln!("{} first receipts, {} repeats", seen.first.values().map(Vec::len).sum::<usize>(), seen.repeats);
    }
}

async fn serving(client: &Client) -> u16 {
    wait::until(DEADLINE, "a connection", || async { client.status().connected.map(|broker| broker.port()) })
        .await
        .expect("a connection")
}

fn on_port(brokers: &[Mosquitto], port: u16) -> &Mosquitto {
    brokers.iter().find(|broker| broker.addr().port() == port).expect("one of ours")
}

async fn acked_since(client: &Client, before: u64) {
    wait::until(DEADLINE, "acknowledgements", || async { client.stats().acked > before + 50 }).await.expect("in time");
}

async fn three() -> (Ground, Vec<Mosquitto>, Vec<Oracle>) {
    let ground = Ground::start().await.expect("a ground");
    let mut brokers = Vec::new();
    let mut oracles = Vec::new();
    for _ in 0..3 {
        let broker = ground.mosquitto().await.expect("mosquitto");
        oracles.push(Oracle::start(broker.addr().port()).await);
        brokers.push(broker);
    }
    (ground, brokers, oracles)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f01_brokers_killed_under_load_lose_nothing_that_was_admitted() {
    kill_three_times(Version::V311).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f01_brokers_killed_under_load_lose_nothing_with_mqtt_5() {
    kill_three_times(Version::V5).await;
}

async fn kill_three_times(version: Version) {
    let (ground, brokers, oracles) = three().await;
    let builder = Client::builder("drill").brokers(brokers.iter().map(Mosquitto::url)).unwrap();
    let client = builder.version(version).build().unwrap();
    let load = Load::start(&client, RATE, Qos::ExactlyOnce);
    acked_since(&client, 0).await;

    for _ in 0..3 {
        let port = serving(&client).await;
        on_port(&brokers, port).kill().await;
        wait::until(DEADLINE, "another broker", || async {
            client.status().connected.map(|now| now.port()) != Some(port)
        })
        .await
        .expect("in time");
        acked_since(&client, client.stats().acked).await;
        on_port(&brokers, port).restart().await.expect("restarted");
        // The oracle has to be back before this broker serves again, or it would miss what comes first.
        acked_since(&client, client.stats().acked + 200).await;
    }

    let outcomes = load.end().await;
    let stats = client.stats();
    assert!(stats.failovers >= 3, "the faults did not reach the client: {stats:?}");
    judge(&outcomes, &oracles).await;
    assert!(client.close(DEADLINE).await.undelivered.is_empty());
    drop(oracles);
    ground.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f02_a_stopped_broker_is_left_at_default_settings_and_nothing_is_lost() {
    let (ground, brokers, oracles) = three().await;
    let client = Client::builder("drill").brokers(brokers.iter().map(Mosquitto::url)).unwrap().build().unwrap();
    let mut events = client.events();
    let load = Load::start(&client, RATE, Qos::ExactlyOnce);
    acked_since(&client, 0).await;

    let port = serving(&client).await;
    on_port(&brokers, port).stop();
    let failed_over = tokio::time::timeout(DEADLINE, async {
        loop {
            if let Some(Event::FailedOver { from, detected, outage, .. }) = events.next().await {
                return (from, detected, outage);
            }
        }
    })
    .await
    .expect("it stays with a stopped broker");
    eprintln!("detected in {:?}, served again after {:?}", failed_over.1, failed_over.2);
    assert_eq!(failed_over.0.map(|broker| broker.port()), Some(port));
    acked_since(&client, client.stats().acked).await;
    on_port(&brokers, port).cont();

    let outcomes = load.end().await;
    judge(&outcomes, &oracles).await;
    assert!(client.close(DEADLINE).await.undelivered.is_empty());
    drop(oracles);
    ground.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_with_our_session_goes_on_with_it_after_a_restart() {
    let ground = Ground::start().await.expect("a ground");
    let options = modax_testbed::MosquittoOptions { persistence: true, ..Default::default() };
    let broker = ground.mosquitto_with(options).await.expect("mosquitto");
    let client = Client::builder("drill").brokers([broker.url()]).unwrap().build().unwrap();
    let mut commands = client.subscribe("drill/commands", Qos::AtLeastOnce).await.unwrap().auto_ack();
    assert!(client.publish(Message::new("drill/x", "0")).await.unwrap().acked().await.is_acked());
    wait::until(DEADLINE, "the session on disk", || async {
        let folder = std::fs::read_dir(ground.dir()).ok()?;
        let name = |entry: std::io::Result<std::fs::DirEntry>| Some(entry.ok()?.path().join("mosquitto.db"));
        folder.filter_map(name).any(|file| file.exists()).then_some(())
    })
    .await
    .expect("saved");

    broker.kill().await;
    broker.restart().await.expect("restarted");

    wait::until(DEADLINE, "the session", || async { client.status().is_connected() && client.stats().connects >= 2 })
        .await
        .expect("connected again");
    assert!(client.status().session_present, "the fault that is tested is a session that was kept");
    assert!(client.publish(Message::new("drill/commands", "1")).await.unwrap().acked().await.is_acked());
    let received = tokio::time::timeout(DEADLINE, commands.next()).await.expect("in time");
    assert!(matches!(received, Some(Received::Delivery(_))), "{received:?}");
    client.close(DEADLINE).await;
    ground.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f01_a_cluster_node_killed_under_load_loses_nothing() {
    let ground = Ground::start().await.expect("a ground");
    let cluster = ground.nats_cluster().await.expect("nats");
    let client = Client::builder("drill")
        .brokers(cluster.nodes().iter().map(modax_testbed::NatsNode::url))
        .unwrap()
        .topology(Topology::Cluster)
        .build()
        .unwrap();
    let mut events = client.events();
    tokio::spawn(async move {
        while let Some(event) = events.next().await {
            eprintln!("{event:?}");
        }
    });
    let mut messages = client.subscribe("drill/#", Qos::AtLeastOnce).await.unwrap().auto_ack();
    let load = Load::start(&client, CLUSTER_RATE, Qos::AtLeastOnce);
    acked_since(&client, 0).await;

    let port = serving(&client).await;
    let node = cluster.nodes().iter().find(|node| node.addr().port() == port).expect("one of ours");
    node.kill();
    wait::until(DEADLINE, "another node", || async { client.status().connected.is_some_and(|now| now.port() != port) })
        .await
        .expect("in time");
    acked_since(&client, client.stats().acked).await;

    let outcomes = load.end().await;
    assert!(outcomes.iter().all(Outcome::is_acked), "{:?}", outcomes.iter().find(|outcome| !outcome.is_acked()));
    let mut missing: std::collections::BTreeSet<String> =
        (0..outcomes.len()).map(|number| number.to_string()).collect();
    while !missing.is_empty() {
        match tokio::time::timeout(DEADLINE, messages.next()).await {
            Ok(Some(Received::Delivery(delivery))) => {
                missing.remove(&*String::from_utf8_lossy(delivery.payload()));
            }
            Ok(Some(other)) => eprintln!("{other:?}"),
            Ok(None) | Err(_) => panic!("{} of {} never came", missing.len(), outcomes.len()),
        }
    }
    client.close(DEADLINE).await;
    ground.stop().await;
}

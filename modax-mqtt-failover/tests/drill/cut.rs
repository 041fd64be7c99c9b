//! Three brokers behind proxies that let nothing through, both ways or one way, or nobody in at all.

use std::{collections::BTreeSet, time::Instant};

use modax_mqtt_failover::{Client, Event, Qos, Queue};
use modax_testbed::{
    Ground, Mosquitto, MosquittoOptions,
    proxy::{Direction, Fault, Proxy},
    wait,
};

use crate::{
    DEADLINE, RATE, acked_more, another,
    load::Load,
    oracle::Oracles,
    scale::{count, seconds},
    serving,
    verdict::judge,
};

/// The oracles do not pass the proxies.
struct Plant {
    ground: Ground,
    brokers: Vec<Mosquitto>,
    proxies: Vec<Proxy>,
    oracles: Oracles,
    client: Client,
}

impl Plant {
    async fn start() -> Self {
        let ground = Ground::start().await.expect("a ground");
        let (mut brokers, mut proxies) = (Vec::new(), Vec::new());
        for _ in 0..3 {
            let options = MosquittoOptions { quiet: true, ..MosquittoOptions::default() };
            let broker = ground.mosquitto_with(options).await.expect("mosquitto");
            proxies.push(Proxy::start(broker.addr()).await.expect("a proxy"));
            brokers.push(broker);
        }
        let oracles = Oracles::start(brokers.iter().map(Mosquitto::addr)).await;
        let client = Client::builder("drill")
            .brokers(proxies.iter().map(|proxy| proxy.url("mqtt")))
            .and_then(|builder| builder.queue(Queue::memory().max_messages(100_000)).build())
            .expect("a client");
        Self { ground, brokers, proxies, oracles, client }
    }

    async fn end(self, what: &str, load: Load, faults: &[Instant]) {
        let published = load.end().await;
        judge(what, Qos::AtLeastOnce, &published, faults, &self.oracles).await;
        assert!(self.client.close(DEADLINE).await.undelivered.is_empty());
        drop((self.oracles, self.proxies, self.brokers));
        self.ground.stop().await;
    }
}

async fn cuts(what: &str, directions: &[Direction]) {
    let plant = Plant::start().await;
    let load = Load::start(&plant.client, RATE, Qos::AtLeastOnce);
    acked_more(&plant.client, 500).await;
    let mut faults = Vec::new();
    for _ in 0..count("DRILL_ROUNDS", 1) {
        for direction in directions {
            let port = serving(&plant.client).await;
            let proxy = plant.proxies.iter().find(|proxy| proxy.addr().port() == port).expect("one of ours");
            let held = proxy.fired().blackhole;
            faults.push(Instant::now());
            proxy.set(*direction, Fault::Blackhole);
            another(&plant.client, port).await;
            assert!(proxy.fired().blackhole > held, "nothing was held back");
            acked_more(&plant.client, 50).await;
            proxy.clear();
            acked_more(&plant.client, 100).await;
        }
    }
    plant.end(what, load, &faults).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f03_a_link_that_swallows_everything_is_left_and_nothing_is_lost() {
    cuts("cut both ways, QoS 1", &[Direction::Both]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f06_a_link_that_swallows_one_way_is_left_and_nothing_is_lost() {
    cuts("cut one way, QoS 1", &[Direction::ToClient, Direction::ToServer]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f05_all_brokers_gone_for_a_while_lose_nothing_that_was_admitted() {
    let plant = Plant::start().await;
    let load = Load::start(&plant.client, RATE, Qos::AtLeastOnce);
    acked_more(&plant.client, 500).await;
    let admitted = plant.client.stats().admitted;
    let mut events = plant.client.events();
    let dark = Instant::now();
    for proxy in &plant.proxies {
        proxy.set(Direction::Both, Fault::Refuse);
        proxy.cut_all();
    }
    // Nothing of ours is left there either; the oracles are back before anybody is let in.
    for (place, broker) in plant.brokers.iter().enumerate() {
        let life = plant.oracles.life(place);
        broker.kill().await;
        broker.restart().await.expect("restarted");
        plant.oracles.subscribed_after(place, life).await;
    }
    tokio::time::sleep(seconds("DRILL_DARK_SECONDS", 0)).await;
    let away = || async { !plant.client.status().is_connected() && plant.client.stats().queue_messages > 500 };
    wait::until(DEADLINE, "messages that no broker takes", away).await.expect("the fault did not reach the client");
    // By the client's own word: a proxy counts what it was told to refuse, not whom it refused.
    let mut refused = BTreeSet::new();
    let by_each = async {
        while refused.len() < plant.proxies.len() {
            if let Event::ConnectFailed { broker, reason } = events.next().await.expect("the client lives")
                && reason.contains("refused")
            {
                refused.insert(broker.port());
            }
        }
    };
    tokio::time::timeout(DEADLINE, by_each).await.expect("the fault did not reach the client");
    for proxy in &plant.proxies {
        proxy.clear();
    }
    acked_more(&plant.client, 500).await;
    assert!(plant.client.stats().admitted > admitted);
    plant.end("all brokers gone, QoS 1", load, &[dark]).await;
}

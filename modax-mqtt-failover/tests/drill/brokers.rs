//! Three independent brokers that are killed, stopped and restarted in turn.

use std::time::{Duration, Instant};

use futures_util::FutureExt;
use modax_mqtt_failover::{
    Broker, Client, ClientBuilder, Event, Events, Message, Qos, Queue, Received, Selection, Standby, Version,
};
use modax_testbed::{Ground, Mosquitto, MosquittoOptions, wait};

use crate::{
    DEADLINE, RATE, acked_more, another,
    load::Load,
    oracle::Oracles,
    patient,
    scale::{count, milliseconds, row},
    serving,
    verdict::judge,
};

/// Three brokers with their oracles, and a client that publishes to them.
struct Plant {
    ground: Ground,
    brokers: Vec<Mosquitto>,
    oracles: Oracles,
    client: Client,
    /// Where a fault is to find one.
    standby: Option<Standing>,
    faults: Vec<Instant>,
}

/// The standby, by what the client says of it.
struct Standing {
    events: Events,
    at: Option<Broker>,
    /// Faults after which the broker that it stood at served.
    took_over: usize,
}

impl Standing {
    /// Until one stands at another broker than the one that serves.
    async fn ready(&mut self, client: &Client) {
        let ready = async {
            // What happened so far first: the next event may be long in coming.
            while let Some(Some(event)) = self.events.next().now_or_never() {
                self.note(event);
            }
            while self.at.is_none() || self.at == client.status().connected {
                let event = self.events.next().await.expect("the client lives");
                self.note(event);
            }
        };
        tokio::time::timeout(DEADLINE, ready).await.expect("no standby");
    }

    fn note(&mut self, event: Event) {
        match event {
            Event::StandbyReady { broker } => self.at = Some(broker),
            Event::StandbyLost { .. } => self.at = None,
            Event::FailedOver { to, .. } if self.at.as_ref() == Some(&to) => self.at = None,
            _ => {}
        }
    }
}

impl Plant {
    async fn start(version: Version) -> Self {
        Self::start_with(version, |builder| builder).await
    }

    /// A client that opens every kind of connection beside the one that carries messages.
    async fn start_beside(version: Version) -> Self {
        let mut plant = Self::start_with(version, |builder| builder.standby(Standby::Probe).racing(true)).await;
        plant.standby = Some(Standing { events: plant.client.events(), at: None, took_over: 0 });
        plant
    }

    async fn start_with(version: Version, change: fn(ClientBuilder) -> ClientBuilder) -> Self {
        let ground = Ground::start().await.expect("a ground");
        let mut brokers = Vec::new();
        for _ in 0..3 {
            let options = MosquittoOptions { quiet: true, ..MosquittoOptions::default() };
            brokers.push(ground.mosquitto_with(options).await.expect("mosquitto"));
        }
        let oracles = Oracles::start(brokers.iter().map(Mosquitto::addr)).await;
        let client = Client::builder("drill")
            .brokers(brokers.iter().map(Mosquitto::url))
            .and_then(|builder| change(builder.version(version).queue(Queue::memory().max_messages(100_000))).build())
            .expect("a client");
        Self { ground, brokers, oracles, client, standby: None, faults: Vec::new() }
    }

    /// The broker that serves, by its place and port.
    async fn serving(&self) -> (usize, u16) {
        let port = serving(&self.client).await;
        let place = self.brokers.iter().position(|broker| broker.addr().port() == port);
        (place.expect("one of ours"), port)
    }

    /// Where a standby is wanted, no fault before there is one.
    async fn standby_ready(&mut self) {
        if let Some(standby) = &mut self.standby {
            standby.ready(&self.client).await;
        }
    }

    /// Until another broker serves than that on `port`: where a standby stood, that one.
    async fn moved(&mut self, port: u16) {
        another(&self.client, port).await;
        if let Some(standby) = &mut self.standby {
            standby.took_over += usize::from(standby.at == self.client.status().connected);
        }
        acked_more(&self.client, 50).await;
    }

    /// Kills the broker that serves, and starts it again when another one does.
    async fn kill(&mut self) {
        self.standby_ready().await;
        let (place, port) = self.serving().await;
        let life = self.oracles.life(place);
        self.faults.push(Instant::now());
        self.brokers[place].kill().await;
        self.moved(port).await;
        self.brokers[place].restart().await.expect("restarted");
        self.oracles.subscribed_after(place, life).await;
        acked_more(&self.client, 100).await;
    }

    async fn stop(&mut self) {
        self.standby_ready().await;
        let (place, port) = self.serving().await;
        self.faults.push(Instant::now());
        self.brokers[place].stop();
        self.moved(port).await;
        self.brokers[place].cont();
        acked_more(&self.client, 100).await;
    }

    async fn end(self, what: &str, qos: Qos, load: Load) {
        let published = load.end().await;
        let failovers = usize::try_from(self.client.stats().failovers).expect("a count");
        assert!(failovers >= self.faults.len(), "{failovers} failovers: not every fault reached the client");
        let by_standby = self.standby.as_ref().map(|standby| standby.took_over);
        assert_ne!(by_standby, Some(0), "no broker that a standby stood at took over");
        judge(what, qos, &published, &self.faults, &self.oracles).await;
        assert!(self.client.close(DEADLINE).await.undelivered.is_empty());
        drop(self.oracles);
        self.ground.stop().await;
    }
}

async fn kills(version: Version, qos: Qos) {
    let what = format!("kill, QoS {}, {version}", qos.level());
    kills_of(Plant::start(version).await, &what, qos).await;
}

async fn kills_of(mut plant: Plant, what: &str, qos: Qos) {
    let load = Load::start(&plant.client, RATE, qos);
    acked_more(&plant.client, 500).await;
    for _ in 0..count("DRILL_KILLS", 3) {
        plant.kill().await;
    }
    plant.end(what, qos, load).await;
}

async fn stops(version: Version, qos: Qos) {
    let what = format!("stop and continue, QoS {}, {version}", qos.level());
    stops_of(Plant::start(version).await, &what, qos).await;
}

async fn stops_of(mut plant: Plant, what: &str, qos: Qos) {
    let mut events = plant.client.events();
    let load = Load::start(&plant.client, RATE, qos);
    acked_more(&plant.client, 500).await;
    let (mut detected, mut outages) = (Vec::new(), Vec::new());
    for _ in 0..count("DRILL_STOPS", 2) {
        plant.stop().await;
        loop {
            let event = tokio::time::timeout(DEADLINE, events.next()).await.expect("an event in time");
            if let Event::FailedOver { detected: after, outage, .. } = event.expect("it goes on") {
                detected.push(after);
                outages.push(outage);
                break;
            }
        }
    }
    plant.end(what, qos, load).await;
    row(&format!(
        "{what}: found out after {}, served by another after {} (median / maximum; promised under traffic: 500 ms)",
        milliseconds(&detected),
        milliseconds(&outages)
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f01_brokers_killed_under_load_lose_nothing_that_was_admitted() {
    kills(Version::V311, Qos::AtLeastOnce).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f01_brokers_killed_under_load_lose_nothing_with_mqtt_5() {
    kills(Version::V5, Qos::AtLeastOnce).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f01_brokers_killed_under_load_repeat_nothing_in_their_session_at_qos_2() {
    kills(Version::V311, Qos::ExactlyOnce).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f01_brokers_killed_under_load_repeat_nothing_in_their_session_at_qos_2_with_mqtt_5() {
    kills(Version::V5, Qos::ExactlyOnce).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f02_a_stopped_broker_is_left_at_default_settings_and_nothing_is_lost() {
    stops(Version::V311, Qos::AtLeastOnce).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f02_a_stopped_broker_is_left_with_mqtt_5_and_nothing_is_lost() {
    stops(Version::V5, Qos::AtLeastOnce).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f02_a_stopped_broker_that_goes_on_repeats_nothing_in_its_session_at_qos_2() {
    stops(Version::V311, Qos::ExactlyOnce).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f02_a_stopped_broker_that_goes_on_repeats_nothing_in_its_session_at_qos_2_with_mqtt_5() {
    stops(Version::V5, Qos::ExactlyOnce).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f01_brokers_killed_beside_a_standby_and_racing_dials_lose_nothing() {
    let plant = Plant::start_beside(Version::V311).await;
    kills_of(plant, "kill beside a standby, racing, QoS 1, MQTT 3.1.1", Qos::AtLeastOnce).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f02_a_stopped_broker_is_left_for_a_standby_and_nothing_is_lost() {
    let plant = Plant::start_beside(Version::V5).await;
    stops_of(plant, "stop and continue beside a standby, racing, QoS 2, MQTT 5", Qos::ExactlyOnce).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f02_a_stopped_broker_is_left_without_any_traffic() {
    let mut plant = Plant::start(Version::V311).await;
    let mut events = plant.client.events();
    let mut outages = Vec::new();
    for _ in 0..count("DRILL_STOPS", 2) {
        let (place, port) = plant.serving().await;
        plant.faults.push(Instant::now());
        plant.brokers[place].stop();
        another(&plant.client, port).await;
        outages.push(plant.faults.last().expect("one").elapsed());
        plant.brokers[place].cont();
        loop {
            let event = tokio::time::timeout(DEADLINE, events.next()).await.expect("an event in time");
            if matches!(event, Some(Event::FailedOver { from: Some(from), .. }) if from.port() == port) {
                break;
            }
        }
    }
    row(&format!(
        "stop without traffic: another broker after {} (median / maximum; promised: 1500 ms)",
        milliseconds(&outages)
    ));
    plant.client.close(DEADLINE).await;
    plant.ground.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f01_a_rolling_restart_loses_nothing() {
    let mut plant = Plant::start(Version::V311).await;
    let load = Load::start(&plant.client, RATE, Qos::AtLeastOnce);
    acked_more(&plant.client, 500).await;
    for _ in 0..count("DRILL_ROUNDS", 1) {
        for place in 0..plant.brokers.len() {
            let life = plant.oracles.life(place);
            let (serving, port) = plant.serving().await;
            plant.brokers[place].process().terminate(DEADLINE).await.expect("it ends when asked to");
            if serving == place {
                plant.faults.push(Instant::now());
                another(&plant.client, port).await;
            }
            plant.brokers[place].restart().await.expect("restarted");
            plant.oracles.subscribed_after(place, life).await;
            acked_more(&plant.client, 100).await;
        }
    }
    assert!(!plant.faults.is_empty(), "no broker in use was restarted");
    plant.end("rolling restart, QoS 1", Qos::AtLeastOnce, load).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_with_our_session_goes_on_with_it_after_a_restart() {
    let ground = Ground::start().await.expect("a ground");
    let options = MosquittoOptions { persistence: true, ..Default::default() };
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

/// Longer than the oracle of a broker that came back needs to subscribe to it again.
const REACHABLE: Duration = Duration::from_secs(1);

async fn returns(version: Version, qos: Qos) {
    let failback =
        |builder: ClientBuilder| builder.selection(Selection::priority().failback_after(REACHABLE)).liveness(patient());
    let mut plant = Plant::start_with(version, failback).await;
    let (preferred, port) = plant.serving().await;
    let load = Load::start(&plant.client, RATE, qos);
    acked_more(&plant.client, 500).await;
    plant.kill().await;
    let back = || async { plant.client.status().connected.is_some_and(|now| now.port() == port) };
    wait::until(DEADLINE, "the preferred broker", back).await.expect("it stays where it was");
    acked_more(&plant.client, 500).await;
    assert_eq!((preferred, plant.client.stats().failbacks), (0, 1));
    plant.end(&format!("back to the preferred, QoS {}, {version}", qos.level()), qos, load).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preferred_broker_that_came_back_serves_again_and_nothing_is_lost() {
    returns(Version::V311, Qos::AtLeastOnce).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preferred_broker_that_came_back_serves_again_with_mqtt_5_and_nothing_is_lost() {
    returns(Version::V5, Qos::AtLeastOnce).await;
}

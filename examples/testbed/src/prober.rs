//! Asks every broker of a cluster, over bare connections, whether it acknowledges: the cluster's own outage, beside which
//! that of a client can be seen.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rumqttc::{AsyncClient, Event, MqttOptions, Outgoing, Packet, QoS};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

/// Between two publishes to one broker.
const PACE: Duration = Duration::from_millis(50);
/// Between two tries to connect.
const RETRY: Duration = Duration::from_millis(50);

/// Between two new connections to one broker, and how long each waits for its acknowledgement.
const FRESH_PACE: Duration = Duration::from_millis(200);
const FRESH_WAIT: Duration = Duration::from_secs(10);

/// Acknowledged publishes: (sent, acknowledged).
type Acks = Arc<Mutex<Vec<(Instant, Instant)>>>;

/// Publishes to every broker; ends when dropped.
#[derive(Debug)]
pub struct Prober {
    acks: Acks,
    _tasks: JoinSet<()>,
}

impl Prober {
    /// Publishes to `topic` on each of `brokers`, every 50 ms at QoS 1.
    pub fn start(brokers: impl IntoIterator<Item = SocketAddr>, topic: &str) -> Self {
        let acks = Acks::default();
        let mut tasks = JoinSet::new();
        for broker in brokers {
            tasks.spawn(publish_to(broker, topic.to_owned(), acks.clone()));
        }
        Self { acks, _tasks: tasks }
    }

    /// Publishes to `topic` over a new connection to each of `brokers`, every 200 ms at QoS 1: what a client meets that has
    /// lost its connection, while those with an older one may still be served.
    pub fn fresh(brokers: impl IntoIterator<Item = SocketAddr>, topic: &str) -> Self {
        let acks = Acks::default();
        let mut tasks = JoinSet::new();
        for broker in brokers {
            tasks.spawn(connect_to(broker, topic.to_owned(), acks.clone()));
        }
        Self { acks, _tasks: tasks }
    }

    /// The first acknowledgement, from whichever broker, of what was sent after `start`.
    #[must_use]
    pub fn first(&self, start: Instant) -> Option<Instant> {
        let acks = self.acks.lock().unwrap_or_else(PoisonError::into_inner);
        acks.iter().filter(|(sent, _)| *sent >= start).map(|(_, acked)| *acked).min()
    }
}

fn options(broker: SocketAddr) -> MqttOptions {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let id = format!("prober-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
    let mut options = MqttOptions::new(id, broker.ip().to_string(), broker.port());
    options.set_clean_session(true).set_keep_alive(Duration::from_secs(5)).set_inflight(1000);
    options
}

async fn connect_to(broker: SocketAddr, topic: String, acks: Acks) {
    let mut trips = JoinSet::new();
    let mut pace = interval(FRESH_PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        pace.tick().await;
        while trips.try_join_next().is_some() {}
        let (topic, acks) = (topic.clone(), acks.clone());
        trips.spawn(timeout(FRESH_WAIT, async move {
            let begun = Instant::now();
            let (client, mut connection) = AsyncClient::new(options(broker), 10);
            if client.publish(&topic, QoS::AtLeastOnce, false, "x").await.is_err() {
                return;
            }
            // An error ends the trip: the next one begins soon.
            while let Ok(event) = connection.poll().await {
                if matches!(event, Event::Incoming(Packet::PubAck(_))) {
                    acks.lock().unwrap_or_else(PoisonError::into_inner).push((begun, Instant::now()));
                    // The goodbye; what becomes of it proves nothing.
                    let _ = client.disconnect().await;
                    let _ = connection.poll().await;
                    return;
                }
            }
        }));
    }
}

async fn publish_to(broker: SocketAddr, topic: String, acks: Acks) {
    let (client, mut connection) = AsyncClient::new(options(broker), 1000);
    let mut publishing = JoinSet::new();
    publishing.spawn(async move {
        let mut pace = interval(PACE);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            pace.tick().await;
            // Full while nobody answers: the next tick tries again.
            let _ = client.try_publish(&topic, QoS::AtLeastOnce, false, "x");
        }
    });
    let mut sent = BTreeMap::new();
    loop {
        match connection.poll().await {
            Ok(Event::Outgoing(Outgoing::Publish(id))) => {
                sent.insert(id, Instant::now());
            }
            Ok(Event::Incoming(Packet::PubAck(ack))) => {
                if let Some(sent) = sent.remove(&ack.pkid) {
                    acks.lock().unwrap_or_else(PoisonError::into_inner).push((sent, Instant::now()));
                }
            }
            Ok(_) => {}
            Err(_) => {
                sent.clear();
                sleep(RETRY).await;
            }
        }
    }
}

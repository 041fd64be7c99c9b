//! Our client beside a direct prober of the brokers: what does it add to the cluster's own outage?

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use modax_mqtt_failover::{Client, Message, Outcome, Topology};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use super::cluster::Failure;

/// Between two publishes, as the prober does.
const PACE: Duration = Duration::from_millis(50);

/// Acknowledged publishes: (sent, acknowledged).
type Acks = Arc<Mutex<Vec<(Instant, Instant)>>>;

fn note(acks: &Acks, sent: Instant) {
    acks.lock().unwrap_or_else(PoisonError::into_inner).push((sent, Instant::now()));
}

/// The first acknowledgement of what was sent after `start`.
fn first(acks: &Acks, start: Instant) -> Option<Instant> {
    let acks = acks.lock().unwrap_or_else(PoisonError::into_inner);
    acks.iter().filter(|(sent, _)| *sent >= start).map(|(_, acked)| *acked).min()
}

/// Our own client, publishing at the same pace; ends when dropped.
pub(crate) struct Witness {
    acks: Acks,
    client: Client,
    _tasks: JoinSet<()>,
}

impl Witness {
    /// Prefers the first of `brokers`.
    pub(crate) fn start(brokers: &[String]) -> Result<Self, Failure> {
        let id = format!("witness-{}", uuid::Uuid::new_v4().simple());
        let client = Client::builder(id).brokers(brokers)?.topology(Topology::Cluster).clean_session(true).build()?;
        let acks = Acks::default();
        let mut tasks = JoinSet::new();
        tasks.spawn(publish_by(client.clone(), acks.clone()));
        Ok(Self { acks, client, _tasks: tasks })
    }

    /// Where it is connected.
    pub(crate) fn broker(&self) -> Option<String> {
        self.client.status().connected.map(|broker| broker.to_string())
    }

    /// The first acknowledgement of what was published after `start`.
    pub(crate) fn first(&self, start: Instant) -> Option<Instant> {
        first(&self.acks, start)
    }
}

async fn publish_by(client: Client, acks: Acks) {
    let mut pace = interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut receipts = JoinSet::new();
    loop {
        pace.tick().await;
        while receipts.try_join_next().is_some() {}
        let sent = Instant::now();
        let Ok(receipt) = client.publish(Message::new("demo/witness", "x")).await else { return };
        let acks = acks.clone();
        receipts.spawn(async move {
            if matches!(receipt.acked().await, Outcome::Acked { .. }) {
                note(&acks, sent);
            }
        });
    }
}

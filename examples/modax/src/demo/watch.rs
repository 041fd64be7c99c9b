//! Watches every component twice a second, for the timeline and for the live line.

use std::sync::Arc;
use std::time::{Duration, Instant};

use modax_testbed::device::Device;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use super::cluster::Cluster;
use super::http::Http;
use super::progress::Progress;
use super::record::Record;
use crate::report::State;

const PACE: Duration = Duration::from_millis(500);
/// A component that does not answer within this is drawn as down.
const GLANCE: Duration = Duration::from_millis(400);

/// Readings that a broker acknowledged to a device.
pub(crate) const READINGS: &str = "readings";
/// Commands that were answered with 200.
pub(crate) const COMMANDS: &str = "command";

/// Ends when dropped.
pub(crate) struct Watch {
    _task: JoinSet<()>,
}

/// What is watched, and where it is noted.
#[derive(Clone)]
pub(crate) struct Eye {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) devices: Arc<Vec<Device>>,
    pub(crate) http: Http,
    pub(crate) record: Record,
    pub(crate) progress: Progress,
}

impl Watch {
    pub(crate) fn start(eye: Eye) -> Self {
        let cluster = &eye.cluster;
        let kinds = [
            ("control", cluster.control.len()),
            ("AI", cluster.ai.len()),
            ("broker", cluster.nats.nodes().len()),
            ("database", cluster.patroni.nodes().len()),
            ("device", eye.devices.len()),
        ];
        let names =
            kinds.into_iter().flat_map(|(kind, count)| (1..=count).map(move |number| format!("{kind} {number}")));
        eye.record.declare(names);
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut pace = interval(PACE);
            pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut acked = 0;
            loop {
                pace.tick().await;
                acked = eye.look(acked).await;
            }
        });
        Self { _task: task }
    }
}

impl Eye {
    async fn look(&self, acked_before: u64) -> u64 {
        tokio::join!(self.layers(), self.brokers(), self.databases());
        let mut acked = 0;
        let mut connected = 0;
        for (index, device) in self.devices.iter().enumerate() {
            let status = device.status();
            acked += status.acked;
            connected += usize::from(status.broker.is_some());
            let state = if status.broker.is_some() { State::Working } else { State::Down };
            self.record.state(&format!("device {}", index + 1), state);
        }
        self.record.count(READINGS, Instant::now(), acked.saturating_sub(acked_before));
        self.progress.show(&format!(
            "        {} of {} devices connected, {acked} readings confirmed",
            connected,
            self.devices.len()
        ));
        acked
    }

    /// A layer that runs and is not up for the load balancer cannot do all of its work.
    async fn layers(&self) {
        let balanced = self.cluster.balanced(&self.http).await;
        for (kind, layers) in [("control", &self.cluster.control), ("AI", &self.cluster.ai)] {
            for (index, layer) in layers.iter().enumerate() {
                let server = format!("{}{}", kind.to_lowercase(), index + 1);
                let is_up = balanced.iter().any(|(name, is_up)| *name == server && *is_up);
                let answers = self.http.is_ok(&format!("{}/live", layer.url), GLANCE).await;
                let state = match (answers, is_up) {
                    (true, true) => State::Working,
                    (true, false) => State::Impaired,
                    (false, _) => State::Down,
                };
                self.record.state(&format!("{kind} {}", index + 1), state);
            }
        }
    }

    async fn brokers(&self) {
        for (index, doors) in self.cluster.doors.iter().enumerate() {
            let state = match self.http.get(&format!("http://{}/healthz", doors.monitor), GLANCE).await {
                Ok(answer) if answer.status == 200 => State::Working,
                Ok(_) => State::Impaired,
                Err(_) => State::Down,
            };
            self.record.state(&format!("broker {}", index + 1), state);
        }
    }

    /// What each database says of itself through Patroni.
    async fn databases(&self) {
        for (index, url) in self.cluster.patroni.patroni_urls().iter().enumerate() {
            let state = match self.http.get(&format!("{url}/patroni"), GLANCE).await {
                Ok(answer) => {
                    let said = answer.json();
                    let role = said["role"].as_str().unwrap_or_default();
                    match (said["state"].as_str(), role) {
                        (Some("running"), "master" | "primary") => State::Leading,
                        (Some("running" | "streaming"), _) => State::Working,
                        _ => State::Impaired,
                    }
                }
                Err(_) => State::Down,
            };
            self.record.state(&format!("database {}", index + 1), state);
        }
    }
}

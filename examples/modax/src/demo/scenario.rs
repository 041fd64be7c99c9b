//! The six scenarios, in order, and what is common to them.

mod brokers;
mod database;
mod layers;
mod leader;

use std::sync::Arc;
use std::time::{Duration, Instant};

use modax_testbed::device::{Device, serial_of};
use modax_testbed::wait;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::cluster::{Cluster, Failure};
use super::http::Http;
use super::logs::LogWatch;
use super::nats;
use super::operator::Operator;
use super::probe::Prober;
use super::progress::Progress;
use super::record::Record;
use crate::report::{Counts, Scenario, seconds};

/// One question of a prober.
const QUESTION: Duration = Duration::from_secs(2);
/// A recovery counts once it has held for this long.
const HOLDS: Duration = Duration::from_millis(1500);
/// How old a device's boot is when a broker is cut off: older than the brokers' own election makes its readings late.
/// A copy that comes later than its boot is old cannot be told from a new boot; the wire contract names that limit.
const AGED: Duration = Duration::from_secs(25);
/// How long nothing may stir before the next fault.
const QUIET: Duration = Duration::from_secs(3);
/// Readings under way on a healthy broker.
const WAITING: usize = 10;
/// How long the ground may take to be whole again before the run is given up.
const WHOLE: Duration = Duration::from_secs(60);

/// Everything a scenario works with.
pub(crate) struct Stage {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) devices: Arc<Vec<Device>>,
    pub(crate) http: Http,
    pub(crate) record: Record,
    pub(crate) progress: Progress,
    pub(crate) operator: Operator,
}

/// What a scenario found.
pub(crate) struct Found {
    pub(crate) start: Instant,
    pub(crate) detected: Option<(Instant, String)>,
    pub(crate) recovered: Option<Instant>,
    /// Requests of its own that failed, beside the operator's.
    pub(crate) failed_requests: u64,
    /// Requests of its own.
    pub(crate) requests: u64,
    pub(crate) story: Vec<String>,
    pub(crate) broken: Vec<String>,
}

/// One row of the table before it is run.
struct Plan {
    name: &'static str,
    title: &'static str,
    probed: &'static str,
    bound: Option<Duration>,
}

const PLANS: [Plan; 6] = [
    Plan {
        name: "control_layer_killed",
        title: "One of two control layers killed",
        probed: "asking for the plant's status through the load balancer",
        bound: Some(Duration::from_secs(10)),
    },
    Plan {
        name: "broker_cut_off",
        title: "One of three message brokers cut off",
        probed: "every control layer shows a reading that every device took after the fault",
        bound: Some(Duration::from_secs(5)),
    },
    Plan {
        name: "stream_leader_cut_off",
        title: "The broker that leads the message store cut off",
        probed: "every control layer shows a reading that every device took after the fault",
        bound: None,
    },
    Plan {
        name: "overload",
        title: "10,000 requests, 100 at once",
        probed: "asking for the plant's status through the load balancer",
        bound: Some(Duration::from_secs(1)),
    },
    Plan {
        name: "primary_stopped",
        title: "The database's primary and its manager stopped",
        probed: "a command that must be stored before it is accepted",
        bound: Some(Duration::from_secs(30)),
    },
    Plan {
        name: "ai_paused",
        title: "Both AI layers paused",
        probed: "asking the AI layer for an analysis",
        bound: None,
    },
];

/// How many there are.
pub(crate) const COUNT: usize = PLANS.len();

impl Stage {
    /// Runs the scenario with this number (from 0); returns its row and the requests it made itself.
    pub(crate) async fn run(&self, number: usize) -> Result<(Scenario, u64), Failure> {
        let plan = &PLANS[number];
        self.progress.say(&format!("{}. {}", number + 1, plan.title));
        let device = &self.devices[number % self.devices.len()];
        device.reboot();
        // Back on its broker before anything is broken: a fault at a time.
        let patience = Duration::from_secs(20);
        device.wait_until(patience, |status| status.broker.is_none()).await;
        device.wait_until(patience, |status| status.broker.is_some()).await;
        if matches!(number, 1 | 2) {
            sleep(AGED).await;
        }
        let found = match number {
            0 => layers::kill_control(self).await,
            1 => brokers::cut_off(self).await,
            2 => leader::cut_off(self).await,
            3 => layers::overload(self).await,
            4 => database::stop_primary(self).await,
            _ => layers::pause_ai(self).await,
        }?;
        self.whole().await?;
        let scenario = self.row(plan, found, device.id());
        self.progress.say(&format!(
            "   noticed after {}, working again after {}, whole after {:.1} s",
            seconds(scenario.0.detected_ms),
            seconds(scenario.0.recovered_ms),
            scenario.0.ended_at - scenario.0.started_at,
        ));
        for broken in &scenario.0.broken {
            self.progress.say(&format!("   BROKEN: {broken}"));
        }
        Ok(scenario)
    }

    fn row(&self, plan: &Plan, mut found: Found, rebooted: &str) -> (Scenario, u64) {
        let end = Instant::now();
        let log = self.operator.log();
        let within = |at: &&Instant| **at >= found.start && **at <= end;
        let counts = Counts {
            failed_requests: found.failed_requests + log.failed.iter().filter(within).count() as u64,
            refused_unsafe: log.refused_unsafe.iter().filter(within).count() as u64,
            ..Counts::default()
        };
        let after = |at: Instant| u64::try_from((at - found.start).as_millis()).unwrap_or(u64::MAX);
        let recovered_ms = found.recovered.map(after);
        match (recovered_ms, plan.bound) {
            (None, _) => found.broken.push("not seen to work again".to_owned()),
            (Some(took), Some(bound)) if u128::from(took) > bound.as_millis() => {
                found.broken.push(format!("took {} to work again", seconds(Some(took))));
            }
            _ => {}
        }
        found.story.push(format!("{rebooted} was restarted just before, as happens in a plant."));
        let scenario = Scenario {
            name: plan.name.to_owned(),
            title: plan.title.to_owned(),
            probed: plan.probed.to_owned(),
            bound_ms: plan.bound.map(|bound| u64::try_from(bound.as_millis()).unwrap_or(u64::MAX)),
            detected_ms: found.detected.as_ref().map(|(at, _)| after(*at)),
            detected_by: found.detected.map(|(_, by)| by).unwrap_or_default(),
            recovered_ms,
            started_at: self.record.at(found.start),
            ended_at: self.record.at(end),
            story: found.story,
            broken: found.broken,
            counts,
        };
        (scenario, found.requests)
    }

    /// Waits until nothing is left of a fault.
    pub(crate) async fn whole(&self) -> Result<(), Failure> {
        self.cluster.layers_ready(&self.http).await?;
        self.cluster.nats.healthy(WHOLE).await?;
        self.cluster.patroni.healthy(WHOLE).await?;
        for layer in &self.cluster.control {
            let url = format!("{}/health", layer.url);
            wait::until(WHOLE, &format!("{} healthy", layer.name), || async {
                self.http.get(&url, QUESTION).await.is_ok_and(|answer| answer.json()["status"] == "healthy")
            })
            .await?;
        }
        let fresh = self.fresh_readings();
        wait::until(WHOLE, "a fresh reading of every device in every control layer", &fresh).await?;
        self.quiet().await?;
        let before = self.operator.accepted();
        wait::until(WHOLE, "a command to be accepted", || async { self.operator.accepted() > before }).await?;
        Ok(())
    }

    /// Waits until the brokers agree on who leads what, every control layer is healthy and every device has its
    /// readings confirmed at once, for as long as [`QUIET`].
    async fn quiet(&self) -> Result<(), Failure> {
        let mut since: Option<Instant> = None;
        let end = Instant::now() + WHOLE;
        while since.is_none_or(|since| since.elapsed() < QUIET) {
            if Instant::now() > end {
                return Err("the brokers and the devices did not come to rest".into());
            }
            let mut accounts = Vec::new();
            for doors in &self.cluster.doors {
                accounts.push(nats::leaders(&self.http, doors.monitor).await.unwrap_or_default());
            }
            let at_rest = |device: &Device| {
                let status = device.status();
                status.broker.is_some() && status.queued <= WAITING
            };
            for layer in &self.cluster.control {
                let answer = self.http.get(&format!("{}/health", layer.url), QUESTION).await;
                if !answer.is_ok_and(|answer| answer.json()["status"] == "healthy") {
                    since = None;
                }
            }
            let is_quiet = nats::settled_without(&accounts, "") && self.devices.iter().all(at_rest);
            since = if is_quiet { since.or_else(|| Some(Instant::now())) } else { None };
            sleep(Duration::from_millis(250)).await;
        }
        Ok(())
    }

    /// Asks whether every control layer shows a reading that every device took after now.
    fn fresh_readings(&self) -> impl Fn() -> futures_util::future::BoxFuture<'static, bool> + Send + 'static {
        let devices: Arc<Vec<(String, u64)>> =
            Arc::new(self.devices.iter().map(|device| (device.id().to_owned(), device.status().made)).collect());
        let layers: Arc<Vec<String>> = Arc::new(self.cluster.control.iter().map(|layer| layer.url.clone()).collect());
        let http = self.http.clone();
        move || {
            let (devices, layers, http) = (devices.clone(), layers.clone(), http.clone());
            Box::pin(async move {
                for layer in layers.iter() {
                    for (device, made) in devices.iter() {
                        let url = format!("{layer}/devices/{device}/data");
                        let Ok(answer) = http.get(&url, QUESTION).await else { return false };
                        if serial(&answer.json()).is_none_or(|serial| serial < *made) {
                            return false;
                        }
                    }
                }
                true
            })
        }
    }

    /// A prober that asks for the plant's status through the load balancer.
    fn status_prober(&self) -> Prober {
        let (http, url) = (self.http.clone(), format!("{}/status", self.cluster.control_url));
        Prober::start(move || {
            let (http, url) = (http.clone(), url.clone());
            async move { http.is_ok(&url, QUESTION).await }
        })
    }

    /// Watches the control layers' logs for one of these words.
    fn control_logs(&self, words: &'static [&'static str]) -> LogWatch {
        let processes: Vec<_> = self.cluster.control.iter().map(|layer| (&layer.name, layer.process())).collect();
        let logs: Vec<_> = processes.iter().map(|(name, process)| (name.as_str(), process.log_path())).collect();
        LogWatch::start(&logs, words)
    }
}

/// The reading's number, which the device spells in its currents.
fn serial(reading: &Value) -> Option<u64> {
    let currents: Vec<f64> = reading["motor_currents"].as_array()?.iter().filter_map(Value::as_f64).collect();
    serial_of(&currents)
}

/// Waits until the function works again and goes on working, at most for `patience`.
async fn recovery(prober: &Prober, start: Instant, patience: Duration) -> Option<Instant> {
    let end = Instant::now() + patience;
    while Instant::now() < end {
        if let Some(recovered) = prober.recovered(start)
            && recovered.elapsed() >= HOLDS
        {
            return Some(recovered);
        }
        sleep(Duration::from_millis(50)).await;
    }
    prober.recovered(start)
}

/// The first event in a log since `start`.
fn first_event(logs: &LogWatch, start: Instant) -> Option<(Instant, String)> {
    let found = logs.found().filter(|found| found.at >= start)?;
    Some((found.at, format!("{}, by an event in its log", found.log)))
}

/// The prober's first failure since `start`.
fn first_failure(prober: &Prober, start: Instant) -> Option<(Instant, String)> {
    prober.first_failure(start).map(|at| (at, "the probe, by its first failure".to_owned()))
}

/// A window of measurements as the AI layer takes it.
fn window(device: &str) -> Value {
    let axes = json!({ "x": 0.5, "y": 0.6, "z": 0.7, "magnitude": 1.05 });
    json!({
        "device_id": device, "time_window_start": 0.0, "time_window_end": 10.0,
        "current_mean": [3.1, 3.2, 3.5], "current_std": [0.1, 0.1, 0.1], "current_max": [3.4, 3.4, 3.6],
        "vibration_mean": axes, "vibration_std": axes, "vibration_max": axes,
        "temperature_mean": [36.5, 38.25], "temperature_max": [37.0, 39.0], "sample_count": 100,
    })
}

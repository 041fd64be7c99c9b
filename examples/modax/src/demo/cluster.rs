//! The whole of MODAX on one machine: brokers, databases, load balancer, layers.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use modax_testbed::servers::haproxy::Haproxy;
use modax_testbed::servers::nats::NatsCluster;
use modax_testbed::servers::patroni::{PatroniCluster, PatroniOptions};
use modax_testbed::{Ground, Process, Spawn, bring, wait};
use serde_json::{Value, json};

use super::haproxy::{self, Front};
use super::http::Http;
use super::nats::{self, Doors};
use crate::args::LayerArgs;

/// Any failure to bring the ground up or to break it: the demo ends with its text.
pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Instances of each layer.
const INSTANCES: usize = 2;
/// From start to `/ready`: migrations and the first connections, on a busy machine.
const READY: Duration = Duration::from_secs(60);
/// One question of health.
const GLANCE: Duration = Duration::from_millis(500);

/// One running instance of a layer, which can be started again as it was.
pub(crate) struct Layer {
    pub(crate) name: String,
    pub(crate) url: String,
    spawn: Spawn,
    process: Mutex<Process>,
}

impl Layer {
    fn start(ground: &Ground, name: String, port: u16, spawn: Spawn) -> Result<Self, Failure> {
        let spawn = spawn.log(name.clone());
        let process = Mutex::new(ground.spawn(spawn.clone())?);
        Ok(Self { name, url: format!("http://127.0.0.1:{port}"), spawn, process })
    }

    pub(crate) fn process(&self) -> Process {
        self.process.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Starts it again, same port, same identity.
    pub(crate) fn restart(&self, ground: &Ground) -> Result<(), Failure> {
        let process = ground.spawn(self.spawn.clone())?;
        *self.process.lock().unwrap_or_else(PoisonError::into_inner) = process;
        Ok(())
    }
}

/// Everything that runs.
pub(crate) struct Cluster {
    pub(crate) ground: Ground,
    pub(crate) nats: NatsCluster,
    /// In the brokers' order.
    pub(crate) doors: Vec<Doors>,
    pub(crate) patroni: PatroniCluster,
    pub(crate) control: Vec<Layer>,
    pub(crate) ai: Vec<Layer>,
    /// The load balancer's address for the operator.
    pub(crate) control_url: String,
    /// The load balancer's address for the control layers.
    pub(crate) ai_url: String,
    stats_url: String,
    _haproxy: Haproxy,
}

/// Every program the ground needs, so that all that is missing is named at once.
pub(crate) fn require() -> Result<(), Failure> {
    Ok(bring::require(&["nats-server", "etcd", "patroni", "postgres", "haproxy"])?)
}

impl Cluster {
    /// Brings everything up; returns when both control layers are ready behind the load balancer.
    pub(crate) async fn start(ground: Ground, args: &LayerArgs, http: &Http) -> Result<Self, Failure> {
        let control_program = program(args.control_layer.as_deref(), "control-layer")?;
        let ai_program = program(args.ai_layer.as_deref(), "ai-layer")?;
        tokio::task::spawn_blocking(require).await??;
        let (nats, patroni) = tokio::join!(ground.nats_cluster(), ground.patroni(PatroniOptions::default()));
        let (nats, patroni) = (nats?, patroni?);

        let control_ports: Vec<u16> = (0..INSTANCES).map(|_| ground.port()).collect();
        let ai_ports: Vec<u16> = (0..INSTANCES).map(|_| ground.port()).collect();
        let (control_port, ai_port, stats_port) = (ground.port(), ground.port(), ground.port());
        let front = Front { control_port, ai_port, stats_port, control: &control_ports, ai: &ai_ports };
        let haproxy = ground.haproxy(&haproxy::config(&front)).await?;
        let ai_url = format!("http://127.0.0.1:{ai_port}");

        let mut ai = Vec::new();
        for (index, port) in ai_ports.iter().enumerate() {
            ai.push(Layer::start(&ground, format!("ai-{}", index + 1), *port, ai_spawn(&ai_program, index, *port))?);
        }
        let mut control = Vec::new();
        for (index, port) in control_ports.iter().enumerate() {
            let spawn = control_spawn(&control_program, index, *port, &nats, &patroni, &ai_url);
            control.push(Layer::start(&ground, format!("control-{}", index + 1), *port, spawn)?);
        }
        let doors = nats.nodes().iter().map(|node| nats::doors(ground.dir(), node.addr()));
        let doors = doors.collect::<Option<Vec<_>>>().ok_or("a broker's configuration names no addresses")?;
        let cluster = Self {
            ground,
            nats,
            doors,
            patroni,
            control,
            ai,
            control_url: format!("http://127.0.0.1:{control_port}"),
            ai_url,
            stats_url: format!("http://127.0.0.1:{stats_port}/;csv"),
            _haproxy: haproxy,
        };
        cluster.layers_ready(http).await?;
        Ok(cluster)
    }

    /// Waits until every instance of both layers is ready, also to the load balancer.
    pub(crate) async fn layers_ready(&self, http: &Http) -> Result<(), Failure> {
        for layer in self.control.iter().chain(&self.ai) {
            let url = format!("{}/ready", layer.url);
            let waited = wait::until(READY, &format!("{} ready", layer.name), || http.is_ok(&url, GLANCE)).await;
            waited.map_err(|error| format!("{error}\n{}", layer.process().log_tail(20)))?;
        }
        wait::until(READY, "every instance up in the load balancer", || async {
            let servers = self.balanced(http).await;
            servers.len() == self.control.len() + self.ai.len() && servers.iter().all(|(_, is_up)| *is_up)
        })
        .await?;
        Ok(())
    }

    /// What the load balancer thinks of each instance: `control1`, `ai2`…
    pub(crate) async fn balanced(&self, http: &Http) -> Vec<(String, bool)> {
        match http.get(&self.stats_url, GLANCE).await {
            Ok(answer) => haproxy::parse_stats(&answer.text()),
            Err(_) => Vec::new(),
        }
    }

    /// Addresses for whoever plays with it.
    pub(crate) fn addresses(&self) -> Value {
        let urls = |layers: &[Layer]| layers.iter().map(|layer| layer.url.clone()).collect::<Vec<_>>();
        json!({
            "control_layer": self.control_url,
            "control_layers": urls(&self.control),
            "ai_layer": self.ai_url,
            "ai_layers": urls(&self.ai),
            "brokers": self.nats.urls(),
            "database": self.patroni.url(),
            "patroni": self.patroni.patroni_urls(),
            "load_balancer": self.stats_url.trim_end_matches(";csv"),
            "logs": self.ground.dir().display().to_string(),
        })
    }
}

/// The layer's program: where the flag says, else beside this one.
fn program(given: Option<&Path>, name: &str) -> Result<PathBuf, Failure> {
    let path = match given {
        Some(path) => path.to_owned(),
        None => std::env::current_exe()?.with_file_name(name),
    };
    // The ground starts programs from its own directory.
    let found = std::path::absolute(&path)?;
    if found.is_file() {
        return Ok(found);
    }
    Err(format!(
        "no program {}: build it first (cargo build --release --workspace), or name it with --{name}",
        path.display()
    )
    .into())
}

fn ai_spawn(program: &Path, index: usize, port: u16) -> Spawn {
    Spawn::new(program)
        .env("INSTANCE_ID", format!("ai-{}", index + 1))
        .env("API_HOST", "127.0.0.1")
        .env("API_PORT", port.to_string())
        .env("RUST_LOG", "info")
}

fn control_spawn(
    program: &Path,
    index: usize,
    port: u16,
    nats: &NatsCluster,
    patroni: &PatroniCluster,
    ai_url: &str,
) -> Spawn {
    // The instances prefer different brokers, so that no broker takes both away at once.
    let mut brokers = nats.urls();
    let shift = index % brokers.len();
    brokers.rotate_left(shift);
    Spawn::new(program)
        .env("INSTANCE_ID", format!("control-{}", index + 1))
        .env("MQTT_BROKERS", brokers.join(","))
        .env("MQTT_TOPOLOGY", "cluster")
        .env("DATABASE_URL", patroni.url())
        .env("PATRONI_URLS", patroni.patroni_urls().join(","))
        .env("AI_LAYER_URL", ai_url)
        .env("AI_LAYER_TIMEOUT", "2")
        .env("API_HOST", "127.0.0.1")
        .env("API_PORT", port.to_string())
        .env("RUST_LOG", "info")
}

//! NATS: three nodes that serve MQTT over a replicated JetStream, so that a session survives the node it began on.

mod stored;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub use self::stored::Stored;
use super::postgres::loopback;
use super::{Restartable, http, listening, persistently, require};
use crate::{Ground, Process, Spawn, TestbedError, bring, wait};

/// Election included; 1 s on an idle machine.
const START: Duration = Duration::from_secs(60);

/// How a NATS cluster is configured.
#[derive(Clone, Debug, Default)]
pub struct NatsOptions {
    /// The ports on which the nodes listen for each other, so that proxies can be put before them. Default: free ones.
    pub cluster_ports: Option<[u16; 3]>,
    /// `routes[i][j]` is where node `i` reaches node `j`. The nodes are then kept from telling each other their true
    /// addresses, or they would go round a proxy. Default: the cluster ports themselves.
    pub routes: Option<[[SocketAddr; 3]; 3]>,
    /// After how long a message that was not acknowledged is sent again. Default: 5 s; NATS's own is 30 s.
    pub ack_wait: Option<Duration>,
}

/// A running cluster of three.
#[derive(Debug)]
pub struct NatsCluster {
    nodes: Vec<NatsNode>,
}

/// One node of a [`NatsCluster`].
#[derive(Debug)]
pub struct NatsNode {
    name: String,
    mqtt: SocketAddr,
    /// NATS's own protocol.
    clients: SocketAddr,
    monitor: SocketAddr,
    server: Restartable,
}

impl Ground {
    /// Starts three nodes; returns when they are one cluster.
    ///
    /// # Errors
    /// [`TestbedError`] when the program is missing or there is no cluster within a minute.
    ///
    /// # Cancel safety
    /// Safe: nodes already started end with the ground.
    pub async fn nats_cluster(&self) -> Result<NatsCluster, TestbedError> {
        self.nats_cluster_with(NatsOptions::default()).await
    }

    /// Starts three nodes.
    ///
    /// # Errors
    /// As [`nats_cluster`](Self::nats_cluster).
    ///
    /// # Cancel safety
    /// As [`nats_cluster`](Self::nats_cluster).
    pub async fn nats_cluster_with(&self, options: NatsOptions) -> Result<NatsCluster, TestbedError> {
        require(&["nats-server"]).await?;
        persistently(|| NatsCluster::start(self, &options)).await
    }
}

impl NatsCluster {
    async fn start(ground: &Ground, options: &NatsOptions) -> Result<Self, TestbedError> {
        let cluster = options.cluster_ports.unwrap_or_else(|| [ground.port(), ground.port(), ground.port()]);
        let direct = [cluster.map(loopback); 3];
        let routes = options.routes.unwrap_or(direct);
        let mut nodes = Vec::new();
        for (index, (port, routes)) in cluster.into_iter().zip(routes).enumerate() {
            let others = routes.into_iter().enumerate().filter(|(other, _)| *other != index).map(|(_, route)| route);
            // Nobody listens on port 1: what a node learns about others by gossip is of no use to it.
            let advertise = if options.routes.is_some() { "advertise: \"127.0.0.1:1\"" } else { "" };
            nodes.push(NatsNode::start(ground, index, port, others, advertise, options)?);
        }
        let cluster = Self { nodes };
        for node in &cluster.nodes {
            listening(&node.process(), node.mqtt, START).await?;
        }
        cluster.connected(START).await?;
        cluster.make_streams().await?;
        cluster.healthy(START).await?;
        Ok(cluster)
    }

    /// The nodes.
    #[must_use]
    pub fn nodes(&self) -> &[NatsNode] {
        &self.nodes
    }

    /// The MQTT addresses of all nodes, for a client's list of brokers.
    #[must_use]
    pub fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(NatsNode::url).collect()
    }

    /// Which node leads a stream, for example `$MQTT_msgs`; nothing while none does.
    ///
    /// Taken from the account of most nodes: one that is cut off goes on naming itself for 10 s and more.
    ///
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn stream_leader(&self, stream: &str) -> Option<usize> {
        let asked = self.nodes.iter().map(NatsNode::streams);
        let known = futures_util::future::join_all(asked).await;
        let votes = |name: &str| {
            known.iter().filter_map(|streams| streams.get(stream)).filter(|state| state.leader == name).count()
        };
        let counted = self.nodes.iter().map(|node| votes(&node.name)).enumerate();
        let (leader, most) = counted.max_by_key(|(_, votes)| *votes)?;
        let others = known.iter().filter_map(|streams| streams.get(stream)).count() - most;
        (most > others || (most > 0 && self.says_it_leads(leader, stream, &known))).then_some(leader)
    }

    fn says_it_leads(&self, index: usize, stream: &str, known: &[Streams]) -> bool {
        let account = known.get(index).and_then(|streams| streams.get(stream));
        account.zip(self.nodes.get(index)).is_some_and(|(state, node)| state.leader == node.name)
    }

    /// What a stream holds, for example `$MQTT_msgs`: messages that not every session has acknowledged.
    ///
    /// # Errors
    /// [`TestbedError::Server`] when the cluster does not answer, or has no such stream.
    ///
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn stored(&self, stream: &str) -> Result<Vec<Stored>, TestbedError> {
        let node = self.nodes.first().ok_or_else(|| TestbedError::server("NATS", "no node"))?;
        let read = stored::read(node.clients, stream).await;
        read.map_err(|error| TestbedError::server(&node.name, error.to_string()))
    }

    /// Waits until every node is healthy by its own account, knows both others, and every stream has a leader whose
    /// followers are up to date. Before that a cluster may not survive the loss of one more node: NATS 2.9 then
    /// never elects a leader for the streams that were not everywhere yet.
    ///
    /// # Errors
    /// [`TestbedError::Deadline`] when they are not within `deadline`.
    ///
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn healthy(&self, deadline: Duration) -> Result<(), TestbedError> {
        let waited = wait::until(deadline, "NATS: three healthy nodes", || async { self.trouble().await.is_none() });
        match waited.await {
            Err(TestbedError::Deadline { what, after, .. }) => {
                let trouble = tokio::time::timeout(Duration::from_secs(10), self.trouble()).await.ok().flatten();
                let last = trouble.map_or_else(String::new, |trouble| format!("; {trouble}"));
                Err(TestbedError::Deadline { what, after, last })
            }
            other => other,
        }
    }

    /// What keeps the cluster from being healthy.
    async fn trouble(&self) -> Option<String> {
        let mut known = Vec::new();
        for node in &self.nodes {
            if !node.is_healthy().await {
                return Some(format!("{} is not healthy by its own account", node.name));
            }
            known.push(node.streams().await);
        }
        if !self.is_connected().await {
            return Some("not all nodes are known to a leader".to_owned());
        }
        let mut streams = known.iter().flat_map(|streams| streams.keys());
        let missing = streams.find(|stream| !self.is_complete(stream, &known))?;
        Some(format!("stream {missing} is not everywhere: {known:?}"))
    }

    /// Waits until the leader of the cluster says that all others are up to date.
    async fn connected(&self, deadline: Duration) -> Result<(), TestbedError> {
        wait::until(deadline, "NATS: one cluster of three", || self.is_connected()).await
    }

    async fn is_connected(&self) -> bool {
        for node in &self.nodes {
            let Some(jsz) = http::json(node.monitor, "/jsz").await else { return false };
            let meta = jsz.get("meta_cluster").unwrap_or(&Value::Null);
            if meta.get("leader").and_then(Value::as_str) == Some(&node.name) {
                return current(meta) + 1 == self.nodes.len();
            }
        }
        false
    }

    /// Whether the leader of a stream says that it leads and that all others are up to date.
    fn is_complete(&self, stream: &str, known: &[Streams]) -> bool {
        self.nodes.iter().zip(known).any(|(node, streams)| {
            streams.get(stream).is_some_and(|state| state.leader == node.name && state.current + 1 == self.nodes.len())
        })
    }

    /// Has the first session, for which NATS makes the streams of MQTT, come and go: a second or more that no test
    /// then takes for a failure.
    async fn make_streams(&self) -> Result<(), TestbedError> {
        let Some(node) = self.nodes.first() else { return Ok(()) };
        wait::until(START, "NATS: a first MQTT session", || async {
            let connack = tokio::time::timeout(Duration::from_secs(10), mqtt_session(node.mqtt)).await;
            connack.is_ok_and(|session| session.is_ok_and(|answer| answer == [0x20, 2, 0, 0]))
        })
        .await
    }
}

/// Connects with a clean session (MQTT 3.1.1), returns the answer and disconnects.
async fn mqtt_session(address: SocketAddr) -> std::io::Result<[u8; 4]> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"\x10\x19\0\x04MQTT\x04\x02\0\x3c\0\x0dmodax-testbed").await?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).await?;
    stream.write_all(b"\xe0\0").await?;
    Ok(answer)
}

/// What a node says of its streams, by their names.
type Streams = BTreeMap<String, StreamState>;

#[derive(Debug)]
struct StreamState {
    leader: String,
    /// How many other nodes are up to date.
    current: usize,
}

impl NatsNode {
    fn start(
        ground: &Ground,
        index: usize,
        cluster: u16,
        routes: impl Iterator<Item = SocketAddr>,
        advertise: &str,
        options: &NatsOptions,
    ) -> Result<Self, TestbedError> {
        let name = format!("n{}", index + 1);
        let (clients, monitor, mqtt) = (ground.port(), ground.port(), ground.port());
        let log = format!("nats-{mqtt}");
        let store = ground.directory(&log, false)?;
        let routes: Vec<String> = routes.map(|route| format!("\"nats://{route}\"")).collect();
        let ack_wait = options.ack_wait.unwrap_or(Duration::from_secs(5)).as_millis();
        // On disk: a node that is killed keeps its sessions, as in a plant. The number of replicas is said because a
        // node otherwise takes the number of nodes it knows at the moment of its first client: often two.
        let text = format!(
            "server_name: {name}\nlisten: \"127.0.0.1:{clients}\"\nhttp: \"127.0.0.1:{monitor}\"\n\
             jetstream {{ store_dir: \"{store}\", max_memory_store: 64MB, max_file_store: 1GB }}\n\
             cluster {{ name: modax, listen: \"127.0.0.1:{cluster}\", {advertise}\n  routes: [{routes}] }}\n\
             mqtt {{ listen: \"127.0.0.1:{mqtt}\", ack_wait: \"{ack_wait}ms\", max_ack_pending: 1000, stream_replicas: 3, consumer_replicas: 3 }}\n",
            store = store.display(),
            routes = routes.join(", "),
        );
        let file = ground.write(&format!("{log}.conf"), &text)?;
        let spawn = Spawn::new(bring::program("nats-server")?).arg("-c").arg(file).log(log);
        let server = Restartable::start(ground, spawn)?;
        Ok(Self { name, mqtt: loopback(mqtt), clients: loopback(clients), monitor: loopback(monitor), server })
    }

    /// The name it goes by in the cluster.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it listens for MQTT.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.mqtt
    }

    /// Its address as an MQTT URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("mqtt://{}", self.mqtt)
    }

    /// Its process: the present one, or the last.
    #[must_use]
    pub fn process(&self) -> Process {
        self.server.process()
    }

    /// Kills it (SIGKILL); returns when it is gone.
    pub fn kill(&self) {
        self.process().kill();
    }

    /// Stops it (SIGSTOP): connections stay open and nobody answers.
    pub fn stop(&self) {
        self.process().stop();
    }

    /// Lets it go on after [`stop`](Self::stop).
    pub fn cont(&self) {
        self.process().cont();
    }

    /// Starts it again on the same ports and store; returns when it listens, which is before it has caught up with
    /// the others: see [`NatsCluster::healthy`].
    ///
    /// # Errors
    /// [`TestbedError`] when it does not listen within a minute.
    ///
    /// # Cancel safety
    /// Safe: it may or may not run afterwards.
    pub async fn restart(&self) -> Result<(), TestbedError> {
        let process = self.server.restart()?;
        listening(&process, self.mqtt, START).await
    }

    async fn is_healthy(&self) -> bool {
        // Of the server alone: NATS 2.9 may call the idle consumer of a restarted node "not current" for ever. The
        // streams are asked of their leaders.
        let healthz = http::json(self.monitor, "/healthz?js-server-only=true").await.unwrap_or_default();
        healthz.get("status").and_then(Value::as_str) == Some("ok")
    }

    /// Its streams, by its own account; those that have no leader too.
    async fn streams(&self) -> Streams {
        let jsz = http::json(self.monitor, "/jsz?accounts=true&streams=true").await.unwrap_or_default();
        let accounts = jsz.get("account_details").and_then(Value::as_array).into_iter().flatten();
        let streams = accounts.filter_map(|account| account.get("stream_detail")?.as_array()).flatten();
        streams
            .filter_map(|stream| {
                let cluster = stream.get("cluster")?;
                let leader = cluster.get("leader").and_then(Value::as_str).unwrap_or_default().to_owned();
                let state = StreamState { leader, current: current(cluster) };
                Some((stream.get("name")?.as_str()?.to_owned(), state))
            })
            .collect()
    }
}

/// How many of the followers in a leader's account are up to date.
fn current(cluster: &Value) -> usize {
    let replicas = cluster.get("replicas").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let is_current = |replica: &&Value| {
        replica.get("current").and_then(Value::as_bool) == Some(true)
            && replica.get("lag").and_then(Value::as_u64).unwrap_or(0) == 0
    };
    replicas.iter().filter(is_current).count()
}

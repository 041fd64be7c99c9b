//! etcd: three nodes that agree on who leads, for Patroni.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;

use super::postgres::loopback;
use super::{Restartable, http, persistently, ready, require};
use crate::{Ground, Process, Spawn, TestbedError, bring};

/// Election included; 1 s on an idle machine.
const START: Duration = Duration::from_secs(60);

/// A running cluster of three.
#[derive(Debug)]
pub struct EtcdCluster {
    nodes: Vec<EtcdNode>,
}

/// One node of an [`EtcdCluster`].
#[derive(Debug)]
pub struct EtcdNode {
    address: SocketAddr,
    server: Restartable,
}

impl Ground {
    /// Starts three nodes; returns when each of them knows a leader.
    ///
    /// # Errors
    /// [`TestbedError`] when the program is missing or there is no leader within a minute.
    ///
    /// # Cancel safety
    /// Safe: nodes already started end with the ground.
    pub async fn etcd(&self) -> Result<EtcdCluster, TestbedError> {
        require(&["etcd"]).await?;
        persistently(|| EtcdCluster::start(self)).await
    }
}

impl EtcdCluster {
    async fn start(ground: &Ground) -> Result<Self, TestbedError> {
        let peers = [ground.port(), ground.port(), ground.port()];
        let members: Vec<String> =
            peers.iter().enumerate().map(|(index, port)| format!("e{}=http://127.0.0.1:{port}", index + 1)).collect();
        let nodes: Result<Vec<EtcdNode>, TestbedError> = peers
            .iter()
            .enumerate()
            .map(|(index, peer)| EtcdNode::start(ground, &format!("e{}", index + 1), *peer, &members.join(",")))
            .collect();
        let cluster = Self { nodes: nodes? };
        for node in &cluster.nodes {
            ready(&node.process(), START, "healthy", || node.is_healthy()).await?;
        }
        Ok(cluster)
    }

    /// The nodes.
    #[must_use]
    pub fn nodes(&self) -> &[EtcdNode] {
        &self.nodes
    }

    /// Where clients reach the nodes.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.nodes.iter().map(EtcdNode::addr).collect()
    }
}

impl EtcdNode {
    fn start(ground: &Ground, name: &str, peer: u16, members: &str) -> Result<Self, TestbedError> {
        let port = ground.port();
        let log = format!("etcd-{port}");
        let data = ground.directory(&log, false)?;
        let (client, peer) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{peer}"));
        // Twice the default times: on a machine that builds at the same time a heartbeat of 100 ms comes too late, and
        // each needless election delays a failover by more than this does.
        let spawn = Spawn::new(bring::program("etcd")?)
            .args(["--name", name, "--initial-cluster", members, "--initial-cluster-state", "new"])
            .args(["--initial-cluster-token", members, "--heartbeat-interval", "200", "--election-timeout", "2000"])
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--logger", "zap", "--log-level", "warn", "--data-dir"])
            .arg(data)
            .log(log);
        Ok(Self { address: loopback(port), server: Restartable::start(ground, spawn)? })
    }

    /// Where clients reach it.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.address
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

    /// Stops it (SIGSTOP).
    pub fn stop(&self) {
        self.process().stop();
    }

    /// Lets it go on after [`stop`](Self::stop).
    pub fn cont(&self) {
        self.process().cont();
    }

    /// Starts it again; returns when it knows a leader.
    ///
    /// # Errors
    /// [`TestbedError`] when it knows none within a minute.
    ///
    /// # Cancel safety
    /// Safe: it may or may not run afterwards.
    pub async fn restart(&self) -> Result<(), TestbedError> {
        let process = self.server.restart()?;
        ready(&process, START, "healthy", || self.is_healthy()).await
    }

    async fn is_healthy(&self) -> bool {
        let health = http::json(self.address, "/health").await.unwrap_or_default();
        health.get("health").and_then(Value::as_str) == Some("true")
    }
}

//! PostgreSQL: one primary and its standbys by streaming replication, with nobody who would fail over by himself.
//!
//! `fsync` is off: a killed process leaves its writes to the kernel, and a test does not lose power.

pub(crate) mod node;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

pub use node::PostgresNode;

use super::{persistently, require};
use crate::{Ground, Spawn, TestbedError, bring, wait};

/// Beginning to serve takes 0.2 s on an idle machine, and several seconds on one that builds at the same time.
pub(crate) const START: Duration = Duration::from_secs(60);

/// Everybody on loopback is trusted: the tests are about failures, and the ground is gone after them.
pub(crate) const HBA: [&str; 3] =
    ["local all all trust", "host all all 127.0.0.1/32 trust", "host replication all 127.0.0.1/32 trust"];

/// What every node of a test is set to, whoever manages it.
pub(crate) const SETTINGS: [(&str, &str); 15] = [
    ("fsync", "off"),
    ("shared_buffers", "16MB"),
    ("wal_level", "replica"),
    ("hot_standby", "on"),
    ("max_wal_senders", "10"),
    ("max_replication_slots", "10"),
    // Instead of slots: a standby that was stopped still finds what it missed, on whichever node leads by then.
    ("wal_keep_size", "256MB"),
    // pg_rewind needs one of these or checksums.
    ("wal_log_hints", "on"),
    ("wal_receiver_status_interval", "1s"),
    // The default of 5 s is how long a standby sulks after it found nobody.
    ("wal_retrieve_retry_interval", "200ms"),
    // Its library, LLVM, is not brought.
    ("jit", "off"),
    // The only zone that needs no file of the system.
    ("timezone", "GMT"),
    ("log_timezone", "GMT"),
    ("lc_messages", "C"),
    ("log_line_prefix", "%m [%p] %a "),
];

/// The role clients come as and the database they use; the role may look at replication, and is no superuser.
pub(crate) const ROLE: &str = "CREATE ROLE modax LOGIN REPLICATION; GRANT pg_monitor TO modax;";
pub(crate) const DATABASE: &str = "CREATE DATABASE modax OWNER modax";

/// How a cluster is configured.
#[derive(Clone, Debug)]
pub struct PostgresOptions {
    /// Standbys beside the primary; they call themselves `s1`, `s2`, … Default: 2.
    pub standbys: usize,
    /// `synchronous_standby_names`, for example `ANY 1 (s1, s2)`; set once the standbys follow. Default: none.
    pub synchronous: Option<String>,
    /// `max_connections` of every node. Default: 100, PostgreSQL's own.
    pub max_connections: u32,
    /// Further settings of every node, which win over the testbed's. Default: none.
    pub settings: Vec<(String, String)>,
}

impl Default for PostgresOptions {
    fn default() -> Self {
        Self { standbys: 2, synchronous: None, max_connections: 100, settings: Vec::new() }
    }
}

/// A running cluster. Node 0 began as the primary.
#[derive(Debug)]
pub struct PostgresCluster {
    nodes: Vec<PostgresNode>,
}

impl Ground {
    /// Starts a primary and its standbys; returns when all standbys follow and, where asked for, are synchronous.
    ///
    /// # Errors
    /// [`TestbedError`] when a program is missing or a node does not come up within a minute.
    ///
    /// # Cancel safety
    /// Safe: nodes already started end with the ground.
    pub async fn postgres(&self, options: PostgresOptions) -> Result<PostgresCluster, TestbedError> {
        require(&["postgres", "initdb", "pg_basebackup", "setpriv"]).await?;
        persistently(|| PostgresCluster::start(self, &options)).await
    }
}

impl PostgresCluster {
    async fn start(ground: &Ground, options: &PostgresOptions) -> Result<Self, TestbedError> {
        let port = ground.port();
        let data = ground.directory(&format!("postgres-{port}"), true)?;
        initdb(ground, &data).await?;
        configure(ground, &data, options)?;
        let primary = PostgresNode::start(ground, port, data)?;
        primary.serving(START).await?;
        primary.psql_in("postgres", ROLE).await?;
        primary.psql_in("postgres", DATABASE).await?;

        let copies: Vec<_> = (1..=options.standbys)
            .map(|number| PostgresNode::copy(ground, primary.addr(), format!("s{number}")))
            .collect();
        let mut nodes = vec![primary];
        for node in futures_util::future::join_all(copies).await {
            nodes.push(node?);
        }
        let cluster = Self { nodes };
        if options.standbys > 0 {
            cluster.following(START).await?;
        }
        if let (Some(names), [primary, ..]) = (&options.synchronous, cluster.nodes.as_slice()) {
            primary.synchronous(names).await?;
            let count = "SELECT count(*) FROM pg_stat_replication WHERE sync_state IN ('sync', 'quorum')";
            wait::until(START, "a synchronous standby", || async {
                primary.psql(count).await.is_ok_and(|count| names.is_empty() || count != "0")
            })
            .await?;
        }
        Ok(cluster)
    }

    /// All nodes; node 0 began as the primary.
    #[must_use]
    pub fn nodes(&self) -> &[PostgresNode] {
        &self.nodes
    }

    /// One libpq URL with all nodes, user `modax`, database `modax`.
    #[must_use]
    pub fn url(&self) -> String {
        url(self.nodes.iter().map(PostgresNode::addr))
    }

    /// The node that takes writes at present; the first of them if there are several.
    ///
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn primary(&self) -> Option<usize> {
        for (index, node) in self.nodes.iter().enumerate() {
            if node.psql("SELECT pg_is_in_recovery()").await.is_ok_and(|answer| answer == "f") {
                return Some(index);
            }
        }
        None
    }

    /// Waits until all other nodes stream from the primary.
    ///
    /// # Errors
    /// [`TestbedError::Deadline`] when they do not within `deadline`.
    ///
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn following(&self, deadline: Duration) -> Result<(), TestbedError> {
        let wanted = (self.nodes.len() - 1).to_string();
        wait::until(deadline, "PostgreSQL: all standbys streaming", || async {
            let Some(primary) = self.primary().await.and_then(|index| self.nodes.get(index)) else { return false };
            let streaming = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'";
            primary.psql(streaming).await.is_ok_and(|count| count == wanted)
        })
        .await
    }
}

/// One libpq URL for several addresses.
pub(crate) fn url(addresses: impl Iterator<Item = SocketAddr>) -> String {
    let hosts: Vec<String> = addresses.map(|address| address.to_string()).collect();
    format!("postgresql://modax@{}/modax", hosts.join(","))
}

pub(crate) fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

async fn initdb(ground: &Ground, data: &Path) -> Result<(), TestbedError> {
    let spawn = Spawn::new(bring::program("initdb")?)
        .arg("-D")
        .arg(data)
        .args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"])
        .log(format!("initdb-{}", data.file_name().unwrap_or_default().to_string_lossy()))
        .as_postgres_user(true);
    ground.run(spawn, START).await
}

/// Writes the settings all nodes share; a copy takes them along. What differs is given on the command line.
fn configure(ground: &Ground, data: &Path, options: &PostgresOptions) -> Result<(), TestbedError> {
    let mut text = format!(
        "listen_addresses = '127.0.0.1'\nunix_socket_directories = ''\nmax_connections = {}\n",
        options.max_connections
    );
    let more = options.settings.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    for (name, value) in SETTINGS.into_iter().chain(more) {
        text += &[name, " = '", &value.replace('\'', "''"), "'\n"].concat();
    }
    for (file, text) in [("postgresql.conf", text), ("pg_hba.conf", HBA.join("\n") + "\n")] {
        let written =
            ground.write(&format!("{}-{file}", data.file_name().unwrap_or_default().to_string_lossy()), &text)?;
        let target = data.join(file);
        std::fs::copy(written, &target)
            .and_then(|_| bring::user::give(&target))
            .map_err(TestbedError::io(target.display().to_string()))?;
    }
    Ok(())
}

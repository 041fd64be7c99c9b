//! One node: Patroni and the PostgreSQL it runs, which is nobody's child and survives its Patroni.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::process::Signal;
use serde_json::{Map, Value, json};

use super::{HASTE, PatroniOptions};
use crate::ground::postmaster;
use crate::process::tree::{self, Id};
use crate::servers::Restartable;
use crate::servers::postgres::{self, HBA, SETTINGS, loopback};
use crate::{Ground, Process, Spawn, TestbedError, bring};

/// One node of a [`PatroniCluster`](super::PatroniCluster).
#[derive(Debug)]
pub struct PatroniNode {
    name: String,
    address: SocketAddr,
    rest: SocketAddr,
    data: PathBuf,
    server: Restartable,
    /// Whom [`stop_all`](Self::stop_all) stopped.
    stopped: Mutex<BTreeSet<Id>>,
}

impl PatroniNode {
    pub(super) fn start(
        ground: &Ground,
        index: usize,
        etcd: &[SocketAddr],
        options: &PatroniOptions,
    ) -> Result<Self, TestbedError> {
        let name = format!("n{}", index + 1);
        let (port, rest) = (loopback(ground.port()), loopback(ground.port()));
        let home = ground.directory(&format!("patroni-{}", port.port()), true)?;
        let data = home.join("data");
        let postgres = bring::program("postgres")?;
        let configuration = json!({
            "scope": "modax",
            "name": name,
            "restapi": { "listen": rest.to_string(), "connect_address": rest.to_string() },
            "etcd3": {
                "hosts": etcd.iter().map(SocketAddr::to_string).collect::<Vec<_>>(),
                // Else it asks etcd for the members' own addresses, which go round a proxy.
                "use_proxies": options.etcd.is_some(),
            },
            "bootstrap": {
                "dcs": dynamic(options),
                "initdb": [{ "encoding": "UTF8" }, { "locale": "C" }, "no-sync"],
            },
            "postgresql": {
                "listen": port.to_string(),
                "connect_address": port.to_string(),
                "data_dir": data,
                "bin_dir": postgres.path().parent(),
                "pgpass": home.join("pgpass"),
                "authentication": { "superuser": { "username": "postgres" }, "replication": { "username": "replicator" } },
                "pg_hba": HBA,
                // Without a fast checkpoint a replica waits for a spread one: more than a minute.
                "basebackup": [{ "checkpoint": "fast" }, "no-sync", "no-manifest"],
                // One for each node: with a shared one a replica never starts, and nobody says so.
                "parameters": { "unix_socket_directories": home },
            },
            "watchdog": { "mode": "off" },
        });
        let file = ground.write(&format!("patroni-{}.json", port.port()), &configuration.to_string())?;
        let patroni = bring::program("patroni")?;
        let spawn = Spawn::new(patroni.clone())
            .arg(file)
            .env("LD_LIBRARY_PATH", libraries(&[&postgres, &patroni]))
            .directory(&home)
            .log(format!("patroni-{}", port.port()))
            .as_postgres_user(true);
        ground.owns_postgres(&data)?;
        let server = Restartable::start(ground, spawn)?;
        Ok(Self { name, address: port, rest, data, server, stopped: Mutex::default() })
    }

    /// Its name in the cluster: `n1`, `n2` or `n3`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where its PostgreSQL listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.address
    }

    /// Where its Patroni listens.
    #[must_use]
    pub fn rest(&self) -> SocketAddr {
        self.rest
    }

    /// Where its Patroni listens, as a URL.
    #[must_use]
    pub fn rest_url(&self) -> String {
        format!("http://{}", self.rest)
    }

    /// Its data directory.
    #[must_use]
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Its Patroni: the present process, or the last.
    #[must_use]
    pub fn patroni(&self) -> Process {
        self.server.process()
    }

    /// The process id of its postmaster, while it has one.
    #[must_use]
    pub fn postmaster_pid(&self) -> Option<u32> {
        postmaster(&self.data).map(|id| id.pid.unsigned_abs())
    }

    /// Kills PostgreSQL with all its backends (SIGKILL) and leaves Patroni alone. Without effect if it does not run.
    pub fn kill_postgres(&self) {
        if let Some(postmaster) = postmaster(&self.data) {
            tree::kill(&[postmaster]);
        }
    }

    /// Kills Patroni and PostgreSQL (SIGKILL), as if the node had lost its power.
    pub fn kill_all(&self) {
        let roots = self.roots();
        if !roots.is_empty() {
            tree::kill(&roots);
        }
        // Patroni may have started another postmaster between the look and the stop.
        self.kill_postgres();
        self.patroni().kill();
        self.stopped().clear();
    }

    /// Stops Patroni and PostgreSQL (SIGSTOP): connections stay open and nobody answers.
    pub fn stop_all(&self) {
        let frozen = tree::freeze(&self.roots());
        self.stopped().extend(frozen);
    }

    /// Lets everything go on after [`stop_all`](Self::stop_all).
    pub fn cont_all(&self) {
        let mut stopped = std::mem::take(&mut *self.stopped());
        stopped.extend(tree::family(&self.roots()));
        for id in stopped {
            id.signal(Signal::CONT);
        }
    }

    /// Starts Patroni again, which starts PostgreSQL; kills both first if they still run. Does not wait: see
    /// [`PatroniCluster::healthy`](super::PatroniCluster::healthy).
    ///
    /// # Errors
    /// [`TestbedError::Io`] when it cannot be started.
    pub fn restart(&self) -> Result<(), TestbedError> {
        self.kill_all();
        self.server.restart().map(drop)
    }

    /// Runs SQL as superuser in database `modax`; see [`PostgresNode::psql`](crate::PostgresNode::psql).
    ///
    /// # Errors
    /// [`TestbedError::Server`] with the server's words, also when it does not answer within 15 s.
    ///
    /// # Cancel safety
    /// Not safe: the statement may or may not have been executed.
    pub async fn psql(&self, sql: &str) -> Result<String, TestbedError> {
        self.psql_in("modax", sql).await
    }

    pub(super) async fn psql_in(&self, database: &str, sql: &str) -> Result<String, TestbedError> {
        postgres::node::psql(self.address, database, sql).await
    }

    fn roots(&self) -> Vec<Id> {
        // A dead Patroni is no root: its number may be somebody else's group by now.
        let patroni = Some(self.patroni().id()).filter(|id| id.is_alive());
        patroni.into_iter().chain(postmaster(&self.data)).collect()
    }

    fn stopped(&self) -> std::sync::MutexGuard<'_, BTreeSet<Id>> {
        self.stopped.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The part of the configuration that lives in etcd.
fn dynamic(options: &PatroniOptions) -> Value {
    let mut parameters: Map<String, Value> =
        SETTINGS.into_iter().map(|(name, value)| (name.to_owned(), Value::from(value))).collect();
    parameters.insert("max_connections".to_owned(), options.max_connections.into());
    parameters.extend(options.settings.iter().map(|(name, value)| (name.clone(), Value::from(value.as_str()))));
    json!({
        "ttl": options.ttl,
        "loop_wait": HASTE,
        "retry_timeout": options.retry_timeout,
        "primary_start_timeout": options.primary_start_timeout,
        "maximum_lag_on_failover": 1_048_576,
        "synchronous_mode": options.synchronous_mode,
        "postgresql": { "use_pg_rewind": true, "use_slots": true, "parameters": parameters },
    })
}

/// The directories of all these programs: Patroni hands its environment on to PostgreSQL.
fn libraries(programs: &[&bring::Program]) -> OsString {
    let variables = programs.iter().flat_map(|program| program.environment());
    let paths =
        variables.filter(|(key, _)| key == "LD_LIBRARY_PATH").flat_map(|(_, paths)| std::env::split_paths(paths));
    std::env::join_paths(paths).unwrap_or_default()
}

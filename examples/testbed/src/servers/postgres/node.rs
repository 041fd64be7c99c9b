//! One PostgreSQL server: killed and stopped as a whole, with all its backends.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;
use tokio_postgres::{NoTls, SimpleQueryMessage};

use super::{START, loopback};
use crate::process::tree::Id;
use crate::servers::{Restartable, ready};
use crate::{Ground, Process, Spawn, TestbedError, bring};

/// A statement of a test takes milliseconds; one that waits for a standby that is gone would take for ever.
const STATEMENT: Duration = Duration::from_secs(15);

/// One node of a [`PostgresCluster`](super::PostgresCluster).
#[derive(Debug)]
pub struct PostgresNode {
    ground: Ground,
    address: SocketAddr,
    data: PathBuf,
    server: Restartable,
}

impl PostgresNode {
    /// Starts a server on an existing data directory; does not wait for it.
    pub(super) fn start(ground: &Ground, port: u16, data: PathBuf) -> Result<Self, TestbedError> {
        let spawn = Spawn::new(bring::program("postgres")?)
            .arg("-D")
            .arg(&data)
            .args(["-p", &port.to_string()])
            .directory(&data)
            .log(format!("postgres-{port}"))
            .as_postgres_user(true);
        ground.owns_postgres(&data)?;
        let server = Restartable::start(ground, spawn)?;
        Ok(Self { ground: ground.clone(), address: loopback(port), data, server })
    }

    /// Copies `primary` and starts the copy as a standby that calls itself `name`.
    pub(super) async fn copy(ground: &Ground, primary: SocketAddr, name: String) -> Result<Self, TestbedError> {
        let port = ground.port();
        let data = ground.directory(&format!("postgres-{port}"), true)?;
        base_backup(ground, &data, primary, &name).await?;
        let node = Self::start(ground, port, data)?;
        node.serving(START).await?;
        Ok(node)
    }

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.address
    }

    /// A libpq URL of this node alone, user `modax`, database `modax`.
    #[must_use]
    pub fn url(&self) -> String {
        super::url(std::iter::once(self.address))
    }

    /// Its data directory.
    #[must_use]
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Its postmaster: the present one, or the last.
    #[must_use]
    pub fn process(&self) -> Process {
        self.server.process()
    }

    /// Kills the whole node (SIGKILL to the postmaster and every backend); returns when it is gone.
    pub fn kill(&self) {
        self.process().kill();
    }

    /// Stops the whole node (SIGSTOP to the postmaster and every backend).
    pub fn stop(&self) {
        self.process().stop();
    }

    /// Lets the whole node go on after [`stop`](Self::stop).
    pub fn cont(&self) {
        self.process().cont();
    }

    /// Starts it again on the same port and data, in the role it had; kills it first if it still runs.
    ///
    /// # Errors
    /// [`TestbedError`] when it does not serve within a minute.
    ///
    /// # Cancel safety
    /// Safe: it may or may not run afterwards.
    pub async fn restart(&self) -> Result<(), TestbedError> {
        self.server.restart()?;
        self.serving(START).await
    }

    /// Makes a standby the primary; returns when it takes writes.
    ///
    /// # Errors
    /// [`TestbedError::Server`] when it is no standby or not promoted within 15 s.
    ///
    /// # Cancel safety
    /// Safe: it is or is not promoted afterwards.
    pub async fn promote(&self) -> Result<(), TestbedError> {
        match self.psql("SELECT pg_promote(true, 10)").await?.as_str() {
            "t" => Ok(()),
            other => Err(TestbedError::server(self.name(), format!("not promoted: {other}"))),
        }
    }

    /// Has a standby follow another node from here on.
    ///
    /// # Errors
    /// [`TestbedError::Server`] when the standby does not answer.
    ///
    /// # Cancel safety
    /// Safe: it follows the old or the new node afterwards.
    pub async fn follow(&self, primary: &Self) -> Result<(), TestbedError> {
        let name = self
            .psql("SELECT substring(current_setting('primary_conninfo') from 'application_name=''?([a-z0-9]+)')")
            .await?;
        let info = format!(
            "host={} port={} user=postgres application_name={name}",
            primary.address.ip(),
            primary.address.port()
        );
        self.psql(&format!("ALTER SYSTEM SET primary_conninfo = '{info}'")).await?;
        self.psql("SELECT pg_reload_conf()").await.map(drop)
    }

    /// Throws this node's data away and makes it a fresh standby of `primary` that calls itself `name`: the way back
    /// for a primary that was replaced.
    ///
    /// # Errors
    /// [`TestbedError`] when the copy fails or the node does not serve within a minute.
    ///
    /// # Cancel safety
    /// Not safe: the node may be left without data. Call it again.
    pub async fn rebuild(&self, primary: &Self, name: &str) -> Result<(), TestbedError> {
        self.process().kill();
        release_memory(&self.data);
        std::fs::remove_dir_all(&self.data).map_err(TestbedError::io(self.data.display().to_string()))?;
        let data = self.ground.directory(&self.data.file_name().unwrap_or_default().to_string_lossy(), true)?;
        base_backup(&self.ground, &data, primary.address, name).await?;
        self.restart().await
    }

    /// Sets `synchronous_standby_names`; the empty text makes every commit a local one.
    ///
    /// # Errors
    /// [`TestbedError::Server`] when the node does not answer.
    ///
    /// # Cancel safety
    /// Safe: the old or the new setting holds afterwards.
    pub async fn synchronous(&self, names: &str) -> Result<(), TestbedError> {
        self.psql(&format!("ALTER SYSTEM SET synchronous_standby_names = '{}'", names.replace('\'', "''"))).await?;
        self.psql("SELECT pg_reload_conf()").await.map(drop)
    }

    /// Kills one backend of this role (SIGKILL). The server ends all others, recovers in place, and keeps its start.
    ///
    /// # Errors
    /// [`TestbedError::Server`] if the role has none.
    ///
    /// # Cancel safety
    /// Not safe: the backend may or may not have been killed.
    pub async fn kill_backend(&self, role: &str) -> Result<(), TestbedError> {
        let found = self.psql(&format!("SELECT pid FROM pg_stat_activity WHERE usename = '{role}' LIMIT 1")).await?;
        let backend = found.parse().ok().and_then(Id::of);
        let backend = backend.ok_or_else(|| TestbedError::server(self.name(), format!("no backend of {role}")))?;
        backend.signal(Signal::KILL);
        Ok(())
    }

    /// Runs SQL as superuser in database `modax`; answers as `psql -tA` would: a line a row, columns parted by `|`.
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
        psql(self.address, database, sql).await
    }

    /// Waits until it answers a query.
    pub(super) async fn serving(&self, deadline: Duration) -> Result<(), TestbedError> {
        ready(&self.process(), deadline, "answering", || async { self.psql_in("postgres", "SELECT 1").await.is_ok() })
            .await
    }

    fn name(&self) -> String {
        format!("PostgreSQL at {}", self.address)
    }
}

/// Runs SQL as superuser on whatever node listens at `address`.
pub(crate) async fn psql(address: SocketAddr, database: &str, sql: &str) -> Result<String, TestbedError> {
    let name = || format!("PostgreSQL at {address}");
    let asked = tokio::time::timeout(STATEMENT, async {
        let mut config = tokio_postgres::Config::new();
        config.host(address.ip().to_string()).port(address.port()).user("postgres").dbname(database);
        config.application_name("modax-testbed");
        let (client, connection) = config.connect(NoTls).await?;
        let driver = async {
            // The end of the connection shows as the error of the query.
            let _ = connection.await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            answer = client.simple_query(sql) => answer,
            () = driver => Ok(Vec::new()),
        }
    });
    let messages = match asked.await {
        Ok(Ok(messages)) => messages,
        Ok(Err(error)) => {
            let words = error.as_db_error().map_or_else(|| error.to_string(), |error| error.message().to_owned());
            return Err(TestbedError::server(name(), format!("{sql}: {words}")));
        }
        Err(_) => return Err(TestbedError::server(name(), format!("{sql}: no answer within {STATEMENT:?}"))),
    };
    let rows = messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => {
            let columns: Vec<&str> = (0..row.len()).map(|index| row.get(index).unwrap_or("")).collect();
            Some(columns.join("|"))
        }
        _ => None,
    });
    Ok(rows.collect::<Vec<_>>().join("\n"))
}

/// Removes the System V segment that a killed postmaster left, before its data directory is thrown away: with the
/// directory goes the only trace of it. At the end of a ground the guardian does the same.
fn release_memory(data: &Path) {
    let owner = std::fs::read_to_string(data.join("postmaster.pid")).unwrap_or_default();
    let Some(creator) = owner.lines().next() else { return };
    let segments = std::fs::read_to_string("/proc/sysvipc/shm").unwrap_or_default();
    for segment in segments.lines() {
        // Columns: key, id, permissions, size, creator, last user, number of users; see sysvipc(7).
        let columns: Vec<&str> = segment.split_ascii_whitespace().collect();
        if let [_, id, _, _, made, _, "0", ..] = columns.as_slice()
            && *made == creator
        {
            // A segment that stays is a nuisance, not an error.
            let _ = std::process::Command::new("ipcrm").args(["-m", id]).status();
        }
    }
}

/// `-c fast` because a spread checkpoint takes minutes; no slot, see `wal_keep_size`.
async fn base_backup(ground: &Ground, data: &Path, primary: SocketAddr, name: &str) -> Result<(), TestbedError> {
    let spawn = Spawn::new(bring::program("pg_basebackup")?)
        .arg("-D")
        .arg(data)
        .arg("-d")
        .arg(format!("host={} port={} user=postgres application_name={name}", primary.ip(), primary.port()))
        .args(["-R", "-X", "stream", "-c", "fast", "--no-sync", "--no-manifest"])
        .log(format!("basebackup-{}", data.file_name().unwrap_or_default().to_string_lossy()))
        .as_postgres_user(true);
    ground.run(spawn, START).await
}

//! The handle users hold.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::types::ToSql;

use crate::config::{Config, Target};
use crate::driver::acquire::Whom;
use crate::driver::events::Events;
#[cfg(feature = "patroni")]
use crate::driver::patroni::Api;
use crate::driver::pool::Connection;
use crate::driver::{Driver, Shared};
use crate::error::{AcceptError, AcquireError, ConfigError, WriteError};
use crate::monitor::Input;
use crate::plan::{Plan, ReadPreference, ReadRequest};
use crate::policy::selection::Selection;
use crate::read::Read;
use crate::stats::Stats;
use crate::topology::{NodeId, Role, Topology};
use crate::write::{Tx, Writer, Written};

/// Routes writes to the primary and reads to whom the caller wants, through failovers. Cheap to clone.
///
/// Dropping the last clone ends its tasks and closes its connections; [`close`](Self::close) does so in order.
#[derive(Clone)]
pub struct Router {
    driver: Arc<Driver>,
}

impl fmt::Debug for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Router").finish_non_exhaustive()
    }
}

/// Settings of a [`Router`] before it starts.
#[derive(Clone, Debug)]
#[must_use = "nothing starts before `build`"]
pub struct RouterBuilder {
    targets: Vec<Target>,
    config: Config,
    #[cfg(feature = "patroni")]
    patroni: Vec<Api>,
}

impl RouterBuilder {
    /// Asks these Patroni REST APIs (`http://host:8008`) who leads, as a hint that makes a failover visible sooner.
    /// Default: nobody is asked, because the servers themselves say who is the primary.
    ///
    /// # Errors
    /// [`ConfigError::Patroni`] if one of them is not a plain `http://` URL.
    #[cfg(feature = "patroni")]
    pub fn patroni<I, S>(mut self, urls: I) -> Result<Self, ConfigError>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<str>,
    {
        for url in urls {
            self.patroni.push(Api::read(url.as_ref())?);
        }
        Ok(self)
    }

    /// Longest wait for a primary and for all attempts of a write. Default: [`Config::acquire_deadline`].
    pub const fn acquire_deadline(mut self, deadline: Duration) -> Self {
        self.config.acquire_deadline = deadline;
        self
    }

    /// Longest wait for the answer to `COMMIT`. Default: [`Config::commit_deadline`].
    pub const fn commit_deadline(mut self, deadline: Duration) -> Self {
        self.config.commit_deadline = deadline;
        self
    }

    /// Pause between two probes of a server while all is well. Default: [`Config::probe_interval`].
    pub const fn probe_interval(mut self, interval: Duration) -> Self {
        self.config.probe_interval = interval;
        self
    }

    /// Connections kept for each server, at most. Default: [`Config::pool_size`].
    pub const fn pool_size(mut self, connections: usize) -> Self {
        self.config.pool_size = connections;
        self
    }

    /// Calls that may wait for a primary at once. Default: [`Config::hold_limit`].
    pub const fn hold_limit(mut self, calls: usize) -> Self {
        self.config.hold_limit = calls;
        self
    }

    /// Longest time one read may take. Default: [`Config::read_deadline`].
    pub const fn read_deadline(mut self, deadline: Duration) -> Self {
        self.config.read_deadline = deadline;
        self
    }

    /// Longest time for one probe. Default: [`Config::probe_deadline`].
    pub const fn probe_deadline(mut self, deadline: Duration) -> Self {
        self.config.probe_deadline = deadline;
        self
    }

    /// How a replica is chosen among equals. Default: [`Config::selection`].
    pub const fn selection(mut self, selection: Selection) -> Self {
        self.config.selection = selection;
        self
    }

    /// Longest time the server lets a transaction stand open with nothing to do; zero leaves it to the server. Default:
    /// [`Config::idle_in_transaction_timeout`]. The `options` of the connection URL win.
    pub const fn idle_in_transaction_timeout(mut self, timeout: Duration) -> Self {
        self.config.idle_in_transaction_timeout = Some(timeout);
        self
    }

    /// How often the server looks whether we are still there while it works for us; zero leaves it to the server.
    /// Default: [`Config::client_check_interval`]. The `options` of the connection URL win.
    pub const fn client_check_interval(mut self, interval: Duration) -> Self {
        self.config.client_check_interval = interval;
        self
    }

    /// Starts the router. No server needs to be up: calls wait for a primary within their deadlines.
    ///
    /// # Errors
    /// [`ConfigError`] names what cannot work; [`ConfigError::NoRuntime`] outside of a tokio runtime.
    pub fn build(mut self) -> Result<Router, ConfigError> {
        self.config.check()?;
        for target in &mut self.targets {
            self.config.begin_sessions(&mut target.login);
        }
        #[cfg(feature = "patroni")]
        let driver = Driver::start(self.config, self.targets, self.patroni)?;
        #[cfg(not(feature = "patroni"))]
        let driver = Driver::start(self.config, self.targets)?;
        Ok(Router { driver: Arc::new(driver) })
    }
}

impl Router {
    /// Begins a router for the servers that this libpq URL names: `postgresql://user@db1,db2,db3/name`.
    ///
    /// # Errors
    /// [`ConfigError`] if the URL cannot be read, names nobody, asks for TLS (which this version does not speak), or
    /// would send plain text off this machine without `sslmode=disable` saying so.
    pub fn builder(url: &str) -> Result<RouterBuilder, ConfigError> {
        Ok(RouterBuilder {
            targets: crate::config::targets(url)?,
            config: Config::default(),
            #[cfg(feature = "patroni")]
            patroni: Vec::new(),
        })
    }

    /// Runs one statement in a transaction of its own.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    ///
    /// # Cancel safety
    /// As [`write`](Self::write).
    pub async fn execute(&self, sql: &str, params: &[&(dyn ToSql + Sync)]) -> Result<Written<u64>, WriteError> {
        self.write(|tx: Tx| async move { tx.execute_last(sql, params).await }).await
    }

    /// Runs `work` in a transaction on the primary, and returns when it is committed.
    ///
    /// Waits through a failover or a switchover. `work` **may run several times**: whenever it is certain that the
    /// attempt before did not happen. [`Writer::attempts`] limits that, and [`Tx::attempt`] tells.
    ///
    /// The work must not end the transaction itself. If it does, the answer is [`WriteError::OutcomeUnknown`], as long as
    /// the server is still there to be asked; if the link breaks or the deadline passes first, the router does not know
    /// of it, and says "not committed" or runs the work again.
    ///
    /// The session is reset afterwards, behind the caller's back: what `SET`, `LISTEN` or a temporary table left there
    /// is gone before anybody else gets the connection.
    ///
    /// # Errors
    /// - [`WriteError::NoPrimary`], [`WriteError::HoldFull`], [`WriteError::NotCommitted`],
    ///   [`WriteError::StalePrimary`]: it did not happen; safe to repeat.
    /// - [`WriteError::OutcomeUnknown`]: `COMMIT` was sent and the rule ([`commit`](crate::commit)) cannot settle
    ///   what became of it, or the work ended the transaction itself; repeat only under the same idempotency key.
    /// - [`WriteError::Statement`]: the work's own error; rolled back.
    /// - [`WriteError::TxKept`]: the work let a clone of its [`Tx`] escape; nothing was committed.
    /// - [`WriteError::Closed`]: the router was closed.
    ///
    /// # Cancel safety
    /// Dropping the future closes its connection: before `COMMIT` was sent the server rolls back, afterwards the
    /// outcome is unknown to the caller. The connection is never reused.
    pub async fn write<T, F, Fut>(&self, work: F) -> Result<Written<T>, WriteError>
    where
        F: FnMut(Tx) -> Fut + Send,
        Fut: Future<Output = Result<T, tokio_postgres::Error>> + Send,
        T: Send,
    {
        self.writer().run(work).await
    }

    /// A write with settings of its own.
    pub fn writer(&self) -> Writer {
        Writer::new(self.clone(), self.shared().config.acquire_deadline)
    }

    /// A connection to the primary, for what a transaction closure cannot express.
    ///
    /// # Errors
    /// [`AcquireError`].
    ///
    /// # Cancel safety
    /// Cancel safe: nothing was sent for the caller.
    pub async fn primary(&self) -> Result<Connection, AcquireError> {
        self.primary_within(self.shared().config.acquire_deadline).await
    }

    /// As [`primary`](Self::primary), with a deadline of its own.
    ///
    /// # Errors
    /// [`AcquireError`].
    ///
    /// # Cancel safety
    /// Cancel safe: nothing was sent for the caller.
    pub async fn primary_within(&self, deadline: Duration) -> Result<Connection, AcquireError> {
        let deadline = crate::driver::after(deadline);
        loop {
            let acquired = self.shared().acquire(deadline, Whom::Call).await?;
            if matches!(tokio::time::timeout_at(deadline.into(), acquired.checkout.is_fresh()).await, Ok(true)) {
                return Ok(acquired.checkout.by_hand());
            }
        }
    }

    /// Describes a read.
    pub fn read(&self, preference: ReadPreference) -> Read<'_> {
        Read::new(self, ReadRequest::new(preference), self.shared().config.read_deadline)
    }

    /// What is known of all servers now.
    #[must_use]
    pub fn topology(&self) -> Arc<Topology> {
        self.shared().topology()
    }

    /// What the last probe of each server that failed met, in the words of the server or of the operating system; never
    /// a password. Servers whose last probe was answered are not there.
    #[must_use]
    pub fn probe_failures(&self) -> Vec<(NodeId, String)> {
        self.shared().reasons()
    }

    /// What happens from now on.
    #[must_use]
    pub fn events(&self) -> Events {
        self.shared().events()
    }

    /// Counters since the start.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let shared = self.shared();
        let free = shared.hold.available_permits();
        shared.counters.read(shared.config.hold_limit.saturating_sub(free))
    }

    /// Who would answer such a read now, in which order, and why the others would not.
    #[must_use]
    pub fn explain(&self, request: &ReadRequest) -> Plan {
        self.shared().plan(request)
    }

    /// Closes the router: new calls fail, running ones may finish within `deadline`, then connections are cut.
    ///
    /// # Cancel safety
    /// Cancel safe: the router is closed in any case.
    pub async fn close(&self, deadline: Duration) {
        self.driver.close(deadline).await;
    }

    /// Decides that the history of `node`, which must be out of recovery, is the database: the end of an outage after
    /// a restore from a backup, or after a server on a history left behind took the lead and the operators choose to
    /// live with it. What the history before had beyond is given up.
    ///
    /// Returns once the decision is handed to the monitor; [`Event::HistoryAccepted`](crate::Event::HistoryAccepted)
    /// follows.
    ///
    /// # Errors
    /// [`AcceptError`] if the server is unknown, or was not out of recovery when last seen.
    ///
    /// # Cancel safety
    /// Cancel safe: the decision is handed over or it is not.
    pub async fn accept_history(&self, node: &NodeId) -> Result<(), AcceptError> {
        let shared = self.shared();
        let index = shared.index_of(node).ok_or(AcceptError::UnknownNode)?;
        let role = shared.topology().node(node).map(|known| known.role);
        if role != Some(Role::Primary) {
            return Err(AcceptError::NotWriting);
        }
        if shared.tell(Input::Accept { node: index }).await { Ok(()) } else { Err(AcceptError::Closed) }
    }

    /// Lets new writes wait, as they wait through a failover, until [`resume_writes`](Self::resume_writes). Those
    /// under way are committed, and reads go on, also on the primary.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn pause_writes(&self) {
        self.shared().tell(Input::Pause(true)).await;
    }

    /// Ends [`pause_writes`](Self::pause_writes).
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn resume_writes(&self) {
        self.shared().tell(Input::Pause(false)).await;
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.driver.shared
    }
}

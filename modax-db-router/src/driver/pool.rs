//! Connections to one server: made, verified, handed out, severed.
//!
//! Each connection remembers which life of which server it belongs to, because an address may come to mean another
//! server. A connection that was left in the middle of something never goes back.

use std::collections::BTreeMap;
use std::fmt;
use std::future::poll_fn;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use deadpool::managed::{self, Metrics, Object, PoolError, RecycleError, RecycleResult};
use deadpool_postgres::ClientWrapper;
use tokio::task::AbortHandle;
use tokio_postgres::error::Severity;
use tokio_postgres::{AsyncMessage, NoTls, SimpleQueryMessage, Statement};

use super::evidence::BeforeRow;
use super::reset::{Reset, Sent, discard};
use crate::lsn::{Lsn, SystemId};
use crate::observation::{Incarnation, StartTime};

/// Longest time to make or to clean a connection. Far above what a reachable server needs; a server that is in doubt
/// is left by the change of topology long before.
const CREATE_DEADLINE: Duration = Duration::from_secs(5);
const RECYCLE_DEADLINE: Duration = Duration::from_secs(1);

/// Prepared statements kept for a connection. Statements made up on the fly would otherwise pile up in the server.
const STATEMENTS: usize = 256;

const IDENTITY: &str = "SELECT (SELECT system_identifier FROM pg_control_system()), \
    (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint, \
    CASE WHEN pg_is_in_recovery() THEN 'recovering' ELSE coalesce(pg_last_wal_replay_lsn()::text, 'clean') END";

/// Which life of which server a connection belongs to. A server that is promoted keeps it, a restarted one does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) system: SystemId,
    pub(crate) started: StartTime,
    /// Made to a server in recovery, whose floor is not known yet. No connection outlives a recovery in place.
    recovering: bool,
    /// Where the server's recovery had ended.
    floor: Option<Lsn>,
}

impl Identity {
    pub(crate) fn is_of(self, incarnation: &Incarnation) -> bool {
        let same_floor = self.recovering || self.floor == incarnation.floor;
        self.system == incarnation.system && self.started == incarnation.started && same_floor
    }
}

/// Why no connection was made.
#[derive(Debug)]
pub(crate) enum DialError {
    Postgres(tokio_postgres::Error),
    /// The server did not say who it is.
    Unreadable,
}

/// Handles of all connections to one server, so that they can be cut while they are in use.
#[derive(Debug, Default)]
struct Registry {
    next: AtomicU64,
    tasks: Mutex<BTreeMap<u64, AbortHandle>>,
}

impl Registry {
    fn sever(&self) -> usize {
        let tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        for task in tasks.values() {
            task.abort();
        }
        tasks.len()
    }
}

/// Takes its connection out of the registry when its task ends, however it ends.
struct Registered {
    registry: Arc<Registry>,
    id: u64,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.registry.tasks.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

/// What is known of the state of a connection that came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Condition {
    /// All its transactions were rolled back.
    Read,
    /// No transaction is open, but its session may have settings, locks, temporary tables.
    Written,
    /// It was used by hand: it may stand in a transaction, too.
    Unknown,
    /// It was left in the middle of something, and cut.
    Doomed,
}

/// One connection.
pub(crate) struct Conn {
    client: Arc<ClientWrapper>,
    identity: Identity,
    warnings: Arc<AtomicU64>,
    task: AbortHandle,
    condition: Condition,
    /// Sent when it was given back, and not yet known to be done.
    reset: Option<Sent>,
    /// The generation its prepared statements belong to.
    generation: u64,
}

/// Makes connections to one server.
pub(crate) struct Dialer {
    login: tokio_postgres::Config,
    registry: Arc<Registry>,
}

impl managed::Manager for Dialer {
    type Type = Conn;
    type Error = DialError;

    async fn create(&self) -> Result<Conn, DialError> {
        let (client, mut connection) = self.login.connect(NoTls).await.map_err(DialError::Postgres)?;
        let warnings = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&warnings);
        let id = self.registry.next.fetch_add(1, Ordering::Relaxed);
        let registered = Registered { registry: Arc::clone(&self.registry), id };
        let task = {
            // Held until the handle is in: the task takes itself out when it ends, which may be at once.
            let mut tasks = self.registry.tasks.lock().unwrap_or_else(PoisonError::into_inner);
            let task = tokio::spawn(async move {
                let _registered = registered;
                while let Some(Ok(message)) = poll_fn(|cx| connection.poll_message(cx)).await {
                    if let AsyncMessage::Notice(notice) = message
                        && notice.parsed_severity() == Some(Severity::Warning)
                    {
                        counter.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
            tasks.insert(id, task.abort_handle());
            task
        };
        let abort = task.abort_handle();
        // From here on dropping the wrapper ends the task.
        let client = ClientWrapper::new(client, task);
        let rows = client.simple_query(IDENTITY).await.map_err(DialError::Postgres)?;
        let identity = read_identity(&rows).ok_or(DialError::Unreadable)?;
        let client = Arc::new(client);
        Ok(Conn { client, identity, warnings, task: abort, condition: Condition::Read, reset: None, generation: 0 })
    }

    async fn recycle(&self, conn: &mut Conn, _: &Metrics) -> RecycleResult<DialError> {
        if conn.client.is_closed() {
            return Err(RecycleError::message("closed"));
        }
        if conn.condition == Condition::Doomed {
            return Err(RecycleError::message("left in the middle of something"));
        }
        let clean = match conn.reset.take().map(Sent::look) {
            None => conn.condition != Condition::Unknown,
            Some(Ok(clean)) => clean,
            Some(Err(pending)) => {
                // Whoever gets it looks again.
                conn.reset = Some(pending);
                true
            }
        };
        if !clean {
            discard(&conn.client).await.map_err(|error| RecycleError::Backend(DialError::Postgres(error)))?;
        }
        Ok(())
    }
}

fn read_identity(rows: &[SimpleQueryMessage]) -> Option<Identity> {
    let row = rows.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    })?;
    let column = |index| row.try_get(index).ok().flatten();
    let system = SystemId::new(column(0)?.parse().ok()?);
    let started = StartTime::from_micros(column(1)?.parse().ok()?);
    let (recovering, floor) = match column(2)? {
        "recovering" => (true, None),
        "clean" => (false, None),
        position => (false, Some(position.parse().ok()?)),
    };
    Some(Identity { system, started, recovering, floor })
}

/// All connections to one server.
pub(crate) struct NodePool {
    pool: managed::Pool<Dialer>,
    registry: Arc<Registry>,
    outstanding: Arc<AtomicUsize>,
    /// Moves when a prepared statement turned out not to fit any more.
    generation: Arc<AtomicU64>,
}

impl NodePool {
    pub(crate) fn new(login: tokio_postgres::Config, size: usize) -> Option<Self> {
        let registry = Arc::new(Registry::default());
        let pool = managed::Pool::builder(Dialer { login, registry: Arc::clone(&registry) })
            .max_size(size)
            .runtime(deadpool::Runtime::Tokio1)
            .create_timeout(Some(CREATE_DEADLINE))
            .recycle_timeout(Some(RECYCLE_DEADLINE))
            .build()
            .ok()?;
        Some(Self { pool, registry, outstanding: Arc::default(), generation: Arc::default() })
    }

    /// Takes a connection out. The caller bounds the wait.
    pub(crate) async fn take(&self) -> Result<Checkout, PoolError<DialError>> {
        let mut object = self.pool.get().await?;
        let generation = self.generation.load(Ordering::Acquire);
        if object.generation != generation {
            object.client.statement_cache.clear();
            object.generation = generation;
        }
        self.outstanding.fetch_add(1, Ordering::Relaxed);
        let outstanding = Arc::clone(&self.outstanding);
        let generation = Arc::clone(&self.generation);
        let reset = Mutex::new(object.reset.take());
        Ok(Checkout { object, end: Condition::Doomed, outstanding, generation, evidence: Mutex::new(None), reset })
    }

    /// Connections handed out now.
    pub(crate) fn outstanding(&self) -> usize {
        self.outstanding.load(Ordering::Relaxed)
    }

    /// Cuts all connections, in use or not; returns how many were in use.
    pub(crate) fn sever(&self) -> usize {
        let in_use = self.outstanding();
        let cut = self.registry.sever();
        self.pool.retain(|_, _| false);
        cut.min(in_use)
    }

    pub(crate) fn close(&self) {
        self.pool.close();
    }
}

/// A connection that is in use. Dropped as it is, it is closed; only [`give_back`](Self::give_back) returns it.
pub(crate) struct Checkout {
    object: Object<Dialer>,
    end: Condition,
    outstanding: Arc<AtomicUsize>,
    generation: Arc<AtomicU64>,
    evidence: Mutex<Option<BeforeRow>>,
    /// The reset after the last user, if its answer was still on its way.
    reset: Mutex<Option<Sent>>,
}

impl Checkout {
    pub(crate) fn client(&self) -> &tokio_postgres::Client {
        &self.object.client
    }

    pub(crate) fn identity(&self) -> Identity {
        self.object.identity
    }

    /// Warnings the server sent on this connection so far.
    pub(crate) fn warnings(&self) -> u64 {
        self.object.warnings.load(Ordering::Relaxed)
    }

    /// Prepares a statement once for this connection.
    pub(crate) async fn prepare(&self, sql: &str) -> Result<Statement, tokio_postgres::Error> {
        let cache = &self.object.client.statement_cache;
        if cache.size() >= STATEMENTS {
            cache.clear();
        }
        self.object.client.prepare_cached(sql).await
    }

    /// Forgets the prepared statements of all connections to this server, each when it is handed out next: what does
    /// not fit any more on one of them does not fit on the others.
    pub(crate) fn forget_statements(&self) {
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// Keeps what was pipelined behind the last statement until COMMIT is sent.
    pub(crate) fn keep_evidence(&self, row: Option<BeforeRow>) {
        *self.evidence.lock().unwrap_or_else(PoisonError::into_inner) = row;
    }

    pub(crate) fn evidence(&self) -> Option<BeforeRow> {
        self.evidence.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Whether the session is free of what the last user left there. Costs nothing behind the answer to anything that
    /// was sent since. What was done in a session that is not counts for nothing.
    pub(crate) async fn is_fresh(&self) -> bool {
        let sent = self.reset.lock().unwrap_or_else(PoisonError::into_inner).take();
        match sent {
            Some(sent) => sent.clean().await,
            None => true,
        }
    }

    /// Closes the connection for all who have it.
    pub(crate) fn cut(&self) {
        self.object.task.abort();
    }

    /// Returns the connection, on which no transaction is open, to its pool; its session is reset on the way.
    pub(crate) fn give_back(mut self) {
        self.end = Condition::Written;
    }

    /// The same where nothing was done, or all was rolled back: there is less to reset.
    pub(crate) fn give_back_read(mut self) {
        self.end = Condition::Read;
    }

    /// Hands the connection out to be used by hand.
    pub(crate) const fn by_hand(mut self) -> Connection {
        self.end = Condition::Unknown;
        Connection { inner: self }
    }
}

impl Drop for Checkout {
    fn drop(&mut self) {
        self.object.condition = self.end;
        let client = Arc::clone(&self.object.client);
        match self.end {
            Condition::Read => self.object.reset = Some(Sent::send(client, Reset::AfterRead)),
            Condition::Written => self.object.reset = Some(Sent::send(client, Reset::AfterWrite)),
            // Reset by whoever gets it next.
            Condition::Unknown => {}
            // Closes the socket now; the pool finds the remains at the next checkout.
            Condition::Doomed => self.object.task.abort(),
        }
        self.outstanding.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection to the primary. Dereferences to [`tokio_postgres::Client`].
///
/// It is cut when its server is fenced, demoted or lost: every call on it then fails with an error whose
/// `is_closed()` is true. Dropped, it goes back to its pool; before anybody else gets it, an open transaction is
/// rolled back and the session reset (`DISCARD ALL`).
pub struct Connection {
    inner: Checkout,
}

impl Deref for Connection {
    type Target = tokio_postgres::Client;

    fn deref(&self) -> &tokio_postgres::Client {
        self.inner.client()
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

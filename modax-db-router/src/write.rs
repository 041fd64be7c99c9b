//! Writes: one transaction, held through a failover, with an outcome that is never a guess.

use std::fmt;
use std::future::Future;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::driver;
use crate::driver::acquire::Whom;
use crate::driver::pool::Checkout;
use crate::driver::transaction::{After, Attempt};
use crate::error::{AcquireError, WriteError};
use crate::lsn::WriteToken;
use crate::policy::retry::BROKEN_ATTEMPTS;
use crate::router::Router;
use crate::topology::NodeId;

/// What is known of the copies of a committed write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Durability {
    /// A standby has it, by evidence: `synchronous_standby_names` was set before and after, the configuration did
    /// not change in between, `synchronous_commit` was at least `on`, and no warning came with the answer. It is no
    /// proof against a split brain: an old follower still acknowledges an old primary.
    Synchronous,
    /// Only the primary is known to have it.
    Local,
    /// The evidence is missing or contradicts itself.
    Unknown,
}

/// A committed write.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Written<T> {
    /// What the work returned.
    pub value: T,
    /// Give it to a read that must see this write. `None` if `COMMIT` was answered and the position was not.
    pub token: Option<WriteToken>,
    /// What is known of its copies.
    pub durability: Durability,
    /// How often the work was begun.
    pub attempts: u32,
    /// The server that committed it.
    pub node: NodeId,
}

/// An open transaction on the primary: `BEGIN` was sent, `COMMIT` follows when the work has returned.
///
/// Owned and cheap to clone, so that it can move into the future the work returns. Dereferences to
/// [`tokio_postgres::Client`]: every statement, COPY and prepared statement of it works. Do not send `COMMIT` or
/// `ROLLBACK` by hand: the write ends with [`WriteError::OutcomeUnknown`]. A clone kept beyond the work is cut off: its
/// connection is closed.
///
/// What outlives a transaction (`SET`, `LISTEN`, session-level advisory locks, temporary tables, `PREPARE`) ends when
/// the connection goes back to its pool: the session is reset before anybody else gets it.
#[derive(Clone)]
pub struct Tx {
    pub(crate) connection: Arc<Checkout>,
    pub(crate) attempt: u32,
}

impl Tx {
    /// Which attempt this is, from 1: the work runs again when the server says that it did not happen.
    #[must_use]
    pub const fn attempt(&self) -> u32 {
        self.attempt
    }
}

impl Deref for Tx {
    type Target = tokio_postgres::Client;

    fn deref(&self) -> &tokio_postgres::Client {
        self.connection.client()
    }
}

impl fmt::Debug for Tx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tx").field("attempt", &self.attempt).finish_non_exhaustive()
    }
}

/// A write with settings of its own; made by [`Router::writer`].
#[derive(Clone, Debug)]
#[must_use = "nothing is written before `run`"]
pub struct Writer {
    router: Router,
    deadline: Duration,
    attempts: u32,
}

impl Writer {
    pub(crate) const fn new(router: Router, deadline: Duration) -> Self {
        Self { router, deadline, attempts: u32::MAX }
    }

    /// Longest wait for a primary and for all attempts together. Default: [`Config::acquire_deadline`](crate::Config::acquire_deadline).
    pub const fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// How often the work may be begun, at least 1; default without a limit but the deadline. With 1 the work never
    /// runs twice. Whatever it says, a work whose connection ended under it
    /// [`BROKEN_ATTEMPTS`](crate::policy::retry::BROKEN_ATTEMPTS) times is not begun again.
    pub const fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts;
        self
    }

    /// Runs `work` in a transaction on the primary. See [`Router::write`].
    ///
    /// # Errors
    /// As [`Router::write`].
    ///
    /// # Cancel safety
    /// As [`Router::write`].
    pub async fn run<T, F, Fut>(self, work: F) -> Result<Written<T>, WriteError>
    where
        F: FnMut(Tx) -> Fut + Send,
        Fut: Future<Output = Result<T, tokio_postgres::Error>> + Send,
        T: Send,
    {
        let counters = &self.router.shared().counters;
        let _running = self.router.shared().run();
        let result = self.run_attempts(work).await;
        match &result {
            Ok(_) => {}
            Err(error) if error.outcome_unknown() => _ = counters.writes_unknown.fetch_add(1, Ordering::Relaxed),
            Err(_) => _ = counters.writes_failed.fetch_add(1, Ordering::Relaxed),
        }
        result
    }

    async fn run_attempts<T, F, Fut>(&self, mut work: F) -> Result<Written<T>, WriteError>
    where
        F: FnMut(Tx) -> Fut + Send,
        Fut: Future<Output = Result<T, tokio_postgres::Error>> + Send,
        T: Send,
    {
        let shared = self.router.shared();
        let deadline = driver::after(self.deadline);
        let most = self.attempts.max(1);
        let mut last = None;
        let mut forgot = false;
        let (mut attempt, mut broken, mut pauses) = (0, 0, 0);
        let mut routing = shared.routing();
        loop {
            routing.mark_unchanged();
            let acquired = match shared.acquire(deadline, Whom::Call).await {
                Ok(acquired) => acquired,
                Err(error) => return Err(not_acquired(error, attempt, last)),
            };
            attempt += 1;
            let node = acquired.node;
            match shared.attempt(acquired, attempt, deadline, &mut work).await {
                Attempt::Done(written) => return Ok(written),
                Attempt::Failed(error) => return Err(error),
                Attempt::Again { after: After::Stale, source: None } if attempt >= most => {
                    let node = shared.servers.get(node).map(|server| server.id.clone());
                    return Err(node.map_or(WriteError::Closed, |node| WriteError::StalePrimary { node }));
                }
                Attempt::Again { after: After::Nothing, source: Some(error) } if forgot => {
                    return Err(WriteError::Statement(error));
                }
                Attempt::Again { source, .. } if attempt >= most || driver::now() >= deadline => {
                    return Err(WriteError::NotCommitted { attempts: attempt, source });
                }
                Attempt::Again { after, source } => {
                    broken += u32::from(after == After::RoleChange && source.is_some());
                    if broken >= BROKEN_ATTEMPTS {
                        return Err(WriteError::NotCommitted { attempts: attempt, source });
                    }
                    shared.counters.write_retries.fetch_add(1, Ordering::Relaxed);
                    forgot |= after == After::Nothing;
                    pauses += u32::from(matches!(after, After::RoleChange | After::Stale));
                    shared.pause(after, attempt + 1, pauses, deadline, &mut routing).await;
                    last = source.or(last);
                }
            }
        }
    }
}

fn not_acquired(error: AcquireError, attempts: u32, last: Option<tokio_postgres::Error>) -> WriteError {
    match error {
        AcquireError::NoPrimary { why, waited, nodes, reasons } => {
            WriteError::NoPrimary { why, waited, nodes, reasons, source: last }
        }
        AcquireError::NoConnection { source, .. } => WriteError::NotCommitted { attempts, source: source.or(last) },
        AcquireError::HoldFull { limit } => WriteError::HoldFull { limit },
        AcquireError::Closed => WriteError::Closed,
    }
}

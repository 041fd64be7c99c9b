//! One attempt at one write: BEGIN, the work, evidence, COMMIT, and what became of it.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures_util::future::join;
use tokio::sync::watch;
use tokio_postgres::Error;
use tokio_postgres::error::Severity;
use tokio_postgres::types::ToSql;

use super::acquire::Acquired;
use super::evidence::{AFTER_COMMIT, BEFORE_COMMIT, Before, columns, durability, read_before, token_position};
use super::pool::Checkout;
use super::{Shared, now};
use crate::commit::{Evidence, UnknownBecause};
use crate::error::WriteError;
use crate::lsn::WriteToken;
use crate::observation::Incarnation;
use crate::policy::retry::{Reaction, pause_after_break, pause_before, react};
use crate::topology::NodeId;
use crate::write::{Durability, Tx, Written};

/// The answer tells this transaction from any other that the work may begin by hand.
const BEGIN: &str = "BEGIN; SELECT extract(epoch FROM pg_catalog.now())";

const ASK_ROLE: &str = "SELECT pg_is_in_recovery() OR current_setting('default_transaction_read_only') = 'on'";

/// Longest wait for ROLLBACK and for small questions; the connection is dropped otherwise.
const TIDY_DEADLINE: Duration = Duration::from_secs(1);

/// What one attempt came to.
pub(crate) enum Attempt<T> {
    Done(Written<T>),
    Failed(WriteError),
    /// It certainly did not happen and may run again.
    Again {
        after: After,
        source: Option<Error>,
    },
}

/// What to wait for before the next attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum After {
    /// A pause with jitter: somebody collided with us.
    Conflict,
    /// A short pause: the server went away or changed its role, and the monitor looks.
    RoleChange,
    /// Nothing: cached statements were forgotten. The second time the error is the caller's own.
    Nothing,
    /// A stale primary acknowledged it.
    Stale,
}

/// Where an attempt runs.
struct Place {
    node: usize,
    id: NodeId,
    incarnation: Incarnation,
    attempt: u32,
    deadline: Instant,
    /// What the server said to `BEGIN`.
    began: Option<String>,
}

/// A connection that the work has, too. Dropped before it is taken back, also with the future of the write, it is cut,
/// because a clone kept beyond the work would go on in the open transaction.
struct Lent(Option<Arc<Checkout>>);

impl Lent {
    /// `None`, and cut, if somebody else still has it.
    fn take_back(mut self) -> Option<Checkout> {
        match Arc::try_unwrap(self.0.take()?) {
            Ok(checkout) => Some(checkout),
            Err(kept) => {
                self.0 = Some(kept);
                None
            }
        }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(connection) = &self.0 {
            connection.cut();
        }
    }
}

/// Whether the transaction is open as far as the router knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Open {
    Yes,
    No,
}

impl Tx {
    /// Runs the only statement of a transaction, with the evidence behind it in the same flight.
    pub(crate) async fn execute_last(&self, sql: &str, params: &[&(dyn ToSql + Sync)]) -> Result<u64, Error> {
        let statement = self.connection.prepare(sql).await?;
        let client = self.connection.client();
        let (done, row) = join(client.execute(&statement, params), client.simple_query(BEFORE_COMMIT)).await;
        let done = done?;
        self.connection.keep_evidence(columns(&row?));
        Ok(done)
    }
}

impl Shared {
    /// Runs `work` once.
    pub(crate) async fn attempt<T, F, Fut>(
        &self,
        acquired: Acquired,
        attempt: u32,
        deadline: Instant,
        work: &mut F,
    ) -> Attempt<T>
    where
        F: FnMut(Tx) -> Fut + Send,
        Fut: Future<Output = Result<T, Error>> + Send,
        T: Send,
    {
        let Acquired { node, incarnation, checkout } = acquired;
        let Some(id) = self.servers.get(node).map(|server| server.id.clone()) else {
            return Attempt::Failed(WriteError::Closed);
        };
        let mut place = Place { node, id, incarnation, attempt, deadline, began: None };
        let lent = Lent(Some(Arc::new(checkout)));
        let Some(connection) = lent.0.as_ref() else { return Attempt::Failed(WriteError::TxKept) };
        let tx = Tx { connection: Arc::clone(connection), attempt };
        let mut begun = None;
        // BEGIN is polled first, so the work's first statement travels behind it in the same flight.
        let mut fresh = false;
        let begin = async {
            begun = Some(connection.client().simple_query(BEGIN).await);
            fresh = connection.is_fresh().await;
        };
        let ended = tokio::time::timeout_at(deadline.into(), join(begin, work(tx))).await;
        let (begin_failed, refused) = match begun {
            Some(Err(error)) => (!broke(&error, connection), Some(error)),
            Some(Ok(answer)) => {
                place.began = columns::<1>(&answer).and_then(|[began]| began);
                (false, None)
            }
            None => (false, None),
        };
        if begin_failed {
            // What was sent behind it ran, each statement for itself: also those before the one that failed.
            return unknown(&place, UnknownBecause::BeginFailed, refused);
        }
        let Ok(((), worked)) = ended else {
            self.suspect(node);
            return Attempt::Failed(WriteError::NotCommitted { attempts: attempt, source: None });
        };
        let Some(checkout) = lent.take_back() else {
            return Attempt::Failed(WriteError::TxKept);
        };
        if refused.is_some() {
            // The link broke, and COMMIT was not sent.
            self.suspect(node);
            return Attempt::Again { after: After::RoleChange, source: refused };
        }
        if !fresh {
            // The work ran in what somebody else left behind. The connection is dropped, and with it the transaction.
            return Attempt::Again { after: After::RoleChange, source: None };
        }
        match worked {
            Ok(value) => self.commit(&place, checkout, value).await,
            Err(error) => self.refused(&place, checkout, error, Open::Yes).await,
        }
    }

    /// The work came back with an error, or the server said no to COMMIT.
    async fn refused<T>(&self, place: &Place, checkout: Checkout, error: Error, open: Open) -> Attempt<T> {
        let reaction = error.code().map_or(Reaction::Callers, |code| react(code.code()));
        if reaction == Reaction::Elsewhere || broke(&error, &checkout) {
            self.suspect(place.node);
            return Attempt::Again { after: After::RoleChange, source: Some(error) };
        }
        if reaction == Reaction::ForgetStatement {
            checkout.forget_statements();
        }
        let warnings = checkout.warnings();
        let tidy = checkout.client().batch_execute("ROLLBACK");
        let tidied = tokio::time::timeout(TIDY_DEADLINE, tidy).await;
        if open == Open::Yes && checkout.warnings() != warnings {
            // There was nothing to roll back.
            return unknown(place, UnknownBecause::EndedByHand, Some(error));
        }
        let role_changed = reaction == Reaction::AskRole && self.left_role(&checkout).await;
        if matches!(tidied, Ok(Ok(()))) && !role_changed {
            checkout.give_back();
        }
        match reaction {
            Reaction::Again => Attempt::Again { after: After::Conflict, source: Some(error) },
            Reaction::ForgetStatement => Attempt::Again { after: After::Nothing, source: Some(error) },
            Reaction::AskRole if role_changed => {
                self.suspect(place.node);
                Attempt::Again { after: After::RoleChange, source: Some(error) }
            }
            _ => Attempt::Failed(WriteError::Statement(error)),
        }
    }

    /// After 25006: whether the server is a standby or is being drained. Otherwise the caller asked for read only.
    async fn left_role(&self, checkout: &Checkout) -> bool {
        let answer = tokio::time::timeout(TIDY_DEADLINE, checkout.client().simple_query(ASK_ROLE)).await;
        match answer {
            Ok(Ok(messages)) => columns::<1>(&messages).is_some_and(|[yes]| yes.as_deref() == Some("t")),
            // It does not even answer.
            Ok(Err(_)) | Err(_) => true,
        }
    }

    async fn commit<T>(&self, place: &Place, checkout: Checkout, value: T) -> Attempt<T> {
        let ask = async {
            match checkout.evidence() {
                Some(row) => Ok(Some(row)),
                None => checkout.client().simple_query(BEFORE_COMMIT).await.map(|messages| columns(&messages)),
            }
        };
        let before = match tokio::time::timeout_at(place.deadline.into(), ask).await {
            Ok(Ok(row)) => row.and_then(|row| read_before(row, place.incarnation)),
            // Also when the work swallowed an error: the transaction is aborted, and COMMIT would "succeed".
            Ok(Err(error)) => return self.refused(place, checkout, error, Open::Yes).await,
            Err(_) => {
                self.suspect(place.node);
                let attempts = place.attempt;
                return Attempt::Failed(WriteError::NotCommitted { attempts, source: None });
            }
        };
        let Some(before) = before else {
            return Attempt::Again { after: After::RoleChange, source: None };
        };
        if before.began != place.began {
            return unknown(place, UnknownBecause::EndedByHand, None);
        }
        if !self.may_commit(place.node, &place.incarnation) {
            // Dropping the connection rolls back.
            return Attempt::Again { after: After::RoleChange, source: None };
        }
        let warnings = checkout.warnings();
        let (mut committed, mut after) = (None, None);
        {
            let client = checkout.client();
            let first = async { committed = Some(client.batch_execute("COMMIT").await) };
            let second = async { after = Some(client.simple_query(AFTER_COMMIT).await) };
            // Never cancelled on the server: cancelling would make the commit visible without a copy.
            let _ = tokio::time::timeout(self.config.commit_deadline, join(first, second)).await;
        }
        match committed {
            Some(Ok(())) => {
                let warned = checkout.warnings() != warnings;
                let after = after.and_then(Result::ok).and_then(|messages| columns::<4>(&messages));
                let whole = after.is_some();
                if whole {
                    checkout.give_back();
                }
                self.acknowledge(place, &before, after, warned, value).await
            }
            Some(Err(error)) if said_no(&error) => self.refused(place, checkout, error, Open::No).await,
            Some(Err(error)) => {
                drop(checkout);
                self.suspect(place.node);
                self.settle_commit(place, &before.evidence, Some(error), value).await
            }
            None => {
                drop(checkout);
                self.suspect(place.node);
                self.settle_commit(place, &before.evidence, None, value).await
            }
        }
    }

    /// The server said "committed". It counts if the server's history is still the database.
    async fn acknowledge<T>(
        &self,
        place: &Place,
        before: &Before,
        after: Option<[Option<String>; 4]>,
        warned: bool,
        value: T,
    ) -> Attempt<T> {
        let topology = self.topology();
        let replaced = topology.lineage().current().is_some_and(|life| life.incarnation != place.incarnation);
        if replaced && before.evidence.xid.is_none() {
            // Nothing was written that could be lost, but what the work read there is not the database's.
            return Attempt::Again { after: After::Stale, source: None };
        }
        if replaced {
            return self.settle_commit(place, &before.evidence, None, value).await;
        }
        let [inserted, flushed, synchronous, loaded] = after.unwrap_or_default();
        let lsn = token_position(before, inserted.as_deref(), flushed.as_deref());
        let token = lsn.map(|lsn| WriteToken::new(place.incarnation.system, place.incarnation.timeline, lsn));
        let synchronous = synchronous.map(|text| text == "t");
        let unchanged = loaded.is_some() && loaded == before.loaded;
        let durability = durability(before, synchronous, unchanged, warned);
        Attempt::Done(self.written(place, value, token, durability))
    }

    fn written<T>(&self, place: &Place, value: T, token: Option<WriteToken>, durability: Durability) -> Written<T> {
        self.counters.writes_committed.fetch_add(1, Ordering::Relaxed);
        if durability == Durability::Synchronous {
            self.counters.commits_synchronous.fetch_add(1, Ordering::Relaxed);
        }
        Written { value, token, durability, attempts: place.attempt, node: place.id.clone() }
    }

    /// Waits before attempt number `next`; `broken` of those so far met a server that went away. A change of `routing`
    /// since the last attempt ends the wait for a server.
    pub(crate) async fn pause(
        &self,
        after: After,
        next: u32,
        broken: u32,
        deadline: Instant,
        routing: &mut watch::Receiver<u64>,
    ) {
        let pause = match after {
            After::Conflict => pause_before(next, self.random()),
            After::RoleChange | After::Stale => pause_after_break(broken, self.config.doubt_interval, self.random()),
            After::Nothing => return,
        };
        let slept = tokio::time::sleep_until(deadline.min(now() + pause).into());
        if after == After::Conflict {
            return slept.await;
        }
        tokio::select! {
            _ = routing.changed() => {}
            () = slept => {}
        }
    }

    /// COMMIT was sent and its answer is missing, or is worth nothing.
    async fn settle_commit<T>(
        &self,
        place: &Place,
        evidence: &Evidence,
        source: Option<Error>,
        value: T,
    ) -> Attempt<T> {
        let until = place.deadline.max(now() + self.config.commit_deadline);
        match self.settle(evidence, until).await {
            Ok(Some(token)) => {
                self.counters.commits_settled.fetch_add(1, Ordering::Relaxed);
                Attempt::Done(self.written(place, value, token, Durability::Unknown))
            }
            Ok(None) => {
                self.counters.commits_settled.fetch_add(1, Ordering::Relaxed);
                Attempt::Again { after: After::Stale, source }
            }
            Err(because) => unknown(place, because, source),
        }
    }
}

fn unknown<T>(place: &Place, because: UnknownBecause, source: Option<Error>) -> Attempt<T> {
    let (node, attempts) = (place.id.clone(), place.attempt);
    Attempt::Failed(WriteError::OutcomeUnknown { node, because, attempts, source })
}

/// Whether the link is gone, as opposed to the server having refused something.
pub(crate) fn broke(error: &Error, checkout: &Checkout) -> bool {
    let io = std::error::Error::source(error).and_then(|source| source.downcast_ref::<std::io::Error>());
    // What the driver cannot encode, such as a NUL in the text, is an `io::Error` as well, and nothing was sent of it.
    let by_io = io.is_some_and(|io| io.kind() != std::io::ErrorKind::InvalidInput);
    let fatal = error.as_db_error().and_then(tokio_postgres::error::DbError::parsed_severity);
    let fatal = matches!(fatal, Some(Severity::Fatal | Severity::Panic));
    fatal || error.is_closed() || by_io || (error.code().is_none() && checkout.client().is_closed())
}

/// Whether the server answered COMMIT with a plain refusal: the transaction is rolled back. A fatal error may come
/// after the commit was made, while it waited for its standby.
fn said_no(error: &Error) -> bool {
    error.as_db_error().and_then(tokio_postgres::error::DbError::parsed_severity) == Some(Severity::Error)
}

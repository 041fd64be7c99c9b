//! Running a read on one server after the other, within one deadline.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio_postgres::types::ToSql;
use tokio_postgres::{Error, Row};

use futures_util::future::{join, join3};

use super::evidence::columns;
use super::pool::Checkout;
use super::transaction::broke;
use super::{Shared, after, now};
use crate::error::ReadError;
use crate::lsn::WriteToken;
use crate::plan::{LeftOut, Plan, ReadRequest, TokenFate, plan};
use crate::policy::retry::{BROKEN_ATTEMPTS, Reaction, pause_after_break, react};
use crate::policy::selection::choose;
use crate::read::Rows;
use crate::topology::{NodeId, Topology};

/// First pause after servers that may answer did not.
const PAUSE: Duration = Duration::from_millis(10);

/// Around the statement of a read.
const BEGIN: &str = "BEGIN READ ONLY";
const END: &str = "ROLLBACK";

/// What one server made of a read.
enum Answer {
    /// With the age the server's data had at most when the statement was sent.
    Rows(Vec<Row>, Option<Duration>),
    /// The caller's own error.
    Refused(Error),
    /// It has not replayed the token's write yet, or the request does not allow it to answer any more.
    Behind,
    /// The primary lacks the token's write.
    Lost,
    /// Another server may do better.
    Next(Option<Error>),
    /// The link ended under the statement. Another server may do better, unless the statement is what ends it.
    Broke(Error),
    /// The same one will, now that a cached statement was forgotten, or on another connection.
    Same(Option<Error>),
}

/// What the servers that were asked made of it, other than rows.
#[derive(Default)]
struct Met {
    last: Option<(NodeId, Option<Error>)>,
    /// How often the link ended under the statement.
    broken: u32,
    /// Answers that are in `last` or were.
    failures: u32,
}

impl Met {
    fn failed(&mut self, node: NodeId, error: Option<Error>) {
        self.failures += 1;
        self.last = Some((node, error));
    }
}

/// What is asked of a server.
struct Question<'a> {
    request: &'a ReadRequest,
    sql: &'a str,
    params: &'a [&'a (dyn ToSql + Sync)],
    /// What the server must show beside its rows.
    proof: Option<Proof>,
    deadline: Instant,
}

/// That a server has a write.
#[derive(Clone, Copy)]
enum Proof {
    /// A replica whose position is not known to be there yet.
    Replayed(WriteToken),
    /// The primary. It has every write of its history, unless it crashed before it wrote down an asynchronous one, or was
    /// set back to an older copy of its files, which no identifier tells; until it has written as much again.
    Kept(WriteToken),
}

/// Who is asked, in which order: replicas known to have what is wanted; then replicas that were behind the token when
/// last seen, which show in one flight whether they have caught up; then the primary, if it is wanted.
fn order<'a>(plan: &'a Plan, request: &ReadRequest, turn: u64) -> Vec<(&'a NodeId, Option<Proof>)> {
    let behind = plan.left_out.iter().filter(|(_, why)| plan.token == TokenFate::Kept && *why == LeftOut::BehindToken);
    let mut behind: Vec<_> = behind.map(|(id, _)| (id, request.at_least.map(Proof::Replayed))).collect();
    let shift = turn.checked_rem(behind.len() as u64).and_then(|shift| usize::try_from(shift).ok());
    behind.rotate_left(shift.unwrap_or(0));
    let kept = |place: usize| request.at_least.filter(|_| place >= plan.replicas).map(Proof::Kept);
    let mut asked: Vec<_> = plan.candidates().enumerate().map(|(place, id)| (id, kept(place))).collect();
    let replicas = plan.replicas.min(asked.len());
    asked.splice(replicas..replicas, behind);
    asked
}

/// Whether that server may still answer. A proof stands for the position that the picture lacks, and for nothing else.
fn admits(topology: &Topology, id: &NodeId, question: &Question<'_>) -> bool {
    let plan = plan(topology, question.request, now());
    let proves = matches!(question.proof, Some(Proof::Replayed(_))) && plan.token == TokenFate::Kept;
    let behind = |(node, why): &(NodeId, LeftOut)| node == id && *why == LeftOut::BehindToken;
    plan.candidates().any(|candidate| candidate == id) || (proves && plan.left_out.iter().any(behind))
}

impl Shared {
    /// Who would answer now; the chosen one first.
    pub(crate) fn plan(&self, request: &ReadRequest) -> Plan {
        self.plan_for(request, self.turn())
    }

    /// `turn` counts reads: one that went up several times for each would choose the same of two servers every time.
    fn plan_for(&self, request: &ReadRequest, turn: u64) -> Plan {
        let mut plan = plan(&self.topology(), request, now());
        let outstanding = |id: &NodeId| {
            self.index_of(id).and_then(|node| self.servers.get(node)).map_or(0, |server| server.pool.outstanding())
        };
        for rank in &mut plan.ranks {
            choose(rank, self.config.selection, outstanding, self.random(), turn);
        }
        plan
    }

    pub(crate) async fn query(
        &self,
        request: &ReadRequest,
        limit: Duration,
        sql: &str,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Rows, ReadError> {
        let _running = self.run();
        let result = self.query_until(request, after(limit), sql, params).await;
        let counter = if result.is_ok() { &self.counters.reads } else { &self.counters.reads_failed };
        counter.fetch_add(1, Ordering::Relaxed);
        result
    }

    async fn query_until(
        &self,
        request: &ReadRequest,
        deadline: Instant,
        sql: &str,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Rows, ReadError> {
        let began = now();
        let (mut pictures, mut routing) = (self.pictures(), self.routing());
        let mut met = Met::default();
        let mut rounds_failed = 0;
        loop {
            pictures.mark_unchanged();
            routing.mark_unchanged();
            let failures = met.failures;
            if self.is_closed() {
                return Err(ReadError::Closed);
            }
            let turn = self.turn();
            let plan = self.plan_for(request, turn);
            match plan.token {
                TokenFate::Kept | TokenFate::Ahead => {}
                TokenFate::Lost => return Err(ReadError::TokenLost),
                TokenFate::Unproven => return Err(ReadError::TokenUnproven),
                TokenFate::Foreign => return Err(ReadError::TokenForeign),
            }
            for (id, proof) in order(&plan, request, turn) {
                let Some(node) = self.index_of(id) else { continue };
                let question = Question { request, sql, params, proof, deadline };
                if let Some(rows) = self.ask(node, &question, &mut met).await? {
                    return Ok(rows);
                }
                self.counters.read_retries.fetch_add(1, Ordering::Relaxed);
                if now() >= deadline || met.broken >= BROKEN_ATTEMPTS {
                    break;
                }
            }
            let waited = now().saturating_duration_since(began);
            if now() >= deadline || met.broken >= BROKEN_ATTEMPTS {
                return Err(match met.last {
                    Some((node, source)) => ReadError::NoAnswer { node, waited, source },
                    None => ReadError::NoNode { left_out: plan.left_out, reasons: self.reasons(), waited },
                });
            }
            self.look_for(&plan);
            if met.failures > failures {
                // The pictures come fast then, and most of them tell nothing new.
                rounds_failed += 1;
                let wake = deadline.min(now() + pause_after_break(rounds_failed, PAUSE, self.random()));
                tokio::select! {
                    _ = routing.changed() => {}
                    () = tokio::time::sleep_until(wake.into()) => {}
                }
            } else {
                tokio::select! {
                    _ = pictures.changed() => {}
                    () = tokio::time::sleep_until(deadline.into()) => {}
                }
            }
        }
    }

    /// Nobody may answer: fresher facts may change that.
    fn look_for(&self, plan: &Plan) {
        for (id, _) in &plan.left_out {
            if let Some(node) = self.index_of(id) {
                self.suspect(node);
            }
        }
    }

    /// Asks one server. `Ok(None)`: it did not answer, another one may.
    async fn ask(&self, node: usize, question: &Question<'_>, met: &mut Met) -> Result<Option<Rows>, ReadError> {
        let Some(server) = self.servers.get(node) else { return Ok(None) };
        for attempt in 1..=2 {
            let answer = self.ask_once(node, question).await;
            match answer {
                Answer::Rows(rows, staleness) => {
                    return Ok(Some(Rows { rows, node: server.id.clone(), staleness }));
                }
                Answer::Same(_) if attempt == 1 => {}
                Answer::Refused(error) | Answer::Same(Some(error)) => return Err(ReadError::Statement(error)),
                Answer::Behind | Answer::Same(None) => return Ok(None),
                Answer::Lost => return Err(ReadError::TokenLost),
                Answer::Next(error) => {
                    self.suspect(node);
                    met.failed(server.id.clone(), error);
                    return Ok(None);
                }
                Answer::Broke(error) => {
                    self.suspect(node);
                    met.broken += 1;
                    met.failed(server.id.clone(), Some(error));
                    return Ok(None);
                }
            }
        }
        Ok(None)
    }

    async fn ask_once(&self, node: usize, question: &Question<'_>) -> Answer {
        let Some(server) = self.servers.get(node) else { return Answer::Next(None) };
        let work = async {
            let checkout = match self.take_from(node).await {
                Ok(checkout) => checkout,
                Err(error) => return Answer::Next(error),
            };
            let topology = self.topology();
            // The wait for the connection may have been long: what was true when it began need not be any more.
            if !admits(&topology, &server.id, question) {
                checkout.give_back_read();
                return Answer::Behind;
            }
            let known = topology.node(&server.id).and_then(|known| known.started);
            // A restarted server may stand behind where it was seen.
            if known.is_some_and(|started| started != checkout.identity().started) {
                return Answer::Next(None);
            }
            let newest = topology.newest().is_some_and(|primary| primary.id == server.id);
            // A later picture may show the server younger than what it read.
            let age = topology.node(&server.id).and_then(|known| known.staleness(now()));
            let staleness = if newest { Some(Duration::ZERO) } else { age };
            let result = match question.proof {
                Some(proof) => run_with_proof(&checkout, &proof, question).await,
                None => run(&checkout, question.sql, question.params).await.map(Proved::Yes),
            };
            if !checkout.is_fresh().await {
                return Answer::Same(None);
            }
            match result {
                Ok(Proved::NotYet) => {
                    checkout.give_back_read();
                    Answer::Behind
                }
                // What it said counts only if it was not found lost, or on a history left behind, meanwhile.
                Ok(_) if !admits(&self.topology(), &server.id, question) => Answer::Behind,
                Ok(Proved::No) => {
                    checkout.give_back_read();
                    Answer::Lost
                }
                Ok(Proved::Yes(rows)) => {
                    checkout.give_back_read();
                    Answer::Rows(rows, staleness)
                }
                Err(error) => read_error(error, checkout),
            }
        };
        tokio::time::timeout_at(question.deadline.into(), work).await.unwrap_or(Answer::Next(None))
    }
}

/// A read is kept from writing, also on the primary, and what it changed in its session is rolled back. One flight.
async fn run(checkout: &Checkout, sql: &str, params: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, Error> {
    let client = checkout.client();
    let statement = checkout.prepare(sql).await?;
    let (begun, rows, ended) =
        join3(client.batch_execute(BEGIN), client.query(&statement, params), client.batch_execute(END)).await;
    let rows = rows?;
    begun?;
    ended?;
    Ok(rows)
}

/// What came of a proof.
enum Proved {
    Yes(Vec<Row>),
    /// It may come.
    NotYet,
    No,
}

/// One flight: the proof and the rows. Not yet, if the replica has not replayed the write, or is not receiving the
/// token's timeline any more, or may not say so (`pg_monitor`); or if the primary is one no more.
async fn run_with_proof(checkout: &Checkout, proof: &Proof, question: &Question<'_>) -> Result<Proved, Error> {
    let sql = match proof {
        Proof::Replayed(token) => format!(
            "SELECT pg_last_wal_replay_lsn() >= '{}' AND EXISTS \
            (SELECT FROM pg_stat_wal_receiver WHERE status = 'streaming' AND received_tli = {})",
            token.lsn(),
            token.timeline()
        ),
        Proof::Kept(token) => {
            format!(
                "SELECT CASE WHEN NOT pg_is_in_recovery() THEN pg_current_wal_insert_lsn() >= '{}' END",
                token.lsn()
            )
        }
    };
    let client = checkout.client();
    // What a server that is behind says of the statement means nothing: its tables may be older, too.
    let rows = run(checkout, question.sql, question.params);
    let (proved, rows) = join(client.simple_query(&sql), rows).await;
    let said = columns::<1>(&proved?).and_then(|[said]| said.clone());
    match (said.as_deref(), proof) {
        (Some("t"), _) => rows.map(Proved::Yes),
        (Some(_), Proof::Kept(_)) => Ok(Proved::No),
        _ => Ok(Proved::NotYet),
    }
}

fn read_error(error: Error, checkout: Checkout) -> Answer {
    if broke(&error, &checkout) {
        return Answer::Broke(error);
    }
    match error.code().map_or(Reaction::Callers, |code| react(code.code())) {
        Reaction::ForgetStatement => {
            checkout.forget_statements();
            checkout.give_back_read();
            Answer::Same(Some(error))
        }
        // 40001 and 40P01 on a replica: its replay was in the way. Another one may be free.
        Reaction::Again | Reaction::Elsewhere | Reaction::Pause => {
            checkout.give_back_read();
            Answer::Next(Some(error))
        }
        Reaction::AskRole | Reaction::Callers => {
            checkout.give_back_read();
            Answer::Refused(error)
        }
    }
}

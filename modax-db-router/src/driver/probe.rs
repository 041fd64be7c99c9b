//! The held monitor connection to one server, apart from the pools: a full pool must not blind the monitor.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio_postgres::{Client, Error, NoTls, SimpleQueryMessage};

use crate::error::describe;
use crate::monitor::Input;
use crate::observation::{Observation, PROBE, ProbeFailure, parse_probe};

/// A probe to send.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Order {
    pub(crate) sent: Instant,
    pub(crate) deadline: Instant,
}

/// Longest text kept of what a server said.
const REASON_CHARS: usize = 300;

/// What the last probe met, if it failed: for the errors of calls.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reason(Arc<Mutex<Option<String>>>);

impl Reason {
    pub(crate) fn get(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, reason: Option<String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = reason;
    }
}

/// A connection whose task ends with it.
struct Held {
    client: Client,
    task: AbortHandle,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Answers every order before its deadline, until nobody sends orders any more.
pub(crate) async fn run(
    node: usize,
    login: tokio_postgres::Config,
    mut orders: mpsc::Receiver<Order>,
    answers: mpsc::Sender<Input>,
    reason: Reason,
) {
    let mut held: Option<Held> = None;
    while let Some(Order { sent, deadline }) = orders.recv().await {
        let answer = tokio::time::timeout_at(deadline.into(), probe(&mut held, node, &login, &answers)).await;
        let input = match answer {
            Ok(Ok(observation)) => {
                reason.set(None);
                Input::Observed { node, sent, observation }
            }
            Ok(Err((failure, error))) => {
                held = None;
                reason.set(error.map(|error| describe(&error).chars().take(REASON_CHARS).collect()));
                Input::Failed { node, sent, failure }
            }
            Err(_) => {
                reason.set(None);
                // The late answer of this probe would be taken for the next one's.
                held = None;
                Input::Failed { node, sent, failure: ProbeFailure::TimedOut }
            }
        };
        if answers.send(input).await.is_err() {
            return;
        }
    }
}

async fn probe(
    held: &mut Option<Held>,
    node: usize,
    login: &tokio_postgres::Config,
    answers: &mpsc::Sender<Input>,
) -> Result<Observation, (ProbeFailure, Option<Error>)> {
    let failed = |error: Error| (read_failure(&error), Some(error));
    if held.as_ref().is_some_and(|held| held.client.is_closed()) {
        *held = None;
    }
    if held.is_none() {
        *held = Some(dial(node, login, answers).await.map_err(failed)?);
    }
    let Some(connection) = held.as_ref() else { return Err((ProbeFailure::Unreachable, None)) };
    let messages = connection.client.simple_query(PROBE).await.map_err(failed)?;
    let row = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    let row = row.ok_or((ProbeFailure::Unreadable, None))?;
    parse_probe(|index| row.try_get(index).ok().flatten()).map_err(|_| (ProbeFailure::Unreadable, None))
}

async fn dial(node: usize, login: &tokio_postgres::Config, answers: &mpsc::Sender<Input>) -> Result<Held, Error> {
    let (client, connection) = login.connect(NoTls).await?;
    // Weak: the task must not keep the monitor's queue open.
    let answers = answers.downgrade();
    let task = tokio::spawn(async move {
        // Its error is told to whoever has a query under way.
        let _ = connection.await;
        // A link that ends by itself is the first sign of a dead server; the next probe would come a second later.
        if let Some(answers) = answers.upgrade() {
            let _ = answers.try_send(Input::Suspect { node });
        }
    });
    Ok(Held { client, task: task.abort_handle() })
}

/// What a failed dial or query says about the server.
pub(crate) fn read_failure(error: &Error) -> ProbeFailure {
    match error.code().map(tokio_postgres::error::SqlState::code) {
        Some("57P01" | "57P02" | "57P03") => ProbeFailure::NotAccepting,
        Some("53300") => ProbeFailure::TooManyConnections,
        Some("28000" | "28P01" | "3D000" | "42501") => ProbeFailure::Rejected,
        Some(_) => ProbeFailure::Unreadable,
        None => ProbeFailure::Unreachable,
    }
}

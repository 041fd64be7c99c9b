//! Audits of refused commands: written at once if the database is there, and kept for it if it is not.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use modax_db_router::{
    Tx, WriteError,
    tokio_postgres::{self, types::Type},
};
use tokio::sync::watch;
use uuid::Uuid;

use crate::{app::App, contract::CommandRequest};

/// Longest wait for the database with one of them.
const DEADLINE: Duration = Duration::from_millis(2_500);
/// Between two tries while the instance stops.
const PAUSE: Duration = Duration::from_millis(200);
/// Audit records of blocked commands that wait for the database; more are counted and gone.
const MAX_AUDITS: usize = 1_000;

/// Refusals whose audit waits for the database.
#[derive(Debug, Default)]
pub struct Audits(Mutex<VecDeque<(Uuid, CommandRequest)>>);

/// Writes the audit of a refusal.
///
/// # Errors
/// As the router's writer.
///
/// # Cancel safety
/// Dropping it leaves all or nothing of the row.
pub(super) async fn record_blocked(app: &App, command_id: Uuid, request: &CommandRequest) -> Result<(), WriteError> {
    let (request, instance_id) = (Arc::new(request.clone()), Arc::clone(&app.instance_id));
    app.router
        .writer()
        .deadline(DEADLINE)
        .run(|tx| {
            let (request, instance_id) = (Arc::clone(&request), Arc::clone(&instance_id));
            async move { audit_blocked(&tx, command_id, &request, &instance_id, "the plant is not safe").await }
        })
        .await
        .map(|_| ())
}

/// Notes a command that is not taken; 0 if this identity is there already.
pub(super) async fn audit_blocked(
    tx: &Tx,
    command_id: Uuid,
    request: &CommandRequest,
    instance_id: &str,
    reason: &str,
) -> Result<u64, tokio_postgres::Error> {
    tx.execute_typed(
        "INSERT INTO control_commands (command_id, command_type, parameters, status, reason, instance_id, settled_at)
         VALUES ($1, $2, $3, 'blocked', $4, $5, clock_timestamp()) ON CONFLICT DO NOTHING",
        &[
            (&command_id, Type::UUID),
            (&request.command_type, Type::TEXT),
            (&serde_json::json!(request.parameters.clone().unwrap_or_default()), Type::JSONB),
            (&reason, Type::TEXT),
            (&instance_id, Type::TEXT),
        ],
    )
    .await
}

impl Audits {
    /// Keeps one for when the database is back; a full store sheds its oldest, counted.
    pub fn postpone(&self, app: &App, command_id: Uuid, request: CommandRequest) {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.push_back((command_id, request));
        if waiting.len() > MAX_AUDITS {
            waiting.pop_front();
            app.metrics.audits_shed.increment();
        }
    }

    fn first(&self) -> Option<(Uuid, CommandRequest)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).front().cloned()
    }

    fn done(&self, command_id: Uuid) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|(waiting, _)| *waiting != command_id);
    }

    /// Writes what waits, until `stop` is set and nothing is left.
    pub async fn run(&self, app: &App, mut stop: watch::Receiver<bool>) {
        while !*stop.borrow() {
            self.write(app).await;
            let _ = tokio::time::timeout(Duration::from_secs(1), stop.changed()).await;
        }
        loop {
            self.write(app).await;
            if self.first().is_none() {
                return;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Counts and names what was not written.
    pub fn give_up(&self, app: &App) {
        let lost = self.take_all();
        app.metrics.audits_shed.add(lost.len() as u64);
        for (command_id, request) in &lost {
            tracing::warn!(%command_id, command_type = request.command_type, "this refusal is in no audit");
        }
    }

    async fn write(&self, app: &App) {
        while let Some((command_id, request)) = self.first() {
            match record_blocked(app, command_id, &request).await {
                Ok(()) => self.done(command_id),
                Err(error) => {
                    tracing::debug!(%error, "audits of refused commands wait for the database");
                    return;
                }
            }
        }
    }

    fn take_all(&self) -> VecDeque<(Uuid, CommandRequest)> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

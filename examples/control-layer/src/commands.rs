//! Commands: refused when unsafe, durable before 200, once for each idempotency key, and audited to the end.

mod audits;
mod order;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use modax_db_router::{ReadError, ReadPreference, Tx, WriteError, Written, tokio_postgres};
use modax_txn::{
    Claim, DEFAULT_IDEMPOTENCY_RETENTION, EnqueueReceipt, IdempotencyError, IdempotencyKey, Message, MessageId,
};
use sha2::{Digest, Sha256};
use tokio_postgres::types::Type;
use uuid::Uuid;

pub use audits::Audits;
use audits::{audit_blocked, record_blocked};

use crate::{
    analysis::enqueue,
    app::{App, unix_now},
    contract::{Command, CommandRequest, topic},
    relay::audit::{EXPIRED, may_be_delivered},
};

/// Whoever asks gets an answer within 3 s, also while the database is away.
const DEADLINE: Duration = Duration::from_millis(2_500);
/// What one attempt may take of it, so that the router can still say why it failed.
const ATTEMPT_DEADLINE: Duration = Duration::from_millis(2_300);
/// How long a refusal may wait for its audit before it is answered anyway.
const AUDIT_DEADLINE: Duration = Duration::from_millis(800);
/// The header that carries the type to the relay, which need not read the payload then.
pub const TYPE_HEADER: &str = "command-type";

/// What became of a request for a command.
#[derive(Debug)]
pub enum Answer {
    /// Durable. Also for a repetition under the same key.
    Accepted {
        /// Its identity.
        command_id: Uuid,
        /// Its type.
        command_type: String,
    },
    /// The plant is not safe.
    Blocked {
        /// The identity under which the refusal is audited.
        command_id: Uuid,
        /// The database did not say whether an earlier request was taken under the same key.
        earlier_unknown: bool,
    },
    /// A stop arrived later and was taken sooner.
    Overtaken {
        /// The identity under which the refusal is audited.
        command_id: Uuid,
    },
    /// Another request has the same idempotency key.
    Conflict,
    /// The database is away. `maybe`: a commit was under way, so the command may act all the same, within its time to live.
    Unavailable {
        /// Its identity, if it comes through.
        command_id: Uuid,
        /// Whether it may.
        maybe: bool,
    },
    /// The command can never be stored.
    Invalid(String),
}

/// Whether a command of this type may be given now.
pub fn is_allowed(app: &App, command_type: &str, now: Instant) -> bool {
    is_always_allowed(app, command_type) || app.plant.is_safe(now)
}

/// Whether a command of this type may be given whatever the plant says.
pub fn is_always_allowed(app: &App, command_type: &str) -> bool {
    app.config.commands_always_allowed.iter().any(|allowed| allowed == command_type)
}

/// Takes a command: one transaction holds the key, the audit and the outgoing message.
///
/// # Cancel safety
/// Dropping it leaves all or nothing of the command.
pub async fn submit(app: &App, audits: &Audits, request: CommandRequest, key: Option<IdempotencyKey>) -> Answer {
    let arrived = Instant::now();
    let id = MessageId::new();
    let command_id = *id.as_uuid();
    if !is_allowed(app, &request.command_type, arrived) {
        let mut earlier_unknown = false;
        if let Some(key) = &key {
            // A repetition of a command that was taken is not another command.
            match tokio::time::timeout(AUDIT_DEADLINE, taken_before(app, key, &request)).await {
                Ok(Ok(Some(answer))) => {
                    app.metrics.commands_replayed.increment();
                    return answer;
                }
                Ok(Ok(None)) => {}
                Ok(Err(_)) | Err(_) => earlier_unknown = true,
            }
        }
        app.metrics.commands_blocked.increment();
        tracing::warn!(%command_id, command_type = request.command_type, "command blocked: the plant is not safe");
        let audit = tokio::time::timeout(AUDIT_DEADLINE, record_blocked(app, command_id, &request)).await;
        if !matches!(audit, Ok(Ok(()))) {
            audits.postpone(app, command_id, request);
        }
        return Answer::Blocked { command_id, earlier_unknown };
    }
    let intent = match Intent::new(app, id, request, key, arrived) {
        Ok(intent) => Arc::new(intent),
        Err(reason) => return Answer::Invalid(reason),
    };
    // Whether an attempt may have been committed; no later one takes that back, unless it finds out.
    let maybe = AtomicBool::new(false);
    let work = async {
        loop {
            let attempt = app
                .router
                .writer()
                .deadline(ATTEMPT_DEADLINE)
                .run(|tx| {
                    let intent = Arc::clone(&intent);
                    async move { write(app, &tx, &intent).await }
                })
                .await;
            match attempt {
                // The same identity again: if it was committed, the rerun finds it.
                Err(WriteError::OutcomeUnknown { .. }) => {
                    maybe.store(true, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                settled => return settled,
            }
        }
    };
    let outcome = tokio::time::timeout(DEADLINE, work).await;
    answer(app, &intent, outcome.map_err(|_| ()), maybe.into_inner())
}

/// `outcome` of the last attempt, an error without a value if it was cut short; `maybe`: an earlier one may have been committed.
fn answer(app: &App, intent: &Intent, outcome: Result<Result<Written<Done>, WriteError>, ()>, maybe: bool) -> Answer {
    let command_id = *intent.id.as_uuid();
    let error = match outcome {
        Ok(Ok(written)) => return accepted(app, intent, &written.value, maybe),
        Ok(Err(WriteError::Statement(error))) if !maybe && !is_passing(&error) => {
            tracing::error!(%command_id, %error, "a command cannot be stored");
            return Answer::Invalid("the database refuses the command".to_owned());
        }
        Ok(Err(error)) => Some(error),
        Err(()) => None,
    };
    let maybe = may_act(error.as_ref(), maybe);
    app.metrics.commands_unavailable.increment();
    let error = error.map_or_else(|| "no time is left".to_owned(), |error| error.to_string());
    tracing::warn!(%command_id, error, maybe, "a command was not accepted");
    Answer::Unavailable { command_id, maybe }
}

/// Whether a command may act that was not accepted: by its last error, none if it was cut short, and by the attempts before.
fn may_act(error: Option<&WriteError>, maybe: bool) -> bool {
    maybe || error.is_none_or(WriteError::outcome_unknown)
}

fn accepted(app: &App, intent: &Intent, done: &Done, maybe: bool) -> Answer {
    match done {
        Done::New(receipt) => {
            if let Some(receipt) = receipt {
                app.outbox.committed(receipt);
            }
            app.metrics.commands_accepted.increment();
            Answer::Accepted { command_id: *intent.id.as_uuid(), command_type: intent.request.command_type.clone() }
        }
        Done::Replay(command_id) => {
            app.metrics.commands_replayed.increment();
            Answer::Accepted { command_id: *command_id, command_type: intent.request.command_type.clone() }
        }
        Done::Overtaken => {
            app.metrics.commands_blocked.increment();
            Answer::Overtaken { command_id: *intent.id.as_uuid() }
        }
        Done::Conflict => Answer::Conflict,
        Done::Busy => Answer::Unavailable { command_id: *intent.id.as_uuid(), maybe },
    }
}

/// Whether a refused statement may pass later: the schema is not there yet, a lock was not got, the server is full.
fn is_passing(error: &tokio_postgres::Error) -> bool {
    error.code().is_none_or(|state| !["22", "23", "54"].iter().any(|class| state.code().starts_with(class)))
}

/// A command on its way into the database.
struct Intent {
    id: MessageId,
    request: CommandRequest,
    parameters: serde_json::Value,
    key: Option<IdempotencyKey>,
    digest: Vec<u8>,
    /// What the field gets, but for the time of its expiry.
    payload: serde_json::Value,
    message: Message,
    instance_id: Arc<str>,
    seconds_to_live: f64,
    arrived: Instant,
    /// May always be given.
    is_stop: bool,
}

enum Done {
    New(Option<EnqueueReceipt>),
    Replay(Uuid),
    /// It is audited as blocked.
    Overtaken,
    Conflict,
    /// The key comes and goes in other transactions; nothing was written.
    Busy,
}

impl Intent {
    fn new(
        app: &App,
        id: MessageId,
        request: CommandRequest,
        key: Option<IdempotencyKey>,
        arrived: Instant,
    ) -> Result<Self, String> {
        let parameters: BTreeMap<String, String> = request.parameters.clone().unwrap_or_default();
        let command = Command {
            timestamp: u64::try_from(unix_now().as_millis()).unwrap_or(u64::MAX),
            // The database's clock says when. The longest number, so that what is validated here is no shorter.
            expires_at: u64::MAX,
            command_type: request.command_type.clone(),
            parameters,
            command_id: *id.as_uuid(),
            instance_id: app.instance_id.to_string(),
        };
        // What makes two requests the same: type and parameters, in the order of their names.
        let same = serde_json::json!([command.command_type, command.parameters]).to_string();
        let payload = serde_json::to_value(&command).map_err(|error| error.to_string())?;
        let message = Message::to(topic::CONTROL_COMMANDS)
            .id(id)
            .key(topic::CONTROL_COMMANDS)
            .header(TYPE_HEADER, &*command.command_type)
            .payload(payload.to_string())
            .expires_in(app.config.command_ttl);
        message.validate().map_err(|error| error.to_string())?;
        Ok(Self {
            id,
            parameters: serde_json::json!(command.parameters),
            digest: Sha256::digest(same.as_bytes()).to_vec(),
            key,
            payload,
            message,
            is_stop: is_always_allowed(app, &request.command_type),
            request,
            arrived,
            instance_id: Arc::clone(&app.instance_id),
            seconds_to_live: app.config.command_ttl.as_secs_f64(),
        })
    }

    /// The message to the field, with its expiry in Unix milliseconds.
    fn message(&self, expires_at: i64) -> Message {
        let mut payload = self.payload.clone();
        if let Some(fields) = payload.as_object_mut() {
            fields.insert("expires_at".to_owned(), expires_at.into());
        }
        self.message.clone().payload(payload.to_string())
    }
}

async fn write(app: &App, tx: &Tx, intent: &Intent) -> Result<Done, tokio_postgres::Error> {
    let age = intent.arrived.elapsed();
    if let Some(key) = &intent.key {
        tx.batch_execute("SAVEPOINT unclaimed").await?;
        match app.keys.claim(&**tx, key, &intent.digest).await {
            Ok(Claim::New) => {}
            Ok(Claim::Replay { outcome }) => {
                return Ok(Uuid::from_slice(&outcome).map_or(Done::Conflict, Done::Replay));
            }
            Ok(Claim::Conflict) => return Ok(Done::Conflict),
            Err(IdempotencyError::Database(error)) => return Err(error),
            Err(_) => return Ok(Done::Busy),
        }
        match app.keys.store(&**tx, key, intent.id.as_uuid().as_bytes()).await {
            Ok(()) => {}
            Err(IdempotencyError::Database(error)) => return Err(error),
            Err(_) => return Ok(Done::Busy),
        }
    }
    if order::is_overtaken(tx, intent.is_stop, age).await? {
        if intent.key.is_some() {
            // A repetition is another command.
            tx.batch_execute("ROLLBACK TO unclaimed").await?;
        }
        let is_new =
            audit_blocked(tx, *intent.id.as_uuid(), &intent.request, &intent.instance_id, order::OVERTAKEN).await? > 0;
        return Ok(if is_new { Done::Overtaken } else { Done::Replay(*intent.id.as_uuid()) });
    }
    let inserted = tx
        .query_typed(
            "INSERT INTO control_commands (command_id, command_type, parameters, status, instance_id, idempotency_key, expires_at)
             VALUES ($1, $2, $3, 'accepted', $4, $5, clock_timestamp() + make_interval(secs => $6))
             ON CONFLICT (command_id) DO NOTHING RETURNING (extract(epoch FROM expires_at) * 1000)::bigint",
            &[
                (intent.id.as_uuid(), Type::UUID),
                (&intent.request.command_type, Type::TEXT),
                (&intent.parameters, Type::JSONB),
                (&&*intent.instance_id, Type::TEXT),
                (&intent.key.as_ref().map(IdempotencyKey::as_str), Type::TEXT),
                (&intent.seconds_to_live, Type::FLOAT8),
            ],
        )
        .await?;
    let Some(row) = inserted.first() else {
        // An earlier attempt was committed although nobody heard of it.
        return Ok(Done::Replay(*intent.id.as_uuid()));
    };
    Ok(Done::New(enqueue(app, tx, intent.message(row.try_get(0)?)).await?))
}

/// The answer to a repetition, if a command was taken under this key.
async fn taken_before(app: &App, key: &IdempotencyKey, request: &CommandRequest) -> Result<Option<Answer>, ReadError> {
    let rows = app
        .router
        .read(ReadPreference::Primary)
        .deadline(AUDIT_DEADLINE)
        .query(
            "SELECT command_id, command_type, parameters FROM control_commands
             WHERE idempotency_key = $1 AND created_at > clock_timestamp() - make_interval(secs => $2)
             ORDER BY created_at DESC LIMIT 1",
            &[&key.as_str(), &DEFAULT_IDEMPOTENCY_RETENTION.as_secs_f64()],
        )
        .await?;
    Ok(rows.rows.first().map(|row| {
        let (command_id, command_type, parameters): (Uuid, String, serde_json::Value) =
            (row.get(0), row.get(1), row.get(2));
        let same = command_type == request.command_type
            && parameters == serde_json::json!(request.parameters.clone().unwrap_or_default());
        if same { Answer::Accepted { command_id, command_type } } else { Answer::Conflict }
    }))
}

/// A row of the audit as `GET /control/commands/{id}` tells it.
#[derive(Debug, serde::Serialize)]
pub struct CommandStatus {
    /// Which.
    pub command_id: Uuid,
    /// What.
    pub command_type: String,
    /// `accepted`, `acknowledged`, `expired` (nobody can have got it), `blocked` or `failed`.
    pub status: &'static str,
    /// Not acknowledged, and yet a broker may have it and may still deliver it.
    pub maybe_delivered: bool,
    /// As the audit has it: `accepted`, `executed`, `blocked` or `failed`.
    pub audit: String,
    /// Why, if not acknowledged.
    pub reason: Option<String>,
}

/// Looks a command up; `None` if there is none.
///
/// # Errors
/// The database is away.
///
/// # Cancel safety
/// Cancel safe: it only reads.
pub async fn find(app: &App, command_id: Uuid) -> Result<Option<CommandStatus>, ReadError> {
    let rows = app
        .router
        .read(ReadPreference::Primary)
        .deadline(DEADLINE)
        .query("SELECT command_type, status, reason FROM control_commands WHERE command_id = $1", &[&command_id])
        .await?;
    Ok(rows.rows.first().map(|row| {
        let (audit, reason): (String, Option<String>) = (row.get(1), row.get(2));
        let maybe_delivered = reason.as_deref().is_some_and(may_be_delivered);
        let status = match (audit.as_str(), reason.as_deref()) {
            ("executed", _) => "acknowledged",
            ("blocked", _) => "blocked",
            ("failed", Some(EXPIRED)) => "expired",
            ("failed", _) => "failed",
            _ => "accepted",
        };
        CommandStatus { command_id, command_type: row.get(0), status, maybe_delivered, audit, reason }
    }))
}

#[cfg(test)]
mod tests {
    use modax_db_router::WriteError;

    use super::may_act;

    #[test]
    fn a_command_may_act_when_any_attempt_may_have_been_committed() {
        let certain = WriteError::HoldFull { limit: 1 };
        assert!(!may_act(Some(&certain), false));
        assert!(may_act(Some(&certain), true), "an earlier attempt's outcome is unknown");
        assert!(may_act(Some(&WriteError::Closed), true));
        assert!(may_act(None, false), "cut short in the middle of an attempt");
    }
}

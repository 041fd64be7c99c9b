//! The audit of commands: what was tried, and what became of each.
//!
//! An attempt is noted before it begins, durably. So whoever closes the audit, also another instance after this one was killed,
//! knows whether a broker may have the command: one that was frozen or cut off may deliver it long after its time.

use std::time::Duration;

use modax_db_router::{ReadPreference, WriteError, tokio_postgres::types::Type};
use modax_txn::{BoxError, Event, MessageId, State};
use tokio::sync::watch;
use uuid::Uuid;

use crate::app::App;

/// How often commands are looked up whose outcome no event told: the lease changed hands, or the database was away.
const RECONCILES_EVERY: Duration = Duration::from_secs(1);
/// Longest wait for the note of an attempt: a command has seconds to live.
const NOTE_DEADLINE: Duration = Duration::from_secs(1);
/// Longest wait for anything else here; the reconciler comes again.
const DEADLINE: Duration = Duration::from_secs(2);

/// The reason of a command that is with a broker, as far as anybody knows.
const UNDER_WAY: &str = "handed to a broker, which has not acknowledged it yet";
/// The reason of a command that expired without any attempt that may have left.
pub const EXPIRED: &str = "expired before it could be published";
/// The reason of a command that was safe when it was taken and not when it was to go out.
pub(super) const NOT_SAFE: &str = "the plant is not safe";
/// Added to the reason of a command that a broker may have all the same.
const MAYBE: &str = "an earlier attempt may have been delivered or may still be";

/// Whether a command with this reason in the audit may have reached the field, or may yet.
pub fn may_be_delivered(reason: &str) -> bool {
    reason == UNDER_WAY || reason.ends_with(MAYBE)
}

/// What the audit says before an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Begun {
    /// No attempt before this one may have left. With the note's version, which another attempt's note replaces.
    First(String),
    /// One may have, of this instance or another.
    Again,
    /// Somebody has closed the audit: the command must not go out.
    Settled,
}

/// Notes that an attempt begins.
///
/// # Errors
/// As the router's writer: then nothing must go out that the audit should know of.
///
/// # Cancel safety
/// Dropping it may leave the note without an attempt, which errs on the safe side.
pub(super) async fn begin(app: &App, command_id: Uuid) -> Result<Begun, WriteError> {
    let written = app
        .router
        .writer()
        .deadline(NOTE_DEADLINE)
        .run(|tx| async move {
            let known = tx
                .query_typed(
                    "SELECT status = 'accepted', reason IS NULL FROM control_commands WHERE command_id = $1 FOR UPDATE",
                    &[(&command_id, Type::UUID)],
                )
                .await?;
            let (is_open, is_first) = match known.first() {
                Some(row) => (row.try_get(0)?, row.try_get(1)?),
                None => (false, false),
            };
            if !is_open {
                return Ok(Begun::Settled);
            }
            let noted = tx
                .query_typed(
                    "UPDATE control_commands SET reason = $2 WHERE command_id = $1 RETURNING xmin::text",
                    &[(&command_id, Type::UUID), (&UNDER_WAY, Type::TEXT)],
                )
                .await?;
            Ok(match noted.first() {
                Some(row) if is_first => Begun::First(row.try_get(0)?),
                Some(_) => Begun::Again,
                None => Begun::Settled,
            })
        })
        .await?;
    Ok(written.value)
}

/// Notes an attempt that had to leave without a note. If it fails too, the audit knows nothing of it.
pub(super) async fn note_late(app: &App, command_id: Uuid) {
    let noted = app
        .router
        .writer()
        .deadline(DEADLINE)
        .run(|tx| async move {
            tx.execute_typed(
                "UPDATE control_commands SET reason = $2 WHERE command_id = $1 AND status = 'accepted' AND reason IS NULL",
                &[(&command_id, Type::UUID), (&UNDER_WAY, Type::TEXT)],
            )
            .await
        })
        .await;
    if let Err(error) = noted {
        tracing::warn!(%command_id, %error, "a broker may have a command that the audit does not know to be under way");
    }
}

/// Takes the note of a first attempt back that certainly did not leave, unless another attempt has noted itself since: the lease
/// may be somebody else's by now. If it fails, the audit says "may have" of a command that was not delivered, which is the
/// lesser evil.
pub(super) async fn take_back(app: &App, command_id: Uuid, version: &str) {
    let undone = app
        .router
        .writer()
        .deadline(NOTE_DEADLINE)
        .run(|tx| {
            let version = version.to_owned();
            async move {
                tx.execute_typed(
                    "UPDATE control_commands SET reason = NULL
                     WHERE command_id = $1 AND status = 'accepted' AND reason = $2 AND xmin::text = $3",
                    &[(&command_id, Type::UUID), (&UNDER_WAY, Type::TEXT), (&version, Type::TEXT)],
                )
                .await
            }
        })
        .await;
    if let Err(error) = undone {
        tracing::info!(%command_id, %error, "an attempt that did not leave stays in the audit");
    }
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
struct End {
    status: &'static str,
    /// Why, if no attempt may have left.
    reason: Option<String>,
    /// Why, if one may have.
    doubtful: Option<String>,
}

impl End {
    const fn executed() -> Self {
        Self { status: "executed", reason: None, doubtful: None }
    }

    fn expired() -> Self {
        Self { status: "failed", reason: Some(EXPIRED.to_owned()), doubtful: Some(format!("expired; {MAYBE}")) }
    }

    /// The safety check drops a message; everything else that is refused has failed.
    fn rejected(reason: String) -> Self {
        let status = if reason.contains(NOT_SAFE) { "blocked" } else { "failed" };
        Self { status, doubtful: Some(format!("{reason}; {MAYBE}")), reason: Some(reason) }
    }
}

/// Writes down what the relay tells.
pub(super) async fn note(app: &App, event: Event) {
    let ended = match event {
        Event::Delivered { id, .. } => Some((id, End::executed())),
        Event::Expired { id } => Some((id, End::expired())),
        Event::Rejected { id, reason } => Some((id, End::rejected(reason))),
        Event::LeaseAcquired { epoch } => {
            app.metrics.leases_acquired.increment();
            tracing::info!(epoch, "this instance publishes now");
            None
        }
        Event::LeaseLost { epoch } => {
            tracing::warn!(epoch, "this instance publishes no more");
            None
        }
        Event::Parked { id, reason } => {
            tracing::error!(%id, reason, "a message is parked");
            None
        }
        _ => None,
    };
    if let Some((id, end)) = ended {
        // If it fails, the reconciler finds the command later.
        if let Err(error) = settle(app, *id.as_uuid(), &end).await {
            tracing::info!(%id, %error, "the audit follows later");
        }
    }
}

/// Closes the audit; a message that is no command has no row there. Whoever is first counts, but for an acknowledgement that comes
/// late.
async fn settle(app: &App, command_id: Uuid, end: &End) -> Result<(), WriteError> {
    let written = app
        .router
        .writer()
        .deadline(DEADLINE)
        .run(|tx| {
            let End { status, reason, doubtful } = end.clone();
            async move {
                tx.query_typed(
                    "UPDATE control_commands
                     SET status = $2, reason = CASE WHEN reason = $5 THEN $4 ELSE $3 END, settled_at = clock_timestamp()
                     WHERE command_id = $1 AND (status = 'accepted' OR (status = 'failed' AND $2 = 'executed'))
                     RETURNING reason",
                    &[
                        (&command_id, Type::UUID),
                        (&status, Type::TEXT),
                        (&reason, Type::TEXT),
                        (&doubtful, Type::TEXT),
                        (&UNDER_WAY, Type::TEXT),
                    ],
                )
                .await
            }
        })
        .await?;
    let Some(row) = written.value.first() else { return Ok(()) };
    let counter = match end.status {
        "executed" => &app.metrics.commands_executed,
        "blocked" => &app.metrics.commands_blocked,
        _ => &app.metrics.commands_failed,
    };
    counter.increment();
    if let Some(reason) = row.get::<_, Option<&str>>(0) {
        tracing::warn!(%command_id, status = end.status, reason, "command not executed");
    }
    Ok(())
}

/// Finds commands whose outcome stands in the outbox but not in the audit, until `stop`.
pub async fn reconcile(app: std::sync::Arc<App>, mut stop: watch::Receiver<bool>) {
    while !*stop.borrow() {
        if let Err(error) = reconcile_once(&app).await {
            tracing::debug!(%error, "the audit cannot be compared with the outbox now");
        }
        let _ = tokio::time::timeout(RECONCILES_EVERY, stop.changed()).await;
    }
}

async fn reconcile_once(app: &App) -> Result<(), BoxError> {
    let open = app
        .router
        .read(ReadPreference::Primary)
        .deadline(DEADLINE)
        .query(
            "SELECT command_id, expires_at < clock_timestamp() - interval '5 seconds' FROM control_commands
             WHERE status = 'accepted' AND created_at < clock_timestamp() - interval '1 second' ORDER BY created_at LIMIT 100",
            &[],
        )
        .await?;
    if open.rows.is_empty() {
        return Ok(());
    }
    let connection = app.router.primary_within(DEADLINE).await?;
    for row in open.rows {
        let command_id: Uuid = row.try_get(0)?;
        let status = app.outbox.status(&*connection, MessageId::from_uuid(command_id)).await?;
        let end = match status.map(|it| it.state) {
            Some(State::Delivered) => End::executed(),
            Some(State::Expired) => End::expired(),
            Some(State::Rejected { reason }) => End::rejected(reason),
            None => End::rejected("its message is not in the outbox".to_owned()),
            // Nobody has a broker, so nobody says so; and nobody publishes it any more.
            Some(State::Pending) if row.try_get::<_, Option<bool>>(1)?.unwrap_or(false) => End::expired(),
            Some(_) => continue,
        };
        settle(app, command_id, &end).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{EXPIRED, End, MAYBE, UNDER_WAY, may_be_delivered};

    #[test]
    fn the_reason_of_a_command_tells_whether_it_may_have_been_delivered() {
        let blocked = End::rejected("the plant is not safe".to_owned());
        let refused = End::rejected("not authorized".to_owned());
        assert_eq!((blocked.status, refused.status, End::expired().status), ("blocked", "failed", "failed"));
        for end in [End::expired(), blocked, refused] {
            assert!(!may_be_delivered(end.reason.as_deref().expect("a reason")), "{end:?}");
            let doubtful = end.doubtful.expect("a reason");
            assert!(may_be_delivered(&doubtful) && doubtful.contains(MAYBE) && doubtful != EXPIRED, "{doubtful}");
        }
        assert!(may_be_delivered(UNDER_WAY));
        assert_eq!(End::executed().doubtful, None, "an acknowledged command is in no doubt");
    }
}

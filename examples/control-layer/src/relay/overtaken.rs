//! A command that is held back must not hold back a stop, nor follow it.
//!
//! All commands share one key and go out in order. The relay that has the held one in memory may be another instance's than the
//! one that took the stop, so the held one asks.

use std::time::Duration;

use modax_db_router::ReadPreference;
use modax_txn::OutgoingMessage;

use crate::{
    app::App,
    commands::{TYPE_HEADER, is_always_allowed},
};

/// The reason in the audit. It says that the command is blocked.
pub(super) const REASON: &str = "the plant is not safe as far as is known, and a stop was taken since";
/// Longest wait for the database: without an answer the command is tried again.
const DEADLINE: Duration = Duration::from_millis(500);

/// Whether a command that is always allowed waits behind this one, which is not.
pub(super) async fn is_overtaken(app: &App, message: &OutgoingMessage) -> bool {
    if message.headers.get(TYPE_HEADER).is_some_and(|command_type| is_always_allowed(app, command_type)) {
        return false;
    }
    let waits = app
        .router
        .read(ReadPreference::Primary)
        .deadline(DEADLINE)
        .query(
            "SELECT FROM control_commands AS held JOIN control_commands AS stop ON stop.created_at > held.created_at
             WHERE held.command_id = $1 AND stop.status = 'accepted' AND stop.command_type = ANY ($2) LIMIT 1",
            &[message.id.as_uuid(), &app.config.commands_always_allowed],
        )
        .await;
    waits.is_ok_and(|found| !found.rows.is_empty())
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_command_that_was_overtaken_is_audited_as_blocked() {
        assert!(super::REASON.contains(super::super::NOT_SAFE));
    }
}

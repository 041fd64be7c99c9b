//! What an SQLSTATE means for whoever thinks of running something again.

use std::time::Duration;

/// The state names by which tokio-postgres knows PostgreSQL's error codes.
type SqlState = str;

/// What may be done after a server refused a statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reaction {
    /// It did not happen, by the server's own word (40001, 40P01): run the whole work again, after a pause.
    Again,
    /// The server is going away or not there yet (57P01 to 57P03): run it again elsewhere.
    Elsewhere,
    /// The server has no connection slot left (53300): pause, then try again.
    Pause,
    /// The transaction is read only (25006): find out whether the server stepped down or drains.
    AskRole,
    /// A cached statement does not fit any more (26000, 0A000): forget it and run again, once.
    ForgetStatement,
    /// The caller's own error.
    Callers,
}

/// Reads an SQLSTATE.
#[must_use]
pub fn react(code: &SqlState) -> Reaction {
    match code {
        "40001" | "40P01" => Reaction::Again,
        "57P01" | "57P02" | "57P03" => Reaction::Elsewhere,
        "53300" => Reaction::Pause,
        "25006" => Reaction::AskRole,
        "26000" | "0A000" => Reaction::ForgetStatement,
        _ => Reaction::Callers,
    }
}

/// A pause before attempt number `attempt` (from 2): full jitter below a bound that doubles from 5 ms to 250 ms, so
/// that those who collided do not collide again.
///
/// `random` is any number; the same number gives the same pause.
#[must_use]
pub fn pause_before(attempt: u32, random: u64) -> Duration {
    const FIRST_MICROS: u64 = 5_000;
    const MOST_MICROS: u64 = 250_000;
    let doublings = attempt.saturating_sub(2).min(16);
    let bound = FIRST_MICROS.saturating_mul(1 << doublings).min(MOST_MICROS);
    Duration::from_micros(random % (bound + 1))
}

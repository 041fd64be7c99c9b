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

/// Attempts of one call that may end because their connection did. A server that goes away ends a few of them; a
/// statement that ends its own backend ends each, and at worst brings the server down each time.
pub const BROKEN_ATTEMPTS: u32 = 10;

/// A pause after the `broken`-th time in a row (from 1) that a server which should be there was not, or went away: half
/// to all of a bound that doubles from `first` to 500 ms. The first is short, because the cure is mostly under way; the
/// later ones keep those who ask again and again from being an outage of their own.
///
/// `random` is any number; the same number gives the same pause.
#[must_use]
pub fn pause_after_break(broken: u32, first: Duration, random: u64) -> Duration {
    const MOST: Duration = Duration::from_millis(500);
    let doublings = broken.saturating_sub(1).min(16);
    let bound = first.saturating_mul(1 << doublings).min(MOST.max(first));
    let half = bound / 2;
    let jitter = u64::try_from(half.as_nanos()).unwrap_or(u64::MAX).saturating_add(1);
    half + Duration::from_nanos(random % jitter)
}

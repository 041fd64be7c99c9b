//! What PostgreSQL's answers mean.

use std::time::Duration;

/// Seconds as PostgreSQL gives them; negative ones (a clock set back) count as none.
pub(crate) fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX)
}

/// Whether an error of PostgreSQL or of the link may pass by itself.
pub(crate) fn is_transient(error: &tokio_postgres::Error) -> bool {
    match error.code() {
        // Classes 08 connection, 40 rollback (serialization, deadlock), 53 resources, 57 operator (shutdown, cancel), 58 system;
        // 25006 is a write on a server that was demoted, 55P03 a lock not got in time.
        Some(state) => {
            let code = state.code();
            ["08", "40", "53", "57", "58"].iter().any(|class| code.starts_with(class))
                || code == "25006"
                || code == "55P03"
        }
        None => {
            error.is_closed()
                || std::error::Error::source(error).is_some_and(<dyn std::error::Error>::is::<std::io::Error>)
        }
    }
}

/// A length of time as PostgreSQL's `make_interval(secs => …)` takes it: at most a hundred years, beyond which the sum with a date
/// could leave what PostgreSQL can hold.
pub(crate) fn interval(length: Duration) -> f64 {
    length.min(Duration::from_secs(100 * 366 * 24 * 3600)).as_secs_f64()
}

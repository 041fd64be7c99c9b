//! The order of commands, and that nothing older follows a stop.

use std::time::Duration;

use modax_db_router::{
    Tx,
    tokio_postgres::{self, types::Type},
};

/// The reason in the audit of a command that a stop has overtaken.
pub(super) const OVERTAKEN: &str = "a stop was taken that arrived later";

/// Takes this command's place in the order in which the commands of all instances are published: that of this lock. Whether
/// a stop has one already that arrived later: an older command must not follow it, however long the database was away. Both
/// arrivals are by the database's clock, less what has passed since by the instance's own.
pub(super) async fn is_overtaken(tx: &Tx, is_stop: bool, age: Duration) -> Result<bool, tokio_postgres::Error> {
    let statement = if is_stop {
        "UPDATE command_order SET stopped_at = greatest(stopped_at, now() - make_interval(secs => $1)) RETURNING false"
    } else {
        "SELECT coalesce(stopped_at > now() - make_interval(secs => $1), false) FROM command_order FOR UPDATE"
    };
    let rows = tx.query_typed(statement, &[(&age.as_secs_f64(), Type::FLOAT8)]).await?;
    rows.first().map_or(Ok(false), |row| row.try_get(0))
}

//! The tables: made at start by any number of instances at once, partitions made ahead.

use std::{fmt, time::Duration};

use modax_db_router::{
    Router, Tx, WriteError,
    tokio_postgres::{self, types::Type},
};
use modax_txn::MigrateError;
use sha2::{Digest, Sha256};

/// All versions, from 1 on. A change of the schema is another file after them, never an edit of one.
const VERSIONS: [&str; 2] = [include_str!("schema.sql"), include_str!("schema_2.sql")];
/// The advisory lock of everything that changes tables; any number that nobody else uses.
const LOCK: i64 = 0x6d6f_6461_785f_636c;
/// How long one attempt may take, waiting for other instances included.
const DEADLINE: Duration = Duration::from_secs(30);
/// Partitions are made for yesterday (late readings) to so many days from now, twice a day: a database that is away over a
/// long weekend does not meet a day without one.
const DAYS_AHEAD: i32 = 7;

/// Why the tables are not ready.
#[derive(Debug)]
pub enum PrepareError {
    /// The database is away, or refused.
    Write(WriteError),
    /// No connection to the primary.
    Acquire(modax_db_router::AcquireError),
    /// The outbox could not be made.
    Outbox(MigrateError),
    /// The tables that are there were made by another program or changed by hand. Retrying does not help.
    Foreign,
}

impl PrepareError {
    /// Whether another attempt may succeed.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Write(WriteError::Closed) | Self::Foreign => false,
            // The first instance may be at work, or the database starting: a refused statement passes too.
            Self::Write(_) | Self::Acquire(_) => true,
            Self::Outbox(error) => error.is_transient(),
        }
    }
}

impl fmt::Display for PrepareError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Write(error) => error.fmt(f),
            Self::Acquire(error) => error.fmt(f),
            Self::Outbox(error) => error.fmt(f),
            Self::Foreign => f.write_str("the control layer's tables in this database differ from this version's"),
        }
    }
}

impl std::error::Error for PrepareError {}

/// Makes or checks everything that has to be there before the first row. `step` is called after each step: all of them
/// together may take longer than a watchdog waits.
///
/// # Errors
/// [`PrepareError`]; nothing is half done.
///
/// # Cancel safety
/// Dropping it leaves nothing half done.
pub async fn prepare(router: &Router, outbox: &modax_txn::Schema, step: impl Fn()) -> Result<(), PrepareError> {
    step();
    let written = router
        .writer()
        .deadline(DEADLINE)
        .run(|tx| async move {
            lock(&tx).await?;
            tx.batch_execute(
                "CREATE TABLE IF NOT EXISTS control_layer_migrations (
                     version int PRIMARY KEY, checksum bytea NOT NULL, applied_at timestamptz NOT NULL DEFAULT clock_timestamp())",
            )
            .await?;
            for (version, sql) in (1_i32..).zip(VERSIONS) {
                if !apply(&tx, version, sql).await? {
                    return Ok(false);
                }
            }
            Ok(true)
        })
        .await
        .map_err(PrepareError::Write)?;
    if !written.value {
        return Err(PrepareError::Foreign);
    }
    step();
    make_partitions(router).await.map_err(PrepareError::Write)?;
    step();
    let connection = router.primary_within(DEADLINE).await.map_err(PrepareError::Acquire)?;
    step();
    outbox.migrate(&*connection).await.map_err(PrepareError::Outbox)?;
    Ok(())
}

/// One version, unless it is there; false if something else is.
async fn apply(tx: &Tx, version: i32, sql: &str) -> Result<bool, tokio_postgres::Error> {
    let checksum = Sha256::digest(sql.as_bytes()).to_vec();
    let select = "SELECT checksum FROM control_layer_migrations WHERE version = $1";
    if let Some(row) = tx.query_typed(select, &[(&version, Type::INT4)]).await?.first() {
        return Ok(row.try_get::<_, Vec<u8>>(0)? == checksum);
    }
    tx.batch_execute(sql).await?;
    tx.execute_typed(
        "INSERT INTO control_layer_migrations (version, checksum) VALUES ($1, $2)",
        &[(&version, Type::INT4), (&checksum, Type::BYTEA)],
    )
    .await?;
    Ok(true)
}

/// Makes the partitions of the days around now; those that are there stay. Rows that the default partition took for such a day
/// move over.
///
/// # Errors
/// As [`Router::write`].
///
/// # Cancel safety
/// Dropping it leaves nothing half done.
pub async fn make_partitions(router: &Router) -> Result<u64, WriteError> {
    let written = router
        .writer()
        .deadline(DEADLINE)
        .run(|tx| async move {
            lock(&tx).await?;
            let missing = tx
                .query_typed(
                    "SELECT tab || '_p' || to_char(day, 'YYYYMMDD'), tab, col, to_char(day, 'YYYY-MM-DD'),
                            to_char(day + interval '1 day', 'YYYY-MM-DD')
                     FROM (VALUES ('sensor_data', 'time'), ('safety_events', 'time'), ('ai_analysis', 'window_start')) AS t (tab, col),
                          (SELECT date_trunc('day', clock_timestamp() AT TIME ZONE 'UTC') AS today) AS now,
                          generate_series(today - interval '1 day', today + make_interval(days => $1), interval '1 day') AS day
                     WHERE to_regclass(tab || '_p' || to_char(day, 'YYYYMMDD')) IS NULL",
                    &[(&DAYS_AHEAD, Type::INT4)],
                )
                .await?;
            for row in &missing {
                let (name, table, column): (&str, &str, &str) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
                let (from, to): (&str, &str) = (row.try_get(3)?, row.try_get(4)?);
                // All names and days are made by the statement above.
                tx.batch_execute(&format!(
                    "CREATE TABLE {name} (LIKE {table} INCLUDING DEFAULTS INCLUDING CONSTRAINTS);
                     WITH moved AS (DELETE FROM {table}_default
                                    WHERE {column} >= '{from} 00:00+00' AND {column} < '{to} 00:00+00' RETURNING *)
                     INSERT INTO {name} SELECT * FROM moved;
                     ALTER TABLE {table} ATTACH PARTITION {name} FOR VALUES FROM ('{from} 00:00+00') TO ('{to} 00:00+00')",
                ))
                .await?;
            }
            Ok(missing.len() as u64)
        })
        .await?;
    Ok(written.value)
}

async fn lock(tx: &Tx) -> Result<(), tokio_postgres::Error> {
    // Without it an instance that hangs in its migration would hang all others; they retry.
    tx.batch_execute("SET LOCAL lock_timeout = '10s'").await?;
    tx.execute_typed("SELECT pg_advisory_xact_lock($1)", &[(&LOCK, Type::INT8)]).await?;
    Ok(())
}

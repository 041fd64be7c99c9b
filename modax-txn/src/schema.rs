//! The schema in the database: its name, and migrations that several instances may run at once.

use std::sync::Arc;

#[cfg(feature = "tokio")]
use tokio_postgres::GenericClient;

/// The name of the PostgreSQL schema that holds the tables, checked so that it can stand quoted in a statement.
///
/// Clones share the wake-up between [`Outbox::committed`](crate::Outbox::committed) and the relays of this process: give the same
/// `Schema` (or clones of it) to the outbox and to the relay.
#[derive(Clone, Debug)]
pub struct Schema {
    quoted: Arc<str>,
    #[cfg(feature = "tokio")]
    pub(crate) wake: Arc<tokio::sync::watch::Sender<()>>,
}

/// A setting that cannot work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The schema's name is not 1 to 63 letters, digits or underscores beginning with no digit, or begins with `pg_`.
    #[error("schema name {name:?}: 1 to 63 ASCII letters, digits or underscores, not beginning with a digit or `pg_`")]
    SchemaName {
        /// The name given.
        name: String,
    },
    /// A field of the relay's configuration is out of its range.
    #[error("{field}: {reason}")]
    Field {
        /// Which.
        field: &'static str,
        /// What is wrong.
        reason: &'static str,
    },
    /// A relay must be spawned inside a tokio runtime.
    #[error("no tokio runtime here: spawn the relay inside one")]
    NoRuntime,
}

impl Default for Schema {
    /// The schema `modax_txn`.
    fn default() -> Self {
        Self::checked("modax_txn")
    }
}

impl Schema {
    /// Checks the name: 1 to 63 ASCII letters, digits or underscores, not beginning with a digit or `pg_` (kept by PostgreSQL for
    /// itself). It is always quoted, so upper case stays upper case.
    ///
    /// # Errors
    /// [`ConfigError::SchemaName`] when it is anything else.
    pub fn new(name: impl AsRef<str>) -> Result<Self, ConfigError> {
        let name = name.as_ref();
        let sound = (1..=63).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
            && !name.starts_with(|c: char| c.is_ascii_digit())
            && !name.starts_with("pg_");
        if !sound {
            return Err(ConfigError::SchemaName { name: name.to_owned() });
        }
        Ok(Self::checked(name))
    }

    fn checked(name: &str) -> Self {
        Self {
            quoted: format!("\"{name}\"").into(),
            #[cfg(feature = "tokio")]
            wake: Arc::new(tokio::sync::watch::Sender::new(())),
        }
    }

    /// The name as it stands in statements, in double quotes.
    #[must_use]
    pub fn quoted(&self) -> &str {
        &self.quoted
    }

    /// The name without quotes.
    #[must_use]
    pub fn name(&self) -> &str {
        self.quoted.trim_matches('"')
    }

    /// Makes every relay of this process that was given a clone of this schema read now.
    #[cfg(feature = "tokio")]
    pub(crate) fn wake(&self) {
        self.wake.send_replace(());
    }

    /// Puts the schema's name into a statement written with `{s}`.
    #[cfg(feature = "tokio")]
    pub(crate) fn sql(&self, statement: &str) -> String {
        statement.replace("{s}", &self.quoted)
    }
}

/// What [`Schema::migrate`] did.
#[cfg(feature = "tokio")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Migrated {
    /// Migrations applied by this call; 0 when another instance, or an earlier start, had done it.
    pub applied: usize,
    /// The schema's version now. It may be above this crate's when a newer instance was here: migrations only add.
    pub version: u32,
}

/// Why the schema is not ready.
#[cfg(feature = "tokio")]
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MigrateError {
    /// An applied migration is not the one this crate has: the schema was made by something else, or changed by hand.
    #[error("migration {version} in the database differs from this crate's: its checksum does not match")]
    Checksum {
        /// Which.
        version: u32,
    },
    /// PostgreSQL refused a statement or was out of reach; everything was rolled back.
    #[error("migration failed")]
    Database(#[source] tokio_postgres::Error),
    /// It took longer than [`MIGRATE_DEADLINE`]; discard the connection. Everything is rolled back when it closes.
    #[error("migration took longer than {} s", MIGRATE_DEADLINE.as_secs())]
    Deadline,
}

#[cfg(feature = "tokio")]
impl MigrateError {
    /// Whether the same call may succeed later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Database(error) => crate::database::is_transient(error),
            Self::Deadline => true,
            Self::Checksum { .. } => false,
        }
    }
}

/// Longest time a migration may take, waiting for other instances included. The tables are new, so the statements are quick.
#[cfg(feature = "tokio")]
pub const MIGRATE_DEADLINE: std::time::Duration = std::time::Duration::from_secs(60);

/// Applied in this order, each once; never edited after a release, only followed by another.
#[cfg(feature = "tokio")]
const MIGRATIONS: [&str; 2] = [include_str!("migrations/0001_outbox.sql"), include_str!("migrations/0002_inbox.sql")];

#[cfg(feature = "tokio")]
impl Schema {
    /// Makes or completes the schema, in one transaction. Any number of instances may call it at once: an advisory lock lets one
    /// work and the others find it done. Needs the right to create a schema only when something is missing.
    ///
    /// `client` must have no transaction open.
    ///
    /// # Errors
    /// [`MigrateError`]; nothing is changed then.
    ///
    /// # Cancel safety
    /// Not cancel safe: discard the connection. Whatever was done is rolled back when it closes.
    pub async fn migrate<C>(&self, client: &C) -> Result<Migrated, MigrateError>
    where
        C: GenericClient + Sync,
    {
        let work = async {
            client.batch_execute("BEGIN").await.map_err(MigrateError::Database)?;
            match self.migrate_in_transaction(client).await {
                Ok(migrated) => {
                    client.batch_execute("COMMIT").await.map_err(MigrateError::Database)?;
                    Ok(migrated)
                }
                Err(error) => {
                    // The first error says why; a rollback that fails too means that the connection is gone, and that rolls back.
                    let _ = client.batch_execute("ROLLBACK").await;
                    Err(error)
                }
            }
        };
        crate::driver::within(MIGRATE_DEADLINE, work).await.unwrap_or(Err(MigrateError::Deadline))
    }

    async fn migrate_in_transaction<C>(&self, client: &C) -> Result<Migrated, MigrateError>
    where
        C: GenericClient + Sync,
    {
        use sha2::{Digest, Sha256};
        use tokio_postgres::types::Type;

        let db = MigrateError::Database;
        let lock = format!("modax-txn migrate {}", self.name());
        client
            .query_typed("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", &[(&lock, Type::TEXT)])
            .await
            .map_err(db)?;
        let table = format!("{}.migrations", self.quoted());
        self.migrations_table(client, &table).await.map_err(db)?;
        let rows = client
            .query_typed(&self.sql("SELECT version, checksum FROM {s}.migrations ORDER BY version"), &[])
            .await
            .map_err(db)?;
        let mut known = std::collections::BTreeMap::new();
        for row in &rows {
            let version = row.try_get::<_, i32>(0).map_err(db)?.unsigned_abs();
            known.insert(version, row.try_get::<_, Vec<u8>>(1).map_err(db)?);
        }
        let mut applied = 0;
        for (version, migration) in (1_u32..).zip(MIGRATIONS) {
            // Of the text before the name is put in: the same for every schema.
            let checksum = Sha256::digest(migration.as_bytes()).to_vec();
            match known.get(&version) {
                Some(there) if *there == checksum => {}
                Some(_) => return Err(MigrateError::Checksum { version }),
                None => {
                    client.batch_execute(&self.sql(migration)).await.map_err(db)?;
                    let note = self.sql("INSERT INTO {s}.migrations (version, checksum) VALUES ($1, $2)");
                    let number = i32::try_from(version).unwrap_or(i32::MAX);
                    client
                        .execute_typed(&note, &[(&number, Type::INT4), (&checksum, Type::BYTEA)])
                        .await
                        .map_err(db)?;
                    known.insert(version, checksum);
                    applied += 1;
                }
            }
        }
        Ok(Migrated { applied, version: known.keys().next_back().copied().unwrap_or(0) })
    }

    /// Makes what is missing of the schema and of the table of migrations.
    async fn migrations_table<C>(&self, client: &C, table: &str) -> Result<(), tokio_postgres::Error>
    where
        C: GenericClient + Sync,
    {
        use tokio_postgres::types::Type;

        let ask = "SELECT to_regnamespace($1) IS NOT NULL, to_regclass($2) IS NOT NULL";
        let found = client.query_typed_one(ask, &[(&self.quoted(), Type::TEXT), (&table, Type::TEXT)]).await?;
        // Not `IF NOT EXISTS`: that asks for the right to create schemas even where an administrator has made this one.
        if !found.try_get::<_, bool>(0)? {
            client.batch_execute(&self.sql("CREATE SCHEMA {s}")).await?;
        }
        if !found.try_get::<_, bool>(1)? {
            let create = self.sql(
                "CREATE TABLE {s}.migrations (
                     version integer PRIMARY KEY, checksum bytea NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())",
            );
            client.batch_execute(&create).await?;
        }
        Ok(())
    }
}

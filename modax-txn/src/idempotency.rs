//! The same request under the same name is one request.

use std::time::Duration;

use tokio_postgres::{GenericClient, types::Type};

use crate::{
    database::{interval, is_transient},
    inbox::SWEEP_ROWS,
    message::IdempotencyKey,
    schema::Schema,
};

/// How long a key is remembered by default: a day, as clients that retry give up long before.
pub const DEFAULT_IDEMPOTENCY_RETENTION: Duration = Duration::from_secs(24 * 3600);

/// Longest digest: SHA-512.
const MAX_DIGEST_BYTES: usize = 64;

/// Remembers requests by the caller's key, and what was answered.
#[derive(Clone, Debug)]
pub struct IdempotencyKeys {
    schema: Schema,
    retention: Duration,
}

/// What is known of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "only `New` is to be carried out"]
pub enum Claim {
    /// Nobody asked before: carry it out in this transaction, then [`store`](IdempotencyKeys::store) the outcome.
    New,
    /// The same request was carried out: answer this again.
    Replay {
        /// What was stored; empty if the first transaction committed without storing any.
        outcome: Vec<u8>,
    },
    /// Another request has this key: refuse.
    Conflict,
}

/// Why no answer was given.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdempotencyError {
    /// The digest is empty or longer than 64 bytes: give a hash of the request, not the request.
    #[error("request digest of {bytes} bytes, expected 1 to {MAX_DIGEST_BYTES}")]
    Digest {
        /// Its length.
        bytes: usize,
    },
    /// The key was not claimed, or was forgotten since; nothing was stored.
    #[error("the key is not claimed")]
    NotClaimed,
    /// Other transactions took and gave up the key again and again; run the transaction again.
    #[error("the key is contended")]
    Contended,
    /// PostgreSQL refused the statement; the transaction must be rolled back.
    #[error("idempotency statement failed")]
    Database(#[source] tokio_postgres::Error),
}

impl IdempotencyError {
    /// Whether the whole transaction may succeed when it is run again.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Database(error) => is_transient(error),
            Self::Contended => true,
            Self::Digest { .. } | Self::NotClaimed => false,
        }
    }
}

impl IdempotencyKeys {
    /// Keys in `schema`, remembered for [`DEFAULT_IDEMPOTENCY_RETENTION`].
    #[must_use]
    pub fn new(schema: Schema) -> Self {
        Self { schema, retention: DEFAULT_IDEMPOTENCY_RETENTION }
    }

    /// Sets how long a key is remembered from its claim. Afterwards the same key is new again.
    /// Default: [`DEFAULT_IDEMPOTENCY_RETENTION`].
    #[must_use]
    pub const fn retention(mut self, retention: Duration) -> Self {
        self.retention = retention;
        self
    }

    /// Claims `key` for a request with this digest, in the caller's transaction.
    ///
    /// A second transaction with the same key waits until the first commits (then it replays) or rolls back (then it is new).
    ///
    /// # Errors
    /// [`IdempotencyError`].
    ///
    /// # Cancel safety
    /// Not cancel safe: roll the transaction back.
    pub async fn claim<C>(&self, tx: &C, key: &IdempotencyKey, request_digest: &[u8]) -> Result<Claim, IdempotencyError>
    where
        C: GenericClient + Sync,
    {
        if request_digest.is_empty() || request_digest.len() > MAX_DIGEST_BYTES {
            return Err(IdempotencyError::Digest { bytes: request_digest.len() });
        }
        let insert = self.schema.sql(
            "INSERT INTO {s}.idempotency AS i (key, digest, expires_at)
             VALUES ($1, $2, clock_timestamp() + make_interval(secs => $3))
             ON CONFLICT (key) DO UPDATE SET digest = excluded.digest, outcome = NULL,
                                             created_at = clock_timestamp(), expires_at = excluded.expires_at
             WHERE i.expires_at <= clock_timestamp()
             RETURNING 1",
        );
        let select = self.schema.sql("SELECT digest, outcome FROM {s}.idempotency WHERE key = $1");
        // The row can be swept between the two statements; then the insert succeeds the next time.
        for _ in 0..3 {
            let taken = tx
                .query_typed_opt(
                    &insert,
                    &[
                        (&key.as_str(), Type::TEXT),
                        (&request_digest, Type::BYTEA),
                        (&interval(self.retention), Type::FLOAT8),
                    ],
                )
                .await
                .map_err(IdempotencyError::Database)?;
            if taken.is_some() {
                return Ok(Claim::New);
            }
            let row = tx
                .query_typed_opt(&select, &[(&key.as_str(), Type::TEXT)])
                .await
                .map_err(IdempotencyError::Database)?;
            if let Some(row) = row {
                let digest: Vec<u8> = row.try_get(0).map_err(IdempotencyError::Database)?;
                let outcome: Option<Vec<u8>> = row.try_get(1).map_err(IdempotencyError::Database)?;
                return Ok(if digest == request_digest {
                    Claim::Replay { outcome: outcome.unwrap_or_default() }
                } else {
                    Claim::Conflict
                });
            }
        }
        Err(IdempotencyError::Contended)
    }

    /// Stores what was answered, in the same transaction as the claim.
    ///
    /// # Errors
    /// [`IdempotencyError::NotClaimed`] when there is no such key.
    ///
    /// # Cancel safety
    /// Not cancel safe: roll the transaction back.
    pub async fn store<C>(&self, tx: &C, key: &IdempotencyKey, outcome: &[u8]) -> Result<(), IdempotencyError>
    where
        C: GenericClient + Sync,
    {
        let sql = self.schema.sql("UPDATE {s}.idempotency SET outcome = $2 WHERE key = $1");
        let rows = tx
            .execute_typed(&sql, &[(&key.as_str(), Type::TEXT), (&outcome, Type::BYTEA)])
            .await
            .map_err(IdempotencyError::Database)?;
        if rows == 0 { Err(IdempotencyError::NotClaimed) } else { Ok(()) }
    }

    /// Deletes a bounded number of keys whose time has passed; answers how many. A relay does this for its own schema.
    ///
    /// # Errors
    /// [`IdempotencyError::Database`].
    ///
    /// # Cancel safety
    /// Cancel safe: what is left is deleted by the next call.
    pub async fn sweep<C>(&self, client: &C) -> Result<u64, IdempotencyError>
    where
        C: GenericClient + Sync,
    {
        self.sweep_rows(client).await.map_err(IdempotencyError::Database)
    }

    pub(crate) async fn sweep_rows<C>(&self, client: &C) -> Result<u64, tokio_postgres::Error>
    where
        C: GenericClient + Sync,
    {
        let sql = self.schema.sql(
            "WITH old AS (
                 SELECT key FROM {s}.idempotency WHERE expires_at <= clock_timestamp()
                 LIMIT $1 FOR UPDATE SKIP LOCKED)
             DELETE FROM {s}.idempotency i USING old WHERE i.key = old.key",
        );
        client.execute_typed(&sql, &[(&SWEEP_ROWS, Type::INT8)]).await
    }
}

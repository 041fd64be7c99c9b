//! Applying a message once, in the consumer's own transaction.

use std::time::Duration;

use tokio_postgres::{GenericClient, types::Type};

use crate::{
    database::{interval, is_transient},
    message::{MAX_KEY_BYTES, MessageId},
    schema::Schema,
};

/// How long an inbox remembers by default: a week, longer than any outbox should hold a message back.
pub const DEFAULT_INBOX_RETENTION: Duration = Duration::from_secs(7 * 24 * 3600);

/// Kept longer than the retention, so that a producer's clock that is off by less cannot make a duplicate look new.
const CLOCK_SKEW: Duration = Duration::from_secs(3600);

/// Most rows one sweep deletes in one statement: keeps its locks and its WAL short.
pub(crate) const SWEEP_ROWS: i64 = 1000;

/// Remembers which messages a consumer has seen.
#[derive(Clone, Debug)]
pub struct Inbox {
    schema: Schema,
    once: String,
    retention: Duration,
}

/// Whether to apply a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "only `First` is to be applied"]
pub enum Once {
    /// Never seen: apply it in this transaction.
    First,
    /// Seen before: leave it.
    Duplicate,
    /// Older than the inbox remembers: nobody can tell whether it was seen. Nothing was written.
    TooOld,
}

/// Why the inbox gave no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InboxError {
    /// The consumer's name is empty, too long, or holds NUL.
    #[error("consumer name of {bytes} bytes is empty, longer than {MAX_KEY_BYTES}, or holds NUL")]
    Consumer {
        /// Its length.
        bytes: usize,
    },
    /// PostgreSQL refused the statement; the transaction must be rolled back.
    #[error("inbox statement failed")]
    Database(#[source] tokio_postgres::Error),
}

impl InboxError {
    /// Whether the whole transaction may succeed when it is run again.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Database(error) => is_transient(error),
            Self::Consumer { .. } => false,
        }
    }
}

const ONCE: &str = "\
WITH age AS (SELECT coalesce(to_timestamp($3) < clock_timestamp() - make_interval(secs => $4), false) AS too_old),
put AS (
    INSERT INTO {s}.inbox (consumer, id) SELECT $1, $2 FROM age WHERE NOT too_old
    ON CONFLICT DO NOTHING RETURNING 1
)
SELECT EXISTS (SELECT FROM put),
       too_old AND NOT EXISTS (SELECT FROM {s}.inbox WHERE consumer = $1 AND id = $2)
FROM age";

impl Inbox {
    /// An inbox in `schema` that remembers for [`DEFAULT_INBOX_RETENTION`].
    #[must_use]
    pub fn new(schema: Schema) -> Self {
        let once = schema.sql(ONCE);
        Self { schema, once, retention: DEFAULT_INBOX_RETENTION }
    }

    /// Sets how long it remembers. Default: [`DEFAULT_INBOX_RETENTION`]. It must be longer than a message can be redelivered: let messages expire well before.
    /// Give the relay of the same schema the same value ([`RelayBuilder::inbox_retention`](crate::RelayBuilder::inbox_retention)).
    #[must_use]
    pub const fn retention(mut self, retention: Duration) -> Self {
        self.retention = retention;
        self
    }

    /// Says whether this consumer sees the message for the first time, and remembers it if the transaction commits.
    ///
    /// Two transactions with the same message wait for each other: the second one learns what became of the first.
    /// The age of a message is that of its [`MessageId`]; an id that carries no time is never too old.
    ///
    /// # Errors
    /// [`InboxError`].
    ///
    /// # Cancel safety
    /// Not cancel safe: roll the transaction back.
    pub async fn once<C>(&self, tx: &C, consumer: &str, id: MessageId) -> Result<Once, InboxError>
    where
        C: GenericClient + Sync,
    {
        if consumer.is_empty() || consumer.len() > MAX_KEY_BYTES || consumer.contains('\0') {
            return Err(InboxError::Consumer { bytes: consumer.len() });
        }
        let made_at = id.unix_millis().map(|millis| Duration::from_millis(millis).as_secs_f64());
        let answer = async {
            let row = tx
                .query_typed_one(
                    &self.once,
                    &[
                        (&consumer, Type::TEXT),
                        (id.as_uuid(), Type::UUID),
                        (&made_at, Type::FLOAT8),
                        (&interval(self.retention), Type::FLOAT8),
                    ],
                )
                .await?;
            Ok(match (row.try_get(0)?, row.try_get(1)?) {
                (true, _) => Once::First,
                (false, true) => Once::TooOld,
                (false, false) => Once::Duplicate,
            })
        };
        answer.await.map_err(InboxError::Database)
    }

    /// Deletes a bounded number of entries that are older than the retention and an hour; answers how many.
    ///
    /// A relay does this for its own schema. Call it where no relay runs; repeat while it answers more than zero.
    ///
    /// # Errors
    /// [`InboxError::Database`].
    ///
    /// # Cancel safety
    /// Cancel safe: what is left is deleted by the next call.
    pub async fn sweep<C>(&self, client: &C) -> Result<u64, InboxError>
    where
        C: GenericClient + Sync,
    {
        self.sweep_rows(client).await.map_err(InboxError::Database)
    }

    pub(crate) async fn sweep_rows<C>(&self, client: &C) -> Result<u64, tokio_postgres::Error>
    where
        C: GenericClient + Sync,
    {
        let sql = self.schema.sql(
            "WITH old AS (
                 SELECT consumer, id FROM {s}.inbox WHERE received_at < clock_timestamp() - make_interval(secs => $1)
                 LIMIT $2 FOR UPDATE SKIP LOCKED)
             DELETE FROM {s}.inbox i USING old WHERE i.consumer = old.consumer AND i.id = old.id",
        );
        let age = interval(self.retention.saturating_add(CLOCK_SKEW));
        client.execute_typed(&sql, &[(&age, Type::FLOAT8), (&SWEEP_ROWS, Type::INT8)]).await
    }
}

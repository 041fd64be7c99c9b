//! Writing messages in the caller's transaction, and reading what became of them.

use std::time::{Duration, SystemTime};

use tokio_postgres::{GenericClient, Row, types::Type};

use crate::{
    message::{InvalidMessage, Message, MessageId},
    schema::Schema,
};

/// Most messages in one [`Outbox::enqueue_all`]: bounds the statement, not the transaction; call it again for more.
pub const MAX_BATCH: usize = 10_000;

/// Writes messages into the outbox table, inside the caller's transaction.
#[derive(Clone, Debug)]
pub struct Outbox {
    schema: Schema,
    insert: String,
}

/// What [`Outbox::enqueue`] answers. The message exists when the caller's transaction commits, not before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "give it to `Outbox::committed` after the commit, or the relay finds the message a poll later"]
pub struct EnqueueReceipt {
    id: MessageId,
    duplicate: bool,
}

impl EnqueueReceipt {
    /// The message's identity; of the earlier message if this one is a duplicate.
    #[must_use]
    pub const fn id(&self) -> MessageId {
        self.id
    }

    /// Whether a message of the same idempotency key (or id) was there already, so that nothing was written.
    #[must_use]
    pub const fn is_duplicate(&self) -> bool {
        self.duplicate
    }
}

/// Why a message was not enqueued.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EnqueueError {
    /// The message cannot be sent at all; the transaction was not touched.
    #[error("message cannot be enqueued")]
    Invalid(#[from] InvalidMessage),
    /// More than [`MAX_BATCH`] messages at once; the transaction was not touched.
    #[error("{messages} messages at once, at most {MAX_BATCH}")]
    TooMany {
        /// How many.
        messages: usize,
    },
    /// Another message has the same idempotency key (or id) and says something else. The transaction is still usable; nothing of
    /// this call should be committed.
    #[error("another message with the same idempotency key or id says something else")]
    Conflict {
        /// The message that is there.
        existing: MessageId,
    },
    /// PostgreSQL refused the statement; the transaction must be rolled back.
    #[error("enqueue failed")]
    Database(#[source] tokio_postgres::Error),
}

impl EnqueueError {
    /// Whether the whole transaction may succeed when it is run again.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Database(error) => is_transient(error),
            Self::Invalid(_) | Self::TooMany { .. } | Self::Conflict { .. } => false,
        }
    }

    /// Always false: what was written is decided by the caller's commit.
    #[must_use]
    pub const fn outcome_unknown(&self) -> bool {
        false
    }
}

/// Why a question about messages was not answered, or a person's decision was not carried out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StatusError {
    /// PostgreSQL refused the statement or was out of reach.
    #[error("outbox query failed")]
    Database(#[source] tokio_postgres::Error),
    /// A row holds what this version does not know, written by a newer one.
    #[error("outbox row has the unknown status {status:?}")]
    UnknownStatus {
        /// What it says.
        status: String,
    },
}

impl StatusError {
    /// Whether the same call may succeed later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Database(error) => is_transient(error),
            Self::UnknownStatus { .. } => false,
        }
    }
}

/// What has become of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum State {
    /// Not settled yet: waiting, being published, or about to be tried again.
    Pending,
    /// The sink confirmed.
    Delivered,
    /// Its time passed before the sink confirmed it. After a failed attempt it may be there all the same: a sink that does not answer may
    /// have taken it.
    Expired,
    /// The sink refused it or a last-moment condition dropped it. After an earlier attempt without an answer it may be there all the same.
    Rejected {
        /// Why.
        reason: String,
    },
    /// Its retry budget is used up; it holds its key until someone decides ([`Outbox::redrive`], [`Outbox::discard`]).
    Parked {
        /// The last failure.
        reason: String,
    },
}

impl State {
    /// The word in the table: `pending`, `delivered`, `expired`, `rejected` or `parked`.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Delivered => "delivered",
            Self::Expired => "expired",
            Self::Rejected { .. } => "rejected",
            Self::Parked { .. } => "parked",
        }
    }

    /// Whether nothing more will happen to it by itself.
    #[must_use]
    pub const fn is_settled(&self) -> bool {
        !matches!(self, Self::Pending)
    }
}

/// What the outbox knows of one message.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MessageStatus {
    /// Which message.
    pub id: MessageId,
    /// Where to.
    pub topic: String,
    /// Its key.
    pub key: Option<String>,
    /// What has become of it.
    pub state: State,
    /// Attempts recorded so far.
    pub attempts: u32,
    /// When it was enqueued (database's clock).
    pub enqueued_at: SystemTime,
    /// When it must not be published any more.
    pub expires_at: Option<SystemTime>,
    /// When its outcome was recorded.
    pub settled_at: Option<SystemTime>,
    /// The term of the relay that recorded it.
    pub settled_epoch: Option<u64>,
}

/// How much is waiting.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Backlog {
    /// Messages not settled yet.
    pub pending: u64,
    /// Messages kept for a person.
    pub parked: u64,
    /// Age of the oldest pending message; `None` when there is none.
    pub oldest_age: Option<Duration>,
    /// The relay's current term, 0 before the first.
    pub epoch: u64,
    /// Who holds the lease, if anyone does now.
    pub owner: Option<String>,
}

// The outer ORDER BY makes the sequence follow the order of the slice: without it a plan is free to draw numbers in any order.
const INSERT: &str = "\
INSERT INTO {s}.outbox (id, topic, key, payload, headers, idempotency_key, expires_at)
SELECT m.id, m.topic, m.key, m.payload, m.headers::text[], m.idempotency_key,
       clock_timestamp() + make_interval(secs => m.expires_in)
FROM unnest($1::uuid[], $2::text[], $3::text[], $4::bytea[], $5::text[], $6::text[], $7::float8[])
     WITH ORDINALITY AS m (id, topic, key, payload, headers, idempotency_key, expires_in, n)
ORDER BY m.n
ON CONFLICT DO NOTHING
RETURNING id";

const EXISTING: &str = "\
SELECT id, topic = $3 AND key IS NOT DISTINCT FROM $4 AND payload = $5 AS same
FROM {s}.outbox WHERE id = $1 OR idempotency_key = $2";

const STATUS_COLUMNS: &str =
    "id, topic, key, status, reason, attempts, enqueued_at, expires_at, settled_at, settled_epoch";

impl Outbox {
    /// An outbox in `schema`, which [`Schema::migrate`] has made.
    #[must_use]
    pub fn new(schema: Schema) -> Self {
        let insert = schema.sql(INSERT);
        Self { schema, insert }
    }

    /// Writes `message` in the caller's transaction: one statement, one round trip, no extra fsync, no NOTIFY.
    ///
    /// `tx` is whatever the transaction runs on: a `tokio_postgres::Transaction`, or a `Client` on which `BEGIN` was sent. On a
    /// client without an open transaction the message is committed by itself.
    ///
    /// **Order per key holds when the transaction locks the key's row first** (updates the device's row, or
    /// `SELECT … FOR UPDATE`), and only then enqueues: messages become visible in commit order, not in the order of their numbers,
    /// and only a lock makes the two agree.
    ///
    /// # Errors
    /// [`EnqueueError`]; with [`EnqueueError::Database`] the transaction must be rolled back.
    ///
    /// # Cancel safety
    /// Not cancel safe: a dropped future may or may not have written the row into the transaction; roll it back.
    pub async fn enqueue<C>(&self, tx: &C, message: Message) -> Result<EnqueueReceipt, EnqueueError>
    where
        C: GenericClient + Sync,
    {
        let mut receipts = self.enqueue_all(tx, vec![message]).await?;
        // One message, one receipt: the vector has it.
        receipts.pop().ok_or(EnqueueError::TooMany { messages: 0 })
    }

    /// Writes many messages, in this order, by one statement. The answers stand in the same order.
    ///
    /// # Errors
    /// As [`enqueue`](Self::enqueue). All messages are checked before the first is written.
    ///
    /// # Cancel safety
    /// As [`enqueue`](Self::enqueue).
    pub async fn enqueue_all<C>(&self, tx: &C, messages: Vec<Message>) -> Result<Vec<EnqueueReceipt>, EnqueueError>
    where
        C: GenericClient + Sync,
    {
        if messages.is_empty() {
            return Ok(Vec::new());
        }
        if messages.len() > MAX_BATCH {
            return Err(EnqueueError::TooMany { messages: messages.len() });
        }
        for message in &messages {
            message.validate()?;
        }
        let ids: Vec<MessageId> = messages.iter().map(|m| m.id.unwrap_or_else(MessageId::new)).collect();
        let written = self.insert(tx, &ids, &messages).await.map_err(EnqueueError::Database)?;
        let mut receipts = Vec::with_capacity(messages.len());
        for (id, message) in ids.into_iter().zip(&messages) {
            receipts.push(match written.binary_search(&id) {
                Ok(_) => EnqueueReceipt { id, duplicate: false },
                Err(_) => self.existing(tx, id, message).await?,
            });
        }
        Ok(receipts)
    }

    /// Runs the insert; the answer is sorted.
    async fn insert<C>(
        &self,
        tx: &C,
        ids: &[MessageId],
        messages: &[Message],
    ) -> Result<Vec<MessageId>, tokio_postgres::Error>
    where
        C: GenericClient + Sync,
    {
        let uuids: Vec<uuid::Uuid> = ids.iter().map(|id| *id.as_uuid()).collect();
        let topics: Vec<&str> = messages.iter().map(|m| m.topic.as_str()).collect();
        let keys: Vec<Option<&str>> = messages.iter().map(|m| m.key.as_deref()).collect();
        let payloads: Vec<&[u8]> = messages.iter().map(|m| m.payload.as_ref()).collect();
        let headers: Vec<Option<String>> = messages.iter().map(|m| headers_literal(&m.headers)).collect();
        let idempotency_keys: Vec<Option<&str>> = messages.iter().map(|m| m.idempotency_key.as_deref()).collect();
        let expiries: Vec<Option<f64>> = messages.iter().map(|m| m.expires_in.map(|d| d.as_secs_f64())).collect();
        let rows = tx
            .query_typed(
                &self.insert,
                &[
                    (&uuids, Type::UUID_ARRAY),
                    (&topics, Type::TEXT_ARRAY),
                    (&keys, Type::TEXT_ARRAY),
                    (&payloads, Type::BYTEA_ARRAY),
                    (&headers, Type::TEXT_ARRAY),
                    (&idempotency_keys, Type::TEXT_ARRAY),
                    (&expiries, Type::FLOAT8_ARRAY),
                ],
            )
            .await?;
        let mut written = Vec::with_capacity(rows.len());
        for row in &rows {
            written.push(MessageId::from_uuid(row.try_get(0)?));
        }
        written.sort_unstable();
        Ok(written)
    }

    /// Looks at the message that stood in the way.
    async fn existing<C>(&self, tx: &C, id: MessageId, message: &Message) -> Result<EnqueueReceipt, EnqueueError>
    where
        C: GenericClient + Sync,
    {
        let rows = tx
            .query_typed(
                &self.schema.sql(EXISTING),
                &[
                    (id.as_uuid(), Type::UUID),
                    (&message.idempotency_key, Type::TEXT),
                    (&message.topic, Type::TEXT),
                    (&message.key, Type::TEXT),
                    (&message.payload.as_ref(), Type::BYTEA),
                ],
            )
            .await
            .map_err(EnqueueError::Database)?;
        let mut found = None;
        for row in &rows {
            let existing = MessageId::from_uuid(row.try_get(0).map_err(EnqueueError::Database)?);
            if !row.try_get::<_, bool>(1).map_err(EnqueueError::Database)? {
                return Err(EnqueueError::Conflict { existing });
            }
            found = Some(existing);
        }
        // None: it was swept between the two statements, hours after it was settled. The caller's retry writes a new one.
        found.map(|id| EnqueueReceipt { id, duplicate: true }).ok_or(EnqueueError::Conflict { existing: id })
    }

    /// Wakes the relays of this process that were spawned with a clone of the same [`Schema`]. Call it after the commit; forgetting it
    /// costs a poll interval, nothing else.
    pub fn committed(&self, receipt: &EnqueueReceipt) {
        if !receipt.duplicate {
            self.schema.wake();
        }
    }

    /// What has become of a message; `None` if it never was (or was rolled back), or if its retention has passed.
    ///
    /// # Errors
    /// [`StatusError`].
    ///
    /// # Cancel safety
    /// Cancel safe: it only reads.
    pub async fn status<C>(&self, client: &C, id: MessageId) -> Result<Option<MessageStatus>, StatusError>
    where
        C: GenericClient + Sync,
    {
        let sql = self.schema.sql(&format!("SELECT {STATUS_COLUMNS} FROM {{s}}.outbox WHERE id = $1"));
        let row = client.query_typed_opt(&sql, &[(id.as_uuid(), Type::UUID)]).await.map_err(StatusError::Database)?;
        row.as_ref().map(read_status).transpose()
    }

    /// The oldest parked messages, at most `limit`.
    ///
    /// # Errors
    /// [`StatusError`].
    ///
    /// # Cancel safety
    /// Cancel safe: it only reads.
    pub async fn parked<C>(&self, client: &C, limit: u32) -> Result<Vec<MessageStatus>, StatusError>
    where
        C: GenericClient + Sync,
    {
        let sql = self
            .schema
            .sql(&format!("SELECT {STATUS_COLUMNS} FROM {{s}}.outbox WHERE status = 'parked' ORDER BY seq LIMIT $1"));
        let rows = client.query_typed(&sql, &[(&i64::from(limit), Type::INT8)]).await.map_err(StatusError::Database)?;
        rows.iter().map(read_status).collect()
    }

    /// How much is waiting, and who moves it.
    ///
    /// # Errors
    /// [`StatusError`].
    ///
    /// # Cancel safety
    /// Cancel safe: it only reads.
    pub async fn backlog<C>(&self, client: &C) -> Result<Backlog, StatusError>
    where
        C: GenericClient + Sync,
    {
        let sql = self.schema.sql(
            "SELECT (SELECT count(*) FROM {s}.outbox WHERE status = 'pending'),
                    (SELECT count(*) FROM {s}.outbox WHERE status = 'parked'),
                    (SELECT extract(epoch FROM clock_timestamp() - min(enqueued_at))::float8 FROM {s}.outbox WHERE status = 'pending'),
                    epoch, CASE WHEN expires_at > clock_timestamp() THEN owner END
             FROM {s}.lease WHERE name = 'relay'",
        );
        let read = |row: Row| -> Result<Backlog, tokio_postgres::Error> {
            Ok(Backlog {
                pending: row.try_get::<_, i64>(0)?.unsigned_abs(),
                parked: row.try_get::<_, i64>(1)?.unsigned_abs(),
                oldest_age: row.try_get::<_, Option<f64>>(2)?.map(seconds),
                epoch: row.try_get::<_, i64>(3)?.unsigned_abs(),
                owner: row.try_get(4)?,
            })
        };
        let row = client.query_typed_one(&sql, &[]).await.map_err(StatusError::Database)?;
        read(row).map_err(StatusError::Database)
    }

    /// Puts a parked message back in its place: it is tried again with a new budget, before the later messages of its key.
    /// Answers whether there was such a parked message.
    ///
    /// # Errors
    /// [`StatusError`].
    ///
    /// # Cancel safety
    /// Not cancel safe: a dropped future may or may not have done it; doing it twice does no harm.
    pub async fn redrive<C>(&self, client: &C, id: MessageId) -> Result<bool, StatusError>
    where
        C: GenericClient + Sync,
    {
        let sql = self.schema.sql(
            "UPDATE {s}.outbox SET status = 'pending', attempts = 0, reason = NULL, settled_at = NULL, settled_epoch = NULL
             WHERE id = $1 AND status = 'parked'",
        );
        let rows = client.execute_typed(&sql, &[(id.as_uuid(), Type::UUID)]).await.map_err(StatusError::Database)?;
        Ok(rows == 1)
    }

    /// Gives a parked message up: it becomes rejected for `reason`, and its key goes on without it.
    /// Answers whether there was such a parked message.
    ///
    /// # Errors
    /// [`StatusError`].
    ///
    /// # Cancel safety
    /// Not cancel safe: a dropped future may or may not have done it; doing it twice does no harm.
    pub async fn discard<C>(&self, client: &C, id: MessageId, reason: &str) -> Result<bool, StatusError>
    where
        C: GenericClient + Sync,
    {
        let sql = self.schema.sql(
            "UPDATE {s}.outbox SET status = 'rejected', reason = $2, settled_at = clock_timestamp()
             WHERE id = $1 AND status = 'parked'",
        );
        let params: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 2] =
            [(id.as_uuid(), Type::UUID), (&reason, Type::TEXT)];
        let rows = client.execute_typed(&sql, &params).await.map_err(StatusError::Database)?;
        Ok(rows == 1)
    }
}

fn read_status(row: &Row) -> Result<MessageStatus, StatusError> {
    let read = || -> Result<_, tokio_postgres::Error> {
        let reason = row.try_get::<_, Option<String>>(4)?.unwrap_or_default();
        let status: String = row.try_get(3)?;
        let state = match status.as_str() {
            "pending" => State::Pending,
            "delivered" => State::Delivered,
            "expired" => State::Expired,
            "rejected" => State::Rejected { reason },
            "parked" => State::Parked { reason },
            _ => return Ok(Err(StatusError::UnknownStatus { status })),
        };
        Ok(Ok(MessageStatus {
            id: MessageId::from_uuid(row.try_get(0)?),
            topic: row.try_get(1)?,
            key: row.try_get(2)?,
            state,
            attempts: row.try_get::<_, i32>(5)?.unsigned_abs(),
            enqueued_at: row.try_get(6)?,
            expires_at: row.try_get(7)?,
            settled_at: row.try_get(8)?,
            settled_epoch: row.try_get::<_, Option<i64>>(9)?.map(i64::unsigned_abs),
        }))
    };
    read().map_err(StatusError::Database)?
}

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
        None => error.is_closed() || std::error::Error::source(error).is_some_and(|cause| cause.is::<std::io::Error>()),
    }
}

/// The headers as a literal of `text[]` with names and values in turn. A literal, because an array of arrays of different
/// lengths cannot be a parameter.
fn headers_literal(headers: &std::collections::BTreeMap<String, String>) -> Option<String> {
    if headers.is_empty() {
        return None;
    }
    let mut literal = String::from("{");
    for text in headers.iter().flat_map(|(name, value)| [name, value]) {
        if literal.len() > 1 {
            literal.push(',');
        }
        literal.push('"');
        for c in text.chars() {
            if matches!(c, '"' | '\\') {
                literal.push('\\');
            }
            literal.push(c);
        }
        literal.push('"');
    }
    literal.push('}');
    Some(literal)
}

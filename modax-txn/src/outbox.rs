//! Writing messages in the caller's transaction.

use std::collections::BTreeSet;

use tokio_postgres::{GenericClient, types::Type};

use crate::{
    database::is_transient,
    message::{InvalidMessage, Message, MessageId},
    schema::Schema,
};

/// Most messages in one [`Outbox::enqueue_all`]: bounds the statement, not the transaction; call it again for more.
pub const MAX_BATCH: usize = 10_000;

/// Writes messages into the outbox table, inside the caller's transaction.
#[derive(Clone, Debug)]
pub struct Outbox {
    pub(crate) schema: Schema,
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
        let mut written = self.insert(tx, &ids, &messages).await.map_err(EnqueueError::Database)?;
        let mut receipts = Vec::with_capacity(messages.len());
        for (id, message) in ids.into_iter().zip(&messages) {
            // Once: a second message of this call with the same identity was not written.
            receipts.push(if written.remove(&id) {
                EnqueueReceipt { id, duplicate: false }
            } else {
                self.existing(tx, id, message).await?
            });
        }
        Ok(receipts)
    }

    /// Runs the insert; the answer is what was written.
    async fn insert<C>(
        &self,
        tx: &C,
        ids: &[MessageId],
        messages: &[Message],
    ) -> Result<BTreeSet<MessageId>, tokio_postgres::Error>
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
        rows.iter().map(|row| Ok(MessageId::from_uuid(row.try_get(0)?))).collect()
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

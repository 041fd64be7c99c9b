//! What has become of messages, and what a person decides about the parked ones.

use std::time::{Duration, SystemTime};

use tokio_postgres::{GenericClient, Row, types::Type};

use crate::{
    database::{is_transient, seconds},
    message::MessageId,
    outbox::Outbox,
};

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

const STATUS_COLUMNS: &str =
    "id, topic, key, status, reason, attempts, enqueued_at, expires_at, settled_at, settled_epoch";

impl Outbox {
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
                    (SELECT (extract(epoch FROM clock_timestamp()) - extract(epoch FROM min(enqueued_at)))::float8 FROM {s}.outbox WHERE status = 'pending'),
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

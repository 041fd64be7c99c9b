//! The relay's statements. Each that moves anything carries the epoch and the token of the lease in its own condition.

use std::time::Duration;

use tokio_postgres::{
    Client, Error, Row,
    types::{ToSql, Type},
};
use uuid::Uuid;

use crate::{
    database::{interval, seconds},
    idempotency::IdempotencyKeys,
    inbox::{Inbox, SWEEP_ROWS},
    message::{MessageId, OutgoingMessage},
    relay::{Fetched, Input, Outcome, Settlement, Statement},
    schema::Schema,
};

/// A second claim with the same token succeeds, for a relay that did not hear the answer to its first.
const CLAIM: &str = "\
WITH claim AS (
    UPDATE {s}.lease SET epoch = epoch + 1, token = $1, owner = $2, acquired_at = clock_timestamp(),
                         expires_at = clock_timestamp() + make_interval(secs => $3)
    WHERE name = 'relay' AND (expires_at <= clock_timestamp() OR token = $1)
    RETURNING epoch
)
SELECT (SELECT epoch FROM claim), (extract(epoch FROM expires_at) - extract(epoch FROM clock_timestamp()))::float8
FROM {s}.lease WHERE name = 'relay'";

const RENEW: &str = "\
UPDATE {s}.lease SET expires_at = clock_timestamp() + make_interval(secs => $3)
WHERE name = 'relay' AND epoch = $1 AND token = $2";

const RELEASE: &str = "UPDATE {s}.lease SET expires_at = 'epoch' WHERE name = 'relay' AND epoch = $1 AND token = $2";

/// What is pending, in the order of the numbers, without the keys that have a parked message. A message of such a key is read all
/// the same once it has expired, so that its status says so.
const FETCH: &str = "\
SELECT o.id, o.topic, o.key, o.payload, o.headers, o.attempts,
       (extract(epoch FROM clock_timestamp()) - extract(epoch FROM o.enqueued_at))::float8,
       (extract(epoch FROM o.expires_at) - extract(epoch FROM clock_timestamp()))::float8
FROM {s}.outbox o
WHERE o.status = 'pending'
  AND o.id <> ALL ($1)
  AND (o.key IS NULL OR o.expires_at <= clock_timestamp()
       OR (o.key <> ALL ($2) AND NOT EXISTS (SELECT FROM {s}.outbox p WHERE p.status = 'parked' AND p.key = o.key)))
ORDER BY o.seq LIMIT $3";

/// With this the rows are read along the index of what is pending, whatever the statistics say. Without it, after a long outage of the
/// sink, the planner believes that little is pending and sorts the whole backlog for each read (measured: 80 ms for 100,000 rows).
const ALONG_THE_INDEX: &str = "\
BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY; SET LOCAL enable_sort = off; SET LOCAL enable_bitmapscan = off";

/// The fence is the row of the lease itself, locked by this statement: whoever takes the lease over waits for it, or it finds
/// another epoch and moves nothing.
const RECORD: &str = "\
WITH fence AS (
    UPDATE {s}.lease SET expires_at = clock_timestamp() + make_interval(secs => $3)
    WHERE name = 'relay' AND epoch = $1 AND token = $2
    RETURNING epoch
), settled AS (
    UPDATE {s}.outbox o
    SET status = d.status, reason = d.reason, attempts = d.attempts,
        settled_at = CASE WHEN d.status <> 'pending' THEN clock_timestamp() END,
        settled_epoch = CASE WHEN d.status <> 'pending' THEN fence.epoch END
    FROM fence, unnest($4::uuid[], $5::text[], $6::text[], $7::integer[]) AS d (id, status, reason, attempts)
    WHERE o.id = d.id AND o.status = 'pending'
)
SELECT EXISTS (SELECT FROM fence)";

const EXPIRE_PARKED: &str = "\
UPDATE {s}.outbox SET status = 'expired', settled_at = clock_timestamp()
WHERE status = 'parked' AND expires_at <= clock_timestamp()
RETURNING id";

const SWEEP: &str = "\
WITH old AS (
    SELECT id FROM {s}.outbox
    WHERE settled_at < clock_timestamp() - make_interval(secs => $1) AND (status = 'parked') = $2
    LIMIT $3 FOR UPDATE SKIP LOCKED
)
DELETE FROM {s}.outbox o USING old WHERE o.id = old.id";

/// Counts of one sweep, for an event.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Swept {
    pub(super) messages: u64,
    pub(super) parked: u64,
    pub(super) inbox: u64,
    pub(super) idempotency_keys: u64,
}

#[derive(Debug)]
pub(super) struct Store {
    token: Uuid,
    owner: String,
    lease: f64,
    retention: f64,
    parked_retention: f64,
    claim: String,
    renew: String,
    release: String,
    fetch: String,
    record: String,
    expire_parked: String,
    sweep: String,
    inbox: Inbox,
    keys: IdempotencyKeys,
}

/// How long things are kept.
#[derive(Clone, Copy, Debug)]
pub(super) struct Retention {
    pub(super) settled: Duration,
    pub(super) parked: Duration,
    pub(super) inbox: Duration,
}

impl Store {
    pub(super) fn new(schema: &Schema, owner: String, token: Uuid, lease: Duration, retention: Retention) -> Self {
        Self {
            token,
            owner,
            lease: interval(lease),
            retention: interval(retention.settled),
            parked_retention: interval(retention.parked),
            claim: schema.sql(CLAIM),
            renew: schema.sql(RENEW),
            release: schema.sql(RELEASE),
            fetch: schema.sql(FETCH),
            record: schema.sql(RECORD),
            expire_parked: schema.sql(EXPIRE_PARKED),
            sweep: schema.sql(SWEEP),
            inbox: Inbox::new(schema.clone()).retention(retention.inbox),
            keys: IdempotencyKeys::new(schema.clone()),
        }
    }

    /// Runs one statement of the state machine.
    pub(super) async fn run(&self, client: &Client, statement: Statement) -> Result<(Input, Swept), Error> {
        let input = match statement {
            Statement::Claim => self.claim(client).await?,
            Statement::Renew { epoch } => {
                let epoch = signed(epoch);
                let rows = client
                    .execute_typed(
                        &self.renew,
                        &[(&epoch, Type::INT8), (&self.token, Type::UUID), (&self.lease, Type::FLOAT8)],
                    )
                    .await?;
                Input::Renewed { held: rows == 1 }
            }
            Statement::Release { epoch } => {
                client.execute_typed(&self.release, &[(&signed(epoch), Type::INT8), (&self.token, Type::UUID)]).await?;
                Input::Released
            }
            Statement::Fetch { limit, exclude, full_keys } => self.fetch(client, limit, &exclude, &full_keys).await?,
            Statement::Record { epoch, settlements } => self.record(client, epoch, &settlements).await?,
            Statement::Sweep => return self.sweep(client).await,
        };
        Ok((input, Swept::default()))
    }

    async fn claim(&self, client: &Client) -> Result<Input, Error> {
        let row = client
            .query_typed(
                &self.claim,
                &[(&self.token, Type::UUID), (&self.owner, Type::TEXT), (&self.lease, Type::FLOAT8)],
            )
            .await?
            .into_iter()
            .next();
        let Some(row) = row else {
            // The row of the lease is made by the migration; without it nobody can own anything.
            return Ok(Input::ClaimRefused { left: Duration::MAX });
        };
        Ok(match row.try_get::<_, Option<i64>>(0)? {
            Some(epoch) => Input::Claimed { epoch: epoch.unsigned_abs() },
            None => Input::ClaimRefused { left: seconds(row.try_get(1)?) },
        })
    }

    async fn fetch(
        &self,
        client: &Client,
        limit: usize,
        exclude: &[MessageId],
        full_keys: &[String],
    ) -> Result<Input, Error> {
        let exclude: Vec<Uuid> = exclude.iter().map(|id| *id.as_uuid()).collect();
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let params: [(&(dyn ToSql + Sync), Type); 3] =
            [(&exclude, Type::UUID_ARRAY), (&full_keys, Type::TEXT_ARRAY), (&limit, Type::INT8)];
        // Polled together, so sent together: one round trip.
        let ((), rows, ()) = tokio::try_join!(
            client.batch_execute(ALONG_THE_INDEX),
            client.query_typed(&self.fetch, &params),
            client.batch_execute("COMMIT"),
        )?;
        let messages = rows.iter().map(read_message).collect::<Result<Vec<_>, _>>()?;
        Ok(Input::Fetched { messages })
    }

    async fn record(&self, client: &Client, epoch: u64, settlements: &[Settlement]) -> Result<Input, Error> {
        let ids: Vec<Uuid> = settlements.iter().map(|s| *s.id.as_uuid()).collect();
        let (statuses, reasons): (Vec<&str>, Vec<Option<String>>) =
            settlements.iter().map(|s| status_and_reason(&s.outcome)).unzip();
        let attempts: Vec<i32> = settlements.iter().map(|s| i32::try_from(s.attempts).unwrap_or(i32::MAX)).collect();
        let rows = client
            .query_typed(
                &self.record,
                &[
                    (&signed(epoch), Type::INT8),
                    (&self.token, Type::UUID),
                    (&self.lease, Type::FLOAT8),
                    (&ids, Type::UUID_ARRAY),
                    (&statuses, Type::TEXT_ARRAY),
                    (&reasons, Type::TEXT_ARRAY),
                    (&attempts, Type::INT4_ARRAY),
                ],
            )
            .await?;
        let held = rows.first().map(|row| row.try_get(0)).transpose()?.unwrap_or(false);
        Ok(Input::Recorded { held })
    }

    async fn sweep(&self, client: &Client) -> Result<(Input, Swept), Error> {
        let rows = client.query_typed(&self.expire_parked, &[]).await?;
        let mut expired = Vec::with_capacity(rows.len());
        for row in &rows {
            expired.push(MessageId::from_uuid(row.try_get(0)?));
        }
        let mut swept = Swept::default();
        for (age, parked, count) in
            [(self.retention, false, &mut swept.messages), (self.parked_retention, true, &mut swept.parked)]
        {
            *count = client
                .execute_typed(&self.sweep, &[(&age, Type::FLOAT8), (&parked, Type::BOOL), (&SWEEP_ROWS, Type::INT8)])
                .await?;
        }
        swept.inbox = self.inbox.sweep_rows(client).await?;
        swept.idempotency_keys = self.keys.sweep_rows(client).await?;
        let full = SWEEP_ROWS.unsigned_abs();
        let more = [swept.messages, swept.parked, swept.inbox, swept.idempotency_keys].contains(&full);
        Ok((Input::Swept { expired, more }, swept))
    }
}

/// Epochs are counted by the database from 0 in a `bigint`.
fn signed(epoch: u64) -> i64 {
    i64::try_from(epoch).unwrap_or(i64::MAX)
}

fn status_and_reason(outcome: &Outcome) -> (&'static str, Option<String>) {
    match outcome {
        Outcome::Delivered => ("delivered", None),
        Outcome::Expired => ("expired", None),
        Outcome::Rejected { reason } => ("rejected", Some(storable(reason))),
        Outcome::Parked { reason } => ("parked", Some(storable(reason))),
        Outcome::Retried { reason } => ("pending", Some(storable(reason))),
    }
}

/// A reason that PostgreSQL can store: no NUL, and no novel.
fn storable(reason: &str) -> String {
    reason.chars().filter(|c| *c != '\0').take(1000).collect()
}

fn read_message(row: &Row) -> Result<Fetched, Error> {
    let payload: Vec<u8> = row.try_get(3)?;
    // Whoever may insert may write an array here that is no list of texts: it must not hold up the rows behind it.
    let (headers, fault) = match row.try_get::<_, Option<Vec<String>>>(4) {
        Ok(Some(headers)) if headers.len() % 2 == 1 => (Vec::new(), Some("headers: a name without a value".to_owned())),
        Ok(headers) => (headers.unwrap_or_default(), None),
        Err(error) => (Vec::new(), Some(format!("headers: {}", source(&error)))),
    };
    let mut texts = headers.into_iter();
    let mut headers = std::collections::BTreeMap::new();
    while let (Some(name), Some(value)) = (texts.next(), texts.next()) {
        headers.insert(name, value);
    }
    let message = OutgoingMessage {
        id: MessageId::from_uuid(row.try_get(0)?),
        topic: row.try_get(1)?,
        key: row.try_get(2)?,
        payload: payload.into(),
        headers,
        age: seconds(row.try_get(6)?),
        expires_in: row.try_get::<_, Option<f64>>(7)?.map(seconds),
        attempt: 0,
        epoch: 0,
    };
    Ok(Fetched { message, attempts: row.try_get::<_, i32>(5)?.unsigned_abs(), fault })
}

/// What lies behind an error, which itself names only a column's number.
fn source(error: &Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

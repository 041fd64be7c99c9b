//! `modax outbox`: the tables, their state, and a relay that runs by itself.

use std::ops::Deref;
use std::time::Duration;

use async_trait::async_trait;
use modax_db_router::Router;
use modax_mqtt_failover::{Client, Message, Outcome, PublishError};
use modax_txn::{BoxConnection, BoxError, Confirmation, Connections, Event, OutgoingMessage, Relay, Sink, SinkError};
use modax_txn::{Outbox, Schema};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::Exit;
use crate::args::{OutboxAction, OutboxArgs, OutboxDatabaseArgs, RelayArgs};
use crate::output::{self, Output, chain};
use crate::signal::Interrupt;
use crate::{mqtt, sql};

/// What the statements of migrate and status may take once there is a primary.
const STATEMENTS: Duration = Duration::from_secs(30);
/// How long a relay may take to settle what it has in hand when it is asked to stop.
const STOP: Duration = Duration::from_secs(5);

/// Runs one of the three.
pub(crate) async fn run(args: OutboxArgs, output: Output) -> Exit {
    match args.action {
        OutboxAction::Migrate(args) => one(&args, &output, migrate).await,
        OutboxAction::Status(args) => one(&args, &output, status).await,
        OutboxAction::Relay(args) => relay(args, output).await,
    }
}

fn schema(args: &OutboxDatabaseArgs) -> Option<Schema> {
    match Schema::new(&args.schema) {
        Ok(schema) => Some(schema),
        Err(error) => {
            output::bad_usage("--schema", &error);
            None
        }
    }
}

/// One piece of work on the primary; its answer is one line.
async fn one<W>(args: &OutboxDatabaseArgs, output: &Output, work: W) -> Exit
where
    W: AsyncFnOnce(Schema, &Router) -> Result<Value, BoxError>,
{
    let Some(schema) = schema(args) else { return Exit::Usage };
    let Some(router) = sql::router(&args.database, args.deadline) else { return Exit::Usage };
    connecting(args);
    let answer = timeout(args.deadline.saturating_add(STATEMENTS), work(schema, &router)).await;
    let exit = match answer {
        Ok(Ok(line)) => match output.line(&line).await {
            Ok(()) => Exit::Done,
            Err(_) => Exit::Failed,
        },
        Ok(Err(error)) => failed(&chain(error.as_ref())),
        Err(_) => failed("the database did not answer in time"),
    };
    sql::close(&router).await;
    exit
}

/// Told at once: without a database nothing else is, until the deadline.
fn connecting(args: &OutboxDatabaseArgs) {
    output::event("connecting", json!({ "deadline_ms": args.deadline.as_secs_f64() * 1e3 }));
}

fn failed(error: &str) -> Exit {
    output::event("failed", json!({ "error": error }));
    Exit::Failed
}

async fn migrate(schema: Schema, router: &Router) -> Result<Value, BoxError> {
    let connection = router.primary().await?;
    let client: &tokio_postgres::Client = &connection;
    let migrated = schema.migrate(client).await?;
    Ok(json!({ "schema": schema.name(), "applied": migrated.applied, "version": migrated.version }))
}

async fn status(schema: Schema, router: &Router) -> Result<Value, BoxError> {
    let connection = router.primary().await?;
    let client: &tokio_postgres::Client = &connection;
    let backlog = Outbox::new(schema.clone()).backlog(client).await?;
    let count = format!("SELECT status, count(*) FROM {}.outbox GROUP BY status ORDER BY status", schema.quoted());
    let mut messages = serde_json::Map::new();
    for row in client.query(&count, &[]).await? {
        messages.insert(row.try_get::<_, String>(0)?, json!(row.try_get::<_, i64>(1)?));
    }
    Ok(json!({
        "schema": schema.name(),
        "messages": messages,
        "pending": backlog.pending,
        "parked": backlog.parked,
        "oldest_ms": backlog.oldest_age.map(|age| age.as_secs_f64() * 1e3),
        "owner": backlog.owner,
        "epoch": backlog.epoch,
    }))
}

/// Carries messages until a signal; prints a line for each that is settled.
async fn relay(args: RelayArgs, output: Output) -> Exit {
    let Some(schema) = schema(&args.outbox) else { return Exit::Usage };
    let Some(router) = sql::router(&args.outbox.database, args.outbox.deadline) else { return Exit::Usage };
    let client_id = args.client_id.unwrap_or_else(|| format!("modax-relay-{}", uuid::Uuid::new_v4().simple()));
    let client = match Client::builder(client_id.as_str())
        .brokers(&args.brokers)
        .and_then(modax_mqtt_failover::ClientBuilder::build)
    {
        Ok(client) => client,
        Err(error) => {
            output::bad_usage(mqtt::flag(&error), &error);
            return Exit::Usage;
        }
    };
    let Ok(mut interrupt) = Interrupt::listen() else { return Exit::Failed };
    let relay = Relay::builder(schema, Primary(router.clone()), Broker(client.clone())).owner(client_id).spawn();
    let relay = match relay {
        Ok(relay) => relay,
        Err(error) => return failed(&chain(&error)),
    };
    connecting(&args.outbox);
    let mut events = relay.events();
    let mut exit = Exit::Done;
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            () = interrupt.wait() => break,
            () = output.closed() => {
                exit = Exit::Failed;
                break;
            }
        };
        let Some(event) = event else { break };
        let Some(line) = settled(&event) else {
            tell(&event);
            continue;
        };
        if output.line(&line).await.is_err() {
            exit = Exit::Failed;
            break;
        }
    }
    let stopped = relay.stop(STOP).await;
    let _ = timeout(STOP, client.close(Duration::from_secs(1))).await;
    sql::close(&router).await;
    if stopped.clean { exit } else { Exit::Failed }
}

/// What is no message's end goes to stderr.
fn tell(event: &Event) {
    match event {
        Event::DatabaseFailed { reason } => output::event("database_failed", json!({ "error": reason })),
        other => output::event("relay", json!({ "detail": format!("{other:?}") })),
    }
}

/// The line of a message that reached its end.
fn settled(event: &Event) -> Option<Value> {
    match event {
        Event::Delivered { id, age, attempts, by } => Some(json!({
            "id": id.to_string(), "status": "delivered", "age_ms": age.as_secs_f64() * 1e3,
            "attempts": attempts, "broker": by,
        })),
        Event::Expired { id } => Some(json!({ "id": id.to_string(), "status": "expired" })),
        Event::Rejected { id, reason } => Some(json!({ "id": id.to_string(), "status": "rejected", "reason": reason })),
        Event::Parked { id, reason } => Some(json!({ "id": id.to_string(), "status": "parked", "reason": reason })),
        _ => None,
    }
}

/// Where the relay gets its connection: wherever the primary is now.
struct Primary(Router);

#[async_trait]
impl Connections for Primary {
    async fn connection(&self) -> Result<BoxConnection, BoxError> {
        let connection = self.0.primary().await?;
        Ok(Box::new(Borrowed(connection)))
    }
}

/// A pooled connection in the shape the relay asks for.
struct Borrowed(modax_db_router::Connection);

impl Deref for Borrowed {
    type Target = tokio_postgres::Client;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

/// Where the relay sends: whichever broker answers.
struct Broker(Client);

#[async_trait]
impl Sink for Broker {
    async fn publish(&self, message: &OutgoingMessage) -> Result<Confirmation, SinkError> {
        let mut outgoing = Message::new(message.topic.as_str(), message.payload.clone()).at_least_once();
        if let Some(left) = message.expires_in {
            outgoing = outgoing.expires_in(left);
        }
        let receipt = self.0.publish(outgoing).await.map_err(refusal)?;
        match receipt.acked().await {
            Outcome::Acked { broker, .. } => Ok(Confirmation::by(broker.to_string())),
            Outcome::Expired { .. } => Err(SinkError::Expired),
            Outcome::Rejected { reason, .. } => Err(SinkError::reject(reason.to_string())),
            other => Err(SinkError::retry(format!("{other:?}"))),
        }
    }
}

fn refusal(error: PublishError) -> SinkError {
    if error.is_transient() { SinkError::retry(error) } else { SinkError::reject(chain(&error)) }
}

//! From the outbox to the brokers, by whichever instance holds the lease; and what became of each command.
//!
//! An instance without a broker gives the lease away: another one may have one, and its view of the plant's safety is fresh.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use modax_db_router::{ReadPreference, tokio_postgres};
use modax_mqtt_failover as mqtt;
use modax_txn::{
    BoxConnection, BoxError, Confirmation, Event, MessageId, OutgoingMessage, Relay, RetryPolicy, Sink, SinkError,
    State,
};
use tokio::sync::watch;
use tokio_postgres::types::Type;
use uuid::Uuid;

use crate::{
    app::App,
    commands::{TYPE_HEADER, is_always_allowed},
    contract::topic,
};

/// Without a broker for so long, the lease goes to another instance: longer than a failover of the client takes.
const GIVES_UP_AFTER: Duration = Duration::from_secs(2);
/// After so long with a broker the safety reports are those of the plant: twenty of each device have come.
const SETTLES_AFTER: Duration = Duration::from_secs(1);
/// How often that is looked at.
const LOOKS_EVERY: Duration = Duration::from_millis(200);
/// Longest wait for what is in flight when the lease is given back.
const STOP_DEADLINE: Duration = Duration::from_secs(3);
/// A message that says nothing else is of no use after this.
const EXPIRES_IN: Duration = Duration::from_secs(60);
/// How long a command may wait in the client for its place on the wire before it is judged again.
const WAITS_IN_CLIENT: Duration = Duration::from_millis(500);
/// Commands under way of which is kept whether they may have been delivered; the outbox has one at a time in flight.
const MAX_DOUBTS: usize = 1_000;
/// How often commands are looked up whose outcome no event told: the lease changed hands, or the database was away.
const RECONCILES_EVERY: Duration = Duration::from_secs(1);
/// Waits between tries: a command has seconds to live, and its successors wait behind it.
const RETRY_FIRST: Duration = Duration::from_millis(50);
/// The longest of them.
const RETRY_CAP: Duration = Duration::from_millis(200);

/// The reason in the audit by which an expired command is known.
const EXPIRED: &str = "expired before it could be published";

/// Added to the reason of a command that a broker may have all the same.
const MAYBE: &str = "an earlier attempt may have been delivered";

/// The reason in the audit by which a command is known that was safe when it was taken and not when it was to go out.
const NOT_SAFE: &str = "the plant is not safe";

/// Publishes to the brokers, and is the last to ask whether a command may still go out.
struct ToBrokers(Arc<App>);

#[async_trait]
impl Sink for ToBrokers {
    async fn publish(&self, message: &OutgoingMessage) -> Result<Confirmation, SinkError> {
        let app = &self.0;
        if message.topic == topic::CONTROL_COMMANDS {
            return publish_command(app, message).await;
        }
        let left = message.expires_in.unwrap_or(EXPIRES_IN);
        match hand_over(app, message, left).await? {
            mqtt::Outcome::Acked { broker, .. } => Ok(Confirmation::by(broker.to_string())),
            mqtt::Outcome::Expired { .. } => Err(SinkError::Expired),
            mqtt::Outcome::Rejected { reason } => Err(SinkError::reject(reason.to_string())),
            outcome => Err(SinkError::retry(format!("not acknowledged: {outcome:?}"))),
        }
    }
}

async fn hand_over(app: &App, message: &OutgoingMessage, left: Duration) -> Result<mqtt::Outcome, SinkError> {
    let outgoing = mqtt::Message::new(message.topic.as_str(), message.payload.clone()).at_least_once().expires_in(left);
    let receipt = app.mqtt.publish(outgoing).await.map_err(|error| {
        if error.is_transient() { SinkError::retry(error) } else { SinkError::reject(error.to_string()) }
    })?;
    Ok(receipt.acked().await)
}

/// A command must not wait in the client: what waits there leaves at the next connection, whatever has become of the plant
/// and of newer commands meanwhile. So it is handed over only while there is a broker, for a moment, and comes back here to be
/// judged again. One that is on the wire stays the client's until its connection is acknowledged or over: a slow broker gets no copy.
async fn publish_command(app: &App, message: &OutgoingMessage) -> Result<Confirmation, SinkError> {
    let (id, begun) = (*message.id.as_uuid(), Instant::now());
    let was_sent = app.doubts.seen(id, message.attempt);
    may_go_out(app, message, was_sent, begun)?;
    let left = message.expires_in.unwrap_or(EXPIRES_IN);
    // Before, because the relay may drop this future at any await.
    app.doubts.set(id, true);
    let outcome = match hand_over(app, message, left.min(WAITS_IN_CLIENT)).await {
        Ok(outcome) => outcome,
        Err(error) => {
            app.doubts.set(id, was_sent);
            return Err(error);
        }
    };
    match outcome {
        mqtt::Outcome::Acked { broker, .. } => return Ok(Confirmation::by(broker.to_string())),
        mqtt::Outcome::Rejected { reason } => return Err(SinkError::reject(reason.to_string())),
        mqtt::Outcome::Shed
        | mqtt::Outcome::Expired { maybe_delivered: false }
        | mqtt::Outcome::Undelivered { maybe_delivered: false } => app.doubts.set(id, was_sent),
        _ => {}
    }
    if begun.elapsed() >= left {
        return Err(SinkError::Expired);
    }
    Err(SinkError::retry(format!("not acknowledged: {outcome:?}")))
}

/// The last question before a command goes out.
fn may_go_out(app: &App, message: &OutgoingMessage, was_sent: bool, now: Instant) -> Result<(), SinkError> {
    let status = app.mqtt.status();
    if !status.is_connected() {
        return Err(SinkError::retry("no broker"));
    }
    let command_type = message.headers.get(TYPE_HEADER).map_or("", String::as_str);
    if is_always_allowed(app, command_type) {
        return Ok(());
    }
    let connected_for = status.since.map_or(Duration::MAX, |since| now.saturating_duration_since(since));
    if !app.plant.is_safe(now) {
        // With a broker since a moment, this instance does not know the plant; while there is time it may come to know it.
        if connected_for < SETTLES_AFTER {
            return Err(SinkError::retry("a broker only since a moment"));
        }
        return Err(SinkError::drop(if was_sent { format!("{NOT_SAFE}; {MAYBE}") } else { NOT_SAFE.to_owned() }));
    }
    // What was heard before the connection was lost says nothing of what happened meanwhile.
    if !app.plant.is_safe_within(now, connected_for) {
        return Err(SinkError::retry("not every device was heard since the broker is back"));
    }
    Ok(())
}

/// Commands on their way through this instance, and whether an attempt may have reached a broker: the audit must not say
/// that a command was not published when it may have been.
#[derive(Debug, Default)]
pub struct Doubts(Mutex<BTreeMap<Uuid, bool>>);

impl Doubts {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Uuid, bool>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes an attempt; answers whether an earlier one may have been delivered. Of those of other instances nothing is known.
    fn seen(&self, id: Uuid, attempt: u32) -> bool {
        let mut doubts = self.lock();
        let was_sent = *doubts.entry(id).or_insert(attempt > 1);
        if doubts.len() > MAX_DOUBTS {
            // Identities rise with time: the first is the oldest. What is forgotten counts as unknown.
            doubts.pop_first();
        }
        was_sent
    }

    fn set(&self, id: Uuid, may_be_delivered: bool) {
        self.lock().insert(id, may_be_delivered);
    }

    fn forget(&self, id: Uuid) {
        self.lock().remove(&id);
    }

    /// What the audit says of an expired command with so many attempts on record.
    fn expired(&self, id: Uuid, attempts: u32) -> String {
        if self.lock().get(&id).copied().unwrap_or(attempts > 0) {
            format!("expired; {MAYBE}")
        } else {
            EXPIRED.to_owned()
        }
    }
}

/// Relays while there is a broker, until `stop`.
pub async fn run(app: Arc<App>, mut stop: watch::Receiver<bool>) {
    while !*stop.borrow() {
        if !app.mqtt.status().is_connected() {
            let _ = tokio::time::timeout(LOOKS_EVERY, stop.changed()).await;
            continue;
        }
        let connections = {
            let app = Arc::clone(&app);
            move || {
                let app = Arc::clone(&app);
                async move {
                    let connection = app.router.primary().await?;
                    Ok::<BoxConnection, BoxError>(Box::new(connection))
                }
            }
        };
        let relay = Relay::builder(app.outbox_schema.clone(), connections, ToBrokers(Arc::clone(&app)))
            .owner(app.instance_id.to_string())
            .retry(RetryPolicy::default().first(RETRY_FIRST).cap(RETRY_CAP).attempts(u32::MAX))
            .spawn();
        match relay {
            Ok(relay) => {
                follow(&app, &relay, &mut stop).await;
                let stopped = relay.stop(STOP_DEADLINE).await;
                tracing::info!(clean = stopped.clean, "relay stopped");
            }
            Err(error) => {
                tracing::error!(%error, "the relay does not start");
                let _ = tokio::time::timeout(GIVES_UP_AFTER, stop.changed()).await;
            }
        }
    }
}

/// Records what happens until `stop`, or until there has been no broker for too long.
async fn follow(app: &Arc<App>, relay: &Relay, stop: &mut watch::Receiver<bool>) {
    let mut events = relay.events();
    let mut look = tokio::time::interval(LOOKS_EVERY);
    let mut connected_at = Instant::now();
    loop {
        tokio::select! {
            event = events.next() => match event {
                Some(event) => note(app, event).await,
                None => return,
            },
            _ = look.tick() => {
                if app.mqtt.status().is_connected() {
                    connected_at = Instant::now();
                } else if connected_at.elapsed() >= GIVES_UP_AFTER {
                    tracing::warn!("no broker: another instance may publish");
                    return;
                }
            }
            _ = stop.changed() => return,
        }
    }
}

async fn note(app: &App, event: Event) {
    let settled = match event {
        Event::Delivered { id, .. } => Some((id, "executed", None)),
        Event::Expired { id } => Some((id, "failed", Some(app.doubts.expired(*id.as_uuid(), 0)))),
        Event::Rejected { id, reason } => Some(rejected(id, reason)),
        Event::LeaseAcquired { epoch } => {
            app.metrics.leases_acquired.increment();
            tracing::info!(epoch, "this instance publishes now");
            None
        }
        Event::LeaseLost { epoch } => {
            tracing::warn!(epoch, "this instance publishes no more");
            None
        }
        Event::Parked { id, reason } => {
            tracing::error!(%id, reason, "a message is parked");
            None
        }
        _ => None,
    };
    if let Some((id, status, reason)) = settled {
        // If it fails, the reconciler finds the command later.
        if let Err(error) = settle(app, *id.as_uuid(), status, reason).await {
            tracing::info!(%id, %error, "the audit follows later");
        }
    }
}

/// The safety check drops a message; everything else that is refused has failed.
fn rejected(id: MessageId, reason: String) -> (MessageId, &'static str, Option<String>) {
    let status = if reason.contains(NOT_SAFE) { "blocked" } else { "failed" };
    (id, status, Some(reason))
}

/// Completes the audit; a message that is no command has no row there. Whoever is first counts.
async fn settle(
    app: &App,
    command_id: Uuid,
    status: &'static str,
    reason: Option<String>,
) -> Result<(), modax_db_router::WriteError> {
    let written = app
        .router
        .writer()
        .deadline(Duration::from_secs(2))
        .run(|tx| {
            let reason = reason.clone();
            async move {
                tx.execute_typed(
                    "UPDATE control_commands SET status = $2, reason = $3, settled_at = clock_timestamp()
                     WHERE command_id = $1 AND (status = 'accepted' OR (status = 'failed' AND $2 = 'executed'))",
                    &[(&command_id, Type::UUID), (&status, Type::TEXT), (&reason, Type::TEXT)],
                )
                .await
            }
        })
        .await?;
    app.doubts.forget(command_id);
    if written.value == 1 {
        let counter = match status {
            "executed" => &app.metrics.commands_executed,
            "blocked" => &app.metrics.commands_blocked,
            _ => &app.metrics.commands_failed,
        };
        counter.increment();
        if status != "executed" {
            tracing::warn!(%command_id, status, reason, "command not executed");
        }
    }
    Ok(())
}

/// Finds commands whose outcome stands in the outbox but not in the audit, until `stop`.
pub async fn reconcile(app: Arc<App>, mut stop: watch::Receiver<bool>) {
    while !*stop.borrow() {
        if let Err(error) = reconcile_once(&app).await {
            tracing::debug!(%error, "the audit cannot be compared with the outbox now");
        }
        let _ = tokio::time::timeout(RECONCILES_EVERY, stop.changed()).await;
    }
}

async fn reconcile_once(app: &App) -> Result<(), BoxError> {
    let open = app
        .router
        .read(ReadPreference::Primary)
        .deadline(Duration::from_secs(2))
        .query(
            "SELECT command_id, expires_at < clock_timestamp() - interval '5 seconds' FROM control_commands
             WHERE status = 'accepted' AND created_at < clock_timestamp() - interval '1 second' ORDER BY created_at LIMIT 100",
            &[],
        )
        .await?;
    if open.rows.is_empty() {
        return Ok(());
    }
    let connection = app.router.primary_within(Duration::from_secs(2)).await?;
    for row in open.rows {
        let command_id: Uuid = row.try_get(0)?;
        let status = app.outbox.status(&*connection, MessageId::from_uuid(command_id)).await?;
        let attempts = status.as_ref().map_or(0, |it| it.attempts);
        let (status, reason) = match status.map(|it| it.state) {
            Some(State::Delivered) => ("executed", None),
            Some(State::Expired) => ("failed", Some(app.doubts.expired(command_id, attempts))),
            Some(State::Rejected { reason }) => {
                let (_, status, reason) = rejected(MessageId::from_uuid(command_id), reason);
                (status, reason)
            }
            None => ("failed", Some("its message is not in the outbox".to_owned())),
            // Nobody has a broker, so nobody says so; and nobody publishes it any more.
            Some(State::Pending) if row.try_get::<_, Option<bool>>(1)?.unwrap_or(false) => {
                ("failed", Some(app.doubts.expired(command_id, attempts)))
            }
            Some(_) => continue,
        };
        settle(app, command_id, status, reason).await?;
    }
    Ok(())
}

/// Logs what the brokers' client tells, one line an event with its name, until it is closed.
pub async fn log_mqtt(app: Arc<App>) {
    let mut events = app.mqtt.events();
    while let Some(event) = events.next().await {
        let name = name_of(&event);
        match &event {
            mqtt::Event::FailedOver { to, detected, outage, .. } => {
                let (detected_ms, outage_ms) = (millis(*detected), millis(*outage));
                tracing::warn!(event = name, %to, detected_ms, outage_ms, detail = ?event, "broker");
            }
            mqtt::Event::Closed => return,
            _ => tracing::info!(event = name, detail = ?event, "broker"),
        }
    }
}

/// Logs what the database router tells, one line an event with its name, until it is closed.
pub async fn log_database(app: Arc<App>) {
    let mut events = app.router.events();
    while let Some(event) = events.next().await {
        tracing::info!(event = name_of(&event), detail = ?event, "database");
    }
}

/// The name of an event: the first word of its `Debug`.
fn name_of(event: &impl std::fmt::Debug) -> String {
    let text = format!("{event:?}");
    text.split([' ', '{', '(']).next().unwrap_or_default().to_owned()
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::{Doubts, EXPIRED, MAX_DOUBTS};

    #[test]
    fn the_audit_says_of_an_expired_command_whether_it_may_have_been_delivered() {
        let (doubts, id) = (Doubts::default(), Uuid::from_u128(7));
        assert_eq!(doubts.expired(id, 0), EXPIRED, "nobody tried");
        assert_eq!(
            doubts.expired(id, 1),
            "expired; an earlier attempt may have been delivered",
            "another instance tried"
        );

        assert!(!doubts.seen(id, 1));
        assert!(!doubts.seen(id, 2), "the attempt before found no broker");
        assert_eq!(doubts.expired(id, 2), EXPIRED);
        doubts.set(id, true);
        assert!(doubts.seen(id, 3));
        assert_eq!(doubts.expired(id, 3), "expired; an earlier attempt may have been delivered");
        assert!(doubts.seen(Uuid::from_u128(8), 2), "the attempt before was another instance's");
    }

    #[test]
    fn commands_that_nobody_settles_are_forgotten_the_oldest_first() {
        let doubts = Doubts::default();
        for n in 0..=MAX_DOUBTS as u128 {
            doubts.seen(Uuid::from_u128(n), 1);
        }
        assert_eq!(doubts.lock().len(), MAX_DOUBTS);
        assert!(!doubts.lock().contains_key(&Uuid::from_u128(0)));
    }
}

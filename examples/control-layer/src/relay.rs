//! From the outbox to the brokers, by whichever instance holds the lease; and what became of each command.
//!
//! An instance without a broker gives the lease away: another one may have one, and its view of the plant's safety is fresh.

pub mod audit;
mod overtaken;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use modax_mqtt_failover as mqtt;
use modax_txn::{BoxConnection, BoxError, Confirmation, OutgoingMessage, Relay, RetryPolicy, Sink, SinkError};
use tokio::sync::watch;

pub use audit::reconcile;
use audit::{Begun, NOT_SAFE};

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
/// Waits between tries: a command has seconds to live, and its successors wait behind it.
const RETRY_FIRST: Duration = Duration::from_millis(50);
/// The longest of them.
const RETRY_CAP: Duration = Duration::from_millis(200);

/// Publishes to the brokers, and is the last to ask whether a command may still go out.
struct ToBrokers(Arc<App>);

#[async_trait]
impl Sink for ToBrokers {
    async fn publish(&self, message: &OutgoingMessage) -> Result<Confirmation, SinkError> {
        let app = &self.0;
        if message.topic == topic::CONTROL_COMMANDS {
            let published = publish_command(app, message).await;
            // What is held back must not hold back a stop, nor follow it.
            if matches!(published, Err(SinkError::Retry(_))) && overtaken::is_overtaken(app, message).await {
                return Err(SinkError::drop(overtaken::REASON));
            }
            return published;
        }
        let left = message.expires_in.unwrap_or(EXPIRES_IN);
        match hand_over(app, message, left).await? {
            mqtt::Outcome::Acked { broker, .. } => Ok(Confirmation::by(broker.to_string())),
            mqtt::Outcome::Expired { .. } => Err(SinkError::Expired),
            mqtt::Outcome::Rejected { reason, .. } => Err(SinkError::reject(reason.to_string())),
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
    may_go_out(app, message, begun)?;
    // Before, because this process may be killed, and this future dropped, at any moment.
    let note = match audit::begin(app, id).await {
        Ok(Begun::Settled) => return Err(SinkError::drop("its audit is closed")),
        Ok(note) => Some(note),
        // Stopping does not wait for a database: then the audit knows of the attempt only if this instance lives to say so.
        Err(_) if is_always_allowed(app, command_type(message)) => None,
        Err(error) => return Err(SinkError::retry(error)),
    };
    let left = message.expires_in.unwrap_or(EXPIRES_IN);
    let outcome = match may_go_out(app, message, Instant::now()) {
        Ok(()) => hand_over(app, message, left.saturating_sub(begun.elapsed()).min(WAITS_IN_CLIENT)).await,
        Err(error) => Err(error),
    };
    if let Ok(mqtt::Outcome::Acked { broker, .. }) = &outcome {
        return Ok(Confirmation::by(broker.to_string()));
    }
    let is_unsent = outcome.as_ref().map_or(true, has_no_broker);
    match note {
        Some(Begun::First(version)) if is_unsent => audit::take_back(app, id, &version).await,
        None if !is_unsent => audit::note_late(app, id).await,
        Some(_) | None => {}
    }
    match outcome? {
        mqtt::Outcome::Rejected { reason, .. } => Err(SinkError::reject(reason.to_string())),
        _ if begun.elapsed() >= left => Err(SinkError::Expired),
        outcome => Err(SinkError::retry(format!("not acknowledged: {outcome:?}"))),
    }
}

/// Whether no broker can have it.
const fn has_no_broker(outcome: &mqtt::Outcome) -> bool {
    matches!(
        outcome,
        mqtt::Outcome::Shed
            | mqtt::Outcome::Rejected { maybe_delivered: false, .. }
            | mqtt::Outcome::Expired { maybe_delivered: false }
            | mqtt::Outcome::Undelivered { maybe_delivered: false }
    )
}

fn command_type(message: &OutgoingMessage) -> &str {
    message.headers.get(TYPE_HEADER).map_or("", String::as_str)
}

/// The last question before a command goes out.
fn may_go_out(app: &App, message: &OutgoingMessage, now: Instant) -> Result<(), SinkError> {
    let status = app.mqtt.status();
    if !status.is_connected() {
        return Err(SinkError::retry("no broker"));
    }
    if is_always_allowed(app, command_type(message)) {
        return Ok(());
    }
    let connected_for = status.since.map_or(Duration::MAX, |since| now.saturating_duration_since(since));
    if !app.plant.is_safe(now) {
        // With a broker since a moment, this instance does not know the plant; while there is time it may come to know it.
        if connected_for < SETTLES_AFTER {
            return Err(SinkError::retry("a broker only since a moment"));
        }
        return Err(SinkError::drop(NOT_SAFE));
    }
    // What was heard before the connection was lost says nothing of what happened meanwhile.
    if !app.plant.is_safe_within(now, connected_for) {
        return Err(SinkError::retry("not every device was heard since the broker is back"));
    }
    Ok(())
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
                crate::run::until_stop(stop.clone(), Box::pin(follow(&app, &relay, &mut stop))).await;
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
                Some(event) => audit::note(app, event).await,
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
    use modax_mqtt_failover::{Outcome, Reason, Rejection};

    use super::has_no_broker;

    #[test]
    fn a_refusal_says_nothing_of_an_earlier_try_that_nobody_answered() {
        let reason = Rejection::Broker(Reason::new(0x97));
        assert!(has_no_broker(&Outcome::Rejected { reason, maybe_delivered: false }));
        assert!(!has_no_broker(&Outcome::Rejected { reason, maybe_delivered: true }));
    }
}

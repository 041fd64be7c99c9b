//! From the brokers into memory and the buffer, from the buffer into the database.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use modax_db_router::WriteError;
use modax_health::Watchdog;
use modax_mqtt_failover::{Delivery, Qos, Received};
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio_postgres::error::SqlState;

use crate::{
    app::{App, unix_now, worth_a_line},
    buffer::{Item, What},
    contract::{Analysis, SafetyReport, SensorData, parse, topic},
    health::Start,
    store,
};

/// How often a batch is written that is not full: ten commits a second and layer.
const GATHER: Duration = Duration::from_millis(100);
/// How long a backlog may take to be read after a session was taken up again.
const BACKLOG: Duration = Duration::from_secs(10);
/// Pause after a batch that could not be written; the router has waited for the database before.
const PAUSE: Duration = Duration::from_millis(200);

/// Reads one of the three topics until `stop`; then keeps the subscription until it is aborted, because dropping it would tell
/// the broker to queue nothing for this instance while it restarts.
///
/// Safety reports are subscribed to with QoS 0 on purpose: a report that had to wait in a broker's queue is not
/// news, the next one comes 50 ms later, and a queue of old ones would have to be read before it.
pub async fn listen(app: Arc<App>, filter: &'static str, start: Arc<Start>, mut stop: watch::Receiver<bool>) {
    let mut is_answered = false;
    let qos = if filter == topic::SENSOR_SAFETY { Qos::AtMostOnce } else { Qos::AtLeastOnce };
    while !*stop.borrow() {
        match app.mqtt.subscribe(filter, qos).await {
            Ok(mut subscription) => {
                let mut granted = std::pin::pin!(subscription.granted());
                loop {
                    let received = tokio::select! {
                        biased;
                        _ = stop.changed() => {
                            // Whoever stops us waits for this: nothing is taken after the writer's last look.
                            drop(stop);
                            return std::future::pending().await;
                        }
                        _ = &mut granted, if !is_answered => {
                            is_answered = true;
                            start.is_answered();
                            continue;
                        }
                        received = subscription.next() => received,
                    };
                    match received {
                        Some(Received::Delivery(delivery)) => take(&app, filter, delivery),
                        Some(Received::Gap { reason }) => {
                            app.metrics.gaps.increment();
                            tracing::info!(filter, ?reason, "messages may be missing here");
                        }
                        Some(_) => {}
                        None => break,
                    }
                }
            }
            Err(error) => tracing::error!(filter, %error, "cannot subscribe"),
        }
        // Refused by the broker: an operator may mend its rights while we ask again.
        let _ = tokio::time::timeout(Duration::from_secs(1), stop.changed()).await;
    }
}

fn take(app: &App, filter: &'static str, delivery: Delivery) {
    let now = Instant::now();
    let outcome = match filter {
        topic::SENSOR_DATA => parse(delivery.payload()).map(|data| take_reading(app, data, &delivery, now)),
        // Kept by the broker since nobody knows when, perhaps by a device that is long dead: it says nothing of the plant now.
        topic::SENSOR_SAFETY if delivery.is_retained() => {
            app.metrics.safety_retained.increment();
            Ok(())
        }
        topic::SENSOR_SAFETY => parse(delivery.payload()).map(|report| take_safety(app, &report, now)),
        _ => parse(delivery.payload()).map(|analysis| take_analysis(app, &analysis)),
    };
    if let Err(error) = outcome {
        let count = app.metrics.payloads_refused.increment();
        if worth_a_line(count) {
            tracing::warn!(topic = delivery.topic(), %error, count, "payload not understood");
        }
    }
    // Also what was not understood: it would come again for ever.
    delivery.ack();
}

fn take_reading(app: &App, data: SensorData, delivery: &Delivery, now: Instant) {
    app.metrics.readings_received.increment();
    let unix = unix_now();
    let Some(heard) = app.plant.hear_reading(&data, now, unix.as_secs_f64()) else { return refuse_device(app) };
    if heard.is_news {
        if !app.windows.add(&data, unix) {
            app.metrics.windows_refused.increment();
        }
        app.tell_live("sensor_data", &data.device_id, &data);
    }
    let mut digest = [0; 16];
    for (to, from) in digest.iter_mut().zip(Sha256::digest(delivery.payload())) {
        *to = from;
    }
    let (device_id, timestamp, lateness) = (data.device_id.clone(), data.timestamp, heard.lateness);
    let what = What::Reading { data: Arc::new(data), digest };
    admit(
        app,
        Item {
            device_id,
            timestamp,
            heard_at: now,
            maybe_kept: delivery.is_retained() || maybe_kept(app),
            lateness,
            undecided_since: None,
            what,
        },
    );
}

fn take_safety(app: &App, report: &SafetyReport, now: Instant) {
    app.metrics.safety_received.increment();
    let Some(heard) = app.plant.hear_safety(report, now, unix_now().as_secs_f64()) else { return refuse_device(app) };
    if !heard.believed {
        app.metrics.safety_late.increment();
        return;
    }
    app.tell_live("safety_status", &report.device_id, &report.status);
    if heard.changed {
        let status = report.status;
        tracing::info!(device_id = report.device_id, is_safe = status.is_safe(), ?status, "safety changed");
        let (device_id, timestamp, lateness) = (report.device_id.clone(), report.timestamp, heard.lateness);
        let what = What::Safety(status);
        admit(
            app,
            Item {
                device_id,
                timestamp,
                heard_at: now,
                maybe_kept: maybe_kept(app),
                lateness,
                undecided_since: None,
                what,
            },
        );
    }
}

/// Whether the broker may have kept what comes now while this instance was away.
fn maybe_kept(app: &App) -> bool {
    let status = app.mqtt.status();
    status.session_present && status.since.is_some_and(|since| since.elapsed() < BACKLOG)
}

/// More devices than a plant has: somebody makes up names.
fn refuse_device(app: &App) {
    let count = app.metrics.devices_refused.increment();
    if worth_a_line(count) {
        tracing::error!(count, "too many devices: a message of an unknown one is dropped");
    }
}

/// An analysis that this or another control layer published.
fn take_analysis(app: &App, analysis: &Analysis) {
    if app.plant.hear_analysis(analysis, unix_now()) {
        app.tell_live("ai_analysis", &analysis.device_id, analysis);
    }
}

fn admit(app: &App, item: Item) {
    if app.buffer.push(item) {
        let count = app.metrics.readings_shed.increment();
        if worth_a_line(count) {
            tracing::error!(count, "the buffer is full: the oldest readings are shed");
        }
    }
}

/// Writes the buffer to the database until `stop` is set and nothing is left.
pub async fn write(app: Arc<App>, alive: Watchdog, stop: watch::Receiver<bool>) {
    loop {
        alive.bump();
        let stopping = *stop.borrow();
        if !stopping {
            app.buffer.gather(GATHER).await;
        }
        let batch = app.buffer.take(Instant::now(), stopping);
        if !batch.is_empty() {
            write_batch(&app, &alive, batch, &stop).await;
        } else if stopping {
            return;
        }
    }
}

/// Writes one batch, however often it takes. What the database refuses for what it holds is found by halving.
async fn write_batch(app: &App, alive: &Watchdog, batch: Vec<Item>, stop: &watch::Receiver<bool>) {
    let mut parts = vec![batch];
    let mut failures = 0_u64;
    while let Some(part) = parts.pop() {
        alive.bump();
        let part = Arc::new(part);
        let decide = *stop.borrow();
        match store::store(&app.router, &app.instance_id, &part, decide).await {
            Ok(stored) => {
                if failures > 0 {
                    tracing::info!(failures, waiting = app.buffer.len(), "readings are stored again");
                    failures = 0;
                }
                settle(app, &part, &stored);
                app.buffer.done(part.len());
            }
            Err(WriteError::Statement(error)) if is_about_data(&error) => {
                let mut part = Arc::unwrap_or_clone(part);
                if part.len() > 1 {
                    let rest = part.split_off(part.len() / 2);
                    parts.extend([rest, part]);
                    continue;
                }
                let count = app.metrics.rows_refused.increment();
                let device_id = part.first().map(|item| item.device_id.as_str());
                tracing::error!(device_id, %error, count, "the database refuses a reading");
                app.buffer.done(1);
            }
            Err(error) => {
                app.metrics.batch_retries.increment();
                failures += 1;
                if worth_a_line(failures) {
                    tracing::warn!(%error, failures, waiting = app.buffer.len(), "readings wait for the database");
                }
                parts.push(Arc::unwrap_or_clone(part));
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

fn settle(app: &App, part: &Arc<Vec<Item>>, stored: &store::Stored) {
    app.metrics.readings_stored.add(stored.rows);
    app.metrics.readings_copies.add(stored.copies);
    app.metrics.boots_found.add(stored.boots);
    if stored.possibly_twice > 0 {
        let count = app.metrics.readings_possibly_twice.add(stored.possibly_twice);
        tracing::warn!(readings = stored.possibly_twice, count, "readings may be stored under two boots");
    }
    let now = Instant::now();
    app.buffer.wait_for_patience(stored.undecided.iter().filter_map(|position| {
        let item = part.get(*position)?.clone();
        Some(Item { undecided_since: item.undecided_since.or(Some(now)), ..item })
    }));
}

/// Data exceptions (class 22) and integrity violations (class 23): this row will never fit. Everything else may pass.
fn is_about_data(error: &tokio_postgres::Error) -> bool {
    error.code().is_some_and(is_of_the_row)
}

/// Not so a check violation (23514): a row for a day whose partition another instance is just attaching meets one, and passes
/// the next time. No check of the tables depends on what a reading holds.
fn is_of_the_row(state: &SqlState) -> bool {
    (state.code().starts_with("22") || state.code().starts_with("23")) && *state != SqlState::CHECK_VIOLATION
}

#[cfg(test)]
mod tests {
    use super::{SqlState, is_of_the_row};

    #[test]
    fn a_row_is_dropped_for_what_it_holds_and_not_because_its_partition_is_being_attached() {
        for (code, expected) in [("22003", true), ("22P05", true), ("23502", true), ("23514", false), ("40001", false)]
        {
            assert_eq!(is_of_the_row(&SqlState::from_code(code)), expected, "{code}");
        }
    }
}

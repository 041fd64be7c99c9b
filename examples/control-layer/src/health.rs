//! What this instance says of itself.
//!
//! `mqtt` and `database` are needed, and shared by all instances: their loss makes `/health` answer 503 and
//! readiness merely degraded, because taking all instances out would help nobody. The AI layer is advisory. Private
//! to an instance are its start (`started`: the tables are there, and a broker has answered each subscription once: an
//! instance that does not hear the plant yet is no help) and its writer's life. Brokers and database must have been seen once
//! for the start, too: who has waited for `/ready` is not told by `/health` that they are away.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use modax_health::{CheckConfig, CheckError, ConfigError, Need, Prober, Registry, Scope, Watchdog};

use crate::{app::App, contract::topic, state::MAX_DEVICES};

/// Longest turn of the writer that is no reason for a restart: it waits for the database in rounds of ten seconds, and at the
/// start once for the migration of the outbox.
const WRITER_LIMIT: Duration = Duration::from_secs(90);
const _: () = assert!(
    WRITER_LIMIT.as_secs() > modax_txn::MIGRATE_DEADLINE.as_secs(),
    "a migration that waits for another instance's is no reason for a restart"
);

/// The start of this instance: what has to have worked once.
#[derive(Debug, Default)]
pub struct Start {
    /// The tables are there.
    tables: AtomicBool,
    /// Subscriptions that a broker has answered. A refusal is an answer: rights that are wrong for all instances must
    /// not take all of them out.
    subscriptions: AtomicUsize,
}

impl Start {
    /// The tables are there.
    pub fn has_tables(&self) {
        self.tables.store(true, Ordering::Relaxed);
    }

    /// A broker has answered one more subscription.
    pub fn is_answered(&self) {
        self.subscriptions.fetch_add(1, Ordering::Relaxed);
    }

    fn lacks(&self) -> Option<&'static str> {
        if !self.tables.load(Ordering::Relaxed) {
            return Some("waiting for the database");
        }
        let answered = self.subscriptions.load(Ordering::Relaxed);
        (answered < topic::SUBSCRIBED.len()).then_some("waiting for a broker's subscriptions")
    }
}

/// The watchdog of the writer, to be bumped by it.
pub fn writer_watchdog() -> Watchdog {
    Watchdog::new("writer", WRITER_LIMIT)
}

/// All checks of this instance. Inside a tokio runtime.
///
/// # Errors
/// A rule that contradicts itself.
pub fn registry(
    app: &Arc<App>,
    start: &Arc<Start>,
    writer: &Watchdog,
    http: &reqwest::Client,
) -> Result<Registry, ConfigError> {
    let started = Arc::clone(start);
    let starting = CheckConfig::new("started", move || {
        let started = Arc::clone(&started);
        async move { started.lacks().map_or(Ok(()), |what| Err(CheckError::public(what))) }
    })
    .startup_gate(true)
    .interval(Duration::from_millis(250))
    .rise(1);
    let brokers = Arc::clone(app);
    let mqtt = CheckConfig::new("mqtt", move || {
        let app = Arc::clone(&brokers);
        async move {
            if app.mqtt.status().is_connected() { Ok(()) } else { Err(CheckError::public("no broker is connected")) }
        }
    })
    .scope(Scope::Shared)
    .startup_gate(true)
    .rise(1)
    .interval(Duration::from_millis(500));
    let nodes = Arc::clone(app);
    let database = CheckConfig::new("database", move || {
        let app = Arc::clone(&nodes);
        async move {
            let connection = app
                .router
                .primary_within(Duration::from_millis(900))
                .await
                .map_err(|error| CheckError::public("no primary is reached").with_detail(error))?;
            connection.simple_query("SELECT 1").await.map_err(CheckError::from)?;
            Ok::<(), CheckError>(())
        }
    })
    .scope(Scope::Shared)
    .startup_gate(true)
    .rise(1)
    .interval(Duration::from_secs(1));
    let drain = app.config.drain_time;
    let prober = Prober { interval: drain, timeout: Duration::ZERO, fall: 1, rise: 1 };
    let builder = Registry::builder()
        .check(starting)
        .check(mqtt)
        .check(database)
        .check(devices(app))
        .watchdog(writer)
        .prober(prober);
    let builder = if app.config.ai_enabled { builder.check(ai_layer(app, http)) } else { builder };
    builder.build()
}

/// Says that there are more devices than the plant's memory takes: what the others report is acknowledged, and lost.
fn devices(app: &Arc<App>) -> CheckConfig {
    let app = Arc::clone(app);
    CheckConfig::new("devices", move || {
        let app = Arc::clone(&app);
        async move { if app.plant.has_refused() { Err(CheckError::public(too_many_devices())) } else { Ok(()) } }
    })
    .need(Need::Optional)
    .fall(1)
    .rise(1)
    .interval(Duration::from_secs(1))
}

fn too_many_devices() -> String {
    format!("more than {MAX_DEVICES} devices: others are not stored; not safe until there are fewer and a restart")
}

fn ai_layer(app: &Arc<App>, http: &reqwest::Client) -> CheckConfig {
    let (url, http) = (format!("{}/health", app.config.ai_layer_url), http.clone());
    CheckConfig::new("ai_layer", move || {
        let (url, http) = (url.clone(), http.clone());
        async move {
            let answer = http.get(url).send().await.map_err(|error| CheckError::private(error.without_url()))?;
            if answer.status().is_success() { Ok(()) } else { Err(CheckError::public("answers, but is not healthy")) }
        }
    })
    .need(Need::Optional)
    .scope(Scope::Shared)
    .interval(Duration::from_secs(1))
}

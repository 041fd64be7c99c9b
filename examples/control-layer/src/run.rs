//! One instance from start to stop.

use std::{
    io::ErrorKind,
    sync::Arc,
    time::{Duration, Instant},
};

use modax_db_router::ReadPreference;
use modax_health::Registry;
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
    task::JoinHandle,
};

use crate::{
    analysis,
    api::{self, Api},
    app::App,
    commands::Audits,
    config::{BadSetting, Config},
    contract::topic,
    health::{self, Start},
    ingest,
    logs::LAST_LINES,
    relay, schema,
    serve::{Limits, serve},
    state::Listed,
};

/// How often the list of devices is read again: a device taken out elsewhere is forgotten, one heard elsewhere is known.
const LIST_EVERY: Duration = Duration::from_secs(1);
/// How often partitions are made ahead.
const PARTITIONS_EVERY: Duration = Duration::from_secs(6 * 3600);
/// Pause between two tries of something that the start needs.
const RETRY_EVERY: Duration = Duration::from_millis(500);
/// Longest time for each step of the stop after the drain, but for what is written.
const STEP: Duration = Duration::from_secs(4);
/// From the signal on, what was taken and is not in the database is tried again for so long: a failover or a lock may be over
/// by then. With the two farewells after it (half a [`STEP`] each) and the last log lines all together stays below the 30 s that
/// an orchestrator waits before it kills. Where the drain (default 5 s) has left less than a [`STEP`] of it, it is a [`STEP`]:
/// with a `DRAIN_TIME` above 12 s the orchestrator must wait for longer, too.
const WRITES_FOR: Duration = Duration::from_secs(24);
const _: () =
    assert!(WRITES_FOR.as_secs() + STEP.as_secs() + LAST_LINES.as_secs() < 30, "an orchestrator kills after 30 s");

/// Why the instance did not start or did not stop in order.
#[derive(Debug)]
pub enum RunError {
    /// A variable cannot work.
    Setting(BadSetting),
    /// The HTTP port cannot be had, or the operating system refuses something else.
    Io(std::io::Error),
    /// It stopped, and something that it had taken is in no database; the log says what.
    Lost,
}

impl From<BadSetting> for RunError {
    fn from(error: BadSetting) -> Self {
        Self::Setting(error)
    }
}

impl From<std::io::Error> for RunError {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error)
    }
}

/// Runs `work` on a runtime of its own and does not wait for what it leaves there: a name that is being resolved blocks its
/// thread for as long as the resolver likes.
///
/// # Errors
/// There is no runtime.
pub fn to_the_end<T>(work: impl Future<Output = T>) -> std::io::Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let done = runtime.block_on(work);
    runtime.shutdown_background();
    Ok(done)
}

/// Leaves `work` where it is once `stop` is set.
///
/// # Cancel safety
/// As `work`.
pub async fn until_stop(mut stop: watch::Receiver<bool>, work: impl Future<Output = ()>) {
    tokio::select! {
        () = work => {}
        _ = stop.wait_for(|stop| *stop) => {}
    }
}

/// Runs until SIGTERM or SIGINT, then drains and stops. A second signal shortens the drain.
///
/// # Errors
/// [`RunError`]: nothing was served, or what was taken could not be written before the stop.
///
/// # Cancel safety
/// Not meant to be dropped: it is the process.
pub async fn run(config: Config) -> Result<(), RunError> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // Before anything is said to start: a place that cannot be had is a setting, too.
    let listener = listen(&config).await?;
    let app = Arc::new(App::new(config)?);
    tracing::info!(config = ?app.config, "starting");
    let http = reqwest::Client::builder()
        .timeout(app.config.ai_layer_timeout)
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .build()
        .map_err(|error| BadSetting::new("AI_LAYER_URL", error))?;
    let start = Arc::new(Start::default());
    let writer = health::writer_watchdog();
    let registry =
        health::registry(&app, &start, &writer, &http).map_err(|error| BadSetting::new("DRAIN_TIME", error))?;
    let (closing, closed) = watch::channel(false);
    let audits = Arc::new(Audits::default());
    let routes = api::router(Api {
        app: Arc::clone(&app),
        registry: registry.clone(),
        audits: Arc::clone(&audits),
        closing: closed.clone(),
    });
    tracing::info!(addr = %listener.local_addr()?, "listening");
    let server = tokio::spawn(serve(listener, routes, Limits::default(), closed));
    let parts = Parts::start(&app, &start, writer, http, &audits);

    stop_is_asked(&mut terminate, &mut interrupt).await;
    let written_until = tokio::time::Instant::now() + WRITES_FOR;
    tracing::info!("draining");
    drain(&registry, &mut terminate, &mut interrupt).await;
    let _ = closing.send(true);
    if tokio::time::timeout(STEP, server).await.is_err() {
        tracing::warn!("connections were cut");
    }
    let hurried = async {
        stop_is_asked(&mut terminate, &mut interrupt).await;
        tracing::info!("what is not written soon is given up");
    };
    let is_written = parts.stop(&app, &audits, written_until, hurried).await;
    tracing::info!("stopped");
    if is_written { Ok(()) } else { Err(RunError::Lost) }
}

/// Takes the address; an error names the one variable that must change.
async fn listen(config: &Config) -> Result<TcpListener, BadSetting> {
    let host = |error| BadSetting::new("API_HOST", error);
    let mut addresses = tokio::net::lookup_host((config.api_host.as_str(), config.api_port))
        .await
        .map_err(|error| host(error.to_string()))?;
    let address = addresses.next().ok_or_else(|| host("has no address".to_owned()))?;
    TcpListener::bind(address).await.map_err(|error| match error.kind() {
        ErrorKind::AddrInUse | ErrorKind::PermissionDenied => {
            BadSetting::new("API_PORT", format!("cannot listen on {}: {error}", config.api_port))
        }
        _ => host(format!("cannot listen there: {error}")),
    })
}

async fn stop_is_asked(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

async fn drain(registry: &Registry, terminate: &mut Signal, interrupt: &mut Signal) {
    let drained = registry.drain();
    tokio::pin!(drained);
    tokio::select! {
        _ = &mut drained => return,
        () = stop_is_asked(terminate, interrupt) => registry.hurry(),
    }
    drained.await;
}

/// The tasks of an instance, by the order in which they stop.
struct Parts {
    listeners: Vec<JoinHandle<()>>,
    stop_sources: watch::Sender<bool>,
    sources: Vec<JoinHandle<()>>,
    stop_sinks: watch::Sender<bool>,
    sinks: Vec<JoinHandle<()>>,
    writers: Vec<JoinHandle<()>>,
    rest: Vec<JoinHandle<()>>,
}

impl Parts {
    fn start(
        app: &Arc<App>,
        start: &Arc<Start>,
        writer: modax_health::Watchdog,
        http: reqwest::Client,
        audits: &Arc<Audits>,
    ) -> Self {
        let (stop_sources, sources_stop) = watch::channel(false);
        let (stop_sinks, sinks_stop) = watch::channel(false);
        let listen =
            |filter| tokio::spawn(ingest::listen(Arc::clone(app), filter, Arc::clone(start), sources_stop.clone()));
        let listeners = topic::SUBSCRIBED.into_iter().map(listen).collect();
        let mut sources = Vec::new();
        if app.config.ai_enabled {
            sources.push(tokio::spawn(analysis::run(Arc::clone(app), http, sources_stop.clone())));
        }
        let auditor = {
            let (app, audits, stop) = (Arc::clone(app), Arc::clone(audits), sinks_stop.clone());
            tokio::spawn(async move { audits.run(&app, stop).await })
        };
        let writers = vec![
            tokio::spawn(prepare_then_write(Arc::clone(app), Arc::clone(start), writer, sinks_stop.clone())),
            auditor,
        ];
        let sinks = vec![
            tokio::spawn(relay::run(Arc::clone(app), sinks_stop.clone())),
            tokio::spawn(relay::reconcile(Arc::clone(app), sinks_stop)),
        ];
        let rest = vec![
            tokio::spawn(relay::log_mqtt(Arc::clone(app))),
            tokio::spawn(relay::log_database(Arc::clone(app))),
            tokio::spawn(list_devices(Arc::clone(app))),
        ];
        Self { listeners, stop_sources, sources, stop_sinks, sinks, writers, rest }
    }

    /// Stops taking, writes what was taken, gives the lease back, says goodbye. Each step has its deadline. Answers whether
    /// everything that was taken is written.
    async fn stop(
        self,
        app: &App,
        audits: &Audits,
        written_until: tokio::time::Instant,
        hurried: impl Future<Output = ()>,
    ) -> bool {
        let step = || tokio::time::Instant::now() + STEP;
        let _ = self.stop_sources.send(true);
        finish("sources", self.sources, step()).await;
        if tokio::time::timeout(STEP, self.stop_sources.closed()).await.is_err() {
            tracing::warn!("a listener did not stop in time");
        }
        let _ = self.stop_sinks.send(true);
        let written_until = written_until.max(step());
        let mut writers = std::pin::pin!(finish("writers", self.writers, written_until));
        let written = async {
            tokio::select! {
                () = &mut writers => {}
                () = hurried => {
                    let _ = tokio::time::timeout(STEP, writers).await;
                }
            }
        };
        tokio::join!(finish("sinks", self.sinks, step()), written);
        let (readings, refusals) = (app.buffer.len(), audits.waiting());
        let is_written = readings == 0 && refusals == 0;
        if !is_written {
            tracing::error!(
                readings_and_safety_changes = readings,
                audits_of_refused_commands = refusals,
                "not written: the database did not take them in time; of the readings another instance may have copies"
            );
            audits.give_up(app);
        }
        let left = app.mqtt.close(STEP / 2).await;
        for listener in self.listeners {
            listener.abort();
        }
        if !left.undelivered.is_empty() {
            tracing::warn!(messages = left.undelivered.len(), "messages were not delivered; the outbox has them");
        }
        app.router.close(STEP / 2).await;
        for task in self.rest {
            task.abort();
        }
        is_written
    }
}

async fn finish(what: &str, tasks: Vec<JoinHandle<()>>, until: tokio::time::Instant) {
    for mut task in tasks {
        if tokio::time::timeout_at(until, &mut task).await.is_err() {
            task.abort();
            tracing::warn!(what, "a part did not stop in time");
        }
    }
}

/// Makes the tables, however long that takes, then writes; partitions are made ahead by a task beside it.
async fn prepare_then_write(
    app: Arc<App>,
    start: Arc<Start>,
    writer: modax_health::Watchdog,
    stop: watch::Receiver<bool>,
) {
    tokio::select! {
        () = prepare(&app, &writer) => {}
        () = nothing_to_write(&app, stop.clone()) => return,
    }
    start.has_tables();
    tracing::info!("the tables are ready");
    let partitions = {
        let app = Arc::clone(&app);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(PARTITIONS_EVERY).await;
                match schema::make_partitions(&app.router).await {
                    Ok(made) => tracing::info!(made, "partitions"),
                    Err(error) => tracing::warn!(%error, "partitions were not made ahead"),
                }
            }
        })
    };
    ingest::write(app, writer, stop).await;
    partitions.abort();
}

async fn prepare(app: &App, writer: &modax_health::Watchdog) {
    let mut failures = 0_u64;
    while let Err(error) = schema::prepare(&app.router, &app.outbox_schema, || writer.bump()).await {
        writer.bump();
        failures += 1;
        if !error.is_transient() {
            tracing::error!(%error, "the tables cannot be used; waiting for somebody to mend them");
        } else if crate::app::worth_a_line(failures) {
            tracing::warn!(%error, failures, "the tables are not ready");
        }
        tokio::time::sleep(RETRY_EVERY).await;
    }
}

/// Returns once the instance stops and holds nothing that needs the tables.
async fn nothing_to_write(app: &App, mut stop: watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
    while !app.buffer.is_empty() {
        tokio::time::sleep(RETRY_EVERY).await;
    }
}

/// Reads the list of devices again and again. Its failure changes nothing: what is known stays known.
async fn list_devices(app: Arc<App>) {
    let mut tick = tokio::time::interval(LIST_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut listed_once = false;
    let mut refusals = 0_u64;
    loop {
        tick.tick().await;
        let rows = app
            .router
            .read(ReadPreference::Primary)
            .deadline(Duration::from_secs(2))
            .query(
                "SELECT device_id, (extract(epoch FROM clock_timestamp() - removed_at) * 1000)::bigint FROM devices",
                &[],
            )
            .await;
        match rows {
            Ok(rows) => {
                let listed: Vec<Listed> = rows
                    .rows
                    .iter()
                    .map(|row| Listed {
                        device_id: row.get(0),
                        removed: row
                            .get::<_, Option<i64>>(1)
                            .map(|age| Duration::from_millis(age.max(0).unsigned_abs())),
                    })
                    .collect();
                let refused = app.plant.list(&listed, Instant::now());
                app.metrics.devices_refused.add(refused);
                refusals += u64::from(refused > 0);
                if refused > 0 && crate::app::worth_a_line(refusals) {
                    tracing::error!(
                        refused,
                        "too many devices are listed: not safe until there are fewer and a restart"
                    );
                }
                listed_once = true;
            }
            Err(error) if !listed_once => tracing::debug!(%error, "the list of devices is not known yet"),
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc::channel, time::Duration};

    use super::{to_the_end, until_stop, watch};

    #[tokio::test]
    async fn a_stop_does_not_wait_for_work_that_hangs() {
        let (stop, stopped) = watch::channel(false);
        let hangs = async {
            stop.send_replace(true);
            std::future::pending::<()>().await;
        };
        let ended = tokio::time::timeout(Duration::from_secs(20), until_stop(stopped, hangs)).await;
        assert_eq!(ended, Ok(()));
    }

    #[test]
    fn the_end_does_not_wait_for_a_thread_that_hangs() {
        let ((release, hangs), (begun, has_begun), (done, is_done)) = (channel::<()>(), channel(), channel());
        std::thread::spawn(move || {
            let ended = to_the_end(async move {
                tokio::task::spawn_blocking(move || {
                    let _ = begun.send(());
                    let _ = hangs.recv();
                });
                let _ = has_begun.recv();
            });
            let _ = done.send(ended.is_ok());
        });

        let ended = is_done.recv_timeout(Duration::from_secs(20));
        drop(release);
        assert_eq!(ended, Ok(true));
    }
}

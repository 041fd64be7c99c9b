//! MODAX's AI layer: advice about windows of readings. It decides nothing, and any instance may answer.
//!
//! Environment: `API_HOST` (default `0.0.0.0`), `API_PORT` (8001; 0 takes any free port), `INSTANCE_ID` (a random one),
//! `DRAIN_TIME` (5 s), `RUST_LOG` (`info`). A value that cannot work stops the start with one line that names it, exit
//! code 2. SIGTERM drains (`/ready` 503 first), then stops with exit code 0; a second signal shortens the drain.

mod analysis;
mod api;
mod baseline;
mod config;
// The control layer's own files: what a log's reader and an HTTP client may hold up is the same for both.
#[path = "../../control-layer/src/logs.rs"]
#[expect(unreachable_pub, reason = "the control layer is a library as well")]
mod logs;
mod request;
#[path = "../../control-layer/src/serve.rs"]
#[expect(unreachable_pub, reason = "the control layer is a library as well")]
mod serve;
mod wear;

use std::{
    io::{ErrorKind, Write as _},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use modax_health::{CheckConfig, Prober, Registry};
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
};

use crate::{
    api::App,
    config::{BadSetting, Config},
    logs::Logs,
    serve::{Limits, serve},
};

/// Exit code for a value of the environment that cannot work.
const BAD_SETTING: u8 = 2;
/// Longest time for requests in flight after the drain; longer than any answer takes.
const LAST_ANSWERS: Duration = Duration::from_secs(4);

const USAGE: &str = "ai-layer: MODAX's AI layer. It takes no arguments; it is configured by its environment: API_HOST, API_PORT, INSTANCE_ID, DRAIN_TIME, RUST_LOG.";

fn main() -> ExitCode {
    if let Some(argument) = std::env::args_os().nth(1) {
        let asked = argument == "--help" || argument == "-h";
        return fail(if asked { 0 } else { BAD_SETTING }, USAGE);
    }
    let config = match Config::from_env() {
        Ok(config) => config,
        Err(error) => return fail(BAD_SETTING, &error.to_string()),
    };
    let filter = match tracing_subscriber::EnvFilter::try_new(&config.log_filter) {
        Ok(filter) => filter,
        Err(error) => return fail(BAD_SETTING, &BadSetting::new("RUST_LOG", error).to_string()),
    };
    let logs = match Logs::start(filter) {
        Ok(logs) => logs,
        Err(error) => return fail(1, &format!("no thread for the log: {error}")),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(1, &format!("no runtime: {error}")),
    };
    let ended = runtime.block_on(run(config));
    // A thread that resolves a name may hang.
    runtime.shutdown_background();
    logs.finish();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(RunError::Setting(error)) => fail(BAD_SETTING, &error.to_string()),
        Err(RunError::Io(error)) => fail(1, &format!("cannot serve: {error}")),
    }
}

fn fail(code: u8, line: &str) -> ExitCode {
    // Nobody may be reading; the exit code says the rest.
    let _ = writeln!(std::io::stderr(), "{line}");
    ExitCode::from(code)
}

/// Why the instance did not serve.
enum RunError {
    Setting(BadSetting),
    Io(std::io::Error),
}

impl From<std::io::Error> for RunError {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error)
    }
}

async fn run(config: Config) -> Result<(), RunError> {
    // Before anything slow: a signal during the start is not lost.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut addresses = tokio::net::lookup_host((config.api_host.as_str(), config.api_port))
        .await
        .map_err(|error| RunError::Setting(BadSetting::new("API_HOST", error)))?;
    let address = addresses.next().ok_or_else(|| RunError::Setting(BadSetting::new("API_HOST", "has no address")))?;
    let listener = TcpListener::bind(address).await.map_err(|error| {
        let is_the_port = matches!(error.kind(), ErrorKind::AddrInUse | ErrorKind::PermissionDenied);
        let name = if is_the_port { "API_PORT" } else { "API_HOST" };
        RunError::Setting(BadSetting::new(name, format!("cannot listen on {address}: {error}")))
    })?;
    tracing::info!(addr = %listener.local_addr()?, instance_id = config.instance_id, "listening");

    let registry = Registry::builder()
        .check(CheckConfig::new("analysis", || async { analysis::self_test() }))
        .prober(prober(config.drain_time))
        .build()
        .map_err(|error| RunError::Setting(BadSetting::new("DRAIN_TIME", error)))?;
    let app = Arc::new(App::new(config.instance_id.clone()));
    let routes = api::router(app, &registry);
    let (closing, closed) = watch::channel(false);
    let mut server = tokio::spawn(serve(listener, routes, Limits::default(), closed));
    tokio::select! {
        () = asked_to_stop(&mut terminate, &mut interrupt) => {}
        ended = &mut server => return Err(RunError::Io(std::io::Error::other(format!("the server ended: {ended:?}")))),
    }
    tracing::info!("draining");
    drain(&registry, &mut terminate, &mut interrupt).await;
    let _ = closing.send(true);
    if tokio::time::timeout(LAST_ANSWERS, server).await.is_err() {
        tracing::warn!("connections were cut");
    }
    tracing::info!("stopped");
    Ok(())
}

/// A prober for which the drain takes exactly the time that was asked for.
fn prober(drain: Duration) -> Prober {
    Prober { interval: drain, timeout: Duration::ZERO, fall: 1, rise: 1 }
}

async fn asked_to_stop(terminate: &mut Signal, interrupt: &mut Signal) {
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
        () = asked_to_stop(terminate, interrupt) => registry.hurry(),
    }
    drained.await;
}

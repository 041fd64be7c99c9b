//! An axum server that a load balancer can trust: `cargo run -p modax-health --features axum --example server`.
//!
//! Then ask `curl -i localhost:8080/ready`, `/health`, `/ready?verbose`, `/metrics`; remove the file it looks at
//! (`/tmp/modax-health-example`) or make it again; press Ctrl-C once to drain, twice to hurry.

use std::time::Duration;

use axum::{Router, routing::get};
use modax_health::{CheckConfig, Need, Prober, Registry, Scope, Watchdog};
use tokio::net::TcpListener;

const FILE: &str = "/tmp/modax-health-example";

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    std::fs::write(FILE, "")?;
    let worker = Watchdog::new("worker", Duration::from_secs(10));
    let registry = Registry::builder()
        // A dependency all instances share: its loss degrades, it never takes this instance out.
        .check(CheckConfig::new("file", || async { tokio::fs::metadata(FILE).await.map(drop) }).scope(Scope::Shared))
        // One that may hold its thread, on a thread of its own; the service can do without.
        .check(
            CheckConfig::blocking("name", || std::fs::read_to_string("/etc/hostname").map(drop)).need(Need::Optional),
        )
        // A loop whose death only a restart would cure.
        .watchdog(&worker)
        // How our balancer probes: every 500 ms, out after two failures.
        .prober(Prober { interval: Duration::from_millis(500), timeout: Duration::from_millis(400), fall: 2, rise: 2 })
        .build()?;
    println!("bounds: {:#?}", registry.bounds());

    tokio::spawn(async move {
        loop {
            worker.bump();
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });
    let mut events = registry.events();
    tokio::spawn(async move {
        while let Some(event) = events.next().await {
            println!("{event:?}");
        }
    });

    let app = Router::new().route("/", get(|| async { "at your service\n" }));
    let app = app.merge(modax_health::axum::router(registry.clone()));
    let listener = TcpListener::bind("127.0.0.1:8080").await?;
    println!("http://{}", listener.local_addr()?);
    axum::serve(listener, app).with_graceful_shutdown(leave(registry)).await?;
    Ok(())
}

/// Returns when the balancer has surely stopped sending; a second Ctrl-C shortens the wait.
async fn leave(registry: Registry) {
    let _ = tokio::signal::ctrl_c().await;
    tokio::select! {
        report = registry.drain() => println!("drained: {report:?}"),
        _ = tokio::signal::ctrl_c() => registry.hurry(),
    }
}

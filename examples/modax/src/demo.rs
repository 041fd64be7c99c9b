//! `modax up` and `modax demo`: all of MODAX on one machine, to play with or to break.

mod cluster;
mod direct;
mod haproxy;
mod http;
mod load;
mod logs;
mod nats;
mod operator;
mod probe;
mod progress;
mod record;
mod scenario;
mod verdict;
mod watch;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use modax_testbed::Ground;
use modax_testbed::device::{Device, DeviceConfig};
use serde_json::json;
use tokio::time::timeout;

use self::cluster::{Cluster, Failure};
use self::http::Http;
use self::operator::Operator;
use self::progress::Progress;
use self::record::Record;
use self::scenario::Stage;
use self::verdict::Mark;
use self::watch::{Eye, Watch};
use crate::Exit;
use crate::args::{DemoArgs, LayerArgs};
use crate::output::{self, Output};
use crate::report::{Report, Totals, html};
use crate::signal::Interrupt;

/// Simulated devices: as many as stand on one line of a plant.
const DEVICES: usize = 4;
/// Everything, also on a machine that has to bring the servers first. A healthy run takes less than 5 minutes.
const WHOLE_RUN: Duration = Duration::from_secs(900);
/// What waits in the devices is delivered within this after the last scenario.
const DRAIN: Duration = Duration::from_secs(20);

/// Brings everything up and leaves it to the user until a signal.
pub(crate) async fn up(args: LayerArgs, output: Output) -> Exit {
    let Ok(mut interrupt) = Interrupt::listen() else { return Exit::Failed };
    let Ok(ground) = Ground::start().await.map_err(|error| failed(&error.into())) else { return Exit::Failed };
    let play = async {
        let http = Http::new()?;
        output::event("starting", json!({ "logs": ground.dir().display().to_string() }));
        let cluster = Cluster::start(ground.clone(), &args, &http).await?;
        let _devices = devices(&cluster).await?;
        output.line(&cluster.addresses()).await.map_err(|_| "stdout was closed")?;
        std::future::pending::<Result<(), Failure>>().await
    };
    let exit = tokio::select! {
        ended = play => ended.map_or_else(|error| failed(&error), |()| Exit::Done),
        () = interrupt.wait() => Exit::Done,
    };
    ground.stop().await;
    exit
}

/// Breaks everything in six ways and reports what came of it.
pub(crate) async fn run(args: DemoArgs, _output: Output) -> Exit {
    // Now, and not after five minutes that nobody will read of.
    if let Err(error) = std::fs::create_dir_all(&args.out) {
        output::event("bad_usage", json!({ "error": format!("--out: {}: {error}", args.out.display()) }));
        return Exit::Usage;
    }
    let Ok(mut interrupt) = Interrupt::listen() else { return Exit::Failed };
    let Ok(ground) = Ground::start().await.map_err(|error| failed(&error.into())) else { return Exit::Failed };
    let exit = tokio::select! {
        ended = timeout(WHOLE_RUN, play(&args, ground.clone())) => match ended {
            Ok(Ok(true)) => Exit::Done,
            Ok(Ok(false)) => Exit::Failed,
            Ok(Err(error)) => failed(&error),
            Err(_) => failed(&format!("not at the end within {} s", WHOLE_RUN.as_secs()).into()),
        },
        () = interrupt.wait() => failed(&"interrupted".into()),
    };
    if exit != Exit::Done {
        keep_logs(ground.dir(), &args.out.join("logs"));
    }
    ground.stop().await;
    exit
}

fn failed(error: &Failure) -> Exit {
    output::event("failed", json!({ "error": output::chain(error.as_ref()) }));
    Exit::Failed
}

/// Four devices whose preferred brokers are spread over the cluster.
async fn devices(cluster: &Cluster) -> Result<Vec<Device>, Failure> {
    let mut devices = Vec::new();
    for index in 0..DEVICES {
        let mut brokers = cluster.nats.urls();
        let shift = index % brokers.len();
        brokers.rotate_left(shift);
        // A clean session costs a broker cluster a new consumer at each connection, whose leader may be the very node that
        // was cut off: then the broker holds the connection up for seconds. What waits in a kept one expires.
        let config = DeviceConfig {
            clean_session: false,
            ..DeviceConfig::new(format!("ESP32_FIELD_{:03}", index + 1), brokers)
        };
        devices.push(Device::start(config).await?);
    }
    Ok(devices)
}

/// The run itself; true when every bound held and nothing was lost or doubled.
async fn play(args: &DemoArgs, ground: Ground) -> Result<bool, Failure> {
    let record = Record::start();
    let progress = Progress::new(record.clone());
    let http = Http::new()?;
    progress.say("bringing up 3 brokers, 3 databases, a load balancer, 2 control layers and 2 AI layers");
    let cluster = Arc::new(Cluster::start(ground, &args.layers, &http).await?);
    let devices = Arc::new(devices(&cluster).await?);
    let watch = Watch::start(Eye {
        cluster: cluster.clone(),
        devices: devices.clone(),
        http: http.clone(),
        record: record.clone(),
        progress: progress.clone(),
    });
    let operator = Operator::start(http.clone(), &cluster.control_url, record.clone());
    let stage = Stage { cluster, devices, http, record: record.clone(), progress: progress.clone(), operator };
    stage.whole().await?;
    progress.say("everything runs: 4 devices measure, an operator commands");

    let (mut report, mut marks) = (Report::default(), Vec::new());
    for number in 0..scenario::COUNT {
        if !args.only.is_empty() && !args.only.iter().any(|chosen| usize::from(*chosen) == number + 1) {
            continue;
        }
        let made = stage.devices.iter().map(|device| (device.id().to_owned(), device.status().made)).collect();
        marks.push(Mark { made, issued: stage.operator.issued() });
        let (row, requests) = stage.run(number).await?;
        report.scenarios.push(row);
        report.totals.requests += requests;
    }
    finish(stage, watch, report, &marks, &args.out).await
}

/// Stops the plant, judges, writes the report.
async fn finish(stage: Stage, watch: Watch, mut report: Report, marks: &[Mark], out: &Path) -> Result<bool, Failure> {
    let Stage { cluster, devices, record, progress, operator, .. } = stage;
    progress.say("stopping the devices, counting what arrived");
    let log = operator.stop().await;
    // The watch holds the other handle on the devices.
    drop(watch);
    let mut logs = Vec::new();
    let devices = until_alone(devices).await?;
    for device in devices {
        logs.push(device.finish(DRAIN).await);
    }
    let verdict = verdict::judge(&cluster.patroni.url(), &logs, &log).await?;
    if !verdict.readings.duplicated.is_empty() {
        std::fs::create_dir_all(out)?;
        std::fs::write(out.join("doubled.txt"), verdict::doubled(&cluster.patroni.url()).await?)?;
    }
    let totals = Totals { requests: report.totals.requests + log.requests, seconds: record.now(), ..Totals::default() };
    report.totals = totals;
    for row in &report.scenarios {
        report.totals.counts.failed_requests += row.counts.failed_requests;
        report.totals.counts.refused_unsafe += row.counts.refused_unsafe;
    }
    report.lanes = record.lanes();
    report.series = vec![
        record.series(watch::READINGS, "Readings confirmed", "to the devices, each second"),
        record.series(watch::COMMANDS, "Commands accepted", "each second"),
    ];
    report.settings = settings();
    if let Some(odd) = log.odd.first() {
        report.broken.push(format!("{} answers nobody expected, the first: {odd}", log.odd.len()));
    }
    verdict.enter(&mut report, marks);
    write(&report, out)?;
    progress.print(&format!("\n{}\n", report.table()));
    progress.print(&format!(
        "{}: {} readings owed, {} lost; {} commands accepted, {} acted on{}; {}\n",
        if report.passed() { "passed" } else { "NOT PASSED" },
        report.totals.readings_owed,
        report.totals.counts.lost,
        report.totals.commands_accepted,
        report.totals.commands_acted,
        report.not_acted(),
        out.join("report.html").display(),
    ));
    Ok(report.passed())
}

/// The devices, once nobody else holds them.
async fn until_alone(devices: Arc<Vec<Device>>) -> Result<Vec<Device>, Failure> {
    let mut shared = devices;
    for _ in 0..100 {
        match Arc::try_unwrap(shared) {
            Ok(devices) => return Ok(devices),
            Err(still) => shared = still,
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Err("the devices are still being watched".into())
}

fn settings() -> Vec<String> {
    [
        "Brokers: three NATS nodes whose message store is kept three times.",
        "Database: three PostgreSQL nodes under Patroni and three etcd nodes; a row is confirmed once a second node has it (synchronous mode).",
        "Patroni: ttl 20 s, loop_wait 5 s, retry_timeout 5 s (loop_wait + 2 x retry_timeout must not exceed ttl), primary_start_timeout 0.",
        "Load balancer: asks every instance each 500 ms, after a first failure each 100 ms; two failures take it out; an answer may take 400 ms.",
        "Devices: 10 readings and 20 safety reports a second each, confirmed by the broker (QoS 1), timestamps since their last start.",
        "In each scenario one device is restarted before the fault, 25 s before where brokers are cut off: a copy of a reading that arrives later than its device has been up could be stored twice.",
        "Commands expire after 5 s; safety reports count for 5 s.",
    ]
    .map(str::to_owned)
    .to_vec()
}

fn write(report: &Report, out: &Path) -> Result<(), Failure> {
    std::fs::create_dir_all(out)?;
    std::fs::write(out.join("report.html"), html(report))?;
    std::fs::write(out.join("report.json"), format!("{:#}\n", report.json()))?;
    Ok(())
}

/// The servers' logs, beside the report: the ground is gone after a failure.
fn keep_logs(from: &Path, to: &Path) {
    let Ok(files) = std::fs::read_dir(from) else { return };
    if std::fs::create_dir_all(to).is_err() {
        return;
    }
    let mut kept = 0;
    for file in files.flatten().filter(|file| file.path().extension().is_some_and(|extension| extension == "log")) {
        kept += usize::from(std::fs::copy(file.path(), to.join(file.file_name())).is_ok());
    }
    output::event("logs_kept", json!({ "directory": to.display().to_string(), "files": kept }));
}

//! A machine with far more to do than it has processors for, and brokers that are well.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use modax_mqtt_failover::{Client, Event, Qos};
use modax_testbed::{Ground, Mosquitto, MosquittoOptions};

use crate::{
    DEADLINE, acked_more,
    load::Load,
    scale::{row, seconds},
};

/// Threads that do nothing but compute; the load they make, on a machine with few processors.
const BUSY: usize = 15;
/// And for each processor, where there are many.
const BUSY_EACH: usize = 7;
/// Messages a second: what a starved machine can still do.
const STARVED_RATE: u32 = 200;

struct Busy {
    stop: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Busy {
    fn start() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let spin = |stop: Arc<AtomicBool>| {
            move || {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            }
        };
        let threads = BUSY.max(BUSY_EACH * processors());
        let threads = (0..threads).map(|_| std::thread::spawn(spin(Arc::clone(&stop)))).collect();
        Self { stop, threads }
    }
}

fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// How long the threads of this process have waited for a processor, by the kernel's account (`schedstat`, nanoseconds).
fn waited() -> Duration {
    let waited = |task: std::io::Result<std::fs::DirEntry>| -> Option<u64> {
        let said = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        said.split_whitespace().nth(1)?.parse().ok()
    };
    let tasks = std::fs::read_dir("/proc/self/task").expect("the threads of this process");
    Duration::from_nanos(tasks.filter_map(waited).sum())
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f55_a_starved_machine_condemns_no_broker_that_is_well() {
    let ground = Ground::start().await.expect("a ground");
    let mut brokers = Vec::new();
    for _ in 0..2 {
        let options = MosquittoOptions { quiet: true, ..MosquittoOptions::default() };
        brokers.push(ground.mosquitto_with(options).await.expect("mosquitto"));
    }
    let client =
        Client::builder("drill").brokers(brokers.iter().map(Mosquitto::url)).unwrap().build().expect("a client");
    let mut events = client.events();
    let load = Load::start(&client, STARVED_RATE, Qos::AtLeastOnce);
    acked_more(&client, 100).await;

    let busy = Busy::start();
    let started = Instant::now();
    tokio::time::sleep(seconds("DRILL_STARVED_SECONDS", 10)).await;
    let loaded = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let starved = started.elapsed();
    let (threads, waited) = (busy.threads.len(), waited());
    // At any moment several of them had to.
    assert!(waited > starved, "nobody was starved: {threads} threads waited {waited:?} in {starved:?}");
    drop(busy);

    let published = load.end().await;
    let stats = client.stats();
    client.close(DEADLINE).await;
    let (mut suspected, mut left) = (0, Vec::new());
    while let Some(event) = tokio::time::timeout(DEADLINE, events.next()).await.expect("they end in time") {
        match event {
            Event::Suspected { .. } => suspected += 1,
            Event::Disconnected { .. } | Event::FailedOver { .. } => left.push(event),
            _ => {}
        }
    }
    row(&format!(
        "load {threads} for {} s (load average {}): {} messages, {} false failovers, {suspected} suspicions",
        starved.as_secs(),
        loaded.split(' ').next().unwrap_or("?"),
        published.outcomes.len(),
        stats.failovers,
    ));
    assert!(left.is_empty(), "a healthy broker was left: {left:?}");
    assert_eq!((stats.failovers, stats.connects), (0, 1), "{stats:?}");
    ground.stop().await;
}

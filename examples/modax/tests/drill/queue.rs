//! `pub --queue`, `sub --dedup` and `modax queue` against mosquitto.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use modax_testbed::wait::until;
use modax_testbed::{Ground, Mosquitto, MosquittoOptions};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::running::Running;

const DEADLINE: Duration = Duration::from_secs(60);

/// A broker that drops nothing by itself: replays come in bursts.
async fn broker(ground: &Ground) -> Mosquitto {
    let extra = "max_queued_messages 0".to_owned();
    ground.mosquitto_with(MosquittoOptions { extra, ..MosquittoOptions::default() }).await.unwrap()
}

/// A subscriber whose subscription is known to stand.
async fn subscriber(url: &str, more: &[&str]) -> Running {
    let mut sub = Running::start(&[&["sub", "--brokers", url, "--client-id", "s", "--filter", "t"], more].concat());
    let mut publisher = Running::start(&["pub", "--brokers", url, "--client-id", "warm", "--topic", "t"]);
    for number in 0.. {
        // Each its own, or `--dedup` would count them as repeats.
        publisher.send(&format!("warm {number}")).await;
        assert_eq!(publisher.line().await["outcome"], "acked");
        if timeout(Duration::from_millis(100), sub.line()).await.is_ok() {
            break;
        }
    }
    assert_eq!(publisher.end().await.1, 0);
    sub
}

fn queue_args<'a>(url: &'a str, queue: &'a str) -> Vec<&'a str> {
    vec!["pub", "--brokers", url, "--client-id", "p", "--topic", "t", "--queue", queue, "--fsync-every", "1ms"]
}

fn directory(ground: &Ground) -> String {
    ground.dir().join("queue").to_str().unwrap().to_owned()
}

async fn all(args: &[&str]) -> (Vec<Value>, i32) {
    Running::start(args).end().await
}

/// The payloads that arrived, until `last` has; without the ones of the warming up.
async fn payloads_until(sub: &mut Running, last: &str) -> Vec<String> {
    let mut payloads = Vec::new();
    loop {
        let payload = sub.line().await["payload"].as_str().unwrap().to_owned();
        if payload == last {
            return payloads;
        }
        if !payload.starts_with("warm") {
            payloads.push(payload);
        }
    }
}

/// Lines that one start leaves to the next in a round of recovery.
const BACKLOG: u32 = 2000;
/// Starts that are killed over one backlog.
const STARTS: u32 = 4;
/// With so many kills, one while the files are still read is certain.
const CERTAIN: u32 = 30;

/// Numbers that differ from kill to kill, and are the same in each run.
fn random(seed: u32) -> u32 {
    let mixed = seed.wrapping_add(1).wrapping_mul(0x9E37_79B9);
    (mixed ^ (mixed >> 15)).wrapping_mul(0x85EB_CA6B) >> 16
}

/// Whether some process holds the lock of this queue.
fn is_open(queue: &str) -> bool {
    let Ok(lock) = std::fs::metadata(Path::new(queue).join("lock")) else { return false };
    let locks = std::fs::read_to_string("/proc/locks").expect("Linux lists its locks");
    locks.contains(&format!(":{} ", lock.ino()))
}

/// How starts were killed that had a backlog before them.
#[derive(Debug, Default)]
struct Recoveries {
    /// Before the queue was opened.
    unopened: u32,
    /// While its files were read.
    reading: u32,
    /// While its messages were sent.
    sending: u32,
    /// When all of them had their outcome, or there were none left.
    over: u32,
}

impl Recoveries {
    const fn kills(&self) -> u32 {
        self.unopened + self.reading + self.sending + self.over
    }
}

/// Leaves a backlog behind, and kills starts over it at random; what was admitted. All of it has arrived in the end.
async fn killed_while_recovering(
    (broker, args, queue): (&Mosquitto, &[&str], &str),
    round: u32,
    recoveries: &mut Recoveries,
) -> Vec<String> {
    broker.stop();
    let mut publisher = Running::start(args);
    let lines: Vec<_> = (0..BACKLOG).map(|number| format!("{round:03}/{number:05}")).collect();
    let mut admitted = Vec::new();
    for some in lines.chunks(200) {
        publisher.send(&some.join("\n")).await;
        let all = admitted.len() + some.len();
        while admitted.len() < all {
            let line = publisher.line().await;
            if line["outcome"] == "admitted" {
                admitted.push(line["payload"].as_str().unwrap().to_owned());
            }
        }
    }
    publisher.kill().await;
    broker.cont();
    for start in 0..STARTS {
        let publisher = Running::start(args);
        let tells = publisher.stderr();
        tokio::time::sleep(Duration::from_micros((random(round * STARTS + start) % 50_000).into())).await;
        let opened = is_open(queue);
        let lines = publisher.kill().await;
        until(DEADLINE, "all of stderr", || async { Arc::strong_count(&tells) == 1 }).await.unwrap();
        let told = tells.lock().unwrap().clone();
        let events: Vec<Value> = told.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let replaying = events.iter().find(|event| event["event"] == "replaying");
        let count = match replaying.map(|event| event["messages"].as_u64().unwrap()) {
            Some(messages) if u64::try_from(lines.len()).unwrap() < messages => &mut recoveries.sending,
            None if !opened => &mut recoveries.unopened,
            None if events.is_empty() => &mut recoveries.reading,
            Some(_) | None => &mut recoveries.over,
        };
        *count += 1;
    }
    let (lines, code) = Running::start(args).end().await;
    assert!(code == 0 && lines.iter().all(|line| line["outcome"] == "acked"), "{lines:?}");
    admitted
}

/// One line of the table of `make drill-mqtt`, kept for its end where `DRILL_TABLE` names a file.
fn tell(line: &str) {
    eprintln!("{line}");
    if let Some(path) = std::env::var_os("DRILL_TABLE") {
        let mut table = std::fs::File::options().create(true).append(true).open(path).unwrap();
        std::io::Write::write_all(&mut table, format!("{line}\n").as_bytes()).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn f32_a_publisher_killed_again_and_again_loses_no_admitted_message() {
    let ground = Ground::start().await.unwrap();
    let broker = broker(&ground).await;
    let (url, queue) = (broker.url(), directory(&ground));
    let mut sub = subscriber(&url, &["--qos", "2"]).await;
    // Read all the time: this is no drill of slow readers, for which mosquitto would keep all of it.
    let arrived = tokio::spawn(async move { payloads_until(&mut sub, "last").await });
    let args = [queue_args(&url, &queue), vec!["--report-admitted", "--qos", "2"]].concat();
    let mut admitted = Vec::new();
    let (mut replayed, mut recoveries) = (0, Recoveries::default());
    let kills: u32 = std::env::var("DRILL_PUBLISHER_KILLS").map_or(3, |text| text.parse().expect("a number"));
    for round in 0..kills {
        if round % 3 == 2 {
            admitted.extend(killed_while_recovering((&broker, &args, &queue), round, &mut recoveries).await);
        }
        // In every other round no broker answers, so that all of it is left behind; else some of it is.
        if round % 2 == 0 {
            broker.stop();
        }
        let mut publisher = Running::start(&args);
        // As fast as 2000 a second, faster than it is killed.
        let mut pace = tokio::time::interval(Duration::from_millis(1));
        for number in 0..150 {
            if number % 2 == 0 {
                pace.tick().await;
            }
            publisher.send(&format!("{round:03}/new/{number:03}")).await;
        }
        let mut of_round = 0;
        let mut take = |line: &Value| {
            replayed += u32::from(line["replayed"] == true);
            if line["outcome"] == "admitted" {
                of_round += 1;
                admitted.push(line["payload"].as_str().unwrap().to_owned());
            }
            of_round
        };
        while take(&publisher.line().await) < 40 + 20 * (round % 5) {}
        for line in publisher.kill().await {
            take(&line);
        }
        broker.cont();
    }

    let mut publisher = Running::start(&args);
    publisher.send("last").await;
    let (lines, code) = publisher.end().await;

    assert_eq!(code, 0);
    assert!(lines.iter().filter(|line| line["replayed"] == true).all(|line| line["outcome"] == "acked"), "{lines:?}");
    replayed += u32::try_from(lines.iter().filter(|line| line["replayed"] == true).count()).unwrap();
    assert!(replayed > 0, "no kill left anything behind");
    let arrived = arrived.await.unwrap();
    let copies = arrived.len();
    let mut seen = BTreeSet::new();
    let first: Vec<_> = arrived.into_iter().filter(|payload| seen.insert(payload.clone())).collect();
    let reordered = first.windows(2).filter(|pair| pair[0] > pair[1]).count();
    let lost: Vec<_> = admitted.iter().filter(|payload| !seen.contains(*payload)).collect();
    tell(&format!(
        "| publisher killed, disk queue, QoS 2 | {} | {} | {} | – | {reordered} | – | {} ({replayed} replayed; {} killed while \
         reading the queue, {} while sending it) | – |",
        kills + recoveries.kills(),
        admitted.len(),
        lost.len(),
        copies - first.len(),
        recoveries.reading,
        recoveries.sending,
    ));
    assert_eq!(reordered, 0, "out of order: {first:?}");
    assert!(lost.is_empty(), "of {} admitted were lost: {lost:?}", admitted.len());
    let (verified, code) = all(&["queue", "verify", &queue]).await;
    assert_eq!((code, &verified.last().unwrap()["waiting"]), (0, &json!(0)));
    eprintln!("starts killed over a backlog of {BACKLOG}: {recoveries:?}");
    assert!(kills < CERTAIN || recoveries.reading > 0 && recoveries.sending > 0, "{recoveries:?}");
    ground.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_process_at_a_time_has_a_queue_and_the_second_is_told_so() {
    let ground = Ground::start().await.unwrap();
    let broker = broker(&ground).await;
    let (url, queue) = (broker.url(), directory(&ground));
    let mut first = Running::start(&queue_args(&url, &queue));
    first.send("a").await;
    assert_eq!(first.line().await["outcome"], "acked");

    let (lines, code) = all(&queue_args(&url, &queue)).await;
    assert_eq!((lines, code), (vec![], 1));
    let (lines, code) = all(&["queue", "inspect", &queue]).await;
    assert_eq!((lines, code), (vec![], 1));

    assert_eq!(first.end().await.1, 0);
    assert_eq!(all(&queue_args(&url, &queue)).await, (vec![], 0));
    ground.stop().await;
}

/// The largest file, with one bit in its middle turned over.
fn damage(queue: &str) {
    let files = std::fs::read_dir(queue).unwrap().map(|entry| entry.unwrap().path());
    let files = files.filter(|path| path.extension().is_some_and(|extension| extension == "queue"));
    let largest: PathBuf = files.max_by_key(|path| path.metadata().unwrap().len()).unwrap();
    let mut content = std::fs::read(&largest).unwrap();
    let middle = content.len() / 2;
    content[middle] ^= 0x10;
    std::fs::write(&largest, content).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn f32_a_damaged_queue_is_found_out_and_the_rest_is_saved_and_sent() {
    let ground = Ground::start().await.unwrap();
    let broker = broker(&ground).await;
    let (url, queue) = (broker.url(), directory(&ground));
    broker.stop();
    let mut publisher = Running::start(&[queue_args(&url, &queue), vec!["--max-wait", "50ms"]].concat());
    for number in 0..21 {
        publisher.send(&format!("{number:02}")).await;
    }
    let (lines, code) = publisher.end().await;
    assert_eq!((lines.len(), code), (21, 1));
    assert!(lines.iter().all(|line| line["outcome"] == "undelivered" && line["on_disk"] == true), "{lines:?}");
    broker.cont();

    assert_eq!(all(&["queue", "verify", &queue]).await.1, 0);
    damage(&queue);
    let (lines, code) = all(&["queue", "verify", &queue]).await;
    assert_eq!((code, &lines.last().unwrap()["sound"]), (1, &json!(false)));
    let (lines, code) = all(&["queue", "inspect", &queue]).await;
    let waiting: Vec<&str> = lines.iter().filter_map(|line| line["payload"].as_str()).collect();
    assert_eq!((code, waiting.len()), (0, 20));
    let (lines, code) = all(&["queue", "salvage", &queue]).await;
    assert_eq!((code, &lines.last().unwrap()["saved"]), (0, &json!(20)));
    assert_eq!(all(&["queue", "salvage", &queue]).await.1, 1, "it copied over what it had saved");
    let saved = format!("{queue}.salvaged");
    assert!(Path::new(&saved).is_dir());
    assert_eq!(all(&["queue", "verify", &saved]).await.1, 0);

    let mut sub = subscriber(&url, &[]).await;
    let mut publisher = Running::start(&queue_args(&url, &saved));
    publisher.send("last").await;
    let (lines, code) = publisher.end().await;
    assert_eq!(code, 0);
    assert_eq!(lines.iter().filter(|line| line["replayed"] == true).count(), 20);
    assert_eq!(payloads_until(&mut sub, "last").await, waiting);
    ground.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn qos_2_arrives_once_at_the_brokers_left_and_dedup_prints_a_repeat_once() {
    let ground = Ground::start().await.unwrap();
    let (first, second) = (broker(&ground).await, broker(&ground).await);
    let urls = format!("{},{}", first.url(), second.url());
    let mut sub = subscriber(&second.url(), &["--qos", "2", "--dedup", "id"]).await;
    let mut publisher = Running::start(&[
        "pub",
        "--brokers",
        &urls,
        "--client-id",
        "p",
        "--topic",
        "t",
        "--qos",
        "2",
        "--selection",
        "round-robin",
        "--plain",
    ]);
    publisher.send("{}").await;
    assert_eq!(publisher.line().await["broker"], first.addr().to_string());
    first.kill().await;
    for number in 0..200 {
        for _ in 0..2 {
            publisher.send(&json!({ "id": number }).to_string()).await;
        }
    }
    publisher.send("last").await;
    let (lines, code) = publisher.end().await;

    assert!(!first.process().is_running());
    assert_eq!((lines.len(), code), (401, 0));
    let arrived = payloads_until(&mut sub, "last").await;
    let expected: Vec<String> = (0..200).map(|number| json!({ "id": number }).to_string()).collect();
    assert_eq!(arrived, expected);
    sub.signal(Signal::INT);
    assert_eq!(sub.rest().await, (vec![], 0));
    ground.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f32_equal_lines_that_a_killed_publisher_sends_twice_are_printed_once_each() {
    let ground = Ground::start().await.unwrap();
    let broker = broker(&ground).await;
    let (url, queue) = (broker.url(), directory(&ground));
    let mut sub = subscriber(&url, &["--mqtt5", "--dedup"]).await;
    let args = [queue_args(&url, &queue), vec!["--mqtt5", "--stamp", "--report-admitted"]].concat();
    let mut publisher = Running::start(&args);
    publisher.send("first").await;
    while publisher.line().await["outcome"] != "acked" {}

    // Frozen, it does not answer; thawed, it finds what was sent meanwhile.
    broker.stop();
    for _ in 0..20 {
        publisher.send("equal").await;
    }
    for _ in 0..20 {
        assert_eq!(publisher.line().await["outcome"], "admitted", "the broker was not frozen");
    }
    publisher.event("suspected").await;
    assert_eq!(publisher.kill().await, Vec::<Value>::new(), "the broker was not frozen");
    broker.cont();

    let mut publisher = Running::start(&args);
    publisher.send("last").await;
    let (lines, code) = publisher.end().await;
    let replayed: Vec<_> = lines.iter().filter(|line| line["replayed"] == true).collect();
    assert_eq!((replayed.len(), code), (20, 0), "{lines:?}");
    assert!(replayed.iter().all(|line| line["outcome"] == "acked" && line["attempts"].is_u64()), "{replayed:?}");

    let arrived = payloads_until(&mut sub, "last").await;
    assert_eq!(arrived, [vec!["first"], vec!["equal"; 20]].concat());
    sub.signal(Signal::INT);
    let totals = sub.event("dedup").await;
    assert!(totals["repeats"].as_u64() > Some(0), "nothing was sent twice: {totals}");
    assert_eq!(sub.rest().await, (vec![], 0));
    ground.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_dedup_qos_2_is_printed_as_often_as_it_was_published() {
    let ground = Ground::start().await.unwrap();
    let broker = broker(&ground).await;
    let (url, queue) = (broker.url(), directory(&ground));
    let mut sub = subscriber(&url, &["--qos", "2"]).await;
    let mut publisher = Running::start(&[queue_args(&url, &queue), vec!["--qos", "2"]].concat());
    for number in 0..300 {
        publisher.send(&number.to_string()).await;
    }
    publisher.send("last").await;
    assert_eq!(publisher.end().await.1, 0);

    let expected: Vec<String> = (0..300).map(|number| number.to_string()).collect();
    assert_eq!(payloads_until(&mut sub, "last").await, expected);
    ground.stop().await;
}

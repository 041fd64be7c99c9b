//! What ends a command early, or leaves nobody to tell.

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use modax_testbed::Ground;
use modax_testbed::wait::until;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::running::Running;

const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn outcomes_that_nobody_can_read_are_a_failure() {
    let ground = Ground::start().await.unwrap();
    let broker = ground.mosquitto().await.unwrap();
    for (how, expected) in [("", 1), (">/dev/full", 1), (">/dev/null", 0), ("1<>/dev/null", 0)] {
        // A pipe whose reader has gone before the first line, unless the shell gives it another end.
        let (reader, unread) = std::io::pipe().unwrap();
        drop(reader);
        let script = format!("(\"$0\" \"$@\"; exec echo $? >&2) {how}");
        let mut child = Command::new("/bin/sh")
            .args(["-c", &script, env!("CARGO_BIN_EXE_modax")])
            .args(["pub", "--brokers", &broker.url(), "--client-id", "ends", "--topic", "plant/x"])
            .stdin(Stdio::piped())
            .stdout(unread)
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(b"one\ntwo\n").await.unwrap();
        let output = timeout(PATIENCE, child.wait_with_output()).await.expect("an end in time").unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(stderr.lines().last(), Some(expected.to_string().as_str()), "{how}: {stderr}");
    }
    ground.stop().await;
}

/// More than a pipe, and what waits before it, takes of their outcomes.
const LINES: usize = 5000;

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_rests_longer_than_outcomes_are_waited_for_is_told_each_once() {
    let ground = Ground::start().await.unwrap();
    let broker = ground.mosquitto().await.unwrap();
    // All are admitted before the first has its outcome.
    broker.stop();
    let mut child = Command::new(env!("CARGO_BIN_EXE_modax"))
        .args(["pub", "--brokers", &broker.url(), "--client-id", "ends", "--topic", "t", "--max-wait", "2s"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(format!("{:0500}\n", 0).repeat(LINES).as_bytes()).await.unwrap();
    drop(stdin);
    broker.cont();

    // The two seconds, and two for goodbye: that it still waits for its reader is the fault.
    let ended = timeout(Duration::from_secs(6), child.wait()).await;
    assert!(ended.is_err(), "it did not wait for its reader: {ended:?}");
    let mut told = String::new();
    let mut stdout = child.stdout.take().unwrap();
    timeout(PATIENCE, stdout.read_to_string(&mut told)).await.expect("an end in time").unwrap();

    let seq = |line: &str| serde_json::from_str::<Value>(line).unwrap()["seq"].as_u64().unwrap();
    let mut seqs: Vec<_> = told.lines().map(seq).collect();
    seqs.sort_unstable();
    assert!(seqs.iter().copied().eq(0..LINES as u64), "{} lines for {LINES} messages", seqs.len());
    ground.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_ends_a_publisher_whose_broker_is_away() {
    let ground = Ground::start().await.unwrap();
    let nobody = format!("mqtt://127.0.0.1:{}", ground.port());
    for is_input_ended in [false, true] {
        let args = ["pub", "--brokers", &nobody, "--client-id", "ends", "--topic", "t", "--max-wait", "600s"];
        let mut running = Running::start(&[&args[..], &["--report-admitted"]].concat());
        running.send("one").await;
        assert_eq!(running.line().await["outcome"], "admitted");
        running.event("connect_failed").await;
        if is_input_ended {
            running.end_input();
        }
        running.signal(Signal::TERM);
        assert_eq!(running.event("interrupted").await["waiting_for"], 1);
        // Far sooner than the longest wait.
        let (rest, code) = running.rest().await;
        assert_eq!((rest.len(), &rest[0]["outcome"], code), (1, &json!("undelivered"), 1), "{rest:?}");
    }
    ground.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_outbox_without_a_database_says_what_it_waits_for() {
    let ground = Ground::start().await.unwrap();
    let nobody = format!("postgresql://modax@127.0.0.1:{}/modax", ground.port());
    let running = Running::start(&["outbox", "status", "--url", &nobody, "--deadline", "5s"]);
    assert_eq!(running.event("connecting").await["deadline_ms"], 5000.0);
    let failed = running.event("failed").await;
    assert!(failed["error"].as_str().unwrap().contains("Connection refused"), "{failed}");
    assert_eq!(running.end().await, (vec![], 1));
    ground.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_waits_ends_once_nobody_reads_it_any_more() {
    let ground = Ground::start().await.unwrap();
    let broker = format!("mqtt://127.0.0.1:{}", ground.port());
    let database = format!("postgresql://modax@127.0.0.1:{}/modax", ground.port());
    let subscribe = ["sub", "--brokers", &broker, "--client-id", "ends", "--filter", "#"];
    let relay = ["outbox", "relay", "--url", &database, "--brokers", &broker];
    for args in [
        &subscribe[..],
        &["topology", "--url", &database, "--watch"],
        &["write", "--url", &database],
        &["read", "--url", &database],
        &relay,
    ] {
        // Its input stays open, and nothing that it could print ever comes.
        assert_eq!(Running::start(args).end_unread().await, 1, "{args:?}");
    }
    ground.stop().await;
}

/// A `modax` whose three streams are pipes that nobody reads yet.
fn piped(args: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_modax"));
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.kill_on_drop(true).spawn().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_whose_lines_nobody_takes_ends_all_the_same() {
    let ground = Ground::start().await.unwrap();
    let nobody = format!("mqtt://127.0.0.1:{}", ground.port());
    let publish = ["pub", "--brokers", &nobody, "--client-id", "ends", "--when-full", "shed-newest"];
    // Outcomes for stdout, or events for stderr as well: far more than a pipe takes, and than is read ahead.
    for more in [&["--queue-max-messages", "1"][..], &["--queue-max-messages", "1", "--topic", "plant/x"]] {
        let mut child = piped(&[&publish[..], more].concat());
        let mut stdin = child.stdin.take().unwrap();
        let fed = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&fed);
        let feeding = tokio::spawn(async move {
            while stdin.write_all(b"plant\n").await.is_ok() {
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        // 11,000 lines are in its stdin and 1,500 in its hands, 2,700 outcomes in its stdout and before it: then it takes
        // in nothing more, whether a line waits for stdout or for there to be room.
        until(PATIENCE, "so many lines", || async { fed.load(Ordering::Relaxed) > 13_500 }).await.unwrap();

        let pid = rustix::process::Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()).unwrap();
        rustix::process::kill_process(pid, Signal::TERM).unwrap();

        let ended = timeout(PATIENCE, child.wait()).await.expect("an end in time").unwrap();
        assert_eq!(ended.code(), Some(1), "{more:?}");
        feeding.await.unwrap();
    }
    ground.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_reads_all_of_stdout_before_stderr_reads_both() {
    let ground = Ground::start().await.unwrap();
    let nobody = format!("mqtt://127.0.0.1:{}", ground.port());
    let shedding = ["--when-full", "shed-newest", "--queue-max-messages", "1", "--max-wait", "0s"];
    let publish = ["pub", "--brokers", &nobody, "--client-id", "ends", "--topic", "plant/x"];
    let mut child = piped(&[&publish[..], &shedding].concat());
    let mut stdin = child.stdin.take().unwrap();
    let feeding = tokio::spawn(async move { stdin.write_all(&b"line\n".repeat(10_000)).await });

    let (mut outcomes, mut events) = (String::new(), String::new());
    let reading = async {
        child.stdout.take().unwrap().read_to_string(&mut outcomes).await.unwrap();
        child.stderr.take().unwrap().read_to_string(&mut events).await.unwrap();
    };
    timeout(PATIENCE, reading).await.expect("both end in time");

    feeding.await.unwrap().unwrap();
    assert_eq!(outcomes.lines().count(), 10_000);
    let pipe = 65_536;
    assert!(events.len() > pipe, "{} bytes do not fill a pipe", events.len());
    assert_eq!(child.wait().await.unwrap().code(), Some(1));
    ground.stop().await;
}

/// A session that holds a message of so many bytes for the subscriber `ends`.
async fn keep_for_the_subscriber(broker: &str, bytes: usize) {
    let subscriber = Running::start(&["sub", "--brokers", broker, "--client-id", "ends", "--filter", "plant/#"]);
    subscriber.event("subscribed").await;
    subscriber.signal(Signal::TERM);
    assert_eq!(subscriber.rest().await, (vec![], 0));
    let mut publisher = Running::start(&["pub", "--brokers", broker, "--client-id", "p", "--topic", "plant/x"]);
    publisher.send(&"x".repeat(bytes)).await;
    publisher.end_input();
    assert_eq!(publisher.rest().await.1, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_whose_lines_nobody_takes_ends_all_the_same() {
    let ground = Ground::start().await.unwrap();
    let broker = ground.mosquitto().await.unwrap();
    // More than a pipe takes: once its line has begun, it is stuck.
    keep_for_the_subscriber(&broker.url(), 1_000_000).await;
    let subscribe = ["sub", "--brokers", &broker.url(), "--client-id", "ends", "--filter", "plant/#"];

    let mut unread = Running::start(&subscribe);
    unread.until_line_has_begun().await;
    unread.signal(Signal::TERM);
    let failed = unread.event("failed").await;
    assert!(failed["error"].as_str().unwrap().contains("stdout takes nothing more"), "{failed}");
    assert_eq!(unread.end_unread().await, 1);

    // A disk without room for the line that was to be the last.
    let mut full = Command::new(env!("CARGO_BIN_EXE_modax"))
        .args(subscribe)
        .args(["--count", "1"])
        .stdout(std::fs::File::create("/dev/full").unwrap())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let stderr = full.stderr.take().unwrap();
    let ended = timeout(PATIENCE, full.wait()).await.expect("an end in time").unwrap();
    let mut told = String::new();
    tokio::io::BufReader::new(stderr).read_to_string(&mut told).await.unwrap();
    assert!(ended.code() == Some(1) && told.contains("No space left on device"), "{told}");
    ground.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_without_a_database_says_so_and_ends_when_it_is_told_to() {
    let ground = Ground::start().await.unwrap();
    let database = format!("postgresql://modax@127.0.0.1:{}/modax", ground.port());
    let broker = format!("mqtt://127.0.0.1:{}", ground.port());
    let relay = ["outbox", "relay", "--url", &database, "--brokers", &broker, "--deadline", "200ms"];

    let running = Running::start(&relay);

    assert_eq!(running.event("connecting").await["deadline_ms"], 200.0);
    // On a busy machine the first try may take longer than it has.
    running.event_saying("database_failed", "Connection refused").await;
    running.signal(Signal::TERM);
    assert_eq!(running.rest().await, (vec![], 0));
    ground.stop().await;
}

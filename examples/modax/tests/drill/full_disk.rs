//! `modax pub --queue` on a disk that is full, or is not to be written to: killed while it is full, started while it is
//! full, and under a limit on the size of files.

use std::collections::BTreeSet;
use std::path::PathBuf;

use modax_testbed::broker::{Script, ScriptedBroker};
use modax_testbed::namespace::{Namespace, SmallDisk};
use serde_json::Value;

use crate::running::Running;

fn queue_args<'a>(url: &'a str, queue: &'a str) -> Vec<&'a str> {
    let args = ["pub", "--brokers", url, "--client-id", "p", "--topic", "t", "--queue", queue, "--fsync-every", "1ms"];
    [&args[..], &["--report-admitted"]].concat()
}

/// A directory of its own, gone with the value.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("modax-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What was published, admitted and refused so far.
#[derive(Default)]
struct Account {
    next: u32,
    admitted: Vec<String>,
    refused: u32,
    acked: u32,
}

impl Account {
    async fn send(&mut self, publisher: &mut Running) {
        publisher.send(&format!("{:05}{:0995}", self.next, 0)).await;
        self.next += 1;
    }

    fn take(&mut self, line: &Value) {
        match line["outcome"].as_str() {
            Some("admitted") => self.admitted.push(line["payload"].as_str().unwrap()[..5].to_owned()),
            Some("rejected") => {
                let error = line["error"].as_str().unwrap();
                assert!(error.contains("the disk queue could not take the message"), "{error}");
                self.refused += 1;
            }
            Some("acked") => self.acked += 1,
            _ => {}
        }
    }

    /// Publishes until the disk has refused this many more.
    async fn fill(&mut self, publisher: &mut Running, refusals: u32) {
        let enough = self.refused + refusals;
        for _ in 0..20_000 {
            if self.refused >= enough {
                return;
            }
            let answers = self.admitted.len() + self.refused as usize;
            self.send(publisher).await;
            while self.admitted.len() + self.refused as usize == answers {
                self.take(&publisher.line().await);
            }
        }
        panic!("the disk never refused");
    }

    /// All that was admitted has arrived, in order; how many came again.
    fn judge(&self, broker: &ScriptedBroker) -> usize {
        let arrived =
            broker.publishes().into_iter().map(|seen| String::from_utf8_lossy(&seen.payload[..5]).into_owned());
        let arrived: Vec<String> = arrived.collect();
        let mut seen = BTreeSet::new();
        let first: Vec<String> = arrived.iter().filter(|number| seen.insert((*number).clone())).cloned().collect();
        let lost: Vec<_> = self.admitted.iter().filter(|number| !seen.contains(*number)).collect();
        assert!(lost.is_empty(), "of {} admitted were lost: {lost:?}", self.admitted.len());
        assert!(first.is_sorted(), "out of order: {first:?}");
        arrived.len() - first.len()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn f31_a_publisher_killed_and_started_on_a_full_disk_loses_nothing_and_takes_more_in_the_end() {
    if !Namespace::Mount.has_entered(
        "full_disk::f31_a_publisher_killed_and_started_on_a_full_disk_loses_nothing_and_takes_more_in_the_end",
    ) {
        return;
    }
    let folder = Folder::new("killed-while-full");
    let disk = SmallDisk::mount(&folder.0.join("disk"), 768);
    let broker = ScriptedBroker::start(Script::new()).await.unwrap();
    let (url, queue) = (broker.url(), disk.path().join("queue").to_str().unwrap().to_owned());
    let args = queue_args(&url, &queue);
    let mut account = Account::default();
    broker.stop();
    for round in 0..4 {
        let mut publisher = Running::start(&args);
        account.fill(&mut publisher, 5).await;
        if round % 2 == 1 {
            // In the middle of sending what is there, with its acknowledgements on their way to the disk.
            let arrived = broker.publishes().len();
            broker.restart().unwrap();
            let more = |broker: &ScriptedBroker| broker.publishes().len() >= arrived + 50;
            assert!(broker.wait_until(std::time::Duration::from_secs(30), more).await, "nothing was sent");
        }
        for line in publisher.kill().await {
            account.take(&line);
        }
        broker.stop();
    }

    broker.restart().unwrap();
    let mut publisher = Running::start(&args);
    let admitted = account.admitted.len();
    while account.admitted.len() == admitted {
        account.send(&mut publisher).await;
        account.take(&publisher.line().await);
    }
    let (lines, _) = publisher.end().await;
    for line in &lines {
        account.take(line);
    }

    assert!(account.refused >= 20, "the disk was never full");
    let repeats = account.judge(&broker);
    eprintln!("{} admitted, {} refused, {repeats} repeats", account.admitted.len(), account.refused);
    let (verified, code) = Running::start(&["queue", "verify", &queue]).end().await;
    assert_eq!((code, &verified.last().unwrap()["waiting"]), (0, &serde_json::json!(0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn f31_a_queue_on_a_read_only_disk_is_named_and_nothing_of_it_is_sent() {
    if !Namespace::Mount.has_entered("full_disk::f31_a_queue_on_a_read_only_disk_is_named_and_nothing_of_it_is_sent") {
        return;
    }
    let folder = Folder::new("read-only");
    let disk = SmallDisk::mount(&folder.0.join("disk"), 1024);
    let broker = ScriptedBroker::start(Script::new()).await.unwrap();
    let (url, queue) = (broker.url(), disk.path().join("queue").to_str().unwrap().to_owned());
    broker.stop();
    let mut account = Account::default();
    let mut publisher = Running::start(&queue_args(&url, &queue));
    account.send(&mut publisher).await;
    account.take(&publisher.line().await);
    assert_eq!(account.admitted.len(), 1);
    publisher.kill().await;
    broker.restart().unwrap();
    disk.remount(true);

    let mut publisher = Running::start(&queue_args(&url, &queue));
    publisher.end_input();
    let error = publisher.event("failed").await["error"].as_str().unwrap().to_owned();
    assert!(error.contains(&queue) && error.contains("Read-only file system"), "{error}");
    assert_eq!(publisher.rest().await, (vec![], 1));
    assert!(broker.publishes().is_empty());

    disk.remount(false);
    let (lines, code) = Running::start(&queue_args(&url, &queue)).end().await;
    assert_eq!((lines.len(), code), (1, 0), "{lines:?}");
    account.judge(&broker);
}

/// The same for whoever can mount nothing: the kernel ends each file at 64 KiB. It also sends a signal, which by default
/// kills, and which a service under such a limit has to ignore.
#[tokio::test(flavor = "multi_thread")]
async fn f31_a_limit_on_the_size_of_files_refuses_by_type_and_the_next_file_goes_on() {
    let folder = Folder::new("file-size");
    let broker = ScriptedBroker::start(Script::new()).await.unwrap();
    let (url, queue) = (broker.url(), folder.0.join("queue").to_str().unwrap().to_owned());
    broker.stop();
    let mut account = Account::default();
    let within = ["prlimit", "--fsize=65536", "sh", "-c", "trap '' XFSZ; exec \"$@\"", "sh"];
    let mut publisher = Running::start_within(&within, &queue_args(&url, &queue));
    account.fill(&mut publisher, 3).await;
    assert!(account.admitted.len() > 100, "a file that is full was the last one");
    broker.restart().unwrap();
    let (lines, code) = publisher.end().await;
    for line in &lines {
        account.take(line);
    }

    assert_eq!(code, 1, "refusals are told");
    assert_eq!(account.acked as usize, account.admitted.len());
    account.judge(&broker);
    let largest = std::fs::read_dir(&queue).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).max();
    assert!(largest.is_some_and(|bytes| bytes <= 64 << 10), "{largest:?}");
}

//! The disk queue beside what its disk allows, in the same run, interleaved: recovery and durable admission.
//!
//! `cargo bench -p modax-mqtt-failover --bench disk_queue`. Read the ratios; absolute figures are those of one machine
//! at one load. The directory is made where `TMPDIR` points, or `/tmp`: let it be on the disk in question.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};
use modax_mqtt_failover::{Bytes, Client, Message, Queue, queue::segment};

const RECOVERED: usize = 1_000_000;
const PAYLOAD_BYTES: usize = 64;
const ROUNDS: usize = 5;
const FSYNC_EVERY: Duration = Duration::from_millis(5);

#[tokio::main]
async fn main() {
    let folder = std::env::temp_dir().join(format!("modax-bench-queue-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a folder");
    println!("load at the start: {}", load());
    recovery(&folder.join("recovery")).await;
    admission(&folder).await;
    println!("load at the end: {}", load());
    fs::remove_dir_all(&folder).expect("it is removed");
}

fn client(directory: &Path) -> Client {
    let queue = Queue::disk(directory).max_messages(2 * RECOVERED).max_bytes(4 << 30).fsync_every(FSYNC_EVERY);
    // Nobody listens there: what is admitted stays in the queue.
    let builder = Client::builder("bench").brokers(["mqtt://127.0.0.1:9"]).expect("an address");
    builder.queue(queue).build().expect("a client")
}

fn message() -> Message {
    Message::new("plant/press-7/temperature", Bytes::from_static(&[b'x'; PAYLOAD_BYTES]))
}

/// From nothing to a client that has all of the queue, beside reading the same files.
async fn recovery(directory: &Path) {
    let first = client(directory);
    for _ in 1..RECOVERED {
        drop(first.try_publish(message()).expect("admitted"));
    }
    drop(first.publish(message()).await.expect("on disk"));
    first.close(Duration::ZERO).await;
    let (mut ours, mut read) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    for _ in 0..ROUNDS {
        for (place, is_cached) in [false, true].into_iter().enumerate() {
            read[place].push(seconds(directory, is_cached, || {
                let bytes: usize = files(directory).iter().map(|file| fs::read(file).expect("it is read").len()).sum();
                assert!(bytes > RECOVERED * PAYLOAD_BYTES);
            }));
            let mut opened = None;
            ours[place].push(seconds(directory, is_cached, || opened = Some(client(directory))));
            let opened = opened.expect("a client");
            assert_eq!(opened.stats().queue_messages, RECOVERED);
            opened.close(Duration::ZERO).await;
        }
    }
    let bytes: u64 = files(directory).iter().map(|file| file.metadata().expect("a length").len()).sum();
    println!("recovery of {RECOVERED} messages of {PAYLOAD_BYTES} B ({} MB of files), seconds:", bytes / 1_000_000);
    row("reading the files, out of the page cache", &read[0]);
    row("opening the queue, out of the page cache", &ours[0]);
    row("reading the files, cached", &read[1]);
    row("opening the queue, cached", &ours[1]);
}

fn seconds(directory: &Path, is_cached: bool, work: impl FnOnce()) -> f64 {
    for file in files(directory) {
        let file = File::open(file).expect("it opens");
        if !is_cached {
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("the kernel listens");
        }
    }
    let started = Instant::now();
    work();
    started.elapsed().as_secs_f64()
}

/// Messages a second that are on disk when their publisher hears of it, beside writing as many bytes as often.
async fn admission(folder: &Path) {
    for publishers in [100, 1000, 5000] {
        let (mut ours, mut raw, mut waiting) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..=ROUNDS {
            let one = admitted(&folder.join(format!("admission-{publishers}-{round}")), publishers).await;
            let other = appended(&folder.join("raw"), publishers, Duration::ZERO);
            let patient = appended(&folder.join("raw"), publishers, FSYNC_EVERY);
            // The first round warms up.
            if round > 0 {
                ours.push(one);
                raw.push(other);
                waiting.push(patient);
            }
        }
        println!("durable admission, {PAYLOAD_BYTES} B, {publishers} publishes at once, msg/s:");
        row("ours, group commit of 5 ms", &ours);
        row("append and fdatasync of as many, each 5 ms", &waiting);
        row("append and fdatasync of as many, without a pause", &raw);
        println!("  ours / append and fdatasync each 5 ms: {:.3}", median(&ours) / median(&waiting));
    }
}

/// About two seconds' worth.
fn messages(publishers: usize) -> usize {
    publishers * 300
}

async fn admitted(directory: &Path, publishers: usize) -> f64 {
    let client = client(directory);
    let started = Instant::now();
    let count = messages(publishers);
    let publishes = stream::iter(0..count).map(|_| client.publish(message())).buffer_unordered(publishers);
    publishes.for_each(|receipt| async { drop(receipt.expect("on disk")) }).await;
    let rate = count as f64 / started.elapsed().as_secs_f64();
    client.close(Duration::ZERO).await;
    fs::remove_dir_all(directory).expect("it is removed");
    rate
}

fn appended(path: &Path, publishers: usize, every: Duration) -> f64 {
    let overhead = segment::FRAME_BYTES + 20 + message().topic().len();
    let batch = vec![b'x'; (PAYLOAD_BYTES + overhead) * publishers];
    let mut file = File::create(path).expect("a file");
    let count = messages(publishers);
    let started = Instant::now();
    for _ in 0..count / publishers {
        std::thread::sleep(every);
        file.write_all(&batch).expect("it is written");
        file.sync_data().expect("it is on disk");
    }
    let rate = count as f64 / started.elapsed().as_secs_f64();
    fs::remove_file(path).expect("it is removed");
    rate
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).expect("a folder").map(|entry| entry.expect("an entry").path());
    entries.filter(|path| path.extension().is_some_and(|extension| extension == "queue")).collect()
}

fn row(name: &str, figures: &[f64]) {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (least, most) = (sorted.first().copied().unwrap_or(0.0), sorted.last().copied().unwrap_or(0.0));
    println!("  {name:<50} median {:>12.3}  min {least:>12.3}  max {most:>12.3}", median(figures));
}

fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn load() -> String {
    fs::read_to_string("/proc/loadavg").unwrap_or_default().split(' ').next().unwrap_or("?").to_owned()
}

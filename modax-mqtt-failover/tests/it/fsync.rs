//! The queue on a disk that fails to synchronise or to read: the kernel's own answer, through strace's hands, to a process
//! that may then be killed.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
};

use modax_mqtt_failover::{Client, Message, PublishError, Queue, disk};
use modax_testbed::{
    bring,
    broker::{Script, ScriptedBroker},
};

use crate::disk::{DEADLINE, Folder, emptied, numbers, within};

/// Messages that the process publishes, each with a commit of its own.
const MESSAGES: u64 = 20;
/// The sixth and every third after it.
const FAULT: &str = "inject=fdatasync:error=EIO:when=6+3";

fn client(url: &str, directory: &Path) -> Client {
    let queue = Queue::disk(directory).fsync_every(std::time::Duration::from_millis(1));
    Client::builder("disk").brokers([url]).unwrap().queue(queue).build().unwrap()
}

/// One of the functions below, in a process whose system calls strace writes down or answers.
fn traced(how: &[&str], trace: &Path, function: &str) -> Command {
    let mut command = bring::program("strace").unwrap_or_else(|error| panic!("{error}")).command();
    command.arg("-f").args(how).arg("-o").arg(trace);
    command.arg(std::env::current_exe().unwrap()).args(["--exact", function, "--nocapture"]);
    command
}

/// Not a test of its own: the process of [`f33_a_failed_sync_is_told_by_type_and_costs_nothing_that_was_admitted`].
#[tokio::test]
async fn publisher_on_a_failing_disk() {
    let Some(directory) = std::env::var_os("MODAX_QUEUE_ON_A_FAILING_DISK") else { return };
    let client = client("mqtt://127.0.0.1:9", Path::new(&directory));
    for number in 0..MESSAGES {
        match within("an answer", client.publish(Message::new("disk", number.to_string()))).await {
            Ok(_) => println!("admitted {number}"),
            Err(error @ PublishError::Disk { .. }) if error.is_transient() && error.outcome_unknown() => {
                println!("refused {number} {error}");
            }
            Err(other) => panic!("{other}"),
        }
    }
    let this = rustix::process::getpid();
    rustix::process::kill_process(this, rustix::process::Signal::KILL).unwrap();
}

#[tokio::test]
async fn f33_a_failed_sync_is_told_by_type_and_costs_nothing_that_was_admitted() {
    let folder = Folder::new("fsync");
    let trace = folder.0.join("trace");
    let mut command = traced(&["-e", "trace=fdatasync", "-e", FAULT], &trace, "fsync::publisher_on_a_failing_disk");
    let mut child =
        command.env("MODAX_QUEUE_ON_A_FAILING_DISK", folder.queue()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut admitted, mut refused) = (Vec::new(), Vec::new());
    for line in BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok) {
        let number = |word: &str| line.split_once(word)?.1.split(' ').next()?.parse::<u64>().ok();
        admitted.extend(number("admitted "));
        if let Some(number) = number("refused ") {
            assert!(line.contains("Input/output error"), "{line}");
            refused.push(number);
        }
    }
    assert!(!child.wait().unwrap().success(), "it was not killed");
    let injected = std::fs::read_to_string(&trace).unwrap().matches("(INJECTED)").count();

    assert!(injected > 1, "no fault fired");
    assert_eq!(admitted.len() + refused.len(), usize::try_from(MESSAGES).unwrap(), "{admitted:?} {refused:?}");
    assert!(!refused.is_empty() && refused.len() <= injected, "{refused:?} of {injected}");
    assert!(admitted.last() > refused.first(), "it did not go on: {admitted:?} {refused:?}");
    let found = disk::inspect(folder.queue()).unwrap();
    assert!(found.is_sound(), "{found:?}");
    let broker = ScriptedBroker::start(Script::new()).await.unwrap();
    let client = client(&broker.url(), &folder.queue());
    emptied(&client).await;
    assert_eq!(numbers(&broker), admitted, "what was admitted before and after each failure, and nothing else");
    within("the close", client.close(DEADLINE)).await;
}

#[test]
fn the_name_of_a_file_is_on_disk_before_what_is_in_it_counts() {
    let folder = Folder::new("names");
    let trace = folder.0.join("trace");
    let calls = ["-y", "-e", "trace=openat,fsync,fdatasync"];
    let mut command = traced(&calls, &trace, "fsync::publisher_on_a_failing_disk");
    let killed = command.env("MODAX_QUEUE_ON_A_FAILING_DISK", folder.queue()).stdout(Stdio::null()).status().unwrap();
    assert!(!killed.success(), "it was not killed");

    let said = std::fs::read_to_string(&trace).unwrap();
    let directory = std::fs::canonicalize(folder.queue()).unwrap().display().to_string();
    let place = |what: &str, path: &str| {
        let is_it = |line: &&str| {
            line.contains(what) && (line.contains(&format!("<{path}>")) || line.contains(&format!("\"{path}\"")))
        };
        said.lines().position(|line| is_it(&line)).unwrap_or_else(|| panic!("no {what} of {path} in\n{said}"))
    };
    let files: Vec<_> = said.lines().filter(|line| line.contains("O_CREAT") && line.contains(".queue\"")).collect();
    assert!(!files.is_empty(), "no file was made:\n{said}");
    for made in files {
        let path = made.split('"').nth(1).expect("a path");
        let order =
            [place("openat(", path), place(" fsync(", path), place(" fsync(", &directory), place(" fdatasync(", path)];
        assert!(order.is_sorted(), "{order:?} in\n{said}");
    }
}

/// Enough for many blocks.
const STORED: u64 = 1000;
/// The first read, of the whole file, and every third after it, of a block.
const UNREADABLE: &str = "inject=read:error=EIO:when=1+3";

/// Not a test of its own: the process of [`f32_blocks_that_cannot_be_read_cost_the_messages_in_them_and_no_others`].
#[test]
fn salvage_from_a_failing_disk() {
    let Some(directory) = std::env::var_os("MODAX_QUEUE_ON_AN_UNREADABLE_DISK") else { return };
    let directory = Path::new(&directory);
    let found = disk::salvage(directory, directory.with_extension("saved")).unwrap();
    assert!(!found.is_sound(), "what could not be read counts as damage");
}

#[tokio::test]
async fn f32_blocks_that_cannot_be_read_cost_the_messages_in_them_and_no_others() {
    let folder = Folder::new("unreadable");
    folder.fill(STORED).await;
    let file = folder.files().into_iter().max_by_key(|path| path.metadata().unwrap().len()).unwrap();
    let trace = folder.0.join("trace");
    let how = ["-P", file.to_str().unwrap(), "-e", "trace=read", "-e", UNREADABLE];
    let mut command = traced(&how, &trace, "fsync::salvage_from_a_failing_disk");
    let ended = command.env("MODAX_QUEUE_ON_AN_UNREADABLE_DISK", folder.queue()).output().unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));

    let blocks = std::fs::read_to_string(&trace).unwrap().matches("(INJECTED)").count() - 1;
    assert!(blocks > 1, "no fault fired");
    let each = file.metadata().unwrap().len() / STORED;
    let in_a_block = 4096 / each + 2;
    let saved = disk::inspect(folder.queue().with_extension("saved")).unwrap();
    let lost = STORED - u64::try_from(saved.waiting.len()).unwrap();
    assert!(
        lost > 0 && lost <= in_a_block * u64::try_from(blocks).unwrap(),
        "{lost} of {blocks} blocks with {in_a_block}"
    );
    for message in saved.waiting {
        assert_eq!(message.payload, message.sequence.to_string().as_bytes());
    }
}

//! The queue on a disk that fails to synchronise: the kernel's own answer, through strace's hands, to a process that is
//! then killed.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::Stdio,
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
    let mut command = bring::program("strace").unwrap_or_else(|error| panic!("{error}")).command();
    command.args(["-f", "-e", "trace=fdatasync", "-e", FAULT, "-o"]).arg(&trace);
    command.arg(std::env::current_exe().unwrap()).args([
        "--exact",
        "fsync::publisher_on_a_failing_disk",
        "--nocapture",
    ]);
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

//! The queue on disk: what was admitted survives the process, in order, and nobody else has it meanwhile.

use std::{
    collections::BTreeSet,
    future::Future,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use modax_mqtt_failover::{
    Client, ConfigError, Event, Message, Observer, Outcome, PublishError, Queue, Rejection, UserProperties, disk,
    queue::segment::{Record, SegmentId, StoredMessage, encode},
};
use modax_testbed::broker::{Limits, Script, ScriptedBroker};

pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, work).await.unwrap_or_else(|_| panic!("not in time: {what}"))
}

/// A directory of its own, gone with the value.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("modax-queue-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn queue(&self) -> PathBuf {
        self.0.join("queue")
    }

    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let mut files: Vec<_> = std::fs::read_dir(self.queue()).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.retain(|path| path.extension().is_some_and(|extension| extension == "queue"));
        files.sort();
        files
    }

    /// Leaves so many messages in the queue, of a client without a broker.
    pub(crate) async fn fill(&self, messages: u64) {
        let client = client("mqtt://127.0.0.1:9", &self.queue()).unwrap();
        for number in 0..messages {
            drop(within("on disk", client.publish(Message::new("disk", number.to_string()))).await.unwrap());
        }
        within("the close", client.close(Duration::ZERO)).await;
    }

    /// Does something to the largest file of the queue.
    fn damage(&self, damage: impl FnOnce(&mut Vec<u8>)) {
        let largest = self.files().into_iter().max_by_key(|path| path.metadata().unwrap().len()).unwrap();
        let mut content = std::fs::read(&largest).unwrap();
        damage(&mut content);
        std::fs::write(&largest, content).unwrap();
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn client(url: &str, directory: &Path) -> Result<Client, ConfigError> {
    let queue = Queue::disk(directory).max_messages(100_000).fsync_every(Duration::from_millis(1));
    Client::builder("disk").brokers([url])?.queue(queue).build()
}

pub(crate) fn numbers(broker: &ScriptedBroker) -> Vec<u64> {
    let number = |payload: &[u8]| String::from_utf8_lossy(payload).parse().unwrap();
    broker.publishes().iter().map(|publish| number(&publish.payload)).collect()
}

pub(crate) async fn emptied(client: &Client) {
    within("an empty queue", async {
        while client.stats().queue_messages > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn what_a_closed_client_could_not_deliver_is_sent_by_the_next_in_order_and_once() {
    let folder = Folder::new("restart");
    let broker = ScriptedBroker::start(Script::new()).await.unwrap();
    broker.stop();
    let first = client(&broker.url(), &folder.queue()).unwrap();
    for number in 0..50_u64 {
        let message = Message::new("disk", number.to_string());
        let message = if number == 7 { message.expires_in(Duration::from_millis(1)) } else { message };
        drop(within("on disk", first.publish(message)).await.unwrap());
    }
    let left = within("the close", first.close(Duration::ZERO)).await;
    assert!(left.undelivered.len() >= 49, "{}", left.undelivered.len());

    broker.restart().unwrap();
    let second = client(&broker.url(), &folder.queue()).unwrap();
    let receipt = within("on disk", second.publish(Message::new("disk", "50"))).await.unwrap();
    assert!(within("an outcome", receipt.acked()).await.is_acked());
    emptied(&second).await;
    let expected: Vec<u64> = (0..=50).filter(|number| *number != 7).collect();
    assert_eq!(numbers(&broker), expected);
    within("the close", second.close(DEADLINE)).await;

    let third = client(&broker.url(), &folder.queue()).unwrap();
    assert_eq!(third.stats().queue_messages, 0, "settled messages came back");
    within("the close", third.close(DEADLINE)).await;
    assert!(disk::inspect(folder.queue()).unwrap().waiting.is_empty());
}

#[tokio::test]
async fn what_was_recovered_has_receipts_that_know_each_outcome_whenever_they_are_asked_for() {
    let folder = Folder::new("recovered");
    let before = client("mqtt://127.0.0.1:1", &folder.queue()).unwrap();
    assert!(before.recovered().is_empty(), "there was nothing");
    let messages = [
        Message::new("acked", "0"),
        Message::new("expired", "1").expires_in(Duration::from_millis(1)),
        Message::new("refused", vec![b'2'; 400]),
        Message::new("acked", "3"),
    ];
    for message in messages {
        drop(within("on disk", before.publish(message)).await.unwrap());
    }
    within("the close", before.close(Duration::ZERO)).await;

    // What a first process finds and does not bring to its end, a second finds again.
    let nobody = client("mqtt://127.0.0.1:1", &folder.queue()).unwrap();
    let found = nobody.recovered();
    within("the close", nobody.close(Duration::ZERO)).await;
    for recovered in found {
        let may_expire = &*recovered.topic == "expired";
        let outcome = within("an outcome", recovered.receipt.acked()).await;
        // The first process may have sent it.
        let has_expired = outcome == Outcome::Expired { maybe_delivered: true };
        assert!(
            outcome == Outcome::Undelivered { maybe_delivered: true } || (may_expire && has_expired),
            "{outcome:?}"
        );
    }

    let limits = Limits { max_packet_bytes: Some(300), ..Limits::default() };
    let broker = ScriptedBroker::start(Script::new().limits(limits)).await.unwrap();
    let after = client(&format!("{}?version=5", broker.url()), &folder.queue()).unwrap();
    let new = within("on disk", after.publish(Message::new("new", "4"))).await.unwrap();
    let new_id = new.id();
    assert!(within("an outcome", new.acked()).await.is_acked());
    emptied(&after).await;
    let found = after.recovered();
    assert!(after.clone().recovered().is_empty(), "each receipt is there once");
    let ids: Vec<_> = found.iter().map(|recovered| recovered.receipt.id()).collect();
    assert!(ids.is_sorted() && ids.iter().all(|id| *id < new_id), "{ids:?} before {new_id:?}");
    let mut outcomes = Vec::new();
    for mut recovered in found {
        let outcome = recovered.receipt.try_outcome().expect("it is known: nothing is left in the queue");
        outcomes.push((recovered.topic.to_string(), outcome));
    }
    let topics: Vec<_> = outcomes.iter().map(|(topic, _)| topic.as_str()).collect();
    let expected = ["acked", "expired", "refused", "acked"];
    // The middle process may have lived long enough to give up what had expired.
    let expected = expected.iter().filter(|topic| topics.contains(topic)).copied().collect::<Vec<_>>();
    assert!(topics == expected && topics.len() >= 3, "{topics:?}");
    for (topic, outcome) in &outcomes {
        match topic.as_str() {
            "acked" => assert!(matches!(outcome, Outcome::Acked { attempts: 1, .. }), "{outcome:?}"),
            "expired" => assert_eq!(*outcome, Outcome::Expired { maybe_delivered: true }),
            _ => {
                let Outcome::Rejected { reason, maybe_delivered } = outcome else { panic!("{outcome:?}") };
                assert!(matches!(reason, Rejection::TooLarge { limit_bytes: 300, .. }) && *maybe_delivered);
            }
        }
    }
    within("the close", after.close(DEADLINE)).await;
}

#[tokio::test]
async fn what_expired_while_nobody_had_the_queue_may_have_been_sent_before() {
    let folder = Folder::new("expired");
    let message = StoredMessage {
        sequence: 0,
        qos_level: 1,
        retained: false,
        expires_at_unix_ms: Some(1),
        topic: Arc::from("expired"),
        user_properties: UserProperties::default(),
        payload: "0".into(),
    };
    let segment = SegmentId::new(0, 1);
    let mut content = segment.header();
    encode(segment, &Record::Message(message), &mut content).unwrap();
    std::fs::create_dir(folder.queue()).unwrap();
    std::fs::write(folder.queue().join(segment.file_name()), content).unwrap();

    let client = client("mqtt://127.0.0.1:9", &folder.queue()).unwrap();
    let found = client.recovered().pop().expect("it was on disk");
    assert_eq!(within("an outcome", found.receipt.acked()).await, Outcome::Expired { maybe_delivered: true });
    within("the close", client.close(Duration::ZERO)).await;
}

#[tokio::test]
async fn starts_that_admit_nothing_leave_no_files_beside_a_message_that_waits() {
    let folder = Folder::new("starts");
    for start in 0..5 {
        let client = client("mqtt://127.0.0.1:9", &folder.queue()).unwrap();
        if start == 0 {
            drop(within("on disk", client.publish(Message::new("disk", "0"))).await.unwrap());
        }
        within("the close", client.close(Duration::ZERO)).await;
        // Its own, and the one of the message.
        assert!(folder.files().len() <= 2, "{:?} after start {start}", folder.files());
    }
    assert_eq!(disk::inspect(folder.queue()).unwrap().waiting.len(), 1);
}

#[tokio::test]
async fn one_process_at_a_time_has_the_queue() {
    let folder = Folder::new("lock");
    let first = client("mqtt://127.0.0.1:9", &folder.queue()).unwrap();

    assert!(matches!(client("mqtt://127.0.0.1:9", &folder.queue()), Err(ConfigError::Queue { .. })));
    assert!(disk::inspect(folder.queue()).is_err());

    within("the close", first.close(Duration::ZERO)).await;
    let second = client("mqtt://127.0.0.1:9", &folder.queue()).unwrap();
    within("the close", second.close(Duration::ZERO)).await;
}

/// Not a test of its own: the process that [`f32_a_killed_publisher_leaves_all_it_was_told_is_admitted`] kills.
#[tokio::test]
async fn publisher_to_be_killed() {
    let Some(directory) = std::env::var_os("MODAX_QUEUE_TO_BE_KILLED") else { return };
    let client = client("mqtt://127.0.0.1:9", Path::new(&directory)).unwrap();
    let mut number = client.stats().queue_messages;
    loop {
        drop(client.publish(Message::new("disk", number.to_string())).await.unwrap());
        println!("admitted {number}");
        number += 1;
    }
}

#[tokio::test]
async fn f32_a_killed_publisher_leaves_all_it_was_told_is_admitted() {
    let folder = Folder::new("killed");
    let mut admitted = 0;
    for round in 1..=5_u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "disk::publisher_to_be_killed", "--nocapture"])
            .env("MODAX_QUEUE_TO_BE_KILLED", folder.queue())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let mut seen = 0;
        for line in lines {
            let Some(number) = line.rsplit_once("admitted ").and_then(|(_, number)| number.parse::<u64>().ok()) else {
                continue;
            };
            admitted = admitted.max(number + 1);
            seen += 1;
            if seen == 20 * round {
                child.kill().unwrap();
            }
        }
        assert!(!child.wait().unwrap().success(), "the publisher ended by itself");
        assert!(seen >= 20 * round, "only {seen} admissions");
    }

    let found = disk::inspect(folder.queue()).unwrap();
    assert!(found.is_sound(), "{found:?}");
    let broker = ScriptedBroker::start(Script::new()).await.unwrap();
    let client = client(&broker.url(), &folder.queue()).unwrap();
    emptied(&client).await;
    let arrived = numbers(&broker);
    let distinct: BTreeSet<_> = arrived.iter().copied().collect();
    assert!((0..admitted).all(|number| distinct.contains(&number)), "{admitted} admitted, {} arrived", distinct.len());
    assert!(arrived.is_sorted(), "out of order");
    within("the close", client.close(DEADLINE)).await;
}

#[tokio::test]
async fn f32_damage_costs_what_it_hits_is_reported_and_the_rest_is_saved() {
    let folder = Folder::new("damage");
    folder.fill(20).await;
    folder.damage(|content| {
        let middle = content.len() / 2;
        content[middle] ^= 0x10;
    });

    let found = disk::inspect(folder.queue()).unwrap();
    assert!(!found.is_sound());
    assert_eq!(found.waiting.len(), 19);
    let saved = disk::salvage(folder.queue(), folder.0.join("saved")).unwrap();
    assert_eq!(saved.waiting.len(), 19);
    assert!(disk::inspect(folder.0.join("saved")).unwrap().is_sound());

    let broker = ScriptedBroker::start(Script::new()).await.unwrap();
    let second = client(&broker.url(), &folder.queue()).unwrap();
    assert_eq!(second.stats().damaged, 1);
    let event = within("an event", second.events().next()).await;
    let said = matches!(event, Some(Event::QueueDamaged { stretches: 1, bytes }) if bytes == found.damaged_bytes());
    assert!(said, "{event:?}, {found:?}");
    emptied(&second).await;
    assert_eq!(numbers(&broker).len(), 19);
    within("the close", second.close(DEADLINE)).await;
}

#[tokio::test]
async fn f32_what_stands_where_saved_messages_are_to_go_is_left_there() {
    let folder = Folder::new("occupied");
    folder.fill(1).await;
    // Nothing in it can be read, so that a queue which is opened there would have no use for it.
    let target = folder.0.join("occupied");
    std::fs::create_dir(&target).unwrap();
    let file = target.join(folder.files()[0].file_name().unwrap());
    std::fs::write(&file, [7; 80]).unwrap();

    let refused = disk::salvage(folder.queue(), &target).unwrap_err();

    assert_eq!(refused.kind(), std::io::ErrorKind::AlreadyExists);
    assert_eq!(std::fs::read(&file).unwrap(), [7; 80]);

    // A full disk leaves no more than the header.
    let header = std::fs::read(&folder.files()[0]).unwrap();
    std::fs::write(&file, &header[..32]).unwrap();
    disk::salvage(folder.queue(), &target).unwrap();
    assert_eq!(disk::inspect(&target).unwrap().waiting.len(), 1);
}

#[tokio::test]
async fn a_pipe_named_like_a_queue_file_is_no_file_and_not_waited_for() {
    let folder = Folder::new("pipe");
    let queue = folder.queue();
    std::fs::create_dir(&queue).unwrap();
    let name = "0000000000000000-11ef6d9675d28d32.queue";
    rustix::fs::mknodat(rustix::fs::CWD, queue.join(name), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();

    let looked = tokio::task::spawn_blocking(move || disk::inspect(&queue).map_err(|error| error.to_string()));

    assert_eq!(within("an answer", looked).await.unwrap(), Err(format!("{name} is no file")));
}

#[tokio::test]
async fn f32_a_damaged_header_is_damage_also_where_nothing_is_lost() {
    let folder = Folder::new("header");
    folder.fill(1).await;
    folder.damage(|content| content[9] ^= 1);

    let found = disk::inspect(folder.queue()).unwrap();

    assert_eq!((found.is_sound(), found.damaged_bytes(), found.waiting.len()), (false, 32, 1));
}

#[tokio::test]
async fn f32_a_write_that_a_crash_cut_short_is_no_damage_at_any_start() {
    let folder = Folder::new("cut-short");
    folder.fill(1).await;
    folder.damage(|content| content.extend_from_slice(b"MQR1"));
    assert_eq!(disk::inspect(folder.queue()).unwrap().damaged_bytes(), 4);

    for _ in 0..2 {
        let client = client("mqtt://127.0.0.1:9", &folder.queue()).unwrap();
        assert_eq!((client.stats().damaged, client.stats().queue_messages), (0, 1));
        let event = within("an event", client.events().next()).await;
        assert!(!matches!(event, Some(Event::QueueDamaged { .. })), "{event:?}");
        within("the close", client.close(Duration::ZERO)).await;
    }
}

#[tokio::test]
async fn f31_a_disk_that_refuses_is_a_typed_error_and_what_was_admitted_stays() {
    let folder = Folder::new("refused");
    let broker = ScriptedBroker::start(Script::new()).await.unwrap();
    broker.stop();
    let queue = Queue::disk(folder.queue()).max_bytes(256 << 20).fsync_every(Duration::from_millis(1));
    let client = Client::builder("disk").brokers([broker.url()]).unwrap().queue(queue).build().unwrap();
    drop(within("on disk", client.publish(Message::new("disk", "0"))).await.unwrap());

    // The folder is taken away: the file in use goes on, the next one cannot be begun.
    let away = folder.0.join("away");
    std::fs::rename(folder.queue(), &away).unwrap();
    let mut refused = None;
    for _ in 0..40 {
        if let Err(error) = within("an answer", client.publish(Message::new("disk", vec![b'1'; 1 << 20]))).await {
            refused = Some(error);
            break;
        }
    }
    assert!(matches!(refused, Some(PublishError::Disk { .. })), "the disk never refused: {refused:?}");
    assert!(refused.is_some_and(|error| error.is_transient()));

    std::fs::rename(&away, folder.queue()).unwrap();
    let after = within("an answer", client.publish(Message::new("disk", "2"))).await;
    let receipt = after.expect("it recovers by itself");
    broker.restart().unwrap();
    assert!(within("an outcome", receipt.acked()).await.is_acked());
    assert!(broker.publishes().iter().any(|publish| publish.payload == "0"), "what was admitted before is lost");
    within("the close", client.close(DEADLINE)).await;
}

#[tokio::test]
async fn user_properties_survive_the_process_and_are_never_cut_off_by_an_older_protocol() {
    let folder = Folder::new("properties");
    let nobody = client("mqtt://127.0.0.1:1?version=5", &folder.queue()).unwrap();
    let message = Message::new("disk", "1").user_property("one", "1").user_property("one", "2");
    drop(within("admission", nobody.publish(message)).await.unwrap());
    within("the end", nobody.close(Duration::ZERO)).await;

    let survey = disk::inspect(folder.queue()).unwrap();
    let kept: Vec<_> = survey.waiting.iter().flat_map(|message| message.user_properties.iter()).collect();
    assert_eq!(kept, [("one", "1"), ("one", "2")]);

    let broker = ScriptedBroker::start(Script::new()).await.unwrap();
    let refused = client(&broker.url(), &folder.queue()).expect_err("3.1.1 cannot carry them").to_string();
    assert!(refused.contains("1 of its messages have user properties"), "{refused}");
    let survey = disk::inspect(folder.queue()).unwrap();
    assert_eq!((survey.waiting.len(), survey.is_sound()), (1, true), "it waits for a client that can");
    assert_eq!(broker.connections(), 0);
}

#[tokio::test]
async fn a_publish_that_waits_for_room_gets_what_recovered_messages_leave() {
    let folder = Folder::new("room");
    let broker = ScriptedBroker::start(Script::new()).await.unwrap();
    let start = || {
        let queue = Queue::disk(folder.queue()).max_messages(2);
        Client::builder("room").brokers([broker.url()]).unwrap().queue(queue)
    };
    broker.stop();
    let client = start().build().unwrap();
    for payload in ["1", "2"] {
        drop(within("an admission", client.publish(Message::new("a", payload))).await.unwrap());
    }
    within("the end", client.close(Duration::ZERO)).await;

    let counts = Arc::new(Counts::default());
    let client = start().observer(counts.clone()).build().unwrap();
    assert_eq!(client.try_publish(Message::new("a", "3")).unwrap_err(), PublishError::Full);
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { client.publish(Message::new("a", "3")).await.unwrap().acked().await }
    });
    broker.restart().unwrap();

    assert!(within("the one that waited", waiting).await.unwrap().is_acked());
    // The outcome is heard before the receipt has it.
    assert_eq!(counts.acked.load(Ordering::SeqCst), 3, "those of the earlier process among them");
    assert_eq!(counts.connected.load(Ordering::SeqCst), 1);
}

#[derive(Default)]
struct Counts {
    acked: AtomicUsize,
    connected: AtomicUsize,
}

impl Observer for Counts {
    fn on_event(&self, event: &Event) {
        self.connected.fetch_add(usize::from(matches!(event, Event::Connected { .. })), Ordering::SeqCst);
    }

    fn on_outcome(&self, outcome: &Outcome) {
        self.acked.fetch_add(usize::from(outcome.is_acked()), Ordering::SeqCst);
    }
}

#[tokio::test]
async fn looking_into_a_queue_writes_nothing_and_two_may_look() {
    let folder = Folder::new("read-only");
    let broker = ScriptedBroker::start(Script::new()).await.unwrap();
    broker.stop();
    let client =
        Client::builder("reader").brokers([broker.url()]).unwrap().queue(Queue::disk(folder.queue())).build().unwrap();
    drop(within("an admission", client.publish(Message::new("a", "1"))).await.unwrap());
    assert!(disk::inspect(folder.queue()).is_err(), "a client has it open");
    within("the end", client.close(Duration::ZERO)).await;
    std::fs::remove_file(folder.queue().join("lock")).unwrap();
    let names = || -> BTreeSet<_> {
        std::fs::read_dir(folder.queue()).unwrap().map(|entry| entry.unwrap().file_name()).collect()
    };
    let before = names();

    assert_eq!(disk::inspect(folder.queue()).unwrap().waiting.len(), 1);

    assert_eq!(names(), before);
}

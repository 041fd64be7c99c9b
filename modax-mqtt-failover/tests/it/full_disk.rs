//! The queue on a real small disk: full while publishing, full at the start, read-only, and how it goes on after each.

use std::time::Duration;

use modax_mqtt_failover::{Client, ConfigError, Event, Message, PublishError, Queue, WhenFull, disk};
use modax_testbed::{
    broker::{Puback, Script, ScriptedBroker},
    namespace::{Namespace, SmallDisk},
};

use crate::disk::{DEADLINE, Folder, emptied, numbers, within};

/// A small disk, and what was admitted to the queue on it.
struct Plant {
    // Before the folder: what is mounted is gone before its place is.
    disk: SmallDisk,
    _folder: Folder,
    broker: ScriptedBroker,
    admitted: Vec<u64>,
    next: u64,
    /// Bytes of each payload.
    size: usize,
    max_messages: usize,
    when_full: WhenFull,
}

impl Plant {
    async fn new(name: &str, kib: u32, size: usize) -> Self {
        let folder = Folder::new(name);
        let disk = SmallDisk::mount(&folder.0.join("disk"), kib);
        let broker = ScriptedBroker::start(Script::new()).await.unwrap();
        Self {
            disk,
            _folder: folder,
            broker,
            admitted: Vec::new(),
            next: 0,
            size,
            max_messages: 100_000,
            when_full: WhenFull::Wait,
        }
    }

    fn queue(&self) -> std::path::PathBuf {
        self.disk.path().join("queue")
    }

    fn build(&self) -> Result<Client, ConfigError> {
        let queue = Queue::disk(self.queue()).max_messages(self.max_messages).max_bytes(256 << 20);
        let queue = queue.when_full(self.when_full).fsync_every(Duration::from_millis(1));
        Client::builder("small").brokers([self.broker.url()])?.queue(queue).build()
    }

    /// Publishes the next number; what was admitted is on disk.
    async fn publish(&mut self, client: &Client) -> Result<(), PublishError> {
        let digits = self.next.to_string();
        let payload = [vec![b'0'; self.size - digits.len()], digits.into_bytes()].concat();
        self.next += 1;
        drop(within("an answer", client.publish(Message::new("disk", payload))).await?);
        self.admitted.push(self.next - 1);
        Ok(())
    }

    /// Publishes until the disk refuses one, and says how.
    async fn fill(&mut self, client: &Client) -> String {
        for _ in 0..10_000 {
            match self.publish(client).await {
                Ok(()) => {}
                Err(error @ PublishError::Disk { .. }) if error.is_transient() => return error.to_string(),
                Err(other) => panic!("{other}"),
            }
        }
        panic!("the disk never refused");
    }

    /// Publishes until one is admitted: it goes on by itself.
    async fn goes_on(&mut self, client: &Client) {
        within("an admission", async {
            while self.publish(client).await.is_err() {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    /// All that was admitted has arrived, in order, and nothing else has; how many came again.
    fn judge(&self) -> usize {
        let mut seen = std::collections::BTreeSet::new();
        let arrived = numbers(&self.broker);
        let first: Vec<u64> = arrived.iter().copied().filter(|number| seen.insert(*number)).collect();
        assert_eq!(first, self.admitted, "admitted and arrived differ");
        arrived.len() - first.len()
    }
}

#[tokio::test]
async fn f31_a_disk_that_fills_up_refuses_by_type_delivers_all_it_admitted_and_goes_on() {
    if !Namespace::Mount
        .has_entered("full_disk::f31_a_disk_that_fills_up_refuses_by_type_delivers_all_it_admitted_and_goes_on")
    {
        return;
    }
    // A disk smaller than one file of the queue, and three times: full, emptied, full again.
    let mut plant = Plant::new("fills-up", 768, 1000).await;
    plant.broker.stop();
    let client = plant.build().unwrap();
    for round in 1..=3 {
        let refused = plant.fill(&client).await;
        assert!(refused.contains("No space left on device"), "{refused}");
        let admitted = plant.admitted.len();
        for _ in 0..20 {
            assert!(matches!(plant.publish(&client).await, Err(PublishError::Disk { .. })), "round {round}");
        }
        assert_eq!(plant.admitted.len(), admitted, "round {round}");

        plant.broker.restart().unwrap();
        emptied(&client).await;
        plant.goes_on(&client).await;
        emptied(&client).await;
        plant.broker.stop();
    }
    within("the close", client.close(DEADLINE)).await;

    assert_eq!((plant.judge(), client.stats().unwritten), (0, 0));
    assert!(disk::inspect(plant.queue()).unwrap().waiting.is_empty(), "a next start would send something again");
}

#[tokio::test]
async fn f31_a_disk_that_refuses_the_newest_costs_none_of_the_older_ones_whatever_the_policy() {
    if !Namespace::Mount
        .has_entered("full_disk::f31_a_disk_that_refuses_the_newest_costs_none_of_the_older_ones_whatever_the_policy")
    {
        return;
    }
    for (name, policy) in [("oldest", WhenFull::ShedOldest), ("latest", WhenFull::LatestPerTopic)] {
        let mut plant = Plant::new(name, 768, 1000).await;
        (plant.max_messages, plant.when_full) = (100, policy);
        plant.broker.stop();
        let client = plant.build().unwrap();
        plant.fill(&client).await;
        for _ in 0..300 {
            assert!(matches!(plant.publish(&client).await, Err(PublishError::Disk { .. })), "{policy:?}");
        }
        let shed = plant.admitted.len() - 100;
        let stats = client.stats();
        assert_eq!((stats.queue_messages, stats.shed), (100, shed as u64), "{policy:?}");
        assert!(shed > 0, "the queue was never full");
        plant.admitted.drain(..shed);
        plant.broker.restart().unwrap();
        emptied(&client).await;
        within("the close", client.close(DEADLINE)).await;
        assert_eq!(plant.judge(), 0, "{policy:?}");
    }
}

#[tokio::test]
async fn f31_a_disk_that_is_full_at_the_start_has_its_backlog_sent_and_then_takes_more() {
    if !Namespace::Mount
        .has_entered("full_disk::f31_a_disk_that_is_full_at_the_start_has_its_backlog_sent_and_then_takes_more")
    {
        return;
    }
    let mut plant = Plant::new("full-at-start", 768, 1000).await;
    plant.broker.stop();
    let client = plant.build().unwrap();
    plant.fill(&client).await;
    within("the close", client.close(Duration::ZERO)).await;
    // To the last byte, and nothing in reserve: what an earlier start may have left.
    std::fs::remove_file(plant.queue().join("reserve")).unwrap();
    assert!(plant.disk.fill("foreign") > 0);

    let client = plant.build().expect("opening needs no room");
    assert_eq!(client.stats().queue_messages, plant.admitted.len());
    assert!(matches!(plant.publish(&client).await, Err(PublishError::Disk { .. })));
    plant.broker.restart().unwrap();
    emptied(&client).await;
    plant.goes_on(&client).await;
    emptied(&client).await;
    within("the close", client.close(DEADLINE)).await;

    assert_eq!(plant.judge(), 0);
    assert!(disk::inspect(plant.queue()).unwrap().waiting.is_empty());
}

#[tokio::test]
async fn f31_outcomes_on_a_full_disk_go_into_the_reserve_and_their_messages_do_not_come_again() {
    if !Namespace::Mount
        .has_entered("full_disk::f31_outcomes_on_a_full_disk_go_into_the_reserve_and_their_messages_do_not_come_again")
    {
        return;
    }
    let mut plant = Plant::new("reserve", 1024, 100).await;
    plant.broker.stop();
    let client = plant.build().unwrap();
    plant.fill(&client).await;
    let reserve = plant.queue().join("reserve");
    assert!(reserve.exists(), "the room is kept before a message is taken");
    let acked = plant.admitted.len() as u64 / 2;
    plant.broker.set(Script::new().acks_first(acked).puback(Puback::Missing));
    plant.broker.restart().unwrap();
    within("half of the acknowledgements", async {
        while client.stats().acked < acked {
            tokio::task::yield_now().await;
        }
    })
    .await;
    within("the close", client.close(Duration::ZERO)).await;

    assert!(!reserve.exists(), "the disk was not full enough");
    assert_eq!(client.stats().unwritten, 0);
    let left = disk::inspect(plant.queue()).unwrap().waiting.len();
    assert_eq!(left, plant.admitted.len() - usize::try_from(acked).unwrap());
    plant.broker.set(Script::new());
    let client = plant.build().unwrap();
    emptied(&client).await;
    within("the close", client.close(DEADLINE)).await;
    plant.judge();
}

#[tokio::test]
async fn f31_outcomes_without_room_are_told_counted_and_written_when_there_is_some() {
    if !Namespace::Mount
        .has_entered("full_disk::f31_outcomes_without_room_are_told_counted_and_written_when_there_is_some")
    {
        return;
    }
    let mut plant = Plant::new("no-room", 4096, 100).await;
    plant.broker.stop();
    let client = plant.build().unwrap();
    let mut events = client.events();
    for _ in 0..1000 {
        plant.publish(&client).await.unwrap();
    }
    // Somebody else fills the disk, and took the reserve for a leftover.
    std::fs::remove_file(plant.queue().join("reserve")).unwrap();
    assert!(plant.disk.fill("foreign") > 0);
    // The last message keeps the file: else it would be deleted, with everything in it.
    plant.broker.set(Script::new().acks_first(999).puback(Puback::Missing));
    plant.broker.restart().unwrap();

    within("the word on it", async {
        while !matches!(events.next().await, Some(Event::OutcomesUnwritten { messages: 1.. })) {}
    })
    .await;
    within("all but one acknowledged", async {
        while client.stats().acked < 999 || client.stats().unwritten == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    std::fs::remove_file(plant.disk.path().join("foreign")).unwrap();
    within("all outcomes on disk", async {
        while client.stats().unwritten > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    within("the close", client.close(Duration::ZERO)).await;

    assert_eq!(disk::inspect(plant.queue()).unwrap().waiting.len(), 1, "only what was not acknowledged comes again");
    plant.judge();
}

#[tokio::test]
async fn f31_a_queue_that_is_read_only_at_the_start_is_named_and_loses_nothing() {
    if !Namespace::Mount.has_entered("full_disk::f31_a_queue_that_is_read_only_at_the_start_is_named_and_loses_nothing")
    {
        return;
    }
    let mut plant = Plant::new("read-only", 4096, 100).await;
    plant.broker.stop();
    let client = plant.build().unwrap();
    for _ in 0..50 {
        plant.publish(&client).await.unwrap();
    }
    within("the close", client.close(Duration::ZERO)).await;
    plant.broker.restart().unwrap();
    plant.disk.remount(true);

    let Err(ConfigError::Queue { reason }) = plant.build() else { panic!("it was opened") };
    assert!(reason.starts_with(plant.queue().to_str().unwrap()) && reason.contains("Read-only"), "{reason}");
    assert_eq!(disk::inspect(plant.queue()).unwrap().waiting.len(), 50, "it can be looked into");
    assert!(plant.broker.connects().is_empty(), "it was sent, and would be at each start");

    plant.disk.remount(false);
    let client = plant.build().unwrap();
    emptied(&client).await;
    within("the close", client.close(DEADLINE)).await;
    assert_eq!(plant.judge(), 0);
}

/// The kernel makes no mount read-only under a file that is open for writing; only a failing disk does that to itself.
/// So it is the path that becomes read-only, which is what the queue's next file meets.
#[tokio::test]
async fn f31_a_path_that_becomes_read_only_in_mid_flight_refuses_by_type_and_goes_on_when_it_is_back() {
    if !Namespace::Mount.has_entered(
        "full_disk::f31_a_path_that_becomes_read_only_in_mid_flight_refuses_by_type_and_goes_on_when_it_is_back",
    ) {
        return;
    }
    let mut plant = Plant::new("turns-read-only", 64 << 10, 1 << 20).await;
    plant.broker.stop();
    let client = plant.build().unwrap();
    plant.publish(&client).await.unwrap();
    plant.disk.cover_read_only(&plant.queue());
    let refused = plant.fill(&client).await;
    assert!(refused.contains("Read-only file system"), "{refused}");
    plant.broker.restart().unwrap();
    emptied(&client).await;
    assert_eq!(client.stats().unwritten, 0, "the file that is open takes the outcomes");
    assert!(plant.publish(&client).await.is_err());

    plant.disk.uncover(&plant.queue());
    plant.goes_on(&client).await;
    emptied(&client).await;
    within("the close", client.close(DEADLINE)).await;
    assert_eq!(plant.judge(), 0);
    assert!(disk::inspect(plant.queue()).unwrap().waiting.is_empty());
}

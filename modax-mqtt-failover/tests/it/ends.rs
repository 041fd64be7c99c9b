//! How a client ends, whoever ends it; and what does not end it.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use futures_util::FutureExt;
use modax_mqtt_failover::{
    Client, Event, Message, Observer, Outcome, PublishError, Queue, WhenFull, disk,
    transport::{Dial, Transport},
};
use modax_testbed::broker::{Puback, Script, ScriptedBroker};
use tokio::io::{AsyncRead, ReadBuf};

use crate::disk::{DEADLINE, Folder, within};

/// Panics at whatever it is told, on whatever thread.
#[derive(Default)]
struct Hysterical {
    told: AtomicUsize,
    threads: Mutex<Vec<Option<String>>>,
}

impl Hysterical {
    fn panic(&self, what: &str) {
        self.told.fetch_add(1, Ordering::SeqCst);
        self.threads.lock().unwrap().push(std::thread::current().name().map(str::to_owned));
        panic!("an observer that panics: {what}");
    }
}

impl Observer for Hysterical {
    fn on_event(&self, event: &Event) {
        self.panic(&format!("{event:?}"));
    }

    fn on_outcome(&self, outcome: &Outcome) {
        self.panic(&format!("{outcome:?}"));
    }
}

#[tokio::test]
async fn an_observer_that_panics_at_everything_takes_neither_client_nor_queue_along() {
    let folder = Folder::new("hysterical");
    let broker = ScriptedBroker::start(Script::new()).await.unwrap();
    broker.stop();
    let observer = Arc::new(Hysterical::default());
    let queue = Queue::disk(folder.0.join("queue")).max_messages(2).when_full(WhenFull::ShedOldest);
    let client = Client::builder("hysterical").brokers([broker.url()]).unwrap().queue(queue);
    let client = client.observer(observer.clone()).build().unwrap();
    let mut events = client.events();

    let publish = |payload: &'static str| client.publish(Message::new("a", payload));
    let shed = within("on disk", publish("1")).await.unwrap();
    let kept = [within("on disk", publish("2")).await.unwrap(), within("on disk", publish("3")).await.unwrap()];
    assert_eq!(within("an outcome", shed.acked()).await, Outcome::Shed);
    assert!(observer.threads.lock().unwrap().iter().any(|name| name.as_deref() == Some("mqtt-queue")));
    broker.restart().unwrap();
    for receipt in kept {
        assert!(within("an outcome", receipt.acked()).await.is_acked());
    }
    assert!(within("on disk", publish("4")).await.is_ok(), "the queue goes on");
    assert!(within("the end", client.close(DEADLINE)).await.undelivered.is_empty());

    let mut seen = 0;
    while within("the end of the events", events.next()).await.is_some() {
        seen += 1;
    }
    let outcomes = 4;
    assert_eq!(observer.told.load(Ordering::SeqCst), seen + outcomes, "it was told all the same");
    assert!(disk::inspect(folder.0.join("queue")).unwrap().waiting.is_empty());
}

/// What is left of a client that nobody closed, as the handles see it.
async fn account_for(client: &Client, left: usize) {
    assert!(!client.status().is_connected());
    assert_eq!(client.publish(Message::new("a", "late")).await.unwrap_err(), PublishError::Closed);
    let stats = client.stats();
    assert_eq!((stats.undelivered, stats.queue_messages, stats.inflight), (left as u64, 0, 0));
    let closed = within("the end", client.close(DEADLINE)).await;
    assert_eq!(closed.undelivered.len(), left);
    assert!(
        within("the end", client.clone().close(DEADLINE)).await.undelivered.is_empty(),
        "it was given to the first"
    );
}

#[test]
fn f56_a_runtime_that_ends_leaves_a_status_counters_and_what_was_not_delivered() {
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let brokers = runtime();
    let broker = brokers.block_on(ScriptedBroker::start(Script::new().puback(Puback::Missing))).unwrap();
    let first = runtime();
    let (client, receipts) = first.block_on(async {
        let client = Client::builder("runtime").brokers([broker.url()]).unwrap().build().unwrap();
        let mut receipts = Vec::new();
        for payload in ["1", "2", "3"] {
            receipts.push(client.publish(Message::new("a", payload)).await.unwrap());
        }
        assert!(broker.wait_until(DEADLINE, |broker| broker.publishes().len() == 3).await);
        (client, receipts)
    });
    assert!(client.status().is_connected());

    first.shutdown_timeout(DEADLINE);

    brokers.block_on(async {
        for receipt in receipts {
            assert_eq!(within("an outcome", receipt.acked()).await, Outcome::Undelivered { maybe_delivered: true });
        }
        account_for(&client, 3).await;
    });
}

#[test]
fn f56_what_is_published_while_the_runtime_of_the_client_ends_is_refused_or_accounted_for() {
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let other = runtime();
    for _ in 0..20 {
        let first = runtime();
        let client = {
            let _within = first.enter();
            let queue = Queue::memory().max_messages(50);
            Client::builder("ends").brokers(["mqtt://127.0.0.1:1"]).unwrap().queue(queue).build().unwrap()
        };
        let publisher = client.clone();
        let publishing = std::thread::spawn(move || {
            while !matches!(publisher.try_publish(Message::new("a", "1")), Err(PublishError::Closed)) {}
        });
        drop(first);
        publishing.join().unwrap();
        other.block_on(async {
            let left = within("the end", client.close(DEADLINE)).await.undelivered.len();
            let stats = client.stats();
            assert_eq!((left as u64, stats.queue_messages), (stats.undelivered, 0));
            assert_eq!(stats.undelivered, stats.admitted);
        });
    }
}

struct Panicking;

impl AsyncRead for Panicking {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        panic!("a stream that panics");
    }
}

#[tokio::test]
async fn a_client_whose_task_panics_accounts_for_what_it_had() {
    let stream = |_: Dial| async { Ok(Transport::new(tokio::io::join(Panicking, tokio::io::sink()))) };
    let client = Client::builder("panicked").brokers(["mqtt://nowhere"]).unwrap().connector(stream).build().unwrap();
    let receipt = client.try_publish(Message::new("a", "1")).unwrap();
    assert_eq!(within("an outcome", receipt.acked()).await, Outcome::Undelivered { maybe_delivered: false });
    account_for(&client, 1).await;
}

#[tokio::test]
async fn what_is_left_goes_to_a_call_that_waits_for_it_and_the_shortest_deadline_holds() {
    let client = Client::builder("left").brokers(["mqtt://127.0.0.1:1"]).unwrap().build().unwrap();
    drop(client.publish(Message::new("a", "1")).await.unwrap());
    // It gives up waiting, and closes all the same.
    let given_up = client.close(std::time::Duration::MAX).now_or_never();
    assert!(given_up.is_none());
    let closed = within("the end", client.close(std::time::Duration::ZERO)).await;
    assert_eq!(closed.undelivered.len(), 1);
}

#[tokio::test]
async fn a_publisher_that_waits_for_room_hears_of_a_close_before_its_deadline() {
    let queue = Queue::memory().max_messages(1);
    let client = Client::builder("room").brokers(["mqtt://127.0.0.1:1"]).unwrap().queue(queue).build().unwrap();
    let receipt = client.publish(Message::new("a", "1")).await.unwrap();
    let mut waiting = Box::pin(client.publish(Message::new("a", "2")));
    assert!(waiting.as_mut().now_or_never().is_none());
    let mut closing = Box::pin(client.close(std::time::Duration::MAX));
    assert!(closing.as_mut().now_or_never().is_none());

    assert_eq!(within("the answer", waiting).await.unwrap_err(), PublishError::Closed);

    assert!(closing.as_mut().now_or_never().is_none(), "it goes on trying");
    within("the end", client.close(std::time::Duration::ZERO)).await;
    assert!(!receipt.acked().await.is_acked());
}

//! How a client ends, whoever ends it; and what does not end it.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

use modax_mqtt_failover::{Client, Event, Message, Observer, Outcome, Queue, WhenFull, disk};
use modax_testbed::broker::{Script, ScriptedBroker};

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

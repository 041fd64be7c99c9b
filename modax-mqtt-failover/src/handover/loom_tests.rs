//! Every interleaving of handles, readers and driver over the hand-over: no wake-up is lost, no message, no outcome.
//!
//! A lost wake-up leaves a thread that waits for ever, which the model reports as a deadlock. The driver here is what the
//! real one does with the hand-over, without what it does with brokers.

use std::time::Instant;

use loom::{future::block_on, thread};

use super::*;
use crate::{Client, Message, PublishError, Queue, WhenFull};

fn client(queue: Queue) -> (Client, Arc<Shared>) {
    let mut config = Config::from_urls("modelled", ["mqtt://broker"]).unwrap();
    config.queue = queue;
    let shared = Shared::new(&config, None);
    let handle = Handle { version: Version::V311, shared: Arc::clone(&shared) };
    (Client::new(Arc::new(handle)), shared)
}

/// Takes messages, `room` at a time, until it has `count` of them or was asked to close; whether it was.
fn drive(shared: &Shared, count: usize, room: usize) -> (Vec<MessageId>, bool) {
    let mut taken = Vec::new();
    loop {
        let mut state = shared.lock();
        let commands = std::mem::take(&mut state.commands);
        let messages = state.take(Instant::now(), room);
        drop(state);
        let is_full = messages.len() == room;
        taken.extend(messages.into_iter().map(|message| message.id));
        if commands.iter().any(|command| matches!(command, Command::Close { .. })) {
            return (taken, true);
        }
        if taken.len() >= count {
            return (taken, false);
        }
        if !is_full {
            block_on(shared.wake.notified());
        }
    }
}

/// What [`Driver`](crate::driver) does with an outcome.
fn settle(shared: &Shared, id: MessageId) {
    let (mut state, mut told) = (shared.lock(), Told::new());
    state.backlog.settle(id);
    state.end(id, Outcome::Undelivered { maybe_delivered: false }, &mut told);
    drop(state);
    shared.room.notify_waiters();
    shared.tell(told);
}

/// What the end of the driver does.
fn end(shared: &Shared) {
    let mut state = shared.lock();
    state.closed = true;
    state.ended = true;
    let unanswered = std::mem::take(&mut state.receipts);
    drop(state);
    drop(unanswered);
    shared.room.notify_waiters();
}

#[test]
fn loom_every_published_message_wakes_the_driver_or_is_seen_by_it() {
    loom::model(|| {
        let (client, shared) = client(Queue::memory());
        let driver = thread::spawn(move || drive(&shared, 2, 1).0);
        let second = {
            let client = client.clone();
            thread::spawn(move || client.try_publish(Message::new("t", "2")).map(|receipt| receipt.id()))
        };
        let first = client.try_publish(Message::new("t", "1")).map(|receipt| receipt.id());

        let mut published = vec![first.unwrap(), second.join().unwrap().unwrap()];
        published.sort_unstable();
        assert_eq!(driver.join().unwrap(), published, "in order of admission, each once");
    });
}

#[test]
fn loom_a_message_is_admitted_before_the_close_and_taken_or_refused() {
    loom::model(|| {
        let (client, shared) = client(Queue::memory());
        let publisher = {
            let client = client.clone();
            thread::spawn(move || client.try_publish(Message::new("t", "1")))
        };
        let driver = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                let (mut taken, closing) = drive(&shared, usize::MAX, 8);
                assert!(closing);
                taken.extend(shared.lock().backlog.drain().into_iter().map(|message| message.id));
                end(&shared);
                taken
            })
        };
        assert!(shared.command(Command::Close { deadline: Duration::ZERO }));

        let taken = driver.join().unwrap();
        match publisher.join().unwrap() {
            Ok(receipt) => {
                assert_eq!(taken, [receipt.id()]);
                assert!(!block_on(receipt.acked()).is_acked());
            }
            Err(refused) => {
                assert_eq!(refused, PublishError::Closed);
                assert!(taken.is_empty(), "refused and taken");
            }
        }
    });
}

#[test]
fn loom_a_publisher_that_waits_for_room_gets_it() {
    loom::model(|| {
        let (client, shared) = client(Queue::memory().max_messages(1).when_full(WhenFull::Wait));
        let first = client.try_publish(Message::new("t", "1")).unwrap();
        let driver = thread::spawn(move || {
            let (taken, _) = drive(&shared, 1, 1);
            taken.iter().for_each(|id| settle(&shared, *id));
        });

        let second = block_on(client.publish(Message::new("t", "2"))).unwrap();
        assert!(first.id() < second.id());
        driver.join().unwrap();
    });
}

#[test]
fn loom_a_publisher_that_waits_for_room_hears_of_the_end() {
    loom::model(|| {
        let (client, shared) = client(Queue::memory().max_messages(1).when_full(WhenFull::Wait));
        drop(client.try_publish(Message::new("t", "1")).unwrap());
        let driver = thread::spawn(move || end(&shared));

        let refused = block_on(client.publish(Message::new("t", "2"))).map(drop);
        assert_eq!(refused, Err(PublishError::Closed));
        driver.join().unwrap();
    });
}

#[test]
fn loom_an_outcome_reaches_its_receipt_whoever_ends_the_message_first() {
    loom::model(|| {
        let (client, shared) = client(Queue::memory());
        let receipt = client.try_publish(Message::new("t", "1")).unwrap();
        let dropped = client.try_publish(Message::new("t", "2")).unwrap();
        let (id, other) = (receipt.id(), dropped.id());
        let settling = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                settle(&shared, id);
                settle(&shared, other);
            })
        };
        let ending = thread::spawn(move || end(&shared));
        drop(dropped);

        assert!(matches!(block_on(receipt.acked()), Outcome::Undelivered { .. }));
        settling.join().unwrap();
        ending.join().unwrap();
    });
}

#[test]
fn loom_a_reader_that_makes_room_is_seen_or_wakes_the_driver() {
    loom::model(|| {
        let (_client, shared) = client(Queue::memory());
        // A channel of one place promises no more order than this.
        let is_full = Arc::new(AtomicBool::new(true));
        let driver = {
            let (shared, is_full) = (Arc::clone(&shared), Arc::clone(&is_full));
            thread::spawn(move || {
                // As `Driver::unblock`: the flag goes up before the second look.
                while is_full.load(Ordering::Acquire) {
                    shared.owe_readers(true);
                    let is_blocked = is_full.load(Ordering::Acquire);
                    shared.owe_readers(is_blocked);
                    if is_blocked {
                        block_on(shared.wake.notified());
                    }
                }
            })
        };
        is_full.store(false, Ordering::Release);
        shared.made_room();

        driver.join().unwrap();
    });
}

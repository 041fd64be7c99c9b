//! A program that keeps its runtime busy.

use std::time::{Duration, Instant};

use modax_mqtt_failover::{Client, Event, Message};
use modax_testbed::broker::{Script, ScriptedBroker};
use tokio::sync::mpsc;

use crate::disk::{DEADLINE, within};

/// So long a task works before others have a turn.
const WORK: Duration = Duration::from_millis(10);

/// Works, publishes and gives the other one a turn, again and again: there is always a task that is ready.
async fn work(client: Client, mut turns: mpsc::Receiver<u32>, other: mpsc::Sender<u32>) {
    while let Some(turn) = turns.recv().await {
        let begun = Instant::now();
        while begun.elapsed() < WORK {
            std::hint::spin_loop();
        }
        drop(client.try_publish(Message::new("busy", "x")));
        if turn == 0 || other.send(turn - 1).await.is_err() {
            return;
        }
    }
}

/// The only thread of its runtime; what the client has told by the end.
fn busy(url: &str) -> Vec<Event> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = Client::builder("busy").brokers([url]).unwrap().build().unwrap();
        let mut events = client.events();
        // It knows by then how fast this broker is.
        for _ in 0..50 {
            let receipt = client.publish(Message::new("busy", "x")).await.unwrap();
            assert!(within("an acknowledgement", receipt.acked()).await.is_acked());
        }
        let (first, turns) = mpsc::channel(1);
        let (second, others) = mpsc::channel(1);
        first.send(300).await.unwrap();
        let tasks =
            [tokio::spawn(work(client.clone(), turns, second)), tokio::spawn(work(client.clone(), others, first))];
        for task in tasks {
            task.await.unwrap();
        }
        within("the close", client.close(DEADLINE)).await;
        let mut told = Vec::new();
        while let Some(event) = events.next().await {
            told.push(event);
        }
        told
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn f55_answers_that_a_busy_runtime_has_not_looked_for_are_no_silence_of_the_brokers() {
    let broker = ScriptedBroker::start(Script::new()).await.unwrap();
    let url = broker.url();

    let told = tokio::task::spawn_blocking(move || busy(&url)).await.unwrap();

    assert!(broker.publishes().len() > 300, "{}", broker.publishes().len());
    let left = told.iter().filter(|event| matches!(event, Event::Disconnected { .. })).count();
    assert_eq!(left, 0, "{told:?}");
}

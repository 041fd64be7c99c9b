//! Many clients that lose one broker in the same instant.

use modax_mqtt_failover::{Client, Message, Outcome};
use modax_testbed::{Ground, Mosquitto, MosquittoOptions};

use crate::{DEADLINE, patient};

const CLIENTS: usize = 500;
/// So many begin at once.
const GROUP: usize = 50;

/// Each client publishes one message; where each was acknowledged.
async fn all_acked(clients: &[Client], payload: &'static str) -> Vec<u16> {
    let mut receipts = Vec::new();
    for client in clients {
        receipts.push(client.publish(Message::new("herd", payload)).await.expect("admitted"));
    }
    let mut ports = Vec::new();
    for receipt in receipts {
        match tokio::time::timeout(DEADLINE, receipt.acked()).await.expect("an outcome in time") {
            Outcome::Acked { broker, .. } => ports.push(broker.port()),
            other => panic!("{other:?}"),
        }
    }
    ports
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f23_five_hundred_clients_move_to_the_next_broker_together_and_it_takes_them() {
    let ground = Ground::start().await.expect("a ground");
    let quiet = || MosquittoOptions { quiet: true, ..Default::default() };
    let first = ground.mosquitto_with(quiet()).await.expect("mosquitto");
    let second = ground.mosquitto_with(quiet()).await.expect("mosquitto");
    let port = |broker: &Mosquitto| broker.addr().port();
    // Not there yet: nobody whose dial takes too long is to stay with it.
    second.kill().await;
    let mut clients = Vec::new();
    while clients.len() < CLIENTS {
        // mosquitto lets a hundred wait to be accepted; of more at once some would have to dial again.
        let group: Vec<_> = (0..GROUP)
            .map(|number| {
                let number = clients.len() + number;
                let brokers = Client::builder(format!("herd-{number}")).brokers([first.url(), second.url()]);
                brokers.expect("valid").liveness(patient()).build().expect("a client")
            })
            .collect();
        assert_eq!(all_acked(&group, "before").await, [port(&first); GROUP], "nothing has failed yet");
        clients.extend(group);
    }

    second.restart().await.expect("restarted");
    first.kill().await;

    assert_eq!(all_acked(&clients, "after").await, [port(&second); CLIENTS]);
    assert!(!first.process().is_running());
    let mut dials: Vec<_> = clients.iter().map(Client::stats).map(|it| it.connects + it.connect_failures).collect();
    dials.sort_unstable();
    let (median, most) = (dials[CLIENTS / 2], dials[CLIENTS - 1]);
    eprintln!("connects of a client: {median} in the median, {most} at most");
    // One to each broker; a machine that is busy may give some up, and each waits before it tries one again.
    assert!(median <= 2 && most <= 20, "{dials:?}");
    for client in clients {
        assert!(client.close(DEADLINE).await.undelivered.is_empty());
    }
    ground.stop().await;
}

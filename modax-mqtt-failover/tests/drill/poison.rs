//! MQTT 3.1.1 against brokers that can refuse a message only by closing the connection: such a message is rejected, and what
//! is behind it is delivered.

use modax_mqtt_failover::{
    Client, ClientBuilder, Event, Events, Message, Outcome, Queue, Receipt, Rejection, Topology,
};
use modax_testbed::{Ground, MosquittoOptions, NatsNode, wait};

use crate::{DEADLINE, oracle::Oracles, serving};

/// Messages around each that is refused.
const BEHIND: u64 = 50;

async fn outcome(receipt: Receipt) -> Outcome {
    tokio::time::timeout(DEADLINE, receipt.acked()).await.expect("an outcome in time")
}

/// Connections that brokers ended, and whether a twin was suspected, until all was rejected that will be.
async fn ended(events: &mut Events, rejections: usize) -> (usize, bool) {
    let (mut ended, mut rejected, mut twin) = (0, 0, false);
    while rejected < rejections {
        match tokio::time::timeout(DEADLINE, events.next()).await.expect("an event in time").expect("the client lives")
        {
            Event::Disconnected { .. } => ended += 1,
            Event::Rejected { .. } => rejected += 1,
            Event::DuplicateClientId { .. } => twin = true,
            _ => {}
        }
    }
    (ended, twin)
}

/// Publishes each of `refused` between others, and waits for all that becomes of them. The oracles see the others alone.
async fn between_others(client: &Client, oracles: &Oracles, refused: Vec<Message>) {
    let mut events = client.events();
    serving(client).await;
    let mut number = 0;
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    let count = refused.len();
    for message in refused {
        for _ in 0..BEHIND {
            number += 1;
            let message = Message::new(format!("drill/{}", number % 3), number.to_string());
            good.push(client.publish(message).await.expect("admitted"));
        }
        let topic = message.topic().to_owned();
        bad.push((client.publish(message).await.expect("admitted"), topic));
    }
    number += 1;
    good.push(
        client.publish(Message::new(format!("drill/{}", number % 3), number.to_string())).await.expect("admitted"),
    );

    for (receipt, topic) in bad {
        let outcome = outcome(receipt).await;
        // More than three times where scouts lead to a node that has closed on it before the last one has.
        let Outcome::Rejected { reason: Rejection::ClosesConnection { times }, maybe_delivered: true } = outcome else {
            panic!("{topic}: {outcome:?}")
        };
        assert!(times >= 3, "{topic} after {times}");
    }
    for receipt in good {
        assert!(outcome(receipt).await.is_acked());
    }
    let (ended, twin) = ended(&mut events, count).await;
    // Two with others and three alone, for each.
    assert!(ended >= 5 * count, "brokers closed only {ended} connections");
    assert!(!twin, "no other client was there");
    let expected: Vec<Vec<u64>> = (0..3).map(|topic| (1..=number).filter(|it| it % 3 == topic).collect()).collect();
    let all = || {
        let record = oracles.record();
        (0..3).all(|topic| record.by_broker[0].first.get(&format!("drill/{topic}")) == expected.get(topic))
    };
    wait::until(DEADLINE, "all others, in order", || async { all() }).await.expect("all others, in order");
    let stats = client.stats();
    assert_eq!((stats.rejected, stats.queue_messages), (u64::try_from(count).unwrap(), 0));
}

fn client_of(urls: Vec<String>) -> ClientBuilder {
    Client::builder("drill").brokers(urls).expect("valid")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f29_what_mosquitto_closes_on_is_rejected_and_the_rest_is_delivered() {
    let ground = Ground::start().await.expect("a ground");
    let extra = "max_packet_size 300\nmax_qos 1\nretain_available false".to_owned();
    let options = || MosquittoOptions { extra: extra.clone(), ..Default::default() };
    let broker = ground.mosquitto_with(options()).await.expect("mosquitto");
    let oracles = Oracles::start(std::iter::once(broker.addr())).await;
    let directory = ground.dir().join("outgoing");
    let client = client_of(vec![broker.url()]).queue(Queue::disk(&directory)).build().unwrap();

    let refused = vec![
        Message::new("odd/large", vec![b'x'; 4000]),
        Message::new("odd/twice", "x").exactly_once(),
        Message::new("odd/kept", "x").retained(),
    ];
    between_others(&client, &oracles, refused).await;

    client.close(DEADLINE).await;
    let again = client_of(vec![broker.url()]).queue(Queue::disk(&directory)).build().unwrap();
    assert_eq!(again.recovered().len(), 0, "something rejected is still on disk");
    again.close(DEADLINE).await;
    drop(oracles);
    ground.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f29_what_one_mosquitto_closes_on_is_given_to_the_one_that_takes_it() {
    let ground = Ground::start().await.expect("a ground");
    let options = MosquittoOptions { extra: "max_packet_size 300".to_owned(), ..Default::default() };
    let picky = ground.mosquitto_with(options).await.expect("mosquitto");
    let other = ground.mosquitto().await.expect("mosquitto");
    let client = client_of(vec![picky.url(), other.url()]).build().unwrap();
    assert_eq!(serving(&client).await, picky.addr().port());
    let connects = client.stats().connects;

    let receipt = client.publish(Message::new("odd/large", vec![b'x'; 4000])).await.expect("admitted");

    let outcome = outcome(receipt).await;
    assert!(matches!(&outcome, Outcome::Acked { broker, .. } if broker.port() == other.addr().port()), "{outcome:?}");
    assert!(client.stats().connects > connects, "nobody closed anything");
    client.close(DEADLINE).await;
    ground.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f29_what_a_cluster_of_nats_closes_on_is_rejected_and_the_rest_is_delivered() {
    let ground = Ground::start().await.expect("a ground");
    let cluster = ground.nats_cluster().await.expect("nats");
    let oracles = Oracles::start(cluster.nodes().iter().take(1).map(NatsNode::addr)).await;
    let client = client_of(cluster.urls()).topology(Topology::Cluster).build().unwrap();

    // NATS 2.9 knows no QoS 2, and has no subject for a topic with a space.
    let refused = vec![Message::new("odd/twice", "x").exactly_once(), Message::new("odd/a topic", "x")];
    between_others(&client, &oracles, refused).await;

    client.close(DEADLINE).await;
    drop(oracles);
    ground.stop().await;
}

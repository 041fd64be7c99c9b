//! MQTT 5 against mosquitto: what a broker refuses, limits and says, and what QoS 2 comes to over a cut.

use modax_mqtt_failover::{
    Client, ClientBuilder, Delivery, Event, Events, Message, Outcome, Qos, Queue, Reason, Received, Rejection,
    Subscription, Version,
};
use modax_testbed::{
    Ground, Mosquitto, MosquittoOptions,
    proxy::{Direction, Fault, Proxy},
    wait,
};

use crate::{DEADLINE, oracle::Oracles, patient, serving};

/// Of packet identifier 1.
const PUBREC: [u8; 4] = [0x50, 0x02, 0x00, 0x01];

fn client_of(url: String, version: Version) -> ClientBuilder {
    Client::builder("drill").brokers([url]).unwrap().version(version).liveness(patient())
}

async fn broker_with(ground: &Ground, extra: &str) -> Mosquitto {
    ground.mosquitto_with(MosquittoOptions { extra: extra.to_owned(), ..Default::default() }).await.expect("mosquitto")
}

async fn outcome(client: &Client, message: Message) -> Outcome {
    let receipt = client.publish(message).await.expect("admitted");
    tokio::time::timeout(DEADLINE, receipt.acked()).await.expect("an outcome in time")
}

async fn event(events: &mut Events, what: &str, wanted: impl Fn(&Event) -> bool) -> Event {
    tokio::time::timeout(DEADLINE, async {
        loop {
            let event = events.next().await.expect("the client lives");
            if wanted(&event) {
                return event;
            }
        }
    })
    .await
    .unwrap_or_else(|_| panic!("not in time: {what}"))
}

async fn delivery(messages: &mut Subscription) -> Delivery {
    match tokio::time::timeout(DEADLINE, messages.next()).await {
        Ok(Some(Received::Delivery(delivery))) => delivery,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f27_a_broker_that_says_no_rejects_one_message_and_the_rest_goes_on() {
    let ground = Ground::start().await.expect("a ground");
    let acl = ground.dir().join("acl");
    std::fs::write(&acl, "topic readwrite drill/#\n").unwrap();
    let broker = broker_with(&ground, &format!("acl_file {}", acl.display())).await;
    let client = client_of(broker.url(), Version::V5).build().unwrap();

    for message in [Message::new("forbidden", "1"), Message::new("forbidden", "2").exactly_once()] {
        let refused = outcome(&client, message).await;
        let said_no = Outcome::Rejected { reason: Rejection::Broker(Reason::new(0x87)), maybe_delivered: false };
        assert_eq!(refused, said_no);
    }

    assert!(outcome(&client, Message::new("drill/x", "3").exactly_once()).await.is_acked());
    let stats = client.stats();
    assert_eq!((stats.connects, stats.rejected, stats.inflight), (1, 2, 0));
    client.close(DEADLINE).await;
    ground.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f29_what_a_broker_does_not_take_is_rejected_and_costs_no_connection() {
    let ground = Ground::start().await.expect("a ground");
    let broker = broker_with(&ground, "max_packet_size 300\nmax_qos 1\nretain_available false").await;
    let client = client_of(broker.url(), Version::V5).build().unwrap();
    let mut events = client.events();
    assert!(outcome(&client, Message::new("drill/x", "small")).await.is_acked());

    let behind = client.publish(Message::new("drill/x", vec![0; 400])).await.unwrap();
    let next = client.publish(Message::new("drill/x", "next")).await.unwrap();
    let large = tokio::time::timeout(DEADLINE, behind.acked()).await.unwrap();
    assert!(
        matches!(large, Outcome::Rejected { reason: Rejection::TooLarge { limit_bytes: 300, .. }, .. }),
        "the broker must name its limit: {large:?}"
    );
    assert!(tokio::time::timeout(DEADLINE, next.acked()).await.unwrap().is_acked(), "it held up the next one");
    let twice = outcome(&client, Message::new("drill/x", "twice").exactly_once()).await;
    assert_eq!(
        twice,
        Outcome::Rejected { reason: Rejection::Qos { highest: Qos::AtLeastOnce }, maybe_delivered: false }
    );
    let kept = outcome(&client, Message::new("drill/x", "kept").retained()).await;
    assert_eq!(kept, Outcome::Rejected { reason: Rejection::Retained, maybe_delivered: false });

    let lowered = event(&mut events, "the limit", |event| matches!(event, Event::QosLowered { .. })).await;
    assert_eq!(lowered, Event::QosLowered { filter: None, requested: 2, granted: 1 });
    assert_eq!(client.stats().connects, 1, "a limit cost the connection");
    client.close(DEADLINE).await;
    ground.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shared_subscription_gives_each_message_to_one_member_with_its_user_properties() {
    let ground = Ground::start().await.expect("a ground");
    let broker = broker_with(&ground, "").await;
    let url = format!("{}?version=5", broker.url());
    let member = |name: &str| Client::builder(name).brokers([&url]).unwrap().liveness(patient()).build();
    let (one, two) = (member("one").unwrap(), member("two").unwrap());
    let mut first = one.subscribe("$share/group/drill/#", Qos::AtLeastOnce).await.unwrap().auto_ack();
    let mut second = two.subscribe("$share/group/drill/#", Qos::AtLeastOnce).await.unwrap().auto_ack();
    // A member is known to be one when a message comes to it: until both are, publish and read on.
    let mut seen = [false; 2];
    while seen != [true, true] {
        assert!(outcome(&one, Message::new("drill/warm", "")).await.is_acked());
        tokio::select! {
            _ = delivery(&mut first) => seen[0] = true,
            _ = delivery(&mut second) => seen[1] = true,
        }
    }

    for number in 0..20 {
        let message = Message::new("drill/x", number.to_string()).user_property("number", number.to_string());
        assert!(outcome(&one, message.expires_in(DEADLINE)).await.is_acked());
    }

    let mut numbers = Vec::new();
    while numbers.len() < 20 {
        let delivery = tokio::select! {
            delivery = delivery(&mut first) => delivery,
            delivery = delivery(&mut second) => delivery,
        };
        assert_eq!(delivery.topic(), "drill/x", "more was delivered than published");
        assert_eq!(delivery.user_properties().get("number").map(str::as_bytes), Some(&**delivery.payload()));
        numbers.push(String::from_utf8_lossy(delivery.payload()).parse::<u32>().unwrap());
    }
    numbers.sort_unstable();
    assert_eq!(numbers, (0..20).collect::<Vec<_>>(), "each to one member");
    one.close(DEADLINE).await;
    two.close(DEADLINE).await;
    ground.stop().await;
}

/// The broker has the message and its PUBREC is out; the connection ends before PUBREL arrives.
async fn cut_behind_pubrec(version: Version) {
    let ground = Ground::start().await.expect("a ground");
    let broker = broker_with(&ground, "").await;
    let oracle = Oracles::start(std::iter::once(broker.addr())).await;
    let proxy = Proxy::start(broker.addr()).await.expect("a proxy");
    let client = client_of(proxy.url("mqtt"), version).build().unwrap();
    serving(&client).await;
    proxy.set(Direction::ToClient, Fault::CutAfterMatch(PUBREC.to_vec()));

    let cut = outcome(&client, Message::new("drill/x", "1").exactly_once()).await;
    assert!(matches!(cut, Outcome::Acked { attempts: 1, .. }), "{version}: PUBLISH went out again: {cut:?}");
    assert!(outcome(&client, Message::new("drill/x", "2").exactly_once()).await.is_acked());

    assert_eq!(proxy.fired().cut, 1, "{version}: the connection was never cut");
    assert_eq!(client.stats().connects, 2, "{version}");
    let both = || oracle.record().by_broker[0].first.get("drill/x").is_some_and(|first| *first == [1, 2]);
    wait::until(DEADLINE, "both messages", || async { both() }).await.expect("once each, in order");
    assert_eq!(oracle.record().by_broker[0].repeats, 0, "{version}: QoS 2 came twice");
    client.close(DEADLINE).await;
    drop(oracle);
    ground.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f07_a_cut_between_pubrec_and_pubrel_delivers_qos_2_once() {
    cut_behind_pubrec(Version::V311).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f07_a_cut_between_pubrec_and_pubrel_delivers_qos_2_once_with_mqtt_5() {
    cut_behind_pubrec(Version::V5).await;
}

/// A broker hands over a QoS 2 message, and the connection ends just behind our PUBREC, or before it arrives.
async fn cut_at_our_pubrec(version: Version, arrives: bool) {
    let ground = Ground::start().await.expect("a ground");
    let broker = broker_with(&ground, "").await;
    let proxy = Proxy::start(broker.addr()).await.expect("a proxy");
    let reader = Client::builder("reader").brokers([proxy.url("mqtt")]).unwrap().version(version);
    let reader = reader.liveness(patient()).build().unwrap();
    let mut messages = reader.subscribe("drill/#", Qos::ExactlyOnce).await.unwrap();
    let granted = tokio::time::timeout(DEADLINE, messages.granted()).await.expect("in time");
    assert_eq!(granted, Some(Qos::ExactlyOnce));
    let publisher = client_of(broker.url(), version).build().unwrap();
    let fault = if arrives { Fault::CutAfterMatch(PUBREC.to_vec()) } else { Fault::Blackhole };

    proxy.set(Direction::ToServer, fault);
    assert!(outcome(&publisher, Message::new("drill/x", "1").exactly_once()).await.is_acked());
    let first = delivery(&mut messages).await;
    assert_eq!((&**first.payload(), first.qos()), (&b"1"[..], Qos::ExactlyOnce));
    first.ack();
    if !arrives {
        let held = || async { proxy.fired().blackhole > 0 };
        wait::until(DEADLINE, "our PUBREC", held).await.expect("nothing was held back");
        proxy.cut_all();
        proxy.clear();
    }

    let again = || async { reader.status().is_connected() && reader.stats().connects == 2 };
    wait::until(DEADLINE, "another connection", again).await.expect("the connection was never cut");
    assert_eq!(proxy.fired().cut, u64::from(arrives), "{version}: cut elsewhere");
    assert!(reader.status().session_present, "{version}: the fault that is tested is a session that goes on");
    assert!(outcome(&publisher, Message::new("drill/x", "2").exactly_once()).await.is_acked());
    // Whatever the broker still had of the first comes before the second.
    let second = delivery(&mut messages).await;
    assert_eq!(&**second.payload(), b"2", "{version}: handed over twice");
    second.ack();
    assert!(outcome(&publisher, Message::new("drill/x", "3").exactly_once()).await.is_acked());
    assert_eq!(&**delivery(&mut messages).await.payload(), b"3", "{version}: handed over twice");
    let log = std::fs::read_to_string(broker.process().log_path()).expect("its log");
    assert_eq!(log.contains("Sending PUBLISH to reader (d1, q2"), !arrives, "{version}: whether it was sent again");
    reader.close(DEADLINE).await;
    publisher.close(DEADLINE).await;
    ground.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f07_a_cut_behind_our_pubrec_hands_a_qos_2_message_over_once() {
    for version in [Version::V311, Version::V5] {
        cut_at_our_pubrec(version, true).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f07_a_cut_before_our_pubrec_arrives_hands_a_qos_2_message_over_once() {
    for version in [Version::V311, Version::V5] {
        cut_at_our_pubrec(version, false).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn user_properties_arrive_out_of_a_disk_queue_that_an_earlier_client_left() {
    let ground = Ground::start().await.expect("a ground");
    let broker = broker_with(&ground, "").await;
    let directory = ground.dir().join("outgoing");
    let queued = || client_of(broker.url(), Version::V5).queue(Queue::disk(&directory)).build().unwrap();
    let reader = Client::builder("reader").brokers([broker.url()]).unwrap().version(Version::V5).build().unwrap();
    broker.kill().await;
    let first = queued();
    drop(first.publish(Message::new("drill/x", "1").user_property("unit", "°C")).await.expect("on disk"));
    assert_eq!(first.close(std::time::Duration::ZERO).await.undelivered.len(), 1, "the broker was there");
    broker.restart().await.expect("restarted");
    let mut messages = reader.subscribe("drill/#", Qos::AtLeastOnce).await.unwrap().auto_ack();
    // Its own message comes back to the reader once the subscription stands.
    let mut warm = false;
    while !warm {
        assert!(outcome(&reader, Message::new("drill/warm", "")).await.is_acked());
        let wait = std::time::Duration::from_millis(100);
        warm = tokio::time::timeout(wait, messages.next())
            .await
            .is_ok_and(|item| matches!(item, Some(Received::Delivery(_))));
    }

    let second = queued();

    let received = loop {
        let delivery = delivery(&mut messages).await;
        if delivery.topic() == "drill/x" {
            break delivery;
        }
    };
    assert_eq!(received.user_properties().get("unit"), Some("°C"));
    second.close(DEADLINE).await;
    reader.close(DEADLINE).await;
    ground.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f25_a_broker_that_knows_only_3_1_1_says_so_and_the_next_one_is_used() {
    let ground = Ground::start().await.expect("a ground");
    let cluster = ground.nats_cluster().await.expect("nats");
    let broker = broker_with(&ground, "").await;
    let old = cluster.nodes().first().expect("a node");
    let client = Client::builder("drill").brokers([old.url(), broker.url()]).unwrap().version(Version::V5);
    let client = client.build().unwrap();
    let mut events = client.events();

    let parked = event(&mut events, "the refusal", |event| matches!(event, Event::Parked { .. })).await;

    assert!(matches!(&parked, Event::Parked { reason, .. } if reason == "protocol version refused"), "{parked:?}");
    let acked = outcome(&client, Message::new("drill/x", "1")).await;
    assert!(matches!(&acked, Outcome::Acked { broker: by, .. } if by.port() == broker.addr().port()), "{acked:?}");
    client.close(DEADLINE).await;
    ground.stop().await;
}

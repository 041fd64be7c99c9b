//! QoS 2 messages that stay half-way in a session of mosquitto, which counts them against its receive maximum.

use std::{collections::BTreeSet, time::Duration};

use modax_mqtt_failover::{Client, Event, Events, LivenessConfig, Message, Outcome, Qos, Received, Version};
use modax_testbed::{
    Ground, Mosquitto, MosquittoOptions,
    proxy::{Direction, Fault, Proxy},
    wait,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{DEADLINE, serving};

/// mosquitto's own receive maximum; the testbed has it unlimited.
const PLACES: u8 = 20;

/// Of what expires half-way: longer than it takes to be on its way on the slowest machine.
const LIFE: Duration = Duration::from_secs(10);

async fn broker(ground: &Ground) -> Mosquitto {
    let extra = format!("max_inflight_messages {PLACES}");
    ground.mosquitto_with(MosquittoOptions { extra, ..MosquittoOptions::default() }).await.expect("mosquitto")
}

fn client(url: String) -> (Client, Events) {
    // No connection more for a broker that gets no processor; much less than LIFE: what expires does so without a connection.
    let patience = LivenessConfig::default().floor(Duration::from_secs(1));
    let client = Client::builder("drill").brokers([url]).unwrap().version(Version::V5).liveness(patience);
    let client = client.build().unwrap();
    let events = client.events();
    (client, events)
}

async fn is_acked(client: &Client) -> bool {
    let receipt = client.publish(Message::new("drill/x", "1")).await.expect("admitted");
    tokio::time::timeout(DEADLINE, receipt.acked()).await.is_ok_and(|outcome| outcome.is_acked())
}

/// How often the broker said that it was given too much, and which connections found a session.
async fn ended(client: Client, mut events: Events) -> (usize, Vec<bool>) {
    client.close(DEADLINE).await;
    let (mut exceeded, mut found) = (0, Vec::new());
    while let Some(event) = events.next().await {
        match event {
            Event::Disconnected { reason, .. } => exceeded += usize::from(reason.contains("0x93")),
            Event::Connected { session_present, .. } => found.push(session_present),
            _ => {}
        }
    }
    (exceeded, found)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_expired_half_way_keeps_no_place_at_the_broker() {
    let ground = Ground::start().await.expect("a ground");
    let broker = broker(&ground).await;
    let proxy = Proxy::start(broker.addr()).await.expect("a proxy");
    let (client, events) = client(proxy.url("mqtt"));
    serving(&client).await;
    proxy.set(Direction::ToClient, Fault::Blackhole);
    let mut receipts = Vec::new();
    for number in 0..PLACES {
        let message = Message::new("drill/x", number.to_string()).exactly_once().expires_in(LIFE);
        receipts.push(client.publish(message).await.expect("admitted"));
    }
    let all = async || client.stats().inflight == usize::from(PLACES);
    wait::until(LIFE, "all are on their way", all).await.expect("a place is left");
    for receipt in receipts {
        let outcome = tokio::time::timeout(DEADLINE, receipt.acked()).await.expect("in time");
        assert_eq!(outcome, Outcome::Expired { maybe_delivered: true });
    }
    assert!(proxy.fired().blackhole > 0, "no answer was held back");

    proxy.cut_all();
    proxy.clear();

    assert!(is_acked(&client).await, "{:?}", client.stats());
    wait::until(DEADLINE, "no message on its way", async || client.stats().inflight == 0).await.unwrap();
    let (exceeded, found) = ended(client, events).await;
    assert_eq!((exceeded, found), (0, vec![false, true]), "what expired takes a place");
    ground.stop().await;
}

/// Above its receive maximum mosquitto acknowledges to clients of 3.1.1 what it drops, of QoS 1 too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_is_kept_whole_by_a_mosquitto_of_its_own_settings() {
    const BURST: u32 = 500;
    let ground = Ground::start().await.expect("a ground");
    let broker = broker(&ground).await;
    for version in [Version::V311, Version::V5] {
        let build = |id| Client::builder(id).brokers([broker.url()]).unwrap().version(version).build().unwrap();
        let (client, reader) = (build("drill"), build("reader"));
        let mut stream = reader.subscribe("drill/#", Qos::AtLeastOnce).await.expect("subscribes").auto_ack();
        tokio::time::timeout(DEADLINE, stream.granted()).await.expect("in time").expect("granted");
        let mut receipts = Vec::new();
        for number in 0..BURST {
            let message = Message::new("drill/burst", number.to_string());
            let message = if number % 20 == 19 { message } else { message.exactly_once() };
            receipts.push(client.publish(message).await.expect("admitted"));
        }
        for receipt in receipts {
            let outcome = tokio::time::timeout(DEADLINE, receipt.acked()).await.expect("in time");
            assert!(outcome.is_acked(), "{outcome:?}");
        }
        let mut missing: BTreeSet<_> = (0..BURST).map(|number| number.to_string().into_bytes()).collect();
        let arrive = async {
            while !missing.is_empty() {
                if let Some(Received::Delivery(delivery)) = stream.next().await {
                    missing.remove(&delivery.payload()[..]);
                }
            }
        };
        let arrived = tokio::time::timeout(DEADLINE, arrive).await;
        assert!(arrived.is_ok(), "{version:?}: acknowledged and not kept: {}", missing.len());
        client.close(DEADLINE).await;
        reader.close(DEADLINE).await;
    }
    ground.stop().await;
}

/// Fills the session of "drill" as an earlier process may: as many QoS 2 messages received as it takes, none released.
async fn fill_session(broker: &Mosquitto) {
    const CONNECT: &[u8] = b"\x10\x17\0\x04MQTT\x05\0\0\0\x05\x11\0\0\x02\0\0\x05drill";
    let mut stream = TcpStream::connect(broker.addr()).await.expect("connects");
    stream.write_all(CONNECT).await.expect("written");
    assert_eq!(packet(&mut stream).await, 0x20, "no CONNACK");
    for number in 1..=PLACES {
        // Identifiers that a client comes to late.
        stream.write_all(&[0x34, 9, 0, 3, b'o', b'l', b'd', 0xF0, number, 0, b'1']).await.expect("written");
        assert_eq!(packet(&mut stream).await, 0x50, "no PUBREC");
    }
}

/// Reads one short packet and gives its first byte.
async fn packet(stream: &mut TcpStream) -> u8 {
    let read = async {
        let kind = stream.read_u8().await.expect("a packet");
        let mut rest = vec![0; usize::from(stream.read_u8().await.expect("a length"))];
        stream.read_exact(&mut rest).await.expect("a whole packet");
        kind
    };
    tokio::time::timeout(DEADLINE, read).await.expect("in time")
}

/// Each message needs a place there, and mosquitto refuses one that finds none (0x97): what may be open under its
/// identifier is released before it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_another_process_left_full_takes_every_message_all_the_same() {
    let ground = Ground::start().await.expect("a ground");
    let broker = broker(&ground).await;
    fill_session(&broker).await;
    let (client, events) = client(broker.url());
    let mut receipts = Vec::new();
    for number in 0..3 * u32::from(PLACES) {
        let message = Message::new("drill/x", number.to_string()).exactly_once();
        receipts.push(client.publish(message).await.expect("admitted"));
    }
    for receipt in receipts {
        let outcome = tokio::time::timeout(DEADLINE, receipt.acked()).await.expect("in time");
        assert!(outcome.is_acked(), "{outcome:?}");
    }
    let (exceeded, found) = ended(client, events).await;
    assert_eq!((exceeded, found), (0, vec![true]), "another session, or one given too much");
    ground.stop().await;
}

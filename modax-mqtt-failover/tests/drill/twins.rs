//! Two programs that were given one client id, on a real broker.

use std::time::Duration;

use modax_mqtt_failover::{Backoff, Client, Event, Events, Message, Qos, Received, Version};
use modax_testbed::{Ground, MosquittoOptions};

use crate::DEADLINE;

/// Of both in the time after it, in which the one that was told tries once.
const AFTERMATH: u64 = 6;

async fn told(events: &mut Events) -> u64 {
    loop {
        match events.next().await {
            Some(Event::DuplicateClientId { takeovers, .. }) => return takeovers.into(),
            Some(_) => {}
            None => panic!("the client is gone"),
        }
    }
}

/// `enough` takeovers of one of them end it.
async fn fight(version: Version, enough: u64) {
    let ground = Ground::start().await.expect("a ground");
    // The broker says every 2 s how long it has been running.
    let options = MosquittoOptions { extra: "sys_interval 2".to_owned(), ..Default::default() };
    let broker = ground.mosquitto_with(options).await.expect("mosquitto");
    // As fast as two clients can fight.
    let retry = Backoff::default().base(Duration::from_millis(1)).cap(Duration::from_millis(10));
    let client = |id: &str| {
        let builder = Client::builder(id).brokers([broker.url()]).unwrap();
        builder.version(version).retry(retry).build().unwrap()
    };
    let clock = client("clock");
    let mut ticks = clock.subscribe("$SYS/broker/uptime", Qos::AtMostOnce).await.unwrap();
    let (one, two) = (client("twin"), client("twin"));
    let connects = || one.stats().connects + two.stats().connects;
    let (mut of_one, mut of_two) = (one.events(), two.events());

    let noticed = async {
        tokio::select! {
            takeovers = told(&mut of_one) => takeovers,
            takeovers = told(&mut of_two) => takeovers,
        }
    };
    let takeovers = tokio::time::timeout(DEADLINE, noticed).await.expect("somebody is told in time");
    assert_eq!(takeovers, enough);
    let fought = connects();
    // After each takeover one more connection, of both; and those that stand.
    assert!(fought <= 2 * (enough + 1), "{fought} connections");

    for _ in 0..3 {
        loop {
            let tick = tokio::time::timeout(DEADLINE, ticks.next()).await.expect("a tick in time");
            if matches!(tick, Some(Received::Delivery(_))) {
                break;
            }
        }
    }
    let after = connects() - fought;
    assert!(after <= AFTERMATH, "{after} connections: the fight goes on");

    two.close(DEADLINE).await;
    let receipt = one.publish(Message::new("drill/x", "alone")).await.expect("admitted");
    assert!(tokio::time::timeout(DEADLINE, receipt.acked()).await.expect("in time").is_acked());
    one.close(DEADLINE).await;
    clock.close(DEADLINE).await;
    ground.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f24_two_clients_with_one_identity_are_told_and_stop_fighting() {
    fight(Version::V311, 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f24_two_clients_with_one_identity_are_told_and_stop_fighting_with_mqtt_5() {
    // Mosquitto 2.0.11 closes without the DISCONNECT that MQTT 5 asks for ([MQTT-3.1.4-3]).
    fight(Version::V5, 10).await;
}

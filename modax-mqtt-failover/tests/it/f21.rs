//! Fault F21: the client moves to a broker that does not have its session. The raw client beside ours, against the
//! same scripted brokers.

use std::time::Duration;

use modax_mqtt_failover::{Client, Message, Outcome};
use modax_testbed::broker::{Script, ScriptedBroker};
use rumqttc::{AsyncClient, EventLoop, MqttOptions, QoS};

const DEADLINE: Duration = Duration::from_secs(60);
const MESSAGES: usize = 20;

/// The first broker takes what it is sent, acknowledges nothing and dies; the second has no session.
async fn brokers() -> (ScriptedBroker, ScriptedBroker) {
    let first = ScriptedBroker::start(Script::new().dies_after_publishes(4)).await.expect("a port");
    let second = ScriptedBroker::start(Script::new().session_present(false)).await.expect("a port");
    (first, second)
}

fn payloads(broker: &ScriptedBroker) -> std::collections::BTreeSet<Vec<u8>> {
    broker.publishes().iter().map(|publish| publish.payload.to_vec()).collect()
}

#[tokio::test]
async fn f21_every_message_reaches_a_broker_without_the_session() {
    let (first, second) = brokers().await;
    let client = Client::builder("f21").brokers([first.url(), second.url()]).unwrap().max_inflight(4).build().unwrap();

    let mut receipts = Vec::new();
    for number in 0..MESSAGES {
        receipts.push(client.publish(Message::new("f21", number.to_string())).await.unwrap());
    }
    for receipt in receipts {
        let outcome = tokio::time::timeout(DEADLINE, receipt.acked()).await.expect("an outcome");
        assert!(
            matches!(&outcome, Outcome::Acked { broker, .. } if broker.port() == second.addr().port()),
            "{outcome:?}"
        );
    }

    assert_eq!(first.fired().died, 1, "the first broker did not die");
    assert_eq!(payloads(&second).len(), MESSAGES);
    let on_second = second.publishes();
    assert!(on_second.iter().all(|publish| !publish.duplicate), "DUP to a session that never saw them");
    let order: Vec<usize> =
        on_second.iter().map(|publish| String::from_utf8_lossy(&publish.payload).parse().unwrap()).collect();
    assert_eq!(order, (0..MESSAGES).collect::<Vec<_>>(), "in order of publishing");
    assert!(second.connects().first().is_some_and(|connect| connect.clean_session), "the stale session is thrown away");
    assert!(second.connects().last().is_some_and(|connect| !connect.clean_session), "ours is persistent");
    assert!(client.close(DEADLINE).await.undelivered.is_empty());
}

/// What everybody writes around rumqttc: on an error, the next broker, same state.
async fn rumqttc_moves_on(first: u16, second: u16) -> (AsyncClient, tokio::task::JoinHandle<()>) {
    let options = |port| {
        let mut options = MqttOptions::new("f21-raw", "127.0.0.1", port);
        options.set_clean_session(false).set_inflight(4);
        options
    };
    let (client, mut events): (AsyncClient, EventLoop) = AsyncClient::new(options(first), MESSAGES + 1);
    for number in 0..MESSAGES {
        client.publish("f21", QoS::AtLeastOnce, false, number.to_string()).await.expect("room");
    }
    let task = tokio::spawn(async move {
        loop {
            if events.poll().await.is_err() {
                events.mqtt_options = options(second);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    });
    (client, task)
}

#[tokio::test]
async fn f21_the_raw_client_delivers_none_of_them() {
    let (first, second) = brokers().await;
    let (client, task) = rumqttc_moves_on(first.addr().port(), second.addr().port()).await;

    assert!(second.wait_until(DEADLINE, |broker| !broker.connects().is_empty()).await, "it never moved on");
    // What comes after the move does arrive, so that the absence of the others is not slowness.
    assert!(second.wait_until(DEADLINE, |broker| broker.connections() == 1).await);
    while !payloads(&second).contains(&b"last"[..]) {
        client.publish("f21", QoS::AtLeastOnce, false, "last").await.expect("room");
        second.wait_until(Duration::from_secs(1), |broker| payloads(broker).contains(&b"last"[..])).await;
    }

    assert_eq!(first.fired().died, 1, "the first broker did not die");
    let mut arrived = payloads(&second);
    arrived.remove(&b"last"[..]);
    assert_eq!(arrived.len(), 0, "rumqttc has mended its ways: {arrived:?}");
    task.abort();
}

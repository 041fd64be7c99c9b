//! The handles: admission, policies, times to live, ends.

use std::{future::Future, time::Duration};

use futures_util::FutureExt;
use modax_mqtt_failover::{
    Client, ClientBuilder, ConfigError, Event, Message, Outcome, PublishError, Qos, Queue, Received, SubscribeError,
    WhenFull,
};
use modax_testbed::broker::{Script, ScriptedBroker, Suback};

const DEADLINE: Duration = Duration::from_secs(60);

async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, work).await.unwrap_or_else(|_| panic!("not in time: {what}"))
}

/// A client of a broker that is not there.
async fn without_broker(queue: Queue) -> (Client, ScriptedBroker) {
    let broker = ScriptedBroker::start(Script::new()).await.unwrap();
    broker.stop();
    (builder(&broker).queue(queue).build().unwrap(), broker)
}

fn builder(broker: &ScriptedBroker) -> ClientBuilder {
    Client::builder("handles").brokers([broker.url()]).unwrap()
}

#[tokio::test]
async fn a_full_queue_that_waits_admits_when_there_is_room() {
    let (client, broker) = without_broker(Queue::memory().max_messages(1)).await;
    let first = client.publish(Message::new("a", "1")).await.unwrap();
    assert_eq!(client.try_publish(Message::new("a", "2")).unwrap_err(), PublishError::Full);
    let patient = client.publish(Message::new("a", "2").expires_in(Duration::from_millis(50)));
    assert_eq!(within("the end of patience", patient).await.unwrap_err(), PublishError::Full);

    let waiting = tokio::spawn({
        let client = client.clone();
        async move { client.publish(Message::new("a", "3")).await.unwrap().acked().await }
    });
    broker.restart().unwrap();

    assert!(within("the first", first.acked()).await.is_acked());
    assert!(within("the one that waited", waiting).await.unwrap().is_acked());
}

#[tokio::test]
async fn each_policy_when_full_does_what_its_name_says() {
    let two = || Queue::memory().max_messages(2);

    let (client, _broker) = without_broker(two().when_full(WhenFull::Reject)).await;
    let _kept = [client.publish(Message::new("a", "1")).await, client.publish(Message::new("a", "2")).await];
    assert_eq!(client.publish(Message::new("a", "3")).await.unwrap_err(), PublishError::Full);

    let (client, _broker) = without_broker(two().when_full(WhenFull::ShedOldest)).await;
    let mut events = client.events();
    let oldest = client.publish(Message::new("a", "1")).await.unwrap();
    let _kept = [client.publish(Message::new("a", "2")).await, client.publish(Message::new("a", "3")).await];
    assert_eq!(within("an outcome", oldest.acked()).await, Outcome::Shed);
    assert_eq!(client.stats().shed, 1);
    within("the event", async { while !matches!(events.next().await, Some(Event::Shed { .. })) {} }).await;

    let (client, _broker) = without_broker(two().when_full(WhenFull::ShedNewest)).await;
    let _kept = [client.publish(Message::new("a", "1")).await, client.publish(Message::new("a", "2")).await];
    let newest = client.publish(Message::new("a", "3")).await.unwrap();
    assert_eq!(within("an outcome", newest.acked()).await, Outcome::Shed);

    let (client, broker) = without_broker(two().when_full(WhenFull::LatestPerTopic)).await;
    let other = client.publish(Message::new("other", "1")).await.unwrap();
    let older = client.publish(Message::new("same", "2")).await.unwrap();
    let newer = client.publish(Message::new("same", "3")).await.unwrap();
    assert_eq!(within("an outcome", older.acked()).await, Outcome::Shed);
    broker.restart().unwrap();
    assert!(within("an outcome", other.acked()).await.is_acked());
    assert!(within("an outcome", newer.acked()).await.is_acked());
}

#[tokio::test]
async fn a_message_whose_time_is_over_is_given_up_with_an_event() {
    let (client, broker) = without_broker(Queue::memory()).await;
    let mut events = client.events();
    let receipt = client.publish(Message::new("a", "1").expires_in(Duration::from_millis(30))).await.unwrap();

    assert_eq!(within("an outcome", receipt.acked()).await, Outcome::Expired { maybe_delivered: false });

    within("the event", async { while !matches!(events.next().await, Some(Event::Expired { .. })) {} }).await;
    broker.restart().unwrap();
    assert!(within("an outcome", client.publish(Message::new("a", "2")).await.unwrap().acked()).await.is_acked());
    assert_eq!(broker.publishes().len(), 1, "the expired one was sent");
}

#[tokio::test]
async fn a_poison_message_is_refused_to_its_caller_and_blocks_nobody() {
    let broker = ScriptedBroker::start(Script::new()).await.unwrap();
    let client = builder(&broker).queue(Queue::memory().max_bytes(1000)).build().unwrap();

    assert_eq!(client.publish(Message::new("a", vec![0; 2000])).await.unwrap_err(), PublishError::TooLarge);
    for topic in ["", "a/#", "a/+/b", "nul\0"] {
        assert!(matches!(client.publish(Message::new(topic, "")).await, Err(PublishError::Topic { .. })), "{topic:?}");
    }

    assert!(within("an outcome", client.publish(Message::new("a", "ok")).await.unwrap().acked()).await.is_acked());
}

#[tokio::test]
async fn messages_of_every_level_arrive_and_are_settled() {
    let broker = ScriptedBroker::start(Script::new()).await.unwrap();
    let client = builder(&broker).build().unwrap();
    let mut messages = client.subscribe("+/x", Qos::AtLeastOnce).await.unwrap();
    assert!(broker.wait_until(DEADLINE, |broker| broker.subscribes().len() == 1).await);

    let none = client.publish(Message::new("0/x", "").at_most_once()).await.unwrap();
    let one = client.publish(Message::new("1/x", "").at_least_once().retained()).await.unwrap();
    let two = client.publish(Message::new("2/y", "").exactly_once()).await.unwrap();

    assert!(within("an outcome", none.acked()).await.is_acked());
    assert!(within("an outcome", one.acked()).await.is_acked());
    assert!(within("an outcome", two.acked()).await.is_acked());
    assert!(broker.publishes().iter().any(|publish| publish.topic == "2/y" && publish.qos == 2));
    for topic in ["0/x", "1/x"] {
        match within("a delivery", messages.next()).await {
            Some(Received::Delivery(delivery)) => {
                assert_eq!(delivery.topic(), topic);
                delivery.ack();
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(broker.wait_until(DEADLINE, |broker| broker.acks() == 1).await, "the acknowledgement reached the broker");
    assert!(client.close(DEADLINE).await.undelivered.is_empty());
    assert!(within("the end of the stream", messages.next()).await.is_none());
}

#[tokio::test]
async fn an_unacknowledged_delivery_comes_again_and_a_late_acknowledgement_is_counted() {
    let broker = ScriptedBroker::start(Script::new()).await.unwrap();
    let client = builder(&broker).build().unwrap();
    let mut messages = client.subscribe("a", Qos::AtLeastOnce).await.unwrap();
    assert!(broker.wait_until(DEADLINE, |broker| broker.subscribes().len() == 1).await);
    broker.publish("a", "x", 1);
    let Some(Received::Delivery(first)) = within("a delivery", messages.next()).await else { panic!("a delivery") };

    broker.disconnect_all();

    let Some(Received::Delivery(second)) = within("a delivery", messages.next()).await else { panic!("a delivery") };
    assert!(second.is_duplicate());
    first.ack();
    within("the count", async {
        while client.stats().late_acks == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(broker.acks(), 0, "a late acknowledgement went to the broker");
    second.ack();
    assert!(broker.wait_until(DEADLINE, |broker| broker.acks() == 1).await);
}

#[tokio::test]
async fn a_dropped_or_withdrawn_subscription_is_withdrawn_from_the_broker() {
    let broker = ScriptedBroker::start(Script::new()).await.unwrap();
    let client = builder(&broker).build().unwrap();
    let first = client.subscribe("a", Qos::AtLeastOnce).await.unwrap();
    let mut second = client.subscribe("a", Qos::AtLeastOnce).await.unwrap();
    assert!(broker.wait_until(DEADLINE, |broker| !broker.subscribes().is_empty()).await);

    drop(first);
    broker.publish("a", "still there", 1);
    assert!(matches!(within("a delivery", second.next()).await, Some(Received::Delivery(_))));
    assert!(broker.unsubscribes().is_empty(), "somebody still wants it");

    client.unsubscribe("a").await.unwrap();
    assert!(within("the end", second.next()).await.is_none());
    assert_eq!(client.unsubscribe("a").await, Err(SubscribeError::NotSubscribed));
    assert!(broker.wait_until(DEADLINE, |broker| broker.unsubscribes() == ["a"]).await);

    drop(client.subscribe("b", Qos::AtLeastOnce).await.unwrap());
    assert!(broker.wait_until(DEADLINE, |broker| broker.unsubscribes() == ["a", "b"]).await);
}

#[tokio::test]
async fn the_last_handle_that_goes_lets_what_is_admitted_be_sent() {
    let broker = ScriptedBroker::start(Script::new()).await.unwrap();
    let client = builder(&broker).build().unwrap();
    let receipt = client.publish(Message::new("a", "x")).await.unwrap();

    drop(client);

    assert!(within("an outcome", receipt.acked()).await.is_acked());
}

#[test]
fn f56_a_runtime_that_ends_answers_every_receipt() {
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let first = runtime();
    let (client, _broker, receipt) = first.block_on(async {
        let (client, broker) = without_broker(Queue::memory()).await;
        let receipt = client.publish(Message::new("a", "x")).await.unwrap();
        (client, broker, receipt)
    });

    first.shutdown_timeout(DEADLINE);

    let second = runtime();
    assert_eq!(second.block_on(receipt.acked()), Outcome::Undelivered { maybe_delivered: false }, "it was never sent");
    assert_eq!(second.block_on(client.publish(Message::new("a", "y"))).unwrap_err(), PublishError::Closed);
}

#[tokio::test]
async fn a_filter_whose_stream_was_dropped_and_that_is_wanted_again_can_be_unsubscribed() {
    let broker = ScriptedBroker::start(Script::new()).await.unwrap();
    let client = builder(&broker).build().unwrap();
    let first = client.subscribe("a", Qos::AtLeastOnce).await.unwrap();
    assert!(broker.wait_until(DEADLINE, |broker| broker.subscribes().len() == 1).await);

    drop(first);
    let mut second = client.subscribe("a", Qos::AtLeastOnce).await.unwrap();
    assert!(broker.wait_until(DEADLINE, |broker| broker.subscribes().len() == 2).await);

    assert_eq!(client.unsubscribe("a").await, Ok(()));
    assert!(within("the end of the stream", second.next()).await.is_none());
    assert_eq!(client.unsubscribe("a").await, Err(SubscribeError::NotSubscribed));
}

#[tokio::test]
async fn contradictions_in_the_configuration_are_named_and_passwords_are_not() {
    let urls = |url: &str| Client::builder("x").brokers([url]).map(drop).unwrap_err().to_string();
    assert_eq!(urls("http://user:canary@host"), "brokers[0]: scheme is not mqtt:// or mqtts://");
    assert_eq!(urls("mqtt://user:canary@:1883"), "brokers[0]: host is missing or malformed");
    assert_eq!(urls("mqtt://user:canary@host:0"), "brokers[0]: port is not a number from 1 to 65535");
    assert_eq!(urls("mqtt://user:can%zzary@host"), "brokers[0]: user name or password is not percent-encoded UTF-8");

    let good = || Client::builder("x").brokers(["mqtt://user:canary@host"]).unwrap();
    assert!(!format!("{:?}", good()).contains("canary"));
    assert_eq!(Client::builder("x").build().unwrap_err(), ConfigError::NoBrokers);
    assert_eq!(Client::builder("").brokers(["mqtt://a"]).unwrap().build().unwrap_err(), ConfigError::ClientId);
    assert!(matches!(
        good().max_inflight(0).build().unwrap_err(),
        ConfigError::OutOfRange { field: "max_inflight", .. }
    ));
    assert!(matches!(
        good().brokers(["mqtt://host:1883"]).unwrap().build().unwrap_err(),
        ConfigError::RepeatedBroker { .. }
    ));
}

#[tokio::test]
async fn what_no_connect_packet_can_carry_is_refused_by_the_field_that_holds_it() {
    let named = |id: &str| Client::builder(id).brokers(["mqtt://host"]).unwrap();
    let good = || named("x");
    let (most, more) = ("u".repeat(65_535), "u".repeat(65_536));
    let refused = |builder: ClientBuilder| builder.build().map(drop).unwrap_err();

    for id in ["a\0b", &more] {
        assert_eq!(refused(named(id)), ConfigError::ClientId);
    }
    for (user, password) in [("a\0b", "p"), (&more, "p"), ("u", &more)] {
        let error = refused(good().credentials(user, password));
        assert!(matches!(error, ConfigError::OutOfRange { field: "credentials", .. }), "{error}");
    }
    for pair in ["a%00b:canary".to_owned(), format!("{more}:canary"), format!("u:{more}")] {
        let error = refused(good().brokers([format!("mqtt://{pair}@other")]).unwrap());
        assert!(matches!(error, ConfigError::Broker { position: 1, .. }), "{error}");
        assert!(!error.to_string().contains("canary"));
    }
    for time in [Duration::from_millis(1), Duration::from_millis(1500), Duration::from_secs(65_536)] {
        let error = refused(good().keep_alive(time));
        assert!(matches!(error, ConfigError::OutOfRange { field: "keep_alive", .. }), "{error}");
    }
    let queue = Queue::memory().fsync_every(Duration::from_millis(10_001));
    let error = refused(good().queue(queue));
    assert!(matches!(error, ConfigError::OutOfRange { field: "queue.fsync_every", .. }), "{error}");

    let queue = Queue::memory().fsync_every(Duration::from_secs(10));
    let built = named(&most).credentials(&most, "a\0b").keep_alive(Duration::ZERO).queue(queue).build();
    assert!(built.is_ok(), "{built:?}");
}

#[test]
fn a_publisher_outside_any_runtime_waits_for_room_as_long_as_its_message_lives() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (client, _broker) = runtime.block_on(without_broker(Queue::memory().max_messages(1)));
    drop(client.try_publish(Message::new("a", "1")).unwrap());

    let mut waiting = Box::pin(client.publish(Message::new("a", "2").expires_in(Duration::from_millis(1))));
    let began = std::time::Instant::now();
    let answer = loop {
        assert!(began.elapsed() < DEADLINE, "not in time: the end of patience");
        if let Some(answer) = waiting.as_mut().now_or_never() {
            break answer;
        }
        std::thread::yield_now();
    };
    assert_eq!(answer.unwrap_err(), PublishError::Full);
}

#[test]
fn building_outside_a_runtime_is_an_error_and_no_panic() {
    let built = Client::builder("x").brokers(["mqtt://host"]).unwrap().build();
    assert_eq!(built.unwrap_err(), ConfigError::NoRuntime);
}

#[tokio::test]
async fn what_needs_mqtt_5_is_refused_by_name_and_not_dropped() {
    let client = Client::builder("old").brokers(["mqtt://127.0.0.1:1?version=3.1.1"]).unwrap().build().unwrap();
    let refused = client.publish(Message::new("a", "b").user_property("name", "value")).await;
    assert_eq!(refused.unwrap_err(), PublishError::NeedsVersion5);
    client.close(Duration::ZERO).await;
}

#[tokio::test]
async fn two_versions_for_one_client_are_a_contradiction_that_names_the_broker() {
    let mixed = Client::builder("mixed").brokers(["mqtt://a?version=3.1.1", "mqtt://b", "mqtt://c?version=5"]).unwrap();
    let error = mixed.build().unwrap_err().to_string();
    assert_eq!(error, "version: c:1883 asks for MQTT 5, and the client speaks MQTT 3.1.1");
    let error = Client::builder("odd").brokers(["mqtt://a?version=4"]).unwrap_err().to_string();
    assert_eq!(error, "brokers[0]: version is neither 3.1.1 nor 5");
}

#[tokio::test]
async fn events_end_with_the_client_while_a_handle_is_still_held() {
    let (client, _broker) = without_broker(Queue::memory()).await;
    let mut events = client.events();
    let mut last = None;
    client.close(Duration::ZERO).await;
    within("the end of the events", async {
        while let Some(event) = events.next().await {
            last = Some(event);
        }
    })
    .await;
    assert_eq!(last, Some(Event::Closed));
    assert_eq!(events.next().await, None, "and stay ended");
    assert_eq!(within("the end for who comes late", client.events().next()).await, None);
}

#[tokio::test]
async fn a_close_without_an_end_waits_for_what_is_on_its_way() {
    let (client, broker) = without_broker(Queue::memory()).await;
    let receipt = client.publish(Message::new("a", "1")).await.unwrap();
    let closing = tokio::spawn(async move { client.close(Duration::MAX).await });
    broker.restart().unwrap();

    assert!(within("an outcome", receipt.acked()).await.is_acked());
    assert!(within("the end", closing).await.unwrap().undelivered.is_empty());
}

#[tokio::test]
async fn a_subscription_tells_when_a_broker_has_granted_it_and_that_none_will() {
    let silent = ScriptedBroker::start(Script::new().suback(Suback::Never)).await.unwrap();
    let client = builder(&silent).build().unwrap();
    let subscription = client.subscribe("a", Qos::AtLeastOnce).await.unwrap();
    let granted = tokio::spawn(subscription.granted());
    assert!(silent.wait_until(DEADLINE, |broker| !broker.subscribes().is_empty()).await);
    assert!(!granted.is_finished(), "nobody has granted it");
    client.unsubscribe("a").await.unwrap();
    assert_eq!(within("the end of the wish", granted).await.unwrap(), None);

    let broker = ScriptedBroker::start(Script::new()).await.unwrap();
    let client = builder(&broker).build().unwrap();
    let first = client.subscribe("a", Qos::AtLeastOnce).await.unwrap();
    assert_eq!(within("a grant", first.granted()).await, Some(Qos::AtLeastOnce));
    let second = client.subscribe("a", Qos::AtMostOnce).await.unwrap();
    assert_eq!(within("the same grant", second.granted()).await, Some(Qos::AtLeastOnce));
    assert_eq!(broker.subscribes().len(), 1, "asked once");

    let refusing = ScriptedBroker::start(Script::new().suback(Suback::Refuse)).await.unwrap();
    let client = builder(&refusing).build().unwrap();
    let subscription = client.subscribe("a", Qos::AtLeastOnce).await.unwrap();
    assert_eq!(within("a refusal", subscription.granted()).await, None);
}

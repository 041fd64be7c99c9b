//! MQTT 5 between the machines: a broker's words become events, takeovers, keep-alives.

use std::time::{Duration, Instant};

use modax_mqtt_failover::{
    Client, ConfigError, Event, Message, Outcome, Qos, Queue, Reason, Received, Rejection, Version,
    config::{Config, TopicError, check_filter, check_topic},
    courier::{Courier, Input, Output},
    packet::{ConnectCode, Limits, Packet},
};
use modax_testbed::broker::{self, Connack, Puback, Script, ScriptedBroker};

use crate::{
    disk::{DEADLINE, within},
    transport::event,
};

/// A courier of one broker, and the time it lives in.
struct Alone {
    courier: Courier,
    now: Instant,
}

impl Alone {
    fn new() -> Self {
        let config = Config::from_urls("alone", ["mqtt://a?version=5"]).unwrap();
        let now = Instant::now();
        let mut alone = Self { courier: Courier::new(&config, now), now };
        alone.tell(Input::Start);
        alone
    }

    fn tell(&mut self, input: Input) -> Vec<Output> {
        self.courier.handle_input(self.now, input);
        std::iter::from_fn(|| self.courier.poll_output()).collect()
    }

    /// Whatever is due next, and nothing before it.
    fn wait(&mut self) -> Vec<Output> {
        self.now = self.now.max(self.courier.poll_timeout().expect("something is due"));
        self.courier.handle_timeout(self.now);
        std::iter::from_fn(|| self.courier.poll_output()).collect()
    }

    fn connect(&mut self, attempt: u64, code: ConnectCode, limits: Limits) -> Vec<Output> {
        self.tell(Input::Opened { attempt });
        self.tell(Input::Received { attempt, packet: Packet::ConnAck { session_present: false, code, limits } })
    }

    /// Until the next attempt begins.
    fn redial(&mut self, outputs: Vec<Output>) -> (u64, Vec<Event>) {
        let (mut outputs, mut events) = (outputs, Vec::new());
        loop {
            let mut dialled = None;
            for output in outputs {
                match output {
                    Output::Dial { attempt, .. } => dialled = Some(attempt),
                    Output::Event(event) => events.push(event),
                    _ => {}
                }
            }
            if let Some(attempt) = dialled {
                return (attempt, events);
            }
            outputs = self.wait();
        }
    }
}

#[test]
fn f24_a_broker_that_says_who_took_our_place_is_believed_however_long_we_were_connected() {
    let mut alone = Alone::new();
    let mut attempt = 1;
    let mut told = Vec::new();
    for _ in 0..3 {
        told.extend(alone.connect(attempt, ConnectCode::Accepted, Limits::default()));
        alone.now += Duration::from_secs(8); // longer than a takeover without a word is taken for one
        let goodbye = Packet::Disconnect(Reason::SESSION_TAKEN_OVER);
        let outputs = alone.tell(Input::Received { attempt, packet: goodbye });
        let (next, events) = alone.redial(outputs);
        let said = |event: &Event| matches!(event, Event::Disconnected { reason, .. } if reason == "the broker said: session taken over (0x8e)");
        assert!(events.iter().any(said), "{events:?}");
        attempt = next;
    }
    told.extend(alone.connect(attempt, ConnectCode::Accepted, Limits::default()));
    let twin = |output: &Output| matches!(output, Output::Event(Event::DuplicateClientId { takeovers: 3, .. }));
    assert!(told.iter().any(twin), "{told:?}");
}

#[test]
fn f25_a_refusal_parks_where_a_person_has_to_act_and_is_tried_again_soon_where_not() {
    let cases = [
        (ConnectCode::Credentials, true),
        (ConnectCode::Refused(Reason::new(0x8A)), true),
        (ConnectCode::Refused(Reason::new(0x9D)), true),
        (ConnectCode::Unavailable, false),
        (ConnectCode::Refused(Reason::new(0x89)), false),
        (ConnectCode::Refused(Reason::new(0x9C)), false),
    ];
    for (code, parks) in cases {
        let mut alone = Alone::new();
        let before = alone.now;
        let outputs = alone.connect(1, code, Limits::default());
        let (_, events) = alone.redial(outputs);
        let parked =
            events.iter().any(|event| matches!(event, Event::Parked { reason, .. } if *reason == code.to_string()));
        assert_eq!((parked, alone.now - before > Duration::from_secs(10)), (parks, parks), "{code}: {events:?}");
    }
}

#[test]
fn the_keep_alive_that_the_broker_wants_is_kept() {
    let mut alone = Alone::new();
    let limits = Limits { keep_alive_seconds: Some(1), ..Limits::default() };
    alone.connect(1, ConnectCode::Accepted, limits);
    let opened = alone.now;
    let probes = |outputs: &[Output]| {
        outputs.iter().any(|output| matches!(output, Output::Send { packet: Packet::PingReq, .. }))
    };
    while !probes(&alone.wait()) {}
    assert_eq!(alone.now - opened, Duration::from_millis(500), "half of the second that was asked for");
}

#[tokio::test]
async fn settings_of_mqtt_5_are_refused_by_name_on_3_1_1_and_where_they_contradict() {
    let builder = || Client::builder("settings").brokers(["mqtt://127.0.0.1:1"]).unwrap();
    let refused = |builder: modax_mqtt_failover::ClientBuilder| builder.build().unwrap_err();
    let will = || Message::new("who", "gone");
    for (field, old) in [
        ("a password without a user name", builder().credentials("", "token")),
        ("a password without a user name", Client::builder("settings").brokers(["mqtt://:token@127.0.0.1"]).unwrap()),
        ("session_expiry", builder().session_expiry(Duration::from_secs(60))),
        ("receive_maximum", builder().receive_maximum(10)),
        ("max_packet_bytes", builder().max_packet_bytes(10_000)),
        ("will_delay", builder().will(will()).will_delay(Duration::from_secs(1))),
        ("will.user_properties", builder().will(will().user_property("a", "b"))),
        ("on_connect.user_properties", builder().on_connect(will().user_property("a", "b"))),
    ] {
        assert_eq!(refused(old), ConfigError::NeedsVersion5 { field });
    }
    let new = || builder().version(Version::V5);
    let watched = |topic: &str| new().will(Message::new(topic, "gone")).on_connect(Message::new(topic, "here"));
    let unwatched = new().will(will()).on_connect(Message::new("a\u{1}", "here"));
    assert!(watched("a").build().is_ok() && unwatched.build().is_ok());
    assert!(new().session_expiry(Duration::MAX).build().is_ok());
    let contradictions = [
        (new().clean_session(true).session_expiry(Duration::from_secs(1)), "session_expiry"),
        (new().session_expiry(Duration::from_millis(1500)), "session_expiry: whole seconds"),
        (new().will(will()).will_delay(Duration::from_millis(500)), "will_delay: whole seconds"),
        (new().receive_maximum(0), "receive_maximum"),
        (new().max_packet_bytes(10), "max_packet_bytes"),
        (new().will(will()).on_connect(will()), "on_connect: says the same"),
        (new().on_connect(will().exactly_once()), "on_connect: at most QoS 1"),
        (new().on_connect(Message::new("a/#", "")), "on_connect: topic is empty"),
        (watched(&vec!["a"; 201].join("/")), "on_connect: topic is the will's"),
        (watched("a\u{1}"), "on_connect: topic is the will's"),
        (new().will_delay(Duration::from_secs(1)), "will_delay"),
    ];
    for (builder, named) in contradictions {
        let error = refused(builder).to_string();
        assert!(error.starts_with(named), "{error} does not begin with {named}");
    }
}

#[test]
fn a_filter_on_which_a_broker_may_close_is_refused_and_a_topic_is_not() {
    let deep = |levels: usize| vec!["a"; levels].join("/");
    assert_eq!(check_filter(&deep(200)), Ok(()));
    assert_eq!(check_filter(&deep(201)), Err(TopicError::TooDeep));
    assert_eq!(check_topic(&deep(201)), Ok(()));
    let all = ['\u{1}', '\u{1f}', '\u{7f}', '\u{9f}', '\u{fdd0}', '\u{fdef}', '\u{fffe}', '\u{ffff}', '\u{10ffff}'];
    for bad in all {
        for filter in [format!("a/{bad}/+"), format!("$share/{bad}/a"), format!("$share/g/{bad}")] {
            assert_eq!(check_filter(&filter), Err(TopicError::Control), "{filter:?}");
        }
        assert_eq!(check_topic(&format!("a/{bad}")), Ok(()), "{bad:?}");
    }
    for good in [' ', '~', '\u{a0}', '\u{fdcf}', '\u{fdf0}', '\u{fffd}', '\u{10000}', '\u{10fffd}'] {
        assert_eq!(check_filter(&format!("a/{good}/#")), Ok(()), "{good:?}");
    }
    assert_eq!(check_filter("\0"), Err(TopicError::Nul));
}

#[test]
fn a_shared_subscription_has_a_group_and_a_filter() {
    for filter in ["$share/group/a/+/#", "$share/g/#", "$share", "$shared/x"] {
        assert_eq!(check_filter(filter), Ok(()), "{filter}");
    }
    for filter in ["$share/", "$share/group", "$share/group/", "$share//a", "$share/+/a", "$share/g#/a"] {
        assert_eq!(check_filter(filter), Err(TopicError::Share), "{filter}");
    }
    assert_eq!(check_filter("$share/group/a#"), Err(TopicError::Wildcard));
}

async fn told(client: &Client, message: Message) -> Outcome {
    within("an outcome", client.publish(message).await.expect("admitted").acked()).await
}

fn speaking_5(broker: &ScriptedBroker) -> Client {
    Client::builder("five").brokers([broker.url()]).unwrap().version(Version::V5).build().unwrap()
}

#[tokio::test]
async fn f27_each_reason_of_a_puback_reaches_the_publisher_and_costs_no_connection() {
    let broker = ScriptedBroker::start(Script::new()).await.unwrap();
    let client = speaking_5(&broker);
    // All that a PUBACK may say (MQTT 5, 3.4.2.1).
    let codes = [0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99];
    for code in codes {
        broker.set(Script::new().puback(Puback::Refused(code)));
        let refused = told(&client, Message::new("a", "no")).await;
        assert_eq!(refused, Outcome::Rejected { reason: Rejection::Broker(Reason::new(code)), maybe_delivered: false });
    }
    broker.set(Script::new());

    assert!(told(&client, Message::new("a", "yes")).await.is_acked());
    assert_eq!(broker.fired().puback_refused, codes.len() as u64);
    let stats = client.stats();
    assert_eq!((stats.rejected, stats.connects, stats.inflight), (codes.len() as u64, 1, 0));
}

#[tokio::test]
async fn f27_a_refusal_of_what_was_sent_before_says_that_a_broker_may_have_it() {
    let broker = ScriptedBroker::start(Script::new().closes_after_publishes(1)).await.unwrap();
    let client = speaking_5(&broker);
    let mut events = client.events();
    let receipt = client.publish(Message::new("a", "taken")).await.unwrap();
    event(&mut events, "the end of the connection", |event| matches!(event, Event::Disconnected { .. }).then_some(()))
        .await;
    broker.set(Script::new().puback(Puback::Refused(0x97)));

    let refused = within("an outcome", receipt.acked()).await;

    let reason = Rejection::Broker(Reason::new(0x97));
    assert_eq!(refused, Outcome::Rejected { reason, maybe_delivered: true });
    assert!(broker.fired().closed >= 1 && broker.fired().puback_refused == 1, "{:?}", broker.fired());
}

#[tokio::test]
async fn f29_what_exceeds_the_limits_of_a_connack_is_never_sent() {
    let limits = broker::Limits {
        max_packet_bytes: Some(300),
        max_qos: Some(1),
        retain_available: Some(false),
        receive_maximum: Some(2),
        ..broker::Limits::default()
    };
    let broker = ScriptedBroker::start(Script::new().limits(limits)).await.unwrap();
    let client = speaking_5(&broker);
    assert!(told(&client, Message::new("a", "fits")).await.is_acked());

    let large = told(&client, Message::new("a", vec![0; 400])).await;
    let twice = told(&client, Message::new("a", "twice").exactly_once()).await;
    let kept = told(&client, Message::new("a", "kept").retained()).await;
    assert!(
        matches!(large, Outcome::Rejected { reason: Rejection::TooLarge { limit_bytes: 300, .. }, .. }),
        "the broker named its limit: {large:?}"
    );
    assert_eq!(
        twice,
        Outcome::Rejected { reason: Rejection::Qos { highest: Qos::AtLeastOnce }, maybe_delivered: false }
    );
    assert_eq!(kept, Outcome::Rejected { reason: Rejection::Retained, maybe_delivered: false });
    // No answer comes any more: as many are on their way as the broker takes, and the rest waits.
    broker.set(Script::new().puback(Puback::Missing));
    for number in 0..5 {
        drop(client.publish(Message::new("a", number.to_string())).await.unwrap());
    }
    assert!(broker.wait_until(DEADLINE, |broker| broker.fired().puback_missing == 2).await, "two are on their way");
    assert_eq!(client.stats().inflight, 2);
    let seen: Vec<_> = broker.publishes().iter().map(|publish| publish.payload.clone()).collect();
    assert_eq!(seen, ["fits", "0", "1"]);
}

#[tokio::test]
async fn f25_the_reasons_of_a_connack_and_of_a_disconnect_are_told_in_words() {
    let broker = ScriptedBroker::start(Script::new().connack(Connack::Refuse(0x89))).await.unwrap();
    let client = speaking_5(&broker);
    let mut events = client.events();
    let mut said = async |what: &str, wanted: fn(&Event) -> Option<&String>| {
        within(what, async {
            loop {
                if let Some(reason) = wanted(&events.next().await.expect("the client lives")) {
                    return reason.clone();
                }
            }
        })
        .await
    };
    let refusal = said("a refusal", |event| match event {
        Event::ConnectFailed { reason, .. } => Some(reason),
        _ => None,
    });
    assert_eq!(refusal.await, "server busy (0x89)");
    broker.set(Script::new());
    assert!(told(&client, Message::new("a", "1")).await.is_acked());

    broker.disconnect_with("five", 0x8B);

    let reason = said("a goodbye", |event| match event {
        Event::Disconnected { reason, .. } => Some(reason),
        _ => None,
    });
    assert_eq!(reason.await, "the broker said: server shutting down (0x8b)");
    assert!(told(&client, Message::new("a", "2")).await.is_acked());
    assert_eq!((broker.fired().connack_refused >= 1, broker.fired().goodbyes), (true, 1));
}

#[tokio::test]
async fn a_subscriber_of_mqtt_5_gets_what_one_of_3_1_1_publishes_and_the_other_way_round() {
    let broker = ScriptedBroker::start(Script::new()).await.unwrap();
    let new = speaking_5(&broker);
    let old = Client::builder("four").brokers([broker.url()]).unwrap().queue(Queue::memory()).build().unwrap();
    let mut to_new = new.subscribe("new", Qos::AtLeastOnce).await.unwrap().auto_ack();
    let mut to_old = old.subscribe("old", Qos::AtLeastOnce).await.unwrap().auto_ack();
    assert!(broker.wait_until(DEADLINE, |broker| broker.subscribes().len() == 2).await);
    assert!(told(&old, Message::new("new", "1")).await.is_acked());
    assert!(told(&new, Message::new("old", "2").exactly_once()).await.is_acked());

    for (messages, payload) in [(&mut to_new, "1"), (&mut to_old, "2")] {
        let received = within("a delivery", messages.next()).await;
        assert!(
            matches!(&received, Some(Received::Delivery(delivery)) if delivery.payload() == payload),
            "{received:?}"
        );
    }
    new.unsubscribe("new").await.unwrap();
    assert!(told(&new, Message::new("a", "still there")).await.is_acked());
    assert_eq!((new.stats().connects, old.stats().connects), (1, 1));
}

//! MQTT 5 between the machines: a broker's words become events, takeovers, keep-alives.

use std::time::{Duration, Instant};

use modax_mqtt_failover::{
    Client, ConfigError, Event, Message, Reason, Version,
    config::{Config, TopicError, check_filter},
    courier::{Courier, Input, Output},
    packet::{ConnectCode, Limits, Packet},
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
    let contradictions = [
        (new().clean_session(true).session_expiry(Duration::from_secs(1)), "session_expiry"),
        (new().receive_maximum(0), "receive_maximum"),
        (new().max_packet_bytes(10), "max_packet_bytes"),
        (new().will(will()).on_connect(will()), "on_connect: says the same"),
        (new().on_connect(will().exactly_once()), "on_connect: at most QoS 1"),
        (new().on_connect(Message::new("a/#", "")), "on_connect: topic"),
        (new().will_delay(Duration::from_secs(1)), "will_delay"),
    ];
    for (builder, named) in contradictions {
        let error = refused(builder).to_string();
        assert!(error.starts_with(named), "{error} does not begin with {named}");
    }
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

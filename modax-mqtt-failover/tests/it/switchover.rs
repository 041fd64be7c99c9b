//! The planned move between independent brokers, step by step and without a broker; and how often it is made.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use modax_mqtt_failover::{
    Event, Qos, Selection,
    config::Config,
    courier::{Courier, Input, Output},
    packet::{ConnectCode, Limits, Packet, PacketId, Publish, PublishProperties},
};

/// Answers for two brokers; the preferred one is away at first.
struct Brokers {
    now: Instant,
    courier: Courier,
    attempts: BTreeMap<u64, usize>,
    written: BTreeMap<u64, u64>,
    away: bool,
    /// What the preferred broker says to a SUBSCRIBE, if anything.
    code: Option<u8>,
    /// What the other one says.
    other: u8,
    /// The connection to it on which filters were asked for last, and how often that was.
    asked: Option<u64>,
    questions: usize,
    connected: usize,
    failed_back: u32,
    failed_over: u32,
}

impl Brokers {
    fn tell(&mut self, input: Input) {
        self.courier.handle_input(self.now, input);
        while let Some(output) = self.courier.poll_output() {
            match output {
                Output::Dial { attempt, broker, .. } => {
                    self.attempts.insert(attempt, broker);
                    let refused = Input::Closed { attempt, reason: "refused".to_owned(), by_peer: true };
                    let is_away = self.away && broker == 0;
                    self.tell(if is_away { refused } else { Input::Opened { attempt } });
                }
                Output::Send { attempt, packet } => {
                    let packets = self.written.entry(attempt).or_default();
                    *packets += 1;
                    let written = Input::Written { attempt, packets: *packets, stalled: None };
                    self.tell(written);
                    self.answer(attempt, packet);
                }
                Output::Event(Event::Connected { .. }) => self.connected += 1,
                Output::Event(Event::FailedBack { .. }) => self.failed_back += 1,
                Output::Event(Event::FailedOver { .. }) => self.failed_over += 1,
                _ => {}
            }
        }
    }

    fn answer(&mut self, attempt: u64, packet: Packet) {
        let answer = match packet {
            Packet::Connect(_) => {
                let (code, limits) = (ConnectCode::Accepted, Limits::default());
                Packet::ConnAck { session_present: false, code, limits }
            }
            Packet::Subscribe { id, .. } if self.attempts.get(&attempt) == Some(&0) => {
                self.asked = Some(attempt);
                self.questions += 1;
                let Some(code) = self.code else { return };
                Packet::SubAck { id, codes: vec![code] }
            }
            Packet::Subscribe { id, filters } => Packet::SubAck { id, codes: vec![self.other; filters.len()] },
            Packet::PingReq => Packet::PingResp,
            _ => return,
        };
        self.tell(Input::Heard { attempt });
        self.tell(Input::Received { attempt, packet: answer });
    }

    /// Lets so much time pass, on time at every deadline.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.courier.poll_timeout().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.courier.handle_timeout(self.now);
            self.tell(Input::Paused(false));
        }
        self.now = end;
    }

    /// The preferred broker is away, and every connection to it is reset.
    fn fall(&mut self) {
        self.away = true;
        let cut: Vec<_> =
            self.attempts.iter().filter(|(_, broker)| **broker == 0).map(|(attempt, _)| *attempt).collect();
        for attempt in cut {
            self.attempts.remove(&attempt);
            self.tell(Input::Closed { attempt, reason: "reset".to_owned(), by_peer: true });
        }
    }

    /// Lets time pass until `done`; a step is what is due next.
    fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        for _ in 0..1000 {
            if done(self) {
                return;
            }
            self.now = self.now.max(self.courier.poll_timeout().expect("something is due"));
            self.courier.handle_timeout(self.now);
            self.tell(Input::Paused(false));
        }
        panic!("{what} never came");
    }
}

fn brokers(code: Option<u8>) -> Brokers {
    let mut config = Config::from_urls("moves", ["mqtt://a", "mqtt://b"]).unwrap();
    config.selection = Selection::priority().failback_after(Duration::from_secs(1));
    let now = Instant::now();
    let mut brokers = Brokers {
        now,
        courier: Courier::new(&config, now),
        attempts: BTreeMap::new(),
        written: BTreeMap::new(),
        away: false,
        code,
        other: 1,
        asked: None,
        questions: 0,
        connected: 0,
        failed_back: 0,
        failed_over: 0,
    };
    brokers.tell(Input::Subscribe { filter: Arc::from("a/#"), qos: Qos::AtLeastOnce });
    brokers
}

/// The second broker serves, and the preferred one is back.
fn back_at_the_preferred(code: Option<u8>) -> Brokers {
    let mut brokers = brokers(code);
    brokers.away = true;
    brokers.tell(Input::Start);
    brokers.until("the second broker", |brokers| brokers.connected == 1);
    brokers.away = false;
    brokers
}

#[test]
fn a_broker_that_refuses_a_filter_is_not_gone_back_to() {
    // Its quota is exceeded; we are not authorised.
    for code in [0x97, 0x87] {
        let mut brokers = back_at_the_preferred(Some(code));
        for tries in 1..=3 {
            brokers.until("the question beside", |brokers| brokers.questions == tries);
            assert!(brokers.failed_back == 0, "{code:#x} at try {tries}");
        }
        brokers.code = Some(1);
        brokers.until("the step", |brokers| brokers.failed_back == 1);
    }
}

#[test]
fn a_broker_is_gone_back_to_although_it_refuses_what_the_other_one_refuses_too() {
    const QUOTA_EXCEEDED: u8 = 0x97;
    let mut brokers = brokers(Some(1));
    brokers.tell(Input::Start);
    brokers.until("the preferred broker", |brokers| brokers.connected == 1);
    let attempt = brokers.asked.unwrap();
    (brokers.away, brokers.other, brokers.code) = (true, QUOTA_EXCEEDED, Some(QUOTA_EXCEEDED));
    brokers.tell(Input::Closed { attempt, reason: "killed".to_owned(), by_peer: true });
    brokers.until("the second broker", |brokers| brokers.connected == 2);

    brokers.away = false;

    brokers.until("the step", |brokers| brokers.failed_back > 0);
}

#[test]
fn what_waits_for_the_step_is_bounded_in_bytes_also_before_the_filters_are_granted() {
    let mut brokers = back_at_the_preferred(None);
    brokers.until("the question beside", |brokers| brokers.asked.is_some());
    let attempt = brokers.asked.unwrap();
    assert!(brokers.failed_back == 0);

    for number in 1..=16 {
        assert!(brokers.failed_back == 0, "after {number}");
        let publish = Publish {
            topic: Arc::from("a/b"),
            payload: vec![0; 1 << 20].into(),
            qos: Qos::AtLeastOnce,
            retain: false,
            duplicate: false,
            id: PacketId::new(number),
            properties: PublishProperties::default(),
        };
        brokers.tell(Input::Received { attempt, packet: Packet::Publish(publish) });
    }
    assert!(brokers.failed_back == 1, "16 MiB wait, and more is taken");
}

#[test]
fn f08_a_preferred_broker_that_comes_and_goes_is_gone_back_to_a_few_times_and_again_once_it_stays() {
    // With 1 s to be reachable, up for so long and then away as long; how often at most it is gone back to in an hour. From
    // 11 s on each return is one that lasts.
    for (seconds, at_most) in [(1, 0), (2, 1), (5, 3), (10, 4)] {
        let mut brokers = back_at_the_preferred(Some(1));
        let time = Duration::from_secs(seconds);
        for _ in 0..3600 / (2 * seconds) {
            brokers.away = false;
            brokers.pass(time);
            brokers.fall();
            brokers.pass(time);
        }
        let (back, over) = (brokers.failed_back, brokers.failed_over);
        assert!(back <= at_most && (back > 0) == (at_most > 0), "{seconds} s: {back} times back");
        assert_eq!(over, back, "{seconds} s: as often as it served");

        brokers.away = false;
        brokers.pass(Duration::from_secs(120));
        assert_eq!(brokers.failed_back, back + 1, "{seconds} s: it is reachable for longer than 64 times as long");
    }
}

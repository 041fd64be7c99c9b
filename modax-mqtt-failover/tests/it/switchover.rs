//! The planned move, step by step and without a broker: between independent brokers, and within a cluster;
//! and how often it is made.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use modax_mqtt_failover::{
    Event, Message, Qos, Queue, Scouting, Selection, Topology,
    config::Config,
    courier::{Courier, Input, Output},
    packet::{ConnectCode, Limits, Packet, PacketId, Publish, PublishProperties},
    queue::{Admission, Backlog},
};

/// Answers for the brokers; all but the last one are away at first.
struct Brokers {
    now: Instant,
    courier: Courier,
    attempts: BTreeMap<u64, usize>,
    written: BTreeMap<u64, u64>,
    away: Vec<usize>,
    /// What the preferred broker says to a SUBSCRIBE, if anything.
    code: Option<u8>,
    /// What the others say.
    other: u8,
    /// The connection to it on which filters were asked for last, and how often that was.
    asked: Option<u64>,
    questions: usize,
    connected: usize,
    failed_back: u32,
    failed_over: u32,
    /// Whether messages are acknowledged.
    acks: bool,
    /// Whether the preferred broker says nothing to our own CONNECT, and only to that one.
    mute: bool,
    /// What our own connections were told and when, in order; a transport that is closed is the end of one.
    story: Vec<(Instant, u64, Said)>,
    acked: usize,
    backlog: Backlog,
    /// A message is on its way when the move begins, which then gets no answer.
    is_busy: bool,
    unacked: Vec<(u64, PacketId)>,
}

/// What matters of what a connection is told.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Said {
    Opened,
    Connect,
    Publish(String),
    Disconnect,
    HangUp,
}

impl Brokers {
    /// The witness of the way back is not ours.
    fn note(&mut self, attempt: u64, said: Said) {
        if attempt < 1 << 60 {
            self.story.push((self.now, attempt, said));
        }
    }

    fn publish(&mut self, payload: &'static str) {
        assert!(matches!(self.backlog.admit(self.now, &Message::new("moves", payload)), Admission::Admitted { .. }));
        self.send_waiting();
    }

    fn send_waiting(&mut self) {
        while self.courier.room() > 0 {
            let Some(admitted) = self.backlog.take(self.now) else { return };
            self.tell(Input::Publish(admitted));
        }
    }

    /// Where these words were said, in order.
    fn places(&self, said: &Said) -> Vec<usize> {
        let places = self.story.iter().enumerate().filter(|(_, (.., other))| other == said);
        places.map(|(place, _)| place).collect()
    }

    /// The connection that was greeted last.
    fn greeted(&self) -> Option<u64> {
        self.places(&Said::Connect).last().map(|place| self.story[*place].1)
    }

    /// What a connection was told.
    fn said_to(&self, attempt: u64) -> Vec<&Said> {
        self.story.iter().filter(|(_, told, _)| *told == attempt).map(|(.., said)| said).collect()
    }

    fn tell(&mut self, input: Input) {
        self.courier.handle_input(self.now, input);
        while let Some(output) = self.courier.poll_output() {
            match output {
                Output::Dial { attempt, broker, .. } => {
                    self.attempts.insert(attempt, broker);
                    if attempt < 1 << 60 && broker == 0 && std::mem::take(&mut self.is_busy) {
                        self.publish("on its way");
                    }
                    let refused = Input::Closed { attempt, reason: "refused".to_owned(), by_peer: true };
                    let is_away = self.away.contains(&broker);
                    if !is_away {
                        self.note(attempt, Said::Opened);
                    }
                    self.tell(if is_away { refused } else { Input::Opened { attempt } });
                }
                Output::Send { attempt, packet } => {
                    self.note_sent(attempt, &packet);
                    let packets = self.written.entry(attempt).or_default();
                    *packets += 1;
                    let written = Input::Written { attempt, packets: *packets, stalled: None };
                    self.tell(written);
                    self.answer(attempt, packet);
                }
                Output::HangUp { attempt } => self.note(attempt, Said::HangUp),
                Output::Settled { outcome, .. } if outcome.is_acked() => self.acked += 1,
                Output::Event(Event::Connected { .. }) => self.connected += 1,
                Output::Event(Event::FailedBack { .. }) => self.failed_back += 1,
                Output::Event(Event::FailedOver { .. }) => self.failed_over += 1,
                _ => {}
            }
        }
    }

    /// Before anything that follows from it.
    fn note_sent(&mut self, attempt: u64, packet: &Packet) {
        match packet {
            Packet::Connect(_) => self.note(attempt, Said::Connect),
            Packet::Publish(publish) => {
                self.note(attempt, Said::Publish(String::from_utf8_lossy(&publish.payload).into_owned()));
            }
            Packet::Disconnect(_) => self.note(attempt, Said::Disconnect),
            _ => {}
        }
        if let Packet::Publish(Publish { id: Some(id), .. }) = packet {
            self.unacked.push((attempt, *id));
        }
    }

    fn answer(&mut self, attempt: u64, packet: Packet) {
        let answer = match packet {
            Packet::Connect(_) if self.mute && attempt < 1 << 60 && self.attempts.get(&attempt) == Some(&0) => return,
            Packet::Publish(Publish { id: Some(id), .. }) if self.acks => Packet::PubAck { id, code: 0 },
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
        self.tell(Input::Heard { attempt, bytes: 2 });
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
        self.away.push(0);
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
            self.send_waiting();
        }
        panic!("{what} never came");
    }
}

fn brokers(code: Option<u8>, change: impl FnOnce(&mut Config)) -> Brokers {
    let mut config = Config::from_urls("moves", ["mqtt://a", "mqtt://b"]).unwrap();
    config.selection = Selection::priority().failback_after(Duration::from_secs(1));
    change(&mut config);
    let now = Instant::now();
    let mut brokers = Brokers {
        now,
        courier: Courier::new(&config, now),
        attempts: BTreeMap::new(),
        written: BTreeMap::new(),
        away: Vec::new(),
        code,
        other: 1,
        asked: None,
        questions: 0,
        connected: 0,
        failed_back: 0,
        failed_over: 0,
        acks: true,
        mute: false,
        story: Vec::new(),
        acked: 0,
        backlog: Backlog::new(Queue::memory()),
        is_busy: false,
        unacked: Vec::new(),
    };
    brokers.tell(Input::Subscribe { filter: Arc::from("a/#"), qos: Qos::AtLeastOnce });
    brokers
}

/// The last broker serves, and the preferred one is back.
fn back_at_the_preferred(code: Option<u8>) -> Brokers {
    back_with(code, |_| {})
}

fn back_with(code: Option<u8>, change: impl FnOnce(&mut Config)) -> Brokers {
    let mut others = 0;
    let mut brokers = brokers(code, |config| {
        change(config);
        others = config.brokers.len() - 1;
    });
    brokers.away = (0..others).collect();
    brokers.tell(Input::Start);
    brokers.until("the last broker", |brokers| brokers.connected == 1);
    brokers.away.retain(|broker| *broker != 0);
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
        brokers.until("the step", |brokers| brokers.failed_back > 0);
    }
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
    assert!(brokers.failed_back > 0, "16 MiB wait, and more is taken");
}

/// In a cluster, whose nodes share our session.
fn back_in_a_cluster(change: impl FnOnce(&mut Config)) -> Brokers {
    let mut brokers = back_with(Some(1), |config| {
        config.topology = Topology::Cluster;
        config.scouting = Scouting::none();
        change(config);
    });
    brokers.story.clear();
    brokers
}

/// When the transport of the move stood, and when its CONNECT followed.
fn move_of(brokers: &Brokers) -> (Instant, Instant) {
    let first = |wanted: Said| brokers.story.iter().find(|(.., said)| *said == wanted).expect("it was said").0;
    (first(Said::Opened), first(Said::Connect))
}

/// Until the transport of the move stands; with a message on its way that is not acknowledged, if that is wanted.
fn transport_stands(brokers: &mut Brokers, is_busy: bool) {
    // The first message of a connection to a node goes alone anyway.
    brokers.publish("before");
    brokers.acks = !is_busy;
    brokers.is_busy = is_busy;
    brokers.until("the transport", |brokers| !brokers.places(&Said::Opened).is_empty());
}

#[test]
fn a_move_in_a_cluster_waits_for_what_is_on_its_way_and_no_longer_than_200_ms() {
    let mut calm = back_in_a_cluster(|_| {});
    transport_stands(&mut calm, false);
    calm.until("the step", |brokers| brokers.failed_back > 0);
    let (opened, connected) = move_of(&calm);
    assert_eq!(connected, opened, "nothing is on its way");

    let mut answered = back_in_a_cluster(|_| {});
    transport_stands(&mut answered, true);
    answered.now += Duration::from_millis(50);
    let (attempt, id) = answered.unacked[1];
    answered.tell(Input::Received { attempt, packet: Packet::PubAck { id, code: 0 } });
    let (opened, connected) = move_of(&answered);
    assert_eq!(connected - opened, Duration::from_millis(50), "as soon as that is acknowledged");

    let mut silent = back_in_a_cluster(|_| {});
    transport_stands(&mut silent, true);
    silent.publish("meanwhile");
    silent.acks = true;
    silent.until("the step", |brokers| brokers.failed_back > 0);
    let (opened, connected) = move_of(&silent);
    assert_eq!(connected - opened, Duration::from_millis(200), "and at most so long");
    silent.until("all acknowledgements", |brokers| brokers.acked == 3);
    let connect = silent.places(&Said::Connect)[0];
    assert!(
        silent.places(&Said::Publish("meanwhile".to_owned()))[0] > connect,
        "nothing new on the old connection: {:#?}",
        silent.story
    );
    let sent: Vec<_> = silent.places(&Said::Publish("on its way".to_owned()));
    assert!(sent.len() == 2 && sent[0] < connect && sent[1] > connect, "sent again on the new one: {:?}", silent.story);
}

#[test]
fn a_move_in_a_cluster_that_gets_no_connack_goes_back_to_the_node_that_served() {
    let mut brokers = back_in_a_cluster(|config| {
        *config = Config::from_urls("moves", ["mqtt://a", "mqtt://b", "mqtt://c"]).unwrap();
        // The node between stays away, and by the time of the move that is forgotten.
        let selection = Selection::priority().failback_after(Duration::from_secs(40));
        (config.topology, config.scouting, config.selection) = (Topology::Cluster, Scouting::none(), selection);
    });
    brokers.mute = true;
    transport_stands(&mut brokers, true);
    brokers.acks = true;

    brokers.until("a connection", |brokers| brokers.connected == 2);

    assert!(brokers.failed_back == 0);
    let opened = brokers.places(&Said::Opened);
    let (_, attempt, _) = brokers.story[opened[0]];
    let (returned, ..) = brokers.story[opened[1]];
    assert_eq!([attempt, attempt + 1].map(|attempt| brokers.attempts[&attempt]), [0, 2], "not to the one between");
    let (_, connected) = move_of(&brokers);
    assert_eq!(returned - connected, Duration::from_secs(1), "the CONNACK is waited for so long");
    brokers.until("what was on its way is sent again", |brokers| brokers.acked == 2);

    // It is tried again, later.
    brokers.mute = false;
    brokers.until("the step", |brokers| brokers.failed_back > 0);
}

#[test]
fn the_connection_that_is_left_by_a_move_hears_a_goodbye_so_that_no_will_is_published() {
    for topology in [Topology::Cluster, Topology::Independent] {
        let mut brokers = back_in_a_cluster(|config| {
            config.topology = topology;
            config.will = Some(Message::new("alive", "no"));
        });
        brokers.until("the step", |brokers| brokers.failed_back > 0);
        let (goodbyes, ends) = (brokers.places(&Said::Disconnect), brokers.places(&Said::HangUp));
        let old = brokers.story[*goodbyes.last().expect("a goodbye")].1;
        assert_eq!(brokers.attempts[&old], 1, "{topology:?}: {:?}", brokers.story);
        // Each connection that was greeted ends with one; a will is published for those that do not.
        assert_eq!(
            goodbyes.iter().map(|place| place + 1).collect::<Vec<_>>(),
            ends,
            "{topology:?}: {:?}",
            brokers.story
        );
        if topology == Topology::Cluster {
            let connect = brokers.places(&Said::Connect)[0];
            assert!(goodbyes[0] < connect, "one identity stands once: {:?}", brokers.story);
        }
    }
}

#[test]
fn f34_a_move_that_fails_ends_with_a_goodbye_so_that_no_will_is_published() {
    // The filters are refused; they are never answered; nor is CONNECT; the client ends.
    for (code, mute, stops) in
        [(Some(0x87), false, false), (None, false, false), (None, true, false), (None, false, true)]
    {
        let mut brokers = back_with(code, |config| config.will = Some(Message::new("alive", "no")));
        let serving = brokers.story.last().expect("it was said").1;
        brokers.mute = mute;
        brokers.until(
            "the move",
            |brokers| if mute { brokers.greeted() > Some(serving) } else { brokers.asked.is_some() },
        );
        let beside = brokers.greeted().expect("it was greeted");
        if stops {
            brokers.tell(Input::Stop);
        }
        brokers.until("the end of the move", |brokers| brokers.said_to(beside).last() == Some(&&Said::HangUp));
        let said = brokers.said_to(beside);
        assert!(
            matches!(said[..], [Said::Opened, Said::Connect, .., Said::Disconnect, Said::HangUp]),
            "{code:?} {mute} {stops}: {said:?}"
        );
    }
}

#[test]
fn a_transport_that_nobody_greeted_hears_no_goodbye() {
    let mut brokers = back_in_a_cluster(|_| {});
    transport_stands(&mut brokers, true);
    let beside = brokers.story.iter().rfind(|(.., said)| *said == Said::Opened).expect("a transport").1;

    brokers.tell(Input::Stop);

    assert_eq!(brokers.said_to(beside), [&Said::Opened, &Said::HangUp], "{:?}", brokers.story);
}

#[test]
fn a_broker_is_gone_back_to_although_it_refuses_what_the_other_one_refuses_too() {
    const QUOTA_EXCEEDED: u8 = 0x97;
    let mut brokers = brokers(Some(1), |_| {});
    brokers.tell(Input::Start);
    brokers.until("the preferred broker", |brokers| brokers.connected == 1);
    let attempt = brokers.asked.unwrap();
    (brokers.other, brokers.code) = (QUOTA_EXCEEDED, Some(QUOTA_EXCEEDED));
    brokers.away.push(0);
    brokers.tell(Input::Closed { attempt, reason: "killed".to_owned(), by_peer: true });
    brokers.until("the second broker", |brokers| brokers.connected == 2);

    brokers.away.clear();

    brokers.until("the step", |brokers| brokers.failed_back > 0);
}

#[test]
fn f08_a_preferred_broker_that_comes_and_goes_is_gone_back_to_a_few_times_and_again_once_it_stays() {
    // With 1 s to be reachable, up for so long and then away as long; how often at most it is gone back to in an hour. From
    // 11 s on each return is one that lasts.
    for (seconds, at_most) in [(1, 0), (2, 1), (5, 3), (10, 4)] {
        let mut brokers = back_at_the_preferred(Some(1));
        let time = Duration::from_secs(seconds);
        for _ in 0..3600 / (2 * seconds) {
            brokers.away.clear();
            brokers.pass(time);
            brokers.fall();
            brokers.pass(time);
        }
        let (back, over) = (brokers.failed_back, brokers.failed_over);
        assert!(back <= at_most && (back > 0) == (at_most > 0), "{seconds} s: {back} times back");
        assert_eq!(over, back, "{seconds} s: as often as it served");

        brokers.away.clear();
        brokers.pass(Duration::from_secs(120));
        assert_eq!(brokers.failed_back, back + 1, "{seconds} s: it is reachable for longer than 64 times as long");
    }
}

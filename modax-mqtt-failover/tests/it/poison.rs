//! What counts against a message on which a connection ends, and what does not: one broker in virtual time.

use std::time::{Duration, Instant};

use modax_mqtt_failover::{
    Event, Message, Outcome, Queue, Reason, Rejection, Version,
    config::Config,
    courier::{Courier, Input, Output},
    packet::{ConnectCode, Limits, Packet, Publish},
    queue::{Admission, Backlog},
};

use crate::agenda::Agenda;

const ROUND_TRIP: Duration = Duration::from_millis(1);

/// How the broker takes a message.
enum Answer {
    Ack,
    AckAfter(Duration),
    CloseAfter(Duration),
    Dismiss(Reason),
}

struct Bench {
    courier: Courier,
    backlog: Backlog,
    agenda: Agenda,
    /// Packets of the present connection.
    sent: u64,
    takes: Box<dyn Fn(&Publish) -> Answer>,
    /// So many first connections are closed on the first message.
    broken: u32,
    /// After how long each connection ends, whatever it carries.
    lives: Option<Duration>,
    connections: u32,
    outcomes: Vec<Outcome>,
    events: Vec<Event>,
    /// How long after CONNACK each connection carried its first message, and when the present one stood.
    waits: Vec<Duration>,
    stood: Instant,
}

impl Bench {
    fn new(version: Version, takes: impl Fn(&Publish) -> Answer + 'static) -> Self {
        let mut config = Config::from_urls("poison", ["mqtt://a"]).unwrap();
        config.version = Some(version);
        let agenda = Agenda::new();
        let now = agenda.now;
        Self {
            courier: Courier::new(&config, now),
            backlog: Backlog::new(Queue::memory()),
            agenda,
            sent: 0,
            takes: Box::new(takes),
            broken: 0,
            lives: None,
            connections: 0,
            outcomes: Vec::new(),
            events: Vec::new(),
            waits: Vec::new(),
            stood: now,
        }
    }

    fn publish(&mut self, message: &Message) {
        assert!(matches!(self.backlog.admit(self.agenda.now, message), Admission::Admitted { .. }));
    }

    /// Runs until there are so many outcomes or connections.
    fn run(&mut self, outcomes: usize, connections: u32) {
        if self.connections == 0 {
            self.tell(Input::Start);
        }
        while self.outcomes.len() < outcomes && self.connections < connections {
            let input = self.agenda.advance(self.courier.poll_timeout());
            if let Some(input) = input {
                self.tell(input);
            } else {
                self.courier.handle_timeout(self.agenda.now);
                self.perform();
            }
        }
    }

    fn tell(&mut self, input: Input) {
        self.courier.handle_input(self.agenda.now, input);
        self.perform();
    }

    fn perform(&mut self) {
        loop {
            while let Some(output) = self.courier.poll_output() {
                match output {
                    Output::Dial { attempt, .. } => self.agenda.at(ROUND_TRIP, Input::Opened { attempt }),
                    Output::Send { attempt, packet } => self.answer(attempt, packet),
                    Output::Settled { id, outcome } => {
                        self.backlog.settle(id);
                        self.outcomes.push(outcome);
                    }
                    Output::Event(event) => self.events.push(event),
                    _ => {}
                }
            }
            if self.courier.room() == 0 {
                return;
            }
            let Some(admitted) = self.backlog.take(self.agenda.now) else { return };
            self.courier.handle_input(self.agenda.now, Input::Publish(admitted));
        }
    }

    fn answer(&mut self, attempt: u64, packet: Packet) {
        self.sent = if matches!(packet, Packet::Connect(_)) { 1 } else { self.sent + 1 };
        self.agenda.at(Duration::ZERO, Input::Written { attempt, packets: self.sent, stalled: None });
        let closed = |reason: &str| Input::Closed { attempt, reason: reason.to_owned(), by_peer: true };
        let reply = match packet {
            Packet::Connect(_) => {
                self.connections += 1;
                self.stood = self.agenda.now + ROUND_TRIP;
                self.waits.push(Duration::MAX);
                if let Some(lives) = self.lives {
                    self.agenda.at(ROUND_TRIP + lives, closed("cut"));
                }
                let (code, limits) = (ConnectCode::Accepted, Limits::default());
                Packet::ConnAck { session_present: self.connections > 1, code, limits }
            }
            Packet::PingReq => Packet::PingResp,
            Packet::Publish(publish) => {
                let wait = self.waits.last_mut().expect("a connection");
                *wait = (*wait).min(self.agenda.now.saturating_duration_since(self.stood));
                let id = publish.id.expect("QoS 1");
                match (self.takes)(&publish) {
                    _ if self.connections <= self.broken => return self.agenda.at(ROUND_TRIP, closed("broken")),
                    Answer::Ack => Packet::PubAck { id, code: 0 },
                    Answer::AckAfter(time) => {
                        self.agenda.at(time, Input::Heard { attempt, bytes: 2 });
                        return self
                            .agenda
                            .at(time, Input::Received { attempt, packet: Packet::PubAck { id, code: 0 } });
                    }
                    Answer::Dismiss(reason) => Packet::Disconnect(reason),
                    Answer::CloseAfter(time) => return self.agenda.at(time, closed("closed")),
                }
            }
            _ => return,
        };
        self.agenda.at(ROUND_TRIP, Input::Heard { attempt, bytes: 2 });
        self.agenda.at(ROUND_TRIP, Input::Received { attempt, packet: reply });
    }

    fn has_twin(&self) -> bool {
        self.events.iter().any(|event| matches!(event, Event::DuplicateClientId { .. }))
    }
}

fn closes(times: u32) -> Outcome {
    Outcome::Rejected { reason: Rejection::ClosesConnection { times }, maybe_delivered: true }
}

#[test]
fn f29_a_message_is_rejected_after_two_connections_with_others_and_three_alone_after_a_quiet_time() {
    let mut bench = Bench::new(Version::V311, |publish| match &*publish.topic {
        "odd" => Answer::CloseAfter(ROUND_TRIP),
        _ => Answer::Ack,
    });
    bench.publish(&Message::new("odd", "x"));
    bench.publish(&Message::new("a", "x"));

    bench.run(2, 20);

    // The other one was asked for a word on the connection that decided.
    assert!(bench.outcomes[0].is_acked());
    assert_eq!(bench.outcomes[1], closes(3));
    assert_eq!(bench.connections, 5, "{:?}", bench.events);
    let quiet = |wait: &Duration| *wait >= Duration::from_millis(500);
    assert_eq!(bench.waits.iter().map(quiet).collect::<Vec<_>>(), [false, false, true, true, true]);
    assert!(!bench.has_twin());
}

#[test]
fn f29_the_longer_a_close_takes_the_longer_is_the_quiet_time_before_it_counts() {
    let slow = Duration::from_millis(100);
    let mut bench = Bench::new(Version::V311, move |_| Answer::CloseAfter(slow));
    bench.publish(&Message::new("odd", "x").retained());

    bench.run(1, 20);

    assert_eq!(bench.outcomes, [closes(3)]);
    let counted = &bench.waits[bench.waits.len() - 3..];
    assert!(counted.iter().all(|wait| *wait >= 20 * slow), "{:?}", bench.waits);
}

#[test]
fn f29_a_node_that_holds_a_message_for_four_seconds_elects_and_refuses_nothing() {
    let mut bench = Bench::new(Version::V311, |_| Answer::CloseAfter(Duration::from_secs(4)));
    bench.publish(&Message::new("a", "x"));

    bench.run(1, 50);

    assert_eq!(bench.outcomes, []);
    let (_, all) = bench.waits.split_last().expect("connections");
    assert!(all.iter().all(Duration::is_zero), "it was held back: {all:?}");
}

#[test]
fn f08_connections_that_end_without_the_message_too_say_nothing_against_it() {
    let mut bench = Bench::new(Version::V311, |_| Answer::CloseAfter(Duration::from_secs(60)));
    bench.lives = Some(Duration::from_millis(400));
    bench.publish(&Message::new("a", "x"));

    bench.run(1, 60);

    assert_eq!(bench.outcomes, []);
    let sent = bench.waits.iter().filter(|wait| **wait < Duration::MAX).count();
    assert!((20..60).contains(&sent), "held back on some connections and not on most: {sent}");
}

#[test]
fn f29_brokers_that_take_nothing_are_full_and_picky_only_with_what_they_may_refuse() {
    let plain = |topic: &str| Message::new(topic, "x");
    let kept = |topic: &str| Message::new(topic, "x").retained();
    let large = |topic: &str| Message::new(topic, vec![b'x'; 3000]);
    for (before, messages, rejects) in [
        (None, [plain("a"), plain("a")], false),
        (None, [plain("a"), plain("b")], false),
        (None, [kept("a"), kept("b")], true),
        (None, [large("a"), large("b")], true),
        (None, [plain("a").exactly_once(), plain("b").exactly_once()], true),
        // One that every broker takes is not taken either.
        (None, [kept("a"), plain("b")], false),
        (Some(kept("taken")), [kept("a"), kept("b")], false),
        (Some(large("taken")), [large("a"), large("b")], false),
    ] {
        let mut bench = Bench::new(Version::V311, |publish| match &*publish.topic {
            "taken" => Answer::Ack,
            _ => Answer::CloseAfter(ROUND_TRIP),
        });
        if let Some(taken) = before {
            bench.publish(&taken);
            bench.run(1, 2);
        }
        let before = bench.outcomes.len();
        for message in &messages {
            bench.publish(message);
        }

        bench.run(before + 1, 60);

        assert_eq!(bench.outcomes.get(before), rejects.then(|| closes(3)).as_ref(), "{messages:?}");
    }
}

#[test]
fn f29_messages_that_are_all_taken_are_not_sent_one_at_a_time_for_long() {
    let mut bench = Bench::new(Version::V311, |_| Answer::AckAfter(Duration::from_millis(150)));
    bench.broken = 2;
    for number in 0..100 {
        bench.publish(&Message::new("a", number.to_string()));
    }
    let begun = bench.agenda.now;

    bench.run(100, 4);

    assert!(bench.outcomes.iter().all(Outcome::is_acked) && bench.outcomes.len() == 100);
    assert_eq!(bench.connections, 3);
    assert!(bench.waits[2] >= Duration::from_millis(500), "nothing was suspected: {:?}", bench.waits);
    let took = bench.agenda.now - begun;
    assert!(took < Duration::from_secs(7), "one at a time to the end: {took:?}");
}

#[test]
fn f29_a_goodbye_for_a_reason_of_the_brokers_own_says_nothing_against_a_message() {
    for (reason, blames) in [(0x95, true), (0x9B, true), (0x8B, false), (0x97, false)] {
        let mut bench = Bench::new(Version::V5, move |_| Answer::Dismiss(Reason::new(reason)));
        bench.publish(&Message::new("a", "x").retained());

        bench.run(1, 30);

        assert_eq!(bench.outcomes.first(), blames.then(|| closes(3)).as_ref(), "{reason:#x}");
    }
}

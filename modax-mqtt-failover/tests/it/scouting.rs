//! A client and its scouts in a cluster of two, in virtual time: when it follows what a scout found, and when it does not.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use modax_mqtt_failover::{
    Event, Message, Queue, Reason, Scouting, Topology,
    config::Config,
    courier::{Courier, Input, Output},
    packet::{ConnectCode, Limits, Packet},
    queue::{Admission, Backlog},
};

use crate::agenda::Agenda;

const ROUND_TRIP: Duration = Duration::from_millis(1);
/// Within this everything has to be over.
const LONGEST: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    Connection,
    /// 0x97: over its quota.
    Message,
    /// 0x8B, with MQTT 5: shutting down.
    Goodbye,
}

struct Bench {
    courier: Courier,
    backlog: Backlog,
    start: Instant,
    agenda: Agenda,
    /// Whose connection it is, and how many packets it carried.
    links: BTreeMap<u64, (bool, usize, u64)>,
    /// After how long a node acknowledges a message of the client: by node and time since the start.
    stores_in: Box<dyn Fn(usize, Duration) -> Duration>,
    scouts: u32,
    /// The first scouts are told that the node is not available now, and by which answer.
    turned_away: (u32, Refusal),
    moves: u32,
    acked: u32,
}

impl Bench {
    fn new(stores_in: impl Fn(usize, Duration) -> Duration + 'static) -> Self {
        let mut config = Config::from_urls("scouting", ["mqtt://a", "mqtt://b"]).unwrap();
        config.topology = Topology::Cluster;
        config.scouting = Scouting::probing();
        let agenda = Agenda::new();
        let now = agenda.now;
        Self {
            courier: Courier::new(&config, now),
            backlog: Backlog::new(Queue::memory()),
            start: now,
            agenda,
            links: BTreeMap::new(),
            stores_in: Box::new(stores_in),
            scouts: 0,
            turned_away: (0, Refusal::Connection),
            moves: 0,
            acked: 0,
        }
    }

    fn publish(&mut self) {
        let message = Message::new("plant/1", "x");
        assert!(matches!(self.backlog.admit(self.agenda.now, &message), Admission::Admitted { .. }));
    }

    /// The node that serves the client dies with all its connections.
    fn kill(&mut self) {
        let (attempt, _) =
            self.links.iter().rev().find(|(_, (aside, _, _))| !aside).map(|(a, l)| (*a, *l)).expect("a connection");
        self.tell(Input::Closed { attempt, reason: "killed".to_owned(), by_peer: true });
    }

    /// Runs until so many messages are acknowledged.
    fn run(&mut self, acked: u32) {
        if self.links.is_empty() {
            self.tell(Input::Start);
        }
        while self.acked < acked {
            let input = self.agenda.advance(self.courier.poll_timeout());
            assert!(self.agenda.now < self.start + LONGEST, "{} acknowledged after {} moves", self.acked, self.moves);
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
                    Output::Dial { attempt, broker, .. } => {
                        self.links.insert(attempt, (false, broker, 0));
                        self.agenda.at(ROUND_TRIP, Input::Opened { attempt });
                    }
                    Output::Send { attempt, packet } => self.answer(attempt, packet),
                    Output::Settled { id, outcome } => {
                        self.backlog.settle(id);
                        self.acked += u32::from(outcome.is_acked());
                    }
                    Output::Event(Event::Disconnected { reason, .. }) => {
                        self.moves += u32::from(reason.ends_with("acknowledges and this one does not"));
                    }
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

    /// How the scout that came last is turned away.
    fn refusal(&self, aside: bool) -> Option<Refusal> {
        let (first, how) = self.turned_away;
        (aside && self.scouts <= first).then_some(how)
    }

    fn answer(&mut self, attempt: u64, packet: Packet) {
        let link = self.links.get_mut(&attempt).expect("dialled");
        link.2 += 1;
        let (aside, broker, packets) = *link;
        self.agenda.at(Duration::ZERO, Input::Written { attempt, packets, stalled: None });
        let (wait, packet) = match packet {
            Packet::Connect(connect) => {
                let aside = connect.client_id.contains("~scout");
                self.links.insert(attempt, (aside, broker, packets));
                self.scouts += u32::from(aside);
                let is_turned_away = self.refusal(aside) == Some(Refusal::Connection);
                let code = if is_turned_away { ConnectCode::Unavailable } else { ConnectCode::Accepted };
                let limits = Limits::default();
                (Duration::ZERO, Packet::ConnAck { session_present: true, code, limits })
            }
            Packet::PingReq => (Duration::ZERO, Packet::PingResp),
            Packet::Publish(publish) => {
                let id = publish.id.expect("QoS 1");
                let wait = if aside { Duration::ZERO } else { (self.stores_in)(broker, self.agenda.now - self.start) };
                match self.refusal(aside) {
                    Some(Refusal::Goodbye) => (wait, Packet::Disconnect(Reason::new(0x8B))),
                    Some(_) => (wait, Packet::PubAck { id, code: 0x97 }),
                    None => (wait, Packet::PubAck { id, code: 0 }),
                }
            }
            _ => return,
        };
        self.agenda.at(ROUND_TRIP + wait, Input::Received { attempt, packet });
    }
}

/// The second node holds what it is given for ever once the first has died; the first is back at once, and so many scouts
/// are turned away so. How many left, and how long it took to the next acknowledgement.
fn held_by_the_second(turned_away: u32, how: Refusal) -> (u32, Duration) {
    let mut bench = Bench::new(|broker, _| if broker == 1 { LONGEST } else { Duration::ZERO });
    bench.turned_away = (turned_away, how);
    bench.publish();
    bench.run(1);
    bench.kill();
    bench.publish();
    let died = bench.agenda.now;
    bench.run(2);
    assert_eq!(bench.moves, 1, "moves");
    (bench.scouts, bench.agenda.now - died)
}

#[test]
fn a_node_that_holds_us_is_left_for_the_one_that_served_a_scout() {
    let (scouts, took) = held_by_the_second(0, Refusal::Connection);
    assert!(scouts > 0, "no scout left");
    // A head start of 100 ms, and a scout each 150 ms over two nodes.
    assert!(took < Duration::from_millis(600), "{took:?}");
}

#[test]
fn nodes_that_are_not_available_for_a_moment_are_asked_again() {
    for how in [Refusal::Connection, Refusal::Message, Refusal::Goodbye] {
        let (scouts, took) = held_by_the_second(2, how);
        assert!(scouts > 2, "{scouts} scouts, {how:?}");
        // They rest for a second, as nodes that cannot be reached do.
        assert!(took < Duration::from_secs(2), "{took:?}, {how:?}");
    }
}

#[test]
fn a_cluster_that_serves_scouts_at_once_and_us_late_is_waited_for_in_the_end() {
    let slow = |_, since| if since < Duration::from_millis(50) { Duration::ZERO } else { Duration::from_millis(1500) };
    let mut bench = Bench::new(slow);
    bench.publish();
    bench.run(1);
    bench.agenda.now += Duration::from_secs(1);
    bench.kill();
    bench.publish();
    bench.run(2);
    assert!(bench.scouts > 0, "no scout left");
    assert!((1..=4).contains(&bench.moves), "{} moves", bench.moves);
}

//! Many clients and two brokers that can do only so much, in virtual time: what an outage leaves behind has to end.
//!
//! A broker serves its connections in turn, one packet of each, or all packets as they came; it takes its time for every
//! packet, for a CONNECT most of all, and forgets what waits of a connection that has ended. The load fits. Then, for ten seconds, it is twice what a
//! broker can do and nobody is there to take it. Retries that kept the overload alive after that would show as a goodput that
//! does not return.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use modax_mqtt_failover::{
    Event, Message, Queue,
    config::Config,
    courier::{Courier, Input, Output},
    packet::{ConnectCode, Limits, Packet},
    policy::backoff::Jitter,
    queue::{Admission, Backlog},
};

const CLIENTS: usize = 60;
/// Of one broker, in messages a second.
const CAPACITY: u32 = 600;
const LATENCY: Duration = Duration::from_millis(1);
const CONNECT_COST: Duration = Duration::from_millis(5);
/// The load before and after, as a share of the capacity; and between.
const CALM: f64 = 0.5;
const STORM: f64 = 2.0;
const OUTAGE_BEGINS: Duration = Duration::from_secs(10);
const OUTAGE_ENDS: Duration = Duration::from_secs(20);
/// The storm leaves 20 s of one broker's full work. One broker does that in 40 s beside the load, two in less.
const HEALED: Duration = Duration::from_secs(62);
const END: Duration = Duration::from_secs(90);

#[derive(Debug)]
enum Happening {
    Publish(usize),
    Dialled { key: Key, broker: usize },
    Arrives { key: Key, broker: usize, packet: Packet },
    EndAtBroker { key: Key, broker: usize },
    Served { broker: usize },
    ToClient { key: Key, packet: Packet },
    EndAtClient { key: Key },
    Outage,
    Heal,
}

/// A client and its attempt.
type Key = (usize, u64);

struct Member {
    courier: Courier,
    backlog: Backlog,
    due: Option<Instant>,
    /// Attempts that stand or are being opened: to which broker, and packets sent.
    links: BTreeMap<u64, (usize, u64)>,
}

#[derive(Default)]
struct Broker {
    down: bool,
    /// Serves as it comes: a ping waits behind every packet of everybody.
    is_unfair: bool,
    waiting: BTreeMap<Key, VecDeque<Packet>>,
    /// Whose turn it is.
    turns: VecDeque<Key>,
    serving: Option<(Key, Packet)>,
    sessions: BTreeSet<usize>,
    longest: usize,
}

/// What is counted, second by second.
#[derive(Debug, Default)]
struct Counts {
    published: BTreeMap<u64, u64>,
    acked: BTreeMap<u64, u64>,
    dials: BTreeMap<u64, u64>,
    refused: u64,
    disconnects: BTreeMap<u64, u64>,
}

fn during(counts: &BTreeMap<u64, u64>, from: Duration, to: Duration) -> u64 {
    counts.range(from.as_secs()..to.as_secs()).map(|(_, count)| count).sum()
}

struct Storm {
    start: Instant,
    now: Instant,
    agenda: BTreeMap<(Instant, u64), Happening>,
    order: u64,
    timers: BTreeSet<(Instant, usize)>,
    members: Vec<Member>,
    brokers: Vec<Broker>,
    numbers: Jitter,
    counts: Counts,
}

impl Storm {
    fn new(seed: u64, is_unfair: bool) -> Self {
        let now = Instant::now();
        let member = |index: usize| {
            let urls = ["mqtt://broker-0", "mqtt://broker-1"];
            let mut config = Config::from_urls(format!("member-{index}"), urls).expect("valid");
            config.seed = seed.wrapping_mul(1000).wrapping_add(index as u64).wrapping_add(1);
            config.queue = Queue::memory().max_messages(100_000);
            let backlog = Backlog::new(config.queue.clone());
            Member { courier: Courier::new(&config, now), backlog, due: None, links: BTreeMap::new() }
        };
        Self {
            start: now,
            now,
            agenda: BTreeMap::new(),
            order: 0,
            timers: BTreeSet::new(),
            members: (0..CLIENTS).map(member).collect(),
            brokers: (0..2).map(|_| Broker { is_unfair, ..Broker::default() }).collect(),
            numbers: Jitter::new(seed),
            counts: Counts::default(),
        }
    }

    fn run(mut self) -> Self {
        self.at(OUTAGE_BEGINS, Happening::Outage);
        self.at(OUTAGE_ENDS, Happening::Heal);
        for client in 0..CLIENTS {
            self.tell(client, Input::Start);
            let wait = Duration::from_secs(1).mul_f64(self.numbers.fraction());
            self.at(wait, Happening::Publish(client));
        }
        loop {
            let next = self.agenda.first_key_value().map(|((at, _), _)| *at);
            let timer = self.timers.first().copied();
            let due = [next, timer.map(|(at, _)| at)].into_iter().flatten().min();
            let Some(at) = due.filter(|at| *at < self.start + END) else { return self };
            self.now = self.now.max(at);
            // Sockets before clocks, as the driver does it.
            if let Some((_, client)) = timer.filter(|_| next != Some(at)) {
                self.members[client].courier.handle_timeout(self.now);
                self.perform(client);
            } else {
                let (_, happening) = self.agenda.pop_first().expect("there is one");
                self.happen(happening);
            }
        }
    }

    fn at(&mut self, wait: Duration, happening: Happening) {
        self.order += 1;
        self.agenda.insert((self.now + wait, self.order), happening);
    }

    fn second(&self) -> u64 {
        (self.now - self.start).as_secs()
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Publish(client) => self.publish(client),
            Happening::Dialled { key, broker } if self.brokers[broker].down => {
                self.counts.refused += 1;
                self.close(key, "refused");
            }
            Happening::Dialled { key, .. } => self.tell(key.0, Input::Opened { attempt: key.1 }),
            Happening::Arrives { key, broker, packet } => self.arrives(key, broker, packet),
            Happening::EndAtBroker { key, broker } => self.forget(key, broker),
            Happening::Served { broker } => self.served(broker),
            Happening::ToClient { key: (client, attempt), packet } => {
                if self.members[client].links.contains_key(&attempt) {
                    self.members[client].courier.handle_input(self.now, Input::Heard { attempt, bytes: 2 });
                    self.tell(client, Input::Received { attempt, packet });
                }
            }
            Happening::EndAtClient { key } => self.close(key, "closed"),
            Happening::Outage => {
                for broker in &mut self.brokers {
                    let Broker { is_unfair, longest, .. } = *broker;
                    *broker = Broker { down: true, is_unfair, longest, ..Broker::default() };
                }
                for client in 0..CLIENTS {
                    let attempts: Vec<_> = self.members[client].links.keys().copied().collect();
                    for attempt in attempts {
                        self.at(LATENCY, Happening::EndAtClient { key: (client, attempt) });
                    }
                }
            }
            Happening::Heal => self.brokers.iter_mut().for_each(|broker| broker.down = false),
        }
    }

    fn publish(&mut self, client: usize) {
        let since = self.now - self.start;
        let is_storm = (OUTAGE_BEGINS..OUTAGE_ENDS).contains(&since);
        let load = f64::from(CAPACITY) * if is_storm { STORM } else { CALM };
        let wait = Duration::from_secs_f64(CLIENTS as f64 / load).mul_f64(0.5 + self.numbers.fraction());
        self.at(wait, Happening::Publish(client));
        *self.counts.published.entry(since.as_secs()).or_default() += 1;
        let admission = self.members[client].backlog.admit(self.now, &Message::new("storm", "payload"));
        assert!(matches!(admission, Admission::Admitted { .. }), "{admission:?}");
        self.perform(client);
    }

    fn tell(&mut self, client: usize, input: Input) {
        self.members[client].courier.handle_input(self.now, input);
        self.perform(client);
    }

    fn close(&mut self, (client, attempt): Key, reason: &str) {
        if self.members[client].links.remove(&attempt).is_some() {
            self.tell(client, Input::Closed { attempt, reason: reason.to_owned(), by_peer: true });
        }
    }

    /// Does what the client says, and gives it messages while it takes some.
    fn perform(&mut self, client: usize) {
        loop {
            while let Some(output) = self.members[client].courier.poll_output() {
                self.on_output(client, output);
            }
            let member = &mut self.members[client];
            let message = if member.courier.room() > 0 { member.backlog.take(self.now) } else { None };
            let Some(message) = message else { break };
            member.courier.handle_input(self.now, Input::Publish(message));
        }
        let member = &mut self.members[client];
        let due = member.courier.poll_timeout();
        if let Some(old) = std::mem::replace(&mut member.due, due) {
            self.timers.remove(&(old, client));
        }
        self.timers.extend(due.map(|due| (due, client)));
    }

    fn on_output(&mut self, client: usize, output: Output) {
        let second = self.second();
        match output {
            Output::Dial { attempt, broker, .. } => {
                *self.counts.dials.entry(second).or_default() += 1;
                self.members[client].links.insert(attempt, (broker, 0));
                self.at(LATENCY, Happening::Dialled { key: (client, attempt), broker });
            }
            Output::Send { attempt, packet } => {
                let Some((broker, sent)) = self.members[client].links.get_mut(&attempt) else { return };
                *sent += 1;
                let (broker, packets) = (*broker, *sent);
                self.members[client].courier.handle_input(self.now, Input::Written { attempt, packets, stalled: None });
                self.at(LATENCY, Happening::Arrives { key: (client, attempt), broker, packet });
            }
            Output::HangUp { attempt } => {
                if let Some((broker, _)) = self.members[client].links.remove(&attempt) {
                    self.at(LATENCY, Happening::EndAtBroker { key: (client, attempt), broker });
                }
            }
            Output::Settled { id, outcome } => {
                assert!(outcome.is_acked(), "{outcome:?}");
                *self.counts.acked.entry(second).or_default() += 1;
                self.members[client].backlog.settle(id);
            }
            Output::Event(Event::Disconnected { .. }) => *self.counts.disconnects.entry(second).or_default() += 1,
            _ => {}
        }
    }

    fn arrives(&mut self, key: Key, broker: usize, packet: Packet) {
        let broker_now = &mut self.brokers[broker];
        if broker_now.down {
            return;
        }
        let waiting = broker_now.waiting.entry(key).or_default();
        if waiting.is_empty() || broker_now.is_unfair {
            broker_now.turns.push_back(key);
        }
        waiting.push_back(packet);
        broker_now.longest = broker_now.longest.max(broker_now.waiting.values().map(VecDeque::len).sum());
        self.serve(broker);
    }

    fn forget(&mut self, key: Key, broker: usize) {
        self.brokers[broker].waiting.remove(&key);
        self.brokers[broker].turns.retain(|turn| *turn != key);
    }

    fn serve(&mut self, index: usize) {
        let broker = &mut self.brokers[index];
        if broker.serving.is_some() {
            return;
        }
        let Some(key) = broker.turns.pop_front() else { return };
        let waiting = broker.waiting.get_mut(&key).expect("it has a turn");
        let packet = waiting.pop_front().expect("it has a turn");
        if !waiting.is_empty() && !broker.is_unfair {
            broker.turns.push_back(key);
        }
        let cost = match packet {
            Packet::Connect(_) => CONNECT_COST,
            Packet::Publish(_) => Duration::from_secs(1) / CAPACITY,
            _ => Duration::from_micros(100),
        };
        broker.serving = Some((key, packet));
        self.at(cost, Happening::Served { broker: index });
    }

    fn served(&mut self, index: usize) {
        // An outage forgets what was being served.
        let Some((key, packet)) = self.brokers[index].serving.take() else { return };
        let sessions = &mut self.brokers[index].sessions;
        let answer = match packet {
            Packet::Connect(connect) => {
                let had = sessions.contains(&key.0) && !connect.clean_session;
                if connect.clean_session {
                    sessions.remove(&key.0)
                } else {
                    sessions.insert(key.0)
                };
                let limits = Limits::default();
                Some(Packet::ConnAck { session_present: had, code: ConnectCode::Accepted, limits })
            }
            Packet::Publish(publish) => publish.id.map(|id| Packet::PubAck { id, code: 0 }),
            Packet::PingReq => Some(Packet::PingResp),
            _ => None,
        };
        if let Some(packet) = answer {
            self.at(LATENCY, Happening::ToClient { key, packet });
        }
        self.serve(index);
    }
}

/// What came of a storm that has to be over.
struct Aftermath {
    published: u64,
    resent: u64,
    dials_in_outage: u64,
    dials_after: u64,
    /// Connections to brokers that work, which ended all the same.
    left: u64,
}

/// Asserts that there was a storm, and that it is over.
fn weather(seed: u64, is_unfair: bool) -> Aftermath {
    let storm = Storm::new(seed, is_unfair).run();
    let counts = &storm.counts;
    let longest = storm.brokers.iter().map(|broker| broker.longest).max().unwrap_or(0);
    let published = |from, to| during(&counts.published, from, to);

    // Everybody lost its broker and was refused; then more waited at a broker than it does in a second.
    assert_eq!(
        during(&counts.disconnects, OUTAGE_BEGINS, OUTAGE_ENDS),
        CLIENTS as u64,
        "not everybody lost its broker"
    );
    assert!(counts.refused >= CLIENTS as u64 && longest as u64 > CAPACITY.into(), "{longest} packets at once");
    let in_storm = published(OUTAGE_BEGINS, OUTAGE_ENDS);
    assert!(in_storm > u64::from(CAPACITY) * 18, "{in_storm} messages in the storm");

    let (done, asked) = (during(&counts.acked, HEALED, END), published(HEALED, END));
    assert!(done * 100 >= asked * 95, "seed {seed}: {done} acknowledged of {asked} after healing");
    let waiting: usize = storm.members.iter().map(|member| member.backlog.messages()).sum();
    assert!(waiting < CLIENTS, "seed {seed}: {waiting} messages still wait");

    let aftermath = Aftermath {
        published: published(Duration::ZERO, END),
        resent: storm.members.iter().map(|member| member.courier.stats().resent).sum(),
        dials_in_outage: during(&counts.dials, OUTAGE_BEGINS, OUTAGE_ENDS),
        dials_after: during(&counts.dials, OUTAGE_ENDS, END),
        left: during(&counts.disconnects, OUTAGE_ENDS, END),
    };
    let Aftermath { published, resent, dials_in_outage, dials_after, left } = aftermath;
    eprintln!(
        "seed {seed}: {published} published, {resent} sent again; {dials_in_outage} dials in and {dials_after} after the \
         outage, {left} connections left after it; {longest} packets waited at once"
    );
    aftermath
}

#[test]
fn f53_goodput_returns_after_an_outage_under_twice_the_load_and_retries_stay_few() {
    for seed in 1..=2 {
        let after = weather(seed, false);

        // Two brokers, each tried at once and then about once a second; nobody leaves a broker for being busy.
        assert!(after.dials_in_outage <= CLIENTS as u64 * 40, "{} dials in the outage", after.dials_in_outage);
        assert!(after.dials_after <= CLIENTS as u64 * 4, "{} dials after the outage", after.dials_after);
        assert!(after.resent * 100 <= after.published, "{} messages sent again", after.resent);
        assert_eq!(after.left, 0, "a broker that works was left");
    }
}

#[test]
fn f53_goodput_returns_although_brokers_look_dead_behind_what_waits() {
    let mut left = 0;
    for seed in 1..=2 {
        let after = weather(seed, true);
        left += after.left;

        assert!(after.dials_in_outage <= CLIENTS as u64 * 40, "{} dials in the outage", after.dials_in_outage);
        assert!(after.dials_after <= CLIENTS as u64 * 10, "{} dials after the outage", after.dials_after);
        assert!(after.resent * 2 <= after.published, "{} messages sent again", after.resent);
    }
    assert!(left > 0, "no broker ever looked dead");
}

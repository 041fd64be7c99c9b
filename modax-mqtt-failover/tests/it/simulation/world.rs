//! Clock, network, program and misfortune.

mod paths;
mod poison;
mod reader;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use modax_mqtt_failover::{
    Bytes, Event, GapReason, Message, MessageId, Outcome, Qos, Queue, Rejection, Scouting, Selection, Standby,
    Topology, Version,
    config::Config,
    courier::{Courier, Input, Output},
    packet::{Connect, ConnectCode, Limits, Packet, PacketId},
    policy::backoff::Jitter,
    queue::{Admission, Backlog},
};

use super::broker::{Broker, Connection, Mood};
use paths::{Path, Way};
use poison::Closes;
use reader::Reader;

/// What a queue takes in a world that stays dark.
const FEW_MESSAGES: usize = 50;
/// A host that does not answer is asked again so often.
const SYN_AGAIN: Duration = Duration::from_secs(1);

#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) brokers: usize,
    pub(crate) topology: Topology,
    pub(crate) faults_for: Duration,
    pub(crate) messages: u64,
    pub(crate) faults: bool,
    pub(crate) stalls: bool,
    /// Whether the messages of one topic have QoS 2, and every other command to the client.
    pub(crate) exactly_once: bool,
    pub(crate) version: Version,
    pub(crate) selection: Selection,
    pub(crate) standby: Standby,
    pub(crate) scouting: Scouting,
    pub(crate) racing: bool,
    pub(crate) closes: Closes,
    /// Every broker is gone from the first second on, and the queue is small.
    pub(crate) dark: bool,
    /// A packet takes up to so long.
    pub(crate) latency: Duration,
    /// After this much healthy time everything must be in order.
    pub(crate) healing: Duration,
}

impl Plan {
    pub(crate) fn faulty(seed: u64) -> Self {
        let topology = if seed % 3 == 2 { Topology::Cluster } else { Topology::Independent };
        let brokers = usize::try_from(seed % 4).expect("small").max(1);
        let faults_for = Duration::from_secs(20);
        Self {
            brokers,
            topology,
            faults_for,
            messages: 60,
            faults: true,
            stalls: seed.is_multiple_of(5),
            exactly_once: seed.is_multiple_of(2),
            version: if seed / 4 % 2 == 1 { Version::V5 } else { Version::V311 },
            selection: match seed % 5 {
                0 | 1 => Selection::priority().failback_after(Duration::from_millis(500)),
                2 => Selection::round_robin(),
                _ => Selection::priority(),
            },
            standby: if seed % 7 < 3 { Standby::Probe } else { Standby::None },
            scouting: if seed % 11 < 6 { Scouting::probing() } else { Scouting::none() },
            racing: seed % 13 < 6,
            closes: Closes::Never,
            dark: false,
            latency: Duration::from_millis(3),
            healing: Duration::from_secs(90),
        }
    }

    /// No broker for six hours, and a program that goes on.
    pub(crate) fn dark(seed: u64) -> Self {
        let faults_for = Duration::from_secs(6 * 3600);
        Self { faults: false, stalls: false, dark: true, faults_for, messages: 200, ..Self::faulty(seed) }
    }

    pub(crate) fn starved() -> Self {
        Self {
            faults: false,
            stalls: true,
            faults_for: Duration::from_secs(10),
            selection: Selection::priority(),
            standby: Standby::None,
            scouting: Scouting::none(),
            racing: false,
            ..Self::faulty(3)
        }
    }
}

/// How often what went wrong.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fired {
    pub(crate) kills: u64,
    pub(crate) session_losses: u64,
    pub(crate) freezes: u64,
    pub(crate) blackholes: u64,
    pub(crate) late_connacks: u64,
    pub(crate) early_eofs: u64,
    /// Answers that were not sent, sent twice, and sent after later ones.
    pub(crate) acks_missing: u64,
    pub(crate) acks_doubled: u64,
    pub(crate) acks_held: u64,
    /// Links that held packets back, in one direction or both, and gave them on when they were restored.
    pub(crate) swizzles: u64,
    pub(crate) half_swizzles: u64,
    /// Commands that came over another connection than the one they were owed on, without a gap.
    pub(crate) kept: u64,
    pub(crate) exactly_once: u64,
    pub(crate) takeovers: u64,
    pub(crate) stalls: u64,
    pub(crate) resumed: u64,
    pub(crate) gaps: u64,
    pub(crate) failovers: u64,
    pub(crate) disconnects: u64,
    pub(crate) probes: u64,
    /// Messages refused by a broker, messages too large for one, and sessions that ended by their time (MQTT 5).
    pub(crate) refusals: u64,
    pub(crate) oversize: u64,
    pub(crate) expired_sessions: u64,
    pub(crate) elections: u64,
    pub(crate) scouts: u64,
    pub(crate) failbacks: u64,
    pub(crate) standbys: u64,
    pub(crate) standbys_lost: u64,
    /// Connections closed on a message, messages rejected for it, times all links were cut, and twins suspected.
    pub(crate) closes: u64,
    pub(crate) thrown_out: u64,
    pub(crate) cuts: u64,
    pub(crate) twins: u64,
    pub(crate) dials: u64,
    /// Messages that were refused because the queue was full.
    pub(crate) full: u64,
}

impl Fired {
    pub(crate) fn add(&mut self, other: &Self) {
        self.kills += other.kills;
        self.session_losses += other.session_losses;
        self.freezes += other.freezes;
        self.blackholes += other.blackholes;
        self.late_connacks += other.late_connacks;
        self.early_eofs += other.early_eofs;
        self.acks_missing += other.acks_missing;
        self.acks_doubled += other.acks_doubled;
        self.acks_held += other.acks_held;
        self.swizzles += other.swizzles;
        self.half_swizzles += other.half_swizzles;
        self.kept += other.kept;
        self.exactly_once += other.exactly_once;
        self.takeovers += other.takeovers;
        self.stalls += other.stalls;
        self.resumed += other.resumed;
        self.gaps += other.gaps;
        self.failovers += other.failovers;
        self.disconnects += other.disconnects;
        self.probes += other.probes;
        self.refusals += other.refusals;
        self.oversize += other.oversize;
        self.expired_sessions += other.expired_sessions;
        self.elections += other.elections;
        self.scouts += other.scouts;
        self.failbacks += other.failbacks;
        self.standbys += other.standbys;
        self.standbys_lost += other.standbys_lost;
        self.closes += other.closes;
        self.thrown_out += other.thrown_out;
        self.cuts += other.cuts;
        self.twins += other.twins;
        self.dials += other.dials;
        self.full += other.full;
    }

    pub(crate) fn all_fired(&self) -> bool {
        let all = [
            self.kills,
            self.session_losses,
            self.freezes,
            self.blackholes,
            self.late_connacks,
            self.early_eofs,
            self.acks_missing,
            self.acks_doubled,
            self.acks_held,
            self.swizzles,
            self.half_swizzles,
            self.kept,
            self.exactly_once,
            self.takeovers,
            self.stalls,
            self.resumed,
            self.gaps,
            self.failovers,
            self.refusals,
            self.oversize,
            self.expired_sessions,
            self.elections,
            self.scouts,
            self.failbacks,
            self.standbys,
            self.standbys_lost,
        ];
        all.iter().all(|count| *count > 0)
    }
}

#[derive(Debug)]
enum Happening {
    Dialled {
        attempt: u64,
        broker: usize,
        deadline: Instant,
    },
    ToBroker {
        attempt: u64,
        broker: usize,
        packet: Packet,
    },
    EndAtBroker {
        attempt: u64,
        broker: usize,
    },
    ToClient {
        attempt: u64,
        packet: Packet,
    },
    EndAtClient {
        attempt: u64,
    },
    Written {
        attempt: u64,
        packets: u64,
    },
    Acknowledge {
        id: PacketId,
        serial: u64,
    },
    Publish(u64),
    Command(u64),
    CutPath(usize, Way),
    RestorePath(usize),
    Fault,
    Stall,
    Cut,
    Full,
    Traffic(u64),
    Dark,
    Heal,
    Subscribe,
    /// It arrived while who reads it was late or stopped, and is read now.
    Arrived(Box<Happening>),
}

pub(crate) struct World {
    plan: Plan,
    start: Instant,
    now: Instant,
    numbers: Jitter,
    /// For moving the client's own pace: it sees nothing before this.
    asleep_until: Instant,
    agenda: BTreeMap<(Instant, u64), Happening>,
    order: u64,
    courier: Courier,
    backlog: Backlog,
    brokers: Vec<Broker>,
    /// Which broker an attempt goes to, how many packets went out, and whether its packets vanish.
    links: BTreeMap<u64, Link>,
    /// Attempts under a derived identity.
    aside: BTreeSet<u64>,
    /// A cluster without a leader stores nothing before this.
    electing_until: Instant,
    /// Connections that a node holds, because they wanted something stored meanwhile.
    held: BTreeSet<u64>,
    fired: Fired,
    healed: bool,
    /// No broker can store anything now.
    full: bool,
    /// Links are cut in this beat, or else at random with this mean.
    beat: Option<Duration>,
    cut_until: Instant,
    beat_mean: Duration,
    admitted: BTreeMap<MessageId, (String, u64, bool)>,
    outcomes: BTreeMap<MessageId, Outcome>,
    paths: Vec<Path>,
    traces: bool,
    commands: BTreeSet<u64>,
    reader: Reader,
    must_arrive: BTreeSet<u64>,
}

#[derive(Debug)]
struct Link {
    broker: usize,
    sent: u64,
    /// TCP keeps order: nothing arrives before what was sent before it.
    last_to_broker: Instant,
    last_to_client: Instant,
    vanishing: bool,
    greeted: bool,
    welcomed: bool,
    /// Which session of its broker serves it.
    session: u64,
}

/// Bytes of a packet that every broker takes: the messages of a world have 43 at most, but for those made too large.
const TAKEN_BYTES: u32 = 100;

fn some_limits(numbers: &mut Jitter, least: u64) -> Limits {
    let receive_maximum = u16::try_from(numbers.next_number() % 12 + least).expect("small");
    let max_packet_bytes = numbers.next_number().is_multiple_of(2).then_some(TAKEN_BYTES);
    Limits { receive_maximum, max_packet_bytes, ..Limits::default() }
}

impl World {
    pub(crate) fn new(seed: u64, plan: Plan) -> Self {
        let now = Instant::now();
        let mut numbers = Jitter::new(seed.wrapping_mul(7919).wrapping_add(13));
        let names = (0..plan.brokers).map(|index| format!("mqtt://broker-{index}"));
        let mut config = Config::from_urls("simulated", names).expect("valid");
        config.topology = plan.topology;
        config.seed = numbers.next_number();
        config.max_inflight = 10;
        config.version = Some(plan.version);
        if plan.version == Version::V5 {
            config.session_expiry = Some(Duration::from_secs(numbers.next_number() % 8));
        }
        config.selection = plan.selection;
        config.standby = plan.standby;
        config.scouting = plan.scouting.clone();
        config.racing = plan.racing;
        config.queue = Queue::memory().max_messages(if plan.dark { FEW_MESSAGES } else { 100_000 });
        let brokers = (0..plan.brokers).map(|_| {
            let keeps_sessions = numbers.next_number().is_multiple_of(2);
            // Another message can speak for a broker only where two fit into the window.
            let least = if plan.closes == Closes::Picky { 2 } else { 1 };
            let limits = if plan.version == Version::V5 { some_limits(&mut numbers, least) } else { Limits::default() };
            Broker { version: plan.version, keeps_sessions, limits, ..Broker::default() }
        });
        let brokers = brokers.collect();
        Self {
            start: now,
            now,
            asleep_until: now,
            agenda: BTreeMap::new(),
            order: 0,
            courier: Courier::new(&config, now),
            backlog: Backlog::new(config.queue.clone()),
            brokers,
            links: BTreeMap::new(),
            aside: BTreeSet::new(),
            electing_until: now,
            held: BTreeSet::new(),
            fired: Fired::default(),
            healed: false,
            full: false,
            beat: None,
            cut_until: now,
            beat_mean: Duration::ZERO,
            admitted: BTreeMap::new(),
            outcomes: BTreeMap::new(),
            traces: std::env::var_os("MODAX_TRACE").is_some(),
            paths: (0..plan.brokers).map(|_| Path::default()).collect(),
            commands: BTreeSet::new(),
            reader: Reader::new(plan.topology),
            must_arrive: BTreeSet::new(),
            numbers,
            plan,
        }
    }

    pub(crate) fn run(mut self) -> Fired {
        self.prepare();
        self.tell(Input::Start);
        let heal_at = self.start + self.plan.faults_for;
        let end = heal_at + self.plan.healing;
        let mut steps_at_once = 0_u32;
        loop {
            let next = self.agenda.first_key_value().map(|((at, _), _)| *at);
            let due = self.courier.poll_timeout().map(|at| at.max(self.asleep_until));
            let expiry = self.backlog.poll_timeout();
            let Some(at) = [next, due, expiry].into_iter().flatten().min().filter(|at| *at <= end) else { break };
            steps_at_once = if at > self.now { 0 } else { steps_at_once + 1 };
            assert!(steps_at_once < 20_000, "it runs in circles");
            self.now = self.now.max(at);
            // Sockets before clocks, as the driver does it.
            if next == Some(at) {
                let ((_, _), happening) = self.agenda.pop_first().expect("there is one");
                self.happen(happening);
            } else {
                while let Some(expired) = self.backlog.expire(self.now) {
                    self.settle(expired.id, Outcome::Expired { maybe_delivered: false });
                }
                self.courier.handle_timeout(self.now);
                self.perform();
            }
            self.feed();
            if self.healed && self.is_settled() && self.must_arrive.is_empty() && self.reader.is_served() {
                break;
            }
        }
        self.judge();
        self.fired.refusals = self.brokers.iter().map(|broker| broker.refused.len() as u64).sum();
        self.fired.expired_sessions = self.brokers.iter().map(|broker| broker.expired).sum();
        let spoilt: Vec<_> = self.brokers.iter().map(|broker| broker.spoilt).collect();
        self.fired.acks_missing = spoilt.iter().map(|spoilt| spoilt.missing).sum();
        self.fired.acks_doubled = spoilt.iter().map(|spoilt| spoilt.doubled).sum();
        self.fired.acks_held = spoilt.iter().map(|spoilt| spoilt.held).sum();
        self.reader.count(&mut self.fired);
        self.fired
    }

    fn prepare(&mut self) {
        for number in 0..self.plan.messages {
            let wait = self.below(self.plan.faults_for);
            self.at(wait, Happening::Publish(number));
        }
        // Publish order is admission order, so the numbers are dealt out again in order of time.
        for (number, happening) in (0..).zip(self.agenda.values_mut()) {
            *happening = Happening::Publish(number);
        }
        let mut waits: Vec<_> = (0..self.plan.messages / 2).map(|_| self.below(self.plan.faults_for)).collect();
        waits.sort_unstable();
        for (number, wait) in (0..).zip(waits) {
            self.at(wait, Happening::Command(number));
        }
        let wait = self.below(Duration::from_secs(1));
        self.at(wait, Happening::Subscribe);
        if self.plan.dark {
            self.at(Duration::from_secs(1), Happening::Dark);
        }
        if self.plan.faults {
            self.at(Duration::from_millis(50), Happening::Fault);
        }
        if self.plan.stalls {
            self.at(Duration::from_millis(400), Happening::Stall);
        }
        self.at(self.plan.faults_for, Happening::Heal);
        self.prepare_closes();
    }

    /// With `MODAX_TRACE=1`: what happens, and when.
    fn trace(&self, what: impl FnOnce() -> String) {
        if self.traces {
            eprintln!("{:?} {}", self.now - self.start, what());
        }
    }

    fn draw(&mut self, below: u64) -> u64 {
        self.numbers.next_number() % below.max(1)
    }

    fn below(&mut self, limit: Duration) -> Duration {
        limit.mul_f64(self.numbers.fraction())
    }

    fn at(&mut self, wait: Duration, happening: Happening) {
        self.order += 1;
        self.agenda.insert((self.now + wait, self.order), happening);
    }

    fn at_instant(&mut self, at: Instant, happening: Happening) {
        self.order += 1;
        self.agenda.insert((at, self.order), happening);
    }

    /// The client's own machine is busy: what would reach it reaches it later.
    fn postpone(&mut self, happening: Happening) -> Option<Happening> {
        let for_client = matches!(
            happening,
            Happening::Dialled { .. }
                | Happening::ToClient { .. }
                | Happening::EndAtClient { .. }
                | Happening::Written { .. }
                | Happening::Acknowledge { .. }
                | Happening::Publish(_)
        );
        if for_client && self.now < self.asleep_until {
            self.at_instant(self.asleep_until, Happening::Arrived(Box::new(happening)));
            return None;
        }
        Some(happening)
    }

    fn happen(&mut self, happening: Happening) {
        self.trace(|| format!("-- {happening:?}"));
        let arrived = match happening {
            Happening::Arrived(happening) => Some(*happening),
            happening => self.on_the_way(happening),
        };
        let Some(happening) = arrived.and_then(|happening| self.postpone(happening)) else { return };
        self.brokers.iter_mut().for_each(|broker| broker.now = Some(self.now));
        match happening {
            Happening::Publish(number) => self.publish(number),
            Happening::Subscribe => {
                let filter = Arc::from("commands/#");
                self.tell(Input::Subscribe { filter, qos: self.wanted() });
            }
            Happening::Dialled { attempt, broker, deadline } => self.dialled(attempt, broker, deadline),
            Happening::ToBroker { attempt, broker, packet } => self.reach_broker(attempt, broker, packet),
            Happening::EndAtBroker { attempt, broker } => {
                if !self.brokers[broker].mood.frozen {
                    self.brokers[broker].end(attempt);
                }
            }
            Happening::ToClient { attempt, packet } => {
                if let Some(link) = self.links.get_mut(&attempt) {
                    link.welcomed |= matches!(packet, Packet::ConnAck { .. });
                    self.reader.hears(link.broker, link.session);
                }
                self.tell(Input::Heard { attempt, bytes: 2 });
                self.tell(Input::Received { attempt, packet });
            }
            Happening::EndAtClient { attempt } => {
                self.unlink(attempt);
                self.tell(Input::Closed { attempt, reason: "closed".to_owned(), by_peer: true });
            }
            Happening::Written { attempt, packets } => self.tell(Input::Written { attempt, packets, stalled: None }),
            Happening::Acknowledge { id, serial } => self.tell(Input::Acknowledge { id, serial }),
            Happening::Command(number) => self.command(number),
            Happening::CutPath(index, way) => self.cut_path(index, way),
            Happening::RestorePath(index) => self.restore_path(index),
            Happening::Fault => self.fault(),
            Happening::Stall => {
                if !self.healed {
                    self.fired.stalls += 1;
                    self.asleep_until = self.now + Duration::from_millis(50 + self.numbers.next_number() % 1500);
                    let wait = Duration::from_millis(1800) + self.below(Duration::from_secs(2));
                    self.at(wait, Happening::Stall);
                }
            }
            Happening::Cut => self.cut(),
            Happening::Full => self.fill(),
            Happening::Traffic(number) => self.traffic(number),
            Happening::Dark => (0..self.brokers.len()).for_each(|index| self.kill(index)),
            Happening::Heal => self.heal(),
            Happening::Arrived(_) => unreachable!("it was opened above"),
        }
    }

    fn publish(&mut self, number: u64) {
        let mut topic = format!("topic/{}", number % 3);
        let mut message = Message::new(topic.clone(), Bytes::copy_from_slice(&number.to_be_bytes()));
        message = self.dress(number, &mut topic, message);
        let expires = self.draw(10) == 0;
        if self.plan.exactly_once && number % 3 == 2 {
            message = message.exactly_once();
        }
        // What expires before it is found out is a riddle for ever: with other faults only.
        let expires = expires && (self.plan.faults || !matches!(number % 20, 3 | 13));
        if expires {
            message = message.expires_in(Duration::from_millis(500));
        }
        if self.plan.version == Version::V5 && self.draw(20) == 0 {
            message = message.user_property("ballast", "x".repeat(200));
        }
        match self.backlog.admit(self.now, &message) {
            Admission::Admitted { id, .. } => drop(self.admitted.insert(id, (topic, number, expires))),
            Admission::Full if self.plan.dark => self.fired.full += 1,
            other => panic!("room for all: {other:?}"),
        }
    }

    fn feed(&mut self) {
        if self.now < self.asleep_until {
            return;
        }
        while self.courier.room() > 0 {
            let Some(admitted) = self.backlog.take(self.now) else { break };
            self.tell(Input::Publish(admitted));
        }
    }

    fn tell(&mut self, input: Input) {
        self.courier.handle_input(self.now, input);
        self.perform();
    }

    fn perform(&mut self) {
        while let Some(output) = self.courier.poll_output() {
            match output {
                Output::Dial { attempt, broker, deadline } => {
                    self.fired.dials += 1;
                    let wait = self.latency();
                    self.at(wait, Happening::Dialled { attempt, broker, deadline });
                }
                Output::Send { attempt, packet } => self.send(attempt, packet),
                Output::HangUp { attempt } => {
                    if let Some(link) = self.unlink(attempt) {
                        let at = link.last_to_broker.max(self.now);
                        self.at_instant(at, Happening::EndAtBroker { attempt, broker: link.broker });
                    }
                }
                Output::Settled { id, outcome } => self.settle(id, outcome),
                Output::Deliver { publish, serial } => {
                    let sequence = u64::from_be_bytes(publish.payload.as_ref().try_into().expect("eight bytes"));
                    assert!(self.commands.contains(&sequence), "nobody sent command {sequence}");
                    self.trace(|| format!("command {sequence} from {:?}", self.reader.source()));
                    self.reader.delivered(sequence, publish.qos);
                    self.must_arrive.remove(&sequence);
                    if let Some((id, serial)) = publish.id.zip(serial) {
                        let wait = self.below(Duration::from_millis(20));
                        self.at(wait, Happening::Acknowledge { id, serial });
                    }
                }
                Output::Granted { qos, .. } => {
                    assert_eq!(qos, self.wanted());
                    self.reader.granted();
                }
                Output::Gap { reason, .. } => {
                    assert!(!matches!(reason, GapReason::Refused { .. }), "no broker refused anything");
                    self.fired.gaps += 1;
                    self.trace(|| format!("gap {reason:?}"));
                    self.reader.gap();
                }
                Output::Event(event) => {
                    self.trace(|| format!("{event:?}"));
                    match event {
                        Event::Connected { session_present, ref broker, .. } => {
                            self.fired.resumed += u64::from(session_present);
                            let broker = broker.host().rsplit('-').next().and_then(|number| number.parse().ok());
                            let mut links = self
                                .links
                                .iter()
                                .filter(|(at, link)| Some(link.broker) == broker && !self.aside.contains(at));
                            if let Some((_, link)) = links.next_back() {
                                self.reader.connected(link.broker, link.session);
                            }
                        }
                        Event::Disconnected { .. } => self.fired.disconnects += 1,
                        Event::FailedOver { .. } => self.fired.failovers += 1,
                        Event::FailedBack { .. } => self.fired.failbacks += 1,
                        Event::StandbyReady { .. } => self.fired.standbys += 1,
                        Event::DuplicateClientId { .. } => self.fired.twins += 1,
                        Event::StandbyLost { .. } => self.fired.standbys_lost += 1,
                        _ => {}
                    }
                }
                other => panic!("unknown output {other:?}"),
            }
        }
    }

    fn settle(&mut self, id: MessageId, outcome: Outcome) {
        let (topic, number, expires) = self.admitted.get(&id).expect("an outcome only for what was admitted");
        match &outcome {
            Outcome::Acked { .. } => {
                let topic: Arc<str> = Arc::from(topic.as_str());
                let holds = |broker: &Broker| broker.received.get(&topic).is_some_and(|seen| seen.contains(number));
                assert!(self.brokers.iter().any(holds), "message {number} was acknowledged and no broker has it");
            }
            Outcome::Rejected { reason: reason @ Rejection::ClosesConnection { .. }, .. } => {
                let (topic, number, reason) = (topic.clone(), *number, *reason);
                self.judge_rejection(&topic, number, reason);
            }
            Outcome::Rejected { reason, .. } => {
                assert_eq!(self.plan.version, Version::V5, "3.1.1 rejects nothing: {reason}");
                match reason {
                    Rejection::Broker(reason) => assert_eq!(reason.number(), 0x97),
                    Rejection::TooLarge { limit_bytes, .. } => {
                        assert_eq!(*limit_bytes, TAKEN_BYTES);
                        self.fired.oversize += 1;
                    }
                    other => panic!("message {number} was rejected: {other}"),
                }
            }
            Outcome::Expired { .. } => assert!(expires, "message {number} has no time to live"),
            other => panic!("message {number} ended as {other:?}"),
        }
        self.backlog.settle(id);
        assert!(self.outcomes.insert(id, outcome).is_none(), "two outcomes for one message");
    }

    /// The end of a connection whose CONNECT was not answered leaves a doubt over the session it may have begun.
    fn unlink(&mut self, attempt: u64) -> Option<Link> {
        let link = self.links.remove(&attempt)?;
        if link.greeted && !link.welcomed && !self.aside.contains(&attempt) {
            for broker in &mut self.brokers {
                if let Some(session) = broker.session.as_mut() {
                    session.doubted = true;
                }
            }
        }
        Some(link)
    }

    fn latency(&mut self) -> Duration {
        Duration::from_micros(100) + self.below(self.plan.latency)
    }

    fn send(&mut self, attempt: u64, packet: Packet) {
        let latency = self.latency();
        let Some(link) = self.links.get_mut(&attempt) else { return };
        link.sent += 1;
        link.greeted |= matches!(packet, Packet::Connect(_));
        if packet == Packet::PingReq {
            self.fired.probes += 1;
        }
        let arrival = (self.now + latency).max(link.last_to_broker);
        link.last_to_broker = arrival;
        let (broker, packets, vanishing) = (link.broker, link.sent, link.vanishing);
        self.at(Duration::ZERO, Happening::Written { attempt, packets });
        if !vanishing {
            self.at_instant(arrival, Happening::ToBroker { attempt, broker, packet });
        }
    }

    fn dialled(&mut self, attempt: u64, broker: usize, deadline: Instant) {
        if self.is_cut(broker) {
            // As SYN packets: another a second later, until the deadline.
            let again = (self.now + SYN_AGAIN).min(deadline);
            if again <= self.now {
                return self.tell(Input::Closed { attempt, reason: "timed out".to_owned(), by_peer: true });
            }
            return self.at_instant(again, Happening::Dialled { attempt, broker, deadline });
        }
        if self.brokers[broker].mood.down || self.now < self.cut_until {
            return self.tell(Input::Closed { attempt, reason: "refused".to_owned(), by_peer: true });
        }
        let now = self.now;
        let link = Link {
            broker,
            sent: 0,
            last_to_broker: now,
            last_to_client: now,
            vanishing: false,
            greeted: false,
            welcomed: false,
            session: 0,
        };
        self.links.insert(attempt, link);
        self.tell(Input::Opened { attempt });
    }

    fn reach_broker(&mut self, attempt: u64, index: usize, packet: Packet) {
        let mut numbers = self.numbers.clone();
        let broker = &mut self.brokers[index];
        if broker.mood.down {
            return;
        }
        if broker.mood.frozen {
            // It lies in the kernel's buffer until the process goes on.
            return broker.unread.push((attempt, packet));
        }
        if self.is_held(attempt, &packet) {
            return;
        }
        let broker = &mut self.brokers[index];
        if let Packet::Connect(connect) = &packet
            && is_aside(connect)
        {
            self.aside.insert(attempt);
        }
        // Also of a connection that the client has left by now: what lay unread is read all the same.
        let is_aside = self.aside.contains(&attempt);
        if matches!(packet, Packet::Connect(_)) {
            if broker.mood.eof_before_connack {
                self.fired.early_eofs += 1;
                return self.at(Duration::from_millis(1), Happening::EndAtClient { attempt });
            }
            self.fired.late_connacks += u64::from(!broker.mood.connack_delay.is_zero());
            if !is_aside {
                self.accept(attempt, index);
            }
        }
        if is_aside {
            return self.serve_aside(attempt, index, packet);
        }
        if self.closes_on(attempt, index, &packet) {
            return;
        }
        let answers = self.brokers[index].receive(attempt, packet, |below| numbers.next_number() % below);
        if self.plan.topology == Topology::Cluster {
            // The nodes share what they hold: order is the cluster's, and a copy at another node is no first receipt.
            let received = self.brokers[index].received.clone();
            self.brokers.iter_mut().for_each(|broker| broker.received.clone_from(&received));
        }
        self.numbers = numbers;
        let session = self.brokers[index].session.as_ref().map(|session| (session.serial, session.doubted));
        if let (Some(link), Some((serial, doubted))) = (self.links.get_mut(&attempt), session) {
            link.session = serial;
            self.reader.doubts(doubted.then_some((index, serial)));
        }
        self.answer(attempt, answers);
    }

    /// While a cluster elects, a node holds each connection that wants something stored for 4 s and then closes it.
    fn is_held(&mut self, attempt: u64, packet: &Packet) -> bool {
        let stores = matches!(packet, Packet::Connect(_) | Packet::Subscribe { .. })
            || matches!(packet, Packet::Publish(publish) if publish.qos > Qos::AtMostOnce);
        if stores && self.now < self.electing_until && self.held.insert(attempt) {
            self.at(Duration::from_secs(4), Happening::EndAtClient { attempt });
        }
        self.held.contains(&attempt)
    }

    /// A connection that leaves nothing behind: a scout, a standby, the witness of the way back.
    fn serve_aside(&mut self, attempt: u64, index: usize, packet: Packet) {
        let mood = self.brokers[index].mood.clone();
        let answer = match packet {
            Packet::Connect(_) => (
                mood.connack_delay,
                Packet::ConnAck { session_present: false, code: ConnectCode::Accepted, limits: Limits::default() },
            ),
            Packet::Publish(publish) => {
                self.fired.scouts += 1;
                assert!(publish.payload.is_empty() && &*publish.topic == "modax/probe", "{publish:?}");
                if self.draw(16) < mood.acks_missing {
                    return;
                }
                (Duration::ZERO, Packet::PubAck { id: publish.id.expect("QoS 1"), code: 0 })
            }
            Packet::PingReq => (Duration::ZERO, Packet::PingResp),
            Packet::Disconnect(_) => return,
            other => panic!("nobody beside sends {other:?}"),
        };
        self.answer(attempt, vec![answer]);
    }

    /// A CONNECT ends any other connection under the same identity; in a cluster, on any node.
    fn accept(&mut self, attempt: u64, index: usize) {
        let cluster = self.plan.topology == Topology::Cluster;
        for other in 0..self.brokers.len() {
            if other != index && !cluster {
                continue;
            }
            if let Some(old) = self.brokers[other].connection.as_ref().map(|connection| connection.attempt) {
                self.brokers[other].end(old);
                self.at(Duration::from_millis(1), Happening::EndAtClient { attempt: old });
            }
            if other != index && self.brokers[index].session.is_none() {
                let mut session = self.brokers[other].session.take();
                if let Some(session) = session.as_mut() {
                    session.moved = true;
                }
                self.brokers[index].session = session;
            }
        }
        self.brokers[index].connection = Some(Connection {
            attempt,
            greeted: false,
            clean: false,
            expiry: Duration::ZERO,
            open: BTreeSet::new(),
            session_present: false,
            unanswered: BTreeSet::new(),
            held: Vec::new(),
        });
    }

    fn answer(&mut self, attempt: u64, answers: Vec<(Duration, Packet)>) {
        for (delay, packet) in answers {
            let latency = self.latency();
            let Some(link) = self.links.get_mut(&attempt) else { return };
            let arrival = (self.now + delay + latency).max(link.last_to_client);
            link.last_to_client = arrival;
            if !link.vanishing {
                self.at_instant(arrival, Happening::ToClient { attempt, packet });
            }
        }
    }

    /// The level at which commands are wanted.
    fn wanted(&self) -> Qos {
        if self.plan.exactly_once { Qos::ExactlyOnce } else { Qos::AtLeastOnce }
    }

    fn command(&mut self, number: u64) {
        self.commands.insert(number);
        let qos = if number.is_multiple_of(2) { self.wanted() } else { Qos::AtLeastOnce };
        for index in 0..self.brokers.len() {
            let broker = &mut self.brokers[index];
            if broker.mood.down || broker.mood.frozen {
                continue;
            }
            let Some(sent) = broker.command(number, qos) else { continue };
            self.reader.owes(number, index);
            if let Some(attempt) = broker.connection.as_ref().map(|connection| connection.attempt) {
                self.answer(attempt, sent);
            }
        }
    }

    fn fault(&mut self) {
        if self.healed {
            return;
        }
        let count = u64::try_from(self.brokers.len()).expect("few");
        let index = usize::try_from(self.draw(count)).expect("few");
        match self.draw(10) {
            0 => self.kill(index),
            1 => self.brokers[index].mood.down = false,
            2 => {
                self.fired.freezes += u64::from(!self.brokers[index].mood.frozen && !self.brokers[index].mood.down);
                self.brokers[index].mood.frozen = true;
            }
            3 => self.thaw(index),
            4 => {
                self.fired.blackholes += u64::from(!self.links.is_empty());
                self.links.values_mut().for_each(|link| link.vanishing = true);
            }
            5 => {
                let delay = self.below(Duration::from_secs(10));
                self.brokers[index].mood.connack_delay = delay;
            }
            6 => self.brokers[index].mood.eof_before_connack = self.draw(2) == 0,
            7 => {
                let spoilt = [self.draw(3), self.draw(4), self.draw(4)];
                let mood = &mut self.brokers[index].mood;
                [mood.acks_missing, mood.acks_doubled, mood.acks_held] = spoilt;
                let refusing = if self.plan.version == Version::V5 { spoilt[0] } else { 0 };
                self.brokers[index].mood.acks_refusing = refusing;
            }
            8 => self.swizzle(),
            _ => {
                if let Some(attempt) = self.brokers[index].connection.as_ref().map(|connection| connection.attempt) {
                    self.fired.takeovers += 1;
                    self.brokers[index].end(attempt);
                    self.at(Duration::from_millis(1), Happening::EndAtClient { attempt });
                }
            }
        }
        let wait = self.below(Duration::from_millis(1500));
        self.at(wait, Happening::Fault);
    }

    fn kill(&mut self, index: usize) {
        self.fired.kills += u64::from(!self.brokers[index].mood.down);
        let broker = &self.brokers[index];
        self.fired.session_losses += u64::from(!broker.keeps_sessions && broker.session.is_some());
        self.brokers[index].die();
        if self.plan.topology == Topology::Cluster && self.draw(2) == 0 {
            self.fired.elections += 1;
            self.electing_until = self.now + self.below(Duration::from_secs(8));
        }
        let ended: Vec<_> = self.links.iter().filter(|(_, link)| link.broker == index).map(|(at, _)| *at).collect();
        for attempt in ended {
            self.at(Duration::from_millis(1), Happening::EndAtClient { attempt });
        }
    }

    fn thaw(&mut self, index: usize) {
        self.brokers[index].mood.frozen = false;
        for (attempt, packet) in std::mem::take(&mut self.brokers[index].unread) {
            let unread = Happening::ToBroker { attempt, broker: index, packet };
            self.at(Duration::ZERO, Happening::Arrived(Box::new(unread)));
        }
    }

    fn heal(&mut self) {
        self.healed = true;
        self.electing_until = self.now;
        self.full = false;
        for index in 0..self.brokers.len() {
            self.thaw(index);
            self.brokers[index].mood = Mood::default();
        }
        // Packets that vanished stay lost, and the links they were on stay dead. What a cut link held back comes now.
        self.restore_all();
        for number in 1000..1005 {
            self.at(self.plan.healing / 2, Happening::Command(number));
            self.must_arrive.insert(number);
        }
    }

    fn is_settled(&self) -> bool {
        self.outcomes.len() == self.admitted.len()
    }

    fn judge(&self) {
        self.judge_poison();
        for broker in &self.brokers {
            for (topic, seen) in &broker.received {
                let refused = |number: &&u64| self.brokers.iter().any(|broker| broker.refused.contains(number));
                let ordered = seen.iter().filter(|number| !refused(number)).is_sorted();
                assert!(ordered, "first receipts of {topic} out of order: {seen:?}");
            }
        }
        let open: Vec<_> = self.admitted.iter().filter(|(id, _)| !self.outcomes.contains_key(id)).collect();
        assert!(open.is_empty(), "no outcome after healing: {open:?}, {:?}", self.courier.status());
        assert!(self.courier.status().is_connected(), "not connected after healing");
        self.reader.judge();
        assert!(self.must_arrive.is_empty(), "commands {:?} never arrived", self.must_arrive);
        assert_eq!(self.backlog.messages(), 0, "the account of the queue is not balanced");
        assert_eq!(self.backlog.bytes(), 0, "the account of the queue is not balanced");
    }
}

/// Whether a CONNECT is under a derived identity; then it must leave nothing behind.
fn is_aside(connect: &Connect) -> bool {
    let is_aside = connect.client_id.contains('~');
    assert!(!is_aside || (connect.clean_session && connect.will.is_none()), "{connect:?}");
    is_aside
}

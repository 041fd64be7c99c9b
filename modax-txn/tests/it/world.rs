//! A small world in virtual time: producers, a database, relays that crash and freeze, a sink that fails. One seed, one history.
//!
//! The relays are the crate's own state machine; everything around it is written here a second time, as simply as possible.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use modax_txn::{
    MessageId, OutgoingMessage, RetryPolicy,
    relay::{Answer, Dispatch, Input, Output, RelayConfig, Statement},
};

use crate::database::{Database, Row, Status};

/// What is deliberately wrong in a world, to see that the oracle notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flaw {
    None,
    /// The database records for anybody.
    NoFence,
    /// A relay's clock stands still while it is frozen, so that its lease seems to go on.
    ClockStopsWhileFrozen,
    /// The relay is not told the keys.
    NoKeys,
    /// Rows are read by a cursor on their number.
    NumberCursor,
    /// The driver says "recorded" when it has only sent.
    RecordedTooEarly,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) flaw: Flaw,
    /// Crash relay 0 when it has taken so many steps.
    pub(crate) crash_at_step: Option<u64>,
    /// Whether anything else goes wrong.
    pub(crate) faults: bool,
    pub(crate) messages: u32,
}

#[derive(Debug)]
struct Node {
    machine: Dispatch,
    token: u64,
    is_alive: bool,
    /// Events for an earlier life are void.
    life: u64,
    /// Publishes of before an abort are void.
    publishes: u64,
    frozen_until: u64,
    /// How long it has been frozen in all, for the flawed clock.
    frozen_for: u64,
    steps: u64,
    with_sink: BTreeMap<MessageId, String>,
    timer: u64,
}

#[derive(Clone, Debug)]
enum Happening {
    Begin,
    Commit { row: Row, aborts: bool },
    Arrives { node: usize, life: u64, statement: Statement },
    Answer { node: usize, life: u64, input: Input },
    Publish { node: usize, life: u64, batch: u64, message: OutgoingMessage, not_after: Instant },
    Sent { node: usize, life: u64, batch: u64, message: OutgoingMessage },
    SinkAnswer { node: usize, life: u64, batch: u64, id: MessageId, answer: Answer },
    Timer { node: usize, life: u64 },
    Fault,
    Start { node: usize },
    DatabaseUp,
    Redrive,
    Wake { node: usize },
}

/// One receipt, as the sink saw it.
#[derive(Clone, Debug)]
struct Receipt {
    id: MessageId,
    key: String,
    version: u32,
    epoch: u64,
}

/// What happened, in numbers, so that a test can tell that its faults fired.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Fired {
    pub(crate) crashes: u64,
    pub(crate) freezes: u64,
    pub(crate) outages: u64,
    pub(crate) sink_failures: u64,
    pub(crate) takeovers: u64,
    pub(crate) duplicates: u64,
    pub(crate) late: u64,
    pub(crate) rejected: u64,
    pub(crate) expired: u64,
    pub(crate) parked: u64,
    pub(crate) steps: u64,
}

pub(crate) struct World {
    plan: Plan,
    random: u64,
    origin: Instant,
    now: u64,
    agenda: BTreeMap<(u64, u64), Happening>,
    next_number: u64,
    database: Database,
    nodes: Vec<Node>,
    locked: BTreeSet<String>,
    versions: BTreeMap<String, u32>,
    begun: u32,
    healed: bool,
    sink_down_until: u64,
    unsafe_until: u64,
    poison: BTreeSet<MessageId>,
    /// What the relay is not told under `Flaw::NoKeys`, and what the oracle needs.
    truth: BTreeMap<MessageId, (String, u32)>,
    receipts: Vec<Receipt>,
    /// Messages the sink has and once said nothing about: a later attempt may be refused all the same.
    unheard: BTreeSet<MessageId>,
    fault: Option<String>,
    pub(crate) fired: Fired,
}

const MS: u64 = 1000;
const KEYS: u64 = 4;
/// Virtual time after which a world must be at rest.
const END: u64 = 600_000 * MS;

pub(crate) fn config() -> RelayConfig {
    let mut config = RelayConfig::default();
    config.lease = Duration::from_millis(500);
    config.poll_interval = Duration::from_millis(5);
    config.idle_poll_interval = Duration::from_millis(80);
    config.inflight = 6;
    config.retry = RetryPolicy::default().first(Duration::from_millis(10)).cap(Duration::from_millis(200)).attempts(4);
    config
}

impl World {
    pub(crate) fn run(plan: Plan) -> Result<Fired, String> {
        let mut world = Self {
            plan,
            random: plan.seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1,
            origin: Instant::now(),
            now: 0,
            agenda: BTreeMap::new(),
            next_number: 0,
            database: Database { is_up: true, ..Database::default() },
            nodes: Vec::new(),
            locked: BTreeSet::new(),
            versions: BTreeMap::new(),
            begun: 0,
            healed: false,
            sink_down_until: 0,
            unsafe_until: 0,
            poison: BTreeSet::new(),
            truth: BTreeMap::new(),
            receipts: Vec::new(),
            unheard: BTreeSet::new(),
            fault: None,
            fired: Fired::default(),
        };
        world.live();
        match world.fault.take().or_else(|| world.judge()) {
            Some(fault) => Err(fault),
            None => Ok(world.fired),
        }
    }

    fn live(&mut self) {
        for node in 0..2 {
            let machine = Dispatch::new(config(), 1, self.origin);
            self.nodes.push(Node {
                machine,
                token: 0,
                is_alive: false,
                life: 0,
                publishes: 0,
                frozen_until: 0,
                frozen_for: 0,
                steps: 0,
                with_sink: BTreeMap::new(),
                timer: u64::MAX,
            });
            self.after(node as u64 * 3 * MS, Happening::Start { node });
        }
        self.after(0, Happening::Begin);
        if self.plan.faults {
            self.after(20 * MS, Happening::Fault);
        }
        while let Some(((at, _), happening)) = self.agenda.pop_first() {
            self.now = at;
            if self.fault.is_some() {
                return;
            }
            self.happen(happening);
            let settled = |row: &Row| !matches!(row.status, Status::Pending | Status::Parked);
            if self.healed && self.locked.is_empty() && self.database.rows.iter().all(settled) {
                return;
            }
            if at > END {
                self.fault = Some(format!(
                    "not at rest: {:?}",
                    self.database.rows.iter().filter(|row| !settled(row)).collect::<Vec<_>>()
                ));
            }
        }
    }

    // Time and chance.

    fn roll(&mut self, sides: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) % sides
    }

    fn after(&mut self, delay: u64, happening: Happening) {
        self.next_number += 1;
        self.agenda.insert((self.now + delay, self.next_number), happening);
    }

    fn instant(&self, node: usize) -> Instant {
        let mut micros = self.now;
        if self.plan.flaw == Flaw::ClockStopsWhileFrozen {
            let there = &self.nodes[node];
            micros = micros + there.frozen_until.saturating_sub(self.now) - there.frozen_for;
        }
        self.origin + Duration::from_micros(micros)
    }

    fn happen(&mut self, happening: Happening) {
        // What a frozen relay should notice, it notices when it goes on.
        let noticed = match &happening {
            Happening::Answer { node, .. }
            | Happening::Timer { node, .. }
            | Happening::SinkAnswer { node, .. }
            | Happening::Publish { node, .. }
            | Happening::Wake { node } => Some(*node),
            _ => None,
        };
        if let Some(node) = noticed
            && self.nodes[node].frozen_until > self.now
        {
            let rest = self.nodes[node].frozen_until - self.now;
            return self.after(rest, happening);
        }
        match happening {
            Happening::Begin => self.begin(),
            Happening::Commit { row, aborts } => self.commit(row, aborts),
            Happening::Arrives { node, life, statement } => self.arrives(node, life, statement),
            Happening::Answer { node, life, input } => self.input(node, life, input),
            Happening::Publish { node, life, batch, message, not_after } => {
                self.publish(node, life, batch, message, not_after);
            }
            Happening::Sent { node, life, batch, message } => self.sent(node, life, batch, &message),
            Happening::SinkAnswer { node, life, batch, id, answer } => {
                if self.nodes[node].life == life && self.nodes[node].publishes == batch {
                    self.nodes[node].with_sink.remove(&id);
                    self.input(node, life, Input::Answered { id, answer });
                }
            }
            Happening::Timer { node, life } => {
                if self.nodes[node].life == life && self.nodes[node].timer <= self.now {
                    self.nodes[node].timer = u64::MAX;
                    let now = self.instant(node);
                    self.nodes[node].machine.handle_timeout(now);
                    self.carry_out(node);
                }
            }
            Happening::Fault => self.strike(),
            Happening::Start { node } => self.start(node),
            Happening::DatabaseUp => self.database.is_up = true,
            Happening::Redrive => self.redrive(),
            Happening::Wake { node } => {
                if self.nodes[node].is_alive {
                    let life = self.nodes[node].life;
                    self.input(node, life, Input::Woken);
                }
            }
        }
    }

    // Producers: lock the key, draw a number, commit or roll back a while later.

    fn begin(&mut self) {
        if self.begun == self.plan.messages {
            return self.heal();
        }
        let key = format!("k{}", self.roll(KEYS));
        let next = self.roll(12 * MS);
        self.after(next, Happening::Begin);
        if !self.locked.insert(key.clone()) {
            return;
        }
        self.begun += 1;
        self.database.next_seq += 1;
        let version = self.versions.get(&key).copied().unwrap_or(0) + 1;
        let mut random = [0; 10];
        random[..8].copy_from_slice(&self.database.next_seq.to_be_bytes());
        let id = MessageId::from_parts(self.now / MS, &random);
        let expires_at = (self.roll(8) == 0).then(|| self.now + 1 + self.roll(1500 * MS));
        if self.plan.faults && self.roll(25) == 0 {
            self.poison.insert(id);
        }
        self.truth.insert(id, (key.clone(), version));
        let seq = self.database.next_seq;
        let row = Row { id, seq, key, version, expires_at, status: Status::Pending, attempts: 0 };
        let (aborts, takes) = (self.roll(5) == 0, self.roll(15 * MS));
        self.after(takes, Happening::Commit { row, aborts });
    }

    fn commit(&mut self, row: Row, aborts: bool) {
        self.locked.remove(&row.key);
        if aborts || !self.database.is_up {
            return;
        }
        self.versions.insert(row.key.clone(), row.version);
        self.database.rows.push(row);
        let node = usize::from(self.roll(2) == 0);
        self.after(0, Happening::Wake { node });
    }

    fn heal(&mut self) {
        self.healed = true;
        self.poison.clear();
        self.unsafe_until = 0;
        self.sink_down_until = 0;
        self.database.is_up = true;
        self.redrive();
    }

    /// The person who looks after parked messages, now that their cause is gone.
    fn redrive(&mut self) {
        for row in &mut self.database.rows {
            if row.status == Status::Parked {
                (row.status, row.attempts) = (Status::Pending, 0);
            }
        }
        self.after(500 * MS, Happening::Redrive);
    }

    // Faults.

    fn strike(&mut self) {
        if self.healed {
            return;
        }
        let next = 20 * MS + self.roll(150 * MS);
        self.after(next, Happening::Fault);
        let node = usize::from(self.roll(2) == 0);
        match self.roll(6) {
            0 => self.crash(node),
            1 | 2 => self.freeze(node),
            3 => {
                self.fired.outages += 1;
                self.database.is_up = false;
                let back = self.roll(900 * MS);
                self.after(back, Happening::DatabaseUp);
            }
            4 => self.sink_down_until = self.now + self.roll(400 * MS),
            _ => self.unsafe_until = self.now + self.roll(60 * MS),
        }
    }

    fn crash(&mut self, node: usize) {
        if !self.nodes[node].is_alive {
            return;
        }
        self.fired.crashes += 1;
        self.nodes[node].life += 1;
        let there = &mut self.nodes[node];
        there.is_alive = false;
        there.with_sink.clear();
        there.frozen_for -= there.frozen_until.saturating_sub(self.now);
        there.frozen_until = 0;
        let back = self.roll(300 * MS);
        self.after(back, Happening::Start { node });
    }

    /// What is inside the process and not yet out comes out when it goes on.
    fn freeze(&mut self, node: usize) {
        if self.nodes[node].frozen_until > self.now || !self.nodes[node].is_alive {
            return;
        }
        self.fired.freezes += 1;
        let length = 10 * MS + self.roll(900 * MS);
        self.nodes[node].frozen_until = self.now + length;
        self.nodes[node].frozen_for += length;
        let inside: Vec<(u64, u64)> = self
            .agenda
            .iter()
            .filter(|(_, h)| matches!(h, Happening::Sent { node: n, .. } | Happening::Arrives { node: n, .. } if *n == node))
            .map(|(place, _)| *place)
            .collect();
        for place in inside {
            if self.roll(2) == 0
                && let Some(happening) = self.agenda.remove(&place)
            {
                self.after(length + 1, happening);
            }
        }
    }

    fn start(&mut self, node: usize) {
        let token = 1 + self.roll(u64::MAX - 1);
        let now = self.instant(node);
        let there = &mut self.nodes[node];
        there.life += 1;
        there.publishes += 1;
        there.token = token;
        there.is_alive = true;
        there.timer = u64::MAX;
        there.machine = Dispatch::new(config(), token, now);
        there.machine.handle_timeout(now);
        self.carry_out(node);
    }

    // The driver.

    fn input(&mut self, node: usize, life: u64, input: Input) {
        if self.nodes[node].life != life {
            return;
        }
        let now = self.instant(node);
        self.nodes[node].machine.handle_input(now, input);
        self.carry_out(node);
    }

    fn carry_out(&mut self, node: usize) {
        let life = self.nodes[node].life;
        while let Some(output) = self.nodes[node].machine.poll_output() {
            self.nodes[node].steps += 1;
            self.fired.steps = self.fired.steps.max(self.nodes[node].steps);
            if node == 0 && self.fired.crashes == 0 && self.plan.crash_at_step == Some(self.nodes[0].steps) {
                return self.crash(0);
            }
            match output {
                Output::Run(statement) => {
                    if self.plan.flaw == Flaw::RecordedTooEarly && matches!(statement, Statement::Record { .. }) {
                        self.after(1, Happening::Answer { node, life, input: Input::Recorded { held: true } });
                        // Sent, with one chance in four of getting lost.
                        if self.roll(4) == 0 {
                            continue;
                        }
                    }
                    let delay = 50 + self.roll(2 * MS);
                    self.after(delay, Happening::Arrives { node, life, statement });
                }
                Output::Publish { message, not_after } => {
                    let batch = self.nodes[node].publishes;
                    self.after(1, Happening::Publish { node, life, batch, message, not_after });
                }
                Output::Abort => {
                    self.nodes[node].publishes += 1;
                    self.nodes[node].with_sink.clear();
                }
                Output::Event(event) => self.count(&event),
                Output::Stopped => self.fault = Some("a relay stopped by itself".to_owned()),
                _ => unreachable!("every output is known here"),
            }
        }
        if let Some(at) = self.nodes[node].machine.poll_timeout() {
            // The flawed clock runs behind; its timers are late by as much.
            let behind = (self.origin + Duration::from_micros(self.now)).duration_since(self.instant(node));
            let at = u64::try_from((at + behind).duration_since(self.origin).as_micros()).unwrap_or(u64::MAX);
            let at = at.max(self.now) + 1;
            if at < self.nodes[node].timer || self.nodes[node].timer <= self.now {
                self.nodes[node].timer = at;
                self.after(at - self.now, Happening::Timer { node, life });
            }
        }
    }

    fn count(&mut self, event: &modax_txn::Event) {
        match event {
            modax_txn::Event::LeaseAcquired { .. } => self.fired.takeovers += 1,
            modax_txn::Event::Rejected { .. } => self.fired.rejected += 1,
            modax_txn::Event::Expired { .. } => self.fired.expired += 1,
            modax_txn::Event::Parked { .. } => self.fired.parked += 1,
            _ => {}
        }
    }

    /// The driver's last look at the clock, then the message is on its way.
    fn publish(&mut self, node: usize, life: u64, batch: u64, message: OutgoingMessage, not_after: Instant) {
        if self.nodes[node].life != life || self.nodes[node].publishes != batch {
            return;
        }
        if self.instant(node) >= not_after {
            return self.input(node, life, Input::Answered { id: message.id, answer: Answer::Unsent });
        }
        let (key, _) = self.truth[&message.id].clone();
        let there = &mut self.nodes[node];
        if self.plan.flaw == Flaw::None && there.with_sink.values().any(|other| *other == key) {
            self.fault = Some(format!("two messages of {key} with the sink at once"));
            return;
        }
        there.with_sink.insert(message.id, key);
        if there.with_sink.len() > config().inflight {
            self.fault = Some("more in flight than allowed".to_owned());
            return;
        }
        if message.expires_in.is_some_and(|left| left.is_zero()) {
            self.fault = Some(format!("{} published after its time", message.id));
            return;
        }
        let delay = 20 + self.roll(3 * MS);
        self.after(delay, Happening::Sent { node, life, batch, message });
    }

    /// The sink. A dead relay's message may still arrive: it was on its way.
    fn sent(&mut self, node: usize, life: u64, batch: u64, message: &OutgoingMessage) {
        let id = message.id;
        let answer = if self.poison.contains(&id) || self.sink_down_until > self.now {
            self.fired.sink_failures += 1;
            Answer::Retry { reason: "sink is away".to_owned() }
        } else if self.unsafe_until > self.now {
            Answer::Rejected { reason: "not safe".to_owned() }
        } else {
            let (key, version) = self.truth[&id].clone();
            self.receipts.push(Receipt { id, key, version, epoch: message.epoch });
            if !self.healed && self.roll(20) == 0 {
                // It has the message, and nobody hears of it.
                self.fired.sink_failures += 1;
                self.unheard.insert(id);
                Answer::Retry { reason: "no answer".to_owned() }
            } else {
                Answer::Confirmed { by: None }
            }
        };
        let delay = 20 + self.roll(3 * MS);
        self.after(delay, Happening::SinkAnswer { node, life, batch, id, answer });
    }

    // The database.

    fn arrives(&mut self, node: usize, life: u64, statement: Statement) {
        // A statement of a dead relay that is on its way still takes effect, as on a server.
        let token = self.nodes[node].token;
        let (input, delay) = if self.database.is_up {
            let is_lost = !self.healed && self.roll(60) == 0;
            let input = self.database.execute(self.now, self.plan.flaw, token, statement);
            let lost = Input::DatabaseFailed { reason: "link lost after the statement".to_owned() };
            (if is_lost { lost } else { input }, 50 + self.roll(2 * MS))
        } else {
            (Input::DatabaseFailed { reason: "away".to_owned() }, 5 * MS)
        };
        if self.plan.flaw == Flaw::RecordedTooEarly && matches!(input, Input::Recorded { .. }) {
            return;
        }
        self.after(delay, Happening::Answer { node, life, input });
    }

    // The oracle.

    fn judge(&mut self) -> Option<String> {
        let rows: BTreeMap<MessageId, &Row> = self.database.rows.iter().map(|row| (row.id, row)).collect();
        let mut last: BTreeMap<&str, (u32, u64)> = BTreeMap::new();
        let mut seen = BTreeSet::new();
        for receipt in &self.receipts {
            let Some(row) = rows.get(&receipt.id) else {
                return Some(format!("phantom: {receipt:?} was never committed"));
            };
            if let Status::Expired(epoch) | Status::Rejected(epoch) = row.status
                && receipt.epoch >= epoch
                && !self.unheard.contains(&receipt.id)
            {
                return Some(format!(
                    "{:?} is recorded, and yet {receipt:?} arrived in that term or later",
                    row.status
                ));
            }
            // What a frozen relay had in hand comes out late. If its successor delivered the message, the late one is a duplicate; if
            // it expired or rejected it, the late one is a first receipt out of its place: no fence outside the sink can help that.
            if let Status::Expired(epoch) | Status::Rejected(epoch) = row.status
                && receipt.epoch < epoch
            {
                self.fired.late += 1;
                continue;
            }
            if !seen.insert(receipt.id) {
                self.fired.duplicates += 1;
                continue;
            }
            if let Some((version, epoch)) = last.insert(&receipt.key, (receipt.version, receipt.epoch)) {
                if receipt.version < version {
                    return Some(format!("reordered: {receipt:?} after version {version}"));
                }
                if receipt.epoch < epoch {
                    return Some(format!("epoch fell: {receipt:?} after term {epoch}"));
                }
            }
        }
        let lost = self.database.rows.iter().find(|row| row.status == Status::Delivered && !seen.contains(&row.id));
        lost.map(|row| format!("lost: {row:?} is recorded as delivered"))
    }
}

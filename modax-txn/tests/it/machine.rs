//! The relay's state machine against a small reference model: whatever happens, in whatever order.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use modax_txn::{
    ConfigError, MessageId, OutgoingMessage, RetryPolicy,
    relay::{Answer, Dispatch, Fetched, Input, Outcome, Output, RelayConfig, Statement},
};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    /// So many milliseconds pass.
    Pass(u64),
    Wake,
    /// A row appears: its key (0 is none) and the milliseconds it may live.
    Commit(u8, Option<u16>),
    /// The statement that is out is answered well, or fails.
    Database(bool),
    /// Another relay takes the lease.
    Depose,
    /// The sink answers the n-th message it has: confirmed, failed, rejected, expired, not sent.
    Sink(usize, u8),
    /// The sink answers a message nobody gave it.
    Stray,
    Stop,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..400_u64).prop_map(Step::Pass),
        1 => Just(Step::Wake),
        6 => (0..4_u8, proptest::option::weighted(0.2, 1..600_u16)).prop_map(|(key, left)| Step::Commit(key, left)),
        10 => proptest::bool::weighted(0.92).prop_map(Step::Database),
        1 => Just(Step::Depose),
        8 => (0..8_usize, 0..5_u8).prop_map(|(place, kind)| Step::Sink(place, kind)),
        1 => Just(Step::Stray),
        1 => Just(Step::Stop),
    ]
}

struct Row {
    id: MessageId,
    key: Option<String>,
    expires_at: Option<Instant>,
    attempts: u32,
    status: Option<Outcome>,
}

struct Model {
    machine: Dispatch,
    now: Instant,
    rows: Vec<Row>,
    owner: bool,
    epoch: u64,
    out: Option<Statement>,
    with_sink: Vec<(MessageId, Option<String>)>,
    /// Highest row of each key that was confirmed, to see that none before it comes after it.
    confirmed: BTreeMap<String, usize>,
    stopped: bool,
    sweeps: u32,
}

const INFLIGHT: usize = 4;

fn config() -> RelayConfig {
    let mut config = RelayConfig::default();
    config.lease = Duration::from_millis(900);
    config.inflight = INFLIGHT;
    config.retry = RetryPolicy::default().first(Duration::from_millis(20)).cap(Duration::from_millis(100)).attempts(3);
    config
}

impl Model {
    fn new(now: Instant) -> Self {
        let mut machine = Dispatch::new(config(), 7, now);
        machine.handle_timeout(now);
        let mut model = Self {
            machine,
            now,
            rows: Vec::new(),
            owner: false,
            epoch: 0,
            out: None,
            with_sink: Vec::new(),
            confirmed: BTreeMap::new(),
            stopped: false,
            sweeps: 0,
        };
        model.drain();
        model
    }

    fn take(&mut self, step: &Step) {
        let now = self.now;
        match *step {
            Step::Pass(millis) => self.pass(Duration::from_millis(millis)),
            Step::Wake => self.machine.handle_input(now, Input::Woken),
            Step::Commit(key, left) => {
                let number = u8::try_from(self.rows.len() % 256).unwrap_or(0);
                let id = MessageId::from_parts(self.rows.len() as u64, &[number; 10]);
                let key = (key > 0).then(|| format!("k{key}"));
                let expires_at = left.map(|left| now + Duration::from_millis(left.into()));
                self.rows.push(Row { id, key, expires_at, attempts: 0, status: None });
            }
            Step::Database(true) => self.answer_statement(),
            Step::Database(false) => {
                self.out = None;
                self.machine.handle_input(now, Input::DatabaseFailed { reason: "away".to_owned() });
            }
            Step::Depose => {
                self.epoch += 1;
                self.owner = false;
            }
            Step::Sink(place, kind) => self.answer_sink(place, kind),
            Step::Stray => {
                let id = MessageId::from_parts(1 << 40, &[9; 10]);
                self.machine.handle_input(now, Input::Answered { id, answer: Answer::Expired });
            }
            Step::Stop => self.machine.handle_input(now, Input::Stop),
        }
        self.drain();
    }

    /// Lets time pass, with every timer kept on the way; none may come again without anything done.
    fn pass(&mut self, length: Duration) {
        let end = self.now + length;
        let mut idle = 0;
        while let Some(at) = self.machine.poll_timeout().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.machine.handle_timeout(self.now);
            idle = if self.drain() { 0 } else { idle + 1 };
            assert!(idle < 50, "the machine asks for the same moment again and again");
        }
        self.now = end;
        self.machine.handle_timeout(end);
    }

    fn answer_statement(&mut self) {
        let Some(statement) = self.out.take() else { return };
        let now = self.now;
        let mine = |epoch: u64, model: &Self| model.owner && model.epoch == epoch;
        let input = match statement {
            Statement::Claim => {
                self.epoch += 1;
                self.owner = true;
                Input::Claimed { epoch: self.epoch }
            }
            Statement::Renew { epoch } => Input::Renewed { held: mine(epoch, self) },
            Statement::Release { .. } => Input::Released,
            Statement::Sweep => {
                self.sweeps += 1;
                Input::Swept { expired: Vec::new(), more: false }
            }
            Statement::Fetch { limit, exclude, full_keys } => {
                let parked: BTreeSet<_> = self
                    .rows
                    .iter()
                    .filter(|row| matches!(row.status, Some(Outcome::Parked { .. })))
                    .filter_map(|row| row.key.clone())
                    .collect();
                let held = |key: &String| parked.contains(key) || full_keys.contains(key);
                let messages = self
                    .rows
                    .iter()
                    .filter(|row| row.status.is_none() && !exclude.contains(&row.id))
                    .filter(|row| row.expires_at.is_some_and(|at| at <= now) || !row.key.as_ref().is_some_and(held))
                    .take(limit)
                    .map(|row| {
                        let mut message = OutgoingMessage::new(row.id, "t");
                        message.key.clone_from(&row.key);
                        message.expires_in = row.expires_at.map(|at| at.saturating_duration_since(now));
                        Fetched { message, attempts: row.attempts, fault: None }
                    })
                    .collect();
                Input::Fetched { messages }
            }
            Statement::Record { epoch, settlements } => {
                let held = mine(epoch, self);
                for settlement in settlements.into_iter().filter(|_| held) {
                    let row = self.rows.iter_mut().find(|row| row.id == settlement.id).expect("a known message");
                    row.attempts = settlement.attempts;
                    if row.status.is_none() && !matches!(settlement.outcome, Outcome::Retried { .. }) {
                        row.status = Some(settlement.outcome);
                    }
                }
                Input::Recorded { held }
            }
            other => panic!("unknown statement {other:?}"),
        };
        self.machine.handle_input(now, input);
    }

    fn answer_sink(&mut self, place: usize, kind: u8) {
        if self.with_sink.is_empty() {
            return;
        }
        let (id, key) = self.with_sink.remove(place % self.with_sink.len());
        let reason = "because".to_owned();
        let answer = match kind {
            0 => Answer::Retry { reason },
            1 => Answer::Rejected { reason },
            2 => Answer::Unsent,
            3 => Answer::Expired,
            _ => Answer::Confirmed { by: None },
        };
        if let (Answer::Confirmed { .. }, Some(key)) = (&answer, key) {
            let place = self.rows.iter().position(|row| row.id == id).expect("a known message");
            let highest = self.confirmed.entry(key).or_insert(place);
            *highest = place.max(*highest);
        }
        self.machine.handle_input(self.now, Input::Answered { id, answer });
    }

    /// Takes the outputs and checks each; answers whether there were any.
    fn drain(&mut self) -> bool {
        let mut any = false;
        while let Some(output) = self.machine.poll_output() {
            any = true;
            assert!(!self.stopped, "something after the end: {output:?}");
            match output {
                Output::Run(statement) => {
                    assert!(self.out.is_none(), "two statements at once");
                    self.out = Some(statement);
                }
                Output::Publish { message, not_after } => self.published(message, not_after),
                Output::Abort => self.with_sink.clear(),
                Output::Event(_) => {}
                Output::Stopped => self.stopped = true,
                other => panic!("unknown output {other:?}"),
            }
        }
        let stats = self.machine.stats();
        assert_eq!(stats.inflight, self.with_sink.len());
        assert!(stats.inflight + stats.buffered <= 3 * INFLIGHT, "{stats:?}");
        assert!(stats.unrecorded <= 3 * INFLIGHT + 3 * INFLIGHT, "{stats:?}");
        any
    }

    fn published(&mut self, message: OutgoingMessage, not_after: Instant) {
        assert!(self.now < not_after, "published after the lease or the message was over");
        assert!(self.with_sink.len() < INFLIGHT, "more in flight than allowed");
        let place = self.rows.iter().position(|row| row.id == message.id).expect("a message that was read");
        assert!(self.rows[place].expires_at.is_none_or(|at| self.now < at), "an expired message was published");
        assert!(self.rows[place].status.is_none(), "a settled message was published: {:?}", self.rows[place].status);
        if let Some(key) = &message.key {
            assert!(self.with_sink.iter().all(|(_, other)| other.as_ref() != Some(key)), "two of one key at once");
            let earlier = self.rows.iter().take(place).filter(|row| row.key.as_ref() == Some(key));
            for row in earlier {
                let is_open = row.status.is_none() && row.expires_at.is_none_or(|at| at > self.now);
                let is_over = self.confirmed.get(key).is_some_and(|highest| self.rows[*highest].id >= row.id);
                assert!(!is_open || is_over, "{} before {} of the same key", message.id, row.id);
            }
        }
        self.with_sink.push((message.id, message.key));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_a_key_has_one_message_out_and_nothing_goes_out_without_lease_or_time(
        steps in proptest::collection::vec(step(), 1..200)
    ) {
        let mut model = Model::new(Instant::now());
        for step in steps {
            model.take(&step);
        }
    }

    #[test]
    fn whatever_happened_everything_is_settled_once_the_world_is_well_again(
        steps in proptest::collection::vec(step(), 1..120)
    ) {
        let mut model = Model::new(Instant::now());
        for step in steps.into_iter().filter(|step| !matches!(step, Step::Stop)) {
            model.take(&step);
        }
        let mut turns: VecDeque<()> = std::iter::repeat_n((), 4000).collect();
        while turns.pop_front().is_some() {
            model.take(&Step::Database(true));
            model.take(&Step::Sink(0, 9));
            for row in &mut model.rows {
                if matches!(row.status, Some(Outcome::Parked { .. })) {
                    (row.status, row.attempts) = (None, 0);
                }
            }
            if model.rows.iter().all(|row| row.status.is_some()) {
                break;
            }
            model.take(&Step::Pass(30));
        }
        prop_assert!(model.rows.iter().all(|row| row.status.is_some()), "something is left over");
    }
}

#[test]
fn f60_a_relay_that_always_has_something_to_do_sweeps_all_the_same() {
    let mut model = Model::new(Instant::now());
    // A minute in which there is never nothing to read or to record.
    for _ in 0..6_000 {
        for step in [Step::Commit(0, None), Step::Wake, Step::Sink(0, 9), Step::Database(true), Step::Pass(10)] {
            model.take(&step);
        }
    }

    assert!(model.sweeps >= 10, "{} sweeps", model.sweeps);
    let settled = model.rows.iter().filter(|row| row.status.is_some()).count();
    assert!(settled + 4 * INFLIGHT >= model.rows.len(), "and the messages do not wait for it");
}

#[test]
fn a_setting_that_cannot_work_is_named() {
    let with = |change: fn(&mut RelayConfig)| {
        let mut config = RelayConfig::default();
        change(&mut config);
        config.check()
    };
    assert_eq!(with(|_| {}), Ok(()));
    for (field, change) in [
        ("lease", (|c| c.lease = Duration::ZERO) as fn(&mut RelayConfig)),
        ("poll_interval", |c| c.poll_interval = Duration::ZERO),
        ("idle_poll_interval", |c| c.idle_poll_interval = Duration::from_millis(1)),
        ("inflight", |c| c.inflight = 0),
        ("retry.attempts", |c| c.retry = c.retry.attempts(0)),
    ] {
        assert!(matches!(with(change), Err(ConfigError::Field { field: named, .. }) if named == field), "{field}");
    }
}

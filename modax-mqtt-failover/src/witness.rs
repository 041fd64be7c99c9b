//! A connected, silent session on another broker: the proof that it works, before it is needed.
//!
//! Pure. One connection at a time under a derived identity (clean, no subscriptions, nothing published), kept alive by
//! pings at the probe interval. It stands at the first broker of its list that works; when it falls, the next one is
//! tried, with growing waits. A late process of ours condemns nobody.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crate::{
    packet::{Connect, ConnectCode, Packet},
    policy::backoff::{Backoff, Jitter},
    reason::Reason,
    scout::derived,
};

/// For the transport, for CONNACK and for each ping.
const DEADLINE: Duration = Duration::from_secs(1);
/// A call later than this after its time says that this process was starved.
const TOLERANCE: Duration = Duration::from_millis(100);
/// Between tries: ten times a client's own, because nobody waits for it.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LAST_WAIT: Duration = Duration::from_secs(20);
/// After a refusal that a person has to mend.
const PARKED: Duration = Duration::from_secs(60);

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Input {
    /// Stand at the first of these that works; at none when empty.
    Watch(Vec<usize>),
    /// The transport stands.
    Opened {
        /// Which attempt.
        attempt: u64,
    },
    /// It could not be opened, or ended.
    Closed {
        /// Which attempt.
        attempt: u64,
        /// Why, for people.
        reason: String,
    },
    /// A packet arrived.
    Received {
        /// Which attempt.
        attempt: u64,
        /// The packet.
        packet: Packet,
    },
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Output {
    /// Open a transport.
    Dial {
        /// Its number.
        attempt: u64,
        /// To which broker of the list.
        broker: usize,
        /// When it is given up.
        deadline: Instant,
    },
    /// Write this packet.
    Send {
        /// On which attempt.
        attempt: u64,
        /// The packet.
        packet: Packet,
    },
    /// Close the transport.
    HangUp {
        /// Which attempt.
        attempt: u64,
    },
    /// The witness stands.
    Stood {
        /// At which broker of the list.
        broker: usize,
    },
    /// It fell, or could not stand.
    Fell {
        /// At which broker of the list.
        broker: usize,
        /// Whether it had stood.
        stood: bool,
        /// Why.
        reason: String,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nobody to watch.
    Off,
    Waiting {
        until: Instant,
    },
    Dialling {
        until: Instant,
    },
    Greeting {
        until: Instant,
    },
    /// The next ping is due, or its answer is overdue, at `until`.
    Standing {
        since: Instant,
        until: Instant,
        asked: bool,
    },
}

/// The state machine. See the head of this file.
#[derive(Debug)]
pub struct Witness {
    connects: Vec<Connect>,
    suffix: &'static str,
    interval: Duration,
    backoff: Backoff,
    jitter: Jitter,
    targets: Vec<usize>,
    /// Place among the targets.
    turn: usize,
    broker: usize,
    attempt: u64,
    failures: u32,
    state: State,
    outputs: VecDeque<Output>,
}

impl Witness {
    /// At rest. Its attempts count from `first_attempt`, and `suffix` makes its identity.
    #[must_use]
    pub fn new(
        connects: Vec<Connect>,
        suffix: &'static str,
        interval: Duration,
        seed: u64,
        first_attempt: u64,
    ) -> Self {
        Self {
            connects,
            suffix,
            interval,
            backoff: Backoff::default().base(FIRST_WAIT).cap(LAST_WAIT),
            jitter: Jitter::new(seed ^ first_attempt),
            targets: Vec::new(),
            turn: 0,
            broker: 0,
            attempt: first_attempt,
            failures: 0,
            state: State::Off,
            outputs: VecDeque::new(),
        }
    }

    /// Where it stands, and since when.
    #[must_use]
    pub const fn standing(&self) -> Option<(usize, Instant)> {
        match self.state {
            State::Standing { since, .. } => Some((self.broker, since)),
            State::Off | State::Waiting { .. } | State::Dialling { .. } | State::Greeting { .. } => None,
        }
    }

    /// Whether an attempt is its own and under way.
    #[must_use]
    pub fn owns(&self, attempt: u64) -> bool {
        self.attempt == attempt && !matches!(self.state, State::Off | State::Waiting { .. })
    }

    /// Takes in what happened. What belongs to an older attempt is ignored.
    pub fn handle_input(&mut self, now: Instant, input: Input) {
        match input {
            Input::Watch(targets) => self.watch(now, targets),
            Input::Opened { attempt } if self.owns(attempt) => {
                if let (State::Dialling { .. }, Some(connect)) = (self.state, self.connects.get(self.broker)) {
                    let packet = Packet::Connect(derived(connect, self.suffix));
                    self.outputs.push_back(Output::Send { attempt, packet });
                    self.state = State::Greeting { until: now + DEADLINE };
                }
            }
            Input::Closed { attempt, reason } if self.owns(attempt) => self.fall(now, reason, None),
            Input::Received { attempt, packet } if self.owns(attempt) => self.received(now, &packet),
            Input::Opened { .. } | Input::Closed { .. } | Input::Received { .. } => {}
        }
    }

    /// Acts on whatever is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        let Some(due) = self.poll_timeout().filter(|due| *due <= now) else { return };
        let is_late = now.saturating_duration_since(due) > TOLERANCE;
        match &mut self.state {
            State::Off => {}
            State::Waiting { .. } => self.dial(now),
            // We were late, and the answer may lie unread: it gets its time again.
            State::Dialling { until } | State::Greeting { until } | State::Standing { until, asked: true, .. }
                if is_late =>
            {
                *until = now + DEADLINE;
            }
            State::Dialling { .. } => self.give_up(now, "connecting took too long"),
            State::Greeting { .. } => self.give_up(now, "no CONNACK in time"),
            State::Standing { asked: true, .. } => self.give_up(now, "no answer to a probe"),
            State::Standing { until, asked, .. } => {
                (*until, *asked) = (now + DEADLINE, true);
                self.outputs.push_back(Output::Send { attempt: self.attempt, packet: Packet::PingReq });
            }
        }
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Whether there is a next thing to do.
    #[must_use]
    pub fn has_output(&self) -> bool {
        !self.outputs.is_empty()
    }

    /// When to call [`handle_timeout`](Self::handle_timeout).
    #[must_use]
    pub const fn poll_timeout(&self) -> Option<Instant> {
        match self.state {
            State::Off => None,
            State::Waiting { until }
            | State::Dialling { until }
            | State::Greeting { until }
            | State::Standing { until, .. } => Some(until),
        }
    }

    fn watch(&mut self, now: Instant, targets: Vec<usize>) {
        // Asked for each message, mostly of nothing beside nothing, for which slices compare slowly.
        if targets.iter().eq(&self.targets) {
            return;
        }
        let sorted = |targets: &[usize]| {
            let mut sorted = targets.to_vec();
            sorted.sort_unstable();
            sorted
        };
        let is_same_set = sorted(&targets) == sorted(&self.targets);
        self.targets = targets;
        self.turn = 0;
        let keeps = self.owns(self.attempt) && self.targets.first() == Some(&self.broker);
        if keeps {
            return;
        }
        if is_same_set && matches!(self.state, State::Waiting { .. }) {
            // Another order, because one fell: its wait is not begun anew by that.
            return;
        }
        self.hang_up();
        if !is_same_set {
            self.failures = 0;
        }
        if self.targets.is_empty() {
            self.state = State::Off;
        } else {
            // Not at the same moment as 500 others that lost the same broker.
            self.state = State::Waiting { until: now + FIRST_WAIT.mul_f64(self.jitter.fraction()) };
        }
    }

    fn dial(&mut self, now: Instant) {
        let place = self.turn.checked_rem(self.targets.len()).unwrap_or(0);
        let Some(broker) = self.targets.get(place).copied() else { return };
        self.turn = place.saturating_add(1);
        self.broker = broker;
        self.attempt = self.attempt.saturating_add(1);
        self.state = State::Dialling { until: now + DEADLINE };
        self.outputs.push_back(Output::Dial { attempt: self.attempt, broker, deadline: now + DEADLINE });
    }

    fn received(&mut self, now: Instant, packet: &Packet) {
        match (packet, self.state) {
            (Packet::ConnAck { code: ConnectCode::Accepted, .. }, State::Greeting { .. }) => {
                self.failures = 0;
                self.state = State::Standing { since: now, until: now + self.interval, asked: false };
                self.outputs.push_back(Output::Stood { broker: self.broker });
            }
            (Packet::ConnAck { code, .. }, State::Greeting { .. }) => {
                let wait = (!code.is_transient()).then_some(PARKED);
                self.hang_up();
                self.fall(now, code.to_string(), wait);
            }
            (Packet::PingResp, State::Standing { since, .. }) => {
                self.state = State::Standing { since, until: now + self.interval, asked: false };
            }
            _ => self.give_up(now, "protocol violation"),
        }
    }

    fn give_up(&mut self, now: Instant, reason: &str) {
        self.hang_up();
        self.fall(now, reason.to_owned(), None);
    }

    fn fall(&mut self, now: Instant, reason: String, wait: Option<Duration>) {
        let stood = self.standing().is_some();
        self.failures = self.failures.saturating_add(1);
        let wait = wait.unwrap_or_else(|| {
            let ceiling = self.backoff.ceiling(self.failures);
            ceiling.mul_f64(0.5 + self.jitter.fraction() / 2.0)
        });
        self.state = State::Waiting { until: now + wait };
        self.outputs.push_back(Output::Fell { broker: self.broker, stood, reason });
    }

    fn hang_up(&mut self) {
        if self.owns(self.attempt) {
            if self.standing().is_some() {
                self.outputs
                    .push_back(Output::Send { attempt: self.attempt, packet: Packet::Disconnect(Reason::SUCCESS) });
            }
            self.outputs.push_back(Output::HangUp { attempt: self.attempt });
        }
    }
}

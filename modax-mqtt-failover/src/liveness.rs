//! Decides whether the broker behind an established connection still works: suspect, probe, verdict.
//!
//! Pure: feed what was seen, drain [`poll_output`](Liveness::poll_output), call [`handle_timeout`](Liveness::handle_timeout)
//! at [`poll_timeout`](Liveness::poll_timeout). That call also tells how late *we* are: a verdict needs a whole
//! deadline during which this process was on time, because a starved client would otherwise condemn healthy brokers.
//!
//! Any byte received is life, unless for long no whole packet comes, and bytes do only where a probe asked for them. An
//! acknowledgement or a PINGRESP that is overdue makes a broker suspect; it gets one more probe, and dies when that stays
//! unanswered too. One that answers probes and does not acknowledge is slow. Where packets come and answers do not, a probe
//! tells whether they only stand in line.

mod due;
mod limits;
mod partial;
mod slowest;
mod words;

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use limits::LONGEST;
pub use limits::LivenessConfig;
use partial::Partial;
use slowest::Slowest;
pub use words::{Input, Output, Reason};

/// A call later than this after its time says that this process was starved; timers are exact to about 1 ms.
const TOLERANCE: Duration = Duration::from_millis(20);
/// We were held up for so long that what was measured meanwhile says nothing of the broker.
const LONG_PAUSE: Duration = Duration::from_secs(2);
/// A NATS node without a leader for its messages stays silent for 4 s and then closes the connection. Leaving it sooner
/// only begins those 4 s again on the next node; with two deadlines of 1 s behind this, a dead node is left after 4.5 s.
const ELECTION: Duration = Duration::from_millis(2500);
/// The slowest answer of late asks for so much at most. A machine that is starved holds a broker up now and then, for longer
/// than a mean over the last few answers would tell.
const SLOWEST_ASKS: Duration = Duration::from_millis(500);
/// Each verdict in vain doubles all deadlines, so often at most.
const MOST_DOUBLINGS: u32 = 6;
/// And the one of an answer, also beyond the longest, so often after those: a large message through a slow link that holds a
/// minute's worth has its acknowledgement in the end. A host that is gone is left sooner by its kernel's silence.
const MORE_DOUBLINGS: u32 = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// No connection.
    Off,
    Alive,
    /// A second probe is out.
    Suspect {
        reason: Reason,
        since: Instant,
        silent_since: Instant,
    },
    /// A verdict was given; nothing more until the next connection.
    Dead,
}

/// The state machine. See the head of this file.
#[derive(Debug)]
pub struct Liveness {
    config: LivenessConfig,
    keep_alive: Duration,
    phase: Phase,
    /// (srtt, rttvar), once measured.
    rtt: Option<(Duration, Duration)>,
    slowest: Slowest,
    heard: Instant,
    sent: Instant,
    acked: Instant,
    /// Since when nothing has waited for an answer, if nothing does.
    idle: Instant,
    /// No suspicion and no verdict rests on silence before this.
    grace: Instant,
    /// What was sent before may have been answered while nobody read.
    resumed: Option<Instant>,
    lateness: Duration,
    waiting: Option<Instant>,
    stalled: Option<Instant>,
    /// Asked for and not yet on the wire.
    probe_due: bool,
    /// On the wire and unanswered.
    probes: VecDeque<Instant>,
    /// Since when it is known to acknowledge later than it answers.
    slow: Option<Instant>,
    /// Verdicts since anything was last answered that we waited for. A link or a broker that needs longer than its
    /// deadline would be left for ever, and given the same again each time.
    in_vain: u32,
    partial: Partial,
    paused: bool,
    outputs: VecDeque<Output>,
}

impl Liveness {
    /// Without a connection yet. `keep_alive` is what the broker is told; zero for never.
    #[must_use]
    pub fn new(config: LivenessConfig, keep_alive: Duration, now: Instant) -> Self {
        Self {
            config,
            keep_alive,
            phase: Phase::Off,
            rtt: None,
            slowest: Slowest::since(now),
            heard: now,
            sent: now,
            acked: now,
            idle: now,
            grace: now,
            resumed: None,
            lateness: Duration::ZERO,
            waiting: None,
            stalled: None,
            probe_due: false,
            probes: VecDeque::new(),
            slow: None,
            in_vain: 0,
            partial: Partial::since(now),
            paused: false,
            outputs: VecDeque::new(),
        }
    }

    /// How long an answer may take now: srtt + 8 · rttvar above the floor, twice the slowest answer of the last
    /// half minute (at most 500 ms); twice that after each verdict since which nothing was acknowledged; and more while
    /// this process is itself late.
    #[must_use]
    pub fn deadline(&self) -> Duration {
        let measured = match self.rtt {
            Some((srtt, rttvar)) => {
                let slowest = self.slowest.longest().saturating_mul(2).min(SLOWEST_ASKS);
                srtt.saturating_add(rttvar.saturating_mul(8)).max(self.config.floor).max(slowest)
            }
            None => self.config.first,
        };
        let deadline = measured.saturating_mul(self.leniency()).saturating_add(self.lateness.saturating_mul(4));
        let more = self.in_vain.saturating_sub(MOST_DOUBLINGS).min(MORE_DOUBLINGS);
        deadline.min(LONGEST).saturating_mul(2_u32.saturating_pow(more))
    }

    fn leniency(&self) -> u32 {
        2_u32.saturating_pow(self.in_vain.min(MOST_DOUBLINGS))
    }

    /// Takes in what was seen.
    pub fn handle_input(&mut self, now: Instant, input: Input) {
        match input {
            Input::Opened { same_broker, electing } => self.open(now, same_broker, electing),
            Input::Accepted(took) => self.learn_from_connack(now, took),
            Input::KeepAlive(time) => self.keep_alive = time,
            Input::Closed => {
                self.phase = Phase::Off;
                self.outputs.clear();
            }
            Input::Heard(bytes) => {
                self.partial.hear(bytes);
                self.hear(now);
            }
            Input::Packet => self.partial = Partial::since(now),
            Input::Sent => self.sent = now,
            Input::Stalled(since) => self.stalled = since,
            Input::ProbeSent => {
                self.probe_due = false;
                self.probes.push_back(now);
            }
            Input::ProbeAnswered => {
                self.hear(now);
                if self.waiting.is_none() {
                    self.in_vain = 0;
                }
                if let Some(sent) = self.probes.pop_front() {
                    self.compare(now, sent);
                    self.measure_since(now, sent);
                }
            }
            Input::Waiting(since) => {
                // Slow ends with the packet that made it so, not with a later one.
                self.slow.take_if(|_| self.waiting != since);
                if self.waiting.is_some() {
                    self.idle = now;
                }
                self.waiting = since;
            }
            Input::Answered => self.acked = now,
            Input::Acknowledged(took) => {
                self.acked = now;
                self.in_vain = 0;
                // Whatever was being elected has been.
                self.grace = self.grace.min(now);
                self.measure_since(now, now.checked_sub(took).unwrap_or(now));
            }
            Input::Paused(paused) => {
                if self.paused && !paused {
                    // What piled up in the kernel meanwhile is not silence of the broker's.
                    self.restart_clocks(now);
                    self.resumed = Some(now);
                }
                self.paused = paused;
            }
        }
    }

    /// Judges, at [`poll_timeout`](Self::poll_timeout) or later; much later counts as our own lateness.
    pub fn handle_timeout(&mut self, now: Instant) {
        let Some(due) = self.poll_timeout().filter(|due| *due <= now) else { return };
        let late = now.saturating_duration_since(due);
        // Measured against a deadline that has grown with earlier lateness, so that a process that is always a little
        // late still comes to a verdict.
        if late > TOLERANCE.max(self.deadline() / 4) {
            self.lateness = self.lateness.max(late).min(LONGEST);
            self.restart_clocks(now);
            if late >= LONG_PAUSE {
                self.resumed = Some(now);
            }
        } else if self.lateness < Duration::from_millis(1) {
            self.lateness = Duration::ZERO;
        } else {
            self.lateness = self.lateness * 7 / 8;
        }
        self.judge(now);
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to call [`handle_timeout`](Self::handle_timeout).
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.phase {
            Phase::Off | Phase::Dead => None,
            Phase::Alive => {
                let overdue = self.expectation().map(|(_, since)| since + self.deadline());
                let verdicts = [overdue, self.slow_at(), self.deaf_at(), self.stall_at()];
                let verdict = if self.paused { None } else { verdicts.into_iter().flatten().min() };
                [verdict, self.next_probe()].into_iter().flatten().min()
            }
            Phase::Suspect { since, .. } => {
                let dead = Some(since.max(self.grace) + self.deadline());
                let verdicts = [dead, self.slow_at(), self.deaf_at(), self.stall_at()];
                let verdict = if self.paused { None } else { verdicts.into_iter().flatten().min() };
                [verdict, self.own_probe()].into_iter().flatten().min()
            }
        }
    }

    fn open(&mut self, now: Instant, same_broker: bool, electing: bool) {
        self.phase = Phase::Alive;
        if !same_broker {
            self.rtt = None;
            self.slowest = Slowest::since(now);
        }
        self.sent = now;
        (self.acked, self.idle) = (now, now);
        self.resumed = None;
        self.waiting = None;
        self.stalled = None;
        self.probe_due = false;
        self.probes.clear();
        self.slow = None;
        self.partial = Partial::since(now);
        self.restart_clocks(now);
        if electing {
            self.grace = now + ELECTION;
        }
    }

    fn restart_clocks(&mut self, now: Instant) {
        self.heard = self.heard.max(now);
        self.idle = self.idle.max(now);
        self.grace = self.grace.max(now);
        if let Some(since) = self.stalled.as_mut() {
            *since = now.max(*since);
        }
    }

    fn hear(&mut self, now: Instant) {
        self.heard = self.heard.max(now);
        if let Phase::Suspect { .. } = self.phase {
            self.phase = Phase::Alive;
        }
    }

    /// A probe that went out after a packet was answered before it: the broker lives and does not acknowledge.
    fn compare(&mut self, now: Instant, probed: Instant) {
        let overtaken = |since: Instant| since <= probed && since.max(self.grace) + self.deadline() <= now;
        if self.slow.is_none() && self.waiting.is_some_and(overtaken) {
            self.slow = now.checked_sub(self.deadline()).or(Some(now));
            self.outputs.push_back(Output::Slow);
        }
    }

    fn measure_since(&mut self, now: Instant, sent: Instant) {
        if self.resumed.is_none_or(|resumed| resumed <= sent) {
            self.measure(now, now.saturating_duration_since(sent));
        }
    }

    /// RFC 6298, 2.2 and 2.3; and the slowest.
    fn measure(&mut self, now: Instant, took: Duration) {
        self.slowest.measure(now, took);
        self.rtt = Some(match self.rtt {
            None => (took, took / 2),
            Some((srtt, rttvar)) => {
                let error = srtt.abs_diff(took);
                ((srtt * 7 + took) / 8, (rttvar * 3 + error) / 4)
            }
        });
    }

    /// A broker that falls silent right after its CONNACK has given no other measure. One that took long over it may
    /// have been restoring our session, which says nothing of its next answers: then the first deadline stays.
    fn learn_from_connack(&mut self, now: Instant, took: Duration) {
        if self.rtt.is_none() && took.saturating_mul(5) <= self.config.first {
            self.measure(now, took);
        }
    }

    fn judge(&mut self, now: Instant) {
        if !self.paused {
            if self.stall_at().is_some_and(|at| at <= now) {
                return self.condemn(Reason::WriteStalled, self.stalled.unwrap_or(now));
            }
            if self.slow_at().is_some_and(|at| at <= now) {
                let reason = if self.slow.is_some() { Reason::Slow } else { Reason::AckOverdue };
                return self.condemn(reason, self.waiting.unwrap_or(now));
            }
            if self.deaf_at().is_some_and(|at| at <= now) {
                return self.condemn(Reason::ProbeUnanswered, self.probes.front().copied().unwrap_or(now));
            }
        }
        match self.phase {
            Phase::Alive => {
                let overdue = self.expectation().filter(|(_, since)| *since + self.deadline() <= now);
                match overdue {
                    Some((reason, since)) if !self.paused => {
                        let limit = self.config.slow_after * self.leniency();
                        if self.partial.is_answers_only(now, self.grace, limit) {
                            return self.condemn(reason, self.partial.since);
                        }
                        self.partial.suspect();
                        self.phase = Phase::Suspect { reason, since: now, silent_since: since };
                        self.probe_due = true;
                        self.outputs.extend([Output::Suspected(reason), Output::Probe]);
                    }
                    Some(_) | None => self.probe_if(now, self.next_probe()),
                }
            }
            Phase::Suspect { reason, since, silent_since } => {
                if !self.paused && since.max(self.grace) + self.deadline() <= now {
                    return self.condemn(reason, silent_since);
                }
                self.probe_if(now, self.own_probe());
            }
            Phase::Off | Phase::Dead => {}
        }
    }

    fn probe_if(&mut self, now: Instant, due: Option<Instant>) {
        if due.is_some_and(|at| at <= now) {
            self.probe_due = true;
            self.outputs.push_back(Output::Probe);
        }
    }

    fn condemn(&mut self, reason: Reason, since: Instant) {
        self.phase = Phase::Dead;
        self.in_vain = self.in_vain.saturating_add(1);
        self.outputs.push_back(Output::Dead { reason, since });
    }
}

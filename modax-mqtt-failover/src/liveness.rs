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
mod measuring;
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
/// So often, while packets come, earlier lateness counts less.
const EASED_EVERY: Duration = Duration::from_secs(1);
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
    /// When the latest packet that is acknowledged was sent; and since when one that was sent before it has waited beside that.
    acked_sent: Instant,
    passed: Instant,
    /// Since when nothing has waited for an answer, if nothing does.
    idle: Instant,
    /// No suspicion and no verdict rests on silence before this.
    grace: Instant,
    /// Since when we have not been late: no patience ends for what was before.
    on_time: Instant,
    /// What was sent before may have been answered while nobody read.
    resumed: Option<Instant>,
    /// When the last packet was all there behind which much had to wait, and when a probe was answered last.
    cleared: Instant,
    probed: Instant,
    lateness: Duration,
    /// When it was made less last.
    eased: Instant,
    waiting: Option<Instant>,
    /// The same, without the time in which we did not read.
    waited: Instant,
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
    /// Since when we read nothing.
    paused: Option<Instant>,
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
            acked_sent: now,
            passed: now,
            idle: now,
            grace: now,
            on_time: now,
            resumed: None,
            cleared: now,
            probed: now,
            lateness: Duration::ZERO,
            eased: now,
            waiting: None,
            waited: now,
            stalled: None,
            probe_due: false,
            probes: VecDeque::new(),
            slow: None,
            in_vain: 0,
            partial: Partial::since(now),
            paused: None,
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
                // Under traffic nothing may be due for long.
                if now >= self.eased + EASED_EVERY {
                    self.ease(now);
                }
            }
            Input::Packet => {
                if self.partial.is_large() {
                    self.cleared = now;
                }
                self.partial = Partial::since(now);
            }
            Input::Sent => self.sent = now,
            Input::Stalled(since) => self.stalled = since,
            Input::ProbeSent => {
                self.probe_due = false;
                self.probes.push_back(now);
            }
            Input::ProbeAnswered => {
                self.hear(now);
                self.probed = now;
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
                if self.waiting != since {
                    self.waited = since.unwrap_or(now);
                }
                self.waiting = since;
            }
            Input::Answered => self.acked = now,
            Input::Acknowledged(took) => self.acknowledged(now, took),
            Input::Paused(true) => self.paused = self.paused.or(Some(now)),
            Input::Paused(false) => {
                if let Some(since) = self.paused.take() {
                    self.resume(now, now.saturating_duration_since(since));
                }
            }
            Input::Late(late) if late >= LONG_PAUSE => self.resumed = Some(now),
            Input::Late(_) => {}
        }
    }

    fn acknowledged(&mut self, now: Instant, took: Duration) {
        self.acked = now;
        self.in_vain = 0;
        // Whatever was being elected has been.
        self.grace = self.grace.min(now);
        let sent = now.checked_sub(took).unwrap_or(now);
        if self.waiting.is_some_and(|since| self.acked_sent <= since && since < sent) {
            self.passed = now;
        }
        self.acked_sent = self.acked_sent.max(sent);
        self.measure_since(now, sent);
    }

    /// We read again. What piled up in the kernel meanwhile is not silence of the broker's, and patience goes on where it stood.
    fn resume(&mut self, now: Instant, pause: Duration) {
        self.restart_clocks(now);
        self.resumed = Some(now);
        self.waited = (self.waited + pause).min(now);
        for sent in &mut self.probes {
            *sent = (*sent + pause).min(now);
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
            self.on_time = now;
        } else {
            self.ease(now);
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
                let verdict = if self.paused.is_some() { None } else { verdicts.into_iter().flatten().min() };
                [verdict, self.next_probe()].into_iter().flatten().min()
            }
            Phase::Suspect { since, .. } => {
                let dead = Some(since.max(self.grace) + self.deadline());
                let verdicts = [dead, self.slow_at(), self.deaf_at(), self.stall_at()];
                let verdict = if self.paused.is_some() { None } else { verdicts.into_iter().flatten().min() };
                [verdict, self.own_probe()].into_iter().flatten().min()
            }
        }
    }

    /// We were on time.
    fn ease(&mut self, now: Instant) {
        self.eased = now;
        self.lateness = if self.lateness < Duration::from_millis(1) { Duration::ZERO } else { self.lateness * 7 / 8 };
    }

    fn open(&mut self, now: Instant, same_broker: bool, electing: bool) {
        self.phase = Phase::Alive;
        if !same_broker {
            self.rtt = None;
            self.slowest = Slowest::since(now);
        }
        self.sent = now;
        (self.acked, self.idle) = (now, now);
        (self.on_time, self.resumed) = (now, None);
        (self.cleared, self.probed, self.acked_sent, self.passed) = (now, now, now, now);
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

    fn judge(&mut self, now: Instant) {
        if self.paused.is_none() {
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
                    Some((reason, since)) if self.paused.is_none() => {
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
                if self.paused.is_none() && since.max(self.grace) + self.deadline() <= now {
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

//! The state machine that turns observations into a [`Topology`].
//!
//! Pure: feed it [`Input`]s with the time they arrived, drain [`poll_output`](Monitor::poll_output), call
//! [`handle_timeout`](Monitor::handle_timeout) when [`poll_timeout`](Monitor::poll_timeout) says so.
//!
//! A primary counts as lost after `fall` failed probes in a row, because one slow answer is no outage; a promotion
//! that is proved needs no count. While the primary is in doubt, every server is probed at the fast pace. A second
//! head is accepted only once the first has been asked again, *after* the second was seen: if it still writes, these
//! are two heads at once and nobody may write; if it does not answer, or answers that it is none, the second takes over.

mod decide;
mod publish;

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use crate::event::{Ejection, Event};
use crate::fence::{Fence, Floor, HeadVerdict, Record, Refusal, StandbyVerdict};
use crate::lsn::Lsn;
use crate::observation::{Activity, Incarnation, Observation, ProbeFailure};
use crate::staleness::Samples;
use crate::topology::{Node, NodeId, NodeState, Role, Topology, WritesClosed};

/// Longest time without sight of the primary after which a further restart may have gone unseen, and with it a floor
/// of the log. Longer than a failover with the usual leases takes, far shorter than an operator's work.
const BLIND_AFTER: Duration = Duration::from_secs(60);

/// How long the fast pace is kept in one outage, and the pace afterwards: a long outage is not prolonged by 100 ms.
const FAST_FOR: Duration = Duration::from_secs(30);
const SLOW_DOUBT: Duration = Duration::from_millis(100);

/// Pace and patience.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Between two probes of a server while all is well.
    pub calm: Duration,
    /// The same while the primary is in doubt.
    pub doubt: Duration,
    /// Longest time for a probe.
    pub deadline: Duration,
    /// Failures in a row that mean loss.
    pub fall: u32,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            calm: Duration::from_secs(1),
            doubt: Duration::from_millis(10),
            deadline: Duration::from_millis(500),
            fall: 2,
        }
    }
}

/// What happened outside.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Input {
    /// A probe brought facts.
    Observed {
        /// Index of the server.
        node: usize,
        /// When the probe was sent: the `sent` of its [`Output::Probe`].
        sent: Instant,
        /// The facts.
        observation: Observation,
    },
    /// A probe brought none.
    Failed {
        /// Index of the server.
        node: usize,
        /// When the probe was sent.
        sent: Instant,
        /// Why.
        failure: ProbeFailure,
    },
    /// Somebody has reason to doubt what is known of that server: look at once.
    Suspect {
        /// Index of the server.
        node: usize,
    },
    /// An operator decided that the history of that server, which must be out of recovery, is the database.
    Accept {
        /// Index of the server.
        node: usize,
    },
    /// Hold writes, or let them go again.
    Pause(bool),
}

/// What the driver has to do.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Output {
    /// Probe that server; answer with [`Input::Observed`] or [`Input::Failed`] before `deadline`.
    Probe {
        /// Index of the server.
        node: usize,
        /// Name of this probe.
        sent: Instant,
        /// When to give up.
        deadline: Instant,
    },
    /// Cut the connections to that server that are in use.
    Sever {
        /// Index of the server.
        node: usize,
    },
    /// Tell everybody.
    Publish(Topology),
    /// Tell whoever listens.
    Event(Event),
}

#[derive(Debug)]
struct Seen {
    observation: Observation,
    sent: Instant,
}

#[derive(Debug)]
struct Watch {
    id: NodeId,
    seen: Option<Seen>,
    failures: u32,
    failure: Option<(ProbeFailure, Instant)>,
    in_flight: Option<Instant>,
    last_sent: Option<Instant>,
    due: Instant,
    hurry: bool,
    record: Record,
    verdict: Option<HeadVerdict>,
    standby: StandbyVerdict,
    /// When its present life was first seen out of recovery.
    head_since: Option<(Incarnation, Instant)>,
    refused: Option<(Incarnation, Refusal)>,
    ejected: Option<Ejection>,
}

#[derive(Debug)]
struct Leader {
    node: usize,
    incarnation: Incarnation,
    last_good: Instant,
    lost: bool,
}

/// The state machine. See the module's text.
#[derive(Debug)]
pub struct Monitor {
    pace: Pace,
    watches: Vec<Watch>,
    fence: Fence,
    samples: Samples,
    leader: Option<Leader>,
    split: BTreeSet<usize>,
    closed: Option<WritesClosed>,
    doubt_since: Option<Instant>,
    paused: bool,
    outputs: VecDeque<Output>,
    published: Topology,
}

impl Monitor {
    /// A monitor of these servers that has seen nothing; the first probes are due at `now`.
    #[must_use]
    pub fn new(now: Instant, pace: Pace, nodes: impl IntoIterator<Item = NodeId>) -> Self {
        let watches: Vec<Watch> = nodes.into_iter().map(|id| Watch::new(id, now)).collect();
        let published = Topology::unseen(watches.iter().map(|watch| watch.id.clone()));
        Self {
            pace,
            watches,
            fence: Fence::new(),
            samples: Samples::new(),
            leader: None,
            split: BTreeSet::new(),
            closed: Some(WritesClosed::NoPrimary),
            doubt_since: Some(now),
            paused: false,
            outputs: VecDeque::new(),
            published,
        }
    }

    /// Takes in what happened at `now`. Answers of probes that were given up are ignored.
    pub fn handle_input(&mut self, now: Instant, input: Input) {
        match input {
            Input::Observed { node, sent, observation } => {
                if self.settle_probe(now, node, sent) {
                    self.observe(now, node, sent, observation);
                }
            }
            Input::Failed { node, sent, failure } => {
                if self.settle_probe(now, node, sent) {
                    self.fail(node, sent, failure);
                }
            }
            Input::Suspect { node } => {
                if let Some(watch) = self.watches.get_mut(node) {
                    watch.hurry(now, self.pace.doubt);
                }
                self.schedule(now);
                return;
            }
            Input::Accept { node } => self.accept(now, node),
            Input::Pause(paused) => self.paused = paused,
        }
        self.decide(now);
        self.publish(now);
        self.schedule(now);
    }

    /// Sends the probes that are due, and gives up those that nobody answered.
    pub fn handle_timeout(&mut self, now: Instant) {
        let overdue: Vec<(usize, Instant)> = self
            .watches
            .iter()
            .enumerate()
            .filter_map(|(node, watch)| watch.in_flight.map(|sent| (node, sent)))
            .filter(|(_, sent)| *sent + self.give_up() <= now)
            .collect();
        for (node, sent) in overdue {
            self.handle_input(now, Input::Failed { node, sent, failure: ProbeFailure::TimedOut });
        }
        self.schedule(now);
    }

    /// The next thing to do.
    #[must_use]
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to call [`handle_timeout`](Self::handle_timeout) next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.watches.iter().map(|watch| watch.in_flight.map_or(watch.due, |sent| sent + self.give_up())).min()
    }

    /// The newest picture.
    #[must_use]
    pub const fn topology(&self) -> &Topology {
        &self.published
    }

    /// The driver answers within the deadline; who does not is helped along.
    fn give_up(&self) -> Duration {
        self.pace.deadline * 2
    }

    fn settle_probe(&mut self, now: Instant, node: usize, sent: Instant) -> bool {
        let pause = self.interval(now);
        let Some(watch) = self.watches.get_mut(node) else { return false };
        if watch.in_flight != Some(sent) {
            return false;
        }
        watch.in_flight = None;
        watch.due = if watch.hurry { sent + self.pace.doubt } else { sent + pause };
        watch.hurry = false;
        true
    }

    fn fail(&mut self, node: usize, sent: Instant, failure: ProbeFailure) {
        if let Some(watch) = self.watches.get_mut(node) {
            // A server that is full is alive, and the pools' connections to it go on; only its role is not refreshed.
            let alive = failure == ProbeFailure::TooManyConnections && watch.seen.is_some();
            watch.failures = watch.failures.saturating_add(u32::from(!alive));
            watch.failure = Some((failure, sent));
        }
    }

    fn observe(&mut self, now: Instant, node: usize, sent: Instant, observation: Observation) {
        let Some(watch) = self.watches.get_mut(node) else { return };
        watch.failures = 0;
        watch.failure = None;
        let was_head = watch.seen.as_ref().is_some_and(|seen| seen.observation.is_head());
        if let Some(incarnation) = observation.incarnation() {
            let verdict = self.fence.judge_head(&watch.id, &observation, &watch.record);
            if watch.head_since.is_none_or(|(known, _)| known != incarnation) {
                watch.head_since = Some((incarnation, now));
            }
            watch.verdict = Some(verdict);
            match verdict {
                HeadVerdict::Refused(why) => refuse(watch, node, incarnation, why, &mut self.outputs),
                HeadVerdict::Rival => {
                    let current = self.fence.lineage().current();
                    if current.is_some_and(|life| life.incarnation.timeline == incarnation.timeline) {
                        self.fence.note_fork(&watch.id);
                    }
                }
                HeadVerdict::First | HeadVerdict::Same | HeadVerdict::Restarted | HeadVerdict::Successor => {}
            }
        } else {
            watch.verdict = None;
            watch.head_since = None;
            watch.refused = None;
            if watch.record.is_another_life(observation.started) {
                self.fence.clear_fork(&watch.id);
            }
            watch.standby = self.fence.judge_standby(&observation, &watch.record);
            match watch.standby {
                StandbyVerdict::Divergent => watch.record.taint(observation.started),
                StandbyVerdict::Current | StandbyVerdict::Ancestor => watch.record.clear_taint(),
                StandbyVerdict::Unproven | StandbyVerdict::Foreign => {}
            }
            if was_head {
                self.outputs.push_back(Output::Sever { node });
            }
        }
        watch.record.note(&observation);
        watch.seen = Some(Seen { observation, sent });
    }

    fn accept(&mut self, now: Instant, node: usize) {
        let Some(watch) = self.watches.get_mut(node) else { return };
        let Some(seen) = watch.seen.as_ref().filter(|seen| seen.observation.is_head()) else { return };
        let Some(incarnation) = seen.observation.incarnation() else { return };
        self.fence.accept(&watch.id, &seen.observation);
        watch.record = Record::default();
        watch.record.note(&seen.observation);
        watch.refused = None;
        watch.verdict = Some(HeadVerdict::Same);
        self.outputs.push_back(Output::Event(Event::HistoryAccepted { node: watch.id.clone() }));
        self.samples.cut(None);
        self.split.clear();
        let before = self.leader.replace(Leader { node, incarnation, last_good: now, lost: true });
        if let Some(old) = before.filter(|old| old.node != node) {
            self.outputs.push_back(Output::Sever { node: old.node });
        }
        // Whoever was judged by the history before is judged again.
        for index in 0..self.watches.len() {
            if index != node {
                self.judge_again(index);
            }
        }
    }

    /// The history changed: what was seen of that server means something else. A head that does not answer any more
    /// is not told of as fenced; if it ever answers again, it is.
    fn judge_again(&mut self, node: usize) {
        let Some(watch) = self.watches.get_mut(node) else { return };
        let Some(seen) = watch.seen.as_ref() else { return };
        if seen.observation.is_head() {
            watch.verdict = Some(self.fence.judge_head(&watch.id, &seen.observation, &watch.record));
        } else {
            watch.standby = self.fence.judge_standby(&seen.observation, &watch.record);
        }
    }
}

impl Watch {
    fn new(id: NodeId, now: Instant) -> Self {
        Self {
            id,
            seen: None,
            failures: 0,
            failure: None,
            in_flight: None,
            last_sent: None,
            due: now,
            hurry: false,
            record: Record::default(),
            verdict: None,
            standby: StandbyVerdict::Unproven,
            head_since: None,
            refused: None,
            ejected: None,
        }
    }

    /// Probes at once, or as soon as the probe under way is answered; never faster than the fast pace.
    fn hurry(&mut self, now: Instant, least: Duration) {
        self.hurry = self.in_flight.is_some();
        self.due = self.last_sent.map_or(now, |sent| now.max(sent + least)).min(self.due);
    }

    fn is_heard(&self) -> bool {
        self.seen.is_some() || self.failure.is_some()
    }
}

/// Refuses a head, and says so once for each of its lives.
fn refuse(watch: &mut Watch, node: usize, incarnation: Incarnation, why: Refusal, outputs: &mut VecDeque<Output>) {
    watch.record.taint(incarnation.started);
    if watch.refused != Some((incarnation, why)) {
        watch.refused = Some((incarnation, why));
        outputs.push_back(Output::Sever { node });
        outputs.push_back(Output::Event(Event::Fenced { node: watch.id.clone(), timeline: incarnation.timeline, why }));
    }
}

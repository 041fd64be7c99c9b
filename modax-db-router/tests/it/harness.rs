//! A monitor in virtual time, and servers that answer its probes as they are told.

use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

use modax_db_router::monitor::{Input, Monitor, Output, Pace};
use modax_db_router::observation::{Observation, ProbeFailure};
use modax_db_router::{Event, NodeId, Topology};

/// How a server answers a probe.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    Facts(Observation),
    Fails(ProbeFailure),
    /// Nothing comes, and the driver reports that at the deadline.
    Silence,
    /// Nothing comes, and the driver itself has died.
    Never,
}

#[derive(Debug)]
struct Pending {
    at: Instant,
    order: u64,
    input: Input,
}

// The earliest first; of two at one moment the one that was put in first.
impl Ord for Pending {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}
impl PartialOrd for Pending {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl PartialEq for Pending {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == std::cmp::Ordering::Equal
    }
}
impl Eq for Pending {}

pub(crate) struct Harness {
    pub(crate) monitor: Monitor,
    pub(crate) now: Instant,
    pub(crate) start: Instant,
    pub(crate) events: Vec<Event>,
    pub(crate) severed: Vec<usize>,
    pub(crate) topology: Topology,
    pending: BinaryHeap<Pending>,
    order: u64,
}

impl Harness {
    pub(crate) fn new(nodes: &[&str]) -> Self {
        let start = Instant::now();
        let ids: Vec<NodeId> = nodes.iter().map(|name| NodeId::new(name, 1)).collect();
        let mut monitor = Monitor::new(start, Pace::default(), ids.clone());
        monitor.handle_timeout(start);
        Self {
            monitor,
            now: start,
            start,
            events: Vec::new(),
            severed: Vec::new(),
            topology: Topology::unseen(ids),
            pending: BinaryHeap::new(),
            order: 0,
        }
    }

    pub(crate) fn input(&mut self, input: Input) {
        self.monitor.handle_input(self.now, input);
    }

    /// Runs until `end`. `answer` tells, for a probe of that server sent at that moment, what comes and after how long;
    /// `seen` is called after every step.
    pub(crate) fn run(
        &mut self,
        end: Instant,
        mut answer: impl FnMut(usize, Instant) -> (Answer, Duration),
        mut seen: impl FnMut(&Self),
    ) {
        loop {
            while let Some(output) = self.monitor.poll_output() {
                match output {
                    Output::Probe { node, sent, deadline } => {
                        let (what, after) = answer(node, sent);
                        let (at, input) = match what {
                            Answer::Facts(observation) => (sent + after, Input::Observed { node, sent, observation }),
                            Answer::Fails(failure) => (sent + after, Input::Failed { node, sent, failure }),
                            Answer::Silence => {
                                (deadline, Input::Failed { node, sent, failure: ProbeFailure::TimedOut })
                            }
                            Answer::Never => continue,
                        };
                        self.order += 1;
                        self.pending.push(Pending { at, order: self.order, input });
                    }
                    Output::Sever { node } => self.severed.push(node),
                    Output::Publish(topology) => self.topology = topology,
                    Output::Event(event) => self.events.push(event),
                    other => panic!("unknown output {other:?}"),
                }
            }
            seen(self);
            let wake = self.monitor.poll_timeout().expect("a monitor always has a next probe");
            let arrival = self.pending.peek().map(|pending| pending.at);
            let next = arrival.map_or(wake, |at| at.min(wake)).max(self.now);
            if next > end {
                self.now = end;
                return;
            }
            self.now = next;
            if arrival.is_some_and(|at| at <= next) {
                let pending = self.pending.pop().expect("peeked");
                self.monitor.handle_input(self.now, pending.input);
            } else {
                self.monitor.handle_timeout(self.now);
            }
        }
    }
}

//! The way back to a more preferred broker, while another one serves.
//!
//! Between independent brokers the new connection stands completely, CONNACK received, before the old one is left. In a
//! cluster the same identity cannot stand twice: only the transport is made ready, and CONNECT follows the goodbye.

use std::time::{Duration, Instant};

use super::{Failover, Output, State};
use crate::{breaker::Failure, config::Topology, packet::ConnectCode};

/// For each step: nothing hurts meanwhile, and what takes longer is not fit to serve.
const STEP: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Dialling,
    Greeting {
        wipe: bool,
    },
    /// The courier finishes what the old connection has to finish; it has a deadline of its own.
    Ready {
        greeted: bool,
    },
}

/// The connection of a planned move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Planned {
    attempt: u64,
    broker: usize,
    step: Step,
    until: Instant,
}

impl Planned {
    pub(super) const fn attempt(&self) -> u64 {
        self.attempt
    }

    pub(super) const fn broker(&self) -> usize {
        self.broker
    }

    const fn is_ready(&self) -> bool {
        matches!(self.step, Step::Ready { .. })
    }

    /// Whether the broker has accepted it, so that it could serve at once.
    pub(super) const fn is_greeted(&self) -> bool {
        matches!(self.step, Step::Ready { greeted: true })
    }

    pub(super) fn due(&self) -> Option<Instant> {
        (!self.is_ready()).then_some(self.until)
    }
}

impl Failover {
    pub(super) fn is_beside(&self, attempt: u64) -> bool {
        self.planned.as_ref().is_some_and(|planned| planned.attempt == attempt)
    }

    pub(super) fn begin_return(&mut self, now: Instant, broker: usize) {
        let State::Established { broker: present, .. } = self.state else { return };
        if self.planned.is_none() && broker != present && broker < self.breakers.len() {
            self.wiped = None;
            self.planned_dial(now, broker);
        }
    }

    fn planned_dial(&mut self, now: Instant, broker: usize) {
        self.attempts = self.attempts.saturating_add(1);
        let attempt = self.attempts;
        self.planned = Some(Planned { attempt, broker, step: Step::Dialling, until: now + STEP });
        self.outputs.push_back(Output::Dial { attempt, broker, deadline: now + STEP });
    }

    pub(super) fn planned_opened(&mut self, now: Instant) {
        let wipe = self.planned.as_ref().is_some_and(|planned| self.has_stale_session(planned.broker));
        let Some(planned) = self.planned.as_mut().filter(|planned| planned.step == Step::Dialling) else { return };
        let (attempt, broker) = (planned.attempt, planned.broker);
        if self.topology == Topology::Cluster {
            planned.step = Step::Ready { greeted: false };
            self.outputs.push_back(Output::Ready { attempt, broker, greeted: false });
        } else {
            planned.step = Step::Greeting { wipe };
            planned.until = now + STEP;
            self.outputs.push_back(Output::Greet { attempt, broker, wipe, beside: true });
        }
    }

    pub(super) fn planned_answered(&mut self, now: Instant, code: ConnectCode) {
        let Some(planned) = self.planned.as_mut() else { return };
        let (attempt, broker) = (planned.attempt, planned.broker);
        match (planned.step, code) {
            (Step::Greeting { wipe: true }, ConnectCode::Accepted) => {
                self.outputs.push_back(Output::Leave { attempt });
                self.wiped = Some(broker);
                self.planned_dial(now, broker);
            }
            (Step::Greeting { wipe: false }, ConnectCode::Accepted) => {
                planned.step = Step::Ready { greeted: true };
                self.outputs.push_back(Output::Ready { attempt, broker, greeted: true });
            }
            (Step::Greeting { .. }, code) if code.is_transient() => self.not_returned(now, "it refused", true),
            (Step::Greeting { .. }, code) => {
                self.park(now, broker, code);
                self.not_returned(now, "it refused", false);
            }
            (Step::Dialling | Step::Ready { .. }, _) => {}
        }
    }

    pub(super) fn planned_timeout(&mut self, now: Instant) {
        if self.planned.as_ref().and_then(Planned::due).is_some_and(|due| due <= now) {
            self.not_returned(now, "it took too long", true);
        }
    }

    /// The old connection serves on.
    pub(super) fn not_returned(&mut self, now: Instant, reason: &'static str, blamed: bool) {
        let Some(planned) = self.planned.take() else { return };
        if blamed {
            self.blame(now, planned.broker, Failure::Unreachable);
        }
        // These count towards deadlines only while nobody serves us.
        self.failures = 0;
        self.wiped = None;
        self.outputs.push_back(Output::Drop { attempt: planned.attempt });
        self.outputs.push_back(Output::NotReturned { broker: planned.broker, reason });
    }

    /// The old connection ended first; the ordinary way decides.
    pub(super) fn cancel_return(&mut self) {
        if let Some(planned) = self.planned.take() {
            self.wiped = None;
            self.outputs.push_back(Output::Drop { attempt: planned.attempt });
        }
    }

    pub(super) fn switch(&mut self, now: Instant, attempt: u64) {
        let State::Established { attempt: old, broker: from, .. } = self.state else { return };
        let Some(planned) = self.planned.take_if(|planned| planned.attempt == attempt && planned.is_ready()) else {
            return;
        };
        self.outputs.push_back(Output::Leave { attempt: old });
        let broker = planned.broker;
        if self.topology == Topology::Cluster {
            // Back to the old one when this one does not answer.
            self.favoured = Some(from);
            self.state = State::Greeting { attempt, broker, since: now, wipe: false, planned: true };
            self.outputs.push_back(Output::Greet { attempt, broker, wipe: false, beside: false });
        } else {
            self.establish(now, attempt, broker, true);
        }
    }
}

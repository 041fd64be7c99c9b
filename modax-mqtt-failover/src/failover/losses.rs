//! What a refusal, a failure or a loss means for the brokers, and when another client has our identity.

use std::time::Instant;

use super::{Failover, Output, State, TAKEOVER_LIFE, TAKEOVER_WINDOW, TAKEOVERS};
use crate::{breaker::Failure, config::Topology, packet::ConnectCode};

impl Failover {
    /// A broker that closed our connection soon after accepting it, and accepts us again, gave our place to another.
    /// One that died would not.
    pub(super) fn count_takeover(&mut self, now: Instant, broker: usize) {
        let Some(ousted) = self.ousted.take() else { return };
        if ousted != broker && self.topology == Topology::Independent {
            return;
        }
        self.takeovers.push_back(now);
        while self.takeovers.front().is_some_and(|at| now.saturating_duration_since(*at) > TAKEOVER_WINDOW) {
            self.takeovers.pop_front();
        }
        if self.takeovers.len() >= TAKEOVERS {
            self.contested = true;
            self.outputs.push_back(Output::DuplicateClientId { broker, takeovers: self.takeovers.len() });
        }
    }

    pub(super) fn refused(&mut self, now: Instant, broker: usize, code: ConnectCode) {
        if code.is_transient() {
            return self.fail(now, broker, Failure::Unreachable);
        }
        self.park(now, broker, code);
        self.choose(now);
    }

    pub(super) fn park(&mut self, now: Instant, broker: usize, code: ConnectCode) {
        self.stamp = self.stamp.saturating_add(1);
        self.failures = self.failures.saturating_add(1);
        if let Some(breaker) = self.breakers.get_mut(broker) {
            breaker.park(now, self.stamp);
        }
        self.outputs.push_back(Output::Parked { broker, code });
    }

    pub(super) fn lost(&mut self, now: Instant, lost: u64, by_peer: bool) {
        match self.state {
            State::Dialling(_) => self.dial_failed(now, lost, by_peer),
            State::Greeting { attempt, broker, .. } if attempt == lost => self.fail(now, broker, Failure::Unreachable),
            State::Established { attempt, broker, since } if attempt == lost => {
                let lived = now.saturating_duration_since(since);
                let told = std::mem::take(&mut self.taken_over);
                self.ousted = (told || (by_peer && lived < TAKEOVER_LIFE)).then_some(broker);
                if lived >= TAKEOVER_WINDOW {
                    self.contested = false;
                    self.takeovers.clear();
                }
                let failure = if by_peer { Failure::Dropped } else { Failure::Silent };
                if let Some(ready) = self.planned.take_if(|planned| planned.is_greeted()) {
                    self.blame(now, broker, failure);
                    return self.establish(now, ready.attempt(), ready.broker(), false);
                }
                self.cancel_return();
                self.fail(now, broker, failure);
            }
            _ => {}
        }
    }

    pub(super) fn fail(&mut self, now: Instant, broker: usize, failure: Failure) {
        self.blame(now, broker, failure);
        self.choose(now);
    }

    pub(super) fn blame(&mut self, now: Instant, broker: usize, failure: Failure) {
        self.stamp = self.stamp.saturating_add(1);
        self.failures = self.failures.saturating_add(1);
        if let Some(breaker) = self.breakers.get_mut(broker) {
            breaker.fail(now, (failure, self.stamp), &self.backoff, &mut self.jitter);
        }
        if self.contested {
            for breaker in &mut self.breakers {
                breaker.hold(now + TAKEOVER_WINDOW);
            }
        }
    }
}

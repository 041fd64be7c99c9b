//! What a refusal, a failure or a loss means for the brokers, and when another client has our identity.

use std::{collections::VecDeque, time::Instant};

use super::{FIRST_HOLD, Failover, Ousted, Output, State, TAKEOVER_LIFE, TAKEOVER_WINDOW, TAKEOVERS};
use crate::{breaker::Failure, config::Topology, packet::ConnectCode};

/// So many within the time say the same of brokers that have to tell of takeovers and do not (mosquitto 2.0.11): more than
/// of links that come and go, whose brokers are tried less and less.
const UNTOLD_TAKEOVERS: usize = 10;

impl Failover {
    /// A broker that closed our connection soon after accepting it, and accepts us again, gave our place to another.
    /// One that died would not: see [`unreachable`](Self::unreachable).
    pub(super) fn count_takeover(&mut self, now: Instant, broker: usize) {
        let Some(ousted) = self.ousted.take() else { return };
        if ousted.broker != broker && !(ousted.told && self.topology == Topology::Cluster) {
            return;
        }
        let (times, enough) = if ousted.told || !self.tells {
            (&mut self.takeovers, TAKEOVERS)
        } else {
            (&mut self.untold, UNTOLD_TAKEOVERS)
        };
        times.push_back(now);
        forget_old(times, now);
        let takeovers = times.len();
        if takeovers >= enough {
            self.contested = true;
            self.outputs.push_back(Output::DuplicateClientId { broker, takeovers });
        }
    }

    /// Nobody answers there: it died, and gave our place to nobody.
    pub(super) fn unreachable(&mut self, broker: usize) {
        self.ousted.take_if(|ousted| ousted.broker == broker && !ousted.told);
    }

    /// A message of ours ends the connection, and no twin.
    pub(super) fn ended_on(&mut self, attempt: u64, alone: bool) {
        if self.holder() == Some(attempt) {
            self.ends_on_message = true;
            if alone {
                self.takeovers.clear();
                self.untold.clear();
                self.short_lived.clear();
                self.uncontested();
            }
        }
    }

    const fn uncontested(&mut self) {
        self.contested = false;
        self.holds = 0;
    }

    /// A connection ended soon after it was accepted. Nodes of a cluster that die under us one after the other look as if
    /// a twin chased us around: after so many, the node itself is asked at once whether it lives.
    fn ousted(&mut self, now: Instant, ousted: Ousted) {
        self.ousted = Some(ousted);
        if self.topology == Topology::Cluster && !ousted.told && !self.tells {
            self.short_lived.push_back(now);
            forget_old(&mut self.short_lived, now);
            if self.short_lived.len() >= TAKEOVERS {
                self.favoured = Some(ousted.broker);
            }
        }
        if self.contested {
            // One try in this time: two clients that fight over one identity disturb each other and the brokers.
            let hold = FIRST_HOLD.saturating_mul(2_u32.saturating_pow(self.holds)).min(TAKEOVER_WINDOW);
            self.holds = self.holds.saturating_add(1);
            for breaker in &mut self.breakers {
                breaker.hold(now + hold);
            }
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
            State::Greeting { attempt, broker, .. } if attempt == lost => {
                self.unanswered = true;
                self.fail(now, broker, Failure::Unreachable);
            }
            State::Established { attempt, broker, since } if attempt == lost => {
                let lived = now.saturating_duration_since(since);
                let told = std::mem::take(&mut self.taken_over);
                if lived >= TAKEOVER_WINDOW {
                    self.uncontested();
                    self.takeovers.clear();
                    self.untold.clear();
                }
                let failure = if by_peer { Failure::Dropped } else { Failure::Silent };
                if let Some(ready) = self.planned.take_if(|planned| planned.is_greeted()) {
                    self.blame(now, broker, failure);
                    return self.establish(now, ready.attempt(), ready.broker(), false);
                }
                self.cancel_return();
                self.blame(now, broker, failure);
                let on_message = std::mem::take(&mut self.ends_on_message);
                if told || (by_peer && lived < TAKEOVER_LIFE && !on_message) {
                    self.ousted(now, Ousted { broker, told });
                }
                self.choose(now);
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
    }
}

fn forget_old(times: &mut VecDeque<Instant>, now: Instant) {
    while times.front().is_some_and(|at| now.saturating_duration_since(*at) > TAKEOVER_WINDOW) {
        times.pop_front();
    }
}

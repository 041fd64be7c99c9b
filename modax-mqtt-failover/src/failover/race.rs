//! The race below CONNECT, and what a scout's word changes in it.

use std::time::{Duration, Instant};

use super::{Failover, HELD, Output, State};
use crate::{breaker::Failure, config::Topology, policy::selection::Candidate};

/// The next candidate joins the race after this. Longer than a healthy broker of the same plant needs for TCP and TLS, so
/// that a less preferred one does not win by luck; RFC 8305 (section 8) has 250 ms for addresses.
const STAGGER: Duration = Duration::from_millis(200);

/// One candidate: its transport is being opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Dial {
    pub(super) attempt: u64,
    pub(super) broker: usize,
    since: Instant,
    /// When the next candidate may join it.
    next_at: Instant,
    until: Instant,
}

impl Failover {
    /// Starts a race with one candidate.
    pub(super) fn dial(&mut self, now: Instant, broker: usize) {
        self.state = State::Dialling(Vec::new());
        self.join(now, broker);
    }

    fn join(&mut self, now: Instant, broker: usize) {
        if let Some(breaker) = self.breakers.get_mut(broker) {
            breaker.attempt();
        }
        self.attempts = self.attempts.saturating_add(1);
        self.last = Some(broker);
        if self.wiped != Some(broker) {
            self.wiped = None;
        }
        let until = now + self.patience(now, broker);
        let State::Dialling(dials) = &mut self.state else { return };
        dials.push(Dial { attempt: self.attempts, broker, since: now, next_at: now + STAGGER, until });
        self.outputs.push_back(Output::Dial { attempt: self.attempts, broker, deadline: until });
    }

    pub(super) fn race_due(&self, dials: &[Dial]) -> Option<Instant> {
        let deadline = dials.iter().map(|dial| dial.until).min();
        let joins = dials.iter().map(|dial| dial.next_at).max().filter(|_| self.may_join(dials));
        [deadline, joins].into_iter().flatten().min()
    }

    /// Whether there is a broker that is not in the race.
    fn may_join(&self, dials: &[Dial]) -> bool {
        self.racing && dials.len() < self.breakers.len() && self.wiped.is_none() && !self.contested
    }

    pub(super) fn race_timeout(&mut self, now: Instant) {
        let State::Dialling(dials) = &self.state else { return };
        if let Some(overdue) = dials.iter().find(|dial| dial.until <= now).cloned() {
            let Dial { attempt, broker, .. } = overdue;
            self.outputs.push_back(Output::GiveUp { attempt, broker, reason: "connecting took too long" });
            return self.out_of_race(now, attempt, broker, Failure::Silent);
        }
        self.next_joins(now);
    }

    /// The best of those that may be tried now and are not silent: a hung broker's kernel opens connections very fast.
    fn next_joins(&mut self, now: Instant) {
        let State::Dialling(dials) = &self.state else { return };
        let due = dials.iter().map(|dial| dial.next_at).max();
        if !self.may_join(dials) || due.is_none_or(|due| due > now) {
            return;
        }
        let ready = |(index, breaker): (usize, &crate::breaker::Breaker)| {
            let demoted = breaker.demoted(now);
            let is_silent = matches!(demoted, Some((Failure::Silent, _)));
            (breaker.ready_at(now).is_some_and(|at| at <= now) && !is_silent).then_some(Candidate { index, demoted })
        };
        let mut ready: Vec<_> = self.breakers.iter().enumerate().filter_map(ready).collect();
        self.selection.rank(&mut ready, self.last, self.breakers.len());
        match ready.first() {
            Some(candidate) => self.join(now, candidate.index),
            None => self.look_again(now),
        }
    }

    /// Nobody to join now: the question comes up again.
    fn look_again(&mut self, now: Instant) {
        if let State::Dialling(dials) = &mut self.state
            && let Some(newest) = dials.last_mut()
        {
            newest.next_at = now + STAGGER;
        }
    }

    /// The first transport that stands gets the one CONNECT; the others are dropped and nobody is blamed.
    pub(super) fn opened(&mut self, now: Instant, attempt: u64) {
        let State::Dialling(dials) = &self.state else { return };
        let Some(broker) = dials.iter().find(|dial| dial.attempt == attempt).map(|dial| dial.broker) else { return };
        let losers: Vec<_> = dials.iter().filter(|dial| dial.attempt != attempt).cloned().collect();
        self.drop_losers(now, &losers);
        self.last = Some(broker);
        self.greet(now, attempt, broker);
    }

    fn drop_losers(&mut self, now: Instant, losers: &[Dial]) {
        for Dial { attempt, broker, .. } in losers {
            if let Some(breaker) = self.breakers.get_mut(*broker) {
                breaker.release(now);
            }
            self.outputs.push_back(Output::Drop { attempt: *attempt });
        }
    }

    pub(super) fn dial_failed(&mut self, now: Instant, attempt: u64, by_peer: bool) {
        if let Some(broker) = self.broker_of(attempt) {
            self.unreachable(broker);
            self.out_of_race(now, attempt, broker, if by_peer { Failure::Unreachable } else { Failure::Silent });
        }
    }

    fn out_of_race(&mut self, now: Instant, attempt: u64, broker: usize, failure: Failure) {
        self.blame(now, broker, failure);
        let State::Dialling(dials) = &mut self.state else { return };
        dials.retain(|dial| dial.attempt != attempt);
        if dials.is_empty() {
            self.choose(now);
        }
    }

    /// A scout that left at `since` was acknowledged: what began before and has no answer is given up for it.
    pub(super) fn proven(&mut self, now: Instant, broker: usize, since: Instant) {
        if self.contested || self.topology != Topology::Cluster {
            return;
        }
        let free = self.free_of_us(now, broker);
        match (self.state.clone(), free) {
            (State::Waiting { .. }, Some(free)) => {
                self.favoured = Some(free);
                self.choose(now);
            }
            (State::Dialling(dials), Some(free))
                if dials.iter().all(|dial| dial.since < since && dial.broker != free) =>
            {
                self.drop_losers(now, &dials);
                self.favoured = Some(free);
                self.choose(now);
            }
            (State::Greeting { attempt, broker: greeting, since: greeted, .. }, _) if greeted < since => {
                self.held_by(greeting, greeted);
                // Where every node holds us, one more CONNECT would be held as well: the next scout, then.
                let Some(free) = self.free_of_us(now, broker) else { return };
                let reason = "a scout was acknowledged sooner";
                self.outputs.push_back(Output::GiveUp { attempt, broker: greeting, reason });
                self.favoured = Some(free);
                self.fail(now, greeting, Failure::Dropped);
            }
            (State::Established { broker: serving, since: accepted, .. }, _) => {
                // Left only when the courier says so; then for the other one.
                self.held_by(serving, accepted.max(now));
                self.favoured = Some(self.free_of_us(now, broker).unwrap_or(broker));
            }
            _ => {}
        }
    }

    /// We left a connection that was not acknowledged for what a scout found.
    pub(super) fn left(&mut self, now: Instant, left: u64) {
        if let State::Established { attempt, broker, .. } = self.state
            && attempt == left
        {
            self.cancel_return();
            self.fail(now, broker, Failure::Dropped);
        }
    }

    pub(super) fn held_by(&mut self, broker: usize, since: Instant) {
        if let Some(held) = self.held.get_mut(broker) {
            *held = Some(since + HELD);
        }
    }

    /// The broker itself, unless our identity may still be held there: then the first other one that is neither that
    /// nor silent, since one node that acknowledges speaks for the cluster.
    fn free_of_us(&self, now: Instant, broker: usize) -> Option<usize> {
        let is_held = |index: usize| self.held.get(index).copied().flatten().is_some_and(|until| until > now);
        if !is_held(broker) {
            return Some(broker);
        }
        let is_silent = |index: usize| {
            self.breakers
                .get(index)
                .is_some_and(|breaker| !matches!(breaker.demoted(now), None | Some((Failure::Dropped, _))))
        };
        let others = 0..self.breakers.len();
        others.into_iter().find(|index| *index != broker && !is_held(*index) && !is_silent(*index))
    }
}

//! Which statement is next, and what its answer means.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::{
    AHEAD, DATABASE_BACKOFF, Dispatch, Fetched, Input, Outcome, Output, Phase, RECORD_ROWS, Running, SWEEP_INTERVAL,
    SWEEP_PATIENCE, Statement,
};
use crate::{
    event::Event,
    lease::Lease,
    window::{Entry, Stage},
};

impl Dispatch {
    fn room(&self) -> usize {
        (self.config.inflight * AHEAD).saturating_sub(self.window.len())
    }

    /// When a statement is to be sent if nothing happens before; called while none is out.
    pub(super) fn statement_due(&self) -> Option<Instant> {
        let due = match &self.phase {
            Phase::Stopped => return None,
            Phase::Standby { claim_at } => *claim_at,
            Phase::Owner { lease, .. } => {
                let reads = (!self.is_stopping && self.room() > 0).then_some(self.poll_at);
                let sweeps = (!self.is_stopping).then_some(self.sweep_at);
                [Some(lease.renew_at()), reads, sweeps].into_iter().flatten().min()?
            }
        };
        // Whatever is due at once was sent at once, unless a failure holds it back.
        Some(self.database_retry_at.unwrap_or(due))
    }

    pub(super) fn next_statement(&mut self, now: Instant) -> Option<Statement> {
        if self.database_retry_at.is_some_and(|at| now < at) {
            return None;
        }
        let lease = match &self.phase {
            Phase::Stopped => return None,
            Phase::Standby { .. } if self.is_stopping => {
                self.phase = Phase::Stopped;
                self.outputs.push_back(Output::Stopped);
                return None;
            }
            Phase::Standby { claim_at } => return (now >= *claim_at).then_some(Statement::Claim),
            Phase::Owner { lease, .. } => *lease,
        };
        let epoch = lease.epoch;
        if self.must_verify || !lease.is_certain(now) {
            return Some(Statement::Renew { epoch });
        }
        let wants_record = !self.unrecorded.is_empty();
        if lease.is_due(now) && !wants_record {
            return Some(Statement::Renew { epoch });
        }
        if !self.is_stopping && !lease.is_due(now) && now >= self.sweep_at + SWEEP_PATIENCE {
            return Some(Statement::Sweep);
        }
        let room = self.room();
        // After a full read the next one waits until it is worth a statement.
        let wants_fetch = !self.is_stopping
            && room > 0
            && (self.is_woken || now >= self.poll_at || (self.has_more && room >= self.config.inflight.div_ceil(2)));
        if wants_record && !(wants_fetch && !self.was_fetch && !lease.is_due(now)) {
            return Some(self.record(epoch));
        }
        if wants_fetch {
            let (exclude, full_keys) = (self.window.ids(), self.window.full_keys());
            return Some(Statement::Fetch { limit: room, exclude, full_keys });
        }
        if self.is_stopping {
            return (self.window.inflight() == 0).then_some(Statement::Release { epoch });
        }
        (now >= self.sweep_at).then_some(Statement::Sweep)
    }

    fn record(&mut self, epoch: u64) -> Statement {
        let settlements = self.unrecorded.values().take(RECORD_ROWS).cloned().collect();
        Statement::Record { epoch, settlements }
    }

    pub(super) fn run(&mut self, now: Instant, statement: Statement) {
        let mut running = Running { sent_at: now, recording: BTreeMap::new(), limit: 0 };
        self.was_fetch = false;
        match &statement {
            Statement::Record { settlements, .. } => {
                for settlement in settlements {
                    self.unrecorded.remove(&settlement.id);
                    running.recording.insert(settlement.id, settlement.clone());
                }
            }
            Statement::Fetch { limit, .. } => {
                self.was_fetch = true;
                // A message committed from here on may be missed by this read: its wake-up asks for another.
                self.is_woken = false;
                running.limit = *limit;
            }
            Statement::Claim | Statement::Renew { .. } | Statement::Sweep | Statement::Release { .. } => {}
        }
        self.running = Some(running);
        self.outputs.push_back(Output::Run(statement));
    }

    /// The statement that was out has its answer.
    pub(super) fn statement_done(&mut self, now: Instant, input: Input) {
        let Some(running) = self.running.take() else { return };
        self.database_failures = 0;
        self.database_retry_at = None;
        match input {
            Input::Claimed { epoch } => self.claimed(now, epoch, &running),
            Input::ClaimRefused { left } => {
                // Also before it runs out: an orderly stop gives it back early.
                let wait = left.min(self.config.lease / 6).max(Duration::from_millis(10));
                self.phase = Phase::Standby { claim_at: now + wait };
            }
            Input::Renewed { held } | Input::Recorded { held } if !held => self.lost(now),
            Input::Renewed { .. } => self.renewed(running.sent_at),
            Input::Recorded { .. } => {
                self.renewed(running.sent_at);
                for (id, settlement) in running.recording {
                    if let Outcome::Parked { .. } = settlement.outcome
                        && let Some(key) = self.window.get(id).and_then(|entry| entry.message.key.clone())
                    {
                        self.window.forget_followers(&key);
                    }
                    if !matches!(settlement.outcome, Outcome::Retried { .. }) {
                        self.window.recorded(id);
                    }
                }
            }
            Input::Fetched { messages } => self.fetched(now, &running, messages),
            Input::Swept { expired, more } => {
                self.sweep_at = if more { now } else { now + SWEEP_INTERVAL };
                self.stats.expired += u64::try_from(expired.len()).unwrap_or(0);
                for id in expired {
                    self.event(Event::Expired { id });
                }
            }
            Input::Released => {
                if let Phase::Owner { lease, .. } = self.phase {
                    self.event(Event::LeaseReleased { epoch: lease.epoch });
                }
                self.phase = Phase::Stopped;
                self.outputs.push_back(Output::Stopped);
            }
            Input::Woken | Input::Answered { .. } | Input::DatabaseFailed { .. } | Input::Stop => {}
        }
    }

    fn claimed(&mut self, now: Instant, epoch: u64, running: &Running) {
        let lease = Lease::new(epoch, running.sent_at, self.config.lease);
        self.phase = Phase::Owner { lease, is_suspended: false };
        self.must_verify = false;
        self.poll_at = now;
        self.poll_wait = self.config.poll_interval;
        self.stats.epoch = epoch;
        self.stats.leases_acquired += 1;
        self.event(Event::LeaseAcquired { epoch });
    }

    fn renewed(&mut self, sent_at: Instant) {
        self.must_verify = false;
        let length = self.config.lease;
        if let Phase::Owner { lease, is_suspended } = &mut self.phase {
            lease.renewed(sent_at, length);
            let epoch = lease.epoch;
            if std::mem::take(is_suspended) {
                self.event(Event::Resumed { epoch });
            }
        }
    }

    /// Another relay owns the outbox: everything in memory is its business now.
    fn lost(&mut self, now: Instant) {
        if let Phase::Owner { lease, .. } = self.phase {
            self.stats.leases_lost += 1;
            self.outputs.push_back(Output::Abort);
            self.event(Event::LeaseLost { epoch: lease.epoch });
        }
        self.phase = Phase::Standby { claim_at: now };
        self.must_verify = false;
        self.has_more = false;
        self.window.clear();
        self.unrecorded.clear();
    }

    fn fetched(&mut self, now: Instant, running: &Running, messages: Vec<Fetched>) {
        let Phase::Owner { .. } = self.phase else { return };
        self.stats.fetched += u64::try_from(messages.len()).unwrap_or(0);
        self.stats.oldest_age = messages.iter().map(|fetched| fetched.message.age).max().unwrap_or_default();
        self.has_more = !messages.is_empty() && messages.len() >= running.limit;
        self.poll_wait = if messages.is_empty() {
            self.poll_wait.saturating_mul(2).min(self.config.idle_poll_interval)
        } else {
            self.config.poll_interval
        };
        self.poll_at = now + self.poll_wait;
        if self.is_stopping {
            return;
        }
        for Fetched { message, attempts, fault } in messages {
            let id = message.id;
            // Counted from before the statement was sent: never later than the database's own view. Too far away is never.
            let expires_at = message.expires_in.and_then(|left| running.sent_at.checked_add(left));
            let (stage, read_at) = (Stage::Buffered, now);
            self.window.insert(Entry { message, stage, attempts, read_at, expires_at, first_failure: None });
            if let Some(reason) = fault {
                self.settle(id, Outcome::Rejected { reason });
            }
        }
        for id in self.window.handle_timeout(now) {
            self.settle(id, Outcome::Expired);
        }
    }

    /// Whether the statement took effect is unknown, and the next connection may lead to another server: what was read and not
    /// yet handed over is read again, since it may not exist there.
    pub(super) fn database_failed(&mut self, now: Instant, reason: String) {
        let Some(running) = self.running.take() else { return };
        for (id, settlement) in running.recording {
            self.unrecorded.entry(id).or_insert(settlement);
        }
        self.window.forget_waiting();
        // The put-off ones were forgotten with the rest; what stays to be recorded is their count of attempts.
        self.database_failures = self.database_failures.saturating_add(1);
        self.stats.database_failures += 1;
        let (first, longest) = DATABASE_BACKOFF;
        let full = first.saturating_mul(1 << (self.database_failures - 1).min(10)).min(longest);
        self.database_retry_at = Some(now + self.jitter.half_of(full));
        self.must_verify = matches!(self.phase, Phase::Owner { .. });
        self.poll_at = now;
        self.event(Event::DatabaseFailed { reason });
    }
}

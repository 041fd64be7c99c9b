//! One check in the schedule: its runs, one at a time, and what their results come to.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    CheckConfig, CheckReport, Condition, Counts, Detail, Event, Need, Scope, Status,
    schedule::{CheckId, Outcome, Output, RunId},
    word::Word,
};

/// Time a run past its deadline has to end when told to, before it is called stuck. Ending a task takes microseconds.
const STUCK_GRACE: Duration = Duration::from_millis(100);

/// A run in flight.
#[derive(Debug)]
pub(super) struct Run {
    id: RunId,
    began: Instant,
    /// Once past its deadline: when its lateness counts as the next failure.
    late: Option<Instant>,
}

#[derive(Debug)]
pub(super) struct Slot {
    pub(super) rules: CheckConfig,
    word: Word,
    run: Option<Run>,
    due: Instant,
    next_run: u64,
    ended: Option<Instant>,
    changed: Option<Instant>,
    reason: Option<Arc<str>>,
    detail: Option<Detail>,
    duration: Option<Duration>,
    counts: Counts,
}

impl Slot {
    pub(super) fn new(now: Instant, rules: CheckConfig) -> Self {
        Self {
            rules,
            word: Word::default(),
            run: None,
            due: now,
            next_run: 0,
            ended: None,
            changed: None,
            reason: None,
            detail: None,
            duration: None,
            counts: Counts::default(),
        }
    }

    /// What the check is worth at the moment: nothing known, or nothing recent, is not a success.
    pub(super) fn effective(&self) -> Status {
        match self.word.status() {
            Some(status) if !self.word.is_stale() => status,
            _ => Status::Unhealthy,
        }
    }

    /// Whether its failure takes the instance out of rotation.
    pub(super) fn can_unready(&self) -> bool {
        self.rules.need == Need::Required && self.rules.scope == Scope::Private
    }

    pub(super) fn has_started(&self) -> bool {
        self.word.status().is_some() && (!self.rules.startup_gate || self.word.has_passed())
    }

    pub(super) fn turn(&mut self, now: Instant, id: CheckId, random: &mut u64, outputs: &mut VecDeque<Output>) {
        if self.run.is_some() {
            self.chase(now, id, outputs);
        } else if now >= self.due {
            let run = RunId(self.next_run);
            self.next_run = self.next_run.saturating_add(1);
            self.run = Some(Run { id: run, began: now, late: None });
            self.due = later(now, self.rules.interval.saturating_add(self.rules.jittered(unit(random))));
            self.counts.started = self.counts.started.saturating_add(1);
            outputs.push_back(Output::Start { check: id, run });
        }
        if !self.word.is_stale() && self.stale_at().is_some_and(|at| now > at) {
            self.word = self.word.stale(true);
            outputs.push_back(Output::Event(Event::CheckStale { check: Arc::clone(&self.rules.name) }));
        }
    }

    /// Deals with a run that may have passed its deadline.
    fn chase(&mut self, now: Instant, id: CheckId, outputs: &mut VecDeque<Output>) {
        let Some(run) = &mut self.run else { return };
        let age = now.saturating_duration_since(run.began);
        if age < self.rules.timeout {
            return;
        }
        let first = run.late.is_none();
        if run.late.is_none_or(|count_at| now >= count_at) {
            run.late = Some(later(now, self.rules.longest_period()));
            if first {
                outputs.push_back(Output::Cancel { check: id, run: run.id });
            }
            self.counts.timed_out = self.counts.timed_out.saturating_add(1);
            let reason: Arc<str> = format!("timed out after {:?}", self.rules.timeout).into();
            self.count(now, Status::Unhealthy, Some(reason), None, outputs);
        }
        if !self.word.is_stuck() && age >= self.rules.timeout.saturating_add(STUCK_GRACE) {
            self.word = self.word.stuck(true);
            outputs.push_back(Output::Event(Event::CheckStuck { check: Arc::clone(&self.rules.name), age }));
        }
    }

    /// Takes in the end of a run; one that is not in flight is ignored.
    pub(super) fn ended(
        &mut self,
        now: Instant,
        run: RunId,
        outcome: Outcome,
        took: Duration,
        outputs: &mut VecDeque<Output>,
    ) {
        let Some(ended) = self.run.take_if(|in_flight| in_flight.id == run) else { return };
        self.ended = Some(now);
        self.duration = Some(took);
        self.counts.observe(took);
        if self.word.is_stuck() {
            let (check, age) = (Arc::clone(&self.rules.name), now.saturating_duration_since(ended.began));
            outputs.push_back(Output::Event(Event::CheckUnstuck { check, age }));
        }
        self.word = self.word.stuck(false).stale(false);
        // A late run was counted when its deadline passed: what it says afterwards comes too late to be of use.
        if ended.late.is_none() {
            self.conclude(now, outcome, outputs);
        }
    }

    fn conclude(&mut self, now: Instant, outcome: Outcome, outputs: &mut VecDeque<Output>) {
        match outcome {
            Outcome::Returned(Ok(())) => self.count(now, Status::Healthy, None, None, outputs),
            Outcome::Returned(Err(error)) => self.count(now, error.status, error.public, error.detail, outputs),
            Outcome::Panicked => {
                self.counts.panicked = self.counts.panicked.saturating_add(1);
                self.count(now, Status::Unhealthy, Some("panicked".into()), None, outputs);
            }
            Outcome::Cancelled => self.count(now, Status::Unhealthy, Some("cancelled".into()), None, outputs),
            Outcome::NotBegun => {
                self.count(now, Status::Unhealthy, Some("could not be begun".into()), None, outputs);
            }
        }
    }

    /// Counts one result and damps it.
    fn count(
        &mut self,
        now: Instant,
        result: Status,
        reason: Option<Arc<str>>,
        detail: Option<Detail>,
        outputs: &mut VecDeque<Output>,
    ) {
        let from = self.word.status();
        self.word = self.word.step(result, self.rules.rise, self.rules.fall);
        let to = self.word.status().unwrap_or(result);
        let counter = if result == Status::Unhealthy { &mut self.counts.failed } else { &mut self.counts.passed };
        *counter = counter.saturating_add(1);
        if result != Status::Healthy {
            self.reason = reason;
            self.detail = detail;
        } else if to == Status::Healthy {
            self.reason = None;
            self.detail = None;
        }
        if from != Some(to) {
            self.changed = Some(now);
            self.counts.transitions = self.counts.transitions.saturating_add(1);
            let check = Arc::clone(&self.rules.name);
            outputs.push_back(Output::Event(Event::CheckChanged { check, from, to }));
        }
    }

    fn stale_at(&self) -> Option<Instant> {
        self.ended.and_then(|ended| ended.checked_add(self.rules.stale_age()))
    }

    /// When this check wants a turn.
    pub(super) fn next(&self) -> Option<Instant> {
        let work = match &self.run {
            None => Some(self.due),
            Some(Run { late: None, began, .. }) => began.checked_add(self.rules.timeout),
            Some(Run { late: Some(count_at), began, .. }) if !self.word.is_stuck() => {
                began.checked_add(self.rules.timeout.saturating_add(STUCK_GRACE)).map(|at| at.min(*count_at))
            }
            Some(Run { late: Some(count_at), .. }) => Some(*count_at),
        };
        let stale = if self.word.is_stale() { None } else { self.stale_at() };
        // One nanosecond past the age: an age equal to the limit still counts.
        let stale = stale.and_then(|at| at.checked_add(Duration::from_nanos(1)));
        work.into_iter().chain(stale).min()
    }

    pub(super) fn report(&self, now: Instant, unix_time: Duration) -> CheckReport {
        let since = |at: Instant| now.saturating_duration_since(at);
        let condition = match (&self.run, self.word.status(), self.ended) {
            (Some(run), ..) if self.word.is_stuck() => Condition::Stuck { age: since(run.began) },
            (_, None, _) => Condition::Pending,
            (_, _, Some(ended)) if self.word.is_stale() => Condition::Stale { age: since(ended) },
            _ => Condition::Fresh,
        };
        CheckReport {
            name: Arc::clone(&self.rules.name),
            need: self.rules.need,
            scope: self.rules.scope,
            status: self.effective(),
            condition,
            reason: self.reason.clone(),
            detail: self.detail.clone(),
            duration: self.duration,
            changed_at: self.changed.map(|at| unix_time.saturating_sub(since(at))),
            counts: self.counts,
        }
    }
}

fn later(now: Instant, by: Duration) -> Instant {
    now.checked_add(by).unwrap_or(now)
}

/// A number in 0..1 by SplitMix64.
fn unit(state: &mut u64) -> f64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^= mixed >> 31;
    (mixed >> 11) as f64 / (1_u64 << 53) as f64
}

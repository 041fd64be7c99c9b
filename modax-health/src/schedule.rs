//! The state machine: what is due, what is in flight, what is late, and what all of it means.
//!
//! Pure: no clock, no socket, no randomness that was not passed in. Feed one [`Input`], or call
//! [`handle_timeout`](Schedule::handle_timeout); then drain [`poll_output`](Schedule::poll_output) and wait until
//! [`poll_timeout`](Schedule::poll_timeout). The program's driver does this with a real clock; a simulation does it
//! with a virtual one.
//!
//! A check has at most one run. A run that passes its deadline is told to end and counts as a failure; while it does
//! not end it counts as one more each period, so that detection takes no longer because the check hangs, and no second
//! run is begun beside it.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

mod slot;

use slot::Slot;

#[cfg(feature = "tokio")]
use crate::check::Work;
use crate::{
    Bounds, CheckBounds, CheckConfig, CheckError, ConfigError, Event, Prober, Report, Status, Watchdog, WatchdogReport,
    check::validate,
};

/// Longest time between two turns of the machine: how old a snapshot may get.
const BEAT: Duration = Duration::from_secs(1);

/// Place of a check in the builder's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CheckId(pub usize);

/// One run of one check, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunId(pub u64);

/// How a run ended.
#[derive(Debug)]
#[non_exhaustive]
pub enum Outcome {
    /// The check returned.
    Returned(Result<(), CheckError>),
    /// The check panicked; what it said is withheld.
    Panicked,
    /// The run was ended from outside, as [`Output::Cancel`] asked.
    Cancelled,
    /// It could not even begin (no thread to be had).
    NotBegun,
}

/// What happened outside.
#[derive(Debug)]
#[non_exhaustive]
pub enum Input {
    /// A run ended. Runs that are not in flight are ignored.
    Ended {
        /// The check.
        check: CheckId,
        /// The run.
        run: RunId,
        /// How.
        outcome: Outcome,
        /// How long it took.
        took: Duration,
    },
    /// The counter of a watchdog, as read just before a turn.
    Bumps {
        /// Place of the watchdog in the builder's order.
        watchdog: usize,
        /// Its counter.
        bumps: u64,
    },
    /// The instance leaves. There is no way back.
    Drain,
}

/// What the driver must do.
#[derive(Debug)]
#[non_exhaustive]
pub enum Output {
    /// Begin a run.
    Start {
        /// The check.
        check: CheckId,
        /// The run.
        run: RunId,
    },
    /// End a run that passed its deadline, if that is possible; report its end in any case.
    Cancel {
        /// The check.
        check: CheckId,
        /// The run.
        run: RunId,
    },
    /// Tell whoever listens.
    Event(Event),
}

#[derive(Debug)]
struct Dog {
    name: Arc<str>,
    limit: Duration,
    /// Extra time until the first bump.
    grace: Duration,
    bumps: u64,
    moved: Instant,
    missed: bool,
}

/// The state machine of a registry. See the [module](self).
#[derive(Debug)]
pub struct Schedule {
    slots: Vec<Slot>,
    dogs: Vec<Dog>,
    outputs: VecDeque<Output>,
    random: u64,
    beat: Duration,
    turned: Instant,
    started: bool,
    draining: bool,
    told: (Status, bool),
}

impl Schedule {
    /// A schedule whose checks are all due at `now`. `startup_grace` is added to each watchdog's limit until its first
    /// bump; `seed` decides the jitter and nothing else.
    ///
    /// # Errors
    /// Any [`ConfigError`] but `NoRuntime`: a rule contradicts itself; the error names it.
    pub fn new(
        now: Instant,
        checks: Vec<CheckConfig>,
        watchdogs: &[Watchdog],
        startup_grace: Duration,
        seed: u64,
    ) -> Result<Self, ConfigError> {
        validate(&checks, watchdogs)?;
        let slots: Vec<Slot> = checks.into_iter().map(|rules| Slot::new(now, rules)).collect();
        let dogs: Vec<Dog> = watchdogs
            .iter()
            .map(|dog| Dog {
                name: dog.name().into(),
                limit: dog.limit(),
                grace: startup_grace,
                bumps: 0,
                moved: now,
                missed: false,
            })
            .collect();
        let beat = dogs.iter().map(|dog| dog.limit / 4).fold(BEAT, Duration::min).max(Duration::from_millis(1));
        let told = (Status::Unhealthy, false);
        let outputs = VecDeque::new();
        Ok(Self { slots, dogs, outputs, random: seed, beat, turned: now, started: false, draining: false, told })
    }

    /// The longest times these rules allow, seen by `prober`.
    #[must_use]
    pub fn bounds(&self, prober: Prober) -> Bounds {
        let checks = self.slots.iter().map(|slot| CheckBounds::of(&slot.rules)).collect();
        Bounds { checks, drain: prober.detection() }
    }

    #[cfg(feature = "tokio")]
    pub(crate) fn work(&self, check: CheckId) -> Option<&Work> {
        self.slots.get(check.0).map(|slot| &slot.rules.work)
    }

    /// Takes in what happened at `now`.
    pub fn handle_input(&mut self, now: Instant, input: Input) {
        match input {
            Input::Ended { check, run, outcome, took } => {
                if let Some(slot) = self.slots.get_mut(check.0) {
                    slot.ended(now, run, outcome, took, &mut self.outputs);
                }
            }
            Input::Bumps { watchdog, bumps } => self.bumped(now, watchdog, bumps),
            Input::Drain => {
                if !std::mem::replace(&mut self.draining, true) {
                    self.outputs.push_back(Output::Event(Event::DrainStarted));
                }
            }
        }
        self.tell();
    }

    /// Does what is due at `now`. Calling early or twice does no harm; calling late is noticed and not held against
    /// the watchdogs, whose counters could not be read meanwhile.
    pub fn handle_timeout(&mut self, now: Instant) {
        let gap = now.saturating_duration_since(self.turned);
        let excess = gap.saturating_sub(self.beat);
        self.turned = self.turned.max(now);
        for dog in &mut self.dogs {
            dog.moved = dog.moved.checked_add(excess).unwrap_or(now).min(now);
            if !self.draining && !dog.missed && dog.overdue(now) {
                dog.missed = true;
                self.outputs.push_back(Output::Event(Event::WatchdogMissed { watchdog: Arc::clone(&dog.name) }));
            }
        }
        for (at, slot) in self.slots.iter_mut().enumerate() {
            slot.turn(now, CheckId(at), &mut self.random, &mut self.outputs);
        }
        self.tell();
    }

    /// The next thing to do, until there is none.
    #[must_use]
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`handle_timeout`](Self::handle_timeout) wants to be called next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let beat = self.turned.checked_add(self.beat);
        self.slots.iter().filter_map(Slot::next).chain(beat).min()
    }

    /// A snapshot. `unix_time` is the same moment as `now`, by the wall clock, for people only.
    #[must_use]
    pub fn report(&self, now: Instant, unix_time: Duration) -> Report {
        Report {
            status: self.status(),
            live: self.live(),
            ready: self.ready(),
            started: self.started,
            draining: self.draining,
            taken_at: now,
            unix_time,
            checks: self.slots.iter().map(|slot| slot.report(now, unix_time)).collect(),
            watchdogs: self
                .dogs
                .iter()
                .map(|dog| WatchdogReport {
                    name: Arc::clone(&dog.name),
                    missed: dog.missed,
                    age: now.saturating_duration_since(dog.moved),
                })
                .collect(),
        }
    }

    /// Liveness: the watchdogs and nothing else. A leaving instance is not restarted for loops that it ended itself.
    fn live(&self) -> bool {
        self.draining || self.dogs.iter().all(|dog| !dog.missed)
    }

    fn ready(&self) -> bool {
        let holds = |slot: &Slot| !slot.can_unready() || slot.effective() != Status::Unhealthy;
        self.started && !self.draining && self.live() && self.slots.iter().all(holds)
    }

    fn status(&self) -> Status {
        let live = if self.live() { Status::Healthy } else { Status::Unhealthy };
        self.slots.iter().map(|slot| slot.rules.need.weigh(slot.effective())).fold(live, Status::join)
    }

    /// Latches the end of the startup phase and reports changes of the whole.
    fn tell(&mut self) {
        self.started = self.started || self.slots.iter().all(Slot::has_started);
        let (status, ready) = (self.status(), self.ready());
        let (old_status, old_ready) = std::mem::replace(&mut self.told, (status, ready));
        if status != old_status {
            self.outputs.push_back(Output::Event(Event::StatusChanged { from: old_status, to: status }));
        }
        if ready != old_ready {
            self.outputs.push_back(Output::Event(Event::ReadyChanged { ready }));
        }
    }

    fn bumped(&mut self, now: Instant, watchdog: usize, bumps: u64) {
        let Some(dog) = self.dogs.get_mut(watchdog) else { return };
        if bumps == dog.bumps {
            return;
        }
        dog.bumps = bumps;
        dog.moved = now;
        dog.grace = Duration::ZERO;
        if std::mem::replace(&mut dog.missed, false) {
            self.outputs.push_back(Output::Event(Event::WatchdogRecovered { watchdog: Arc::clone(&dog.name) }));
        }
    }
}

impl Dog {
    fn overdue(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.moved) > self.limit.saturating_add(self.grace)
    }
}

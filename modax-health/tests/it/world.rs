//! A world around the state machine: virtual time, checks that behave as told, and an oracle that holds at every step.

use std::time::{Duration, Instant};

use modax_health::{
    CheckConfig, CheckError, Event, Report, Watchdog,
    schedule::{CheckId, Input, Outcome, Output, RunId, Schedule},
};

/// What a check does when it is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Behaviour {
    Pass,
    Degrade,
    Fail,
    Panic,
    /// Never returns, but ends when it is told to.
    Hang,
    /// Never returns and cannot be ended, until released.
    Stick,
}

#[derive(Debug)]
struct Flying {
    check: CheckId,
    run: RunId,
    began: Duration,
    ends: Option<Duration>,
    behaviour: Behaviour,
}

/// One instance.
pub(crate) struct World {
    base: Instant,
    pub(crate) now: Duration,
    pub(crate) schedule: Schedule,
    pub(crate) behaviours: Vec<Behaviour>,
    /// Time a run takes that ends by itself.
    pub(crate) latencies: Vec<Duration>,
    pub(crate) events: Vec<(Duration, Event)>,
    /// Runs begun, for each check.
    pub(crate) starts: Vec<u64>,
    pub(crate) cancels: u64,
    /// Text of the error a failing check returns.
    pub(crate) secret: String,
    names: Vec<String>,
    flying: Vec<Flying>,
    watchdogs: Vec<Watchdog>,
}

impl World {
    pub(crate) fn new(checks: Vec<CheckConfig>, watchdogs: Vec<Watchdog>, seed: u64) -> Self {
        let base = Instant::now();
        let count = checks.len();
        let names = checks.iter().map(|check| check.name().to_owned()).collect();
        let schedule = Schedule::new(base, checks, &watchdogs, Duration::ZERO, seed).expect("valid rules");
        Self {
            base,
            now: Duration::ZERO,
            schedule,
            behaviours: vec![Behaviour::Pass; count],
            latencies: vec![Duration::from_millis(1); count],
            events: Vec::new(),
            starts: vec![0; count],
            cancels: 0,
            secret: "postgres://u:hunter2@db/x".into(),
            names,
            flying: Vec::new(),
            watchdogs,
        }
    }

    pub(crate) fn index(&self, name: &str) -> usize {
        self.names.iter().position(|known| known == name).unwrap_or_else(|| panic!("no check {name}"))
    }

    pub(crate) fn report(&self) -> Report {
        self.schedule.report(self.base + self.now, Duration::from_secs(1_700_000_000) + self.now)
    }

    pub(crate) fn drain(&mut self) {
        self.schedule.handle_input(self.base + self.now, Input::Drain);
        self.pump();
    }

    /// Ends the stuck runs of a check.
    pub(crate) fn release(&mut self, check: usize) {
        for flying in &mut self.flying {
            if flying.check.0 == check && flying.behaviour == Behaviour::Stick {
                flying.ends = Some(self.now);
                flying.behaviour = Behaviour::Pass;
            }
        }
    }

    /// Lets time pass, turning the machine exactly when it asks to be.
    pub(crate) fn run_until(&mut self, end: Duration) {
        self.run_with_stalls(end, || Duration::ZERO);
    }

    /// The same with a scheduler that comes late by what `stall` says.
    pub(crate) fn run_with_stalls(&mut self, end: Duration, mut stall: impl FnMut() -> Duration) {
        let mut steps = 0_u32;
        loop {
            self.turn();
            let wake = self.schedule.poll_timeout().expect("a beat always comes").saturating_duration_since(self.base);
            let landing = self.flying.iter().filter_map(|flying| flying.ends).min();
            let next = landing.map_or(wake, |landing| landing.min(wake)).max(self.now) + stall();
            if next > end {
                break;
            }
            steps += 1;
            assert!(steps < 1_000_000, "the machine asks to be turned without end at {:?}", self.now);
            self.now = next;
        }
        self.now = end;
        self.turn();
    }

    fn turn(&mut self) {
        for (watchdog, dog) in self.watchdogs.iter().enumerate() {
            let bumps = dog.bumps();
            self.schedule.handle_input(self.base + self.now, Input::Bumps { watchdog, bumps });
        }
        // Ends first, as the driver takes them.
        while let Some(at) = self.flying.iter().position(|flying| flying.ends.is_some_and(|ends| ends <= self.now)) {
            let flying = self.flying.swap_remove(at);
            self.land(&flying);
        }
        self.schedule.handle_timeout(self.base + self.now);
        self.pump();
    }

    fn land(&mut self, flying: &Flying) {
        let outcome = match flying.behaviour {
            Behaviour::Pass => Outcome::Returned(Ok(())),
            Behaviour::Degrade => Outcome::Returned(Err(CheckError::public("slow").degraded())),
            Behaviour::Fail => Outcome::Returned(Err(CheckError::private(&self.secret))),
            Behaviour::Panic => Outcome::Panicked,
            Behaviour::Hang | Behaviour::Stick => Outcome::Cancelled,
        };
        let took = self.now.saturating_sub(flying.began);
        let ended = Input::Ended { check: flying.check, run: flying.run, outcome, took };
        self.schedule.handle_input(self.base + self.now, ended);
    }

    fn pump(&mut self) {
        while let Some(output) = self.schedule.poll_output() {
            match output {
                Output::Start { check, run } => {
                    let running = self.flying.iter().any(|flying| flying.check == check);
                    assert!(!running, "{check:?} was started again before it ended, at {:?}", self.now);
                    self.starts[check.0] += 1;
                    let behaviour = self.behaviours[check.0];
                    let endless = matches!(behaviour, Behaviour::Hang | Behaviour::Stick);
                    let ends = (!endless).then(|| self.now + self.latencies[check.0]);
                    self.flying.push(Flying { check, run, began: self.now, ends, behaviour });
                }
                Output::Cancel { check, run } => {
                    self.cancels += 1;
                    let at = self.flying.iter().position(|flying| flying.check == check && flying.run == run);
                    let at = at.expect("only a run in flight is cancelled");
                    if self.flying[at].behaviour != Behaviour::Stick {
                        let mut flying = self.flying.swap_remove(at);
                        flying.behaviour = Behaviour::Hang;
                        self.land(&flying);
                    }
                }
                Output::Event(event) => self.events.push((self.now, event)),
                other => panic!("unknown output {other:?}"),
            }
        }
    }
}

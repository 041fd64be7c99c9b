//! Runs what the [`Schedule`] says is due: the only owner of clock, tasks and threads.
#![expect(clippy::disallowed_methods, reason = "the driver owns clock, tasks and threads")]

use std::{
    hash::{BuildHasher, Hasher},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwap;
use tokio::{
    runtime::Handle,
    sync::{broadcast, oneshot, watch},
    task::{AbortHandle, Id, JoinError, JoinSet},
    time::{sleep_until, timeout_at},
};

use crate::{
    ConfigError, DrainReport, Event, Report, State, Watchdog,
    check::Work,
    schedule::{CheckId, Input, Outcome, Output, RunId, Schedule},
};

/// Room for events of one reader; beyond it the oldest are shed and counted.
const EVENTS: usize = 256;

/// How far a drain is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Leaving {
    No,
    Draining,
    Hurried,
}

/// What the task and the handle share.
struct Shared {
    /// The bits of [`State`]. `DRAINING` and `DEAD` only ever go on; the task writes the others.
    state: AtomicU64,
    report: ArcSwap<Report>,
    /// Milliseconds from `base` to the task's last turn.
    turned: AtomicU64,
    base: Instant,
    grace: Duration,
    drain_began: OnceLock<Instant>,
    leaving: watch::Sender<Leaving>,
    events: broadcast::Sender<Event>,
}

/// The background task, as the registry holds it. Dropping it ends the task and every run in it.
pub(crate) struct Driver {
    shared: Arc<Shared>,
    task: AbortHandle,
}

impl Driver {
    pub(crate) fn start(schedule: Schedule, watchdogs: Vec<Watchdog>, grace: Duration) -> Result<Self, ConfigError> {
        let runtime = Handle::try_current().map_err(|_| ConfigError::NoRuntime)?;
        let base = now();
        let report = schedule.report(base, unix_time());
        let shared = Arc::new(Shared {
            state: AtomicU64::new(report.state().0),
            report: ArcSwap::from_pointee(report),
            turned: AtomicU64::new(0),
            base,
            grace,
            drain_began: OnceLock::new(),
            leaving: watch::Sender::new(Leaving::No),
            events: broadcast::Sender::new(EVENTS),
        });
        let floor = Floor { schedule, watchdogs, runs: JoinSet::new(), in_flight: Vec::new() };
        let task = runtime.spawn(floor.run(DeadMan(Arc::clone(&shared)))).abort_handle();
        Ok(Self { shared, task })
    }

    pub(crate) fn state(&self) -> State {
        State(self.shared.state.load(Ordering::Acquire))
    }

    /// The last snapshot, corrected where something happened since that the task has not yet turned into one.
    pub(crate) fn report(&self) -> Arc<Report> {
        let report = self.shared.report.load_full();
        let turned = Duration::from_millis(self.shared.turned.load(Ordering::Acquire));
        let silent = now().saturating_duration_since(self.shared.base).saturating_sub(turned);
        if self.state().0 & State::DEAD != 0 || silent > self.shared.grace {
            return Arc::new(report.dead());
        }
        if self.state().is_draining() && !report.draining {
            return Arc::new(report.drained());
        }
        report
    }

    pub(crate) fn events(&self) -> broadcast::Receiver<Event> {
        self.shared.events.subscribe()
    }

    /// Sets the bit first: a probe that comes after this call is answered 503, whatever the task does.
    pub(crate) fn start_drain(&self) -> Instant {
        let began = *self.shared.drain_began.get_or_init(now);
        self.shared.state.fetch_or(State::DRAINING, Ordering::AcqRel);
        self.advance(Leaving::Draining);
        began
    }

    pub(crate) fn hurry(&self) {
        self.start_drain();
        self.advance(Leaving::Hurried);
    }

    fn advance(&self, to: Leaving) {
        self.shared.leaving.send_if_modified(|leaving| {
            let forward = to > *leaving;
            *leaving = to.max(*leaving);
            forward
        });
    }

    pub(crate) async fn drain(&self, wait: Duration) -> DrainReport {
        let began = self.start_drain();
        let mut leaving = self.shared.leaving.subscribe();
        let deadline = began.checked_add(wait).unwrap_or(began);
        let hurried = leaving.wait_for(|leaving| *leaving == Leaving::Hurried);
        let hurried = timeout_at(deadline.into(), hurried).await.is_ok();
        DrainReport::new(began, now().saturating_duration_since(began), hurried)
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Whatever ends the task (a panic, the runtime's end), nobody believes its last words for ever.
struct DeadMan(Arc<Shared>);

impl Drop for DeadMan {
    fn drop(&mut self) {
        self.0.state.fetch_or(State::DEAD, Ordering::AcqRel);
    }
}

/// A run in flight, as the driver knows it.
struct InFlight {
    task: Id,
    check: CheckId,
    run: RunId,
    began: Instant,
    /// None for a run on a thread of its own, which nothing can end.
    abort: Option<AbortHandle>,
}

/// What the background task owns.
struct Floor {
    schedule: Schedule,
    watchdogs: Vec<Watchdog>,
    runs: JoinSet<Outcome>,
    /// At most one entry a check.
    in_flight: Vec<InFlight>,
}

impl Floor {
    async fn run(mut self, dead_man: DeadMan) {
        let shared = Arc::clone(&dead_man.0);
        let mut leaving = shared.leaving.subscribe();
        // A drain may have begun before this task had its first turn.
        leaving.mark_changed();
        loop {
            self.turn(&shared);
            let wake = self.schedule.poll_timeout().unwrap_or_else(now);
            tokio::select! {
                Some(ended) = self.runs.join_next_with_id() => self.ended(ended),
                Ok(()) = leaving.changed() => {
                    if *leaving.borrow_and_update() != Leaving::No {
                        self.schedule.handle_input(now(), Input::Drain);
                    }
                }
                () = sleep_until(wake.into()) => {}
            }
            // Several runs often end together: take them all before the next turn. Bounded by one run a check.
            while let Some(ended) = self.runs.try_join_next_with_id() {
                self.ended(ended);
            }
        }
    }

    fn turn(&mut self, shared: &Shared) {
        let now = now();
        for (watchdog, dog) in self.watchdogs.iter().enumerate() {
            self.schedule.handle_input(now, Input::Bumps { watchdog, bumps: dog.bumps() });
        }
        self.schedule.handle_timeout(now);
        // The snapshot stands before anybody hears of it: whoever gets an event reads what it speaks of.
        let report = self.schedule.report(now, unix_time());
        let bits = report.state().0;
        shared.report.store(Arc::new(report));
        let keep = State::DRAINING | State::DEAD;
        let publish = |old: u64| Some((old & keep) | bits);
        let _ = shared.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, publish);
        let turned = now.saturating_duration_since(shared.base).as_millis();
        shared.turned.store(u64::try_from(turned).unwrap_or(u64::MAX), Ordering::Release);
        while let Some(output) = self.schedule.poll_output() {
            match output {
                Output::Start { check, run } => self.start(check, run, now),
                Output::Cancel { check, run } => self.cancel(check, run),
                Output::Event(event) => tell(shared, event),
            }
        }
    }

    fn start(&mut self, check: CheckId, run: RunId, began: Instant) {
        let Some(work) = self.schedule.work(check) else { return };
        let abort = match work {
            Work::Task(work) => {
                let work = Arc::clone(work);
                // The closure runs inside the task too: a panic while it makes the future is the check's own.
                self.runs.spawn(async move { Outcome::Returned(work().await) })
            }
            Work::Thread(work) => self.runs.spawn(on_thread(Arc::clone(work))),
        };
        let endable = matches!(work, Work::Task(_));
        let task = abort.id();
        self.in_flight.push(InFlight { task, check, run, began, abort: endable.then_some(abort) });
    }

    fn cancel(&self, check: CheckId, run: RunId) {
        let of_run = |in_flight: &&InFlight| in_flight.check == check && in_flight.run == run;
        if let Some(abort) = self.in_flight.iter().find(of_run).and_then(|in_flight| in_flight.abort.as_ref()) {
            abort.abort();
        }
    }

    fn ended(&mut self, ended: Result<(Id, Outcome), JoinError>) {
        let (task, outcome) = match ended {
            Ok((task, outcome)) => (task, outcome),
            Err(error) if error.is_panic() => (error.id(), Outcome::Panicked),
            Err(error) => (error.id(), Outcome::Cancelled),
        };
        let Some(at) = self.in_flight.iter().position(|in_flight| in_flight.task == task) else { return };
        let InFlight { check, run, began, .. } = self.in_flight.swap_remove(at);
        let now = now();
        let took = now.saturating_duration_since(began);
        self.schedule.handle_input(now, Input::Ended { check, run, outcome, took });
    }
}

/// Runs a blocking check on a thread of its own: a hung one costs that thread and nothing else, and does not hold up
/// the end of the process as a thread of the runtime's pool would.
async fn on_thread(work: Arc<dyn Fn() -> Result<(), crate::CheckError> + Send + Sync>) -> Outcome {
    let (done, ended) = oneshot::channel();
    let body = move || {
        let outcome = match catch_unwind(AssertUnwindSafe(|| work())) {
            Ok(result) => Outcome::Returned(result),
            Err(_) => Outcome::Panicked,
        };
        // Nobody waits any more when the registry was dropped.
        let _ = done.send(outcome);
    };
    match std::thread::Builder::new().name("modax-health-check".into()).spawn(body) {
        Ok(_) => ended.await.unwrap_or(Outcome::Panicked),
        Err(_) => Outcome::NotBegun,
    }
}

fn tell(shared: &Shared, event: Event) {
    #[cfg(feature = "tracing")]
    trace(&event);
    // Without a reader there is nobody to tell; the snapshot and its counters say it all the same.
    let _ = shared.events.send(event);
}

#[cfg(feature = "tracing")]
fn trace(event: &Event) {
    match event {
        Event::CheckChanged { check, from, to } if *to == crate::Status::Healthy => {
            tracing::info!(target: "modax::health", %check, ?from, %to, "check changed");
        }
        Event::CheckChanged { check, from, to } => {
            tracing::warn!(target: "modax::health", %check, ?from, %to, "check changed");
        }
        Event::CheckStuck { check, age } => tracing::warn!(target: "modax::health", %check, ?age, "check stuck"),
        Event::WatchdogMissed { watchdog } => tracing::error!(target: "modax::health", %watchdog, "watchdog missed"),
        other => tracing::info!(target: "modax::health", event = ?other, "health"),
    }
}

/// The one clock: tokio's, so that a test with a paused clock moves it.
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

fn unix_time() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Another seed each time, so that instances started together do not ask the dependency in step.
pub(crate) fn seed() -> u64 {
    std::hash::RandomState::new().build_hasher().finish()
}

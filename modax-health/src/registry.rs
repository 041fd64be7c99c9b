//! The handle the application holds.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::broadcast;

use crate::{
    Bounds, CheckConfig, ConfigError, Event, Prober, Report, State, Watchdog,
    driver::{self, Driver},
    schedule::Schedule,
};

/// Collects checks, watchdogs and rules.
#[derive(Debug)]
#[must_use]
pub struct RegistryBuilder {
    checks: Vec<CheckConfig>,
    watchdogs: Vec<Watchdog>,
    prober: Prober,
    scheduler_grace: Duration,
    startup_grace: Duration,
}

impl RegistryBuilder {
    /// Adds a check.
    pub fn check(mut self, check: CheckConfig) -> Self {
        self.checks.push(check);
        self
    }

    /// Adds a watchdog to liveness. The caller keeps its own clone and bumps it.
    pub fn watchdog(mut self, watchdog: &Watchdog) -> Self {
        self.watchdogs.push(watchdog.clone());
        self
    }

    /// How the load balancer probes: decides how long [`Registry::drain`] waits. Default: [`Prober::default`].
    pub fn prober(mut self, prober: Prober) -> Self {
        self.prober = prober;
        self
    }

    /// How long the scheduler may be silent before the process counts as not live. Default 10 s: ten of its beats, and
    /// longer than any pause a loaded machine should make.
    pub fn scheduler_grace(mut self, grace: Duration) -> Self {
        self.scheduler_grace = grace;
        self
    }

    /// What each watchdog gets on top of its limit until it is bumped for the first time. Default 30 s: a loop often
    /// begins only after the start-up work.
    pub fn startup_grace(mut self, grace: Duration) -> Self {
        self.startup_grace = grace;
        self
    }

    /// Starts the background schedule. It ends when the last clone of the registry is dropped.
    ///
    /// # Errors
    /// - [`ConfigError::Invalid`], [`ConfigError::Name`], [`ConfigError::Duplicate`], [`ConfigError::TooMany`]: a rule
    ///   contradicts itself; the error names it.
    /// - [`ConfigError::NoRuntime`]: there is no tokio runtime here.
    pub fn build(self) -> Result<Registry, ConfigError> {
        let Self { checks, watchdogs, prober, scheduler_grace, startup_grace } = self;
        let schedule = Schedule::new(driver::now(), checks, &watchdogs, startup_grace, driver::seed())?;
        let bounds = schedule.bounds(prober);
        let driver = Driver::start(schedule, watchdogs.clone(), scheduler_grace)?;
        Ok(Registry { inner: Arc::new(Inner { driver, watchdogs, bounds }) })
    }
}

struct Inner {
    driver: Driver,
    watchdogs: Vec<Watchdog>,
    bounds: Bounds,
}

/// All checks of this process. Cheap to clone; reading never waits and never runs a check.
#[derive(Clone)]
pub struct Registry {
    inner: Arc<Inner>,
}

impl Registry {
    /// Begins a registry.
    pub fn builder() -> RegistryBuilder {
        RegistryBuilder {
            checks: Vec::new(),
            watchdogs: Vec::new(),
            prober: Prober::default(),
            scheduler_grace: Duration::from_secs(10),
            startup_grace: Duration::from_secs(30),
        }
    }

    /// The few bits a probe needs, as of the scheduler's last turn: one atomic load, no clock, no allocation.
    pub fn state(&self) -> State {
        self.inner.driver.state()
    }

    /// The last snapshot: takes no lock. It is at most a second old, or says that the scheduler is dead.
    pub fn report(&self) -> Arc<Report> {
        self.inner.driver.report()
    }

    /// Whether a restart would not help: no watchdog is overdue and the scheduler is running.
    pub fn is_live(&self) -> bool {
        self.report().live
    }

    /// Whether requests may come.
    pub fn is_ready(&self) -> bool {
        self.report().ready
    }

    /// The watchdog of that name.
    pub fn watchdog(&self, name: &str) -> Option<Watchdog> {
        self.inner.watchdogs.iter().find(|watchdog| watchdog.name() == name).cloned()
    }

    /// Transitions from here on. Each reader has room for 256; one that is slower sees [`Event::Lagged`].
    pub fn events(&self) -> Events {
        Events { receiver: self.inner.driver.events() }
    }

    /// The longest times to detect, to recover and to drain, computed from the configuration.
    pub fn bounds(&self) -> &Bounds {
        &self.inner.bounds
    }

    /// Leaves the rotation: `/ready` answers 503 from this moment for ever; then waits until the load balancer has
    /// surely seen it ([`Bounds::drain`], counted from the first call). After that the caller stops accepting.
    ///
    /// [`hurry`](Self::hurry) ends the wait at once. Several callers wait for the same moment.
    ///
    /// # Cancel safety
    /// Cancel safe: dropping the future ends this wait and nothing else. Draining, once begun, is not taken back.
    pub async fn drain(&self) -> DrainReport {
        self.inner.driver.drain(self.inner.bounds.drain).await
    }

    /// Begins to drain without waiting.
    pub fn start_drain(&self) {
        self.inner.driver.start_drain();
    }

    /// Ends every [`drain`](Self::drain) at once, also one that is yet to begin: for the second signal of an impatient
    /// operator. The instance is unready from here on in any case.
    pub fn hurry(&self) {
        self.inner.driver.hurry();
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("state", &self.state()).finish_non_exhaustive()
    }
}

/// What [`Registry::drain`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DrainReport {
    /// When draining began.
    pub began: Instant,
    /// Time from then until now.
    pub waited: Duration,
    /// Whether [`Registry::hurry`] cut the wait short: requests may still be on their way.
    pub hurried: bool,
}

impl DrainReport {
    pub(crate) fn new(began: Instant, waited: Duration, hurried: bool) -> Self {
        Self { began, waited, hurried }
    }
}

/// Transitions as they happen. Bounded: a slow reader loses the oldest and is told how many.
#[derive(Debug)]
pub struct Events {
    receiver: broadcast::Receiver<Event>,
}

impl Events {
    /// The next event; none after the registry ended.
    ///
    /// # Cancel safety
    /// Cancel safe: an event is taken only when it is returned.
    pub async fn next(&mut self) -> Option<Event> {
        match self.receiver.recv().await {
            Ok(event) => Some(event),
            Err(broadcast::error::RecvError::Lagged(missed)) => Some(Event::Lagged { missed }),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

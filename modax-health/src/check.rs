//! A check: what to run, how often, and what its failure means.

use std::{error::Error, fmt, future::Future, pin::Pin, sync::Arc, time::Duration};

use async_trait::async_trait;

use crate::{Detail, Need, Scope, Status, Watchdog};

/// Any error, boxed.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// Most checks of one registry: check names are metric labels, and labels are a fixed, small set.
const MOST_CHECKS: usize = 256;

type RunFuture = Pin<Box<dyn Future<Output = Result<(), CheckError>> + Send>>;

/// Something that can be asked whether it works. Closures do too: [`CheckConfig::new`].
#[async_trait]
pub trait Check: Send + Sync + 'static {
    /// Looks once. Runs in the background, never for a probe; ended by the check's timeout.
    ///
    /// # Errors
    /// Whatever is wrong. The text is withheld from every public rendering, see [`CheckError::public`].
    ///
    /// # Cancel safety
    /// Must be cancel safe: the future is dropped at any `await` when the check's timeout passes.
    async fn check(&self) -> Result<(), CheckError>;
}

/// Why a check did not pass.
///
/// Made from any error (its text is kept private), or by hand where the reason may be shown to everybody. It does not
/// implement [`std::error::Error`] itself, so that `?` converts any error into it.
pub struct CheckError {
    pub(crate) status: Status,
    pub(crate) public: Option<Arc<str>>,
    pub(crate) detail: Option<Detail>,
}

impl CheckError {
    /// A failure whose reason may stand in answers to anybody: no host names, no credentials, no text of others.
    pub fn public(reason: impl Into<String>) -> Self {
        Self { status: Status::Unhealthy, public: Some(reason.into().into()), detail: None }
    }

    /// A failure whose reason only the process itself may see.
    pub fn private(reason: impl fmt::Display) -> Self {
        Self { status: Status::Unhealthy, public: None, detail: Some(Detail::new(reason.to_string())) }
    }

    /// Works, but with less than it should have. Default: unhealthy, because forgetting to say so must not hide an outage.
    #[must_use]
    pub fn degraded(mut self) -> Self {
        self.status = Status::Degraded;
        self
    }

    /// Adds a reason that only the process itself may see.
    #[must_use]
    pub fn with_detail(mut self, detail: impl fmt::Display) -> Self {
        self.detail = Some(Detail::new(detail.to_string()));
        self
    }
}

impl fmt::Debug for CheckError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CheckError").field("status", &self.status).field("public", &self.public).finish_non_exhaustive()
    }
}

impl<E: Into<BoxError>> From<E> for CheckError {
    fn from(error: E) -> Self {
        let error: BoxError = error.into();
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            source = cause.source();
        }
        Self { status: Status::Unhealthy, public: None, detail: Some(Detail::new(text)) }
    }
}

/// How a check is run.
#[derive(Clone)]
#[cfg_attr(not(feature = "tokio"), expect(dead_code, reason = "only the driver runs checks"))]
pub(crate) enum Work {
    /// In a task of the runtime.
    Task(Arc<dyn Fn() -> RunFuture + Send + Sync>),
    /// On a thread of its own.
    Thread(Arc<dyn Fn() -> Result<(), CheckError> + Send + Sync>),
}

/// One check and its rules. Every rule has a default.
#[derive(Clone)]
pub struct CheckConfig {
    pub(crate) name: Arc<str>,
    #[cfg_attr(not(feature = "tokio"), expect(dead_code, reason = "only the driver runs checks"))]
    pub(crate) work: Work,
    pub(crate) need: Need,
    pub(crate) scope: Scope,
    pub(crate) interval: Duration,
    pub(crate) jitter: f64,
    pub(crate) timeout: Duration,
    pub(crate) rise: u8,
    pub(crate) fall: u8,
    pub(crate) stale_after: Option<Duration>,
    pub(crate) startup_gate: bool,
}

impl CheckConfig {
    /// A check that is a closure returning a future.
    ///
    /// The future runs in a task of its own and is dropped when its timeout passes. It must yield: code that may hold
    /// its thread belongs into [`blocking`](Self::blocking).
    pub fn new<F, Fut, E>(name: impl Into<Arc<str>>, check: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<CheckError>,
    {
        Self::with_work(
            name.into(),
            Work::Task(Arc::new(move || {
                let run = check();
                Box::pin(async move { run.await.map_err(Into::into) })
            })),
        )
    }

    /// A check that is an object.
    pub fn from_check(name: impl Into<Arc<str>>, check: Arc<dyn Check>) -> Self {
        Self::with_work(
            name.into(),
            Work::Task(Arc::new(move || {
                let check = Arc::clone(&check);
                Box::pin(async move { check.check().await })
            })),
        )
    }

    /// A check that blocks its thread: it gets a thread of its own for each run, so that a hung file system or
    /// resolver holds no worker of the runtime. A hung run cannot be ended; it is reported as stuck, and there is at
    /// most one.
    pub fn blocking<F, E>(name: impl Into<Arc<str>>, check: F) -> Self
    where
        F: Fn() -> Result<(), E> + Send + Sync + 'static,
        E: Into<CheckError>,
    {
        Self::with_work(name.into(), Work::Thread(Arc::new(move || check().map_err(Into::into))))
    }

    fn with_work(name: Arc<str>, work: Work) -> Self {
        Self {
            name,
            work,
            need: Need::default(),
            scope: Scope::default(),
            interval: Duration::from_secs(2),
            jitter: 0.1,
            timeout: Duration::from_secs(1),
            rise: 2,
            fall: 3,
            stale_after: None,
            startup_gate: false,
        }
    }

    /// Whether the service can work without it. Default [`Need::Required`].
    #[must_use]
    pub fn need(mut self, need: Need) -> Self {
        self.need = need;
        self
    }

    /// Whether all instances look at the same thing. Default [`Scope::Private`].
    #[must_use]
    pub fn scope(mut self, scope: Scope) -> Self {
        self.scope = scope;
        self
    }

    /// Time between the starts of two runs. Default 2 s: three failures are seen within the 10 s of the strategy.
    #[must_use]
    pub fn interval(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    /// Largest random extra on the interval, as a share of it, 0 to 1. Default 0.1: instances that started together
    /// drift apart, and the dependency does not see all of them at once.
    #[must_use]
    pub fn jitter(mut self, jitter: f64) -> Self {
        self.jitter = jitter;
        self
    }

    /// Longest time of a run. Default 1 s: a dependency slower than that is of no use to a request either.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Successes in a row until it is healthy again. Default 2, as in HAProxy. The very first result counts at once.
    #[must_use]
    pub fn rise(mut self, rise: u8) -> Self {
        self.rise = rise;
        self
    }

    /// Failures in a row until it is unhealthy. Default 3, as in HAProxy. The very first result counts at once.
    #[must_use]
    pub fn fall(mut self, fall: u8) -> Self {
        self.fall = fall;
        self
    }

    /// Age at which the last result stops counting. Default: the time `fall` runs may take at most, so that a check
    /// is never called stale before it could have been called unhealthy.
    #[must_use]
    pub fn stale_after(mut self, age: Duration) -> Self {
        self.stale_after = Some(age);
        self
    }

    /// Holds the instance in its startup phase until this check passed once. Default off: an instance that starts
    /// during an outage of a shared dependency still serves what does not need it.
    #[must_use]
    pub fn startup_gate(mut self, gate: bool) -> Self {
        self.startup_gate = gate;
        self
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The longest time between the starts of two runs that end: the interval with its jitter, or the timeout.
    pub(crate) fn longest_period(&self) -> Duration {
        self.interval.saturating_add(self.jittered(1.0)).max(self.timeout)
    }

    /// The extra on the interval for `share` (0 to 1) of the jitter; zero where the rules make no sense.
    pub(crate) fn jittered(&self, share: f64) -> Duration {
        Duration::try_from_secs_f64(self.interval.as_secs_f64() * self.jitter * share).unwrap_or_default()
    }

    pub(crate) fn stale_age(&self) -> Duration {
        self.stale_after
            .unwrap_or_else(|| self.longest_period().saturating_mul(u32::from(self.fall)).saturating_add(self.timeout))
    }

    fn validate(&self) -> Result<(), ConfigError> {
        let invalid = |field, problem| ConfigError::Invalid { name: self.name.to_string(), field, problem };
        validate_name(&self.name)?;
        if self.interval < Duration::from_millis(10) {
            return Err(invalid("interval", "must be at least 10 ms"));
        }
        if self.interval > Duration::from_secs(86_400) {
            return Err(invalid("interval", "must be at most one day"));
        }
        if self.timeout.is_zero() || self.timeout > Duration::from_secs(86_400) {
            return Err(invalid("timeout", "must be above zero and at most one day"));
        }
        if !(0.0..=1.0).contains(&self.jitter) {
            return Err(invalid("jitter", "must be between 0 and 1"));
        }
        if self.rise == 0 {
            return Err(invalid("rise", "must be at least 1"));
        }
        if self.fall == 0 {
            return Err(invalid("fall", "must be at least 1"));
        }
        if self.stale_after.is_some_and(|age| age < self.longest_period().saturating_add(self.timeout)) {
            return Err(invalid("stale_after", "must be longer than a period and a timeout, or every result is stale"));
        }
        Ok(())
    }
}

impl fmt::Debug for CheckConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CheckConfig")
            .field("name", &self.name)
            .field("need", &self.need)
            .field("scope", &self.scope)
            .field("interval", &self.interval)
            .field("jitter", &self.jitter)
            .field("timeout", &self.timeout)
            .field("rise", &self.rise)
            .field("fall", &self.fall)
            .field("stale_after", &self.stale_age())
            .field("startup_gate", &self.startup_gate)
            .finish_non_exhaustive()
    }
}

/// Why a registry could not be built. None of these goes away by itself.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A rule of a check or watchdog contradicts itself.
    #[error("{name}: {field} {problem}")]
    Invalid {
        /// Name of the check or watchdog.
        name: String,
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Names become metric labels and paths.
    #[error("name {name:?} is not 1 to 64 of a-z A-Z 0-9 _ - .")]
    Name {
        /// The name, as given.
        name: String,
    },
    /// Two of the same name.
    #[error("name {name:?} is used twice")]
    Duplicate {
        /// The name.
        name: String,
    },
    /// More checks than a set of metric labels should have.
    #[error("more than {limit} checks")]
    TooMany {
        /// The limit.
        limit: usize,
    },
    /// `build` was called outside a tokio runtime.
    #[error("no tokio runtime here: build the registry inside one")]
    NoRuntime,
}

impl ConfigError {
    /// Whether the same call may succeed later without any change by the caller: never.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        false
    }
}

/// Whether all rules make sense, together too.
pub(crate) fn validate(checks: &[CheckConfig], watchdogs: &[Watchdog]) -> Result<(), ConfigError> {
    if checks.len() > MOST_CHECKS {
        return Err(ConfigError::TooMany { limit: MOST_CHECKS });
    }
    for check in checks {
        check.validate()?;
    }
    for watchdog in watchdogs {
        validate_name(watchdog.name())?;
        if watchdog.limit() < Duration::from_millis(10) {
            let (name, field) = (watchdog.name().to_owned(), "limit");
            return Err(ConfigError::Invalid { name, field, problem: "must be at least 10 ms" });
        }
    }
    let mut names: Vec<&str> = checks.iter().map(CheckConfig::name).collect();
    names.extend(watchdogs.iter().map(Watchdog::name));
    names.sort_unstable();
    match names.windows(2).find_map(|pair| pair.first().filter(|name| pair.last() == Some(name))) {
        Some(name) => Err(ConfigError::Duplicate { name: (*name).to_owned() }),
        None => Ok(()),
    }
}

fn validate_name(name: &str) -> Result<(), ConfigError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if name.is_empty() || name.len() > 64 || !name.chars().all(allowed) {
        return Err(ConfigError::Name { name: name.chars().take(64).collect() });
    }
    Ok(())
}

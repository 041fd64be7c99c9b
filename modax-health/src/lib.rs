//! Health checks a load balancer can trust.
//!
//! | promise | how it is kept |
//! |---|---|
//! | A probe never runs a check | checks run in the background; [`Registry::state`] is one atomic load, [`Registry::report`] one snapshot |
//! | No dependency makes an orchestrator restart a healthy process | liveness takes only a [`Watchdog`] that a loop must bump: no future, no I/O, by type |
//! | A shared dependency takes no fleet down | [`Scope::Shared`] failures degrade; only private ones can unready an instance |
//! | A check that hangs, panics or blocks harms only its own line | a deadline each run, a task (or a thread) each run, at most one stuck run a check, reported with its age, never started again before it ended |
//! | Flapping is damped | `rise` and `fall`, as in HAProxy |
//! | An old result says so | `stale_after`; a dead scheduler is itself a failure |
//! | Time to detect and to recover is known | [`Registry::bounds`] |
//! | A rendering never leaks an error text | reasons are withheld unless their author marked them public with [`CheckError::public`] |
//!
//! ```no_run
//! # #[cfg(feature = "tokio")]
//! # async fn example() -> Result<(), modax_health::ConfigError> {
//! use modax_health::{CheckConfig, Need, Registry, Scope, Watchdog};
//! use std::time::Duration;
//!
//! let ingest = Watchdog::new("ingest", Duration::from_secs(10));
//! let registry = Registry::builder()
//!     .check(CheckConfig::new("database", || async { Ok::<(), std::io::Error>(()) }).scope(Scope::Shared))
//!     .check(CheckConfig::new("ai_layer", || async { Err("not there") }).need(Need::Optional))
//!     .watchdog(&ingest)
//!     .build()?;
//!
//! ingest.bump(); // in the loop whose death a restart would cure
//! assert!(registry.state().is_live());
//! println!("{}", modax_health::render::modax_json(&registry.report()));
//! # Ok(()) }
//! ```
//!
//! # What decides what
//! - **live**: the scheduler runs and no [`Watchdog`] is overdue. Nothing else.
//! - **started**: every check has ended one run, and those with [`startup_gate`](CheckConfig::startup_gate) have passed once.
//! - **ready**: live, started, not draining, and no check that is both [`Need::Required`] and [`Scope::Private`] is unhealthy.
//! - **status**: the worst of all checks, where an optional one counts as degraded at most.
//!
//! # Floors
//! [`schedule`] is the state machine: pure, without clock, socket or task. The `driver` (feature `tokio`) runs what the
//! machine says is due. Everything here is panic free on any input; a panic inside a check is that check's failure.

#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::disallowed_methods,
        clippy::disallowed_types
    )
)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod bounds;
mod check;
mod event;
mod report;
mod status;
mod watchdog;
mod word;

pub mod render;
pub mod schedule;

#[cfg(feature = "tokio")]
mod driver;
#[cfg(feature = "tokio")]
mod registry;

#[cfg(feature = "axum")]
pub mod axum;
#[cfg(feature = "tower")]
mod service;

pub use bounds::{Bounds, CheckBounds, Prober};
pub use check::{BoxError, Check, CheckConfig, CheckError, ConfigError};
pub use event::Event;
pub use report::{CheckReport, Condition, Counts, Detail, Report, State, WatchdogReport};
pub use status::{Need, Scope, Status};
pub use watchdog::Watchdog;

#[cfg(feature = "tokio")]
pub use registry::{DrainReport, Events, Registry, RegistryBuilder};
#[cfg(feature = "tower")]
pub use service::{HealthBody, HealthService};

/// The example of the README, compiled.
#[cfg(all(doctest, feature = "tokio"))]
#[doc = include_str!("../README.md")]
struct Readme;

//! Hears what happens, as it happens: for counting and metrics.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::{event::Event, message::Outcome};

/// Hears every event and every outcome of a client, on the task or thread where it happens.
///
/// Both methods do nothing by default. They are called between two steps of the client, so they have to be quick: count,
/// or send to a channel that does not wait. No lock is held meanwhile, so [`Client::stats`](crate::Client::stats) may be
/// asked. A panic in one is reported by the process's panic hook and goes no further: the client goes on, and so do the
/// calls that follow. What the observer keeps is its own to keep sound.
///
/// ```
/// use std::sync::{Arc, atomic::{AtomicU64, Ordering}};
/// use modax_mqtt_failover::{Client, Event, Observer, Outcome};
///
/// #[derive(Default)]
/// struct Counts { failovers: AtomicU64, acked: AtomicU64 }
///
/// impl Observer for Counts {
///     fn on_event(&self, event: &Event) {
///         if let Event::FailedOver { .. } = event {
///             self.failovers.fetch_add(1, Ordering::Relaxed);
///         }
///     }
///
///     fn on_outcome(&self, outcome: &Outcome) {
///         self.acked.fetch_add(u64::from(outcome.is_acked()), Ordering::Relaxed);
///     }
/// }
///
/// # fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let counts = Arc::new(Counts::default());
/// let client = Client::builder("press-7").brokers(["mqtt://10.0.0.1"])?.observer(counts.clone()).build()?;
/// # drop(client); Ok(()) }
/// ```
pub trait Observer: Send + Sync + 'static {
    /// Something happened.
    fn on_event(&self, event: &Event) {
        let _ = event;
    }

    /// A message that was admitted has its outcome; also one that an earlier process left on disk. What the client learns
    /// together is said in the order in which it was learnt, before any receipt of it is told.
    fn on_outcome(&self, outcome: &Outcome) {
        let _ = outcome;
    }
}

/// Code of others on our task or thread: a panic in it must not take the queue or its client along.
pub(crate) fn contained(call: impl FnOnce()) {
    // The panic hook has said all there is to say.
    let _ = catch_unwind(AssertUnwindSafe(call));
}

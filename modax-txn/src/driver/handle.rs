//! What users hold: the builder, the handle of a running relay, its events.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{broadcast, watch},
    task::JoinHandle,
};

use super::connections::Connections;
use crate::{
    event::{Event, Stats},
    relay::RelayConfig,
    retry::RetryPolicy,
    schema::{ConfigError, Schema},
    sink::Sink,
};

/// Events kept for a receiver that is slow; older ones are counted by [`Event::Lagged`].
const EVENTS: usize = 1024;

/// Settings of a relay, before it is spawned.
#[must_use = "a builder does nothing until it is spawned"]
pub struct RelayBuilder {
    pub(super) schema: Schema,
    pub(super) connections: Arc<dyn Connections>,
    pub(super) sink: Arc<dyn Sink>,
    pub(super) owner: String,
    pub(super) publish_timeout: Duration,
    pub(super) database_timeout: Duration,
    pub(super) retention: Duration,
    pub(super) parked_retention: Duration,
    pub(super) inbox_retention: Duration,
    pub(super) config: RelayConfig,
}

impl std::fmt::Debug for RelayBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RelayBuilder")
            .field("schema", &self.schema.name())
            .field("owner", &self.owner)
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl RelayBuilder {
    /// A name for this relay in the lease row, for people. Default: `relay`.
    pub fn owner(mut self, owner: impl Into<String>) -> Self {
        self.owner = owner.into();
        self
    }

    /// How long a relay owns the outbox without renewing; it renews at a third of it. Default 3 s: another relay takes over that
    /// long after a kill -9, and a busy machine does not lose its lease by a pause of a second. At least 300 ms.
    pub const fn lease(mut self, lease: Duration) -> Self {
        self.config.lease = lease;
        self
    }

    /// Shortest wait between reads while there is work. Default 25 ms. Messages of this process do not wait for it
    /// ([`Outbox::committed`](crate::Outbox::committed)); those of other processes do. At least 1 ms.
    pub const fn poll_interval(mut self, poll_interval: Duration) -> Self {
        self.config.poll_interval = poll_interval;
        self
    }

    /// Longest wait between reads, approached by doubling while nothing is found. Default 250 ms: four index probes a second when idle.
    pub const fn idle_poll_interval(mut self, idle_poll_interval: Duration) -> Self {
        self.config.idle_poll_interval = idle_poll_interval;
        self
    }

    /// Most messages in the sink's hands at once. Default 128. Three times as many are held in memory at most, those in hand included:
    /// with payloads of [`MAX_PAYLOAD_BYTES`](crate::MAX_PAYLOAD_BYTES) choose less.
    pub const fn inflight(mut self, inflight: usize) -> Self {
        self.config.inflight = inflight;
        self
    }

    /// How a message that the sink could not take is tried again, and when it is parked. Default: see [`RetryPolicy`].
    pub const fn retry(mut self, retry: RetryPolicy) -> Self {
        self.config.retry = retry;
        self
    }

    /// How long the sink may take for one message. Default 30 s: longer than a broker's failover. Then it counts as failed.
    pub const fn publish_timeout(mut self, publish_timeout: Duration) -> Self {
        self.publish_timeout = publish_timeout;
        self
    }

    /// How long a statement, or getting a connection, may take. Default 5 s. Then the connection is given up.
    pub const fn database_timeout(mut self, database_timeout: Duration) -> Self {
        self.database_timeout = database_timeout;
        self
    }

    /// How long settled messages stay readable. Default 1 day.
    pub const fn retention(mut self, retention: Duration) -> Self {
        self.retention = retention;
        self
    }

    /// How long parked messages are kept for a person. Default 30 days; then they are deleted, with an event.
    pub const fn parked_retention(mut self, parked_retention: Duration) -> Self {
        self.parked_retention = parked_retention;
        self
    }

    /// How long the inbox of this schema remembers; see [`Inbox::retention`](crate::Inbox::retention). Default a week.
    pub const fn inbox_retention(mut self, inbox_retention: Duration) -> Self {
        self.inbox_retention = inbox_retention;
        self
    }

    /// Starts the relay on the current tokio runtime. The database need not be up.
    ///
    /// # Errors
    /// [`ConfigError`] naming the field that cannot work, or that there is no runtime.
    pub fn spawn(self) -> Result<Relay, ConfigError> {
        self.config.check()?;
        for (field, timeout) in [("publish_timeout", self.publish_timeout), ("database_timeout", self.database_timeout)]
        {
            if timeout.is_zero() {
                return Err(ConfigError::Field { field, reason: "above zero" });
            }
        }
        let runtime = tokio::runtime::Handle::try_current().map_err(|_| ConfigError::NoRuntime)?;
        let (events, _) = broadcast::channel(EVENTS);
        let (stats_in, stats) = watch::channel(Stats::default());
        let (stop, stop_in) = watch::channel(None);
        let schema = self.schema.clone();
        let task = runtime.spawn(super::run::run(self, events.clone(), stats_in, stop_in));
        Ok(Relay { schema, events, stats, stop, task: Some(task) })
    }
}

/// A running relay. Dropping it ends it at once without giving the lease back: another relay takes over when the lease runs out.
#[derive(Debug)]
pub struct Relay {
    schema: Schema,
    events: broadcast::Sender<Event>,
    stats: watch::Receiver<Stats>,
    stop: watch::Sender<Option<tokio::time::Instant>>,
    task: Option<JoinHandle<bool>>,
}

/// How a relay ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stopped {
    /// Whether everything in flight was settled and the lease given back within the deadline. Nothing is lost if not: another relay
    /// publishes it, some of it a second time.
    pub clean: bool,
    /// The last counters.
    pub stats: Stats,
}

impl Relay {
    /// Settings for a relay that moves the messages of `schema` to `sink`, over connections from `connections`.
    ///
    /// Spawn as many as there are instances: the lease lets one work at a time. Give it a clone of the outbox's [`Schema`].
    pub fn builder(schema: Schema, connections: impl Connections, sink: impl Sink + 'static) -> RelayBuilder {
        RelayBuilder {
            schema,
            connections: Arc::new(connections),
            sink: Arc::new(sink),
            owner: "relay".to_owned(),
            publish_timeout: Duration::from_secs(30),
            database_timeout: Duration::from_secs(5),
            retention: Duration::from_secs(24 * 3600),
            parked_retention: Duration::from_secs(30 * 24 * 3600),
            inbox_retention: crate::inbox::DEFAULT_INBOX_RETENTION,
            config: RelayConfig::default(),
        }
    }

    /// Stops in order: takes nothing new, waits for what the sink has in hand, records the outcomes, gives the lease back.
    ///
    /// # Cancel safety
    /// Dropping the future ends the relay at once, as dropping the relay does.
    pub async fn stop(mut self, deadline: Duration) -> Stopped {
        // Longer than a year nobody means, and a clock could overflow.
        let until = tokio::time::Instant::now() + deadline.min(Duration::from_secs(366 * 24 * 60 * 60));
        self.stop.send_replace(Some(until));
        let clean = match self.task.as_mut() {
            // The task watches the deadline itself; the second is for a runtime that is busy.
            Some(task) => {
                matches!(tokio::time::timeout_at(until + Duration::from_secs(1), task).await, Ok(Ok(true)))
            }
            None => false,
        };
        Stopped { clean, stats: *self.stats.borrow() }
    }

    /// Counters and gauges of this moment.
    #[must_use]
    pub fn stats(&self) -> Stats {
        *self.stats.borrow()
    }

    /// What happens from now on. A receiver that is more than 1024 events behind gets [`Event::Lagged`].
    #[must_use]
    pub fn events(&self) -> Events {
        Events { receiver: self.events.subscribe() }
    }

    /// Makes it read now, as [`Outbox::committed`](crate::Outbox::committed) does.
    pub fn wake(&self) {
        self.schema.wake();
    }

    /// Whether its task still runs. It ends by `stop` or drop only.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.task.as_ref().is_some_and(|task| !task.is_finished())
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// Events of one relay, from the call of [`Relay::events`] on.
#[derive(Debug)]
pub struct Events {
    receiver: broadcast::Receiver<Event>,
}

impl Events {
    /// The next event; `None` when the relay has ended.
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

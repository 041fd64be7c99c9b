//! The handle users hold.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_core::Stream;
use tokio::sync::{broadcast, mpsc, oneshot};

use crate::{
    config::{Config, ConfigError, TopicError, Topology, check_filter, check_topic},
    delivery::Subscription,
    driver,
    event::{Event, Stats, Status},
    handover::{Command, Handle, Shared, lagged, patience},
    liveness::LivenessConfig,
    message::{Closed, Message, MessageId, Outcome},
    packet::{Credentials, Qos},
    policy::{backoff::Backoff, selection::Selection},
    queue::{Admission, Backlog, Queue, WhenFull},
    receipt::Receipt,
};

/// Items a subscription buffers before the client stops reading from the broker.
const SUBSCRIPTION_BUFFER: usize = 256;

/// Largest payload a PUBLISH can carry with its topic: the remaining length has four bytes (MQTT 3.1.1, 2.2.3).
const MAX_PACKET_BYTES: usize = 268_435_455;

/// An MQTT client with several brokers behind it. Cheap to clone; all clones are one client with one session.
///
/// When the last clone and the last [`Subscription`] are dropped, the client still sends what it has for at most 5 s
/// and then ends; [`close`](Self::close) does the same on a deadline of the caller's, and returns what is left.
#[derive(Clone)]
pub struct Client {
    handle: Arc<Handle>,
}

impl Client {
    /// Starts the description of a client with this identity. The identity is the session's name on the brokers: keep
    /// it over restarts, and never give it to two programs at once.
    pub fn builder(client_id: impl Into<String>) -> ClientBuilder {
        ClientBuilder { config: Config::new(client_id.into(), Vec::new()) }
    }

    /// Admits `message` to the queue and returns its receipt; does not wait for a broker.
    ///
    /// With [`WhenFull::Wait`] and a full queue it waits for room, at most the message's own time to live where it has
    /// one; bound it with a timeout where it has none.
    ///
    /// # Errors
    /// [`PublishError`]; nothing was admitted.
    ///
    /// # Cancel safety
    /// Cancel safe: a future that is dropped before it returns has admitted nothing.
    pub async fn publish(&self, message: Message) -> Result<Receipt, PublishError> {
        let deadline = patience(driver::now(), message.expires_in);
        loop {
            let mut room = std::pin::pin!(self.handle.shared.room.notified());
            room.as_mut().enable();
            match self.admit(&message) {
                Err(PublishError::Full) if self.waits() => {}
                decided => return decided,
            }
            if !driver::before(deadline, room).await {
                return Err(PublishError::Full);
            }
        }
    }

    /// Admits `message` to the queue if there is room now.
    ///
    /// # Errors
    /// [`PublishError`]; nothing was admitted.
    pub fn try_publish(&self, message: Message) -> Result<Receipt, PublishError> {
        self.admit(&message)
    }

    /// Records that messages matching `filter` are wanted, and returns their stream. The wish holds over every change
    /// of broker until the stream is dropped or [`unsubscribe`](Self::unsubscribe) is called; whether a broker is
    /// there now does not matter. A broker's refusal comes as [`Event::SubscriptionRefused`] and ends the stream.
    ///
    /// # Errors
    /// [`SubscribeError`]; nothing was recorded.
    ///
    /// # Cancel safety
    /// Cancel safe: it does not wait.
    #[expect(clippy::unused_async, reason = "room for a queue of wishes on disk, which will have to wait")]
    pub async fn subscribe(&self, filter: &str, qos: Qos) -> Result<Subscription, SubscribeError> {
        check_filter(filter).map_err(|reason| SubscribeError::Filter { reason })?;
        if qos == Qos::ExactlyOnce {
            return Err(SubscribeError::QosNotSupported);
        }
        let filter: Arc<str> = Arc::from(filter);
        let (reader, items) = mpsc::channel(SUBSCRIPTION_BUFFER);
        let command = Command::Subscribe { filter: Arc::clone(&filter), qos, reader };
        if !self.handle.shared.command(command) {
            return Err(SubscribeError::Closed);
        }
        *self.handle.shared.lock().filters.entry(Arc::clone(&filter)).or_default() += 1;
        Ok(Subscription::new(filter, items, Arc::clone(&self.handle)))
    }

    /// Withdraws the wish for `filter`; all its streams end after what they have buffered.
    ///
    /// # Errors
    /// [`SubscribeError::NotSubscribed`] when there is no such wish; [`SubscribeError::Closed`].
    ///
    /// # Cancel safety
    /// Cancel safe: it does not wait.
    #[expect(clippy::unused_async, reason = "as `subscribe`")]
    pub async fn unsubscribe(&self, filter: &str) -> Result<(), SubscribeError> {
        let filter: Arc<str> = Arc::from(filter);
        if self.handle.shared.lock().filters.remove(&filter).is_none() {
            return Err(SubscribeError::NotSubscribed);
        }
        match self.handle.shared.command(Command::Unsubscribe { filter }) {
            true => Ok(()),
            false => Err(SubscribeError::Closed),
        }
    }

    /// What happens from here on, as a stream; the first call also gets what happened since `build`. A reader more
    /// than 1024 events behind gets [`Event::Lagged`] with the number it missed.
    #[must_use]
    pub fn events(&self) -> Events {
        Events::new(self.handle.shared.events())
    }

    /// The state now.
    #[must_use]
    pub fn status(&self) -> Status {
        self.handle.shared.lock().status.clone()
    }

    /// Counters since the start.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let state = self.handle.shared.lock();
        Stats { queue_messages: state.backlog.messages(), queue_bytes: state.backlog.bytes(), ..state.stats }
    }

    /// Admits nothing more, sends what it has for at most `deadline`, says goodbye to the broker and returns what was
    /// not delivered. Calling it again, from any clone, returns an empty list.
    ///
    /// # Cancel safety
    /// Dropping the future does not stop the closing; what is left over is then only in the receipts.
    pub async fn close(&self, deadline: Duration) -> Closed {
        let (left, closed) = oneshot::channel();
        if !self.handle.shared.command(Command::Close { deadline, left }) {
            return Closed::default();
        }
        closed.await.unwrap_or_default()
    }

    fn waits(&self) -> bool {
        self.handle.shared.lock().backlog.policy() == WhenFull::Wait
    }

    fn admit(&self, message: &Message) -> Result<Receipt, PublishError> {
        check_topic(&message.topic).map_err(|reason| PublishError::Topic { reason })?;
        if message.qos == Qos::ExactlyOnce {
            return Err(PublishError::QosNotSupported);
        }
        if message.topic.len().saturating_add(message.payload.len()).saturating_add(4) > MAX_PACKET_BYTES {
            return Err(PublishError::TooLarge);
        }
        let shared = &self.handle.shared;
        let mut state = shared.lock();
        if state.closed {
            return Err(PublishError::Closed);
        }
        match state.backlog.admit(driver::now(), message) {
            Admission::Admitted { id, shed } => {
                state.stats.admitted = state.stats.admitted.saturating_add(1);
                let (outcome, receipt) = Receipt::new(id);
                state.receipts.insert(id, outcome);
                for (victim, topic) in shed {
                    state.stats.shed = state.stats.shed.saturating_add(1);
                    if let Some(receipt) = state.receipts.remove(&victim) {
                        let _ = receipt.send(Outcome::Shed);
                    }
                    shared.emit(Event::Shed { topic: topic.to_string() });
                }
                drop(state);
                shared.wake.notify_one();
                Ok(receipt)
            }
            Admission::Shed => {
                state.stats.shed = state.stats.shed.saturating_add(1);
                shared.emit(Event::Shed { topic: message.topic.to_string() });
                Ok(Receipt::resolved(MessageId::new(u64::MAX), Outcome::Shed))
            }
            Admission::Full => Err(PublishError::Full),
            Admission::NeverFits => Err(PublishError::TooLarge),
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("status", &self.status()).finish()
    }
}

/// Why a publish was not admitted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// The queue is full, and its policy (or what is already on the wire) leaves no room.
    #[error("the queue is full")]
    Full,
    /// The message exceeds the queue's byte limit, or what MQTT can carry, by itself.
    #[error("the message is larger than the queue or MQTT allows")]
    TooLarge,
    /// The topic is not one that can be published to.
    #[error("the topic {reason}")]
    Topic {
        /// What is wrong with it.
        reason: TopicError,
    },
    /// QoS 2 is not in this version.
    #[error("QoS 2 is not supported by this version")]
    QosNotSupported,
    /// The client was closed; it will never admit again.
    #[error("the client is closed")]
    Closed,
}

impl PublishError {
    /// Whether the same call may succeed later without any change by the caller.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::Full)
    }

    /// Whether the message may have been sent all the same: never, an error means that nothing was admitted.
    #[must_use]
    pub const fn outcome_unknown(&self) -> bool {
        false
    }
}

/// Why a subscription was not recorded or withdrawn.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubscribeError {
    /// The filter is malformed.
    #[error("the filter {reason}")]
    Filter {
        /// What is wrong with it.
        reason: TopicError,
    },
    /// QoS 2 is not in this version.
    #[error("QoS 2 is not supported by this version")]
    QosNotSupported,
    /// There is no such subscription to withdraw.
    #[error("not subscribed to this filter")]
    NotSubscribed,
    /// The client was closed.
    #[error("the client is closed")]
    Closed,
}

impl SubscribeError {
    /// Whether the same call may succeed later without any change by the caller: never.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        false
    }
}

/// The events of a client, as a stream that ends after [`Event::Closed`].
pub struct Events {
    inner: Pin<Box<dyn Stream<Item = Event> + Send + Sync>>,
}

impl Events {
    fn new(receiver: broadcast::Receiver<Event>) -> Self {
        let inner = futures_util::stream::unfold(receiver, |mut receiver| async move {
            match receiver.recv().await {
                Ok(event) => Some((event, receiver)),
                Err(broadcast::error::RecvError::Lagged(missed)) => Some((lagged(missed), receiver)),
                Err(broadcast::error::RecvError::Closed) => None,
            }
        });
        Self { inner: Box::pin(inner) }
    }

    /// The next event; `None` when the client has ended.
    ///
    /// # Cancel safety
    /// Cancel safe: an event is taken only by a call that returns it.
    pub async fn next(&mut self) -> Option<Event> {
        std::future::poll_fn(|context| self.inner.as_mut().poll_next(context)).await
    }
}

impl Stream for Events {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Event>> {
        self.inner.as_mut().poll_next(context)
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Events")
    }
}

/// Describes a client. Each step returns the builder; [`build`](Self::build) checks it all at once.
#[derive(Clone, Debug)]
#[must_use]
pub struct ClientBuilder {
    config: Config,
}

impl ClientBuilder {
    /// Adds brokers in order of preference: `mqtt://[user:password@]host[:1883]`.
    ///
    /// # Errors
    /// [`ConfigError::Broker`] with the position of the first URL that was not understood.
    pub fn brokers<I, S>(mut self, urls: I) -> Result<Self, ConfigError>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<str>,
    {
        self.config.add_brokers(urls)?;
        Ok(self)
    }

    /// User name and password for brokers whose URL has none.
    pub fn credentials(mut self, user: impl Into<String>, password: impl Into<String>) -> Self {
        self.config.credentials = Some(Credentials::new(user.into(), password.into()));
        self
    }

    /// How the brokers belong together; default [`Topology::Independent`].
    pub fn topology(mut self, topology: Topology) -> Self {
        self.config.topology = topology;
        self
    }

    /// Which broker next; default [`Selection::priority`].
    pub fn selection(mut self, selection: Selection) -> Self {
        self.config.selection = selection;
        self
    }

    /// Whether each connection starts from nothing; default `false`: a broker keeps our session while we are away.
    pub fn clean_session(mut self, clean: bool) -> Self {
        self.config.clean_session = clean;
        self
    }

    /// What the broker is told; default 60 s. Whole seconds, 0 switches it off. How fast this client notices a dead
    /// broker does not depend on it: see [`liveness`](Self::liveness).
    pub fn keep_alive(mut self, keep_alive: Duration) -> Self {
        self.config.keep_alive = keep_alive;
        self
    }

    /// Unacknowledged publishes on the wire; default 100, which fills a link of 20 ms round trip at 5000 messages a
    /// second and is below the limits brokers set by default.
    pub fn max_inflight(mut self, messages: u16) -> Self {
        self.config.max_inflight = messages;
        self
    }

    /// How much may wait; default [`Queue::memory`].
    pub fn queue(mut self, queue: Queue) -> Self {
        self.config.queue = queue;
        self
    }

    /// How a silent broker is found out; the defaults find one within 500 ms under traffic, 1.5 s when idle.
    pub fn liveness(mut self, liveness: LivenessConfig) -> Self {
        self.config.liveness = liveness;
        self
    }

    /// Waits between tries; default 100 ms doubling to 2 s, with full jitter.
    pub fn retry(mut self, backoff: impl Into<Backoff>) -> Self {
        self.config.retry = backoff.into();
        self
    }

    /// Published by the broker when we vanish without goodbye. A broker that is left in a failover publishes it too,
    /// although we live on elsewhere.
    pub fn will(mut self, will: Message) -> Self {
        self.config.will = Some(will);
        self
    }

    /// Starts the client. Returns at once, whether a broker is there or not.
    ///
    /// # Errors
    /// [`ConfigError`] names the first field that is contradictory, or [`ConfigError::NoRuntime`].
    pub fn build(self) -> Result<Client, ConfigError> {
        self.config.check()?;
        let shared = Shared::new(Backlog::new(self.config.queue.clone()));
        driver::spawn(self.config, Arc::clone(&shared))?;
        Ok(Client { handle: Arc::new(Handle { shared }) })
    }
}

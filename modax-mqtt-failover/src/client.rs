//! The handle users hold.

mod error;

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures_core::Stream;
use futures_util::StreamExt;
use tokio::sync::{broadcast, oneshot, watch};

use crate::{
    builder::ClientBuilder,
    config::{TopicError, check_filter, check_topic},
    delivery::{Subscription, buffer},
    driver::{self, Refused},
    event::{Event, Stats, Status},
    handover::{Command, Handle, lagged},
    message::{Closed, Message, MessageId, Outcome},
    packet::{Qos, Version},
    properties::UserProperties,
    queue::{Admission, WhenFull},
    receipt::{Receipt, Recovered},
};

pub use error::{PublishError, SubscribeError};

/// The disk's answer to one admission.
type Written = oneshot::Receiver<Result<(), Refused>>;

async fn on_disk(receipt: Receipt, written: Written) -> Result<Receipt, PublishError> {
    match written.await {
        Ok(Ok(())) => Ok(receipt),
        Ok(Err(Refused { reason, maybe_kept })) => Err(PublishError::Disk { reason, maybe_kept }),
        Err(_) => Err(PublishError::Closed),
    }
}

/// Largest payload a PUBLISH can carry with its topic: the remaining length has four bytes (MQTT 3.1.1, 2.2.3).
const MAX_PACKET_BYTES: usize = 268_435_455;
/// Beside topic, payload and user properties: two lengths, the packet identifier, the expiry interval.
const HEADER_BYTES: usize = 2 + 4 + 2 + 5;

/// An MQTT client with several brokers behind it. Cheap to clone; all clones are one client with one session.
///
/// When the last clone and the last [`Subscription`] are dropped, the client still sends what it has for at most 5 s
/// and then ends; [`close`](Self::close) does the same on a deadline of the caller's, and returns what is left.
///
/// ```
/// use std::time::Duration;
/// use modax_mqtt_failover::{Client, Message};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// // Nobody is there: the message is admitted and waits.
/// let client = Client::builder("press-7").brokers(["mqtt://127.0.0.1:1"])?.build()?;
/// let receipt = client.publish(Message::new("plant/press-7/temperature", "21.5")).await?;
/// assert_eq!((client.status().is_connected(), client.stats().queue_messages), (false, 1));
///
/// let left = client.close(Duration::ZERO).await;
/// assert!(!left.undelivered[0].maybe_delivered, "it was never sent");
/// assert!(!receipt.acked().await.is_acked());
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Client {
    handle: Arc<Handle>,
}

impl Client {
    pub(crate) fn new(handle: Arc<Handle>) -> Self {
        Self { handle }
    }

    /// Starts the description of a client with this identity. The identity is the session's name on the brokers: keep
    /// it over restarts, and never give it to two programs at once.
    pub fn builder(client_id: impl Into<String>) -> ClientBuilder {
        ClientBuilder::new(client_id.into())
    }

    /// Admits `message` to the queue and returns its receipt; does not wait for a broker. With [`Queue::disk`](crate::Queue::disk) it is on
    /// disk when this returns.
    ///
    /// With [`WhenFull::Wait`] and a full queue it waits for room, at most the message's own time to live where it has
    /// one; bound it with a timeout where it has none. For a disk that hangs it waits as long as the disk does, whatever the
    /// time to live: bound that with a timeout too.
    ///
    /// # Errors
    /// [`PublishError`]; nothing was admitted.
    ///
    /// # Cancel safety
    /// Cancel safe with a queue in memory: a future that is dropped before it returns has admitted nothing. With a queue
    /// on disk the message may have been admitted all the same.
    pub async fn publish(&self, message: Message) -> Result<Receipt, PublishError> {
        let mut admitted = self.admit(&message);
        if let Err(PublishError::Full) = admitted
            && self.waits()
        {
            let deadline = message.expires_in.and_then(|time| driver::now().checked_add(time));
            admitted = self.wait_for_room(&message, deadline).await;
        }
        match admitted? {
            (receipt, None) => Ok(receipt),
            (receipt, Some(written)) => on_disk(receipt, written).await,
        }
    }

    async fn wait_for_room(
        &self,
        message: &Message,
        deadline: Option<Instant>,
    ) -> Result<(Receipt, Option<Written>), PublishError> {
        loop {
            let mut room = std::pin::pin!(self.handle.shared.room.notified());
            room.as_mut().enable();
            match self.admit(message) {
                Err(PublishError::Full) => {}
                decided => return decided,
            }
            if !driver::before(&self.handle.shared, deadline, room).await {
                return Err(PublishError::Full);
            }
        }
    }

    /// Admits `message` to the queue if there is room now. With [`Queue::disk`](crate::Queue::disk) it is not yet on disk when this returns,
    /// and it is sent only once it is; should the disk refuse it, its outcome is [`Outcome::Undelivered`].
    ///
    /// # Errors
    /// [`PublishError`]; nothing was admitted.
    #[expect(clippy::needless_pass_by_value, reason = "the same shape as `publish`")]
    pub fn try_publish(&self, message: Message) -> Result<Receipt, PublishError> {
        self.admit(&message).map(|(receipt, _)| receipt)
    }

    /// Records that messages matching `filter` are wanted, and returns their stream. The wish holds over every change
    /// of broker until the stream is dropped or [`unsubscribe`](Self::unsubscribe) is called; whether a broker is
    /// there now does not matter. A broker's refusal comes as [`Event::SubscriptionRefused`] and ends the stream; one that may
    /// pass, of a filter that had been granted before, as [`Event::SubscriptionPostponed`], and the broker is asked again.
    ///
    /// A second stream of a filter that is granted shares its grant: the broker is not asked, and what it keeps as retained came
    /// to the first one alone.
    ///
    /// A broker is asked on each connection, also where it has kept our session: one that was restored from an older copy may
    /// lack the newest wishes. It then sends again what it keeps as retained.
    ///
    /// What the broker had kept for our session may arrive before this call. It waits for up to 10 s from the start of the
    /// client; what nobody has subscribed to by then is acknowledged, dropped and counted
    /// ([`Stats::unmatched`]).
    ///
    /// # Errors
    /// [`SubscribeError`]; nothing was recorded.
    ///
    /// # Cancel safety
    /// Cancel safe: it does not wait.
    #[expect(clippy::unused_async, reason = "room for a queue of wishes on disk, which will have to wait")]
    pub async fn subscribe(&self, filter: &str, qos: Qos) -> Result<Subscription, SubscribeError> {
        check_filter(filter).map_err(|reason| SubscribeError::Filter { reason })?;
        let filter: Arc<str> = Arc::from(filter);
        let (reader, items) = buffer();
        let (grant, granted) = watch::channel(None);
        let command = Command::Subscribe { filter: Arc::clone(&filter), qos, reader, granted: grant };
        if !self.handle.shared.command(command) {
            return Err(SubscribeError::Closed);
        }
        Ok(Subscription::new(filter, items, granted, Arc::clone(&self.handle)))
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
        if !self.handle.shared.lock().filters.contains(&filter) {
            return Err(SubscribeError::NotSubscribed);
        }
        let accepted = self.handle.shared.command(Command::Unsubscribe { filter });
        if accepted { Ok(()) } else { Err(SubscribeError::Closed) }
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
        self.handle.shared.lock().stats()
    }

    /// What [`Queue::disk`](crate::Queue::disk) held at the start, in order of admission, each with a receipt for its
    /// outcome: messages of earlier processes, which are sent before anything new. The first call, from any clone, gets
    /// them all, whether their outcomes are known yet or not; later ones get none. Nobody knows whether an earlier process
    /// had sent them: one that fails says `maybe_delivered`.
    ///
    /// Until then the receipts are kept, some 200 bytes for each message. A program that has no use for them drops what
    /// this returns.
    #[must_use]
    pub fn recovered(&self) -> Vec<Recovered> {
        std::mem::take(&mut self.handle.shared.lock().recovered)
    }

    /// Admits nothing more, sends what it has for at most `deadline`, says goodbye to the broker and returns what was
    /// not delivered. With [`Queue::disk`](crate::Queue::disk) that also stays on disk, for the next start. Of several calls, from any
    /// clone, the shortest deadline holds, all wait for the same end, and the first gets what is left. A client that has ended by
    /// itself, with its runtime or by a panic, keeps it for the first call that comes. A broker that does not take the goodbye
    /// holds the end up by 250 ms more.
    ///
    /// # Cancel safety
    /// Dropping the future does not stop the closing; the next call gets what is left.
    pub async fn close(&self, deadline: Duration) -> Closed {
        self.handle.shared.close(deadline).await.unwrap_or_default()
    }

    fn waits(&self) -> bool {
        self.handle.shared.lock().backlog.policy() == WhenFull::Wait
    }

    fn admit(&self, message: &Message) -> Result<(Receipt, Option<Written>), PublishError> {
        check_topic(&message.topic).map_err(|reason| PublishError::Topic { reason })?;
        message.user_properties.check().map_err(|reason| PublishError::UserProperty { reason })?;
        if !message.user_properties.is_empty() && self.handle.version == Version::V311 {
            return Err(PublishError::NeedsVersion5);
        }
        let shared = &self.handle.shared;
        let mut state = shared.lock();
        if state.closed {
            return Err(PublishError::Closed);
        }
        let stamped = state.backlog.stamped(message);
        let message = stamped.as_ref();
        if message.user_properties.len() > UserProperties::MOST {
            return Err(PublishError::UserProperty { reason: TopicError::TooMany });
        }
        let carried = message.payload.len().saturating_add(message.user_properties.encoded_bytes());
        if message.topic.len().saturating_add(carried).saturating_add(HEADER_BYTES) > MAX_PACKET_BYTES {
            return Err(PublishError::TooLarge);
        }
        match state.backlog.admit(driver::now(), message) {
            Admission::Admitted { id, shed } => {
                // Of a queue on disk it is counted once the disk has answered.
                let counted = u64::from(state.disk.is_none());
                state.admission.admitted = state.admission.admitted.saturating_add(counted);
                let (outcome, receipt) = Receipt::new(id);
                state.receipts.insert(id, outcome);
                let written = state.disk.as_ref().map(|disk| disk.write(id, message));
                let (mut told, mut topics) = (Vec::new(), Vec::new());
                for (victim, topic) in shed {
                    state.shed(victim, &mut told);
                    topics.push(topic);
                }
                // An expiry may come before the driver's next look; everything else waits until it is hungry.
                let wake = std::mem::take(&mut state.hungry) || message.expires_in.is_some();
                drop(state);
                if wake {
                    shared.wake.notify_one();
                }
                for topic in topics {
                    shared.emit(Event::Shed { topic: topic.to_string() });
                }
                shared.tell(told);
                Ok((receipt, written))
            }
            Admission::Shed => {
                state.admission.shed = state.admission.shed.saturating_add(1);
                drop(state);
                shared.emit(Event::Shed { topic: message.topic.to_string() });
                let (sender, receipt) = Receipt::new(MessageId::new(u64::MAX));
                shared.tell(vec![(Some(sender), Outcome::Shed)]);
                Ok((receipt, None))
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

/// The events of a client, as a stream that ends after [`Event::Closed`].
pub struct Events {
    inner: Pin<Box<dyn Stream<Item = Event> + Send + Sync>>,
}

impl Events {
    fn new(receiver: Option<broadcast::Receiver<Event>>) -> Self {
        // The channel lives as long as any clone of the client; the stream does not.
        let inner = futures_util::stream::unfold(receiver, |receiver| async move {
            let mut receiver = receiver?;
            match receiver.recv().await {
                Ok(Event::Closed) => Some((Event::Closed, None)),
                Ok(event) => Some((event, Some(receiver))),
                Err(broadcast::error::RecvError::Lagged(missed)) => Some((lagged(missed), Some(receiver))),
                Err(broadcast::error::RecvError::Closed) => None,
            }
        });
        Self { inner: Box::pin(inner.fuse()) }
    }

    /// The next event; `None`, each time, when the client has ended.
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

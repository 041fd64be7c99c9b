//! What a subscriber reads: deliveries, and gaps where something may be missing.

mod buffer;

use std::{
    fmt,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_core::Stream;
use tokio::sync::watch;

pub(crate) use self::buffer::{ItemReceiver, ItemSender, buffer};
use crate::{
    event::{Filter, GapReason},
    handover::{Acknowledged, Command, Handle, Shared},
    packet::{PacketId, Publish, Qos},
    properties::UserProperties,
};

/// Deliveries of one filter, as a stream. Dropping it unsubscribes.
///
/// What a dropped stream has not handed out is acknowledged and counted ([`Stats::unmatched`](crate::Stats::unmatched)),
/// because a broker whose window is full of it would send nothing else. To leave it to the next session of the same
/// client, call [`Client::close`](crate::Client::close) before dropping the stream.
///
/// A stream buffers up to 256 items and 1 MiB, or one item that is larger. What a reader that falls behind has not taken
/// beyond that waits in the client. Above 16 MiB there, of all streams together, QoS 0 messages are dropped, with a
/// [`GapReason::Overflowed`] and a count; above 32 MiB the client stops reading from the broker until there is room
/// again, probes go on, and publishes only until so many wait for their acknowledgement as may: a reader must not wait for
/// one of its own then. QoS 1 comes to that only where a broker sends much without waiting for acknowledgements.
///
/// ```no_run
/// # async fn example(client: modax_mqtt_failover::Client) -> Result<(), modax_mqtt_failover::SubscribeError> {
/// use modax_mqtt_failover::{GapReason, Qos, Received};
///
/// let mut readings = client.subscribe("plant/+/temperature", Qos::AtLeastOnce).await?.auto_ack();
/// while let Some(received) = readings.next().await {
///     match received {
///         Received::Delivery(reading) => println!("{}: {:?}", reading.topic(), reading.payload()),
///         Received::Gap { reason: GapReason::BrokerChanged } => println!("the old broker may have kept some for us"),
///         Received::Gap { reason } => println!("some may be missing: {reason:?}"),
///         _ => {}
///     }
/// }
/// # Ok(()) }
/// ```
#[must_use = "dropping it unsubscribes"]
pub struct Subscription {
    filter: Filter,
    items: ItemReceiver,
    granted: watch::Receiver<Option<Qos>>,
    auto_ack: bool,
    handle: Arc<Handle>,
}

impl Subscription {
    pub(crate) const fn new(
        filter: Filter,
        items: ItemReceiver,
        granted: watch::Receiver<Option<Qos>>,
        handle: Arc<Handle>,
    ) -> Self {
        Self { filter, items, granted, auto_ack: false, handle }
    }

    /// Acknowledges each delivery as [`next`](Self::next) hands it out. Without it the program calls
    /// [`Delivery::ack`] when it is done with it, and a crash in between brings the delivery back.
    pub fn auto_ack(mut self) -> Self {
        self.auto_ack = true;
        self
    }

    /// The filter, as it was given.
    #[must_use]
    pub fn filter(&self) -> &str {
        &self.filter
    }

    /// Waits until a broker has granted the filter once: what is published from then on is delivered, or a gap is told.
    /// The level it granted; `None` when the filter was refused or unsubscribed, or the client closed. At once where
    /// that is so already, and also while no broker is connected now.
    ///
    /// The future does not borrow the stream, so that it can be awaited beside [`next`](Self::next); it ends with it.
    ///
    /// # Cancel safety
    /// Cancel safe: it takes nothing.
    pub fn granted(&self) -> impl Future<Output = Option<Qos>> + Send + use<> {
        let mut granted = self.granted.clone();
        async move { *granted.wait_for(Option::is_some).await.ok()? }
    }

    /// The next item; `None` when the client was closed, the filter unsubscribed or refused.
    ///
    /// # Cancel safety
    /// Cancel safe: an item is taken only by a call that returns it.
    pub async fn next(&mut self) -> Option<Received> {
        let item = self.items.recv().await;
        self.hand_out(item)
    }

    fn hand_out(&self, item: Option<Received>) -> Option<Received> {
        let mut item = item;
        self.handle.shared.made_room();
        if let (true, Some(Received::Delivery(delivery))) = (self.auto_ack, item.as_mut()) {
            delivery.token.take().inspect(|token| token.acknowledge());
        }
        item
    }
}

impl Stream for Subscription {
    type Item = Received;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Received>> {
        self.items.poll_recv(context).map(|item| self.hand_out(item))
    }
}

impl Drop for Subscription {
    /// What is not wanted any more is acknowledged: a broker that waits for it sends nothing else once its window is full.
    fn drop(&mut self) {
        for item in self.items.drain() {
            if let Received::Delivery(delivery) = item {
                delivery.decline();
            }
        }
        self.handle.shared.command(Command::Dropped { filter: Arc::clone(&self.filter) });
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription").field("filter", &self.filter).finish_non_exhaustive()
    }
}

/// One item of a [`Subscription`].
#[derive(Debug)]
#[non_exhaustive]
pub enum Received {
    /// A message.
    Delivery(Delivery),
    /// Messages may be missing between the item before and the item after.
    Gap {
        /// Why.
        reason: GapReason,
    },
}

/// A message from a broker.
///
/// QoS 1 and 2 are to be acknowledged; one that is dropped instead comes again after the next connection, marked as a
/// duplicate.
pub struct Delivery {
    topic: Arc<str>,
    payload: Bytes,
    qos: Qos,
    duplicate: bool,
    retained: bool,
    user_properties: UserProperties,
    token: Option<Arc<AckToken>>,
}

impl Delivery {
    pub(crate) fn new(publish: &Publish, token: Option<Arc<AckToken>>) -> Self {
        Self {
            topic: Arc::clone(&publish.topic),
            payload: publish.payload.clone(),
            qos: publish.qos,
            duplicate: publish.duplicate,
            retained: publish.retain,
            user_properties: publish.properties.user.clone(),
            token,
        }
    }

    /// Where it was published.
    #[must_use]
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// What it says.
    #[must_use]
    pub const fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// The level of the last hop.
    #[must_use]
    pub const fn qos(&self) -> Qos {
        self.qos
    }

    /// Whether the broker may have sent it before.
    #[must_use]
    pub const fn is_duplicate(&self) -> bool {
        self.duplicate
    }

    /// Whether the broker had kept it, so that it may be old.
    #[must_use]
    pub const fn is_retained(&self) -> bool {
        self.retained
    }

    /// What its sender put beside the payload (MQTT 5); empty in 3.1.1.
    #[must_use]
    pub const fn user_properties(&self) -> &UserProperties {
        &self.user_properties
    }

    /// Nobody reads it any more. While the client ends it is left to the next one, and so it is when the program panics.
    pub(crate) fn decline(self) {
        let Some(token) = self.token.as_ref().filter(|_| !std::thread::panicking()) else { return };
        let mut state = token.shared.lock();
        if state.closed {
            return;
        }
        state.declined = state.declined.saturating_add(1);
        drop(state);
        self.ack();
    }

    /// Says that the program is done with it. An acknowledgement that comes after its connection ended is dropped and
    /// counted: the broker sends the message again on the next one.
    pub fn ack(mut self) {
        if let Some(token) = self.token.take() {
            token.acknowledge();
        }
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        if let (Some(token), Qos::ExactlyOnce) = (self.token.take(), self.qos) {
            token.abandon();
        }
    }
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("topic", &self.topic)
            .field("payload_bytes", &self.payload.len())
            .field("qos", &self.qos)
            .field("duplicate", &self.duplicate)
            .field("retained", &self.retained)
            .finish_non_exhaustive()
    }
}

/// One message may go to several subscriptions; the broker hears of it when the last of them is done.
pub(crate) struct AckToken {
    shared: Arc<Shared>,
    id: PacketId,
    serial: u64,
    readers: AtomicUsize,
}

impl AckToken {
    pub(crate) fn new(shared: Arc<Shared>, id: PacketId, serial: u64, readers: usize) -> Arc<Self> {
        Arc::new(Self { shared, id, serial, readers: AtomicUsize::new(readers) })
    }

    pub(crate) fn acknowledge(&self) {
        if self.readers.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.tell(false);
        }
    }

    /// One reader dropped it: the broker's next copy is for the program again. QoS 1 needs no word, because there every
    /// copy is.
    fn abandon(&self) {
        self.tell(true);
    }

    fn tell(&self, abandoned: bool) {
        self.shared.acknowledge(Acknowledged { id: self.id, serial: self.serial, abandoned });
    }
}

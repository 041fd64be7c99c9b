//! What waits in one stream, bounded in messages and in bytes.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use tokio::sync::mpsc::{self, error::TrySendError};

use super::Received;
use crate::message::Message;

/// Items that a stream buffers by itself; more waits in the client.
const MAX_ITEMS: usize = 256;
/// And their bytes. One item always fits, however large.
const MAX_BYTES: usize = 1 << 20;

/// The driver's end; there is one for each stream.
pub(crate) struct ItemSender {
    items: mpsc::Sender<Received>,
    bytes: Arc<AtomicUsize>,
}

/// The stream's end.
pub(crate) struct ItemReceiver {
    items: mpsc::Receiver<Received>,
    bytes: Arc<AtomicUsize>,
}

pub(crate) fn buffer() -> (ItemSender, ItemReceiver) {
    let (sender, receiver) = mpsc::channel(MAX_ITEMS);
    let bytes = Arc::new(AtomicUsize::new(0));
    (ItemSender { items: sender, bytes: Arc::clone(&bytes) }, ItemReceiver { items: receiver, bytes })
}

impl ItemSender {
    /// Puts an item in; gives it back when there is no room, or nobody reads any more.
    pub(crate) fn try_send(&self, item: Received) -> Result<(), TrySendError<Received>> {
        let cost = item.cost();
        // Added before the stream can take it off. Nobody else adds.
        let before = self.bytes.fetch_add(cost, Ordering::AcqRel);
        let fits = before == 0 || before.saturating_add(cost) <= MAX_BYTES;
        // A stream that is gone makes no room, and has to be told from a slow one.
        let sent =
            if fits || self.items.is_closed() { self.items.try_send(item) } else { Err(TrySendError::Full(item)) };
        if sent.is_err() {
            self.bytes.fetch_sub(cost, Ordering::AcqRel);
        }
        sent
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.items.is_closed()
    }
}

impl ItemReceiver {
    pub(super) async fn recv(&mut self) -> Option<Received> {
        let item = self.items.recv().await;
        self.taken(item)
    }

    pub(super) fn poll_recv(&mut self, context: &mut Context<'_>) -> Poll<Option<Received>> {
        self.items.poll_recv(context).map(|item| self.taken(item))
    }

    /// Takes no more, and returns what is there.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = Received> + '_ {
        self.items.close();
        std::iter::from_fn(|| self.items.try_recv().ok())
    }

    fn taken(&self, item: Option<Received>) -> Option<Received> {
        item.inspect(|item| {
            self.bytes.fetch_sub(item.cost(), Ordering::AcqRel);
        })
    }
}

impl Received {
    /// Bytes that it occupies while it waits.
    pub(crate) fn cost(&self) -> usize {
        let bytes = match self {
            Self::Delivery(delivery) => {
                let beside = delivery.topic().len().saturating_add(delivery.user_properties().held_bytes());
                beside.saturating_add(delivery.payload().len())
            }
            Self::Gap { .. } => 0,
        };
        bytes.saturating_add(Message::OVERHEAD_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        delivery::Delivery,
        event::GapReason,
        packet::{Publish, PublishProperties, Qos},
    };

    fn of(bytes: usize) -> Received {
        let publish = Publish {
            topic: Arc::from("t"),
            payload: vec![0; bytes].into(),
            qos: Qos::AtMostOnce,
            id: None,
            retain: false,
            duplicate: false,
            properties: PublishProperties::default(),
        };
        Received::Delivery(Delivery::new(&publish, None))
    }

    fn is_full(sent: &Result<(), TrySendError<Received>>) -> bool {
        matches!(sent, Err(TrySendError::Full(_)))
    }

    #[tokio::test]
    async fn bytes_bound_it_and_one_item_always_fits() {
        let (sender, mut receiver) = buffer();
        assert!(sender.try_send(of(8 * MAX_BYTES)).is_ok(), "an empty one takes any");
        assert!(is_full(&sender.try_send(of(0))));
        assert!(is_full(&sender.try_send(Received::Gap { reason: GapReason::Overflowed })));
        assert!(receiver.recv().await.is_some());
        for _ in 0..2 {
            assert!(sender.try_send(of(MAX_BYTES / 2 - Message::OVERHEAD_BYTES - 1)).is_ok());
        }
        assert!(is_full(&sender.try_send(of(0))), "to the byte");
        for _ in 0..2 {
            assert!(receiver.recv().await.is_some());
        }
        assert_eq!(sender.bytes.load(Ordering::Acquire), 0, "what was refused does not count");
    }

    #[test]
    fn messages_bound_it_too() {
        let (sender, _receiver) = buffer();
        assert!((0..MAX_ITEMS).all(|_| sender.try_send(of(0)).is_ok()));
        assert!(is_full(&sender.try_send(of(0))));
    }

    #[test]
    fn a_full_one_whose_stream_is_gone_is_closed() {
        let (sender, mut receiver) = buffer();
        assert!(sender.try_send(of(2 * MAX_BYTES)).is_ok());
        assert_eq!(receiver.drain().count(), 1);
        assert!(matches!(sender.try_send(of(0)), Err(TrySendError::Closed(_))));
    }
}

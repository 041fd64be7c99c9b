//! Which program parts read what, and what waits because one of them is slow.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use tokio::sync::mpsc::{self, error::TrySendError};

use crate::{
    delivery::{AckToken, Delivery, Received},
    event::{Filter, GapReason},
    handover::Shared,
    packet::Publish,
    subscription::matches,
};

type Reader = mpsc::Sender<Received>;

/// All readers. While anything is blocked the driver reads nothing more from the broker, so that what waits here is at
/// most what one read brought.
#[derive(Default)]
pub(crate) struct Readers {
    readers: BTreeMap<Filter, Vec<Reader>>,
    blocked: VecDeque<(Reader, Received)>,
}

impl Readers {
    pub(crate) fn add(&mut self, filter: Filter, reader: Reader) {
        self.readers.entry(filter).or_default().push(reader);
    }

    pub(crate) fn remove(&mut self, filter: &Filter) {
        self.readers.remove(filter);
    }

    /// Forgets readers that are gone; true when that was the filter's last.
    pub(crate) fn prune(&mut self, filter: &Filter) -> bool {
        let Some(readers) = self.readers.get_mut(filter) else { return false };
        readers.retain(|reader| !reader.is_closed());
        if readers.is_empty() {
            self.readers.remove(filter);
            return true;
        }
        false
    }

    pub(crate) fn clear(&mut self) {
        self.readers.clear();
        self.blocked.clear();
    }

    pub(crate) fn is_blocked(&self) -> bool {
        !self.blocked.is_empty()
    }

    /// Hands a message to everybody who wants it; false when nobody does.
    pub(crate) fn deliver(&mut self, shared: &Arc<Shared>, publish: &Publish, serial: Option<u64>) -> bool {
        let wanted = self.readers.iter().filter(|(filter, _)| matches(filter, &publish.topic));
        let readers: Vec<Reader> = wanted.flat_map(|(_, readers)| readers.iter().cloned()).collect();
        if readers.is_empty() {
            return false;
        }
        let token =
            publish.id.zip(serial).map(|(id, serial)| AckToken::new(Arc::clone(shared), id, serial, readers.len()));
        for reader in readers {
            self.hand_over(reader, Received::Delivery(Delivery::new(publish, token.clone())));
        }
        true
    }

    /// Tells the readers of a filter that something may be missing.
    pub(crate) fn gap(&mut self, filter: &Filter, reason: GapReason) {
        for reader in self.readers.get(filter).cloned().unwrap_or_default() {
            self.hand_over(reader, Received::Gap { reason });
        }
    }

    /// Hands over what was blocked, as far as there is room.
    pub(crate) fn unblock(&mut self) {
        let waiting = std::mem::take(&mut self.blocked);
        for (reader, item) in waiting {
            self.hand_over(reader, item);
        }
    }

    /// Waits until the first blocked reader has room, or is gone.
    pub(crate) async fn room(&self) {
        match self.blocked.front() {
            // The permit is given back at once: only the driver sends, so that the room stays.
            Some((reader, _)) => drop(reader.reserve().await),
            None => std::future::pending().await,
        }
    }

    fn hand_over(&mut self, reader: Reader, item: Received) {
        if self.blocked.iter().any(|(blocked, _)| blocked.same_channel(&reader)) {
            self.blocked.push_back((reader, item));
            return;
        }
        match reader.try_send(item) {
            Err(TrySendError::Full(item)) => self.blocked.push_back((reader, item)),
            // It unsubscribed: the broker need not wait for it.
            Err(TrySendError::Closed(Received::Delivery(delivery))) => delivery.ack(),
            Ok(()) | Err(TrySendError::Closed(Received::Gap { .. })) => {}
        }
    }
}

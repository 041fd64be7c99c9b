//! Which program parts read what, and what waits because one of them is slow.
//!
//! A slow reader must not stop acknowledgements from being read: a handler that waits for its own publish before it
//! reads on would then wait for ever. So what a reader's buffer has no room for waits here. QoS 1 and 2 are bounded by
//! packet identifiers, because the broker gets none back before the program is done; should those be large, reading
//! stops at a limit in bytes. QoS 0 has no such bound and is dropped at half that limit, with a gap and a count.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Instant,
};

use tokio::sync::{mpsc::error::TrySendError, watch};

use super::unclaimed::Unclaimed;
use crate::{
    delivery::{AckToken, Delivery, ItemSender, Received},
    event::{Filter, GapReason},
    handover::Shared,
    packet::{Publish, Qos},
    subscription::matches,
};

/// When so much waits for slow readers of one client, QoS 0 messages are dropped.
const DROP_ABOVE_BYTES: usize = 16 << 20;
/// When so much waits, reading stops.
const STOP_ABOVE_BYTES: usize = 32 << 20;

struct Reader {
    sender: ItemSender,
    /// Until its filter is gone.
    granted: Option<watch::Sender<Option<Qos>>>,
    overflow: VecDeque<Received>,
}

/// All readers.
pub(crate) struct Readers {
    /// What nobody wants yet.
    pub(super) unclaimed: Unclaimed,
    staying: BTreeMap<Filter, Vec<Reader>>,
    /// Unsubscribed, and still owed what came before.
    leaving: Vec<Reader>,
    overflow_bytes: usize,
    dropped: u64,
}

impl Readers {
    pub(super) fn new(now: Instant) -> Self {
        let (staying, leaving) = (BTreeMap::new(), Vec::new());
        Self { unclaimed: Unclaimed::new(now), staying, leaving, overflow_bytes: 0, dropped: 0 }
    }

    pub(crate) fn add(&mut self, filter: Filter, sender: ItemSender, granted: watch::Sender<Option<Qos>>) {
        let readers = self.staying.entry(filter).or_default();
        // What one of them was granted holds for the next: the broker is not asked again.
        if let Some(first) = readers.first().and_then(|first| first.granted.as_ref()) {
            granted.send_replace(*first.borrow());
        }
        readers.push(Reader { sender, granted: Some(granted), overflow: VecDeque::new() });
    }

    /// Tells the readers of a filter that a broker granted it.
    pub(crate) fn granted(&self, filter: &Filter, qos: Qos) {
        for granted in self.staying.get(filter).into_iter().flatten().filter_map(|reader| reader.granted.as_ref()) {
            granted.send_replace(Some(qos));
        }
    }

    /// Ends the streams of a filter after what they are owed.
    pub(crate) fn remove(&mut self, filter: &Filter) {
        let readers = self.staying.remove(filter).unwrap_or_default();
        let owed = readers.into_iter().filter(|reader| !reader.overflow.is_empty());
        // Who waits to hear of a grant is not to wait until the rest is read.
        self.leaving.extend(owed.map(|reader| Reader { granted: None, ..reader }));
    }

    /// Forgets readers that are gone; true when that was the filter's last.
    pub(crate) fn prune(&mut self, filter: &Filter) -> bool {
        self.unblock();
        self.forget_gone(filter)
    }

    /// One that went after the last look still holds what waits for it: it is kept until its own word comes.
    fn forget_gone(&mut self, filter: &Filter) -> bool {
        let Some(readers) = self.staying.get_mut(filter) else { return false };
        readers.retain(|reader| !(reader.sender.is_closed() && reader.overflow.is_empty()));
        if readers.is_empty() {
            self.staying.remove(filter);
            return true;
        }
        false
    }

    pub(crate) fn clear(&mut self) {
        self.staying.clear();
        self.leaving.clear();
        self.overflow_bytes = 0;
    }

    /// Whether anything waits for a reader with room.
    pub(crate) fn is_blocked(&self) -> bool {
        self.overflow_bytes > 0
    }

    /// Whether so much waits that reading has to stop.
    pub(crate) fn is_full(&self) -> bool {
        self.overflow_bytes.saturating_add(self.unclaimed.bytes()) > STOP_ABOVE_BYTES
    }

    /// QoS 0 messages dropped because a reader was too slow.
    pub(crate) const fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Hands a message to everybody who wants it; false when nobody does.
    pub(crate) fn deliver(&mut self, shared: &Arc<Shared>, publish: &Publish, serial: Option<u64>) -> bool {
        let Self { staying, overflow_bytes, dropped, .. } = self;
        let mut wanted: Vec<&mut Reader> = staying
            .iter_mut()
            .filter(|(filter, _)| matches(filter, &publish.topic))
            .flat_map(|(_, readers)| readers)
            .collect();
        if wanted.is_empty() {
            return false;
        }
        let token =
            publish.id.zip(serial).map(|(id, serial)| AckToken::new(Arc::clone(shared), id, serial, wanted.len()));
        for reader in &mut wanted {
            if publish.qos == Qos::AtMostOnce && *overflow_bytes > DROP_ABOVE_BYTES && !reader.overflow.is_empty() {
                *dropped = dropped.saturating_add(1);
                reader.tell_gap(GapReason::Overflowed, overflow_bytes);
            } else {
                reader.hand_over(Received::Delivery(Delivery::new(publish, token.clone())), overflow_bytes);
            }
        }
        true
    }

    /// Tells the readers of a filter that something may be missing.
    pub(crate) fn gap(&mut self, filter: &Filter, reason: GapReason) {
        for reader in self.staying.get_mut(filter).into_iter().flatten() {
            reader.tell_gap(reason, &mut self.overflow_bytes);
        }
    }

    /// Hands over what waits, as far as there is room.
    pub(crate) fn unblock(&mut self) {
        if self.overflow_bytes == 0 {
            return;
        }
        for reader in self.staying.values_mut().flatten().chain(&mut self.leaving) {
            while let Some(item) = reader.overflow.pop_front() {
                let cost = item.cost();
                if let Some(item) = reader.offer(item) {
                    reader.overflow.push_front(item);
                    break;
                }
                self.overflow_bytes = self.overflow_bytes.saturating_sub(cost);
            }
        }
        self.leaving.retain(|reader| !reader.overflow.is_empty());
    }
}

impl Reader {
    fn hand_over(&mut self, item: Received, overflow_bytes: &mut usize) {
        let left = if self.overflow.is_empty() { self.offer(item) } else { Some(item) };
        if let Some(item) = left {
            self.keep(item, overflow_bytes);
        }
    }

    /// Gives the item back when there is no room.
    fn offer(&self, item: Received) -> Option<Received> {
        match self.sender.try_send(item) {
            Ok(()) | Err(TrySendError::Closed(Received::Gap { .. })) => None,
            Err(TrySendError::Full(item)) => Some(item),
            // It unsubscribed: the broker need not wait for it.
            Err(TrySendError::Closed(Received::Delivery(delivery))) => {
                delivery.decline();
                None
            }
        }
    }

    fn keep(&mut self, item: Received, overflow_bytes: &mut usize) {
        *overflow_bytes = overflow_bytes.saturating_add(item.cost());
        self.overflow.push_back(item);
    }

    /// One gap stands for any number in a row while nobody reads: else connections that come and go would pile them up.
    fn tell_gap(&mut self, reason: GapReason, overflow_bytes: &mut usize) {
        let is_told = matches!(self.overflow.back(), Some(Received::Gap { reason: last }) if *last == reason);
        if !is_told {
            self.hand_over(Received::Gap { reason }, overflow_bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::buffer;

    /// What waits keeps its account when its reader goes between the two looks of `prune`.
    #[test]
    fn a_reader_that_goes_meanwhile_takes_its_bytes_along() {
        let (sender, items) = buffer();
        let filter = Filter::from("a/#");
        let mut readers = Readers::new(crate::driver::now());
        readers.add(Arc::clone(&filter), sender, watch::channel(None).0);
        for _ in 0..=512 {
            readers.gap(&filter, GapReason::Reconnected);
            readers.gap(&filter, GapReason::SessionLost);
        }
        readers.unblock();
        assert!(readers.is_blocked(), "more than the stream holds");
        drop(items);
        assert!(!readers.forget_gone(&filter), "what waits is still to be taken back");
        assert!(readers.prune(&filter), "its own word");
        assert!(!readers.is_blocked(), "nobody is left to wait for");
        assert_eq!(readers.overflow_bytes, 0);
    }
    #[test]
    fn who_waits_for_a_grant_hears_of_the_end_before_the_rest_is_read() {
        let (sender, _items) = buffer();
        let filter = Filter::from("a/#");
        let mut readers = Readers::new(crate::driver::now());
        let (granted, hears) = watch::channel(None);
        readers.add(Arc::clone(&filter), sender, granted);
        for _ in 0..=512 {
            readers.gap(&filter, GapReason::Reconnected);
            readers.gap(&filter, GapReason::SessionLost);
        }
        assert!(readers.is_blocked(), "more than the stream holds");
        assert!(hears.has_changed().is_ok());

        readers.remove(&filter);

        assert!(readers.is_blocked(), "it is still owed");
        assert!(hears.has_changed().is_err(), "it would wait for ever");
    }
}

//! What was taken from the broker and is not in the database yet.
//!
//! Bounded: [`CAPACITY`] items, ten minutes of sixteen devices at 10 Hz. A reading is acknowledged to the broker when it
//! is admitted here, so a database failover does not stop the stream in which the safety reports come. When full, the
//! oldest go, counted: in an outage longer than the buffer the newest are worth more.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use crate::{
    boots::PATIENCE,
    contract::{SafetyStatus, SensorData},
    pace::Lateness,
};

/// Most items held.
pub const CAPACITY: usize = 100_000;
/// Most items written at once.
pub const BATCH: usize = 500;

/// Something to be stored.
#[derive(Clone, Debug)]
pub struct Item {
    /// Who reported.
    pub device_id: String,
    /// The device's timestamp.
    pub timestamp: u64,
    /// When it was heard here.
    pub heard_at: Instant,
    /// Whether it came just after a session was taken up again: the broker may have kept it for us.
    pub maybe_kept: bool,
    /// What later reports say of how late it was.
    pub lateness: Lateness,
    /// When the database first could not say which boot it belongs to.
    pub undecided_since: Option<Instant>,
    /// What it is.
    pub what: What,
}

/// The kinds of [`Item`].
#[derive(Clone, Debug)]
pub enum What {
    /// A row of `sensor_data`.
    Reading {
        /// What the device said.
        data: Arc<SensorData>,
        /// The first half of the SHA-256 of the payload as it came: equal for all copies.
        digest: [u8; 16],
    },
    /// A row of `safety_events`, if the state is another than the one before.
    Safety(SafetyStatus),
}

/// The buffer. Filled by the subscriptions, emptied by the writer.
#[derive(Debug)]
pub struct Buffer {
    inner: Mutex<Inner>,
    filled: Notify,
    capacity: usize,
}

#[derive(Debug, Default)]
struct Inner {
    fresh: VecDeque<Item>,
    /// Those that wait for [`PATIENCE`], in the order in which it ends.
    undecided: VecDeque<Item>,
    /// How many are with the writer.
    in_hand: usize,
}

impl Buffer {
    /// An empty one for so many items.
    pub fn new(capacity: usize) -> Self {
        Self { inner: Mutex::default(), filled: Notify::new(), capacity }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Admits `item`; answers whether the oldest had to go for it.
    pub fn push(&self, item: Item) -> bool {
        let mut inner = self.lock();
        inner.fresh.push_back(item);
        let shed = inner.fresh.len() + inner.undecided.len() > self.capacity;
        if shed && inner.fresh.pop_front().is_none() {
            inner.undecided.pop_front();
        }
        let full_batch = inner.fresh.len() >= BATCH;
        drop(inner);
        if full_batch {
            self.filled.notify_one();
        }
        shed
    }

    /// Puts back what the database could not place.
    pub fn wait_for_patience(&self, items: impl IntoIterator<Item = Item>) {
        self.lock().undecided.extend(items);
    }

    /// So many of those that were taken are in the database, refused by it, or put back.
    pub fn done(&self, items: usize) {
        let mut inner = self.lock();
        inner.in_hand = inner.in_hand.saturating_sub(items);
    }

    /// Takes what is due, at most [`BATCH`]: first what has been patient, then the oldest. `all` takes the impatient too.
    /// It counts as held until [`done`](Self::done).
    pub fn take(&self, now: Instant, all: bool) -> Vec<Item> {
        let mut inner = self.lock();
        let due = |item: &Item| {
            all || item.undecided_since.is_none_or(|since| now.saturating_duration_since(since) >= PATIENCE)
        };
        let mut batch = Vec::new();
        while batch.len() < BATCH && inner.undecided.front().is_some_and(due) {
            batch.extend(inner.undecided.pop_front());
        }
        let room = (BATCH - batch.len()).min(inner.fresh.len());
        batch.extend(inner.fresh.drain(..room));
        inner.in_hand += batch.len();
        batch
    }

    /// Returns when a whole batch is there, at the latest after `longest`.
    pub async fn gather(&self, longest: Duration) {
        if self.lock().fresh.len() >= BATCH {
            return;
        }
        let _ = tokio::time::timeout(longest, self.filled.notified()).await;
    }

    /// Items held, those with the writer included: what would be lost with this process.
    pub fn len(&self) -> usize {
        let inner = self.lock();
        inner.fresh.len() + inner.undecided.len() + inner.in_hand
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{BATCH, Buffer, Item, What};
    use crate::{boots::PATIENCE, contract::SafetyStatus, pace::Run};

    fn item(timestamp: u64, now: Instant) -> Item {
        let status =
            SafetyStatus { emergency_stop: false, door_closed: true, overload_detected: false, temperature_ok: true };
        Item {
            device_id: "a".to_owned(),
            timestamp,
            heard_at: now,
            maybe_kept: false,
            lateness: Run::default().hear(timestamp, 0),
            undecided_since: None,
            what: What::Safety(status),
        }
    }

    #[test]
    fn the_oldest_go_when_it_is_full_and_each_is_reported() {
        let now = Instant::now();
        let buffer = Buffer::new(3);
        let shed: Vec<bool> = (0..5).map(|n| buffer.push(item(n, now))).collect();

        assert_eq!(shed, [false, false, false, true, true]);
        assert_eq!(buffer.take(now, false).iter().map(|it| it.timestamp).collect::<Vec<_>>(), [2, 3, 4]);
    }

    #[test]
    fn a_batch_is_bounded_and_in_order() {
        let now = Instant::now();
        let buffer = Buffer::new(10_000);
        for n in 0..1_200 {
            buffer.push(item(n, now));
        }
        let sizes: Vec<usize> = (0..4).map(|_| buffer.take(now, false).len()).collect();

        assert_eq!(sizes, [BATCH, BATCH, 200, 0]);
    }

    #[test]
    fn the_undecided_come_again_after_patience_or_when_everything_must_go() {
        let now = Instant::now();
        let buffer = Buffer::new(10);
        buffer.wait_for_patience([Item { undecided_since: Some(now), ..item(7, now) }]);

        assert!(buffer.take(now + Duration::from_millis(10), false).is_empty());
        assert_eq!(buffer.take(now + PATIENCE, false).len(), 1);

        buffer.wait_for_patience([Item { undecided_since: Some(now), ..item(7, now) }]);
        assert_eq!(buffer.take(now, true).len(), 1);
    }

    #[test]
    fn what_is_with_the_writer_is_held_until_it_is_done() {
        let now = Instant::now();
        let buffer = Buffer::new(10);
        for n in 0..3 {
            buffer.push(item(n, now));
        }
        assert_eq!(buffer.take(now, false).len(), 3);
        assert_eq!(buffer.len(), 3);

        buffer.wait_for_patience([item(7, now)]);
        buffer.done(3);
        assert_eq!(buffer.len(), 1);
    }
}

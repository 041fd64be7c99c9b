//! What waits to be sent: bounded by count and bytes, in order, with a named policy when full.
//!
//! Pure: time enters by argument. A message counts against the bounds from admission until its outcome is known, so
//! that the bound is one on memory and not only on what waits. Only a message that was never handed out is shed.

pub mod log;
mod recovery;
pub mod scan;
pub mod segment;
pub mod storage;
pub mod survey;
mod writing;

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    dedup::Stamp,
    message::{Message, MessageId},
};
use writing::Yielding;

/// What happens to a publish when the queue is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum WhenFull {
    /// `publish` waits for room; `try_publish` is refused. The default: back-pressure loses nothing.
    #[default]
    Wait,
    /// Both are refused.
    Reject,
    /// The oldest waiting message makes room; for readings whose age makes them worthless. With a queue on disk it stays
    /// beside the new one until that is written, and for good when the disk refuses.
    ShedOldest,
    /// The new message is shed; for logs of which the beginning matters.
    ShedNewest,
    /// A waiting message with a newer one of the same topic makes room, else the oldest; for states, not events. On
    /// disk as above.
    LatestPerTopic,
}

/// How much may wait, and what happens then.
///
/// ```
/// # use modax_mqtt_failover::{Queue, WhenFull};
/// let queue = Queue::memory().max_messages(50_000).max_bytes(16 << 20).when_full(WhenFull::ShedOldest);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct Queue {
    pub(crate) max_messages: usize,
    pub(crate) max_bytes: usize,
    pub(crate) when_full: WhenFull,
    pub(crate) directory: Option<PathBuf>,
    pub(crate) fsync_every: Duration,
}

impl Queue {
    /// A queue in memory: 10 000 messages (ten seconds of a busy plant gateway) and 64 MiB, waiting when full.
    pub fn memory() -> Self {
        Self {
            max_messages: 10_000,
            max_bytes: 64 << 20,
            when_full: WhenFull::Wait,
            directory: None,
            fsync_every: Duration::from_millis(5),
        }
    }

    /// A queue on disk: what `publish` has admitted survives this process and is sent by the next one that opens the
    /// same directory, in order. One process at a time; the files are for their owner's eyes only. The limits are those of
    /// [`memory`](Self::memory), because all of it is in memory as well.
    ///
    /// A full disk costs new messages only: each is refused with
    /// [`PublishError::Disk`](crate::PublishError::Disk), also when it was full before the start, while what is there is
    /// sent, and room comes back as its files are deleted. A file `reserve` of up to 256 KiB is given up for the
    /// acknowledgements then, and made again before a message is taken. Of those that find no room all the same
    /// [`Event::OutcomesUnwritten`](crate::Event::OutcomesUnwritten) tells: a crash would bring their messages back. A
    /// directory that cannot be written to at all is an error of `build` that names it: from there every start would
    /// send the same messages again.
    pub fn disk(directory: impl Into<PathBuf>) -> Self {
        Self { directory: Some(directory.into()), ..Self::memory() }
    }

    /// How long a message may wait for others, so that one synchronisation with the disk serves them all; default
    /// 5 ms, about what one takes; at most 10 s, for `publish` waits as long. Without meaning for a queue in memory.
    pub fn fsync_every(mut self, time: Duration) -> Self {
        self.fsync_every = time;
        self
    }

    /// Messages admitted and without an outcome; at least 1, default 10 000: ten seconds of a busy plant gateway. With a queue on disk what makes room stays beside until the disk
    /// has answered, and is not counted: memory may hold up to twice as much.
    pub fn max_messages(mut self, messages: usize) -> Self {
        self.max_messages = messages;
        self
    }

    /// Bytes of topics, payloads and bookkeeping of the same, up to twice as many as there; default 64 MiB, which a small
    /// gateway has, and 6 KiB for each of the messages. One that could never fit is refused.
    pub fn max_bytes(mut self, bytes: usize) -> Self {
        self.max_bytes = bytes;
        self
    }

    /// The policy when full; default [`WhenFull::Wait`].
    pub fn when_full(mut self, policy: WhenFull) -> Self {
        self.when_full = policy;
        self
    }
}

impl Default for Queue {
    fn default() -> Self {
        Self::memory()
    }
}

/// A message on its way, with what the outcome needs.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Admitted {
    /// Ours.
    pub id: MessageId,
    /// What to send.
    pub message: Message,
    /// When it was admitted.
    pub at: Instant,
    /// When it stops being worth sending.
    pub expires_at: Option<Instant>,
    /// An earlier process admitted it, and may have sent it: nobody notes that before the outcome.
    pub recovered: bool,
}

/// What [`Backlog::admit`] decided.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Admission {
    /// It has an identity and waits its turn.
    Admitted {
        /// Its identity.
        id: MessageId,
        /// Waiting messages that made room for it; with a queue on disk [`Backlog::stored`] says so once it is there.
        shed: Vec<(MessageId, Arc<str>)>,
    },
    /// The queue is full and the policy gives way to what already waits.
    Shed,
    /// The queue is full; room may come.
    Full,
    /// It exceeds the byte bound by itself.
    NeverFits,
}

/// The queue itself: admission, turn, outcome.
pub struct Backlog {
    config: Queue,
    next: u64,
    stamp: Option<Stamp>,
    /// Messages from here on are not on disk yet and must not be sent.
    unwritten_from: Option<MessageId>,
    bytes: usize,
    waiting: BTreeMap<MessageId, Admitted>,
    /// What is to make room once something newer is on disk; no longer counted.
    yielding: Yielding,
    taken: BTreeMap<MessageId, usize>,
    expiries: BTreeSet<(Instant, MessageId)>,
    /// Waiting messages of each topic, oldest first; kept for [`WhenFull::LatestPerTopic`] only.
    topics: BTreeMap<Arc<str>, BTreeSet<MessageId>>,
    /// Waiting messages with a newer one of the same topic; kept as above.
    superseded: BTreeSet<MessageId>,
}

impl fmt::Debug for Backlog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backlog")
            .field("waiting", &self.waiting.len())
            .field("taken", &self.taken.len())
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

impl Backlog {
    /// An empty queue.
    #[must_use]
    pub fn new(config: Queue) -> Self {
        Self {
            config,
            next: 0,
            stamp: None,
            unwritten_from: None,
            bytes: 0,
            waiting: BTreeMap::new(),
            yielding: Yielding::default(),
            taken: BTreeMap::new(),
            expiries: BTreeSet::new(),
            topics: BTreeMap::new(),
            superseded: BTreeSet::new(),
        }
    }

    /// Messages admitted and without an outcome.
    #[must_use]
    pub fn messages(&self) -> usize {
        self.waiting.len().saturating_add(self.taken.len())
    }

    /// Messages that were not handed out yet.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// What they cost together, in bytes.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// The policy when full.
    #[must_use]
    pub const fn policy(&self) -> WhenFull {
        self.config.when_full
    }

    /// From here on messages get identities by this stamp.
    pub fn stamp_with(&mut self, stamp: Stamp) {
        self.stamp = Some(stamp);
    }

    /// The message as it is to be admitted next: with its identity, where it gets one.
    #[must_use]
    pub fn stamped<'m>(&self, message: &'m Message) -> Cow<'m, Message> {
        let stamped = self.stamp.as_ref().and_then(|stamp| stamp.stamped(message, MessageId::new(self.next)));
        stamped.map_or(Cow::Borrowed(message), Cow::Owned)
    }

    /// Admits `message`, or says why not.
    pub fn admit(&mut self, now: Instant, message: &Message) -> Admission {
        let cost = message.cost_bytes();
        if cost > self.config.max_bytes {
            return Admission::NeverFits;
        }
        let mut victims = Vec::new();
        if !self.has_room_for(cost) {
            match self.config.when_full {
                WhenFull::Wait | WhenFull::Reject => return Admission::Full,
                WhenFull::ShedNewest => return Admission::Shed,
                WhenFull::ShedOldest | WhenFull::LatestPerTopic => {
                    if !self.room_can_be_made(cost) {
                        return Admission::Full;
                    }
                    while !self.has_room_for(cost) {
                        let Some(victim) = self.victim(message).and_then(|id| self.remove_waiting(id)) else { break };
                        victims.push(victim);
                    }
                }
            }
        }
        let id = MessageId::new(self.next);
        self.next = self.next.wrapping_add(1);
        let expires_at = message.expires_in.and_then(|time| now.checked_add(time));
        self.insert(Admitted { id, message: message.clone(), at: now, expires_at, recovered: false }, cost);
        Admission::Admitted { id, shed: self.make_room(victims, id) }
    }

    /// The next message in order of admission that has not expired; it counts until [`settle`](Self::settle).
    pub fn take(&mut self, now: Instant) -> Option<Admitted> {
        let lives = |waiting: &Admitted| waiting.expires_at.is_none_or(|at| at > now);
        let waiting = self.waiting.iter().find(|(_, waiting)| lives(waiting)).map(|(id, _)| *id);
        let id = [waiting, self.yielding.next(now)].into_iter().flatten().min().filter(|id| self.is_written(*id))?;
        let taken = self.yielding.remove(id).or_else(|| self.remove_waiting(id))?;
        let cost = taken.message.cost_bytes();
        self.bytes = self.bytes.saturating_add(cost);
        self.taken.insert(id, cost);
        Some(taken)
    }

    /// Begins with what a disk queue held; numbers go on behind `next`. From here on messages are sent only once
    /// [`written`](Self::written) says that they are on disk.
    pub fn recover(&mut self, messages: Vec<Admitted>, next: u64) {
        for admitted in messages {
            let cost = admitted.message.cost_bytes();
            self.insert(admitted, cost);
        }
        self.next = self.next.max(next);
        self.unwritten_from = Some(MessageId::new(self.next));
    }

    /// Ends the account of a message that was taken.
    pub fn settle(&mut self, id: MessageId) {
        if let Some(cost) = self.taken.remove(&id) {
            self.bytes = self.bytes.saturating_sub(cost);
        }
    }

    /// Removes one message that was not handed out and whose time to live has ended.
    pub fn expire(&mut self, now: Instant) -> Option<Admitted> {
        let (at, id) = self.next_expiry()?;
        if at > now {
            return None;
        }
        self.yielding.remove(id).or_else(|| self.remove_waiting(id))
    }

    /// When the next message that was not handed out expires.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.next_expiry().map(|(at, _)| at)
    }

    fn next_expiry(&self) -> Option<(Instant, MessageId)> {
        let waiting = self.expiries.iter().find(|(_, id)| self.is_written(*id)).copied();
        [waiting, self.yielding.next_expiry()].into_iter().flatten().min()
    }

    /// Removes everything that waits, in order.
    pub fn drain(&mut self) -> Vec<Admitted> {
        let ids: Vec<_> = self.waiting.keys().copied().collect();
        let mut all: Vec<_> = ids.into_iter().filter_map(|id| self.remove_waiting(id)).collect();
        all.extend(self.yielding.drain());
        all.sort_by_key(|admitted| admitted.id);
        all
    }

    fn has_room_for(&self, cost: usize) -> bool {
        self.messages() < self.config.max_messages && self.bytes.saturating_add(cost) <= self.config.max_bytes
    }

    fn victim(&self, newcomer: &Message) -> Option<MessageId> {
        let written = |id: &MessageId| self.is_written(*id);
        let oldest = || self.waiting.keys().next().copied().filter(written);
        if self.config.when_full != WhenFull::LatestPerTopic {
            return oldest();
        }
        let same_topic = || self.topics.get(&newcomer.topic).and_then(|ids| ids.first()).copied().filter(written);
        match (self.superseded.first().copied().filter(written), same_topic()) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other).or_else(oldest),
        }
    }

    fn insert(&mut self, admitted: Admitted, cost: usize) {
        self.bytes = self.bytes.saturating_add(cost);
        if let Some(at) = admitted.expires_at {
            self.expiries.insert((at, admitted.id));
        }
        if self.config.when_full == WhenFull::LatestPerTopic {
            let ids = self.topics.entry(Arc::clone(&admitted.message.topic)).or_default();
            // One that comes back is older than the newest.
            self.superseded.extend(ids.last().map(|newest| *newest.min(&admitted.id)));
            ids.insert(admitted.id);
        }
        self.waiting.insert(admitted.id, admitted);
    }

    fn remove_waiting(&mut self, id: MessageId) -> Option<Admitted> {
        let removed = self.waiting.remove(&id)?;
        self.bytes = self.bytes.saturating_sub(removed.message.cost_bytes());
        if let Some(at) = removed.expires_at {
            self.expiries.remove(&(at, id));
        }
        if self.config.when_full == WhenFull::LatestPerTopic {
            self.superseded.remove(&id);
            if let Some(ids) = self.topics.get_mut(&removed.message.topic) {
                ids.remove(&id);
                if let Some(last) = ids.last() {
                    self.superseded.remove(last);
                } else {
                    self.topics.remove(&removed.message.topic);
                }
            }
        }
        Some(removed)
    }
}

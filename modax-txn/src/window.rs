//! The messages a relay has in memory, and which of them may go out now.
//!
//! A key is a lane: only its head may be with the sink, so that neither a retry, nor a change of the relay, nor a late
//! confirmation can turn two messages of a key round. A confirmed head leaves its lane at once. A head with any other outcome
//! holds the lane until that outcome is recorded: were the relay to die before, its successor would judge the message afresh and
//! might publish it after a later one.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use crate::message::{MessageId, OutgoingMessage};

/// Most messages of one key held in memory: a busy key must not crowd out the others.
const LANE: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Waiting for its turn.
    Buffered,
    /// With the sink.
    Inflight,
    /// Failed; its turn comes again then.
    Backoff { until: Instant },
    /// Its outcome is known and not yet recorded.
    Settled,
}

#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) message: OutgoingMessage,
    pub(crate) stage: Stage,
    /// Attempts so far.
    pub(crate) attempts: u32,
    /// When `message.age` was true.
    pub(crate) read_at: Instant,
    pub(crate) expires_at: Option<Instant>,
    pub(crate) first_failure: Option<Instant>,
}

impl Entry {
    pub(crate) fn is_expired(&self, now: Instant) -> bool {
        self.expires_at.is_some_and(|at| at <= now)
    }

    pub(crate) fn age(&self, now: Instant) -> Duration {
        self.message.age.saturating_add(now.saturating_duration_since(self.read_at))
    }
}

#[derive(Debug, Default)]
pub(crate) struct Window {
    entries: BTreeMap<MessageId, Entry>,
    lanes: BTreeMap<String, VecDeque<MessageId>>,
    /// Heads of lanes and messages without a key, in the order in which they may go.
    ready: VecDeque<MessageId>,
    /// `Backoff` and the expiry of what is `Buffered` or in `Backoff`.
    timers: BTreeSet<(Instant, MessageId)>,
    inflight: usize,
}

impl Window {
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn inflight(&self) -> usize {
        self.inflight
    }

    /// Messages waiting for a turn, now or later.
    pub(crate) fn buffered(&self) -> usize {
        self.entries.values().filter(|e| matches!(e.stage, Stage::Buffered | Stage::Backoff { .. })).count()
    }

    pub(crate) fn ids(&self) -> Vec<MessageId> {
        self.entries.keys().copied().collect()
    }

    /// Keys of which no more are to be read.
    pub(crate) fn full_keys(&self) -> Vec<String> {
        self.lanes.iter().filter(|(_, lane)| lane.len() >= LANE).map(|(key, _)| key.clone()).collect()
    }

    pub(crate) fn get(&self, id: MessageId) -> Option<&Entry> {
        self.entries.get(&id)
    }

    pub(crate) fn get_mut(&mut self, id: MessageId) -> Option<&mut Entry> {
        self.entries.get_mut(&id)
    }

    /// Takes a message that was read. Messages of a key must come in their order; one that is here already is ignored.
    pub(crate) fn insert(&mut self, entry: Entry) {
        let id = entry.message.id;
        if self.entries.contains_key(&id) {
            return;
        }
        let is_head = match &entry.message.key {
            Some(key) => {
                let lane = self.lanes.entry(key.clone()).or_default();
                lane.push_back(id);
                lane.len() == 1
            }
            None => true,
        };
        if is_head {
            self.ready.push_back(id);
        }
        if let Some(at) = entry.expires_at {
            self.timers.insert((at, id));
        }
        self.entries.insert(id, entry);
    }

    /// The next message that may go out: it is with the sink from now on, unless the caller settles it instead.
    pub(crate) fn begin_next(&mut self) -> Option<(MessageId, &mut Entry)> {
        while let Some(id) = self.ready.pop_front() {
            // One that was settled or removed while it waited is simply no longer there.
            let waiting = self.entries.get(&id).is_some_and(|entry| entry.stage == Stage::Buffered);
            if waiting {
                self.inflight += 1;
                let entry = self.entries.get_mut(&id)?;
                entry.stage = Stage::Inflight;
                if let Some(at) = entry.expires_at {
                    self.timers.remove(&(at, id));
                }
                return Some((id, entry));
            }
        }
        None
    }

    /// The sink did not get it after all: first in turn again.
    pub(crate) fn put_back(&mut self, id: MessageId) {
        if self.leave_stage(id, Stage::Buffered) {
            self.ready.push_front(id);
        }
    }

    /// It failed: its turn comes again at `until`; its lane waits.
    pub(crate) fn put_off(&mut self, id: MessageId, until: Instant) {
        if self.leave_stage(id, Stage::Backoff { until }) {
            self.timers.insert((until, id));
        }
    }

    /// Its outcome is known. A delivered one leaves its lane; any other holds it until [`recorded`](Self::recorded).
    pub(crate) fn settle(&mut self, id: MessageId, delivered: bool) {
        if self.leave_stage(id, Stage::Settled) && delivered {
            self.leave_lane(id);
        }
    }

    /// Its outcome stands in the database: it is forgotten.
    pub(crate) fn recorded(&mut self, id: MessageId) {
        self.leave_lane(id);
        self.remove(id);
    }

    /// Forgets what waits behind a parked message: it is read again when the key is free.
    pub(crate) fn forget_followers(&mut self, key: &str) {
        let lane = self.lanes.get(key).cloned().unwrap_or_default();
        for id in lane {
            if self.entries.get(&id).is_some_and(|e| matches!(e.stage, Stage::Buffered | Stage::Backoff { .. })) {
                self.leave_lane(id);
                self.remove(id);
            }
        }
    }

    /// Forgets everything that is not with the sink and not settled: it has to be read again.
    pub(crate) fn forget_waiting(&mut self) {
        let waiting: Vec<MessageId> = self
            .entries
            .iter()
            .filter(|(_, e)| matches!(e.stage, Stage::Buffered | Stage::Backoff { .. }))
            .map(|(id, _)| *id)
            .collect();
        for id in waiting {
            self.leave_lane(id);
            self.remove(id);
        }
        self.ready.clear();
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    pub(crate) fn next_timer(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Ends the backoffs that are due and answers which waiting messages have expired, for the caller to settle.
    pub(crate) fn handle_timeout(&mut self, now: Instant) -> Vec<MessageId> {
        let mut expired = Vec::new();
        while let Some(&(at, id)) = self.timers.first() {
            if at > now {
                break;
            }
            self.timers.pop_first();
            let Some(entry) = self.entries.get_mut(&id) else { continue };
            let is_expired = entry.is_expired(now);
            match entry.stage {
                Stage::Buffered | Stage::Backoff { .. } if is_expired => expired.push(id),
                Stage::Backoff { until } if until <= now => {
                    entry.stage = Stage::Buffered;
                    self.ready.push_back(id);
                }
                Stage::Backoff { .. } | Stage::Buffered | Stage::Inflight | Stage::Settled => {}
            }
        }
        expired
    }

    /// The sink is back after an outage: nobody waits any longer.
    pub(crate) fn end_backoffs(&mut self, now: Instant) {
        let waiting: Vec<(Instant, MessageId)> = self
            .entries
            .iter()
            .filter_map(|(id, e)| match e.stage {
                Stage::Backoff { until } if until > now => Some((until, *id)),
                Stage::Backoff { .. } | Stage::Buffered | Stage::Inflight | Stage::Settled => None,
            })
            .collect();
        for (until, id) in waiting {
            self.timers.remove(&(until, id));
            if let Some(entry) = self.entries.get_mut(&id) {
                entry.stage = Stage::Buffered;
                self.ready.push_back(id);
                // `timers` is a set of pairs: an expiry at the very instant of the backoff was removed with it.
                if let Some(at) = entry.expires_at {
                    self.timers.insert((at, id));
                }
            }
        }
    }

    fn leave_stage(&mut self, id: MessageId, to: Stage) -> bool {
        let Some(entry) = self.entries.get_mut(&id) else { return false };
        match entry.stage {
            Stage::Inflight => self.inflight -= 1,
            Stage::Backoff { until } => {
                self.timers.remove(&(until, id));
            }
            Stage::Buffered => {}
            Stage::Settled => return false,
        }
        entry.stage = to;
        if let Some(at) = entry.expires_at {
            match to {
                Stage::Settled | Stage::Inflight => self.timers.remove(&(at, id)),
                Stage::Buffered | Stage::Backoff { .. } => self.timers.insert((at, id)),
            };
        }
        true
    }

    fn leave_lane(&mut self, id: MessageId) {
        let Some(key) = self.entries.get(&id).and_then(|entry| entry.message.key.clone()) else { return };
        let Some(lane) = self.lanes.get_mut(&key) else { return };
        let Some(place) = lane.iter().position(|there| *there == id) else { return };
        lane.remove(place);
        match lane.front() {
            None => {
                self.lanes.remove(&key);
            }
            Some(&head) if place == 0 => {
                if self.entries.get(&head).is_some_and(|entry| entry.stage == Stage::Buffered) {
                    self.ready.push_back(head);
                }
            }
            Some(_) => {}
        }
    }

    fn remove(&mut self, id: MessageId) {
        if let Some(entry) = self.entries.remove(&id) {
            if entry.stage == Stage::Inflight {
                self.inflight -= 1;
            }
            if let Stage::Backoff { until } = entry.stage {
                self.timers.remove(&(until, id));
            }
            if let Some(at) = entry.expires_at {
                self.timers.remove(&(at, id));
            }
        }
    }
}

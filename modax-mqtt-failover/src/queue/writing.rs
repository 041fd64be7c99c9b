//! What is not on disk yet, and what makes room for it: that stays until the disk has answered, and comes back when it refuses.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    sync::Arc,
    time::Instant,
};

use super::{Admitted, Backlog};
use crate::message::MessageId;

/// Messages that make room for others as soon as those are on disk.
#[derive(Default)]
pub(super) struct Yielding {
    messages: BTreeMap<MessageId, Admitted>,
    /// The newer one and the older one; that may have been sent meanwhile.
    pairs: BTreeSet<(MessageId, MessageId)>,
    expiries: BTreeSet<(Instant, MessageId)>,
}

impl Yielding {
    fn insert(&mut self, admitted: Admitted, to: MessageId) {
        self.pairs.insert((to, admitted.id));
        self.expiries.extend(admitted.expires_at.map(|at| (at, admitted.id)));
        self.messages.insert(admitted.id, admitted);
    }

    fn remove_for(&mut self, to: MessageId) -> Vec<Admitted> {
        let pairs: Vec<_> = self.pairs.range((to, MessageId::new(0))..=(to, to)).copied().collect();
        let remove = |pair: (MessageId, MessageId)| {
            self.pairs.remove(&pair);
            self.remove(pair.1)
        };
        pairs.into_iter().filter_map(remove).collect()
    }

    /// The oldest that has not expired. It is sent in its turn: a disk that does not answer holds up nothing that it
    /// has, and what was sent is not shed.
    pub(super) fn next(&self, now: Instant) -> Option<MessageId> {
        let lives = |admitted: &Admitted| admitted.expires_at.is_none_or(|at| at > now);
        self.messages.iter().find(|(_, admitted)| lives(admitted)).map(|(id, _)| *id)
    }

    /// The first that expires: a disk that does not answer keeps nobody waiting for that.
    pub(super) fn next_expiry(&self) -> Option<(Instant, MessageId)> {
        self.expiries.first().copied()
    }

    pub(super) fn remove(&mut self, id: MessageId) -> Option<Admitted> {
        let removed = self.messages.remove(&id)?;
        if let Some(at) = removed.expires_at {
            self.expiries.remove(&(at, id));
        }
        Some(removed)
    }

    pub(super) fn drain(&mut self) -> impl Iterator<Item = Admitted> + use<> {
        std::mem::take(self).messages.into_values()
    }
}

impl Backlog {
    /// Messages before `next` are on disk, or were [withdrawn](Self::withdraw).
    pub fn written(&mut self, next: MessageId) {
        self.unwritten_from = self.unwritten_from.max(Some(next));
    }

    /// The disk has this message: what made room for it is shed, unless it was sent meanwhile.
    pub fn stored(&mut self, id: MessageId) -> Vec<(MessageId, Arc<str>)> {
        let shed = self.yielding.remove_for(id);
        shed.into_iter().map(|admitted| (admitted.id, admitted.message.topic)).collect()
    }

    /// Takes back an admission that the disk refused; what was to make room for it has its old place.
    pub fn withdraw(&mut self, id: MessageId) -> Option<Admitted> {
        let withdrawn = self.remove_waiting(id);
        for admitted in self.yielding.remove_for(id) {
            let cost = admitted.message.cost_bytes();
            self.insert(admitted, cost);
        }
        withdrawn
    }

    /// Puts waiting messages aside for `to`. With a queue in memory they are shed at once.
    pub(super) fn make_room(&mut self, victims: Vec<Admitted>, to: MessageId) -> Vec<(MessageId, Arc<str>)> {
        if self.unwritten_from.is_none() {
            return victims.into_iter().map(|admitted| (admitted.id, admitted.message.topic)).collect();
        }
        for admitted in victims {
            self.yielding.insert(admitted, to);
        }
        Vec::new()
    }

    /// Until then its bytes also wait for the disk, and removing it would let more in than the bounds say.
    pub(super) fn is_written(&self, id: MessageId) -> bool {
        self.unwritten_from.is_none_or(|unwritten| id < unwritten)
    }

    /// Whether shedding all that may be shed would be enough; else nothing is shed for nothing.
    pub(super) fn room_can_be_made(&self, cost: usize) -> bool {
        let from = self.unwritten_from.map_or(Bound::Excluded(MessageId::new(u64::MAX)), Bound::Included);
        let unwritten = self.waiting.range((from, Bound::Unbounded)).map(|(_, waiting)| waiting.message.cost_bytes());
        let (mut messages, mut bytes) = (0_usize, cost);
        for kept in self.taken.values().copied().chain(unwritten) {
            messages = messages.saturating_add(1);
            bytes = bytes.saturating_add(kept);
        }
        messages < self.config.max_messages && bytes <= self.config.max_bytes
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{Queue, WhenFull, message::Message, queue::Admission};

    fn on_disk(policy: WhenFull) -> Backlog {
        let mut backlog = Backlog::new(Queue::memory().max_messages(3).when_full(policy));
        backlog.recover(Vec::new(), 0);
        backlog
    }

    fn admit(backlog: &mut Backlog, topic: &str) -> MessageId {
        let now = crate::driver::now();
        match backlog.admit(now, &Message::new(topic, "")) {
            Admission::Admitted { id, shed } => {
                assert!(shed.is_empty(), "the disk has not answered");
                id
            }
            other => panic!("{other:?}"),
        }
    }

    fn store(backlog: &mut Backlog, topic: &str) -> Vec<u64> {
        let id = admit(backlog, topic);
        let shed = backlog.stored(id);
        backlog.written(MessageId::new(id.number() + 1));
        shed.into_iter().map(|(id, _)| id.number()).collect()
    }

    fn refuse(backlog: &mut Backlog, topic: &str) {
        let id = admit(backlog, topic);
        assert!(backlog.withdraw(id).is_some());
        backlog.written(MessageId::new(id.number() + 1));
    }

    fn numbers(left: Vec<Admitted>) -> Vec<u64> {
        left.into_iter().map(|admitted| admitted.id.number()).collect()
    }

    #[test]
    fn what_the_disk_refuses_sheds_nothing() {
        for policy in [WhenFull::ShedOldest, WhenFull::LatestPerTopic] {
            let mut backlog = on_disk(policy);
            for topic in ["a", "b", "a"] {
                assert!(store(&mut backlog, topic).is_empty());
            }
            for topic in ["a", "b", "c", "a"] {
                refuse(&mut backlog, topic);
                assert_eq!(backlog.messages(), 3, "{policy:?}");
            }
            assert_eq!(store(&mut backlog, "b"), [0], "{policy:?}: as if nobody had asked meanwhile");
            assert_eq!(numbers(backlog.drain()), [1, 2, 7], "{policy:?}");
        }
    }

    #[test]
    fn one_that_came_back_is_still_not_the_latest_of_its_topic() {
        let mut backlog = on_disk(WhenFull::LatestPerTopic);
        for topic in ["other", "a", "a"] {
            store(&mut backlog, topic);
        }
        refuse(&mut backlog, "new");
        assert_eq!(store(&mut backlog, "new"), [1], "not the only one of another topic");
        assert_eq!(store(&mut backlog, "a"), [2]);
    }

    #[test]
    fn what_is_to_make_room_is_sent_in_its_turn_and_then_not_shed() {
        let mut backlog = on_disk(WhenFull::ShedOldest);
        for _ in 0..3 {
            store(&mut backlog, "t");
        }
        let newer = admit(&mut backlog, "t");
        let now = crate::driver::now() + Duration::from_secs(1);
        let taken: Vec<_> = std::iter::from_fn(|| backlog.take(now)).collect();
        assert_eq!(numbers(taken), [0, 1, 2], "and none that is not on disk");
        assert!(backlog.stored(newer).is_empty());
        backlog.written(MessageId::new(newer.number() + 1));
        assert_eq!(backlog.messages(), 4, "one above the limit, and nothing new before it is below");
        assert_eq!(backlog.take(now).map(|admitted| admitted.id), Some(newer));
        assert_eq!(backlog.admit(now, &Message::new("t", "")), Admission::Full);
    }

    #[test]
    fn what_is_to_make_room_expires_in_its_time_and_is_then_neither_shed_nor_put_back() {
        for refused in [false, true] {
            let mut backlog = on_disk(WhenFull::ShedOldest);
            let now = crate::driver::now();
            let dies_after = Duration::from_secs(1);
            let mortal = Message::new("t", "").expires_in(dies_after);
            let Admission::Admitted { id, .. } = backlog.admit(now, &mortal) else { panic!("there is room") };
            backlog.written(MessageId::new(id.number() + 1));
            store(&mut backlog, "t");
            store(&mut backlog, "t");
            let newer = admit(&mut backlog, "t");
            assert_eq!(backlog.poll_timeout(), Some(now + dies_after), "the disk has not answered");
            assert!(backlog.expire(now).is_none(), "it lives");

            let expired = backlog.expire(now + dies_after);

            assert_eq!(expired.map(|admitted| admitted.id), Some(id));
            assert_eq!((backlog.poll_timeout(), backlog.messages()), (None, 3));
            if refused {
                assert!(backlog.withdraw(newer).is_some());
            } else {
                assert!(backlog.stored(newer).is_empty(), "it has its outcome");
            }
            assert_eq!(backlog.messages(), if refused { 2 } else { 3 });
        }
    }

    #[test]
    fn what_came_back_expires_in_its_time() {
        let mut backlog = on_disk(WhenFull::ShedOldest);
        let now = crate::driver::now();
        let mortal = Message::new("t", "").expires_in(Duration::from_secs(1));
        for _ in 0..3 {
            let Admission::Admitted { id, .. } = backlog.admit(now, &mortal) else { panic!("there is room") };
            backlog.written(MessageId::new(id.number() + 1));
        }
        refuse(&mut backlog, "t");
        let later = now + Duration::from_secs(1);
        let expired: Vec<_> = std::iter::from_fn(|| backlog.expire(later)).collect();
        assert_eq!(numbers(expired), [0, 1, 2], "each once");
        assert_eq!((backlog.poll_timeout(), backlog.messages(), backlog.bytes()), (None, 0, 0));
    }

    #[test]
    fn a_client_that_ends_accounts_for_them_in_order() {
        let mut backlog = on_disk(WhenFull::ShedOldest);
        for _ in 0..3 {
            store(&mut backlog, "t");
        }
        let newer = admit(&mut backlog, "t");
        assert_eq!(numbers(backlog.drain()), [0, 1, 2, 3]);
        assert!(backlog.stored(newer).is_empty() && backlog.withdraw(newer).is_none());
    }
}

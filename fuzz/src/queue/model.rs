//! Operations on the queue, beside a model that is a list and knows the rules as the documentation says them.

use std::time::{Duration, Instant};

use modax_mqtt_failover::queue::log::Log;
use modax_mqtt_failover::queue::segment::{Record, StoredMessage};
use modax_mqtt_failover::queue::{Admission, Admitted, Backlog};
use modax_mqtt_failover::{Message, MessageId, Queue, WhenFull};

use super::files::Files;
use super::salts;

const POLICIES: [WhenFull; 5] =
    [WhenFull::Wait, WhenFull::Reject, WhenFull::ShedOldest, WhenFull::ShedNewest, WhenFull::LatestPerTopic];

/// Policy, bounds, and whether there is a disk; then operations of two bytes each.
pub(crate) fn operations(data: &[u8]) {
    let Some((&[policy, bounds], steps)) = data.split_first_chunk::<2>() else { return };
    let policy = POLICIES[usize::from(policy) % POLICIES.len()];
    let (max_messages, max_bytes) = (usize::from(bounds % 8) + 1, 200 + usize::from(bounds / 8 % 16) * 60);
    let queue = Queue::memory().max_messages(max_messages).max_bytes(max_bytes).when_full(policy);
    let start = Instant::now();
    let mut both = Both {
        real: Backlog::new(queue.clone()),
        model: Model { policy, max_messages, max_bytes, entries: Vec::new(), next: 0 },
        queue,
        now: start,
        start,
        disk: (bounds >= 128).then(Disk::default),
    };
    both.restart();
    for step in steps.chunks_exact(2).take(500) {
        let [what, with] = *step else { continue };
        match what % 8 {
            0..=2 => both.admit(what, with),
            3 => both.take(),
            4 => both.settle(with),
            5 => both.pass(with),
            6 => both.commit(with % 4 != 0),
            _ => both.restart(),
        }
        both.compare();
    }
}

/// Where an entry of the model is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Waits for the disk.
    Unwritten,
    Waiting,
    /// Makes room for this one as soon as the disk has it; not counted meanwhile.
    Yielding(u64),
    Taken,
}

impl Stage {
    const fn is_yielding(self) -> bool {
        matches!(self, Self::Yielding(_))
    }

    /// On disk, if there is one, and not on its way.
    const fn waits(self) -> bool {
        matches!(self, Self::Waiting | Self::Yielding(_))
    }
}

#[derive(Clone, Debug)]
struct Entry {
    id: u64,
    topic: String,
    cost: usize,
    expires_at: Option<Instant>,
    stage: Stage,
}

/// A list, oldest first.
struct Model {
    policy: WhenFull,
    max_messages: usize,
    max_bytes: usize,
    entries: Vec<Entry>,
    next: u64,
}

/// What [`Model::admit`] decided.
#[derive(Debug, PartialEq, Eq)]
enum Decision {
    Admitted { id: u64, shed: Vec<u64> },
    Shed,
    Full,
    NeverFits,
}

impl Model {
    fn counted(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(|entry| !entry.stage.is_yielding())
    }

    fn bytes(&self) -> usize {
        self.counted().map(|entry| entry.cost).sum()
    }

    fn has_room(&self, cost: usize) -> bool {
        self.counted().count() < self.max_messages && self.bytes() + cost <= self.max_bytes
    }

    fn remove(&mut self, id: u64) -> Entry {
        let place = self.entries.iter().position(|entry| entry.id == id).expect("the model has it");
        self.entries.remove(place)
    }

    fn admit(&mut self, topic: &str, cost: usize, expires_at: Option<Instant>, stage: Stage) -> Decision {
        if cost > self.max_bytes {
            return Decision::NeverFits;
        }
        let before = self.entries.clone();
        let mut shed = Vec::new();
        while !self.has_room(cost) {
            let victim = match self.policy {
                WhenFull::ShedNewest => return Decision::Shed,
                WhenFull::ShedOldest => self.oldest(|_| true),
                WhenFull::LatestPerTopic => self.oldest(|entry| self.has_newer(entry, topic)).or(self.oldest(|_| true)),
                _ => None,
            };
            let Some(victim) = victim else {
                // Nothing is shed for nothing.
                self.entries = before;
                return Decision::Full;
            };
            if stage == Stage::Unwritten {
                let id = self.next;
                let victim = self.entries.iter_mut().find(|entry| entry.id == victim);
                victim.expect("the model has it").stage = Stage::Yielding(id);
            } else {
                shed.push(self.remove(victim).id);
            }
        }
        let id = self.next;
        self.next += 1;
        self.entries.push(Entry { id, topic: topic.to_owned(), cost, expires_at, stage });
        Decision::Admitted { id, shed }
    }

    /// The oldest that may be shed: what is on its way or waits for the disk may not.
    fn oldest(&self, fits: impl Fn(&Entry) -> bool) -> Option<u64> {
        self.entries.iter().find(|entry| entry.stage == Stage::Waiting && fits(entry)).map(|entry| entry.id)
    }

    /// Whether a newer message of its topic waits, or is to be admitted.
    fn has_newer(&self, entry: &Entry, newcomer: &str) -> bool {
        let waits = |other: &Entry| other.stage != Stage::Taken && !other.stage.is_yielding();
        let newer = |other: &Entry| other.id > entry.id && other.topic == entry.topic && waits(other);
        entry.topic == newcomer || self.entries.iter().any(newer)
    }

    fn take(&mut self, now: Instant) -> Option<u64> {
        let fresh = |entry: &&mut Entry| entry.stage != Stage::Taken && entry.expires_at.is_none_or(|at| at > now);
        let first = self.entries.iter_mut().find(fresh).filter(|entry| entry.stage.waits())?;
        first.stage = Stage::Taken;
        Some(first.id)
    }

    fn expire(&mut self, now: Instant) -> Vec<u64> {
        let late = |entry: &&Entry| entry.stage.waits() && entry.expires_at.is_some_and(|at| at <= now);
        let mut late: Vec<_> = self.entries.iter().filter(late).map(|entry| (entry.expires_at, entry.id)).collect();
        late.sort_unstable();
        late.into_iter().map(|(_, id)| self.remove(id).id).collect()
    }
}

/// A disk that keeps what was committed.
#[derive(Default)]
struct Disk {
    files: Files,
    pending: Vec<Record>,
    /// Has an outcome that the disk does not know: a crash brings it back.
    settling: Vec<Entry>,
}

struct Both {
    real: Backlog,
    model: Model,
    queue: Queue,
    start: Instant,
    now: Instant,
    disk: Option<Disk>,
}

impl Both {
    fn admit(&mut self, what: u8, with: u8) {
        let topic = format!("t/{}", what / 8 % 4);
        let payload = vec![with; usize::from(with % 16) * 16];
        let mut message = Message::new(topic.clone(), payload.clone());
        let ttl = Duration::from_secs(u64::from(with / 16));
        if with >= 128 {
            message = message.expires_in(ttl);
        }
        let expires_at = (with >= 128).then(|| self.now + ttl);
        let stage = if self.disk.is_some() { Stage::Unwritten } else { Stage::Waiting };
        let decision = self.model.admit(&topic, message.cost_bytes(), expires_at, stage);
        let real = match self.real.admit(self.now, &message) {
            Admission::Admitted { id, shed } => {
                Decision::Admitted { id: id.number(), shed: shed.iter().map(|(id, _)| id.number()).collect() }
            }
            Admission::Shed => Decision::Shed,
            Admission::Full => Decision::Full,
            Admission::NeverFits => Decision::NeverFits,
            other => panic!("unknown to the model: {other:?}"),
        };
        assert_eq!(real, decision, "admission of {} bytes by {:?}", message.cost_bytes(), self.model.policy);
        let (Some(disk), Decision::Admitted { id, .. }) = (&mut self.disk, decision) else { return };
        disk.pending.push(Record::Message(StoredMessage {
            sequence: id,
            qos_level: 1,
            retained: false,
            expires_at_unix_ms: expires_at.map(|at| (at - self.start).as_secs()),
            topic: topic.into(),
            user_properties: message.user_properties().clone(),
            payload: payload.into(),
        }));
    }

    fn take(&mut self) {
        let (real, model) = (self.real.take(self.now), self.model.take(self.now));
        assert_eq!(real.map(|taken| taken.id.number()), model, "taken");
    }

    fn settle(&mut self, with: u8) {
        let taken: Vec<_> = self.model.entries.iter().filter(|entry| entry.stage == Stage::Taken).collect();
        let Some(id) = taken.get(usize::from(with) % taken.len().max(1)).map(|entry| entry.id) else { return };
        let entry = self.model.remove(id);
        self.real.settle(MessageId::new(id));
        if let Some(disk) = &mut self.disk {
            disk.settle(entry);
        }
    }

    /// Time passes, and what is late is given up.
    fn pass(&mut self, with: u8) {
        self.now += Duration::from_secs(u64::from(with % 4));
        let before = self.model.entries.clone();
        let late = self.model.expire(self.now);
        let real: Vec<_> = std::iter::from_fn(|| self.real.expire(self.now)).map(|it| it.id.number()).collect();
        assert_eq!(real, late, "expired");
        let Some(disk) = &mut self.disk else { return };
        before.into_iter().filter(|entry| late.contains(&entry.id)).for_each(|entry| disk.settle(entry));
    }

    /// The disk has, or refuses, what was admitted.
    fn commit(&mut self, works: bool) {
        let Some(disk) = &mut self.disk else { return };
        if works {
            disk.commit();
        } else {
            // Outcomes are no admission: they are written with the next commit.
            disk.pending.retain(|record| matches!(record, Record::Settled(_)));
        }
        let answered: Vec<_> =
            self.model.entries.iter().filter(|entry| entry.stage == Stage::Unwritten).map(|entry| entry.id).collect();
        for id in answered {
            let yields = |entry: &&mut Entry| entry.stage == Stage::Yielding(id);
            if works {
                let shed: Vec<_> = self.real.stored(MessageId::new(id)).iter().map(|(id, _)| id.number()).collect();
                let victims: Vec<_> = self.model.entries.iter_mut().filter(yields).map(|entry| entry.id).collect();
                assert_eq!(shed, victims, "what made room for {id}");
                victims.into_iter().for_each(|victim| disk.settle(self.model.remove(victim)));
                self.model
                    .entries
                    .iter_mut()
                    .filter(|entry| entry.id == id)
                    .for_each(|entry| entry.stage = Stage::Waiting);
            } else {
                assert!(self.real.withdraw(MessageId::new(id)).is_some(), "it waited for the disk");
                self.model.remove(id);
                self.model.entries.iter_mut().filter(yields).for_each(|entry| entry.stage = Stage::Waiting);
            }
        }
        self.real.written(MessageId::new(self.model.next));
    }

    /// Killed and started again: what is on disk and has no outcome there waits, in order.
    fn restart(&mut self) {
        let Some(disk) = &mut self.disk else { return };
        disk.pending.clear();
        let entries = &mut self.model.entries;
        entries.retain(|entry| entry.stage != Stage::Unwritten);
        entries.append(&mut disk.settling);
        entries.iter_mut().for_each(|entry| entry.stage = Stage::Waiting);
        entries.sort_by_key(|entry| entry.id);

        let (_, found) = Log::open(&mut disk.files, 900, salts(self.model.next)).expect("memory does not fail");
        assert!(found.damaged.is_empty(), "{:?}", found.damaged);
        // Numbers that no record on disk bears may be given again.
        assert!(found.next_sequence <= self.model.next);
        self.model.next = found.next_sequence;
        let start = self.start;
        let messages = found.messages.into_iter().map(|stored| admitted(stored, start));
        self.real = Backlog::new(self.queue.clone());
        self.real.recover(messages.collect(), found.next_sequence);
    }

    fn compare(&self) {
        let (real, model) = (&self.real, &self.model);
        assert_eq!((real.messages(), real.bytes()), (model.counted().count(), model.bytes()));
        let waiting = model.counted().filter(|entry| entry.stage != Stage::Taken).count();
        assert_eq!(real.waiting(), waiting);
        let waiting = model.entries.iter().filter(|entry| entry.stage.waits());
        assert_eq!(real.poll_timeout(), waiting.filter_map(|entry| entry.expires_at).min());
        // What a crash brought back may be more: it had been let go, and others came in its place.
        if self.disk.is_none() {
            assert!(real.messages() <= model.max_messages && real.bytes() <= model.max_bytes, "beyond the bounds");
        }
    }
}

impl Disk {
    fn settle(&mut self, entry: Entry) {
        self.pending.push(Record::Settled(entry.id));
        self.settling.push(entry);
    }

    fn commit(&mut self) {
        // A file of its own for each commit: the shortest way to many files.
        let (mut log, _) =
            Log::open(&mut self.files, 900, salts(self.pending.len() as u64)).expect("memory does not fail");
        for record in self.pending.drain(..) {
            log.push(record).expect("it is small");
        }
        log.commit().expect("memory does not fail");
        self.settling.clear();
    }
}

/// As the driver restores it.
fn admitted(stored: StoredMessage, start: Instant) -> Admitted {
    let message = Message::new(&*stored.topic, stored.payload);
    let mut scratch = Backlog::new(Queue::memory());
    assert!(matches!(scratch.admit(start, &message), Admission::Admitted { .. }));
    let mut admitted = scratch.take(start).expect("it was admitted");
    admitted.id = MessageId::new(stored.sequence);
    admitted.expires_at = stored.expires_at_unix_ms.map(|seconds| start + Duration::from_secs(seconds));
    admitted
}

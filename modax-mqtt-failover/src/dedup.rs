//! Each message once for a handler: tells first copies from repeats, in bounded memory.
//!
//! A broker that does not hear an acknowledgement sends again, and a publisher that changes brokers publishes again:
//! at least once is all that QoS 1 can give between independent brokers. What a message *is* survives both, so a
//! window over identities makes it once again. The payload is never altered for it: the identity comes with the
//! message (the user property `modax-id` in MQTT 5, which a client that is [`stamping`] adds) or out of it (an id that
//! the payload carries anyway).
//!
//! [`stamping`]: crate::ClientBuilder::stamping

#[cfg(feature = "tokio")]
mod consumer;
mod identity;
mod stamp;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    num::NonZeroUsize,
    sync::Arc,
};

use bytes::Bytes;

pub use identity::Identity;
pub use stamp::Stamp;

/// What a [`Dedup`] says of one delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// Not seen before: handle it.
    First,
    /// Seen before: acknowledge it and do nothing.
    Repeat,
    /// Its number is below the window, so it may be either. Handling it risks a second time, dropping it a loss: the
    /// caller decides.
    TooOldToTell,
    /// It does not say what it is, or at such length that nobody remembers it, so it may be either as well.
    Unidentified,
}

/// What a [`Dedup`] has said so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DedupStats {
    /// First copies.
    pub first: u64,
    /// Repeats.
    pub repeats: u64,
    /// Deliveries below the window.
    pub too_old: u64,
    /// Deliveries that did not say what they are.
    pub unidentified: u64,
    /// Identities and producers forgotten to stay within bounds.
    pub forgotten: u64,
}

/// A window over identities, in memory; with [`check_in`](Self::check_in) the caller's own memory takes its place.
///
/// ```
/// # use modax_mqtt_failover::{Bytes, dedup::{Dedup, Identity, Verdict}};
/// let mut dedup = Dedup::new(10_000.try_into().unwrap());
/// let command = Identity::Opaque(Bytes::from_static(b"7b1e6b0a"));
/// assert_eq!(dedup.check(&command), Verdict::First);
/// assert_eq!(dedup.check(&command), Verdict::Repeat);
/// ```
pub struct Dedup {
    /// Identities of each producer, and of none; 0 remembers nothing.
    window: usize,
    producers: BTreeMap<(Arc<str>, u64), Producer>,
    max_producers: usize,
    /// Counts checks, to know which producer was silent longest.
    clock: u64,
    opaque: BTreeSet<Bytes>,
    opaque_order: VecDeque<Bytes>,
    /// Where identities come from, if not from the standard user property.
    #[cfg(feature = "tokio")]
    identify: Option<consumer::Identify>,
    stats: DedupStats,
}

#[derive(Default)]
struct Producer {
    /// Every number below it has left the window.
    floor: u64,
    seen: BTreeSet<u64>,
    used: u64,
}

impl Dedup {
    /// Producers remembered at once unless [`max_producers`](Self::max_producers) says otherwise.
    pub const DEFAULT_PRODUCERS: usize = 10_000;

    /// Remembers `window` identities of each producer, and as many without a producer.
    ///
    /// Choose it above what can be on its way at once: a producer's queue, and what a broker keeps for a client that
    /// is away.
    #[must_use]
    pub fn new(window: NonZeroUsize) -> Self {
        Self { window: window.get(), ..Self::without_window() }
    }

    /// Remembers nothing itself, for use with [`check_in`](Self::check_in): to [`check`](Self::check) everything is
    /// [`Verdict::TooOldToTell`].
    #[must_use]
    pub const fn without_window() -> Self {
        Self {
            window: 0,
            producers: BTreeMap::new(),
            max_producers: Self::DEFAULT_PRODUCERS,
            clock: 0,
            opaque: BTreeSet::new(),
            opaque_order: VecDeque::new(),
            #[cfg(feature = "tokio")]
            identify: None,
            stats: DedupStats { first: 0, repeats: 0, too_old: 0, unidentified: 0, forgotten: 0 },
        }
    }

    /// How many producers are remembered at once, each start of one by itself; default
    /// [`DEFAULT_PRODUCERS`](Self::DEFAULT_PRODUCERS). The one that was silent longest is forgotten for another, counted in
    /// [`DedupStats::forgotten`], and its repeats are then taken for first copies: choose it above the number of publishers,
    /// and of their restarts within the time in which copies come. Each may take as much memory as the window.
    #[must_use]
    pub const fn max_producers(mut self, producers: NonZeroUsize) -> Self {
        self.max_producers = producers.get();
        self
    }

    /// Says what a delivery with this identity is, and remembers it.
    ///
    /// One longer than [`Identity::MAX_BYTES`] is not remembered: [`Verdict::Unidentified`].
    ///
    /// An identity that was checked is a repeat from then on: where handling it failed, [take it back](Self::take_back),
    /// or its next copy is taken for done.
    pub fn check(&mut self, identity: &Identity) -> Verdict {
        let verdict = match identity {
            _ if !identity.is_bounded() => Verdict::Unidentified,
            _ if self.window == 0 => Verdict::TooOldToTell,
            Identity::Counted { producer, epoch, sequence } => self.check_counted(producer, *epoch, *sequence),
            Identity::Opaque(id) => self.check_opaque(id),
        };
        self.count(verdict)
    }

    /// Forgets an identity whose delivery could not be handled, so that its next copy is a first one. One that has left
    /// the window meanwhile stays [`Verdict::TooOldToTell`].
    pub fn take_back(&mut self, identity: &Identity) {
        match identity {
            Identity::Counted { producer, epoch, sequence } => {
                if let Some(producer) = self.producers.get_mut(&(Arc::clone(producer), *epoch)) {
                    producer.seen.remove(sequence);
                }
            }
            Identity::Opaque(id) => {
                if self.opaque.remove(id)
                    && let Some(place) = self.opaque_order.iter().rposition(|other| other == id)
                {
                    self.opaque_order.remove(place);
                }
            }
        }
    }

    /// What was said so far.
    #[must_use]
    pub const fn stats(&self) -> DedupStats {
        self.stats
    }

    fn count(&mut self, verdict: Verdict) -> Verdict {
        let count = match verdict {
            Verdict::First => &mut self.stats.first,
            Verdict::Repeat => &mut self.stats.repeats,
            Verdict::TooOldToTell => &mut self.stats.too_old,
            Verdict::Unidentified => &mut self.stats.unidentified,
        };
        *count = count.saturating_add(1);
        verdict
    }

    fn check_counted(&mut self, name: &Arc<str>, epoch: u64, sequence: u64) -> Verdict {
        self.clock = self.clock.saturating_add(1);
        let key = (Arc::clone(name), epoch);
        if !self.producers.contains_key(&key) && self.producers.len() >= self.max_producers {
            let silent = self.producers.iter().min_by_key(|(_, producer)| producer.used).map(|(key, _)| key.clone());
            if let Some(silent) = silent {
                self.producers.remove(&silent);
                self.stats.forgotten = self.stats.forgotten.saturating_add(1);
            }
        }
        let producer = self.producers.entry(key).or_default();
        producer.used = self.clock;
        if producer.seen.contains(&sequence) {
            return Verdict::Repeat;
        }
        if sequence < producer.floor {
            return Verdict::TooOldToTell;
        }
        producer.seen.insert(sequence);
        if producer.seen.len() > self.window
            && let Some(lowest) = producer.seen.pop_first()
        {
            producer.floor = lowest.saturating_add(1);
        }
        Verdict::First
    }

    fn check_opaque(&mut self, id: &Bytes) -> Verdict {
        // A slice of a received buffer would keep all of that buffer alive for as long as the window remembers it.
        let own = Bytes::copy_from_slice(id);
        if !self.opaque.insert(own.clone()) {
            return Verdict::Repeat;
        }
        self.opaque_order.push_back(own);
        if self.opaque_order.len() > self.window
            && let Some(oldest) = self.opaque_order.pop_front()
        {
            self.opaque.remove(&oldest);
            self.stats.forgotten = self.stats.forgotten.saturating_add(1);
        }
        Verdict::First
    }
}

impl fmt::Debug for Dedup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dedup").field("window", &self.window).field("stats", &self.stats).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn counted(producer: &str, epoch: u64, sequence: u64) -> Identity {
        Identity::Counted { producer: producer.into(), epoch, sequence }
    }

    fn dedup(window: usize) -> Dedup {
        Dedup::new(NonZeroUsize::new(window).unwrap())
    }

    #[test]
    fn what_is_too_long_to_be_remembered_is_no_identity() {
        let mut dedup = dedup(2);
        let [longest, longer] = [Identity::MAX_BYTES, Identity::MAX_BYTES + 1].map(|bytes| "x".repeat(bytes));
        for verdict in [Verdict::First, Verdict::Repeat] {
            assert_eq!(dedup.check(&Identity::Opaque(longest.clone().into())), verdict);
            assert_eq!(dedup.check(&counted(&longest, 1, 1)), verdict);
        }
        for _ in 0..2 {
            assert_eq!(dedup.check(&Identity::Opaque(longer.clone().into())), Verdict::Unidentified);
            assert_eq!(dedup.check(&counted(&longer, 1, 1)), Verdict::Unidentified);
        }
        assert_eq!((dedup.stats().unidentified, dedup.opaque.len(), dedup.producers.len()), (4, 1, 1));
    }

    proptest! {
        #[test]
        fn nothing_is_first_twice_and_nothing_unseen_is_a_repeat(sequences in prop::collection::vec((0..2u64, 0..60u64), 1..200), window in 1..40usize) {
            let mut dedup = dedup(window);
            let mut seen = BTreeSet::new();
            for (epoch, sequence) in sequences {
                match dedup.check(&counted("p", epoch, sequence)) {
                    Verdict::First => prop_assert!(seen.insert((epoch, sequence))),
                    Verdict::Repeat => prop_assert!(seen.contains(&(epoch, sequence))),
                    Verdict::TooOldToTell => {
                        let newer = seen.iter().filter(|(e, s)| *e == epoch && *s > sequence).count();
                        prop_assert!(newer >= window, "only {newer} newer ones were seen");
                    }
                    Verdict::Unidentified => prop_assert!(false, "it has an identity"),
                }
            }
        }
    }

    #[test]
    fn a_producer_whose_queue_began_anew_is_not_taken_for_its_old_self() {
        let mut dedup = dedup(10);
        assert_eq!(dedup.check(&counted("p", 1, 0)), Verdict::First);
        assert_eq!(dedup.check(&counted("p", 2, 0)), Verdict::First);
        assert_eq!(dedup.check(&counted("p", 1, 0)), Verdict::Repeat);
    }

    #[test]
    fn what_was_taken_back_is_first_again_and_costs_no_other_its_place() {
        let mut dedup = dedup(2);
        for identity in [|n| counted("p", 1, n), |n: u64| Identity::Opaque(Bytes::from(n.to_string()))] {
            assert_eq!(dedup.check(&identity(1)), Verdict::First);
            assert_eq!(dedup.check(&identity(2)), Verdict::First);
            dedup.take_back(&identity(1));
            dedup.take_back(&identity(9));
            assert_eq!(dedup.check(&identity(1)), Verdict::First);
            assert_eq!(dedup.check(&identity(2)), Verdict::Repeat);
            assert_eq!(dedup.check(&identity(1)), Verdict::Repeat);
        }
        assert_eq!(dedup.stats().forgotten, 0);
    }

    #[test]
    fn without_a_window_nothing_can_be_told_and_nothing_is_kept() {
        let mut dedup = Dedup::without_window();
        for identity in [counted("p", 1, 1), Identity::Opaque(Bytes::from_static(b"x"))] {
            assert_eq!(dedup.check(&identity), Verdict::TooOldToTell);
            assert_eq!(dedup.check(&identity), Verdict::TooOldToTell);
        }
        assert!(dedup.producers.is_empty() && dedup.opaque.is_empty());
    }

    #[test]
    fn memory_stays_bounded_whatever_arrives() {
        let mut dedup = dedup(5).max_producers(NonZeroUsize::new(1024).unwrap());
        for n in 0..3000 {
            dedup.check(&counted(&format!("producer {n}"), 0, n));
            dedup.check(&Identity::Opaque(Bytes::from(n.to_string())));
        }
        assert_eq!(dedup.producers.len(), 1024);
        assert_eq!((dedup.opaque.len(), dedup.opaque_order.len()), (5, 5));
        assert_eq!(dedup.stats().forgotten, 3000 - 1024 + 3000 - 5);
    }
}

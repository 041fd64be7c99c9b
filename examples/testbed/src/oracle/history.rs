//! Histories by key and sequence: what was sent, what was promised, what arrived.

use std::collections::BTreeMap;

/// Collects what happened to numbered messages, for each key (a topic, a device, an account) by itself.
///
/// *Sent* gives the order, *promised* (acknowledged, committed) makes it owed, *received* is what the reader saw.
#[derive(Clone, Debug, Default)]
pub struct PerKeyHistory<K> {
    keys: BTreeMap<K, History>,
}

#[derive(Clone, Debug, Default)]
struct History {
    /// Sequence number to its place in the order of sending.
    sent: BTreeMap<u64, Sent>,
    received: Vec<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Sent {
    place: usize,
    promised: bool,
}

/// What went wrong, key by key; each list in order.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HistoryVerdict<K> {
    /// Messages sent.
    pub sent: u64,
    /// Messages promised.
    pub promised: u64,
    /// Messages received, repeats included.
    pub received: u64,
    /// Promised and never received.
    pub lost: Vec<(K, u64)>,
    /// Received more than once, with how often.
    pub duplicated: Vec<(K, u64, u64)>,
    /// First received after one that was sent later.
    pub reordered: Vec<(K, u64)>,
    /// Received and never sent.
    pub phantoms: Vec<(K, u64)>,
}

impl<K: Ord + Clone> PerKeyHistory<K> {
    /// An empty history.
    pub fn new() -> Self {
        Self { keys: BTreeMap::new() }
    }

    /// The message was given to the code under test, after those recorded before. A second call changes nothing.
    pub fn sent(&mut self, key: K, sequence: u64) {
        self.keys.entry(key).or_default().send(sequence);
    }

    /// The code under test said that the message is safe.
    pub fn promised(&mut self, key: K, sequence: u64) {
        let history = self.keys.entry(key).or_default();
        history.send(sequence);
        if let Some(sent) = history.sent.get_mut(&sequence) {
            sent.promised = true;
        }
    }

    /// The reader saw the message, after those recorded before.
    pub fn received(&mut self, key: K, sequence: u64) {
        self.keys.entry(key).or_default().received.push(sequence);
    }

    /// Judges.
    #[must_use]
    pub fn verdict(&self) -> HistoryVerdict<K> {
        let mut verdict = HistoryVerdict {
            sent: 0,
            promised: 0,
            received: 0,
            lost: Vec::new(),
            duplicated: Vec::new(),
            reordered: Vec::new(),
            phantoms: Vec::new(),
        };
        for (key, history) in &self.keys {
            history.judge(key, &mut verdict);
        }
        verdict
    }
}

impl History {
    fn send(&mut self, sequence: u64) {
        let place = self.sent.len();
        self.sent.entry(sequence).or_insert(Sent { place, promised: false });
    }

    fn judge<K: Clone>(&self, key: &K, verdict: &mut HistoryVerdict<K>) {
        let mut times = BTreeMap::new();
        let mut furthest = None;
        for sequence in &self.received {
            let seen: &mut u64 = times.entry(*sequence).or_default();
            *seen += 1;
            if *seen > 1 {
                continue;
            }
            let Some(Sent { place, .. }) = self.sent.get(sequence) else {
                verdict.phantoms.push((key.clone(), *sequence));
                continue;
            };
            if furthest.is_some_and(|furthest| *place < furthest) {
                verdict.reordered.push((key.clone(), *sequence));
            }
            furthest = furthest.max(Some(*place));
        }
        let promised = self.sent.iter().filter(|(_, sent)| sent.promised).map(|(sequence, _)| *sequence);
        verdict.sent += self.sent.len() as u64;
        verdict.promised += promised.clone().count() as u64;
        verdict.received += self.received.len() as u64;
        verdict.lost.extend(promised.filter(|sequence| !times.contains_key(sequence)).map(|it| (key.clone(), it)));
        let repeated = times.into_iter().filter(|(_, seen)| *seen > 1);
        verdict.duplicated.extend(repeated.map(|(sequence, seen)| (key.clone(), sequence, seen)));
    }
}

impl<K> HistoryVerdict<K> {
    /// Whether nothing was lost, reordered or made up. Repeats are counted apart: at least once allows them.
    pub fn is_clean(&self) -> bool {
        self.lost.is_empty() && self.reordered.is_empty() && self.phantoms.is_empty()
    }

    /// Whether nothing came twice either.
    pub fn is_exactly_once(&self) -> bool {
        self.is_clean() && self.duplicated.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::PerKeyHistory;

    /// Three messages for each of two keys, all promised, received as given.
    fn judged(received: &[(&'static str, u64)]) -> super::HistoryVerdict<&'static str> {
        let mut history = PerKeyHistory::new();
        for sequence in 1..=3 {
            for key in ["a", "b"] {
                history.sent(key, sequence);
                history.promised(key, sequence);
            }
        }
        for (key, sequence) in received {
            history.received(*key, *sequence);
        }
        history.verdict()
    }

    #[test]
    fn a_whole_history_is_clean_whatever_the_order_between_keys() {
        let verdict = judged(&[("b", 1), ("b", 2), ("b", 3), ("a", 1), ("a", 2), ("a", 3)]);
        assert!(verdict.is_exactly_once());
        assert_eq!((verdict.sent, verdict.promised, verdict.received), (6, 6, 6));
    }

    #[test]
    fn a_planted_loss_is_found() {
        let verdict = judged(&[("a", 1), ("a", 3), ("b", 1), ("b", 2), ("b", 3)]);
        assert_eq!(verdict.lost, [("a", 2)]);
        assert!(!verdict.is_clean());
    }

    #[test]
    fn a_planted_duplicate_is_found_and_is_no_reordering() {
        let verdict = judged(&[("a", 1), ("a", 2), ("a", 1), ("a", 3), ("a", 1), ("b", 1), ("b", 2), ("b", 3)]);
        assert_eq!(verdict.duplicated, [("a", 1, 3)]);
        assert!(verdict.is_clean() && !verdict.is_exactly_once());
    }

    #[test]
    fn a_planted_reordering_is_found_by_first_receipts_alone() {
        let verdict = judged(&[("a", 1), ("a", 3), ("a", 2), ("b", 1), ("b", 2), ("b", 3)]);
        assert_eq!(verdict.reordered, [("a", 2)]);
    }

    #[test]
    fn a_phantom_is_found_and_what_was_not_promised_is_not_lost() {
        let mut history = PerKeyHistory::new();
        history.sent("a", 1);
        history.received("a", 9);
        let verdict = history.verdict();
        assert_eq!(verdict.phantoms, [("a", 9)]);
        assert!(verdict.lost.is_empty() && !verdict.is_clean());
    }
}

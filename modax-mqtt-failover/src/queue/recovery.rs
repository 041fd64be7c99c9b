//! Reads all files of a queue and says which messages are without an outcome.

use std::{cmp::Reverse, collections::BTreeMap};

use bytes::Bytes;

use super::{
    log::{Live, length},
    scan::{Damage, Found, Scan},
    segment::{Record, SegmentId, StoredMessage},
};

/// What [`Log::open`](super::log::Log::open) found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Messages without an outcome, in order of admission.
    pub messages: Vec<StoredMessage>,
    /// The first sequence never used.
    pub next_sequence: u64,
    /// Stretches that held no readable record, with the name of their file. One at the end of a file may be no more
    /// than a write cut short, of which nobody was told that it was on disk.
    pub damaged: Vec<(String, Damage)>,
}

/// What has been read of the files so far.
#[derive(Default)]
pub(super) struct Reading {
    pub(super) segments: BTreeMap<SegmentId, u64>,
    messages: Vec<Live>,
    settled: Vec<(u64, SegmentId)>,
    pub(super) damaged: Vec<(String, Damage)>,
    pub(super) next_sequence: u64,
}

impl Reading {
    pub(super) fn read(&mut self, segment: SegmentId, content: Bytes) {
        self.segments.insert(segment, length(content.len()));
        for found in Scan::new(segment, content) {
            let sequence = match found {
                Found::Damage(damage) => {
                    self.damaged.push((segment.file_name(), damage));
                    continue;
                }
                Found::Record { record: Record::Settled(sequence), .. } => {
                    self.settled.push((sequence, segment));
                    sequence
                }
                Found::Record { record: Record::Message(message), .. } => {
                    let sequence = message.sequence;
                    self.messages.push(Live { segment, message });
                    sequence
                }
            };
            self.next_sequence = self.next_sequence.max(sequence.saturating_add(1));
        }
    }

    /// Messages without an outcome, and what has to be written again: outcomes that stand in an earlier file than their
    /// message, because somebody renamed files, and would be deleted first.
    ///
    /// Of two copies the later one counts, so that an earlier file can go. All is nearly sorted already, which the
    /// sorts and the building of the map make use of.
    pub(super) fn live(mut self) -> (BTreeMap<u64, Live>, BTreeMap<u64, SegmentId>) {
        self.settled.sort_by_key(|(sequence, segment)| (*sequence, Reverse(*segment)));
        // Equals keep their order: of two in one file the later is to come first.
        self.messages.reverse();
        self.messages.sort_by_key(|live| (live.message.sequence, Reverse(live.segment)));
        self.messages.dedup_by_key(|live| live.message.sequence);
        let mut again = BTreeMap::new();
        let mut settled = self.settled.into_iter().peekable();
        self.messages.retain(|live| {
            let sequence = live.message.sequence;
            while settled.next_if(|(settled, _)| *settled < sequence).is_some() {}
            let Some((_, in_file)) = settled.peek().filter(|(settled, _)| *settled == sequence) else { return true };
            if *in_file < live.segment {
                again.insert(sequence, live.segment);
            }
            false
        });
        // What is kept is little where most of a file is settled: not with the whole file around it.
        let own = |Live { segment, message }: Live| (message.sequence, Live { segment, message: message.detached() });
        (self.messages.into_iter().map(own).collect(), again)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::queue::segment::encode;

    struct File {
        content: Vec<u8>,
        _held: Arc<()>,
    }

    impl AsRef<[u8]> for File {
        fn as_ref(&self) -> &[u8] {
            &self.content
        }
    }

    #[test]
    fn a_message_that_is_kept_does_not_keep_its_file_in_memory() {
        let segment = SegmentId::new(0, 1);
        let message = StoredMessage {
            sequence: 3,
            qos_level: 1,
            retained: false,
            expires_at_unix_ms: None,
            topic: Arc::from("t"),
            user_properties: crate::UserProperties::default(),
            payload: Bytes::from_static(b"kept"),
        };
        let mut content = segment.header();
        encode(segment, &Record::Message(message.clone()), &mut content).unwrap();
        let held = Arc::new(());
        let mut reading = Reading::default();
        reading.read(segment, Bytes::from_owner(File { content, _held: Arc::clone(&held) }));
        assert_eq!(Arc::strong_count(&held), 2, "it is sliced while it is read");

        let (live, _) = reading.live();

        assert_eq!(live.get(&3).map(|live| &live.message), Some(&message));
        assert_eq!(Arc::strong_count(&held), 1);
    }
}

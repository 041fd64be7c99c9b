//! Reads a queue file: every record whose checks hold, and every stretch between them that is none.

use std::sync::Arc;

use bytes::Bytes;

use super::segment::{
    FLAG_EXPIRES, FLAG_PROPERTIES, FLAG_QOS, FLAG_RETAINED, FRAME_BYTES, FRAME_MARK, HEADER_BYTES, KIND_MESSAGE,
    KIND_SETTLED, MAX_BODY_BYTES, Record, SegmentId, StoredMessage, head_check, seed,
};
use crate::properties::UserProperties;

/// A stretch of a file that holds no readable record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Where it begins, in bytes.
    pub offset: u64,
    /// How long it is.
    pub bytes: u64,
    /// Whether it may be no more than a write that a crash cut short: the file ends in the beginning of a record, or in
    /// zeros. A last record that is all there and does not hold is damage like any other.
    pub cut_short: bool,
}

/// What a file holds, in the order of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// A record whose checks hold.
    Record {
        /// Where its frame begins.
        offset: u64,
        /// What it says.
        record: Record,
    },
    /// Bytes that are no record.
    Damage(Damage),
}

/// Reads a file: every record whose checks hold, and every stretch between them that is none.
#[derive(Clone, Debug)]
pub struct Scan {
    seed: u32,
    bytes: Bytes,
    at: usize,
    /// A header that does not hold.
    header: Option<Damage>,
    /// Of the message before: most queues hold few topics, and equal neighbours share one.
    topic: Option<Arc<str>>,
}

impl Scan {
    /// A scan of the whole content of the file named `segment`. Where the header holds and says otherwise, the file
    /// has been renamed, and the header counts.
    #[must_use]
    pub fn new(segment: SegmentId, bytes: Bytes) -> Self {
        let header = SegmentId::from_header(&bytes);
        let seed = seed(header.unwrap_or(segment));
        let mut scan = Self { seed, bytes, at: HEADER_BYTES, header: None, topic: None };
        if header.is_none() {
            // Bytes of the header may be missing, and the first frame stand nearer.
            scan.at = scan.next_frame(0).map_or(HEADER_BYTES, |at| at.min(HEADER_BYTES));
            scan.header = scan.damaged_header(scan.at);
        }
        scan
    }

    /// The records behind it are read by the salt in the file's name, and would be unreadable under another one.
    fn damaged_header(&self, end: usize) -> Option<Damage> {
        let there = self.bytes.get(..end).unwrap_or(&self.bytes);
        let bytes = u64::try_from(there.len()).ok().filter(|bytes| *bytes > 0)?;
        let is_cut = there.len() < HEADER_BYTES || there.iter().all(|byte| *byte == 0);
        Some(Damage { offset: 0, bytes, cut_short: is_cut && there.len() == self.bytes.len() })
    }

    /// The body length of the frame at `at`, if a frame begins there.
    fn length_at(&self, at: usize) -> Option<usize> {
        let head = self.bytes.get(at..at.checked_add(FRAME_BYTES)?)?;
        let (mark, rest) = head.split_first_chunk::<4>()?;
        let (length, rest) = rest.split_first_chunk::<4>()?;
        let (check, _) = rest.split_first_chunk::<4>()?;
        let length = u32::from_le_bytes(*length);
        let holds = *mark == FRAME_MARK && u32::from_le_bytes(*check) == head_check(self.seed, length);
        usize::try_from(length).ok().filter(|length| holds && *length <= MAX_BODY_BYTES)
    }

    fn record_at(&mut self, at: usize, length: usize) -> Option<Record> {
        let start = at.checked_add(FRAME_BYTES)?;
        let body = self.bytes.get(start..start.checked_add(length)?)?;
        let (_, check) = self.bytes.get(at..start)?.split_last_chunk::<4>()?;
        if u32::from_le_bytes(*check) != crc32c::crc32c_append(self.seed, body) {
            return None;
        }
        decode(&self.bytes.slice(start..start.checked_add(length)?), &mut self.topic)
    }

    /// Whether what follows `at` can be the beginning of a record, or room for one: a crash leaves both.
    fn is_cut_short(&self, at: usize) -> bool {
        let Some(rest) = self.bytes.get(at..) else { return true };
        let mark = FRAME_MARK.get(..rest.len()).unwrap_or(&FRAME_MARK);
        match self.length_at(at) {
            Some(length) => rest.len() < FRAME_BYTES.saturating_add(length),
            None => rest.iter().all(|byte| *byte == 0) || (rest.len() < FRAME_BYTES && rest.starts_with(mark)),
        }
    }

    /// Where the next frame begins, from `from` on.
    fn next_frame(&self, from: usize) -> Option<usize> {
        let rest = self.bytes.get(from..)?;
        let marks = rest.windows(FRAME_MARK.len()).enumerate().filter(|(_, window)| *window == FRAME_MARK);
        marks.filter_map(|(step, _)| from.checked_add(step)).find(|at| self.length_at(*at).is_some())
    }
}

impl Iterator for Scan {
    type Item = Found;

    fn next(&mut self) -> Option<Found> {
        if let Some(damage) = self.header.take() {
            return Some(Found::Damage(damage));
        }
        let start = self.at;
        if start >= self.bytes.len() {
            return None;
        }
        let offset = u64::try_from(start).ok()?;
        if let Some(length) = self.length_at(start)
            && let Some(record) = self.record_at(start, length)
        {
            self.at = start.saturating_add(FRAME_BYTES).saturating_add(length);
            return Some(Found::Record { offset, record });
        }
        // Not by the length, even where the head holds: bytes may be missing inside, and the next frame stand nearer.
        let end = self.next_frame(start.saturating_add(1)).unwrap_or(self.bytes.len());
        self.at = end;
        let bytes = u64::try_from(end.saturating_sub(start)).ok()?;
        let cut_short = end >= self.bytes.len() && self.is_cut_short(start);
        Some(Found::Damage(Damage { offset, bytes, cut_short }))
    }
}

pub(super) fn decode(body: &Bytes, before: &mut Option<Arc<str>>) -> Option<Record> {
    let (kind, rest) = body.split_first()?;
    let (sequence, rest) = rest.split_first_chunk::<8>()?;
    let sequence = u64::from_le_bytes(*sequence);
    if *kind == KIND_SETTLED {
        return rest.is_empty().then_some(Record::Settled(sequence));
    }
    if *kind != KIND_MESSAGE {
        return None;
    }
    let (flags, rest) = rest.split_first()?;
    // Written by a version that knows more than this one: what follows cannot be told apart.
    if flags & !(FLAG_QOS | FLAG_RETAINED | FLAG_EXPIRES | FLAG_PROPERTIES) != 0 {
        return None;
    }
    let (expiry, rest) = rest.split_first_chunk::<8>()?;
    let (topic, mut rest) = decode_text(rest)?;
    let mut user_properties = UserProperties::default();
    if flags & FLAG_PROPERTIES != 0 {
        let (count, pairs) = rest.split_first_chunk::<2>()?;
        rest = pairs;
        for _ in 0..u16::from_le_bytes(*count) {
            let (name, value) = decode_text(rest)?;
            let (value, after) = decode_text(value)?;
            user_properties.push(name, value);
            rest = after;
        }
    }
    let payload_at = body.len().checked_sub(rest.len())?;
    Some(Record::Message(StoredMessage {
        sequence,
        qos_level: Some(flags & FLAG_QOS).filter(|level| *level <= 2)?,
        retained: flags & FLAG_RETAINED != 0,
        expires_at_unix_ms: (flags & FLAG_EXPIRES != 0).then_some(u64::from_le_bytes(*expiry)),
        topic: shared(topic, before),
        user_properties,
        payload: body.slice(payload_at..),
    }))
}

/// A text with its length before it, and what follows.
fn decode_text(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<2>()?;
    let (text, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes(*length)))?;
    Some((std::str::from_utf8(text).ok()?, rest))
}

fn shared(topic: &str, before: &mut Option<Arc<str>>) -> Arc<str> {
    if let Some(same) = before.as_ref().filter(|before| ***before == *topic) {
        return Arc::clone(same);
    }
    Arc::clone(before.insert(Arc::from(topic)))
}

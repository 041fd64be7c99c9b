//! Format of one queue file: bytes in, records out, and the other way round. No file is touched here.
//!
//! A file is a header and then frames, one a record:
//!
//! | frame | bytes | what |
//! |---|---|---|
//! | mark | 4 | `MQR1`, to find the next frame behind damage |
//! | length | 4 | of the body, little endian |
//! | head check | 4 | CRC-32C of salt, mark and length |
//! | body check | 4 | CRC-32C of salt and body |
//! | body | length | kind, sequence, and for a message its flags, expiry, topic, user properties if any, and payload |
//!
//! The head has a check of its own, so that a frame can be told from a payload that looks like one. Both
//! checks cover the file's random salt, so that a payload that holds another queue file, or a block that once
//! belonged to one, is never taken for a frame of this file. They do not cover the frame's place: bytes lost or added
//! in the middle cost only the frames they hit. A copy of a frame of this very file is harmless, because a sequence
//! counts once. The salt stands in the header and in the file's name: a damaged header costs nothing, nor does a file
//! that was renamed.
//!
//! CRC-32C finds every change of up to three bits at these lengths, and every burst of up to 32; it is a guard against
//! accidents, not against somebody who writes to the file on purpose.

use std::{fmt, sync::Arc};

use bytes::Bytes;

use crate::properties::UserProperties;

/// Bytes before the first frame.
pub const HEADER_BYTES: usize = 32;
/// Bytes of a frame before its body.
pub const FRAME_BYTES: usize = 16;
/// Largest body: a full MQTT packet (MQTT 3.1.1, 2.2.3) and our own fields. Checked before anything is allocated.
pub const MAX_BODY_BYTES: usize = 268_435_455 + 64;

const FILE_MARK: [u8; 8] = *b"MODAXMQ1";
pub(super) const FRAME_MARK: [u8; 4] = *b"MQR1";
pub(super) const KIND_MESSAGE: u8 = 1;
pub(super) const KIND_SETTLED: u8 = 2;
/// Bytes of a message's body beside topic, properties and payload: kind, sequence, flags, expiry, length of the topic,
/// count of the properties.
const MESSAGE_BYTES: usize = 1 + 8 + 1 + 8 + 2 + 2;
pub(super) const FLAG_QOS: u8 = 0b011;
pub(super) const FLAG_RETAINED: u8 = 0b100;
pub(super) const FLAG_EXPIRES: u8 = 0b1000;
/// Absent from files of older versions, which had none.
pub(super) const FLAG_PROPERTIES: u8 = 0b1_0000;

/// Which file of a queue, and the salt of its checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SegmentId {
    number: u64,
    salt: u64,
}

impl SegmentId {
    /// The file with this number; `salt` is random, made when the file is.
    #[must_use]
    pub const fn new(number: u64, salt: u64) -> Self {
        Self { number, salt }
    }

    /// Its place in the order of files.
    #[must_use]
    pub const fn number(self) -> u64 {
        self.number
    }

    /// What its checks are salted with.
    #[must_use]
    pub const fn salt(self) -> u64 {
        self.salt
    }

    /// Name of the file.
    #[must_use]
    pub fn file_name(self) -> String {
        format!("{:016x}-{:016x}.queue", self.number, self.salt)
    }

    /// The file with this name, if it is one of a queue.
    #[must_use]
    pub fn from_file_name(name: &str) -> Option<Self> {
        let (number, salt) = name.strip_suffix(".queue")?.split_once('-')?;
        let is_number = |text: &str| text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit());
        let parse = |text: &str| if is_number(text) { u64::from_str_radix(text, 16).ok() } else { None };
        Some(Self { number: parse(number)?, salt: parse(salt)? })
    }

    /// The file that begins with these bytes, if they hold.
    pub(super) fn from_header(bytes: &[u8]) -> Option<Self> {
        let (mark, rest) = bytes.get(..HEADER_BYTES)?.split_first_chunk::<8>()?;
        let (number, rest) = rest.split_first_chunk::<8>()?;
        let (salt, _) = rest.split_first_chunk::<8>()?;
        let id = Self { number: u64::from_le_bytes(*number), salt: u64::from_le_bytes(*salt) };
        (*mark == FILE_MARK && bytes.starts_with(&id.header())).then_some(id)
    }

    /// What the file begins with.
    #[must_use]
    pub fn header(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES);
        bytes.extend_from_slice(&FILE_MARK);
        bytes.extend_from_slice(&self.number.to_le_bytes());
        bytes.extend_from_slice(&self.salt.to_le_bytes());
        let check = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&check.to_le_bytes());
        bytes.resize(HEADER_BYTES, 0);
        bytes
    }
}

/// One message as it stands on disk.
#[derive(Clone, PartialEq, Eq)]
pub struct StoredMessage {
    /// Place in the order of admission, over all files and restarts.
    pub sequence: u64,
    /// 0, 1 or 2.
    pub qos_level: u8,
    /// Whether the broker is to keep it.
    pub retained: bool,
    /// When it expires, in milliseconds of Unix time: the only clock that survives a restart.
    pub expires_at_unix_ms: Option<u64>,
    /// Where it goes.
    pub topic: Arc<str>,
    /// Names and values beside the payload (MQTT 5).
    pub user_properties: UserProperties,
    /// What it says.
    pub payload: Bytes,
}

impl StoredMessage {
    /// With a payload of its own, and no part of the file it was read from.
    pub(super) fn detached(self) -> Self {
        Self { payload: Bytes::copy_from_slice(&self.payload), ..self }
    }
}

impl fmt::Debug for StoredMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoredMessage")
            .field("sequence", &self.sequence)
            .field("qos_level", &self.qos_level)
            .field("retained", &self.retained)
            .field("topic", &self.topic)
            .field("payload_bytes", &self.payload.len())
            .finish_non_exhaustive()
    }
}

/// What a frame says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// A message was admitted.
    Message(StoredMessage),
    /// The outcome of the message with this sequence is known; it is not sent again.
    Settled(u64),
}

/// A message that cannot be written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// More than 65535 bytes of topic.
    #[error("topic is longer than 65535 bytes")]
    Topic,
    /// More than 65535 user properties, or more than 65535 bytes in one of their names or values.
    #[error("user properties are too many or too long")]
    Properties,
    /// More than [`MAX_BODY_BYTES`].
    #[error("message is larger than an MQTT packet can be")]
    Size,
}

/// Whether a file can hold `record`.
///
/// # Errors
/// [`EncodeError`].
pub fn check(record: &Record) -> Result<(), EncodeError> {
    let Record::Message(message) = record else { return Ok(()) };
    let fits = |length: usize| u16::try_from(length).is_ok();
    if !fits(message.topic.len()) {
        return Err(EncodeError::Topic);
    }
    let properties = &message.user_properties;
    if !fits(properties.len()) || !properties.iter().all(|(name, value)| fits(name.len()) && fits(value.len())) {
        return Err(EncodeError::Properties);
    }
    let carried = message.payload.len().saturating_add(properties.encoded_bytes());
    let body = MESSAGE_BYTES.saturating_add(message.topic.len()).saturating_add(carried);
    if body > MAX_BODY_BYTES { Err(EncodeError::Size) } else { Ok(()) }
}

/// Appends `record` to `out` as a frame of the file `segment`.
///
/// # Errors
/// [`EncodeError`]; `out` is unchanged then.
pub fn encode(segment: SegmentId, record: &Record, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    check(record)?;
    let start = out.len();
    out.extend_from_slice(&[0; FRAME_BYTES]);
    encode_body(record, out);
    let body = out.get(start.saturating_add(FRAME_BYTES)..).unwrap_or_default();
    // `check` holds it below `MAX_BODY_BYTES`, which fits.
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    let seed = seed(segment);
    let frame = frame(seed, length, crc32c::crc32c_append(seed, body));
    if let Some(place) = out.get_mut(start..start.saturating_add(FRAME_BYTES)) {
        place.copy_from_slice(&frame);
    }
    Ok(())
}

fn encode_body(record: &Record, out: &mut Vec<u8>) {
    match record {
        Record::Settled(sequence) => {
            out.push(KIND_SETTLED);
            out.extend_from_slice(&sequence.to_le_bytes());
        }
        Record::Message(message) => {
            let mut flags = message.qos_level & FLAG_QOS;
            flags |= if message.retained { FLAG_RETAINED } else { 0 };
            flags |= if message.expires_at_unix_ms.is_some() { FLAG_EXPIRES } else { 0 };
            flags |= if message.user_properties.is_empty() { 0 } else { FLAG_PROPERTIES };
            out.push(KIND_MESSAGE);
            out.extend_from_slice(&message.sequence.to_le_bytes());
            out.push(flags);
            out.extend_from_slice(&message.expires_at_unix_ms.unwrap_or(0).to_le_bytes());
            encode_text(&message.topic, out);
            encode_properties(&message.user_properties, out);
            out.extend_from_slice(&message.payload);
        }
    }
}

/// Their count, then each name and value with its length; nothing at all where there is none. `check` has seen that
/// everything fits.
fn encode_properties(properties: &UserProperties, out: &mut Vec<u8>) {
    if properties.is_empty() {
        return;
    }
    out.extend_from_slice(&short(properties.len()).to_le_bytes());
    for text in properties.iter().flat_map(|(name, value)| [name, value]) {
        encode_text(text, out);
    }
}

fn encode_text(text: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(&short(text.len()).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn short(length: usize) -> u16 {
    u16::try_from(length).unwrap_or(u16::MAX)
}

fn frame(seed: u32, length: u32, body_check: u32) -> [u8; FRAME_BYTES] {
    let mut frame = [0; FRAME_BYTES];
    let parts = [FRAME_MARK, length.to_le_bytes(), head_check(seed, length).to_le_bytes(), body_check.to_le_bytes()];
    for (place, part) in frame.chunks_exact_mut(4).zip(parts) {
        place.copy_from_slice(&part);
    }
    frame
}

/// What the checks of a file begin with.
pub(super) fn seed(segment: SegmentId) -> u32 {
    crc32c::crc32c(&segment.salt.to_le_bytes())
}

pub(super) fn head_check(seed: u32, length: u32) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c_append(seed, &FRAME_MARK), &length.to_le_bytes())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::scan::{Damage, Found, Scan, decode},
        *,
    };

    const SEGMENT: SegmentId = SegmentId::new(7, 0x5eed_5eed_5eed_5eed);

    fn file(records: &[Record]) -> Vec<u8> {
        file_of(SEGMENT, records)
    }

    fn file_of(segment: SegmentId, records: &[Record]) -> Vec<u8> {
        let mut bytes = segment.header();
        for record in records {
            encode(segment, record, &mut bytes).unwrap();
        }
        bytes
    }

    fn records() -> impl Strategy<Value = Vec<Record>> {
        let properties = prop::collection::vec(("[a-z]{0,9}", ".{0,9}"), 0..4);
        let content = ("[a-z/]{0,20}", properties, any::<Vec<u8>>());
        let message = (any::<u64>(), 0..3u8, any::<bool>(), any::<Option<u64>>(), content);
        let record = prop_oneof![
            message.prop_map(|(sequence, qos_level, retained, expires_at_unix_ms, (topic, properties, payload))| {
                let (topic, payload) = (Arc::from(topic), payload.into());
                let user_properties = properties.into_iter().collect();
                let stored = StoredMessage {
                    sequence,
                    qos_level,
                    retained,
                    expires_at_unix_ms,
                    topic,
                    user_properties,
                    payload,
                };
                Record::Message(stored)
            }),
            any::<u64>().prop_map(Record::Settled),
        ];
        prop::collection::vec(record, 1..20)
    }

    fn found(bytes: Vec<u8>) -> (Vec<Record>, Vec<Damage>) {
        let (mut records, mut damage) = (Vec::new(), Vec::new());
        for found in Scan::new(SEGMENT, bytes.into()) {
            match found {
                Found::Record { record, .. } => records.push(record),
                Found::Damage(stretch) => damage.push(stretch),
            }
        }
        (records, damage)
    }

    fn is_subsequence(part: &[Record], whole: &[Record]) -> bool {
        let mut whole = whole.iter();
        part.iter().all(|record| whole.any(|other| other == record))
    }

    proptest! {
        #[test]
        fn what_was_written_is_read_again(records in records()) {
            prop_assert_eq!(found(file(&records)), (records, vec![]));
        }

        #[test]
        fn f32_a_torn_tail_costs_only_the_record_it_tore(records in records(), cut in any::<prop::sample::Index>()) {
            let mut bytes = file(&records);
            let ends: Vec<usize> = (0..=records.len()).map(|n| file(&records[..n]).len()).collect();
            bytes.truncate(HEADER_BYTES + cut.index(bytes.len() - HEADER_BYTES));
            let whole = ends.iter().filter(|end| **end <= bytes.len()).count() - 1;
            let torn = bytes.len() - ends[whole];

            let (read, damage) = found(bytes);

            prop_assert_eq!(&read[..], &records[..whole]);
            prop_assert_eq!(damage.iter().map(|d| d.bytes).sum::<u64>(), torn as u64);
            prop_assert!(damage.iter().all(|d| d.cut_short));
        }

        #[test]
        fn f32_a_flipped_bit_costs_at_most_the_record_it_hit(records in records(), at in any::<prop::sample::Index>(), bit in 0..8u32) {
            let mut bytes = file(&records);
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;

            let (read, damage) = found(bytes);

            prop_assert!(is_subsequence(&read, &records));
            let expected = if at < HEADER_BYTES { records.len() } else { records.len() - 1 };
            prop_assert_eq!(read.len(), expected);
            prop_assert!(!damage.is_empty());
            prop_assert!(damage.iter().all(|d| !d.cut_short), "all of it is there");
        }

        #[test]
        fn f32_bytes_lost_in_the_middle_cost_only_the_records_they_hit(records in records(), from in any::<prop::sample::Index>(), count in 1..60usize) {
            let mut bytes = file(&records);
            let ends: Vec<usize> = (0..=records.len()).map(|n| file(&records[..n]).len()).collect();
            let from = HEADER_BYTES + from.index(bytes.len() - HEADER_BYTES);
            let to = (from + count).min(bytes.len());
            bytes.drain(from..to);
            let hit = ends.windows(2).filter(|end| end[0] < to && from < end[1]).count();

            let (read, _) = found(bytes);

            prop_assert!(is_subsequence(&read, &records));
            prop_assert!(read.len() >= records.len() - hit, "{} of {} with {hit} hit", read.len(), records.len());
        }

        #[test]
        fn bytes_that_were_never_a_file_are_all_damage(bytes in any::<Vec<u8>>()) {
            let length = bytes.len() as u64;
            let (read, damage) = found(bytes);
            prop_assert!(read.is_empty());
            prop_assert_eq!(damage.iter().map(|d| d.bytes).sum::<u64>(), length);
        }

        #[test]
        fn another_queue_file_inside_a_payload_is_not_read_as_records(inner in records()) {
            let outer = Record::Message(StoredMessage {
                sequence: 1, qos_level: 1, retained: false, expires_at_unix_ms: None,
                topic: "backup".into(), user_properties: UserProperties::default(), payload: file_of(SegmentId::new(7, 1), &inner).into(),
            });
            let mut bytes = file(std::slice::from_ref(&outer));
            bytes[HEADER_BYTES] ^= 1; // the outer frame is lost, so the scan looks for the next one inside it

            prop_assert_eq!(found(bytes).0, vec![]);
        }
    }

    #[test]
    fn a_record_without_user_properties_is_what_older_versions_wrote() {
        let mut body = vec![KIND_MESSAGE, 3, 0, 0, 0, 0, 0, 0, 0, FLAG_RETAINED | 1];
        body.extend_from_slice(&[0; 8]);
        body.extend_from_slice(b"\x01\0tpayload");
        let stored = Record::Message(StoredMessage {
            sequence: 3,
            qos_level: 1,
            retained: true,
            expires_at_unix_ms: None,
            topic: "t".into(),
            user_properties: UserProperties::default(),
            payload: Bytes::from_static(b"payload"),
        });
        let mut written = Vec::new();
        encode_body(&stored, &mut written);
        assert_eq!(written, body);
        assert_eq!(decode(&body.into(), &mut None), Some(stored));
    }

    #[test]
    fn a_file_name_says_number_and_salt_and_nothing_else_is_taken_for_one() {
        assert_eq!(SegmentId::from_file_name(&SEGMENT.file_name()), Some(SEGMENT));
        for name in ["", "lock", "1-2.queue", "0000000000000007-+eed5eed5eed5eed.queue", "x.queue"] {
            assert_eq!(SegmentId::from_file_name(name), None, "{name}");
        }
    }
}

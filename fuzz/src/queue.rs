//! The queue of the MQTT client: files that anything happened to, and operations in any order.

mod files;
mod model;

use std::collections::BTreeMap;

use modax_mqtt_failover::queue::log::Log;
use modax_mqtt_failover::queue::segment::{Record, SegmentId, StoredMessage, encode};
use modax_mqtt_failover::queue::survey::survey;

use files::Files;
pub(crate) use model::operations;

/// Bits flipped in one input: CRC-32C finds every change of up to three (see `queue::segment`), and an engine that sees
/// the comparison would forge a check if it might flip more.
const FLIPS: usize = 3;

/// Bytes as a directory: the number of files, two bytes of length before each, and the rest in the last. Whatever they
/// are, nothing panics, what a survey finds a start finds too, and the queue goes on behind it.
pub(crate) fn recovery(data: &[u8]) {
    let Some((count, mut rest)) = data.split_first() else { return };
    let mut files = Files::default();
    for number in 0..u64::from(count % 4) {
        let Some((length, after)) = rest.split_first_chunk::<2>() else { break };
        let (content, after) = after.split_at(usize::from(u16::from_le_bytes(*length)).min(after.len()));
        files.add(SegmentId::new(number, number), content.to_vec());
        rest = after;
    }
    files.add(SegmentId::new(9, 9), rest.to_vec());
    goes_on(files);
}

/// Valid files with damage done to them, four bytes each: what, to which file, where (two bytes). Nothing comes back that
/// was not written, and nothing panics.
pub(crate) fn damage(data: &[u8]) {
    let (mut files, written) = written_files();
    let mut flips = 0;
    for step in data.chunks_exact(4) {
        let [what, file, low, high] = *step else { continue };
        let at = usize::from(u16::from_le_bytes([low, high]));
        flips += usize::from(what % 8 == 0);
        if what % 8 != 0 || flips <= FLIPS {
            files.damage(what, file, at);
        }
    }
    for message in goes_on(files) {
        let original = written.get(&message.sequence);
        assert_eq!(original, Some(&message), "a record that was not written");
    }
}

/// What a start finds; it is what a survey and a rescue into a new directory find, and what comes after it is kept.
fn goes_on(mut files: Files) -> Vec<StoredMessage> {
    let seen = survey(&mut &mut files).expect("memory does not fail");
    assert!(seen.damaged_bytes() <= files.bytes(), "more damage than there are bytes");
    let (mut log, found) = Log::open(&mut files, 600, salts(1)).expect("memory does not fail");
    assert_eq!(found.messages, seen.waiting, "a start and a survey disagree");
    assert!(found.messages.is_sorted_by_key(|message| message.sequence), "out of order");

    // A file may say that the last number of all was used: there is none behind it.
    if found.next_sequence < u64::MAX {
        assert!(found.messages.iter().all(|message| message.sequence < found.next_sequence), "a number is used again");
        let late = message(found.next_sequence, "late");
        log.push(Record::Message(late.clone())).expect("it is small");
        log.commit().expect("memory does not fail");
        drop(log);
        let again = Log::open(&mut files, 600, salts(1 << 32)).expect("memory does not fail").1;
        let expected: Vec<_> = found.messages.iter().cloned().chain([late]).collect();
        assert_eq!(again.messages, expected, "after the next start");
    }

    let mut rescued = Files::default();
    let (mut log, empty) = Log::open(&mut rescued, u64::MAX, salts(1 << 33)).expect("memory does not fail");
    assert!(empty.messages.is_empty());
    for message in &seen.waiting {
        log.push(Record::Message(message.clone())).expect("what was read can be written");
    }
    log.commit().expect("memory does not fail");
    drop(log);
    assert_eq!(survey(&mut &mut rescued).expect("memory does not fail").waiting, seen.waiting, "after a rescue");
    found.messages
}

/// Three files as a queue leaves them, and every message that was written, by its number.
fn written_files() -> (Files, BTreeMap<u64, StoredMessage>) {
    let (mut files, mut written, mut sequence) = (Files::default(), BTreeMap::new(), 0);
    for number in 0..3_u64 {
        let id = SegmentId::new(number, 0x5a17_0000 + number);
        let mut content = id.header();
        for at in 0..6 {
            let record = if at == 4 && number > 0 {
                Record::Settled(sequence - 7)
            } else {
                let mut message = message(sequence, &"payload ".repeat(usize::try_from(sequence % 4).unwrap_or(0)));
                if at == 3 {
                    // A payload that looks like a frame of this very file.
                    message.payload = content[32..].to_vec().into();
                }
                written.insert(sequence, message.clone());
                sequence += 1;
                Record::Message(message)
            };
            encode(id, &record, &mut content).expect("it is small");
        }
        files.add(id, content);
    }
    (files, written)
}

fn message(sequence: u64, payload: &str) -> StoredMessage {
    StoredMessage {
        sequence,
        qos_level: u8::try_from(sequence % 3).unwrap_or(0),
        retained: sequence % 2 == 0,
        expires_at_unix_ms: (sequence % 3 == 0).then_some(sequence),
        topic: format!("t/{}", sequence % 2).into(),
        user_properties: (0..sequence % 2).map(|at| (format!("name {at}"), "value")).collect(),
        payload: payload.to_owned().into_bytes().into(),
    }
}

/// Random numbers that differ from start to start.
fn salts(first: u64) -> Box<dyn FnMut() -> u64 + Send> {
    let mut salt = first;
    Box::new(move || {
        salt = salt.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        salt
    })
}

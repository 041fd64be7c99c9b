//! Looks at a disk queue without changing it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use super::{
    scan::{Damage, Found, Scan},
    segment::{Record, SegmentId, StoredMessage},
    storage::Storage,
};

/// What one file of a queue holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct FileSurvey {
    /// Its name.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// Readable records of messages, with or without an outcome.
    pub messages: u64,
    /// Readable records of outcomes.
    pub settled: u64,
    /// Stretches that are no record.
    pub damage: Vec<Damage>,
}

/// What a queue holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Survey {
    /// File by file, oldest first.
    pub files: Vec<FileSurvey>,
    /// Messages without an outcome, in order of admission: what the next start sends.
    pub waiting: Vec<StoredMessage>,
}

impl Survey {
    /// Whether every byte was understood, but for a write cut short at the end of a file, of which nobody was told that
    /// it was on disk.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.files.iter().all(|file| file.damage.iter().all(|damage| damage.cut_short))
    }

    /// Bytes that are no record.
    #[must_use]
    pub fn damaged_bytes(&self) -> u64 {
        self.files.iter().flat_map(|file| &file.damage).map(|damage| damage.bytes).sum()
    }
}

/// Reads all of it.
///
/// # Errors
/// Whatever `storage` says. Damage is no error.
pub fn survey(storage: &mut impl Storage) -> io::Result<Survey> {
    let mut ids: Vec<_> = storage.list()?.iter().filter_map(|name| SegmentId::from_file_name(name)).collect();
    ids.sort_unstable();
    let (mut files, mut messages, mut settled) = (Vec::new(), BTreeMap::new(), BTreeSet::new());
    for id in ids {
        let content = storage.read(&id.file_name())?;
        let bytes = u64::try_from(content.len()).unwrap_or(u64::MAX);
        let mut file = FileSurvey { name: id.file_name(), bytes, ..FileSurvey::default() };
        for found in Scan::new(id, content) {
            match found {
                Found::Damage(damage) => file.damage.push(damage),
                Found::Record { record: Record::Settled(sequence), .. } => {
                    file.settled = file.settled.saturating_add(1);
                    settled.insert(sequence);
                }
                Found::Record { record: Record::Message(message), .. } => {
                    file.messages = file.messages.saturating_add(1);
                    messages.insert(message.sequence, message);
                }
            }
        }
        files.push(file);
    }
    messages.retain(|sequence, _| !settled.contains(sequence));
    Ok(Survey { files, waiting: messages.into_values().map(StoredMessage::detached).collect() })
}

//! The disk queue's log: which records are on disk, in which file, and what may be deleted.
//!
//! Everything the queue holds is in memory as well; the log is what makes it survive the process. A message is on
//! disk when [`commit`](Log::commit) has returned, and gone from it some time after it was settled: files are deleted
//! whole, oldest first. Messages that keep an old file alive are written again at the end when the files have become
//! several times larger than what is live, so that one message nobody takes cannot fill a disk.
//!
//! Order is by sequence, never by place: a message may stand twice and counts once.
//!
//! A full disk refuses messages and nothing else: it is opened and read without any room, outcomes are written into
//! room that was kept for them, and files are deleted as their messages are settled. An outcome that found no room all the
//! same is held, counted, and written as soon as there is some.
//!
//! No file is touched here: [`Storage`] does that, in a driver or in a simulation that crashes it.

mod error;
mod full;

use std::{collections::BTreeMap, fmt, io};

use super::{
    recovery::Reading,
    segment::{EncodeError, HEADER_BYTES, Record, SegmentId, StoredMessage, check, encode},
    storage::Storage,
};

pub use super::recovery::Recovered;
pub use error::CommitError;

/// A message without an outcome, and the file it stands in.
pub(super) struct Live {
    pub(super) segment: SegmentId,
    pub(super) message: StoredMessage,
}

/// The files of one queue.
pub struct Log<S> {
    storage: S,
    segment_bytes: u64,
    salts: Box<dyn FnMut() -> u64 + Send>,
    /// Oldest first; length in bytes of each.
    segments: BTreeMap<SegmentId, u64>,
    /// The one appended to, if it is begun: else the next write begins another.
    current: SegmentId,
    begun: bool,
    /// The disk took no more when a message was written last.
    full: bool,
    /// Whether this start has looked how much the files of earlier ones take.
    bounded: bool,
    live: BTreeMap<u64, Live>,
    /// How many live messages stand in each file that has any.
    live_in: BTreeMap<SegmentId, usize>,
    /// Messages with an outcome that is not on disk, and the file that would bring them back.
    unwritten: BTreeMap<u64, SegmentId>,
    pending: Vec<Record>,
    closed: bool,
}

impl<S> fmt::Debug for Log<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log")
            .field("segments", &self.segments.len())
            .field("live", &self.live.len())
            .field("unwritten", &self.unwritten.len())
            .field("pending", &self.pending.len())
            .field("closed", &self.closed)
            .finish_non_exhaustive()
    }
}

impl<S: Storage> Log<S> {
    /// Reads all files and goes on behind them, in a new one: what stands in the old ones is never written over. On a
    /// full disk that file is begun once there is room.
    ///
    /// `segment_bytes` is the size at which a new file begins; `salts` gives random numbers.
    ///
    /// # Errors
    /// Whatever `storage` says, other than that it is full. Damage is no error: it is reported in [`Recovered`].
    pub fn open(
        mut storage: S,
        segment_bytes: u64,
        mut salts: Box<dyn FnMut() -> u64 + Send>,
    ) -> io::Result<(Self, Recovered)> {
        let mut ids: Vec<_> = storage.list()?.iter().filter_map(|name| SegmentId::from_file_name(name)).collect();
        ids.sort_unstable();
        let mut found = Reading::default();
        for id in &ids {
            found.read(*id, storage.read(&id.file_name())?);
        }
        let current = SegmentId::new(ids.last().map_or(0, |id| id.number().saturating_add(1)), salts());
        let begun = match storage.create(&current.file_name(), &current.header()) {
            Ok(()) => found.segments.insert(current, length(HEADER_BYTES)).is_none(),
            Err(error) => {
                let _half = storage.remove(&current.file_name());
                if !full::is_full(error.kind()) {
                    return Err(error);
                }
                false
            }
        };
        let (next_sequence, damaged) = (found.next_sequence, std::mem::take(&mut found.damaged));
        let segments = std::mem::take(&mut found.segments);
        let (live, unwritten) = found.live();
        let mut live_in = BTreeMap::new();
        for message in live.values() {
            *live_in.entry(message.segment).or_default() += 1;
        }
        let messages = live.values().map(|live| live.message.clone()).collect();
        let mut log = Self {
            storage,
            segment_bytes,
            salts,
            segments,
            current,
            begun,
            full: !begun,
            bounded: false,
            live,
            live_in,
            unwritten,
            pending: Vec::new(),
            closed: false,
        };
        log.delete_settled_files();
        log.delete_empty_files();
        Ok((log, Recovered { messages, next_sequence, damaged }))
    }

    /// Takes a record for the next commit.
    ///
    /// # Errors
    /// [`EncodeError`] for a message that no file can hold; it is not taken.
    pub fn push(&mut self, record: Record) -> Result<(), EncodeError> {
        check(&record)?;
        self.pending.push(record);
        Ok(())
    }

    /// Writes what was pushed and waits until it is on disk: one write and one synchronisation for all of it.
    ///
    /// # Errors
    /// [`CommitError`]; the messages that were pushed are given up then. Outcomes never are: those not on disk by now are
    /// [`unwritten`](Self::unwritten) and go with the next commit.
    pub fn commit(&mut self) -> Result<(), CommitError> {
        let records = std::mem::take(&mut self.pending);
        let written = self.write(&records);
        let outcomes_are_written = match &written {
            Ok(()) => true,
            Err(CommitError::Write(_)) => self.write_outcomes(&records),
            Err(_) => false,
        };
        for record in records {
            match record {
                Record::Settled(sequence) => {
                    if let Some(segment) = self.settle(sequence)
                        && !outcomes_are_written
                    {
                        self.unwritten.insert(sequence, segment);
                    }
                }
                Record::Message(message) if written.is_ok() => self.keep(self.current, message),
                Record::Message(_) => {}
            }
        }
        self.delete_settled_files();
        if (self.full || self.closed) && self.live.is_empty() {
            self.retire();
        }
        written
    }

    /// Begins anew after a failure: all live messages go into a new file, and the old ones are deleted once that is
    /// on disk. What the kernel still shows of the old files is not trusted, since it may never have reached the disk.
    ///
    /// # Errors
    /// [`CommitError`]; nothing was deleted then.
    pub fn renew(&mut self) -> Result<(), CommitError> {
        let old: Vec<SegmentId> = self.segments.keys().copied().collect();
        self.closed = true;
        self.begin_segment().map_err(CommitError::Write)?;
        let messages: Vec<_> = self.live.values().map(|live| Record::Message(live.message.clone())).collect();
        if let Err(error) = self.write_to_current(&messages) {
            // Half a copy helps nobody, and takes the room of which there may be none.
            self.begun = !self.delete(self.current);
            self.closed = true;
            return Err(error);
        }
        self.closed = false;
        for live in self.live.values_mut() {
            live.segment = self.current;
        }
        self.live_in.clear();
        if !self.live.is_empty() {
            self.live_in.insert(self.current, self.live.len());
        }
        let _all_gone = old.into_iter().all(|id| self.delete(id));
        Ok(())
    }

    /// Whether [`renew`](Self::renew) must come before the next commit.
    #[must_use]
    pub const fn is_closed(&self) -> bool {
        self.closed
    }

    /// Bytes of all files.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.segments.values().sum()
    }

    /// Messages whose outcome is known and not on disk: were the process to end now, they would come back.
    #[must_use]
    pub fn unwritten(&self) -> usize {
        self.unwritten.len()
    }

    /// Messages on disk without an outcome.
    #[must_use]
    pub fn messages(&self) -> usize {
        self.live.len()
    }

    fn write(&mut self, records: &[Record]) -> Result<(), CommitError> {
        if self.closed {
            return Err(CommitError::Closed);
        }
        if records.is_empty() && self.unwritten.is_empty() {
            return Ok(());
        }
        let has_messages = records.iter().any(|record| matches!(record, Record::Message(_)));
        let written = self.write_in_order(records, has_messages);
        if has_messages {
            self.full = matches!(written, Err(CommitError::Write(_)));
        }
        written
    }

    fn write_in_order(&mut self, records: &[Record], has_messages: bool) -> Result<(), CommitError> {
        if has_messages {
            self.storage.reserve().map_err(CommitError::Write)?;
        }
        let bytes = self.current_bytes();
        // A file that a full disk has ended is left behind, so that it can be deleted when all in it is settled.
        let is_ended = bytes >= self.segment_bytes || (self.full && has_messages && bytes > length(HEADER_BYTES));
        let begins = !self.begun || is_ended;
        if begins {
            self.begin_segment().map_err(CommitError::Write)?;
        }
        // Starts that are short each leave a file, and may never fill one.
        if begins || (has_messages && !self.bounded) {
            self.bounded = true;
            match self.write_again_what_pins_old_files() {
                // A nearly full disk may have no room for that, and room for what is to be written.
                Ok(()) | Err(CommitError::Write(_)) => {}
                Err(error) => return Err(error),
            }
        }
        self.write_to_current(records)
    }

    fn current_bytes(&self) -> u64 {
        self.segments.get(&self.current).copied().unwrap_or_default()
    }

    /// On failure the file before stays the current one.
    fn begin_segment(&mut self) -> io::Result<()> {
        let newest = self.segments.keys().next_back().map_or(0, |id| id.number());
        let number = newest.max(self.current.number()).saturating_add(1);
        let id = SegmentId::new(number, (self.salts)());
        let made = self.storage.create(&id.file_name(), &id.header());
        self.segments.insert(id, length(HEADER_BYTES));
        if made.is_ok() {
            (self.current, self.begun) = (id, true);
        } else {
            self.delete(id);
        }
        made
    }

    /// Writes live messages of the oldest file again, when all files together are more than four times what is live.
    fn write_again_what_pins_old_files(&mut self) -> Result<(), CommitError> {
        let messages = self.live.values().map(|live| &live.message);
        let bytes = messages.map(|it| length(it.payload.len().saturating_add(it.topic.len()).saturating_add(64)));
        let live = bytes.fold(0, u64::saturating_add);
        let allowed = live.max(self.segment_bytes).saturating_mul(4);
        let oldest = self.segments.keys().next().copied();
        let Some(oldest) = oldest.filter(|oldest| *oldest != self.current && self.bytes() > allowed) else {
            return Ok(());
        };
        let pinning = self.live.values().filter(|live| live.segment == oldest);
        let records: Vec<_> = pinning.map(|live| Record::Message(live.message.clone())).collect();
        self.write_to_current(&records)?;
        for record in records {
            if let Record::Message(message) = record {
                self.keep(self.current, message);
            }
        }
        // What comes next may need the room.
        self.delete_settled_files();
        Ok(())
    }

    /// With the outcomes that are owed.
    fn write_to_current(&mut self, records: &[Record]) -> Result<(), CommitError> {
        let mut bytes = Vec::new();
        let owed = self.unwritten.keys().map(|sequence| Record::Settled(*sequence));
        for record in owed {
            let _fits = encode(self.current, &record, &mut bytes);
        }
        for record in records {
            // `push` has tried it: this cannot fail.
            let _tried = encode(self.current, record, &mut bytes);
        }
        let before = self.current_bytes();
        if let Err(error) = self.storage.append(&bytes) {
            // Part of it may stand there. Were it left, a message that was refused would be sent after a restart.
            self.closed = self.storage.truncate(before).is_err();
            return Err(if self.closed { CommitError::Torn(error) } else { CommitError::Write(error) });
        }
        if let Err(error) = self.storage.sync() {
            // The same. Whether that reaches such a disk nobody knows; until all is written anew, nothing is appended here.
            let _tried = self.storage.truncate(before);
            self.closed = true;
            return Err(CommitError::Sync(error));
        }
        self.segments.insert(self.current, before.saturating_add(length(bytes.len())));
        self.unwritten.clear();
        Ok(())
    }

    fn keep(&mut self, segment: SegmentId, message: StoredMessage) {
        let sequence = message.sequence;
        if let Some(before) = self.live.insert(sequence, Live { segment, message }) {
            self.forget(before.segment);
        }
        let count = self.live_in.entry(segment).or_default();
        *count = count.saturating_add(1);
    }

    /// The file it stands in, if it is on disk and was live.
    fn settle(&mut self, sequence: u64) -> Option<SegmentId> {
        let live = self.live.remove(&sequence)?;
        self.forget(live.segment);
        Some(live.segment)
    }

    /// One live message fewer stands in this file.
    fn forget(&mut self, segment: SegmentId) {
        if let Some(count) = self.live_in.get_mut(&segment) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.live_in.remove(&segment);
            }
        }
    }

    /// Oldest first and no further than the first file that is still needed: a later file may hold the record that
    /// settles a message of an earlier one.
    fn delete_settled_files(&mut self) {
        let mut oldest = self.segments.keys().next().copied();
        let is_current = |log: &Self, id| log.begun && id == log.current;
        while let Some(id) = oldest.filter(|id| !is_current(self, *id) && !self.live_in.contains_key(id)) {
            if !self.delete(id) {
                break;
            }
            oldest = self.segments.keys().next().copied();
        }
    }

    /// Files of starts that wrote nothing, which need not wait for older ones: they settle nothing.
    fn delete_empty_files(&mut self) {
        let is_empty = |(id, bytes): &(&SegmentId, &u64)| **bytes <= length(HEADER_BYTES) && **id != self.current;
        let empty: Vec<_> = self.segments.iter().filter(is_empty).map(|(id, _)| *id).collect();
        let _all_gone = empty.into_iter().all(|id| self.delete(id));
    }

    /// Whether the file is gone. One that cannot be deleted is tried again with the next commit.
    fn delete(&mut self, id: SegmentId) -> bool {
        match self.storage.remove(&id.file_name()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => false,
            Ok(()) | Err(_) => {
                self.segments.remove(&id);
                self.unwritten.retain(|_, segment| *segment != id);
                true
            }
        }
    }
}

pub(super) fn length(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeSet,
        sync::{Arc, Mutex},
    };

    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    /// A folder that fails on demand, and forgets at a crash what was never synchronised.
    #[derive(Clone, Default)]
    struct Folder(Arc<Mutex<Inner>>);

    #[derive(Default)]
    struct Inner {
        files: BTreeMap<String, (Vec<u8>, usize)>,
        current: String,
        /// Operations until one fails; and how often one did.
        fail_after: Option<u32>,
        failed: u32,
        /// Bytes of the disk, and of the room kept on it.
        size: Option<usize>,
        kept: usize,
        keeps: bool,
        refused: u32,
    }

    impl Inner {
        fn may_fail(&mut self) -> io::Result<()> {
            if let Some(left) = &mut self.fail_after {
                if *left == 0 {
                    self.fail_after = None;
                    self.failed += 1;
                    return Err(io::Error::other("made to fail"));
                }
                *left -= 1;
            }
            Ok(())
        }

        /// How many of these bytes find room.
        fn room_for(&self, bytes: usize) -> usize {
            let used: usize = self.files.values().map(|(content, _)| content.len()).sum::<usize>() + self.kept;
            self.size.map_or(bytes, |size| bytes.min(size.saturating_sub(used)))
        }

        fn is_full(&mut self) -> io::Error {
            self.refused += 1;
            io::ErrorKind::StorageFull.into()
        }
    }

    /// Bytes of the room kept for outcomes: for eight.
    const KEPT: usize = 200;

    impl Folder {
        fn with<T>(&self, f: impl FnOnce(&mut Inner) -> T) -> T {
            f(&mut self.0.lock().unwrap())
        }

        /// Power loss: of what was not synchronised, `kept` of 256 parts remain.
        fn crash(&self, kept: u8) {
            self.with(|inner| {
                inner.fail_after = None;
                for (content, synced) in inner.files.values_mut() {
                    let rest = content.len() - *synced;
                    content.truncate(*synced + rest * usize::from(kept) / 256);
                    *synced = content.len();
                }
            });
        }
    }

    impl Storage for Folder {
        fn list(&mut self) -> io::Result<Vec<String>> {
            Ok(self.with(|inner| inner.files.keys().cloned().collect()))
        }
        fn read(&mut self, name: &str) -> io::Result<Bytes> {
            Ok(self.with(|inner| inner.files[name].0.clone().into()))
        }
        fn create(&mut self, name: &str, content: &[u8]) -> io::Result<()> {
            self.with(|inner| {
                inner.files.insert(name.into(), (content[..7].to_vec(), 0));
                inner.may_fail()?;
                if inner.room_for(content.len() - 7) < content.len() - 7 {
                    return Err(inner.is_full());
                }
                inner.files.insert(name.into(), (content.to_vec(), content.len()));
                inner.current = name.into();
                Ok(())
            })
        }
        fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
            self.with(|inner| {
                let mut failure = inner.may_fail();
                let mut part = if failure.is_ok() { bytes.len() } else { bytes.len() / 2 };
                if inner.room_for(part) < part {
                    (part, failure) = (inner.room_for(part), Err(inner.is_full()));
                }
                let name = inner.current.clone();
                inner.files.get_mut(&name).unwrap().0.extend_from_slice(&bytes[..part]);
                failure
            })
        }
        fn sync(&mut self) -> io::Result<()> {
            self.with(|inner| {
                inner.may_fail()?;
                let name = inner.current.clone();
                let file = inner.files.get_mut(&name).unwrap();
                file.1 = file.0.len();
                Ok(())
            })
        }
        fn truncate(&mut self, length: u64) -> io::Result<()> {
            self.with(|inner| {
                inner.may_fail()?;
                let name = inner.current.clone();
                let file = inner.files.get_mut(&name).unwrap();
                file.0.truncate(usize::try_from(length).unwrap());
                file.1 = file.1.min(file.0.len());
                Ok(())
            })
        }
        fn remove(&mut self, name: &str) -> io::Result<()> {
            self.with(|inner| {
                inner.may_fail()?;
                inner.files.remove(name);
                Ok(())
            })
        }
        fn reserve(&mut self) -> io::Result<()> {
            self.with(|inner| {
                if !inner.keeps || inner.kept > 0 {
                    return Ok(());
                }
                if inner.room_for(KEPT) < KEPT {
                    return Err(inner.is_full());
                }
                inner.kept = KEPT;
                Ok(())
            })
        }
        fn release(&mut self) -> bool {
            self.with(|inner| std::mem::take(&mut inner.kept) > 0)
        }
    }

    fn message(sequence: u64, payload: usize) -> StoredMessage {
        StoredMessage {
            sequence,
            qos_level: 1,
            retained: false,
            expires_at_unix_ms: None,
            topic: "t".into(),
            user_properties: crate::UserProperties::default(),
            payload: vec![u8::try_from(sequence % 251).unwrap(); payload].into(),
        }
    }

    fn open(folder: &Folder) -> (Log<Folder>, Recovered) {
        let mut salt = 40_u64;
        let salts = Box::new(move || {
            salt += 1;
            salt
        });
        Log::open(folder.clone(), 600, salts).unwrap()
    }

    #[derive(Clone, Debug)]
    enum Step {
        Push(u8),
        Settle(prop::sample::Index),
        Commit,
        FailAfter(u8),
        /// How many times 16 bytes the disk has from here on.
        Size(Option<u8>),
        Crash(u8),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            6 => any::<u8>().prop_map(Step::Push),
            4 => any::<prop::sample::Index>().prop_map(Step::Settle),
            4 => Just(Step::Commit),
            1 => (0..6u8).prop_map(Step::FailAfter),
            1 => any::<Option<u8>>().prop_map(Step::Size),
            1 => any::<u8>().prop_map(Step::Crash),
        ];
        prop::collection::vec(step, 1..120)
    }

    /// What must hold, kept beside the log without looking into it.
    #[derive(Default)]
    struct Model {
        owed: BTreeSet<u64>,
        /// Settled, but perhaps only in memory: these may come back.
        may_return: BTreeSet<u64>,
        pushed: Vec<u64>,
        settling: Vec<u64>,
        /// Pushed for a commit that a crash interrupted.
        unsure: BTreeSet<u64>,
    }

    impl Model {
        fn commit(&mut self, done: bool) {
            let pushed = std::mem::take(&mut self.pushed);
            if done {
                self.owed.extend(pushed);
            } else {
                self.unsure.extend(pushed);
            }
            for sequence in std::mem::take(&mut self.settling) {
                self.owed.remove(&sequence);
                if !done {
                    self.may_return.insert(sequence);
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn f31_f32_f33_what_was_committed_and_not_settled_comes_back_whatever_failed(steps in steps(), keeps: bool) {
            let folder = Folder::default();
            folder.with(|inner| inner.keeps = keeps);
            let (mut log, _) = open(&folder);
            let mut model = Model::default();
            let mut next = 0;
            for step in steps {
                match step {
                    Step::Push(size) => {
                        log.push(Record::Message(message(next, usize::from(size)))).unwrap();
                        model.pushed.push(next);
                        next += 1;
                    }
                    Step::Settle(which) if !model.owed.is_empty() => {
                        let sequence = *model.owed.iter().nth(which.index(model.owed.len())).unwrap();
                        if !model.settling.contains(&sequence) {
                            log.push(Record::Settled(sequence)).unwrap();
                            model.settling.push(sequence);
                        }
                    }
                    Step::Settle(_) => {}
                    Step::Commit => {
                        if log.is_closed() && log.renew().is_ok() {
                            // All that is live was written anew: nothing settled can return from the old files
                            // unless one of them could not be deleted.
                        }
                        let done = log.commit().is_ok();
                        model.commit(done);
                    }
                    Step::FailAfter(operations) => folder.with(|inner| inner.fail_after = Some(operations.into())),
                    Step::Size(sixteens) => folder.with(|inner| inner.size = sixteens.map(|it| usize::from(it) * 16)),
                    Step::Crash(kept) => {
                        let unwritten = log.unwritten();
                        folder.crash(kept);
                        // Not committed: pushed messages were never promised, settled ones may return.
                        model.unsure.extend(model.pushed.drain(..));
                        model.settling.clear();
                        let promised = model.owed.clone();
                        let (opened, recovered) = open(&folder);
                        log = opened;
                        let back: BTreeSet<u64> = recovered.messages.iter().map(|m| m.sequence).collect();
                        prop_assert!(model.owed.is_subset(&back), "lost {:?}", model.owed.difference(&back));
                        for found in &recovered.messages {
                            prop_assert_eq!(found, &message(found.sequence, found.payload.len()));
                            let s = found.sequence;
                            prop_assert!(model.owed.contains(&s) || model.may_return.contains(&s) || model.unsure.contains(&s));
                        }
                        let repeats = back.difference(&promised).filter(|s| !model.unsure.contains(s)).count();
                        prop_assert!(repeats <= unwritten, "{repeats} come back, and {unwritten} were told");
                        prop_assert!(recovered.messages.is_sorted_by_key(|m| m.sequence));
                        prop_assert!(back.iter().all(|s| *s < recovered.next_sequence));
                        next = next.max(recovered.next_sequence);
                        model.owed = back;
                    }
                }
            }
        }
    }

    #[test]
    fn one_message_nobody_takes_does_not_keep_every_file() {
        let folder = Folder::default();
        let (mut log, _) = open(&folder);
        log.push(Record::Message(message(0, 10))).unwrap();
        for sequence in 1..2000 {
            log.push(Record::Message(message(sequence, 100))).unwrap();
            log.commit().unwrap();
            log.push(Record::Settled(sequence)).unwrap();
        }
        log.commit().unwrap();

        assert!(log.bytes() < 10 * 600, "{} bytes", log.bytes());
        assert_eq!(open(&folder).1.messages, vec![message(0, 10)]);
    }

    #[test]
    fn one_message_nobody_takes_does_not_keep_the_files_of_short_starts() {
        let folder = Folder::default();
        for start in 0..100 {
            let (mut log, recovered) = open(&folder);
            let sequence = recovered.next_sequence;
            log.push(Record::Message(message(sequence, 400))).unwrap();
            log.commit().unwrap();
            if start > 0 {
                log.push(Record::Settled(sequence)).unwrap();
                log.commit().unwrap();
            }
            assert!(log.bytes() < 10 * 600, "{} bytes after start {start}", log.bytes());
        }
        assert_eq!(open(&folder).1.messages, vec![message(0, 400)]);
    }

    #[test]
    fn f31_a_disk_without_room_for_a_copy_of_what_is_old_takes_what_it_has_room_for() {
        let folder = Folder::default();
        // The first one stays; with the last one all files together are more than four times as large.
        let sizes = [3000, 2000, 2000, 2000, 2000, 2000, 100];
        for (start, size) in sizes.into_iter().enumerate() {
            let (mut log, recovered) = open(&folder);
            let sequence = recovered.next_sequence;
            log.push(Record::Message(message(sequence, size))).unwrap();
            if size == 100 {
                let used = usize::try_from(log.bytes()).unwrap();
                folder.with(|inner| inner.size = Some(used + inner.kept + 1000));
            }
            log.commit().unwrap();
            if start > 0 {
                log.push(Record::Settled(sequence)).unwrap();
                log.commit().unwrap();
            }
        }
        assert_eq!(folder.with(|inner| inner.refused), 1, "the copy");
        assert_eq!(open(&folder).1.messages, vec![message(0, 3000)]);
    }

    #[test]
    fn f33_after_a_failed_sync_nothing_is_admitted_until_all_is_written_anew() {
        let folder = Folder::default();
        let (mut log, _) = open(&folder);
        log.push(Record::Message(message(0, 10))).unwrap();
        log.commit().unwrap();
        folder.with(|inner| inner.fail_after = Some(1)); // the append works, its sync does not
        log.push(Record::Message(message(1, 10))).unwrap();
        let failed = log.commit().unwrap_err();
        assert!(matches!(failed, CommitError::Sync(_)) && failed.outcome_unknown(), "{failed:?}");
        assert_eq!(folder.with(|inner| inner.failed), 1, "the fault fired");

        log.push(Record::Message(message(2, 10))).unwrap();
        let refused = log.commit().unwrap_err();
        assert!(matches!(refused, CommitError::Closed) && !refused.outcome_unknown(), "{refused:?}");
        log.renew().unwrap();
        log.push(Record::Message(message(3, 10))).unwrap();
        log.commit().unwrap();

        folder.crash(0);
        let sequences: Vec<_> = open(&folder).1.messages.iter().map(|m| m.sequence).collect();
        assert_eq!(sequences, [0, 3]);
    }

    #[test]
    fn f31_a_full_disk_refuses_the_commit_and_keeps_what_was_there() {
        let folder = Folder::default();
        let (mut log, _) = open(&folder);
        log.push(Record::Message(message(0, 10))).unwrap();
        log.commit().unwrap();
        folder.with(|inner| inner.fail_after = Some(0));
        log.push(Record::Message(message(1, 10))).unwrap();
        assert!(matches!(log.commit(), Err(CommitError::Write(_))));
        assert_eq!(folder.with(|inner| inner.failed), 1, "the fault fired");
        log.push(Record::Message(message(2, 10))).unwrap();
        log.commit().unwrap();

        let (_, recovered) = open(&folder);
        assert_eq!(recovered.messages, vec![message(0, 10), message(2, 10)]);
        assert_eq!(recovered.damaged, vec![]);
    }

    fn settle(log: &mut Log<Folder>, sequences: impl IntoIterator<Item = u64>) {
        for sequence in sequences {
            log.push(Record::Settled(sequence)).unwrap();
        }
    }

    fn push(log: &mut Log<Folder>, sequence: u64) -> bool {
        log.push(Record::Message(message(sequence, 100))).unwrap();
        log.commit().is_ok()
    }

    /// A disk that took four messages and then no more.
    fn filled(keeps: bool) -> (Folder, Log<Folder>) {
        let folder = Folder::default();
        folder.with(|inner| (inner.keeps, inner.size) = (keeps, Some(32 + 4 * 139 + if keeps { KEPT } else { 0 })));
        let (mut log, _) = open(&folder);
        assert_eq!((0..9).filter(|sequence| push(&mut log, *sequence)).count(), 4, "of this size");
        assert!(folder.with(|inner| inner.refused) > 0, "the fault fired");
        (folder, log)
    }

    #[test]
    fn f31_a_disk_that_is_full_at_the_start_is_read_and_takes_messages_again_once_all_is_settled() {
        for keeps in [false, true] {
            let (folder, log) = filled(keeps);
            drop(log);
            let (mut log, recovered) = open(&folder);
            assert_eq!(recovered.messages.len(), 4);
            assert!(!push(&mut log, 10), "there is no room");

            settle(&mut log, 0..3);
            let _full = log.commit();
            assert!(!push(&mut log, 11), "the one file has a message without an outcome");
            settle(&mut log, 3..4);
            let _full = log.commit();

            assert_eq!(log.unwritten(), 0, "nothing is left that could come back");
            assert!(push(&mut log, 12));
            assert_eq!(open(&folder).1.messages, vec![message(12, 100)]);
        }
    }

    #[test]
    fn f31_a_full_disk_takes_outcomes_into_the_room_that_was_kept_for_them() {
        let (folder, mut log) = filled(true);
        settle(&mut log, 0..2);
        log.commit().unwrap_or_else(|error| assert!(matches!(error, CommitError::Write(_))));

        assert_eq!(log.unwritten(), 0);
        assert_eq!(folder.with(|inner| inner.kept), 0, "the room is used");
        let (mut log, recovered) = open(&folder);
        let left: Vec<_> = recovered.messages.iter().map(|message| message.sequence).collect();
        assert_eq!(left, [2, 3]);
        settle(&mut log, 2..4);
        let _full = log.commit();
        assert!(push(&mut log, 12));
        assert_eq!(folder.with(|inner| inner.kept), KEPT, "and kept again before a message is taken");
    }

    #[test]
    fn f31_outcomes_that_find_no_room_are_told_and_written_once_there_is_some() {
        let (folder, mut log) = filled(false);
        settle(&mut log, 0..3);
        assert!(log.commit().is_err());
        assert_eq!(log.unwritten(), 3);
        assert_eq!(open(&folder).1.messages.len(), 4, "they come back meanwhile");

        folder.with(|inner| inner.size = None);
        log.commit().unwrap();

        assert_eq!(log.unwritten(), 0);
        assert_eq!(open(&folder).1.messages, vec![message(3, 100)]);
    }
}

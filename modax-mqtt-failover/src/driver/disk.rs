//! The disk queue's thread: writes what is admitted and settled, many records a synchronisation.
//!
//! Publishers wait for their commit, so that an admission is on disk before anybody is told of it. After a failed
//! synchronisation nothing more is appended to the files in question: all live messages go into a new one first.

use std::{
    io,
    sync::{
        Arc, Weak,
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use tokio::sync::oneshot;

use crate::{
    config::{Config, ConfigError},
    dedup::Identity,
    driver::Directory,
    event::Event,
    handover::Shared,
    message::{Message, MessageId, Outcome},
    packet::{Qos, Version},
    properties::UserProperties,
    queue::{
        Admitted, WhenFull,
        log::{CommitError, Log},
        segment::{Record, StoredMessage},
    },
    receipt::{Receipt, Recovered},
};

/// A new file begins at this size: small enough to be deleted soon, large enough to be begun seldom.
const SEGMENT_BYTES: u64 = 8 << 20;
/// A commit is not delayed for more records than this.
const BATCH: usize = 8192;
/// Between two tries to write outcomes that found no room.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// Why the disk did not take a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) reason: String,
    /// It may stand in a file all the same, for the next start to find.
    pub(crate) maybe_kept: bool,
}

type Written = oneshot::Sender<Result<(), Refused>>;

enum Job {
    Message(StoredMessage, Written),
    Settled(u64),
    /// Commit, let go of the directory, and answer.
    Stop(oneshot::Sender<()>),
}

/// The way to the thread; it ends when this is dropped.
pub(crate) struct Disk {
    jobs: mpsc::Sender<Job>,
}

impl Disk {
    /// Has `admitted` written; the answer comes when it is on disk, or refused.
    pub(crate) fn write(&self, id: MessageId, message: &Message) -> oneshot::Receiver<Result<(), Refused>> {
        let (written, answer) = oneshot::channel();
        // A thread that is gone drops the sender, and the answer is an error.
        let _ = self.jobs.send(Job::Message(store(id, message, unix_ms()), written));
        answer
    }

    /// Has it noted, soon, that the message with this identity is not to be sent again.
    pub(crate) fn settle(&self, id: MessageId) {
        let _ = self.jobs.send(Job::Settled(id.number()));
    }

    /// Ends the thread after a last commit; the answer comes when the directory is free.
    pub(crate) fn stop(self) -> oneshot::Receiver<()> {
        let (stopped, answer) = oneshot::channel();
        let _ = self.jobs.send(Job::Stop(stopped));
        answer
    }
}

/// Opens and locks the directory of a disk queue, takes over what is in it, and starts the thread. Nothing to do for a
/// queue in memory.
pub(crate) fn attach(config: &Config, shared: &Arc<Shared>) -> Result<(), ConfigError> {
    let Some(path) = config.queue.directory.as_deref() else { return Ok(()) };
    let failed = |error: io::Error| ConfigError::Queue { reason: format!("{}: {error}", path.display()) };
    let directory = Directory::open(path).map_err(failed)?;
    let (log, found) = Log::open(directory, SEGMENT_BYTES, Box::new(super::seed)).map_err(failed)?;
    // Refused now, they wait for a client that can carry them; sent to the session, they would be gone.
    let only_v5 = |stored: &&StoredMessage| {
        let properties = &stored.user_properties;
        !properties.is_empty() && !without_identity(properties.clone()).is_empty()
    };
    let beyond = found.messages.iter().filter(only_v5).count();
    if beyond > 0 && config.speaks() == Version::V311 {
        let reason = format!("{}: {beyond} of its messages have user properties, for MQTT 5 alone", path.display());
        return Err(ConfigError::Queue { reason });
    }
    let (jobs, todo) = mpsc::channel();
    let (fsync_every, shared_with) = (config.queue.fsync_every, Arc::downgrade(shared));
    let end = End(Weak::clone(&shared_with));
    let writer = Writer { _end: end, log, todo, fsync_every, unwritten: 0, shared: shared_with };
    thread::Builder::new().name("mqtt-queue".to_owned()).spawn(move || writer.run()).map_err(failed)?;

    let (now, wall) = (super::now(), unix_ms());
    let restored = found.messages.into_iter().map(|stored| restore(stored, config.speaks(), now, wall));
    let messages: Vec<_> = restored.collect();
    let mut state = shared.lock();
    for Admitted { id, message, .. } in &messages {
        let (outcome, receipt) = Receipt::new(*id);
        state.receipts.insert(*id, outcome);
        state.recovered.push(Recovered { topic: Arc::clone(&message.topic), receipt });
    }
    state.backlog.recover(messages, found.next_sequence);
    let damaged: Vec<_> = found.damaged.iter().filter(|(_, damage)| !damage.cut_short).collect();
    let stretches = u64::try_from(damaged.len()).unwrap_or(u64::MAX);
    state.admission.damaged = stretches;
    state.disk = Some(Disk { jobs });
    drop(state);
    if stretches > 0 {
        let bytes = damaged.iter().map(|(_, damage)| damage.bytes).fold(0, u64::saturating_add);
        shared.emit(Event::QueueDamaged { stretches, bytes });
    }
    Ok(())
}

/// The end of the thread, whatever ended it: without one the client would admit what nobody writes. A client that ended
/// before does not hear of it.
struct End(Weak<Shared>);

impl Drop for End {
    fn drop(&mut self) {
        if let Some(shared) = self.0.upgrade() {
            shared.end(Duration::ZERO);
        }
    }
}

struct Writer {
    /// Before the log: the client knows before another process has the directory.
    _end: End,
    log: Log<Directory>,
    todo: mpsc::Receiver<Job>,
    fsync_every: Duration,
    /// Outcomes that are not on disk, as last told.
    unwritten: usize,
    shared: Weak<Shared>,
}

impl Writer {
    fn run(mut self) {
        loop {
            let mut waiting = Vec::new();
            let mut stopped = None;
            match self.next() {
                Ok(first) => {
                    stopped = self.take(first, &mut waiting);
                    self.take_more(&mut waiting, &mut stopped);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            self.commit(waiting);
            if let Some(stopped) = stopped {
                // The lock goes with the log: whoever hears the answer may open the directory.
                drop(self.log);
                let _ = stopped.send(());
                return;
            }
        }
        self.commit(Vec::new());
    }

    /// Waits for something to write, and no longer than [`TRY_AGAIN`] where something is owed.
    fn next(&self) -> Result<Job, RecvTimeoutError> {
        if self.log.unwritten() == 0 {
            return self.todo.recv().map_err(RecvTimeoutError::from);
        }
        self.todo.recv_timeout(TRY_AGAIN)
    }

    fn take_more(&mut self, waiting: &mut Vec<(u64, Written)>, stopped: &mut Option<oneshot::Sender<()>>) {
        let until = super::now().checked_add(self.fsync_every);
        for _ in 0..BATCH {
            let Some(left) = until.map(|at| at.saturating_duration_since(super::now())) else { break };
            match self.todo.recv_timeout(left) {
                Ok(job) if stopped.is_none() => *stopped = self.take(job, waiting),
                Ok(_) | Err(_) => break,
            }
        }
    }

    fn take(&mut self, job: Job, waiting: &mut Vec<(u64, Written)>) -> Option<oneshot::Sender<()>> {
        match job {
            Job::Message(message, written) => {
                let sequence = message.sequence;
                match self.log.push(Record::Message(message)) {
                    Ok(()) => waiting.push((sequence, written)),
                    Err(error) => {
                        // What came before it first: an answer says that everything up to there is settled.
                        self.commit(std::mem::take(waiting));
                        let refused = Refused { reason: error.to_string(), maybe_kept: false };
                        self.answer(vec![(sequence, written)], &Err(refused));
                    }
                }
                None
            }
            Job::Settled(sequence) => {
                // Ten bytes fit any file.
                let _ = self.log.push(Record::Settled(sequence));
                None
            }
            Job::Stop(stopped) => Some(stopped),
        }
    }

    fn commit(&mut self, waiting: Vec<(u64, Written)>) {
        let mended = if self.log.is_closed() { self.log.renew() } else { Ok(()) };
        // Also where it cannot be mended: what is refused must not go with a later commit.
        let committed = self.log.commit();
        let maybe_kept = committed.as_ref().is_err_and(CommitError::outcome_unknown);
        let committed = mended.and(committed).map_err(|error| {
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
            Refused { reason: format!("{error}{cause}"), maybe_kept }
        });
        self.answer(waiting, &committed);
        self.tell_unwritten();
    }

    /// Says once an episode that outcomes are not on disk; the count goes on in the statistics.
    fn tell_unwritten(&mut self) {
        let before = std::mem::replace(&mut self.unwritten, self.log.unwritten());
        let Some(shared) = self.shared.upgrade().filter(|_| before != self.unwritten) else { return };
        shared.lock().admission.unwritten = self.unwritten;
        if before == 0 {
            shared.emit(Event::OutcomesUnwritten { messages: self.unwritten });
        }
        // Who reports levels to a recorder.
        shared.wake.notify_one();
    }

    fn answer(&self, waiting: Vec<(u64, Written)>, result: &Result<(), Refused>) {
        let Some(shared) = self.shared.upgrade() else { return };
        let (mut state, mut told, mut topics) = (shared.lock(), Vec::new(), Vec::new());
        for (sequence, written) in &waiting {
            let id = MessageId::new(*sequence);
            let mut is_admitted = true;
            match result {
                Ok(()) => {
                    for (victim, topic) in state.backlog.stored(id) {
                        state.shed(victim, &mut told);
                        topics.push(topic);
                    }
                }
                Err(refused) => {
                    state.backlog.withdraw(id);
                    // A client that has ended has counted it. A publisher that waits hears the error: it was never admitted.
                    // Nobody else hears it but by the outcome.
                    if let Some(receipt) = state.receipts.remove(&id) {
                        is_admitted = written.is_closed();
                        if is_admitted {
                            state.admission.undelivered = state.admission.undelivered.saturating_add(1);
                            let maybe_delivered = refused.maybe_kept;
                            told.push((Some(receipt), Outcome::Undelivered { maybe_delivered }));
                        }
                    }
                }
            }
            state.admission.admitted = state.admission.admitted.saturating_add(u64::from(is_admitted));
            state.backlog.written(MessageId::new(sequence.saturating_add(1)));
        }
        // What is on disk may be shed for those who wait.
        let makes_room =
            result.is_err() || matches!(state.backlog.policy(), WhenFull::ShedOldest | WhenFull::LatestPerTopic);
        drop(state);
        for topic in topics {
            shared.emit(Event::Shed { topic: topic.to_string() });
        }
        shared.tell(told);
        for (_, written) in waiting {
            // A publisher that gave up waiting has its message admitted all the same.
            let _ = written.send(result.clone());
        }
        shared.wake.notify_one();
        if makes_room {
            shared.room.notify_waiters();
        }
    }
}

/// `wall` is what the wall clock says, in milliseconds of Unix time.
fn store(id: MessageId, message: &Message, wall: u64) -> StoredMessage {
    let expires_at = message.expires_in.map(|time| wall.saturating_add(millis(time)));
    StoredMessage {
        sequence: id.number(),
        qos_level: message.qos.level(),
        retained: message.retained,
        expires_at_unix_ms: expires_at,
        topic: Arc::clone(&message.topic),
        user_properties: message.user_properties.clone(),
        payload: message.payload.clone(),
    }
}

/// The wall clock may have been set meanwhile: what it says then counts, and nothing is left of a time that it has passed.
fn restore(stored: StoredMessage, speaks: Version, now: Instant, wall: u64) -> Admitted {
    let left = stored.expires_at_unix_ms.map(|at| Duration::from_millis(at.saturating_sub(wall)));
    // Ours, and not what the program asked for: 3.1.1 cannot carry it, and the message is worth more.
    let user_properties = match speaks {
        Version::V311 => without_identity(stored.user_properties),
        Version::V5 => stored.user_properties,
    };
    let message = Message {
        topic: stored.topic,
        payload: stored.payload,
        qos: Qos::from_level(stored.qos_level).unwrap_or(Qos::AtLeastOnce),
        retained: stored.retained,
        expires_in: left,
        user_properties,
    };
    let expires_at = left.and_then(|left| now.checked_add(left));
    Admitted { id: MessageId::new(stored.sequence), message, at: now, expires_at, recovered: true }
}

fn without_identity(properties: UserProperties) -> UserProperties {
    if Identity::of(&properties).is_none() {
        return properties;
    }
    properties.iter().filter(|(name, _)| *name != Identity::PROPERTY).collect()
}

/// The wall clock: the only one that survives a restart, and used for nothing else.
fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, millis)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::{
        handover::Handle,
        queue::{Backlog, Queue},
    };

    #[test]
    fn what_no_file_can_hold_is_refused_after_what_came_before_it_is_on_disk() {
        let path = std::env::temp_dir().join(format!("modax-queue-{}-refused", std::process::id()));
        let (log, _) = Log::open(Directory::open(&path).unwrap(), SEGMENT_BYTES, Box::new(|| 1)).unwrap();
        let shared = Shared::new(&Config::from_urls("alone", ["mqtt://a"]).unwrap(), None);
        let (_jobs, todo) = mpsc::channel();
        let shared_with = Arc::downgrade(&shared);
        let end = End(Weak::clone(&shared_with));
        let fsync_every = Duration::ZERO;
        let mut writer = Writer { _end: end, log, todo, fsync_every, unwritten: 0, shared: shared_with };
        let mut waiting = Vec::new();
        let mut take = |sequence, topic: String| {
            let (written, answer) = oneshot::channel();
            let message = store(MessageId::new(sequence), &Message::new(topic, ""), 0);
            assert!(writer.take(Job::Message(message, written), &mut waiting).is_none());
            answer
        };

        let mut good = take(0, "t".to_owned());
        assert!(good.try_recv().is_err(), "nothing is on disk yet");
        let mut bad = take(1, "t".repeat(70_000));

        assert_eq!(good.try_recv(), Ok(Ok(())));
        assert!(matches!(bad.try_recv(), Ok(Err(_))));
        drop(writer);
        std::fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn what_the_disk_refuses_is_heard_once_and_is_admitted_only_where_the_caller_was_told_so() {
        #[derive(Default)]
        struct Outcomes(std::sync::Mutex<Vec<Outcome>>);
        impl crate::Observer for Outcomes {
            fn on_outcome(&self, outcome: &Outcome) {
                self.0.lock().unwrap().push(outcome.clone());
            }
        }
        let path = std::env::temp_dir().join(format!("modax-queue-{}-counted", std::process::id()));
        let (log, _) = Log::open(Directory::open(&path).unwrap(), SEGMENT_BYTES, Box::new(|| 1)).unwrap();
        let outcomes = Arc::new(Outcomes::default());
        let shared = Shared::new(&Config::from_urls("alone", ["mqtt://a"]).unwrap(), Some(outcomes.clone()));
        let (jobs, todo) = mpsc::channel();
        let weak = Arc::downgrade(&shared);
        let writer =
            Writer { _end: End(Weak::new()), log, todo, fsync_every: Duration::ZERO, unwritten: 0, shared: weak };
        shared.lock().disk = Some(Disk { jobs });
        let client = crate::Client::new(Arc::new(Handle { version: Version::V311, shared: Arc::clone(&shared) }));
        let admitted = || client.stats().admitted;
        let next = || match writer.todo.try_recv() {
            Ok(Job::Message(message, written)) => (message.sequence, written),
            Ok(_) | Err(_) => panic!("a message to write"),
        };
        let refused = Err(Refused { reason: "full".to_owned(), maybe_kept: false });

        let waits = client.publish(Message::new("t", "1")).now_or_never();
        assert!(waits.is_none());
        drop(next());
        let mut publishing = Box::pin(client.publish(Message::new("t", "2")));
        assert!(publishing.as_mut().now_or_never().is_none());
        writer.answer(vec![next()], &refused);
        let error = publishing.now_or_never().expect("an answer").unwrap_err();
        assert_eq!(error, crate::PublishError::Disk { reason: "full".to_owned(), maybe_kept: false });
        assert_eq!((admitted(), client.stats().undelivered, outcomes.0.lock().unwrap().len()), (0, 0, 0));

        let mut tried = client.try_publish(Message::new("t", "3")).unwrap();
        assert_eq!(admitted(), 0, "not yet");
        writer.answer(vec![next()], &refused);
        assert_eq!(tried.try_outcome(), Some(Outcome::Undelivered { maybe_delivered: false }));
        assert_eq!((admitted(), client.stats().undelivered, outcomes.0.lock().unwrap().len()), (1, 1, 1));

        drop(client.try_publish(Message::new("t", "4")).unwrap());
        writer.answer(vec![next()], &Ok(()));
        assert_eq!((admitted(), client.stats().undelivered), (2, 1));
        std::fs::remove_dir_all(path).unwrap();
    }

    #[tokio::test]
    async fn a_thread_that_ends_by_itself_ends_the_client_and_answers_every_receipt() {
        let path = std::env::temp_dir().join(format!("modax-queue-{}-ended", std::process::id()));
        let mut config = Config::from_urls("alone", ["mqtt://127.0.0.1:1"]).unwrap();
        config.queue = Queue::disk(&path);
        let shared = Shared::new(&config, None);
        crate::driver::spawn(config, crate::driver::Ways::default(), Arc::clone(&shared)).unwrap();
        let client = crate::Client::new(Arc::new(Handle { version: Version::V311, shared: Arc::clone(&shared) }));
        let receipt = client.publish(Message::new("t", "1")).await.unwrap();

        // What ends it: nothing will come any more.
        drop(shared.lock().disk.take());

        let outcome = tokio::time::timeout(Duration::from_secs(60), receipt.acked()).await.expect("the end in time");
        assert_eq!(outcome, Outcome::Undelivered { maybe_delivered: false });
        assert_eq!(client.publish(Message::new("t", "2")).await.unwrap_err(), crate::PublishError::Closed);
        let left = client.close(Duration::ZERO).await.undelivered;
        assert_eq!((left.len(), client.stats().undelivered, client.stats().queue_messages), (1, 1, 0));
        std::fs::remove_dir_all(path).unwrap();
    }

    const HOUR: u64 = 3_600_000;
    const BEGUN: u64 = 1_800_000_000_000;

    /// What a process that stored at `BEGUN` leaves to one that starts when the wall clock says `wall`: through the files,
    /// and into its queue.
    fn next_start(name: &str, expires_in: Option<Duration>, wall: u64) -> (Instant, Backlog) {
        let path = std::env::temp_dir().join(format!("modax-queue-{}-{name}", std::process::id()));
        let open = || Log::open(Directory::open(&path).unwrap(), SEGMENT_BYTES, Box::new(|| 1)).unwrap();
        let (mut log, _) = open();
        let message = Message { expires_in, ..Message::new("t", "payload") };
        log.push(Record::Message(store(MessageId::new(0), &message, BEGUN))).unwrap();
        log.commit().unwrap();
        drop(log);
        let (log, found) = open();
        drop(log);
        std::fs::remove_dir_all(&path).unwrap();
        let now = crate::driver::now();
        let restored = found.messages.into_iter().map(|stored| restore(stored, Version::V311, now, wall)).collect();
        let mut backlog = Backlog::new(Queue::memory());
        backlog.recover(restored, found.next_sequence);
        (now, backlog)
    }

    #[test]
    fn f54_a_wall_clock_that_was_set_between_two_starts_moves_an_expiry_by_as_much_and_no_more() {
        let minute = Duration::from_secs(60);
        for (name, wall, left) in [
            ("kept", BEGUN + 20_000, Duration::from_secs(40)),
            ("back", BEGUN + 20_000 - HOUR, Duration::from_secs(3640)),
            ("ahead", BEGUN + 20_000 + HOUR, Duration::ZERO),
            ("before-1970", 0, Duration::from_millis(BEGUN + 60_000)),
            ("the-end", u64::MAX, Duration::ZERO),
        ] {
            let (now, mut backlog) = next_start(name, Some(minute), wall);
            let expires = now + left;
            assert!(
                expires == now || backlog.expire(now + left.saturating_sub(Duration::from_millis(1))).is_none(),
                "{name}: too early"
            );
            let expired = backlog.expire(expires).unwrap_or_else(|| panic!("{name}: it does not expire"));
            // Told with its outcome, and that an earlier process may have sent it: never in silence.
            assert!(expired.recovered && expired.message.payload == "payload", "{name}");
        }
    }

    #[test]
    fn f54_no_step_of_the_wall_clock_takes_a_message_that_never_expires() {
        let a_century = Duration::from_secs(100 * 365 * 24 * 3600);
        for expires_in in [None, Some(Duration::MAX)] {
            for wall in [0, BEGUN - HOUR, BEGUN + HOUR, u64::MAX / 2] {
                let (now, mut backlog) = next_start("ever", expires_in, wall);
                assert!(backlog.expire(now + a_century).is_none(), "{expires_in:?} at {wall}");
            }
        }
    }
}

//! What the handles and the driver share: one lock, held for a few instructions and never over an await.

#[cfg(all(test, modax_loom))]
mod loom_tests;
mod sync;
#[cfg(all(test, not(modax_loom)))]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    sync::{Arc, PoisonError, atomic::Ordering},
    time::{Duration, Instant},
};

use tokio::sync::{broadcast, oneshot, watch};

use self::sync::{AtomicBool, Mutex, MutexGuard, Notify};

use crate::{
    config::Config,
    delivery::ItemSender,
    driver::Disk,
    event::{Event, Filter, Stats, Status},
    message::{Closed, MessageId, Outcome},
    observer::{Observer, contained},
    packet::{PacketId, Qos, Version},
    queue::{Admitted, Backlog},
    receipt::Recovered,
};

/// Events that wait for one slow reader before it is told that it lagged.
const EVENT_BUFFER: usize = 1024;

/// How long a client goes on sending after its last handle was dropped.
const PARTING: Duration = Duration::from_secs(5);

/// What a handle asks of the driver.
pub(crate) enum Command {
    Subscribe {
        filter: Filter,
        qos: Qos,
        reader: ItemSender,
        granted: watch::Sender<Option<Qos>>,
    },
    /// For all its readers.
    Unsubscribe {
        filter: Filter,
    },
    /// One reader is gone.
    Dropped {
        filter: Filter,
    },
    Close {
        deadline: Duration,
    },
}

/// An acknowledgement by the program, bound to one delivery by its serial number.
#[derive(Clone, Copy)]
pub(crate) struct Acknowledged {
    pub(crate) id: PacketId,
    pub(crate) serial: u64,
    /// Dropped instead.
    pub(crate) abandoned: bool,
}

pub(crate) struct State {
    pub(crate) backlog: Backlog,
    pub(crate) receipts: BTreeMap<MessageId, oneshot::Sender<Outcome>>,
    /// Receipts of what the disk queue held, until somebody asks for them.
    pub(crate) recovered: Vec<Recovered>,
    pub(crate) commands: VecDeque<Command>,
    pub(crate) acknowledged: Vec<Acknowledged>,
    /// Where admissions are written down, for a queue on disk.
    pub(crate) disk: Option<Disk>,
    pub(crate) filters: BTreeSet<Filter>,
    /// The driver would have taken more messages than there were: the next one has to wake it.
    pub(crate) hungry: bool,
    /// Admits nothing more.
    pub(crate) closed: bool,
    /// The driver is gone.
    pub(crate) ended: bool,
    /// Who waits for the end; the first of them gets what is left.
    pub(crate) leaving: Vec<oneshot::Sender<Closed>>,
    /// What is left, when nobody was there to get it.
    pub(crate) left: Closed,
    pub(crate) status: Status,
    /// Deliveries whose reader was gone.
    pub(crate) declined: u64,
    /// Counted by the handles and the queue.
    pub(crate) admission: Stats,
    /// Counted by the courier.
    pub(crate) delivery: Stats,
}

/// Outcomes to be told once the lock is released, each with its receipt where somebody may hold one.
pub(crate) type Told = Vec<(Option<oneshot::Sender<Outcome>>, Outcome)>;

impl State {
    /// The next messages in order, at most `room`. Where there were fewer, the next one has to wake the driver.
    pub(crate) fn take(&mut self, now: Instant, room: usize) -> Vec<Admitted> {
        let messages: Vec<_> = std::iter::from_fn(|| self.backlog.take(now)).take(room).collect();
        self.hungry = messages.len() < room;
        messages
    }

    /// Counters since the start.
    pub(crate) fn stats(&self) -> Stats {
        Stats {
            admitted: self.admission.admitted,
            shed: self.admission.shed,
            expired: self.admission.expired.saturating_add(self.delivery.expired),
            undelivered: self.admission.undelivered.saturating_add(self.delivery.undelivered),
            unmatched: self.admission.unmatched.saturating_add(self.declined),
            overflowed: self.admission.overflowed,
            damaged: self.admission.damaged,
            unwritten: self.admission.unwritten,
            queue_messages: self.backlog.messages(),
            queue_bytes: self.backlog.bytes(),
            ..self.delivery
        }
    }

    /// Takes the receipt of a message that has its outcome.
    pub(crate) fn end(&mut self, id: MessageId, outcome: Outcome, told: &mut Told) {
        told.push((self.receipts.remove(&id), outcome));
    }

    /// The message made room for a newer one.
    pub(crate) fn shed(&mut self, victim: MessageId, told: &mut Told) {
        self.admission.shed = self.admission.shed.saturating_add(1);
        self.forget(victim);
        self.end(victim, Outcome::Shed, told);
    }

    /// The message has its outcome, and is not to be sent by a later process.
    pub(crate) fn forget(&self, id: MessageId) {
        if let Some(disk) = &self.disk {
            disk.settle(id);
        }
    }
}

pub(crate) struct Shared {
    state: Mutex<State>,
    /// Wakes the driver; one permit is enough, because it looks at everything.
    pub(crate) wake: Notify,
    /// Wakes publishers that wait for room.
    pub(crate) room: Notify,
    /// Whether something waits for a reader to make room.
    owing: AtomicBool,
    /// The client's.
    pub(crate) runtime: Option<tokio::runtime::Handle>,
    events: broadcast::Sender<Event>,
    observer: Option<Arc<dyn Observer>>,
    #[cfg(feature = "metrics")]
    meter: crate::metrics::Meter,
    /// Keeps the events from before the first reader, so that it sees the first connection too.
    first_reader: Mutex<Option<broadcast::Receiver<Event>>>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shared")
    }
}

impl Shared {
    pub(crate) fn new(config: &Config, observer: Option<Arc<dyn Observer>>) -> Arc<Self> {
        let backlog = Backlog::new(config.queue.clone());
        let (events, first) = broadcast::channel(EVENT_BUFFER);
        Arc::new(Self {
            state: Mutex::new(State {
                backlog,
                receipts: BTreeMap::new(),
                recovered: Vec::new(),
                commands: VecDeque::new(),
                acknowledged: Vec::new(),
                disk: None,
                filters: BTreeSet::new(),
                hungry: true,
                closed: false,
                ended: false,
                leaving: Vec::new(),
                left: Closed::default(),
                status: Status::default(),
                declined: 0,
                admission: Stats::default(),
                delivery: Stats::default(),
            }),
            wake: Notify::new(),
            room: Notify::new(),
            owing: AtomicBool::new(false),
            runtime: tokio::runtime::Handle::try_current().ok(),
            events,
            observer,
            #[cfg(feature = "metrics")]
            meter: crate::metrics::Meter::new(Arc::clone(&config.client_id)),
            first_reader: Mutex::new(Some(first)),
        })
    }

    /// A panic while the lock was held is ours to survive: every change under it is complete or harmless.
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Not under the lock: an observer may ask the client.
    pub(crate) fn emit(&self, event: Event) {
        if let Some(observer) = &self.observer {
            contained(|| observer.on_event(&event));
        }
        #[cfg(feature = "metrics")]
        contained(|| self.meter.event(&event));
        #[cfg(feature = "tracing")]
        contained(|| trace(&event));
        // No reader is not an error.
        let _ = self.events.send(event);
    }

    /// Not under the lock either.
    pub(crate) fn tell(&self, told: Told) {
        for (_, outcome) in &told {
            if let Some(observer) = &self.observer {
                contained(|| observer.on_outcome(outcome));
            }
            #[cfg(feature = "metrics")]
            contained(|| self.meter.outcome(outcome));
        }
        // The newest first: who waits for the oldest of many is woken once, and finds the others told.
        for (receipt, outcome) in told.into_iter().rev() {
            // A receipt that was dropped wants no answer.
            let _ = receipt.map(|receipt| receipt.send(outcome));
        }
    }

    /// Counters and levels for a recorder; not under the lock, which a recorder may be slow for.
    #[cfg(feature = "metrics")]
    pub(crate) fn measure(&self) {
        let state = self.lock();
        let (stats, status) = (state.stats(), state.status.clone());
        drop(state);
        contained(|| self.meter.measure(&stats, &status));
    }

    /// Sets whether something waits for a reader to make room.
    ///
    /// Both sides change the flag, rather than one writing and one reading it: whichever comes second then sees what the
    /// other did to the channel before. The channel's own order is too weak for that on some processors.
    pub(crate) fn owe_readers(&self, owing: bool) {
        self.owing.swap(owing, Ordering::AcqRel);
    }

    /// A reader has taken an item.
    pub(crate) fn made_room(&self) {
        if self.owing.fetch_or(false, Ordering::AcqRel) {
            self.wake.notify_one();
        }
    }

    /// `None` when the client has ended and somebody else has read how.
    pub(crate) fn events(&self) -> Option<broadcast::Receiver<Event>> {
        let first = self.first_reader.lock().unwrap_or_else(PoisonError::into_inner).take();
        // Under the lock: the end is marked before it is told, so that a reader sees the mark or hears the last event.
        let state = self.lock();
        first.or_else(|| (!state.ended).then(|| self.events.subscribe()))
    }

    /// Adds a command unless the client has ended.
    pub(crate) fn command(&self, command: Command) -> bool {
        let mut state = self.lock();
        if state.closed {
            return false;
        }
        state.closed = matches!(command, Command::Close { .. });
        match &command {
            Command::Subscribe { filter, .. } => {
                state.filters.insert(Arc::clone(filter));
            }
            Command::Unsubscribe { filter } => {
                state.filters.remove(filter);
            }
            Command::Dropped { .. } | Command::Close { .. } => {}
        }
        let is_last = state.closed;
        state.commands.push_back(command);
        drop(state);
        self.wake.notify_one();
        if is_last {
            self.room.notify_waiters();
        }
        true
    }

    /// Asks for the end, which an earlier call may have asked for later; the answer is what is left.
    pub(crate) fn close(&self, deadline: Duration) -> oneshot::Receiver<Closed> {
        let (leaving, left) = oneshot::channel();
        let mut state = self.lock();
        if state.ended {
            // The receiver is here.
            let _ = leaving.send(std::mem::take(&mut state.left));
        } else {
            state.leaving.retain(|other| !other.is_closed());
            state.leaving.push(leaving);
        }
        drop(state);
        self.end(deadline);
        left
    }

    /// Asks for the end, and wants no answer.
    pub(crate) fn end(&self, deadline: Duration) {
        let mut state = self.lock();
        if state.ended {
            return;
        }
        state.closed = true;
        state.commands.push_back(Command::Close { deadline });
        drop(state);
        self.wake.notify_one();
        self.room.notify_waiters();
    }

    pub(crate) fn acknowledge(&self, acknowledged: Acknowledged) {
        let mut state = self.lock();
        if state.ended {
            return;
        }
        state.acknowledged.push(acknowledged);
        drop(state);
        self.wake.notify_one();
    }
}

/// One line an event; a warning where an operator may want to be woken. Nothing here holds a payload or a password.
#[cfg(feature = "tracing")]
fn trace(event: &Event) {
    match event {
        Event::Disconnected { .. }
        | Event::FailedOver { .. }
        | Event::Parked { .. }
        | Event::DuplicateClientId { .. }
        | Event::SubscriptionRefused { .. }
        | Event::SubscriptionPostponed { .. }
        | Event::QosLowered { .. }
        | Event::Rejected { .. }
        | Event::AnnouncementRefused { .. }
        | Event::MessageStuck { .. }
        | Event::PacketIdReused { .. }
        | Event::CertificatesRefused { .. }
        | Event::StandbyLost { .. }
        | Event::Unmatched { .. }
        | Event::QueueDamaged { .. }
        | Event::OutcomesUnwritten { .. }
        | Event::BrokerSlow { .. } => tracing::warn!(?event, "mqtt"),
        Event::Connected { .. }
        | Event::FailedBack { .. }
        | Event::StandbyReady { .. }
        | Event::CertificatesReloaded
        | Event::Closed => tracing::info!(?event, "mqtt"),
        Event::Suspected { .. }
        | Event::NotFailedBack { .. }
        | Event::ConnectFailed { .. }
        | Event::Shed { .. }
        | Event::Expired { .. }
        | Event::Undelivered { .. }
        | Event::Lagged { .. } => tracing::debug!(?event, "mqtt"),
    }
}

/// Held by every client and subscription; the driver ends when the last is gone.
#[derive(Debug)]
pub(crate) struct Handle {
    pub(crate) version: Version,
    pub(crate) shared: Arc<Shared>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.command(Command::Close { deadline: PARTING });
    }
}

/// Counts what a reader missed, and says so in the stream.
pub(crate) fn lagged(missed: u64) -> Event {
    Event::Lagged { missed }
}

//! The only owner of clock, sockets and the task: one task a client, which gives every input to the [`Courier`] and
//! does what it says. Each wake does a bounded amount of work: a few reads and writes, at most a window of messages.
#![expect(clippy::disallowed_methods, reason = "the driver owns the clock and the task")]

mod clock;
mod closing;
mod dial;
mod directory;
mod disk;
mod link;
mod links;
mod readers;
mod resolve;
mod rest;
#[cfg(feature = "rustls")]
mod secure;
mod seed;
mod unclaimed;
mod wire;

use std::{future::poll_fn, io, sync::Arc, time::Instant};

use futures_util::FutureExt;

use crate::{
    broker::Broker,
    config::{Config, ConfigError},
    courier::{Courier, Input, Output},
    dedup::Stamp,
    driver::{
        link::{Link, Progress},
        links::{Found, Links},
        readers::Readers,
        rest::Rest,
        unclaimed::Came,
    },
    event::{Event, GapReason},
    handover::{Acknowledged, Command, Shared, State, Told},
    message::{Closed, MessageId, Outcome},
    packet::Publish,
};

pub(crate) use clock::{before, now};
pub(crate) use dial::{Dialler, Ways};
pub(crate) use directory::Directory;
pub(crate) use disk::{Disk, Refused};
pub(crate) use seed::seed;

/// Starts the task, after what an earlier process left on disk was read.
pub(crate) fn spawn(mut config: Config, ways: Ways, shared: Arc<Shared>) -> Result<(), ConfigError> {
    let runtime = tokio::runtime::Handle::try_current().map_err(|_| ConfigError::NoRuntime)?;
    if config.seed == 0 {
        config.seed = seed();
    }
    let dialler = Dialler::new(ways, &config.brokers, &shared)?;
    disk::attach(&config, &shared)?;
    if config.stamping {
        shared.lock().backlog.stamp_with(Stamp::new(Arc::clone(&config.client_id), seed()));
    }
    let driver = Driver {
        courier: Courier::new(&config, now()),
        brokers: config.brokers,
        shared,
        dialler,
        links: Links::default(),
        rest: Rest::default(),
        readers: Readers::new(now()),
        settled: Vec::new(),
        closing: None,
        left: Closed::default(),
        expiry: None,
        unmatched: 0,
    };
    runtime.spawn(driver.run());
    Ok(())
}

struct Driver {
    shared: Arc<Shared>,
    courier: Courier,
    brokers: Vec<Broker>,
    dialler: Dialler,
    links: Links,
    rest: Rest,
    readers: Readers,
    /// Outcomes not yet told to their receipts.
    settled: Vec<(MessageId, Outcome)>,
    /// When a client that closes gives up what is left.
    closing: Option<Instant>,
    left: Closed,
    /// When the next waiting message expires.
    expiry: Option<Instant>,
    unmatched: u64,
}

impl Driver {
    async fn run(mut self) {
        self.input(Input::Start);
        loop {
            self.turn();
            if self.is_finished() {
                break;
            }
            let found = self.wait().await;
            // Decided before anything is read: what a look delivers is on its readers' account before anybody judges.
            let late = self.courier.poll_timeout().and_then(|due| now().checked_duration_since(due));
            let is_due = late.is_some();
            if let Some(late) = late {
                self.input(Input::Late(late));
            }
            let is_late = self.closing.is_some_and(|at| at <= now());
            let looks = is_due || found.is_none() || is_late;
            if is_due || is_late {
                // A runtime with much to do looks at its sockets seldom: what is there would not be seen.
                tokio::task::yield_now().await;
            }
            if let Some(found) = found {
                self.on_found(found);
            }
            if looks {
                self.look_at_links();
            }
            self.readers.unblock();
            self.decode(self.courier.attempt());
            self.input(Input::Paused(self.readers.is_full()));
            if is_due {
                self.courier.handle_timeout(now());
                self.perform();
            }
        }
        self.finish().await;
    }

    /// What a link did; `None` where something else is to be done, or a rest has ended.
    async fn wait(&mut self) -> Option<Found> {
        let was_full = self.readers.is_full();
        self.unblock();
        let Self { courier, shared, links, rest, readers, closing, expiry, .. } = self;
        let due = [courier.poll_timeout(), *closing, *expiry, readers.unclaimed.due()].into_iter().flatten().min();
        let unread = courier.unread_attempt().filter(|_| readers.is_full() || rest.is_on());
        // Outcomes to be told make room for more to send: not before the sockets were looked at, or a producer that never
        // rests would keep us from reading. What was read and not decoded for want of room may be decoded now.
        let is_busy = !self.settled.is_empty() || (was_full && !readers.is_full());
        tokio::select! {
            biased;
            // Before the links, one of which may be busy all the time; after a rest something is read first.
            () = rest.end() => None,
            found = poll_fn(|context| links.poll(context, now, unread)) => Some(found),
            () = std::future::ready(()), if is_busy => None,
            () = shared.wake.notified() => None,
            () = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due.into()).await,
                    None => std::future::pending().await,
                }
            } => None,
        }
    }

    /// Hands over what waits for slow readers. The flag goes up before the second look, so that a reader that makes
    /// room meanwhile is either seen or wakes us.
    fn unblock(&mut self) {
        self.readers.unblock();
        if self.readers.is_blocked() {
            self.shared.owe_readers(true);
            self.readers.unblock();
        }
        self.shared.owe_readers(self.readers.is_blocked());
    }

    /// Reads what is there before anybody judges by the clock: our own delay is not the broker's.
    fn look_at_links(&mut self) {
        let unread = self.courier.unread_attempt().filter(|_| self.readers.is_full());
        // Each of the few about once, and one more for a dial that becomes a link; a busy one must not keep us here. A dial
        // that has just failed knows better why than its deadline.
        for _ in 0..=self.links.len() {
            let found = poll_fn(|context| self.links.poll(context, now, unread)).now_or_never();
            let Some(found) = found else { break };
            self.on_found(found);
        }
    }

    fn on_found(&mut self, found: Found) {
        match found {
            Found::Dialled(attempt, Ok(transport)) => {
                self.links.add(Link::new(attempt, self.courier.version(), transport));
                self.input(Input::Opened { attempt });
            }
            Found::Dialled(attempt, Err(error)) => {
                let by_peer = error.kind() != io::ErrorKind::TimedOut;
                self.input(Input::Closed { attempt, reason: error.to_string(), by_peer });
            }
            Found::Moved(attempt, progress) => self.on_progress(attempt, progress),
        }
    }

    fn on_progress(&mut self, attempt: u64, progress: Progress) {
        if progress.wrote
            && let Some(link) = self.links.get(attempt)
        {
            let (packets, stalled) = (link.packets_written(), link.stalled());
            self.input(Input::Written { attempt, packets, stalled });
        }
        if progress.heard > 0 {
            self.rest.heard(attempt == self.courier.attempt());
            self.input(Input::Heard { attempt, bytes: progress.heard });
        }
        self.decode(attempt);
        if let Some(reason) = progress.ended
            && self.links.remove(attempt).is_some()
        {
            self.input(Input::Closed { attempt, reason, by_peer: true });
        }
    }

    /// Gives the packets that have arrived to the courier, until a reader is full.
    fn decode(&mut self, attempt: u64) {
        let now = now();
        while !(self.readers.is_full() && Some(attempt) == self.courier.unread_attempt()) {
            let Some(link) = self.links.get_mut(attempt) else { break };
            match link.receive() {
                Ok(Some(packet)) => {
                    self.courier.handle_input(now, Input::Received { attempt, packet });
                    self.perform();
                }
                Ok(None) => break,
                Err(error) => {
                    self.links.remove(attempt);
                    self.input(Input::Closed { attempt, reason: error.to_string(), by_peer: false });
                }
            }
        }
    }

    fn input(&mut self, input: Input) {
        self.courier.handle_input(now(), input);
        self.perform();
    }

    fn perform(&mut self) {
        while let Some(output) = self.courier.poll_output() {
            match output {
                Output::Dial { attempt, broker, deadline } => {
                    if let Some(broker) = self.brokers.get(broker) {
                        self.links.dial(attempt, self.dialler.dial(broker.clone(), deadline));
                    }
                }
                Output::Send { attempt, packet } => self.send(attempt, &packet),
                Output::HangUp { attempt } => self.hang_up(attempt),
                Output::Settled { id, outcome } => self.settled.push((id, outcome)),
                Output::Deliver { publish, serial } => self.deliver(&publish, serial),
                Output::Granted { filter, qos } => self.readers.granted(&filter, qos),
                Output::Gap { filter, reason } => {
                    self.readers.gap(&filter, reason);
                    if let GapReason::Refused { .. } = reason {
                        self.readers.remove(&filter);
                        self.shared.lock().filters.remove(&filter);
                    }
                }
                Output::Event(event) => self.shared.emit(event),
            }
        }
    }

    fn deliver(&mut self, publish: &Publish, serial: Option<u64>) {
        let is_kept = self.readers.deliver(&self.shared, publish, serial)
            || self.readers.unclaimed.keep(now(), Came::of(&self.courier), publish, serial);
        if is_kept {
            return;
        }
        self.unmatched = self.unmatched.saturating_add(1);
        // A client that closes leaves it to the next one of its session.
        if let Some((id, serial)) = publish.id.zip(serial).filter(|_| self.closing.is_none()) {
            self.courier.handle_input(now(), Input::Acknowledge { id, serial });
            self.shared.emit(Event::Unmatched { topic: publish.topic.to_string() });
        }
    }

    fn send(&mut self, attempt: u64, packet: &crate::packet::Packet) {
        let Some(link) = self.links.get_mut(attempt) else { return };
        if let Err(error) = link.send(packet) {
            self.links.remove(attempt);
            self.courier.handle_input(now(), Input::Closed { attempt, reason: error.to_string(), by_peer: false });
        }
    }

    fn hang_up(&mut self, attempt: u64) {
        if let Some(mut link) = self.links.remove(attempt) {
            link.silent_peer().into_iter().for_each(|peer| self.dialler.demote(peer));
            // A goodbye of a few bytes fits any socket that still works; one that does not is not waited for.
            let _ = poll_fn(|context| link.poll_finish(context, now)).now_or_never();
        }
    }

    /// One exchange with the handles: outcomes out, commands and messages in.
    fn turn(&mut self) {
        let shared = Arc::clone(&self.shared);
        let mut state = shared.lock();
        let commands = std::mem::take(&mut state.commands);
        let acknowledged = std::mem::take(&mut state.acknowledged);
        let mut told = self.settle(&mut state);
        let (now, mut expired) = (now(), Vec::new());
        while let Some(late) = state.backlog.expire(now) {
            state.admission.expired = state.admission.expired.saturating_add(1);
            state.forget(late.id);
            state.end(late.id, Outcome::Expired { maybe_delivered: late.recovered }, &mut told);
            expired.push(late.message);
        }
        let has_room = self.links.get(self.courier.attempt()).is_some_and(Link::has_room);
        let room = if has_room { self.courier.room() } else { 0 };
        let messages = state.take(now, room);
        self.expiry = state.backlog.poll_timeout();
        state.status = self.courier.status().clone();
        state.delivery = self.courier.stats();
        state.admission.unmatched = self.unmatched;
        state.admission.overflowed = self.readers.dropped();
        drop(state);
        #[cfg(feature = "metrics")]
        shared.measure();
        if !told.is_empty() {
            shared.room.notify_waiters();
        }
        for message in expired {
            shared.emit(Event::Expired { topic: message.topic().to_owned() });
        }
        shared.tell(told);
        for command in commands {
            self.on_command(command);
        }
        for waiting in self.readers.unclaimed.give_up(now) {
            self.deliver(&waiting.publish, Some(waiting.serial));
        }
        for Acknowledged { id, serial, abandoned } in acknowledged {
            let input = if abandoned { Input::Abandon { id, serial } } else { Input::Acknowledge { id, serial } };
            self.courier.handle_input(now, input);
        }
        for message in messages {
            self.courier.handle_input(now, Input::Publish(message));
        }
        self.perform();
        if self.courier.room() == 0 && self.links.get(self.courier.attempt()).is_some_and(Link::is_socket) {
            self.rest.begin(self.courier.on_the_wire());
        }
    }

    fn settle(&mut self, state: &mut State) -> Told {
        let mut told = Vec::with_capacity(self.settled.len());
        for (id, outcome) in self.settled.drain(..) {
            state.backlog.settle(id);
            state.forget(id);
            state.end(id, outcome, &mut told);
        }
        told
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Subscribe { filter, qos, reader, granted } => {
                self.readers.add(Arc::clone(&filter), reader, granted);
                // The handle has noted it, and an older stream that was dropped before may have struck it out since.
                self.shared.lock().filters.insert(Arc::clone(&filter));
                for waiting in self.readers.unclaimed.claim(&filter, Came::serving(&self.courier)) {
                    self.deliver(&waiting.publish, Some(waiting.serial));
                }
                self.input(Input::Subscribe { filter, qos });
            }
            Command::Unsubscribe { filter } => {
                self.readers.remove(&filter);
                self.shared.lock().filters.remove(&filter);
                self.input(Input::Unsubscribe { filter });
            }
            Command::Dropped { filter } => {
                if self.readers.prune(&filter) {
                    self.shared.lock().filters.remove(&filter);
                    self.input(Input::Unsubscribe { filter });
                }
            }
            Command::Close { deadline } => self.close(deadline),
        }
    }
}

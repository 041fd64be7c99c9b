//! Finds the message on which brokers close the connection, and gives it up: MQTT 3.1.1 knows no other way to refuse one.
//!
//! Connections that end right after sending, twice in a row and with nothing answered, put what was on its way under
//! suspicion. From then on one message at a time is sent, oldest first, and only on a connection that has proved itself:
//! it stood quiet for a while, with a ping answered before and after. A close by the broker counts against the message
//! when it comes much sooner than the quiet time was long, so that a link that breaks at random hardly ever breaks there.
//! A connection that ends in any other way, in the quiet time above all, acquits: all is sent as usual again. So does one
//! that takes one message after the other for a while.
//!
//! A broker that can store nothing (its disk is full) closes on every message alike. So a message of a kind that brokers
//! have acknowledged before, or that every broker takes, is rejected only when another one was taken on the very connection
//! that ended on it; and one of another kind not where the next of such a kind fares no better.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use super::Courier;
use crate::{
    config::Config,
    failover,
    inflight::Entry,
    message::{Message, MessageId},
    packet::Qos,
    reason::Rejection,
    session::{self, Gate, Session},
};

/// Connections in a row that end on something: one may be a broker that was killed.
const ENDINGS: u32 = 2;
/// A close later than this after sending is no answer to what was sent: a NATS node that elects closes after 4 s.
const PROMPT: Duration = Duration::from_secs(3);
/// The first quiet time: long beside the round trip of most links, short for what waits behind.
const QUIET: Duration = Duration::from_millis(500);
/// The quiet time is at least so many times as long as the close took. A link that breaks at random, at whatever rate,
/// survives the one and breaks in the other at most once in 50 connections.
const MARGIN: u32 = 20;
/// The quiet time for a close that takes as long as may be.
const LONGEST_QUIET: Duration = Duration::from_secs(60);
/// So long messages are sent one at a time where none ends the connection: a window of many on a slow link would hold all
/// else up for minutes. What is left is sent as usual, and found out by its next two connections if it is to blame.
const LONGEST_ALONE: Duration = Duration::from_secs(5);
/// Below twice this a message is no other kind for its size alone: few brokers have so low a limit.
const SMALL_BYTES: usize = 1024;

/// How far the present connection has come.
#[derive(Clone, Copy, Debug)]
enum Step {
    Down,
    /// Until this ping, once it is out, and every filter are answered.
    Proving(Option<u64>),
    Quiet {
        until: Instant,
    },
    /// Until this ping, once it is out, is answered.
    Asking(Option<u64>),
    /// This message is on its way alone.
    Exposed {
        message: MessageId,
        since: Instant,
        /// Outcomes that this connection had brought before.
        answers: u64,
    },
}

#[derive(Debug)]
struct Isolation {
    /// The newest message under suspicion.
    last: MessageId,
    /// The oldest; connections in a row that ended on it; and at which brokers.
    suspect: Option<MessageId>,
    closes: u32,
    brokers: BTreeSet<usize>,
    quiet: Duration,
    /// Since when this connection carries one message at a time.
    alone_since: Option<Instant>,
    /// Another message was taken on this connection.
    vouched: bool,
    step: Step,
}

/// See the head of this file.
#[derive(Debug)]
pub(super) struct Suspicion {
    limit: Option<u32>,
    /// Of each broker, whether its last try failed.
    unreachable: Vec<bool>,
    endings: u32,
    /// The broker said that it ends the connection for a reason of its own.
    excused: bool,
    isolation: Option<Isolation>,
    /// Pings of this connection, and how many were answered.
    pinged: u64,
    answered: u64,
    /// Which other message is asked for a word first; moves on when that one is refused too.
    turn: usize,
    /// The broker of the present connection.
    serving: usize,
    /// The largest message acknowledged of each level, retained or not.
    largest: Vec<(Qos, bool, usize)>,
}

/// What the end of a connection says.
#[derive(Clone, Copy, Debug, Default)]
struct Ending {
    /// A message of ours ended it, as far as can be told.
    on_message: bool,
    /// And it was alone on a proved connection.
    alone: bool,
    reject: Option<(MessageId, u32)>,
}

impl Suspicion {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            limit: config.reject_after_closes,
            unreachable: vec![false; config.brokers.len()],
            endings: 0,
            excused: false,
            isolation: None,
            pinged: 0,
            answered: 0,
            turn: 0,
            serving: 0,
            // Small and plain: there is no broker that takes none.
            largest: vec![(Qos::AtLeastOnce, false, 0)],
        }
    }

    pub(super) const fn isolates(&self) -> bool {
        self.isolation.is_some()
    }

    pub(super) fn due(&self) -> Option<Instant> {
        match self.isolation.as_ref()?.step {
            Step::Quiet { until } => Some(until),
            Step::Down | Step::Proving(_) | Step::Asking(_) | Step::Exposed { .. } => None,
        }
    }

    pub(super) fn unreachable(&mut self, broker: usize) {
        if let Some(unreachable) = self.unreachable.get_mut(broker) {
            *unreachable = true;
        }
    }

    pub(super) const fn excuse(&mut self) {
        self.excused = true;
    }

    /// A connection stands; true when a ping is wanted to prove it.
    pub(super) fn established(&mut self, broker: usize) -> bool {
        if let Some(unreachable) = self.unreachable.get_mut(broker) {
            *unreachable = false;
        }
        (self.pinged, self.answered, self.excused) = (0, 0, false);
        self.serving = broker;
        let Some(isolation) = self.isolation.as_mut() else { return false };
        (isolation.vouched, isolation.alone_since) = (false, None);
        isolation.step = Step::Proving(None);
        true
    }

    pub(super) fn pinged(&mut self) {
        self.pinged = self.pinged.saturating_add(1);
        let Some(isolation) = self.isolation.as_mut() else { return };
        if let Step::Proving(ping @ None) | Step::Asking(ping @ None) = &mut isolation.step {
            *ping = Some(self.pinged);
        }
    }

    pub(super) const fn answered(&mut self) {
        self.answered = self.answered.saturating_add(1);
    }

    pub(super) fn acknowledged(&mut self, message: &Message) {
        let (qos, retained, bytes) = kind(message);
        match self.largest.iter_mut().find(|(level, kept, _)| (*level, *kept) == (qos, retained)) {
            Some((_, _, largest)) => *largest = bytes.max(*largest),
            None => self.largest.push((qos, retained, bytes)),
        }
    }

    fn gate(&self) -> Gate {
        match self.isolation.as_ref().map(|isolation| isolation.step) {
            None => Gate::Open,
            Some(Step::Exposed { message, .. }) => Gate::Only(message),
            Some(Step::Down | Step::Proving(_) | Step::Quiet { .. } | Step::Asking(_)) => Gate::Shut,
        }
    }

    fn acquit(&mut self) {
        self.isolation = None;
        self.endings = 0;
    }

    /// Goes on as far as can be; true when a ping is wanted.
    fn advance(&mut self, now: Instant, session: &Session) -> bool {
        let is_answered = |ping: u64| self.answered >= ping;
        let Some(isolation) = self.isolation.as_mut() else { return false };
        match isolation.step {
            Step::Proving(Some(ping)) if is_answered(ping) && !session.is_asking() => {
                isolation.step = Step::Quiet { until: now + isolation.quiet };
            }
            Step::Quiet { until } if until <= now => {
                isolation.step = Step::Asking(None);
                return true;
            }
            Step::Asking(Some(ping)) if is_answered(ping) => self.expose(now, session),
            Step::Exposed { message, answers, .. } if session.ledger().get(message).is_none() => {
                // Acknowledged; or expired, or not given to this broker, which says nothing.
                isolation.vouched |= session.answers() > answers;
                self.expose(now, session);
            }
            _ => {}
        }
        false
    }

    /// Chooses the next message that is sent alone.
    fn expose(&mut self, now: Instant, session: &Session) {
        let Some(oldest) = session.ledger().unsent().next() else { return self.acquit() };
        let is_known = self.is_known_kind(&oldest.admitted.message);
        let suspect = oldest.admitted.id;
        let Some(isolation) = self.isolation.as_mut().filter(|isolation| suspect <= isolation.last) else {
            return self.acquit();
        };
        if isolation.suspect != Some(suspect) {
            isolation.suspect = Some(suspect);
            isolation.closes = 0;
            isolation.brokers.clear();
        }
        let alone_since = *isolation.alone_since.get_or_insert(now);
        if isolation.closes == 0 && now.saturating_duration_since(alone_since) >= LONGEST_ALONE {
            return self.acquit();
        }
        let is_last = self.limit.is_some_and(|limit| isolation.closes.saturating_add(1) >= limit);
        // Only where this close would decide: it looks through the whole window, and there may be one such message only.
        let decides = is_last && isolation.is_everywhere(&self.unreachable, Some(self.serving));
        let asks_another = decides && !isolation.vouched;
        let other = if asks_another { self.other(session, oldest, is_known) } else { None };
        let (message, answers) = (other.unwrap_or(suspect), session.answers());
        let Some(isolation) = self.isolation.as_mut() else { return };
        isolation.step = Step::Exposed { message, since: now, answers };
    }

    /// A message whose acknowledgement would say that the broker takes messages. On another topic: it overtakes the suspect.
    /// For a suspect that may be the first of its kind, one that is not: it may be refused for that as well.
    fn other(&self, session: &Session, suspect: &Entry, is_known: bool) -> Option<MessageId> {
        let mut topics = BTreeSet::from([suspect.admitted.message.topic()]);
        let others = session.ledger().unsent().filter(|entry| is_known || self.is_known_kind(&entry.admitted.message));
        let others = others.filter(|entry| topics.insert(entry.admitted.message.topic()));
        let others: Vec<_> = others.map(|entry| entry.admitted.id).collect();
        others.get(self.turn.checked_rem(others.len())?).copied()
    }

    /// Whether a broker has acknowledged a message that asked no less of it, or every broker does.
    fn is_known_kind(&self, message: &Message) -> bool {
        let (qos, retained, bytes) = kind(message);
        self.largest.iter().any(|(level, kept, largest)| {
            *level >= qos && *kept >= retained && bytes <= largest.saturating_mul(2).max(2 * SMALL_BYTES)
        })
    }

    /// The connection to this broker ended; `session` does not know it yet.
    fn lost(&mut self, now: Instant, broker: usize, by_peer: bool, session: &Session) -> Ending {
        let closed = by_peer && !std::mem::take(&mut self.excused);
        if self.isolation.is_some() {
            let ending = self.lost_alone(now, broker, closed, session);
            if !ending.alone || ending.reject.is_some() {
                self.acquit();
            }
            return ending;
        }
        let was_sending = self.limit.is_some() && closed && session.has_just_sent(now, PROMPT);
        let in_vain = was_sending && session.answers() == 0;
        self.endings = if in_vain { self.endings.saturating_add(1) } else { 0 };
        // A twin that throws us out while we send finds other messages on their way each time.
        let again = session.ledger().oldest_sent().is_some_and(|entry| entry.attempts > 1);
        let on_message = in_vain || (was_sending && again);
        let newest = session.ledger().newest_sent().map(|entry| entry.admitted.id);
        self.isolation = newest.filter(|_| self.endings >= ENDINGS).map(Isolation::new);
        Ending { on_message, ..Ending::default() }
    }

    /// Not `alone` when it says nothing against the suspect.
    fn lost_alone(&mut self, now: Instant, broker: usize, closed: bool, session: &Session) -> Ending {
        let Some(isolation) = self.isolation.as_mut() else { return Ending::default() };
        let Step::Exposed { message, since, .. } = isolation.step else { return Ending::default() };
        let took = now.saturating_duration_since(since);
        let entry = session.ledger().get(message).filter(|_| session.ledger().is_sent(message));
        let Some(entry) = entry.filter(|_| closed && took <= PROMPT && !session.is_asking()) else {
            return Ending::default();
        };
        isolation.step = Step::Down;
        if isolation.suspect != Some(message) {
            // The broker takes this one no more than the suspect; another one may speak the next time.
            self.turn = self.turn.wrapping_add(1);
            return Ending { on_message: true, ..Ending::default() };
        }
        let ending = Ending { on_message: true, alone: true, reject: None };
        if took.saturating_mul(MARGIN) > isolation.quiet {
            // Doubled, not set: a close may have been slow once, because we were.
            isolation.quiet = isolation.quiet.saturating_mul(2).min(LONGEST_QUIET);
            isolation.closes = 0;
            isolation.brokers.clear();
            return ending;
        }
        isolation.closes = isolation.closes.saturating_add(1);
        isolation.brokers.insert(broker);
        let (closes, vouched) = (isolation.closes, isolation.vouched);
        let everywhere = isolation.is_everywhere(&self.unreachable, None);
        if self.limit.is_none_or(|limit| closes < limit) || !everywhere {
            return ending;
        }
        if vouched || !self.is_known_kind(&entry.admitted.message) {
            return Ending { reject: Some((message, closes)), ..ending };
        }
        // Nobody else could be asked: more may be there after a while of sending as usual.
        Ending { alone: false, ..ending }
    }
}

impl Isolation {
    const fn new(last: MessageId) -> Self {
        Self {
            last,
            suspect: None,
            closes: 0,
            brokers: BTreeSet::new(),
            quiet: QUIET,
            alone_since: None,
            vouched: false,
            step: Step::Down,
        }
    }

    /// Whether every broker that can be reached has closed on the suspect, or is this one.
    fn is_everywhere(&self, unreachable: &[bool], here: Option<usize>) -> bool {
        let mut brokers = unreachable.iter().enumerate();
        brokers.all(|(index, away)| *away || here == Some(index) || self.brokers.contains(&index))
    }
}

/// What a message asks of a broker, each of which a broker may refuse.
fn kind(message: &Message) -> (Qos, bool, usize) {
    let carried = message.payload.len().saturating_add(message.user_properties.encoded_bytes());
    (message.qos, message.retained, message.topic.len().saturating_add(carried))
}

impl Courier {
    /// An established connection ends; the session does not know it yet.
    pub(super) fn suspect(&mut self, now: Instant, broker: usize, by_peer: bool) {
        let ending = self.suspicion.lost(now, broker, by_peer, &self.session);
        if let Some(attempt) = self.failover.holder().filter(|_| ending.on_message) {
            self.failover.handle_input(now, failover::Input::EndedOn { attempt, alone: ending.alone });
        }
        if let Some((message, times)) = ending.reject {
            let reason = Rejection::ClosesConnection { times };
            self.session.handle_input(now, session::Input::Reject { message, reason });
        }
        // At once: a connection that is ready beside takes over what the gate holds back. It opens once this one is gone.
        if self.suspicion.isolates() {
            self.session.handle_input(now, session::Input::Gate(self.suspicion.gate()));
        }
    }

    /// Goes on with the isolation as far as it is due; true when that changed anything.
    pub(super) fn settle_suspicion(&mut self, now: Instant) -> bool {
        let wants_ping = self.suspicion.advance(now, &self.session);
        if wants_ping {
            self.session.handle_input(now, session::Input::Probe);
        }
        let gate = self.suspicion.gate();
        let changes = gate != self.session.gate();
        if changes {
            self.session.handle_input(now, session::Input::Gate(gate));
        }
        wants_ping || changes
    }
}

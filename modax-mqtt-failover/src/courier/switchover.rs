//! The way back to a preferred broker: what is on its way is finished, then one step to the other connection.
//!
//! Between independent brokers a second session stands on the new connection and has every filter before the old one is
//! left; what the new broker delivers meanwhile waits until then, and when that is too much the step is made at once. A
//! broker that does not grant a filter is not gone back to. In a cluster the session moves as it is.

use std::time::{Duration, Instant};

use super::{Courier, Output};
use crate::{
    failover,
    message::Message,
    packet::{ConnectCode, Packet},
    session::{self, Session},
};

/// For the filters on the new connection: nothing is held up meanwhile.
const SUBSCRIBING: Duration = Duration::from_secs(1);
/// For what is on its way on the old connection; what is not acknowledged by then is sent again on the new one.
const DRAINING: Duration = Duration::from_millis(200);
/// Deliveries that wait for the step; with more the step is made at once.
const MOST_HELD: usize = 1000;
/// And their bytes; half of what may wait for readers before reading stops.
const MOST_HELD_BYTES: usize = 16 << 20;

#[derive(Debug)]
enum Step {
    /// Transport and CONNECT are the failover's.
    Opening,
    /// Until every filter is granted on the new connection, or too much waits.
    Subscribing { until: Instant },
    /// Nothing new is sent.
    Draining { since: Instant, until: Instant },
}

/// A planned move under way.
#[derive(Debug)]
pub(super) struct Switchover {
    attempt: u64,
    step: Step,
    /// Between independent brokers: the session on the new connection.
    session: Option<Box<Session>>,
    session_present: bool,
    sent: u64,
    held: Vec<Packet>,
    held_bytes: usize,
    /// What the new session says to others than the broker, until it takes over.
    unsaid: Vec<session::Output>,
}

impl Switchover {
    pub(super) const fn due(&self) -> Option<Instant> {
        match self.step {
            Step::Opening => None,
            Step::Subscribing { until } | Step::Draining { until, .. } => Some(until),
        }
    }

    /// Whether the new broker refuses, for now or for good, what the old one serves.
    fn refuses(&self, old: &Session) -> bool {
        let served = |output: &session::Output| match output {
            session::Output::Refused { filter, .. } => old.has_granted(filter),
            _ => false,
        };
        self.session.as_ref().is_some_and(|session| session.refuses_what(old)) || self.unsaid.iter().any(served)
    }

    fn hold(&mut self, packet: Packet) {
        if let Packet::Publish(publish) = &packet {
            self.held_bytes = self.held_bytes.saturating_add(Message::held_bytes(publish));
        }
        self.held.push(packet);
    }

    fn is_full(&self) -> bool {
        self.held.len() >= MOST_HELD || self.held_bytes >= MOST_HELD_BYTES
    }

    pub(super) fn session(&mut self) -> Option<&mut Session> {
        self.session.as_deref_mut()
    }
}

impl Courier {
    pub(super) fn is_beside(&self, attempt: u64) -> bool {
        self.switchover.as_ref().is_some_and(|switchover| switchover.attempt == attempt)
    }

    /// Whether a session of its own was begun there.
    pub(super) fn is_greeted_beside(&self, attempt: u64) -> bool {
        let switchover = self.switchover.as_ref().filter(|switchover| switchover.attempt == attempt);
        switchover.is_some_and(|switchover| switchover.session.is_some())
    }

    /// CONNECT on the new connection while the old one serves.
    pub(super) fn greet_beside(&mut self, now: Instant, attempt: u64, broker: usize, wipe: bool) {
        let mut session = Session::beside(&self.config, &self.session);
        session.handle_input(now, session::Input::Greet { broker, wipe });
        self.switchover = Some(Switchover {
            attempt,
            step: Step::Opening,
            session: Some(Box::new(session)),
            session_present: false,
            sent: 0,
            held: Vec::new(),
            held_bytes: 0,
            unsaid: Vec::new(),
        });
        self.settle_beside(now);
    }

    pub(super) fn received_beside(&mut self, now: Instant, packet: Packet) {
        let Some(switchover) = self.switchover.as_mut() else { return };
        match packet {
            Packet::Publish(_) | Packet::PubRel { .. } => switchover.hold(packet),
            packet => {
                if let Some(session) = switchover.session() {
                    session.handle_input(now, session::Input::Received(packet));
                }
            }
        }
        self.settle_beside(now);
    }

    fn settle_beside(&mut self, now: Instant) {
        while let Some(switchover) = self.switchover.as_mut() {
            let Some(output) = switchover.session().and_then(Session::poll_output) else { return };
            let attempt = switchover.attempt;
            match output {
                session::Output::Send(packet) => {
                    switchover.sent = switchover.sent.saturating_add(1);
                    self.outputs.push_back(Output::Send { attempt, packet });
                }
                session::Output::Answered { code, session_present } => {
                    switchover.session_present = session_present;
                    if code != ConnectCode::Accepted {
                        self.outputs.push_back(Output::HangUp { attempt });
                    }
                    self.failover.handle_input(now, failover::Input::Answered { attempt, code });
                    while let Some(output) = self.failover.poll_output() {
                        self.on_failover(now, output);
                    }
                }
                session::Output::Dismissed(_) => {
                    self.outputs.push_back(Output::HangUp { attempt });
                    self.failover.handle_input(now, failover::Input::Lost { attempt, by_peer: true });
                }
                session::Output::Violation(_) => {
                    // It has heard why.
                    self.outputs.push_back(Output::HangUp { attempt });
                    self.failover.handle_input(now, failover::Input::Lost { attempt, by_peer: false });
                }
                session::Output::Acknowledged(_)
                | session::Output::RequestAnswered
                | session::Output::ProbeAnswered => {}
                other => switchover.unsaid.push(other),
            }
        }
    }

    /// The new connection stands: first its filters, then the rest of the old one.
    pub(super) fn ready(&mut self, now: Instant, attempt: u64, greeted: bool) {
        if greeted {
            if let Some(switchover) = self.switchover.as_mut() {
                switchover.step = Step::Subscribing { until: now + SUBSCRIBING };
            }
            return;
        }
        self.switchover = Some(Switchover {
            attempt,
            step: Step::Draining { since: now, until: now + DRAINING },
            session: None,
            session_present: false,
            sent: 0,
            held: Vec::new(),
            held_bytes: 0,
            unsaid: Vec::new(),
        });
        self.session.handle_input(now, session::Input::Hold(true));
    }

    /// Goes on with the move as far as it is due.
    pub(super) fn settle_switchover(&mut self, now: Instant) {
        self.settle_beside(now);
        let Some(switchover) = self.switchover.as_mut() else { return };
        let (attempt, is_full) = (switchover.attempt, switchover.is_full());
        match switchover.step {
            Step::Opening => {}
            Step::Subscribing { until } => {
                // The new session goes on asking once it has taken over.
                if switchover.refuses(&self.session) {
                    self.failover.handle_input(now, failover::Input::Lost { attempt, by_peer: false });
                } else if is_full || switchover.session().is_none_or(|session| !session.is_asking()) {
                    switchover.step = Step::Draining { since: now, until: now + DRAINING };
                    self.session.handle_input(now, session::Input::Hold(true));
                    self.settle_switchover(now);
                } else if until <= now {
                    self.failover.handle_input(now, failover::Input::Lost { attempt, by_peer: false });
                }
            }
            Step::Draining { since, until } => {
                if self.session.inflight() == 0 || until <= now || is_full {
                    self.moving_since = Some(since);
                    self.failover.handle_input(now, failover::Input::Switch { attempt });
                }
            }
        }
    }

    /// The old connection serves on, or ended by itself.
    pub(super) fn drop_switchover(&mut self, now: Instant, attempt: u64) {
        if self.switchover.take_if(|switchover| switchover.attempt == attempt).is_some() {
            self.session.handle_input(now, session::Input::Hold(false));
        }
    }

    /// The session on the new connection is the client's from here on.
    pub(super) fn adopt(&mut self, now: Instant, attempt: u64) {
        let Some(switchover) = self.switchover.take_if(|switchover| switchover.attempt == attempt) else { return };
        self.session.handle_input(now, session::Input::Hold(false));
        let Some(next) = switchover.session else { return };
        self.attempt = attempt;
        self.session_present = switchover.session_present;
        self.sent = switchover.sent;
        self.probes.clear();
        let old = std::mem::replace(&mut self.session, *next);
        self.adopted = switchover.unsaid;
        self.session.take_over(now, old);
        self.held = switchover.held;
    }

    /// After the word that we are connected: what was held back meanwhile, in its order.
    pub(super) fn say_held(&mut self, now: Instant) {
        for output in std::mem::take(&mut self.adopted) {
            self.on_session(now, output);
        }
        for packet in std::mem::take(&mut self.held) {
            self.session.handle_input(now, session::Input::Received(packet));
        }
    }
}

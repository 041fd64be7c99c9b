//! What the choice of broker says, and what follows from it: connections begin, serve and end.

use std::time::{Duration, Instant};

use super::{Courier, Output, words::Left};
use crate::{
    config::Topology,
    event::{Event, Status},
    failover, liveness,
    packet::{ConnectCode, Packet},
    reason::Reason,
    session,
};

impl Courier {
    pub(super) fn on_failover(&mut self, now: Instant, output: failover::Output) {
        match output {
            failover::Output::Dial { attempt, broker, deadline } => {
                self.outputs.push_back(Output::Dial { attempt, broker, deadline });
            }
            failover::Output::Greet { attempt, broker, wipe, beside: true } => {
                self.greet_beside(now, attempt, broker, wipe);
            }
            failover::Output::Greet { attempt, broker, wipe, beside: false } => {
                self.drop_switchover(now, attempt);
                self.attempt = attempt;
                self.sent = 0;
                self.greeted = Some(now);
                self.probes.clear();
                self.session.handle_input(now, session::Input::Greet { broker, wipe });
            }
            failover::Output::Leave { attempt } => self.leave(now, attempt),
            failover::Output::Drop { attempt } => {
                self.drop_beside(attempt);
                self.drop_switchover(now, attempt);
            }
            failover::Output::Ready { attempt, greeted, .. } => self.ready(now, attempt, greeted),
            failover::Output::NotReturned { broker, reason } => {
                self.aside.failback().failed(now);
                let to = self.broker(broker);
                self.emit(Event::NotFailedBack { to, reason: reason.to_owned() });
            }
            failover::Output::Established { attempt, broker, planned } => {
                self.adopt(now, attempt);
                self.establish(now, broker, planned);
                self.say_held(now);
            }
            failover::Output::GiveUp { attempt, broker, reason } => {
                self.outputs.push_back(Output::HangUp { attempt });
                if attempt == self.attempt {
                    self.session.handle_input(now, session::Input::Lost);
                }
                self.connect_failed(broker, reason.to_owned());
            }
            failover::Output::Parked { broker, code } => {
                if self.serving.is_none() {
                    self.session.handle_input(now, session::Input::Lost);
                }
                self.suspicion.unreachable(broker);
                let broker = self.broker(broker);
                self.stats.connect_failures = self.stats.connect_failures.saturating_add(1);
                self.emit(Event::Parked { broker, reason: code.to_string() });
            }
            failover::Output::DuplicateClientId { broker, takeovers } => {
                let takeovers = u32::try_from(takeovers).unwrap_or(u32::MAX);
                let broker = self.broker(broker);
                self.emit(Event::DuplicateClientId { broker, takeovers });
            }
        }
    }

    /// Ends a connection that never served. One that was greeted is told goodbye: the broker has our will, and would publish it.
    pub(super) fn drop_beside(&mut self, attempt: u64) {
        if self.is_greeted_beside(attempt) {
            self.outputs.push_back(Output::Send { attempt, packet: Packet::Disconnect(Reason::SUCCESS) });
        }
        self.outputs.push_back(Output::HangUp { attempt });
    }

    /// Says goodbye: to a session that was only thrown away, or to the connection that another one takes over from.
    pub(super) fn leave(&mut self, now: Instant, attempt: u64) {
        self.outputs.push_back(Output::Send { attempt, packet: Packet::Disconnect(Reason::SUCCESS) });
        self.outputs.push_back(Output::HangUp { attempt });
        if self.is_beside(attempt) {
            self.switchover = None;
            return;
        }
        self.session.handle_input(now, session::Input::Lost);
        if let Some(broker) = self.serving.take() {
            self.liveness.handle_input(now, liveness::Input::Closed);
            self.moved_from = Some(broker);
            let silent_since = self.moving_since.unwrap_or(now);
            self.left = Some(Left { broker, silent_since, detected: Duration::ZERO });
            self.status = Status { since: Some(now), ..Status::default() };
        }
    }

    pub(super) fn answered(&mut self, now: Instant, code: ConnectCode, session_present: bool) {
        self.session_present = session_present;
        if code != ConnectCode::Accepted {
            self.outputs.push_back(Output::HangUp { attempt: self.attempt });
            if code.is_transient() {
                self.session.handle_input(now, session::Input::Lost);
                let broker = self.failover.broker_of(self.attempt).unwrap_or_default();
                self.connect_failed(broker, code.to_string());
            }
        }
        self.failover.handle_input(now, failover::Input::Answered { attempt: self.attempt, code });
        // Before the session's next outputs: a resend belongs after the word that we are connected.
        while let Some(output) = self.failover.poll_output() {
            self.on_failover(now, output);
        }
    }

    pub(super) fn establish(&mut self, now: Instant, broker: usize, planned: bool) {
        let left = self.left.take();
        self.serving = Some(broker);
        let session_present = self.session_present;
        let name = self.broker(broker);
        self.status = Status { connected: Some(name.clone()), session_present, since: Some(now) };
        self.stats.connects = self.stats.connects.saturating_add(1);
        let same_broker = left.is_some_and(|left| left.broker == broker);
        // What the broker wants instead of ours counts (MQTT 5, 3.2.2.3.14).
        let told = self.session.limits().keep_alive_seconds;
        let keep_alive = told.map_or(self.config.keep_alive, |seconds| Duration::from_secs(seconds.into()));
        self.liveness.handle_input(now, liveness::Input::KeepAlive(keep_alive));
        let electing = self.config.topology == Topology::Cluster && left.is_some() && !planned;
        self.electing = electing;
        self.liveness.handle_input(now, liveness::Input::Opened { same_broker, electing });
        // A session that was greeted beside the old one brings no measure along.
        if let Some(greeted) = self.greeted.take() {
            let took = now.saturating_duration_since(greeted);
            self.liveness.handle_input(now, liveness::Input::Accepted(took));
        }
        self.calm_if_quiet();
        if self.suspicion.established(broker) {
            self.session.handle_input(now, session::Input::Probe);
        }
        let outage = left.map(|left| now.saturating_duration_since(left.silent_since));
        self.emit(Event::Connected { broker: name.clone(), session_present, outage });
        let moved_from = self.moved_from.take();
        if let (Some(from), true) = (moved_from.filter(|from| *from != broker), planned) {
            self.aside.failback().returned(now);
            self.stats.failbacks = self.stats.failbacks.saturating_add(1);
            let from = self.broker(from);
            return self.emit(Event::FailedBack { from, to: name, gap: outage.unwrap_or_default() });
        }
        if moved_from.is_some() {
            self.aside.failback().failed(now);
        }
        if let (Some(left), Some(outage)) = (left.filter(|_| !same_broker), outage) {
            self.stats.failovers = self.stats.failovers.saturating_add(1);
            let from = Some(self.broker(left.broker));
            self.emit(Event::FailedOver { from, to: name, detected: left.detected, outage });
        }
    }

    /// The broker ends the connection, and says why.
    pub(super) fn dismissed(&mut self, now: Instant, reason: Reason) {
        let Some(attempt) = self.failover.holder() else { return };
        self.outputs.push_back(Output::HangUp { attempt });
        if !reason.may_be_our_packet() {
            self.suspicion.excuse();
        }
        if reason == Reason::SESSION_TAKEN_OVER {
            self.failover.handle_input(now, failover::Input::TakenOver { attempt });
        }
        self.lose(now, attempt, format!("the broker said: {reason}"), true);
    }

    /// We end the connection.
    pub(super) fn abandon(&mut self, now: Instant, reason: String, silent_since: Instant) {
        let Some(attempt) = self.failover.holder() else { return };
        self.outputs.push_back(Output::HangUp { attempt });
        self.verdict = Some((reason.clone(), silent_since));
        self.lose(now, attempt, reason, false);
    }

    pub(super) fn closed(&mut self, now: Instant, attempt: u64, reason: String, by_peer: bool) {
        if self.failover.holder() == Some(attempt) {
            return self.lose(now, attempt, reason, by_peer);
        }
        if let Some(broker) = self.failover.broker_of(attempt).filter(|_| !self.is_beside(attempt)) {
            self.connect_failed(broker, reason);
        }
        self.failover.handle_input(now, failover::Input::Lost { attempt, by_peer });
    }

    pub(super) fn lose(&mut self, now: Instant, attempt: u64, reason: String, by_peer: bool) {
        if let Some(broker) = self.serving {
            if !by_peer {
                self.aside.silent(now, broker);
            }
            self.end_connection(now, reason, by_peer);
            self.favour_standby(broker);
        } else {
            self.verdict = None;
            self.session.handle_input(now, session::Input::Lost);
            let broker = self.failover.broker_of(attempt).unwrap_or_default();
            self.connect_failed(broker, reason);
        }
        self.failover.handle_input(now, failover::Input::Lost { attempt, by_peer });
    }

    /// The broker at which the standby stands is trusted: it has just answered.
    pub(super) fn favour_standby(&mut self, lost: usize) {
        if let Some(broker) = self.aside.proven_broker().filter(|broker| *broker != lost) {
            self.failover.favour(broker);
        }
    }

    /// An established connection is no more.
    pub(super) fn end_connection(&mut self, now: Instant, reason: String, by_peer: bool) {
        let Some(broker) = self.serving.take() else { return };
        self.suspect(now, broker, by_peer);
        let verdict = self.verdict.take();
        self.session.handle_input(now, session::Input::Lost);
        self.liveness.handle_input(now, liveness::Input::Closed);
        self.aside.trouble(true);
        self.aside.failback().lost(now);
        let silent_since = verdict.map_or(now, |(_, since)| since);
        let detected = now.saturating_duration_since(silent_since);
        self.left = Some(Left { broker, silent_since, detected });
        self.status = Status { since: Some(now), ..Status::default() };
        let broker = self.broker(broker);
        self.emit(Event::Disconnected { broker, reason });
    }

    pub(super) fn connect_failed(&mut self, broker: usize, reason: String) {
        self.stats.connect_failures = self.stats.connect_failures.saturating_add(1);
        self.suspicion.unreachable(broker);
        let broker = self.broker(broker);
        self.emit(Event::ConnectFailed { broker, reason });
    }
}

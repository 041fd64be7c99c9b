//! What the session and the judge of silence say, and what follows from it.

use std::time::Instant;

use super::{Courier, Output};
use crate::{
    event::{Event, GapReason},
    liveness,
    message::Outcome,
    packet::Packet,
    queue::Admitted,
    reason::Rejection,
    session::{self, End},
};

impl Courier {
    pub(super) fn on_session(&mut self, now: Instant, output: session::Output) {
        match output {
            session::Output::Send(packet) => {
                self.sent = self.sent.saturating_add(1);
                if packet == Packet::PingReq {
                    self.probes.push_back(self.sent);
                    self.suspicion.pinged();
                }
                self.outputs.push_back(Output::Send { attempt: self.attempt, packet });
            }
            session::Output::Answered { code, session_present } => self.answered(now, code, session_present),
            session::Output::Settled { admitted, attempts, end } => self.settled(now, &admitted, attempts, &end),
            session::Output::Deliver { publish, serial } => {
                self.stats.received = self.stats.received.saturating_add(1);
                self.outputs.push_back(Output::Deliver { publish, serial });
            }
            session::Output::Granted { filter, qos } => self.outputs.push_back(Output::Granted { filter, qos }),
            session::Output::Gap { filter, reason } => self.outputs.push_back(Output::Gap { filter, reason }),
            session::Output::Refused { filter, code } => {
                self.emit(Event::SubscriptionRefused { filter: filter.to_string(), code });
                self.outputs.push_back(Output::Gap { filter, reason: GapReason::Refused { code } });
            }
            session::Output::Postponed { filter, code } => {
                self.emit(Event::SubscriptionPostponed { filter: filter.to_string(), code });
                self.outputs.push_back(Output::Gap { filter, reason: GapReason::RefusedForNow { code } });
            }
            session::Output::QosLowered { filter, requested, granted } => {
                let filter = filter.map(|filter| filter.to_string());
                self.emit(Event::QosLowered { filter, requested: requested.level(), granted });
            }
            session::Output::AnnouncementRefused(reason) => self.emit(Event::AnnouncementRefused { reason }),
            session::Output::Stuck { topic, attempts } => {
                self.emit(Event::MessageStuck { topic: topic.to_string(), attempts });
            }
            session::Output::PacketIdReused { id, first } => {
                self.stats.reused_ids = self.stats.reused_ids.saturating_add(1);
                if first {
                    let broker = self.broker(self.serving.unwrap_or_default());
                    self.emit(Event::PacketIdReused { broker, id: id.number() });
                }
            }
            session::Output::Acknowledged(took) => {
                self.aside.acknowledged();
                self.electing = false;
                self.liveness.handle_input(now, liveness::Input::Acknowledged(took));
            }
            session::Output::RequestAnswered => self.liveness.handle_input(now, liveness::Input::Answered),
            session::Output::ProbeAnswered => {
                self.calm_if_quiet();
                self.suspicion.answered();
                self.liveness.handle_input(now, liveness::Input::ProbeAnswered);
            }
            session::Output::StrayAck => self.stats.stray_acks = self.stats.stray_acks.saturating_add(1),
            session::Output::LateAck => self.stats.late_acks = self.stats.late_acks.saturating_add(1),
            session::Output::Dismissed(reason) => self.dismissed(now, reason),
            session::Output::Violation(what) => self.abandon(now, format!("protocol violation: {what}"), now),
        }
    }

    pub(super) fn on_liveness(&mut self, now: Instant, output: liveness::Output) {
        let serving = self.serving.map(|index| self.broker(index));
        match (output, serving) {
            (liveness::Output::Probe, _) => self.session.handle_input(now, session::Input::Probe),
            (liveness::Output::Suspected(reason), Some(broker)) => {
                self.aside.trouble(true);
                self.emit(Event::Suspected { broker, reason: reason.to_string() });
            }
            (liveness::Output::Slow, Some(broker)) => {
                self.aside.trouble(true);
                self.emit(Event::BrokerSlow { broker });
            }
            (liveness::Output::Dead { reason, since }, _) => self.abandon(now, reason.to_string(), since),
            (liveness::Output::Suspected(_) | liveness::Output::Slow, None) => {}
        }
    }

    pub(super) fn written(&mut self, now: Instant, packets: u64, stalled: Option<Instant>) {
        self.session.handle_input(now, session::Input::Flushed(packets));
        self.liveness.handle_input(now, liveness::Input::Sent);
        self.liveness.handle_input(now, liveness::Input::Stalled(stalled));
        while self.probes.front().is_some_and(|place| *place <= packets) {
            self.probes.pop_front();
            self.liveness.handle_input(now, liveness::Input::ProbeSent);
        }
    }

    fn settled(&mut self, now: Instant, admitted: &Admitted, attempts: u32, end: &End) {
        let latency = now.saturating_duration_since(admitted.at);
        let was_sent = attempts > 0 || admitted.recovered;
        let outcome = match *end {
            End::Acked => {
                self.stats.acked = self.stats.acked.saturating_add(1);
                self.suspicion.acknowledged(&admitted.message);
                let broker = self.broker(self.serving.unwrap_or_default());
                Outcome::Acked { broker, attempts, latency }
            }
            End::Rejected(reason) => {
                self.stats.rejected = self.stats.rejected.saturating_add(1);
                self.emit(Event::Rejected { topic: admitted.message.topic().to_owned(), reason });
                // The one answer that counts is the last one's: what became of the others nobody said.
                let unanswered = attempts.saturating_sub(u32::from(matches!(reason, Rejection::Broker(_))));
                Outcome::Rejected { reason, maybe_delivered: unanswered > 0 || admitted.recovered }
            }
            End::Expired => {
                self.stats.expired = self.stats.expired.saturating_add(1);
                self.emit(Event::Expired { topic: admitted.message.topic().to_owned() });
                Outcome::Expired { maybe_delivered: was_sent }
            }
            End::Broken => {
                self.stats.undelivered = self.stats.undelivered.saturating_add(1);
                self.emit(Event::Undelivered { topic: admitted.message.topic().to_owned() });
                Outcome::Undelivered { maybe_delivered: was_sent }
            }
        };
        self.outputs.push_back(Output::Settled { id: admitted.id, outcome });
    }

    /// Nothing waits for an acknowledgement: then an answered probe, or a new connection, is all that can be asked.
    pub(super) fn calm_if_quiet(&mut self) {
        if self.session.inflight() == 0 && !self.session.is_asking() {
            self.aside.trouble(false);
        }
    }
}

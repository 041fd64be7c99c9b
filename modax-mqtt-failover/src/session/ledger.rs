//! Sending, sending again, and what brokers answer.

use std::time::Instant;

use super::{End, Output, Session};
use crate::{
    inflight::Phase,
    message::MessageId,
    packet::{Packet, PacketId, Publish, PublishProperties, Qos},
    queue::Admitted,
    reason::{Reason, Rejection},
};

impl Session {
    pub(super) fn send(&mut self, packet: Packet) {
        self.sent = self.sent.saturating_add(1);
        let asks = matches!(packet, Packet::PubRel { .. } | Packet::Subscribe { .. } | Packet::Unsubscribe { .. });
        if asks || matches!(packet, Packet::Publish(Publish { id: Some(_), .. })) {
            self.asked = self.sent;
        }
        self.outputs.push_back(Output::Send(packet));
    }

    pub(super) fn publish(&mut self, now: Instant, admitted: Admitted) {
        if admitted.message.qos != Qos::AtMostOnce {
            self.inflight.insert(admitted);
            if self.is_up() {
                self.pump(now);
            }
            return;
        }
        if !self.is_up() {
            self.outputs.push_back(Output::Settled { admitted, attempts: 0, end: End::Broken });
            return;
        }
        let publish = packet(&admitted, None, false, self.properties(now, &admitted));
        if let Some(rejection) = self.refusal(&publish) {
            self.outputs.push_back(Output::Settled { admitted, attempts: 0, end: End::Rejected(rejection) });
            return;
        }
        self.send(Packet::Publish(publish));
        self.unwritten.push_back((self.sent, admitted));
    }

    /// Releases what was given up half-way in this session, once a connection. Until then the broker may keep it, and for it
    /// a place of its receive maximum, on later connections too.
    pub(super) fn release_left_open(&mut self) {
        while let Some(id) = self.inflight.next_left_open() {
            self.send(Packet::PubRel { id, code: 0 });
            self.inflight.mark_released(id, self.sent);
        }
    }

    /// Sends (again) the PUBREL of a message that the broker has received.
    pub(super) fn release(&mut self, message: MessageId) {
        let Some(id) = self.inflight.get(message).and_then(|entry| entry.id) else { return };
        self.send(Packet::PubRel { id, code: 0 });
        self.inflight.mark_sent(message, id, self.sent);
    }

    /// Sends what is pending, oldest first, so that later messages never overtake an earlier one's resend.
    pub(super) fn pump(&mut self, now: Instant) {
        self.ask_again();
        self.announce_again();
        while let Some(message) = self.next_to_send() {
            let Some(entry) = self.inflight.get(message) else { return };
            let (known, attempts, phase) = (entry.id, entry.attempts, entry.phase);
            let Some(id) = known.or_else(|| self.free_id()) else { return };
            if phase == Phase::ReleasePending {
                self.release(message);
                continue;
            }
            if let Some(entry) = self.inflight.get(message) {
                // DUP says: sent before, in this session, under this identifier (MQTT-3.3.1-1).
                let duplicate = known.is_some() && attempts > 0;
                let publish = packet(&entry.admitted, Some(id), duplicate, self.properties(now, &entry.admitted));
                if let Some(rejection) = self.refusal(&publish) {
                    self.give_up(message, rejection);
                    self.release_left_open();
                    continue;
                }
                // Brokers read in order: what was left open under this identifier is gone before the new one comes.
                if publish.qos == Qos::ExactlyOnce && self.inflight.may_be_open(id) {
                    self.send(Packet::PubRel { id, code: 0 });
                }
                self.resent = self.resent.saturating_add(u64::from(attempts > 0));
                self.send(Packet::Publish(publish));
            }
            self.inflight.mark_sent(message, id, self.sent);
        }
    }

    /// PUBACK or PUBCOMP.
    pub(super) fn acknowledged(&mut self, now: Instant, id: PacketId, code: u8, level: Qos) {
        let Some((message, qos, phase)) = self.entry(id) else {
            if level == Qos::AtLeastOnce && self.announced(id, Reason::new(code)) {
                return self.pump(now);
            }
            if level == Qos::ExactlyOnce && self.freed(now, id) {
                return self.pump(now);
            }
            self.outputs.push_back(Output::StrayAck);
            return;
        };
        let released = matches!(phase, Phase::Released { .. } | Phase::ReleasePending);
        if qos != level || (level == Qos::ExactlyOnce && !released) {
            // The answer to the PUBREL that went before it is none.
            if level == Qos::AtLeastOnce || !self.inflight.mark_free(id) {
                self.outputs.push_back(Output::StrayAck);
            }
            return;
        }
        self.answered(now, phase);
        self.conclude(message, code);
        self.pump(now);
    }

    /// PUBREC.
    pub(super) fn received(&mut self, now: Instant, id: PacketId, code: u8) {
        let Some((message, Qos::ExactlyOnce, phase)) = self.entry(id) else {
            self.outputs.push_back(Output::StrayAck);
            // A broker that waits for a PUBREL would wait for ever, and hold the identifier.
            if code < 0x80 && self.entry(id).is_none() && self.inflight.released(id).is_none() {
                let code = self.code_for(Reason::PACKET_ID_NOT_FOUND);
                self.send(Packet::PubRel { id, code });
            }
            return;
        };
        self.inflight.mark_free(id);
        // Of a message sent again it says that the broker has it: by whom else would its identifier be taken?
        let is_held = code == Reason::PACKET_ID_IN_USE.number() && self.inflight.is_repeated(message);
        if Reason::new(code).is_failure() && !is_held {
            self.answered(now, phase);
            self.conclude(message, code);
            return self.pump(now);
        }
        match phase {
            Phase::Pending | Phase::Sent { .. } => {
                self.answered(now, phase);
                self.inflight.mark_received(message);
                self.release_left_open();
                self.pump(now);
            }
            // Said twice: the PUBREL is on its way.
            Phase::ReleasePending | Phase::Released { .. } => self.outputs.push_back(Output::StrayAck),
        }
    }

    /// Packets were written: QoS 0 is done, and clocks begin.
    pub(super) fn flushed(&mut self, now: Instant, packets: u64) {
        let unanswered = self.inflight.oldest_unanswered();
        let control = self.control.values().map(|control| control.sequence).min();
        let oldest = [unanswered, control].into_iter().flatten().min().unwrap_or(packets);
        while self.written.front().is_some_and(|(count, _)| *count < oldest) {
            self.written.pop_front();
        }
        // What nobody answers needs no mark: while we do not read, QoS 0 goes on behind something unanswered.
        if self.written.back().is_none_or(|(count, _)| *count < self.asked) {
            self.written.push_back((packets, now));
        }
        while self.unwritten.front().is_some_and(|(sequence, _)| *sequence <= packets) {
            if let Some((_, admitted)) = self.unwritten.pop_front() {
                self.outputs.push_back(Output::Settled { admitted, attempts: 1, end: End::Acked });
            }
        }
    }

    /// When the packet at this place was written, if it was.
    pub(super) fn written_at(&self, sequence: u64) -> Option<Instant> {
        let place = self.written.partition_point(|(count, _)| *count < sequence);
        self.written.get(place).map(|(_, at)| *at)
    }

    pub(super) fn measured(&mut self, now: Instant, sequence: u64) {
        if let Some(written) = self.written_at(sequence) {
            self.outputs.push_back(Output::Acknowledged(now.saturating_duration_since(written)));
        }
    }

    /// The broker has let go of what was left open under this identifier, if anything was.
    fn freed(&mut self, now: Instant, id: PacketId) -> bool {
        if let Some(sequence) = self.inflight.released(id) {
            self.measured(now, sequence);
        }
        self.inflight.mark_free(id)
    }

    fn answered(&mut self, now: Instant, phase: Phase) {
        match phase {
            Phase::Sent { sequence } | Phase::Released { sequence } => self.measured(now, sequence),
            Phase::Pending | Phase::ReleasePending => {}
        }
    }

    fn entry(&self, id: PacketId) -> Option<(MessageId, Qos, Phase)> {
        let entry = self.inflight.by_packet(id)?;
        Some((entry.admitted.id, entry.admitted.message.qos, entry.phase))
    }

    fn conclude(&mut self, message: MessageId, code: u8) {
        self.answers = self.answers.saturating_add(1);
        self.settle(message, ending(Reason::new(code)));
    }

    /// The broker was not asked for an end, and may have it half-way.
    pub(super) fn give_up(&mut self, message: MessageId, rejection: Rejection) {
        self.inflight.leave_open(message);
        self.settle(message, End::Rejected(rejection));
    }

    pub(super) fn settle(&mut self, message: MessageId, end: End) {
        if let Some(entry) = self.inflight.remove(message) {
            self.outputs.push_back(Output::Settled { admitted: entry.admitted, attempts: entry.attempts, end });
        }
    }
}

/// "No matching subscribers" is no failure: the broker has it, and nobody wanted it.
const fn ending(reason: Reason) -> End {
    if reason.is_failure() { End::Rejected(Rejection::Broker(reason)) } else { End::Acked }
}

fn packet(admitted: &Admitted, id: Option<PacketId>, duplicate: bool, properties: PublishProperties) -> Publish {
    let message = &admitted.message;
    Publish {
        topic: message.topic.clone(),
        payload: message.payload.clone(),
        qos: message.qos,
        retain: message.retained,
        duplicate,
        id,
        properties,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        config::Config,
        message::Message,
        packet::{ConnectCode, Limits},
        session::Input,
    };

    #[test]
    fn qos_0_behind_something_unanswered_leaves_no_marks() {
        let config = Config::from_urls("alone", ["mqtt://a"]).unwrap();
        let (mut session, mut now) = (Session::new(&config), Instant::now());
        let mut written = 0;
        let mut tell = |session: &mut Session, now: Instant, input: Option<Input>| {
            session.handle_input(now, input.unwrap_or(Input::Flushed(written)));
            while let Some(output) = session.poll_output() {
                written += u64::from(matches!(output, Output::Send(_)));
            }
        };
        let connack =
            Packet::ConnAck { session_present: false, code: ConnectCode::Accepted, limits: Limits::default() };
        let message = |number, message| {
            Some(Input::Publish(Admitted {
                id: MessageId::new(number),
                message,
                at: now,
                expires_at: None,
                recovered: false,
            }))
        };
        let first = message(0, Message::new("t", ""));
        let rest: Vec<_> = (1..10_000).map(|number| message(number, Message::new("t", "").at_most_once())).collect();
        let last = message(10_000, Message::new("t", ""));
        tell(&mut session, now, Some(Input::Greet { broker: 0, wipe: false }));
        tell(&mut session, now, Some(Input::Received(connack)));
        tell(&mut session, now, first);
        tell(&mut session, now, None);
        let since = now;

        for publish in rest {
            now += Duration::from_millis(1);
            tell(&mut session, now, publish);
            tell(&mut session, now, None);
        }

        assert!(session.written.len() <= 2, "{} marks", session.written.len());
        assert_eq!(session.waiting_since(), Some(since));
        tell(&mut session, now, last);
        tell(&mut session, now, None);
        let id = PacketId::FIRST;
        tell(&mut session, now, Some(Input::Received(Packet::PubAck { id, code: 0 })));
        assert_eq!(session.waiting_since(), Some(now), "the next one is marked where it was written");
    }
}

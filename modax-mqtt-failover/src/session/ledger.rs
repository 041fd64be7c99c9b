//! Sending, sending again, and what brokers answer.

use std::time::Instant;

use super::{End, Output, Session};
use crate::{
    inflight::Phase,
    message::MessageId,
    packet::{Packet, PacketId, Publish, Qos},
    queue::Admitted,
};

impl Session {
    pub(super) fn publish(&mut self, admitted: Admitted) {
        if admitted.message.qos != Qos::AtMostOnce {
            self.inflight.insert(admitted);
            if self.is_up() {
                self.pump();
            }
            return;
        }
        if !self.is_up() {
            self.outputs.push_back(Output::Settled { admitted, attempts: 0, end: End::Broken });
            return;
        }
        self.send(Packet::Publish(packet(&admitted, None, false)));
        self.unwritten.push_back((self.sent, admitted));
    }

    /// Sends what is pending, oldest first, so that later messages never overtake an earlier one's resend.
    pub(super) fn pump(&mut self) {
        while let Some(message) = self.inflight.next_pending() {
            let Some(entry) = self.inflight.get(message) else { return };
            let (known, attempts, phase) = (entry.id, entry.attempts, entry.phase);
            let Some(id) = known.or_else(|| self.free_id()) else { return };
            if phase == Phase::ReleasePending {
                self.send(Packet::PubRel(id));
            } else if let Some(entry) = self.inflight.get(message) {
                // DUP says: sent before, in this session, under this identifier (MQTT-3.3.1-1).
                let publish = packet(&entry.admitted, Some(id), known.is_some() && attempts > 0);
                self.resent = self.resent.saturating_add(u64::from(attempts > 0));
                self.send(Packet::Publish(publish));
            }
            self.inflight.mark_sent(message, id, self.sent);
        }
    }

    /// PUBACK or PUBCOMP.
    pub(super) fn acknowledged(&mut self, now: Instant, id: PacketId, code: u8, level: Qos) {
        let Some((message, qos, phase)) = self.entry(id) else {
            self.outputs.push_back(Output::StrayAck);
            return;
        };
        let released = matches!(phase, Phase::Released { .. } | Phase::ReleasePending);
        if qos != level || (level == Qos::ExactlyOnce && !released) {
            self.outputs.push_back(Output::StrayAck);
            return;
        }
        self.answered(now, phase);
        self.settle(message, if code < 0x80 { End::Acked } else { End::Refused(code) });
    }

    /// PUBREC.
    pub(super) fn received(&mut self, now: Instant, id: PacketId, code: u8) {
        let Some((message, Qos::ExactlyOnce, phase)) = self.entry(id) else {
            self.outputs.push_back(Output::StrayAck);
            // A broker that waits for a PUBREL would wait for ever, and hold the identifier.
            if code < 0x80 && self.entry(id).is_none() {
                self.send(Packet::PubRel(id));
            }
            return;
        };
        if code >= 0x80 {
            self.answered(now, phase);
            return self.settle(message, End::Refused(code));
        }
        match phase {
            Phase::Pending | Phase::Sent { .. } => {
                self.answered(now, phase);
                self.inflight.mark_received(message);
                self.pump();
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
        self.written.push_back((packets, now));
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

    fn settle(&mut self, message: MessageId, end: End) {
        if let Some(entry) = self.inflight.remove(message) {
            self.outputs.push_back(Output::Settled { admitted: entry.admitted, attempts: entry.attempts, end });
        }
    }
}

fn packet(admitted: &Admitted, id: Option<PacketId>, duplicate: bool) -> Publish {
    let message = &admitted.message;
    Publish {
        topic: message.topic.clone(),
        payload: message.payload.clone(),
        qos: message.qos,
        retain: message.retained,
        duplicate,
        id,
    }
}

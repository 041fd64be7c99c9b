//! What the present broker takes, and what becomes of a message that it does not.

use std::time::Instant;

use super::{FILTERS_A_PACKET, Output, Session};
use crate::{
    packet::{Limits, Publish, PublishProperties, Version, varint_bytes},
    queue::Admitted,
    reason::{Reason, Rejection},
};

/// The rest of the 65,535 packet identifiers is for what is asked of a broker beside messages.
const MOST_INFLIGHT: usize = 65_000;
/// Beside its length and its filters: the first byte, the packet identifier, no properties.
const HEADER_BYTES: usize = 1 + 2 + 1;
/// Beside each filter: its length and its options.
const FILTER_BYTES: usize = 2 + 1;

impl Session {
    /// What the present broker said that it takes.
    #[must_use]
    pub const fn limits(&self) -> Limits {
        self.limits
    }

    pub(super) fn limit(&mut self, limits: Limits) {
        self.limits = limits;
        self.told_lowered = false;
    }

    /// Messages with QoS 1 or 2 that may be without an answer at once: ours, or less where the broker says so.
    pub(super) fn window(&self) -> usize {
        self.max_inflight.min(MOST_INFLIGHT).min(usize::from(self.limits.receive_maximum))
    }

    /// The broker says goodbye. It may do so for more messages than it takes although we kept to what it said: then its session
    /// holds what an earlier process, or an older copy of the session, left open. We cannot release what we do not know, so
    /// that only a new session helps, and readers are told what that means for them. One of our own is gone on with once: the
    /// second time it is overfull for good, even where each connection brings some answers.
    pub(super) fn dismissed(&mut self, reason: Reason) {
        if reason == Reason::RECEIVE_MAXIMUM_EXCEEDED && self.is_up() {
            let again = self.overfull_in.replace(self.generation) == Some(self.generation);
            if again || self.inflight.is_inherited() || self.answers == 0 {
                self.begins_anew = true;
                self.subscriptions.expect_gaps();
            }
        }
        self.outputs.push_back(Output::Dismissed(reason));
    }

    /// Why this broker cannot be given this message, if so: sending it all the same would cost the connection, and
    /// again on the next.
    pub(super) fn refusal(&mut self, publish: &Publish) -> Option<Rejection> {
        if self.version == Version::V311 {
            return (!publish.properties.user.is_empty()).then_some(Rejection::NeedsVersion5);
        }
        let highest = self.limits.max_qos;
        if publish.qos > highest {
            if !std::mem::replace(&mut self.told_lowered, true) {
                let requested = publish.qos;
                self.outputs.push_back(Output::QosLowered { filter: None, requested, granted: highest.level() });
            }
            return Some(Rejection::Qos { highest });
        }
        if publish.retain && !self.limits.retain_available {
            return Some(Rejection::Retained);
        }
        let limit_bytes = self.limits.max_packet_bytes?;
        let bytes = publish.encoded_bytes();
        let fits = u32::try_from(bytes).is_ok_and(|bytes| bytes <= limit_bytes);
        (!fits).then_some(Rejection::TooLarge { bytes, limit_bytes })
    }

    /// Why this broker cannot be asked for this filter, if so: it would close the connection, and again on the next.
    pub(super) fn filter_refusal(&self, filter: &str) -> Option<Reason> {
        if self.version == Version::V311 {
            return None;
        }
        if !self.limits.shared_available && filter.starts_with("$share/") {
            return Some(Reason::NO_SHARED_SUBSCRIPTIONS);
        }
        if !self.limits.wildcards_available && filter.contains(['+', '#']) {
            return Some(Reason::NO_WILDCARDS);
        }
        (!self.filter_fits(filter)).then_some(Reason::PACKET_TOO_LARGE)
    }

    /// Whether this broker takes a packet with this filter alone.
    pub(super) fn filter_fits(&self, filter: &str) -> bool {
        self.filters_fit(filter.len().saturating_add(FILTER_BYTES))
    }

    /// Divides filters so that each part is one packet that this broker takes.
    pub(super) fn packets_of<T>(&self, items: Vec<T>, filter: impl Fn(&T) -> &str) -> Vec<Vec<T>> {
        let (mut packets, mut bytes) = (Vec::<Vec<T>>::new(), 0_usize);
        for item in items {
            let more = filter(&item).len().saturating_add(FILTER_BYTES);
            bytes = bytes.saturating_add(more);
            let fits = self.filters_fit(bytes);
            if let Some(packet) = packets.last_mut().filter(|packet| fits && packet.len() < FILTERS_A_PACKET) {
                packet.push(item);
            } else {
                bytes = more;
                packets.push(vec![item]);
            }
        }
        packets
    }

    fn filters_fit(&self, bytes: usize) -> bool {
        let remaining = bytes.saturating_add(HEADER_BYTES - 1);
        let packet = remaining.saturating_add(varint_bytes(remaining)).saturating_add(1);
        self.limits.max_packet_bytes.is_none_or(|limit| u32::try_from(packet).is_ok_and(|packet| packet <= limit))
    }

    /// What MQTT 5 carries beside a message; its time to live is what is left of it now.
    pub(super) fn properties(&self, now: Instant, admitted: &Admitted) -> PublishProperties {
        let left = admitted.expires_at.filter(|_| self.version == Version::V5).map(|at| {
            let left = at.saturating_duration_since(now);
            // Rounded up: a broker that drops it a moment late does no harm, one that drops it early loses it. And never
            // zero, which some take for no end at all.
            let seconds = left.as_secs().saturating_add(u64::from(left.subsec_nanos() > 0)).max(1);
            u32::try_from(seconds).unwrap_or(u32::MAX)
        });
        PublishProperties { user: admitted.message.user_properties.clone(), expiry_seconds: left }
    }
}

//! What may be sent now: everything, nothing, or one message alone.

use std::time::{Duration, Instant};

use super::{Session, UNWRITTEN_LIMIT};
use crate::{
    config::Topology,
    inflight::{Entry, Inflight, Phase},
    message::MessageId,
    packet::{Qos, Version},
};

/// Which messages may be sent. What was received already (PUBREL) goes on in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Gate {
    /// All of them.
    #[default]
    Open,
    /// None, and no new ones are taken in.
    Shut,
    /// Only this one, and no new ones are taken in.
    Only(MessageId),
}

/// QoS 2 messages half-way at a broker of MQTT 3.1.1, which cannot say how many it takes. mosquitto takes 20 by default, in
/// one session, answers what is more as if it had taken it, and drops it, QoS 1 too. As many may be left there by an
/// earlier process.
const HALF_WAY: usize = 8;

impl Session {
    /// How many more messages may be handed in: none without a connection, so that they wait where they can be shed.
    #[must_use]
    pub fn room(&self) -> usize {
        if !self.is_up() || self.holds || self.gate != Gate::Open || self.unwritten.len() >= UNWRITTEN_LIMIT {
            return 0;
        }
        self.window().saturating_sub(self.inflight.len()).saturating_sub(self.inflight.left_open())
    }

    /// What may be sent.
    #[must_use]
    pub const fn gate(&self) -> Gate {
        self.gate
    }

    /// Messages that the broker of this connection answered for good, with yes or no.
    #[must_use]
    pub const fn answers(&self) -> u64 {
        self.answers
    }

    /// What was sent, or has to be sent again.
    #[must_use]
    pub const fn ledger(&self) -> &Inflight {
        &self.inflight
    }

    /// Whether a message waits for its first answer, and the oldest of them was written whole not longer ago than this,
    /// or is not yet.
    #[must_use]
    pub fn has_just_sent(&self, now: Instant, ago: Duration) -> bool {
        let Some(Phase::Sent { sequence }) = self.inflight.oldest_sent().map(|entry| entry.phase) else { return false };
        self.written_at(sequence).is_none_or(|at| now.saturating_duration_since(at) <= ago)
    }

    /// Whether this node of a cluster has answered for nothing yet. While its cluster elects a leader it may drop what it is
    /// given and, once there is one, keep what follows: sent together, later messages would come to stand before earlier
    /// ones.
    fn is_unproven(&self) -> bool {
        self.topology == Topology::Cluster && self.answers == 0
    }

    pub(super) fn set_gate(&mut self, now: Instant, gate: Gate) {
        self.gate = gate;
        if self.is_up() {
            self.pump(now);
        }
    }

    /// Whether the broker can be trusted to keep this one: see [`HALF_WAY`].
    fn may_begin(&self, message: MessageId) -> bool {
        if self.version == Version::V5 || self.inflight.half_way() < HALF_WAY {
            return true;
        }
        let begins = |entry: &Entry| entry.id.is_none() && entry.admitted.message.qos == Qos::ExactlyOnce;
        !self.inflight.get(message).is_some_and(begins)
    }

    /// The window counts messages, and a PUBREL is none (MQTT 5, 4.9).
    pub(super) fn next_to_send(&self) -> Option<MessageId> {
        let window = if self.is_unproven() { 1 } else { self.window() };
        let has_room = self.inflight.on_the_wire().saturating_add(self.announcing()) < window;
        match self.gate {
            Gate::Open if has_room => {
                let next = self.inflight.next_pending().filter(|message| self.may_begin(*message));
                next.or_else(|| self.inflight.releases().next())
            }
            Gate::Only(message) if has_room && self.inflight.is_unsent(message) => Some(message),
            Gate::Open | Gate::Only(_) | Gate::Shut => self.inflight.releases().next(),
        }
    }
}

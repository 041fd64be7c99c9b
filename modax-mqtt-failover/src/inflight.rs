//! The ledger of what was sent, or has to be sent again, and has no outcome yet.
//!
//! Keyed by our own message identity. A packet identifier belongs to one generation of one session: it is kept for a
//! resend only there, and forgotten everywhere else, because to another session it means nothing or something else.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use crate::{
    message::MessageId,
    packet::{PacketId, Qos},
    queue::Admitted,
};

/// How far one message has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Phase {
    /// To be sent (again) on this connection.
    Pending,
    /// On this connection as packet number `sequence`; waits for PUBACK or PUBREC.
    Sent {
        /// Place among the packets of this connection.
        sequence: u64,
    },
    /// QoS 2: the broker has it, PUBREL is to be sent (again) on this connection.
    ReleasePending,
    /// QoS 2: PUBREL went out as packet number `sequence`; waits for PUBCOMP.
    Released {
        /// Place among the packets of this connection.
        sequence: u64,
    },
}

/// One message of the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Entry {
    /// The message.
    pub admitted: Admitted,
    /// How often it was sent.
    pub attempts: u32,
    /// How far it has come.
    pub phase: Phase,
    /// Its packet identifier in the present session generation.
    pub id: Option<PacketId>,
    /// Whether it was sent more than once under that identifier.
    pub is_repeated: bool,
}

/// The ledger. See the head of this file.
#[derive(Debug, Default)]
pub struct Inflight {
    entries: BTreeMap<MessageId, Entry>,
    ids: BTreeMap<PacketId, MessageId>,
    /// Entries in one of the two pending phases.
    pending: BTreeSet<MessageId>,
    /// Entries whose PUBLISH is to be sent (again) on this connection.
    unsent: usize,
    /// QoS 2 entries that have an identifier: the broker may hold them half-way.
    half_way: usize,
    /// In a session that an earlier process began: the identifiers under which it left nothing open. `None`: all.
    free: Option<BTreeSet<PacketId>>,
    /// The identifiers of QoS 2 messages that were given up in this generation after they were sent: those whose PUBREL is
    /// to be sent on this connection, and those for which it went out there as which packet.
    left_open: BTreeSet<PacketId>,
    released: BTreeMap<PacketId, u64>,
    /// The broker knows QoS 2. One of MQTT 3.1.1 that does not (NATS 2.9) closes the connection on it, and on its PUBREL.
    knows_qos_2: bool,
    /// What was given up where that is not known: to be released once, on the next connection; and what was, which is
    /// released before its identifier is used again.
    unanswered: BTreeSet<PacketId>,
    tried: BTreeSet<PacketId>,
    expiries: BTreeSet<(Instant, MessageId)>,
}

impl Inflight {
    /// Messages without an outcome.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether a packet identifier is taken, by a message or by what is left of one.
    #[must_use]
    pub fn holds(&self, id: PacketId) -> bool {
        self.ids.contains_key(&id) || self.left_open.contains(&id) || self.released.contains_key(&id)
    }

    /// The present generation is a session that an earlier process began: under any identifier it may have left a QoS 2
    /// message half-way there, and the broker takes the next one under that identifier for its copy.
    pub fn inherit_packet_ids(&mut self) {
        self.free = Some(BTreeSet::new());
    }

    /// Notes that a message is about to be given up: what the broker may have of it (QoS 2) stays open there.
    pub fn leave_open(&mut self, message: MessageId) {
        let entry = self.entries.get(&message).filter(|entry| entry.admitted.message.qos == Qos::ExactlyOnce);
        let open = if self.knows_qos_2 { &mut self.left_open } else { &mut self.unanswered };
        open.extend(entry.and_then(|entry| entry.id));
    }

    /// The broker has answered a QoS 2 message, or says that it takes them.
    pub fn mark_qos_2(&mut self) {
        self.knows_qos_2 = true;
        self.left_open.append(&mut self.unanswered);
        self.left_open.append(&mut self.tried);
    }

    /// What was left open at a broker that may know no QoS 2, for its one release.
    pub fn try_unanswered(&mut self) -> Vec<PacketId> {
        let ids: Vec<_> = std::mem::take(&mut self.unanswered).into_iter().collect();
        self.tried.extend(&ids);
        ids
    }

    /// How many were left open and are not released, or not known to be (no PUBCOMP yet): the broker may hold a place of its
    /// receive maximum for each.
    #[must_use]
    pub fn left_open(&self) -> usize {
        self.left_open.len().saturating_add(self.released.len())
    }

    /// QoS 2 messages that the broker may hold half-way, with what is left open of others.
    #[must_use]
    pub fn half_way(&self) -> usize {
        self.half_way.saturating_add(self.left_open())
    }

    /// The next identifier whose release is to be sent on this connection.
    #[must_use]
    pub fn next_left_open(&self) -> Option<PacketId> {
        self.left_open.first().copied()
    }

    /// Notes that the PUBREL of what was left open went out.
    pub fn mark_released(&mut self, id: PacketId, sequence: u64) {
        self.left_open.remove(&id);
        self.released.insert(id, sequence);
    }

    /// Where on this connection the PUBREL of what was left open went out, if it did.
    #[must_use]
    pub fn released(&self, id: PacketId) -> Option<u64> {
        self.released.get(&id).copied()
    }

    /// Whether the present session is one that an earlier process began.
    #[must_use]
    pub const fn is_inherited(&self) -> bool {
        self.free.is_some()
    }

    /// Whether an earlier process may have left a QoS 2 message open under this identifier, or we have, at a broker that may
    /// know none.
    #[must_use]
    pub fn may_be_open(&self, id: PacketId) -> bool {
        self.unanswered.contains(&id)
            || self.tried.contains(&id)
            || self.free.as_ref().is_some_and(|free| !free.contains(&id))
    }

    /// Notes that the broker has released what may have been left open; true when that was not known.
    pub fn mark_free(&mut self, id: PacketId) -> bool {
        let was_left = self.left_open.remove(&id)
            | self.released.remove(&id).is_some()
            | self.unanswered.remove(&id)
            | self.tried.remove(&id);
        self.free.as_mut().is_some_and(|free| free.insert(id)) || was_left
    }

    /// Takes a message in, to be sent.
    pub fn insert(&mut self, admitted: Admitted) {
        let message = admitted.id;
        if let Some(at) = admitted.expires_at {
            self.expiries.insert((at, message));
        }
        self.pending.insert(message);
        self.unsent = self.unsent.saturating_add(1);
        self.entries
            .insert(message, Entry { admitted, attempts: 0, phase: Phase::Pending, id: None, is_repeated: false });
    }

    /// The oldest message that is to be sent (again).
    #[must_use]
    pub fn next_pending(&self) -> Option<MessageId> {
        self.pending.first().copied()
    }

    /// The messages whose PUBREL is to be sent (again), oldest first.
    pub fn releases(&self) -> impl Iterator<Item = MessageId> {
        let releases = |id: &&MessageId| self.get(**id).is_some_and(|entry| entry.phase == Phase::ReleasePending);
        self.pending.iter().filter(releases).copied()
    }

    /// Messages whose PUBLISH is on this connection, or was received by this session, and that have no outcome, and what
    /// is left open of others.
    #[must_use]
    pub fn on_the_wire(&self) -> usize {
        self.entries.len().saturating_sub(self.unsent).saturating_add(self.left_open())
    }

    /// The message under this identity.
    #[must_use]
    pub fn get(&self, message: MessageId) -> Option<&Entry> {
        self.entries.get(&message)
    }

    /// The message a packet identifier stands for.
    #[must_use]
    pub fn by_packet(&self, id: PacketId) -> Option<&Entry> {
        self.ids.get(&id).and_then(|message| self.entries.get(message))
    }

    /// Whether this message was sent more than once under its packet identifier.
    #[must_use]
    pub fn is_repeated(&self, message: MessageId) -> bool {
        self.get(message).is_some_and(|entry| entry.is_repeated)
    }

    /// Notes that a PUBLISH (or, after PUBREC, a PUBREL) of this message went out under `id`.
    pub fn mark_sent(&mut self, message: MessageId, id: PacketId, sequence: u64) {
        let Some(entry) = self.entries.get_mut(&message) else { return };
        self.pending.remove(&message);
        let before = entry.id.replace(id);
        let is_known = before == Some(id);
        let is_new = before.is_none() && entry.admitted.message.qos == Qos::ExactlyOnce;
        self.half_way = self.half_way.saturating_add(usize::from(is_new));
        self.ids.insert(id, message);
        entry.phase = match entry.phase {
            Phase::Pending | Phase::Sent { .. } => {
                self.unsent = self.unsent.saturating_sub(usize::from(entry.phase == Phase::Pending));
                entry.is_repeated = is_known;
                entry.attempts = entry.attempts.saturating_add(1);
                Phase::Sent { sequence }
            }
            Phase::ReleasePending | Phase::Released { .. } => Phase::Released { sequence },
        };
    }

    /// Notes a PUBREC; the PUBREL is then pending.
    pub fn mark_received(&mut self, message: MessageId) {
        self.mark_qos_2();
        if let Some(entry) = self.entries.get_mut(&message) {
            // An answer on the last connection may come on this one, before it is sent again.
            self.unsent = self.unsent.saturating_sub(usize::from(entry.phase == Phase::Pending));
            entry.phase = Phase::ReleasePending;
            self.pending.insert(message);
        }
    }

    /// Takes a message out.
    pub fn remove(&mut self, message: MessageId) -> Option<Entry> {
        let entry = self.entries.remove(&message)?;
        self.pending.remove(&message);
        self.unsent = self.unsent.saturating_sub(usize::from(entry.phase == Phase::Pending));
        if let Some(id) = entry.id {
            self.ids.remove(&id);
            let is_half_way = entry.admitted.message.qos == Qos::ExactlyOnce;
            self.half_way = self.half_way.saturating_sub(usize::from(is_half_way));
        }
        if let Some(at) = entry.admitted.expires_at {
            self.expiries.remove(&(at, message));
        }
        Some(entry)
    }

    /// The connection ended: all of it is to be sent again, where the present generation goes on.
    pub fn disconnect(&mut self) {
        for (message, entry) in &mut self.entries {
            entry.phase = match entry.phase {
                Phase::Pending | Phase::Sent { .. } => Phase::Pending,
                Phase::ReleasePending | Phase::Released { .. } => Phase::ReleasePending,
            };
            self.pending.insert(*message);
        }
        self.left_open.extend(std::mem::take(&mut self.released).into_keys());
        self.recount();
    }

    fn recount(&mut self) {
        self.unsent = self.entries.values().filter(|entry| entry.phase == Phase::Pending).count();
    }

    /// The generation ended: packet identifiers mean nothing any more, and what a vanished session had received of a
    /// QoS 2 message is unknown, so that it is published again.
    pub fn forget_packet_ids(&mut self) {
        self.ids.clear();
        self.half_way = 0;
        self.free = None;
        self.left_open.clear();
        self.unanswered.clear();
        self.tried.clear();
        self.knows_qos_2 = false;
        self.released.clear();
        for entry in self.entries.values_mut() {
            entry.id = None;
            if entry.phase == Phase::ReleasePending {
                entry.phase = Phase::Pending;
            }
        }
        self.recount();
    }

    /// The session may be another one than that which received QoS 2 messages. Their PUBLISH under the same identifier
    /// is right in both cases: the one knows it for a copy, the other has to have it.
    pub fn doubt_receipts(&mut self) {
        for entry in self.entries.values_mut().filter(|entry| entry.phase == Phase::ReleasePending) {
            entry.phase = Phase::Pending;
        }
        self.recount();
    }

    /// The place, among the packets of this connection, of the oldest that waits for an answer.
    #[must_use]
    pub fn oldest_unanswered(&self) -> Option<u64> {
        let waiting = |entry: &Entry| match entry.phase {
            Phase::Sent { sequence } | Phase::Released { sequence } => Some(sequence),
            Phase::Pending | Phase::ReleasePending => None,
        };
        // In order of admission, which is the order of sending but for a PUBREL; close enough for a clock.
        let message = self.entries.values().find_map(waiting);
        message.into_iter().chain(self.released.values().copied()).min()
    }

    /// The oldest message that waits for PUBACK or PUBREC on this connection.
    #[must_use]
    pub fn oldest_sent(&self) -> Option<&Entry> {
        self.entries.values().find(|entry| matches!(entry.phase, Phase::Sent { .. }))
    }

    /// Messages whose PUBLISH is to be sent (again) on this connection, oldest first.
    pub fn unsent(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values().filter(|entry| entry.phase == Phase::Pending)
    }

    /// Whether the PUBLISH of this message is to be sent (again) on this connection.
    #[must_use]
    pub fn is_unsent(&self, message: MessageId) -> bool {
        self.get(message).is_some_and(|entry| entry.phase == Phase::Pending)
    }

    /// Whether this message waits for PUBACK or PUBREC on this connection.
    #[must_use]
    pub fn is_sent(&self, message: MessageId) -> bool {
        self.get(message).is_some_and(|entry| matches!(entry.phase, Phase::Sent { .. }))
    }

    /// The newest message that waits for PUBACK or PUBREC on this connection.
    #[must_use]
    pub fn newest_sent(&self) -> Option<&Entry> {
        self.entries.values().rev().find(|entry| matches!(entry.phase, Phase::Sent { .. }))
    }

    /// Takes out one message whose time to live has ended and that is not on its way. What the broker received (QoS 2,
    /// PUBREC) is brought to its end instead; what it may have of another stays open there.
    pub fn expire(&mut self, now: Instant) -> Option<Entry> {
        let ended = self.expiries.iter().take_while(|(at, _)| *at <= now);
        let message = ended.map(|(_, id)| *id).find(|id| self.is_unsent(*id))?;
        self.leave_open(message);
        self.remove(message)
    }

    /// When the next message expires, if any can.
    #[must_use]
    pub fn next_expiry(&self) -> Option<Instant> {
        if self.unsent == 0 {
            return None;
        }
        self.expiries.iter().find(|(_, id)| self.is_unsent(*id)).map(|(at, _)| *at)
    }

    /// Takes everything out, in order of admission.
    pub fn drain(&mut self) -> Vec<Entry> {
        self.ids.clear();
        self.pending.clear();
        (self.unsent, self.half_way) = (0, 0);
        self.expiries.clear();
        std::mem::take(&mut self.entries).into_values().collect()
    }
}

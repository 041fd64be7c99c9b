//! What brokers sent and the program has not finished with.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{Output, Session};
use crate::{
    event::{Filter, GapReason},
    packet::{Packet, PacketId, Publish, Qos},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// QoS 1, delivered on this connection.
    Unacknowledged,
    /// QoS 2, delivered in this generation.
    Delivered,
    /// QoS 2, PUBREC sent; a copy under this identifier is the same message.
    Received,
}

/// Deliveries by packet identifier, each with the serial number that its acknowledgement has to show: the broker
/// reuses an identifier as soon as it is acknowledged, and a forgotten token must not acknowledge a stranger.
#[derive(Debug, Default)]
pub(super) struct Incoming {
    stages: BTreeMap<PacketId, (u64, Stage)>,
    /// QoS 2 identifiers of a session that may have ended since: the broker may use them for other messages.
    doubted: BTreeSet<PacketId>,
    /// On this connection: whether reuse was told of, and who has a gap for it behind what was delivered last.
    reuse_told: bool,
    gaps: BTreeSet<Filter>,
    serial: u64,
}

impl Incoming {
    /// Registers a delivery. `None`: the program has it already. Otherwise the serial number for its acknowledgement.
    fn register(&mut self, id: PacketId, qos: Qos, duplicate: bool) -> Option<u64> {
        // On a new connection a copy says that it is one (MQTT-3.3.1-1).
        let is_other = self.doubted.remove(&id) && !duplicate;
        let held = self.stages.get(&id).map(|(_, stage)| *stage).filter(|_| !is_other);
        if qos == Qos::ExactlyOnce && matches!(held, Some(Stage::Delivered | Stage::Received)) {
            return None;
        }
        self.serial = self.serial.saturating_add(1);
        let stage = if qos == Qos::ExactlyOnce { Stage::Delivered } else { Stage::Unacknowledged };
        // A copy of an unacknowledged message leaves the older serial in place: either may acknowledge it. What has another
        // level is no copy.
        if held != Some(Stage::Unacknowledged) || qos == Qos::ExactlyOnce {
            self.stages.insert(id, (self.serial, stage));
        }
        Some(self.serial)
    }

    fn is_received(&self, id: PacketId) -> bool {
        matches!(self.stages.get(&id), Some((_, Stage::Received)))
    }

    /// The packet with which to answer the broker, if the delivery still waits for it.
    pub(super) fn acknowledge(&mut self, id: PacketId, serial: u64) -> Option<Packet> {
        let (registered, stage) = self.stages.get_mut(&id)?;
        if serial < *registered {
            return None;
        }
        match stage {
            Stage::Unacknowledged => {
                self.stages.remove(&id);
                Some(Packet::PubAck { id, code: 0 })
            }
            Stage::Delivered => {
                *stage = Stage::Received;
                Some(Packet::PubRec { id, code: 0 })
            }
            Stage::Received => None,
        }
    }

    /// The program dropped a QoS 2 delivery: the broker's next copy is delivered again.
    pub(super) fn abandon(&mut self, id: PacketId, serial: u64) {
        if self.stages.get(&id).is_some_and(|stage| *stage == (serial, Stage::Delivered)) {
            self.stages.remove(&id);
        }
    }

    /// The broker let go of a QoS 2 message; false when there was none under this identifier.
    pub(super) fn release(&mut self, id: PacketId) -> bool {
        let known = matches!(self.stages.get(&id), Some((_, Stage::Delivered | Stage::Received)));
        if known {
            self.stages.remove(&id);
        }
        known
    }

    /// What these readers miss next is another gap.
    pub(super) fn forget_gap(&mut self, filter: &Filter) {
        self.gaps.remove(filter);
    }

    /// The session that goes on may be another one.
    pub(super) fn doubt(&mut self) {
        self.doubted = self.stages.keys().copied().collect();
    }

    /// The connection ended: QoS 1 deliveries come again.
    pub(super) fn disconnect(&mut self) {
        self.reuse_told = false;
        self.gaps.clear();
        self.stages.retain(|_, (_, stage)| *stage != Stage::Unacknowledged);
    }

    /// Serial numbers go on where those of another session ended.
    pub(super) fn follow(&mut self, other: &Self) {
        self.serial = self.serial.max(other.serial);
    }

    /// The session ended.
    pub(super) fn forget(&mut self) {
        self.stages.clear();
        self.doubted.clear();
    }
}

impl Session {
    pub(super) fn deliver(&mut self, publish: Publish) {
        if self.watch(&publish) {
            return;
        }
        let serial = match (publish.qos, publish.id) {
            (Qos::AtMostOnce, _) => None,
            (Qos::AtLeastOnce | Qos::ExactlyOnce, None) => {
                return self.violation("a message without its packet identifier");
            }
            (qos, Some(id)) => {
                let Some(serial) = self.incoming.register(id, qos, publish.duplicate) else {
                    return self.again(id, &publish);
                };
                Some(serial)
            }
        };
        if !self.incoming.gaps.is_empty() {
            self.subscriptions.matching(&publish.topic).for_each(|filter| self.incoming.forget_gap(&filter));
        }
        self.outputs.push_back(Output::Deliver { publish, serial });
    }

    /// A message under an identifier that is held. Where it is no copy it is taken for one all the same (4.3.3).
    fn again(&mut self, id: PacketId, publish: &Publish) {
        if !publish.duplicate {
            let first = !std::mem::replace(&mut self.incoming.reuse_told, true);
            self.outputs.push_back(Output::PacketIdReused { id, first });
            for filter in self.subscriptions.matching(&publish.topic) {
                if !self.incoming.gaps.insert(Arc::clone(&filter)) {
                    continue;
                }
                self.outputs.push_back(Output::Gap { filter, reason: GapReason::PacketIdReused });
            }
        }
        if self.incoming.is_received(id) {
            self.send(Packet::PubRec { id, code: 0 });
        }
    }
}

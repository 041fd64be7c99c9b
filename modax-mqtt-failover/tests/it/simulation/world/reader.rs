//! What the program that subscribed is owed, and what it got.

use std::collections::{BTreeMap, BTreeSet};

use modax_mqtt_failover::{Qos, Topology};

use super::Fired;

/// A session: the broker (one for a whole cluster) and which of its sessions.
pub(crate) type SessionKey = (usize, u64);

/// Each command that a broker took while the client counted on it is delivered, or a gap is told after it.
#[derive(Debug)]
pub(crate) struct Reader {
    topology: Topology,
    /// The broker that the client is, or was last, connected to, and whether it granted the filter.
    at: Option<usize>,
    granted: bool,
    /// With the connection they were taken on.
    owed: BTreeMap<u64, u64>,
    connections: u64,
    hears: SessionKey,
    doubted: BTreeSet<SessionKey>,
    /// First deliveries of each broker, and QoS 2 deliveries of each session.
    seen: BTreeMap<usize, Vec<u64>>,
    once: BTreeSet<(SessionKey, u64)>,
    kept: u64,
    granted_ever: bool,
}

impl Reader {
    pub(crate) fn new(topology: Topology) -> Self {
        Self {
            topology,
            at: None,
            granted: false,
            owed: BTreeMap::new(),
            connections: 0,
            hears: (0, 0),
            doubted: BTreeSet::new(),
            seen: BTreeMap::new(),
            once: BTreeSet::new(),
            kept: 0,
            granted_ever: false,
        }
    }

    /// Brokers of a cluster share what they hold.
    fn store(&self, broker: usize) -> usize {
        if self.topology == Topology::Cluster { 0 } else { broker }
    }

    pub(crate) fn connected(&mut self, broker: usize, session: u64) {
        let store = self.store(broker);
        self.connections += 1;
        self.granted &= self.at == Some(store);
        self.at = Some(store);
        self.hears = (broker, session);
    }

    pub(crate) fn granted(&mut self) {
        (self.granted, self.granted_ever) = (true, true);
    }

    pub(crate) fn gap(&mut self) {
        self.owed.clear();
    }

    /// A broker took a command for a session of the client.
    pub(crate) fn owes(&mut self, number: u64, broker: usize) {
        if self.granted && self.at == Some(self.store(broker)) {
            self.owed.insert(number, self.connections);
        }
    }

    pub(crate) fn source(&self) -> SessionKey {
        self.hears
    }

    /// What comes next comes from there.
    pub(crate) fn hears(&mut self, broker: usize, session: u64) {
        self.hears = (broker, session);
    }

    /// The client cannot know that this is the session it knew: it may take copies for other messages.
    pub(crate) fn doubts(&mut self, session: Option<SessionKey>) {
        self.doubted.extend(session);
    }

    pub(crate) fn delivered(&mut self, number: u64, qos: Qos) {
        let store = self.store(self.hears.0);
        if self.owed.remove(&number).is_some_and(|taken_on| taken_on < self.connections) {
            self.kept += 1;
        }
        let seen = self.seen.entry(store).or_default();
        if !seen.contains(&number) {
            assert!(seen.last().is_none_or(|last| *last < number), "command {number} after {seen:?}");
            seen.push(number);
        }
        if qos == Qos::ExactlyOnce {
            let first = self.once.insert((self.hears, number));
            assert!(first || self.doubted.contains(&self.hears), "command {number} came twice in one session");
        }
    }

    pub(crate) fn is_served(&self) -> bool {
        self.owed.is_empty()
    }

    pub(crate) fn judge(&self) {
        assert!(self.granted_ever, "nobody was told that the filter is granted");
        assert!(self.owed.is_empty(), "commands {:?} neither came nor were followed by a gap", self.owed);
    }

    pub(crate) fn count(&self, fired: &mut Fired) {
        fired.kept = self.kept;
        fired.exactly_once = u64::try_from(self.once.len()).expect("few");
    }
}

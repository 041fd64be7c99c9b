//! Messages on which brokers close the connection, and brokers and links that only look as if there were such messages.

use std::time::Duration;

use modax_mqtt_failover::{Message, Qos, Rejection, Scouting, Selection, Standby, Topology, packet::Packet};

use super::{Happening, Plan, World};

/// What makes connections end although no broker is broken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Closes {
    #[default]
    Never,
    /// Some messages, at brokers that do not take them: retained ones, and those on one topic.
    Picky,
    /// From the third second on, or the first acknowledgement, all brokers close on whatever they would have to store, until all heals.
    Full,
    /// All links are cut, at random times or in a steady beat.
    Flapping,
}

impl Plan {
    /// Poisoned messages beside all other faults.
    pub(crate) fn poisoned(seed: u64) -> Self {
        Self { closes: Closes::Picky, healing: Duration::from_secs(300), ..Self::faulty(seed) }
    }

    /// Poisoned messages and nothing else: each has to be found out, and nothing else may be.
    pub(crate) fn only_poisoned(seed: u64) -> Self {
        Self { faults: false, stalls: false, ..Self::poisoned(seed) }
    }

    /// Broken by nothing but flapping links, with round trips of up to half a second.
    pub(crate) fn flapping(seed: u64) -> Self {
        let latency = [3, 30, 100, 250][usize::try_from(seed / 3 % 4).expect("small")];
        let (standby, scouting) = (Standby::None, Scouting::none());
        let latency = Duration::from_millis(latency);
        Self { closes: Closes::Flapping, latency, standby, scouting, ..Self::calm(seed) }
    }

    /// Brokers that can store nothing for a while.
    pub(crate) fn full(seed: u64) -> Self {
        Self { closes: Closes::Full, ..Self::calm(seed) }
    }

    fn calm(seed: u64) -> Self {
        Self {
            faults: false,
            stalls: false,
            exactly_once: false,
            faults_for: Duration::from_secs(60),
            messages: 200,
            selection: Selection::priority(),
            ..Self::faulty(seed)
        }
    }
}

/// Whether brokers that are picky close on it.
fn is_poison(topic: &str, retained: bool) -> bool {
    retained || topic == "odd"
}

impl World {
    /// The message with this number, poisoned or not.
    pub(super) fn dress(&self, number: u64, topic: &mut String, message: Message) -> Message {
        match number % 20 {
            3 if self.plan.closes == Closes::Picky => message.retained(),
            13 if self.plan.closes == Closes::Picky => {
                "odd".clone_into(topic);
                Message::new("odd", message.payload().clone())
            }
            _ => message,
        }
    }

    pub(super) fn prepare_closes(&mut self) {
        match self.plan.closes {
            Closes::Never => {}
            // In a cluster all are alike; of brokers that stand alone all, or all but one.
            Closes::Picky => {
                let spared = self.brokers.len() > 1 && self.plan.topology == Topology::Independent && self.draw(2) == 0;
                let skip = usize::from(spared);
                self.brokers.iter_mut().skip(skip).for_each(|broker| broker.picky = true);
                self.at(self.plan.faults_for + Duration::from_secs(3), Happening::Traffic(1_000_000));
            }
            Closes::Full => self.at(Duration::from_secs(3), Happening::Full),
            Closes::Flapping => {
                self.beat = (self.draw(2) == 0).then(|| self.plan.latency + self.below(self.plan.latency * 6));
                // So often that the first acknowledgement takes many connections: until then every message is of a kind
                // that no broker has taken yet.
                self.beat_mean = self.plan.latency + self.below(self.plan.latency * 12);
                self.at(Duration::ZERO, Happening::Cut);
            }
        }
    }

    /// Others go on publishing until every poisoned message is found out.
    pub(super) fn traffic(&mut self, number: u64) {
        if !self.is_settled() {
            self.publish(number - number % 20);
            self.at(Duration::from_millis(700), Happening::Traffic(number + 20));
        }
    }

    /// Not before the first acknowledgement: without one, nothing tells a full broker from one that takes no such message.
    pub(super) fn fill(&mut self) {
        if self.courier.stats().acked == 0 {
            return self.at(Duration::from_secs(1), Happening::Full);
        }
        self.full = !self.healed;
    }

    /// Ends every connection; a steady beat, or any time.
    pub(super) fn cut(&mut self) {
        if self.healed {
            return;
        }
        self.fired.cuts += 1;
        let attempts: Vec<_> = self.links.iter().map(|(attempt, link)| (*attempt, link.broker)).collect();
        for (attempt, broker) in attempts {
            self.brokers[broker].end(attempt);
            self.links.remove(&attempt);
            self.at(Duration::ZERO, Happening::EndAtClient { attempt });
        }
        // For a moment nobody answers, as everybody does who is no twin's victim.
        self.cut_until = self.now + self.below(Duration::from_millis(50));
        let wait = self.beat.unwrap_or_else(|| {
            let any = self.numbers.fraction().max(1e-9);
            self.beat_mean.mul_f64(-any.ln())
        });
        self.at(wait.max(Duration::from_millis(5)), Happening::Cut);
    }

    /// Whether the broker closes the connection on this packet; then it has done so.
    pub(super) fn closes_on(&mut self, attempt: u64, index: usize, packet: &Packet) -> bool {
        let Packet::Publish(publish) = packet else { return false };
        let is_poison = self.brokers[index].picky && is_poison(&publish.topic, publish.retain);
        let is_too_much = self.full && publish.qos > Qos::AtMostOnce;
        let serves = self.brokers[index].connection.as_ref().is_some_and(|connection| connection.attempt == attempt);
        if !serves || !(is_poison || is_too_much) {
            return false;
        }
        self.fired.closes += 1;
        self.brokers[index].end(attempt);
        // A reset overtakes what was sent before it, a close in order does not.
        let in_order = self.links.get(&attempt).map_or(self.now, |link| link.last_to_client);
        let at = if self.draw(2) == 0 { self.now } else { in_order.max(self.now) };
        let latency = self.latency();
        self.at_instant(at + latency, Happening::EndAtClient { attempt });
        true
    }

    /// A message was rejected because connections ended on it.
    pub(super) fn judge_rejection(&mut self, topic: &str, number: u64, reason: Rejection) {
        let poisoned = self.plan.closes == Closes::Picky && (is_poison(topic, number % 20 == 3));
        assert!(poisoned, "message {number} is like any other: {reason}");
        let all = self.brokers.iter().all(|broker| broker.picky);
        assert!(all || self.plan.faults, "message {number} was never given to the broker that takes it");
        self.fired.thrown_out += 1;
    }

    pub(super) fn judge_poison(&self) {
        let closed = |number: u64| matches!(number % 20, 3 | 13);
        let taken = self.admitted.iter().filter(|(_, (_, number, _))| closed(*number));
        let nobody_takes_it = self.plan.closes == Closes::Picky && self.brokers.iter().all(|broker| broker.picky);
        for (id, (_, number, _)) in taken.filter(|_| nobody_takes_it) {
            let acked = self.outcomes.get(id).is_some_and(modax_mqtt_failover::Outcome::is_acked);
            assert!(!acked, "message {number} was acknowledged, and no broker takes it");
        }
    }
}

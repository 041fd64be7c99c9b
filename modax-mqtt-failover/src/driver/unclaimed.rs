//! What a broker had kept for our session and sends before the program has said what it wants.
//!
//! A session outlives the program, so its messages may arrive between `build` and the first `subscribe`. Acknowledged then,
//! they would be gone. They wait here, unacknowledged, until a subscription claims them or the program has had its time.

use std::time::{Duration, Instant};

use crate::{
    courier::Courier,
    event::Filter,
    message::Message,
    packet::{Publish, Qos},
    subscription::matches,
};

/// How long after its start a program may take to subscribe. Longer would hold up what it does want behind what an
/// earlier version of it once subscribed to.
const TIME_TO_SUBSCRIBE: Duration = Duration::from_secs(10);

pub(super) struct Waiting {
    pub(super) publish: Publish,
    pub(super) serial: u64,
    came: Came,
}

/// On which connection, in which session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Came {
    attempt: u64,
    generation: u64,
}

impl Came {
    pub(super) const fn of(courier: &Courier) -> Self {
        Self { attempt: courier.attempt(), generation: courier.generation() }
    }

    /// The connection that serves, if one does.
    pub(super) fn serving(courier: &Courier) -> Option<Self> {
        courier.status().is_connected().then(|| Self::of(courier))
    }
}

pub(super) struct Unclaimed {
    until: Instant,
    waiting: Vec<Waiting>,
    bytes: usize,
}

impl Unclaimed {
    pub(super) fn new(now: Instant) -> Self {
        Self { until: now + TIME_TO_SUBSCRIBE, waiting: Vec::new(), bytes: 0 }
    }

    /// Keeps a message that nobody wants yet; false when the time is over, or it needs no acknowledgement. Reading stops when
    /// they are too many or too large.
    pub(super) fn keep(&mut self, now: Instant, came: Came, publish: &Publish, serial: Option<u64>) -> bool {
        let Some(serial) = serial.filter(|_| now < self.until) else { return false };
        self.bytes = self.bytes.saturating_add(Message::held_bytes(publish));
        self.waiting.push(Waiting { publish: publish.clone(), serial, came });
        true
    }

    /// Takes what this filter wants, in order of arrival. QoS 1 of an earlier connection comes again on the one that serves now,
    /// unless its session is gone; without one nobody knows yet whether it is.
    pub(super) fn claim(&mut self, filter: &Filter, now: Option<Came>) -> Vec<Waiting> {
        let (wanted, rest): (Vec<_>, Vec<_>) =
            self.waiting.drain(..).partition(|waiting| matches(filter, &waiting.publish.topic));
        self.waiting = rest;
        self.bytes = self.waiting.iter().map(|waiting| Message::held_bytes(&waiting.publish)).sum();
        let comes_again = |waiting: &Waiting| {
            let is_again = |now: Came| now.generation == waiting.came.generation && now.attempt != waiting.came.attempt;
            waiting.publish.qos == Qos::AtLeastOnce && now.is_some_and(is_again)
        };
        wanted.into_iter().filter(|waiting| !comes_again(waiting)).collect()
    }

    /// What waits.
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// When [`give_up`](Self::give_up) has something to do.
    pub(super) fn due(&self) -> Option<Instant> {
        (!self.waiting.is_empty()).then_some(self.until)
    }

    /// Takes everything once the time is over.
    pub(super) fn give_up(&mut self, now: Instant) -> Vec<Waiting> {
        if now < self.until {
            return Vec::new();
        }
        self.bytes = 0;
        std::mem::take(&mut self.waiting)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::packet::{PacketId, PublishProperties};

    fn publish(number: u16, qos: Qos) -> Publish {
        Publish {
            topic: Arc::from("a"),
            payload: number.to_string().into(),
            qos,
            retain: false,
            duplicate: false,
            id: PacketId::new(number),
            properties: PublishProperties::default(),
        }
    }

    /// What a session sent comes again on its next connection, but not from another session.
    #[test]
    fn what_no_broker_sends_again_is_not_let_go() {
        let first = Came { attempt: 1, generation: 1 };
        let again = Came { attempt: 2, generation: 1 };
        let other = Came { attempt: 2, generation: 2 };
        for (now, expected) in [(Some(first), 2), (Some(again), 1), (Some(other), 2), (None, 2)] {
            let start = crate::driver::now();
            let mut unclaimed = Unclaimed::new(start);
            for (number, qos) in [(1, Qos::AtLeastOnce), (2, Qos::ExactlyOnce)] {
                assert!(unclaimed.keep(start, first, &publish(number, qos), Some(1)));
            }
            assert_eq!(unclaimed.claim(&Filter::from("a"), now).len(), expected, "{now:?}");
            assert_eq!(unclaimed.bytes(), 0);
        }
    }
}

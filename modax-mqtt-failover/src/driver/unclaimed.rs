//! What a broker had kept for our session and sends before the program has said what it wants.
//!
//! A session outlives the program, so its messages may arrive between `build` and the first `subscribe`. Acknowledged then,
//! they would be gone. They wait here, unacknowledged, until a subscription claims them or the program has had its time.

use std::time::{Duration, Instant};

use crate::{
    event::Filter,
    packet::{Publish, Qos},
    subscription::matches,
};

/// How long after its start a program may take to subscribe. Longer would hold up what it does want behind what an
/// earlier version of it once subscribed to.
const TIME_TO_SUBSCRIBE: Duration = Duration::from_secs(10);

pub(super) struct Waiting {
    pub(super) publish: Publish,
    pub(super) serial: u64,
    attempt: u64,
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

    /// Keeps a message that nobody wants yet; false when the time is over, or it needs no acknowledgement. Packet
    /// identifiers bound how many there are, and reading stops when they are too large.
    pub(super) fn keep(&mut self, now: Instant, attempt: u64, publish: &Publish, serial: Option<u64>) -> bool {
        let Some(serial) = serial.filter(|_| now < self.until) else { return false };
        self.bytes = self.bytes.saturating_add(publish.encoded_bytes());
        self.waiting.push(Waiting { publish: publish.clone(), serial, attempt });
        true
    }

    /// Takes what this filter wants, in order of arrival. QoS 1 of an earlier connection came again on this one.
    pub(super) fn claim(&mut self, filter: &Filter, attempt: u64) -> Vec<Waiting> {
        let (wanted, rest): (Vec<_>, Vec<_>) =
            self.waiting.drain(..).partition(|waiting| matches(filter, &waiting.publish.topic));
        self.waiting = rest;
        self.bytes = self.waiting.iter().map(|waiting| waiting.publish.encoded_bytes()).sum();
        let is_new = |waiting: &Waiting| waiting.attempt == attempt || waiting.publish.qos == Qos::ExactlyOnce;
        wanted.into_iter().filter(is_new).collect()
    }

    /// What waits, as it stands on the wire.
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

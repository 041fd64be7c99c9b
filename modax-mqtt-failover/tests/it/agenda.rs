//! Virtual time for one courier: what it hears, and when.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use modax_mqtt_failover::courier::Input;

/// The clock, and what is to come in order of time and then of entry.
pub(crate) struct Agenda {
    pub(crate) now: Instant,
    entries: BTreeMap<(Instant, u64), Input>,
    order: u64,
}

impl Agenda {
    pub(crate) fn new() -> Self {
        Self { now: Instant::now(), entries: BTreeMap::new(), order: 0 }
    }

    pub(crate) fn at(&mut self, wait: Duration, input: Input) {
        self.order += 1;
        self.entries.insert((self.now + wait, self.order), input);
    }

    /// Moves the clock to what comes first: an input, or `None` where the courier's own time has come.
    pub(crate) fn advance(&mut self, due: Option<Instant>) -> Option<Input> {
        let next = self.entries.keys().next().map(|(at, _)| *at);
        self.now = [next, due].into_iter().flatten().min().expect("something is due").max(self.now);
        let entry = self.entries.first_entry().filter(|entry| entry.key().0 <= self.now)?;
        Some(entry.remove())
    }
}

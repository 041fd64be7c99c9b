//! What the run looked like over time: states of components and rates, on one clock.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::report::{Lane, Series, State};

/// Width of a rate's bucket.
const BUCKET: Duration = Duration::from_secs(1);

/// Shared by everything that watches.
#[derive(Clone)]
pub(crate) struct Record {
    begun: Instant,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    /// In order of first appearance, which is the order of the page.
    lanes: Vec<Lane>,
    rates: BTreeMap<&'static str, Vec<f64>>,
}

impl Record {
    /// Starts the clock.
    pub(crate) fn start() -> Self {
        Self { begun: Instant::now(), inner: Arc::default() }
    }

    /// Seconds since the clock started.
    pub(crate) fn at(&self, instant: Instant) -> f64 {
        instant.saturating_duration_since(self.begun).as_secs_f64()
    }

    /// Seconds since the clock started, now.
    pub(crate) fn now(&self) -> f64 {
        self.at(Instant::now())
    }

    /// Fixes the order of the lanes.
    pub(crate) fn declare(&self, components: impl IntoIterator<Item = String>) {
        let lanes = components.into_iter().map(|name| Lane { name, states: Vec::new() });
        self.lock().lanes.extend(lanes);
    }

    /// Notes a state; only a change takes place.
    pub(crate) fn state(&self, component: &str, state: State) {
        let now = self.now();
        let mut inner = self.lock();
        if let Some(lane) = inner.lanes.iter_mut().find(|lane| lane.name == component) {
            if lane.states.last().is_none_or(|(_, last)| *last != state) {
                lane.states.push((now, state));
            }
        } else {
            inner.lanes.push(Lane { name: component.to_owned(), states: vec![(now, state)] });
        }
    }

    /// Counts happenings for a rate.
    pub(crate) fn count(&self, rate: &'static str, at: Instant, happenings: u64) {
        let bucket = self.bucket(at);
        let mut inner = self.lock();
        let buckets = inner.rates.entry(rate).or_default();
        if buckets.len() <= bucket {
            buckets.resize(bucket + 1, 0.0);
        }
        buckets[bucket] += happenings as f64;
    }

    /// The lanes so far.
    pub(crate) fn lanes(&self) -> Vec<Lane> {
        self.lock().lanes.clone()
    }

    /// One rate so far, each point in the middle of its bucket; the bucket in progress is left out.
    pub(crate) fn series(&self, rate: &'static str, name: &str, unit: &str) -> Series {
        let whole = self.bucket(Instant::now());
        let mut buckets = self.lock().rates.get(rate).cloned().unwrap_or_default();
        buckets.resize(whole, 0.0);
        let points = buckets
            .iter()
            .enumerate()
            .map(|(index, count)| ((index as f64 + 0.5) * BUCKET.as_secs_f64(), count / BUCKET.as_secs_f64()))
            .collect();
        Series { name: name.to_owned(), unit: unit.to_owned(), points }
    }

    fn bucket(&self, at: Instant) -> usize {
        let since = at.saturating_duration_since(self.begun).as_millis() / BUCKET.as_millis();
        usize::try_from(since).unwrap_or(usize::MAX)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_changes_of_state_are_kept() {
        let record = Record::start();
        for state in [State::Working, State::Working, State::Down, State::Working] {
            record.state("broker 1", state);
        }
        let lanes = record.lanes();
        assert_eq!(lanes.len(), 1);
        assert_eq!(lanes[0].states.len(), 3);
    }

    #[test]
    fn a_second_without_happenings_counts_as_zero() {
        let mut record = Record::start();
        record.begun -= Duration::from_secs(10);
        record.count("reading", record.begun + Duration::from_millis(3500), 2);
        let series = record.series("reading", "readings", "a second");
        assert_eq!(series.points.len(), 10);
        assert!((series.points[3].1 - 2.0).abs() < 1e-9);
        assert!(series.points[9].1.abs() < 1e-9);
    }
}

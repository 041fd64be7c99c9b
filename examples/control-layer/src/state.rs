//! What this instance knows now: devices, their latest readings, whether the plant is safe.
//!
//! In memory only and filled from MQTT, so that it holds while the database is away. The law of safety: the
//! plant is safe when the list of devices is known, at least one has reported, and *every* known device is safe by
//! a report younger than `SAFETY_MAX_AGE`, where the age of a report counts from when it was taken, not from when it arrived.
//! What is unclear is not safe.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::{
    contract::{Analysis, SafetyReport, SafetyStatus, SensorData},
    pace::{Heard, Lateness, Pace, Run},
};

/// Readings kept for `history`, a device: 100 s at 10 Hz, and ten times what the panel asks for.
pub const HISTORY: usize = 1_000;
/// A device that was not heard for this long is not online.
const ONLINE: Duration = Duration::from_secs(10);
/// Most devices of one plant; more are somebody's mistake and must not fill the memory.
pub const MAX_DEVICES: usize = 10_000;
/// So far the clocks of an AI layer and of this machine may be apart.
const CLOCK_SKEW: Duration = Duration::from_secs(60);

/// Shared by everything that reads or tells the state. One lock, held for moments, never over an await.
#[derive(Debug)]
pub struct Plant {
    safety_max_age: Duration,
    epoch: Instant,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    devices: BTreeMap<String, Device>,
    /// Whether the database's list of devices has been read: a silent device must count.
    listed: bool,
    /// Whether there was no room for a device: nobody knows then what it reports, so it stays unsafe until the next start.
    has_refused: bool,
    last_update: Option<f64>,
    last_analysis: Option<f64>,
}

#[derive(Debug, Default)]
struct Device {
    history: VecDeque<SensorData>,
    readings_pace: Pace,
    safety_pace: Pace,
    readings_run: Run,
    safety_run: Run,
    safety: Option<Believed>,
    heard_at: Option<Instant>,
    analysis: Option<Analysis>,
}

/// The safety report that counts, and when it was taken.
#[derive(Clone, Copy, Debug)]
struct Believed {
    status: SafetyStatus,
    taken_at: Instant,
    /// A late report says otherwise: not to be started for until news comes.
    is_doubted: bool,
}

/// What [`Plant::hear_reading`] made of a reading.
#[derive(Clone, Debug)]
pub struct ReadingHeard {
    /// It is newer than what was known.
    pub is_news: bool,
    /// For the decision about its boot.
    pub lateness: Lateness,
}

/// What [`Plant::hear_safety`] made of a report.
#[derive(Clone, Debug)]
pub struct SafetyHeard {
    /// It counts now.
    pub believed: bool,
    /// It says something else than the last one that counted.
    pub changed: bool,
    /// For the decision about its boot.
    pub lateness: Lateness,
}

/// A device as the database lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Who.
    pub device_id: String,
    /// How long ago it was taken out, if it was.
    pub removed: Option<Duration>,
}

/// What `/status` says.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct StatusAnswer {
    /// See the module.
    pub is_safe: bool,
    /// Heard within ten seconds.
    pub devices_online: Vec<String>,
    /// As configured.
    pub ai_enabled: bool,
    /// Unix seconds of the last message from the field; 0 before the first.
    pub last_update: f64,
}

impl Plant {
    /// Nothing known yet. `epoch` is any moment before the first report.
    pub fn new(safety_max_age: Duration, epoch: Instant) -> Self {
        Self { safety_max_age, epoch, inner: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing under the lock can leave the state half changed, so a poisoned one is as good.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn millis(&self, now: Instant) -> i64 {
        i64::try_from(now.saturating_duration_since(self.epoch).as_millis()).unwrap_or(i64::MAX)
    }

    /// Takes a reading into memory; `None` if there is no room for its device.
    pub fn hear_reading(&self, reading: &SensorData, now: Instant, unix: f64) -> Option<ReadingHeard> {
        let at = self.millis(now);
        let mut inner = self.lock();
        inner.last_update = Some(unix);
        let device = inner.device(&reading.device_id)?;
        device.heard_at = Some(now);
        let is_news = device.readings_pace.hear(reading.timestamp, at) != Heard::Late;
        if is_news {
            if device.history.len() >= HISTORY {
                device.history.pop_front();
            }
            device.history.push_back(reading.clone());
        }
        Some(ReadingHeard { is_news, lateness: device.readings_run.hear(reading.timestamp, at) })
    }

    /// Takes a safety report into memory: a safe one only if it is news, an unsafe one also if in doubt. An unsafe one
    /// that is late makes what is believed doubtful, which stops and does not start.
    pub fn hear_safety(&self, report: &SafetyReport, now: Instant, unix: f64) -> Option<SafetyHeard> {
        let at = self.millis(now);
        let mut inner = self.lock();
        inner.last_update = Some(unix);
        let device = inner.device(&report.device_id)?;
        device.heard_at = Some(now);
        let heard = device.safety_pace.hear(report.timestamp, at);
        let lateness = device.safety_run.hear(report.timestamp, at);
        let delay = match heard {
            Heard::News { delay } => delay,
            Heard::Doubtful if !report.status.is_safe() => 0,
            Heard::Late if !report.status.is_safe() => {
                if let Some(known) = &mut device.safety {
                    known.is_doubted |= known.status != report.status;
                }
                return Some(SafetyHeard { believed: false, changed: false, lateness });
            }
            Heard::Doubtful | Heard::Late => return Some(SafetyHeard { believed: false, changed: false, lateness }),
        };
        let delay = Duration::from_millis(u64::try_from(delay).unwrap_or(0));
        let taken_at = now.checked_sub(delay).unwrap_or(self.epoch);
        let believed = Believed { status: report.status, taken_at, is_doubted: false };
        let changed = device.safety.is_none_or(|before| before.status != report.status);
        device.safety = Some(believed);
        Some(SafetyHeard { believed: true, changed, lateness })
    }

    /// Takes an analysis into memory at `unix`. Answers whether it is newer than the one known; unknown devices are not made known by it.
    /// One that says it was made in the future is replaced by any other: a clock that was wrong once must not be right for ever.
    pub fn hear_analysis(&self, analysis: &Analysis, unix: Duration) -> bool {
        let latest = u64::try_from((unix + CLOCK_SKEW).as_millis()).unwrap_or(u64::MAX);
        let mut inner = self.lock();
        let Some(device) = inner.devices.get_mut(&analysis.device_id) else { return false };
        let (known, heard) = (device.analysis.as_ref().map(|known| known.timestamp), analysis.timestamp);
        if known.is_some_and(|known| known == heard || (known > heard && known <= latest)) {
            return false;
        }
        device.analysis = Some(analysis.clone());
        let seconds = analysis.timestamp.min(latest) as f64 / 1_000.0;
        inner.last_analysis = Some(inner.last_analysis.unwrap_or(0.0).max(seconds));
        true
    }

    /// Takes over the database's list: devices this instance has not heard become known, those taken out since they were
    /// last heard are forgotten. Answers for how many there was no room.
    pub fn list(&self, listed: &[Listed], now: Instant) -> u64 {
        let mut inner = self.lock();
        let mut refused = 0;
        for Listed { device_id, removed } in listed {
            match removed {
                None => {
                    refused += u64::from(inner.device(device_id).is_none());
                }
                Some(age) => {
                    let removed_at = now.checked_sub(*age);
                    let heard_since = inner
                        .devices
                        .get(device_id)
                        .and_then(|device| device.heard_at)
                        .is_some_and(|heard| removed_at.is_none_or(|removed| heard > removed));
                    if !heard_since {
                        inner.devices.remove(device_id);
                    }
                }
            }
        }
        inner.listed = true;
        refused
    }

    /// Whether there was no room for a device since the start.
    pub fn has_refused(&self) -> bool {
        self.lock().has_refused
    }

    /// Forgets a device.
    pub fn forget(&self, device_id: &str) {
        self.lock().devices.remove(device_id);
    }

    /// Whether the plant is safe at `now`.
    pub fn is_safe(&self, now: Instant) -> bool {
        self.is_safe_within(now, self.safety_max_age)
    }

    /// Whether it is safe by reports that are also younger than `max_age`.
    pub fn is_safe_within(&self, now: Instant, max_age: Duration) -> bool {
        self.lock().is_safe(now, max_age.min(self.safety_max_age))
    }

    /// What `/status` says at `now`.
    pub fn status(&self, now: Instant, ai_enabled: bool) -> StatusAnswer {
        let inner = self.lock();
        let online = |device: &Device| device.heard_at.is_some_and(|at| now.saturating_duration_since(at) <= ONLINE);
        StatusAnswer {
            is_safe: inner.is_safe(now, self.safety_max_age),
            devices_online: inner
                .devices
                .iter()
                .filter(|(_, device)| online(device))
                .map(|(id, _)| id.clone())
                .collect(),
            ai_enabled,
            last_update: inner.last_update.unwrap_or(0.0),
        }
    }

    /// All known devices.
    pub fn devices(&self) -> Vec<String> {
        self.lock().devices.keys().cloned().collect()
    }

    /// The latest reading and safety status; `None` for an unknown device or one without a reading.
    pub fn latest(&self, device_id: &str) -> Option<(SensorData, Option<SafetyStatus>)> {
        let inner = self.lock();
        let device = inner.devices.get(device_id)?;
        Some((device.history.back()?.clone(), device.safety.map(|believed| believed.status)))
    }

    /// The newest `count` readings, oldest first; `None` for an unknown device.
    pub fn history(&self, device_id: &str, count: usize) -> Option<Vec<SensorData>> {
        let inner = self.lock();
        let history = &inner.devices.get(device_id)?.history;
        Some(history.iter().skip(history.len().saturating_sub(count)).cloned().collect())
    }

    /// The latest analysis.
    pub fn analysis(&self, device_id: &str) -> Option<Analysis> {
        self.lock().devices.get(device_id)?.analysis.clone()
    }

    /// When the last analysis was made (Unix seconds, 0 for never) and for how many devices there is one.
    pub fn analyses(&self) -> (f64, usize) {
        let inner = self.lock();
        let analysed = inner.devices.values().filter(|device| device.analysis.is_some()).count();
        (inner.last_analysis.unwrap_or(0.0), analysed)
    }
}

impl Inner {
    /// The device, made known if there is room.
    fn device(&mut self, device_id: &str) -> Option<&mut Device> {
        if !self.devices.contains_key(device_id) {
            if self.devices.len() >= MAX_DEVICES {
                self.has_refused = true;
                return None;
            }
            self.devices.insert(device_id.to_owned(), Device::default());
        }
        self.devices.get_mut(device_id)
    }

    fn is_safe(&self, now: Instant, max_age: Duration) -> bool {
        let safe = |device: &Device| {
            device.safety.is_some_and(|it| {
                !it.is_doubted && it.status.is_safe() && now.saturating_duration_since(it.taken_at) < max_age
            })
        };
        self.listed && !self.has_refused && !self.devices.is_empty() && self.devices.values().all(safe)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use proptest::prelude::*;

    use super::{Listed, MAX_DEVICES, Plant};
    use crate::contract::{Analysis, SafetyReport, SafetyStatus, SensorData, Vibration};

    const SAFE: SafetyStatus =
        SafetyStatus { emergency_stop: false, door_closed: true, overload_detected: false, temperature_ok: true };
    const OPEN: SafetyStatus = SafetyStatus { door_closed: false, ..SAFE };
    const MAX_AGE: Duration = Duration::from_secs(5);

    fn report(device_id: &str, timestamp: u64, status: SafetyStatus) -> SafetyReport {
        SafetyReport { timestamp, device_id: device_id.to_owned(), status }
    }

    fn millis(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn plant() -> (Plant, Instant) {
        let epoch = Instant::now();
        let plant = Plant::new(MAX_AGE, epoch);
        plant.list(&[], epoch);
        (plant, epoch)
    }

    #[test]
    fn nothing_heard_is_not_safe_and_neither_is_a_plant_whose_devices_are_not_known_yet() {
        let epoch = Instant::now();
        let plant = Plant::new(MAX_AGE, epoch);
        assert!(!plant.is_safe(epoch));

        plant.hear_safety(&report("a", 50, SAFE), epoch, 0.0);
        assert!(!plant.is_safe(epoch), "the list of devices was not read");

        plant.list(&[], epoch);
        assert!(plant.is_safe(epoch));
    }

    #[test]
    fn a_report_counts_until_it_is_as_old_as_the_limit() {
        let (plant, epoch) = plant();
        plant.hear_safety(&report("a", 50, SAFE), epoch, 0.0);

        assert!(plant.is_safe(epoch + millis(4_999)));
        assert!(!plant.is_safe(epoch + MAX_AGE));
    }

    #[test]
    fn a_listed_device_that_never_reports_keeps_the_plant_unsafe_until_it_is_taken_out() {
        let (plant, epoch) = plant();
        plant.hear_safety(&report("a", 50, SAFE), epoch, 0.0);
        plant.list(&[Listed { device_id: "b".to_owned(), removed: None }], epoch);
        assert!(!plant.is_safe(epoch));

        plant.list(&[Listed { device_id: "b".to_owned(), removed: Some(millis(10)) }], epoch + millis(20));
        assert!(plant.is_safe(epoch));
        assert_eq!(plant.devices(), ["a"]);
    }

    #[test]
    fn a_device_heard_after_it_was_taken_out_is_known_again() {
        let (plant, epoch) = plant();
        plant.hear_safety(&report("a", 50, SAFE), epoch + millis(900), 0.0);

        plant.list(&[Listed { device_id: "a".to_owned(), removed: Some(millis(500)) }], epoch + millis(1_000));

        assert_eq!(plant.devices(), ["a"]);
    }

    #[test]
    fn one_unsafe_device_makes_the_plant_unsafe_and_its_next_safe_report_ends_that() {
        let (plant, epoch) = plant();
        plant.hear_safety(&report("a", 50, SAFE), epoch, 0.0);
        let first = plant.hear_safety(&report("b", 50, OPEN), epoch, 0.0).expect("room");
        assert!(first.believed && first.changed);
        assert!(!plant.is_safe(epoch));

        let second = plant.hear_safety(&report("b", 100, SAFE), epoch + millis(50), 0.0).expect("room");
        assert!(second.changed);
        assert!(plant.is_safe(epoch + millis(50)));
        assert!(!plant.hear_safety(&report("b", 150, SAFE), epoch + millis(100), 0.0).expect("room").changed);
    }

    #[test]
    fn a_safe_report_from_before_the_door_opened_does_not_close_it() {
        let (plant, epoch) = plant();
        for n in 1..=100 {
            plant.hear_safety(&report("a", n * 50, SAFE), epoch + millis(n * 50), 0.0);
        }
        plant.hear_safety(&report("a", 5_050, OPEN), epoch + millis(5_050), 0.0);

        let old = plant.hear_safety(&report("a", 2_500, SAFE), epoch + millis(5_060), 0.0).expect("room");

        assert!(!old.believed);
        assert!(!plant.is_safe(epoch + millis(5_060)));
    }

    #[test]
    fn a_safe_report_that_was_held_up_longer_than_the_limit_makes_nothing_safe() {
        let (plant, epoch) = plant();
        plant.hear_safety(&report("a", 50, SAFE), epoch + millis(50), 0.0);

        plant.hear_safety(&report("a", 100, SAFE), epoch + millis(6_100), 0.0);

        assert!(!plant.is_safe(epoch + millis(6_100)), "it was taken six seconds ago");
    }

    #[test]
    fn reports_that_all_come_a_minute_late_make_nothing_safe() {
        let (plant, epoch) = plant();
        for n in 1..=100 {
            plant.hear_safety(&report("a", n * 50, SAFE), epoch + millis(n * 50), 0.0);
        }
        for n in 101..=2_000 {
            let now = epoch + millis(60_000 + n * 50);
            plant.hear_safety(&report("a", n * 50, SAFE), now, 0.0);
            assert!(!plant.is_safe(now), "report {n} was taken a minute ago");
        }
    }

    #[test]
    fn a_late_unsafe_report_stops_until_there_is_news() {
        let (plant, epoch) = plant();
        for n in 1..=100 {
            plant.hear_safety(&report("a", n * 50, SAFE), epoch + millis(n * 50), 0.0);
        }
        let late = plant.hear_safety(&report("a", 2_500, OPEN), epoch + millis(5_010), 0.0).expect("room");
        assert!(!late.believed && !plant.is_safe(epoch + millis(5_010)));

        plant.hear_safety(&report("a", 2_550, SAFE), epoch + millis(5_020), 0.0);
        assert!(!plant.is_safe(epoch + millis(5_020)), "an old safe report starts nothing");
        plant.hear_safety(&report("a", 5_050, SAFE), epoch + millis(5_050), 0.0);
        assert!(plant.is_safe(epoch + millis(5_050)));
    }

    #[test]
    fn a_device_for_which_there_is_no_room_makes_the_plant_unsafe_for_good() {
        let (plant, epoch) = plant();
        for n in 0..MAX_DEVICES {
            plant.hear_safety(&report(&n.to_string(), 50, SAFE), epoch, 0.0).expect("room");
        }
        assert!(plant.is_safe(epoch));

        assert!(plant.hear_safety(&report("more", 50, OPEN), epoch, 0.0).is_none());
        plant.forget("0");
        assert!(!plant.is_safe(epoch));
        let listed = ["0", "1", "more"].map(|id| Listed { device_id: id.to_owned(), removed: None });
        assert_eq!(plant.list(&listed, epoch), 1);
    }

    #[test]
    fn history_is_oldest_first_and_leaves_out_copies() {
        let (plant, epoch) = plant();
        let reading = |timestamp| SensorData {
            timestamp,
            device_id: "a".to_owned(),
            motor_currents: vec![1.0],
            vibration: Vibration::default(),
            temperatures: vec![],
        };
        for n in (0..50).chain(10..20) {
            plant.hear_reading(&reading(3_000 + n * 100), epoch + millis(3_000 + n * 100), 1.5);
        }
        let history = plant.history("a", 3).expect("known");

        assert_eq!(history.iter().map(|it| it.timestamp).collect::<Vec<_>>(), [7_700, 7_800, 7_900]);
        assert_eq!(plant.history("a", 1_000).expect("known").len(), 50);
        assert_eq!(plant.history("b", 3), None);
    }

    proptest! {
        /// Whatever order, age and copies reports come in: right after an unsafe report was believed the plant is not safe.
        #[test]
        fn an_unsafe_report_that_was_believed_is_never_outvoted(
            heard in prop::collection::vec((0_u64..20_000, 0_u64..200, any::<bool>()), 1..80),
        ) {
            let (plant, epoch) = plant();
            let mut now = epoch;
            for (timestamp, pause, safe) in heard {
                now += millis(pause);
                let status = if safe { SAFE } else { OPEN };
                let result = plant.hear_safety(&report("a", timestamp, status), now, 0.0).expect("room");
                if result.believed {
                    prop_assert!(safe || !plant.is_safe(now));
                }
                prop_assert!(!plant.is_safe(now + MAX_AGE));
            }
        }
    }

    #[test]
    fn an_analysis_from_the_future_does_not_outlive_the_next_one() {
        let (plant, epoch) = plant();
        plant.hear_safety(&report("a", 50, SAFE), epoch, 0.0);
        let at = Duration::from_secs;
        let analysis = |seconds: u64| Analysis {
            timestamp: seconds * 1_000,
            device_id: "a".to_owned(),
            anomaly_detected: false,
            anomaly_score: 0.0,
            anomaly_description: String::new(),
            predicted_wear_level: 0.0,
            estimated_remaining_hours: 0,
            recommendations: Vec::new(),
            confidence: 0.0,
            analysis_details: serde_json::Value::Null,
        };

        assert!(plant.hear_analysis(&analysis(10_000), at(10_000)));
        assert!(!plant.hear_analysis(&analysis(10_000), at(10_000)), "the same again");
        assert!(!plant.hear_analysis(&analysis(9_000), at(10_000)), "an older one");
        assert!(plant.hear_analysis(&analysis(90_000), at(10_000)), "by a clock that is wrong");
        let (told, _) = plant.analyses();
        assert!((told - 10_060.0).abs() < 1e-9, "no later than clocks are apart: {told}");
        assert!(!plant.hear_analysis(&analysis(90_000), at(10_000)), "the same again");
        assert!(plant.hear_analysis(&analysis(10_010), at(10_010)));
        assert_eq!(plant.analysis("a").expect("one").timestamp, 10_010_000);
    }
}

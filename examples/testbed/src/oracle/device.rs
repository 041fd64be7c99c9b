//! The devices' logs against the rows of `sensor_data`.

use std::collections::BTreeMap;

use crate::device::{DeviceLog, Entry, serial_of};

/// One row of `sensor_data`, as far as the oracle needs it.
#[derive(Clone, Debug, PartialEq)]
pub struct SensorRow {
    /// As stored.
    pub device_id: String,
    /// As stored; they carry the reading's serial number.
    pub motor_currents: Vec<f64>,
}

/// Judges readings: *owed* is what was made and not shed, that is, acknowledged to the device or still in its queue.
#[derive(Clone, Copy, Debug)]
pub struct DeviceOracle;

/// An owed reading without a row.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LostReading {
    /// Whose.
    pub device_id: String,
    /// Of the reading.
    pub serial: u64,
    /// In which it was made.
    pub boot: u32,
    /// Milliseconds since that boot.
    pub timestamp: u64,
    /// Whether a broker had acknowledged it; otherwise it was still in the device's queue.
    pub acked: bool,
}

/// What became of the readings of all devices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceVerdict {
    /// Readings made.
    pub made: u64,
    /// Acknowledged to a device.
    pub acked: u64,
    /// Shed by a device whose queue was full; not owed.
    pub shed: u64,
    /// Still in a queue at the end.
    pub queued: u64,
    /// Acknowledged or still in a queue.
    pub owed: u64,
    /// Boots after the first one.
    pub reboots: u64,
    /// Rows of these devices.
    pub rows: u64,
    /// Owed and without a row.
    pub lost: Vec<LostReading>,
    /// Device, serial number and count of readings with more than one row.
    pub duplicated: Vec<(String, u64, u64)>,
    /// Rows of these devices that no log explains: device, and the serial number if there is one.
    pub phantoms: Vec<(String, Option<u64>)>,
    /// Devices whose log is incomplete, so that nothing can be said.
    pub incomplete: Vec<String>,
}

#[derive(Default)]
struct Fate {
    made: Option<(u32, u64)>,
    acked: bool,
    shed: bool,
    rows: u64,
}

impl DeviceOracle {
    /// Compares. Rows of devices without a log are left out.
    #[must_use]
    pub fn judge(logs: &[DeviceLog], rows: &[SensorRow]) -> DeviceVerdict {
        let mut verdict = DeviceVerdict::default();
        let mut fates: BTreeMap<&str, BTreeMap<u64, Fate>> = BTreeMap::new();
        for log in logs {
            let fates = fates.entry(&log.device_id).or_default();
            if log.incomplete {
                verdict.incomplete.push(log.device_id.clone());
            }
            log.entries.iter().for_each(|entry| read(entry, fates, &mut verdict));
        }
        for row in rows {
            let Some(fates) = fates.get_mut(row.device_id.as_str()) else { continue };
            verdict.rows += 1;
            let serial = serial_of(&row.motor_currents);
            match serial.and_then(|serial| fates.get_mut(&serial)).filter(|fate| fate.made.is_some()) {
                Some(fate) => fate.rows += 1,
                None => verdict.phantoms.push((row.device_id.clone(), serial)),
            }
        }
        for (device_id, fates) in fates {
            for (serial, fate) in fates {
                verdict.count(device_id, serial, &fate);
            }
        }
        verdict
    }
}

fn read(entry: &Entry, fates: &mut BTreeMap<u64, Fate>, verdict: &mut DeviceVerdict) {
    match entry {
        Entry::Booted { boot } => verdict.reboots += u64::from(*boot > 1),
        Entry::Made { serial, boot, timestamp } => {
            fates.entry(*serial).or_default().made = Some((*boot, *timestamp));
        }
        Entry::Acked { serial } => fates.entry(*serial).or_default().acked = true,
        Entry::Shed { serial } => fates.entry(*serial).or_default().shed = true,
        Entry::Connected { .. } | Entry::Left { .. } | Entry::Received { .. } => {}
    }
}

impl DeviceVerdict {
    fn count(&mut self, device_id: &str, serial: u64, fate: &Fate) {
        let (boot, timestamp) = fate.made.unwrap_or_default();
        let owed = fate.acked || !fate.shed;
        self.made += u64::from(fate.made.is_some());
        self.acked += u64::from(fate.acked);
        self.shed += u64::from(fate.shed && !fate.acked);
        self.queued += u64::from(owed && !fate.acked);
        self.owed += u64::from(owed);
        if owed && fate.rows == 0 {
            let device_id = device_id.to_owned();
            self.lost.push(LostReading { device_id, serial, boot, timestamp, acked: fate.acked });
        }
        if fate.rows > 1 {
            self.duplicated.push((device_id.to_owned(), serial, fate.rows));
        }
    }

    /// Whether every owed reading has exactly one row, and there was something to judge.
    pub fn is_clean(&self) -> bool {
        self.owed > 0
            && self.lost.is_empty()
            && self.duplicated.is_empty()
            && self.phantoms.is_empty()
            && self.incomplete.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::{DeviceOracle, DeviceVerdict, SensorRow};
    use crate::device::{DeviceLog, Entry};

    fn row(device_id: &str, serial: u64) -> SensorRow {
        let digits = |digits: u64| 3.0 + digits as f64 / 1000.0;
        let motor_currents = vec![digits(serial % 1000), digits(serial / 1000), 3.5];
        SensorRow { device_id: device_id.to_owned(), motor_currents }
    }

    /// Serials 0 and 1 acknowledged in boot 1, 2 shed, 3 acknowledged in boot 2, 4 still in the queue.
    fn log() -> DeviceLog {
        let made = |serial, boot, timestamp| Entry::Made { serial, boot, timestamp };
        let entries = vec![
            Entry::Booted { boot: 1 },
            made(0, 1, 100),
            made(1, 1, 200),
            Entry::Acked { serial: 0 },
            Entry::Acked { serial: 1 },
            made(2, 1, 300),
            Entry::Shed { serial: 2 },
            Entry::Booted { boot: 2 },
            made(3, 2, 100),
            Entry::Acked { serial: 3 },
            made(4, 2, 200),
        ];
        DeviceLog { device_id: "d".to_owned(), entries, incomplete: false }
    }

    fn judged(serials: &[u64]) -> DeviceVerdict {
        let rows: Vec<SensorRow> = serials.iter().map(|serial| row("d", *serial)).collect();
        DeviceOracle::judge(&[log()], &rows)
    }

    #[test]
    fn one_row_for_each_owed_reading_is_clean_and_a_shed_one_is_not_owed() {
        let verdict = judged(&[0, 1, 3, 4]);
        assert!(verdict.is_clean(), "{verdict:?}");
        let DeviceVerdict { made, acked, shed, queued, owed, reboots, rows, .. } = verdict;
        assert_eq!((made, acked, shed, queued, owed, reboots, rows), (5, 3, 1, 1, 4, 1, 4));
    }

    #[test]
    fn a_planted_loss_is_found_and_says_whether_it_had_been_acknowledged() {
        let verdict = judged(&[0, 3]);
        let lost: Vec<_> = verdict.lost.iter().map(|lost| (lost.serial, lost.boot, lost.acked)).collect();
        assert_eq!(lost, [(1, 1, true), (4, 2, false)]);
        assert!(!verdict.is_clean());
    }

    #[test]
    fn a_planted_duplicate_is_found() {
        let verdict = judged(&[0, 1, 3, 3, 4]);
        assert_eq!(verdict.duplicated, [("d".to_owned(), 3, 2)]);
        assert!(!verdict.is_clean());
    }

    #[test]
    fn a_row_that_no_log_explains_is_found_and_other_devices_are_left_out() {
        let mut rows: Vec<_> = [0, 1, 3, 4, 77].map(|serial| row("d", serial)).into();
        rows.push(row("stranger", 0));
        rows.push(SensorRow { device_id: "d".to_owned(), motor_currents: vec![1.0, 2.0] });
        let verdict = DeviceOracle::judge(&[log()], &rows);
        assert_eq!(verdict.phantoms, [("d".to_owned(), Some(77)), ("d".to_owned(), None)]);
        assert!(!verdict.is_clean());
    }

    #[test]
    fn an_incomplete_log_or_none_at_all_is_never_clean() {
        let rows: Vec<_> = [0, 1, 3, 4].map(|serial| row("d", serial)).into();
        let incomplete = DeviceLog { incomplete: true, ..log() };
        assert!(!DeviceOracle::judge(&[incomplete], &rows).is_clean());
        assert!(!DeviceOracle::judge(&[], &[]).is_clean());
    }
}

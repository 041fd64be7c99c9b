//! What is usual for a device: moving means and variances of its channels, by which a window is judged unusual.
//!
//! Each instance keeps its own; answers may differ slightly between instances. Bounded: the device that was quiet for
//! longest is forgotten first.

use std::collections::BTreeMap;

use crate::{request::Window, wear::Wear};

/// Weight of the past against the next window.
const ALPHA: f64 = 0.9;
/// Windows before a deviation counts: a variance of two is none.
const WARM_UP: u64 = 5;
/// Devices remembered at most.
const MOST_DEVICES: usize = 10_000;

/// Exponentially weighted mean and variance.
#[derive(Clone, Copy, Debug)]
struct Channel {
    mean: f64,
    variance: f64,
}

impl Channel {
    /// Deviations from the usual. The deviation has a floor of 2 % of the mean and 0.05 units: a channel that never moved
    /// must not call the first rounding error an anomaly.
    fn z_score(self, value: f64) -> f64 {
        let floor = (self.mean.abs() * 0.02).max(0.05);
        (value - self.mean).abs() / self.variance.sqrt().max(floor)
    }

    fn learn(&mut self, value: f64) {
        let distance = value - self.mean;
        self.mean += (1.0 - ALPHA) * distance;
        self.variance = ALPHA * (self.variance + (1.0 - ALPHA) * distance * distance);
    }
}

#[derive(Debug, Default)]
struct Device {
    channels: BTreeMap<String, Channel>,
    windows: u64,
    used: u64,
    wear: Wear,
}

/// What the memory has to say about one window.
#[derive(Debug)]
pub(crate) struct Unusual {
    /// The channel that deviates most, and by how many deviations.
    pub(crate) worst: Option<(String, f64)>,
    /// Windows of this device seen before, by this instance.
    pub(crate) windows: u64,
}

/// The memory of one instance.
#[derive(Debug, Default)]
pub(crate) struct Baselines {
    devices: BTreeMap<String, Device>,
    turn: u64,
}

impl Baselines {
    /// Judges a window by the past, then makes it part of the past.
    pub(crate) fn judge(&mut self, window: &Window) -> Unusual {
        let device = self.device(&window.device_id);
        let mut worst: Option<(String, f64)> = None;
        for (name, value) in channels(window) {
            match device.channels.get_mut(&name) {
                Some(channel) => {
                    let z = channel.z_score(value);
                    channel.learn(value);
                    if device.windows >= WARM_UP && worst.as_ref().is_none_or(|(_, most)| z > *most) {
                        worst = Some((name, z));
                    }
                }
                None => {
                    device.channels.insert(name, Channel { mean: value, variance: 0.0 });
                }
            }
        }
        let windows = device.windows;
        device.windows += 1;
        Unusual { worst, windows }
    }

    /// The wear of the window's device, this window included.
    pub(crate) fn wear(&mut self, window: &Window) -> (f64, f64) {
        let wear = &mut self.device(&window.device_id).wear;
        wear.add(window)
    }

    /// Devices remembered.
    pub(crate) fn len(&self) -> usize {
        self.devices.len()
    }

    fn device(&mut self, id: &str) -> &mut Device {
        self.turn += 1;
        if !self.devices.contains_key(id) && self.devices.len() >= MOST_DEVICES {
            let quietest = self.devices.iter().min_by_key(|(_, device)| device.used).map(|(id, _)| id.clone());
            if let Some(quietest) = quietest {
                self.devices.remove(&quietest);
            }
        }
        let device = self.devices.entry(id.to_owned()).or_default();
        device.used = self.turn;
        device
    }
}

/// The channels a baseline is kept of. Their number is bounded by the request's lists.
fn channels(window: &Window) -> Vec<(String, f64)> {
    let numbered = |name: &str, values: &[f64]| -> Vec<(String, f64)> {
        values.iter().enumerate().map(|(at, value)| (format!("{name}[{at}]"), *value)).collect()
    };
    let mut channels = numbered("current", &window.current_mean);
    channels.extend(numbered("temperature", &window.temperature_mean));
    channels.push(("vibration".to_owned(), window.vibration_mean.magnitude));
    channels
}

#[cfg(test)]
mod tests {
    use super::{Baselines, MOST_DEVICES};
    use crate::request::tests::{quiet, window};

    #[test]
    fn a_jump_after_a_quiet_hour_is_unusual_and_becomes_usual() {
        let mut baselines = Baselines::default();
        let mut usual = window(&quiet());
        for _ in 0..20 {
            let unusual = baselines.judge(&usual);
            assert!(unusual.worst.is_none_or(|(_, z)| z < 1.0));
        }

        usual.current_mean[1] = 5.2;
        let (channel, z) = baselines.judge(&usual).worst.unwrap();
        assert!(channel == "current[1]" && z > 3.0, "{channel} {z}");

        for _ in 0..50 {
            baselines.judge(&usual);
        }
        assert!(baselines.judge(&usual).worst.unwrap().1 < 3.0);
    }

    #[test]
    fn nothing_is_unusual_before_enough_windows_were_seen() {
        let mut baselines = Baselines::default();
        let mut changing = window(&quiet());
        for at in 0..5 {
            changing.current_mean[0] = f64::from(at) * 3.0;
            assert!(baselines.judge(&changing).worst.is_none());
        }
    }

    #[test]
    fn the_memory_is_bounded_and_forgets_the_quietest() {
        let mut baselines = Baselines::default();
        let mut window = window(&quiet());
        for at in 0..MOST_DEVICES + 3 {
            window.device_id = format!("d{at}");
            baselines.judge(&window);
        }

        assert_eq!(baselines.len(), MOST_DEVICES);
        window.device_id = "d0".into();
        assert_eq!(baselines.judge(&window).windows, 0, "d0 was forgotten");
        window.device_id = format!("d{}", MOST_DEVICES + 2);
        assert_eq!(baselines.judge(&window).windows, 1);
    }
}

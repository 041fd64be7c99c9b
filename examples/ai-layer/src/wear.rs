//! Wear: how much of a tool's life its load uses up.

use crate::request::Window;

/// Life at rated load, in hours.
pub(crate) const LIFE_HOURS: f64 = 10_000.0;
/// Longest gap between two windows of a device that is counted as running: the windows between were another instance's.
const LONGEST_GAP_SECONDS: f64 = 3600.0;

/// By how much faster than at rated load the life is used up: the product of four factors, each at least 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Factors {
    /// The highest mean current over 5 A, to the power 1.5.
    pub(crate) load: f64,
    /// 10 % for each ampere of the highest peak above 8 A.
    pub(crate) spikes: f64,
    /// 15 % for each m/s² of mean vibration above 3.
    pub(crate) vibration: f64,
    /// 2 % for each °C of the highest mean temperature above 50.
    pub(crate) temperature: f64,
}

impl Factors {
    /// The factors of one window.
    pub(crate) fn of(window: &Window) -> Self {
        let highest = |values: &[f64]| values.iter().copied().fold(0.0, f64::max);
        let above = |value: f64, limit: f64| (value - limit).max(0.0);
        Self {
            load: (highest(&window.current_mean) / 5.0).max(1.0).powf(1.5),
            spikes: 1.0 + 0.1 * above(highest(&window.current_max), 8.0),
            vibration: 1.0 + 0.15 * above(window.vibration_mean.magnitude, 3.0),
            temperature: 1.0 + 0.02 * above(highest(&window.temperature_mean), 50.0),
        }
    }

    /// All of them together.
    pub(crate) fn product(self) -> f64 {
        self.load * self.spikes * self.vibration * self.temperature
    }
}

/// The wear of one device, as far as this instance saw it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wear {
    /// Hours at rated load that would have used up as much.
    hours: f64,
    /// End of the newest window counted.
    until: Option<f64>,
}

impl Wear {
    /// Counts a window and returns the wear level (0 to 1) and the hours that remain at this load.
    ///
    /// Windows that another instance was asked about are filled in with this one's load, so that instances agree; a
    /// window that comes twice counts once.
    pub(crate) fn add(&mut self, window: &Window) -> (f64, f64) {
        let factor = Factors::of(window).product();
        // Anything further away is a pause, or a clock that was set: counting begins anew.
        let known = self.until.filter(|until| (window.start - until).abs() <= LONGEST_GAP_SECONDS);
        let seconds = (window.end - known.unwrap_or(window.start)).max(0.0);
        self.hours = (self.hours + seconds / 3600.0 * factor).min(LIFE_HOURS);
        self.until = Some(known.map_or(window.end, |until| until.max(window.end)));
        let level = self.hours / LIFE_HOURS;
        (level, (LIFE_HOURS - self.hours) / factor)
    }
}

#[cfg(test)]
mod tests {
    use super::{Factors, Wear};
    use crate::request::tests::{quiet, window};

    #[test]
    fn the_factors_are_those_of_the_contract() {
        let mut hard = window(&quiet());
        assert!((Factors::of(&hard).product() - 1.0).abs() < 1e-12, "rated load wears at rate 1");
        hard.current_mean = vec![20.0, 1.0];
        hard.current_max = vec![28.0, 1.0];
        hard.vibration_mean.magnitude = 5.0;
        hard.temperature_mean = vec![60.0];

        let factors = Factors::of(&hard);

        assert!((factors.load - 8.0).abs() < 1e-12);
        assert!((factors.spikes - 3.0).abs() < 1e-12);
        assert!((factors.vibration - 1.3).abs() < 1e-12);
        assert!((factors.temperature - 1.2).abs() < 1e-12);
    }

    #[test]
    fn an_hour_is_an_hour_whether_one_instance_saw_all_of_it_or_half() {
        let (mut all, mut half) = (Wear::default(), Wear::default());
        let mut window = window(&quiet());
        let begin = window.start;
        for at in 0..360 {
            window.start = begin + f64::from(at) * 10.0;
            window.end = window.start + 10.0;
            all.add(&window);
            if at % 2 == 1 || at == 0 {
                half.add(&window);
                half.add(&window);
            }
        }

        assert!((all.hours - 1.0).abs() < 1e-9 && (half.hours - 1.0).abs() < 1e-9, "{all:?} {half:?}");
    }

    #[test]
    fn wear_ends_at_one_and_a_long_pause_costs_nothing() {
        let mut wear = Wear::default();
        let mut window = window(&quiet());
        wear.add(&window);
        window.start += 1e6;
        window.end = window.start + 3600.0;
        assert!(wear.add(&window).0 < 2.0 / 10_000.0);
        window.start = window.end;
        window.end = window.start + 3600.0 * 20_000.0;

        let (level, remaining) = wear.add(&window);

        assert!((level - 1.0).abs() < 1e-12 && remaining.abs() < 1e-9);
    }
}

//! Medians, processor time, and the table at the end.

use std::fmt;

pub(crate) fn median(figures: &[f64]) -> f64 {
    at(figures, 50)
}

pub(crate) fn max(figures: &[f64]) -> f64 {
    at(figures, 100)
}

pub(crate) fn min(figures: &[f64]) -> f64 {
    at(figures, 0)
}

/// The value below which so many percent lie.
pub(crate) fn at(figures: &[f64], percent: usize) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let place = sorted.len().saturating_sub(1) * percent / 100;
    sorted.get(place).copied().unwrap_or(f64::NAN)
}

pub(crate) fn load() -> String {
    std::fs::read_to_string("/proc/loadavg").unwrap_or_default().split(' ').next().unwrap_or("?").to_owned()
}

/// Processor time of a process from here on.
pub(crate) struct Cpu {
    pid: u32,
    before: f64,
}

impl Cpu {
    pub(crate) fn of(pid: u32) -> Self {
        Self { pid, before: used(pid) }
    }

    pub(crate) fn microseconds(&self) -> f64 {
        used(self.pid) - self.before
    }
}

/// Of user and kernel together, in µs: proc(5), fields 14 and 15 of `stat`, in ticks of 10 ms.
fn used(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let after_name = stat.rsplit(") ").next().unwrap_or_default();
    let ticks = |field: usize| after_name.split(' ').nth(field - 3).and_then(|ticks| ticks.parse::<f64>().ok());
    (ticks(14).unwrap_or(0.0) + ticks(15).unwrap_or(0.0)) * 10_000.0
}

/// What is measured, by whom, and the ratio to ours; as in the crate's README.
#[derive(Default)]
pub(crate) struct Table {
    rows: Vec<(String, String, String, String)>,
}

impl Table {
    pub(crate) fn add(&mut self, what: &str, who: &str, figure: String, ratio: String) {
        println!("  {what}: {who}: {figure}  {ratio}");
        self.rows.push((what.to_owned(), who.to_owned(), figure, ratio));
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| figure | client | median (least to most) | beside ours |\n|---|---|---|---|")?;
        let mut last = "";
        for (what, who, figure, ratio) in &self.rows {
            let shown = if what == last { "" } else { what };
            writeln!(f, "| {shown} | {who} | {figure} | {ratio} |")?;
            last = what;
        }
        Ok(())
    }
}

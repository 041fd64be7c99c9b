//! How many faults: at most three unless the environment says more.

use std::{io::Write, time::Duration};

pub(crate) fn count(variable: &str, short: u32) -> u32 {
    match std::env::var(variable) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{variable}={text} is not a number")),
        Err(_) => short,
    }
}

pub(crate) fn seconds(variable: &str, short: u32) -> Duration {
    Duration::from_secs(u64::from(count(variable, short)))
}

/// One line of the table at the end: printed now, and kept for the end where `DRILL_TABLE` names a file.
pub(crate) fn row(line: &str) {
    eprintln!("{line}");
    if let Some(path) = std::env::var_os("DRILL_TABLE") {
        let mut table = std::fs::File::options().create(true).append(true).open(path).expect("the table's file");
        writeln!(table, "{line}").expect("the table's file");
    }
}

pub(crate) fn milliseconds(times: &[Duration]) -> String {
    let mut sorted = times.to_vec();
    sorted.sort();
    match (sorted.get(sorted.len() / 2), sorted.last()) {
        (Some(median), Some(most)) => format!("{} / {} ms", median.as_millis(), most.as_millis()),
        _ => "none".to_owned(),
    }
}

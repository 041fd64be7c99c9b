//! The table, a simulation of two layers, and properties.

use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

use super::{Boots, PATIENCE, Placement, Sighting};
use crate::pace::{Lateness, Run};

fn number(text: &str, line: &str) -> i64 {
    text.parse().unwrap_or_else(|_| panic!("a number is expected in {line:?}"))
}

#[test]
fn every_row_of_the_table_is_placed_as_it_says() {
    let mut boots = Boots::default();
    let (mut order, mut case, mut rows) = (Vec::new(), "", 0);
    for line in include_str!("boots_table.txt").lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("case: ") {
            (boots, order, case) = (Boots::default(), Vec::new(), name);
        }
        let Some(rest) = line.strip_prefix("heard ") else { continue };
        let (given, expected) = rest.split_once(" -> ").expect(line);
        let words: Vec<&str> = given.split_whitespace().collect();
        let sighting = Sighting {
            timestamp: number(words[0], line).unsigned_abs(),
            arrived: number(words[2], line),
            patient: words.get(3) == Some(&"patient"),
        };
        let placed = match boots.place(sighting) {
            Placement::Undecided => "undecided".to_owned(),
            Placement::UnixTime(at) => format!("unix {at}"),
            Placement::InBoot { at, started, .. } => {
                if !order.contains(&started) {
                    order.push(started);
                }
                let boot = order.iter().position(|known| *known == started).expect("just pushed") + 1;
                format!("{boot} {at}")
            }
        };
        assert_eq!(placed, expected, "{case}: {line}; known: {boots:?}");
        rows += 1;
    }
    assert!(rows > 85, "only {rows} rows were read");
}

/// A reading in the hands of one layer.
#[derive(Clone, Copy, Debug)]
struct Heard {
    boot: usize,
    layer: usize,
    timestamp: i64,
    arrived: i64,
    written: i64,
}

/// Names of rows by true reading.
type Rows = BTreeMap<(usize, i64), BTreeSet<i64>>;

enum Step {
    Hear,
    Write(Lateness),
    Retry(Lateness),
}

/// Lets the layers hear and write in the order of time, asking again after patience as the writer does.
fn store(heard: Vec<Heard>) -> Rows {
    let (mut boots, mut rows, mut runs) = (Boots::default(), Rows::new(), [Run::default(), Run::default()]);
    let patience = i64::try_from(PATIENCE.as_millis()).expect("small");
    let mut steps: BTreeMap<(i64, usize), (Heard, Step)> = BTreeMap::new();
    for (n, reading) in heard.into_iter().enumerate() {
        steps.insert((reading.arrived, n), (reading, Step::Hear));
    }
    let mut number = steps.len();
    while let Some(((now, _), (reading, step))) = steps.pop_first() {
        number += 1;
        let timestamp = u64::try_from(reading.timestamp % (1 << 32)).expect("positive");
        let (lateness, patient) = match step {
            Step::Hear => {
                let lateness = runs[reading.layer].hear(timestamp, reading.arrived);
                steps.insert((reading.written.max(now), number), (reading, Step::Write(lateness)));
                continue;
            }
            Step::Write(lateness) => (lateness, false),
            Step::Retry(lateness) => (lateness, true),
        };
        match boots.place(Sighting { timestamp, arrived: reading.arrived - lateness.known(), patient }) {
            Placement::InBoot { at, .. } | Placement::UnixTime(at) => {
                rows.entry((reading.boot, reading.timestamp)).or_default().insert(at);
            }
            Placement::Undecided => {
                assert!(!patient, "patience always decides");
                steps.insert((now + patience, number), (reading, Step::Retry(lateness)));
            }
        }
    }
    rows
}

/// Two layers hear one device through boots of these lengths: the first promptly, the second with a delay; `first` is the uptime
/// at which the device is first heard (near the wrap, say).
fn two_layers(first: i64, lengths: &[i64], pauses: &[i64], jitter: &[i64], behind: i64) -> Vec<Heard> {
    let mut heard = Vec::new();
    let (mut start, mut n) = (1_700_000_000_000_i64, 0_usize);
    for (boot, length) in lengths.iter().enumerate() {
        let from = if boot == 0 { first } else { 100 };
        for timestamp in (from..from + length).step_by(100) {
            let taken = start + timestamp;
            let wobble = jitter[n % jitter.len()];
            n += 1;
            let prompt = taken + 5 + wobble;
            heard.push(Heard { boot, layer: 0, timestamp, arrived: prompt, written: prompt + 40 + wobble });
            let late = taken + behind + wobble * 3;
            heard.push(Heard { boot, layer: 1, timestamp, arrived: late, written: late + 60 });
        }
        start += from + length + pauses[boot % pauses.len()];
    }
    heard
}

/// The second layer is away from `from` for `long`; what it missed comes from the broker's queue, in order, at once.
fn away(heard: &mut [Heard], from: i64, long: i64) {
    let began = heard.iter().map(|reading| reading.arrived).min().expect("some") + from;
    let mut last = i64::MIN;
    for reading in heard.iter_mut().filter(|reading| reading.layer == 1) {
        if (began..began + long).contains(&reading.arrived) {
            reading.arrived = began + long;
        }
        // One connection keeps the order.
        reading.arrived = reading.arrived.max(last);
        last = reading.arrived;
        reading.written = reading.arrived + 60;
    }
}

fn assert_once(rows: &Rows) {
    let mut names: BTreeMap<i64, (usize, i64)> = BTreeMap::new();
    for (reading, at) in rows {
        assert_eq!(at.len(), 1, "stored more than once: {reading:?} at {at:?}");
        for at in at {
            if let Some(other) = names.insert(*at, *reading) {
                // Two readings may share a time only if they come from different boots (the digest tells them apart).
                assert_ne!(other.0, reading.0, "{other:?} and {reading:?} both at {at}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn two_layers_reorder_and_reboots_give_each_reading_one_row(
        lengths in prop::collection::vec(5_000_i64..40_000, 1..5),
        pauses in prop::collection::vec(1_i64..20_000, 1..5),
        jitter in prop::collection::vec(0_i64..180, 1..17),
        behind in 0_i64..3_800,
    ) {
        assert_once(&store(two_layers(100, &lengths, &pauses, &jitter, behind)));
    }

    #[test]
    fn five_minutes_behind_is_the_same_rows_while_boots_last_longer(
        lengths in prop::collection::vec(310_000_i64..500_000, 1..3),
        pauses in prop::collection::vec(1_i64..60_000, 1..3),
        jitter in prop::collection::vec(0_i64..100, 1..9),
        behind in 1_000_i64..300_000,
    ) {
        assert_once(&store(two_layers(100, &lengths, &pauses, &jitter, behind)));
    }

    #[test]
    fn a_layer_that_was_away_reads_its_backlog_into_the_same_rows(
        lengths in prop::collection::vec(8_000_i64..60_000, 1..5),
        pauses in prop::collection::vec(1_i64..20_000, 1..5),
        jitter in prop::collection::vec(0_i64..60, 1..17),
        from in 0_i64..60_000,
        long in 100_i64..7_000,
    ) {
        let mut heard = two_layers(100, &lengths, &pauses, &jitter, 20);
        away(&mut heard, from, long);
        assert_once(&store(heard));
    }

    #[test]
    fn a_long_absence_within_a_boot_changes_nothing(
        jitter in prop::collection::vec(0_i64..60, 1..17),
        from in 3_700_i64..8_000,
        long in 100_i64..300_000,
    ) {
        let mut heard = two_layers(100, &[3_000, 320_000], &[500], &jitter, 20);
        away(&mut heard, from, long);
        assert_once(&store(heard));
    }

    #[test]
    fn a_wrap_in_the_middle_changes_nothing(
        before in 1_000_i64..20_000,
        length in 25_000_i64..60_000,
        jitter in prop::collection::vec(0_i64..180, 1..9),
        behind in 0_i64..3_800,
    ) {
        assert_once(&store(two_layers((1 << 32) - before, &[length, 10_000], &[3_000], &jitter, behind)));
    }

    #[test]
    fn nothing_that_arrives_can_panic_or_stay_undecided(
        sightings in prop::collection::vec((0_u64..200_000_000_000, 0_i64..4_000_000_000_000), 1..60),
    ) {
        let mut boots = Boots::default();
        for (timestamp, arrived) in sightings {
            let placed = boots.place(Sighting { timestamp, arrived, patient: true });
            prop_assert_ne!(placed, Placement::Undecided);
            prop_assert!(boots.known().windows(2).all(|pair| pair[0].started < pair[1].started));
        }
    }
}

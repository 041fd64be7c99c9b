//! The table, a simulation of two layers, and properties.

use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

use super::{Boots, PATIENCE, Placement, Sighting};

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
    assert!(rows > 60, "only {rows} rows were read");
}

/// A reading in the hands of one layer.
#[derive(Clone, Copy, Debug)]
struct Heard {
    boot: usize,
    timestamp: i64,
    arrived: i64,
    written: i64,
}

/// Writes what two layers heard in the order in which it reaches the database, asking again after patience as the writer does.
/// Answers the rows by name, and how many of each true reading there are.
fn store(mut heard: Vec<Heard>) -> BTreeMap<(usize, i64), BTreeSet<i64>> {
    let mut boots = Boots::default();
    let mut rows: BTreeMap<(usize, i64), BTreeSet<i64>> = BTreeMap::new();
    let patience = i64::try_from(PATIENCE.as_millis()).expect("small");
    heard.sort_by_key(|reading| reading.written);
    let mut queue: std::collections::VecDeque<(Heard, bool)> =
        heard.into_iter().map(|reading| (reading, false)).collect();
    while let Some((reading, patient)) = queue.pop_front() {
        let timestamp = u64::try_from(reading.timestamp % (1 << 32)).expect("positive");
        match boots.place(Sighting { timestamp, arrived: reading.arrived, patient }) {
            Placement::InBoot { at, .. } | Placement::UnixTime(at) => {
                rows.entry((reading.boot, reading.timestamp)).or_default().insert(at);
            }
            Placement::Undecided => {
                assert!(!patient, "patience always decides");
                let again = Heard { written: reading.written + patience, ..reading };
                let place = queue.partition_point(|(other, _)| other.written <= again.written);
                queue.insert(place, (again, true));
            }
        }
    }
    rows
}

/// Two layers hear one device through boots of these lengths: the first promptly, the second with a delay and in clumps,
/// as after a broker that was away; `first` is the uptime at which the device is first heard (near the wrap, say).
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
            heard.push(Heard { boot, timestamp, arrived: prompt, written: prompt + 40 + wobble });
            let late = taken + behind + wobble * 3;
            heard.push(Heard { boot, timestamp, arrived: late, written: late + 60 });
        }
        start += from + length + pauses[boot % pauses.len()];
    }
    heard
}

fn assert_once(rows: &BTreeMap<(usize, i64), BTreeSet<i64>>) {
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

//! Text forms: what is written is read back, and what nobody wrote is refused.

use modax_db_router::observation::{Activity, Observation, StartTime, parse_probe};
use modax_db_router::staleness::Samples;
use modax_db_router::{Lsn, NodeId, SystemId, Timeline, WriteToken};
use proptest::prelude::*;
use std::time::{Duration, Instant};

proptest! {
    #[test]
    fn a_position_survives_its_text(bytes: u64) {
        let lsn = Lsn::new(bytes);
        prop_assert_eq!(lsn.to_string().parse::<Lsn>(), Ok(lsn));
    }

    #[test]
    fn a_token_survives_its_text(system: u64, timeline: u32, bytes: u64) {
        let token = WriteToken::new(SystemId::new(system), Timeline::new(timeline), Lsn::new(bytes));
        let text = token.to_string();
        prop_assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'), "fit for a header: {}", text);
        prop_assert_eq!(text.parse::<WriteToken>(), Ok(token));
    }

    #[test]
    fn any_text_is_read_or_refused_and_never_panics(text: String) {
        let _ = text.parse::<Lsn>();
        let _ = text.parse::<WriteToken>();
        let _ = Timeline::from_wal_file_name(&text);
        let _ = parse_probe(|_| Some(text.as_str()));
    }

    #[test]
    fn a_token_with_anything_added_is_refused(system: u64, timeline: u32, bytes: u64, more in "[-+0-9a-f]{1,3}") {
        let token = WriteToken::new(SystemId::new(system), Timeline::new(timeline), Lsn::new(bytes)).to_string();
        let sign = format!("w1-+{}", &token[3..]);
        prop_assert!(sign.parse::<WriteToken>().is_err());
        let padded = format!("{token}-{more}");
        prop_assert!(padded.parse::<WriteToken>().is_err());
    }

    /// A replica is never called fresher than it is: whatever was written by then, it has.
    #[test]
    fn a_sample_never_flatters(steps in prop::collection::vec((0_u64..50, 0_u64..3), 1..400), replayed in 0_u64..600) {
        let start = Instant::now();
        let mut samples = Samples::new();
        let (mut at, mut position, mut truth) = (start, 0, Vec::new());
        for (milliseconds, bytes) in steps {
            at += Duration::from_millis(milliseconds);
            position += bytes;
            truth.push((at, position));
            samples.push(at, Lsn::new(position));
        }
        if let Some(fresh) = samples.fresh_at(Lsn::new(replayed)) {
            for (sent, written) in truth.iter().filter(|(sent, _)| *sent < fresh) {
                prop_assert!(*written <= replayed, "written {} at {:?}", written, sent);
            }
        }
    }
}

#[test]
fn the_probes_row_is_read() {
    let primary =
        ["f", "0/15E2A30", "000000020000000000000001", "0/15E2000", "7512", "1700000000000000", "off", "s1", "2"];
    let seen = parse_probe(|index| primary.get(index).copied()).expect("readable");
    let timeline = Timeline::new(2);
    let insert = "0/15E2A30".parse().expect("position");
    let activity = Activity::Writing { timeline, insert, floor: "0/15E2000".parse().ok() };
    let mut expected = Observation::new(SystemId::new(7512), StartTime::from_micros(1_700_000_000_000_000), activity);
    expected.synchronous = true;
    assert_eq!(seen, expected);

    let standby = [
        Some("t"),
        Some("0/15E2A30"),
        None,
        None,
        Some("7512"),
        Some("5"),
        Some("off"),
        Some(""),
        Some("1"),
        Some("2"),
    ];
    let seen = parse_probe(|index| standby.get(index).copied().flatten()).expect("readable");
    assert_eq!(seen.timeline(), Timeline::new(2), "what it receives is further than what the control file says");
    assert!(!seen.is_head() && !seen.synchronous);
    let missing = parse_probe(|index| standby.get(index).copied().flatten().filter(|_| index != 4));
    assert!(missing.expect_err("no system").to_string().contains("system_identifier"));
}

#[test]
fn an_idle_primary_keeps_its_replicas_fresh_also_at_the_beginning_of_a_page() {
    let (start, mut samples) = (Instant::now(), Samples::new());
    // The insert position stands behind the header of the page it begins.
    samples.push(start, Lsn::new(8192 + 24));
    let later = start + Duration::from_secs(60);
    samples.push(later, Lsn::new(8192 + 24));
    assert_eq!(samples.fresh_at(Lsn::new(8192)), Some(later));
    assert_eq!(samples.fresh_at(Lsn::new(8191)), None);
    // And behind a longer one at the beginning of a file, which an idle primary begins by its timeout.
    let file = 16 << 20;
    let much_later = later + Duration::from_secs(60);
    samples.push(much_later, Lsn::new(file + 40));
    assert_eq!(samples.fresh_at(Lsn::new(file)), Some(much_later));
    assert_eq!(samples.fresh_at(Lsn::new(file - 1)), Some(later));
}

#[test]
fn addresses_are_shown_as_one_writes_them() {
    assert_eq!(NodeId::new("db1", 5432).to_string(), "db1:5432");
    assert_eq!(NodeId::new("::1", 5432).to_string(), "[::1]:5432");
}

//! What may run again, and which server is chosen.

use modax_db_router::policy::retry::{Reaction, pause_after_break, pause_before, react};
use modax_db_router::policy::selection::{Selection, choose};
use proptest::prelude::*;
use std::time::Duration;

#[test]
fn each_sqlstate_has_its_reaction() {
    for (code, reaction) in [
        ("40001", Reaction::Again),
        ("40P01", Reaction::Again),
        ("57P01", Reaction::Elsewhere),
        ("57P02", Reaction::Elsewhere),
        ("57P03", Reaction::Elsewhere),
        ("53300", Reaction::Pause),
        ("25006", Reaction::AskRole),
        ("26000", Reaction::ForgetStatement),
        ("0A000", Reaction::ForgetStatement),
        ("23505", Reaction::Callers),
        ("57014", Reaction::Callers),
        ("25P02", Reaction::Callers),
    ] {
        assert_eq!(react(code), reaction, "{code}");
    }
}

proptest! {
    #[test]
    fn a_pause_is_bounded_and_the_same_for_the_same_number(attempt: u32, random: u64) {
        let pause = pause_before(attempt, random);
        prop_assert!(pause <= Duration::from_millis(250));
        prop_assert_eq!(pause, pause_before(attempt, random));
        prop_assert!(pause_before(2, random) <= Duration::from_millis(5));
    }

    #[test]
    fn whoever_finds_nobody_asks_less_and_less_often(broken: u32, random: u64) {
        let first = Duration::from_millis(10);
        let pause = pause_after_break(broken, first, random);
        prop_assert!(pause >= first / 2 && pause <= Duration::from_millis(500));
        prop_assert!(pause_after_break(1, first, random) <= first);
        prop_assert!(pause_after_break(broken.max(7), first, random) >= Duration::from_millis(250));
        prop_assert_eq!(pause, pause_after_break(broken, first, random));
        prop_assert!(pause_after_break(broken, Duration::MAX, random) >= Duration::MAX / 2);
    }

    #[test]
    fn a_choice_keeps_everybody_and_prefers_the_less_busy_of_two(busy in prop::collection::vec(0_usize..9, 0..6), random: u64, turn: u64) {
        for selection in [Selection::LeastOfTwo, Selection::RoundRobin] {
            let mut rank: Vec<usize> = (0..busy.len()).collect();
            choose(&mut rank, selection, |index| busy[*index], random, turn);
            let mut sorted = rank.clone();
            sorted.sort_unstable();
            prop_assert_eq!(sorted, (0..busy.len()).collect::<Vec<_>>());
            if selection == Selection::LeastOfTwo && busy.len() == 2 {
                prop_assert!(busy[rank[0]] <= busy[rank[1]]);
            }
        }
    }
}

#[test]
fn both_ways_of_choosing_reach_every_server() {
    for selection in [Selection::LeastOfTwo, Selection::RoundRobin] {
        let mut chosen = [0; 3];
        for number in 0..300_u64 {
            let mut rank = [0, 1, 2];
            choose(&mut rank, selection, |_| 0, number.wrapping_mul(0x9E37_79B9_7F4A_7C15), number);
            chosen[rank[0]] += 1;
        }
        assert!(chosen.iter().all(|count| *count > 50), "{selection:?}: {chosen:?}");
    }
}

//! Thousands of histories in virtual time, each told by one seed; and the same worlds with one thing wrong, which must be noticed.

use crate::world::{Fired, Flaw, Plan, World};

fn plan(seed: u64) -> Plan {
    Plan { seed, flaw: Flaw::None, crash_at_step: None, faults: true, messages: 60 }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text}")))
}

#[test]
fn f57_f58_no_history_loses_a_message_turns_a_key_round_or_lets_an_epoch_fall() {
    let seeds: Vec<u64> = match number("MODAX_SEED") {
        Some(seed) => vec![seed],
        None => (0..number("MODAX_SEEDS").unwrap_or(2000)).collect(),
    };
    let mut all = Fired::default();
    for seed in &seeds {
        let fired = World::run(plan(*seed)).unwrap_or_else(|fault| panic!("MODAX_SEED={seed}: {fault}"));
        all.crashes += fired.crashes;
        all.freezes += fired.freezes;
        all.outages += fired.outages;
        all.sink_failures += fired.sink_failures;
        all.takeovers += fired.takeovers;
        all.duplicates += fired.duplicates;
        all.rejected += fired.rejected;
        all.expired += fired.expired;
        all.parked += fired.parked;
    }
    if seeds.len() >= 100 {
        let counts = [
            all.crashes,
            all.freezes,
            all.outages,
            all.sink_failures,
            all.takeovers,
            all.duplicates,
            all.rejected,
            all.expired,
            all.parked,
        ];
        assert!(counts.iter().all(|count| *count > 0), "every fault fired: {all:?}");
    }
}

#[test]
fn f57_a_crash_at_any_numbered_step_costs_nothing() {
    for seed in 0..4 {
        let calm = Plan { faults: false, messages: 12, ..plan(seed) };
        let steps = World::run(calm).expect("a calm world").steps;
        assert!(steps > 20, "{steps}");
        for step in 1..=steps {
            let fired = World::run(Plan { crash_at_step: Some(step), ..calm })
                .unwrap_or_else(|fault| panic!("seed {seed}, crash at step {step}: {fault}"));
            assert_eq!(fired.crashes, 1, "seed {seed}: the crash at step {step} did not fire");
        }
    }
}

/// How many seeds it takes until a flawed world is found out, and how.
fn found_out(flaw: Flaw) -> String {
    for seed in 0..2000 {
        if let Err(fault) = World::run(Plan { flaw, ..plan(seed) }) {
            return fault;
        }
    }
    panic!("{flaw:?} went unnoticed in 2000 histories")
}

#[test]
fn without_the_fence_a_status_lies_or_an_epoch_falls() {
    let fault = found_out(Flaw::NoFence);
    assert!(fault.contains("is recorded") || fault.contains("epoch fell") || fault.contains("reordered"), "{fault}");
}

#[test]
fn with_a_clock_that_stops_while_frozen_an_epoch_falls_or_a_key_is_turned_round() {
    let fault = found_out(Flaw::ClockStopsWhileFrozen);
    assert!(fault.contains("is recorded") || fault.contains("epoch fell") || fault.contains("reordered"), "{fault}");
}

#[test]
fn without_keys_messages_of_one_key_are_reordered() {
    assert!(found_out(Flaw::NoKeys).contains("reordered"));
}

#[test]
fn with_a_cursor_on_the_number_rows_are_lost() {
    assert!(found_out(Flaw::NumberCursor).contains("not at rest"));
}

#[test]
fn with_outcomes_taken_for_recorded_too_early_a_key_is_reordered() {
    let fault = found_out(Flaw::RecordedTooEarly);
    assert!(fault.contains("reordered") || fault.contains("is recorded"), "{fault}");
}

//! One client and several brokers in virtual time, with everything that can break breaking.
//!
//! First a time of faults, in which only safety is asked for: one outcome a message, an acknowledgement only for what
//! a broker has, first receipts in order, packet identifiers used as the standard says. Then everything heals, and
//! liveness is asked for: connected, everything acknowledged, subscriptions answered.
//!
//! `MODAX_SEEDS=100000` runs more seeds; a failing one is named and `MODAX_SEED=…` runs it alone.

mod broker;
mod world;

use std::time::Duration;

use world::{Plan, World};

/// As many as fit into a few seconds of an unoptimised build; CI asks for more.
const SEEDS: u64 = 2000;

/// Of worlds that live for minutes.
const LONG_SEEDS: u64 = 250;

fn seeds(few: u64) -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().and_then(|text: String| text.parse::<u64>().ok());
    match number("MODAX_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("MODAX_SEEDS").unwrap_or(few),
    }
}

/// Runs every seed, and names the one that failed.
fn for_each_seed(few: u64, plan: fn(u64) -> Plan) -> world::Fired {
    let mut fired = world::Fired::default();
    for seed in seeds(few) {
        let run = std::panic::catch_unwind(|| World::new(seed, plan(seed)).run());
        match run {
            Ok(counts) => fired.add(&counts),
            Err(panic) => {
                eprintln!("seed {seed} failed: MODAX_SEED={seed} runs it alone");
                std::panic::resume_unwind(panic);
            }
        }
    }
    if std::env::var_os("MODAX_SEED").is_none() {
        eprintln!("{fired:?}");
    }
    fired
}

#[test]
fn f20_nothing_is_lost_whatever_breaks_and_all_of_it_heals() {
    let fired = for_each_seed(SEEDS, Plan::faulty);

    if std::env::var_os("MODAX_SEED").is_none() {
        assert!(fired.all_fired(), "a fault never happened: {fired:?}");
    }
}

#[test]
fn f29_only_what_brokers_close_on_is_rejected_whatever_else_breaks_and_the_rest_is_delivered() {
    let fired = for_each_seed(LONG_SEEDS, Plan::poisoned);

    if std::env::var_os("MODAX_SEED").is_none() {
        assert!(fired.closes > 0 && fired.thrown_out > 0 && fired.kills > 0, "{fired:?}");
    }
}

#[test]
fn f29_what_no_broker_takes_is_found_out_and_what_one_takes_is_given_to_that_one() {
    let fired = for_each_seed(LONG_SEEDS, Plan::only_poisoned);

    if std::env::var_os("MODAX_SEED").is_none() {
        assert!(fired.closes > 0 && fired.thrown_out > 0, "{fired:?}");
    }
    assert_eq!(fired.twins, 0, "no other client was there");
}

#[test]
fn f29_brokers_that_can_store_nothing_for_a_while_cost_no_message() {
    let fired = for_each_seed(LONG_SEEDS, Plan::full);

    assert!(fired.closes > 0, "{fired:?}");
    assert_eq!(fired.thrown_out, 0, "{fired:?}");
}

#[test]
fn f08_a_link_that_is_cut_again_and_again_costs_no_message() {
    let fired = for_each_seed(LONG_SEEDS, Plan::flapping);

    assert!(fired.cuts > 0, "{fired:?}");
    assert_eq!(fired.thrown_out, 0, "{fired:?}");
}

#[test]
fn six_hours_without_any_broker_cost_what_the_queue_refused_and_nothing_else() {
    for seed in 0..4 {
        let fired = World::new(seed, Plan::dark(seed)).run();

        assert!(fired.kills > 0 && fired.full > 0, "{fired:?}");
        // At most one a second for each of four brokers, scouts and witnesses included.
        assert!(fired.dials < 4 * 6 * 3600, "{fired:?}");
    }
}

#[test]
fn f55_a_client_that_is_late_itself_condemns_no_healthy_broker() {
    let fired = for_each_seed(SEEDS, |_| Plan::starved());

    assert!(fired.stalls > 0, "the client was never late");
    assert_eq!(fired.disconnects, 0, "a healthy broker was left: {fired:?}");
}

#[test]
fn a_quiet_hour_costs_no_switch_and_few_packets() {
    let plan = Plan { faults_for: Duration::from_secs(3600), messages: 0, ..Plan::starved() };
    let fired = World::new(1, Plan { stalls: false, ..plan }).run();

    assert_eq!(fired.disconnects, 0, "{fired:?}");
    assert!(fired.probes < 4000, "more than a probe a second: {fired:?}");
}

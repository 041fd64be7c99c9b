//! Seeded simulation in virtual time: random rules, random faults, random lateness of the scheduler.
//! Safety at every step (the world's oracle), the published bounds for every lasting change, healing at the end.

use std::time::Duration;

use modax_health::{CheckConfig, Condition, Need, Prober, Scope, Status, Watchdog};

use crate::world::{Behaviour, World};

/// SplitMix64: the seed printed by a failing run replays it.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }

    pub(crate) fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to - from + 1))
    }
}

fn rules(random: &mut Random, name: String) -> CheckConfig {
    CheckConfig::new(name, || async { Ok::<(), String>(()) })
        .need(if random.below(3) == 0 { Need::Optional } else { Need::Required })
        .scope(if random.below(2) == 0 { Scope::Shared } else { Scope::Private })
        .interval(random.millis(50, 5000))
        .timeout(random.millis(20, 6000))
        .jitter(random.below(101) as f64 / 100.0)
        .rise(1 + u8::try_from(random.below(4)).expect("small"))
        .fall(1 + u8::try_from(random.below(4)).expect("small"))
}

fn behaviour(random: &mut Random) -> Behaviour {
    [Behaviour::Pass, Behaviour::Degrade, Behaviour::Fail, Behaviour::Panic, Behaviour::Hang, Behaviour::Stick]
        [usize::try_from(random.below(6)).expect("small")]
}

#[test]
fn every_lasting_fault_and_recovery_is_seen_within_the_published_bound() {
    let mut faults = 0_u32;
    for seed in 0..1500 {
        let mut random = Random(seed);
        let rules = rules(&mut random, "db".into());
        let mut world = World::new(vec![rules], vec![], seed);
        let bounds = world.schedule.bounds(Prober::default());
        let (detection, recovery) = (bounds.checks[0].detection, bounds.checks[0].recovery);
        for _ in 0..4 {
            // Any moment of the period; long enough to be healthy before.
            let quiet = recovery + random.millis(0, 12_000);
            world.run_until(world.now + quiet);
            assert_eq!(world.report().checks[0].status, Status::Healthy, "seed {seed} at {:?}", world.now);

            world.behaviours[0] = match random.below(4) {
                0 => Behaviour::Fail,
                1 => Behaviour::Panic,
                2 => Behaviour::Hang,
                _ => Behaviour::Stick,
            };
            world.run_until(world.now + detection);
            let seen = world.report().checks[0].status;
            assert_eq!(seen, Status::Unhealthy, "seed {seed}: {:?} not seen in {detection:?}", world.behaviours);
            faults += 1;

            world.behaviours[0] = Behaviour::Pass;
            world.release(0);
            world.run_until(world.now + recovery);
            let seen = world.report().checks[0].status;
            assert_eq!(seen, Status::Healthy, "seed {seed}: recovery not seen in {recovery:?} at {:?}", world.now);
        }
    }
    assert_eq!(faults, 6000);
}

#[test]
fn random_faults_and_a_late_scheduler_break_no_law_and_everything_heals() {
    let mut stuck = 0_usize;
    for seed in 0..600 {
        let mut random = Random(seed ^ 0xa5a5);
        let count = 1 + random.below(6);
        let checks: Vec<CheckConfig> = (0..count).map(|at| rules(&mut random, format!("c{at}"))).collect();
        let mut world = World::new(checks, vec![], seed);
        let mut events = 0;
        for _ in 0..20 {
            let check = usize::try_from(random.below(count)).expect("small");
            world.behaviours[check] = behaviour(&mut random);
            world.latencies[check] = random.millis(0, 3000);
            if random.below(3) == 0 {
                world.release(check);
            }
            let end = world.now + random.millis(0, 10_000);
            let late = random.below(4) == 0;
            world.run_with_stalls(end, || if late { random.millis(0, 400) } else { Duration::ZERO });
            stuck += world.report().checks.iter().filter(|check| check.condition.as_str() == "stuck").count();
            events = law(seed, &world, events);
        }

        for check in 0..world.behaviours.len() {
            world.behaviours[check] = Behaviour::Pass;
            world.latencies[check] = Duration::from_millis(1);
            world.release(check);
        }
        let bounds = world.schedule.bounds(Prober::default());
        let longest = bounds.checks.iter().map(|check| check.recovery).max().expect("one check at least");
        // Twice: a run that was still on its way may fail once more.
        world.run_until(world.now + longest * 2);

        let report = world.report();
        assert!(report.ready && report.live && report.status == Status::Healthy, "seed {seed}: {report:#?}");
    }
    assert!(stuck > 100, "the fault fired only {stuck} times");
}

/// What holds at any moment.
fn law(seed: u64, world: &World, events: usize) -> usize {
    let report = world.report();
    let guards_hold = report.checks.iter().all(|check| !check.can_unready() || check.status != Status::Unhealthy);
    assert_eq!(report.ready, report.started && guards_hold, "seed {seed}: {report:#?}");
    assert!(report.live, "seed {seed}: a dependency failed liveness");
    let worst = report.checks.iter().map(modax_health::CheckReport::weighed).max().expect("one check at least");
    assert_eq!(report.status, worst, "seed {seed}");
    for check in &report.checks {
        let results = check.counts.passed + check.counts.failed;
        assert!(check.counts.failed >= check.counts.timed_out + check.counts.panicked, "seed {seed}: {check:?}");
        assert!(results + 1 >= check.counts.started, "seed {seed}: a run vanished: {check:?}");
    }
    // Every status in the report was told: the last event of a check is its status.
    for check in &report.checks {
        let told = world.events.iter().rev().find_map(|(_, event)| match event {
            modax_health::Event::CheckChanged { check: name, to, .. } if *name == check.name => Some(*to),
            _ => None,
        });
        if check.condition.as_str() != "stale" && check.condition.as_str() != "pending" {
            assert!(told == Some(check.status) || check.status == Status::Unhealthy, "seed {seed}: {check:?} {told:?}");
        }
    }
    assert!(world.events.len() >= events);
    world.events.len()
}

#[test]
fn time_in_which_the_scheduler_itself_did_not_run_is_not_held_against_a_watchdog() {
    let dog = Watchdog::new("loop", Duration::from_secs(4));
    let mut world = World::new(vec![], vec![dog.clone()], 0);
    world.run_until(Duration::from_secs(3));
    dog.bump();
    world.run_until(Duration::from_secs(4));

    // As if the whole process had been stopped for a minute and continued: the loop gets its chance.
    let mut stopped = Some(Duration::from_secs(60));
    world.run_with_stalls(Duration::from_secs(67), || stopped.take().unwrap_or_default());
    assert!(world.report().live, "{:#?}", world.report());

    // It does not get another one.
    world.run_until(Duration::from_secs(70));
    assert!(!world.report().live, "{:#?}", world.report());
}

#[test]
fn after_a_pause_of_the_scheduler_results_are_stale_until_the_next_run_ends() {
    let check = CheckConfig::new("db", || async { Ok::<(), String>(()) });
    let mut world = World::new(vec![check], vec![], 0);
    world.run_until(Duration::from_millis(1500));
    assert!(world.report().ready);

    world.now += Duration::from_secs(60);
    world.run_until(world.now);
    let report = world.report();
    assert!(!report.ready && report.live, "{report:#?}");
    assert!(matches!(report.checks[0].condition, Condition::Stale { age } if age > Duration::from_secs(59)));

    world.run_until(world.now + Duration::from_millis(10));
    assert!(world.report().ready, "{:#?}", world.report());
}

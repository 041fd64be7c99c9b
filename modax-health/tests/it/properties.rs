//! Properties over arbitrary schedules.

use std::time::Duration;

use modax_health::{CheckConfig, Need, Scope, render};
use proptest::prelude::*;

use crate::world::{Behaviour, World};

fn any_behaviour() -> impl Strategy<Value = Behaviour> {
    prop_oneof![
        Just(Behaviour::Pass),
        Just(Behaviour::Degrade),
        Just(Behaviour::Fail),
        Just(Behaviour::Panic),
        Just(Behaviour::Hang),
        Just(Behaviour::Stick),
    ]
}

fn check(name: &str, scope: Scope, need: Need) -> CheckConfig {
    CheckConfig::new(name, || async { Ok::<(), String>(()) })
        .scope(scope)
        .need(need)
        .interval(Duration::from_secs(1))
        .timeout(Duration::from_millis(400))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// The promise no other system read has: whatever the shared dependencies do, in whatever order, from the very
    /// start, an instance that has all of its own is ready as soon as each check had one result.
    #[test]
    fn no_schedule_of_shared_failures_makes_an_instance_unready(
        schedule in prop::collection::vec((0_u64..4000, 0_usize..3, any_behaviour(), any::<bool>()), 1..40),
        seed in any::<u64>(),
    ) {
        let checks = vec![
            check("db", Scope::Shared, Need::Required),
            check("broker", Scope::Shared, Need::Required).rise(1).fall(1),
            check("ai", Scope::Shared, Need::Optional),
            check("disk", Scope::Private, Need::Required),
        ];
        let mut world = World::new(checks, vec![], seed);
        for (after, shared, behaviour, release) in schedule {
            world.behaviours[shared] = behaviour;
            if release {
                world.release(shared);
            }
            let end = world.now + Duration::from_millis(after);
            // Look at every 100 ms, not only at the end.
            while world.now < end {
                world.run_until((world.now + Duration::from_millis(100)).min(end));
                let report = world.report();
                if world.now > Duration::from_millis(500) {
                    prop_assert!(report.started, "at {:?}: {:#?}", world.now, report);
                    prop_assert!(report.ready && report.live, "at {:?}: {:#?}", world.now, report);
                }
            }
        }
    }

    /// The counterpart: one instance's private failure takes out that instance and no other.
    #[test]
    fn a_private_failure_takes_out_its_own_instance_only(victim in 0_usize..5, seed in any::<u64>()) {
        let fleet = (0..5).map(|at| {
            let checks = vec![check("db", Scope::Shared, Need::Required), check("disk", Scope::Private, Need::Required)];
            let mut world = World::new(checks, vec![], seed.wrapping_add(at));
            world.run_until(Duration::from_secs(2));
            world
        });
        for (at, mut world) in fleet.enumerate() {
            world.behaviours[0] = Behaviour::Fail;
            if at == victim {
                world.behaviours[1] = Behaviour::Fail;
            }
            world.run_until(Duration::from_secs(10));
            prop_assert_eq!(world.report().ready, at != victim);
        }
    }

    /// Whatever text an error carries, none of it stands in any rendering or in any `Debug`.
    #[test]
    fn the_text_of_an_error_is_in_no_rendering(secret in "[a-zA-Z0-9:/@!%\"\\\\]{12,60}") {
        let error: modax_health::CheckError = secret.clone().into();
        let debugged = format!("{error:?}");
        prop_assert!(!debugged.contains(&secret));

        let mut world = World::new(vec![check("db", Scope::Shared, Need::Required)], vec![], 1);
        world.behaviours[0] = Behaviour::Fail;
        world.secret.clone_from(&secret);
        world.run_until(Duration::from_secs(5));
        let report = world.report();
        let detail = report.checks[0].detail.clone().expect("the process itself may read it");
        prop_assert!(detail.expose().contains(&secret));
        for text in [
            render::modax_json(&report),
            render::readiness_json(&report),
            render::check_json(&report.checks[0]),
            render::prometheus(&report),
            render::kubernetes(&report, "ready", report.ready),
            format!("{report:?}"),
        ] {
            prop_assert!(!text.contains(&secret), "{}", text);
        }
    }
}

//! The faults of the catalogue that belong to health, f48 to f51.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
        mpsc,
    },
    time::Duration,
};

use modax_health::{CheckConfig, Condition, Event, HealthService, Need, Registry, Scope, Status};
use tokio::time;

use crate::registry::until;

fn passing(name: &str) -> CheckConfig {
    CheckConfig::new(name, || async { Ok::<(), String>(()) })
}

#[tokio::test(start_paused = true)]
async fn f48_a_check_that_hangs_or_panics_harms_only_its_own_line() {
    let registry = Registry::builder()
        .check(passing("good"))
        .check(CheckConfig::new("hangs", std::future::pending::<Result<(), String>>).need(Need::Optional))
        .check(
            CheckConfig::new("panics", || async {
                assert!(std::hint::black_box(false), "a panic on purpose");
                Ok::<(), String>(())
            })
            .need(Need::Optional),
        )
        .check(
            CheckConfig::new("panics_early", || {
                assert!(std::hint::black_box(false), "a panic on purpose, before there is a future");
                async { Ok::<(), String>(()) }
            })
            .need(Need::Optional),
        )
        .build()
        .unwrap();

    time::sleep(Duration::from_secs(20)).await;

    let report = registry.report();
    let check = |name| report.check(name).unwrap();
    assert_eq!((check("good").status, check("good").condition), (Status::Healthy, Condition::Fresh));
    assert!(check("good").counts.passed >= 9, "{:?}", check("good").counts);
    assert!(check("hangs").counts.timed_out >= 5, "the fault fired: {:?}", check("hangs").counts);
    assert_eq!(check("hangs").reason.as_deref(), Some("timed out after 1s"));
    assert_eq!(check("hangs").condition, Condition::Fresh, "a run that can be ended is ended, and begun again");
    assert!(check("hangs").counts.started >= 5, "{:?}", check("hangs").counts);
    for name in ["panics", "panics_early"] {
        assert!(check(name).counts.panicked >= 5, "the fault fired: {:?}", check(name).counts);
        assert_eq!(check(name).reason.as_deref(), Some("panicked"));
    }
    assert!(report.ready && report.live && report.status == Status::Degraded);
}

#[tokio::test(start_paused = true)]
async fn f48_a_check_that_blocks_its_thread_is_stuck_with_its_age_and_never_run_twice_at_once() {
    let (release, gate) = mpsc::channel::<()>();
    let gate = std::sync::Mutex::new(gate);
    let runs = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&runs);
    let registry = Registry::builder()
        .check(passing("good"))
        .check(CheckConfig::blocking("blocks", move || {
            counted.fetch_add(1, Relaxed);
            gate.lock().map_err(|_| "poisoned")?.recv().map_err(|_| "gone")
        }))
        .build()
        .unwrap();
    let mut events = registry.events();

    let age = loop {
        match events.next().await {
            Some(Event::CheckStuck { check, age }) if &*check == "blocks" => break age,
            Some(_) => {}
            None => panic!("the registry ended"),
        }
    };
    assert!(age >= Duration::from_secs(1));
    until_real("the thread runs", || runs.load(Relaxed) == 1).await;
    time::sleep(Duration::from_secs(60)).await;

    let report = registry.report();
    let blocks = report.check("blocks").unwrap();
    assert!(matches!(blocks.condition, Condition::Stuck { age } if age > Duration::from_secs(59)), "{blocks:?}");
    assert_eq!((blocks.counts.started, runs.load(Relaxed)), (1, 1), "started again before it ended");
    assert!(blocks.counts.timed_out > 20, "one more failure each period: {:?}", blocks.counts);
    assert_eq!(report.check("good").unwrap().condition, Condition::Fresh);
    assert!(!report.ready && report.live);

    release.send(()).unwrap();
    drop(release);
    until_real("the run ended", || registry.report().check("blocks").unwrap().counts.started >= 2).await;
    until_real("a second run", || runs.load(Relaxed) >= 2).await;
}

/// Waits for a real thread, which a paused clock knows nothing of.
async fn until_real(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(std::time::Instant::now() < deadline, "never: {what}");
        std::thread::yield_now();
        time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn f49_a_dead_shared_dependency_unreadies_none_of_twenty_instances() {
    let down = Arc::new(AtomicBool::new(false));
    let fired = Arc::new(AtomicU64::new(0));
    let fleet: Vec<Registry> = (0..20)
        .map(|_| {
            let (down, fired) = (Arc::clone(&down), Arc::clone(&fired));
            let database = CheckConfig::new("database", move || {
                let failed = down.load(Relaxed);
                fired.fetch_add(u64::from(failed), Relaxed);
                async move { if failed { Err("connection refused") } else { Ok(()) } }
            });
            Registry::builder().check(database.scope(Scope::Shared)).check(passing("own")).build().unwrap()
        })
        .collect();
    until("all are ready", || fleet.iter().all(Registry::is_ready)).await;

    down.store(true, Relaxed);
    for _ in 0..600 {
        time::sleep(Duration::from_millis(100)).await;
        let capacity = fleet.iter().filter(|instance| instance.is_ready()).count();
        assert_eq!(capacity, 20, "the balancer lost capacity");
        assert!(fleet.iter().all(Registry::is_live), "an orchestrator would restart it");
    }

    assert!(fired.load(Relaxed) > 400, "the fault fired {} times", fired.load(Relaxed));
    assert!(fleet.iter().all(|instance| instance.report().status == Status::Unhealthy), "and nobody hides it");
    assert!(fleet.iter().all(|instance| instance.report().readiness() == Status::Degraded));
}

#[tokio::test(start_paused = true)]
async fn f50_a_flapping_dependency_does_not_make_readiness_flap() {
    let runs = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&runs);
    // Two failures, one success, and so on: under a fall of 3 that is no outage.
    let flapping = CheckConfig::new("flapping", move || {
        let failed = !counted.fetch_add(1, Relaxed).is_multiple_of(3);
        async move { if failed { Err("not now") } else { Ok(()) } }
    });
    let registry = Registry::builder().check(flapping).build().unwrap();
    let mut events = registry.events();

    time::sleep(Duration::from_secs(300)).await;

    assert!(registry.report().checks[0].counts.failed >= 80, "the fault fired");
    drop(registry);
    let (mut ready, mut changes) = (0, 0);
    while let Some(event) = events.next().await {
        ready += u32::from(matches!(event, Event::ReadyChanged { .. }));
        changes += u32::from(matches!(event, Event::CheckChanged { .. }));
    }
    assert_eq!((ready, changes), (1, 1), "only the first result, at the start, is a transition");
}

#[tokio::test(start_paused = true)]
async fn f51_a_storm_of_probes_reaches_no_dependency() {
    let runs = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&runs);
    let check = CheckConfig::new("database", move || {
        counted.fetch_add(1, Relaxed);
        async { Ok::<(), String>(()) }
    });
    let registry = Registry::builder().check(check.interval(Duration::from_secs(1)).jitter(0.0)).build().unwrap();
    until("ready", || registry.is_ready()).await;
    let service = HealthService::new(registry);
    let request = http::Request::get("/health").body(()).unwrap();

    // 1,000 a second for ten seconds of virtual time.
    let before = runs.load(Relaxed);
    for _ in 0..10 {
        for _ in 0..1000 {
            assert_eq!(service.answer(&request).status(), 200);
        }
        time::sleep(Duration::from_secs(1)).await;
    }

    let asked = runs.load(Relaxed) - before;
    assert!((9..=11).contains(&asked), "10,000 probes made {asked} runs in 10 intervals");
}

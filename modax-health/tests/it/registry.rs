//! The handle over a real runtime with a paused clock.

use std::{sync::Arc, time::Duration};

use modax_health::{
    Check, CheckConfig, CheckError, ConfigError, Event, Need, Prober, Registry, Scope, Status, Watchdog,
};
use tokio::time;

fn passing(name: &str) -> CheckConfig {
    CheckConfig::new(name, || async { Ok::<(), String>(()) })
}

/// Waits, in virtual time, until the condition holds.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..100_000 {
        if holds() {
            return;
        }
        time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}

#[tokio::test(start_paused = true)]
async fn a_registry_is_live_at_once_and_ready_after_the_first_results() {
    let registry = Registry::builder().check(passing("db")).build().unwrap();
    assert!(registry.state().is_live() && !registry.state().is_ready() && !registry.state().is_started());

    until("ready", || registry.is_ready()).await;

    let state = registry.state();
    assert!(state.is_ready() && state.is_started() && state.is_live() && !state.is_draining());
    assert_eq!(state.status(), Status::Healthy);
    assert_eq!(registry.report().state(), state);
}

#[tokio::test(start_paused = true)]
async fn a_registry_without_checks_becomes_ready() {
    let registry = Registry::builder().build().unwrap();

    until("ready", || registry.is_ready()).await;
}

struct Pool(bool);

#[async_trait::async_trait]
impl Check for Pool {
    async fn check(&self) -> Result<(), CheckError> {
        if self.0 { Ok(()) } else { Err(CheckError::public("pool is empty").with_detail("host=db1 password=hunter2")) }
    }
}

#[tokio::test(start_paused = true)]
async fn an_object_can_be_a_check_and_its_public_reason_is_shown() {
    let check = CheckConfig::from_check("pool", Arc::new(Pool(false))).need(Need::Optional);
    let registry = Registry::builder().check(check).build().unwrap();

    until("a result", || registry.report().checks[0].reason.is_some()).await;

    let report = registry.report();
    let json = modax_health::render::modax_json(&report);
    assert!(json.contains("pool is empty") && !json.contains("hunter2"), "{json}");
    assert!(report.checks[0].detail.as_ref().unwrap().expose().contains("hunter2"));
    assert_eq!(report.status, Status::Degraded);
}

#[tokio::test(start_paused = true)]
async fn draining_is_seen_at_once_and_waits_for_the_prober() {
    let prober = Prober { interval: Duration::from_millis(500), timeout: Duration::from_millis(400), fall: 2, rise: 2 };
    let registry = Registry::builder().check(passing("db")).prober(prober).build().unwrap();
    until("ready", || registry.is_ready()).await;
    assert_eq!(registry.bounds().drain, Duration::from_millis(1400));

    let draining = tokio::spawn({
        let registry = registry.clone();
        async move { registry.drain().await }
    });
    tokio::task::yield_now().await;
    assert!(!registry.is_ready() && registry.is_live() && registry.state().is_draining());
    assert!(registry.report().draining && !registry.report().ready);
    let report = draining.await.unwrap();

    assert!(!report.hurried);
    assert!(report.waited >= Duration::from_millis(1400), "{report:?}");
    // A second call waits for the same moment, which has passed.
    let again = registry.drain().await;
    assert_eq!(again.began, report.began);
}

#[tokio::test(start_paused = true)]
async fn a_drain_before_the_first_turn_is_not_lost() {
    let registry = Registry::builder().check(passing("db")).build().unwrap();
    registry.start_drain();
    assert!(!registry.is_ready() && registry.report().draining);

    time::sleep(Duration::from_secs(5)).await;

    assert!(!registry.is_ready() && registry.report().draining && registry.is_live());
    assert_eq!(registry.report().check("db").unwrap().status, Status::Healthy);
}

#[tokio::test(start_paused = true)]
async fn a_second_signal_cuts_the_drain_short() {
    let registry = Registry::builder().check(passing("db")).build().unwrap();
    let began = time::Instant::now();
    let draining = tokio::spawn({
        let registry = registry.clone();
        async move { registry.drain().await }
    });
    time::sleep(Duration::from_millis(100)).await;

    registry.hurry();

    assert!(draining.await.unwrap().hurried);
    assert!(began.elapsed() < registry.bounds().drain, "virtual time says the wait was cut");
    assert!(!registry.is_ready());
}

#[tokio::test(start_paused = true)]
async fn a_hurry_before_the_drain_leaves_too_and_the_drain_does_not_wait() {
    let registry = Registry::builder().check(passing("db")).build().unwrap();
    until("ready", || registry.is_ready()).await;

    registry.hurry();

    assert!(!registry.is_ready() && registry.state().is_draining());
    assert!(registry.drain().await.hurried);
}

#[tokio::test(start_paused = true)]
async fn events_tell_transitions_and_a_slow_reader_how_many_it_missed() {
    let broken = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let check = {
        let broken = Arc::clone(&broken);
        CheckConfig::new("db", move || {
            // Turns over at each run.
            let fails = broken.fetch_xor(true, std::sync::atomic::Ordering::Relaxed);
            async move { if fails { Err("down") } else { Ok(()) } }
        })
        .rise(1)
        .fall(1)
        .interval(Duration::from_millis(100))
    };
    let registry = Registry::builder().check(check).build().unwrap();
    let mut events = registry.events();
    let mut slow = registry.events();

    let mut changes = Vec::new();
    while changes.len() < 3 {
        if let Some(Event::CheckChanged { from, to, .. }) = events.next().await {
            changes.push((from, to));
        }
    }
    assert_eq!(
        changes,
        [
            (None, Status::Healthy),
            (Some(Status::Healthy), Status::Unhealthy),
            (Some(Status::Unhealthy), Status::Healthy)
        ]
    );
    time::sleep(Duration::from_secs(60)).await;
    assert!(matches!(slow.next().await, Some(Event::Lagged { missed }) if missed > 100));
    drop(registry);
    until_closed(&mut slow).await;
}

async fn until_closed(events: &mut modax_health::Events) {
    for _ in 0..1000 {
        if events.next().await.is_none() {
            return;
        }
    }
    panic!("the events go on without a registry");
}

#[tokio::test(start_paused = true)]
async fn a_loop_that_stops_bumping_is_not_live_and_is_when_it_turns_again() {
    let dog = Watchdog::new("ingest", Duration::from_secs(5));
    let registry = Registry::builder().watchdog(&dog).startup_grace(Duration::from_secs(20)).build().unwrap();
    assert_eq!(registry.watchdog("ingest").unwrap().limit(), Duration::from_secs(5));
    assert!(registry.watchdog("other").is_none());

    // Within the grace nothing need be bumped.
    time::sleep(Duration::from_secs(24)).await;
    assert!(registry.is_live());
    dog.bump();
    time::sleep(Duration::from_secs(4)).await;
    assert!(registry.is_live());
    time::sleep(Duration::from_secs(4)).await;
    assert!(!registry.is_live() && !registry.is_ready());
    assert!(registry.report().watchdogs[0].missed);

    registry.watchdog("ingest").unwrap().bump();
    until("live again", || registry.is_live()).await;
}

#[test]
fn a_dead_scheduler_is_itself_a_failure() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let registry = {
        let _inside = runtime.enter();
        Registry::builder().check(passing("db")).build().unwrap()
    };
    runtime.block_on(async {
        let mut events = registry.events();
        while !registry.is_ready() {
            events.next().await;
        }
    });
    drop(runtime);

    assert!(!registry.state().is_live() && !registry.state().is_ready());
    assert_eq!(registry.state().status(), Status::Unhealthy);
    let report = registry.report();
    assert!(!report.live && !report.ready && report.status == Status::Unhealthy);
}

#[tokio::test(start_paused = true)]
async fn a_scheduler_that_is_not_given_time_is_noticed_by_the_reader() {
    let registry = Registry::builder().check(passing("db")).scheduler_grace(Duration::from_secs(3)).build().unwrap();
    until("ready", || registry.is_ready()).await;

    // The clock moves, the task is not polled: nothing yields between these two lines but the advance itself.
    time::advance(Duration::from_millis(1)).await;
    let alive = registry.is_live();
    let starved = starve(&registry);

    assert!(alive && starved);
    until("live again", || registry.is_live()).await;
}

/// Moves the clock without letting any task run, by polling the advance once and dropping it.
fn starve(registry: &Registry) -> bool {
    use std::{future::Future, pin::pin, task::Context};
    let mut advance = pin!(time::advance(Duration::from_secs(30)));
    let mut context = Context::from_waker(std::task::Waker::noop());
    let _ = advance.as_mut().poll(&mut context);
    !registry.is_live() && !registry.is_ready()
}

#[test]
fn without_a_runtime_build_says_so() {
    let error = Registry::builder().build().unwrap_err();

    assert!(matches!(error, ConfigError::NoRuntime) && !error.is_transient(), "{error}");
}

#[tokio::test]
async fn a_contradiction_is_refused_and_named() {
    let second = Duration::from_secs(1);
    let cases = [
        (passing("a b"), "a b"),
        (passing(""), ""),
        (passing("db").interval(Duration::ZERO), "interval"),
        (passing("db").interval(Duration::MAX), "interval"),
        (passing("db").timeout(Duration::ZERO), "timeout"),
        (passing("db").timeout(Duration::MAX), "timeout"),
        (passing("db").jitter(f64::NAN), "jitter"),
        (passing("db").jitter(-0.1), "jitter"),
        (passing("db").rise(0), "rise"),
        (passing("db").fall(0), "fall"),
        (passing("db").interval(second).timeout(second).stale_after(second), "stale_after"),
        (passing("twice"), "twice"),
    ];
    for (check, named) in cases {
        let shown = format!("{check:?}");
        let error = Registry::builder().check(passing("twice")).check(check).build().unwrap_err();
        assert!(error.to_string().contains(named), "{shown}: {error}");
        assert!(!error.is_transient());
    }
    let dog = Watchdog::new("dog", Duration::ZERO);
    assert!(Registry::builder().watchdog(&dog).build().unwrap_err().to_string().contains("dog: limit"));
    let many = (0..257).fold(Registry::builder(), |builder, at| builder.check(passing(&format!("c{at}"))));
    assert!(matches!(many.build().unwrap_err(), ConfigError::TooMany { limit: 256 }));
}

#[tokio::test(start_paused = true)]
async fn bounds_are_what_the_rules_say() {
    let check = passing("db")
        .scope(Scope::Shared)
        .interval(Duration::from_secs(2))
        .jitter(0.1)
        .timeout(Duration::from_millis(400))
        .fall(3)
        .rise(2);
    let registry = Registry::builder().check(check).build().unwrap();

    let bounds = registry.bounds();
    // 3 × 2.2 s + 0.4 s; 2 × 2.2 s + 0.4 s; HAProxy: 3 × 2 s + 1 s.
    assert_eq!(bounds.checks[0].detection, Duration::from_secs(7));
    assert_eq!(bounds.checks[0].recovery, Duration::from_millis(4800));
    assert_eq!(bounds.drain, Duration::from_secs(7));
}

#[tokio::test(start_paused = true)]
async fn dropping_the_last_handle_ends_the_background_work() {
    let count = Arc::new(());
    let held = Arc::clone(&count);
    let check = CheckConfig::new("db", move || {
        let held = Arc::clone(&held);
        async move {
            std::future::pending::<()>().await;
            drop(held);
            Ok::<(), String>(())
        }
    });
    let registry = Registry::builder().check(check).build().unwrap();
    time::sleep(Duration::from_millis(10)).await;
    assert_eq!(Arc::strong_count(&count), 3, "one run is in flight");

    drop(registry);

    until("everything is dropped", || Arc::strong_count(&count) == 1).await;
}

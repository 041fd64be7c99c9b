//! How long a preferred broker has to be reachable, in virtual time.

use std::time::{Duration, Instant};

use modax_mqtt_failover::policy::failback::Failback;

const AFTER: Duration = Duration::from_secs(1);

/// In multiples of [`AFTER`].
fn wait(failback: &Failback) -> u64 {
    failback.hysteresis().expect("it is wanted").as_secs()
}

#[test]
fn f08_each_return_that_does_not_last_doubles_the_wait_up_to_64_times_and_one_that_lasts_ends_that() {
    let mut now = Instant::now();
    let mut failback = Failback::new(Some(AFTER));
    let mut waits = vec![wait(&failback)];
    for _ in 0..8 {
        failback.returned(now);
        // Just short of ten times the wait.
        now += (failback.hysteresis().unwrap() * 10).saturating_sub(Duration::from_millis(1));
        failback.lost(now);
        waits.push(wait(&failback));
    }
    assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 64, 64]);

    failback.returned(now);
    now += failback.hysteresis().unwrap() * 10;
    failback.lost(now);
    assert_eq!(wait(&failback), 1, "it lasted");
}

#[test]
fn f08_a_move_that_did_not_come_about_doubles_the_wait_and_is_tried_again_after_5_s_at_the_soonest() {
    let now = Instant::now();
    let mut failback = Failback::new(Some(AFTER));
    assert_eq!(failback.due(now), Some(now + AFTER));

    let mut waits = Vec::new();
    for _ in 0..8 {
        failback.failed(now);
        waits.push(wait(&failback));
        let at_least = Duration::from_secs(5);
        assert_eq!(failback.due(now), Some(now + at_least.max(failback.hysteresis().unwrap())));
    }
    assert_eq!(waits, [2, 4, 8, 16, 32, 64, 64, 64]);
}

#[test]
fn f08_losses_of_a_broker_that_was_not_returned_to_change_nothing() {
    let now = Instant::now();
    let mut failback = Failback::new(Some(AFTER));
    failback.lost(now);
    assert_eq!(wait(&failback), 1);

    failback.returned(now);
    for _ in 0..3 {
        // One return, however many losses follow it.
        failback.lost(now + AFTER);
    }
    assert_eq!(wait(&failback), 2);
    assert_eq!(Failback::new(None).due(now), None);
}

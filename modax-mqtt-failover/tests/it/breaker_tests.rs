//! A broker that failed gets one try at a time, however many ask for it.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use modax_mqtt_failover::{
    Backoff,
    breaker::{Breaker, BreakerState, Failure},
    config::Config,
    failover::{Failover, Input, Output},
    packet::ConnectCode,
    policy::backoff::Jitter,
};
use proptest::prelude::*;

/// Callers that ask at the same moment.
const CALLERS: usize = 8;

#[derive(Clone, Copy, Debug)]
enum End {
    Failed,
    Succeeded,
    Released,
    Parked,
}

fn ends() -> impl Strategy<Value = Vec<(End, u64)>> {
    let end = prop_oneof![
        4 => Just(End::Failed),
        1 => Just(End::Succeeded),
        1 => Just(End::Released),
        1 => Just(End::Parked),
    ];
    prop::collection::vec((end, 0..5_000_u64), 1..40)
}

/// How many of all callers pass.
fn pass(breaker: &mut Breaker, now: Instant) -> usize {
    let passes = |_: &usize| {
        let is_ready = breaker.ready_at(now).is_some_and(|at| at <= now);
        if is_ready {
            breaker.attempt();
        }
        is_ready
    };
    (0..CALLERS).filter(passes).count()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn f52_a_half_open_breaker_lets_exactly_one_through(ends in ends(), seed: u64) {
        let (mut breaker, mut now, mut jitter) = (Breaker::default(), Instant::now(), Jitter::new(seed));
        for (stamp, (end, wait)) in (0..).zip(ends) {
            // Before its time nobody passes; at its time one does; while that try is under way nobody does.
            let ready = breaker.ready_at(now).expect("no try is under way");
            if let Some(before) = ready.checked_sub(Duration::from_nanos(1)).filter(|before| *before >= now) {
                prop_assert_eq!(pass(&mut breaker, before), 0);
            }
            now = ready;
            prop_assert_eq!(pass(&mut breaker, now), 1);
            now += Duration::from_millis(wait);
            prop_assert_eq!(pass(&mut breaker, now), 0);
            prop_assert_eq!(breaker.ready_at(now), None);
            match end {
                End::Failed => breaker.fail(now, (Failure::Unreachable, stamp), &Backoff::default(), &mut jitter),
                End::Succeeded => breaker.succeed(now),
                End::Released => breaker.release(now),
                End::Parked => breaker.park(now, stamp),
            }
        }
    }
}

/// The dials of a race that stand, by attempt.
#[derive(Default)]
struct Dials {
    under_way: BTreeMap<u64, usize>,
    failed: Vec<bool>,
    /// Tries at a broker that had failed, and times that several brokers were tried side by side.
    half_open: u64,
    raced: u64,
}

impl Dials {
    fn listen(&mut self, failover: &mut Failover) {
        while let Some(output) = failover.poll_output() {
            match output {
                Output::Dial { attempt, broker, .. } => {
                    assert!(!self.under_way.values().any(|other| *other == broker), "broker {broker} is tried twice");
                    self.half_open += u64::from(self.failed[broker]);
                    self.raced += u64::from(!self.under_way.is_empty());
                    self.under_way.insert(attempt, broker);
                }
                Output::Drop { attempt } | Output::Leave { attempt } => drop(self.under_way.remove(&attempt)),
                Output::GiveUp { attempt, broker, .. } => {
                    self.under_way.remove(&attempt);
                    self.failed[broker] = true;
                }
                Output::Parked { broker, .. } => {
                    self.under_way.retain(|_, other| *other != broker);
                    self.failed[broker] = true;
                }
                Output::Established { broker, .. } => self.failed[broker] = false,
                _ => {}
            }
        }
    }
}

#[test]
fn f52_no_broker_is_tried_twice_at_once_in_a_race() {
    let (mut half_open, mut raced) = (0, 0);
    for seed in 0..300 {
        let mut numbers = Jitter::new(seed * 7919 + 1);
        let mut config = Config::from_urls("x", (0..3).map(|index| format!("mqtt://b{index}"))).unwrap();
        (config.seed, config.racing) = (seed + 1, true);
        let (mut failover, mut now) = (Failover::new(&config), Instant::now());
        let mut dials = Dials { failed: vec![false; 3], ..Dials::default() };
        failover.handle_input(now, Input::Start);
        dials.listen(&mut failover);
        for _ in 0..200 {
            let of = usize::try_from(numbers.next_number() % 3).expect("small").min(dials.under_way.len().max(1) - 1);
            let one = dials.under_way.iter().nth(of).map(|(attempt, broker)| (*attempt, *broker));
            let input = match (numbers.next_number() % 6, one) {
                (0 | 1, Some((attempt, broker))) => {
                    dials.under_way.remove(&attempt);
                    dials.failed[broker] = true;
                    Some(Input::Lost { attempt, by_peer: numbers.next_number().is_multiple_of(2) })
                }
                (2, Some((attempt, _))) => Some(Input::Opened { attempt }),
                (3, Some((attempt, _))) => Some(Input::Answered { attempt, code: ConnectCode::Accepted }),
                (4, Some((attempt, _))) if numbers.next_number().is_multiple_of(8) => {
                    Some(Input::Answered { attempt, code: ConnectCode::NotAuthorised })
                }
                _ => None,
            };
            if let Some(input) = input {
                failover.handle_input(now, input);
            } else {
                now = failover.poll_timeout().map_or(now, |due| due.max(now)) + Duration::from_millis(1);
                failover.handle_timeout(now);
            }
            dials.listen(&mut failover);
        }
        (half_open, raced) = (half_open + dials.half_open, raced + dials.raced);
    }
    assert!(half_open > 1000, "few breakers were half open: {half_open}");
    assert!(raced > 1000, "there was hardly a race: {raced}");
}

#[test]
fn f52_a_try_that_is_given_up_for_another_leaves_the_breaker_as_it_was() {
    let (now, mut jitter) = (Instant::now(), Jitter::new(1));
    let mut breaker = Breaker::default();
    breaker.attempt();
    breaker.release(now);
    assert_eq!(pass(&mut breaker, now), 1, "closed before, closed after");

    breaker.fail(now, (Failure::Silent, 1), &Backoff::default(), &mut jitter);
    let later = now + Duration::from_secs(10);
    assert_eq!(pass(&mut breaker, later), 1);
    breaker.release(later);
    assert_eq!((pass(&mut breaker, later), pass(&mut breaker, later)), (1, 0), "half open once more");
    breaker.hold(later + Duration::from_secs(30));
    assert_eq!(pass(&mut breaker, later), 0, "{:?}", BreakerState::Open(later));
}

//! Who may answer a read.

use std::time::Duration;

use modax_db_router::monitor::Input;
use modax_db_router::observation::{Activity, Observation, ProbeFailure, StartTime};
use modax_db_router::{
    LeftOut, Lsn, NodeState, ReadPreference, ReadRequest, SystemId, Timeline, TokenFate, WriteToken, WritesClosed, plan,
};
use proptest::prelude::*;

use crate::harness::{Answer, Harness};

fn primary(timeline: u32, insert: u64, start: i64, floor: Option<u64>) -> Answer {
    let activity =
        Activity::Writing { timeline: Timeline::new(timeline), insert: Lsn::new(insert), floor: floor.map(Lsn::new) };
    Answer::Facts(Observation::new(SystemId::new(7), StartTime::from_micros(start), activity))
}

fn standby(timeline: u32, replayed: u64, start: i64) -> Answer {
    let timeline = Timeline::new(timeline);
    let activity =
        Activity::Replaying { replayed: Some(Lsn::new(replayed)), at_least: timeline, received: Some(timeline) };
    Answer::Facts(Observation::new(SystemId::new(7), StartTime::from_micros(start), activity))
}

fn run(harness: &mut Harness, milliseconds: u64, answers: &[Answer]) {
    let end = harness.now + Duration::from_millis(milliseconds);
    harness.run(end, |node, _| (answers[node].clone(), Duration::from_millis(1)), |_| {});
}

fn token(timeline: u32, lsn: u64) -> WriteToken {
    WriteToken::new(SystemId::new(7), Timeline::new(timeline), Lsn::new(lsn))
}

fn request(preference: ReadPreference) -> ReadRequest {
    ReadRequest::new(preference)
}

#[test]
fn a_plan_says_why_each_other_server_was_left_out() {
    let mut harness = Harness::new(&["a", "b", "c"]);
    let answers = [primary(1, 500, 1, None), standby(1, 500, 2), standby(1, 100, 3)];
    run(&mut harness, 3000, &answers);
    let mut wanted = request(ReadPreference::Replica);
    wanted.max_staleness = Some(Duration::from_secs(2));
    wanted.at_least = Some(token(1, 400));
    let plan = plan(&harness.topology, &wanted, harness.now);
    assert_eq!(plan.candidates().map(ToString::to_string).collect::<Vec<_>>(), ["b:1"]);
    assert_eq!(plan.left_out[0].1, LeftOut::Preference);
    assert!(matches!(plan.left_out[1].1, LeftOut::TooStale(None)), "{:?}", plan.left_out);
}

#[test]
fn a_token_of_a_history_that_ended_is_judged_by_where_it_ended() {
    let mut harness = Harness::new(&["a", "b"]);
    run(&mut harness, 100, &[primary(1, 500, 1, None), standby(1, 500, 2)]);
    let down = Answer::Fails(ProbeFailure::Unreachable);
    run(&mut harness, 3000, &[down, primary(2, 700, 2, Some(600))]);
    let fate = |timeline, lsn| {
        let mut wanted = request(ReadPreference::Primary);
        wanted.at_least = Some(token(timeline, lsn));
        let plan = plan(&harness.topology, &wanted, harness.now);
        (plan.token, plan.candidates().count())
    };
    assert_eq!(fate(1, 600), (TokenFate::Kept, 1));
    assert_eq!(fate(1, 601), (TokenFate::Lost, 0));
    assert_eq!(fate(2, 650), (TokenFate::Kept, 1));
    assert_eq!(fate(3, 650), (TokenFate::Ahead, 0));
    // Of a timeline that ended before this router was born.
    let mut late = Harness::new(&["b"]);
    run(&mut late, 100, &[primary(2, 700, 2, Some(600))]);
    let mut wanted = request(ReadPreference::Primary);
    wanted.at_least = Some(token(1, 100));
    assert_eq!(plan(&late.topology, &wanted, late.now).token, TokenFate::Unproven);
    wanted.at_least = Some(WriteToken::new(SystemId::new(8), Timeline::new(2), Lsn::new(1)));
    assert_eq!(plan(&late.topology, &wanted, late.now).token, TokenFate::Foreign);
}

#[test]
fn staleness_grows_while_there_is_no_primary() {
    let mut harness = Harness::new(&["a", "b"]);
    run(&mut harness, 100, &[primary(1, 500, 1, None), standby(1, 500, 2)]);
    let before = harness.topology.nodes()[1].staleness(harness.now).expect("proved");
    run(&mut harness, 10_000, &[Answer::Silence, standby(1, 500, 2)]);
    let after = harness.topology.nodes()[1].staleness(harness.now).expect("proved");
    // "It has replayed all that it received" is true all the time, and proves nothing.
    assert!(after >= before + Duration::from_secs(9), "{before:?} {after:?}");
    let unbounded = plan(&harness.topology, &request(ReadPreference::PreferReplica), harness.now);
    assert_eq!(unbounded.candidates().count(), 1, "without a bound reads go on");
    harness.input(Input::Suspect { node: 1 });
}

#[test]
fn the_primary_is_read_while_writes_are_held_for_a_switchover_and_no_longer() {
    let readers = |harness: &Harness| {
        let primary = plan(&harness.topology, &request(ReadPreference::Primary), harness.now);
        let mut bound = request(ReadPreference::PreferReplica);
        bound.max_staleness = Some(Duration::from_secs(1));
        let bound = plan(&harness.topology, &bound, harness.now);
        [primary, bound].map(|plan| plan.candidates().map(ToString::to_string).collect::<Vec<_>>())
    };
    let answers = [primary(1, 500, 1, None), Answer::Silence];
    let mut harness = Harness::new(&["a", "b"]);
    run(&mut harness, 3000, &answers);
    harness.input(Input::Pause(true));
    run(&mut harness, 100, &answers);
    assert_eq!(harness.topology.writes_closed(), Some(WritesClosed::Paused));
    assert_eq!(readers(&harness), [["a:1"], ["a:1"]]);
    harness.input(Input::Pause(false));
    let Answer::Facts(mut draining) = answers[0].clone() else { panic!("facts") };
    draining.read_only = true;
    run(&mut harness, 3000, &[Answer::Facts(draining), Answer::Silence]);
    assert_eq!(harness.topology.writes_closed(), Some(WritesClosed::Draining));
    assert_eq!(readers(&harness), [["a:1"], ["a:1"]]);
    run(&mut harness, 3000, &[standby(1, 500, 1), Answer::Silence]);
    assert_eq!(readers(&harness)[0], Vec::<String>::new(), "it is none any more");
}

proptest! {
    #[test]
    fn nobody_answers_who_may_not(
        positions in prop::collection::vec((0_u64..1000, 0_u8..4), 1..5),
        bound in prop::option::of(0_u64..5000),
        at_least in prop::option::of(0_u64..1200),
        preference in prop::sample::select(vec![ReadPreference::Primary, ReadPreference::PreferReplica, ReadPreference::Replica]),
        elapsed in 1500_u64..4000,
    ) {
        let names = ["a", "b", "c", "d", "e"];
        let mut answers = vec![primary(1, 800, 1, None)];
        for (index, (replayed, kind)) in positions.iter().enumerate() {
            answers.push(match kind {
                0 => Answer::Silence,
                1 => Answer::Fails(ProbeFailure::NotAccepting),
                _ => standby(1, *replayed, i64::try_from(index).expect("few") + 2),
            });
        }
        let mut harness = Harness::new(&names[..answers.len()]);
        run(&mut harness, elapsed, &answers);
        let mut wanted = request(preference);
        wanted.max_staleness = bound.map(Duration::from_millis);
        wanted.at_least = at_least.map(|lsn| token(1, lsn));
        let topology = &harness.topology;
        let plan = plan(topology, &wanted, harness.now);

        // Everybody is either a candidate or left out with a reason, never both.
        prop_assert_eq!(plan.candidates().count() + plan.left_out.len(), topology.nodes().len());
        for id in plan.candidates() {
            let node = topology.node(id).expect("known");
            let is_primary = topology.primary().is_some_and(|primary| primary.id == *id);
            prop_assert!(preference != ReadPreference::Primary || is_primary);
            prop_assert!(preference != ReadPreference::Replica || !is_primary);
            if is_primary {
                continue;
            }
            if let Some(bound) = wanted.max_staleness {
                prop_assert!(node.staleness(harness.now).is_some_and(|age| age <= bound));
            }
            if let Some(lsn) = at_least {
                prop_assert!(node.position.is_some_and(|position| position.bytes() >= lsn));
            }
            prop_assert!(matches!(node.state, NodeState::Usable | NodeState::Unproven));
        }
        // The primary comes after the replicas, and only where it is wanted.
        if preference == ReadPreference::PreferReplica {
            let last = plan.candidates().last().expect("the primary at least");
            prop_assert_eq!(Some(last), topology.primary().map(|node| &node.id));
        }
    }
}

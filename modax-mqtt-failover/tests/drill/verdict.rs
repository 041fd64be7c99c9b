//! The word of the oracles on all that was admitted.

use std::time::Instant;

use modax_mqtt_failover::{Outcome, Qos};
use modax_testbed::wait;

use crate::{
    DEADLINE,
    load::{Published, topic},
    oracle::Oracles,
    scale::{milliseconds, row},
};

#[derive(Debug, Default, PartialEq, Eq)]
struct Verdict {
    /// Without an acknowledgement, 60 s after healing.
    unacknowledged: usize,
    /// Acknowledged by none, seen by no oracle.
    lost: usize,
    /// Acknowledged, seen by no oracle: the broker had it and lost it.
    acked_and_lost: usize,
    /// First receipts of one topic on one broker's oracle that came after a later one's.
    reordered: usize,
    /// By a handler behind a `Dedup`.
    handled_twice: usize,
    /// At QoS 2, within one life of a broker.
    repeats_at_qos_2: u64,
}

/// Waits for the oracles, at most a minute, adds a row to the table and fails unless every promise was kept.
pub(crate) async fn judge(what: &str, qos: Qos, published: &Published, faults: &[Instant], oracles: &Oracles) {
    let admitted = u64::try_from(published.outcomes.len()).expect("a count");
    let missing = || {
        let record = oracles.record();
        (0..admitted).filter(|number| !record.handled.contains_key(number)).collect::<Vec<_>>()
    };
    // What is then still missing is counted below.
    let _ = wait::until(DEADLINE, "every message at an oracle", || async { missing().is_empty() }).await;
    let acked = |number: &u64| {
        usize::try_from(*number).ok().and_then(|index| published.outcomes.get(index)).is_some_and(Outcome::is_acked)
    };
    let (acked_and_lost, lost): (Vec<_>, Vec<_>) = missing().into_iter().partition(acked);
    let record = oracles.record();
    let mut verdict = Verdict {
        unacknowledged: published.outcomes.iter().filter(|outcome| !outcome.is_acked()).count(),
        lost: lost.len(),
        acked_and_lost: acked_and_lost.len(),
        handled_twice: record.handled.values().filter(|times| **times > 1).count(),
        ..Verdict::default()
    };
    let mut repeats = 0;
    for seen in &record.by_broker {
        repeats += seen.repeats;
        if qos == Qos::ExactlyOnce {
            verdict.repeats_at_qos_2 += seen.repeats_in_a_life;
        }
        for (topic, first) in &seen.first {
            let out = first.windows(2).filter(|pair| pair[0] > pair[1]);
            verdict.reordered += out.inspect(|pair| eprintln!("{topic} out of order: {pair:?}")).count();
        }
    }
    drop(record);
    row(&format!(
        "| {what} | {} | {admitted} | {} | {} | {} | {} | {repeats} | {} |",
        faults.len(),
        verdict.lost + verdict.unacknowledged,
        verdict.acked_and_lost,
        verdict.reordered,
        verdict.handled_twice,
        milliseconds(&published.gaps(faults)),
    ));
    let examples: Vec<_> = lost.iter().chain(&acked_and_lost).take(20).map(|n| (topic(*n), n)).collect();
    assert_eq!(verdict, Verdict::default(), "missing: {examples:?}");
}

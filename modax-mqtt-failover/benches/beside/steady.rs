//! Brokers that work: throughput and latency.

use modax_testbed::{Ground, MosquittoOptions, TestbedError};

use crate::{
    contestant::{Broker, Contestant, INFLIGHT, Place},
    figures::{Table, max, median, min},
};

const ROUNDS: usize = 7;

pub(crate) fn quiet() -> MosquittoOptions {
    MosquittoOptions { quiet: true, ..MosquittoOptions::default() }
}

/// Messages a second over one broker with the same window, everybody in turn; then the Rust clients in `main`.
pub(crate) async fn throughput(contestants: &[Contestant], table: &mut Table) -> Result<(), TestbedError> {
    let ground = Ground::start().await?;
    let broker = Broker::new(ground.mosquitto_with(quiet()).await?);
    let mut all = contestants.to_vec();
    all.push(Contestant::Bare);
    let what = format!("QoS 1, 64 B, {INFLIGHT} in flight");
    in_turn(&broker, &all, Place::Task, &what, table).await;
    all.retain(|one| matches!(one, Contestant::Ours | Contestant::Rumqttc { .. } | Contestant::Bare));
    in_turn(&broker, &all, Place::Main, &format!("{what}, in main"), table).await;
    ground.stop().await;
    Ok(())
}

async fn in_turn(broker: &Broker, all: &[Contestant], place: Place, what: &str, table: &mut Table) {
    let mut rates = vec![Vec::new(); all.len()];
    let mut cpus = vec![Vec::new(); all.len()];
    let mut broker_cpus = vec![Vec::new(); all.len()];
    for round in 0..=ROUNDS {
        for (index, contestant) in all.iter().enumerate() {
            // The first round warms up.
            let speed = contestant.throughput(broker, place).await;
            if round > 0 {
                rates[index].push(speed.as_ref().map(|speed| speed.messages_a_second / 1000.0));
                cpus[index].push(speed.as_ref().map(|speed| speed.cpu));
                broker_cpus[index].push(speed.as_ref().map(|speed| speed.broker_cpu));
            }
        }
    }
    each(table, &format!("{what}, thousand messages/s"), all, &rates);
    each(table, &format!("{what}, client's processor time, µs a message"), all, &cpus);
    each(table, &format!("{what}, broker's processor time, µs a message"), all, &broker_cpus);
}

/// A row for each; the ratio is the median of the ratios round by round, because the load changes between rounds. Whoever gave no
/// figure in a round has none to be compared there.
fn each(table: &mut Table, what: &str, all: &[Contestant], figures: &[Vec<Option<f64>>]) {
    let Some(ours) = figures.first() else { return };
    for (contestant, theirs) in all.iter().zip(figures) {
        let rounds = theirs.len();
        let ratios: Vec<f64> =
            ours.iter().zip(theirs).filter_map(|(ours, theirs)| Some((*ours)? / (*theirs)?)).collect();
        let theirs: Vec<f64> = theirs.iter().flatten().copied().collect();
        if theirs.is_empty() {
            continue;
        }
        let of =
            if theirs.len() < rounds { format!(", in {} of {rounds} rounds", theirs.len()) } else { String::new() };
        let figure = format!("{:.1} ({:.1} to {:.1}){of}", median(&theirs), min(&theirs), max(&theirs));
        let ratio = if matches!(contestant, Contestant::Ours) {
            String::new()
        } else {
            format!("ours is {:.2} × ({:.2} to {:.2})", median(&ratios), min(&ratios), max(&ratios))
        };
        table.add(what, &contestant.name(), figure, ratio);
    }
}

/// From publish to acknowledgement at 1000 messages a second.
pub(crate) async fn latency(contestants: &[Contestant], table: &mut Table) -> Result<(), TestbedError> {
    let ground = Ground::start().await?;
    let broker = Broker::new(ground.mosquitto_with(quiet()).await?);
    let mut p50 = vec![Vec::new(); contestants.len()];
    let mut p99 = vec![Vec::new(); contestants.len()];
    for _ in 0..3 {
        for (index, contestant) in contestants.iter().enumerate() {
            let latency = contestant.latency(&broker).await;
            p50[index].push(latency.as_ref().map(|latency| latency.p50));
            p99[index].push(latency.as_ref().map(|latency| latency.p99));
        }
    }
    each(table, "latency at 1000 messages/s, p50, µs", contestants, &p50);
    each(table, "latency at 1000 messages/s, p99, µs", contestants, &p99);
    ground.stop().await;
    Ok(())
}

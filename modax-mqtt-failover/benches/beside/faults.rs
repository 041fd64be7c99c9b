//! Brokers that break: from the fault to the first acknowledgement by the next one.

use std::time::{Duration, Instant};

use modax_testbed::{Ground, MosquittoOptions, TestbedError};

use crate::{
    contestant::{Acks, Broker, Contestant},
    figures::{Table, max, median, min},
    ours,
    steady::quiet,
};

/// A client that needs longer has not failed over; it may later (at the usual keep-alive of 60 s: 90 to 190 s).
const GIVE_UP: Duration = Duration::from_secs(30);
/// Of ours and of rumqttc; the others take a second and more each.
const KILLS: usize = 20;
const PEER_KILLS: usize = 5;
const STOPS: usize = 20;
const PEER_STOPS: usize = 2;
/// The smallest keep-alive rumqttc takes.
const SMALLEST: Duration = Duration::from_secs(1);

#[derive(Clone, Copy)]
enum Fault {
    Kill,
    Stop,
}

/// Everybody in turn, so that all have the same load on the machine.
pub(crate) async fn kills(contestants: &[Contestant], table: &mut Table) -> Result<(), TestbedError> {
    let mut contestants = contestants.to_vec();
    contestants.push(Contestant::Rumqttc { keep_alive: None, at_once: true });
    let mut outages = vec![Vec::new(); contestants.len()];
    for round in 0..KILLS {
        for (contestant, outages) in contestants.iter().zip(&mut outages) {
            if round < PEER_KILLS || !matches!(contestant, Contestant::Peer(_)) {
                outages.extend(outage(contestant, Fault::Kill).await?);
            }
        }
    }
    compare(table, "SIGKILL of the broker in use, to the next acknowledgement, ms", &contestants, &outages);
    Ok(())
}

pub(crate) async fn stops(contestants: &[Contestant], table: &mut Table) -> Result<(), TestbedError> {
    let mut all = vec![Contestant::Ours, Contestant::Rumqttc { keep_alive: Some(SMALLEST), at_once: false }];
    let mut outages = vec![Vec::new(), Vec::new()];
    for round in 0..STOPS {
        outages[0].extend(outage(&all[0], Fault::Stop).await?);
        if round < PEER_KILLS {
            outages[1].extend(outage(&all[1], Fault::Stop).await?);
        }
    }
    // These wait for half a minute each, and need no processor for it: all at once.
    let slow: Vec<_> = contestants.iter().filter(|one| !matches!(one, Contestant::Ours)).cloned().collect();
    let mut waiting = Vec::new();
    for contestant in &slow {
        for _ in 0..PEER_STOPS {
            let contestant = contestant.clone();
            waiting.push(tokio::spawn(async move { outage(&contestant, Fault::Stop).await }));
        }
    }
    let mut theirs = vec![Vec::new(); slow.len()];
    for (index, one) in waiting.into_iter().enumerate() {
        theirs[index / PEER_STOPS].extend(one.await.expect("no panic")?);
    }
    all.extend(slow);
    outages.extend(theirs);
    compare(table, "SIGSTOP of the broker in use, under traffic, ms", &all, &outages);

    let mut idle = Vec::new();
    for _ in 0..STOPS {
        idle.extend(idle_outage().await?);
    }
    compare(table, "SIGSTOP of the broker in use, no traffic, ms", &[Contestant::Ours], &[idle]);
    Ok(())
}

/// In milliseconds; `None` when the contestant did not even begin, which is said.
async fn outage(contestant: &Contestant, fault: Fault) -> Result<Option<f64>, TestbedError> {
    let ground = Ground::start().await?;
    let brokers = two(&ground, &quiet()).await?;
    let Some((acks, task)) = contestant.publish(&brokers, u32::MAX) else { return Ok(None) };
    let measured = measure(acks, &brokers[0], fault, Duration::from_secs(1)).await;
    if measured.is_none() {
        println!("  {}: no acknowledgement before the fault", contestant.name());
    }
    task.abort();
    brokers[0].cont();
    ground.stop().await;
    Ok(measured)
}

async fn idle_outage() -> Result<Option<f64>, TestbedError> {
    let ground = Ground::start().await?;
    let brokers = two(&ground, &quiet()).await?;
    let (acked, acks) = tokio::sync::mpsc::unbounded_channel();
    let task = tokio::spawn(ours::idle(brokers.clone(), acked));
    // Of different length, so that the stop falls anywhere between two probes.
    let pause = Duration::from_millis(700 + u64::from(brokers[0].addr().port()) % 500);
    let measured = measure(acks, &brokers[0], Fault::Stop, pause).await;
    task.abort();
    brokers[0].cont();
    ground.stop().await;
    Ok(measured)
}

pub(crate) async fn two(ground: &Ground, options: &MosquittoOptions) -> Result<Vec<Broker>, TestbedError> {
    let mut brokers = Vec::new();
    for _ in 0..2 {
        brokers.push(Broker::new(ground.mosquitto_with(options.clone()).await?));
    }
    Ok(brokers)
}

async fn measure(mut acks: Acks, broker: &Broker, fault: Fault, warm: Duration) -> Option<f64> {
    tokio::time::timeout(GIVE_UP, acks.recv()).await.ok()??;
    // Warm: a second of traffic, for the round trips that a deadline is made of.
    tokio::time::sleep(warm).await;
    let broken = Instant::now();
    match fault {
        Fault::Kill => broker.kill().await,
        Fault::Stop => broker.stop(),
    }
    let next = async {
        loop {
            // Acknowledgements on their way when the broker broke are not the next broker's.
            match acks.recv().await {
                Some((at, broker)) if broker != 0 => return at,
                Some(_) => {}
                None => std::future::pending().await,
            }
        }
    };
    let at = tokio::time::timeout(GIVE_UP, next).await;
    Some(at.map_or(GIVE_UP, |at| at.saturating_duration_since(broken)).as_secs_f64() * 1000.0)
}

fn compare(table: &mut Table, what: &str, all: &[Contestant], outages: &[Vec<f64>]) {
    let limit = GIVE_UP.as_secs_f64() * 1000.0;
    let show = |figure: f64| if figure < limit { format!("{figure:.1}") } else { format!("> {limit}") };
    let ours = outages.first().map_or(f64::NAN, |ours| median(ours));
    for (contestant, theirs) in all.iter().zip(outages).filter(|(_, theirs)| !theirs.is_empty()) {
        let figure =
            format!("{} ({} to {}), n = {}", show(median(theirs)), show(min(theirs)), show(max(theirs)), theirs.len());
        let ratio = match contestant {
            Contestant::Ours => String::new(),
            _ => format!("theirs takes {:.2} × ours", median(theirs) / ours),
        };
        table.add(what, &contestant.name(), figure, ratio);
    }
}

//! Ours beside its peers, on the same brokers in the same run, interleaved.
//!
//! `make bench-mqtt`, or `BENCH=throughput,latency make bench-mqtt` for parts of it: `throughput`, `latency`, `kill`,
//! `stop`, `lost`. `BENCH_PEERS=no` leaves out all peers but rumqttc, which needs no download. Read the ratios; absolute
//! figures are those of one machine at one load. What broker and kernel can do stands beside them: `bare writes` sends
//! PUBLISH packets that were made beforehand and counts the answers, without being a client.

#[path = "beside/bare.rs"]
mod bare;
#[path = "beside/contestant.rs"]
mod contestant;
#[path = "beside/faults.rs"]
mod faults;
#[path = "beside/figures.rs"]
mod figures;
#[path = "beside/lost.rs"]
mod lost;
#[path = "beside/ours.rs"]
mod ours;
#[path = "beside/peers.rs"]
mod peers;
#[path = "beside/raw_rumqttc.rs"]
mod raw_rumqttc;
#[path = "beside/steady.rs"]
mod steady;

use modax_testbed::TestbedError;

use contestant::Contestant;
use figures::{Table, load};

#[tokio::main]
async fn main() -> Result<(), TestbedError> {
    let started = std::time::Instant::now();
    let asked = std::env::var("BENCH").unwrap_or_default();
    let wants = |part: &str| asked.is_empty() || asked.split(',').any(|one| one == part);
    let mut contestants = vec![Contestant::Ours, Contestant::Rumqttc { keep_alive: None, at_once: false }];
    if std::env::var("BENCH_PEERS").is_ok_and(|value| value == "no") {
        println!("peers other than rumqttc: left out as asked");
    } else {
        contestants.extend(peers::bring().into_iter().map(Contestant::Peer));
    }
    println!("load at the start: {}", load());
    let mut table = Table::default();
    if wants("throughput") {
        steady::throughput(&contestants, &mut table).await?;
    }
    if wants("latency") {
        steady::latency(&contestants, &mut table).await?;
    }
    if wants("kill") {
        faults::kills(&contestants, &mut table).await?;
    }
    if wants("stop") {
        faults::stops(&contestants, &mut table).await?;
    }
    if wants("lost") {
        lost::lost(&contestants, &mut table).await?;
    }
    println!("\n{table}");
    println!("load at the end: {}; {} s", load(), started.elapsed().as_secs());
    Ok(())
}

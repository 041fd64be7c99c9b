//! Messages that no broker passed on: killed under traffic, with an oracle on each broker that numbers what it sees.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use modax_testbed::{Ground, MosquittoOptions, TestbedError};
use rumqttc::{AsyncClient, Event, MqttOptions, Packet, QoS};
use tokio::sync::{mpsc, oneshot};

use crate::{
    contestant::{Broker, Contestant},
    faults::two,
    figures::Table,
};

const KILLS: usize = 20;
/// In one run, at 1000 a second.
const MESSAGES: u32 = 2500;
/// The broker in use is killed when so many were seen.
const BEFORE: usize = 1000;
/// A client that has brought nothing for so long has lost the rest; mqtt.js waits for 1 s before it connects anew.
const QUIET: Duration = Duration::from_secs(5);

/// How often each message was seen, by all oracles of one run.
type Seen = Arc<Mutex<Vec<u32>>>;

/// What became of the messages of one run.
#[derive(Default)]
struct Lost {
    never: usize,
    repeats: u32,
}

/// Twenty kills for each, all contestants at once and each on brokers of its own: counts do not depend on the load.
pub(crate) async fn lost(contestants: &[Contestant], table: &mut Table) -> Result<(), TestbedError> {
    let counts = |one: &&Contestant| !matches!(one, Contestant::Peer(peer) if !peer.counts());
    let all: Vec<_> = contestants.iter().filter(counts).cloned().collect();
    let mut sums: Vec<(usize, Lost)> = all.iter().map(|_| (0, Lost::default())).collect();
    for _ in 0..KILLS {
        let runs: Vec<_> = all.iter().cloned().map(|one| tokio::spawn(async move { run(&one).await })).collect();
        for (run, (kills, sum)) in runs.into_iter().zip(&mut sums) {
            if let Some(lost) = run.await.expect("no panic")? {
                *kills += 1;
                sum.never += lost.never;
                sum.repeats += lost.repeats;
            }
        }
    }
    for (contestant, (kills, Lost { never, repeats })) in all.iter().zip(sums) {
        let figure = format!("{never}; {repeats} repeats, which a Dedup drops; n = {kills}");
        table.add("lost of 1000 messages/s over kills of the broker in use", &contestant.name(), figure, String::new());
    }
    Ok(())
}

/// `None` when the contestant did not even begin, which is said.
async fn run(contestant: &Contestant) -> Result<Option<Lost>, TestbedError> {
    let ground = Ground::start().await?;
    // Nothing is dropped for an oracle that is behind.
    let extra = "max_inflight_messages 0\nmax_queued_messages 0".to_owned();
    let brokers = two(&ground, &MosquittoOptions { quiet: true, extra, ..MosquittoOptions::default() }).await?;
    let seen = Seen::new(Mutex::new(vec![0; usize::try_from(MESSAGES).unwrap_or(0)]));
    let (news, mut heard) = mpsc::unbounded_channel();
    let mut oracles = Vec::new();
    for broker in &brokers {
        let (ready, subscribed) = oneshot::channel();
        oracles.push(tokio::spawn(watch(Arc::clone(broker), Arc::clone(&seen), news.clone(), ready)));
        subscribed.await.expect("an oracle");
    }
    let Some((_acks, task)) = contestant.publish(&brokers, MESSAGES) else { return Ok(None) };
    let (mut count, mut killed) = (0, false);
    while count < usize::try_from(MESSAGES).unwrap_or(0)
        && tokio::time::timeout(QUIET, heard.recv()).await.is_ok_and(|news| news.is_some())
    {
        count += 1;
        if count >= BEFORE && !killed {
            brokers[0].kill().await;
            killed = true;
        }
    }
    // What is sent again may come after the last first receipt.
    while tokio::time::timeout(Duration::from_millis(500), heard.recv()).await.is_ok_and(|news| news.is_some()) {}
    task.abort();
    oracles.iter().for_each(tokio::task::JoinHandle::abort);
    ground.stop().await;
    if !killed {
        println!("  {}: only {count} messages came before the kill", contestant.name());
        return Ok(None);
    }
    let seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    let never = seen.iter().filter(|times| **times == 0).count();
    Ok(Some(Lost { never, repeats: seen.iter().map(|times| times.saturating_sub(1)).sum() }))
}

/// One oracle; its broker's end is its own. At QoS 0, because one that acknowledges may find the broker dead with messages
/// before it that it has not read.
async fn watch(broker: Broker, seen: Seen, news: mpsc::UnboundedSender<()>, ready: oneshot::Sender<()>) {
    let options = MqttOptions::new("oracle", broker.addr().ip().to_string(), broker.addr().port());
    let (client, mut events) = AsyncClient::new(options, 100);
    client.subscribe("bench", QoS::AtMostOnce).await.expect("room");
    let mut ready = Some(ready);
    let note = |event: Event| {
        let Event::Incoming(Packet::Publish(publish)) = event else { return };
        let number: usize = String::from_utf8_lossy(&publish.payload).parse().expect("a number");
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(times) = seen.get_mut(number) else { return };
        *times += 1;
        if *times == 1 {
            let _ = news.send(());
        }
    };
    loop {
        match events.poll().await {
            Ok(Event::Incoming(Packet::SubAck(_))) => drop(ready.take().map(|ready| ready.send(()))),
            Ok(event) => note(event),
            // What was read together with the end is not handed out any more.
            Err(_) => return std::mem::take(&mut events.state.events).into_iter().for_each(note),
        }
    }
}

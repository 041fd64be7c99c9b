//! The publisher: numbers over four topics at a steady rate, and what became of each.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use modax_mqtt_failover::{Client, Message, Outcome, Qos};
use tokio::sync::{Notify, mpsc};

use crate::DEADLINE;

const TOPICS: u64 = 4;

pub(crate) fn topic(number: u64) -> String {
    format!("drill/{}", number % TOPICS)
}

/// The outcomes in the order of publishing, and when each acknowledgement came.
#[derive(Default)]
pub(crate) struct Published {
    pub(crate) outcomes: Vec<Outcome>,
    /// When what was acknowledged was published, and when it was acknowledged.
    acks: Vec<(Instant, Instant)>,
    /// The place in `acks` of each number that was acknowledged.
    places: BTreeMap<u64, usize>,
}

impl Published {
    /// When a message was acknowledged.
    pub(crate) fn acked_at(&self, number: u64) -> Option<Instant> {
        self.places.get(&number).and_then(|place| self.acks.get(*place)).map(|(_, acked)| *acked)
    }

    /// The first acknowledgement of what was published after a fault.
    pub(crate) fn first_after(&self, fault: Instant) -> Option<Instant> {
        self.acks.iter().filter(|(published, _)| *published >= fault).map(|(_, acked)| *acked).min()
    }

    /// After each fault the longest time between two acknowledgements, until the next fault.
    pub(crate) fn gaps(&self, faults: &[Instant]) -> Vec<Duration> {
        let mut acks: Vec<_> = self.acks.iter().map(|(_, acked)| *acked).collect();
        acks.sort();
        let gaps: Vec<_> = acks.windows(2).map(|pair| (pair[1], pair[1].duration_since(pair[0]))).collect();
        let until = |next: usize| faults.get(next).copied();
        let after = |(index, fault): (usize, &Instant)| {
            let within = gaps.iter().filter(|(at, _)| at > fault && until(index + 1).is_none_or(|next| *at <= next));
            within.map(|(_, gap)| *gap).max()
        };
        faults.iter().enumerate().filter_map(after).collect()
    }
}

/// Publishes until told to stop.
pub(crate) struct Load {
    stop: Arc<Notify>,
    publisher: tokio::task::JoinHandle<()>,
    collector: tokio::task::JoinHandle<Published>,
}

impl Load {
    pub(crate) fn start(client: &Client, rate: u32, qos: Qos) -> Self {
        let stop = Arc::new(Notify::new());
        let (hand_over, mut receipts) = mpsc::unbounded_channel();
        let (client, stopped) = (client.clone(), Arc::clone(&stop));
        let publisher = tokio::spawn(async move {
            let mut tick = tokio::time::interval(Duration::from_secs(1) / rate);
            for number in 0_u64.. {
                tokio::select! {
                    _ = tick.tick() => {}
                    () = stopped.notified() => break,
                }
                let message = Message::new(topic(number), number.to_string()).qos(qos);
                let receipt = client.publish(message).await.expect("admitted");
                hand_over.send((number, Instant::now(), receipt)).expect("a collector");
            }
        });
        let collector = tokio::spawn(async move {
            let mut published = Published::default();
            while let Some((number, admitted, receipt)) = receipts.recv().await {
                let outcome = receipt.acked().await;
                if let Outcome::Acked { latency, .. } = &outcome {
                    published.places.insert(number, published.acks.len());
                    published.acks.push((admitted, admitted + *latency));
                }
                published.outcomes.push(outcome);
            }
            published
        });
        Self { stop, publisher, collector }
    }

    /// Ends the input, and waits for every outcome.
    pub(crate) async fn end(self) -> Published {
        self.end_within(DEADLINE).await
    }

    /// The same, where much waits.
    pub(crate) async fn end_within(self, limit: Duration) -> Published {
        self.stop.notify_one();
        tokio::time::timeout(DEADLINE, self.publisher).await.expect("the input ends").expect("no panic");
        tokio::time::timeout(limit, self.collector).await.expect("every message has its outcome").expect("no panic")
    }
}

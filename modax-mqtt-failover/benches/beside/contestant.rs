//! Who is measured, and what each can do.

use std::{future::Future, sync::Arc, time::Duration};

use modax_testbed::Mosquitto;
use tokio::sync::mpsc;

use crate::{bare, figures::Cpu, ours, peers::Peer, raw_rumqttc};

pub(crate) type Broker = Arc<Mosquitto>;

/// Unacknowledged publishes that everybody may have.
pub(crate) const INFLIGHT: u16 = 100;
/// Messages of one run of a Rust client.
const MESSAGES: u32 = 50_000;
/// The payload of a throughput message.
pub(crate) const PAYLOAD: [u8; 64] = [b'x'; 64];

/// Where a Rust client and its program run. Others are processes of their own.
#[derive(Clone, Copy)]
pub(crate) enum Place {
    /// In a task of the runtime, as in a service: it and the client's task share threads.
    Task,
    /// In `main`, as in most examples: on a thread that is none of the runtime's, so that waking it crosses threads.
    Main,
}

impl Place {
    async fn run<T: Send + 'static>(self, work: impl Future<Output = T> + Send + 'static) -> T {
        match self {
            Self::Task => tokio::spawn(work).await.expect("no panic"),
            Self::Main => work.await,
        }
    }
}

/// One run at full speed.
pub(crate) struct Speed {
    pub(crate) messages_a_second: f64,
    /// Of the client's process, in µs a message.
    pub(crate) cpu: f64,
    /// Of the broker, the same.
    pub(crate) broker_cpu: f64,
}

/// Microseconds from publish to acknowledgement.
pub(crate) struct Latency {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
}

/// By which broker something was acknowledged, and when.
pub(crate) type Acks = mpsc::UnboundedReceiver<(std::time::Instant, usize)>;

#[derive(Clone)]
pub(crate) enum Contestant {
    Ours,
    /// Its event loop, driven as its users drive it: the next broker after an error, with a pause of 10 ms, which can be left
    /// out where the connection had worked. Its default keep-alive is 60 s.
    Rumqttc {
        keep_alive: Option<Duration>,
        at_once: bool,
    },
    Peer(Peer),
    /// Not a client: the broker's limit.
    Bare,
}

impl Contestant {
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Ours => "ours".to_owned(),
            Self::Rumqttc { keep_alive: Some(time), .. } => format!("rumqttc, keep-alive {} s", time.as_secs()),
            Self::Rumqttc { at_once: true, .. } => "rumqttc, no pause".to_owned(),
            Self::Rumqttc { .. } => "rumqttc".to_owned(),
            Self::Peer(peer) => peer.name.to_owned(),
            Self::Bare => "(bare writes)".to_owned(),
        }
    }

    /// Sends as fast as acknowledgements allow.
    pub(crate) async fn throughput(&self, broker: &Broker, place: Place) -> Option<Speed> {
        let broker_cpu = Cpu::of(broker.process().pid());
        let own = Cpu::of(std::process::id());
        let (messages, messages_a_second, peer_cpu) = match self {
            Self::Ours => (MESSAGES, place.run(ours::throughput(Arc::clone(broker), MESSAGES)).await, None),
            Self::Rumqttc { .. } => {
                (MESSAGES, place.run(raw_rumqttc::throughput(Arc::clone(broker), MESSAGES)).await, None)
            }
            Self::Bare => (MESSAGES, bare::throughput(broker, MESSAGES).await.ok()?, None),
            Self::Peer(peer) => {
                let (rate, cpu) = peer.throughput(broker).await?;
                (peer.messages, rate, Some(cpu))
            }
        };
        let each = |cpu: Cpu| cpu.microseconds() / f64::from(messages);
        let cpu = peer_cpu.unwrap_or_else(|| each(own));
        Some(Speed { messages_a_second, cpu, broker_cpu: each(broker_cpu) })
    }

    /// 1000 messages a second for two seconds.
    pub(crate) async fn latency(&self, broker: &Broker) -> Option<Latency> {
        match self {
            Self::Ours => Some(ours::latency(broker).await),
            Self::Rumqttc { .. } => Some(raw_rumqttc::latency(broker).await),
            Self::Peer(peer) => peer.latency(broker).await,
            Self::Bare => None,
        }
    }

    /// 1000 messages a second, so many, to the first of `brokers` that works, until the task is aborted.
    pub(crate) fn publish(&self, brokers: &[Broker], messages: u32) -> Option<(Acks, tokio::task::JoinHandle<()>)> {
        let (acked, acks) = mpsc::unbounded_channel();
        let brokers = brokers.to_vec();
        let task = match self {
            Self::Ours => tokio::spawn(ours::publish(brokers, messages, acked)),
            Self::Rumqttc { keep_alive, at_once } => {
                tokio::spawn(raw_rumqttc::publish(brokers, *keep_alive, *at_once, messages, acked))
            }
            Self::Peer(peer) => tokio::spawn(peer.clone().publish(brokers, messages, acked)),
            Self::Bare => return None,
        };
        Some((acks, task))
    }
}

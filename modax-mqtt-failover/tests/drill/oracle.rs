//! One subscriber on each broker, by hand over the codec alone: it writes nothing after its SUBSCRIBE, so that a broker
//! killed with messages on their way to it does not cost it one that is already here.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use modax_mqtt_failover::{
    Bytes,
    dedup::{Dedup, Identity, Verdict},
};
use rumqttc::mqttbytes::{
    Error, QoS,
    v4::{Connect, Packet, Subscribe},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
};

use crate::DEADLINE;

/// Between two tries to reach a broker that was killed on purpose.
const RETRY: Duration = Duration::from_millis(5);
const MAX_PACKET: usize = 1 << 20;

/// What one broker's oracle saw, in all lives of the broker.
#[derive(Default)]
pub(crate) struct Seen {
    /// First receipts by topic.
    pub(crate) first: BTreeMap<String, Vec<u64>>,
    /// In which life of the broker a number was seen last.
    last_life: BTreeMap<u64, u64>,
    pub(crate) repeats: u64,
    /// Within one life of the broker.
    pub(crate) repeats_in_a_life: u64,
}

/// What all oracles of a drill saw, and a handler behind a `Dedup` that all of it goes through.
pub(crate) struct Record {
    pub(crate) by_broker: Vec<Seen>,
    dedup: Dedup,
    /// How often the handler was called for a number.
    pub(crate) handled: BTreeMap<u64, u32>,
}

impl Record {
    fn note(&mut self, broker: usize, life: u64, topic: String, payload: &Bytes) {
        let number: u64 = String::from_utf8_lossy(payload).parse().expect("a number");
        if self.dedup.check(&Identity::Opaque(payload.clone())) == Verdict::First {
            *self.handled.entry(number).or_default() += 1;
        }
        let seen = &mut self.by_broker[broker];
        match seen.last_life.insert(number, life) {
            None => seen.first.entry(topic).or_default().push(number),
            Some(before) => {
                seen.repeats += 1;
                seen.repeats_in_a_life += u64::from(before == life);
            }
        }
    }
}

/// Ends when dropped.
pub(crate) struct Oracles {
    record: Arc<Mutex<Record>>,
    /// Of each: in which life of its broker it is subscribed; nothing while it is not.
    subscribed: Vec<watch::Receiver<Option<u64>>>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Oracles {
    pub(crate) async fn start(brokers: impl Iterator<Item = SocketAddr>) -> Self {
        let record = Arc::new(Mutex::new(Record {
            by_broker: Vec::new(),
            // More than is ever on its way at once.
            dedup: Dedup::new(100_000.try_into().expect("not zero")),
            handled: BTreeMap::new(),
        }));
        let mut oracles = Self { record, subscribed: Vec::new(), tasks: Vec::new() };
        for (index, address) in brokers.enumerate() {
            oracles.record().by_broker.push(Seen::default());
            let (say, subscribed) = watch::channel(None);
            oracles.tasks.push(tokio::spawn(watch(index, address, Arc::clone(&oracles.record), say)));
            oracles.subscribed.push(subscribed);
            oracles.subscribed_after(index, None).await;
        }
        oracles
    }

    pub(crate) fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// In which life of a broker its oracle is, or was last.
    pub(crate) fn life(&self, broker: usize) -> Option<u64> {
        *self.subscribed[broker].borrow()
    }

    /// Until the oracle of a broker is subscribed in a later life of it than `life`. Before that the broker must not
    /// serve, or the oracle would miss what comes first.
    pub(crate) async fn subscribed_after(&self, broker: usize, life: Option<u64>) {
        let mut subscribed = self.subscribed[broker].clone();
        let later = subscribed.wait_for(|now| *now > life);
        tokio::time::timeout(DEADLINE, later).await.expect("the oracle is subscribed in time").expect("it runs");
    }
}

impl Drop for Oracles {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

async fn watch(broker: usize, address: SocketAddr, record: Arc<Mutex<Record>>, say: watch::Sender<Option<u64>>) {
    for life in 1.. {
        let mut stream = loop {
            match TcpStream::connect(address).await {
                Ok(stream) => break stream,
                Err(_) => tokio::time::sleep(RETRY).await,
            }
        };
        if stream.write_all(&greeting(address)).await.is_err() {
            continue;
        }
        let mut input = bytes::BytesMut::new();
        loop {
            match Packet::read(&mut input, MAX_PACKET) {
                Ok(Packet::SubAck(_)) => {
                    say.send_replace(Some(life));
                }
                Ok(Packet::Publish(publish)) => {
                    let mut record = record.lock().unwrap_or_else(PoisonError::into_inner);
                    record.note(broker, life, publish.topic, &publish.payload);
                }
                Ok(_) => {}
                Err(Error::InsufficientBytes(_)) => {
                    if stream.read_buf(&mut input).await.unwrap_or(0) == 0 {
                        break;
                    }
                }
                Err(error) => panic!("a broker sends nonsense: {error}"),
            }
        }
    }
}

/// CONNECT without keep-alive and SUBSCRIBE. At QoS 0 a broker sends each message that it has once, and waits for
/// nothing.
fn greeting(address: SocketAddr) -> bytes::BytesMut {
    let mut bytes = bytes::BytesMut::new();
    let mut connect = Connect::new(format!("oracle-{}", address.port()));
    connect.keep_alive = 0;
    let mut subscribe = Subscribe::new("drill/#", QoS::AtMostOnce);
    subscribe.pkid = 1;
    Packet::Connect(connect).write(&mut bytes, MAX_PACKET).expect("it fits");
    Packet::Subscribe(subscribe).write(&mut bytes, MAX_PACKET).expect("it fits");
    bytes
}

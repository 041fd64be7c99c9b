//! A publisher on each broker, by hand over the codec: it counts up and says no number twice, so that whoever reads one
//! broker sees a hole where something is missing.

use std::{
    collections::VecDeque,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rumqttc::mqttbytes::{
    Error, QoS,
    v4::{Connect, Packet, Publish},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
    time::{MissedTickBehavior, interval, sleep, timeout},
};

use crate::DEADLINE;

/// Between two numbers.
const PACE: Duration = Duration::from_millis(5);
/// Between two tries to reach a broker that was killed on purpose.
const RETRY: Duration = Duration::from_millis(5);
const MAX_PACKET: usize = 1 << 20;

/// The topic of a broker's publisher.
fn topic(broker: usize) -> String {
    format!("beat/{broker}")
}

/// They end when dropped.
pub(crate) struct Beats {
    accepted: Vec<Arc<AtomicU64>>,
    stop: watch::Sender<bool>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Beats {
    pub(crate) fn start(brokers: impl Iterator<Item = SocketAddr>) -> Self {
        let mut beats = Self { accepted: Vec::new(), stop: watch::Sender::new(false), tasks: Vec::new() };
        for (place, address) in brokers.enumerate() {
            let beat = Beat { topic: topic(place), next: 0, accepted: Arc::default(), stop: beats.stop.subscribe() };
            beats.accepted.push(Arc::clone(&beat.accepted));
            beats.tasks.push(tokio::spawn(beat.run(address)));
        }
        beats
    }

    /// The number behind the last one that a broker acknowledged.
    pub(crate) fn accepted(&self, broker: usize) -> u64 {
        self.accepted[broker].load(Ordering::Relaxed)
    }

    /// Says no more; returns when all that was said is acknowledged. The brokers have to be well.
    pub(crate) async fn end(&mut self) {
        self.stop.send_replace(true);
        for task in self.tasks.drain(..) {
            timeout(DEADLINE, task).await.expect("every number is acknowledged").expect("no panic");
        }
    }
}

impl Drop for Beats {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

struct Beat {
    topic: String,
    next: u64,
    accepted: Arc<AtomicU64>,
    stop: watch::Receiver<bool>,
}

impl Beat {
    /// What was under way when a broker died is not said again.
    async fn run(mut self, address: SocketAddr) {
        loop {
            let spoken = match TcpStream::connect(address).await {
                Ok(stream) => self.speak(stream).await,
                Err(error) => Err(error),
            };
            match spoken {
                Ok(()) => return,
                Err(_) => sleep(RETRY).await,
            }
        }
    }

    /// Until told to stop, or the connection ends.
    async fn speak(&mut self, stream: TcpStream) -> io::Result<()> {
        let (mut reads, mut writes) = stream.into_split();
        let mut connect = Connect::new(self.topic.as_str());
        connect.keep_alive = 0;
        writes.write_all(&written(&Packet::Connect(connect))).await?;
        let mut waiting = VecDeque::new();
        let mut input = bytes::BytesMut::new();
        let mut pace = interval(PACE);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !(*self.stop.borrow() && waiting.is_empty()) {
            tokio::select! {
                _ = pace.tick() => if !*self.stop.borrow() {
                    let mut publish = Publish::new(&self.topic, QoS::AtLeastOnce, self.next.to_string());
                    publish.pkid = u16::try_from(self.next % 60_000).expect("it fits") + 1;
                    waiting.push_back(self.next);
                    self.next += 1;
                    writes.write_all(&written(&Packet::Publish(publish))).await?;
                },
                read = reads.read_buf(&mut input) => {
                    if read? == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    loop {
                        match Packet::read(&mut input, MAX_PACKET) {
                            // mosquitto acknowledges in order.
                            Ok(Packet::PubAck(_)) => {
                                let number: u64 = waiting.pop_front().expect("an answer to something");
                                self.accepted.store(number + 1, Ordering::Relaxed);
                            }
                            Ok(_) => {}
                            Err(Error::InsufficientBytes(_)) => break,
                            Err(error) => panic!("a broker sends nonsense: {error}"),
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

fn written(packet: &Packet) -> bytes::BytesMut {
    let mut bytes = bytes::BytesMut::new();
    packet.write(&mut bytes, MAX_PACKET).expect("it fits");
    bytes
}

//! What a broker sends, through a whole client: a connector hands it a stream in memory, and time is virtual.
//!
//! The decoders are the crate's own business; from outside, a client is the shortest way to them, and what it makes of
//! their packets is judged at once: by [`Frame`], which knows of MQTT no more than where a packet ends and whom it is for.

mod frame;

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::sync::Mutex;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use modax_mqtt_failover::transport::{Dial, Transport};
use modax_mqtt_failover::{Client, Delivery, Message, Qos, Received, Subscription, Version};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use frame::{Frame, frames};

/// More than any client here sends without being read.
const PIPE_BYTES: usize = 1 << 20;

/// Bytes from a broker of MQTT 3.1.1, behind its CONNACK; the first one says how they are cut.
pub(crate) fn stream_311(data: &[u8]) {
    stream(Version::V311, data);
}

/// The same from a broker of MQTT 5.
pub(crate) fn stream_5(data: &[u8]) {
    stream(Version::V5, data);
}

fn stream(version: Version, data: &[u8]) {
    let Some((cut, script)) = data.split_first() else { return };
    in_virtual_time(async {
        let (client, mut broker) = Broker::greet(version).await;
        let mut subscription = client.subscribe("#", Qos::ExactlyOnce).await.expect("a filter").auto_ack();
        let levels = [Qos::AtLeastOnce, Qos::ExactlyOnce, Qos::AtLeastOnce, Qos::ExactlyOnce, Qos::AtMostOnce];
        let mut receipts = Vec::new();
        for (number, qos) in levels.into_iter().enumerate() {
            let message = Message::new(format!("out/{number}"), "payload").qos(qos);
            receipts.push(client.try_publish(message).expect("there is room"));
        }
        broker
            .until(|frames| frames.iter().filter(|frame| frame.kind() == frame::PUBLISH).count() == levels.len())
            .await;

        let mut deliveries = Vec::new();
        for chunk in chunks(*cut, script) {
            if broker.pipe.write_all(chunk).await.is_err() {
                break;
            }
            broker.listen().await;
            deliveries.extend(taken(&mut subscription));
        }
        broker.listen().await;
        deliveries.extend(taken(&mut subscription));
        drop(broker.pipe);
        drop(client.close(Duration::ZERO).await);

        let (said, heard) = (frames(script), frames(&broker.heard));
        let outcomes = receipts.iter_mut().map(|receipt| receipt.try_outcome().expect("a closed client owes nothing"));
        for (number, outcome) in outcomes.enumerate().filter(|(_, outcome)| outcome.is_acked()) {
            let topic = format!("out/{number}");
            let sent =
                heard.iter().find_map(|frame| frame.publish(version).filter(|sent| sent.topic == topic.as_bytes()));
            let sent = sent.unwrap_or_else(|| panic!("{topic} was not sent: {outcome:?}"));
            assert!(is_acknowledged(version, sent.qos, sent.id, &said), "nobody acknowledged {topic}: {outcome:?}");
        }
        answers_follow_questions(version, &said, &heard);
        delivered_was_sent(version, &said, &deliveries);
    });
}

/// A message there and back: a broker that repeats what it is given, byte for byte. The first byte says how it is sent;
/// topic, name and value of a user property, and payload follow, with zeros between them.
pub(crate) fn echo(data: &[u8]) {
    let Some((flags, rest)) = data.split_first() else { return };
    let mut parts = rest.splitn(4, |byte| *byte == 0);
    let mut text = || parts.next().and_then(|part| std::str::from_utf8(part).ok());
    let (Some(topic), Some(name), Some(value)) = (text(), text(), text()) else { return };
    let payload = parts.next().unwrap_or_default().to_vec();
    let version = if flags & 1 == 0 { Version::V311 } else { Version::V5 };
    let Some(qos) = Qos::from_level(flags >> 1 & 3) else { return };
    let mut message = Message::new(topic, payload).qos(qos);
    if flags & 8 != 0 {
        message = message.retained();
    }
    if flags & 16 != 0 {
        message = message.user_property(name, value);
    }
    in_virtual_time(async {
        let (client, mut broker) = Broker::greet(version).await;
        let mut subscription = client.subscribe("#", Qos::ExactlyOnce).await.expect("a filter");
        let mut shown = if topic.starts_with('$') { Some(client.subscribe(topic, qos).await) } else { None };
        let Ok(receipt) = client.try_publish(message.clone()) else { return };
        broker.until(|frames| frames.iter().any(|frame| frame.kind() == frame::PUBLISH)).await;
        let heard = broker.heard.clone();
        let sent = frames(&heard).into_iter().find(|frame| frame.kind() == frame::PUBLISH).expect("it was seen");
        broker.pipe.write_all(sent.bytes).await.expect("the client reads");
        broker.listen().await;

        let mut back = taken(&mut subscription);
        back.extend(shown.iter_mut().filter_map(|shown| shown.as_mut().ok()).flat_map(taken));
        let back = back.first().unwrap_or_else(|| panic!("{message:?} did not come back as {:?}", sent.bytes));
        assert_eq!((back.topic(), back.payload(), back.qos()), (message.topic(), message.payload(), qos));
        assert_eq!(back.user_properties(), message.user_properties());
        assert_eq!(back.is_retained(), flags & 8 != 0);
        drop((receipt, client));
    });
}

/// Pieces of one to `cut` bytes; all of it at once for zero.
fn chunks(cut: u8, mut script: &[u8]) -> Vec<&[u8]> {
    let (mut chunks, mut state) = (Vec::new(), u64::from(cut));
    while !script.is_empty() {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        let most = usize::from(cut).max(1);
        let length = if cut == 0 { script.len() } else { 1 + usize::try_from(state >> 33).unwrap_or(0) % most };
        let (chunk, rest) = script.split_at(length.min(script.len()));
        chunks.push(chunk);
        script = rest;
    }
    chunks
}

/// Whether what the broker said acknowledges this message.
fn is_acknowledged(version: Version, qos: u8, id: u16, said: &[Frame<'_>]) -> bool {
    let mut answers = said.iter().filter(|frame| frame.ack(version).is_some_and(|ack| ack.0 == id && ack.1 < 0x80));
    match qos {
        0 => true,
        1 => answers.any(|frame| frame.kind() == frame::PUBACK),
        _ => answers.any(|frame| frame.kind() == frame::PUBREC) && answers.any(|frame| frame.kind() == frame::PUBCOMP),
    }
}

/// Nothing is acknowledged more often than it was sent, and nothing released more often than it was received.
fn answers_follow_questions(version: Version, said: &[Frame<'_>], heard: &[Frame<'_>]) {
    let count = |frames: &[Frame<'_>], wanted: &dyn Fn(&Frame<'_>) -> Option<u16>| {
        let mut counts = BTreeMap::<u16, usize>::new();
        frames.iter().filter_map(wanted).for_each(|id| *counts.entry(id).or_default() += 1);
        counts
    };
    let acks = |kind| move |frame: &Frame<'_>| frame.ack(version).filter(|_| frame.kind() == kind).map(|ack| ack.0);
    let messages = |qos| move |frame: &Frame<'_>| frame.publish(version).filter(|it| it.qos == qos).map(|it| it.id);
    let pairs = [
        ("PUBACK", count(heard, &acks(frame::PUBACK)), count(said, &messages(1))),
        ("PUBREC", count(heard, &acks(frame::PUBREC)), count(said, &messages(2))),
        ("PUBREL", count(heard, &acks(frame::PUBREL)), count(said, &acks(frame::PUBREC))),
        ("PUBCOMP", count(heard, &acks(frame::PUBCOMP)), count(said, &acks(frame::PUBREL))),
    ];
    for (what, answers, questions) in pairs {
        for (id, count) in answers {
            let asked = questions.get(&id).copied().unwrap_or(0);
            assert!(count <= asked, "{count} times {what} of {id}, which was asked for {asked} times");
        }
    }
}

/// Every delivery is a message that the broker sent, and each was delivered at most once.
fn delivered_was_sent(version: Version, said: &[Frame<'_>], deliveries: &[Delivery]) {
    let mut sent: Vec<_> = said.iter().filter_map(|frame| frame.publish(version)).collect();
    for delivery in deliveries {
        let place =
            sent.iter().position(|it| it.topic == delivery.topic().as_bytes() && it.payload == delivery.payload());
        let place = place.unwrap_or_else(|| panic!("a delivery that was not sent: {delivery:?}"));
        sent.swap_remove(place);
    }
}

/// What the subscription has now.
fn taken(subscription: &mut Subscription) -> Vec<Delivery> {
    let items = std::iter::from_fn(|| at_once(subscription.next()).flatten());
    let delivery = |item| match item {
        Received::Delivery(delivery) => Some(delivery),
        _ => None,
    };
    items.filter_map(delivery).collect()
}

/// The far end of a client's only connection.
struct Broker {
    pipe: DuplexStream,
    /// Bytes from the client.
    heard: Vec<u8>,
}

impl Broker {
    /// A client whose CONNECT was accepted.
    async fn greet(version: Version) -> (Client, Self) {
        let (near, pipe) = tokio::io::duplex(PIPE_BYTES);
        let near = Mutex::new(Some(near));
        let once = move |_: Dial| {
            let near = near.lock().ok().and_then(|mut near| near.take());
            async move { near.map(Transport::new).ok_or_else(|| io::ErrorKind::ConnectionRefused.into()) }
        };
        let builder = Client::builder("fuzz").brokers(["mqtt://fuzz"]).expect("a broker").connector(once);
        let client = builder.version(version).clean_session(true).build().expect("a client");
        let mut broker = Self { pipe, heard: Vec::new() };
        broker.until(|frames| !frames.is_empty()).await;
        let accepted: &[u8] = if version == Version::V5 { &[0x20, 3, 0, 0, 0] } else { &[0x20, 2, 0, 0] };
        broker.pipe.write_all(accepted).await.expect("the client reads");
        broker.heard.clear();
        (client, broker)
    }

    /// Lets the client work, and takes what it says.
    async fn listen(&mut self) {
        for _ in 0..3 {
            tokio::task::yield_now().await;
        }
        let mut bytes = [0; 4096];
        while let Some(Ok(count @ 1..)) = at_once(self.pipe.read(&mut bytes)) {
            self.heard.extend_from_slice(&bytes[..count]);
        }
    }

    async fn until(&mut self, enough: impl Fn(&[Frame<'_>]) -> bool) {
        while !enough(&frames(&self.heard)) {
            let mut bytes = [0; 4096];
            let count = self.pipe.read(&mut bytes).await.expect("a stream in memory");
            assert!(count > 0, "the client hung up after {:?}", self.heard);
            self.heard.extend_from_slice(&bytes[..count]);
        }
    }
}

fn at_once<F: Future>(future: F) -> Option<F::Output> {
    match std::pin::pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}

fn in_virtual_time(work: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(work);
}

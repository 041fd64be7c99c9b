//! A reader of ours across kills, stops and cuts of the broker it is on. Each broker has a publisher of its own that
//! counts up, so that between two gaps every number has to come, in order, from one broker. A producer of ours follows
//! the reader: at each fault it hears no acknowledgement first, so that the reader gets the same again from the next broker.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use modax_mqtt_failover::{
    Backoff, Client, Delivery, Event, Events, GapReason, Qos, Queue, Received, Subscription, Version,
    dedup::{Dedup, Identity, Verdict},
};
use modax_testbed::{
    Ground, Mosquitto, MosquittoOptions,
    proxy::{Direction, Fault, Proxy},
    wait,
};
use tokio::task::JoinHandle;

use crate::{
    DEADLINE, RATE, acked_more,
    beats::Beats,
    load::Load,
    scale::{count, row},
    serving,
};

/// Beats that show that a stream goes on.
const GOES_ON: u64 = 20;
/// Messages that the reader has and the producer hears no acknowledgement of. A few more may be under way as it goes deaf.
const UNHEARD: u64 = 20;
/// Between the producer's tries to find the broker that is left to it.
const SOON: Duration = Duration::from_millis(100);

/// What the reader was given.
#[derive(Default)]
struct Seen {
    /// The broker and the number of the beat that has to come next; nothing is known of it behind a gap.
    next: Option<(usize, u64)>,
    /// Beats since the last gap.
    beats: u64,
    changes: u64,
    other_gaps: Vec<GapReason>,
    deliveries: u64,
    /// What was missing, or came from elsewhere, without a gap before it.
    unexplained: Vec<String>,
    /// How often each message of the producer was handled.
    handled: BTreeMap<u64, u32>,
    repeats: u64,
    /// Messages of which the `Dedup` said anything but the truth.
    mistaken: Vec<String>,
}

impl Seen {
    /// Changes of broker that it was told of, and repeats of the producer's messages.
    fn counts(&self) -> (u64, u64) {
        (self.changes, self.repeats)
    }

    fn gap(&mut self, reason: GapReason) {
        (self.next, self.beats) = (None, 0);
        match reason {
            GapReason::BrokerChanged => self.changes += 1,
            other => self.other_gaps.push(other),
        }
    }

    fn beat(&mut self, delivery: &Delivery, number: u64) {
        let broker = delivery.topic().rsplit('/').next().and_then(|place| place.parse().ok()).expect("a broker");
        match self.next {
            Some((same, next)) if same == broker && number < next && delivery.is_duplicate() => return,
            Some(next) if next != (broker, number) => {
                self.unexplained.push(format!("{number} of broker {broker} where {next:?} had to come"));
            }
            Some(_) | None => {}
        }
        (self.next, self.beats) = (Some((broker, number + 1)), self.beats + 1);
    }

    fn message(&mut self, dedup: &mut Dedup, delivery: &Delivery, number: u64) {
        let verdict = dedup.check_delivery(delivery);
        let is_known = self.handled.contains_key(&number);
        match verdict {
            Verdict::First if !is_known => {}
            Verdict::Repeat if is_known => self.repeats += 1,
            _ => self.mistaken.push(format!("{number}, seen before: {is_known}, is called {verdict:?}")),
        }
        if verdict != Verdict::Repeat {
            *self.handled.entry(number).or_default() += 1;
        }
    }
}

/// The client under test.
struct Reader {
    client: Client,
    seen: Arc<Mutex<Seen>>,
    reading: JoinHandle<()>,
    /// How often another broker than the one before accepted it.
    changes: JoinHandle<u64>,
}

impl Reader {
    /// Subscribed at the broker that serves it.
    async fn start(urls: &[String], version: Version, window: Dedup) -> Self {
        let client = Client::builder("reader").brokers(urls).unwrap().version(version).build().expect("a client");
        let changes = tokio::spawn(changes(client.events()));
        let messages = client.subscribe("#", Qos::AtLeastOnce).await.expect("a filter");
        let granted = tokio::time::timeout(DEADLINE, messages.granted()).await.expect("in time");
        assert_eq!(granted, Some(Qos::AtLeastOnce));
        let port = client.status().connected.expect("who granted it").port();
        let place = urls.iter().position(|url| url.ends_with(&format!(":{port}"))).expect("one of ours");
        let seen = Arc::new(Mutex::new(Seen { next: Some((place, 0)), ..Seen::default() }));
        let reading = tokio::spawn(read(messages, window, Arc::clone(&seen)));
        Self { client, seen, reading, changes }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Until it was told of another change of broker than the first so many, and reads on behind it.
    async fn goes_on(&self, changes: u64) {
        let goes_on = || async { self.seen().changes > changes && self.seen().beats >= GOES_ON };
        let waited = wait::until(DEADLINE, "a gap, and beats behind it", goes_on).await;
        waited.unwrap_or_else(|error| panic!("{error}; {:?}", self.client.status()));
    }
}

async fn read(mut messages: Subscription, mut dedup: Dedup, seen: Arc<Mutex<Seen>>) {
    while let Some(received) = messages.next().await {
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        match received {
            Received::Delivery(delivery) => {
                seen.deliveries += 1;
                let number = String::from_utf8_lossy(delivery.payload()).parse().expect("a number");
                if delivery.topic().starts_with("beat/") {
                    seen.beat(&delivery, number);
                } else {
                    seen.message(&mut dedup, &delivery, number);
                }
                delivery.ack();
            }
            Received::Gap { reason } => seen.gap(reason),
            other => panic!("{other:?}"),
        }
    }
}

async fn changes(mut events: Events) -> u64 {
    let (mut last, mut changes) = (None, 0);
    while let Some(event) = events.next().await {
        match event {
            Event::Connected { broker, .. } => {
                changes += u64::from(last.as_ref().is_some_and(|last| *last != broker));
                last = Some(broker);
            }
            Event::Lagged { missed } => panic!("{missed} events were missed"),
            _ => {}
        }
    }
    changes
}

/// What becomes of the broker that the reader is on.
#[derive(Clone, Copy)]
enum Blow {
    Kill,
    Stop,
    /// Of the reader's way to it.
    Cut(Direction),
}

struct Plant {
    ground: Ground,
    brokers: Vec<Mosquitto>,
    /// The reader's ways to them, and the producer's.
    proxies: Vec<Proxy>,
    ways: Vec<Proxy>,
    producer: Client,
    reader: Reader,
    beats: Beats,
    blows: u64,
}

impl Plant {
    async fn start(version: Version) -> Self {
        let ground = Ground::start().await.expect("a ground");
        let (mut brokers, mut proxies, mut ways) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..3 {
            let options = MosquittoOptions { quiet: true, ..MosquittoOptions::default() };
            let broker = ground.mosquitto_with(options).await.expect("mosquitto");
            proxies.push(Proxy::start(broker.addr()).await.expect("a proxy"));
            ways.push(Proxy::start(broker.addr()).await.expect("a proxy"));
            brokers.push(broker);
        }
        let urls: Vec<_> = proxies.iter().map(|proxy| proxy.url("mqtt")).collect();
        let window = Dedup::new(100_000.try_into().expect("not zero"));
        // MQTT 3.1.1 carries no identity beside the payload.
        let by_payload = |delivery: &Delivery| Some(Identity::Opaque(delivery.payload().clone()));
        let window = if version == Version::V5 { window } else { window.by(by_payload) };
        let reader = Reader::start(&urls, version, window).await;
        let beats = Beats::start(brokers.iter().map(Mosquitto::addr));
        let producer = Client::builder("drill").brokers(ways.iter().map(|way| way.url("mqtt"))).unwrap();
        let producer = producer.version(version).stamping(version == Version::V5).retry(Backoff::default().cap(SOON));
        // A window that is never full: what is published while no acknowledgement is heard goes out.
        let producer = producer.max_inflight(10_000).queue(Queue::memory().max_messages(100_000));
        let producer = producer.build().expect("a client");
        Self { ground, brokers, proxies, ways, producer, reader, beats, blows: 0 }
    }

    /// Leaves the producer no other broker than this one. Acknowledgements that were held back are gone.
    async fn follow(&self, place: usize) {
        for (_, way) in self.ways.iter().enumerate().filter(|(other, _)| *other != place) {
            way.set(Direction::Both, Fault::Refuse);
            way.cut_all();
        }
        self.ways[place].clear();
        let port = self.ways[place].addr().port();
        let follows = || async { self.producer.status().connected.is_some_and(|now| now.port() == port) };
        wait::until(DEADLINE, "the producer", follows).await.expect("it does not follow the reader");
        acked_more(&self.producer, 50).await;
    }

    /// Strikes the broker that the reader is on, and mends it when the reader reads on from another one.
    async fn strike(&mut self, blow: Blow) {
        let port = serving(&self.reader.client).await;
        let place = self.proxies.iter().position(|proxy| proxy.addr().port() == port).expect("one of ours");
        self.follow(place).await;
        self.ways[place].set(Direction::ToClient, Fault::Blackhole);
        let (changes, repeats) = self.reader.seen().counts();
        // By their numbers: a reader that is behind still gets what was acknowledged long ago.
        let deaf_from = self.producer.stats().admitted;
        let has_unheard = |number: &u64| *number >= deaf_from + UNHEARD;
        let unheard = || async { self.reader.seen().handled.keys().next_back().is_some_and(has_unheard) };
        wait::until(DEADLINE, "what is to come again", unheard).await.expect("it reads no more");

        let (broker, proxy) = (&self.brokers[place], &self.proxies[place]);
        let held = proxy.fired().blackhole;
        self.blows += 1;
        match blow {
            Blow::Kill => broker.kill().await,
            Blow::Stop => broker.stop(),
            Blow::Cut(direction) => proxy.set(direction, Fault::Blackhole),
        }
        self.reader.goes_on(changes).await;
        let port = serving(&self.reader.client).await;
        let next = self.proxies.iter().position(|proxy| proxy.addr().port() == port).expect("one of ours");
        self.follow(next).await;
        let repeated = || async { self.reader.seen().repeats > repeats };
        wait::until(DEADLINE, "a repeat", repeated).await.expect("nothing came twice: there is nothing to tell apart");

        match blow {
            Blow::Kill => broker.restart().await.expect("restarted"),
            Blow::Stop => broker.cont(),
            Blow::Cut(_) => {
                assert!(proxy.fired().blackhole > held, "nothing was held back");
                proxy.clear();
            }
        }
    }

    async fn end(mut self, what: &str, load: Load) {
        let published = load.end().await.outcomes.len();
        self.beats.end().await;
        let reader = &self.reader;
        let has_all = || async {
            let seen = reader.seen();
            let is_last = seen.next.is_none_or(|(broker, next)| next == self.beats.accepted(broker));
            is_last && seen.deliveries == reader.client.stats().received
        };
        // What is then still missing is said below.
        let _ = wait::until(DEADLINE, "the last numbers", has_all).await;
        let stats = self.reader.client.stats();
        assert!(self.producer.close(DEADLINE).await.undelivered.is_empty());
        self.reader.client.close(DEADLINE).await;
        self.reader.reading.await.expect("no panic");
        let changes = self.reader.changes.await.expect("no panic");
        let seen = std::mem::take(&mut *self.reader.seen.lock().unwrap_or_else(PoisonError::into_inner));
        let twice = seen.handled.values().filter(|times| **times > 1).count();
        row(&format!(
            "| {what} | {} | {published} | {} without a gap | – | – | {twice} | {} | – |",
            self.blows,
            seen.unexplained.len(),
            seen.repeats,
        ));
        assert!(seen.unexplained.is_empty(), "missing without a gap: {:?}", seen.unexplained);
        let last = seen.next.map(|(broker, next)| (next, self.beats.accepted(broker)));
        assert!(last.is_none_or(|(next, accepted)| next == accepted), "(next, accepted) at its broker: {last:?}");
        assert_eq!((seen.deliveries, stats.unmatched, stats.overflowed), (stats.received, 0, 0), "not handed out");
        assert!(seen.mistaken.is_empty() && twice == 0, "{twice} handled twice: {:?}", seen.mistaken);
        assert_eq!(seen.changes, changes, "a gap for each change of broker, and no other: {:?}", seen.other_gaps);
        assert!(changes >= self.blows, "not every fault reached the reader");
        drop((self.beats, self.proxies, self.ways, self.brokers));
        self.ground.stop().await;
    }
}

async fn strikes(what: &str, version: Version, rounds: u32, blows: &[Blow]) {
    let mut plant = Plant::start(version).await;
    let load = Load::start(&plant.producer, RATE, Qos::AtLeastOnce);
    acked_more(&plant.producer, 100).await;
    for _ in 0..rounds {
        for blow in blows {
            plant.strike(*blow).await;
        }
    }
    plant.end(&format!("reader, {what}, {version}"), load).await;
}

/// To the broker alone nothing is missing: what it sends still comes, and any byte is life.
const CUTS: [Blow; 2] = [Blow::Cut(Direction::Both), Blow::Cut(Direction::ToClient)];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f21_a_reader_across_kills_misses_nothing_between_gaps_and_handles_nothing_twice() {
    strikes("kill", Version::V311, count("DRILL_READER_KILLS", 3), &[Blow::Kill]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f21_a_reader_across_kills_handles_nothing_twice_by_what_mqtt_5_says_of_each_message() {
    strikes("kill", Version::V5, count("DRILL_READER_KILLS", 3), &[Blow::Kill]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f21_a_reader_across_stops_misses_nothing_between_gaps_and_handles_nothing_twice() {
    strikes("stop and continue", Version::V311, count("DRILL_READER_STOPS", 2), &[Blow::Stop]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f21_a_reader_across_stops_handles_nothing_twice_by_what_mqtt_5_says_of_each_message() {
    strikes("stop and continue", Version::V5, count("DRILL_READER_STOPS", 2), &[Blow::Stop]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f21_a_reader_across_cuts_misses_nothing_between_gaps_and_handles_nothing_twice() {
    strikes("cut both ways and one way", Version::V311, count("DRILL_READER_ROUNDS", 1), &CUTS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f21_a_reader_across_cuts_handles_nothing_twice_by_what_mqtt_5_says_of_each_message() {
    strikes("cut both ways and one way", Version::V5, count("DRILL_READER_ROUNDS", 1), &CUTS).await;
}

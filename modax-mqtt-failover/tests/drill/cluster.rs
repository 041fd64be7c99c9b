//! A NATS cluster of three: nodes killed under load, each time with the whole cluster back before the next. A direct
//! prober beside our client sees the cluster's own outage.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use modax_mqtt_failover::{
    Bytes, Client, Qos, Scouting, Selection, Topology,
    dedup::{Dedup, Identity, Verdict},
};
use modax_testbed::{Ground, NatsCluster, NatsNode, Prober, wait};
use rumqttc::{AsyncClient, Event, MqttOptions, Packet, QoS};
use tokio::{sync::Notify, task::JoinSet};

use crate::{
    DEADLINE, acked_more, another,
    load::{Load, Published},
    scale::{count, milliseconds, row},
    serving,
};

/// Messages a second, for a cluster that writes each to the disks of three nodes on one machine.
pub(crate) const RATE: u32 = 100;
/// Where NATS keeps what is published over MQTT.
const MESSAGES: &str = "$MQTT_msgs";
/// Where scouts publish.
const SCOUTS: &str = "modax/probe";
/// For a cluster to be whole again on a busy machine.
pub(crate) const WHOLE: Duration = Duration::from_secs(120);
/// More kills until a planned return is seen, or scouts are.
const MORE_KILLS: u32 = 3;

#[derive(Default)]
struct Seen {
    /// First receipts by topic, each with when the connection began over which it came.
    first: BTreeMap<String, Vec<(u64, Instant)>>,
    /// What was read from the cluster's stream alone, by topic and in its order.
    stored: BTreeMap<String, Vec<u64>>,
    known: BTreeSet<u64>,
    repeats: u64,
    handled: BTreeMap<u64, u32>,
}

impl Seen {
    /// Messages that came after a later one of their topic. Whose connection died is given again what was on its way, on
    /// the next one and behind what was stored since: what had been acknowledged before that one began has no place.
    fn reordered(&self, published: &Published) -> usize {
        let mut count = 0;
        for (topic, first) in &self.first {
            let mut highest = 0;
            for (number, began) in first {
                let placed = published.acked_at(*number).is_none_or(|acked| acked > *began);
                if *number < highest && placed {
                    eprintln!(
                        "{number} of {topic} came after {highest}; acknowledged at {:?}",
                        published.acked_at(*number)
                    );
                    count += 1;
                }
                highest = highest.max(*number);
            }
        }
        count + self.stored.values().flat_map(|numbers| numbers.windows(2)).filter(|pair| pair[1] < pair[0]).count()
    }
}

/// One subscriber of a cluster; it ends when dropped.
pub(crate) struct Oracle {
    seen: Arc<Mutex<Seen>>,
    task: tokio::task::JoinHandle<()>,
}

impl Oracle {
    pub(crate) async fn start(nodes: Vec<SocketAddr>) -> Self {
        let (seen, ready) = (Arc::new(Mutex::new(Seen::default())), Arc::new(Notify::new()));
        let task = tokio::spawn(watch(nodes, Arc::clone(&seen), Arc::clone(&ready)));
        tokio::time::timeout(DEADLINE, ready.notified()).await.expect("the oracle is subscribed");
        Self { seen, task }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what the cluster's own stream holds and no session has acknowledged: NATS 2.9 may deliver nothing of it to
    /// a session from before a node was stopped, or all were killed.
    async fn read_stored(&self, cluster: &NatsCluster) {
        let stored = cluster.stored(MESSAGES).await.expect("the stream of messages");
        let mut seen = self.seen();
        let before = seen.known.len();
        for message in stored {
            let topic = message.subject.strip_prefix("$MQTT.msgs.").expect("a message of MQTT").replace('.', "/");
            if !topic.starts_with("drill/") {
                continue;
            }
            let number = String::from_utf8_lossy(&message.payload).parse().expect("a number");
            if seen.known.insert(number) {
                seen.stored.entry(topic).or_default().push(number);
            }
        }
        row(&format!("NATS: {} messages in its stream that it delivered to nobody", seen.known.len() - before));
    }

    /// Waits for all that was admitted, at most a minute, adds a row to the table and fails unless every promise was kept.
    pub(crate) async fn judge(&self, what: &str, published: &Published, faults: &[Instant], cluster: &NatsCluster) {
        let admitted = u64::try_from(published.outcomes.len()).expect("a count");
        let missing = || (0..admitted).filter(|number| !self.seen().known.contains(number)).collect::<Vec<_>>();
        // What is then still missing is counted below.
        if wait::until(DEADLINE, "every message at the oracle", || async { missing().is_empty() }).await.is_err() {
            self.read_stored(cluster).await;
        }
        let (acked_and_lost, lost): (Vec<_>, Vec<_>) =
            missing().into_iter().partition(|number| published.acked_at(*number).is_some());
        let unacknowledged = published.outcomes.iter().filter(|outcome| !outcome.is_acked()).count();
        let reordered = self.seen().reordered(published);
        let twice = self.seen().handled.values().filter(|times| **times > 1).count();
        row(&format!(
            "| {what}, QoS 1 | {} | {admitted} | {} | {} | {reordered} | {twice} | {} | {} |",
            faults.len(),
            lost.len() + unacknowledged,
            acked_and_lost.len(),
            self.seen().repeats,
            milliseconds(&published.gaps(faults)),
        ));
        let examples: Vec<_> = lost.iter().chain(&acked_and_lost).take(20).collect();
        assert_eq!(
            (lost.len(), acked_and_lost.len(), unacknowledged, reordered, twice),
            (0, 0, 0, 0, 0),
            "lost, acked and lost, unacknowledged, reordered, handled twice; missing {examples:?}"
        );
    }
}

impl Drop for Oracle {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One subscriber with a session that the cluster keeps for it while it goes from a dead node to the next.
async fn watch(nodes: Vec<SocketAddr>, seen: Arc<Mutex<Seen>>, ready: Arc<Notify>) {
    let options = |node: SocketAddr| {
        let mut options = MqttOptions::new("oracle", node.ip().to_string(), node.port());
        options.set_clean_session(false).set_keep_alive(Duration::from_secs(5));
        options
    };
    let mut dedup = Dedup::new(100_000.try_into().expect("not zero"));
    let (client, mut events) = AsyncClient::new(options(nodes[0]), 100);
    let (mut node, mut began) = (0, Instant::now());
    loop {
        match events.poll().await {
            Ok(Event::Incoming(Packet::ConnAck(ack))) => {
                began = Instant::now();
                if !ack.session_present {
                    client.subscribe("drill/#", QoS::AtLeastOnce).await.expect("room");
                }
            }
            Ok(Event::Incoming(Packet::SubAck(_))) => ready.notify_one(),
            Ok(Event::Incoming(Packet::Publish(publish))) => {
                let number: u64 = String::from_utf8_lossy(&publish.payload).parse().expect("a number");
                let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                if dedup.check(&Identity::Opaque(Bytes::from(publish.payload.to_vec()))) == Verdict::First {
                    *seen.handled.entry(number).or_default() += 1;
                }
                if seen.known.insert(number) {
                    seen.first.entry(publish.topic).or_default().push((number, began));
                } else {
                    seen.repeats += 1;
                }
            }
            Ok(_) => {}
            Err(_) => {
                node = (node + 1) % nodes.len();
                events.mqtt_options = options(nodes[node]);
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Counts messages of scouts: a subscriber on each node, so that those whose node lives go on while others connect anew. They
/// end when dropped.
struct ScoutWatch {
    seen: Arc<AtomicUsize>,
    _watchers: JoinSet<()>,
}

impl ScoutWatch {
    fn start(nodes: &[SocketAddr]) -> Self {
        let (seen, mut watchers) = (Arc::new(AtomicUsize::new(0)), JoinSet::new());
        for node in nodes {
            watchers.spawn(watch_scouts(*node, Arc::clone(&seen)));
        }
        Self { seen, _watchers: watchers }
    }

    fn seen(&self) -> usize {
        self.seen.load(Ordering::Relaxed)
    }
}

async fn watch_scouts(node: SocketAddr, seen: Arc<AtomicUsize>) {
    let name = format!("watch-{}", node.port());
    let (client, mut events) = AsyncClient::new(MqttOptions::new(name, node.ip().to_string(), node.port()), 10);
    loop {
        match events.poll().await {
            // At QoS 0 it costs the cluster no consumer, of which it would elect the leader, too.
            Ok(Event::Incoming(Packet::ConnAck(_))) => client.subscribe(SCOUTS, QoS::AtMostOnce).await.expect("room"),
            Ok(Event::Incoming(Packet::Publish(_))) => {
                seen.fetch_add(1, Ordering::Relaxed);
            }
            Ok(_) => {}
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// Until the node on `port` serves again. A node that has just begun takes connections before its streams are back, so
/// that a first return may not last.
async fn back_on(client: &Client, port: u16) {
    let back = || async { client.status().connected.is_some_and(|now| now.port() == port) };
    wait::until(DEADLINE, "the preferred node", back).await.expect("it stays where it was");
    acked_more(client, 100).await;
}

fn client_of(urls: Vec<String>, selection: Selection, scouting: Scouting) -> Client {
    Client::builder("drill")
        .brokers(urls)
        .and_then(|builder| builder.topology(Topology::Cluster).selection(selection).scouting(scouting).build())
        .expect("a client")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f01_cluster_nodes_killed_under_load_lose_nothing() {
    let kills_wanted = count("DRILL_CLUSTER_KILLS", 1);
    kills("node of a NATS cluster killed", kills_wanted, Selection::priority(), Scouting::none()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f01_cluster_nodes_killed_while_scouts_look_for_the_next_one_lose_nothing() {
    let kills_wanted = count("DRILL_CLUSTER_KILLS", 1);
    kills("node of a NATS cluster killed, with scouts", kills_wanted, Selection::priority(), Scouting::probing()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_preferred_node_that_came_back_serves_again_and_nothing_is_lost() {
    let selection = Selection::priority().failback_after(Duration::from_secs(1));
    kills("back to the preferred node of a NATS cluster", 1, selection, Scouting::none()).await;
}

async fn kills(what: &str, times: u32, selection: Selection, scouting: Scouting) {
    let returns = selection != Selection::priority();
    let ground = Ground::start().await.expect("a ground");
    let cluster = ground.nats_cluster().await.expect("nats");
    let addresses: Vec<_> = cluster.nodes().iter().map(NatsNode::addr).collect();
    let oracle = Oracle::start(addresses.clone()).await;
    let scouts_seen = ScoutWatch::start(&addresses);
    let held = Prober::start(addresses.clone(), "probe");
    let fresh = Prober::fresh(addresses, "probe");
    let scouts = scouting != Scouting::none();
    let mut urls = cluster.urls();
    if scouts {
        // The node that leads the messages dies first: its successor is elected, and that is when scouts are sent.
        let leader = || cluster.stream_leader(MESSAGES);
        urls.rotate_left(wait::until(WHOLE, "a leader of the messages", leader).await.expect("a leader"));
    }
    let client = client_of(urls, selection, scouting);
    let load = Load::start(&client, RATE, Qos::AtLeastOnce);
    acked_more(&client, 100).await;

    let (mut faults, mut direct, mut anew) = (Vec::new(), Vec::new(), Vec::new());
    // The cluster may drive us back to the node by itself, before we think of it: then another one is killed.
    let no_return = || returns && client.stats().failbacks == 0;
    // A leader may move before it dies.
    let no_scouts = || scouts && scouts_seen.seen() == 0;
    let mut kills = 0;
    while kills < times || ((no_return() || no_scouts()) && kills < times + MORE_KILLS) {
        kills += 1;
        let port = serving(&client).await;
        let node = cluster.nodes().iter().find(|node| node.addr().port() == port).expect("one of ours");
        let fault = Instant::now();
        faults.push(fault);
        node.kill();
        // The cluster's own election first: ours is what comes behind it.
        let probed = wait::until(WHOLE, "the prober", || async { held.first(fault).zip(fresh.first(fault)) }).await;
        let (probed, probed_anew) = probed.expect("the cluster never acknowledged again");
        direct.push(probed);
        anew.push(probed_anew);
        another(&client, port).await;
        acked_more(&client, 100).await;
        node.restart().await.expect("restarted");
        cluster.healthy(WHOLE).await.expect("whole again");
        if returns {
            back_on(&client, port).await;
        }
    }

    assert!(!no_return(), "{kills} kills, and never back by a planned move");
    let published = load.end().await;
    oracle.judge(what, &published, &faults, &cluster).await;
    let ours: Vec<_> = faults.iter().filter_map(|fault| published.first_after(*fault)).collect();
    let since =
        |ends: &[Instant]| ends.iter().zip(&faults).map(|(end, fault)| end.duration_since(*fault)).collect::<Vec<_>>();
    let added = |first: &[Instant]| {
        ours.iter().zip(first).map(|(ours, first)| ours.saturating_duration_since(*first)).collect::<Vec<_>>()
    };
    for (prober, first) in [("over a connection it holds", &direct), ("over new connections", &anew)] {
        row(&format!(
            "NATS, from the kill to the first acknowledgement of a later publish: ours {}, a direct prober of all nodes {prober} {}, added by us {} (median / maximum)",
            milliseconds(&since(&ours)),
            milliseconds(&since(first)),
            milliseconds(&added(first)),
        ));
    }
    let sent = scouts_seen.seen();
    assert_eq!(sent > 0, scouts, "{sent} messages of scouts");
    client.close(DEADLINE).await;
    drop((held, fresh, oracle, scouts_seen));
    ground.stop().await;
}

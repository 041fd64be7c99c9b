//! A NATS cluster of three whose nodes are cut off from the client, restarted in turn, stopped, and all out of its reach or
//! killed, each time with the whole cluster back before the next. The oracle does not pass the proxies.

use std::time::{Duration, Instant};

use modax_mqtt_failover::{Client, Qos, Queue, Topology};
use modax_testbed::{
    Ground, NatsCluster, NatsNode,
    proxy::{Direction, Fault, Proxy},
    wait,
};

use crate::{
    DEADLINE, acked_more, another,
    cluster::{Oracle, RATE, WHOLE},
    load::{Load, Published},
    scale::{count, milliseconds, row, seconds},
    serving,
};

/// For what was admitted in a minute without any node, on disks that three nodes share. NATS 2.9 stores one message of a
/// connection after the other, and was seen to need a second for some after its nodes had been restarted ("Readloop processing
/// time" in its log): fewer than come in, so that the input ends first.
const CATCHING_UP: Duration = Duration::from_secs(300);

struct Plant {
    ground: Ground,
    cluster: NatsCluster,
    proxies: Vec<Proxy>,
    oracle: Oracle,
    client: Client,
    faults: Vec<(&'static str, Instant)>,
}

impl Plant {
    async fn start() -> Self {
        let ground = Ground::start().await.expect("a ground");
        let cluster = ground.nats_cluster().await.expect("nats");
        let mut proxies = Vec::new();
        for node in cluster.nodes() {
            proxies.push(Proxy::start(node.addr()).await.expect("a proxy"));
        }
        let oracle = Oracle::start(cluster.nodes().iter().map(NatsNode::addr).collect()).await;
        let client = Client::builder("drill").brokers(proxies.iter().map(|proxy| proxy.url("mqtt"))).unwrap();
        let client = client.topology(Topology::Cluster).queue(Queue::memory().max_messages(100_000));
        let client = client.build().expect("a client");
        Self { ground, cluster, proxies, oracle, client, faults: Vec::new() }
    }

    /// The node that serves, by its place and the client's port.
    async fn serving(&self) -> (usize, u16) {
        let port = serving(&self.client).await;
        let place = self.proxies.iter().position(|proxy| proxy.addr().port() == port);
        (place.expect("one of ours"), port)
    }

    fn fault(&mut self, what: &'static str) {
        self.faults.push((what, Instant::now()));
    }

    /// Until another node serves than the one on `port`.
    async fn moved(&self, port: u16) {
        another(&self.client, port).await;
        acked_more(&self.client, 20).await;
    }

    async fn whole(&self) {
        self.cluster.healthy(WHOLE).await.expect("whole again");
        acked_more(&self.client, 20).await;
    }

    async fn cut(&mut self, what: &'static str, direction: Direction) {
        let (place, port) = self.serving().await;
        let held = self.proxies[place].fired().blackhole;
        self.fault(what);
        self.proxies[place].set(direction, Fault::Blackhole);
        self.moved(port).await;
        assert!(self.proxies[place].fired().blackhole > held, "nothing was held back");
        self.proxies[place].clear();
        acked_more(&self.client, 20).await;
    }

    /// The one that serves first: the client may move by itself while another is away.
    async fn restart_in_turn(&mut self) {
        let faults = self.faults.len();
        let (first, _) = self.serving().await;
        let nodes = self.cluster.nodes().len();
        for place in (first..nodes).chain(0..first) {
            let (serving, port) = self.serving().await;
            if serving == place {
                self.fault("restarted in turn");
            }
            self.cluster.nodes()[place].process().terminate(DEADLINE).await.expect("it ends when asked to");
            if serving == place {
                self.moved(port).await;
            }
            self.cluster.nodes()[place].restart().await.expect("restarted");
            self.whole().await;
        }
        assert!(self.faults.len() > faults, "no node in use was restarted");
    }

    async fn all_away(&mut self) {
        self.fault("all out of reach");
        for proxy in &self.proxies {
            proxy.set(Direction::Both, Fault::Refuse);
            proxy.cut_all();
        }
        let away = || async { !self.client.status().is_connected() && self.client.stats().queue_messages > 20 };
        wait::until(DEADLINE, "messages that no node takes", away).await.expect("the fault did not reach the client");
        tokio::time::sleep(seconds("DRILL_DARK_SECONDS", 0)).await;
        assert!(!self.client.status().is_connected(), "a node was reached");
        for proxy in &self.proxies {
            proxy.clear();
        }
        acked_more(&self.client, 20).await;
    }

    async fn stop(&mut self) {
        let (place, port) = self.serving().await;
        self.fault("stopped");
        self.cluster.nodes()[place].stop();
        self.moved(port).await;
        self.cluster.nodes()[place].cont();
        self.whole().await;
    }

    async fn all_killed(&mut self) {
        self.fault("all killed");
        self.cluster.nodes().iter().for_each(NatsNode::kill);
        let away = || async { !self.client.status().is_connected() && self.client.stats().queue_messages > 20 };
        wait::until(DEADLINE, "messages that no node takes", away).await.expect("the fault did not reach the client");
        // Together: one alone may serve nobody.
        let restarts = self.cluster.nodes().iter().map(NatsNode::restart);
        futures_util::future::try_join_all(restarts).await.expect("restarted");
        self.whole().await;
    }

    async fn end(self, what: &str, load: Load) {
        let published = load.end_within(CATCHING_UP).await;
        self.tell(&published);
        let faults: Vec<_> = self.faults.iter().map(|(_, at)| *at).collect();
        self.oracle.judge(what, &published, &faults, &self.cluster).await;
        assert!(self.client.close(DEADLINE).await.undelivered.is_empty());
        drop((self.oracle, self.proxies));
        self.ground.stop().await;
    }

    fn tell(&self, published: &Published) {
        let all: Vec<_> = self.faults.iter().map(|(_, at)| *at).collect();
        let gaps = published.gaps(&all);
        let mut kinds: Vec<_> = self.faults.iter().map(|(what, _)| *what).collect();
        kinds.dedup();
        for kind in kinds {
            let of_kind = self.faults.iter().zip(&gaps).filter(|((what, _), _)| *what == kind);
            let of_kind: Vec<Duration> = of_kind.map(|(_, gap)| *gap).collect();
            row(&format!(
                "NATS, {kind}: {} between acknowledgements (median / maximum of {})",
                milliseconds(&of_kind),
                of_kind.len()
            ));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f03_a_cluster_whose_nodes_are_cut_off_restarted_and_all_out_of_reach_loses_nothing() {
    let mut plant = Plant::start().await;
    let load = Load::start(&plant.client, RATE, Qos::AtLeastOnce);
    acked_more(&plant.client, 100).await;
    // One kind after the other, so that each kind's figures stand together.
    let rounds = count("DRILL_CLUSTER_ROUNDS", 1);
    for (what, direction) in [
        ("cut both ways", Direction::Both),
        ("cut to the client", Direction::ToClient),
        ("cut to the node", Direction::ToServer),
    ] {
        for _ in 0..rounds {
            plant.cut(what, direction).await;
        }
    }
    for _ in 0..rounds {
        plant.restart_in_turn().await;
    }
    // Once, and last: a minute of it is more than the cluster may store in a minute.
    plant.all_away().await;

    plant.end("nodes of a NATS cluster cut off, restarted in turn, all out of reach", load).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f02_a_cluster_whose_nodes_are_stopped_and_go_on_loses_nothing() {
    let mut plant = Plant::start().await;
    let load = Load::start(&plant.client, RATE, Qos::AtLeastOnce);
    acked_more(&plant.client, 100).await;
    for _ in 0..count("DRILL_CLUSTER_ROUNDS", 1) {
        plant.stop().await;
    }
    plant.end("nodes of a NATS cluster stopped and continued", load).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f03_a_cluster_whose_nodes_are_all_killed_at_once_loses_nothing() {
    let mut plant = Plant::start().await;
    let load = Load::start(&plant.client, RATE, Qos::AtLeastOnce);
    acked_more(&plant.client, 100).await;
    for _ in 0..count("DRILL_CLUSTER_ROUNDS", 1) {
        plant.all_killed().await;
    }
    plant.end("all nodes of a NATS cluster killed at once", load).await;
}

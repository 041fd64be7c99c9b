//! Patroni: three PostgreSQL nodes that fail over by themselves, on three nodes of etcd.

mod node;

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
pub use node::PatroniNode;
use serde_json::{Value, json};

use super::etcd::EtcdCluster;
use super::postgres::{self, DATABASE, ROLE};
use super::{http, persistently, require};
use crate::{Ground, TestbedError, wait};

/// 7 s on an idle machine: most of it is Patroni looking again every second.
const START: Duration = Duration::from_secs(150);

/// While it starts, Patroni looks this often, in seconds; its own limit. Afterwards as the options say.
const HASTE: u32 = 1;

/// How a Patroni cluster is configured. The defaults are the fastest that a current Patroni accepts: ttl at least 20,
/// and loop_wait + 2 · retry_timeout at most ttl.
#[derive(Clone, Debug)]
pub struct PatroniOptions {
    /// How long a leader's key lives without renewal, in seconds: the time to notice a node that is gone. Default: 20.
    pub ttl: u32,
    /// How often a node looks, in seconds. Default: 5.
    pub loop_wait: u32,
    /// How long a node bears etcd or PostgreSQL not answering, in seconds. Default: 5.
    pub retry_timeout: u32,
    /// How long a crashed primary may take to come back before it is replaced, in seconds. Default: 0: replaced at
    /// once.
    pub primary_start_timeout: u32,
    /// Whether a commit waits for a standby. Default: yes.
    pub synchronous_mode: bool,
    /// `max_connections` of every node. Default: 100, PostgreSQL's own.
    pub max_connections: u32,
    /// Further settings of every node, which win over the testbed's. Default: none.
    pub settings: Vec<(String, String)>,
    /// `etcd[i]` is where node `i` reaches etcd, for proxies before it; the nodes then keep to these addresses.
    /// Default: none, etcd is started too.
    pub etcd: Option<[Vec<SocketAddr>; 3]>,
}

impl Default for PatroniOptions {
    fn default() -> Self {
        Self {
            ttl: 20,
            loop_wait: 5,
            retry_timeout: 5,
            primary_start_timeout: 0,
            synchronous_mode: true,
            max_connections: 100,
            settings: Vec::new(),
            etcd: None,
        }
    }
}

/// A running cluster of three.
#[derive(Debug)]
pub struct PatroniCluster {
    etcd: Option<EtcdCluster>,
    nodes: Vec<PatroniNode>,
    is_synchronous: bool,
}

impl Ground {
    /// Starts etcd, Patroni and PostgreSQL, three nodes each; returns when the cluster is
    /// [`healthy`](PatroniCluster::healthy).
    ///
    /// # Errors
    /// [`TestbedError`] when a program is missing or the cluster is not healthy within 150 s.
    ///
    /// # Cancel safety
    /// Safe: what was started ends with the ground.
    pub async fn patroni(&self, options: PatroniOptions) -> Result<PatroniCluster, TestbedError> {
        // In one go, so that one error names all that are missing.
        require(&["etcd", "patroni", "postgres", "initdb", "pg_basebackup", "pg_ctl", "pg_rewind", "setpriv"]).await?;
        persistently(|| PatroniCluster::start(self, &options)).await
    }
}

impl PatroniCluster {
    async fn start(ground: &Ground, options: &PatroniOptions) -> Result<Self, TestbedError> {
        let etcd = if options.etcd.is_some() { None } else { Some(ground.etcd().await?) };
        let addresses = match (&options.etcd, &etcd) {
            (Some(given), _) => given.clone(),
            (None, Some(etcd)) => [etcd.addresses(), etcd.addresses(), etcd.addresses()],
            (None, None) => [Vec::new(), Vec::new(), Vec::new()],
        };
        let mut nodes = Vec::new();
        for (index, addresses) in addresses.iter().enumerate() {
            nodes.push(PatroniNode::start(ground, index, addresses, options)?);
        }
        let cluster = Self { etcd, nodes, is_synchronous: options.synchronous_mode };
        cluster.furnished().await?;
        cluster.healthy(START).await?;
        cluster.configure(&json!({ "loop_wait": options.loop_wait })).await?;
        Ok(cluster)
    }

    /// Waits for the first leader and gives it the clients' role and database.
    async fn furnished(&self) -> Result<(), TestbedError> {
        for statement in [ROLE, DATABASE] {
            let done = wait::until(START, "Patroni: a first leader", || async {
                if let Some(error) = self.nodes.iter().find_map(|node| node.patroni().ended().err()) {
                    return Some(Err(error));
                }
                let leader = self.nodes.get(self.leader().await?)?;
                leader.psql_in("postgres", statement).await.ok().map(Ok)
            });
            done.await?.map(drop)?;
        }
        Ok(())
    }

    /// The nodes.
    #[must_use]
    pub fn nodes(&self) -> &[PatroniNode] {
        &self.nodes
    }

    /// The etcd it stands on, if it was started with it.
    #[must_use]
    pub fn etcd(&self) -> Option<&EtcdCluster> {
        self.etcd.as_ref()
    }

    /// One libpq URL with all nodes, user `modax`, database `modax`.
    #[must_use]
    pub fn url(&self) -> String {
        postgres::url(self.nodes.iter().map(PatroniNode::addr))
    }

    /// The REST addresses of all nodes.
    #[must_use]
    pub fn patroni_urls(&self) -> Vec<String> {
        self.nodes.iter().map(PatroniNode::rest_url).collect()
    }

    /// Which node leads, as the first node that answers has it from etcd; nothing while none does.
    ///
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn leader(&self) -> Option<usize> {
        let members = self.members().await;
        let leader = members.iter().find(|member| is_any(member, "role", &["leader", "master", "standby_leader"]))?;
        let name = leader.get("name")?.as_str()?;
        is_any(leader, "state", &["running"]).then(|| self.nodes.iter().position(|node| node.name() == name))?
    }

    /// Waits until one node leads, both others stream from it and, where commits wait for a standby, one of them is
    /// synchronous.
    ///
    /// # Errors
    /// [`TestbedError::Deadline`] with the last that was known of the members.
    ///
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn healthy(&self, deadline: Duration) -> Result<(), TestbedError> {
        let waited = wait::until(deadline, "Patroni: a leader and its replicas", || self.is_healthy()).await;
        match waited {
            Err(TestbedError::Deadline { what, after, .. }) => {
                let last = format!("; members: {}", Value::from(self.members().await));
                Err(TestbedError::Deadline { what, after, last })
            }
            other => other,
        }
    }

    async fn is_healthy(&self) -> bool {
        let Some(leader) = self.leader().await.and_then(|index| self.nodes.get(index)) else { return false };
        let synchronous =
            self.members().await.iter().filter(|member| is_any(member, "role", &["sync_standby"])).count();
        if self.is_synchronous && synchronous == 0 {
            return false;
        }
        // By the database's own account too: a member may call itself running while it still copies.
        let count = "SELECT count(*), count(*) FILTER (WHERE sync_state = 'sync') FROM pg_stat_replication WHERE state = 'streaming'";
        let streaming = self.nodes.len() - 1;
        leader
            .psql(count)
            .await
            .is_ok_and(|counts| counts == format!("{streaming}|{}", usize::from(self.is_synchronous)))
    }

    /// Hands leadership over as planned, to the synchronous standby if there is one; returns when Patroni says that
    /// it is done.
    ///
    /// # Errors
    /// [`TestbedError::Server`] with Patroni's words.
    ///
    /// # Cancel safety
    /// Not safe: it goes on.
    pub async fn switchover(&self) -> Result<(), TestbedError> {
        let refused = |message: String| TestbedError::server("Patroni: switchover", message);
        let members = self.members().await;
        let leader =
            self.leader().await.and_then(|index| self.nodes.get(index)).ok_or_else(|| refused("no leader".into()))?;
        let standby = |roles: &[&str]| members.iter().find(|member| is_any(member, "role", roles));
        let candidate =
            standby(&["sync_standby"]).or_else(|| standby(&["replica"])).and_then(|member| member.get("name"));
        let body = json!({ "leader": leader.name(), "candidate": candidate }).to_string();
        match http::request(leader.rest(), "POST", "/switchover", &body, Duration::from_secs(60)).await {
            Some((200 | 202, _)) => Ok(()),
            Some((status, words)) => Err(refused(format!("{status} {words}"))),
            None => Err(refused("no answer".into())),
        }
    }

    /// Changes Patroni's dynamic configuration, which is one for all nodes.
    ///
    /// # Errors
    /// [`TestbedError::Server`] when no node accepts it.
    ///
    /// # Cancel safety
    /// Not safe: it may or may not be changed.
    pub async fn configure(&self, change: &Value) -> Result<(), TestbedError> {
        let mut last = "no node answers".to_owned();
        for node in &self.nodes {
            match http::request(node.rest(), "PATCH", "/config", &change.to_string(), Duration::from_secs(10)).await {
                Some((200, _)) => return Ok(()),
                Some((status, words)) => last = format!("{status} {words}"),
                None => {}
            }
        }
        Err(TestbedError::server("Patroni: configuration", last))
    }

    /// The members, by the account of the first node that answers.
    async fn members(&self) -> Vec<Value> {
        // Tasks, so that the slower nodes are heard out: Patroni fills its log with a traceback for each asker who
        // went away.
        let asked = self.nodes.iter().map(|node| tokio::spawn(http::json(node.rest(), "/cluster")));
        let mut asked: FuturesUnordered<_> = asked.collect();
        while let Some(answer) = asked.next().await {
            let answer = answer.ok().flatten();
            if let Some(members) = answer.as_ref().and_then(|cluster| cluster.get("members")?.as_array()) {
                return members.clone();
            }
        }
        Vec::new()
    }
}

fn is_any(member: &Value, field: &str, values: &[&str]) -> bool {
    member.get(field).and_then(Value::as_str).is_some_and(|value| values.contains(&value))
}

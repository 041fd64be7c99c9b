//! What the drills share: a server, clients, a producer whose rows and messages can be compared, and a sink that keeps a log.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    ops::Deref,
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use modax_testbed::{Ground, PostgresOptions};
use modax_txn::{
    BoxConnection, BoxError, Confirmation, Connections, Event, Events, Message, MessageId, Outbox, OutgoingMessage,
    Relay, RelayBuilder, Schema, SinkError,
    tokio_postgres::{self, Client, NoTls},
};

/// Longer than anything takes on a machine that builds at the same time; reached only when something is wrong.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// One server for all drills that do not break it. It ends with this process: its guardian sees to that.
pub(crate) fn shared_url() -> &'static str {
    static URL: OnceLock<String> = OnceLock::new();
    URL.get_or_init(|| {
        let (url_in, url) = std::sync::mpsc::channel();
        // A thread with a runtime of its own: the runtime of the test that comes first ends with that test.
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async move {
                let ground = Ground::start().await.expect("a ground");
                let options = PostgresOptions { standbys: 0, ..PostgresOptions::default() };
                let cluster = ground.postgres(options).await.expect("a PostgreSQL server");
                url_in.send(cluster.url()).expect("a test that waits");
                std::future::pending::<()>().await;
            });
        });
        url.recv().expect("a PostgreSQL server: see the message above")
    })
}

pub(crate) async fn connect(url: &str) -> Client {
    try_connect(url).await.expect("a connection")
}

pub(crate) async fn try_connect(url: &str) -> Result<Client, tokio_postgres::Error> {
    let mut config: tokio_postgres::Config = url.parse()?;
    config.connect_timeout(Duration::from_secs(2)).application_name("drill");
    let (client, connection) = config.connect(NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// Connections to whichever node of a URL takes writes.
pub(crate) fn connections(url: &str) -> impl Connections {
    let url = format!("{url}?target_session_attrs=read-write");
    move || {
        let url = url.clone();
        async move {
            let client = try_connect(&url).await?;
            Ok::<BoxConnection, BoxError>(Box::new(Owned(client)))
        }
    }
}

struct Owned(Client);

impl Deref for Owned {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.0
    }
}

/// A schema of its own for each test, on the shared server or another one.
pub(crate) async fn schema(client: &Client, name: &str) -> Schema {
    let schema = Schema::new(name).expect("a sound name");
    schema.migrate(client).await.expect("a migration");
    let business = format!(
        "CREATE TABLE {0}.device (key text PRIMARY KEY, version bigint NOT NULL DEFAULT 0);
         CREATE TABLE {0}.ledger (key text NOT NULL, version bigint NOT NULL, message uuid NOT NULL)",
        schema.quoted()
    );
    client.batch_execute(&business).await.expect("business tables");
    schema
}

/// What the sink got, in the order in which it got it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<Receipt>>>);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Receipt {
    pub(crate) id: MessageId,
    pub(crate) key: Option<String>,
    pub(crate) text: String,
    pub(crate) epoch: u64,
    pub(crate) attempt: u32,
}

impl Log {
    pub(crate) fn write(&self, message: &OutgoingMessage) {
        self.0.lock().expect("no panic under the lock").push(Receipt {
            id: message.id,
            key: message.key.clone(),
            text: String::from_utf8_lossy(&message.payload).into_owned(),
            epoch: message.epoch,
            attempt: message.attempt,
        });
    }

    pub(crate) fn read(&self) -> Vec<Receipt> {
        self.0.lock().expect("no panic under the lock").clone()
    }

    pub(crate) fn append(&self, receipt: Receipt) {
        self.0.lock().expect("no panic under the lock").push(receipt);
    }

    pub(crate) fn texts(&self) -> Vec<String> {
        self.read().into_iter().map(|receipt| receipt.text).collect()
    }

    /// A sink that writes here and confirms.
    pub(crate) fn sink(
        &self,
    ) -> impl Fn(OutgoingMessage) -> std::future::Ready<Result<Confirmation, SinkError>> + 'static {
        let log = self.clone();
        move |message| {
            log.write(&message);
            std::future::ready(Ok(Confirmation::by("log")))
        }
    }
}

/// A relay that is quick to take over, as drills want it.
pub(crate) fn relay(schema: &Schema, url: &str, sink: impl modax_txn::Sink + 'static) -> RelayBuilder {
    Relay::builder(schema.clone(), connections(url), sink).lease(Duration::from_secs(1))
}

pub(crate) async fn event(events: &mut Events, what: &str, wanted: impl Fn(&Event) -> bool) -> Event {
    let search = async {
        loop {
            let event = events.next().await.expect("a relay that runs");
            if wanted(&event) {
                return event;
            }
        }
    };
    tokio::time::timeout(DEADLINE, search).await.unwrap_or_else(|_| panic!("no event: {what}"))
}

pub(crate) async fn eventually<Fut: Future<Output = bool>>(what: &str, mut question: impl FnMut() -> Fut) {
    let asked = async {
        while !question().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(DEADLINE, asked).await.unwrap_or_else(|_| panic!("not within {DEADLINE:?}: {what}"));
}

pub(crate) async fn pending(client: &Client, schema: &Schema) -> u64 {
    Outbox::new(schema.clone()).backlog(client).await.expect("a backlog").pending
}

/// Changes a device and announces it, in one transaction: the row of the device is locked first, then the message is written.
pub(crate) async fn produce(
    client: &Client,
    outbox: &Outbox,
    schema: &Schema,
    key: &str,
    commit: bool,
) -> Result<i64, BoxError> {
    client.batch_execute("BEGIN").await?;
    let upsert = format!(
        "INSERT INTO {0}.device AS d VALUES ($1, 1) ON CONFLICT (key) DO UPDATE SET version = d.version + 1 RETURNING version",
        schema.quoted()
    );
    let version: i64 = client.query_one(&upsert, &[&key]).await?.get(0);
    let message = Message::to("drill").key(key).payload(format!("{key} {version}"));
    let receipt = outbox.enqueue(client, message).await?;
    let note = format!("INSERT INTO {}.ledger VALUES ($1, $2, $3)", schema.quoted());
    client.execute(&note, &[&key, &version, receipt.id().as_uuid()]).await?;
    client.batch_execute(if commit { "COMMIT" } else { "ROLLBACK" }).await?;
    if commit {
        outbox.committed(&receipt);
    }
    Ok(version)
}

/// What a log is worth, against the rows that survive. Empty: nothing lost, invented, turned round, or sent by a deposed relay.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) lost: Vec<String>,
    pub(crate) phantoms: Vec<String>,
    pub(crate) reordered: Vec<String>,
    pub(crate) epoch_fell: Vec<String>,
}

pub(crate) async fn judge(client: &Client, schema: &Schema, log: &Log) -> Verdict {
    let ledger = format!("SELECT key, version FROM {}.ledger", schema.quoted());
    let rows = client.query(&ledger, &[]).await.expect("the ledger");
    let written: BTreeSet<String> =
        rows.iter().map(|row| format!("{} {}", row.get::<_, String>(0), row.get::<_, i64>(1))).collect();
    let mut verdict = Verdict::default();
    let mut seen = BTreeSet::new();
    let mut last: BTreeMap<String, (i64, u64)> = BTreeMap::new();
    for receipt in log.read() {
        if !seen.insert(receipt.text.clone()) {
            continue;
        }
        if !written.contains(&receipt.text) {
            verdict.phantoms.push(receipt.text.clone());
        }
        let (key, version) = receipt.text.split_once(' ').expect("key and version");
        let version: i64 = version.parse().expect("a version");
        let before = last.insert(key.to_owned(), (version, receipt.epoch));
        if let Some((version_before, epoch_before)) = before {
            if version < version_before {
                verdict.reordered.push(receipt.text.clone());
            }
            if receipt.epoch < epoch_before {
                verdict.epoch_fell.push(receipt.text.clone());
            }
        }
    }
    verdict.lost = written.difference(&seen).cloned().collect();
    verdict
}

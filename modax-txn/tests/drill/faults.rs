//! What survives when something is killed, frozen or taken over.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    time::Duration,
};

use modax_testbed::{Ground, PostgresOptions};
use modax_txn::{Confirmation, Event, Message, Outbox, OutgoingMessage, Schema, Stats};
use tokio::task::JoinSet;

use crate::plant::{self, DEADLINE, Log, Verdict, connect, event, eventually, judge, pending, schema, shared_url};

/// Producers that change and announce devices until they are told to stop, through whatever happens to the server. A quarter of the
/// transactions is rolled back.
struct Producers {
    stop: Arc<AtomicBool>,
    committed: Arc<AtomicU64>,
    tasks: JoinSet<()>,
}

impl Producers {
    fn start(url: &str, schema: &Schema, count: u64) -> Self {
        let (stop, committed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut tasks = JoinSet::new();
        for writer in 0..count {
            let (url, schema) = (format!("{url}?target_session_attrs=read-write"), schema.clone());
            let (stop, committed) = (Arc::clone(&stop), Arc::clone(&committed));
            tasks.spawn(async move {
                let outbox = Outbox::new(schema.clone());
                let mut turn = writer;
                let mut client = None;
                while !stop.load(Ordering::SeqCst) {
                    turn = turn.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let key = format!("device{}", (turn >> 40) % 5);
                    let commit = !(turn >> 50).is_multiple_of(4);
                    let Some(there) = &client else {
                        client = plant::try_connect(&url).await.ok();
                        tokio::task::yield_now().await;
                        continue;
                    };
                    match plant::produce(there, &outbox, &schema, &key, commit).await {
                        Ok(_) if commit => _ = committed.fetch_add(1, Ordering::SeqCst),
                        Ok(_) => {}
                        // Whether it was committed is unknown here; the ledger tells.
                        Err(_) => client = None,
                    }
                }
            });
        }
        Self { stop, committed, tasks }
    }

    /// Waits until so many more transactions have been committed.
    async fn commit(&self, more: u64) {
        let goal = self.committed.load(Ordering::SeqCst) + more;
        eventually("commits", || async { self.committed.load(Ordering::SeqCst) >= goal }).await;
    }

    async fn stop(self) {
        self.stop.store(true, Ordering::SeqCst);
        tokio::time::timeout(DEADLINE, self.tasks.join_all()).await.expect("producers that stop");
    }
}

async fn drained(url: &str, schema: &Schema) {
    let url = format!("{url}?target_session_attrs=read-write");
    eventually("everything is settled", || async {
        let Ok(client) = plant::try_connect(&url).await else { return false };
        pending(&client, schema).await == 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f57_a_relay_killed_at_any_moment_loses_nothing_and_turns_nothing_round() {
    let url = shared_url();
    let client = connect(url).await;
    let schema = schema(&client, "killed").await;
    let log = Log::default();
    let producers = Producers::start(url, &schema, 3);
    let mut epochs = 0;
    for _ in 0..4 {
        let relay = plant::relay(&schema, url, log.sink()).lease(Duration::from_millis(300)).spawn().expect("a relay");
        let mut events = relay.events();
        event(&mut events, "delivery", |e| matches!(e, Event::Delivered { .. })).await;
        producers.commit(40).await;
        epochs = relay.stats().epoch;
        // No stop: what it had in hand is dropped at whatever step it was, and the lease stays as it is.
        drop(relay);
    }
    assert_eq!(epochs, 4, "each relay took over from a dead one");
    producers.stop().await;
    let last = plant::relay(&schema, url, log.sink()).spawn().expect("a relay");
    drained(url, &schema).await;
    assert_eq!(judge(&client, &schema, &log).await, Verdict::default());
    assert!(last.stop(DEADLINE).await.clean);
}

/// A relay on a thread of its own that can be frozen whole, as SIGSTOP freezes a process: its only thread waits inside the sink.
struct Frozen {
    waits: mpsc::Receiver<()>,
    thaw: mpsc::Sender<()>,
    stats: Arc<Mutex<Stats>>,
    thread: std::thread::JoinHandle<()>,
}

fn relay_that_freezes_at(text: &'static str, url: &'static str, schema: &Schema, log: &Log) -> Frozen {
    let (frozen_in, waits) = mpsc::channel();
    let (thaw, thawed) = mpsc::channel();
    let (frozen_in, thawed) = (Mutex::new(frozen_in), Mutex::new(thawed));
    let stats = Arc::new(Mutex::new(Stats::default()));
    let (schema, log, stats_out) = (schema.clone(), log.clone(), Arc::clone(&stats));
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async move {
            let sink = move |message: OutgoingMessage| {
                if message.payload.as_ref() == text.as_bytes() && message.epoch == 1 {
                    frozen_in.lock().expect("a lock").send(()).expect("a test that waits");
                    thawed.lock().expect("a lock").recv().expect("a test that thaws");
                }
                log.write(&message);
                async { Ok(Confirmation::new()) }
            };
            let relay = plant::relay(&schema, url, sink).lease(Duration::from_millis(300)).spawn().expect("a relay");
            let mut events = relay.events();
            event(&mut events, "the lease is gone", |e| matches!(e, Event::LeaseLost { epoch: 1 })).await;
            *stats_out.lock().expect("a lock") = relay.stats();
        });
    });
    Frozen { waits, thaw, stats, thread }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f58_a_frozen_relay_that_comes_back_moves_nothing_and_publishes_nothing_new() {
    let url = shared_url();
    let client = connect(url).await;
    let schema = schema(&client, "frozen").await;
    let outbox = Outbox::new(schema.clone());
    let messages = (1..=40).map(|n| Message::to("t").key("k").payload(format!("k {n}"))).collect();
    let receipts = outbox.enqueue_all(&client, messages).await.expect("enqueued");
    for (n, receipt) in (1_i64..).zip(&receipts) {
        let note = format!("INSERT INTO {}.ledger VALUES ('k', $1, $2)", schema.quoted());
        client.execute(&note, &[&n, receipt.id().as_uuid()]).await.expect("noted");
    }
    let (old_log, new_log) = (Log::default(), Log::default());
    let frozen = relay_that_freezes_at("k 10", url, &schema, &old_log);
    let (frozen, waited) = tokio::task::spawn_blocking(move || {
        let waited = frozen.waits.recv_timeout(DEADLINE);
        (Frozen { waits: mpsc::channel().1, ..frozen }, waited)
    })
    .await
    .expect("a thread");
    waited.expect("the relay froze");

    // Another one takes over and finishes everything while the first stands still.
    let relay = plant::relay(&schema, url, new_log.sink()).spawn().expect("a relay");
    drained(url, &schema).await;
    let published_before_the_thaw = old_log.read().len();
    assert_eq!(published_before_the_thaw, 9);
    let stats = Arc::clone(&frozen.stats);
    frozen.thaw.send(()).expect("a relay that waits");
    tokio::task::spawn_blocking(move || frozen.thread.join()).await.expect("a thread").expect("no panic");

    // One message of the key was in its hand: that one, and no other, comes out again.
    let old = old_log.texts();
    assert_eq!(old.last().map(String::as_str), Some("k 10"));
    assert_eq!(old.len(), published_before_the_thaw + 1);
    assert_eq!(stats.lock().expect("a lock").leases_lost, 1);
    // What it had recorded stands under its term, everything else under the new one; its late outcome changed nothing.
    let sql = format!(
        "SELECT count(*) FILTER (WHERE settled_epoch = 1), count(*) FILTER (WHERE settled_epoch = 2) FROM {}.outbox",
        schema.quoted()
    );
    let row = client.query_one(&sql, &[]).await.expect("counts");
    let (first, second): (i64, i64) = (row.get(0), row.get(1));
    assert!(first <= 9 && first + second == 40, "{first} and {second}");
    assert!(relay.stop(DEADLINE).await.clean);

    // Together, in the order of the receipts: the first one's nine, then the second one's.
    let both = Log::default();
    for receipt in old_log.read().iter().take(published_before_the_thaw).chain(&new_log.read()) {
        both.append(receipt.clone());
    }
    assert_eq!(judge(&client, &schema, &both).await, Verdict::default());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f57_a_server_that_crashes_while_it_is_drained_costs_nothing() {
    let ground = Ground::start().await.expect("a ground");
    let options = PostgresOptions { standbys: 0, ..PostgresOptions::default() };
    let cluster = ground.postgres(options).await.expect("a server");
    let url = cluster.url();
    let client = connect(&url).await;
    let schema = schema(&client, "crash").await;
    let log = Log::default();
    let relays: Vec<_> = (0..2).map(|_| plant::relay(&schema, &url, log.sink()).spawn().expect("a relay")).collect();
    let producers = Producers::start(&url, &schema, 3);
    let failures = || relays.iter().map(|relay| relay.stats().database_failures).sum::<u64>();
    for _ in 0..3 {
        producers.commit(60).await;
        // One that has no connection yet would not notice.
        let published = log.read().len();
        eventually("one of them publishes", || async { log.read().len() > published }).await;
        let before = failures();
        let node = &cluster.nodes()[0];
        node.kill();
        node.restart().await.expect("a server that recovers");
        eventually("a relay noticed", || async { failures() > before }).await;
    }
    producers.commit(60).await;
    producers.stop().await;
    drained(&url, &schema).await;
    let client = connect(&url).await;
    assert_eq!(judge(&client, &schema, &log).await, Verdict::default());
    for relay in relays {
        assert!(relay.stop(DEADLINE).await.clean);
    }
    ground.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f62_the_relay_follows_a_promotion_and_with_a_synchronous_standby_nothing_is_lost_or_invented() {
    let ground = Ground::start().await.expect("a ground");
    let options =
        PostgresOptions { standbys: 1, synchronous: Some("FIRST 1 (s1)".to_owned()), ..PostgresOptions::default() };
    let cluster = ground.postgres(options).await.expect("two servers");
    let url = cluster.url();
    let client = connect(&url).await;
    let schema = schema(&client, "promoted").await;
    let log = Log::default();
    let relay = plant::relay(&schema, &url, log.sink()).spawn().expect("a relay");
    let mut events = relay.events();
    let producers = Producers::start(&url, &schema, 3);
    producers.commit(100).await;
    cluster.nodes()[0].kill();
    event(&mut events, "the database is away", |e| matches!(e, Event::DatabaseFailed { .. })).await;
    cluster.nodes()[1].promote().await.expect("a promotion");
    producers.commit(100).await;
    producers.stop().await;
    drained(&url, &schema).await;
    let client = connect(&cluster.nodes()[1].url()).await;
    assert_eq!(judge(&client, &schema, &log).await, Verdict::default());
    assert!(relay.stop(DEADLINE).await.clean);
    ground.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f58_a_database_that_hangs_suspends_the_relay_and_nothing_goes_out_until_it_is_sure_again() {
    let ground = Ground::start().await.expect("a ground");
    let options = PostgresOptions { standbys: 0, ..PostgresOptions::default() };
    let cluster = ground.postgres(options).await.expect("a server");
    let url = cluster.url();
    let client = connect(&url).await;
    let schema = schema(&client, "hangs").await;
    let log = Log::default();
    let relay =
        plant::relay(&schema, &url, log.sink()).database_timeout(Duration::from_millis(500)).spawn().expect("a relay");
    let producers = Producers::start(&url, &schema, 3);
    producers.commit(50).await;
    // A claim whose answer was late is made again, for another term: the one that delivers stays.
    eventually("it delivers", || async { relay.stats().delivered > 0 }).await;
    let term = relay.stats().epoch;

    // Frozen whole: connections stay open and nobody answers. Only a deadline can tell.
    cluster.nodes()[0].stop();
    // From here on: a busy machine may have had the server late, and the lease uncertain, before.
    let mut events = relay.events();
    let hung = |e: &Event| matches!(e, Event::DatabaseFailed { reason } if reason.contains("no answer within"));
    event(&mut events, "the statement was given up", hung).await;
    // Told by another part of the relay.
    eventually("the lease is uncertain", || async { !relay.stats().is_owner }).await;
    eventually("what was in hand is answered", || async { relay.stats().inflight == 0 }).await;
    let published = log.read().len();
    let mut events = relay.events();
    event(&mut events, "another try", |e| matches!(e, Event::DatabaseFailed { .. })).await;
    assert_eq!(log.read().len(), published, "nothing goes out while the lease is uncertain");

    cluster.nodes()[0].cont();
    event(&mut events, "sure again", |e| matches!(e, Event::Resumed { epoch } if *epoch == term)).await;
    producers.commit(50).await;
    producers.stop().await;
    drained(&url, &schema).await;
    assert_eq!(judge(&client, &schema, &log).await, Verdict::default());
    assert!(relay.stop(DEADLINE).await.clean);
    ground.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f62_after_an_asynchronous_failover_every_message_that_survives_arrives_though_numbers_repeat() {
    let ground = Ground::start().await.expect("a ground");
    let options = PostgresOptions { standbys: 1, ..PostgresOptions::default() };
    let cluster = ground.postgres(options).await.expect("two servers");
    let (old, new) = (&cluster.nodes()[0], &cluster.nodes()[1]);
    let url = cluster.url();
    let client = connect(&url).await;
    let schema = schema(&client, "repeats").await;
    let outbox = Outbox::new(schema.clone());
    let log = Log::default();
    let relay = plant::relay(&schema, &url, log.sink()).spawn().expect("a relay");
    for _ in 0..5 {
        plant::produce(&client, &outbox, &schema, "device", true).await.expect("committed");
    }
    let rows = format!("SELECT count(*) FROM {}.ledger", schema.quoted());
    eventually("the standby has them", || async { new.psql(&rows).await.is_ok_and(|count| count == "5") }).await;

    // The standby is shut out while more is written and published; then the primary is gone for good.
    let loaded = old.psql("SELECT pg_conf_load_time()").await.expect("a time");
    let no_replication = "local all all trust\nhost all all 127.0.0.1/32 trust\n";
    std::fs::write(old.data().join("pg_hba.conf"), no_replication).expect("written");
    old.psql("SELECT pg_reload_conf()").await.expect("a reload");
    eventually("the rule is in force", || async {
        old.psql("SELECT pg_conf_load_time()").await.is_ok_and(|time| time != loaded)
    })
    .await;
    old.psql("SELECT pg_terminate_backend(pid) FROM pg_stat_replication").await.expect("ended");
    eventually("nobody follows", || async {
        old.psql("SELECT count(*) FROM pg_stat_replication").await.is_ok_and(|count| count == "0")
    })
    .await;
    for _ in 0..40 {
        plant::produce(&client, &outbox, &schema, "device", true).await.expect("committed");
    }
    eventually("published", || async { log.read().len() >= 45 }).await;
    let highest = format!("SELECT max(seq) FROM {}.outbox", schema.quoted());
    let before: i64 = client.query_one(&highest, &[]).await.expect("a number").get(0);
    old.kill();
    new.promote().await.expect("a promotion");

    let client = connect(&new.url()).await;
    for _ in 0..20 {
        plant::produce(&client, &outbox, &schema, "device", true).await.expect("committed");
    }
    drained(&url, &schema).await;
    let sql = format!(
        "SELECT min(seq) FROM (SELECT seq FROM {}.outbox ORDER BY enqueued_at DESC LIMIT 20) new",
        schema.quoted()
    );
    let first_new: i64 = client.query_one(&sql, &[]).await.expect("a number").get(0);
    assert!(first_new <= before, "numbers repeat: {first_new} after {before}");

    let sql = format!("SELECT message FROM {}.ledger", schema.quoted());
    let survive: Vec<uuid::Uuid> =
        client.query(&sql, &[]).await.expect("the ledger").iter().map(|row| row.get(0)).collect();
    assert!(survive.len() >= 25);
    let received: std::collections::BTreeSet<_> = log.read().iter().map(|r| *r.id.as_uuid()).collect();
    let lost: Vec<_> = survive.iter().filter(|id| !received.contains(id)).collect();
    assert!(lost.is_empty(), "{lost:?}");
    // What PostgreSQL lost had been published: that cannot be helped here, and is why the standby should be synchronous.
    assert!(received.len() > survive.len(), "the failover lost nothing: the fault did not fire");
    assert!(relay.stop(DEADLINE).await.clean);
    ground.stop().await;
}

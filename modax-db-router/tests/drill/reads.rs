//! Reads that must not be too old.

use std::time::Duration;

use modax_db_router::policy::selection::Selection;
use modax_db_router::{ReadError, ReadPreference, ReadRequest, Router};
use modax_testbed::servers::postgres::PostgresOptions;
use modax_testbed::{Ground, PostgresNode, wait};

use crate::ledger::{LONG, prepare};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f40_a_replica_whose_replay_is_paused_serves_no_read_with_a_token_or_a_bound() {
    let ground = Ground::start().await.expect("ground");
    let cluster = ground.postgres(PostgresOptions::default()).await.expect("servers");
    let builder = Router::builder(&cluster.url()).expect("url").selection(Selection::RoundRobin).probe_deadline(LONG);
    let router = builder.build().expect("router");
    prepare(&router).await;
    let paused = &cluster.nodes()[1];
    // Replay that stopped before the router's first look at the primary would have no age that could be proved, ever.
    wait::until(LONG, "every replica's age", || async {
        router.topology().nodes().iter().all(|node| node.lag.is_some())
    })
    .await
    .expect("ages");
    // Two take turns, whoever else could answer.
    let first = || router.explain(&ReadRequest::new(ReadPreference::PreferReplica)).candidates().next().cloned();
    let order = [first(), first(), first()];
    assert!(order[0] != order[1] && order[0] == order[2], "{order:?}");
    // The testbed's psql is the server's superuser; the router's role needs no such right.
    paused.psql("SELECT pg_wal_replay_pause()").await.expect("pause");
    wait::until(LONG, "replay to stop", || async {
        paused.psql("SELECT pg_get_wal_replay_pause_state()").await.is_ok_and(|state| state == "paused")
    })
    .await
    .expect("the fault fires");
    let paused = paused.addr().to_string();

    for number in 0..100_i64 {
        let written = router.execute("INSERT INTO ledger VALUES ($1)", &[&number]).await.expect("written");
        let token = written.token.expect("a token").to_string().parse().expect("it travels as text");
        for preference in [ReadPreference::PreferReplica, ReadPreference::Replica] {
            let read = router.read(preference).at_least(&token);
            let sql = "SELECT count(*) FROM ledger WHERE number = $1";
            let found = read.query(sql, &[&number]).await.expect("read");
            assert_eq!(found.rows[0].get::<_, i64>(0), 1, "the write is visible on {}", found.node);
            assert_ne!(found.node.to_string(), paused);
        }
    }
    // A replica that has caught up proves it in one flight; nobody waits for the next probe.
    let written = router.execute("SELECT pg_current_xact_id()", &[]).await.expect("written");
    let token = written.token.expect("a token");
    let caught_up = format!("SELECT pg_last_wal_replay_lsn() >= '{}'", token.lsn());
    wait::until(LONG, "the other replica to have the write", || async {
        cluster.nodes()[2].psql(&caught_up).await.is_ok_and(|yes| yes == "t")
    })
    .await
    .expect("caught up");
    let found = router.read(ReadPreference::PreferReplica).at_least(&token).query("SELECT 1", &[]).await.expect("read");
    assert_eq!(found.node.to_string(), cluster.nodes()[2].addr().to_string());
    // The bound leaves the paused one out as well, once it is known to be too old: an age that is unknown for a moment
    // says nothing of the next, and until it has passed the bound it may well answer.
    wait::until(LONG, "the paused replica to grow old", || async {
        let topology = router.topology();
        let old = |node: &modax_db_router::Node| node.lag.is_some_and(|lag| lag > Duration::from_millis(1500));
        topology.nodes().iter().any(|node| node.id.to_string() == paused && old(node))
    })
    .await
    .unwrap_or_else(|error| panic!("{error}: {:#?}", router.topology()));
    for _ in 0..50 {
        let read = router.read(ReadPreference::Replica).max_staleness(Duration::from_millis(1500));
        let found = read.query("SELECT count(*) FROM ledger", &[]).await.expect("read");
        assert_ne!(found.node.to_string(), paused, "{:?}", found.staleness);
        assert_eq!(found.rows[0].get::<_, i64>(0), 100);
        assert!(found.staleness.is_some_and(|age| age <= LONG));
    }
    router.close(LONG).await;
    ground.stop().await;
}

/// As after an older copy of the files was put in the primary's place: it has the same identifiers and fewer writes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_beyond_all_that_the_primary_has_is_lost_and_one_just_written_is_not() {
    let ground = Ground::start().await.expect("ground");
    let cluster = ground.postgres(PostgresOptions { standbys: 0, ..PostgresOptions::default() }).await.expect("server");
    // Its picture of the primary is older than each write.
    let router = Router::builder(&cluster.url()).expect("url").probe_deadline(LONG).build().expect("router");
    prepare(&router).await;
    for number in 0..20_i64 {
        let written = router.execute("INSERT INTO ledger VALUES ($1)", &[&number]).await.expect("written");
        let token = written.token.expect("a token");
        let text = token.to_string();
        let (history, position) = text.rsplit_once('-').expect("a position");
        let position = u64::from_str_radix(position, 16).expect("hexadecimal") + (1 << 40);
        let ahead = format!("{history}-{position:x}").parse().expect("a token");
        for preference in [ReadPreference::Primary, ReadPreference::PreferReplica] {
            let lost = router.read(preference).at_least(&ahead).query("SELECT 1", &[]).await;
            assert!(matches!(lost, Err(ReadError::TokenLost)), "{lost:?}");
            let sql = "SELECT count(*) FROM ledger WHERE number = $1";
            let found = router.read(preference).at_least(&token).query(sql, &[&number]).await.expect("read");
            assert_eq!(found.rows[0].get::<_, i64>(0), 1);
        }
    }
    router.close(LONG).await;
    ground.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f37_without_a_primary_reads_go_on_and_writes_end_with_a_typed_error() {
    let ground = Ground::start().await.expect("ground");
    let cluster = ground.postgres(PostgresOptions::default()).await.expect("servers");
    let router = Router::builder(&cluster.url()).expect("url").probe_deadline(LONG).build().expect("router");
    prepare(&router).await;
    cluster.nodes()[0].kill();
    wait::until(LONG, "the loss to be seen", || async { router.topology().primary().is_none() }).await.expect("lost");

    for _ in 0..20 {
        let found = router.read(ReadPreference::PreferReplica).query("SELECT 1", &[]).await.expect("reads go on");
        assert_ne!(found.node.to_string(), cluster.nodes()[0].addr().to_string());
    }
    let refused = router
        .writer()
        .deadline(Duration::from_millis(300))
        .run(async |tx: modax_db_router::Tx| tx.execute("INSERT INTO ledger VALUES (1)", &[]).await);
    let error = refused.await.expect_err("no primary");
    assert!(matches!(error, modax_db_router::WriteError::NoPrimary { .. }), "{error:?}");
    assert!(error.is_transient() && !error.outcome_unknown());
    let bounded = router
        .read(ReadPreference::Replica)
        .max_staleness(Duration::from_millis(1))
        .deadline(Duration::from_millis(300))
        .query("SELECT 1", &[])
        .await;
    assert!(matches!(bounded, Err(ReadError::NoNode { .. })), "{bounded:?}");
    router.close(LONG).await;
    ground.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f40_a_replica_that_grew_old_while_a_read_waited_for_its_connection_does_not_answer_it() {
    let ground = Ground::start().await.expect("ground");
    let options = PostgresOptions { standbys: 1, ..PostgresOptions::default() };
    let cluster = ground.postgres(options).await.expect("servers");
    let builder = Router::builder(&cluster.url()).expect("url").pool_size(1).probe_deadline(LONG);
    let router = builder.build().expect("router");
    prepare(&router).await;
    let replica = &cluster.nodes()[1];
    let bound = Duration::from_secs(3);
    // On a busy machine the read may be planned when the replica is too old already, and then waits elsewhere.
    let (mut turned_away, mut tries) = (false, 0);
    while !turned_away && tries < 5 {
        turned_away = grows_old_under_a_waiting_read(&router, replica, bound).await;
        tries += 1;
    }
    assert!(turned_away, "no read waited for its connection past its bound");
    router.close(LONG).await;
    ground.stop().await;
}

/// A read waits for the only connection while its replica grows older than the bound; whether it was turned away.
async fn grows_old_under_a_waiting_read(router: &Router, replica: &PostgresNode, bound: Duration) -> bool {
    // The only connection is taken by a read that takes longer than the bound.
    let long = tokio::spawn({
        let router = router.clone();
        async move { router.read(ReadPreference::Replica).deadline(LONG).query("SELECT pg_sleep(6)", &[]).await }
    });
    wait::until(LONG, "the connection to be taken", || async {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
        replica.psql(sql).await.is_ok_and(|count| count == "1")
    })
    .await
    .expect("taken");
    replica.psql("SELECT pg_wal_replay_pause()").await.expect("pause");
    wait::until(LONG, "replay to stop", || async {
        replica.psql("SELECT pg_get_wal_replay_pause_state()").await.is_ok_and(|state| state == "paused")
    })
    .await
    .expect("the fault fires");
    router.execute("INSERT INTO ledger VALUES (1)", &[]).await.expect("written");
    let retries = router.stats().read_retries;
    // Planned while the replica is young enough, and served when it is not.
    let resume = async {
        long.await.expect("task").expect("the long read");
        let away = || async { router.stats().read_retries > retries };
        let turned_away = wait::until(Duration::from_secs(10), "the waiting read to be turned away", away).await;
        replica.psql("SELECT pg_wal_replay_resume()").await.expect("resume");
        turned_away.is_ok()
    };
    let reading = router.read(ReadPreference::Replica).max_staleness(bound).deadline(LONG);
    let (found, turned_away) = tokio::join!(reading.query("SELECT number FROM ledger", &[]), resume);
    let found = found.expect("read");
    assert!(!turned_away || !found.rows.is_empty(), "what was written longer ago than the bound is there");
    assert!(found.staleness.is_some_and(|age| age <= bound));
    turned_away
}

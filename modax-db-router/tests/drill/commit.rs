//! The answer to COMMIT does not come.

use modax_db_router::{Durability, Event, Events, Router, Tx, WritesClosed};
use modax_testbed::proxy::{Direction, Fault, Proxy};
use modax_testbed::servers::postgres::PostgresOptions;
use modax_testbed::{Ground, PostgresNode, wait};

use crate::ledger::{LONG, Ledger, Told, Writers, compare, event, prepare};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f38_a_cut_around_commit_is_settled_and_never_doubles_a_row() {
    let ground = Ground::start().await.expect("ground");
    let options = PostgresOptions { standbys: 0, ..PostgresOptions::default() };
    let cluster = ground.postgres(options).await.expect("server");
    let proxy = Proxy::start(cluster.nodes()[0].addr()).await.expect("proxy");
    let url = format!("postgresql://modax@{}/modax", proxy.addr());
    let router = Router::builder(&url).expect("url").probe_deadline(LONG).build().expect("router");
    prepare(&router).await;

    let mut ledger = Ledger::new();
    // The whole message arrived and its answer does not: committed. Its last byte is missing: not committed.
    for (number, cut) in [(1_i64, b"COMMIT\0".to_vec()), (2, b"COMMIT".to_vec()), (3, b"COMMIT\0".to_vec())] {
        let before = router.stats();
        proxy.set(Direction::ToServer, Fault::CutAfterMatch(cut.clone()));
        let written = router.execute("INSERT INTO ledger VALUES ($1)", &[&number]).await.expect("settled");
        assert_eq!(proxy.fired().cut, u64::try_from(number).expect("small"), "the fault fired");
        proxy.clear();
        let arrived = cut.ends_with(b"\0");
        assert_eq!(written.attempts, if arrived { 1 } else { 2 }, "runs again only if it did not happen");
        assert_eq!(router.stats().commits_settled, before.commits_settled + 1);
        if arrived {
            assert_eq!(written.durability, Durability::Unknown, "nobody said anything of copies");
            assert!(written.token.is_some(), "the settled commit has a token all the same");
        }
        ledger.insert(number, Told::Committed);
    }
    let (committed, unknown) = compare(&cluster.nodes()[0], &ledger).await;
    assert_eq!((committed, unknown), (3, 0));
    router.close(LONG).await;
    ground.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f38_commits_under_way_in_a_crash_restart_in_place_are_settled() {
    // The same timeline, another life: numbers of lost transactions are given away again.
    settled_through(async |node, events| {
        node.kill();
        event(events, "loss of the primary", |event| matches!(event, Event::PrimaryLost { .. })).await;
        node.restart().await.expect("restart");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f38_commits_under_way_in_the_crash_of_one_backend_are_settled() {
    // The server recovers in place and keeps its start.
    settled_through(async |node, _| {
        let (start, floor) = ("SELECT pg_postmaster_start_time()", "SELECT pg_last_wal_replay_lsn()");
        let started = node.psql(start).await.expect("start");
        let before = node.psql(floor).await.expect("floor");
        // The one that was found may just have ended.
        wait::until(LONG, "a backend to kill", || async { node.kill_backend("modax").await.is_ok() })
            .await
            .expect("killed");
        let recovered = || async { node.psql(floor).await.is_ok_and(|floor| floor != before) };
        wait::until(LONG, "the recovery", recovered).await.expect("the fault fired");
        assert_eq!(node.psql(start).await.expect("start"), started);
    })
    .await;
}

/// Writes through three crashes of the only server, and compares what was told with what is there.
async fn settled_through(crash: impl AsyncFn(&PostgresNode, &mut Events)) {
    let ground = Ground::start().await.expect("ground");
    let options = PostgresOptions { standbys: 0, ..PostgresOptions::default() };
    let cluster = ground.postgres(options).await.expect("server");
    // A probe that is late on a busy machine would look like the loss that is waited for.
    let router = Router::builder(&cluster.url()).expect("url").probe_deadline(LONG).build().expect("router");
    let mut events = router.events();
    prepare(&router).await;
    let writers = Writers::start(&router, 8);
    for _ in 0..3 {
        writers.progress(100).await.expect("writes before");
        crash(&cluster.nodes()[0], &mut events).await;
        event(&mut events, "the next life", |event| matches!(event, Event::FailedOver { .. })).await;
    }
    writers.progress(100).await.expect("writes after");
    let ledger = writers.stop().await;
    let (committed, unknown) = compare(&cluster.nodes()[0], &ledger).await;
    assert!(committed >= 400);
    assert_eq!(unknown, 0, "every floor was seen, so every commit is settled");
    router.close(LONG).await;
    ground.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f38_a_cut_commit_is_settled_while_new_writes_are_held() {
    let ground = Ground::start().await.expect("ground");
    let options = PostgresOptions { standbys: 0, ..PostgresOptions::default() };
    let cluster = ground.postgres(options).await.expect("server");
    let proxy = Proxy::start(cluster.nodes()[0].addr()).await.expect("proxy");
    let url = format!("postgresql://modax@{}/modax", proxy.addr());
    let builder = Router::builder(&url).expect("url").hold_limit(1).probe_deadline(LONG);
    let router = builder.build().expect("router");
    prepare(&router).await;
    let work = async |tx: Tx| {
        let written = tx.execute("INSERT INTO ledger VALUES (1)", &[]).await?;
        router.pause_writes().await;
        wait::until(LONG, "writes to be held", || async {
            router.topology().writes_closed() == Some(WritesClosed::Paused)
        })
        .await
        .expect("paused");
        // The only place of those who wait is taken.
        tokio::spawn({
            let router = router.clone();
            async move { router.primary().await.is_ok() }
        });
        wait::until(LONG, "the hold to be full", || async { router.stats().held == 1 }).await.expect("full");
        proxy.set(Direction::ToServer, Fault::CutAfterMatch(b"COMMIT\0".to_vec()));
        Ok(written)
    };
    let written = router.write(work).await.expect("settled");
    assert_eq!((proxy.fired().cut, written.attempts), (1, 1), "the fault fired, and it did not run again");
    assert_eq!(router.topology().writes_closed(), Some(WritesClosed::Paused));
    assert_eq!(router.stats().commits_settled, 1);
    router.close(LONG).await;
    ground.stop().await;
}

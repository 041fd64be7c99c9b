//! What a write promises while nothing is broken but the caller.

use std::time::Duration;

use modax_db_router::policy::retry::BROKEN_ATTEMPTS;
use modax_db_router::tokio_postgres::error::SqlState;
use modax_db_router::{Durability, ReadError, ReadPreference, Router, Tx, WriteError, WritesClosed, tokio_postgres};
use modax_testbed::servers::postgres::PostgresOptions;
use modax_testbed::{Ground, wait};

use crate::ledger::{LONG, prepare};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f43_an_abandoned_transaction_never_reaches_the_next_user() {
    let ground = Ground::start().await.expect("ground");
    let options = PostgresOptions { standbys: 0, ..PostgresOptions::default() };
    let cluster = ground.postgres(options).await.expect("server");
    let builder = Router::builder(&cluster.url()).expect("url").pool_size(1).probe_deadline(LONG);
    let router = builder.build().expect("router");
    prepare(&router).await;

    // Dropped in the middle of a statement, of a transaction, and after the statement.
    for wait in [0, 1, 5, 20, 60] {
        let work = async |tx: Tx| {
            tx.execute("INSERT INTO ledger VALUES (-1)", &[]).await?;
            tx.execute("SELECT pg_sleep(0.05)", &[]).await?;
            std::future::pending::<Result<(), tokio_postgres::Error>>().await
        };
        let abandoned = tokio::time::timeout(Duration::from_millis(wait), router.write(work)).await;
        assert!(abandoned.is_err(), "the fault fired");
        let written = router.execute("INSERT INTO ledger VALUES (1)", &[]).await.expect("a clean connection");
        assert_eq!(written.value, 1);
    }
    // Given back by hand in the middle of a transaction and with settings.
    {
        let connection = router.primary().await.expect("connection");
        connection
            .batch_execute("BEGIN; INSERT INTO ledger VALUES (-1); SET search_path TO nowhere")
            .await
            .expect("left");
    }
    router.execute("INSERT INTO ledger VALUES (1)", &[]).await.expect("a clean connection");
    let found = router.read(ReadPreference::Primary).query("SELECT number FROM ledger", &[]).await.expect("read");
    assert_eq!(found.rows.len(), 6);
    assert!(found.rows.iter().all(|row| row.get::<_, i64>(0) == 1), "nothing abandoned was committed");
    router.close(LONG).await;
    ground.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_failed_inside_is_never_called_committed() {
    let ground = Ground::start().await.expect("ground");
    let options = PostgresOptions { standbys: 0, ..PostgresOptions::default() };
    let cluster = ground.postgres(options).await.expect("server");
    let router = Router::builder(&cluster.url()).expect("url").probe_deadline(LONG).build().expect("router");
    prepare(&router).await;

    // PostgreSQL answers COMMIT of a failed transaction with ROLLBACK, which is no error to the driver.
    let swallowed = router
        .write(async |tx: Tx| {
            tx.execute("INSERT INTO ledger VALUES (1)", &[]).await?;
            let _ = tx.execute("SELECT 1/0", &[]).await;
            Ok(())
        })
        .await;
    assert!(matches!(swallowed, Err(WriteError::Statement(_))), "{swallowed:?}");
    let kept = std::sync::Mutex::new(None);
    let escaped = router
        .write(async |tx: Tx| {
            tx.execute("INSERT INTO ledger VALUES (1)", &[]).await?;
            *kept.lock().expect("lock") = Some(tx.clone());
            Ok(())
        })
        .await;
    assert!(matches!(escaped, Err(WriteError::TxKept)), "{escaped:?}");
    is_cut(&kept).await;
    // The same if the work does not end in time, and if nobody waits for it any more.
    for deadline in [Duration::from_secs(10), LONG] {
        let write = router.writer().deadline(deadline).run(async |tx: Tx| {
            tx.execute("INSERT INTO ledger VALUES (1)", &[]).await?;
            *kept.lock().expect("lock") = Some(tx.clone());
            std::future::pending::<Result<(), tokio_postgres::Error>>().await
        });
        let escaped = async || {
            let is_kept = || async { kept.lock().expect("lock").is_some() };
            wait::until(LONG, "the clone to escape", is_kept).await.expect("escaped");
        };
        if deadline == LONG {
            tokio::select! {
                ended = write => panic!("{ended:?}"),
                () = escaped() => {}
            }
        } else {
            let ended = write.await;
            assert!(matches!(ended, Err(WriteError::NotCommitted { .. })), "{ended:?}");
        }
        is_cut(&kept).await;
    }
    // A conflict runs the work again; anything else does not.
    let written = router
        .write(|tx: Tx| async move {
            if tx.attempt() < 3 {
                tx.batch_execute("DO $$ BEGIN RAISE EXCEPTION SQLSTATE '40001'; END $$").await?;
            }
            tx.execute("INSERT INTO ledger VALUES (2)", &[]).await
        })
        .await
        .expect("the third attempt");
    assert_eq!(written.attempts, 3);
    assert_eq!(written.durability, Durability::Local);
    let refused = router.execute("INSERT INTO ledger VALUES (1 / 0)", &[]).await.expect_err("refused");
    assert!(!refused.is_transient() && !refused.outcome_unknown(), "{refused:?}");
    // A read may not write.
    let wrote = router.read(ReadPreference::Primary).query("INSERT INTO ledger VALUES (1) RETURNING 1", &[]).await;
    assert!(wrote.is_err());
    let found = router.read(ReadPreference::Primary).query("SELECT number FROM ledger", &[]).await.expect("read");
    assert_eq!(found.rows.iter().map(|row| row.get::<_, i64>(0)).collect::<Vec<_>>(), [2]);
    // A write under way when the router is closed is finished; a new one is refused.
    let (began, begins) = tokio::sync::oneshot::channel();
    let mut began = Some(began);
    let last = tokio::spawn({
        let router = router.clone();
        async move {
            let work = |tx: Tx| {
                let _ = began.take().map(|began| began.send(()));
                async move { tx.execute("INSERT INTO ledger SELECT 3 FROM pg_sleep(0.3)", &[]).await }
            };
            router.write(work).await
        }
    });
    begins.await.expect("it began");
    // Held for a switchover: what is under way is committed, what is new waits.
    router.pause_writes().await;
    wait::until(LONG, "writes to be held", || async {
        router.topology().writes_closed() == Some(WritesClosed::Paused)
    })
    .await
    .expect("paused");
    router.close(LONG).await;
    assert_eq!(last.await.expect("task").expect("finished").attempts, 1);
    assert!(matches!(router.execute("SELECT 1", &[]).await, Err(WriteError::Closed)));
    ground.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_that_ends_its_own_connection_is_given_up_and_one_that_cannot_be_sent_at_once() {
    let ground = Ground::start().await.expect("ground");
    let options = PostgresOptions { standbys: 0, ..PostgresOptions::default() };
    let cluster = ground.postgres(options).await.expect("server");
    // No deadline that could be what ends it.
    let deadline = Duration::from_secs(600);
    let builder = Router::builder(&cluster.url()).expect("url").acquire_deadline(deadline).read_deadline(deadline);
    let router = builder.probe_deadline(LONG).build().expect("router");
    prepare(&router).await;
    let deadly = "SELECT pg_terminate_backend(pg_backend_pid())";

    let Err(WriteError::NotCommitted { attempts, source: Some(source) }) = router.execute(deadly, &[]).await else {
        panic!("it must not be committed");
    };
    assert_eq!((attempts, source.code().map(SqlState::code)), (BROKEN_ATTEMPTS, Some("57P01")));
    let read = router.read(ReadPreference::Primary).query(deadly, &[]).await;
    let Err(ReadError::NoAnswer { source: Some(source), .. }) = read else { panic!("no rows can come: {read:?}") };
    assert_eq!(source.code().map(SqlState::code), Some("57P01"));

    let retries = |router: &Router| (router.stats().write_retries, router.stats().read_retries);
    let before = retries(&router);
    let nul = "INSERT INTO ledger VALUES (1) -- \0";
    let written = router.execute(nul, &[]).await.expect_err("it cannot be sent");
    assert!(matches!(written, WriteError::Statement(_)) && !written.is_transient(), "{written:?}");
    assert!(written.to_string().contains("null"), "{written}");
    let read = router.read(ReadPreference::Primary).query("SELECT 1 -- \0", &[]).await;
    assert!(matches!(read, Err(ReadError::Statement(_))), "{read:?}");
    assert_eq!(retries(&router), before);

    router.execute("INSERT INTO ledger VALUES (2)", &[]).await.expect("the router serves on");
    let found = router.read(ReadPreference::Primary).query("SELECT number FROM ledger", &[]).await.expect("read");
    assert_eq!(found.rows.iter().map(|row| row.get::<_, i64>(0)).collect::<Vec<_>>(), [2]);
    router.close(LONG).await;
    ground.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f39_a_commit_is_called_synchronous_only_with_evidence() {
    let ground = Ground::start().await.expect("ground");
    let options = PostgresOptions { standbys: 1, synchronous: Some("s1".to_owned()), ..PostgresOptions::default() };
    let cluster = ground.postgres(options).await.expect("servers");
    let router = Router::builder(&cluster.url()).expect("url").probe_deadline(LONG).build().expect("router");
    prepare(&router).await;
    let insert = "INSERT INTO ledger VALUES (1)";
    assert_eq!(router.execute(insert, &[]).await.expect("written").durability, Durability::Synchronous);
    let local = router
        .write(async |tx: Tx| {
            tx.batch_execute("SET LOCAL synchronous_commit TO local").await?;
            tx.execute(insert, &[]).await
        })
        .await
        .expect("written");
    assert_eq!(local.durability, Durability::Local);

    // The standby is gone: COMMIT waits for ever, `statement_timeout` does not end it. The router's deadline does,
    // and nothing it says then is a guess.
    cluster.nodes()[1].kill();
    let url = cluster.url();
    let builder = Router::builder(&url).expect("url").commit_deadline(Duration::from_millis(500));
    let hasty = builder.probe_deadline(LONG).build().expect("router");
    let waiting =
        hasty.writer().deadline(Duration::from_secs(10)).run(async |tx: Tx| tx.execute(insert, &[]).await).await;
    let error = waiting.expect_err("no standby acknowledges");
    assert!(error.outcome_unknown(), "{error:?}");
    // Somebody ends the wait: the server warns, and the commit is local.
    let freed = {
        let work = async |tx: Tx| tx.execute(insert, &[]).await;
        let writer = router.writer();
        let write = writer.run(work);
        let cancel = async {
            let sql = "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity WHERE wait_event = 'SyncRep' \
                AND query = 'COMMIT'";
            loop {
                tokio::time::sleep(Duration::from_millis(20)).await;
                cluster.nodes()[0].psql(sql).await.expect("cancelled");
            }
        };
        tokio::select! {
            written = write => written,
            () = cancel => unreachable!(),
        }
    };
    assert_eq!(freed.expect("committed").durability, Durability::Unknown);
    hasty.close(LONG).await;
    router.close(LONG).await;
    ground.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_table_is_noticed_once_for_all_connections() {
    let ground = Ground::start().await.expect("ground");
    let options = PostgresOptions { standbys: 0, ..PostgresOptions::default() };
    let cluster = ground.postgres(options).await.expect("server");
    let builder = Router::builder(&cluster.url()).expect("url").pool_size(4).probe_deadline(LONG);
    let router = builder.build().expect("router");
    prepare(&router).await;
    // Four at once take four connections, and each has the statement prepared then.
    let read = async || {
        let sql = "SELECT ledger.*, pg_sleep(0.3) FROM ledger";
        router.read(ReadPreference::Primary).query(sql, &[]).await.map(|found| found.rows.len())
    };
    let write = async || {
        let sql = "INSERT INTO ledger VALUES (1) RETURNING *, pg_sleep(0.3)";
        router.execute(sql, &[]).await.map(|written| written.attempts)
    };
    let primary = &cluster.nodes()[0];
    let writes = tokio::join!(write(), write(), write(), write());
    assert!(matches!(writes, (Ok(1), Ok(1), Ok(1), Ok(1))), "{writes:?}");
    primary.psql("ALTER TABLE ledger ADD first int").await.expect("another table");
    assert_eq!(write().await.expect("prepared anew"), 2, "the fault fired, and once");

    let reads = tokio::join!(read(), read(), read(), read());
    assert!(matches!(reads, (Ok(5), Ok(5), Ok(5), Ok(5))), "{reads:?}");
    primary.psql("ALTER TABLE ledger ADD second int").await.expect("another table");
    assert_eq!(read().await.expect("prepared anew"), 5);
    router.close(LONG).await;
    ground.stop().await;
}

/// A clone that escaped its work has no connection any more.
async fn is_cut(kept: &std::sync::Mutex<Option<Tx>>) {
    let tx = kept.lock().expect("lock").take().expect("it escaped");
    wait::until(LONG, "the clone to be cut off", || async { tx.is_closed() }).await.expect("cut off");
}

//! Locks: nobody holds one because its process is frozen, nobody waits for one on behalf of a caller who is gone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use modax_db_router::{Router, Tx, WriteError, tokio_postgres};
use modax_testbed::servers::postgres::{PostgresCluster, PostgresOptions};
use modax_testbed::{Ground, wait};
use tokio::sync::Notify;

use crate::ledger::{LONG, prepare};

/// Longer than any test runs: what ends sooner was ended by something else.
const NEVER: Duration = Duration::from_secs(3_600);
const LOCK: &str = "SELECT FROM ledger WHERE number = 1 FOR UPDATE";

async fn count(cluster: &PostgresCluster, which: &str) -> String {
    let sql = format!("SELECT count(*) FROM pg_stat_activity WHERE usename = 'modax' AND {which}");
    cluster.nodes()[0].psql(&sql).await.unwrap_or_else(|error| panic!("{which}: {error}"))
}

async fn until(what: &str, cluster: &PostgresCluster, which: &str, expected: &str) {
    wait::until(LONG, what, || async { count(cluster, which).await.trim() == expected }).await.expect(what);
}

/// A write that takes the lock and then does nothing more, as that of a frozen process.
fn hold(router: &Router) -> (tokio::task::JoinHandle<()>, Arc<Notify>) {
    let locked = Arc::new(Notify::new());
    let (router, told) = (router.clone(), Arc::clone(&locked));
    let task = tokio::spawn(async move {
        let frozen = router.writer().deadline(NEVER).run(async |tx: Tx| {
            tx.execute(LOCK, &[]).await?;
            told.notify_one();
            std::future::pending::<Result<(), tokio_postgres::Error>>().await
        });
        let _ = frozen.await;
    });
    (task, locked)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f02_a_process_that_freezes_in_a_write_does_not_keep_its_locks() {
    let ground = Ground::start().await.expect("ground");
    let cluster = ground.postgres(PostgresOptions { standbys: 0, ..PostgresOptions::default() }).await.expect("server");
    let url = cluster.url();
    let other = Router::builder(&url).expect("url").probe_deadline(LONG).build().expect("router");
    prepare(&other).await;
    other.execute("INSERT INTO ledger VALUES (1)", &[]).await.expect("a row");
    let limit = Duration::from_millis(500);
    let builder = Router::builder(&url).expect("url").idle_in_transaction_timeout(limit);
    let frozen = builder.probe_deadline(LONG).build().expect("router");
    let (task, locked) = hold(&frozen);
    tokio::time::timeout(LONG, locked.notified()).await.expect("the fault fired");

    let written = other.writer().deadline(LONG).run(async |tx: Tx| tx.execute(LOCK, &[]).await).await;

    assert!(written.is_ok(), "{written:?}");
    assert!(!task.is_finished(), "it still thinks it has the lock");
    task.abort();
    // The deadline of writes is the default, what the URL says wins, and zero leaves it to the server.
    let named = format!("{url}?options=-c%20idle_in_transaction_session_timeout=7s");
    for (builder, expected) in [
        (Router::builder(&url), "30s|2s"),
        (Router::builder(&url).map(|it| it.acquire_deadline(LONG * 2)), "1min|2s"),
        (Router::builder(&named), "7s|2s"),
        (
            Router::builder(&url)
                .map(|it| it.idle_in_transaction_timeout(Duration::ZERO).client_check_interval(Duration::ZERO)),
            "0|0",
        ),
    ] {
        let router = builder.expect("url").pool_size(1).build().expect("router");
        let show = "SELECT current_setting('idle_in_transaction_session_timeout') || '|' || \
                    current_setting('client_connection_check_interval')";
        // Twice: the reset of the session goes back to it.
        for _ in 0..2 {
            let found = router.write(async |tx: Tx| tx.query_one(show, &[]).await).await.expect("asked");
            assert_eq!(found.value.get::<_, String>(0), expected);
        }
        router.close(LONG).await;
    }
    other.close(LONG).await;
    ground.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_whose_caller_gave_up_does_not_wait_in_the_server_and_a_commit_does() {
    const WAITS_FOR_LOCK: &str = "wait_event_type = 'Lock'";
    const WAITS_FOR_COPY: &str = "wait_event = 'SyncRep'";
    let ground = Ground::start().await.expect("ground");
    let options =
        PostgresOptions { standbys: 1, synchronous: Some("FIRST 1 (s1)".to_owned()), ..PostgresOptions::default() };
    let cluster = ground.postgres(options).await.expect("servers");
    let url = format!("postgresql://modax@{}/modax", cluster.nodes()[0].addr());
    let short = Duration::from_millis(300);
    let builder = Router::builder(&url).expect("url").commit_deadline(short).client_check_interval(short / 3);
    let router = builder.probe_deadline(LONG).build().expect("router");
    prepare(&router).await;
    router.execute("INSERT INTO ledger VALUES (1)", &[]).await.expect("a row");

    // Without its standby a COMMIT waits, and its caller is told that nobody knows.
    cluster.nodes()[1].stop();
    let write = router
        .writer()
        .attempts(1)
        // A busy machine has to come as far as COMMIT within it; the rest of it is waited out.
        .deadline(Duration::from_secs(10))
        .run(async |tx: Tx| tx.execute("INSERT INTO ledger VALUES (2)", &[]).await);
    let unknown = write.await;
    assert!(matches!(unknown, Err(WriteError::OutcomeUnknown { .. })), "{unknown:?}");
    assert_eq!(count(&cluster, WAITS_FOR_COPY).await.trim(), "1", "the fault fired");
    // Meanwhile somebody waits for a lock, and gives up.
    let (task, locked) = hold(&router);
    tokio::time::timeout(LONG, locked.notified()).await.expect("locked");
    // Given up in the middle of the wait: a busy machine may not get so far, or not see it, in one time.
    let (mut waited, mut tries) = (false, 0);
    while !waited && tries < 5 {
        let given_up = AtomicBool::new(false);
        let late = async {
            let late = router.writer().deadline(10 * short).run(async |tx: Tx| tx.execute(LOCK, &[]).await).await;
            given_up.store(true, Ordering::Relaxed);
            late
        };
        let seen = async {
            while !given_up.load(Ordering::Relaxed) && !waited {
                waited = count(&cluster, WAITS_FOR_LOCK).await.trim() == "1";
            }
        };
        let (late, ()) = tokio::join!(late, seen);
        assert!(matches!(late, Err(WriteError::NotCommitted { .. })), "{late:?}");
        tries += 1;
    }
    assert!(waited, "the fault fired");

    until("the server to find out that the caller is gone", &cluster, WAITS_FOR_LOCK, "0").await;

    // It looks at all of its sessions as often; a COMMIT that ended by that would be visible without a copy.
    assert_eq!(count(&cluster, WAITS_FOR_COPY).await.trim(), "1");
    assert_eq!(cluster.nodes()[0].psql("SELECT count(*) FROM ledger").await.expect("count").trim(), "1");
    assert!(!task.is_finished(), "the lock is still held");
    task.abort();
    cluster.nodes()[1].cont();
    until("the commit to have its copy", &cluster, WAITS_FOR_COPY, "0").await;
    router.close(LONG).await;
    ground.stop().await;
}

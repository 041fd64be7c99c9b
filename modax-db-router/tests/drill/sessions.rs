//! What one user of a connection leaves in its session, and what it does to its transaction by hand.

use std::time::Duration;

use modax_db_router::commit::UnknownBecause;
use modax_db_router::{ReadPreference, Router, Tx, WriteError};
use modax_testbed::proxy::{Direction, Fault, Proxy};
use modax_testbed::servers::postgres::PostgresOptions;
use modax_testbed::{Ground, wait};

use crate::ledger::{LONG, prepare};

/// What a session can be left with, what shows it, and the answer of a session that nobody used.
const LEFTOVERS: [(&str, &str, &str); 9] = [
    ("SET search_path TO pg_catalog", "current_setting('search_path')", "\"$user\", public"),
    ("SET statement_timeout TO 1234567", "current_setting('statement_timeout')", "0"),
    ("SET ROLE pg_monitor", "current_user::text", "modax"),
    ("CREATE TEMPORARY TABLE ledger (number bigint)", "(to_regclass('pg_temp.ledger') IS NULL)::text", "true"),
    ("SELECT pg_advisory_lock(7)", "(SELECT count(*)::text FROM pg_locks WHERE locktype = 'advisory')", "0"),
    ("LISTEN gossip", "(SELECT count(*)::text FROM pg_listening_channels())", "0"),
    ("DECLARE c CURSOR WITH HOLD FOR SELECT 1", "(SELECT count(*)::text FROM pg_cursors WHERE name = 'c')", "0"),
    ("SELECT set_config('my.name', 'me', false)", "coalesce(current_setting('my.name', true), '')", ""),
    ("PREPARE mine AS SELECT 1", "(SELECT count(*)::text FROM pg_prepared_statements WHERE from_sql)", "0"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_ends_with_its_user() {
    let ground = Ground::start().await.expect("ground");
    let options = PostgresOptions { standbys: 0, ..PostgresOptions::default() };
    let cluster = ground.postgres(options).await.expect("server");
    cluster.nodes()[0].psql("GRANT pg_monitor TO modax").await.expect("a role to take");
    let url = format!("{}?application_name=mine", cluster.url());
    let builder = Router::builder(&url).expect("url").pool_size(1).probe_deadline(LONG);
    let router = builder.build().expect("router");
    prepare(&router).await;
    let backend = async || {
        let sql = "SELECT pg_backend_pid(), current_setting('application_name')";
        let found = router.read(ReadPreference::Primary).query(sql, &[]).await.expect("read");
        let row = found.rows.first().expect("a row");
        (row.get::<_, i32>(0), row.get::<_, String>(1))
    };
    let before = backend().await;
    assert_eq!(before.1, "mine");
    for (leave, show, fresh) in LEFTOVERS {
        for by_read in [false, true] {
            if by_read && !leave.starts_with("SELECT") {
                continue;
            }
            let left = if by_read {
                let read = router.read(ReadPreference::Primary).query(&format!("{leave}, {show}"), &[]).await;
                read.expect(leave).rows.first().expect("a row").get::<_, String>(1)
            } else {
                let work = async |tx: Tx| {
                    tx.batch_execute(leave).await?;
                    tx.query_one(&format!("SELECT {show}"), &[]).await.map(|row| row.get::<_, String>(0))
                };
                router.write(work).await.expect(leave).value
            };
            // Of one statement the parts may be seen in either order, and LISTEN begins with COMMIT.
            assert!(by_read || leave.starts_with("LISTEN") || left != fresh, "{leave} leaves something");
            // The lock is free also if nobody uses the connection again.
            if leave.contains("advisory") {
                wait::until(LONG, "the lock to be free", || async {
                    let count = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'";
                    cluster.nodes()[0].psql(count).await.is_ok_and(|count| count.trim() == "0")
                })
                .await
                .expect("free");
            }
            let found = router.write(async |tx: Tx| tx.query_one(&format!("SELECT {show}"), &[]).await).await;
            assert_eq!(found.expect("write").value.get::<_, String>(0), fresh, "{leave}");
        }
        // Only what PREPARE left may cost the connection.
        assert!(leave.starts_with("PREPARE") || backend().await == before, "{leave}");
    }
    // What the router has prepared is still prepared: no write pays for the reset with a round trip.
    let insert = "INSERT INTO ledger VALUES (1)";
    let prepared = async || {
        let sql = "SELECT count(*) FROM pg_prepared_statements WHERE statement = $1";
        let found = router.read(ReadPreference::Primary).query(sql, &[&insert]).await.expect("read");
        found.rows.first().expect("a row").get::<_, i64>(0)
    };
    router.execute(insert, &[]).await.expect("written");
    assert_eq!(prepared().await, 1);
    router.close(LONG).await;
    ground.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_on_a_replica_ends_with_its_user_too() {
    let ground = Ground::start().await.expect("ground");
    let cluster =
        ground.postgres(PostgresOptions { standbys: 1, ..PostgresOptions::default() }).await.expect("servers");
    let builder = Router::builder(&cluster.url()).expect("url").pool_size(1).probe_deadline(LONG);
    let router = builder.build().expect("router");
    prepare(&router).await;
    let read = async |sql: &str| {
        let found = router.read(ReadPreference::Replica).query(sql, &[]).await.expect("read");
        found.rows.first().map(|row| (row.get::<_, i32>(0), row.get::<_, String>(1)))
    };
    let show = "SELECT pg_backend_pid(), current_setting('work_mem')";
    let fresh = read(show).await;
    read("SELECT pg_backend_pid(), set_config('work_mem', '1MB', false)").await;
    assert_eq!(read(show).await, fresh, "the same connection, and fresh");
    // Left in a transaction, and in a failed one.
    for then in ["SELECT 1", "SELECT 1/0"] {
        read("BEGIN").await;
        let _ = router.read(ReadPreference::Replica).query(then, &[]).await;
        let open = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'modax' AND state LIKE '%in transaction%'";
        wait::until(LONG, "no transaction to be left open", || async {
            cluster.nodes()[1].psql(open).await.is_ok_and(|count| count.trim() == "0")
        })
        .await
        .expect(then);
    }
    router.close(LONG).await;
    ground.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_the_work_ended_is_never_called_committed() {
    let ground = Ground::start().await.expect("ground");
    let options = PostgresOptions { standbys: 0, ..PostgresOptions::default() };
    let cluster = ground.postgres(options).await.expect("server");
    let builder = Router::builder(&cluster.url()).expect("url").pool_size(1).probe_deadline(LONG);
    let router = builder.build().expect("router");
    prepare(&router).await;
    let ended = |written: Result<_, WriteError>| {
        matches!(written, Err(WriteError::OutcomeUnknown { because: UnknownBecause::EndedByHand, .. }))
    };
    for end in ["COMMIT", "ROLLBACK", "COMMIT AND CHAIN", "COMMIT; BEGIN", "ROLLBACK; BEGIN", "COMMIT; SELECT 1/0"] {
        let work = async |tx: Tx| {
            tx.execute("INSERT INTO ledger VALUES (1)", &[]).await?;
            tx.batch_execute(end).await
        };
        let written = router.write(work).await;
        assert!(ended(written.map(drop)), "{end}");
    }
    for end in ["COMMIT", "ROLLBACK"] {
        assert!(ended(router.execute(end, &[]).await.map(drop)), "{end}");
    }
    // Savepoints are the work's own business.
    let work = async |tx: Tx| {
        tx.batch_execute("SAVEPOINT s; INSERT INTO ledger VALUES (2); ROLLBACK TO s; RESET ALL; RELEASE s").await?;
        tx.execute("INSERT INTO ledger VALUES (3)", &[]).await
    };
    assert_eq!(router.write(work).await.expect("written").attempts, 1);
    // A constraint that speaks at COMMIT is a plain refusal: there was a transaction.
    let table = "CREATE TABLE late (number bigint UNIQUE DEFERRABLE INITIALLY DEFERRED); INSERT INTO late VALUES (1)";
    cluster.nodes()[0].psql(&format!("{table}; GRANT ALL ON late TO modax")).await.expect("table");
    let refused = router.execute("INSERT INTO late VALUES (1)", &[]).await;
    assert!(matches!(refused, Err(WriteError::Statement(_))), "{refused:?}");
    router.close(LONG).await;
    ground.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f38_a_begin_without_an_answer_commits_nothing() {
    let ground = Ground::start().await.expect("ground");
    let options = PostgresOptions { standbys: 0, ..PostgresOptions::default() };
    let cluster = ground.postgres(options).await.expect("server");
    let primary = &cluster.nodes()[0];
    let proxy = Proxy::start(primary.addr()).await.expect("proxy");
    let url = format!("postgresql://modax@{}/modax", proxy.addr());
    // The write's deadline comes before anybody doubts the server.
    let builder = Router::builder(&url).expect("url").pool_size(1).probe_deadline(LONG);
    let router = builder.build().expect("router");
    prepare(&router).await;
    let insert = "INSERT INTO ledger VALUES (1)";
    let short = Duration::from_millis(300);
    let work = async |tx: Tx| tx.batch_execute(insert).await;
    for direction in [Direction::ToClient, Direction::ToServer] {
        for prepared in [true, false] {
            // So that the statement travels right behind BEGIN, and nothing has to be asked first.
            router.execute(insert, &[]).await.expect("written");
            let rows = primary.psql("SELECT count(*) FROM ledger").await.expect("count");
            let held = proxy.fired().blackhole;
            proxy.set(direction, Fault::Blackhole);
            let told = if prepared {
                let begun = router.writer().deadline(short).attempts(1);
                begun.run(async |tx: Tx| tx.execute(insert, &[]).await.map(drop)).await
            } else {
                router.writer().deadline(short).attempts(1).run(work).await
            };
            assert!(proxy.fired().blackhole > held, "the fault fired");
            assert!(matches!(told, Err(WriteError::NotCommitted { attempts: 1, .. })), "{told:?}");
            // What was on its way arrives, and the server carries it out to the end.
            proxy.clear();
            wait::until(LONG, "the router to be served again", || async {
                router.writer().deadline(short).run(async |tx: Tx| tx.execute("SELECT 1", &[]).await).await.is_ok()
            })
            .await
            .expect("served");
            wait::until(LONG, "the abandoned session to end", || async {
                let sql = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'modax' AND query LIKE 'INSERT%'";
                primary.psql(sql).await.is_ok_and(|count| count.trim() == "0")
            })
            .await
            .expect("ended");
            assert_eq!(primary.psql("SELECT count(*) FROM ledger").await.expect("count"), rows, "{direction:?}");
        }
    }
    router.close(LONG).await;
    ground.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_login_is_told_in_the_servers_words_and_without_the_password() {
    let ground = Ground::start().await.expect("ground");
    let options = PostgresOptions { standbys: 0, ..PostgresOptions::default() };
    let cluster = ground.postgres(options).await.expect("server");
    let url = format!("postgresql://stranger:geheim@{}/modax", cluster.nodes()[0].addr());
    let deadline = Duration::from_secs(5);
    let builder = Router::builder(&url).expect("url").acquire_deadline(deadline).probe_deadline(LONG);
    let router = builder.build().expect("router");
    let read = router.read(ReadPreference::PreferReplica).deadline(deadline);
    let (wrote, read) = tokio::join!(router.execute("SELECT 1", &[]), read.query("SELECT 1", &[]));
    let wrote = wrote.expect_err("nobody of that name").to_string();
    for error in [wrote, read.expect_err("nobody of that name").to_string()] {
        assert!(error.contains("login or probe refused: ") && error.contains("stranger"), "{error}");
        assert!(!error.contains("geheim"), "{error}");
    }
    router.close(LONG).await;
    ground.stop().await;
}

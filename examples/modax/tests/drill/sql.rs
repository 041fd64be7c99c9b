//! `write`, `read` and `topology` against a primary with two standbys.

use std::time::Duration;

use modax_testbed::{Ground, PostgresOptions, wait};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::running::Running;

async fn all(args: &[&str], input: &[Value]) -> (Vec<Value>, i32) {
    let mut running = Running::start(args);
    for line in input {
        running.send(&line.to_string()).await;
    }
    running.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_are_written_and_read_with_the_types_the_server_infers() {
    let ground = Ground::start().await.unwrap();
    let cluster = ground.postgres(PostgresOptions { standbys: 2, ..PostgresOptions::default() }).await.unwrap();
    let url = cluster.url();
    let table = "CREATE TABLE t (id bigint PRIMARY KEY, small int2, f float8, n numeric, s text, b bool, u uuid, \
                 at timestamptz, j jsonb, d date, a int[], raw bytea)";
    let insert = "INSERT INTO t VALUES ($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11,$12)";
    let uuid = "7d444840-9dc0-11d1-b245-5ffdce74fad2";
    let full = json!([
        1, 2, 0.5, "12345678901234567890.5", "ü", true, uuid, "2026-01-02T03:04:05.6Z", {"k": [1]}, "2026-01-02",
        "{1,2}", "\\x00ff"
    ]);
    let empty = json!([2, null, null, 7, null, null, null, null, null, null, null, null]);

    let (written, code) = all(
        &["write", "--url", &url],
        &[
            json!({ "sql": table }),
            json!({ "sql": insert, "params": full }),
            json!({ "sql": insert, "params": empty }),
            json!({ "sql": insert, "params": ["three", 0, 0, 0, "", true, uuid, "now", null, null, null, null] }),
            json!({ "sql": "INSERT INTO t (id) VALUES ($1)", "params": [1] }),
            json!({ "sql": "INSERT INTO t (id) VALUES ($1)", "params": [3] }),
        ],
    )
    .await;

    assert_eq!(code, 1);
    let outcomes: Vec<&str> = written.iter().map(|line| line["outcome"].as_str().unwrap()).collect();
    assert_eq!(outcomes, ["committed", "committed", "committed", "not_committed", "not_committed", "committed"]);
    assert!(written[3]["error"].as_str().unwrap().contains("three"), "{}", written[3]);
    assert!(written[4]["error"].as_str().unwrap().contains("duplicate key"), "{}", written[4]);
    let token = written[5]["token"].as_str().expect("a token").to_owned();

    let select = json!({ "sql": "SELECT * FROM t WHERE id <= $1 ORDER BY id", "params": [2] });
    let count = json!({ "sql": "SELECT count(*) FROM t" });
    let args = ["read", "--url", &url, "--preference", "replica", "--at-least", &token, "--max-staleness", "10s"];
    let (read, code) = all(&args, &[select, count, json!({ "sql": "SELECT nothing" })]).await;

    assert_eq!(code, 1);
    let primary = cluster.nodes()[0].addr().to_string();
    assert_ne!(read[0]["node"], primary);
    assert_eq!(
        read[0]["rows"][0],
        json!({
            "id": 1, "small": 2, "f": 0.5, "n": "12345678901234567890.5", "s": "ü", "b": true, "u": uuid,
            "at": "2026-01-02T03:04:05.6Z", "j": {"k": [1]}, "d": "2026-01-02", "a": [1, 2], "raw": "\\x00ff"
        })
    );
    assert_eq!(read[0]["rows"][1]["n"], "7");
    assert_eq!(read[0]["rows"][1]["s"], Value::Null);
    assert_eq!(read[1]["rows"], json!([{ "count": 3 }]));
    assert!(read[2]["error"].as_str().unwrap().contains("nothing"), "{}", read[2]);

    let (topology, code) = all(&["topology", "--url", &url], &[]).await;
    assert_eq!(code, 0);
    let nodes = topology[0]["nodes"].as_array().unwrap();
    assert_eq!(nodes.len(), 3);
    assert_eq!(nodes.iter().filter(|node| node["role"] == "primary").count(), 1);
    assert_eq!(nodes.iter().find(|node| node["role"] == "primary").unwrap()["node"], primary);
    ground.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_in_work_at_once_are_all_committed() {
    let ground = Ground::start().await.unwrap();
    let cluster = ground.postgres(PostgresOptions { standbys: 0, ..PostgresOptions::default() }).await.unwrap();
    let url = cluster.url();
    let table = json!({ "sql": "CREATE TABLE t (id int PRIMARY KEY)" });
    assert_eq!(all(&["write", "--url", &url], &[table]).await.1, 0);
    let inserts: Vec<Value> =
        (0..100).map(|id| json!({ "sql": "INSERT INTO t VALUES ($1)", "params": [id] })).collect();

    let (written, code) = all(&["write", "--url", &url, "--concurrency", "8"], &inserts).await;

    assert_eq!(code, 0);
    assert_eq!(written.len(), 100);
    assert_eq!(cluster.nodes()[0].psql("SELECT count(*) FROM t").await.unwrap().trim(), "100");
    ground.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_value_has_one_shape_and_no_column_is_lost() {
    let ground = Ground::start().await.unwrap();
    let cluster = ground.postgres(PostgresOptions { standbys: 0, ..PostgresOptions::default() }).await.unwrap();
    let url = cluster.url();
    let table = json!({ "sql": "CREATE TABLE t (words text[], numbers int[], grid int[], place point)" });
    let strange = json!(["a\"b", "c\\d", null, "", "{,}"]);
    let insert = json!({
        "sql": "INSERT INTO t VALUES ($1, $2, $3, $4)", "params": [strange, [1, null], [[1, 2], [3, 4]], "(1,2)"],
    });
    assert_eq!(all(&["write", "--url", &url], &[table, insert]).await.1, 0);

    let lines = [
        "SELECT * FROM t",
        "SELECT 1.50 AS a, 2::numeric AS b, sum(x::bigint) AS c FROM generate_series(1, 3) x(x)",
        "SELECT '10:00+02'::timetz AS z, '1.5'::money AS m, int4range(1, 5) AS r, ROW(1, 'x') AS w, 7 AS n ;",
        "SELECT count(*), count(*) FROM t",
        "SELECT '(1,2)'::point AS p; SELECT 1",
    ];
    let lines: Vec<Value> = lines.iter().map(|sql| json!({ "sql": sql })).collect();
    let (read, code) = all(&["read", "--url", &url], &lines).await;

    assert_eq!(code, 1);
    let row = json!({ "words": strange, "numbers": [1, null], "grid": [[1, 2], [3, 4]], "place": "(1,2)" });
    assert_eq!(read[0]["rows"], json!([row]));
    assert_eq!(read[1]["rows"], json!([{ "a": "1.50", "b": "2", "c": "6" }]));
    let odd = json!({ "z": "10:00:00+02", "m": "$1.50", "r": "[1,5)", "w": "(1,x)", "n": 7 });
    assert_eq!(read[2]["rows"], json!([odd]));
    assert!(read[3]["error"].as_str().unwrap().contains("\"count\""), "{}", read[3]);
    assert!(read[4]["error"].as_str().unwrap().contains("multiple commands"), "{}", read[4]);
    ground.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_would_end_its_transaction_is_refused_and_harms_no_other() {
    let ground = Ground::start().await.unwrap();
    let cluster = ground.postgres(PostgresOptions { standbys: 0, ..PostgresOptions::default() }).await.unwrap();
    let url = cluster.url();
    let insert = "INSERT INTO t VALUES (1)";
    let refused =
        ["commit", "/* at last */ ROLLBACK", "begin", "savepoint a", "prepare transaction 'x'", "commit and chain"];
    let mut lines = vec![json!({ "sql": "CREATE TABLE t (id int)" })];
    for sql in refused {
        lines.extend([json!({ "sql": sql }), json!({ "sql": insert })]);
    }

    let (written, code) = all(&["write", "--url", &url], &lines).await;

    assert_eq!(code, 1);
    for (line, sql) in written[1..].chunks(2).zip(refused) {
        assert_eq!(line[0]["outcome"], "not_committed", "{sql}: {}", line[0]);
        assert!(line[0]["error"].as_str().unwrap().contains("is not run"), "{}", line[0]);
        assert_eq!(line[1]["outcome"], "committed", "after {sql}: {}", line[1]);
    }
    assert_eq!(cluster.nodes()[0].psql("SELECT count(*) FROM t").await.unwrap().trim(), "6");
    ground.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_ends_a_statement_that_runs_with_an_outcome_that_is_true() {
    let ground = Ground::start().await.unwrap();
    let cluster = ground.postgres(PostgresOptions { standbys: 0, ..PostgresOptions::default() }).await.unwrap();
    let url = cluster.url();
    let mut running = Running::start(&["write", "--url", &url]);
    running.send(&json!({ "sql": "CREATE TABLE t (id int)" }).to_string()).await;
    assert_eq!(running.line().await["outcome"], "committed");
    running.send(&json!({ "sql": "INSERT INTO t SELECT 1 FROM pg_sleep(600)" }).to_string()).await;
    running.send(&json!({ "sql": "INSERT INTO t VALUES (2)" }).to_string()).await;
    let sleeps = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
    let asleep = || async { cluster.nodes()[0].psql(sleeps).await.is_ok_and(|count| count.trim() == "1") };
    wait::until(Duration::from_secs(20), "the statement to run", asleep).await.unwrap();

    running.signal(Signal::TERM);

    assert_eq!(running.event("interrupted").await["running"], 1);
    // Far sooner than the statement would end.
    let (mut rest, code) = running.rest().await;
    assert_eq!(code, 1);
    rest.sort_by_key(|line| line["seq"].as_u64());
    let outcomes: Vec<&Value> = rest.iter().map(|line| &line["outcome"]).collect();
    assert_eq!(outcomes, ["not_committed", "not_committed"], "COMMIT was never sent: {rest:?}");
    ground.stop().await;
}

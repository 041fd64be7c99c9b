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

async fn all_text(args: &[&str], input: &[Value]) -> (Vec<String>, i32) {
    let mut running = Running::start(args);
    for line in input {
        running.send(&line.to_string()).await;
    }
    running.end_input();
    running.rest_text().await
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
    for sql in [
        "CREATE TYPE mood AS ENUM ('sad', 'ok')",
        "CREATE DOMAIN positive AS int CHECK (VALUE > 0)",
        "CREATE TYPE pair AS (a int, b text)",
    ] {
        cluster.nodes()[0].psql(sql).await.unwrap();
    }

    let lines = [
        "SELECT * FROM t",
        "SELECT 1.50 AS a, 2::numeric AS b, sum(x::bigint) AS c FROM generate_series(1, 3) x(x)",
        "SELECT '10:00+02'::timetz AS z, '1.5'::money AS m, int4range(1, 5) AS r, ROW(1, 'x') AS w, 7 AS n ;",
        "SELECT count(*), count(*) FROM t",
        "SELECT '(1,2)'::point AS p; SELECT 1",
        "SELECT '{\"a\": 1.10, \"a\": 12345678901234567890123}'::json AS z, ARRAY['1.10'::jsonb] AS a",
        "SELECT '-infinity'::timestamptz AS a, '0044-03-15 BC'::date AS b, interval '14 mons -3 days 04:05' AS c, \
         'NaN'::numeric AS d, '-Infinity'::float8 AS e, '\\xff'::bytea AS f, B'101' AS g, '<a/>'::xml AS h",
        "SELECT '08:00:2b:01:02:03'::macaddr AS a, '10.0.0.1/8'::inet AS b, '::1'::cidr AS c, \
         ARRAY['1.5'::money, NULL] AS d, ARRAY['[1,2)'::int4range] AS e, ARRAY[[point '(1,2)']] AS f, \
         ARRAY[interval '1 day'] AS g, ARRAY[B'1'] AS h, '{[1,2),[5,6)}'::int4multirange AS i",
        "SELECT 'ok'::mood AS a, ARRAY['ok'::mood] AS b, 5::positive AS c, ARRAY[5::positive] AS d, \
         ROW(1, 'x y')::pair AS e, ARRAY[ROW(1, 'x')::pair] AS f",
    ];
    let lines: Vec<Value> = lines.iter().map(|sql| json!({ "sql": sql })).collect();
    let (texts, code) = all_text(&["read", "--url", &url], &lines).await;
    let read: Vec<Value> = texts.iter().map(|line| serde_json::from_str(line).unwrap()).collect();

    assert_eq!(code, 1);
    let row = json!({ "words": strange, "numbers": [1, null], "grid": [[1, 2], [3, 4]], "place": "(1,2)" });
    assert_eq!(read[0]["rows"], json!([row]));
    assert_eq!(read[1]["rows"], json!([{ "a": "1.50", "b": "2", "c": "6" }]));
    let odd = json!({ "z": "10:00:00+02", "m": "$1.50", "r": "[1,5)", "w": "(1,x)", "n": 7 });
    assert_eq!(read[2]["rows"], json!([odd]));
    assert!(read[3]["error"].as_str().unwrap().contains("\"count\""), "{}", read[3]);
    assert!(read[4]["error"].as_str().unwrap().contains("multiple commands"), "{}", read[4]);
    // The line itself, because a reader of it would lose what is to be kept.
    let verbatim = "{\"z\":{\"a\": 1.10, \"a\": 12345678901234567890123},\"a\":[1.10]}";
    assert!(texts[5].contains(verbatim), "{}", texts[5]);
    let times = json!({
        "a": "-infinity", "b": "0044-03-15 BC", "c": "1 year 2 mons -3 days +04:05:00", "d": "NaN", "e": "-Infinity",
        "f": "\\xff", "g": "101", "h": "<a/>"
    });
    assert_eq!(read[6]["rows"], json!([times]));
    let rare = json!({
        "a": "08:00:2b:01:02:03", "b": "10.0.0.1/8", "c": "::1/128", "d": ["$1.50", null], "e": ["[1,2)"],
        "f": [["(1,2)"]], "g": ["1 day"], "h": ["1"], "i": "{[1,2),[5,6)}"
    });
    assert_eq!(read[7]["rows"], json!([rare]));
    let own = json!({ "a": "ok", "b": ["ok"], "c": 5, "d": [5], "e": "(1,\"x y\")", "f": ["(1,x)"] });
    assert_eq!(read[8]["rows"], json!([own]));
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

#[tokio::test(flavor = "multi_thread")]
async fn a_parameter_reaches_the_type_the_server_wants_and_a_wrong_one_is_told() {
    let ground = Ground::start().await.unwrap();
    let cluster = ground.postgres(PostgresOptions { standbys: 0, ..PostgresOptions::default() }).await.unwrap();
    for sql in ["CREATE TYPE mood AS ENUM ('sad', 'ok')", "CREATE DOMAIN positive AS int CHECK (VALUE > 0)"] {
        cluster.nodes()[0].psql(sql).await.unwrap();
    }
    let uuid = "7d444840-9dc0-11d1-b245-5ffdce74fad2";
    let same = [
        ("int8", json!(i64::MAX)),
        ("bool", json!(false)),
        ("bool", json!(null)),
        ("date", json!("2026-01-02")),
        ("timestamptz", json!("infinity")),
        ("uuid", json!(uuid)),
        ("uuid[]", json!([uuid, null])),
        ("jsonb", json!({ "a": [1, null] })),
        ("jsonb[]", json!([{ "a": 1 }, [1], "s", null])),
        ("bytea", json!("\\x00ff")),
        ("inet", json!("10.0.0.1/8")),
        ("numeric", json!("12345678901234567890.123")),
        ("numeric[]", json!(["NaN", "1.50"])),
        ("mood", json!("ok")),
        ("mood[]", json!(["ok", null])),
        ("positive", json!(5)),
        ("text[]", json!(["a\"b", "c\\d", null, "NULL", "", "{,}"])),
        ("int[]", json!([[1, 2], [3, 4]])),
        ("int[]", json!([])),
        ("box[]", json!(["(1,1),(0,0)", "(2,2),(1,1)"])),
        ("money", json!("$12.50")),
        ("interval", json!("1 year 2 mons")),
        ("text", json!("\u{1F600}")),
    ];
    let wrong = [
        ("int4", json!(3_000_000_000_u32), "out of range"),
        ("int4", json!("five"), "five"),
        ("mood", json!("bad"), "bad"),
        ("positive", json!(-5), "violates check constraint"),
        ("text", json!([1]), "text"),
        ("text", json!("a\u{0}b"), "U+0000"),
        ("int[]", json!([[1], [2, 3]]), "malformed array"),
    ];
    let ask = |ty: &str, value: &Value| json!({ "sql": format!("SELECT $1::{ty} AS v"), "params": [value] });
    let mut lines: Vec<Value> = same.iter().map(|(ty, value)| ask(ty, value)).collect();
    lines.extend(wrong.iter().map(|(ty, value, _)| ask(ty, value)));

    let (read, code) = all(&["read", "--url", &cluster.url()], &lines).await;

    assert_eq!((code, read.len()), (1, lines.len()));
    for ((ty, value), line) in same.iter().zip(&read) {
        assert_eq!(line["rows"], json!([{ "v": value }]), "{ty}: {line}");
    }
    for ((ty, _, named), line) in wrong.iter().zip(&read[same.len()..]) {
        assert!(line["error"].as_str().unwrap().contains(named), "{ty}: {line}");
    }
    ground.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_can_never_succeed_is_not_committed_and_does_not_hold_up_the_next() {
    let ground = Ground::start().await.unwrap();
    let cluster = ground.postgres(PostgresOptions { standbys: 0, ..PostgresOptions::default() }).await.unwrap();
    let url = cluster.url();
    let lines = [
        json!({ "sql": "CREATE TABLE t (id int)" }),
        json!({ "sql": "INSERT INTO t VALUES (1) -- \u{0}" }),
        json!({ "sql": "INSERT INTO t SELECT 2 FROM pg_terminate_backend(pg_backend_pid())" }),
        json!({ "sql": "COPY t FROM STDIN" }),
        json!({ "sql": "INSERT INTO t VALUES (3)" }),
    ];

    // No deadline that could be what ends a line.
    let (written, code) = all(&["write", "--url", &url, "--deadline", "1h"], &lines).await;

    let outcomes: Vec<&Value> = written.iter().map(|line| &line["outcome"]).collect();
    assert_eq!(outcomes, ["committed", "not_committed", "not_committed", "not_committed", "committed"]);
    assert_eq!(code, 1);
    let error = |seq: usize| written[seq]["error"].as_str().unwrap();
    assert!(error(1).contains("U+0000"), "{}", error(1));
    assert!(error(2).contains("10 attempts") && error(2).contains("terminating connection"), "{}", error(2));
    assert_eq!(cluster.nodes()[0].psql("SELECT id FROM t").await.unwrap().trim(), "3");
    ground.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_nobody_may_answer_says_why() {
    let ground = Ground::start().await.unwrap();
    let cluster = ground.postgres(PostgresOptions { standbys: 1, ..PostgresOptions::default() }).await.unwrap();
    let other = ground.postgres(PostgresOptions { standbys: 0, ..PostgresOptions::default() }).await.unwrap();
    let url = cluster.url();
    let one = [json!({ "sql": "SELECT 1 AS a" })];
    let (written, _) = all(&["write", "--url", &other.url()], &one).await;
    let foreign = written[0]["token"].as_str().expect("a token").to_owned();

    for preference in ["primary", "prefer-replica", "replica"] {
        let args = ["read", "--url", &url, "--preference", preference];
        assert_eq!(all(&args, &one).await.1, 0, "{preference}");
        let (read, code) = all(&[&args[..], &["--at-least", &foreign]].concat(), &one).await;
        assert_eq!(code, 1, "{preference}");
        assert!(read[0]["error"].as_str().unwrap().contains("another database cluster"), "{}", read[0]);
        // Only the primary's data are of this moment.
        let deadline = if preference == "replica" { "5s" } else { "20s" };
        let (read, code) = all(&[&args[..], &["--max-staleness", "0s", "--deadline", deadline]].concat(), &one).await;
        if preference == "replica" {
            assert_eq!(code, 1);
            let error = read[0]["error"].as_str().unwrap();
            let is_dated = error.contains("its data may be ") && error.contains(" old");
            assert!(is_dated || error.contains("the age of its data cannot be proved"), "{error}");
        } else {
            assert_eq!(read[0]["node"], cluster.nodes()[0].addr().to_string(), "{preference}: {}", read[0]);
        }
    }
    ground.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f01_topology_tells_each_change_and_why_a_server_is_away() {
    let ground = Ground::start().await.unwrap();
    let cluster = ground.postgres(PostgresOptions { standbys: 1, ..PostgresOptions::default() }).await.unwrap();
    let url = cluster.url();
    let standby = cluster.nodes()[1].addr().to_string();
    let node = |line: &Value| -> Value {
        let nodes = line["nodes"].as_array().expect("nodes");
        nodes.iter().find(|node| node["node"] == standby).expect("the standby").clone()
    };
    let mut watching = Running::start(&["topology", "--url", &url, "--watch"]);
    while node(&watching.line().await)["state"] != "usable" {}

    cluster.nodes()[1].kill();

    let lost = loop {
        let line = watching.line().await;
        if node(&line)["state"] == "unreachable" {
            break node(&line);
        }
    };
    assert!(lost["error"].as_str().is_some_and(|error| !error.is_empty()), "{lost}");
    let (once, code) = all(&["topology", "--url", &url], &[]).await;
    assert_eq!((code, once.len()), (0, 1));
    watching.signal(Signal::TERM);
    assert_eq!(watching.rest().await.1, 0);
    ground.stop().await;
}

//! `outbox migrate`, `status` and `relay`.

use modax_testbed::{Ground, PostgresOptions};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::running::Running;

async fn one(args: &[&str]) -> (Value, i32) {
    let (mut lines, code) = Running::start(args).end().await;
    assert_eq!(lines.len(), 1, "{lines:?}");
    (lines.remove(0), code)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_of_the_outbox_reaches_the_broker_and_its_state_is_told() {
    let ground = Ground::start().await.unwrap();
    let broker = ground.mosquitto().await.unwrap();
    let cluster = ground.postgres(PostgresOptions { standbys: 0, ..PostgresOptions::default() }).await.unwrap();
    let (url, broker) = (cluster.url(), broker.url());

    let (migrated, code) = one(&["outbox", "migrate", "--url", &url]).await;
    assert_eq!((code, &migrated["schema"]), (0, &json!("modax_txn")));
    assert!(migrated["applied"].as_u64().unwrap() > 0);
    assert_eq!(one(&["outbox", "migrate", "--url", &url]).await.0["applied"], 0);
    let insert = "INSERT INTO modax_txn.outbox (id, topic, payload) VALUES (gen_random_uuid(), 'plant/x', 'hello')";
    cluster.nodes()[0].psql(insert).await.unwrap();
    let (status, code) = one(&["outbox", "status", "--url", &url]).await;
    assert_eq!((code, &status["pending"]), (0, &json!(1)));

    let mut relay = Running::start(&["outbox", "relay", "--url", &url, "--brokers", &broker]);
    assert_eq!(relay.line().await["status"], "delivered");
    relay.signal(Signal::TERM);
    let (_, code) = relay.rest().await;

    assert_eq!(code, 0);
    let (status, _) = one(&["outbox", "status", "--url", &url]).await;
    assert_eq!((&status["pending"], &status["messages"]["delivered"]), (&json!(0), &json!(1)));
    ground.stop().await;
}

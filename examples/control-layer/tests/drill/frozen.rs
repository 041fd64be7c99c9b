//! An instance that is frozen in the middle of a transaction.

use modax_db_router::Router;
use modax_testbed::{PostgresCluster, wait};
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::{LONG, Layer, Outcome, servers, sql};

/// The database's sessions of this instance are not told from others: it is the only one that asks for this lock.
const FROZEN: &str = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%command_order%'
                      AND state = 'idle in transaction' AND application_name = 'frozen'";

/// Whether the instance was frozen when it had just got the lock that its command needs; else it goes on.
async fn freeze_in_transaction(database: &PostgresCluster, router: &Router, layer: &Layer, command: &Value) -> bool {
    let ours = router.primary().await.expect("a connection");
    ours.batch_execute("BEGIN; SELECT FROM command_order FOR UPDATE").await.expect("locked");
    let frozen = async {
        let waits =
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'frozen' AND wait_event_type = 'Lock'";
        wait::until(LONG, "it waits for the lock", || async { sql(database, waits).await == "1" }).await?;
        layer.process.stop();
        ours.batch_execute("COMMIT").await.expect("unlocked");
        wait::until(LONG, "it has the lock and is frozen", || async { sql(database, FROZEN).await == "1" }).await
    };
    let is_frozen = tokio::select! {
        _ = layer.try_command(command, None) => false,
        fired = frozen => fired.is_ok(),
    };
    if !is_frozen {
        layer.process.cont();
        ours.batch_execute("ROLLBACK").await.expect("unlocked");
    }
    is_frozen
}

#[tokio::test(flavor = "multi_thread")]
async fn f02_an_instance_frozen_in_its_transaction_does_not_hold_up_the_commands_of_the_others() -> Outcome {
    let (ground, database, broker) = servers().await?;
    let (brokers, url) = (broker.url(), database.url());
    let named = format!("{url}?application_name=frozen");
    let first = [("MQTT_BROKERS", brokers.as_str()), ("DATABASE_URL", named.as_str())];
    let second = [("MQTT_BROKERS", brokers.as_str()), ("DATABASE_URL", url.as_str())];
    let (a, b) = tokio::try_join!(Layer::start(&ground, "a", &first), Layer::start(&ground, "b", &second))?;
    for layer in [&a, &b] {
        layer.until_ready().await;
    }
    let stop = json!({"command_type": "stop"});
    // The lock is ours until a waits for it; a is frozen before it gets it. A busy machine may take longer over that than a has
    // for a command, and a gives up then.
    let router = Router::builder(&url).expect("a URL").build().expect("a router");
    let mut tries = 0;
    while !freeze_in_transaction(&database, &router, &a, &stop).await {
        tries += 1;
        assert!(tries < 5, "a was not frozen");
    }

    wait::until(LONG, "b takes a command", || async { b.command(&stop, None).await.0 == StatusCode::OK }).await?;

    wait::until(LONG, "the session of a is gone", || async { sql(&database, FROZEN).await == "0" }).await?;
    a.process.cont();
    a.until("a is healthy again", "/health", |status, _| status == StatusCode::OK).await;
    a.taken(&stop).await;
    router.close(LONG).await;
    ground.stop().await;
    Ok(())
}

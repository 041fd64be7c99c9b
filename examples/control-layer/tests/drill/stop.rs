//! Stopping waits for nothing that is held back, and nothing older follows it.

use std::sync::atomic::{AtomicBool, Ordering};

use modax_db_router::Router;
use modax_testbed::{
    PostgresCluster, TestbedError,
    device::{Device, Entry},
    proxy::Proxy,
    wait,
};
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::{LONG, Layer, Outcome, patient, servers, sql, until_relayed};

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_does_not_wait_behind_a_command_that_is_held_back() -> Outcome {
    let (ground, database, broker) = servers().await?;
    let proxy = Proxy::start(broker.addr()).await.expect("a proxy");
    let (brokers, url) = (proxy.url("mqtt"), database.url());
    let pairs = [
        ("MQTT_BROKERS", brokers.as_str()),
        ("DATABASE_URL", url.as_str()),
        // Longer than the test: what is held back is held back to its end.
        ("SAFETY_MAX_AGE", "600"),
        ("COMMAND_TTL", "600"),
    ];
    let layer = Layer::start(&ground, "a", &pairs).await?;
    let device = Device::start(patient("ESP32_1", broker.url())).await.expect("a device");
    layer.until_safe().await;
    until_relayed(&[&layer]).await?;

    // The broker comes back without the device: whether the plant is still safe is not known.
    proxy.redirect(std::net::SocketAddr::from(([127, 0, 0, 1], ground.port())));
    proxy.cut_all();
    wait::until(LONG, "the broker is away", || async { layer.counter("modax_control_mqtt_connected").await == 0 })
        .await?;
    device.finish(LONG).await;
    // By what was heard last the plant is safe.
    let held = layer.taken(&json!({"command_type": "start"})).await;
    proxy.redirect(broker.addr());
    wait::until(LONG, "the broker is back", || async { layer.counter("modax_control_mqtt_connected").await == 1 })
        .await?;
    let path = |answer: &Value| format!("/control/commands/{}", answer["command_id"].as_str().expect("an id"));
    let (_, body) = layer.get(&path(&held)).await;
    assert_eq!(body["audit"], "accepted", "the fault fired: it is held back: {body}");

    let stop = layer.taken(&json!({"command_type": "emergency_stop"})).await;

    layer.until("the stop is out", &path(&stop), |_, body| body["status"] == "acknowledged").await;
    let overtaken = layer.settled(&held).await;
    assert_eq!(overtaken["audit"], "blocked", "{overtaken}");
    assert!(overtaken["reason"].as_str().is_some_and(|reason| reason.contains("a stop was taken")), "{overtaken}");
    ground.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_could_not_be_stored_before_a_later_stop_does_not_follow_it() -> Outcome {
    let (ground, database, broker) = servers().await?;
    let (brokers, url) = (broker.url(), database.url());
    let named = format!("{url}?application_name=held");
    let pairs = [("MQTT_BROKERS", brokers.as_str()), ("DATABASE_URL", named.as_str()), ("COMMAND_TTL", "15")];
    let layer = Layer::start(&ground, "a", &pairs).await?;
    let device = Device::start(patient("ESP32_1", broker.url())).await.expect("a device");
    layer.until_safe().await;
    until_relayed(&[&layer]).await?;

    let router = Router::builder(&url).expect("a URL").build().expect("a router");
    let older = json!({"command_type": "set_speed", "parameters": {"value": "1"}});
    let mut stops = Vec::new();
    let (key, answer) = loop {
        let key = format!("older-{}", stops.len());
        let ((status, answer, _), stop) = with_a_stop_meanwhile(&database, &router, &layer, &older, &key).await?;
        stops.push(stop);
        // A busy machine may take longer over the stop than the older command has.
        if status == StatusCode::SERVICE_UNAVAILABLE && stops.len() < 5 {
            continue;
        }
        assert_eq!((status, &answer["error"]), (StatusCode::CONFLICT, &json!("overtaken_by_stop")), "{answer}");
        break (key, answer);
    };
    let path = format!("/control/commands/{}", answer["details"]["command_id"].as_str().expect("an id"));
    let (_, audit) = layer.get(&path).await;
    assert_eq!((&audit["audit"], &audit["maybe_delivered"]), (&json!("blocked"), &json!(false)), "{audit}");
    // The same request again is a command after the stop.
    let again = layer.taken_under(&older, &key).await;
    let path = format!("/control/commands/{}", again["command_id"].as_str().expect("an id"));
    layer.until("it is out", &path, |_, body| body["status"] == "acknowledged").await;
    let given: Vec<_> =
        stops.iter().chain([&again]).map(|answer| answer["command_id"].as_str().expect("an id")).collect();
    let all = u64::try_from(given.len()).expect("a count");
    assert!(device.wait_until(LONG, |status| status.acted == all).await, "the broker has it, and the device not yet");
    // With QoS 1 a broker may deliver one again.
    let acted = device.finish(LONG).await.entries.into_iter().filter_map(|entry| match entry {
        Entry::Received { command_id, acted: true, .. } => command_id,
        _ => None,
    });
    assert_eq!(acted.collect::<Vec<_>>(), given, "the stop, then what was asked for after it");
    router.close(LONG).await;
    ground.stop().await;
    Ok(())
}

/// Gives a command whose transaction waits until a stop has been taken: the answers to the two. Its key is ours meanwhile.
async fn with_a_stop_meanwhile(
    database: &PostgresCluster,
    router: &Router,
    layer: &Layer,
    command: &Value,
    key: &str,
) -> Result<((StatusCode, Value, bool), Value), TestbedError> {
    let ours = router.primary().await.expect("a connection");
    let claim = format!(
        "BEGIN; INSERT INTO modax_txn.idempotency (key, digest, expires_at) VALUES ('{key}', 'x', now() + interval '1 hour')"
    );
    ours.batch_execute(&claim).await.expect("claimed");
    let is_answered = AtomicBool::new(false);
    let given = async {
        let answer = layer.command(command, Some(key)).await;
        is_answered.store(true, Ordering::Relaxed);
        answer
    };
    let stopped = async {
        let waits =
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'held' AND wait_event_type = 'Lock'";
        wait::until(LONG, "the older command waits", || async {
            is_answered.load(Ordering::Relaxed) || sql(database, waits).await == "1"
        })
        .await?;
        let stop = layer.taken(&json!({"command_type": "stop"})).await;
        ours.batch_execute("ROLLBACK").await.expect("given back");
        Ok::<_, TestbedError>(stop)
    };
    let (answer, stop) = tokio::join!(given, stopped);
    Ok((answer, stop?))
}

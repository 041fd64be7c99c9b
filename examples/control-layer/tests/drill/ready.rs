//! When an instance is ready.

use modax_mqtt_failover::{Client, Message};
use modax_testbed::{
    Ground,
    broker::{Script, ScriptedBroker, Suback},
    proxy::Proxy,
};
use reqwest::StatusCode;
use serde_json::json;

use crate::{LONG, Layer, Outcome, servers, single, sql};

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_is_ready_once_a_broker_has_granted_its_subscriptions() -> Outcome {
    let ground = Ground::start().await?;
    let database = ground.postgres(single()).await?;
    let broker = ScriptedBroker::start(Script::new().suback(Suback::Never)).await.expect("a broker");
    let (brokers, url) = (broker.url(), database.url());
    let layer =
        Layer::start(&ground, "a", &[("MQTT_BROKERS", brokers.as_str()), ("DATABASE_URL", url.as_str())]).await?;
    assert!(broker.wait_until(LONG, |broker| broker.subscribes().len() >= 3).await, "it asks for what it listens to");
    let waits = |body: &serde_json::Value| body.to_string().contains("waiting for a broker's subscriptions");
    layer.until("all else is there", "/health", |_, body| waits(body)).await;
    assert_eq!(layer.get("/ready").await.0, StatusCode::SERVICE_UNAVAILABLE);

    broker.set(Script::new());
    broker.disconnect_all();

    layer.until_ready().await;
    broker.stop();
    layer.until("the broker is away", "/health", |status, _| status == StatusCode::SERVICE_UNAVAILABLE).await;
    assert_eq!(layer.get("/ready").await.0, StatusCode::OK, "what is away for everybody unreadies nobody");
    ground.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_waited_for_ready_is_not_told_that_the_broker_is_away() -> Outcome {
    let (ground, database, broker) = servers().await?;
    let proxy = Proxy::start(broker.addr()).await.expect("a proxy");
    proxy.redirect(std::net::SocketAddr::from(([127, 0, 0, 1], ground.port())));
    let (brokers, url) = (proxy.url("mqtt"), database.url());
    let pairs = [("MQTT_BROKERS", brokers.as_str()), ("DATABASE_URL", url.as_str())];
    let layer = Layer::start(&ground, "a", &pairs).await?;
    let said = |status: StatusCode, body: &serde_json::Value| {
        status == StatusCode::SERVICE_UNAVAILABLE && body.to_string().contains("no broker is connected")
    };
    layer.until("the broker is away", "/health", said).await;
    proxy.redirect(broker.addr());

    layer.until_ready().await;

    let (status, body) = layer.get("/health").await;
    assert_eq!((status, &body["status"]), (StatusCode::OK, &json!("healthy")), "{body}");
    ground.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn more_devices_than_there_is_room_for_are_said() -> Outcome {
    let (ground, database, broker) = servers().await?;
    let (brokers, url) = (broker.url(), database.url());
    let pairs = [("MQTT_BROKERS", brokers.as_str()), ("DATABASE_URL", url.as_str())];
    let layer = Layer::start(&ground, "a", &pairs).await?;
    layer.until_ready().await;
    sql(&database, "INSERT INTO devices (device_id) SELECT 'D' || n FROM generate_series(1, 10000) AS n").await;
    layer.until("all are known", "/devices", |_, body| body.as_array().is_some_and(|all| all.len() == 10_000)).await;
    assert_eq!(layer.get("/health").await.1["status"], "healthy", "there is room for so many");

    let client = Client::builder("one-more").brokers([broker.url()]).expect("a URL").build().expect("a client");
    let reading = json!({"timestamp": 1, "device_id": "ONE_MORE", "motor_currents": [], "temperatures": [],
                         "vibration": {"x": 0.0, "y": 0.0, "z": 0.0, "magnitude": 0.0}});
    let message = Message::new("modax/sensor/data", reading.to_string());
    assert!(client.publish(message).await.expect("admitted").acked().await.is_acked());

    let body = layer
        .until("it is said", "/health", |status, body| status == StatusCode::OK && body["status"] == "degraded")
        .await;
    assert!(body.to_string().contains("more than 10000 devices"), "{body}");
    assert!(layer.counter("modax_control_devices_refused_total").await >= 1);
    assert_eq!(layer.get("/ready").await.0, StatusCode::OK);
    ground.stop().await;
    Ok(())
}

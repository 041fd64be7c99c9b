//! When an instance is ready.

use modax_testbed::{
    Ground,
    broker::{Script, ScriptedBroker, Suback},
};
use reqwest::StatusCode;

use crate::{LONG, Layer, Outcome, single};

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

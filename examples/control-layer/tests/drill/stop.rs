//! Stopping waits for nothing that is held back.

use modax_testbed::{
    device::{Device, DeviceConfig},
    proxy::Proxy,
    wait,
};
use reqwest::StatusCode;
use serde_json::json;

use crate::{LONG, Layer, Outcome, servers};

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
    let device = Device::start(DeviceConfig::new("ESP32_1", [broker.url()])).await.expect("a device");
    layer.until_safe().await;

    // The broker comes back without the device: whether the plant is still safe is not known.
    proxy.redirect(std::net::SocketAddr::from(([127, 0, 0, 1], ground.port())));
    proxy.cut_all();
    wait::until(LONG, "the broker is away", || async { layer.counter("modax_control_mqtt_connected").await == 0 })
        .await?;
    device.finish(LONG).await;
    let (status, held, _) = layer.command(&json!({"command_type": "start"}), None).await;
    assert_eq!(status, StatusCode::OK, "by what was heard last the plant is safe: {held}");
    proxy.redirect(broker.addr());
    wait::until(LONG, "the broker is back", || async { layer.counter("modax_control_mqtt_connected").await == 1 })
        .await?;
    let path =
        |answer: &serde_json::Value| format!("/control/commands/{}", answer["command_id"].as_str().expect("an id"));
    let (_, body) = layer.get(&path(&held)).await;
    assert_eq!(body["audit"], "accepted", "the fault fired: it is held back: {body}");

    let (status, stop, _) = layer.command(&json!({"command_type": "emergency_stop"}), None).await;
    assert_eq!(status, StatusCode::OK, "{stop}");

    layer.until("the stop is out", &path(&stop), |_, body| body["status"] == "acknowledged").await;
    let overtaken = layer.until("the other is settled", &path(&held), |_, body| body["audit"] != "accepted").await;
    assert_eq!(overtaken["audit"], "blocked", "{overtaken}");
    assert!(overtaken["reason"].as_str().is_some_and(|reason| reason.contains("a stop was taken")), "{overtaken}");
    ground.stop().await;
    Ok(())
}

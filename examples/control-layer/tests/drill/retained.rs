//! What a broker keeps for whoever subscribes later.

use modax_mqtt_failover::{Client, Message};
use modax_testbed::wait;
use reqwest::StatusCode;
use serde_json::json;

use crate::{LONG, Layer, Outcome, servers};

#[tokio::test(flavor = "multi_thread")]
async fn f34_a_retained_safety_report_of_a_dead_device_makes_no_plant_safe() -> Outcome {
    let (ground, database, broker) = servers().await?;
    let (brokers, url) = (broker.url(), database.url());
    let device = Client::builder("dead").brokers([&brokers]).expect("a broker").build().expect("a client");
    let report = json!({
        "timestamp": 1_000, "device_id": "dead", "emergency_stop": false, "door_closed": true,
        "overload_detected": false, "temperature_ok": true
    });
    let retained = Message::new("modax/sensor/safety", report.to_string()).at_least_once().retained();
    let acked = device.publish(retained).await.expect("admitted").acked().await;
    assert!(acked.is_acked(), "{acked:?}");
    device.close(LONG).await;

    let layer = Layer::start(&ground, "a", &[("MQTT_BROKERS", &brokers), ("DATABASE_URL", &url)]).await?;
    layer.until_ready().await;

    // Each subscription is answered with it, and a busy machine may connect more than once.
    wait::until(LONG, "the report is there", || async {
        layer.counter("modax_control_safety_reports_retained_total").await >= 1
    })
    .await?;
    let (status, body) = layer.get("/status").await;
    assert_eq!((status, &body["is_safe"]), (StatusCode::OK, &json!(false)), "{body}");
    assert_eq!(layer.counter("modax_control_safety_reports_received_total").await, 0);
    ground.stop().await;
    Ok(())
}

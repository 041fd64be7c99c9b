//! An AI layer that answers with what nobody should take.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use axum::{
    Router,
    body::{Body, Bytes},
    response::{IntoResponse, Response},
    routing::post,
};
use modax_testbed::{
    device::{Device, DeviceConfig},
    wait,
};
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::{LONG, Layer, Outcome, servers, sql};

/// The answers by turns, each with what the reason of its refusal names.
const REASONS: [&str; 5] =
    ["more than 64 KiB", "anomaly_description", "anomaly_score", "device_id", "more than 64 KiB"];

fn answer(turn: usize, request: &Value) -> Response {
    let mut whole = json!({
        "timestamp": 1_795_000_000_000_u64 + turn as u64, "device_id": request["device_id"], "anomaly_detected": false,
        "anomaly_score": 0.1, "anomaly_description": "fine", "predicted_wear_level": 0.1, "estimated_remaining_hours": 9,
        "recommendations": [], "confidence": 0.8, "analysis_details": {},
    });
    match turn {
        0 => {
            let for_ever =
                futures_util::stream::repeat(Ok::<_, std::convert::Infallible>(Bytes::from_static(&[b' '; 4096])));
            return Body::from_stream(for_ever).into_response();
        }
        1 => whole["anomaly_description"] = json!("a\u{0}b"),
        2 => whole["anomaly_score"] = json!(-3),
        3 => whole["device_id"] = json!("ESP32_2"),
        4 => whole["anomaly_description"] = json!("x".repeat(200_000)),
        _ => {}
    }
    whole.to_string().into_response()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_no_analysis_takes_effect_nowhere_and_its_window_says_why() -> Outcome {
    let (ground, database, broker) = servers().await?;
    let turns = Arc::new(AtomicUsize::new(0));
    let routes = Router::new().route(
        "/api/v1/analyze",
        post(move |body: Bytes| async move {
            let request = serde_json::from_slice(&body).expect("JSON");
            answer(turns.fetch_add(1, Ordering::Relaxed), &request)
        }),
    );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let ai = format!("http://{}", listener.local_addr().expect("an address"));
    let serving = tokio::spawn(async move { axum::serve(listener, routes).await });
    let (brokers, url) = (broker.url(), database.url());
    let pairs = [
        ("MQTT_BROKERS", brokers.as_str()),
        ("DATABASE_URL", url.as_str()),
        ("AI_ENABLED", "true"),
        ("AI_LAYER_URL", ai.as_str()),
        ("AI_WINDOW", "1"),
        // Each answer is given once: one that comes late must count all the same.
        ("AI_LAYER_TIMEOUT", "60"),
    ];
    let layer = Layer::start(&ground, "a", &pairs).await?;
    layer.until_ready().await;
    let _device = Device::start(DeviceConfig::new("ESP32_1", [broker.url()])).await.expect("a device");

    // Windows are asked for side by side, so that a later one may get an earlier answer.
    let are_named = |reasons: &str| {
        REASONS.iter().all(|named| {
            let answers = REASONS.iter().filter(|other| *other == named).count();
            reasons.lines().filter(|reason| reason.contains(named)).count() >= answers
        })
    };
    let reasons = "SELECT reason FROM ai_analysis WHERE status = 'failed'";
    let settled =
        wait::until(LONG, "each of them is refused", || async { are_named(&sql(&database, reasons).await) }).await;
    assert!(settled.is_ok(), "{}\n{}", sql(&database, reasons).await, layer.process.log_tail(20));
    let served = |status: StatusCode, _: &Value| status == StatusCode::OK;
    let analysis = layer.until("the next one is served", "/devices/ESP32_1/ai-analysis", served).await;
    assert_eq!(analysis["anomaly_description"], "fine", "{analysis}");
    assert!(layer.counter("modax_control_analyses_failed_total").await >= REASONS.len() as u64);
    let held = "SELECT count(*) FROM ai_analysis WHERE status = 'failed' AND analysis IS NOT NULL";
    assert_eq!(sql(&database, held).await, "0");
    serving.abort();
    ground.stop().await;
    Ok(())
}

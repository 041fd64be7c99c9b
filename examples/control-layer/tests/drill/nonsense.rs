//! What clients and devices should never send: refused in one shape, counted, and nobody else notices.

use modax_mqtt_failover::{Client, Message};
use modax_testbed::{
    device::{Device, DeviceConfig},
    oracle::DeviceOracle,
    wait,
};
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::{LONG, Layer, Outcome, rows, servers, sql};

const UPGRADE: &str = "Connection: Upgrade, close\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

/// Headers and body after the request line.
fn request(line: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let closing = if headers.contains("Connection:") { "" } else { "Connection: close\r\n" };
    let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    [format!("{line} HTTP/1.1\r\nHost: modax\r\n{closing}{headers}{length}\r\n").as_bytes(), body].concat()
}

/// An error as the contract has it, with this status.
fn is_in_shape(expected: u16, body: &Value) -> bool {
    body["status_code"] == json!(expected)
        && ["error", "message"].iter().all(|name| body[name].as_str().is_some_and(|text| !text.is_empty()))
        && body["timestamp"].is_number()
        && body.get("details").is_some()
}

async fn refused(layer: &Layer, line: &str, headers: &str, body: &[u8], expected: u16) -> Value {
    let (status, answer, text) = layer.raw(&request(line, headers, body)).await;
    let shown: String = line.chars().take(120).collect();
    assert_eq!(status, expected, "{shown} {headers}{}\n{text}", String::from_utf8_lossy(&body[..body.len().min(80)]));
    assert!(is_in_shape(expected, &answer), "{shown}: {text}");
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_over_http_is_the_callers_fault_in_the_contracts_shape() -> Outcome {
    let (ground, database, broker) = servers().await?;
    let (brokers, url) = (broker.url(), database.url());
    let pairs = [("MQTT_BROKERS", brokers.as_str()), ("DATABASE_URL", url.as_str())];
    let keyed = [pairs[0], pairs[1], ("API_KEY_ENABLED", "true"), ("API_KEY", "geheim")];
    let (layer, locked) = tokio::try_join!(Layer::start(&ground, "a", &pairs), Layer::start(&ground, "b", &keyed))?;
    let _device = Device::start(DeviceConfig::new("ESP32_1", [broker.url()])).await.expect("a device");
    for layer in [&layer, &locked] {
        layer.until_safe().await;
    }

    for prefix in ["", "/api/v1"] {
        targets(&layer, prefix).await;
        methods(&layer, prefix).await;
    }
    bodies(&layer).await;
    keys(&layer).await;
    let commands = "SELECT count(*) FROM control_commands";
    assert_eq!(sql(&database, commands).await, "0", "nothing of it was a command");
    sockets(&layer).await;
    without_its_key(&locked).await;
    // A body that never comes: the one that waits the longest is let go in the end.
    let slow = request("POST /control/command", "Content-Length: 100\r\n", b"");
    let (status, body, text) = layer.raw(&slow).await;
    assert!(status == 408 && is_in_shape(408, &body), "{text}");

    assert_eq!(sql(&database, "SELECT string_agg(device_id, ',') FROM devices").await, "ESP32_1");
    layer.taken(&json!({"command_type": "start"})).await;
    ground.stop().await;
    Ok(())
}

async fn targets(layer: &Layer, prefix: &str) {
    let long = "x".repeat(10_000);
    for id in ["none", "%00", "a%00b", "%0a", "%zz", "%", "a%2Fb", "..", "%F0%9F%92%A9", long.as_str()] {
        for (method, rest) in [("GET", "/data"), ("GET", "/history"), ("GET", "/ai-analysis"), ("DELETE", "")] {
            refused(layer, &format!("{method} {prefix}/devices/{id}{rest}"), "", b"", 404).await;
        }
        refused(layer, &format!("GET {prefix}/control/commands/{id}"), "", b"", 404).await;
        refused(layer, &format!("GET {prefix}/health/{id}"), "", b"", 404).await;
        refused(layer, &format!("GET {prefix}/{id}/none"), "", b"", 404).await;
    }
    refused(layer, &format!("GET {prefix}/control/commands/00000000-0000-0000-0000-000000000000"), "", b"", 404).await;
    // No text at all.
    for (method, path) in [
        ("GET", "/devices/%ff/data"),
        ("DELETE", "/devices/%ff"),
        ("GET", "/control/commands/%c3%28"),
        ("GET", "/ws/device/%ff"),
    ] {
        refused(layer, &format!("{method} {prefix}{path}"), UPGRADE, b"", 400).await;
    }
    for count in ["-1", "abc", "", "1.5", "1e3", "99999999999999999999999", "%00", "1&count=2", "%ff", "0x10"] {
        let answer = refused(layer, &format!("GET {prefix}/devices/ESP32_1/history?count={count}"), "", b"", 422).await;
        assert!(answer["message"].as_str().is_some_and(|text| text.contains("count")), "{answer}");
    }
    for (query, most) in
        [("?count=0", 0), ("?count=1000000000", 1_000), ("?count=18446744073709551615", 1_000), ("?x=%ff", 100)]
    {
        let (status, body) = layer.get(&format!("{prefix}/devices/ESP32_1/history{query}")).await;
        let readings = body["readings"].as_array().map_or(usize::MAX, Vec::len);
        assert!(status == StatusCode::OK && readings <= most, "{query}: {body}");
    }
}

async fn methods(layer: &Layer, prefix: &str) {
    for line in [
        "POST /",
        "PUT /status",
        "DELETE /devices",
        "POST /devices/ESP32_1",
        "GET /devices/ESP32_1",
        "POST /devices/ESP32_1/data",
        "PATCH /devices/ESP32_1/history",
        "DELETE /devices/ESP32_1/ai-analysis",
        "GET /control/command",
        "PUT /control/command",
        "POST /control/commands/x",
        "POST /ai/status",
        "POST /ws",
        "PUT /ws/device/ESP32_1",
        "POST /live",
        "PUT /ready",
        "DELETE /health",
        "POST /health/mqtt",
        "PATCH /metrics",
        "POST /startup",
        "OPTIONS /status",
        "TRACE /devices",
        "BREW /status",
    ] {
        let (method, path) = line.split_once(' ').expect("a method and a path");
        refused(layer, &format!("{method} {prefix}{path}"), "", b"", 405).await;
    }
}

async fn bodies(layer: &Layer) {
    let deep = format!("{}1{}", "[".repeat(20_000), "]".repeat(20_000));
    let named = |name: &str, value: &str| format!("{{\"command_type\": \"start\", \"{name}\": {value}}}");
    let cases: Vec<(Vec<u8>, u16, &str)> = vec![
        (vec![], 400, ""),
        (b"{".to_vec(), 400, ""),
        (b"command_type=start".to_vec(), 400, ""),
        (b"\xff\xfe".to_vec(), 400, ""),
        (b"{\"command_type\": \"\xff\"}".to_vec(), 400, ""),
        (b"null".to_vec(), 422, ""),
        (b"[\"start\", {}]".to_vec(), 422, ""),
        (b"{}".to_vec(), 422, "command_type"),
        (b"{\"parameters\": {}}".to_vec(), 422, "command_type"),
        (b"{\"command_type\": null}".to_vec(), 422, "command_type"),
        (b"{\"command_type\": \"\"}".to_vec(), 422, "command_type"),
        (b"{\"command_type\": \"a\\u0000\"}".to_vec(), 422, "command_type"),
        (named("command_type", "\"stop\"").into_bytes(), 422, "command_type"),
        (format!("{{\"command_type\": \"{}\"}}", "x".repeat(10_000)).into_bytes(), 422, "command_type"),
        (format!("{{\"command_type\": {deep}}}").into_bytes(), 400, "command_type"),
        (named("parameters", "[]").into_bytes(), 422, "parameters"),
        (named("parameters", "\"rpm\"").into_bytes(), 422, "parameters"),
        (named("parameters", "{\"rpm\": 100}").into_bytes(), 422, "parameters.rpm"),
        (named("parameters", "{\"rpm\": null}").into_bytes(), 422, "parameters.rpm"),
        (named("parameters", "{\"rpm\": {\"a\": \"b\"}}").into_bytes(), 422, "parameters.rpm"),
        (named("parameters", "{\"rpm\": \"1\", \"rpm\": \"2\"}").into_bytes(), 422, "rpm"),
        (named("parameters", "{\"rpm\": \"\\u0000\"}").into_bytes(), 422, "parameters"),
        (vec![b' '; 70_000], 413, ""),
        (vec![b'x'; 2_000_000], 413, ""),
    ];
    for (body, expected, field) in cases {
        for kind in
            ["Content-Type: application/json\r\n", "Content-Type: text/plain\r\n", "Content-Type: \u{fc}\r\n", ""]
        {
            let answer = refused(layer, "POST /control/command", kind, &body, expected).await;
            assert!(answer["message"].as_str().is_some_and(|text| text.contains(field)), "{field}: {answer}");
        }
    }
    // Refused by what its head says: the body never comes.
    let announced = "Content-Length: 99999999999\r\n";
    refused(layer, "POST /control/command", announced, b"", 413).await;
    // As any page may have an operator's browser send it.
    let page = "Origin: http://elsewhere\r\nContent-Type: text/plain\r\n";
    refused(layer, "POST /control/command", page, br#"{"command_type": "stop"}"#, 415).await;
    refused(layer, "POST /api/v1/control/command", "Origin: null\r\n", br#"{"command_type": "stop"}"#, 415).await;
    let page = "Origin: http://elsewhere\r\nContent-Type: application/json\r\n";
    refused(layer, "POST /control/command", page, b"{", 400).await;
    // A chunk that is none ends the request, whoever says so.
    let broken = b"POST /control/command HTTP/1.1\r\nHost: modax\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n";
    assert_eq!(layer.raw(broken).await.0, 400);
}

async fn keys(layer: &Layer) {
    let body = br#"{"command_type": "start"}"#;
    let long = format!("Idempotency-Key: {}\r\n", "k".repeat(600));
    for headers in
        ["Idempotency-Key:\r\n", "Idempotency-Key: \u{fc}\r\n", "Idempotency-Key: a\r\nIdempotency-Key: b\r\n", &long]
    {
        let answer = refused(layer, "POST /control/command", headers, body, 400).await;
        assert!(answer["message"].as_str().is_some_and(|text| text.contains("Idempotency-Key")), "{answer}");
    }
}

async fn sockets(layer: &Layer) {
    for id in ["%00", "a%0ab", &"x".repeat(10_000)] {
        refused(layer, &format!("GET /ws/device/{id}"), UPGRADE, b"", 404).await;
    }
    for path in ["/ws", "/api/v1/ws", "/ws/device/ESP32_1"] {
        refused(layer, &format!("GET {path}"), "", b"", 426).await;
        let old = UPGRADE.replace("13", "12");
        refused(layer, &format!("GET {path}"), &old, b"", 426).await;
    }
    // A frame of a megabyte ends the connection: `raw` would wait for its end in vain otherwise.
    let frame = [&[0x82, 0xff, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0][..], &vec![0; 1 << 20]].concat();
    let (status, _, _) = layer.raw(&[request("GET /ws/device/unknown", UPGRADE, b""), frame].concat()).await;
    assert_eq!(status, 101);
}

async fn without_its_key(locked: &Layer) {
    for line in [
        "GET /nowhere",
        "GET /devices/%00/data",
        "DELETE /devices/%00",
        "POST /control/command",
        "GET /ws",
        "GET /health/mqtt",
        "GET /api/v1/devices",
        "GET /live/",
        "GET /%6cive",
        "GET //live",
        "GET /devices/..%2f..%2flive/data",
        "BREW /",
    ] {
        for headers in ["", "X-API-Key:\r\n", "X-API-Key: falsch\r\n", "X-API-Key: \u{fc}\r\n"] {
            refused(locked, line, headers, b"", 401).await;
        }
    }
    refused(locked, "GET /nowhere", "X-API-Key: geheim\r\n", b"", 404).await;
    refused(locked, "POST /live", "", b"", 405).await;
    for path in ["/live", "/ready", "/status", "/health", "/metrics", "/api/v1/status"] {
        assert_eq!(locked.raw(&request(&format!("GET {path}"), "", b"")).await.0, 200, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_over_mqtt_is_counted_and_holds_up_no_reading_and_no_safety_report() -> Outcome {
    let (ground, database, broker) = servers().await?;
    let (brokers, url) = (broker.url(), database.url());
    let pairs = [("MQTT_BROKERS", brokers.as_str()), ("DATABASE_URL", url.as_str())];
    let layer = Layer::start(&ground, "a", &pairs).await?;
    layer.until_ready().await;
    let device = Device::start(DeviceConfig::new("ESP32_1", [broker.url()])).await.expect("a device");
    layer.until_safe().await;

    let vandal = Client::builder("vandal").brokers([broker.url()]).expect("a URL").build().expect("a client");
    let whole = json!({"timestamp": 1, "device_id": "ESP32_1", "motor_currents": [2.5], "temperatures": [1.0],
                       "vibration": {"x": 0.0, "y": 0.0, "z": 0.0, "magnitude": 0.0}})
    .to_string();
    let broken: Vec<Vec<u8>> = vec![
        vec![],
        b"\xff\xfe\x00".to_vec(),
        b"NaN".to_vec(),
        whole.replace("2.5", "NaN").into_bytes(),
        whole.replace("2.5", "\"2.5\"").into_bytes(),
        whole.replace("2.5", &vec!["1"; 10_000].join(",")).into_bytes(),
        whole.replace(":1,", ":-1,").into_bytes(),
        whole.replace("ESP32_1", "a\\u0000b").into_bytes(),
        whole.replace("ESP32_1", &"x".repeat(10_000)).into_bytes(),
        vec![b'['; 1 << 20],
        format!("{whole}{}", " ".repeat(1 << 20)).into_bytes(),
        vec![0; 1 << 20],
    ];
    let mut sent = 0;
    for topic in ["modax/sensor/data", "modax/sensor/safety", "modax/ai/analysis"] {
        for payload in &broken {
            let receipt = vandal.publish(Message::new(topic, payload.clone())).await.expect("admitted");
            assert!(receipt.acked().await.is_acked(), "{topic}");
            sent += 1;
        }
    }
    let mut flood = Vec::new();
    for n in 0..5_000 {
        let topic = ["modax/sensor/data", "modax/sensor/safety", "modax/sensor/other", "modax/control/commands"][n % 4];
        sent += u64::from(n % 4 < 2);
        flood.push(vandal.publish(Message::new(topic, format!("{{\"n\": {n}"))).await.expect("admitted"));
    }
    for receipt in flood {
        assert!(receipt.acked().await.is_acked());
    }
    // Strange, but a reading: as large as numbers get, and negative.
    let strange =
        whole.replace("2.5", "-1.7e308,1.7e308,5e-324").replace("\"timestamp\":1", "\"timestamp\":1795000000000");
    let strange = Message::new("modax/sensor/data", strange.replace("ESP32_1", "STRANGE"));
    assert!(vandal.publish(strange).await.expect("admitted").acked().await.is_acked());

    let refused = || async { layer.counter("modax_control_payloads_refused_total").await };
    // Safety reports are subscribed to with QoS 0: a broker may shed some of a flood.
    // What QoS 1 repeats is counted again; that nothing else was refused is the oracle's to say.
    let counted = wait::until(LONG, "all are refused", || async { refused().await >= sent - 1_250 }).await;
    assert!(counted.is_ok(), "{} of {sent}", refused().await);
    let stored = "SELECT motor_currents FROM sensor_data WHERE device_id = 'STRANGE'";
    wait::until(LONG, "the strange one is stored", || async { !sql(&database, stored).await.is_empty() }).await?;
    assert_eq!(sql(&database, stored).await, "{-1.7e+308,1.7e+308,5e-324}");
    assert_eq!(layer.delete("/devices/STRANGE").await, StatusCode::OK);

    let made = device.status().made;
    assert!(device.wait_until(LONG, |status| status.acked > made + 20).await, "{:?}", device.status());
    layer.until("it is safe all the same", "/status", |_, body| body["is_safe"] == true).await;
    assert_eq!(layer.get("/devices").await.1, json!(["ESP32_1"]));
    let log = device.finish(LONG).await;
    let judge = || async { DeviceOracle::judge(std::slice::from_ref(&log), &rows(&database).await) };
    let clean = wait::until(LONG, "every reading has its row", || async { judge().await.lost.is_empty() });
    assert!(clean.await.is_ok() && judge().await.is_clean(), "{:?}\n{}", judge().await, layer.process.log_tail(20));
    assert_eq!(layer.counter("modax_control_rows_refused_total").await, 0);
    ground.stop().await;
    Ok(())
}

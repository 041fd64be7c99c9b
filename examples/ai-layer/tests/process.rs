//! The real binary: started, asked, told to stop.

use std::time::Duration;

use modax_testbed::{Ground, Process, Spawn, wait};
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};

const LONG: Duration = Duration::from_secs(20);

struct Instance {
    ground: Ground,
    process: Process,
    url: String,
    http: Client,
}

fn spawn(ground: &Ground, env: &[(&str, &str)]) -> Process {
    let spawn =
        env.iter().fold(Spawn::new(env!("CARGO_BIN_EXE_ai-layer")), |spawn, (key, value)| spawn.env(key, value));
    ground.spawn(spawn.log("ai-layer")).unwrap()
}

impl Instance {
    async fn start(env: &[(&str, &str)]) -> Self {
        let ground = Ground::start().await.unwrap();
        let mut all =
            vec![("API_HOST", "127.0.0.1"), ("API_PORT", "0"), ("INSTANCE_ID", "ai-1"), ("DRAIN_TIME", "0.5")];
        all.extend_from_slice(env);
        let process = spawn(&ground, &all);
        let listening = wait::until(LONG, "the line that tells the address", || async {
            let line = process.log_tail(100).lines().find(|line| line.contains("listening"))?.to_owned();
            let line: Value = serde_json::from_str(&line).ok()?;
            Some(line["addr"].as_str()?.to_owned())
        });
        let url = format!("http://{}", listening.await.unwrap());
        let http = Client::builder().no_proxy().timeout(LONG).build().unwrap();
        let instance = Self { ground, process, url, http };
        wait::until(LONG, "ready", || async { instance.get("/ready").await.0 == StatusCode::OK }).await.unwrap();
        instance
    }

    async fn get(&self, path: &str) -> (StatusCode, String) {
        match self.http.get(format!("{}{path}", self.url)).send().await {
            Ok(answer) => (answer.status(), answer.text().await.unwrap_or_default()),
            Err(error) => (StatusCode::IM_A_TEAPOT, error.to_string()),
        }
    }

    async fn post(&self, body: impl Into<reqwest::Body>) -> (StatusCode, Value) {
        let answer = self.http.post(format!("{}/api/v1/analyze", self.url)).body(body).send().await.unwrap();
        let code = answer.status();
        let text = answer.text().await.unwrap();
        (code, serde_json::from_str(&text).unwrap_or_else(|_| panic!("{code} is not JSON: {text}")))
    }
}

fn window() -> Value {
    json!({
        "device_id": "ESP32_FIELD_001", "time_window_start": 1_700_000_000.0, "time_window_end": 1_700_000_010.0,
        "current_mean": [4.0, 4.2], "current_std": [0.1, 0.1], "current_max": [4.5, 4.6],
        "vibration_mean": {"x": 1.0, "y": 1.1, "z": 1.2, "magnitude": 1.9},
        "vibration_std": {"x": 0.1, "y": 0.1, "z": 0.1, "magnitude": 0.1},
        "vibration_max": {"x": 1.3, "y": 1.3, "z": 1.5, "magnitude": 2.4},
        "temperature_mean": [40.0], "temperature_max": [41.0], "sample_count": 100
    })
}

#[tokio::test]
async fn a_window_is_answered_with_every_field_of_the_contract() {
    let instance = Instance::start(&[]).await;

    let (code, fine) = instance.post(window().to_string()).await;
    assert_eq!(code, StatusCode::OK, "{fine}");
    let mut spiking = window();
    spiking["current_max"] = json!([13.5, 4.6]);
    spiking["unknown"] = json!("ignored");
    let (code, bad) = instance.post(spiking.to_string()).await;
    assert_eq!(code, StatusCode::OK, "{bad}");

    for answer in [&fine, &bad] {
        assert_eq!(answer["device_id"], "ESP32_FIELD_001");
        assert!(answer["timestamp"].as_u64().unwrap() > 1_700_000_000_000);
        for ratio in ["anomaly_score", "predicted_wear_level", "confidence"] {
            assert!((0.0..=1.0).contains(&answer[ratio].as_f64().unwrap()), "{ratio}: {answer}");
        }
        assert!(answer["anomaly_detected"].is_boolean() && answer["anomaly_description"].is_string());
        assert!(answer["estimated_remaining_hours"].is_u64() && answer["recommendations"].is_array());
        assert!(answer["analysis_details"].is_object());
    }
    assert_eq!((&fine["anomaly_detected"], &fine["anomaly_score"]), (&json!(false), &json!(0.0)));
    assert_eq!((&bad["anomaly_detected"], &bad["anomaly_score"]), (&json!(true), &json!(0.9)));
    instance.ground.stop().await;
}

#[tokio::test]
async fn every_route_answers_bare_and_under_the_prefix() {
    let instance = Instance::start(&[]).await;
    instance.post(window().to_string()).await;

    for path in ["/models/info", "/health", "/ready", "/live", "/startup", "/metrics"] {
        for prefix in ["", "/api/v1"] {
            let (code, text) = instance.get(&format!("{prefix}{path}")).await;
            assert_eq!(code, StatusCode::OK, "{prefix}{path}: {text}");
        }
    }
    let (_, root) = instance.get("/").await;
    assert_eq!(serde_json::from_str::<Value>(&root).unwrap()["api_prefix"], "/api/v1");
    let (_, metrics) = instance.get("/metrics").await;
    assert!(metrics.contains("modax_ai_analysis_duration_seconds_count 1\n"), "{metrics}");
    assert!(metrics.contains("modax_healthcheck{name=\"analysis\",type=\"readyz\"} 1\n"), "{metrics}");
    let (_, health) = instance.get("/health").await;
    let health: Value = serde_json::from_str(&health).unwrap();
    assert_eq!((&health["status"], &health["checks"]["analysis"]), (&json!("healthy"), &json!(true)));
    let (code, text) = instance.get("/nothing").await;
    assert_eq!(code, StatusCode::NOT_FOUND);
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap()["status_code"], 404);
    instance.ground.stop().await;
}

#[tokio::test]
async fn bad_input_is_an_error_that_names_the_field_and_nothing_dies_of_it() {
    let instance = Instance::start(&[]).await;
    let mut without = window();
    without.as_object_mut().unwrap().remove("vibration_mean");
    let mut deep = window();
    deep["vibration_mean"].as_object_mut().unwrap().remove("z");
    let mut mistyped = window();
    mistyped["current_mean"] = json!([1.0, "x"]);
    let nan = window().to_string().replace("\"sample_count\":100", "\"sample_count\":NaN");
    let infinite = window().to_string().replace("\"sample_count\":100", "\"sample_count\":1e999");
    let nested = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));

    for (body, code, field) in [
        (without.to_string(), 422, Some("vibration_mean")),
        (deep.to_string(), 422, Some("vibration_mean.z")),
        (mistyped.to_string(), 422, Some("current_mean[1]")),
        (nan, 400, None),
        (infinite, 400, None),
        (nested, 400, None),
        ("[1]".to_owned(), 400, None),
        (String::new(), 400, None),
        ("x".repeat(100_000), 413, None),
    ] {
        let (answered, error) = instance.post(body).await;
        assert_eq!(answered, code, "{error}");
        assert_eq!(error["status_code"], code);
        for name in ["error", "message", "timestamp", "details"] {
            assert!(error.get(name).is_some(), "no {name} in {error}");
        }
        if let Some(field) = field {
            assert_eq!(error["details"]["field"], field, "{error}");
            assert!(error["message"].as_str().unwrap().contains(field), "{error}");
        }
    }
    assert_eq!(instance.post(window().to_string()).await.0, StatusCode::OK);
    assert_eq!(instance.get("/api/v1/analyze").await.0, StatusCode::METHOD_NOT_ALLOWED);
    instance.ground.stop().await;
}

#[tokio::test]
async fn what_no_route_takes_is_refused_in_the_shape_of_every_error() {
    let instance = Instance::start(&[]).await;
    for (method, path, code) in [
        ("GET", "/nothing", 404),
        ("GET", "/health/nothing", 404),
        ("GET", "/health/%00", 404),
        ("GET", "/analyze", 405),
        ("DELETE", "/analyze", 405),
        ("POST", "/models/info", 405),
        ("PUT", "/live", 405),
        ("POST", "/health", 405),
        ("PATCH", "/metrics", 405),
        ("BREW", "/ready", 405),
    ] {
        for prefix in ["", "/api/v1"] {
            let request = instance.http.request(method.parse().unwrap(), format!("{}{prefix}{path}", instance.url));
            let answer = request.send().await.unwrap();
            assert_eq!(answer.status().as_u16(), code, "{method} {prefix}{path}");
            let error: Value = answer.json().await.unwrap_or_else(|error| panic!("{method} {prefix}{path}: {error}"));
            assert_eq!(error["status_code"], code, "{error}");
            assert!(error["error"].is_string() && error["message"].is_string() && error.get("details").is_some());
        }
    }
    instance.ground.stop().await;
}

#[tokio::test]
async fn windows_at_the_edge_of_what_is_taken_are_answered_with_numbers() {
    let instance = Instance::start(&[]).await;
    let axes = |value: f64| json!({"x": value, "y": value, "z": value, "magnitude": value.abs()});
    for value in [0.0_f64, 1e9, -1e9, 5e-324] {
        for seconds in [0.0, 1e-9, 31_536_000.0] {
            let mut edge = window();
            for name in ["current_mean", "current_max"] {
                edge[name] = json!(vec![value; 256]);
            }
            edge["current_std"] = json!(vec![value.abs(); 256]);
            edge["vibration_mean"] = axes(value);
            edge["vibration_std"] = axes(value.abs());
            edge["vibration_max"] = axes(value);
            (edge["temperature_mean"], edge["temperature_max"]) = (json!([]), json!([]));
            edge["time_window_end"] = json!(1_700_000_000.0 + seconds);
            edge["sample_count"] = json!(if value == 0.0 { 0 } else { u64::MAX });
            // Twice: the second one is judged by what the first has made usual.
            for _ in 0..2 {
                let (code, answer) = instance.post(edge.to_string()).await;
                assert_eq!(code, StatusCode::OK, "{answer}");
                for ratio in ["anomaly_score", "predicted_wear_level", "confidence"] {
                    let ratio = answer[ratio].as_f64().unwrap_or_else(|| panic!("{ratio} is no number in {answer}"));
                    assert!((0.0..=1.0).contains(&ratio), "{answer}");
                }
                assert!(answer["estimated_remaining_hours"].is_u64(), "{answer}");
            }
        }
    }
    let (code, answer) = instance.post(window().to_string()).await;
    assert!(code == StatusCode::OK && answer["anomaly_score"].is_number(), "{answer}");
    instance.ground.stop().await;
}

#[tokio::test]
async fn a_stop_is_first_seen_at_ready_loses_no_request_and_ends_with_zero() {
    // Three answers must fall into the drain, however busy the machine; it ends by itself.
    let instance = Instance::start(&[("DRAIN_TIME", "15")]).await;

    let stopping = instance.process.terminate(3 * LONG);
    let watching = async {
        wait::until(LONG, "/ready is 503", || async {
            instance.get("/ready").await.0 == StatusCode::SERVICE_UNAVAILABLE
        })
        .await
        .unwrap();
        (instance.get("/live").await.0, instance.post(window().to_string()).await.0)
    };
    let (status, (live, analysed)) = tokio::join!(stopping, watching);

    assert!(status.unwrap().success());
    assert_eq!((live, analysed), (StatusCode::OK, StatusCode::OK), "it serves while it drains");
    instance.ground.stop().await;
}

#[tokio::test]
async fn a_bad_setting_stops_the_start_with_one_line_that_names_it() {
    let ground = Ground::start().await.unwrap();
    for (name, value) in [
        ("API_PORT", "eighty"),
        ("API_PORT", "70000"),
        ("DRAIN_TIME", "-1"),
        ("INSTANCE_ID", "a b"),
        ("RUST_LOG", "ai_layer=loud"),
        ("API_HOST", "no host"),
    ] {
        let spawn = Spawn::new(env!("CARGO_BIN_EXE_ai-layer"))
            .env("API_PORT", "0")
            .env(name, value)
            .log(format!("bad-{name}-{}", value.len()));
        let process = ground.spawn(spawn).unwrap();

        let status = process.exited(LONG).await.unwrap();
        let log = process.log_tail(10);

        assert_eq!(status.code(), Some(2), "{name}={value}: {log}");
        assert_eq!(log.trim().lines().count(), 1, "{log}");
        assert!(log.starts_with(&format!("{name}: ")), "{log}");
    }
    ground.stop().await;
}

//! What a probe is answered, through the tower service and through axum.

use std::time::Duration;

use http::{Method, Request, StatusCode, header};
use http_body_util::BodyExt;
use modax_health::{CheckConfig, CheckError, HealthService, Need, Registry, Scope, Watchdog};
use tower::ServiceExt;

use crate::registry::until;

async fn registry() -> Registry {
    let passing = || async { Ok::<(), String>(()) };
    let registry = Registry::builder()
        .check(CheckConfig::new("mqtt", passing))
        .check(CheckConfig::new("database", || async { Err("password=hunter2") }).scope(Scope::Shared))
        .check(
            CheckConfig::new("ai_layer", || async { Err::<(), _>(CheckError::public("no \"answer\"")) })
                .need(Need::Optional),
        )
        .watchdog(&Watchdog::new("ingest", Duration::from_secs(60)))
        .build()
        .unwrap();
    until("started", || registry.state().is_started()).await;
    registry
}

struct Answer {
    code: StatusCode,
    headers: http::HeaderMap,
    body: String,
}

async fn ask(registry: &Registry, method: Method, path: &str) -> Answer {
    let request = Request::builder().method(method).uri(path).body(()).unwrap();
    let response = HealthService::new(registry.clone()).oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    Answer { code: parts.status, headers: parts.headers, body: String::from_utf8(body.to_vec()).unwrap() }
}

#[tokio::test(start_paused = true)]
async fn each_endpoint_answers_its_own_question() {
    let registry = registry().await;

    // (path, code, x-health)
    for (path, code, status) in [
        ("/live", 200, "healthy"),
        ("/startup", 200, "healthy"),
        ("/ready", 200, "degraded"),
        ("/health", 503, "unhealthy"),
        ("/health/mqtt", 200, "healthy"),
        ("/health/database", 503, "unhealthy"),
        ("/health/ai_layer", 200, "degraded"),
        ("/health/nobody", 404, "unhealthy"),
        ("/metrics", 200, "unhealthy"),
        ("/other", 404, "unhealthy"),
        ("/ready/", 200, "degraded"),
        ("/ready?verbose", 200, "healthy"),
    ] {
        let answer = ask(&registry, Method::GET, path).await;
        assert_eq!(answer.code, code, "{path}: {}", answer.body);
        assert_eq!(answer.headers["x-health"], status, "{path}");
        assert_eq!(answer.headers[header::CACHE_CONTROL], "no-store", "{path}");
        assert!(!answer.body.contains("hunter2"), "{path}: {}", answer.body);

        let head = ask(&registry, Method::HEAD, path).await;
        assert_eq!((head.code, head.body.as_str()), (answer.code, ""), "{path}");
    }
    let answer = ask(&registry, Method::POST, "/ready").await;
    assert_eq!(
        (answer.code, &answer.headers[header::ALLOW]),
        (StatusCode::METHOD_NOT_ALLOWED, &"GET, HEAD".parse().unwrap())
    );
}

#[tokio::test(start_paused = true)]
async fn health_speaks_the_json_of_the_contract() {
    let registry = registry().await;

    let answer = ask(&registry, Method::GET, "/health").await;
    let json: serde_json::Value = serde_json::from_str(&answer.body).unwrap();

    assert_eq!(answer.headers[header::CONTENT_TYPE], "application/json");
    assert_eq!(json["status"], "unhealthy");
    assert!(json["timestamp"].as_str().unwrap().ends_with('Z'), "{json}");
    assert_eq!(json["checks"], serde_json::json!({"mqtt": true, "database": false, "ai_layer": false}));
    assert_eq!(json["details"]["database"]["scope"], "shared");
    assert_eq!(json["details"]["database"]["reason"], "withheld");
    assert_eq!(json["details"]["ai_layer"]["reason"], "no \"answer\"");
    assert_eq!(json["details"]["ai_layer"]["need"], "optional");
    assert_eq!((&json["ready"], &json["live"]), (&true.into(), &true.into()));
    assert_eq!(json["watchdogs"]["ingest"], true);
}

#[tokio::test(start_paused = true)]
async fn a_drain_shows_in_every_answer_that_it_concerns() {
    let registry = registry().await;
    registry.start_drain();

    let ready = ask(&registry, Method::GET, "/ready").await;
    let json: serde_json::Value = serde_json::from_str(&ready.body).unwrap();

    assert_eq!(ready.code, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(
        (&json["status"], &json["ready"], &json["draining"]),
        (&"unhealthy".into(), &false.into(), &true.into())
    );
    assert_eq!(ask(&registry, Method::GET, "/live").await.code, StatusCode::OK);
    assert!(ask(&registry, Method::GET, "/ready?verbose=1").await.body.contains("[-]drain in progress"));
    assert!(ask(&registry, Method::GET, "/metrics").await.body.contains("modax_health_draining 1"));
}

#[tokio::test(start_paused = true)]
async fn verbose_is_kubernetes_text_with_the_reason_withheld() {
    let registry = registry().await;

    let text = ask(&registry, Method::GET, "/health?verbose").await.body;

    assert_eq!(
        text,
        "[+]ingest ok\n[+]mqtt ok\n[-]database failed: reason withheld\n\
         [-]ai_layer failed: reason no \"answer\"\nhealth check failed\n"
    );
}

#[tokio::test(start_paused = true)]
async fn metrics_are_well_formed_prometheus_text_and_take_the_applications_own() {
    let registry = registry().await;
    let service = HealthService::new(registry).with_metrics(|out| out.push_str("own_total 7\n"));

    let response = service.answer(&Request::get("/metrics").body(()).unwrap());
    let text = String::from_utf8(response.into_body().into_bytes().to_vec()).unwrap();

    let mut families = std::collections::BTreeSet::new();
    let mut samples = std::collections::BTreeSet::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("# TYPE ") {
            assert!(families.insert(name.split(' ').next().unwrap().to_owned()), "declared twice: {line}");
        } else if !line.starts_with('#') {
            let (series, value) = line.rsplit_once(' ').unwrap();
            assert!(value.parse::<f64>().is_ok(), "{line}");
            assert!(samples.insert(series.to_owned()), "given twice: {line}");
            let name = series.split('{').next().unwrap();
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
            assert!(families.contains(name) || families.contains(base) || name == "own_total", "undeclared: {line}");
        }
    }
    for series in [
        r#"modax_healthcheck{name="mqtt",type="readyz"}"#,
        r#"modax_healthcheck{name="database",type="healthz"}"#,
        r#"modax_healthcheck{name="ingest",type="livez"}"#,
        r#"modax_healthchecks_total{name="mqtt",type="readyz",status="success"}"#,
        r#"modax_health_status{state="unhealthy"}"#,
        r#"modax_healthcheck_duration_seconds_bucket{name="mqtt",le="+Inf"}"#,
        r#"modax_healthcheck_last_transition_timestamp_seconds{name="database"}"#,
        "own_total",
    ] {
        assert!(samples.contains(series), "no {series} in\n{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn axum_serves_the_same_bare_and_nested() {
    let registry = registry().await;
    let health = || modax_health::axum::router(registry.clone());
    let app: axum::Router = axum::Router::new().merge(health()).nest("/api/v1", health());

    for (path, code) in [
        ("/live", 200),
        ("/ready", 200),
        ("/health", 503),
        ("/health/mqtt", 200),
        ("/metrics", 200),
        ("/api/v1/live", 200),
        ("/api/v1/health/database", 503),
        ("/api/v1/metrics", 200),
        ("/nothing", 404),
    ] {
        for method in [Method::GET, Method::HEAD] {
            let request = Request::builder().method(method).uri(path).body(axum::body::Body::empty()).unwrap();
            assert_eq!(app.clone().oneshot(request).await.unwrap().status(), code, "{path}");
        }
    }
}

//! The routes, each bare and under `/api/v1`.

use std::{
    fmt::Write as _,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use axum::{
    Json, Router,
    body::{Bytes, to_bytes},
    extract::{DefaultBodyLimit, Request, State, rejection::BytesRejection},
    http::{StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use modax_health::{HealthService, Registry};
use serde_json::{Value, json};

use crate::{
    analysis::{Analysis, analyse},
    baseline::Baselines,
    logs,
    request::{BadField, Window},
};

/// Largest body: the longest lists the request may hold take a quarter of it.
const BODY_BYTES: usize = 64 * 1024;
/// Longest time for one request, its body included: a client that sends a byte a minute is let go.
const DEADLINE: Duration = Duration::from_secs(10);

/// What the routes share.
#[derive(Debug)]
pub(crate) struct App {
    instance_id: String,
    baselines: Mutex<Baselines>,
    analyses: AtomicU64,
    anomalies: AtomicU64,
    refused: AtomicU64,
    nanoseconds: AtomicU64,
}

impl App {
    pub(crate) fn new(instance_id: String) -> Self {
        Self {
            instance_id,
            baselines: Mutex::default(),
            analyses: AtomicU64::new(0),
            anomalies: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            nanoseconds: AtomicU64::new(0),
        }
    }

    fn analyse(&self, window: &Window) -> Analysis {
        let began = Instant::now();
        let mut baselines = self.baselines.lock().unwrap_or_else(PoisonError::into_inner);
        let analysis = analyse(window, &mut baselines, unix_ms(), &self.instance_id);
        drop(baselines);
        self.analyses.fetch_add(1, Relaxed);
        self.anomalies.fetch_add(u64::from(analysis.anomaly_detected), Relaxed);
        self.nanoseconds.fetch_add(u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX), Relaxed);
        analysis
    }

    fn devices(&self) -> usize {
        self.baselines.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn metrics(&self, out: &mut String) {
        let analyses = self.analyses.load(Relaxed);
        let seconds = Duration::from_nanos(self.nanoseconds.load(Relaxed)).as_secs_f64();
        let mut sample = |name: &str, kind: &str, help: &str, value: f64| {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
        };
        sample("modax_ai_anomalies_total", "counter", "Windows with an anomaly.", self.anomalies.load(Relaxed) as f64);
        sample(
            "modax_ai_refused_total",
            "counter",
            "Requests refused for what they hold.",
            self.refused.load(Relaxed) as f64,
        );
        sample("modax_ai_devices", "gauge", "Devices this instance has a baseline of.", self.devices() as f64);
        sample(
            "modax_ai_log_lines_dropped_total",
            "counter",
            "Log lines that nobody read in time.",
            logs::dropped() as f64,
        );
        let name = "modax_ai_analysis_duration_seconds";
        let _ = writeln!(out, "# HELP {name} Time of one analysis.\n# TYPE {name} summary");
        let _ = writeln!(out, "{name}_sum {seconds}\n{name}_count {analyses}");
    }
}

/// All routes.
pub(crate) fn router(app: Arc<App>, registry: &Registry) -> Router {
    let metrics = Arc::clone(&app);
    let health = HealthService::new(registry.clone()).with_metrics(move |out| metrics.metrics(out));
    let routes = || {
        Router::new()
            .route("/analyze", post(analyze))
            .route("/models/info", get(models))
            .merge(modax_health::axum::routes(&health))
    };
    Router::new()
        .route("/", get(root))
        .route("/api/v1/", get(root))
        .route("/api/v1", get(root))
        .merge(routes())
        .nest("/api/v1", routes())
        .fallback(async || problem(StatusCode::NOT_FOUND, "not_found", "no such route", &Value::Null))
        .method_not_allowed_fallback(async || {
            problem(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "not with this method", &Value::Null)
        })
        .layer(DefaultBodyLimit::max(BODY_BYTES))
        .layer(middleware::map_response(in_one_shape))
        .layer(middleware::from_fn(within_deadline))
        .with_state(app)
}

async fn within_deadline(request: Request, next: Next) -> Response {
    match tokio::time::timeout(DEADLINE, next.run(request)).await {
        Ok(response) => response,
        Err(_) => problem(StatusCode::REQUEST_TIMEOUT, "timeout", "the request did not arrive in time", &Value::Null),
    }
}

/// What the health routes and axum refuse by themselves, as plain text, in the shape of every error.
async fn in_one_shape(response: Response) -> Response {
    let (code, kind) = (response.status(), response.headers().get(header::CONTENT_TYPE));
    if !code.is_client_error() || !kind.is_some_and(|kind| kind.as_bytes().starts_with(b"text/plain")) {
        return response;
    }
    let error = if code == StatusCode::NOT_FOUND { "not_found" } else { "bad_request" };
    let text = to_bytes(response.into_body(), 1024).await.unwrap_or_default();
    problem(code, error, String::from_utf8_lossy(&text).trim(), &Value::Null)
}

async fn root(State(app): State<Arc<App>>) -> Json<Value> {
    Json(json!({
        "name": "MODAX AI layer", "version": env!("CARGO_PKG_VERSION"), "api_prefix": "/api/v1",
        "instance_id": app.instance_id
    }))
}

async fn models(State(app): State<Arc<App>>) -> Json<Value> {
    Json(json!({
        "models": [
            {"name": "anomaly_detection", "type": "rules and moving baseline", "version": "1.0", "status": "loaded"},
            {"name": "wear_prediction", "type": "load factors on a 10,000 h life", "version": "1.0", "status": "loaded"}
        ],
        "version": env!("CARGO_PKG_VERSION"),
        "instance_id": app.instance_id,
        "devices": app.devices()
    }))
}

/// The body is read as JSON whatever its content type says: the control layers before this one sent none.
async fn analyze(State(app): State<Arc<App>>, body: Result<Bytes, BytesRejection>) -> Response {
    let answer = read(body).map(|window| app.analyse(&window));
    match answer {
        Ok(analysis) => {
            if analysis.anomaly_detected {
                let (device_id, score) = (&analysis.device_id, analysis.anomaly_score);
                tracing::debug!(device_id, score, "anomaly");
            }
            Json(analysis).into_response()
        }
        Err(refusal) => {
            app.refused.fetch_add(1, Relaxed);
            *refusal
        }
    }
}

fn read(body: Result<Bytes, BytesRejection>) -> Result<Window, Box<Response>> {
    let refuse = |code, error, message: String, details: &Value| Box::new(problem(code, error, &message, details));
    let body = body.map_err(|rejection| {
        let (code, error) = match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE => (StatusCode::PAYLOAD_TOO_LARGE, "body_too_large"),
            _ => (StatusCode::BAD_REQUEST, "bad_body"),
        };
        refuse(code, error, format!("the body cannot be read; at most {BODY_BYTES} bytes are"), &Value::Null)
    })?;
    let value: Value = serde_json::from_slice(&body).map_err(|error| {
        refuse(StatusCode::BAD_REQUEST, "invalid_json", format!("the body is not JSON: {error}"), &Value::Null)
    })?;
    let Value::Object(object) = value else {
        return Err(refuse(StatusCode::BAD_REQUEST, "invalid_json", "the body is not an object".into(), &Value::Null));
    };
    Window::from_json(&object).map_err(|BadField { field, reason }| {
        let details = json!({"field": field, "reason": reason});
        refuse(StatusCode::UNPROCESSABLE_ENTITY, "invalid_field", format!("{field} {reason}"), &details)
    })
}

/// An error as the contract has it.
fn problem(code: StatusCode, error: &str, message: &str, details: &Value) -> Response {
    let body = json!({
        "error": error, "message": message, "status_code": code.as_u16(),
        "timestamp": unix_ms() as f64 / 1000.0, "details": details
    });
    (code, Json(body)).into_response()
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

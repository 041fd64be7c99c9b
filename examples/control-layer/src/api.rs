//! The HTTP interface: every route bare, as the panel calls it, and under `/api/v1`.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{Path, Query, Request, State, rejection::QueryRejection},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{delete, get, post},
};
use modax_health::{HealthService, Registry};
use modax_txn::IdempotencyKey;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    app::App,
    commands::{self, Answer, Audits},
    contract::{CommandRequest, SafetyStatus, SensorData, Vibration, check_device, parse},
    state::HISTORY,
};

mod error;
mod live;

pub use error::ApiError;

/// The prefix under which every route stands a second time.
const PREFIX: &str = "/api/v1";
/// Largest body taken: a command has a few hundred bytes.
const MAX_BODY_BYTES: usize = 64 * 1024;
/// Longest time for one request, its body included: a client that sends a byte a minute is let go.
const DEADLINE: Duration = Duration::from_secs(10);
/// Routes that load balancers and monitoring ask without a key.
const WITHOUT_KEY: [&str; 5] = ["/live", "/ready", "/status", "/health", "/metrics"];

/// What the routes need.
#[derive(Clone, Debug)]
pub struct Api {
    /// The instance.
    pub app: Arc<App>,
    /// Its health.
    pub registry: Registry,
    /// Refusals that wait for their audit.
    pub audits: Arc<Audits>,
    /// Becomes true when connections are to be closed.
    pub closing: tokio::sync::watch::Receiver<bool>,
}

/// All routes.
pub fn router(api: Api) -> Router {
    let metrics = Arc::clone(&api.app);
    let health = HealthService::new(api.registry.clone()).with_metrics(move |out| write_metrics(&metrics, out));
    let routes = Router::new()
        .route("/status", get(status))
        .route("/devices", get(devices))
        .route("/devices/{id}", delete(remove_device))
        .route("/devices/{id}/data", get(device_data))
        .route("/devices/{id}/history", get(device_history))
        .route("/devices/{id}/ai-analysis", get(device_analysis))
        .route("/control/command", post(command).route_layer(middleware::from_fn(refuse_by_head)))
        .route("/control/commands/{id}", get(command_status))
        .route("/ai/status", get(ai_status))
        .route("/ws", get(live::all))
        .route("/ws/device/{id}", get(live::one))
        .merge(modax_health::axum::routes(&health));
    // `nest` takes the prefix off before the health service looks at the path.
    Router::new()
        .route("/", get(root))
        .merge(routes.clone())
        .nest(PREFIX, routes.route("/", get(root)))
        .route(&format!("{PREFIX}/"), get(root))
        .fallback(|| async { ApiError::new(StatusCode::NOT_FOUND, "not_found", "no such route") })
        .method_not_allowed_fallback(|| async {
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "the route does not take this method")
        })
        .layer(axum::extract::DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(middleware::map_response(error::in_one_shape))
        .layer(middleware::from_fn(within_deadline))
        .layer(middleware::from_fn_with_state(api.clone(), require_key))
        .with_state(api)
}

async fn within_deadline(request: Request, next: Next) -> Response {
    match tokio::time::timeout(DEADLINE, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            ApiError::new(StatusCode::REQUEST_TIMEOUT, "timeout", "the request did not arrive in time").into_response()
        }
    }
}

/// What the head of a command says is enough to refuse it, before its body has come.
async fn refuse_by_head(request: Request, next: Next) -> Response {
    match head_refusal(request.headers()) {
        Some(refusal) => refusal.into_response(),
        None => next.run(request).await,
    }
}

fn head_refusal(headers: &HeaderMap) -> Option<ApiError> {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    // hyper has refused what is no number.
    if text(header::CONTENT_LENGTH).is_some_and(|length| length.parse::<usize>().map_or(true, |it| it > MAX_BODY_BYTES))
    {
        let message = format!("a body has at most {MAX_BODY_BYTES} bytes");
        return Some(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "payload_too_large", message));
    }
    // Any page may have a browser send a form or plain text to any address; for JSON the browser asks us first, and is not
    // answered as it needs. Programs send no `Origin`.
    let kind = text(header::CONTENT_TYPE).and_then(|kind| kind.split(';').next()).unwrap_or_default();
    if headers.contains_key(header::ORIGIN) && !kind.trim().eq_ignore_ascii_case("application/json") {
        let message = "a command from a page is application/json";
        return Some(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message));
    }
    None
}

async fn require_key(State(api): State<Api>, request: Request, next: Next) -> Response {
    let Some(key) = &api.app.config.api_key else { return next.run(request).await };
    let path = request.uri().path();
    let path = path.strip_prefix(PREFIX).unwrap_or(path);
    let given = request.headers().get("x-api-key").map(HeaderValue::as_bytes);
    if WITHOUT_KEY.contains(&path) || given.is_some_and(|given| same(given, key.reveal().as_bytes())) {
        return next.run(request).await;
    }
    ApiError::new(StatusCode::UNAUTHORIZED, "unauthorized", "the header X-API-Key is missing or wrong").into_response()
}

/// Compares digests: the time it takes tells nothing of where two keys differ.
fn same(given: &[u8], key: &[u8]) -> bool {
    use sha2::{Digest, Sha256};
    Sha256::digest(given) == Sha256::digest(key)
}

async fn root() -> Json<Value> {
    Json(json!({"name": "MODAX control layer", "version": env!("CARGO_PKG_VERSION"), "api_prefix": PREFIX}))
}

/// 503 exactly when `/ready` is.
async fn status(State(api): State<Api>) -> Response {
    let code = if api.registry.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let status = api.app.plant.status(Instant::now(), api.app.config.ai_enabled);
    (code, [(header::CACHE_CONTROL, "no-store")], Json(status)).into_response()
}

async fn devices(State(api): State<Api>) -> Json<Vec<String>> {
    Json(api.app.plant.devices())
}

/// What the removal of a device may take, so that the router can still say why it failed.
const REMOVE_DEADLINE: Duration = Duration::from_millis(2_300);
/// Within this it is answered in any case.
const REMOVE_ANSWER: Duration = Duration::from_millis(2_500);

/// Takes out a decommissioned device, for all instances; one that reports again is known again.
async fn remove_device(State(api): State<Api>, Path(id): Path<String>) -> Result<Json<Value>, ApiError> {
    // The database would refuse some of them, and that is the caller's fault and not its own.
    check_device(&id).map_err(|_| unknown_device(&id))?;
    let device_id = id.clone();
    let write = api.app.router.writer().deadline(REMOVE_DEADLINE).run(|tx| {
        let device_id = device_id.clone();
        async move {
            tx.execute_typed(
                "UPDATE devices SET removed_at = clock_timestamp() WHERE device_id = $1 AND removed_at IS NULL",
                &[(&device_id, tokio_postgres::types::Type::TEXT)],
            )
            .await
        }
    });
    let removed = match tokio::time::timeout(REMOVE_ANSWER, write).await {
        Ok(Ok(removed)) => removed,
        Ok(Err(error)) if !error.outcome_unknown() => {
            tracing::warn!(%error, "a device was not removed");
            return Err(ApiError::unavailable("the database is away; the device was not removed"));
        }
        unknown => {
            let error = unknown.map_or_else(
                |_| "no time is left".to_owned(),
                |it| it.err().map_or_else(String::new, |error| error.to_string()),
            );
            tracing::warn!(error, "a device may not have been removed");
            return Err(ApiError::unavailable(
                "the database does not answer; the device may have been removed: ask again",
            ));
        }
    };
    let known = api.app.plant.devices().contains(&id);
    api.app.plant.forget(&id);
    if removed.value == 0 && !known {
        return Err(unknown_device(&id));
    }
    tracing::info!(device_id = id, "device removed");
    Ok(Json(json!({"status": "success", "device_id": id})))
}

fn unknown_device(id: &str) -> ApiError {
    // What no device can be called is not repeated.
    let id = check_device(id).is_ok().then_some(id);
    ApiError::new(StatusCode::NOT_FOUND, "device_not_found", "no such device").with(json!({"device_id": id}))
}

#[derive(Serialize)]
struct DeviceData {
    #[serde(flatten)]
    reading: SensorData,
    safety_status: Option<SafetyStatus>,
}

async fn device_data(State(api): State<Api>, Path(id): Path<String>) -> Result<Json<DeviceData>, ApiError> {
    let (reading, safety_status) = api.app.plant.latest(&id).ok_or_else(|| unknown_device(&id))?;
    Ok(Json(DeviceData { reading, safety_status }))
}

#[derive(Deserialize)]
struct HistoryQuery {
    count: Option<usize>,
}

#[derive(Serialize)]
struct PastReading {
    timestamp: u64,
    motor_currents: Vec<f64>,
    vibration: Vibration,
    temperatures: Vec<f64>,
}

async fn device_history(
    State(api): State<Api>,
    Path(id): Path<String>,
    query: Result<Query<HistoryQuery>, QueryRejection>,
) -> Result<Json<Value>, ApiError> {
    let Query(query) = query.map_err(|_| {
        ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "validation_error", "count: a whole number of readings")
    })?;
    let count = query.count.unwrap_or(100).min(HISTORY);
    let history = api.app.plant.history(&id, count).ok_or_else(|| unknown_device(&id))?;
    let readings: Vec<PastReading> = history
        .into_iter()
        .map(|SensorData { timestamp, motor_currents, vibration, temperatures, .. }| PastReading {
            timestamp,
            motor_currents,
            vibration,
            temperatures,
        })
        .collect();
    Ok(Json(json!({"device_id": id, "count": readings.len(), "readings": readings})))
}

async fn device_analysis(State(api): State<Api>, Path(id): Path<String>) -> Result<Response, ApiError> {
    let analysis = api.app.plant.analysis(&id).ok_or_else(|| {
        ApiError::new(StatusCode::NOT_FOUND, "analysis_not_found", "no analysis of this device yet")
            .with(json!({"device_id": id}))
    })?;
    Ok(Json(analysis).into_response())
}

async fn ai_status(State(api): State<Api>) -> Json<Value> {
    let (last_analysis, devices_analyzed) = api.app.plant.analyses();
    Json(json!({
        "enabled": api.app.config.ai_enabled, "last_analysis": last_analysis, "devices_analyzed": devices_analyzed,
    }))
}

async fn command(State(api): State<Api>, headers: HeaderMap, body: Bytes) -> Result<Json<Value>, ApiError> {
    let request: CommandRequest = parse(&body).map_err(|error| {
        let is_json = serde_json::from_slice::<Value>(&body).is_ok();
        let code = if is_json { StatusCode::UNPROCESSABLE_ENTITY } else { StatusCode::BAD_REQUEST };
        ApiError::new(code, "validation_error", error.to_string())
    })?;
    let key = idempotency_key(&headers)?;
    match commands::submit(&api.app, &api.audits, request, key).await {
        Answer::Accepted { command_id, command_type } => {
            Ok(Json(json!({"status": "success", "command": command_type, "command_id": command_id})))
        }
        Answer::Blocked { command_id, earlier_unknown } => Err(ApiError::new(
            StatusCode::FORBIDDEN,
            "system_not_safe",
            if earlier_unknown {
                "the plant is not in a safe state; this request was not taken, and the database is away: an earlier one with \
                 this Idempotency-Key may have been"
            } else {
                "the plant is not in a safe state; the command was not taken"
            },
        )
        .with(json!({"command_id": command_id, "earlier_may_act": earlier_unknown}))),
        Answer::Overtaken { command_id } => Err(ApiError::new(
            StatusCode::CONFLICT,
            "overtaken_by_stop",
            "a stop arrived later and was taken sooner; the command was not taken",
        )
        .with(json!({"command_id": command_id}))),
        Answer::Conflict => Err(ApiError::new(
            StatusCode::CONFLICT,
            "idempotency_conflict",
            "another command was given under this Idempotency-Key",
        )),
        Answer::Unavailable { command_id, maybe } => Err(ApiError::unavailable(if maybe {
            "the database does not answer; the command may still be taken within its time to live"
        } else {
            "the database is away; the command was not taken"
        })
        .with(json!({"command_id": command_id, "may_act": maybe}))),
        Answer::Invalid(reason) => Err(ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "validation_error", reason)),
    }
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<IdempotencyKey>, ApiError> {
    let mut given = headers.get_all("idempotency-key").iter();
    let Some(value) = given.next() else { return Ok(None) };
    let key = value.to_str().ok().and_then(|text| IdempotencyKey::new(text).ok()).filter(|_| given.next().is_none());
    let refusal = "Idempotency-Key: once, 1 to 512 visible ASCII characters";
    key.map(Some).ok_or_else(|| ApiError::new(StatusCode::BAD_REQUEST, "validation_error", refusal))
}

async fn command_status(
    State(api): State<Api>,
    Path(id): Path<String>,
) -> Result<Json<commands::CommandStatus>, ApiError> {
    let not_found = || ApiError::new(StatusCode::NOT_FOUND, "command_not_found", "no such command");
    let command_id: Uuid = id.parse().map_err(|_| not_found())?;
    let not_found = || not_found().with(json!({"command_id": command_id}));
    match commands::find(&api.app, command_id).await {
        Ok(Some(status)) => Ok(Json(status)),
        Ok(None) => Err(not_found()),
        Err(error) => {
            tracing::warn!(%error, "a command was not looked up");
            Err(ApiError::unavailable("the database is away"))
        }
    }
}

fn write_metrics(app: &App, out: &mut String) {
    use std::fmt::Write as _;
    app.metrics.render(out);
    let mqtt = app.mqtt.stats();
    let gauges = [
        ("modax_control_buffer_items", "Readings and safety changes that wait for the database.", app.buffer.len()),
        ("modax_control_is_safe", "1 when the plant is safe.", usize::from(app.plant.is_safe(Instant::now()))),
        ("modax_control_devices", "Known devices.", app.plant.devices().len()),
        (
            "modax_control_mqtt_connected",
            "1 when a broker is connected.",
            usize::from(app.mqtt.status().is_connected()),
        ),
        ("modax_control_mqtt_queue_messages", "Messages that wait for a broker.", mqtt.queue_messages),
        ("modax_control_mqtt_inflight_messages", "Of those, sent and not acknowledged.", mqtt.inflight),
    ];
    for (name, help, value) in gauges {
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}");
    }
    let counters = [
        ("modax_control_mqtt_failovers_total", "Changes of broker.", mqtt.failovers),
        ("modax_control_log_lines_dropped_total", "Log lines that nobody read in time.", crate::logs::dropped()),
    ];
    for (name, help, value) in counters {
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} counter\n{name} {value}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_refused_by_its_head_if_it_is_too_long_or_a_form_of_a_page() {
        let refused = |pairs: &[(header::HeaderName, &str)]| {
            let headers = pairs.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).expect("text")));
            head_refusal(&headers.collect()).map(|error| error.into_response().status().as_u16())
        };
        let (length, kind, page) = (header::CONTENT_LENGTH, header::CONTENT_TYPE, (header::ORIGIN, "http://evil"));
        assert_eq!(refused(&[]), None);
        assert_eq!(refused(&[(length.clone(), "65536")]), None);
        for long in ["65537", "99999999999", "99999999999999999999999999"] {
            assert_eq!(refused(&[(length.clone(), long)]), Some(413), "{long}");
        }
        for (given, is_refused) in [
            ("application/json", false),
            ("Application/JSON ; charset=utf-8", false),
            ("text/plain", true),
            ("text/plain; application/json", true),
            ("application/x-www-form-urlencoded", true),
            ("application/jsonp", true),
            ("", true),
        ] {
            let kind = (kind.clone(), given);
            assert_eq!(refused(&[kind.clone(), page.clone()]), is_refused.then_some(415), "{given}");
            assert_eq!(refused(&[kind]), None, "no page: {given}");
        }
        assert_eq!(refused(&[(header::ORIGIN, "null")]), Some(415));
    }
}

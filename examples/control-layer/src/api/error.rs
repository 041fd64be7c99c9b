//! The one shape of every error.

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use crate::app::unix_now;

/// An error as the contract wants it: `error`, `message`, `status_code`, `timestamp`, `details`.
#[derive(Debug)]
pub struct ApiError {
    code: StatusCode,
    error: &'static str,
    message: String,
    details: Value,
    retry_after: Option<u32>,
}

impl ApiError {
    /// An error with a word for programs and a sentence for people.
    pub fn new(code: StatusCode, error: &'static str, message: impl Into<String>) -> Self {
        Self { code, error, message: message.into(), details: Value::Null, retry_after: None }
    }

    /// A dependency is away: 503, and worth asking again in a second.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self { retry_after: Some(1), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "service_unavailable", message) }
    }

    /// Adds facts for programs.
    #[must_use]
    pub fn with(self, details: Value) -> Self {
        Self { details, ..self }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = json!({
            "error": self.error,
            "message": self.message,
            "status_code": self.code.as_u16(),
            "timestamp": unix_now().as_secs_f64(),
            "details": self.details,
        });
        let mut response = (self.code, Json(body)).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

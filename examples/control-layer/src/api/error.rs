//! The one shape of every error.

use axum::{
    Json,
    body::to_bytes,
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

/// What axum and the health routes refuse by themselves (a body too large, a path that is no text, a check that is none) in the
/// same shape as the rest.
pub(super) async fn in_one_shape(response: Response) -> Response {
    let error = match response.status() {
        StatusCode::BAD_REQUEST => "bad_request",
        StatusCode::NOT_FOUND => "not_found",
        StatusCode::METHOD_NOT_ALLOWED => "method_not_allowed",
        StatusCode::PAYLOAD_TOO_LARGE => "payload_too_large",
        StatusCode::UNSUPPORTED_MEDIA_TYPE => "unsupported_media_type",
        StatusCode::UNPROCESSABLE_ENTITY => "unprocessable_entity",
        _ => return response,
    };
    let kind = response.headers().get(header::CONTENT_TYPE);
    if !kind.is_some_and(|kind| kind.as_bytes().starts_with(b"text/plain")) {
        return response;
    }
    let (parts, body) = response.into_parts();
    let text = to_bytes(body, 1024).await.unwrap_or_default();
    let mut shaped = ApiError::new(parts.status, error, String::from_utf8_lossy(&text).trim()).into_response();
    for (name, value) in &parts.headers {
        if name != header::CONTENT_TYPE && name != header::CONTENT_LENGTH {
            shaped.headers_mut().insert(name, value.clone());
        }
    }
    shaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_axum_refuses_has_the_shape_of_every_error() {
        let allow = [(header::ALLOW, "GET")];
        let refused = (StatusCode::PAYLOAD_TOO_LARGE, allow, "length limit exceeded\n").into_response();
        let shaped = in_one_shape(refused).await;
        assert_eq!(shaped.headers()[header::ALLOW], "GET");
        assert_eq!(shaped.status(), StatusCode::PAYLOAD_TOO_LARGE);
        let body = to_bytes(shaped.into_body(), 4096).await.unwrap();
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!((&body["status_code"], &body["message"]), (&json!(413), &json!("length limit exceeded")));
    }
}

//! The endpoints as a [`tower_service::Service`] over `http` types: for hyper, axum, or anything else that speaks them.

use std::{
    convert::Infallible,
    fmt,
    future::{Ready, ready},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};

use crate::{Registry, Report, Status, render};

type Extra = Arc<dyn Fn(&mut String) + Send + Sync>;

/// Answers `/live /ready /startup /health /health/{check} /metrics`, to GET and HEAD.
///
/// 200 or 503 and nothing between: probes take 3xx for success. Never cached (`Cache-Control: no-store`). The header
/// `x-health` always tells the status in a word. Any other path is 404, any other method 405. `?verbose` on a probe
/// answers Kubernetes' text.
#[derive(Clone)]
pub struct HealthService {
    registry: Registry,
    extra: Option<Extra>,
}

impl HealthService {
    /// The endpoints of a registry.
    pub fn new(registry: Registry) -> Self {
        Self { registry, extra: None }
    }

    /// Appends the application's own metrics to `/metrics`. Called for each scrape: it must only read and print.
    /// Default: none, the checks' own metrics alone.
    #[must_use]
    pub fn with_metrics(mut self, extra: impl Fn(&mut String) + Send + Sync + 'static) -> Self {
        self.extra = Some(Arc::new(extra));
        self
    }

    /// The answer to one request.
    pub fn answer<B>(&self, request: &Request<B>) -> Response<HealthBody> {
        let path = request.uri().path();
        let head = *request.method() == Method::HEAD;
        if !head && *request.method() != Method::GET {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, Status::Unhealthy, "method not allowed\n".into());
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        let verbose = request
            .uri()
            .query()
            .is_some_and(|query| query.split('&').any(|pair| pair == "verbose" || pair.starts_with("verbose=")));
        let mut response = self.route(path.trim_end_matches('/'), verbose);
        if head {
            *response.body_mut() = HealthBody::default();
        }
        response
    }

    fn route(&self, path: &str, verbose: bool) -> Response<HealthBody> {
        let report = self.registry.report();
        match path {
            "/live" => probe(&report, "live", report.live, verbose),
            "/startup" => probe(&report, "startup", report.started, verbose),
            "/ready" if verbose => probe(&report, "ready", report.ready, verbose),
            "/ready" => answer(code(report.ready), report.readiness(), render::JSON, render::readiness_json(&report)),
            "/health" if verbose => probe(&report, "health", report.status != Status::Unhealthy, verbose),
            "/health" => {
                let passed = report.status != Status::Unhealthy;
                answer(code(passed), report.status, render::JSON, render::modax_json(&report))
            }
            "/metrics" => {
                let mut body = render::prometheus(&report);
                if let Some(extra) = &self.extra {
                    extra(&mut body);
                }
                answer(StatusCode::OK, report.status, render::PROMETHEUS, body)
            }
            other => match other.strip_prefix("/health/").and_then(|name| report.check(name)) {
                Some(check) => {
                    let passed = check.weighed() != Status::Unhealthy;
                    answer(code(passed), check.weighed(), render::JSON, render::check_json(check))
                }
                None => text(StatusCode::NOT_FOUND, report.status, "not found\n".into()),
            },
        }
    }
}

fn probe(report: &Report, name: &'static str, passed: bool, verbose: bool) -> Response<HealthBody> {
    let status = if passed { Status::Healthy } else { Status::Unhealthy };
    if verbose {
        return text(code(passed), status, render::kubernetes(report, name, passed));
    }
    answer(code(passed), status, render::JSON, format!(r#"{{"status":"{status}","{name}":{passed}}}"#))
}

impl fmt::Debug for HealthService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HealthService").field("registry", &self.registry).finish_non_exhaustive()
    }
}

impl<B> tower_service::Service<Request<B>> for HealthService {
    type Response = Response<HealthBody>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        ready(Ok(self.answer(&request)))
    }
}

fn code(passed: bool) -> StatusCode {
    if passed { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

fn text(code: StatusCode, status: Status, body: String) -> Response<HealthBody> {
    answer(code, status, render::TEXT, body)
}

fn answer(code: StatusCode, status: Status, kind: &'static str, body: String) -> Response<HealthBody> {
    let mut response = Response::new(HealthBody(Some(body.into())));
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert("x-health", HeaderValue::from_static(status.as_str()));
    response
}

/// The body of an answer: one piece of known length.
#[derive(Debug, Default)]
pub struct HealthBody(Option<Bytes>);

impl HealthBody {
    /// The bytes of the body.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        self.0.unwrap_or_default()
    }
}

impl http_body::Body for HealthBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.take().map(|bytes| Ok(http_body::Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        http_body::SizeHint::with_exact(self.0.as_ref().map_or(0, |bytes| bytes.len() as u64))
    }
}

//! The endpoints as a router for axum.

use crate::{HealthService, Registry};

/// Routes `/live /ready /startup /health /health/{check} /metrics` of a registry, to merge into the application's own.
pub fn router<S: Clone + Send + Sync + 'static>(registry: Registry) -> axum::Router<S> {
    routes(&HealthService::new(registry))
}

/// The same for a service made by hand, for instance one [with metrics](HealthService::with_metrics) of its own.
pub fn routes<S: Clone + Send + Sync + 'static>(service: &HealthService) -> axum::Router<S> {
    ["/live", "/ready", "/startup", "/health", "/health/{check}", "/metrics"]
        .into_iter()
        .fold(axum::Router::new(), |router, path| router.route(path, axum::routing::get(handler(service.clone()))))
}

fn handler(
    service: HealthService,
) -> impl Fn(http::Request<axum::body::Body>) -> std::future::Ready<http::Response<axum::body::Body>> + Clone {
    move |request| std::future::ready(service.answer(&request).map(axum::body::Body::new))
}

//! `GET /health`, `/ready`, `/metrics`: for whoever runs the host. Nothing here tells one tenant of another.

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::App;
use super::answers::{Health, Ready};
use crate::error::Error;
use crate::metrics::CONTENT_TYPE;

/// The process answers.
#[utoipa::path(get, path = "/health", tag = "operations", responses((status = 200, description = "It does", body = Health)))]
pub(crate) async fn health() -> Json<Health> {
    Json(Health { status: "ok", version: env!("CARGO_PKG_VERSION") })
}

/// The base is loaded, and requests can be answered.
#[utoipa::path(get, path = "/ready", tag = "operations",
    responses((status = 200, description = "They can", body = Ready), (status = 503, description = "Not yet, or no more")))]
pub(crate) async fn ready(State(app): State<App>) -> Response {
    let host = app.ready();
    if let Some(why) = host.as_ref().and_then(|host| host.engine.lost()) {
        return Error::DeviceLost(why).into_response();
    }
    match host {
        Some(host) if host.engine.is_stopped() => {
            Error::Internal("the engine has stopped; restart the host".into()).into_response()
        }
        Some(host) if !host.is_draining() => match host.receipts.check().await {
            Ok(()) => (StatusCode::OK, Json(Ready { status: "ready" })).into_response(),
            Err(error) => Error::from(error).into_response(),
        },
        Some(_) => Error::Unavailable("draining").into_response(),
        None => Error::Unavailable("the base is still loading").into_response(),
    }
}

/// Prometheus text.
#[utoipa::path(get, path = "/metrics", tag = "operations",
    responses((status = 200, description = "OpenMetrics", body = String, content_type = CONTENT_TYPE)))]
pub(crate) async fn metrics(State(app): State<App>) -> Response {
    if let Some(host) = app.ready() {
        let shape = host.engine.shape();
        let (stats, leases) = (host.engine.stats(), host.adapters.leases());
        app.metrics.observe_engine(&stats);
        app.metrics.observe_lora_requests(&stats, leases);
        app.metrics.observe_kv_size(shape.block_tokens, shape.kv_blocks);
        app.metrics.observe_runner(host.runner, &host.precision);
        app.metrics.observe_adapter_memory(&host.adapters.memory_stats());
        app.metrics.observe_adapter_disk(&host.adapters.disk_stats());
        app.metrics.observe_plugins(&host.plugins.stats());
        app.metrics.observe_recordings(host.recordings.dropped());
        app.metrics.observe_receipts(&host.receipts.counts());
    }
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], app.metrics.render()).into_response()
}

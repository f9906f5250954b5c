//! Pages about the node itself: health, metrics, ring, build.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use saturn_proto::report::NodeReport;

use super::App;
use super::answer::{ApiError, Notes, success_of};

/// Prometheus's text of a live server.
pub(crate) async fn healthy() -> &'static str {
    "Saturn is Healthy.\n"
}

/// 200 when this node can serve reads and writes.
pub(crate) async fn ready(State(app): State<Arc<App>>) -> Response {
    match app.serving.get() {
        Some(_) => "Saturn is Ready.\n".into_response(),
        None => {
            let text = format!("Service Unavailable: {}\n", app.waiting_for.borrow().as_str());
            (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
        }
    }
}

/// Everything that this process counts, in OpenMetrics text.
pub(crate) async fn metrics(State(app): State<Arc<App>>) -> Response {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &app.registry.lock()) {
        Ok(()) => {
            let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(CONTENT_TYPE, content_type)], text).into_response()
        }
        Err(e) => ApiError::internal(format!("cannot encode the metrics: {e}")).into_response(),
    }
}

/// A signpost for people who open the address in a browser.
pub(crate) async fn index(State(app): State<Arc<App>>) -> String {
    let report = app.ring.report();
    let alive = report.members.iter().filter(|m| m.state == "alive").count();
    format!(
        "Saturn {}: {alive} of {} members alive, {} shards, replication factor {}.\n\n\
         /api/v1/query?query=up       PromQL (tenant in the header X-Scope-OrgID)\n\
         /api/v1/write                remote-write\n\
         /api/v1/status/ring          the ring, as JSON\n\
         /metrics                     this node's own metrics\n",
        env!("CARGO_PKG_VERSION"),
        report.members.len(),
        report.shards,
        report.replication_factor,
    )
}

/// Any other path.
pub(crate) async fn not_found(uri: axum::http::Uri) -> ApiError {
    ApiError::not_found(format!("there is nothing at {}", uri.path()))
}

/// `GET /api/v1/status/buildinfo`.
pub(crate) async fn buildinfo() -> Response {
    let info = serde_json::json!({
        "application": "Saturn",
        "version": env!("CARGO_PKG_VERSION"),
        "revision": "",
        "branch": "",
        "buildUser": "",
        "buildDate": "",
        "goVersion": "",
        "features": {},
    });
    success_of(&info, &Notes::default())
}

/// `GET /api/v1/status/runtimeinfo`. What only a Go program has is empty.
pub(crate) async fn runtimeinfo(State(app): State<Arc<App>>) -> Response {
    let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let directory = std::env::current_dir().unwrap_or_default();
    let info = serde_json::json!({
        "startTime": app.ring.started.to_string(),
        "CWD": directory.display().to_string(),
        "hostname": hostname.trim(),
        "serverTime": jiff::Timestamp::now().to_string(),
        "reloadConfigSuccess": true,
        "lastConfigTime": app.ring.started.to_string(),
        "corruptionCount": 0,
        "goroutineCount": 0,
        "GOMAXPROCS": std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        "GOMEMLIMIT": 0,
        "GOGC": "",
        "GODEBUG": "",
        "storageRetention": "",
    });
    success_of(&info, &Notes::default())
}

/// `GET /api/v1/status/config`: the settings in force, as the configuration file would hold them.
pub(crate) async fn config(State(app): State<Arc<App>>) -> Response {
    success_of(&serde_json::json!({ "yaml": app.settings.yaml() }), &Notes::default())
}

/// `GET /api/v1/status/flags`: the settings in force, by flag.
pub(crate) async fn flags(State(app): State<Arc<App>>) -> Response {
    success_of(&app.settings.flags(), &Notes::default())
}

/// `GET /api/v1/status/ring`: who is there and who owns what.
pub(crate) async fn ring(State(app): State<Arc<App>>) -> Response {
    success_of(&app.ring.report(), &Notes::default())
}

/// `GET /api/v1/status/node`: this node's clock, disk and contents.
pub(crate) async fn node(State(app): State<Arc<App>>) -> Response {
    let Some(engine) = app.engine.get().cloned() else {
        return ApiError::unavailable(app.waiting_for.borrow().as_str()).into_response();
    };
    let measured = tokio::task::spawn_blocking(move || (engine.measure_fsync().ok(), engine.stats())).await;
    let (fsync, stats) = match measured {
        Ok(measured) => measured,
        Err(e) => return ApiError::internal(e.to_string()).into_response(),
    };
    let report = NodeReport {
        id: app.node_id.to_string(),
        zone: app.zone.to_string(),
        version: env!("CARGO_PKG_VERSION").into(),
        ready: app.serving.get().is_some(),
        unix_ms: crate::clock::unix_ms(),
        fsync_ms: fsync.map(|took| took.as_secs_f64() * 1000.0),
        series: stats.series,
        head_samples: stats.head_samples,
        wal_bytes: stats.wal_bytes,
        disk_bytes: stats.disk_bytes,
    };
    success_of(&report, &Notes::default())
}

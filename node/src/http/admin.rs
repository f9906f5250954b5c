//! The admin endpoints: those of Prometheus's API for deleting series and giving their space back, and our own for a
//! scrub and for tenants' shards. Off unless a setting turns them on.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use saturn_model::{Selection, TenantId, TimestampMs};
use saturn_proto::report::{TenantShard, TenantShardsReport};
use saturn_replication::{Erase, Erased};
use saturn_storage::Damage;
use serde_json::json;

use super::App;
use super::answer::{ApiError, Notes, success_of};
use super::params::Params;
use super::query::serving;
use super::tenant::Tenant;

/// Whether the admin endpoints are on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AdminApi {
    Enabled,
    Disabled,
}

/// `POST /api/v1/admin/tsdb/delete_series`: deletes the tenant's matching samples on all replicas of all shards.
pub(crate) async fn delete_series(
    State(app): State<Arc<App>>,
    Tenant(tenant): Tenant,
    params: Params,
) -> Result<StatusCode, ApiError> {
    check_enabled(&app)?;
    let start = params.time("start")?.unwrap_or(TimestampMs(i64::MIN));
    let end = params.time("end")?.unwrap_or(TimestampMs(i64::MAX));
    if end < start {
        return Err(ApiError::parameter("end", "end timestamp must not be before start time"));
    }
    let selectors = params.selectors()?;
    if selectors.is_empty() {
        return Err(ApiError::bad_data("no match[] parameter provided"));
    }
    let selection = |matchers| Selection { tenant: tenant.clone(), matchers, start, end };
    let what = Erase::Series(selectors.into_iter().map(selection).collect());
    let erased = serving(&app)?.coordinator.erase(what).await;
    tracing::info!(%tenant, start_ms = start.0, end_ms = end.0, series = erased.series, missing = erased.missing.len(), "deleted series");
    answer(&erased)
}

/// `POST /api/v1/admin/tsdb/clean_tombstones`: gives the space of deleted samples back, of all tenants.
pub(crate) async fn clean_tombstones(State(app): State<Arc<App>>) -> Result<StatusCode, ApiError> {
    check_enabled(&app)?;
    answer(&serving(&app)?.coordinator.erase(Erase::Tombstones).await)
}

/// `POST /api/v1/admin/tsdb/scrub`: reads everything on this node's disk through its checksums, and answers what was
/// found when that is done.
pub(crate) async fn scrub(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    check_enabled(&app)?;
    let engine =
        app.engine.get().ok_or_else(|| ApiError::unavailable("the storage is not open yet"))?.clone();
    let scrubbed = tokio::task::spawn_blocking(move || engine.scrub()).await;
    let report = match scrubbed {
        Ok(Ok(report)) => report,
        Ok(Err(error)) => return Err(ApiError::unavailable(format!("the scrub failed: {error}"))),
        Err(error) => return Err(ApiError::internal(format!("the scrub failed: {error}"))),
    };
    let damage = |damage: &Damage| {
        json!({
            "file": damage.file, "shard": damage.shard.map(|shard| shard.0), "segment": damage.segment,
            "firstMs": damage.range_ms.map(|range| range.0), "lastMs": damage.range_ms.map(|range| range.1),
            "series": damage.series, "seriesCount": damage.series_count, "what": damage.what,
        })
    };
    let damage: Vec<serde_json::Value> = report.damage.iter().map(damage).collect();
    let data = json!({
        "segments": report.segments, "samples": report.samples, "rows": report.rows, "bytes": report.bytes,
        "damage": damage, "moreDamage": report.more_damage,
    });
    Ok(success_of(&data, &Notes::default()))
}

/// `GET /api/v1/admin/tenants/{name}/shards`: which shards a tenant's series go to, and which queries ask.
pub(crate) async fn tenant_shards(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> Result<Response, ApiError> {
    check_enabled(&app)?;
    let tenant = TenantId::new(&name).map_err(|e| ApiError::parameter("name", &e.to_string()))?;
    let coordinator = &serving(&app)?.coordinator;
    let (written, read) = (coordinator.shards_written(&tenant), coordinator.shards_read(&tenant));
    let placement = app.ring.placement.get().map(|handle| handle.load());
    let placement = placement.ok_or_else(|| ApiError::unavailable("the cluster is not formed yet"))?;
    let shard = |shard| {
        let record = placement.record(shard)?;
        let nodes = record.slots.iter().map(ToString::to_string).collect();
        Some(TenantShard { shard: shard.0, written: written.contains(shard), epoch: record.epoch.0, nodes })
    };
    let report = TenantShardsReport {
        tenant: tenant.as_str().to_owned(),
        shards: placement.shard_count(),
        placement: read.ids().into_iter().filter_map(shard).collect(),
    };
    Ok(success_of(&report, &Notes::default()))
}

fn check_enabled(app: &App) -> Result<(), ApiError> {
    match app.admin {
        AdminApi::Enabled => Ok(()),
        AdminApi::Disabled => Err(ApiError::admin_disabled()),
    }
}

fn answer(erased: &Erased) -> Result<StatusCode, ApiError> {
    if erased.missing.is_empty() {
        return Ok(StatusCode::NO_CONTENT);
    }
    let named: Vec<String> = erased.missing.iter().map(|(node, why)| format!("{node} ({why})")).collect();
    Err(ApiError::unavailable(format!(
        "not done on {} replicas, done on all others; repeat the request: {}",
        named.len(),
        named.join(", ")
    )))
}

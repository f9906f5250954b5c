//! The admin endpoints: those of Prometheus's API for deleting series and giving their space back, and our own for a
//! scrub and for tenants' shards. Off unless a setting turns them on.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use futures::StreamExt as _;
use saturn_model::{Selection, ShardId, TenantId, TimestampMs};
use saturn_proto::report::{TenantShard, TenantShardsReport};
use saturn_ring::{NodeId, ShardRecord};
use saturn_storage::Damage;
use serde_json::json;
use uuid::Uuid;

use super::App;
use super::answer::{ApiError, Notes, success_of};
use super::params::Params;
use super::query::serving;
use super::tenant::Tenant;
use crate::raft::ProposeError;

/// Most bytes of names and values in the selectors of one deletion: it travels with the records of all of the tenant's
/// shards until it is done.
const SELECTORS_BYTES_MAX: usize = 4096;
/// Shards that are asked to decide at the same time.
const DECISIONS_AT_ONCE: usize = 64;
/// How long all of them have.
const DECISIONS_WITHIN: Duration = Duration::from_secs(30);

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
    let length: usize = selectors.iter().flatten().map(|m| m.name().len() + m.value().len()).sum();
    if length > SELECTORS_BYTES_MAX {
        let text = format!(
            "the selectors have {length} bytes of names and values, {SELECTORS_BYTES_MAX} are the most"
        );
        return Err(ApiError::parameter("match[]", &text));
    }
    let selection = |matchers| Selection { tenant: tenant.clone(), matchers, start, end };
    let selections: Vec<Selection> = selectors.into_iter().map(selection).collect();
    let coordinator = &serving(&app)?.coordinator;
    let (records, undecided) = decide(&app, &selections).await?;
    let missing = coordinator.spread(&records).await;
    let late = late_shards(&records, &missing);
    tracing::info!(
        %tenant, start_ms = start.0, end_ms = end.0, shards = records.len(), undecided = undecided.len(),
        missing = missing.len(), "series were deleted"
    );
    if undecided.is_empty() && late.is_empty() {
        return Ok(StatusCode::NO_CONTENT);
    }
    let mut text = "not deleted everywhere; repeat the request".to_owned();
    if let Some((shard, why)) = undecided.first() {
        text += &format!(": {} shards could not decide it, as shard {shard}: {why}", undecided.len());
    }
    if let Some(shard) = late.first() {
        let named: Vec<String> = missing.iter().map(|(node, why)| format!("{node} ({why})")).collect();
        text += &format!(
            ": too few nodes of {} shards, as of shard {shard}, have done it so far, they will: {}",
            late.len(),
            named.join(", ")
        );
    }
    Err(ApiError::unavailable(text))
}

/// Has the replicas of each shard agree on a deletion; of all shards, as the tenant's series may have gone to others once.
/// Returns the records that follow, and which shards did not agree, and why.
async fn decide(
    app: &App,
    selections: &[Selection],
) -> Result<(Vec<(ShardId, ShardRecord)>, Vec<(ShardId, String)>), ApiError> {
    let authority = super::ring::authority(app)?;
    let id = Uuid::new_v4();
    let end = tokio::time::Instant::now() + DECISIONS_WITHIN;
    let late = |_| Err(ProposeError::Unavailable(format!("no majority within {DECISIONS_WITHIN:?}")));
    let shards = (0..authority.placement.load().shard_count()).map(ShardId);
    let decided = futures::stream::iter(shards).map(|shard| async move {
        let deleted = tokio::time::timeout_at(end, authority.delete(shard, id, selections.to_vec())).await;
        (shard, deleted.unwrap_or_else(late))
    });
    let (mut records, mut undecided) = (Vec::new(), Vec::new());
    let mut decided = decided.buffer_unordered(DECISIONS_AT_ONCE);
    while let Some((shard, outcome)) = decided.next().await {
        match outcome {
            Ok(record) => records.push((shard, record)),
            Err(error) => undecided.push((shard, error.to_string())),
        }
    }
    Ok((records, undecided))
}

/// The shards of which so many nodes are missing that they could still answer a read by themselves, with what was deleted.
fn late_shards(records: &[(ShardId, ShardRecord)], missing: &[(NodeId, String)]) -> Vec<ShardId> {
    let is_late = |record: &ShardRecord| {
        let done = record.writers().filter(|node| missing.iter().all(|(missing, _)| missing != *node));
        !record.is_in_force(&done.cloned().collect())
    };
    records.iter().filter(|(_, record)| is_late(record)).map(|(shard, _)| *shard).collect()
}

/// `POST /api/v1/admin/tsdb/clean_tombstones`: gives the space of deleted samples back, of all tenants.
pub(crate) async fn clean_tombstones(State(app): State<Arc<App>>) -> Result<StatusCode, ApiError> {
    check_enabled(&app)?;
    let missing = serving(&app)?.coordinator.clean_tombstones().await;
    if missing.is_empty() {
        return Ok(StatusCode::NO_CONTENT);
    }
    let named: Vec<String> = missing.iter().map(|(node, why)| format!("{node} ({why})")).collect();
    Err(ApiError::unavailable(format!(
        "not done on {} nodes, done on all others; repeat the request: {}",
        named.len(),
        named.join(", ")
    )))
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

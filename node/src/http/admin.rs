//! The admin endpoints of Prometheus's API: deleting series, and giving their space back. Off unless a setting
//! turns them on.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use saturn_model::{Selection, TimestampMs};
use saturn_replication::{Erase, Erased};

use super::App;
use super::answer::ApiError;
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

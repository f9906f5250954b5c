//! The read endpoints of Prometheus's API.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{RawPathParams, State};
use axum::response::Response;
use saturn_model::{Selection, TenantId, TimestampMs};
use saturn_promql::{SampleStats, Value};
use saturn_query_frontend::{QueryAnswer, QueryRequest, QueryTime, QueryTimings};
use saturn_replication::{Completeness, Listed, ReadAnswer, ReadError};

use super::answer::{ApiError, Notes, success, success_of, write_labels, write_value};
use super::params::Params;
use super::tenant::Tenant;
use super::{App, Serving};
use crate::clock;
use crate::read_path::{describe_missing, nothing_answered};

const TRUNCATED: &str = "results truncated due to limit";

/// The open doors, or why they are shut.
pub(crate) fn serving(app: &App) -> Result<&Serving, ApiError> {
    let not_yet = || format!("this node does not serve yet: {}", app.waiting_for.borrow().as_str());
    app.serving.get().ok_or_else(|| ApiError::unavailable(not_yet()))
}

/// `/api/v1/query`
pub(crate) async fn instant(
    State(app): State<Arc<App>>,
    Tenant(tenant): Tenant,
    params: Params,
) -> Result<Response, ApiError> {
    let time = params.time("time")?.unwrap_or_else(|| TimestampMs(clock::unix_ms()));
    run(&app, tenant, &params, QueryTime::Instant(time)).await
}

/// `/api/v1/query_range`
pub(crate) async fn range(
    State(app): State<Arc<App>>,
    Tenant(tenant): Tenant,
    params: Params,
) -> Result<Response, ApiError> {
    let time = QueryTime::Range {
        start: params.required_time("start")?,
        end: params.required_time("end")?,
        step_ms: params.required_duration_ms("step")?,
    };
    run(&app, tenant, &params, time).await
}

async fn run(app: &App, tenant: TenantId, params: &Params, time: QueryTime) -> Result<Response, ApiError> {
    let limit = params.limit()?;
    let request = QueryRequest {
        tenant,
        text: params.get("query").unwrap_or_default().to_owned(),
        time,
        timeout: params.timeout()?,
        lookback_ms: params.duration_ms("lookback_delta")?,
    };
    let QueryAnswer { mut value, mut warnings, infos, missing, timings, samples } =
        serving(app)?.frontend.query(request).await?;
    warnings.extend(missing);
    if limit.is_some_and(|limit| truncate(&mut value, limit)) {
        warnings.push(TRUNCATED.into());
    }
    let stats = params.get("stats").map(|detail| query_stats(&timings, &samples, detail == "all"));
    Ok(success(&write_value(&value, stats.as_ref()), &Notes { warnings, infos }))
}

/// Prometheus's `stats`. Times are seconds; the result is sorted as it is made, which takes no time of its own.
fn query_stats(timings: &QueryTimings, samples: &SampleStats, per_step: bool) -> serde_json::Value {
    let seconds = |duration: Duration| duration.as_secs_f64();
    let mut counts = serde_json::json!({
        "totalQueryableSamples": samples.queryable(),
        "samplesRead": samples.read(),
        "peakSamples": samples.peak,
    });
    if per_step {
        let steps = |counts: &[(i64, u64)]| -> serde_json::Value {
            counts.iter().map(|(time, count)| serde_json::json!([*time as f64 / 1000.0, count])).collect()
        };
        counts["totalQueryableSamplesPerStep"] = steps(&samples.queryable_per_step);
        counts["samplesReadPerStep"] = steps(&samples.read_per_step);
    }
    serde_json::json!({
        "timings": {
            "evalTotalTime": seconds(timings.preparation + timings.evaluation),
            "resultSortTime": 0.0,
            "queryPreparationTime": seconds(timings.preparation),
            "innerEvalTime": seconds(timings.evaluation),
            "execQueueTime": seconds(timings.queue),
            "execTotalTime": seconds(timings.total),
        },
        "samples": counts,
    })
}

/// Cuts a result to `limit` series; whether it had more.
fn truncate(value: &mut Value, limit: usize) -> bool {
    match value {
        Value::Vector(samples) if samples.len() > limit => samples.truncate(limit),
        Value::Matrix(series) if series.len() > limit => series.truncate(limit),
        _ => return false,
    }
    true
}

/// `/api/v1/format_query`: the query as the printer writes it.
pub(crate) async fn format(params: Params) -> Result<Response, ApiError> {
    let expr = parsed_query(&params)?;
    Ok(success_of(&expr.to_string(), &Notes::default()))
}

/// `/api/v1/parse_query`: the syntax tree.
pub(crate) async fn parse(params: Params) -> Result<Response, ApiError> {
    let expr = parsed_query(&params)?;
    Ok(success_of(&super::ast::tree(&expr), &Notes::default()))
}

fn parsed_query(params: &Params) -> Result<saturn_promql::ast::Expr, ApiError> {
    let text = params.get("query").unwrap_or_default();
    saturn_promql::parse(text).map_err(|e| ApiError::parameter("query", &e.to_string()))
}

/// What the selections of a label endpoint are when no `match[]` is given.
enum Unselected {
    Everything,
    Refused,
}

/// The selections of a label endpoint: one per `match[]`.
fn selections(
    tenant: &TenantId,
    params: &Params,
    unselected: Unselected,
) -> Result<Vec<Selection>, ApiError> {
    let start = params.time("start")?.unwrap_or(TimestampMs(0));
    let end = params.time("end")?.unwrap_or(TimestampMs(i64::MAX));
    if end < start {
        return Err(ApiError::parameter("end", "end timestamp must not be before start time"));
    }
    let mut selectors = params.selectors()?;
    if selectors.is_empty() {
        match unselected {
            Unselected::Everything => selectors.push(Vec::new()),
            Unselected::Refused => return Err(ApiError::bad_data("no match[] parameter provided")),
        }
    }
    let selection = |matchers| Selection { tenant: tenant.clone(), matchers, start, end };
    Ok(selectors.into_iter().map(selection).collect())
}

/// Collects what several selections find, and what they miss.
struct Found<T> {
    items: BTreeSet<T>,
    warnings: BTreeSet<String>,
    /// Most items that are wanted; of each selection and shard no more are asked for.
    limit: usize,
    truncated: bool,
    /// How many shards are asked.
    shards: usize,
}

impl<T: Ord> Found<T> {
    fn nothing(limit: Option<usize>, shards: usize) -> Self {
        let limit = limit.unwrap_or(usize::MAX);
        Self { items: BTreeSet::new(), warnings: BTreeSet::new(), limit, truncated: false, shards }
    }

    fn add(&mut self, answer: Result<ReadAnswer<Listed<T>>, ReadError>) -> Result<(), ApiError> {
        let ReadAnswer { value, completeness } = answer.map_err(ApiError::from)?;
        self.warnings.extend(missing(&completeness, self.shards)?);
        self.items.extend(value.items);
        self.truncated |= value.truncated;
        Ok(())
    }

    fn finish(self) -> (Vec<T>, Notes) {
        let mut warnings: Vec<String> = self.warnings.into_iter().collect();
        let mut items: Vec<T> = self.items.into_iter().collect();
        if self.truncated || items.len() > self.limit {
            items.truncate(self.limit);
            warnings.push(TRUNCATED.into());
        }
        (items, Notes { warnings, infos: Vec::new() })
    }
}

/// What an answer does not cover, as warnings; an error if that is everything.
pub(super) fn missing(completeness: &Completeness, asked: usize) -> Result<Vec<String>, ApiError> {
    let missing = describe_missing(completeness);
    if nothing_answered(completeness, asked) {
        return Err(ApiError::unavailable(missing.join("; ")));
    }
    Ok(missing)
}

/// `/api/v1/series`
pub(crate) async fn series(
    State(app): State<Arc<App>>,
    Tenant(tenant): Tenant,
    params: Params,
) -> Result<Response, ApiError> {
    let selections = selections(&tenant, &params, Unselected::Refused)?;
    let coordinator = &serving(&app)?.coordinator;
    let mut found = Found::nothing(params.limit()?, coordinator.shards_read(&tenant).len());
    for selection in &selections {
        found.add(coordinator.series(selection, found.limit).await)?;
    }
    let (labels, notes) = found.finish();
    let mut data = String::from("[");
    for (i, labels) in labels.iter().enumerate() {
        if i > 0 {
            data.push(',');
        }
        write_labels(&mut data, labels);
    }
    data.push(']');
    Ok(success(&data, &notes))
}

/// `/api/v1/labels`
pub(crate) async fn labels(
    State(app): State<Arc<App>>,
    Tenant(tenant): Tenant,
    params: Params,
) -> Result<Response, ApiError> {
    let selections = selections(&tenant, &params, Unselected::Everything)?;
    let coordinator = &serving(&app)?.coordinator;
    let mut found = Found::nothing(params.limit()?, coordinator.shards_read(&tenant).len());
    for selection in &selections {
        found.add(coordinator.label_names(selection, found.limit).await)?;
    }
    let (names, notes) = found.finish();
    Ok(success_of(&names, &notes))
}

/// `/api/v1/label/<name>/values`
pub(crate) async fn label_values(
    State(app): State<Arc<App>>,
    Tenant(tenant): Tenant,
    path: RawPathParams,
    params: Params,
) -> Result<Response, ApiError> {
    let name = path.iter().find(|(key, _)| *key == "name").map(|(_, value)| value).unwrap_or_default();
    let name = &super::names::unescape(name);
    if name.is_empty() {
        return Err(ApiError::bad_data(format!("invalid label name: {name:?}")));
    }
    let selections = selections(&tenant, &params, Unselected::Everything)?;
    let coordinator = &serving(&app)?.coordinator;
    let mut found = Found::nothing(params.limit()?, coordinator.shards_read(&tenant).len());
    for selection in &selections {
        found.add(coordinator.label_values(selection, name, found.limit).await)?;
    }
    let (values, notes) = found.finish();
    Ok(success_of(&values, &notes))
}

//! `/api/v1/metadata`: what senders said about a tenant's metrics.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use saturn_model::MetricMetadata;
use serde::Serialize;

use super::App;
use super::answer::{ApiError, Notes, success_of};
use super::params::Params;
use super::query::{missing, serving};
use super::tenant::Tenant;

/// What one sender said.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Entry {
    r#type: String,
    help: String,
    unit: String,
}

/// `GET /api/v1/metadata`
pub(crate) async fn metadata(
    State(app): State<Arc<App>>,
    Tenant(tenant): Tenant,
    params: Params,
) -> Result<Response, ApiError> {
    let limit = number(&params, "limit")?;
    let per_metric = number(&params, "limit_per_metric")?.filter(|limit| *limit > 0);
    let coordinator = &serving(&app)?.coordinator;
    let limit = limit.unwrap_or(usize::MAX);
    let answer = coordinator.metadata(&tenant, params.get("metric"), limit).await;
    let answer = answer.map_err(ApiError::from)?;
    let warnings = missing(&answer.completeness, coordinator.shards_read(&tenant).len())?;
    let metrics = by_metric(answer.value.items, limit, per_metric.unwrap_or(usize::MAX));
    Ok(success_of(&metrics, &Notes { warnings, infos: Vec::new() }))
}

/// A limit. As in Prometheus, a negative one is none.
fn number(params: &Params, name: &'static str) -> Result<Option<usize>, ApiError> {
    let Some(text) = params.get(name) else { return Ok(None) };
    let number: i64 = text.parse().map_err(|_| ApiError::bad_data(format!("{name} must be a number")))?;
    Ok(usize::try_from(number).ok())
}

fn by_metric(all: Vec<MetricMetadata>, limit: usize, per_metric: usize) -> BTreeMap<String, Vec<Entry>> {
    let mut metrics: BTreeMap<String, Vec<Entry>> = BTreeMap::new();
    for MetricMetadata { metric, kind, help, unit } in all {
        if !metrics.contains_key(&metric) && metrics.len() >= limit {
            continue;
        }
        let known = metrics.entry(metric).or_default();
        if known.len() < per_metric {
            known.push(Entry { r#type: kind.to_string(), help, unit });
        }
    }
    metrics
}

#[cfg(test)]
mod tests {
    use super::*;
    use saturn_model::MetricType;

    #[test]
    fn metrics_and_what_is_said_of_each_are_limited() {
        let said = |metric: &str, help: &str| MetricMetadata {
            metric: metric.into(),
            kind: MetricType::GaugeHistogram,
            help: help.into(),
            unit: "s".into(),
        };
        let all = || vec![said("a", "1"), said("a", "2"), said("b", "1"), said("c", "1")];
        let counts = |limit, per_metric| -> Vec<(String, usize)> {
            by_metric(all(), limit, per_metric).into_iter().map(|(name, said)| (name, said.len())).collect()
        };
        assert_eq!(counts(9, 9), [("a".into(), 2), ("b".into(), 1), ("c".into(), 1)]);
        assert_eq!(counts(2, 1), [("a".into(), 1), ("b".into(), 1)]);
        assert_eq!(counts(0, 1), []);
        let text = serde_json::to_string(&by_metric(all(), 1, 1)).expect("serialises");
        assert_eq!(text, r#"{"a":[{"type":"gaugehistogram","help":"1","unit":"s"}]}"#);
    }
}

//! `/api/v1/status/tsdb`: which names, labels and pairs of a tenant have how many series.
//!
//! Counted from the indexes of the replicas: each shard by one of them, so every series once, of what it holds in
//! memory (series that got no sample for an hour have left it). The lists of several nodes are added up entry by
//! entry, of at least [`LISTED_MIN`] entries each; how many different values a label has is exact if one node counted
//! them all, and else within a few percent.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use saturn_model::{Cardinality, largest};
use serde::Serialize;

use super::App;
use super::answer::{ApiError, Notes, success_of};
use super::params::Params;
use super::query::{missing, serving};
use super::tenant::Tenant;

/// Entries of each list if `limit` is not given, and the most that may be asked for (Prometheus's numbers).
const ENTRIES_DEFAULT: usize = 10;
const ENTRIES_MAX: usize = 10_000;
/// How long the lists of a node are at least, so that what is high in the sum is in all of them.
const LISTED_MIN: usize = 1000;

/// A name and how much there is of it.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Entry {
    name: String,
    value: u64,
}

/// `minTime` and `maxTime` in milliseconds; Prometheus's numbers if there is no sample.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct HeadStats {
    num_series: u64,
    num_label_pairs: u64,
    chunk_count: u64,
    min_time: i64,
    max_time: i64,
}

/// Prometheus's answer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct TsdbStatus {
    head_stats: HeadStats,
    series_count_by_metric_name: Vec<Entry>,
    label_value_count_by_label_name: Vec<Entry>,
    memory_in_bytes_by_label_name: Vec<Entry>,
    series_count_by_label_value_pair: Vec<Entry>,
}

/// `GET /api/v1/status/tsdb`
pub(crate) async fn tsdb(
    State(app): State<Arc<App>>,
    Tenant(tenant): Tenant,
    params: Params,
) -> Result<Response, ApiError> {
    let limit = match params.get("limit").map(str::parse::<usize>) {
        None => ENTRIES_DEFAULT,
        Some(Ok(limit @ 1..=ENTRIES_MAX)) => limit,
        Some(_) => {
            return Err(ApiError::bad_data(format!("limit must be a number from 1 to {ENTRIES_MAX}")));
        }
    };
    let coordinator = &serving(&app)?.coordinator;
    let answer = coordinator.cardinality(&tenant, limit.max(LISTED_MIN)).await;
    let warnings = missing(&answer.completeness, coordinator.shards_read(&tenant).len())?;
    Ok(success_of(&status(answer.value, limit), &Notes { warnings, infos: Vec::new() }))
}

fn status(counted: Cardinality, limit: usize) -> TsdbStatus {
    let (min_time, max_time) = counted.times.unwrap_or((i64::MAX, i64::MIN));
    let values = counted.labels.iter().map(|label| (label.name.clone(), label.values.count()));
    let bytes = counted.labels.iter().map(|label| (label.name.clone(), label.bytes()));
    TsdbStatus {
        head_stats: HeadStats {
            num_series: counted.series,
            num_label_pairs: counted.label_pairs.count(),
            chunk_count: counted.chunks,
            min_time,
            max_time,
        },
        label_value_count_by_label_name: entries(values, limit),
        memory_in_bytes_by_label_name: entries(bytes, limit),
        series_count_by_metric_name: entries(counted.series_by_metric, limit),
        series_count_by_label_value_pair: entries(counted.series_by_pair, limit),
    }
}

fn entries(counts: impl IntoIterator<Item = (String, u64)>, limit: usize) -> Vec<Entry> {
    largest(counts, limit).into_iter().map(|(name, value)| Entry { name, value }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_head_has_prometheus_times_and_lists_are_cut() {
        let stats = status(Cardinality::default(), 10).head_stats;
        assert_eq!((stats.min_time, stats.max_time), (i64::MAX, i64::MIN));
        let counted = Cardinality {
            times: Some((5, 9)),
            series_by_metric: vec![("b".into(), 1), ("a".into(), 1), ("c".into(), 7)],
            ..Cardinality::default()
        };
        let status = status(counted, 2);
        assert_eq!((status.head_stats.min_time, status.head_stats.max_time), (5, 9));
        let entry = |name: &str, value| Entry { name: name.into(), value };
        assert_eq!(status.series_count_by_metric_name, [entry("c", 7), entry("a", 1)]);
    }
}

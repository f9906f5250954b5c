//! `/api/v1/status/tsdb`: which names, labels and pairs of a tenant have how many series.
//!
//! Counted over the whole cluster, every series once, from the label sets that the replicas' indexes hold;
//! samples are not read. `chunkCount`, `minTime` and `maxTime` of Prometheus's answer are of its head alone and
//! have no equal here; they are left out.

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use saturn_model::{Labels, METRIC_NAME, Selection, TimestampMs};
use serde::Serialize;

use super::App;
use super::answer::{ApiError, Notes, success_of};
use super::params::Params;
use super::query::{Found, serving};
use super::tenant::Tenant;

/// Entries of each list if `limit` is not given, and the most that may be asked for (Prometheus's numbers).
const ENTRIES_DEFAULT: usize = 10;
const ENTRIES_MAX: usize = 10_000;

/// A name and how much there is of it.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Entry {
    name: String,
    value: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct HeadStats {
    num_series: usize,
    num_label_pairs: usize,
}

/// Prometheus's answer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Cardinality {
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
    let (start, end) = (TimestampMs(i64::MIN), TimestampMs(i64::MAX));
    let selection = Selection { tenant, matchers: Vec::new(), start, end };
    let coordinator = &serving(&app)?.coordinator;
    let answer = coordinator.series(&selection).await.map_err(|e| ApiError::unavailable(e.to_string()))?;
    let mut found = Found::nothing();
    found.add(answer.value, &answer.completeness, coordinator.shards())?;
    let counting = tokio::task::spawn_blocking(move || {
        let (series, notes) = found.finish(None);
        (cardinality(&series, limit), notes)
    });
    let (cardinality, notes): (Cardinality, Notes) =
        counting.await.map_err(|e| ApiError::internal(e.to_string()))?;
    Ok(success_of(&cardinality, &notes))
}

fn cardinality(series: &[Labels], limit: usize) -> Cardinality {
    let mut pairs: HashMap<(&str, &str), u64> = HashMap::new();
    for labels in series {
        labels.iter().for_each(|pair| *pairs.entry(pair).or_default() += 1);
    }
    let mut metrics: HashMap<String, u64> = HashMap::new();
    let (mut values, mut bytes) = (HashMap::new(), HashMap::new());
    for ((name, value), count) in &pairs {
        if *name == METRIC_NAME {
            metrics.insert((*value).to_owned(), *count);
        }
        *values.entry((*name).to_owned()).or_default() += 1;
        *bytes.entry((*name).to_owned()).or_default() += value.len() as u64;
    }
    Cardinality {
        head_stats: HeadStats { num_series: series.len(), num_label_pairs: pairs.len() },
        series_count_by_metric_name: largest(metrics, limit),
        label_value_count_by_label_name: largest(values, limit),
        memory_in_bytes_by_label_name: largest(bytes, limit),
        series_count_by_label_value_pair: largest(
            pairs.into_iter().map(|((name, value), count)| (format!("{name}={value}"), count)).collect(),
            limit,
        ),
    }
}

/// The entries with the largest values; equal ones by name.
fn largest(entries: HashMap<String, u64>, limit: usize) -> Vec<Entry> {
    let mut entries: Vec<Entry> = entries.into_iter().map(|(name, value)| Entry { name, value }).collect();
    entries.sort_by(|a, b| b.value.cmp(&a.value).then_with(|| a.name.cmp(&b.name)));
    entries.truncate(limit);
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_series_by_name_value_and_pair() {
        let labels = |pairs: &[(&str, &str)]| Labels::from_pairs(pairs.iter().copied()).expect("valid");
        let series = [
            labels(&[("__name__", "up"), ("job", "a")]),
            labels(&[("__name__", "up"), ("job", "bb")]),
            labels(&[("__name__", "down"), ("job", "a")]),
        ];
        let found = cardinality(&series, 1);
        assert_eq!((found.head_stats.num_series, found.head_stats.num_label_pairs), (3, 4));
        let one = |name: &str, value| vec![Entry { name: name.into(), value }];
        assert_eq!(found.series_count_by_metric_name, one("up", 2));
        assert_eq!(found.label_value_count_by_label_name, one("__name__", 2));
        assert_eq!(found.memory_in_bytes_by_label_name, one("__name__", 6));
        assert_eq!(found.series_count_by_label_value_pair, one("__name__=up", 2));
    }
}

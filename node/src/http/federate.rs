//! `/federate`: the newest sample of each selected series, in the text exposition format 0.0.4.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use saturn_model::{Labels, METRIC_NAME, SampleBudget, Selection, TimestampMs, is_stale_nan};

use super::App;
use super::answer::ApiError;
use super::params::Params;
use super::query::serving;
use super::tenant::Tenant;
use crate::clock;
use crate::read_path::describe_missing;

/// How far back the newest sample may lie (Prometheus's lookback).
const LOOKBACK_MS: i64 = 300_000;

/// `GET /federate?match[]=...`
pub(crate) async fn federate(
    State(app): State<Arc<App>>,
    Tenant(tenant): Tenant,
    params: Params,
) -> Result<Response, ApiError> {
    let coordinator = &serving(&app)?.coordinator;
    let now = clock::unix_ms();
    // By name first: an exposition keeps a metric's series together.
    let mut newest: BTreeMap<(String, Labels), (i64, f64)> = BTreeMap::new();
    let budget = Arc::new(SampleBudget::new(app.gate.limits.query_samples_max));
    for matchers in params.selectors()? {
        let (start, end) = (TimestampMs(now - LOOKBACK_MS + 1), TimestampMs(now));
        let selection = Selection { tenant: tenant.clone(), matchers, start, end };
        let answer = coordinator.select(&selection, app.gate.limits.query_series_max, &budget).await;
        let answer = answer.map_err(ApiError::from)?;
        // The format has no place for warnings, and a silent gap would look like vanished series.
        if let Some(text) = describe_missing(&answer.completeness).into_iter().next() {
            return Err(ApiError::unavailable(text));
        }
        for series in answer.value {
            // The text format cannot hold a native histogram. Prometheus leaves such series out, too.
            if series.histograms.timestamps.last() > series.timestamps.last() {
                continue;
            }
            let last = series.timestamps.last().copied().zip(series.values.last().copied());
            let name = series.labels.metric_name().to_owned();
            if let Some((timestamp, value)) = last.filter(|(_, v)| !is_stale_nan(*v) && !name.is_empty()) {
                newest.insert((name, series.labels), (timestamp, value));
            }
        }
    }
    let content_type = "text/plain; version=0.0.4; charset=utf-8; escaping=values";
    Ok(([(CONTENT_TYPE, content_type)], exposition(&newest)).into_response())
}

fn exposition(newest: &BTreeMap<(String, Labels), (i64, f64)>) -> String {
    let mut text = String::new();
    let mut last_name = "";
    for ((name, labels), (timestamp, value)) in newest {
        if name != last_name {
            text.push_str(&format!("# TYPE {} untyped\n", quoted_unless_legacy(name)));
            last_name = name;
        }
        text.push_str(&line(name, labels, *timestamp, *value));
    }
    text
}

fn line(name: &str, labels: &Labels, timestamp: i64, value: f64) -> String {
    let escape = |value: &str| value.replace('\\', r"\\").replace('\n', r"\n").replace('"', r#"\""#);
    let legacy_name = is_legacy_name(name);
    let mut pairs: Vec<String> = labels
        .iter()
        .filter(|(label, _)| *label != METRIC_NAME)
        .map(|(label, value)| format!("{}=\"{}\"", quoted_unless_legacy(label), escape(value)))
        .collect();
    // A series without an instance gets an empty one, so that the scraping side does not add its own.
    if labels.get("instance").is_none() {
        pairs.push("instance=\"\"".into());
        pairs.sort();
    }
    if !legacy_name {
        pairs.insert(0, quoted_unless_legacy(name));
    }
    let name = if legacy_name { name } else { "" };
    format!("{name}{{{}}} {} {timestamp}\n", pairs.join(","), saturn_promql::format_value(value))
}

fn is_legacy_name(name: &str) -> bool {
    let first = |c: char| c.is_ascii_alphabetic() || c == '_' || c == ':';
    name.chars().next().is_some_and(first) && name.chars().all(|c| first(c) || c.is_ascii_digit())
}

fn quoted_unless_legacy(name: &str) -> String {
    if is_legacy_name(name) { name.to_owned() } else { format!("{name:?}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_by_name_and_adds_an_empty_instance() {
        let labels = |pairs: &[(&'static str, &'static str)]| {
            Labels::from_pairs(pairs.iter().copied()).expect("valid")
        };
        let of = |labels: Labels| (labels.metric_name().to_owned(), labels);
        let newest = BTreeMap::from([
            (of(labels(&[("__name__", "up"), ("job", "a\"b")])), (1000, 1.0)),
            (of(labels(&[("__name__", "my.metric"), ("instance", "i")])), (2000, f64::INFINITY)),
        ]);
        assert_eq!(
            exposition(&newest),
            "# TYPE \"my.metric\" untyped\n\
             {\"my.metric\",instance=\"i\"} +Inf 2000\n\
             # TYPE up untyped\n\
             up{instance=\"\",job=\"a\\\"b\"} 1 1000\n"
        );
    }
}

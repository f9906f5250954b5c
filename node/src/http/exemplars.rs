//! `/api/v1/query_exemplars`: the exemplars of all series that any selector of an expression picks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use saturn_model::{Exemplar, Labels, Selection, TimestampMs};
use saturn_promql::{ParseLimits, parse_with_limits};

use super::App;
use super::answer::{ApiError, Notes, success, write_exemplar, write_labels};
use super::params::Params;
use super::query::{missing, serving};
use super::tenant::Tenant;

/// `GET` and `POST /api/v1/query_exemplars`
pub(crate) async fn query(
    State(app): State<Arc<App>>,
    Tenant(tenant): Tenant,
    params: Params,
) -> Result<Response, ApiError> {
    let start = params.time("start")?.unwrap_or(TimestampMs(i64::MIN));
    let end = params.time("end")?.unwrap_or(TimestampMs(i64::MAX));
    if end < start {
        return Err(ApiError::bad_data("end timestamp must not be before start timestamp"));
    }
    let limits = ParseLimits { query_bytes_max: app.gate.limits.query_bytes_max, ..ParseLimits::default() };
    let expr = parse_with_limits(params.get("query").unwrap_or_default(), &limits);
    // Here, Prometheus does not name the parameter.
    let expr = expr.map_err(|e| ApiError::bad_data(e.to_string()))?;
    let mut selectors = expr.selectors();
    selectors.dedup();
    if selectors.is_empty() {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let coordinator = &serving(&app)?.coordinator;
    let mut found: BTreeMap<Labels, BTreeSet<Exemplar>> = BTreeMap::new();
    let mut warnings = BTreeSet::new();
    for matchers in selectors {
        let selection = Selection { tenant: tenant.clone(), matchers: matchers.to_vec(), start, end };
        let answer = coordinator.exemplars(&selection).await;
        let answer = answer.map_err(ApiError::from)?;
        warnings.extend(missing(&answer.completeness, coordinator.shards_read(&selection.tenant).len())?);
        for series in answer.value {
            found.entry(series.labels).or_default().extend(series.exemplars);
        }
    }
    let warnings = warnings.into_iter().collect();
    Ok(success(&write_found(&found), &Notes { warnings, infos: Vec::new() }))
}

/// `[{"seriesLabels":{...},"exemplars":[...]},...]`
fn write_found(found: &BTreeMap<Labels, BTreeSet<Exemplar>>) -> String {
    let mut out = String::from("[");
    for (i, (labels, exemplars)) in found.iter().enumerate() {
        out.push_str(if i == 0 { r#"{"seriesLabels":"# } else { r#",{"seriesLabels":"# });
        write_labels(&mut out, labels);
        out.push_str(r#","exemplars":["#);
        for (i, exemplar) in exemplars.iter().enumerate() {
            if i > 0 {
                out.push(',');
            }
            write_exemplar(&mut out, exemplar);
        }
        out.push_str("]}");
    }
    out.push(']');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exemplars_look_like_prometheus() {
        let labels = |name: &str, value: &str| Labels::from_pairs([(name, value)]).expect("valid");
        let exemplar = |time, value| Exemplar {
            timestamp: TimestampMs(time),
            value,
            labels: labels("trace_id", "a\"b"),
        };
        let exemplars = BTreeSet::from([exemplar(1_600_096_945_479, 6.0), exemplar(4000, f64::INFINITY)]);
        let found = BTreeMap::from([(labels("__name__", "up"), exemplars)]);
        assert_eq!(
            write_found(&found),
            r#"[{"seriesLabels":{"__name__":"up"},"exemplars":[{"labels":{"trace_id":"a\"b"},"value":"+Inf","timestamp":4},{"labels":{"trace_id":"a\"b"},"value":"6","timestamp":1600096945.479}]}]"#
        );
        assert_eq!(write_found(&BTreeMap::new()), "[]");
    }
}

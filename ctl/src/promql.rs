//! `saturnctl promql diff`: the same range queries to two servers, compared answer by answer.
//!
//! Rules as in Prometheus's compliance tester: label sets and times must be equal, values within a relative
//! 0.00001, NaN equals NaN; a query that is expected to fail must fail on both sides.

use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::Output;
use crate::api::Api;

/// Largest relative difference of two values that count as equal.
const TOLERANCE: f64 = 0.00001;
/// What is compared if no times are given: ten minutes that ended two minutes ago.
const DEFAULT_RANGE_SECONDS: f64 = 600.0;
const DEFAULT_AGE_SECONDS: f64 = 120.0;

/// Work on the language itself.
#[derive(Subcommand)]
pub(crate) enum PromqlCommand {
    /// Compare two servers' answers to the queries of a file.
    Diff(Diff),
    /// Run scripts in the language of Prometheus's promqltest; needs no server.
    Test(crate::promql_test::Test),
}

/// Compare two servers' answers to the queries of a file.
#[derive(Args)]
pub(crate) struct Diff {
    /// HTTP address of the server whose answers count as right.
    #[arg(long)]
    reference: String,
    /// HTTP address of the server to be judged.
    #[arg(long)]
    test: String,
    /// JSON file: a list of {"expr": "...", "fail": false}.
    #[arg(long)]
    queries: std::path::PathBuf,
    /// Tenant of the server to be judged.
    #[arg(long, env = "SATURN_TENANT")]
    tenant: Option<String>,
    /// First evaluation, Unix seconds; 10 minutes before the end if not given.
    #[arg(long)]
    start: Option<f64>,
    /// Last evaluation, Unix seconds; 2 minutes ago if not given.
    #[arg(long)]
    end: Option<f64>,
    /// Seconds between evaluations.
    #[arg(long, default_value_t = 10.0)]
    step: f64,
}

#[derive(Debug, Deserialize)]
struct Query {
    expr: String,
    /// Whether the query is wrong and must be refused.
    #[serde(default)]
    fail: bool,
}

/// How the answers to one query compare.
#[derive(Debug, Serialize)]
struct Verdict {
    expr: String,
    /// `None`: they agree.
    difference: Option<String>,
}

pub(crate) async fn diff(args: &Diff, output: Output) -> anyhow::Result<ExitCode> {
    let text = std::fs::read_to_string(&args.queries)
        .with_context(|| format!("cannot read {}", args.queries.display()))?;
    let queries: Vec<Query> = serde_json::from_str(&text)
        .with_context(|| format!("{} is not a list of queries", args.queries.display()))?;
    let (reference, test) = (Api::new(&args.reference, None)?, Api::new(&args.test, None)?);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let end = args.end.unwrap_or(now - DEFAULT_AGE_SECONDS);
    let start = args.start.unwrap_or(end - DEFAULT_RANGE_SECONDS);
    let mut verdicts = Vec::new();
    for query in queries {
        let form = [
            ("query", query.expr.clone()),
            ("start", format!("{start:.3}")),
            ("end", format!("{end:.3}")),
            ("step", args.step.to_string()),
        ];
        let wanted = reference.call("/api/v1/query_range", None, &form).await;
        let got = test.call("/api/v1/query_range", args.tenant.as_deref(), &form).await;
        let difference = match (wanted, got) {
            (Ok(_), Ok(_)) if query.fail => Some("should be refused, but both answer".to_owned()),
            (Ok(wanted), Ok(got)) => compare(&wanted.data["result"], &got.data["result"]),
            (Err(_), Err(_)) if query.fail => None,
            (Err(e), Err(_)) => Some(format!("both refuse it: {e:#}")),
            (Err(e), Ok(_)) => Some(format!("only the reference refuses it: {e:#}")),
            (Ok(_), Err(e)) => Some(format!("only the tested server refuses it: {e:#}")),
        };
        verdicts.push(Verdict { expr: query.expr, difference });
    }
    let differing = verdicts.iter().filter(|verdict| verdict.difference.is_some()).count();
    match output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&verdicts)?),
        Output::Table => {
            for verdict in &verdicts {
                if let Some(difference) = &verdict.difference {
                    println!("DIFFERS  {}\n         {difference}", verdict.expr);
                }
            }
            println!("{} of {} queries agree.", verdicts.len() - differing, verdicts.len());
        }
    }
    Ok(if differing == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The first difference between two matrices, if there is one. The order of series does not count.
fn compare(wanted: &Value, got: &Value) -> Option<String> {
    let (wanted, got) = (by_labels(wanted), by_labels(got));
    if wanted.len() != got.len() {
        return Some(format!("{} series, want {}", got.len(), wanted.len()));
    }
    for ((wanted_labels, wanted), (got_labels, got)) in wanted.iter().zip(&got) {
        if wanted_labels != got_labels {
            return Some(format!("series {got_labels}, want {wanted_labels}"));
        }
        if wanted.len() != got.len() {
            return Some(format!("{} samples of {got_labels}, want {}", got.len(), wanted.len()));
        }
        let differing = wanted.iter().zip(got.iter()).find(|(wanted, got)| !same_point(wanted, got));
        if let Some((wanted, got)) = differing {
            return Some(format!("{got} of {got_labels}, want {wanted}"));
        }
    }
    None
}

/// Series with their points, sorted by labels.
fn by_labels(matrix: &Value) -> Vec<(String, &Vec<Value>)> {
    let series = matrix.as_array().into_iter().flatten();
    // serde_json's maps are sorted by key, so equal label sets print alike.
    let mut series: Vec<_> =
        series.filter_map(|one| Some((one["metric"].to_string(), one["values"].as_array()?))).collect();
    series.sort_by(|a, b| a.0.cmp(&b.0));
    series
}

fn same_point(wanted: &Value, got: &Value) -> bool {
    let value = |point: &Value| point[1].as_str().and_then(|text| text.parse::<f64>().ok());
    match (value(wanted), value(got)) {
        (Some(w), Some(g)) => wanted[0].as_f64() == got[0].as_f64() && same_value(w, g),
        _ => false,
    }
}

fn same_value(wanted: f64, got: f64) -> bool {
    let both_finite = wanted.is_finite() && got.is_finite();
    let within = (wanted - got).abs() <= TOLERANCE * wanted.abs().min(got.abs());
    wanted == got || (wanted.is_nan() && got.is_nan()) || (both_finite && within)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn differences_are_named() {
        let a = json!([{"metric": {"a": "1"}, "values": [[1, "1"], [2, "NaN"]]}, {"metric": {}, "values": [[1, "2"]]}]);
        let reordered = json!([{"metric": {}, "values": [[1, "2.000001"]]}, {"metric": {"a": "1"}, "values": [[1, "1"], [2, "NaN"]]}]);
        assert_eq!(compare(&a, &reordered), None);
        let other_value = json!([{"metric": {"a": "1"}, "values": [[1, "1.1"], [2, "NaN"]]}, {"metric": {}, "values": [[1, "2"]]}]);
        assert_eq!(compare(&a, &other_value).expect("differs"), r#"[1,"1.1"] of {"a":"1"}, want [1,"1"]"#);
        assert_eq!(compare(&a, &json!([])).expect("differs"), "0 series, want 2");
    }

    #[test]
    fn infinities_and_signs_count() {
        assert!(same_value(f64::INFINITY, f64::INFINITY));
        assert!(!same_value(f64::INFINITY, f64::NEG_INFINITY));
        assert!(!same_value(1.0, -1.0));
        assert!(!same_value(0.0, 1e-9));
    }
}

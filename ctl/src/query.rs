//! `saturnctl query instant|range`.

use std::process::ExitCode;

use clap::Args;
use serde_json::Value;

use crate::Output;
use crate::api::{Api, Envelope};

/// Evaluate at one time.
#[derive(Args)]
pub(crate) struct Instant {
    /// PromQL.
    query: String,
    /// Unix seconds or RFC 3339; now if not given.
    #[arg(long)]
    time: Option<String>,
    /// Whose data; the node's default tenant if not given.
    #[arg(long, env = "SATURN_TENANT")]
    tenant: Option<String>,
}

/// Evaluate over a range of time.
#[derive(Args)]
pub(crate) struct Range {
    /// PromQL.
    query: String,
    /// Unix seconds or RFC 3339.
    #[arg(long)]
    start: String,
    /// Unix seconds or RFC 3339.
    #[arg(long)]
    end: String,
    /// Seconds, or a duration such as 1m.
    #[arg(long, default_value = "1m")]
    step: String,
    /// Whose data; the node's default tenant if not given.
    #[arg(long, env = "SATURN_TENANT")]
    tenant: Option<String>,
}

pub(crate) async fn instant(api: &Api, args: &Instant, output: Output) -> anyhow::Result<ExitCode> {
    let mut form = vec![("query", args.query.clone())];
    form.extend(args.time.clone().map(|time| ("time", time)));
    let answer = api.call("/api/v1/query", args.tenant.as_deref(), &form).await?;
    print_answer(&answer, output)
}

pub(crate) async fn range(api: &Api, args: &Range, output: Output) -> anyhow::Result<ExitCode> {
    let form = [
        ("query", args.query.clone()),
        ("start", args.start.clone()),
        ("end", args.end.clone()),
        ("step", args.step.clone()),
    ];
    let answer = api.call("/api/v1/query_range", args.tenant.as_deref(), &form).await?;
    print_answer(&answer, output)
}

/// The result to standard output, warnings to standard error.
fn print_answer(answer: &Envelope, output: Output) -> anyhow::Result<ExitCode> {
    for warning in &answer.warnings {
        eprintln!("warning: {warning}");
    }
    for info in &answer.infos {
        eprintln!("info: {info}");
    }
    match output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&answer.data)?),
        Output::Table => print!("{}", describe(&answer.data)),
    }
    Ok(ExitCode::SUCCESS)
}

/// One line per sample, as promtool prints them: `series => value @[time]`.
fn describe(data: &Value) -> String {
    let result = &data["result"];
    match data["resultType"].as_str() {
        Some("scalar" | "string") => format!("{}\n", point(result)),
        Some("vector") => {
            let line = |s: &Value| format!("{} => {}\n", series(&s["metric"]), point(&s["value"]));
            result.as_array().into_iter().flatten().map(line).collect()
        }
        _ => {
            let block = |s: &Value| {
                let points = s["values"].as_array().into_iter().flatten();
                let points: String = points.map(|p| format!("{}\n", point(p))).collect();
                format!("{} =>\n{points}", series(&s["metric"]))
            };
            result.as_array().into_iter().flatten().map(block).collect()
        }
    }
}

fn point(point: &Value) -> String {
    format!("{} @[{}]", point[1].as_str().unwrap_or_default(), point[0])
}

fn series(metric: &Value) -> String {
    let labels = metric.as_object().into_iter().flatten();
    let pairs: Vec<String> = labels
        .filter(|(name, _)| *name != "__name__")
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    let name = metric["__name__"].as_str().unwrap_or_default();
    format!("{name}{{{}}}", pairs.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn prints_like_promtool() {
        let vector = json!({"resultType": "vector", "result": [
            {"metric": {"__name__": "up", "job": "a"}, "value": [1.5, "1"]}]});
        assert_eq!(describe(&vector), "up{job=\"a\"} => 1 @[1.5]\n");
        let matrix = json!({"resultType": "matrix", "result": [
            {"metric": {}, "values": [[1, "1"], [2, "NaN"]]}]});
        assert_eq!(describe(&matrix), "{} =>\n1 @[1]\nNaN @[2]\n");
        let scalar = json!({"resultType": "scalar", "result": [4, "2"]});
        assert_eq!(describe(&scalar), "2 @[4]\n");
    }
}

//! Prometheus's cases for the parser and the printer.

use saturn_promql::parse;
use serde_json::Value;

use crate::scripts::{report, shared_folder};

fn cases(file: &str) -> Vec<Value> {
    let Some(folder) = shared_folder() else {
        return Vec::new();
    };
    let text = std::fs::read_to_string(folder.join(file)).expect("the cases can be read");
    match serde_json::from_str(&text).expect("the cases are JSON") {
        Value::Array(cases) => cases,
        other => panic!("expected an array, got {other}"),
    }
}

/// What is wrong with a case, if anything. Cases that are Go source or not UTF-8 cannot be run.
fn check_parse_case(case: &Value) -> Option<Result<(), String>> {
    let input = case["input"].as_str()?;
    let first = &case["errors"][0];
    let message = first["msg"].as_str().unwrap_or("");
    let go_source = input.contains("` + \"`\"") || message.contains("float64(") || case["raw"].is_string();
    if go_source || message == "invalid UTF-8 rune" {
        return None;
    }
    let fails = case["fail"].as_bool().unwrap_or(false);
    Some(match (parse(input), fails) {
        (Ok(_), false) => Ok(()),
        (Ok(expr), true) => Err(format!("{input:?} parsed as {expr}, want {message:?}")),
        (Err(error), false) => Err(format!("{input:?}: {error}")),
        (Err(error), true) => {
            let start = first["pos"][0].as_u64();
            let end = first["pos"][1].as_u64();
            let same_place = start.is_none_or(|start| start == error.span.start as u64);
            let same_end = end.is_none_or(|end| end == error.span.end as u64);
            match error.message == message && same_place && same_end {
                true => Ok(()),
                false => Err(format!(
                    "{input:?}: got {:?} at {:?}, want {message:?} at {start:?}-{end:?}",
                    error.message, error.span
                )),
            }
        }
    })
}

#[test]
fn parse_cases() {
    let cases = cases("parse_cases.json");
    let results: Vec<Result<(), String>> = cases.iter().filter_map(check_parse_case).collect();
    let failures: Vec<&String> = results.iter().filter_map(|result| result.as_ref().err()).collect();
    report(&format!(
        "parse cases: {} passed, {} not runnable, {} failed",
        results.len() - failures.len(),
        cases.len() - results.len(),
        failures.len()
    ));
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn printer_cases() {
    let mut failures = Vec::new();
    let cases = cases("printer_cases.json");
    for case in &cases {
        let (Some(input), Some(wanted)) = (case["input"].as_str(), case["string"].as_str()) else {
            continue;
        };
        match parse(input) {
            Ok(expr) if expr.to_string() == wanted => {}
            Ok(expr) => failures.push(format!("{input:?}: got {expr}, want {wanted}")),
            Err(error) => failures.push(format!("{input:?}: {error}")),
        }
    }
    report(&format!("printer cases: {} of {} passed", cases.len() - failures.len(), cases.len()));
    assert!(failures.is_empty(), "{failures:#?}");
}

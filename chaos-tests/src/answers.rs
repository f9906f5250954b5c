//! Whether two servers gave the same answer.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};

use crate::Answer;

/// How far apart two values may be, relative to the larger: servers may add in another order.
const RELATIVE_TOLERANCE: f64 = 1e-9;

/// Differences below this do not count: they are what is left where numbers cancel out.
const ABSOLUTE_TOLERANCE: f64 = 1e-12;

/// Whether the order of the series matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// The query sorts.
    Matters,
    /// The query does not sort.
    Free,
}

/// Fails with the first difference: type, labels and times must be equal, values nearly so.
pub fn compare(expected: &Answer, actual: &Answer, order: Order) -> Result<()> {
    ensure!(
        expected.result_type == actual.result_type,
        "want a {}, got a {}",
        expected.result_type,
        actual.result_type
    );
    match expected.result_type.as_str() {
        "scalar" => compare_points(&expected.result, &actual.result),
        "vector" | "matrix" => compare_series(expected.series(), actual.series(), order),
        other => bail!("answers of type {other} are not compared"),
    }
}

fn compare_series(expected: &[Value], actual: &[Value], order: Order) -> Result<()> {
    if order == Order::Matters {
        let labels = |series: &[Value]| series.iter().map(label_text).collect::<Vec<_>>();
        ensure!(
            labels(expected) == labels(actual),
            "want the order {:?}, got {:?}",
            labels(expected),
            labels(actual)
        );
    }
    let by_labels = |series: &[Value]| -> BTreeMap<String, Value> {
        series.iter().map(|one| (label_text(one), one.clone())).collect()
    };
    let (expected_by, actual_by) = (by_labels(expected), by_labels(actual));
    ensure!(actual_by.len() == actual.len(), "a series occurs twice");
    for labels in expected_by.keys() {
        ensure!(actual_by.contains_key(labels), "{labels} is missing");
    }
    for (labels, one) in &actual_by {
        let other = expected_by.get(labels).with_context(|| format!("{labels} should not be there"))?;
        let (points, other_points) = (points(one), points(other));
        ensure!(
            points.len() == other_points.len(),
            "{labels}: want {} points, got {}",
            other_points.len(),
            points.len()
        );
        for (point, other_point) in points.iter().zip(other_points) {
            compare_points(other_point, point).with_context(|| labels.clone())?;
        }
    }
    Ok(())
}

/// The points of a series of a vector or matrix, floats before native histograms.
fn points(series: &Value) -> Vec<&Value> {
    let many = ["values", "histograms"].iter().filter_map(|key| series[key].as_array()).flatten();
    let single = ["value", "histogram"].iter().filter_map(|key| series.get(key));
    many.chain(single).collect()
}

/// The labels of a series in one order.
fn label_text(series: &Value) -> String {
    let labels = series["metric"].as_object();
    let sorted: BTreeMap<&String, &Value> = labels.into_iter().flatten().collect();
    format!("{sorted:?}")
}

fn compare_points(expected: &Value, actual: &Value) -> Result<()> {
    ensure!(timestamp_ms(expected)? == timestamp_ms(actual)?, "want the time of {expected}, got {actual}");
    if let Some(expected) = expected[1].as_object() {
        let actual = actual[1].as_object().with_context(|| format!("no native histogram: {actual}"))?;
        return compare_histograms(expected, actual);
    }
    let (wanted, got) = (value(expected)?, value(actual)?);
    ensure!(is_near(wanted, got), "want {wanted}, got {got} at {}", expected[0]);
    Ok(())
}

fn compare_histograms(expected: &Map<String, Value>, actual: &Map<String, Value>) -> Result<()> {
    let numbers = |histogram: &Map<String, Value>| -> Result<Vec<f64>> {
        let figures = ["count", "sum"].iter().filter_map(|key| histogram.get(*key));
        let buckets = histogram.get("buckets").and_then(Value::as_array).into_iter().flatten();
        let fields = figures.chain(buckets.filter_map(Value::as_array).flatten());
        let number = |field: &Value| match field.as_str() {
            Some(text) => text.parse().with_context(|| text.to_owned()),
            None => field.as_f64().with_context(|| format!("no number: {field}")),
        };
        fields.map(number).collect()
    };
    let (wanted, got) = (numbers(expected)?, numbers(actual)?);
    let near =
        wanted.len() == got.len() && wanted.iter().zip(&got).all(|(wanted, got)| is_near(*wanted, *got));
    ensure!(near, "want {expected:?}, got {actual:?}");
    Ok(())
}

/// The time of a point, which JSON holds as a number of seconds.
pub(crate) fn timestamp_ms(point: &Value) -> Result<i64> {
    let seconds = point[0].as_f64().with_context(|| format!("no time in {point}"))?;
    Ok((seconds * 1000.0).round() as i64)
}

/// The value of a point, which JSON holds as text.
pub(crate) fn value(point: &Value) -> Result<f64> {
    let text = point[1].as_str().with_context(|| format!("no value in {point}"))?;
    text.parse().with_context(|| text.to_owned())
}

fn is_near(wanted: f64, got: f64) -> bool {
    if wanted.is_nan() || got.is_nan() || wanted.is_infinite() || got.is_infinite() {
        return wanted == got || (wanted.is_nan() && got.is_nan());
    }
    (wanted - got).abs() <= (RELATIVE_TOLERANCE * wanted.abs().max(got.abs())).max(ABSOLUTE_TOLERANCE)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn vector(result: Value) -> Answer {
        Answer { result_type: "vector".to_owned(), result, warnings: Vec::new() }
    }

    #[test]
    fn the_order_of_labels_and_series_is_free_unless_it_matters() {
        let a = vector(
            json!([{"metric": {"x": "1", "y": "2"}, "value": [1.5, "1"]}, {"metric": {}, "value": [1.5, "2"]}]),
        );
        let b = vector(
            json!([{"metric": {}, "value": [1.5, "2"]}, {"metric": {"y": "2", "x": "1"}, "value": [1.500, "1"]}]),
        );
        compare(&a, &b, Order::Free).expect("equal");
        assert!(compare(&a, &b, Order::Matters).is_err());
        compare(&a, &a, Order::Matters).expect("equal");
    }

    #[test]
    fn differences_are_named() {
        let one = |labels: Value, time: f64, value: &str| {
            vector(json!([{"metric": labels, "value": [time, value]}]))
        };
        let base = one(json!({"a": "b"}), 1.0, "1");
        let difference =
            |other: &Answer| format!("{:#}", compare(&base, other, Order::Free).expect_err("different"));
        assert!(difference(&one(json!({"a": "c"}), 1.0, "1")).contains("is missing"));
        assert!(difference(&one(json!({"a": "b"}), 2.0, "1")).contains("the time of"));
        assert!(difference(&one(json!({"a": "b"}), 1.0, "1.000001")).contains("want 1, got 1.000001"));
        assert!(difference(&one(json!({"a": "b"}), 1.0, "NaN")).contains("got NaN"));
        assert!(difference(&vector(json!([]))).contains("is missing"));
        compare(&base, &one(json!({"a": "b"}), 1.0, "1.0000000000001"), Order::Free).expect("near enough");
    }

    #[test]
    fn special_values_equal_themselves_only() {
        assert!(is_near(f64::NAN, f64::NAN) && is_near(f64::INFINITY, f64::INFINITY));
        assert!(!is_near(f64::INFINITY, f64::NEG_INFINITY) && !is_near(1.0, f64::INFINITY));
    }
}

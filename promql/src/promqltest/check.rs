//! Compares answers with what a script expects.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::{Annotations, SampleValue, Value};
use saturn_model::{Histogram, Labels, SeriesColumns, is_stale_nan};

use super::script::{Eval, Expected, Steps, TextMatch};
use super::series::{Item, Literal};

/// The tolerance of Prometheus's own runner.
const TOLERANCE: f64 = 1e-6;

/// Compares a value.
pub(crate) fn check_value(value: &Value, eval: &Eval) -> Result<(), String> {
    let expected = &eval.expected;
    match value {
        Value::Scalar { value, .. } => match expected.scalar {
            Some(wanted) if almost_equal(*value, wanted) => Ok(()),
            wanted => Err(format!("got scalar {value}, want {wanted:?}")),
        },
        Value::String { value, .. } => match &expected.string {
            Some(wanted) if wanted == value => Ok(()),
            wanted => Err(format!("got string {value:?}, want {wanted:?}")),
        },
        Value::Vector(samples) => {
            let pairs =
                samples.iter().map(|sample| (&sample.labels, sample.value.clone())).collect::<Vec<_>>();
            check_vector(&pairs, expected)
        }
        Value::Matrix(series) => {
            let steps = expected.range_vector.unwrap_or((eval.start_ms, eval.end_ms, eval.step_ms));
            check_matrix(series, steps, expected)
        }
    }
}

/// Compares the column of a range answer at one time.
pub(crate) fn check_column(value: &Value, time: i64, expected: &Expected) -> Result<(), String> {
    let Value::Matrix(series) = value else {
        return Err("a range query gave no matrix".into());
    };
    if !series.is_sorted_by(|a, b| a.labels <= b.labels) {
        return Err("the matrix is not sorted".into());
    }
    if expected.ordered {
        return Ok(());
    }
    let at = |series: &SeriesColumns| points(series).remove(&time);
    let pairs: Vec<(&Labels, SampleValue)> =
        series.iter().filter_map(|s| Some((&s.labels, at(s)?))).collect();
    match expected.scalar {
        None => check_vector(&pairs, expected),
        Some(wanted) => match pairs.as_slice() {
            [(_, SampleValue::Float(got))] if almost_equal(*got, wanted) => Ok(()),
            _ => Err(format!("range: got {pairs:?}, want {wanted}")),
        },
    }
}

fn check_vector(samples: &[(&Labels, SampleValue)], expected: &Expected) -> Result<(), String> {
    if expected.scalar.is_some() || expected.string.is_some() {
        return Err("got a vector, want a scalar or string".into());
    }
    let mut wanted = BTreeMap::new();
    for (place, line) in expected.series.iter().enumerate() {
        wanted.insert(&line.labels, (place, &line.values));
    }
    for (place, (labels, value)) in samples.iter().enumerate() {
        let Some((wanted_place, values)) = wanted.remove(labels) else {
            return Err(format!("unexpected {labels} {value:?}"));
        };
        if expected.ordered && wanted_place != place {
            return Err(format!("{labels} is at place {place}, want {wanted_place}"));
        }
        match values.first() {
            Some(Some(wanted)) if is_expected(value, wanted) => {}
            other => return Err(format!("{labels}: got {value:?}, want {other:?}")),
        }
    }
    match wanted.keys().next() {
        Some(missing) => Err(format!("missing {missing}")),
        None => Ok(()),
    }
}

fn check_matrix(
    series: &[SeriesColumns],
    (start, end, step): Steps,
    expected: &Expected,
) -> Result<(), String> {
    if !series.is_sorted_by(|a, b| a.labels < b.labels) {
        return Err("the matrix is not sorted, or has duplicates".into());
    }
    let mut wanted: BTreeMap<&Labels, &Vec<Option<Item>>> =
        expected.series.iter().map(|line| (&line.labels, &line.values)).collect();
    for got in series {
        let labels = &got.labels;
        let Some(values) = wanted.remove(labels) else {
            return Err(format!("unexpected {labels} {:?}", points(got)));
        };
        let times = (0_i64..).map(|i| start.saturating_add(step.saturating_mul(i)));
        let wanted: Vec<(i64, &Item)> =
            times.zip(values).filter_map(|(time, value)| Some((time, value.as_ref()?))).collect();
        if wanted.last().is_some_and(|(time, _)| *time > end) {
            return Err(format!("expected value of {labels} after the end"));
        }
        let points = points(got);
        let same = points.len() == wanted.len()
            && wanted
                .iter()
                .zip(&points)
                .all(|((time, item), (t, value))| time == t && is_expected(value, item));
        if !same {
            return Err(format!("{labels}: got {points:?}, want {wanted:?}"));
        }
    }
    match wanted.keys().next() {
        Some(missing) => Err(format!("missing {missing}")),
        None => Ok(()),
    }
}

/// All samples of a series by time.
pub fn points(series: &SeriesColumns) -> BTreeMap<i64, SampleValue> {
    let floats = series.timestamps.iter().zip(&series.values);
    let histograms = series.histograms.timestamps.iter().zip(&series.histograms.values);
    floats
        .map(|(time, value)| (*time, SampleValue::Float(*value)))
        .chain(histograms.map(|(time, value)| (*time, SampleValue::Histogram(Arc::clone(value)))))
        .collect()
}

fn is_expected(got: &SampleValue, wanted: &Item) -> bool {
    match (got, wanted) {
        (SampleValue::Float(got), Item::Float(wanted)) => almost_equal(*got, *wanted),
        (SampleValue::Histogram(got), Item::Histogram(wanted)) => is_expected_histogram(got, wanted),
        _ => false,
    }
}

/// Compares histograms, and hints only if one is wanted.
fn is_expected_histogram(got: &Histogram, wanted: &Literal) -> bool {
    same_histogram(got, &wanted.histogram) && (!wanted.hint_is_wanted || got.hint == wanted.histogram.hint)
}

/// Compares histograms without their empty buckets and hints.
pub fn same_histogram(got: &Histogram, wanted: &Histogram) -> bool {
    let (mut got, mut other) = (got.clone(), wanted.clone());
    got.compact();
    other.compact();
    let same_side = |a: &saturn_model::Buckets, b: &saturn_model::Buckets| {
        a.counts().len() == b.counts().len()
            && a.iter().zip(b.iter()).all(|(a, b)| a.0 == b.0 && almost_equal(a.1, b.1))
    };
    got.schema == other.schema
        && almost_equal(got.count, other.count)
        && almost_equal(got.sum, other.sum)
        && almost_equal(got.zero_count, other.zero_count)
        && got.zero_threshold == other.zero_threshold
        && (!got.uses_custom_buckets() || got.custom_values == other.custom_values)
        && same_side(&got.positive, &other.positive)
        && same_side(&got.negative, &other.negative)
}

/// Compares warnings and infos.
pub(crate) fn check_annotations(
    annotations: &Annotations,
    query: &str,
    expected: &Expected,
) -> Result<(), String> {
    let rendered = annotations.render(query, 0);
    check_texts("warning", &rendered.warnings, &expected.warnings, expected.no_warning)?;
    check_texts("info", &rendered.infos, &expected.infos, expected.no_info)
}

fn check_texts(kind: &str, texts: &[String], wanted: &[TextMatch], none_wanted: bool) -> Result<(), String> {
    if none_wanted && !texts.is_empty() {
        return Err(format!("unexpected {kind}s {texts:?}"));
    }
    if wanted.is_empty() {
        return Ok(());
    }
    if let Some(missing) = wanted.iter().find(|w| !texts.iter().any(|text| w.matches(text))) {
        return Err(format!("no {kind} like {missing:?}, got {texts:?}"));
    }
    match texts.iter().find(|text| !wanted.iter().any(|w| w.matches(text))) {
        Some(text) => Err(format!("unexpected {kind} {text:?}")),
        None => Ok(()),
    }
}

/// Prometheus's `almost.Equal`.
pub fn almost_equal(a: f64, b: f64) -> bool {
    if is_stale_nan(a) || is_stale_nan(b) {
        return is_stale_nan(a) && is_stale_nan(b);
    }
    if (a.is_nan() && b.is_nan()) || a == b {
        return true;
    }
    let (sum, difference) = (a.abs() + b.abs(), (a - b).abs());
    if a == 0.0 || b == 0.0 || sum < f64::MIN_POSITIVE {
        return difference < TOLERANCE * f64::MIN_POSITIVE;
    }
    difference / sum.min(f64::MAX) < TOLERANCE
}

//! Functions of one window: the arithmetic on floats, and what only looks at times and kinds of samples.
//!
//! Source: the `..._over_time` family and neighbours in Prometheus's `functions.go`.

use crate::ast::Extension;
use crate::eval::block::Cell;
use crate::eval::numerics::{KahanSum, linear_regression, quantile, variance};
use crate::eval::params::SampleValue;
use crate::eval::start_timestamps::started_between;
use crate::eval::window::{Window, WindowSample};
use crate::functions::FunctionId;
use crate::go_text::{count_to_float, to_float};
use crate::histogram::{detect_reset, same_data};

/// A function of the floats of one window, of which there is at least one.
pub(super) type FloatFunction = fn(Window<'_>) -> Option<f64>;

/// The function with this id, if it is one that looks at floats only.
pub(super) fn float_function(id: FunctionId) -> Option<FloatFunction> {
    Some(match id {
        FunctionId::Deriv => deriv,
        FunctionId::MadOverTime => |w| Some(median_absolute_deviation(w.values)),
        FunctionId::MaxOverTime => |w| w.values.iter().copied().reduce(larger),
        FunctionId::MinOverTime => |w| w.values.iter().copied().reduce(smaller),
        FunctionId::StddevOverTime => |w| Some(variance(w.values).sqrt()),
        FunctionId::StdvarOverTime => |w| Some(variance(w.values)),
        FunctionId::TsOfMaxOverTime => |w| time_of(w, |value, best| value >= best),
        FunctionId::TsOfMinOverTime => |w| time_of(w, |value, best| value <= best),
        _ => return None,
    })
}

/// A function of all samples of one window, whatever they hold.
pub(super) type SampleFunction = fn(Window<'_>) -> Option<SampleValue>;

/// The function with this id, if it is one that takes samples of any kind.
pub(super) fn sample_function(id: FunctionId) -> Option<SampleFunction> {
    Some(match id {
        FunctionId::CountOverTime => |w| {
            let count = w.values.len() + w.histograms.values.len();
            Some(SampleValue::Float(count_to_float(count)))
        },
        FunctionId::FirstOverTime => |w| w.samples().next().map(|sample| sample.cell.into()),
        FunctionId::LastOverTime => |w| w.last().map(|sample| sample.cell.into()),
        FunctionId::PresentOverTime => |_| Some(SampleValue::Float(1.0)),
        FunctionId::TsOfFirstOverTime => |w| w.samples().next().map(seconds_of),
        FunctionId::TsOfLastOverTime => |w| w.last().map(seconds_of),
        _ => return None,
    })
}

fn seconds_of(sample: WindowSample<'_>) -> SampleValue {
    SampleValue::Float(to_float(sample.timestamp) / 1000.0)
}

/// `sum_over_time` of floats.
pub(super) fn sum(values: &[f64]) -> f64 {
    let mut sum = KahanSum::default();
    values.iter().for_each(|value| sum.add(*value));
    sum.total()
}

/// The larger of two; any number beats NaN.
pub(super) fn larger(best: f64, value: f64) -> f64 {
    if value > best || best.is_nan() { value } else { best }
}

/// The smaller of two; any number beats NaN.
pub(super) fn smaller(best: f64, value: f64) -> f64 {
    if value < best || best.is_nan() { value } else { best }
}

/// Whether a value is another one than before. From NaN to NaN is no change, from float to histogram is one.
pub(super) fn is_change(before: WindowSample<'_>, current: WindowSample<'_>) -> bool {
    match (before.cell, current.cell) {
        (Cell::Float(a), Cell::Float(b)) => a != b && !(a.is_nan() && b.is_nan()),
        (Cell::Histogram(a), Cell::Histogram(b)) => !same_data(a, b),
        _ => true,
    }
}

/// Whether a counter was reset. From float to histogram it was.
pub(super) fn is_reset(before: WindowSample<'_>, current: WindowSample<'_>) -> bool {
    match (before.cell, current.cell) {
        (Cell::Float(a), Cell::Float(b)) => b < a || started_between(before, current),
        (Cell::Histogram(a), Cell::Histogram(b)) => started_between(before, current) || detect_reset(b, a),
        _ => true,
    }
}

/// How often `happens` is true of two samples in a row. Anchored, the last sample before the range belongs to
/// it, but there must be one in it too.
pub(super) fn count_pairs(
    window: Window<'_>,
    extension: Option<Extension>,
    happens: fn(WindowSample<'_>, WindowSample<'_>) -> bool,
) -> Option<f64> {
    let mut before: Option<WindowSample<'_>> = None;
    let (mut count, mut any_in_range) = (0, extension.is_none());
    for sample in window.samples() {
        if sample.timestamp <= window.start {
            before = Some(sample);
            continue;
        }
        any_in_range = true;
        count += usize::from(before.is_some_and(|before| happens(before, sample)));
        before = Some(sample);
    }
    any_in_range.then(|| count_to_float(count))
}

fn median_absolute_deviation(values: &[f64]) -> f64 {
    if values.iter().any(|value| value.is_nan()) {
        return f64::NAN;
    }
    let mut values = values.to_vec();
    let median = quantile(0.5, &mut values);
    values.iter_mut().for_each(|value| *value = (*value - median).abs());
    quantile(0.5, &mut values)
}

/// The time in seconds of the last sample that is at least as good as all before it.
fn time_of(window: Window<'_>, as_good: fn(f64, f64) -> bool) -> Option<f64> {
    let mut samples = window.timestamps.iter().zip(window.values);
    let mut best = samples.next()?;
    for sample in samples {
        if as_good(*sample.1, *best.1) || best.1.is_nan() {
            best = sample;
        }
    }
    Some(to_float(*best.0) / 1000.0)
}

fn deriv(window: Window<'_>) -> Option<f64> {
    if window.values.len() < 2 {
        return None;
    }
    // Counted from the first sample: large times would cost precision.
    Some(linear_regression(window.timestamps, window.values, window.timestamps[0]).0)
}

/// The value `seconds` after the step, on the line through the window's samples.
pub(super) fn predict_linear(window: Window<'_>, seconds: f64) -> Option<f64> {
    if window.values.len() < 2 {
        return None;
    }
    let (slope, intercept) = linear_regression(window.timestamps, window.values, window.time);
    Some(slope * seconds + intercept)
}

/// Holt's linear method: `smoothing` weighs the level, `trend` the slope.
pub(super) fn double_exponential_smoothing(window: Window<'_>, smoothing: f64, trend: f64) -> Option<f64> {
    let [first, second, ..] = window.values else {
        return None;
    };
    let (mut before, mut level, mut slope) = (0.0, *first, second - first);
    for (i, value) in window.values[1..].iter().enumerate() {
        if i > 0 {
            slope = trend * (level - before) + (1.0 - trend) * slope;
        }
        let next = smoothing * value + (1.0 - smoothing) * (level + slope);
        (before, level) = (level, next);
    }
    Some(level)
}

//! Functions of one window that need no other arguments, and those of one or two numbers.
//!
//! Source: the `..._over_time` family and neighbours in Prometheus's `functions.go`.

use crate::eval::numerics::{KahanSum, linear_regression, mean, quantile, variance};
use crate::eval::window::Window;
use crate::functions::FunctionId;
use crate::go_text::{count_to_float, to_float};

/// A function of one window.
pub(super) type WindowFunction = fn(Window<'_>) -> Option<f64>;

/// The plain window function with this id, if it is one.
pub(super) fn window_function(id: FunctionId) -> Option<WindowFunction> {
    Some(match id {
        FunctionId::AvgOverTime => |w| Some(mean(w.values)),
        FunctionId::Changes => |w| Some(changes(w.values)),
        FunctionId::CountOverTime => |w| Some(count_to_float(w.values.len())),
        FunctionId::Deriv => deriv,
        FunctionId::FirstOverTime => |w| w.values.first().copied(),
        FunctionId::LastOverTime => |w| w.values.last().copied(),
        FunctionId::MadOverTime => |w| Some(median_absolute_deviation(w.values)),
        FunctionId::MaxOverTime => |w| w.values.iter().copied().reduce(larger),
        FunctionId::MinOverTime => |w| w.values.iter().copied().reduce(smaller),
        FunctionId::PresentOverTime => |_| Some(1.0),
        FunctionId::Resets => |w| Some(resets(w.values)),
        FunctionId::StddevOverTime => |w| Some(variance(w.values).sqrt()),
        FunctionId::StdvarOverTime => |w| Some(variance(w.values)),
        FunctionId::SumOverTime => sum,
        FunctionId::TsOfFirstOverTime => |w| w.timestamps.first().map(|t| to_float(*t) / 1000.0),
        FunctionId::TsOfLastOverTime => |w| w.timestamps.last().map(|t| to_float(*t) / 1000.0),
        FunctionId::TsOfMaxOverTime => |w| time_of(w, |value, best| value >= best),
        FunctionId::TsOfMinOverTime => |w| time_of(w, |value, best| value <= best),
        FunctionId::Idelta => crate::eval::extrapolate::instant_delta,
        FunctionId::Irate => crate::eval::extrapolate::instant_rate,
        _ => return None,
    })
}

/// The larger of two; any number beats NaN.
pub(super) fn larger(best: f64, value: f64) -> f64 {
    if value > best || best.is_nan() { value } else { best }
}

/// The smaller of two; any number beats NaN.
pub(super) fn smaller(best: f64, value: f64) -> f64 {
    if value < best || best.is_nan() { value } else { best }
}

fn sum(window: Window<'_>) -> Option<f64> {
    let mut sum = KahanSum::default();
    window.values.iter().for_each(|value| sum.add(*value));
    Some(sum.total())
}

/// How often the value changes. From NaN to NaN is no change.
fn changes(values: &[f64]) -> f64 {
    let differs = |pair: &&[f64]| pair[0] != pair[1] && !(pair[0].is_nan() && pair[1].is_nan());
    count_to_float(values.windows(2).filter(differs).count())
}

/// How often the value falls.
fn resets(values: &[f64]) -> f64 {
    count_to_float(values.windows(2).filter(|pair| pair[1] < pair[0]).count())
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

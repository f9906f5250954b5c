//! The change of native histograms over a window, and between its last two samples.
//!
//! Source: `histogramRate` and `instantValue` of Prometheus's `functions.go`.

use std::sync::Arc;

use saturn_model::{CounterResetHint, Histogram};

use crate::eval::block::Cell;
use crate::eval::extrapolate::Change;
use crate::eval::params::SampleValue;
use crate::eval::remarks::Remarks;
use crate::eval::start_timestamps::{started_between, starts_overlap};
use crate::eval::window::{HistogramWindow, Window};
use crate::go_text::to_float;
use crate::histogram::{HistogramSum, detect_reset, divided, with_schema};

/// Whether the sample says that it is a gauge.
pub(super) fn is_gauge(histogram: &Histogram) -> bool {
    histogram.hint == CounterResetHint::Gauge
}

/// The sum as a gauge without empty buckets: what functions of changes answer.
pub(super) fn gauge(sum: HistogramSum) -> Histogram {
    let mut result = sum.finish();
    result.hint = CounterResetHint::Gauge;
    result.compact();
    result
}

/// The change from the first to the last of at least two histograms, with resets undone if they count.
pub(super) fn histogram_change(
    window: HistogramWindow<'_>,
    change: Change,
    remarks: &Remarks<'_>,
) -> Option<Histogram> {
    let [first, between @ .., last] = window.values else { return None };
    let counter = change.is_of_counter();
    let starts = !window.starts.is_empty();
    let reset_at = |index: usize, before: &Histogram| {
        (starts && started_between(window.sample(index - 1), window.sample(index)))
            || detect_reset(&window.values[index], before)
    };
    let empty;
    let mut before: &Histogram = first;
    if counter && reset_at(1, before) {
        // The layout of what came before the reset does not matter.
        let second = &window.values[1];
        let custom_values = Arc::clone(&second.custom_values);
        empty = Histogram { schema: second.schema, custom_values, ..Histogram::default() };
        before = &empty;
    }
    let custom = before.uses_custom_buckets();
    let fits = last.uses_custom_buckets() == custom;
    let all_fit = fits && (!counter || between.iter().all(|h| h.uses_custom_buckets() == custom));
    let looked_at: &[Arc<Histogram>] = if all_fit { between } else { &[] };
    if counter && (all_fit || !fits) && [first, last].into_iter().chain(looked_at).any(|h| is_gauge(h)) {
        remarks.not_a_counter();
    }
    if !all_fit {
        remarks.mixed_schemas();
        return None;
    }
    let coarsest = if counter { between.iter().map(|h| h.schema).min() } else { None };
    let schema = last.schema.min(before.schema).min(coarsest.unwrap_or(last.schema));
    let mut sum = match last.schema == schema {
        true => HistogramSum::from(&**last),
        false => HistogramSum::from(&with_schema(last, schema)),
    };
    remarks.subtract(&mut sum, before)?;
    if counter {
        let mut overlap_is_known = false;
        for index in 1..window.values.len() {
            if starts && !overlap_is_known && starts_overlap(window.sample(index - 1), window.sample(index)) {
                overlap_is_known = true;
                remarks.start_overlap();
            }
            if reset_at(index, before) {
                remarks.add(&mut sum, before)?;
            }
            before = &window.values[index];
        }
    } else if !is_gauge(first) || !is_gauge(last) {
        remarks.not_a_gauge();
    }
    Some(gauge(sum))
}

/// What `irate` and `idelta` differ in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum InstantChange {
    /// `irate`: of a counter, per second.
    Rate,
    /// `idelta`: of a gauge.
    Delta,
}

/// The change between the last two samples; after a reset of a counter, the last sample itself.
pub(super) fn instant_change(
    window: Window<'_>,
    change: InstantChange,
    remarks: &Remarks<'_>,
) -> Option<SampleValue> {
    let [before, last] = window.last_two()?;
    if last.timestamp == before.timestamp {
        return None;
    }
    let seconds = to_float(last.timestamp - before.timestamp) / 1000.0;
    let rate = change == InstantChange::Rate;
    match (before.cell, last.cell) {
        (Cell::Float(old), Cell::Float(new)) => {
            let reset = rate && (new < old || started_between(before, last));
            let difference = if reset { new } else { new - old };
            Some(SampleValue::Float(if rate { difference / seconds } else { difference }))
        }
        (Cell::Histogram(old), Cell::Histogram(new)) => {
            match change {
                InstantChange::Rate if is_gauge(old) || is_gauge(new) => remarks.not_a_counter(),
                InstantChange::Delta if !is_gauge(old) || !is_gauge(new) => remarks.not_a_gauge(),
                _ => {}
            }
            let mut sum = HistogramSum::from(&**new);
            if !(rate && (started_between(before, last) || detect_reset(new, old))) {
                remarks.subtract(&mut sum, old)?;
            }
            let difference = gauge(sum);
            let result = if rate { divided(difference, seconds) } else { difference };
            Some(SampleValue::Histogram(Arc::new(result)))
        }
        _ => {
            remarks.mixed_types();
            None
        }
    }
}

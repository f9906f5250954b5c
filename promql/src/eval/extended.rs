//! `anchored` and `smoothed` ranges: `rate`, `increase` and `delta` from edge to edge, without extrapolation.
//!
//! Anchored, the left edge has the value of the last sample before the range, the right edge that of the last
//! sample in it. Smoothed, both are interpolated. Source: `extendedRate`, `extendedHistogramRate` and
//! `extendFloats` of Prometheus's engine.

use std::sync::Arc;

use saturn_model::{Histogram, SeriesColumns};

use crate::ast::Extension;
use crate::eval::extrapolate::Change;
use crate::eval::histogram_change::{gauge, is_gauge};
use crate::eval::params::SampleValue;
use crate::eval::remarks::Remarks;
use crate::eval::smoothed::{Kind, interpolate, interpolate_histograms};
use crate::eval::window::{HistogramWindow, Window};
use crate::go_text::to_float;
use crate::histogram::{HistogramSum, detect_reset, divided};

/// The samples that the edges are made of, as indexes.
#[derive(Clone, Copy, Debug)]
struct Edges {
    first: usize,
    last: usize,
}

impl Edges {
    /// Nothing if no sample lies in the range, or a smoothed range has nothing at its right edge.
    fn of(timestamps: &[i64], window: Window<'_>, extension: Extension) -> Option<Self> {
        let end = timestamps.len().checked_sub(1)?;
        let first = timestamps[..end].partition_point(|t| *t <= window.start).saturating_sub(1);
        let last = match extension {
            Extension::Anchored => end,
            Extension::Smoothed => timestamps[..end].partition_point(|t| *t < window.end),
        };
        let outside = timestamps[last] <= window.start
            || (extension == Extension::Smoothed && timestamps[first] > window.end);
        (!outside).then_some(Self { first, last })
    }
}

/// The change over an extended window.
pub(super) fn extended_change(
    window: Window<'_>,
    extension: Extension,
    change: Change,
    remarks: &Remarks<'_>,
) -> Option<SampleValue> {
    let seconds = to_float(window.end - window.start) / 1000.0;
    match (window.values.is_empty(), window.histograms.is_empty()) {
        (false, false) => {
            remarks.mixed_types();
            None
        }
        (_, true) => {
            let result = float_change(window, extension, change)?;
            Some(SampleValue::Float(if change == Change::Rate { result / seconds } else { result }))
        }
        (true, false) => {
            let result = histogram_change(window, extension, change, remarks)?;
            let result = if change == Change::Rate { divided(result, seconds) } else { result };
            Some(SampleValue::Histogram(Arc::new(result)))
        }
    }
}

fn kind_of(change: Change) -> Kind {
    if change.is_of_counter() { Kind::Counter } else { Kind::Gauge }
}

/// The values at the left and the right edge.
fn edge_values(window: Window<'_>, edges: Edges, extension: Extension, kind: Kind) -> (f64, f64) {
    let (times, values) = (window.timestamps, window.values);
    let between = |at: usize, time: i64| {
        interpolate((times[at], times[at + 1]), (values[at], values[at + 1]), time, kind)
    };
    let Edges { first, last } = edges;
    let smoothed = extension == Extension::Smoothed;
    let left = match smoothed && times[first] < window.start {
        true => between(first, window.start),
        false => values[first],
    };
    let right = match smoothed && last > 0 && times[last] > window.end {
        true => between(last - 1, window.end),
        false => values[last],
    };
    (left, right)
}

/// The samples strictly between the edges, as a range of indexes.
fn inside(timestamps: &[i64], window: Window<'_>, edges: Edges) -> std::ops::Range<usize> {
    let first = edges.first + usize::from(timestamps[edges.first] <= window.start);
    let past = edges.last + usize::from(timestamps[edges.last] < window.end);
    first..past.max(first)
}

fn float_change(window: Window<'_>, extension: Extension, change: Change) -> Option<f64> {
    let edges = Edges::of(window.timestamps, window, extension)?;
    let (left, right) = edge_values(window, edges, extension, kind_of(change));
    let mut result = right - left;
    if change.is_of_counter() {
        let mut before = left;
        let values = &window.values[inside(window.timestamps, window, edges)];
        for value in values.iter().chain([&right]) {
            if *value < before {
                result += before;
            }
            before = *value;
        }
    }
    Some(result)
}

/// The histograms at the left and the right edge.
fn edge_histograms(
    window: Window<'_>,
    edges: Edges,
    extension: Extension,
    kind: Kind,
    remarks: &Remarks<'_>,
) -> Option<(Histogram, Histogram)> {
    let HistogramWindow { timestamps: times, values, .. } = window.histograms;
    let between = |at: usize, time: i64| {
        let around = (&*values[at], &*values[at + 1]);
        interpolate_histograms((times[at], times[at + 1]), around, time, kind, remarks)
    };
    let Edges { first, last } = edges;
    let smoothed = extension == Extension::Smoothed;
    let left = match smoothed && times[first] < window.start {
        true => between(first, window.start)?,
        false => Histogram::clone(&values[first]),
    };
    let right = match smoothed && last > 0 && times[last] > window.end {
        true => between(last - 1, window.end)?,
        false => Histogram::clone(&values[last]),
    };
    Some((left, right))
}

fn histogram_change(
    window: Window<'_>,
    extension: Extension,
    change: Change,
    remarks: &Remarks<'_>,
) -> Option<Histogram> {
    let values = window.histograms.values;
    let edges = Edges::of(window.histograms.timestamps, window, extension)?;
    let looked_at = &values[edges.first..=edges.last];
    let custom = looked_at[0].uses_custom_buckets();
    let fitting = looked_at.iter().take_while(|h| h.uses_custom_buckets() == custom).count();
    if change.is_of_counter() && looked_at[..fitting].iter().any(|h| is_gauge(h)) {
        remarks.not_a_counter();
    }
    if fitting < looked_at.len() {
        remarks.mixed_schemas();
        return None;
    }
    let (left, right) = edge_histograms(window, edges, extension, kind_of(change), remarks)?;
    let gauges = is_gauge(&left) && is_gauge(&right);
    if !change.is_of_counter() && !gauges {
        remarks.not_a_gauge();
    }
    let mut sum = HistogramSum::from(&right);
    remarks.subtract(&mut sum, &left)?;
    if change.is_of_counter() {
        add_what_resets_took(&mut sum, window, edges, (&left, &right), extension, remarks)?;
    }
    Some(gauge(sum))
}

/// Adds the histograms before each reset between the edges.
fn add_what_resets_took(
    sum: &mut HistogramSum,
    window: Window<'_>,
    edges: Edges,
    (left, right): (&Histogram, &Histogram),
    extension: Extension,
    remarks: &Remarks<'_>,
) -> Option<()> {
    let HistogramWindow { timestamps: times, values, .. } = window.histograms;
    let Edges { first, last } = edges;
    let mut next = first + 1;
    let mut before = left;
    if extension == Extension::Smoothed
        && times[first] < window.start
        && detect_reset(&values[first + 1], &values[first])
    {
        // The interpolated left edge lies behind this reset already.
        before = &values[first + 1];
        next += 1;
    }
    if next > last {
        // Both edges were made of the same two samples, or of one.
        return Some(());
    }
    // The right edge stands for the last sample.
    for current in values[next..last].iter().map(|value| &**value).chain([right]) {
        if detect_reset(current, before) {
            remarks.add(sum, before)?;
        }
        before = current;
    }
    Some(())
}

/// The samples of an extended range selector that no function looks at: its edges and what lies between them.
pub(super) fn extended_samples(
    window: Window<'_>,
    extension: Extension,
    remarks: &Remarks<'_>,
) -> SeriesColumns {
    let mut columns = SeriesColumns::default();
    if let Some(edges) = Edges::of(window.timestamps, window, extension) {
        let (left, right) = edge_values(window, edges, extension, Kind::Gauge);
        let between = inside(window.timestamps, window, edges);
        columns.timestamps.push(window.start);
        columns.timestamps.extend_from_slice(&window.timestamps[between.clone()]);
        columns.timestamps.push(window.end);
        columns.values.push(left);
        columns.values.extend_from_slice(&window.values[between]);
        columns.values.push(right);
    }
    let HistogramWindow { timestamps, values, .. } = window.histograms;
    if let Some(edges) = Edges::of(timestamps, window, extension)
        && let Some((left, right)) = edge_histograms(window, edges, extension, Kind::Gauge, remarks)
    {
        columns.histograms.push(window.start, Arc::new(left));
        for index in inside(timestamps, window, edges) {
            columns.histograms.push(timestamps[index], Arc::clone(&values[index]));
        }
        columns.histograms.push(window.end, Arc::new(right));
    }
    columns
}

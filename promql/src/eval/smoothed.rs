//! Interpolation between samples, for `smoothed` selectors.
//!
//! Source: `interpolate`, `interpolateHistograms` and `smoothSeries` of Prometheus's engine.

use std::sync::Arc;

use saturn_model::{Histogram, SeriesColumns};

use crate::eval::histogram_change::is_gauge;
use crate::eval::params::SampleValue;
use crate::eval::remarks::Remarks;
use crate::go_text::to_float;
use crate::histogram::{HistogramSum, detect_reset, multiplied};

/// Whether a decrease is a reset, after which counting went on from zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Counter,
    Gauge,
}

/// How far `time` is from the first to the second of two times.
fn fraction(times: (i64, i64), time: i64) -> f64 {
    to_float(time - times.0) / to_float(times.1 - times.0)
}

/// The value at `time` on the line between two samples.
pub(super) fn interpolate(times: (i64, i64), values: (f64, f64), time: i64, kind: Kind) -> f64 {
    let (before, after) = values;
    let before = if kind == Kind::Counter && after < before { 0.0 } else { before };
    before + (after - before) * fraction(times, time)
}

/// The histogram at `time` between two others.
pub(super) fn interpolate_histograms(
    times: (i64, i64),
    values: (&Histogram, &Histogram),
    time: i64,
    kind: Kind,
    remarks: &Remarks<'_>,
) -> Option<Histogram> {
    let (before, after) = values;
    if time == times.0 {
        return Some(before.clone());
    }
    if time == times.1 {
        return Some(after.clone());
    }
    let fraction = fraction(times, time);
    if kind == Kind::Counter && detect_reset(after, before) {
        return Some(multiplied(after.clone(), fraction));
    }
    let mut result = HistogramSum::from(after);
    remarks.subtract(&mut result, before)?;
    result.scale(fraction);
    remarks.add(&mut result, before)?;
    Some(result.finish())
}

/// The value of a `smoothed` selector: that of a sample at `time`, else between the samples around it, else
/// that of the sample before it. There must be one before it, all within the lookback.
pub(super) fn smooth(
    series: &SeriesColumns,
    time: i64,
    lookback_ms: i64,
    remarks: &Remarks<'_>,
) -> Option<SampleValue> {
    let (after, until) = (time.saturating_sub(lookback_ms), time.saturating_add(lookback_ms));
    let within = |timestamps: &[i64]| {
        let first = timestamps.partition_point(|t| *t <= after);
        (first, timestamps.partition_point(|t| *t <= until).max(first))
    };
    let floats = within(&series.timestamps);
    let histograms = within(&series.histograms.timestamps);
    match (floats.0 < floats.1, histograms.0 < histograms.1) {
        (true, true) => {
            remarks.mixed_types();
            None
        }
        (true, false) => {
            let (times, values) = (&series.timestamps, &series.values);
            let next = times.partition_point(|t| *t <= time);
            let before = next.checked_sub(1).filter(|index| *index >= floats.0)?;
            if times[before] == time || next >= floats.1 {
                return Some(SampleValue::Float(values[before]));
            }
            let (times, values) = ((times[before], times[next]), (values[before], values[next]));
            Some(SampleValue::Float(interpolate(times, values, time, Kind::Gauge)))
        }
        (false, true) => {
            let (times, values) = (&series.histograms.timestamps, &series.histograms.values);
            let next = times.partition_point(|t| *t <= time);
            let before = next.checked_sub(1).filter(|index| *index >= histograms.0)?;
            if times[before] == time || next >= histograms.1 {
                return Some(SampleValue::Histogram(Arc::clone(&values[before])));
            }
            if values[before].uses_custom_buckets() != values[next].uses_custom_buckets() {
                remarks.mixed_schemas();
                return None;
            }
            let kind = if is_gauge(&values[next]) { Kind::Gauge } else { Kind::Counter };
            let (times, values) = ((times[before], times[next]), (&*values[before], &*values[next]));
            interpolate_histograms(times, values, time, kind, remarks)
                .map(|result| SampleValue::Histogram(Arc::new(result)))
        }
        (false, false) => None,
    }
}

//! `rate`, `increase` and `delta`: the change over a window, extrapolated to its edges.
//!
//! Source: `extrapolatedRate` of Prometheus's `functions.go`.

use std::sync::Arc;

use crate::eval::histogram_change::histogram_change;
use crate::eval::params::SampleValue;
use crate::eval::remarks::Remarks;
use crate::eval::start_timestamps::{started_between, starts_overlap};
use crate::eval::window::Window;
use crate::go_text::{count_to_float, to_float};
use crate::histogram::{HistogramSum, multiplied};

/// What is wanted of the change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// Of a counter, per second.
    Rate,
    /// Of a counter.
    Increase,
    /// Of a gauge.
    Delta,
}

impl Change {
    /// Whether the samples count something.
    pub(super) fn is_of_counter(self) -> bool {
        self != Change::Delta
    }
}

/// How the samples lay in the window before: with regular scrapes and steps, often as in the next one.
#[derive(Clone, Debug, Default)]
pub(super) struct RecentTiming(Option<Recent>);

#[derive(Clone, Debug)]
struct Recent {
    samples: usize,
    /// Milliseconds from the window's start to the first sample, from there to the last one, from there to the end.
    gaps: [i64; 3],
    timing: PlainTiming,
}

/// How the samples of a window lie in it, if they do not know when their counter began.
#[derive(Clone, Debug)]
pub(super) struct PlainTiming {
    timing: Timing,
    factor: f64,
    /// Whether the extrapolation on the left is no longer than what the samples cover.
    short_start: bool,
}

impl PlainTiming {
    /// Of samples at these times, in a window from `start`, exclusive, to `end`. Nothing of less than two samples.
    fn of(timestamps: &[i64], (start, end): (i64, i64), change: Change) -> Option<Self> {
        let timing = Timing::of(timestamps, &[], (start, end), change)?;
        let (factor, short_start) = (timing.factor(), timing.to_start <= timing.sampled);
        Some(Self { timing, factor, short_start })
    }

    /// What [`extrapolated_change`] makes of these values, with fewer divisions. `falls`: whether one of them may be
    /// smaller than the one before.
    #[inline]
    pub(super) fn change(&self, values: &[f64], falls: bool) -> Option<f64> {
        let ([first, ..], [.., last]) = (values, values) else {
            return None;
        };
        let mut result = last - first;
        if falls && self.timing.change.is_of_counter() {
            let resets = values.windows(2).filter(|pair| pair[1] < pair[0]);
            resets.for_each(|pair| result += pair[0]);
        }
        // A counter that began at least as high as it rose was at zero before all that is extrapolated.
        let far_from_zero = self.short_start && *first >= result;
        if result > 0.0 && *first >= 0.0 && !far_from_zero {
            let mut timing = self.timing.clone();
            timing.limit_to_zero(first / result);
            return Some(result * timing.factor());
        }
        Some(result * self.factor)
    }
}

impl RecentTiming {
    /// The timing of a window whose samples do not know when their counter began.
    pub(super) fn of(
        &mut self,
        timestamps: &[i64],
        (start, end): (i64, i64),
        change: Change,
    ) -> Option<&PlainTiming> {
        let (first, last) = (*timestamps.first()?, *timestamps.last()?);
        let gaps = [first - start, last - first, end - last];
        let samples = timestamps.len();
        let known = |recent: &Recent| {
            recent.samples == samples && recent.gaps == gaps && recent.timing.timing.change == change
        };
        if !self.0.as_ref().is_some_and(known) {
            let timing = PlainTiming::of(timestamps, (start, end), change)?;
            self.0 = Some(Recent { samples, gaps, timing });
        }
        self.0.as_ref().map(|recent| &recent.timing)
    }
}

/// The change over a window. It takes two samples, or one whose counter began inside of the window.
pub(super) fn extrapolated_change(
    window: Window<'_>,
    change: Change,
    remarks: &Remarks<'_>,
) -> Option<SampleValue> {
    if window.histograms.is_empty() {
        let (result, factor) = float_change(window, change, || remarks.start_overlap())?;
        return Some(SampleValue::Float(result * factor));
    }
    if !window.values.is_empty() {
        remarks.mixed_types();
        return None;
    }
    let histograms = window.histograms;
    let first = histograms.values.first()?;
    let mut result = match histograms.values.len() {
        1 => None,
        _ => Some(histogram_change(histograms, change, remarks)?),
    };
    let mut timing =
        Timing::of(histograms.timestamps, histograms.starts, (window.start, window.end), change)?;
    if timing.from_start {
        let mut sum = result.as_ref().map(HistogramSum::from);
        match &mut sum {
            Some(sum) => remarks.add(sum, first)?,
            None => sum = Some(HistogramSum::from(&**first)),
        }
        result = sum.map(HistogramSum::finish);
    }
    let result = result?;
    if result.count > 0.0 && first.count >= 0.0 {
        timing.limit_to_zero(first.count / result.count);
    }
    Some(SampleValue::Histogram(Arc::new(multiplied(result, timing.factor()))))
}

/// What [`extrapolated_change`] makes of floats that do not know when their counter began, with fewer divisions, and
/// nothing to say.
pub(super) fn plain_change(window: Window<'_>, change: Change, recent: &mut RecentTiming) -> Option<f64> {
    recent.of(window.timestamps, (window.start, window.end), change)?.change(window.values, window.falls)
}

/// The change of a window of floats, and the factor that extrapolates it.
fn float_change(window: Window<'_>, change: Change, overlap: impl FnOnce()) -> Option<(f64, f64)> {
    let mut timing = Timing::of(window.timestamps, window.starts, (window.start, window.end), change)?;
    let ([first, ..], [.., last]) = (window.values, window.values) else {
        return None;
    };
    let mut result = last - first;
    if change.is_of_counter() {
        if window.starts.is_empty() && window.falls {
            let resets = window.values.windows(2).filter(|pair| pair[1] < pair[0]);
            resets.for_each(|pair| result += pair[0]);
        } else if !window.starts.is_empty() {
            result += resets_with_starts(window, overlap);
        }
    }
    if timing.from_start {
        result += first;
    } else if result > 0.0 && *first >= 0.0 {
        timing.limit_to_zero(first / result);
    }
    Some((result, timing.factor()))
}

/// What resets took from a counter whose samples may know when it began.
fn resets_with_starts(window: Window<'_>, overlap: impl FnOnce()) -> f64 {
    let mut lost = 0.0;
    let mut overlap = Some(overlap);
    for (index, pair) in window.values.windows(2).enumerate() {
        let (before, current) = (window.float(index), window.float(index + 1));
        if starts_overlap(before, current)
            && let Some(overlap) = overlap.take()
        {
            overlap();
        }
        if pair[1] < pair[0] || started_between(before, current) {
            lost += pair[0];
        }
    }
    lost
}

/// How the samples lie in their window; all in seconds.
#[derive(Clone, Debug)]
struct Timing {
    sampled: f64,
    to_start: f64,
    to_end: f64,
    /// Whether the counter is known to have begun, at zero, inside of the window.
    from_start: bool,
    change: Change,
    range: f64,
}

impl Timing {
    /// Nothing if there is only one sample and its counter did not begin inside of the window.
    fn of(
        timestamps: &[i64],
        starts: &[i64],
        (window_start, window_end): (i64, i64),
        change: Change,
    ) -> Option<Self> {
        let (first, last) = (*timestamps.first()?, *timestamps.last()?);
        let seconds = |ms: i64| to_float(ms) / 1000.0;
        let start = starts.first().copied().unwrap_or(0);
        let from_start = change.is_of_counter() && start != 0 && start > window_start && start < first;
        if timestamps.len() == 1 && !from_start {
            return None;
        }
        let gaps = count_to_float(timestamps.len() - 1);
        let average_gap = if gaps > 0.0 { seconds(last - first) / gaps } else { 0.0 };
        // Beyond this gap a series is taken to begin or end inside of the window.
        let reach = |gap: f64| if gap >= average_gap * 1.1 { average_gap / 2.0 } else { gap };
        Some(Self {
            sampled: seconds(last - if from_start { start } else { first }),
            to_start: if from_start { 0.0 } else { reach(seconds(first - window_start)) },
            to_end: reach(seconds(window_end - last)),
            from_start,
            change,
            range: seconds(window_end - window_start),
        })
    }

    /// A counter cannot have been below zero: it gets there at `share` of the sampled time before the first
    /// sample.
    fn limit_to_zero(&mut self, share: f64) {
        if self.change.is_of_counter() && !self.from_start {
            let to_zero = self.sampled * share;
            if to_zero < self.to_start {
                self.to_start = to_zero;
            }
        }
    }

    fn factor(&self) -> f64 {
        let factor = match self.sampled {
            0.0 => 1.0,
            sampled => (sampled + self.to_start + self.to_end) / sampled,
        };
        if self.change == Change::Rate { factor / self.range } else { factor }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::window::HistogramWindow;

    fn window<'a>(timestamps: &'a [i64], values: &'a [f64], start: i64, end: i64) -> Window<'a> {
        let histograms = HistogramWindow::default();
        Window { timestamps, values, starts: &[], histograms, falls: true, time: end, start, end }
    }

    fn change_of(window: Window<'_>, change: Change) -> Option<f64> {
        float_change(window, change, || {}).map(|(result, factor)| result * factor)
    }

    #[test]
    fn extrapolates_to_the_edges_but_not_below_zero() {
        let (times, values) = ([10_000, 20_000, 30_000], [0.0, 10.0, 20.0]);
        let increase = |start, end| change_of(window(&times, &values, start, end), Change::Increase);
        assert_eq!(increase(10_000, 30_000), Some(20.0));
        // The counter was zero at its first sample: nothing is added on the left.
        assert_eq!(increase(5_000, 35_000), Some(25.0));
        assert_eq!(change_of(window(&[1], &[1.0], 0, 2), Change::Rate), None);
    }

    #[test]
    fn what_is_remembered_makes_no_difference() {
        let times: Vec<i64> = (0..60).map(|i| i * 10_000 + if i % 7 == 3 { 137 } else { 0 }).collect();
        let values: Vec<f64> = (0..60_u32).map(|i| f64::from(i * i % 97) * 1.1 + f64::from(i / 20)).collect();
        let mut recent = RecentTiming::default();
        let mut remembered = 0;
        for (change, first) in
            [(Change::Rate, 0), (Change::Increase, 1), (Change::Delta, 2), (Change::Rate, 3)]
        {
            for at in first..50 {
                for len in [1, 2, 3, 8] {
                    let (times, values) = (&times[at..at + len], &values[at..at + len]);
                    for before in [3000, 3000, 30_000] {
                        let window = window(times, values, times[0] - before, times[len - 1] + 5000);
                        let known = recent.0.as_ref().map(|recent| recent.gaps);
                        let fast = plain_change(window, change, &mut recent);
                        let wanted = change_of(window, change);
                        assert_eq!(fast.map(f64::to_bits), wanted.map(f64::to_bits), "{window:?}");
                        remembered +=
                            usize::from(fast.is_some() && recent.0.as_ref().map(|r| r.gaps) == known);
                    }
                }
            }
        }
        assert!(remembered > 100, "{remembered} times");
    }

    #[test]
    fn a_known_start_is_a_zero_sample() {
        let starts = [5_000, 5_000, 25_000];
        let window =
            Window { starts: &starts, ..window(&[10_000, 20_000, 30_000], &[1.0, 2.0, 5.0], 0, 30_000) };
        assert_eq!(change_of(window, Change::Increase), Some(7.0));
        let starts = [8_000];
        let one = Window { starts: &starts, ..self::window(&[10_000], &[3.0], 0, 10_000) };
        assert_eq!(change_of(one, Change::Increase), Some(3.0));
    }
}

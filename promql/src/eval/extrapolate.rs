//! `rate`, `increase` and `delta`: the change over a window, extrapolated to its edges.
//!
//! Source: `extrapolatedRate` of Prometheus's `functions.go`.

use crate::eval::window::Window;
use crate::go_text::{count_to_float, to_float};

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

/// The change over a window that is `range_ms` long; nothing for fewer than two samples.
pub(super) fn extrapolated_change(window: Window<'_>, range_ms: i64, change: Change) -> Option<f64> {
    let (timestamps, values) = (window.timestamps, window.values);
    let ([first_time, .., last_time], [first, .., last]) = (timestamps, values) else {
        return None;
    };
    let counter = change != Change::Delta;
    let mut result = last - first;
    if counter {
        let resets = values.windows(2).filter(|pair| pair[1] < pair[0]);
        resets.for_each(|pair| result += pair[0]);
    }
    let sampled = to_float(last_time - first_time) / 1000.0;
    let average_gap = sampled / count_to_float(values.len() - 1);
    // Beyond this gap a series is taken to begin or end inside of the window.
    let threshold = average_gap * 1.1;

    let mut to_start = to_float(first_time - window.start) / 1000.0;
    if to_start >= threshold {
        to_start = average_gap / 2.0;
    }
    if counter {
        // A counter cannot have been below zero.
        let to_zero = if result > 0.0 && *first >= 0.0 { sampled * (first / result) } else { to_start };
        to_start = to_start.min(to_zero);
    }
    let mut to_end = to_float(window.end - last_time) / 1000.0;
    if to_end >= threshold {
        to_end = average_gap / 2.0;
    }
    let mut factor = (sampled + to_start + to_end) / sampled;
    if change == Change::Rate {
        factor /= to_float(range_ms) / 1000.0;
    }
    Some(result * factor)
}

/// `irate`: the change between the last two samples, per second.
pub(super) fn instant_rate(window: Window<'_>) -> Option<f64> {
    let ([.., before_time, last_time], [.., before, last]) = (window.timestamps, window.values) else {
        return None;
    };
    let change = if last < before { *last } else { last - before };
    let seconds = to_float(last_time - before_time) / 1000.0;
    Some(change / seconds)
}

/// `idelta`: the change between the last two samples.
pub(super) fn instant_delta(window: Window<'_>) -> Option<f64> {
    match window.values {
        [.., before, last] => Some(last - before),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window<'a>(timestamps: &'a [i64], values: &'a [f64], start: i64, end: i64) -> Window<'a> {
        Window { timestamps, values, time: end, start, end }
    }

    #[test]
    fn extrapolates_to_the_edges_but_not_below_zero() {
        let (times, values) = ([10_000, 20_000, 30_000], [0.0, 10.0, 20.0]);
        let increase = |start, end| {
            extrapolated_change(window(&times, &values, start, end), end - start, Change::Increase)
        };
        assert_eq!(increase(10_000, 30_000), Some(20.0));
        // The counter was zero at its first sample: nothing is added on the left.
        assert_eq!(increase(5_000, 35_000), Some(25.0));
        assert_eq!(instant_rate(window(&times, &[5.0, 9.0, 2.0], 0, 0)), Some(0.2));
        assert_eq!(extrapolated_change(window(&[1], &[1.0], 0, 2), 2, Change::Rate), None);
    }
}

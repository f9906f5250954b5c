//! Whether a counter was reset between two histograms, and whether they are the same.
//!
//! Source: `DetectReset`, `detectResetWithMismatchedCustomBounds` and `Equals` in `float_histogram.go`.

use saturn_model::{Buckets, CounterResetHint, Histogram};

use crate::histogram::buckets::{Side, exponential_bound, side_of};
use crate::histogram::sum::{common_bounds, reduced, same_bounds, widened_zero_bucket};

/// Whether there was a counter reset between `before` and `current`. A hint decides; without one, any count
/// that is smaller (the sum of observations is not a count), a finer schema or a smaller zero bucket.
pub(crate) fn detect_reset(current: &Histogram, before: &Histogram) -> bool {
    match current.hint {
        CounterResetHint::Reset => return true,
        CounterResetHint::NotReset => return false,
        // Gauges should not be asked, but then they are treated like counters.
        CounterResetHint::Unknown | CounterResetHint::Gauge => {}
    }
    if current.count < before.count {
        return true;
    }
    if current.uses_custom_buckets() {
        return !before.uses_custom_buckets() || custom_reset(current, before);
    }
    if before.uses_custom_buckets()
        || current.schema > before.schema
        || current.zero_threshold < before.zero_threshold
    {
        return true;
    }
    let (zero_count, threshold) = widened_zero_bucket(before, current.zero_threshold);
    // Only a reset can put the new threshold into a bucket that had observations.
    if threshold != current.zero_threshold || current.zero_count < zero_count {
        return true;
    }
    [Side::Positive, Side::Negative].into_iter().any(|side| {
        let outside =
            |(index, _): &(i32, f64)| exponential_bound(*index, current.schema) <= current.zero_threshold;
        let now: Vec<_> = side_of(current, side).iter().skip_while(outside).collect();
        let then = reduced(side_of(before, side), before.schema, current.schema);
        has_decreased(&now, then.into_iter().skip_while(outside))
    })
}

/// Whether any bucket has fewer observations than before; one that is gone has none.
fn has_decreased(now: &[(i32, f64)], mut before: impl Iterator<Item = (i32, f64)>) -> bool {
    let mut at = 0;
    before.any(|(index, count)| {
        while now.get(at).is_some_and(|(now_index, _)| *now_index < index) {
            at += 1;
        }
        match now.get(at) {
            Some((now_index, now_count)) if *now_index == index => *now_count < count,
            _ => count != 0.0,
        }
    })
}

/// Compares histograms with custom buckets, on the bounds that both have.
fn custom_reset(current: &Histogram, before: &Histogram) -> bool {
    if same_bounds(&current.custom_values, &before.custom_values) {
        let now: Vec<_> = current.positive.iter().collect();
        return has_decreased(&now, before.positive.iter());
    }
    let common = common_bounds(&current.custom_values, &before.custom_values);
    let now = rolled_up(&current.positive, &current.custom_values, &common);
    let then = rolled_up(&before.positive, &before.custom_values, &common);
    now.iter().zip(&then).any(|(now, then)| now < then)
}

/// Counts of the buckets that `common` bounds make.
fn rolled_up(buckets: &Buckets, bounds: &[f64], common: &[f64]) -> Vec<f64> {
    let mut counts = vec![0.0; common.len() + 1];
    for (index, count) in buckets.iter() {
        let bound = usize::try_from(index).ok().and_then(|index| bounds.get(index));
        let place = bound.map_or(common.len(), |bound| common.partition_point(|common| common < bound));
        counts[place] += count;
    }
    counts
}

/// Whether two histograms are the same, bit for bit; the hint is no part of the data.
pub(crate) fn same_data(a: &Histogram, b: &Histogram) -> bool {
    let bits = |h: &Histogram| [h.count, h.sum, h.zero_count].map(f64::to_bits);
    let same_side = |a: &Buckets, b: &Buckets| {
        a.counts().len() == b.counts().len()
            && a.iter().zip(b.iter()).all(|(a, b)| (a.0, a.1.to_bits()) == (b.0, b.1.to_bits()))
    };
    a.schema == b.schema
        && bits(a) == bits(b)
        && a.zero_threshold == b.zero_threshold
        && (!a.uses_custom_buckets() || same_bounds(&a.custom_values, &b.custom_values))
        && same_side(&a.positive, &b.positive)
        && same_side(&a.negative, &b.negative)
}

//! `</` and `>/`: the part of a histogram below or above a bound.
//!
//! Buckets on the kept side stay, the one that the bound cuts is divided by interpolation, the others go. If
//! anything went, count and sum are estimated anew from what is left. Source: `TrimBuckets` of
//! `float_histogram.go`.

use saturn_model::Histogram;

use crate::histogram::HistogramBucket;
use crate::histogram::buckets::{Side, side_buckets, zero_bucket};

/// Which part is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kept {
    /// Below the bound: `</`.
    Below,
    /// Above the bound: `>/`.
    Above,
}

/// The observations on one side of `bound`.
pub(crate) fn trimmed(histogram: &Histogram, bound: f64, kept: Kept) -> Histogram {
    let mut result = histogram.clone();
    let (mut count, mut sum, mut changed) = (0.0, 0.0, false);
    let scale = if histogram.uses_custom_buckets() { Scale::Linear } else { Scale::Exponential };
    for side in [Side::Positive, Side::Negative] {
        let parts: Vec<(f64, f64)> = side_buckets(histogram, side)
            .map(|bucket| kept_part(bucket, bound, kept, Shape { side, scale }))
            .collect();
        let buckets = if side == Side::Positive { &mut result.positive } else { &mut result.negative };
        for (bucket, (left, middle)) in buckets.counts_mut().iter_mut().zip(parts) {
            if *bucket == 0.0 {
                continue;
            }
            if left != 0.0 {
                count += left;
                sum += middle * left;
            }
            changed |= *bucket != left;
            *bucket = left;
        }
    }
    if histogram.zero_count > 0.0 {
        let (left, middle) = kept_part_of_zero_bucket(histogram, bound, kept);
        changed |= histogram.zero_count != left;
        result.zero_count = left;
        count += left;
        sum += middle * left;
    }
    if changed {
        result.count = count;
        result.sum = sum;
        result.compact();
    }
    result
}

/// How observations are spread over a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scale {
    Linear,
    Exponential,
}

#[derive(Clone, Copy, Debug)]
struct Shape {
    side: Side,
    scale: Scale,
}

/// How many observations of a bucket are kept, and the value that they are taken to have.
fn kept_part(bucket: HistogramBucket, bound: f64, kept: Kept, shape: Shape) -> (f64, f64) {
    let HistogramBucket { lower, upper, count, .. } = bucket;
    let (all, some) = match kept {
        Kept::Below => (upper <= bound, lower < bound),
        Kept::Above => (lower >= bound, upper > bound),
    };
    if all {
        return (count, middle(lower, upper, shape));
    }
    if !some {
        return (0.0, 0.0);
    }
    if lower == f64::NEG_INFINITY || upper == f64::INFINITY {
        return kept_part_of_infinite_bucket(bucket, bound, kept);
    }
    let below = count * fraction_below(lower, upper, bound, shape);
    match kept {
        Kept::Below => (below, middle(lower, bound, shape)),
        Kept::Above => (count - below, middle(bound, upper, shape)),
    }
}

fn fraction_below(lower: f64, upper: f64, bound: f64, shape: Shape) -> f64 {
    if shape.scale == Scale::Linear {
        return (bound - lower) / (upper - lower);
    }
    let [lower, upper, bound] = [lower, upper, bound].map(|value| value.abs().log2());
    match shape.side {
        Side::Positive => (bound - lower) / (upper - lower),
        Side::Negative => 1.0 - (bound - upper) / (lower - upper),
    }
}

/// The value that the observations between two bounds are taken to have.
fn middle(lower: f64, upper: f64, shape: Shape) -> f64 {
    match (lower.is_infinite(), upper.is_infinite()) {
        (true, true) => 0.0,
        (true, false) if upper > 0.0 => upper / 2.0,
        (true, false) => upper,
        (false, true) => lower,
        (false, false) if shape.scale == Scale::Linear => (lower + upper) / 2.0,
        (false, false) => {
            let magnitude = (lower * upper).abs().sqrt();
            if shape.side == Side::Positive { magnitude } else { -magnitude }
        }
    }
}

/// A bucket that reaches to infinity and is cut. Nothing is known of where its observations are, but a first
/// bucket with a positive upper bound is taken to begin at zero, as in classic histograms.
fn kept_part_of_infinite_bucket(bucket: HistogramBucket, bound: f64, kept: Kept) -> (f64, f64) {
    let HistogramBucket { lower, upper, count, .. } = bucket;
    if lower == f64::NEG_INFINITY {
        let from_zero = upper > 0.0 && upper.is_finite();
        return match kept {
            Kept::Below if bound > 0.0 && from_zero => (count * bound / upper, bound / 2.0),
            Kept::Below if upper <= 0.0 => (count, bound),
            Kept::Above if bound == f64::NEG_INFINITY => (count, 0.0),
            Kept::Above if bound >= 0.0 && from_zero => {
                (count * (1.0 - bound / upper), (bound + upper) / 2.0)
            }
            _ => (0.0, 0.0),
        };
    }
    match kept {
        Kept::Above if bound >= lower => (count, bound),
        _ => (0.0, 0.0),
    }
}

fn kept_part_of_zero_bucket(histogram: &Histogram, bound: f64, kept: Kept) -> (f64, f64) {
    let has_any = |side| side_buckets(histogram, side).any(|bucket| bucket.count != 0.0);
    let HistogramBucket { mut lower, mut upper, count, .. } = zero_bucket(histogram);
    match (has_any(Side::Negative), has_any(Side::Positive)) {
        (true, false) => upper = 0.0,
        (false, true) => lower = 0.0,
        _ => {}
    }
    let whole = (count, (lower + upper) / 2.0);
    match kept {
        Kept::Below if bound <= lower => (0.0, 0.0),
        Kept::Below if bound >= upper => whole,
        Kept::Below => (count * (bound - lower) / (upper - lower), (lower + bound) / 2.0),
        Kept::Above if bound <= lower => whole,
        Kept::Above if bound >= upper => (0.0, 0.0),
        Kept::Above => (count * (upper - bound) / (upper - lower), (bound + upper) / 2.0),
    }
}

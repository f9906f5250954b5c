//! Quantiles, fractions and variance of native histograms.
//!
//! Within an exponential bucket observations are taken to be spread evenly on a logarithmic scale; within the
//! zero bucket and custom buckets on a linear one. Source: `HistogramQuantile` and `HistogramFraction` of
//! `quantile.go`, `histogramVariance` of `functions.go`.

use saturn_model::Histogram;

use crate::histogram::{HistogramBucket, histogram_buckets};
use crate::kahan::KahanSum;

/// What observations that were NaN do to a result. They are counted, but in no bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NanObservations {
    /// The result itself is NaN.
    ResultIsNan,
    /// The result is too high.
    ResultIsSkewed,
    /// They are in none of the fractions.
    Excluded,
}

/// The `phi`-quantile.
pub(crate) fn histogram_quantile(phi: f64, histogram: &Histogram) -> (f64, Option<NanObservations>) {
    if phi < 0.0 {
        return (f64::NEG_INFINITY, None);
    }
    if phi > 1.0 {
        return (f64::INFINITY, None);
    }
    if histogram.count == 0.0 || phi.is_nan() {
        return (f64::NAN, None);
    }
    // NaN observations are above all others: then, counting from below is the only way.
    let forward = histogram.sum.is_nan() || phi < 0.5;
    let mut buckets = histogram_buckets(histogram);
    if !forward {
        buckets.reverse();
    }
    let rank = if forward { phi } else { 1.0 - phi } * histogram.count;
    let mut bucket = HistogramBucket {
        lower: 0.0,
        upper: 0.0,
        lower_inclusive: false,
        upper_inclusive: false,
        count: 0.0,
    };
    let mut count = 0.0;
    let mut rest = buckets.iter();
    for next in rest.by_ref() {
        bucket = *next;
        count += bucket.count;
        if bucket.count != 0.0 && count >= rank {
            break;
        }
    }
    if histogram.uses_custom_buckets() {
        if bucket.lower == f64::NEG_INFINITY {
            if bucket.upper <= 0.0 {
                return (bucket.upper, None);
            }
            bucket.lower = 0.0;
        } else if bucket.upper == f64::INFINITY {
            return (bucket.lower, None);
        }
    } else if bucket.lower < 0.0 && bucket.upper > 0.0 {
        bucket = half_of_zero_bucket(bucket, histogram);
    }
    // Rounding must not make more observations than there are.
    count = count.min(histogram.count);
    if count < rank {
        return match histogram.sum.is_nan() {
            true => (f64::NAN, Some(NanObservations::ResultIsNan)),
            false => (bucket.upper, None),
        };
    }
    let within = if forward { rank - (count - bucket.count) } else { count - rank };
    let mut nan_observations = None;
    if histogram.sum.is_nan() {
        // The sum of -Inf and +Inf is NaN too, but those are in buckets.
        let in_buckets = rest.fold(count, |count, bucket| count + bucket.count);
        if in_buckets < histogram.count {
            nan_observations = Some(NanObservations::ResultIsSkewed);
        }
    }
    let value = interpolate(bucket, within / bucket.count, histogram.uses_custom_buckets());
    (value, nan_observations)
}

/// The value at a fraction of a bucket.
fn interpolate(bucket: HistogramBucket, fraction: f64, linear: bool) -> f64 {
    let HistogramBucket { lower, upper, .. } = bucket;
    if linear || (lower <= 0.0 && upper >= 0.0) {
        return lower + (upper - lower) * fraction;
    }
    let (log_lower, log_upper) = (lower.abs().log2(), upper.abs().log2());
    if lower > 0.0 {
        return (log_lower + (log_upper - log_lower) * fraction).exp2();
    }
    -(log_upper + (log_lower - log_upper) * (1.0 - fraction)).exp2()
}

/// The zero bucket without the half that the histogram has nothing on.
fn half_of_zero_bucket(mut bucket: HistogramBucket, histogram: &Histogram) -> HistogramBucket {
    match (histogram.negative.is_empty(), histogram.positive.is_empty()) {
        (true, false) => bucket.lower = 0.0,
        (false, true) => bucket.upper = 0.0,
        _ => {}
    }
    bucket
}

/// The fraction of observations between two values.
pub(crate) fn histogram_fraction(
    lower: f64,
    upper: f64,
    histogram: &Histogram,
) -> (f64, Option<NanObservations>) {
    if histogram.count == 0.0 || lower.is_nan() || upper.is_nan() {
        return (f64::NAN, None);
    }
    if lower >= upper {
        return (0.0, None);
    }
    let buckets = histogram_buckets(histogram);
    let (mut count, mut nan_observations) = (histogram.count, None);
    if histogram.sum.is_nan() {
        count = buckets.iter().fold(0.0, |count, bucket| count + bucket.count);
        nan_observations = (count < histogram.count).then_some(NanObservations::Excluded);
    }
    let rank = |bound| rank_of(bound, &buckets, histogram).filter(|rank| *rank <= count).unwrap_or(count);
    ((rank(upper) - rank(lower)) / histogram.count, nan_observations)
}

/// How many observations are below `bound`; nothing if all buckets are.
fn rank_of(bound: f64, buckets: &[HistogramBucket], histogram: &Histogram) -> Option<f64> {
    let mut rank = 0.0;
    for bucket in buckets {
        let around_zero = bucket.lower <= 0.0 && bucket.upper >= 0.0;
        let bucket = if around_zero { half_of_zero_bucket(*bucket, histogram) } else { *bucket };
        let HistogramBucket { lower, upper, count, .. } = bucket;
        if lower >= bound {
            return Some(rank);
        }
        if upper > bound {
            return Some(if !histogram.uses_custom_buckets() && !around_zero {
                let (log_lower, log_upper) = (lower.abs().log2(), upper.abs().log2());
                let log_bound = bound.abs().log2();
                let fraction = match bound > 0.0 {
                    true => (log_bound - log_lower) / (log_upper - log_lower),
                    false => 1.0 - (log_bound - log_upper) / (log_lower - log_upper),
                };
                rank + count * fraction
            } else if lower == f64::NEG_INFINITY {
                // Nothing is known of where in the bucket its observations are.
                count
            } else {
                rank + count * (bound - lower) / (upper - lower)
            });
        }
        rank += count;
    }
    None
}

/// The population variance, with each observation at the middle of its bucket.
pub(crate) fn variance(histogram: &Histogram) -> f64 {
    let mean = histogram.sum / histogram.count;
    let mut squares = KahanSum::default();
    for bucket in histogram_buckets(histogram).iter().filter(|bucket| bucket.count != 0.0) {
        let HistogramBucket { lower, upper, count, .. } = *bucket;
        let middle = if histogram.uses_custom_buckets() {
            (upper + lower) / 2.0
        } else if lower <= 0.0 && upper >= 0.0 {
            0.0
        } else {
            (upper * lower).sqrt().copysign(upper)
        };
        let delta = middle - mean;
        squares.add(count * delta * delta);
    }
    squares.corrected() / histogram.count
}

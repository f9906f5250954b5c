//! Where the buckets of a histogram begin and end.

use saturn_model::{Buckets, Histogram};

/// One bucket with its bounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HistogramBucket {
    /// Lower bound.
    pub lower: f64,
    /// Upper bound.
    pub upper: f64,
    /// Whether the lower bound itself belongs to the bucket.
    pub lower_inclusive: bool,
    /// Whether the upper bound itself belongs to the bucket.
    pub upper_inclusive: bool,
    /// How many observations it has.
    pub count: f64,
}

/// Which side of zero a bucket is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Positive,
    Negative,
}

/// All buckets from the lowest to the highest, those without observations included; the zero bucket only if
/// it has observations. Buckets that overlap the zero bucket end where it begins. The API prints those whose
/// count is not zero.
pub fn histogram_buckets(histogram: &Histogram) -> Vec<HistogramBucket> {
    let threshold = histogram.zero_threshold;
    let mut buckets: Vec<HistogramBucket> = side_buckets(histogram, Side::Negative).collect();
    buckets.reverse();
    if histogram.zero_count > 0.0 {
        buckets.push(zero_bucket(histogram));
    }
    buckets.extend(side_buckets(histogram, Side::Positive));
    for bucket in &mut buckets {
        if bucket.upper < 0.0 && bucket.upper > -threshold {
            bucket.upper = -threshold;
        } else if bucket.lower > 0.0 && bucket.lower < threshold {
            bucket.lower = threshold;
        }
    }
    buckets
}

/// The bucket around zero.
pub(super) fn zero_bucket(histogram: &Histogram) -> HistogramBucket {
    HistogramBucket {
        lower: -histogram.zero_threshold,
        upper: histogram.zero_threshold,
        lower_inclusive: true,
        upper_inclusive: true,
        count: histogram.zero_count,
    }
}

/// The buckets of one side in the order of their indexes: away from zero.
pub(super) fn side_buckets(histogram: &Histogram, side: Side) -> impl Iterator<Item = HistogramBucket> + '_ {
    // Most buckets begin where the one before them ends.
    let mut last = (i32::MIN, 0.0);
    side_of(histogram, side).iter().map(move |(index, count)| {
        if histogram.uses_custom_buckets() {
            let (lower, upper) = custom_bounds(&histogram.custom_values, index);
            return HistogramBucket {
                lower,
                upper,
                lower_inclusive: index == 0,
                upper_inclusive: true,
                count,
            };
        }
        let before = index.saturating_sub(1);
        let near = if last.0 == before { last.1 } else { exponential_bound(before, histogram.schema) };
        let far = exponential_bound(index, histogram.schema);
        last = (index, far);
        match side {
            Side::Positive => HistogramBucket {
                lower: near,
                upper: far,
                lower_inclusive: false,
                upper_inclusive: true,
                count,
            },
            Side::Negative => HistogramBucket {
                lower: -far,
                upper: -near,
                lower_inclusive: true,
                upper_inclusive: false,
                count,
            },
        }
    })
}

pub(super) fn side_of(histogram: &Histogram, side: Side) -> &Buckets {
    match side {
        Side::Positive => &histogram.positive,
        Side::Negative => &histogram.negative,
    }
}

/// Bounds of the custom bucket at `index`; the first begins at -Inf, the last ends at +Inf.
fn custom_bounds(bounds: &[f64], index: i32) -> (f64, f64) {
    let bound = |index: i32| match usize::try_from(index) {
        Ok(index) => bounds.get(index).copied().unwrap_or(f64::INFINITY),
        Err(_) => f64::NEG_INFINITY,
    };
    (bound(index.saturating_sub(1)), bound(index))
}

/// The bound far from zero of the exponential bucket at `index`: `2^(index * 2^-schema)`.
pub(super) fn exponential_bound(index: i32, schema: i32) -> f64 {
    // Powers of two: the exponent is exact.
    let exponent = f64::from(index) / f64::from(schema.clamp(-16, 16)).exp2();
    // The bucket of the largest floats ends with them: 2^1024 is none.
    if exponent == 1024.0 { f64::MAX } else { exponent.exp2() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_of_exponential_buckets() {
        assert_eq!(exponential_bound(0, 0), 1.0);
        assert_eq!(exponential_bound(3, 0), 8.0);
        assert_eq!(exponential_bound(-1, 0), 0.5);
        assert_eq!(exponential_bound(1, 1), std::f64::consts::SQRT_2);
        assert_eq!(exponential_bound(-1, 1), std::f64::consts::FRAC_1_SQRT_2);
        assert_eq!(exponential_bound(1, -1), 4.0);
        assert_eq!(exponential_bound(1024, 0), f64::MAX);
        assert_eq!(exponential_bound(-1074, 0), f64::from_bits(1));
        assert_eq!(exponential_bound(64, -4), f64::MAX);
        assert_eq!(exponential_bound(65, -4), f64::INFINITY);
    }

    #[test]
    fn buckets_end_where_the_zero_bucket_begins() {
        let histogram = Histogram {
            zero_threshold: 0.75,
            zero_count: 2.0,
            positive: Buckets::from_indexed([(0, 3.0), (1, 4.0)]),
            negative: Buckets::from_indexed([(0, 5.0), (2, 6.0)]),
            ..Histogram::default()
        };
        let bounds: Vec<_> =
            histogram_buckets(&histogram).iter().map(|b| (b.lower, b.upper, b.count)).collect();
        let wanted =
            [(-4.0, -2.0, 6.0), (-1.0, -0.75, 5.0), (-0.75, 0.75, 2.0), (0.75, 1.0, 3.0), (1.0, 2.0, 4.0)];
        assert_eq!(bounds, wanted);
    }
}

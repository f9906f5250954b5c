//! Statistics on compensated sums: means, variances, quantiles and regressions.
//!
//! Source: Prometheus's `functions.go` and `quantile.go`.

use crate::eval::window::LANES;
use crate::go_text::{count_to_float, to_integer};
pub(super) use crate::kahan::KahanSum;

/// A mean that survives sums too large for a float.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Mean {
    count: f64,
    sum: KahanSum,
    /// Whether `sum` has become the running mean itself.
    incremental: bool,
}

impl Mean {
    /// Adds `value`.
    pub(super) fn add(&mut self, value: f64) {
        self.count += 1.0;
        if self.count == 1.0 {
            self.sum = KahanSum::new(value);
            return;
        }
        if !self.incremental {
            let sum = self.sum.plus(value);
            if !sum.sum.is_infinite() {
                self.sum = sum;
                return;
            }
            self.incremental = true;
            self.sum.sum /= self.count - 1.0;
            self.sum.compensation /= self.count - 1.0;
        }
        let kept = (self.count - 1.0) / self.count;
        let scaled = KahanSum { sum: kept * self.sum.sum, compensation: kept * self.sum.compensation };
        self.sum = scaled.plus(value / self.count);
    }

    /// The mean of what both have seen.
    pub(super) fn joined(self, other: Self) -> Self {
        if self.count == 0.0 || other.count == 0.0 {
            return if self.count == 0.0 { other } else { self };
        }
        let count = self.count + other.count;
        if !self.incremental && !other.incremental {
            let sum = self.sum.joined(other.sum);
            if !sum.sum.is_infinite() {
                return Self { count, sum, incremental: false };
            }
        }
        let part = |mean: Self| {
            let share = if mean.incremental { mean.count / count } else { 1.0 / count };
            KahanSum { sum: mean.sum.sum * share, compensation: mean.sum.compensation * share }
        };
        Self { count, sum: part(self).joined(part(other)), incremental: true }
    }

    /// The mean; NaN without values.
    pub(super) fn mean(self) -> f64 {
        if self.incremental {
            self.sum.sum + self.sum.compensation
        } else {
            self.sum.sum / self.count + self.sum.compensation / self.count
        }
    }
}

/// The arithmetic mean of values.
pub(super) fn mean(values: &[f64]) -> f64 {
    let mut mean = Mean::default();
    values.iter().for_each(|value| mean.add(*value));
    mean.mean()
}

/// [`mean`] of several windows.
pub(super) fn means(windows: [&[f64]; LANES]) -> [f64; LANES] {
    let mut means = [0.0; LANES];
    if windows.iter().all(|values| !values.is_empty()) {
        let sums =
            sums_from(windows.map(|values| KahanSum::new(values[0])), windows.map(|values| &values[1..]));
        for ((mean, sum), values) in means.iter_mut().zip(sums).zip(windows) {
            let count = count_to_float(values.len());
            *mean = sum.sum / count + sum.compensation / count;
        }
    } else {
        means = [f64::NAN; LANES];
    }
    settle(means, windows, mean)
}

/// The sum of the values of several windows, of which `one` computes that of one.
pub(super) fn sums(windows: [&[f64]; LANES], one: fn(&[f64]) -> f64) -> [f64; LANES] {
    let sums = sums_from([KahanSum::default(); LANES], windows);
    settle(sums.map(KahanSum::corrected), windows, one)
}

/// Adds the values of each window to its sum, side by side: one sum waits for each of its additions, several keep the
/// processor busy. Where a sum is not finite, its compensation makes no sense.
fn sums_from(mut sums: [KahanSum; LANES], windows: [&[f64]; LANES]) -> [KahanSum; LANES] {
    let common = windows.iter().map(|values| values.len()).min().unwrap_or(0);
    let heads = windows.map(|values| &values[..common]);
    for at in 0..common {
        for (sum, values) in sums.iter_mut().zip(heads) {
            let value = values[at];
            let added = sum.sum + value;
            let (larger, smaller) =
                if sum.sum.abs() >= value.abs() { (sum.sum, value) } else { (value, sum.sum) };
            sum.compensation += (larger - added) + smaller;
            sum.sum = added;
        }
    }
    for (sum, values) in sums.iter_mut().zip(windows) {
        values[common..].iter().for_each(|value| sum.add(*value));
    }
    sums
}

/// What is not finite took another way, or never was: once a sum is infinite it stays so, or becomes NaN.
fn settle(mut results: [f64; LANES], windows: [&[f64]; LANES], one: fn(&[f64]) -> f64) -> [f64; LANES] {
    for (result, values) in results.iter_mut().zip(windows).filter(|(result, _)| !result.is_finite()) {
        *result = one(values);
    }
    results
}

/// The population variance of values: Welford's method on Kahan sums.
pub(super) fn variance(values: &[f64]) -> f64 {
    let (mut mean, mut squares) = (KahanSum::default(), KahanSum::default());
    for (i, value) in values.iter().enumerate() {
        let delta = value - (mean.sum + mean.compensation);
        mean.add(delta / count_to_float(i + 1));
        squares.add(delta * (value - (mean.sum + mean.compensation)));
    }
    squares.corrected() / count_to_float(values.len())
}

/// The `phi`-quantile by linear interpolation; sorts `values`, NaN first.
pub(super) fn quantile(phi: f64, values: &mut [f64]) -> f64 {
    if values.is_empty() || phi.is_nan() {
        return f64::NAN;
    }
    if phi < 0.0 {
        return f64::NEG_INFINITY;
    }
    if phi > 1.0 {
        return f64::INFINITY;
    }
    values.sort_by(|a, b| b.is_nan().cmp(&a.is_nan()).then_with(|| a.total_cmp(b)));
    let last = count_to_float(values.len() - 1);
    let rank = phi * last;
    let lower = rank.floor().max(0.0);
    let upper = (lower + 1.0).min(last);
    let weight = rank - rank.floor();
    values[to_index(lower)] * (1.0 - weight) + values[to_index(upper)] * weight
}

/// A non-negative whole number as an index.
fn to_index(value: f64) -> usize {
    usize::try_from(to_integer(value)).unwrap_or(0)
}

/// Slope and intercept of the least-squares line, with time counted in seconds from `origin`.
pub(super) fn linear_regression(timestamps: &[i64], values: &[f64], origin: i64) -> (f64, f64) {
    let first = values[0];
    if values.iter().all(|value| *value == first) {
        return if first.is_infinite() { (f64::NAN, f64::NAN) } else { (0.0, first) };
    }
    let n = count_to_float(values.len());
    let (mut x_sum, mut y_sum) = (KahanSum::default(), KahanSum::default());
    let (mut xy_sum, mut xx_sum) = (KahanSum::default(), KahanSum::default());
    for (timestamp, y) in timestamps.iter().zip(values) {
        let x = crate::go_text::to_float(timestamp - origin) / 1e3;
        x_sum.add(x);
        y_sum.add(*y);
        xy_sum.add(x * y);
        xx_sum.add(x * x);
    }
    let (x, y) = (x_sum.corrected(), y_sum.corrected());
    let covariance = xy_sum.corrected() - x * y / n;
    let x_variance = xx_sum.corrected() - x * x / n;
    let slope = covariance / x_variance;
    (slope, y / n - slope * x / n)
}

/// Whether two floats are equal within a relative `tolerance` (Prometheus's `util/almost`).
pub(super) fn almost_equal(a: f64, b: f64, tolerance: f64) -> bool {
    if a.is_nan() && b.is_nan() || a == b {
        return true;
    }
    let (sum, difference) = (a.abs() + b.abs(), (a - b).abs());
    if a == 0.0 || b == 0.0 || sum < f64::MIN_POSITIVE {
        return difference < tolerance * f64::MIN_POSITIVE;
    }
    difference / sum.min(f64::MAX) < tolerance
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_numbers_survive_large_ones() {
        let mut sum = KahanSum::default();
        [1.0, 1e100, 1.0, -1e100].into_iter().for_each(|value| sum.add(value));
        assert_eq!(sum.total(), 2.0);
    }

    proptest::proptest! {
        #[test]
        fn several_at_a_time_are_as_one_by_one(
            windows in proptest::collection::vec(
                proptest::collection::vec(
                    proptest::prop_oneof![
                        6 => -1e9..1e9_f64,
                        1 => proptest::num::f64::ANY,
                        1 => proptest::sample::select(vec![f64::MAX, -f64::MAX, 1e-300, -0.0, 0.0]),
                    ],
                    0..12,
                ),
                LANES,
            ),
        ) {
            let windows: [&[f64]; LANES] = std::array::from_fn(|lane| windows[lane].as_slice());
            let bits = |values: [f64; LANES]| values.map(f64::to_bits);
            proptest::prop_assert_eq!(bits(means(windows)), bits(windows.map(mean)));
            let sum = |values: &[f64]| {
                let mut sum = KahanSum::default();
                values.iter().for_each(|value| sum.add(*value));
                sum.total()
            };
            proptest::prop_assert_eq!(bits(sums(windows, sum)), bits(windows.map(sum)));
        }
    }

    #[test]
    fn the_mean_does_not_overflow() {
        assert!(almost_equal(mean(&[f64::MAX, f64::MAX, f64::MAX]), f64::MAX, 1e-12));
        assert_eq!(mean(&[f64::INFINITY, 1.0]), f64::INFINITY);
        assert_eq!(variance(&[1.0, 2.0, 3.0, 4.0]), 1.25);
    }

    #[test]
    fn quantiles_interpolate_and_put_nan_first() {
        assert_eq!(quantile(0.5, &mut [4.0, 1.0, 3.0, 2.0]), 2.5);
        assert!(quantile(0.0, &mut [1.0, f64::NAN]).is_nan());
        assert_eq!(quantile(1.5, &mut [1.0]), f64::INFINITY);
    }
}

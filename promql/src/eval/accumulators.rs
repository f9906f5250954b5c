//! What an aggregation keeps of the values of a group that it has seen.
//!
//! Source: `aggregation` of Prometheus's `engine.go`.

use crate::eval::numerics::{KahanSum, Mean};
use crate::eval::over_time::{larger, smaller};

/// The values of one group at one step. Its default has seen none.
pub(super) trait Accumulator: Copy + Default {
    /// Adds a value.
    fn add(&mut self, value: f64);

    /// The result, of at least one value.
    fn finish(self) -> f64;
}

/// An accumulator of parts of a group that are put together.
pub(super) trait Mergeable: Accumulator {
    /// Adds what another has seen. Sums and means are within rounding of those of the same values in another order.
    fn merge(&mut self, other: Self);
}

impl Accumulator for KahanSum {
    fn add(&mut self, value: f64) {
        KahanSum::add(self, value);
    }

    fn finish(self) -> f64 {
        self.total()
    }
}

impl Mergeable for KahanSum {
    fn merge(&mut self, other: Self) {
        *self = self.joined(other);
    }
}

impl Accumulator for Mean {
    fn add(&mut self, value: f64) {
        Mean::add(self, value);
    }

    fn finish(self) -> f64 {
        self.mean()
    }
}

impl Mergeable for Mean {
    fn merge(&mut self, other: Self) {
        *self = self.joined(other);
    }
}

/// How many values.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Count(f64);

impl Accumulator for Count {
    fn add(&mut self, _: f64) {
        self.0 += 1.0;
    }

    fn finish(self) -> f64 {
        self.0
    }
}

impl Mergeable for Count {
    fn merge(&mut self, other: Self) {
        self.0 += other.0;
    }
}

/// Whether there is any: `group`.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct One;

impl Accumulator for One {
    fn add(&mut self, _: f64) {}

    fn finish(self) -> f64 {
        1.0
    }
}

/// The smallest value.
#[derive(Clone, Copy, Debug)]
pub(super) struct Least(f64);

impl Default for Least {
    fn default() -> Self {
        Self(f64::NAN)
    }
}

impl Accumulator for Least {
    fn add(&mut self, value: f64) {
        self.0 = smaller(self.0, value);
    }

    fn finish(self) -> f64 {
        self.0
    }
}

impl Mergeable for Least {
    fn merge(&mut self, other: Self) {
        self.add(other.0);
    }
}

/// The largest value.
#[derive(Clone, Copy, Debug)]
pub(super) struct Greatest(f64);

impl Default for Greatest {
    fn default() -> Self {
        Self(f64::NAN)
    }
}

impl Accumulator for Greatest {
    fn add(&mut self, value: f64) {
        self.0 = larger(self.0, value);
    }

    fn finish(self) -> f64 {
        self.0
    }
}

impl Mergeable for Greatest {
    fn merge(&mut self, other: Self) {
        self.add(other.0);
    }
}

/// Welford's running variance, without compensation, as in Prometheus's aggregators.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Variance {
    count: f64,
    mean: f64,
    squares: f64,
}

impl Accumulator for Variance {
    fn add(&mut self, value: f64) {
        self.count += 1.0;
        if self.count == 1.0 {
            self.mean = value;
            self.squares = if value.is_finite() { 0.0 } else { f64::NAN };
            return;
        }
        let delta = value - self.mean;
        self.mean += delta / self.count;
        self.squares += delta * (value - self.mean);
    }

    fn finish(self) -> f64 {
        self.squares / self.count
    }
}

/// The root of [`Variance`].
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Deviation(Variance);

impl Accumulator for Deviation {
    fn add(&mut self, value: f64) {
        self.0.add(value);
    }

    fn finish(self) -> f64 {
        self.0.finish().sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::numerics::almost_equal;
    use proptest::prelude::*;

    fn value() -> impl Strategy<Value = f64> {
        prop_oneof![
            8 => -1e9..1e9_f64,
            2 => prop::sample::select(vec![1e-300, 0.1, 1e16, -1e16, f64::MAX / 4.0, -f64::MAX / 4.0]),
            1 => prop::sample::select(vec![f64::NAN, f64::INFINITY, f64::NEG_INFINITY]),
        ]
    }

    fn folded<A: Accumulator>(values: &[f64]) -> A {
        let mut all = A::default();
        values.iter().for_each(|value| all.add(*value));
        all
    }

    /// The result of all values, and that of parts that are merged.
    fn both_ways<A: Mergeable>(values: &[f64], cuts: &[usize]) -> (f64, f64) {
        let mut merged = A::default();
        let mut rest = values;
        for cut in cuts {
            let (part, behind) = rest.split_at(cut % (rest.len() + 1));
            merged.merge(folded(part));
            rest = behind;
        }
        merged.merge(folded(rest));
        (folded::<A>(values).finish(), merged.finish())
    }

    proptest! {
        #[test]
        fn parts_make_the_whole(
            values in proptest::collection::vec(value(), 1..60),
            cuts in proptest::collection::vec(any::<usize>(), 0..5),
        ) {
            for (whole, parts) in [
                both_ways::<Count>(&values, &cuts),
                both_ways::<Least>(&values, &cuts),
                both_ways::<Greatest>(&values, &cuts),
            ] {
                prop_assert!(whole == parts || whole.is_nan() && parts.is_nan(), "{} {}", whole, parts);
            }
            // Opposite numbers near the largest one leave nothing that a tolerance could be relative to.
            let scale = values.iter().filter(|v| v.is_finite()).fold(0.0, |max: f64, v| max.max(v.abs()));
            for (whole, parts) in [both_ways::<KahanSum>(&values, &cuts), both_ways::<Mean>(&values, &cuts)] {
                let near = (whole - parts).abs() <= scale * 1e-14;
                prop_assert!(near || almost_equal(whole, parts, 1e-13), "{} {}", whole, parts);
            }
        }
    }

    #[test]
    fn merged_sums_keep_what_rounding_took() {
        let (mut small, mut large) = (folded::<KahanSum>(&[1.0, 1e100]), folded::<KahanSum>(&[1.0, -1e100]));
        small.merge(large);
        assert_eq!(small.finish(), 2.0);
        large = folded(&[f64::INFINITY]);
        large.merge(folded(&[1.0]));
        assert_eq!(large.finish(), f64::INFINITY);
        let mut mean: Mean = folded(&[f64::MAX, f64::MAX]);
        mean.merge(folded(&[f64::MAX]));
        assert!(almost_equal(mean.finish(), f64::MAX, 1e-12));
    }
}

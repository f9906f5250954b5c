//! Sums that do not lose small numbers.
//!
//! Neumaier's variant of Kahan summation, in the order and with the special cases of Prometheus's
//! `util/kahansum`; nothing here may be contracted to fused operations.

/// A sum and the part of it that rounding took away.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct KahanSum {
    pub(crate) sum: f64,
    pub(crate) compensation: f64,
}

impl KahanSum {
    /// Starts with `sum`.
    pub(crate) fn new(sum: f64) -> Self {
        Self { sum, compensation: 0.0 }
    }

    /// The sum with `value` added.
    pub(crate) fn plus(self, value: f64) -> Self {
        let sum = self.sum + value;
        let compensation = if sum.is_infinite() {
            0.0
        } else if self.sum.abs() >= value.abs() {
            self.compensation + ((self.sum - sum) + value)
        } else {
            self.compensation + ((value - sum) + self.sum)
        };
        Self { sum, compensation }
    }

    /// Adds `value`.
    pub(crate) fn add(&mut self, value: f64) {
        *self = self.plus(value);
    }

    /// The sum of what both have seen.
    pub(crate) fn joined(self, other: Self) -> Self {
        let mut sum = self.plus(other.sum);
        if !sum.sum.is_infinite() {
            sum.compensation += other.compensation;
        }
        sum
    }

    /// The sum, corrected; an infinite sum needs no correction.
    pub(crate) fn total(self) -> f64 {
        if self.sum.is_infinite() { self.sum } else { self.corrected() }
    }

    /// The sum and its compensation.
    pub(crate) fn corrected(self) -> f64 {
        self.sum + self.compensation
    }
}

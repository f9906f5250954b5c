//! Means of native histograms, and what their hints say when many are put together.
//!
//! Source: `funcAvgOverTime` of Prometheus's `functions.go` and `aggregation` of `engine.go`.

use saturn_model::{CounterResetHint, Histogram};

use crate::eval::remarks::{Operation, Remarks};
use crate::histogram::{Added, HistogramSum, IncompatibleSchemas, divided};

/// A mean that survives sums too large for a float.
#[derive(Clone, Debug)]
pub(super) struct HistogramMean {
    count: f64,
    sum: HistogramSum,
    /// Whether `sum` has become the running mean itself.
    incremental: bool,
}

impl HistogramMean {
    /// The mean of one histogram.
    pub(super) fn new(first: &Histogram) -> Self {
        Self { count: 1.0, sum: first.into(), incremental: false }
    }

    /// Adds a histogram.
    pub(super) fn add(&mut self, histogram: &Histogram) -> Result<Added, IncompatibleSchemas> {
        self.count += 1.0;
        if !self.incremental {
            let mut sum = self.sum.clone();
            let added = sum.add(histogram)?;
            if !sum.has_overflow() {
                self.sum = sum;
                return Ok(added);
            }
            self.incremental = true;
            self.sum.divide(self.count - 1.0);
        }
        self.sum.scale((self.count - 1.0) / self.count);
        self.sum.add(&divided(histogram.clone(), self.count))
    }

    /// The mean.
    pub(super) fn finish(mut self) -> Histogram {
        if !self.incremental {
            self.sum.divide(self.count);
        }
        self.sum.finish()
    }
}

/// What is remarkable about histograms that are put together.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ResetsSeen {
    reset: bool,
    not_reset: bool,
    reconciled: bool,
}

impl ResetsSeen {
    /// Looks at one of the histograms.
    pub(super) fn see(&mut self, histogram: &Histogram) {
        match histogram.hint {
            CounterResetHint::Reset => self.reset = true,
            CounterResetHint::NotReset => self.not_reset = true,
            CounterResetHint::Unknown | CounterResetHint::Gauge => {}
        }
    }

    /// Looks at what an addition found.
    pub(super) fn added(&mut self, added: Added) {
        self.reconciled |= added.bounds_reconciled;
    }

    /// Says what there is to say.
    pub(super) fn remark(&self, remarks: &Remarks<'_>) {
        if self.reset && self.not_reset {
            remarks.reset_collision(Operation::Aggregation);
        }
        if self.reconciled {
            remarks.reconciled(Operation::Aggregation);
        }
    }
}

//! How many samples a query may hold at once while it reads.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Samples that are held, over all selectors of a query, and the most that may be (see `SeriesColumns::weight`).
#[derive(Debug)]
pub struct SampleBudget {
    samples_max: usize,
    held: AtomicUsize,
}

/// More samples than the budget allows would be held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more than {samples_max} samples would be held at once")]
pub struct OverBudget {
    /// The most that may be.
    pub samples_max: usize,
}

impl SampleBudget {
    /// Nothing is held yet.
    pub fn new(samples_max: usize) -> Self {
        Self { samples_max, held: AtomicUsize::new(0) }
    }

    /// Counts more samples as held.
    ///
    /// # Errors
    /// [`OverBudget`]: they are counted, but must not be kept.
    pub fn grow(&self, samples: usize) -> Result<(), OverBudget> {
        let before = self.held.fetch_add(samples, Ordering::Relaxed);
        if before.saturating_add(samples) > self.samples_max {
            return Err(OverBudget { samples_max: self.samples_max });
        }
        Ok(())
    }

    /// How many are held.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_that_fits_is_taken() {
        let budget = SampleBudget::new(10);
        assert_eq!((budget.grow(4), budget.grow(6), budget.grow(0)), (Ok(()), Ok(()), Ok(())));
        assert_eq!(budget.grow(1), Err(OverBudget { samples_max: 10 }));
        assert_eq!(budget.held(), 11);
    }
}

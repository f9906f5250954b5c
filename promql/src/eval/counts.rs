//! How many samples an evaluation looks at, step by step.
//!
//! Source: `QuerySamples` of Prometheus's `util/stats`. A histogram counts as many samples as its size says. What
//! lies in the window of a step counts at that step, again for each step whose window it is in. Samples that a
//! subquery reads do not count, but the results that the outer window holds do.

use std::sync::{Mutex, PoisonError};

use crate::eval::params::SampleStats;

/// The counts of one grid of steps, added to by every selector on it.
#[derive(Debug)]
pub(super) struct SampleCounts(Mutex<StepCounts>);

/// Counts of one selector, or of a part of its series.
#[derive(Clone, Debug)]
pub(super) struct StepCounts {
    queryable: Vec<u64>,
    read: Vec<u64>,
}

impl StepCounts {
    pub(super) fn new(steps: usize) -> Self {
        Self { queryable: vec![0; steps], read: vec![0; steps] }
    }

    /// Counts what one step looks at, of which `read` are new.
    pub(super) fn count(&mut self, step: usize, queryable: usize, read: usize) {
        self.queryable[step] += queryable as u64;
        self.read[step] += read as u64;
    }

    /// Adds counts of the same steps; all together if there is room for one.
    pub(super) fn add(&mut self, other: &StepCounts) {
        let sums = |sums: &mut [u64], counts: &[u64]| match sums {
            [total] => *total += counts.iter().sum::<u64>(),
            _ => sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count),
        };
        sums(&mut self.queryable, &other.queryable);
        sums(&mut self.read, &other.read);
    }
}

impl SampleCounts {
    pub(super) fn new(steps: usize) -> Self {
        Self(Mutex::new(StepCounts::new(steps)))
    }

    /// Counts of all steps together, whatever their number.
    pub(super) fn total() -> Self {
        Self::new(1)
    }

    fn with<T>(&self, f: impl FnOnce(&mut StepCounts) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Adds counts of the same steps.
    pub(super) fn add(&self, counts: &StepCounts) {
        self.with(|all| all.add(counts));
    }

    /// Adds what was looked at once for all steps: each step looks at it, the first reads it.
    pub(super) fn add_to_each(&self, once: &SampleCounts) {
        let (queryable, read): (u64, u64) =
            once.with(|once| (once.queryable.iter().sum(), once.read.iter().sum()));
        self.with(|all| all.queryable.iter_mut().for_each(|count| *count += queryable));
        self.add_read(read);
    }

    /// Adds what a subquery read, for all steps together.
    pub(super) fn add_read_of(&self, subquery: &SampleCounts) {
        self.add_read(subquery.with(|counts| counts.read.iter().sum()));
    }

    fn add_read(&self, read: u64) {
        self.with(|all| all.read.first_mut().into_iter().for_each(|count| *count += read));
    }

    pub(super) fn finish(self, times: impl Iterator<Item = i64>, peak: usize) -> SampleStats {
        let StepCounts { queryable, read } = self.0.into_inner().unwrap_or_else(PoisonError::into_inner);
        let times: Vec<i64> = times.collect();
        let with_times = |counts: Vec<u64>| times.iter().copied().zip(counts).collect();
        SampleStats { queryable_per_step: with_times(queryable), read_per_step: with_times(read), peak }
    }
}

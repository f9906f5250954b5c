//! The native histograms of one shard that are in memory: those of series that have any, beside their floats.
//!
//! A histogram is some thirty times as large as a float, so where memory is counted in samples it counts as
//! many as fit into its bytes ([`weight`]). Floats and histograms of one time are not settled in here, but by
//! whoever puts them together, by the rule of [`saturn_model::resolve`].

use std::collections::BTreeMap;
use std::sync::Arc;

use saturn_model::{Histogram, SeriesColumns, merge_histograms, resolve_histograms};

/// Bytes of a float sample in memory, time included.
const SAMPLE_BYTES: usize = 16;

/// How many samples a histogram counts for where memory is concerned.
fn weight(histogram: &Histogram) -> usize {
    histogram.size_bytes().div_ceil(SAMPLE_BYTES)
}

/// Times strictly ascending, histograms parallel to them.
#[derive(Clone, Debug, Default)]
struct HistogramRun {
    timestamps: Vec<i64>,
    values: Vec<Arc<Histogram>>,
}

/// Histograms by ordinal of their series.
#[derive(Clone, Debug, Default)]
pub(crate) struct HistogramRuns {
    runs: BTreeMap<u32, HistogramRun>,
    /// Sum of the weights of all histograms.
    weight: usize,
}

/// What memory holds: what a flush is writing, and what came since.
#[derive(Debug, Default)]
pub(crate) struct HistogramHead {
    current: HistogramRuns,
    flushing: Option<Arc<HistogramRuns>>,
}

impl HistogramRun {
    fn weight(&self) -> usize {
        self.values.iter().map(|histogram| weight(histogram)).sum()
    }

    /// Adds a histogram.
    fn insert(&mut self, timestamp: i64, value: &Arc<Histogram>) {
        if self.timestamps.last().is_none_or(|last| *last < timestamp) {
            self.timestamps.push(timestamp);
            self.values.push(Arc::clone(value));
            return;
        }
        match self.timestamps.binary_search(&timestamp) {
            Ok(at) => self.values[at] = Arc::clone(resolve_histograms(&self.values[at], value)),
            Err(at) => {
                self.timestamps.insert(at, timestamp);
                self.values.insert(at, Arc::clone(value));
            }
        }
    }

    fn merge(&mut self, other: &Self) {
        let own = (self.timestamps.as_slice(), self.values.as_slice());
        (self.timestamps, self.values) = merge_histograms(own, (&other.timestamps, &other.values));
    }

    fn range(&self, start: i64, end: i64) -> (&[i64], &[Arc<Histogram>]) {
        let from = self.timestamps.partition_point(|t| *t < start);
        let to = self.timestamps.partition_point(|t| *t <= end).max(from);
        (&self.timestamps[from..to], &self.values[from..to])
    }
}

impl HistogramRuns {
    /// Adds histograms of a series, in any order. Returns how many times are new.
    fn append(&mut self, ordinal: u32, timestamps: &[i64], values: &[Arc<Histogram>]) -> usize {
        if timestamps.is_empty() {
            return 0;
        }
        let run = self.runs.entry(ordinal).or_default();
        let before = run.timestamps.len();
        let newer = timestamps.is_sorted_by(|a, b| a < b) && run.timestamps.last() < timestamps.first();
        if newer {
            run.timestamps.extend_from_slice(timestamps);
            run.values.extend_from_slice(values);
            self.weight += values.iter().map(|histogram| weight(histogram)).sum::<usize>();
        } else {
            self.weight -= run.weight();
            let mut order: Vec<usize> = (0..timestamps.len()).collect();
            order.sort_by_key(|at| timestamps[*at]);
            let mut sorted = HistogramRun::default();
            for at in order {
                sorted.insert(timestamps[at], &values[at]);
            }
            run.merge(&sorted);
            self.weight += run.weight();
        }
        run.timestamps.len() - before
    }

    fn merge(&mut self, other: &Self) {
        for (ordinal, run) in &other.runs {
            self.append(*ordinal, &run.timestamps, &run.values);
        }
    }

    /// How many samples the histograms count for where memory is concerned.
    pub(crate) fn weight(&self) -> usize {
        self.weight
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// The histograms of a series from `start` to `end`, both inclusive.
    pub(crate) fn range(&self, ordinal: u32, start: i64, end: i64) -> (&[i64], &[Arc<Histogram>]) {
        self.runs.get(&ordinal).map_or((&[], &[]), |run| run.range(start, end))
    }

    /// The series, and the times of their histograms.
    pub(crate) fn times(&self) -> impl Iterator<Item = (u32, &[i64])> {
        self.runs.iter().map(|(ordinal, run)| (*ordinal, run.timestamps.as_slice()))
    }
}

impl HistogramHead {
    /// Adds histograms of a series. Returns how many times are new.
    pub(crate) fn append(&mut self, ordinal: u32, timestamps: &[i64], values: &[Arc<Histogram>]) -> usize {
        self.current.append(ordinal, timestamps, values)
    }

    /// See [`HistogramRuns::weight`]; without what a flush is writing.
    pub(crate) fn weight(&self) -> usize {
        self.current.weight
    }

    /// Whether nothing waits for a flush.
    pub(crate) fn is_empty(&self) -> bool {
        self.current.is_empty()
    }

    /// Whether nothing of the series waits for a flush.
    pub(crate) fn lacks(&self, ordinal: u32) -> bool {
        !self.current.runs.contains_key(&ordinal)
    }

    /// What waits for a flush.
    pub(crate) fn copy(&self) -> HistogramRuns {
        self.current.clone()
    }

    /// Sets everything aside for a flush.
    pub(crate) fn begin_flush(&mut self) -> Arc<HistogramRuns> {
        let taken = Arc::new(std::mem::take(&mut self.current));
        self.flushing = Some(Arc::clone(&taken));
        taken
    }

    /// What was set aside is on disk.
    pub(crate) fn finish_flush(&mut self) {
        self.flushing = None;
    }

    /// What was set aside goes back.
    pub(crate) fn abort_flush(&mut self) {
        if let Some(taken) = self.flushing.take() {
            self.current.merge(&taken);
        }
    }

    fn parts(&self) -> impl Iterator<Item = &HistogramRuns> {
        self.flushing.as_deref().into_iter().chain([&self.current])
    }

    /// Whether the series has a histogram from `start` to `end`, both inclusive.
    pub(crate) fn touches(&self, ordinal: u32, start: i64, end: i64) -> bool {
        self.parts().any(|runs| !runs.range(ordinal, start, end).0.is_empty())
    }

    /// Times of the first and of the last histogram of a series, for what a flush is writing and for what came since.
    pub(crate) fn bounds(&self, ordinal: u32) -> impl Iterator<Item = (i64, i64)> {
        self.parts().filter_map(move |runs| {
            let timestamps = runs.range(ordinal, i64::MIN, i64::MAX).0;
            Some((*timestamps.first()?, *timestamps.last()?))
        })
    }

    /// Adds the histograms of a series from `start` to `end`, both inclusive.
    pub(crate) fn add_range(&self, ordinal: u32, start: i64, end: i64, columns: &mut SeriesColumns) {
        for runs in self.parts() {
            let (timestamps, values) = runs.range(ordinal, start, end);
            columns.merge_histograms(timestamps, values);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn histogram(count: u8) -> Arc<Histogram> {
        let buckets = (0..i32::from(count % 4)).map(|index| (index, 1.0));
        let positive = saturn_model::Buckets::from_indexed(buckets);
        Arc::new(Histogram { count: f64::from(count), positive, ..Histogram::default() })
    }

    proptest! {
        #[test]
        fn memory_is_a_map_whatever_flushes_do(
            steps in proptest::collection::vec(
                (proptest::collection::vec((0_i64..40, any::<u8>()), 0..9), 0_u8..6), 1..12,
            ),
        ) {
            let mut model: BTreeMap<i64, u8> = BTreeMap::new();
            let (mut head, mut flushing) = (HistogramHead::default(), false);
            let mut new = 0;
            for (batch, step) in steps {
                for (time, count) in &batch {
                    let best = model.entry(*time).or_insert(*count);
                    *best = (*best).max(*count);
                }
                let times: Vec<i64> = batch.iter().map(|(time, _)| *time).collect();
                let values: Vec<_> = batch.iter().map(|(_, count)| histogram(*count)).collect();
                new += head.append(3, &times, &values);
                if step == 0 && !flushing {
                    head.begin_flush();
                } else if step == 1 {
                    head.abort_flush();
                }
                flushing = head.flushing.is_some();
                let mut columns = SeriesColumns::default();
                head.add_range(3, 5, 30, &mut columns);
                let got: BTreeMap<i64, f64> = columns.histograms.timestamps.iter().copied()
                    .zip(columns.histograms.values.iter().map(|h| h.count)).collect();
                let want: BTreeMap<i64, f64> =
                    model.range(5..=30).map(|(time, count)| (*time, f64::from(*count))).collect();
                prop_assert_eq!(got, want);
                prop_assert_eq!(head.touches(3, 5, 30), model.range(5..=30).next().is_some());
                let weights: usize = head.current.runs.values().map(HistogramRun::weight).sum();
                prop_assert_eq!(head.weight(), weights);
            }
            prop_assert!(new >= model.len());
            prop_assert!(!head.touches(4, 0, 100));
        }
    }
}

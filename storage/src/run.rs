//! A run: the samples of one series that are in memory, sorted by time, one per time.
//!
//! The usual append is newer than all and goes to the end. Everything else keeps the same invariant more
//! slowly; conflicts end by [`resolve`], so the order of arrival never shows.

use saturn_model::{merge_columns, resolve};

/// Above this many samples that are not simply newer, sorting and merging beats inserting one by one.
const INSERTS_MAX: usize = 32;

/// Times strictly ascending, values parallel to them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Run {
    pub(crate) timestamps: Vec<i64>,
    pub(crate) values: Vec<f64>,
}

impl Run {
    pub(crate) fn len(&self) -> usize {
        self.timestamps.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.timestamps.is_empty()
    }

    /// Adds samples in any order. Returns how many times are new.
    pub(crate) fn append(&mut self, timestamps: &[i64], values: &[f64]) -> usize {
        let before = self.len();
        let mut at = 0;
        while at < timestamps.len() && self.timestamps.last().is_none_or(|last| *last < timestamps[at]) {
            self.timestamps.push(timestamps[at]);
            self.values.push(values[at]);
            at += 1;
        }
        let (timestamps, values) = (&timestamps[at..], &values[at..]);
        if timestamps.len() <= INSERTS_MAX {
            for (timestamp, value) in timestamps.iter().zip(values) {
                self.insert(*timestamp, *value);
            }
        } else {
            let mut order: Vec<usize> = (0..timestamps.len()).collect();
            order.sort_by_key(|i| timestamps[*i]);
            let mut sorted = Self::default();
            for i in order {
                sorted.insert(timestamps[i], values[i]);
            }
            self.merge(&sorted);
        }
        self.len() - before
    }

    fn insert(&mut self, timestamp: i64, value: f64) {
        if self.timestamps.last().is_none_or(|last| *last < timestamp) {
            self.timestamps.push(timestamp);
            self.values.push(value);
            return;
        }
        match self.timestamps.binary_search(&timestamp) {
            Ok(at) => self.values[at] = resolve(self.values[at], value),
            Err(at) => {
                self.timestamps.insert(at, timestamp);
                self.values.insert(at, value);
            }
        }
    }

    /// Adds another run of the same series.
    pub(crate) fn merge(&mut self, other: &Self) {
        let own = (self.timestamps.as_slice(), self.values.as_slice());
        (self.timestamps, self.values) = merge_columns(own, (&other.timestamps, &other.values));
    }

    /// The samples from `start` to `end`, both inclusive.
    pub(crate) fn range(&self, start: i64, end: i64) -> (&[i64], &[f64]) {
        let from = self.timestamps.partition_point(|t| *t < start);
        let to = self.timestamps.partition_point(|t| *t <= end).max(from);
        (&self.timestamps[from..to], &self.values[from..to])
    }

    /// Whether a sample lies from `start` to `end`, both inclusive.
    pub(crate) fn touches(&self, start: i64, end: i64) -> bool {
        !self.range(start, end).0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn a_run_is_a_map(batches in proptest::collection::vec(
            proptest::collection::vec((0_i64..200, any::<u64>()), 0..90), 0..8,
        )) {
            let mut model: BTreeMap<i64, f64> = BTreeMap::new();
            let mut run = Run::default();
            for batch in batches {
                let known = model.len();
                for (t, bits) in &batch {
                    let value = f64::from_bits(*bits);
                    model.entry(*t).and_modify(|old| *old = resolve(*old, value)).or_insert(value);
                }
                let times: Vec<i64> = batch.iter().map(|(t, _)| *t).collect();
                let values: Vec<f64> = batch.iter().map(|(_, bits)| f64::from_bits(*bits)).collect();
                prop_assert_eq!(run.append(&times, &values), model.len() - known);
            }
            let got: Vec<(i64, u64)> =
                run.timestamps.iter().copied().zip(run.values.iter().map(|v| v.to_bits())).collect();
            let want: Vec<(i64, u64)> = model.iter().map(|(t, v)| (*t, v.to_bits())).collect();
            prop_assert_eq!(got, want);
        }
    }

    #[test]
    fn ranges_include_both_ends() {
        let mut run = Run::default();
        run.append(&[10, 20, 30], &[1.0, 2.0, 3.0]);
        assert_eq!(run.range(10, 20).0, [10, 20]);
        assert_eq!(run.range(11, 19).0, [0_i64; 0]);
        assert_eq!(run.range(30, 10).0, [0_i64; 0]);
    }
}

//! How many series a tenant's labels have: what one node counts, and how the counts of several are added up.
//!
//! A series is counted by one node only, so numbers of series add up. A label's value may occur on several nodes:
//! how many different ones there are is exact if one node counted them all or if they are few, and else estimated
//! from the smallest of their hashes ([`Distinct`]).

use std::cmp::Reverse;
use std::collections::HashMap;

use xxhash_rust::xxh3::xxh3_64;

/// Hashes that a [`Distinct`] keeps: the estimate's standard error is 1/sqrt of it, 3 %.
const HASHES_MAX: usize = 1024;

/// What there is of a tenant in memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cardinality {
    /// Series.
    pub series: u64,
    /// Chunks: runs of one series' samples that are compressed together.
    pub chunks: u64,
    /// Time of the first and of the last sample in milliseconds, if there is any.
    pub times: Option<(i64, i64)>,
    /// Different label pairs.
    pub label_pairs: Distinct,
    /// Metric names with the most series, and how many.
    pub series_by_metric: Vec<(String, u64)>,
    /// Label pairs (`name=value`) with the most series, and how many.
    pub series_by_pair: Vec<(String, u64)>,
    /// Label names with the most different values.
    pub labels: Vec<LabelCardinality>,
}

/// The values of one label.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelCardinality {
    /// The label.
    pub name: String,
    /// Its different values.
    pub values: Distinct,
    /// Bytes of these values, each counted once per node.
    pub value_bytes: u64,
}

/// A number of different things, of which several may have counted some.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Distinct {
    /// The most that one has counted.
    pub at_least: u64,
    /// What all have counted together.
    pub at_most: u64,
    /// The smallest hashes, ascending, at most [`HASHES_MAX`].
    pub smallest: Vec<u64>,
}

impl Distinct {
    /// Counts one thing that was not counted here before.
    pub fn add(&mut self, hash: u64) {
        self.at_least += 1;
        self.at_most += 1;
        self.smallest.push(hash);
        if self.smallest.len() >= 2 * HASHES_MAX {
            self.settle();
        }
    }

    /// Must be called after the last [`Distinct::add`].
    pub fn settle(&mut self) {
        self.smallest.sort_unstable();
        self.smallest.dedup();
        self.smallest.truncate(HASHES_MAX);
    }

    /// Adds what somebody else counted, both settled.
    pub fn merge(&mut self, other: &Self) {
        self.at_least = self.at_least.max(other.at_least);
        self.at_most += other.at_most;
        self.smallest.extend_from_slice(&other.smallest);
        self.settle();
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        let (known, Some(largest)) = (self.smallest.len() as u64, self.smallest.last()) else { return 0 };
        let estimate = if known < HASHES_MAX as u64 {
            known
        } else {
            // The hashes are spread evenly: so many lie below the largest of them, how many in all?
            u64::try_from(u128::from(known - 1) * (1 << 64) / u128::from((*largest).max(1)))
                .unwrap_or(u64::MAX)
        };
        estimate.clamp(self.at_least, self.at_most.max(self.at_least))
    }
}

impl LabelCardinality {
    /// Bytes of its different values, by the mean length of those that were counted.
    pub fn bytes(&self) -> u64 {
        let bytes = u128::from(self.value_bytes) * u128::from(self.values.count());
        u64::try_from(bytes / u128::from(self.values.at_most.max(1))).unwrap_or(u64::MAX)
    }
}

impl Cardinality {
    /// The hash of a label pair, for [`Distinct`].
    pub fn pair_hash(name: &str, value: &str) -> u64 {
        // 0xff never occurs in UTF-8, so name and value cannot run into each other.
        xxh3_64(&[name.as_bytes(), &[0xff], value.as_bytes()].concat())
    }

    /// Adds what another node counted of other series. Of each list the `top` are kept.
    pub fn merge(&mut self, other: Self, top: usize) {
        self.series += other.series;
        self.chunks += other.chunks;
        self.times = match (self.times, other.times) {
            (Some(a), Some(b)) => Some((a.0.min(b.0), a.1.max(b.1))),
            (a, b) => a.or(b),
        };
        self.label_pairs.merge(&other.label_pairs);
        add_up(&mut self.series_by_metric, other.series_by_metric, top);
        add_up(&mut self.series_by_pair, other.series_by_pair, top);
        for label in other.labels {
            match self.labels.iter_mut().find(|known| known.name == label.name) {
                Some(known) => {
                    known.values.merge(&label.values);
                    known.value_bytes += label.value_bytes;
                }
                None => self.labels.push(label),
            }
        }
        self.labels.sort_by_cached_key(|label| (Reverse(label.values.count()), label.name.clone()));
        self.labels.truncate(top);
    }
}

fn add_up(counts: &mut Vec<(String, u64)>, others: Vec<(String, u64)>, top: usize) {
    let mut sums: HashMap<String, u64> = counts.drain(..).collect();
    for (name, count) in others {
        *sums.entry(name).or_default() += count;
    }
    *counts = largest(sums, top);
}

/// The `top` with the highest numbers, those first; equal ones by name.
pub fn largest(all: impl IntoIterator<Item = (String, u64)>, top: usize) -> Vec<(String, u64)> {
    let mut all: Vec<(String, u64)> = all.into_iter().collect();
    all.sort_unstable_by(|a, b| (Reverse(a.1), &a.0).cmp(&(Reverse(b.1), &b.0)));
    all.truncate(top);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn distinct(values: std::ops::Range<u32>) -> Distinct {
        let mut distinct = Distinct::default();
        values.for_each(|value| distinct.add(Cardinality::pair_hash("pod", &value.to_string())));
        distinct.settle();
        distinct
    }

    #[test]
    fn what_one_counted_or_what_is_little_is_exact() {
        assert_eq!(Distinct::default().count(), 0);
        assert_eq!(distinct(0..100_000).count(), 100_000);
        let mut few = distinct(0..600);
        few.merge(&distinct(300..900));
        assert_eq!(few.count(), 900);
    }

    #[test]
    fn what_several_counted_is_estimated() {
        for (other, want) in [(20_000..60_000, 60_000_u64), (0..40_000, 40_000), (40_000..90_000, 90_000)] {
            let mut both = distinct(0..40_000);
            both.merge(&distinct(other));
            // Five standard errors.
            assert!(both.count().abs_diff(want) < want / 6, "{} for {want}", both.count());
            assert!(both.smallest.len() <= HASHES_MAX);
        }
    }

    #[test]
    fn nodes_add_up() {
        let one = |series, pod: &str, times| Cardinality {
            series,
            chunks: series,
            times,
            label_pairs: distinct(0..2),
            series_by_metric: vec![("up".into(), series)],
            series_by_pair: vec![(format!("pod={pod}"), series)],
            labels: vec![LabelCardinality { name: "pod".into(), values: distinct(0..2), value_bytes: 10 }],
        };
        let mut sum = Cardinality::default();
        for counted in [one(3, "a", Some((5, 9))), one(4, "b", None), one(1, "a", Some((2, 3)))] {
            sum.merge(counted, 2);
        }
        assert_eq!((sum.series, sum.chunks, sum.times), (8, 8, Some((2, 9))));
        assert_eq!(sum.series_by_metric, [("up".to_owned(), 8)]);
        assert_eq!(sum.series_by_pair, [("pod=a".to_owned(), 4), ("pod=b".to_owned(), 4)]);
        assert_eq!(
            (sum.label_pairs.count(), sum.labels[0].values.count(), sum.labels[0].bytes()),
            (2, 2, 10)
        );
    }
}

//! The unit of reading: one series' samples as columns, and what selects them.

use std::cmp::Ordering;
use std::sync::Arc;

use crate::{Histogram, Labels, Matcher, TenantId, TimestampMs, resolve};

/// Which series and which time of one tenant a reader wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    /// Whose series.
    pub tenant: TenantId,
    /// All must hold.
    pub matchers: Vec<Matcher>,
    /// First millisecond, inclusive.
    pub start: TimestampMs,
    /// Last millisecond, inclusive.
    pub end: TimestampMs,
}

/// The samples of one series: times strictly ascending, values parallel to them. No time is among both the
/// floats and the histograms.
#[derive(Clone, Debug, Default)]
pub struct SeriesColumns {
    /// What the series is called.
    pub labels: Labels,
    /// Milliseconds, strictly ascending.
    pub timestamps: Vec<i64>,
    /// Parallel to `timestamps`; stale markers are in here, bit for bit.
    pub values: Vec<f64>,
    /// When the counter of each float started, parallel to `timestamps` (0: unknown), or empty if none is known.
    pub start_timestamps: Vec<i64>,
    /// The samples that are native histograms.
    pub histograms: HistogramColumns,
}

/// Samples that are native histograms.
#[derive(Clone, Debug, Default)]
pub struct HistogramColumns {
    /// Milliseconds, strictly ascending.
    pub timestamps: Vec<i64>,
    /// Parallel to `timestamps`.
    pub values: Vec<Arc<Histogram>>,
    /// As with floats.
    pub start_timestamps: Vec<i64>,
}

/// Merges two runs of samples (each strictly ascending in time) into one. Where both hold a
/// time, [`resolve`] picks the value.
pub fn merge_columns(a: (&[i64], &[f64]), b: (&[i64], &[f64])) -> (Vec<i64>, Vec<f64>) {
    let ((at, av), (bt, bv)) = (a, b);
    // The usual cases need no comparison per sample: equal times, or one run after the other.
    if at == bt {
        let values = av.iter().zip(bv).map(|(a, b)| resolve(*a, *b)).collect();
        return (at.to_vec(), values);
    }
    let mut timestamps = Vec::with_capacity(at.len().max(bt.len()));
    let mut values = Vec::with_capacity(at.len().max(bt.len()));
    let (mut i, mut j) = (0, 0);
    while i < at.len() && j < bt.len() {
        match at[i].cmp(&bt[j]) {
            Ordering::Less => {
                timestamps.push(at[i]);
                values.push(av[i]);
                i += 1;
            }
            Ordering::Greater => {
                timestamps.push(bt[j]);
                values.push(bv[j]);
                j += 1;
            }
            Ordering::Equal => {
                timestamps.push(at[i]);
                values.push(resolve(av[i], bv[j]));
                i += 1;
                j += 1;
            }
        }
    }
    timestamps.extend_from_slice(&at[i..]);
    values.extend_from_slice(&av[i..]);
    timestamps.extend_from_slice(&bt[j..]);
    values.extend_from_slice(&bv[j..]);
    (timestamps, values)
}

impl HistogramColumns {
    /// Adds a sample that is later than all others.
    pub fn push(&mut self, timestamp: i64, value: Arc<Histogram>) {
        self.timestamps.push(timestamp);
        self.values.push(value);
    }
}

impl SeriesColumns {
    /// A series of floats without start timestamps.
    pub fn floats(labels: Labels, timestamps: Vec<i64>, values: Vec<f64>) -> Self {
        Self { labels, timestamps, values, ..Self::default() }
    }

    /// How many samples there are.
    pub fn len(&self) -> usize {
        self.timestamps.len() + self.histograms.timestamps.len()
    }

    /// Whether there is no sample.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds another run of floats of the same series, by [`merge_columns`]. For series as storage has them:
    /// without start timestamps.
    pub fn merge(&mut self, timestamps: &[i64], values: &[f64]) {
        debug_assert!(self.start_timestamps.is_empty(), "start timestamps would not be parallel any more");
        let after = match (self.timestamps.last(), timestamps.first()) {
            (Some(last), Some(first)) => last < first,
            _ => true,
        };
        if after {
            self.timestamps.extend_from_slice(timestamps);
            self.values.extend_from_slice(values);
        } else {
            let own = (self.timestamps.as_slice(), self.values.as_slice());
            (self.timestamps, self.values) = merge_columns(own, (timestamps, values));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn run() -> impl Strategy<Value = BTreeMap<i64, u64>> {
        proptest::collection::btree_map(0_i64..40, any::<u64>(), 0..20)
    }

    fn columns(run: &BTreeMap<i64, u64>) -> SeriesColumns {
        SeriesColumns::floats(
            Labels::empty(),
            run.keys().copied().collect(),
            run.values().map(|bits| f64::from_bits(*bits)).collect(),
        )
    }

    proptest! {
        #[test]
        fn merging_equals_a_map(a in run(), b in run()) {
            let mut model = a.clone();
            for (t, bits) in &b {
                let merged = match model.get(t) {
                    Some(old) => resolve(f64::from_bits(*old), f64::from_bits(*bits)).to_bits(),
                    None => *bits,
                };
                model.insert(*t, merged);
            }
            let (a, b) = (columns(&a), columns(&b));
            let mut merged = a.clone();
            merged.merge(&b.timestamps, &b.values);
            let got: Vec<(i64, u64)> =
                merged.timestamps.iter().copied().zip(merged.values.iter().map(|v| v.to_bits())).collect();
            prop_assert_eq!(got, model.into_iter().collect::<Vec<_>>());
        }
    }
}

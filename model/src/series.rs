//! The unit of reading: one series' samples as columns, and what selects them.

use std::cmp::Ordering;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{
    Histogram, Labels, Matcher, TenantId, TimestampMs, float_beats_histogram, resolve, resolve_histograms,
};

/// Which series and which time of one tenant a reader wants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    merge_runs(a, b, |a, b| resolve(*a, *b))
}

/// [`merge_columns`] for native histograms.
pub fn merge_histograms(
    a: (&[i64], &[Arc<Histogram>]),
    b: (&[i64], &[Arc<Histogram>]),
) -> (Vec<i64>, Vec<Arc<Histogram>>) {
    merge_runs(a, b, |a, b| Arc::clone(resolve_histograms(a, b)))
}

fn merge_runs<T: Clone>(
    (at, av): (&[i64], &[T]),
    (bt, bv): (&[i64], &[T]),
    resolve: impl Fn(&T, &T) -> T,
) -> (Vec<i64>, Vec<T>) {
    // The usual case needs no comparison of times.
    if at == bt {
        let values = av.iter().zip(bv).map(|(a, b)| resolve(a, b)).collect();
        return (at.to_vec(), values);
    }
    let mut timestamps = Vec::with_capacity(at.len().max(bt.len()));
    let mut values = Vec::with_capacity(at.len().max(bt.len()));
    let (mut i, mut j) = (0, 0);
    while i < at.len() && j < bt.len() {
        match at[i].cmp(&bt[j]) {
            Ordering::Less => {
                timestamps.push(at[i]);
                values.push(av[i].clone());
                i += 1;
            }
            Ordering::Greater => {
                timestamps.push(bt[j]);
                values.push(bv[j].clone());
                j += 1;
            }
            Ordering::Equal => {
                timestamps.push(at[i]);
                values.push(resolve(&av[i], &bv[j]));
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

    /// Adds another run of histograms of the same series, by [`merge_histograms`].
    fn merge(&mut self, timestamps: &[i64], values: &[Arc<Histogram>]) {
        debug_assert!(self.start_timestamps.is_empty(), "start timestamps would not be parallel any more");
        let own = (self.timestamps.as_slice(), self.values.as_slice());
        (self.timestamps, self.values) = merge_histograms(own, (timestamps, values));
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

    /// How many samples these are for limits on samples: a histogram counts as many as fit into its bytes, as
    /// in Prometheus.
    pub fn weight(&self) -> usize {
        let histograms = self.histograms.values.iter().map(|histogram| (histogram.size_bytes() + 8) / 16);
        self.timestamps.len() + histograms.sum::<usize>()
    }

    /// Whether there is no sample.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Removes all samples, and keeps their room.
    pub fn clear_samples(&mut self) {
        self.timestamps.clear();
        self.values.clear();
        self.start_timestamps.clear();
        self.histograms.timestamps.clear();
        self.histograms.values.clear();
        self.histograms.start_timestamps.clear();
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
        self.settle();
    }

    /// Adds native histograms of the same series, as [`SeriesColumns::merge`] adds floats.
    pub fn merge_histograms(&mut self, timestamps: &[i64], values: &[Arc<Histogram>]) {
        if !timestamps.is_empty() {
            self.histograms.merge(timestamps, values);
            self.settle();
        }
    }

    /// Where there is a float and a histogram at the same time, removes the one that loses
    /// ([`float_beats_histogram`]).
    fn settle(&mut self) {
        let (floats, histograms) = (&self.timestamps, &self.histograms.timestamps);
        let (mut i, mut j) = (0, 0);
        let (mut lost_floats, mut lost_histograms) = (Vec::new(), Vec::new());
        while i < floats.len() && j < histograms.len() {
            match floats[i].cmp(&histograms[j]) {
                Ordering::Less => i += 1,
                Ordering::Greater => j += 1,
                Ordering::Equal => {
                    match float_beats_histogram(self.values[i], &self.histograms.values[j]) {
                        true => lost_histograms.push(j),
                        false => lost_floats.push(i),
                    }
                    i += 1;
                    j += 1;
                }
            }
        }
        remove(&mut self.timestamps, &lost_floats);
        remove(&mut self.values, &lost_floats);
        remove(&mut self.histograms.timestamps, &lost_histograms);
        remove(&mut self.histograms.values, &lost_histograms);
    }
}

/// Removes the items at `places`, which ascend.
fn remove<T>(column: &mut Vec<T>, places: &[usize]) {
    if places.is_empty() {
        return;
    }
    let (mut at, mut places) = (0, places.iter().peekable());
    column.retain(|_| {
        let goes = places.next_if(|place| **place == at).is_some();
        at += 1;
        !goes
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::STALE_NAN_BITS;
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

    /// Time and value; even values are floats, odd ones histograms, the smallest of both stale markers.
    fn mixed() -> impl Strategy<Value = Vec<(i64, u8)>> {
        proptest::collection::vec((0_i64..12, 0_u8..6), 0..9)
    }

    fn add(columns: &mut SeriesColumns, (time, value): (i64, u8)) {
        let stale = f64::from_bits(STALE_NAN_BITS);
        match value {
            0 => columns.merge(&[time], &[stale]),
            1 => {
                let marker = Histogram { sum: stale, ..Histogram::default() };
                columns.merge_histograms(&[time], &[Arc::new(marker)]);
            }
            value if value % 2 == 0 => columns.merge(&[time], &[f64::from(value)]),
            value => {
                let histogram = Histogram { count: f64::from(value), ..Histogram::default() };
                columns.merge_histograms(&[time], &[Arc::new(histogram)]);
            }
        }
    }

    proptest! {
        #[test]
        fn of_two_kinds_one_is_left_per_time(samples in mixed(), cut in any::<prop::sample::Index>()) {
            // 0 < 1 < 2, 4 < 3, 5: histograms above floats, both above stale markers.
            let rank = |value: u8| if value < 2 { (0, 0, value) } else { (1, value % 2, value) };
            let mut model: BTreeMap<i64, u8> = BTreeMap::new();
            for (time, value) in &samples {
                let best = model.entry(*time).or_insert(*value);
                *best = if rank(*best) < rank(*value) { *value } else { *best };
            }
            let (first, second) = samples.split_at(cut.index(samples.len() + 1));
            let (mut merged, mut other) = (SeriesColumns::default(), SeriesColumns::default());
            first.iter().for_each(|sample| add(&mut merged, *sample));
            second.iter().for_each(|sample| add(&mut other, *sample));
            merged.merge(&other.timestamps, &other.values);
            merged.merge_histograms(&other.histograms.timestamps, &other.histograms.values);
            let kind_of = |time: &i64| merged.timestamps.contains(time);
            prop_assert_eq!(merged.len(), model.len());
            for (time, value) in &model {
                prop_assert_eq!(kind_of(time), value % 2 == 0, "time {}", time);
                prop_assert_ne!(kind_of(time), merged.histograms.timestamps.contains(time));
            }
            let floats = merged.timestamps.iter().zip(&merged.values);
            prop_assert!(floats.into_iter().all(|(t, v)| model[t] == 0 || *v == f64::from(model[t])));
            let histograms = merged.histograms.timestamps.iter().zip(&merged.histograms.values);
            prop_assert!(histograms.into_iter().all(|(t, h)| model[t] == 1 || h.count == f64::from(model[t])));
        }
    }
}

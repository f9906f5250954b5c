//! The unit of writing: the samples of one tenant for one shard, column by column.
//!
//! A batch is built once by the gateway, shared by the three replicas' requests, and appended as it is.
//! Labels are not part of the usual batch: a replica that does not know a fingerprint says so, and gets
//! the labels of just those series (`docs/data-format.md`, "append batch").

use std::sync::Arc;

use crate::{
    Exemplar, Fingerprint, Histogram, Labels, METRIC_NAME, MetricMetadata, Sample, ShardId, TenantId,
    TimestampMs, append_label_pair,
};

/// Samples of one tenant and one shard. `sample_counts` says how many of the concatenated samples belong to
/// each series; within a series samples may come in any order.
#[derive(Clone, Debug)]
pub struct ShardBatch {
    /// Whose samples these are.
    pub tenant: TenantId,
    /// The shard that every fingerprint of the batch belongs to.
    pub shard: ShardId,
    /// One per series.
    pub fingerprints: Vec<Fingerprint>,
    /// One per series: how many samples it has in this batch.
    pub sample_counts: Vec<u32>,
    /// All samples' times in milliseconds, series after series.
    pub timestamps: Vec<i64>,
    /// All samples' values, parallel to `timestamps`.
    pub values: Vec<f64>,
    /// The samples that are native histograms.
    pub histograms: BatchHistograms,
    /// Exemplars, each with the index of its series: ascending, several of one series next to each other.
    pub exemplars: Vec<(u32, Exemplar)>,
    /// Metadata of metrics that belong to the shard (see [`ShardBatch::fingerprint_of_metric`]).
    pub metadata: Vec<MetricMetadata>,
    /// Labels of series that the receiver is not expected to know: (index of the series, labels),
    /// ascending by index.
    pub labels: Vec<(u32, Labels)>,
}

/// The native histograms of a batch, in columns of their own, as few series have any.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BatchHistograms {
    /// Index of each series that has histograms, ascending, and how many of the concatenated ones are its own.
    pub series: Vec<(u32, u32)>,
    /// All histograms' times in milliseconds, series after series; within a series in any order.
    pub timestamps: Vec<i64>,
    /// Parallel to `timestamps`.
    pub values: Vec<Arc<Histogram>>,
}

impl BatchHistograms {
    /// Adds a histogram of the series at `index`, which is not below any that was added to before.
    pub fn push(&mut self, index: u32, timestamp: TimestampMs, histogram: Arc<Histogram>) {
        match self.series.last_mut() {
            Some((last, count)) if *last == index => *count += 1,
            _ => self.series.push((index, 1)),
        }
        self.timestamps.push(timestamp.0);
        self.values.push(histogram);
    }

    /// The series that have histograms, in order: index, times, histograms.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &[i64], &[Arc<Histogram>])> {
        let mut at = 0;
        self.series.iter().map(move |(index, count)| {
            let range = at..at + *count as usize;
            at = range.end;
            (*index, &self.timestamps[range.clone()], &self.values[range])
        })
    }

    /// How many histograms there are.
    pub fn len(&self) -> usize {
        self.timestamps.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.timestamps.is_empty()
    }

    /// Roughly how many bytes they take.
    pub fn size_bytes(&self) -> usize {
        self.values.iter().map(|histogram| histogram.size_bytes()).sum()
    }

    fn is_consistent(&self, series: usize) -> bool {
        let counted: u64 = self.series.iter().map(|(_, count)| u64::from(*count)).sum();
        self.values.len() == self.timestamps.len()
            && counted == self.timestamps.len() as u64
            && self.series.last().is_none_or(|(index, _)| (*index as usize) < series)
            && self.series.is_sorted_by(|a, b| a.0 < b.0)
    }
}

impl ShardBatch {
    /// A batch without samples.
    pub fn new(tenant: TenantId, shard: ShardId) -> Self {
        Self {
            tenant,
            shard,
            fingerprints: Vec::new(),
            sample_counts: Vec::new(),
            timestamps: Vec::new(),
            values: Vec::new(),
            histograms: BatchHistograms::default(),
            exemplars: Vec::new(),
            metadata: Vec::new(),
            labels: Vec::new(),
        }
    }

    /// What a metric's metadata is placed by: the fingerprint of a series of its name without other labels.
    pub fn fingerprint_of_metric(tenant: &TenantId, metric: &str) -> Fingerprint {
        let mut encoded = String::with_capacity(metric.len() + 16);
        append_label_pair(&mut encoded, METRIC_NAME, metric);
        Fingerprint::of(tenant, &encoded)
    }

    /// Makes room for so many more series of one sample each.
    pub fn reserve(&mut self, series: usize) {
        self.fingerprints.reserve(series);
        self.sample_counts.reserve(series);
        self.timestamps.reserve(series);
        self.values.reserve(series);
    }

    /// Starts the next series.
    pub fn push_series(&mut self, fingerprint: Fingerprint) {
        self.fingerprints.push(fingerprint);
        self.sample_counts.push(0);
    }

    /// Adds a sample to the series started last.
    ///
    /// # Panics
    /// If no series was started.
    pub fn push_sample(&mut self, sample: Sample) {
        let count = self.sample_counts.last_mut();
        *count.expect("a series was started before its samples") += 1;
        self.timestamps.push(sample.timestamp.0);
        self.values.push(sample.value);
    }

    /// Adds a native histogram to the series started last.
    ///
    /// # Panics
    /// If no series was started.
    pub fn push_histogram(&mut self, timestamp: TimestampMs, histogram: Arc<Histogram>) {
        self.histograms.push(self.last_series(), timestamp, histogram);
    }

    /// Adds an exemplar to the series started last.
    ///
    /// # Panics
    /// If no series was started.
    pub fn push_exemplar(&mut self, exemplar: Exemplar) {
        self.exemplars.push((self.last_series(), exemplar));
    }

    fn last_series(&self) -> u32 {
        let last = self.series_count().checked_sub(1).expect("a series was started before what it has");
        u32::try_from(last).expect("a batch has fewer than 2^32 series")
    }

    /// How many series the batch holds.
    pub fn series_count(&self) -> usize {
        self.fingerprints.len()
    }

    /// How many samples the batch holds, of both kinds.
    pub fn sample_count(&self) -> usize {
        self.timestamps.len() + self.histograms.len()
    }

    /// Whether it has exemplars or metadata.
    pub fn has_notes(&self) -> bool {
        !self.exemplars.is_empty() || !self.metadata.is_empty()
    }

    /// Roughly how many bytes its exemplars and its metadata take.
    pub fn notes_bytes(&self) -> usize {
        let exemplars: usize = self.exemplars.iter().map(|(_, exemplar)| exemplar.size_bytes()).sum();
        exemplars + self.metadata.iter().map(MetricMetadata::size_bytes).sum::<usize>()
    }

    /// The series in order: index, fingerprint, times and values of the floats.
    pub fn series(&self) -> impl Iterator<Item = (usize, Fingerprint, &[i64], &[f64])> {
        let mut at = 0;
        self.fingerprints.iter().zip(&self.sample_counts).enumerate().map(
            move |(index, (fingerprint, count))| {
                let range = at..at + *count as usize;
                at = range.end;
                (index, *fingerprint, &self.timestamps[range.clone()], &self.values[range])
            },
        )
    }

    /// The part of the batch that holds the series at `indexes` (ascending), with `labels_of` each of them, and
    /// without metadata.
    pub fn subset_with_labels(&self, indexes: &[u32], mut labels_of: impl FnMut(u32) -> Labels) -> Self {
        let mut subset = Self::new(self.tenant.clone(), self.shard);
        let mut wanted = indexes.iter().copied().peekable();
        let mut histograms = self.histograms.iter().peekable();
        let mut exemplars = self.exemplars.iter().peekable();
        for (index, fingerprint, timestamps, values) in self.series() {
            let Some(next) = wanted.next_if(|next| *next as usize == index) else {
                continue;
            };
            let position = subset.fingerprints.len();
            subset.push_series(fingerprint);
            for (timestamp, value) in timestamps.iter().zip(values) {
                subset.push_sample(Sample { timestamp: TimestampMs(*timestamp), value: *value });
            }
            let position = u32::try_from(position).expect("a batch has fewer than 2^32 series");
            while histograms.next_if(|(index, ..)| *index < next).is_some() {}
            if let Some((_, timestamps, values)) = histograms.next_if(|(index, ..)| *index == next) {
                for (timestamp, value) in timestamps.iter().zip(values) {
                    subset.push_histogram(TimestampMs(*timestamp), Arc::clone(value));
                }
            }
            while exemplars.next_if(|(index, _)| *index < next).is_some() {}
            while let Some((_, exemplar)) = exemplars.next_if(|(index, _)| *index == next) {
                subset.push_exemplar(exemplar.clone());
            }
            subset.labels.push((position, labels_of(next)));
        }
        subset
    }

    /// Whether the columns fit each other: counts add up, labels point at series in ascending order.
    pub fn is_consistent(&self) -> bool {
        let counted: u64 = self.sample_counts.iter().map(|n| u64::from(*n)).sum();
        let series = self.fingerprints.len();
        self.sample_counts.len() == series
            && self.values.len() == self.timestamps.len()
            && counted == self.timestamps.len() as u64
            && self.histograms.is_consistent(series)
            && self.exemplars.last().is_none_or(|(index, _)| (*index as usize) < series)
            && self.exemplars.is_sorted_by_key(|(index, _)| *index)
            && self.labels.iter().all(|(index, _)| (*index as usize) < series)
            && self.labels.windows(2).all(|pair| pair[0].0 < pair[1].0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(timestamp: i64, value: f64) -> Sample {
        Sample { timestamp: TimestampMs(timestamp), value }
    }

    #[test]
    fn a_subset_keeps_samples_and_gains_labels() {
        let mut batch = ShardBatch::new(TenantId::new("t").expect("valid"), ShardId(3));
        for series in 0..4_u32 {
            batch.push_series(Fingerprint(u128::from(series)));
            for i in 0..series {
                batch.push_sample(sample(i64::from(i), f64::from(series)));
            }
            if series % 3 == 0 {
                let histogram = Histogram { count: f64::from(series), ..Histogram::default() };
                batch.push_histogram(TimestampMs(9), histogram.into());
            }
            for second in 0..series {
                let (timestamp, labels) = (TimestampMs(i64::from(second)), Labels::empty());
                batch.push_exemplar(Exemplar { timestamp, value: f64::from(series), labels });
            }
        }
        assert!(batch.is_consistent());
        let labels = |i: u32| Labels::from_pairs([("i", i.to_string().as_str())]).expect("valid");
        let subset = batch.subset_with_labels(&[1, 3], labels);
        assert!(subset.is_consistent());
        assert_eq!(subset.fingerprints, [Fingerprint(1), Fingerprint(3)]);
        assert_eq!(subset.sample_counts, [1, 3]);
        assert_eq!(subset.values, [1.0, 3.0, 3.0, 3.0]);
        assert_eq!(subset.histograms.series, [(1, 1)]);
        assert_eq!(subset.histograms.values[0].count, 3.0);
        let exemplars = subset.exemplars.iter().map(|(index, exemplar)| (*index, exemplar.value));
        assert_eq!(exemplars.collect::<Vec<_>>(), [(0, 1.0), (1, 3.0), (1, 3.0), (1, 3.0)]);
        assert_eq!((batch.sample_count(), subset.sample_count()), (8, 5));
        assert_eq!(subset.labels, [(0, labels(1)), (1, labels(3))]);
    }
}

//! The model's nouns to and from the messages of the internal service.
//!
//! Everything that comes from another node is checked here once; inside, it is trusted.

use std::sync::Arc;

use bytes::Bytes;
use saturn_model::{
    BatchHistograms, Cardinality, Distinct, Exemplar, Fingerprint, Histogram, HistogramColumns,
    LabelCardinality, Labels, MatchOp, Matcher, MetricMetadata, MetricType, Selection, SeriesColumns,
    ShardBatch, ShardId, TenantId, TimestampMs,
};

use crate::varint::{put_varint, take_varint, unzigzag, zigzag};
use crate::{WireError, peer};

/// A batch, stamped with the epoch of its shard's placement, as sent to a replica.
pub fn batch_to_message(batch: &ShardBatch, epoch: u64) -> peer::AppendBatch {
    let mut fingerprints = Vec::with_capacity(batch.fingerprints.len() * 16);
    for fingerprint in &batch.fingerprints {
        fingerprints.extend_from_slice(&fingerprint.to_bytes());
    }
    let mut sample_counts = Vec::new();
    if batch.sample_counts.iter().any(|count| *count != 1) {
        for count in &batch.sample_counts {
            put_varint(&mut sample_counts, u64::from(*count));
        }
    }
    let labels = batch
        .labels
        .iter()
        .map(|(index, labels)| peer::SeriesLabels { index: *index, labels: labels.as_encoded().to_owned() });
    peer::AppendBatch {
        tenant: batch.tenant.as_str().to_owned(),
        shard: u32::from(batch.shard.0),
        epoch,
        fingerprints: fingerprints.into(),
        sample_counts: sample_counts.into(),
        timestamps: timestamps_to_bytes(&batch.timestamps),
        values: values_to_bytes(&batch.values),
        labels: labels.collect(),
        histogram_series: histogram_series_to_bytes(&batch.histograms.series),
        histogram_timestamps: timestamps_to_bytes(&batch.histograms.timestamps),
        histograms: histograms_to_bytes(&batch.histograms.values),
        exemplars: batch.exemplars.iter().map(|(series, e)| exemplar_to_message(*series, e)).collect(),
        metadata: batch.metadata.iter().map(metadata_to_message).collect(),
    }
}

/// An exemplar of the series with this index.
pub fn exemplar_to_message(series: u32, exemplar: &Exemplar) -> peer::Exemplar {
    peer::Exemplar {
        series,
        timestamp_ms: exemplar.timestamp.0,
        value: exemplar.value,
        labels: exemplar.labels.as_encoded().to_owned(),
    }
}

/// Checks a received exemplar. Its series' index stays in the message.
pub fn exemplar_from_message(message: &peer::Exemplar) -> Result<Exemplar, WireError> {
    let labels = labels_from_text(&message.labels)?;
    Ok(Exemplar { timestamp: TimestampMs(message.timestamp_ms), value: message.value, labels })
}

/// Metadata as sent.
pub fn metadata_to_message(metadata: &MetricMetadata) -> peer::Metadata {
    peer::Metadata {
        metric: metadata.metric.clone(),
        r#type: u32::from(metadata.kind.number()),
        help: metadata.help.clone(),
        unit: metadata.unit.clone(),
    }
}

/// Received metadata.
pub fn metadata_from_message(message: &peer::Metadata) -> MetricMetadata {
    MetricMetadata {
        metric: message.metric.clone(),
        kind: MetricType::from_number(u64::from(message.r#type)),
        help: message.help.clone(),
        unit: message.unit.clone(),
    }
}

/// Checks a received batch. Inverse of [`batch_to_message`]; the epoch stays in the message.
pub fn batch_from_message(message: &peer::AppendBatch) -> Result<ShardBatch, WireError> {
    let (fingerprints, rest) = message.fingerprints.as_chunks::<16>();
    if !rest.is_empty() {
        return Err(WireError::Invalid("fingerprints are not whole".into()));
    }
    let sample_counts = if message.sample_counts.is_empty() {
        vec![1; fingerprints.len()]
    } else {
        counts_from_bytes(&message.sample_counts)?
    };
    let label_sets = message.labels.iter().map(|l| Ok((l.index, labels_from_text(&l.labels)?)));
    let exemplars = message.exemplars.iter().map(|e| Ok((e.series, exemplar_from_message(e)?)));
    let batch = ShardBatch {
        tenant: tenant_from_text(&message.tenant)?,
        shard: shard_from_number(message.shard)?,
        fingerprints: fingerprints.iter().map(|bytes| Fingerprint::from_bytes(*bytes)).collect(),
        sample_counts,
        timestamps: timestamps_from_bytes(&message.timestamps)?,
        values: values_from_bytes(&message.values)?,
        histograms: BatchHistograms {
            series: histogram_series_from_bytes(&message.histogram_series)?,
            timestamps: timestamps_from_bytes(&message.histogram_timestamps)?,
            values: histograms_from_bytes(&message.histograms)?,
        },
        exemplars: exemplars.collect::<Result<_, WireError>>()?,
        metadata: message.metadata.iter().map(metadata_from_message).collect(),
        labels: label_sets.collect::<Result<_, WireError>>()?,
    };
    if batch.is_consistent() {
        Ok(batch)
    } else {
        Err(WireError::Invalid("columns of an append batch do not fit each other".into()))
    }
}

/// A selection as sent to a replica.
pub fn selection_to_message(selection: &Selection) -> peer::Selection {
    let matcher = |m: &Matcher| peer::Matcher {
        name: m.name().to_owned(),
        op: match m.op() {
            MatchOp::Equal => peer::matcher::Op::Equal,
            MatchOp::NotEqual => peer::matcher::Op::NotEqual,
            MatchOp::Regex => peer::matcher::Op::Regex,
            MatchOp::NotRegex => peer::matcher::Op::NotRegex,
        }
        .into(),
        value: m.value().to_owned(),
    };
    peer::Selection {
        tenant: selection.tenant.as_str().to_owned(),
        matchers: selection.matchers.iter().map(matcher).collect(),
        start_ms: selection.start.0,
        end_ms: selection.end.0,
    }
}

/// Checks a received selection.
pub fn selection_from_message(message: &peer::Selection) -> Result<Selection, WireError> {
    let matcher = |m: &peer::Matcher| {
        let op = match m.op() {
            peer::matcher::Op::Equal => MatchOp::Equal,
            peer::matcher::Op::NotEqual => MatchOp::NotEqual,
            peer::matcher::Op::Regex => MatchOp::Regex,
            peer::matcher::Op::NotRegex => MatchOp::NotRegex,
        };
        Matcher::new(&m.name, op, &m.value).map_err(|e| WireError::Invalid(e.to_string()))
    };
    Ok(Selection {
        tenant: tenant_from_text(&message.tenant)?,
        matchers: message.matchers.iter().map(matcher).collect::<Result<_, _>>()?,
        start: TimestampMs(message.start_ms),
        end: TimestampMs(message.end_ms),
    })
}

/// One series as sent to the node that merges.
pub fn series_to_message(series: &SeriesColumns) -> peer::Series {
    peer::Series {
        labels: series.labels.as_encoded().to_owned(),
        timestamps: timestamps_to_bytes(&series.timestamps),
        values: values_to_bytes(&series.values),
        histogram_timestamps: timestamps_to_bytes(&series.histograms.timestamps),
        histograms: histograms_to_bytes(&series.histograms.values),
    }
}

/// Checks a received series: columns of equal length, times strictly ascending.
pub fn series_from_message(message: &peer::Series) -> Result<SeriesColumns, WireError> {
    let mut series = SeriesColumns::floats(
        labels_from_text(&message.labels)?,
        timestamps_from_bytes(&message.timestamps)?,
        values_from_bytes(&message.values)?,
    );
    let histograms = HistogramColumns {
        timestamps: timestamps_from_bytes(&message.histogram_timestamps)?,
        values: histograms_from_bytes(&message.histograms)?,
        start_timestamps: Vec::new(),
    };
    let ascending = |timestamps: &[i64], values: usize| {
        timestamps.len() == values && timestamps.is_sorted_by(|a, b| a < b)
    };
    if ascending(&series.timestamps, series.values.len())
        && ascending(&histograms.timestamps, histograms.values.len())
    {
        series.merge_histograms(&histograms.timestamps, &histograms.values);
        Ok(series)
    } else {
        Err(WireError::Invalid("columns of a series do not fit each other".into()))
    }
}

/// What a node counted. `refused` stays empty.
pub fn cardinality_to_message(counted: Cardinality) -> peer::CountReply {
    let counts = |counts: Vec<(String, u64)>| {
        counts.into_iter().map(|(name, count)| peer::Count { name, count }).collect()
    };
    let distinct =
        |distinct: Distinct| Some(peer::Distinct { count: distinct.at_most, smallest: distinct.smallest });
    let label = |label: LabelCardinality| peer::LabelCount {
        name: label.name,
        values: distinct(label.values),
        value_bytes: label.value_bytes,
    };
    peer::CountReply {
        series: counted.series,
        chunks: counted.chunks,
        start_ms: counted.times.map(|(start, _)| start),
        end_ms: counted.times.map(|(_, end)| end),
        label_pairs: distinct(counted.label_pairs),
        series_by_metric: counts(counted.series_by_metric),
        series_by_pair: counts(counted.series_by_pair),
        labels: counted.labels.into_iter().map(label).collect(),
        refused: Vec::new(),
    }
}

/// What another node counted. Inverse of [`cardinality_to_message`] for what one node counted.
pub fn cardinality_from_message(message: peer::CountReply) -> Cardinality {
    let counts = |counts: Vec<peer::Count>| counts.into_iter().map(|c| (c.name, c.count)).collect();
    let distinct = |distinct: Option<peer::Distinct>| {
        let peer::Distinct { count, smallest } = distinct.unwrap_or_default();
        let mut distinct = Distinct { at_least: count, at_most: count, smallest };
        distinct.settle();
        distinct
    };
    let label = |label: peer::LabelCount| LabelCardinality {
        name: label.name,
        values: distinct(label.values),
        value_bytes: label.value_bytes,
    };
    Cardinality {
        series: message.series,
        chunks: message.chunks,
        times: message.start_ms.zip(message.end_ms),
        label_pairs: distinct(message.label_pairs),
        series_by_metric: counts(message.series_by_metric),
        series_by_pair: counts(message.series_by_pair),
        labels: message.labels.into_iter().map(label).collect(),
    }
}

/// Checks a received tenant name.
pub fn tenant_from_text(text: &str) -> Result<TenantId, WireError> {
    TenantId::new(text).map_err(|e| WireError::Invalid(e.to_string()))
}

/// Checks a received label set.
pub fn labels_from_text(text: &str) -> Result<Labels, WireError> {
    Labels::from_encoded(text).map_err(|e| WireError::Invalid(e.to_string()))
}

/// Checks a received shard number.
pub fn shard_from_number(number: u32) -> Result<ShardId, WireError> {
    let shard = u16::try_from(number);
    shard.map(ShardId).map_err(|_| WireError::Invalid(format!("no shard has the number {number}")))
}

fn timestamps_to_bytes(timestamps: &[i64]) -> Bytes {
    let mut bytes = Vec::with_capacity(timestamps.len() * 2 + 8);
    let mut last = 0_i64;
    for timestamp in timestamps {
        put_varint(&mut bytes, zigzag(timestamp.wrapping_sub(last)));
        last = *timestamp;
    }
    bytes.into()
}

fn timestamps_from_bytes(bytes: &[u8]) -> Result<Vec<i64>, WireError> {
    let mut timestamps = Vec::new();
    let (mut at, mut last) = (0, 0_i64);
    while at < bytes.len() {
        let delta = take_varint(bytes, &mut at);
        let delta = delta.ok_or(WireError::Malformed { what: "broken timestamp", at })?;
        last = last.wrapping_add(unzigzag(delta));
        timestamps.push(last);
    }
    Ok(timestamps)
}

fn counts_from_bytes(bytes: &[u8]) -> Result<Vec<u32>, WireError> {
    let mut counts = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let count = take_varint(bytes, &mut at).and_then(|n| u32::try_from(n).ok());
        counts.push(count.ok_or(WireError::Malformed { what: "broken sample count", at })?);
    }
    Ok(counts)
}

fn histogram_series_to_bytes(series: &[(u32, u32)]) -> Bytes {
    let mut bytes = Vec::new();
    for (index, count) in series {
        put_varint(&mut bytes, u64::from(*index));
        put_varint(&mut bytes, u64::from(*count));
    }
    bytes.into()
}

fn histogram_series_from_bytes(bytes: &[u8]) -> Result<Vec<(u32, u32)>, WireError> {
    let numbers = counts_from_bytes(bytes)?;
    let (pairs, rest) = numbers.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(WireError::Invalid("a series of histograms without their number".into()));
    }
    Ok(pairs.iter().map(|[index, count]| (*index, *count)).collect())
}

fn histograms_to_bytes(histograms: &[Arc<Histogram>]) -> Bytes {
    let mut bytes = Vec::new();
    histograms.iter().for_each(|histogram| histogram.append_bytes(&mut bytes));
    bytes.into()
}

fn histograms_from_bytes(bytes: &[u8]) -> Result<Vec<Arc<Histogram>>, WireError> {
    let mut histograms = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let at = bytes.len() - rest.len();
        let histogram = Histogram::take_bytes(&mut rest);
        let histogram = histogram.ok_or(WireError::Malformed { what: "broken native histogram", at })?;
        histograms.push(Arc::new(histogram));
    }
    Ok(histograms)
}

fn values_to_bytes(values: &[f64]) -> Bytes {
    let mut bytes = Vec::with_capacity(values.len() * 8);
    for value in values {
        bytes.extend_from_slice(&value.to_bits().to_le_bytes());
    }
    bytes.into()
}

fn values_from_bytes(bytes: &[u8]) -> Result<Vec<f64>, WireError> {
    let (values, rest) = bytes.as_chunks::<8>();
    if !rest.is_empty() {
        return Err(WireError::Invalid("values are not whole".into()));
    }
    Ok(values.iter().map(|bits| f64::from_bits(u64::from_le_bytes(*bits))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use saturn_model::Sample;

    fn any_batch() -> impl Strategy<Value = ShardBatch> {
        let samples = proptest::collection::vec((any::<i64>(), any::<u64>()), 0..4);
        let series = (any::<u128>(), samples, proptest::option::of("[a-z]{1,9}"));
        proptest::collection::vec(series, 0..8).prop_map(|all| {
            let mut batch = ShardBatch::new(TenantId::new("t").expect("valid"), ShardId(9));
            for (index, (fingerprint, samples, label)) in (0..).zip(all) {
                batch.push_series(Fingerprint(fingerprint));
                for (timestamp, bits) in samples {
                    let timestamp = TimestampMs(timestamp);
                    batch.push_sample(Sample { timestamp, value: f64::from_bits(bits) });
                }
                if index % 3 == 1 {
                    let histogram = Histogram { count: f64::from(index), sum: -0.0, ..Histogram::default() };
                    let histogram = Arc::new(histogram);
                    (0..2).for_each(|time| batch.push_histogram(TimestampMs(time), Arc::clone(&histogram)));
                }
                if let Some(value) = label {
                    let labels = Labels::from_pairs([("a", value.as_str())]).expect("valid");
                    let timestamp = TimestampMs(-5);
                    batch.push_exemplar(Exemplar { timestamp, value: f64::NAN, labels: labels.clone() });
                    let (metric, kind) = (value, MetricType::Summary);
                    let (help, unit) = ("h".to_owned(), String::new());
                    batch.metadata.push(MetricMetadata { metric, kind, help, unit });
                    batch.labels.push((index, labels));
                }
            }
            batch
        })
    }

    proptest! {
        #[test]
        fn batches_survive(batch in any_batch()) {
            let back = batch_from_message(&batch_to_message(&batch, 7)).expect("valid");
            let bits = |values: &[f64]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            prop_assert_eq!(bits(&back.values), bits(&batch.values));
            prop_assert_eq!(back.timestamps, batch.timestamps);
            prop_assert_eq!(back.fingerprints, batch.fingerprints);
            prop_assert_eq!(back.sample_counts, batch.sample_counts);
            prop_assert_eq!(back.labels, batch.labels);
            prop_assert_eq!(&back.histograms, &batch.histograms);
            prop_assert_eq!(&back.exemplars, &batch.exemplars);
            prop_assert_eq!(&back.metadata, &batch.metadata);
        }

        #[test]
        fn damaged_columns_are_refused_or_consistent(
            batch in any_batch(), column in 0..7, cut in 0_usize..9,
        ) {
            let mut message = batch_to_message(&batch, 7);
            let field = match column {
                0 => &mut message.fingerprints,
                1 => &mut message.sample_counts,
                2 => &mut message.timestamps,
                3 => &mut message.histogram_series,
                4 => &mut message.histogram_timestamps,
                5 => &mut message.histograms,
                _ => &mut message.values,
            };
            field.truncate(field.len().saturating_sub(cut));
            if let Ok(batch) = batch_from_message(&message) {
                prop_assert!(batch.is_consistent());
            }
        }
    }

    #[test]
    fn counts_survive() {
        let distinct = |hashes: &[u64]| {
            let mut distinct = Distinct::default();
            hashes.iter().for_each(|hash| distinct.add(*hash));
            distinct.settle();
            distinct
        };
        let label = LabelCardinality { name: "job".into(), values: distinct(&[7]), value_bytes: 3 };
        let counted = Cardinality {
            series: 5,
            chunks: 6,
            times: Some((-1, 9)),
            label_pairs: distinct(&[9, 3]),
            series_by_metric: vec![("up".into(), 5)],
            series_by_pair: vec![("job=a".into(), 2), ("job=b".into(), 1)],
            labels: vec![label],
        };
        assert_eq!(cardinality_from_message(cardinality_to_message(counted.clone())), counted);
        let nothing = Cardinality::default();
        assert_eq!(cardinality_from_message(cardinality_to_message(nothing.clone())), nothing);
    }

    #[test]
    fn a_series_must_ascend() {
        let series = |timestamps: Vec<i64>| {
            let values = vec![0.0; timestamps.len()];
            SeriesColumns::floats(Labels::empty(), timestamps, values)
        };
        assert!(series_from_message(&series_to_message(&series(vec![-5, 1, 2]))).is_ok());
        assert!(series_from_message(&series_to_message(&series(vec![1, 1]))).is_err());

        let mut mixed = series(vec![1, 3]);
        mixed.merge_histograms(&[2, 4], &[Arc::new(Histogram::default()), Arc::new(Histogram::default())]);
        let message = series_to_message(&mixed);
        let back = series_from_message(&message).expect("valid");
        assert_eq!((back.timestamps, back.histograms.timestamps), (vec![1, 3], vec![2, 4]));
        let twice = peer::Series { histogram_timestamps: timestamps_to_bytes(&[2, 2]), ..message.clone() };
        assert!(series_from_message(&twice).is_err());
        let fewer = peer::Series { histogram_timestamps: timestamps_to_bytes(&[2]), ..message };
        assert!(series_from_message(&fewer).is_err());
    }
}

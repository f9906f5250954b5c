//! A write's road through the gateway: one page from the request's bytes to the quorum's answer.
//!
//! The body is decompressed into one buffer and walked in place. The fingerprint of a series that came before is found
//! by the bytes of its labels; that of another one is the hash of its labels, checked and canonically encoded into a
//! scratch string. Its samples join the batch of its shard. Labels
//! are not copied: a replica that does not know a fingerprint asks for them, and they are walked again then
//! ([`RequestLabels`]). An invalid series or sample is left out and named in the answer; the rest is stored.

use std::sync::Arc;

use saturn_model::{
    Fingerprint, FingerprintCache, InvalidHistogram, Labels, Limits, METRIC_NAME, MetricMetadata, ShardBatch,
    ShardId, TenantFingerprints, TenantId, TimestampMs, append_label_pair,
};
use saturn_proto::remote_write::{TimeSeries, walk_metadata, walk_request};
use saturn_proto::remote_write2::{RefusedSeries, Written1, write_as_1};
use saturn_proto::{WireError, snappy};
use saturn_replication::{Coordinator, LabelSource, ShardWrite, WriteError};
use saturn_ring::Subset;

use crate::peers::NodePeers;

/// How many rejected series an answer names.
const REJECTS_NAMED_MAX: usize = 10;
/// Bytes of a series with one sample in a request, roughly.
const SERIES_BYTES: usize = 200;
/// Series whose fingerprints are remembered: more are computed with each request, which costs CPU and no more.
const FINGERPRINTS_MAX: usize = 4 << 20;

/// What became of a request.
#[derive(Debug, Default)]
pub(crate) struct Written {
    /// Samples that are durable on a quorum.
    pub(crate) samples: usize,
    /// Of them, those that are native histograms.
    pub(crate) histograms: usize,
    /// Exemplars that are durable on a quorum.
    pub(crate) exemplars: usize,
    /// Metadata that is durable on a quorum.
    pub(crate) metadata: usize,
    /// What was left out.
    pub(crate) rejects: Rejects,
    /// Exemplars and metadata that were left out because they make no sense. As in Prometheus, that does not make
    /// a request invalid.
    pub(crate) refused_notes: usize,
}

/// The invalid parts of a request: the first few by name, all by number.
#[derive(Debug, Default)]
pub(crate) struct Rejects {
    pub(crate) samples: usize,
    pub(crate) series: usize,
    pub(crate) texts: Vec<String>,
}

/// Why nothing, or nobody knows what, was stored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PathError {
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error("decoding failed: {0}")]
    Internal(#[from] tokio::task::JoinError),
}

/// What a body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// Remote-write 1.0.
    One,
    /// Remote-write 2.0.
    Two,
}

/// What requests are held against.
#[derive(Debug)]
pub(crate) struct Gate {
    pub(crate) limits: Arc<Limits>,
    /// Of series within the limits.
    fingerprints: FingerprintCache,
}

impl Gate {
    pub(crate) fn new(limits: Arc<Limits>) -> Self {
        Self { limits, fingerprints: FingerprintCache::new(FINGERPRINTS_MAX) }
    }
}

/// Decodes, checks, splits by shard, and writes to the quorum of each shard.
pub(crate) async fn write(
    coordinator: &Coordinator<NodePeers>,
    tenant: TenantId,
    (protocol, body): (Protocol, bytes::Bytes),
    gate: Arc<Gate>,
    now_ms: i64,
) -> Result<Written, PathError> {
    let shards = coordinator.shards_written(&tenant);
    let decoding = move || {
        let decoded_bytes_max = gate.limits.write_decoded_bytes_max;
        let request = snappy::decompress(&body, decoded_bytes_max)?;
        let splitter = Splitter::new(&tenant, &gate, shards, now_ms);
        match protocol {
            Protocol::One => splitter.split(request),
            Protocol::Two => {
                let Written1 { request, refused } = write_as_1(&request, decoded_bytes_max)?;
                splitter.without(&refused).split(request)
            }
        }
    };
    let split = tokio::task::spawn_blocking(decoding).await??;
    if !split.shards.is_empty() {
        coordinator.write(split.shards, split.labels).await?;
    }
    Ok(split.written)
}

/// A request, cut into one batch per shard.
struct Split {
    shards: Vec<ShardWrite>,
    labels: Arc<RequestLabels>,
    written: Written,
}

/// The labels of a request's series, found again in its bytes when a replica wants them.
struct RequestLabels {
    request: Vec<u8>,
    /// Where each admitted series lies.
    ranges: Vec<(u32, u32)>,
}

impl LabelSource for RequestLabels {
    fn labels(&self, series: u32) -> Labels {
        let range = self.ranges[series as usize];
        let series = TimeSeries::at(&self.request, range).expect("the range was taken from this request");
        let mut pairs = Vec::new();
        series.labels_into(&mut pairs).expect("the series was walked before");
        Labels::from_pairs(pairs).expect("the series was admitted")
    }
}

/// The series that is walked just now: it joins the batch of its shard with the first valid thing that it has.
struct Admitted<'a> {
    batch: &'a mut ShardBatch,
    members: &'a mut Vec<u32>,
    fingerprint: Fingerprint,
    /// Of the series in the request.
    index: u32,
    started: bool,
}

impl Admitted<'_> {
    /// The batch, with the series as its last.
    fn batch(&mut self) -> &mut ShardBatch {
        if !self.started {
            self.started = true;
            self.batch.push_series(self.fingerprint);
            self.members.push(self.index);
        }
        self.batch
    }
}

struct Splitter<'a> {
    tenant: &'a TenantId,
    limits: &'a Limits,
    fingerprints: TenantFingerprints<'a>,
    shards: Subset,
    /// Series of a shard that the request may have, to make room for.
    series_of_shard: usize,
    timestamp_max: i64,
    /// Per shard the index of its write in `writes`.
    write_of_shard: Vec<Option<usize>>,
    writes: Vec<(ShardBatch, Vec<u32>)>,
    ranges: Vec<(u32, u32)>,
    written: Written,
    encoded: String,
}

impl<'a> Splitter<'a> {
    fn new(tenant: &'a TenantId, gate: &'a Gate, shards: Subset, now_ms: i64) -> Self {
        let limits = &*gate.limits;
        let future_ms = i64::try_from(limits.future_max.as_millis()).unwrap_or(i64::MAX);
        Self {
            tenant,
            limits,
            fingerprints: gate.fingerprints.of_tenant(tenant),
            series_of_shard: 0,
            timestamp_max: now_ms.saturating_add(future_ms),
            write_of_shard: vec![None; usize::from(shards.cluster_shards())],
            shards,
            writes: Vec::new(),
            ranges: Vec::new(),
            written: Written::default(),
            encoded: String::new(),
        }
    }

    /// Counts series that were refused before.
    fn without(mut self, refused: &[RefusedSeries]) -> Self {
        refused.iter().for_each(|series| self.written.rejects.add(series.samples, || series.reason.clone()));
        self
    }

    fn split(mut self, request: Vec<u8>) -> Result<Split, WireError> {
        self.series_of_shard = request.len() / SERIES_BYTES / self.shards.len() + 1;
        let mut labels = Vec::new();
        let contents = walk_request(&request, |series| {
            let key = series.label_bytes().map(|bytes| self.fingerprints.key(bytes));
            if let Some(fingerprint) = key.and_then(|key| self.fingerprints.get(key)) {
                return self.admit(series, fingerprint);
            }
            series.labels_into(&mut labels)?;
            match self.check_labels(&labels) {
                Ok(()) => {
                    let fingerprint = self.fingerprint_of(&labels);
                    if let Some(key) = key {
                        self.fingerprints.put(key, fingerprint);
                    }
                    self.admit(series, fingerprint)
                }
                Err(reason) => {
                    let mut samples = 0;
                    let contents = series.walk_samples(|_| samples += 1)?;
                    self.reject(&labels, samples + contents.histograms, &reason);
                    Ok(())
                }
            }
        })?;
        if contents.metadata > 0 {
            walk_metadata(&request, |metadata| self.admit_metadata(metadata))?;
        }
        let into_write = |(batch, series)| ShardWrite { batch: Arc::new(batch), series };
        Ok(Split {
            shards: self.writes.into_iter().map(into_write).collect(),
            labels: Arc::new(RequestLabels { request, ranges: self.ranges }),
            written: self.written,
        })
    }

    /// Adds the series' valid samples to the batch of its shard.
    fn admit(&mut self, series: TimeSeries<'_>, fingerprint: Fingerprint) -> Result<(), WireError> {
        let write = self.write_of(self.shards.shard_of(fingerprint));

        let index = u32::try_from(self.ranges.len()).expect("a request is limited to under 4 GiB");
        let (batch, members) = &mut self.writes[write];
        let mut admitted = Admitted { batch, members, fingerprint, index, started: false };
        let mut out_of_range: Option<(TimestampMs, usize)> = None;
        let mut invalid: Option<(InvalidHistogram, usize)> = None;
        let range = 0..=self.timestamp_max;
        let written = &mut self.written;
        let contents = series.walk_samples(|sample| {
            if !range.contains(&sample.timestamp.0) {
                out_of_range.get_or_insert((sample.timestamp, 0)).1 += 1;
                return;
            }
            admitted.batch().push_sample(sample);
            written.samples += 1;
        })?;
        if contents.histograms > 0 {
            series.walk_histograms(|timestamp, histogram| match histogram {
                Ok(_) if !range.contains(&timestamp.0) => {
                    out_of_range.get_or_insert((timestamp, 0)).1 += 1;
                }
                Ok(histogram) => {
                    admitted.batch().push_histogram(timestamp, Arc::new(histogram));
                    written.samples += 1;
                    written.histograms += 1;
                }
                Err(reason) => invalid.get_or_insert((reason, 0)).1 += 1,
            })?;
        }
        if contents.exemplars > 0 {
            series.walk_exemplars(|exemplar| match exemplar {
                Ok(exemplar) if range.contains(&exemplar.timestamp.0) && !exemplar.is_too_long() => {
                    admitted.batch().push_exemplar(exemplar);
                    written.exemplars += 1;
                }
                _ => written.refused_notes += 1,
            })?;
        }
        if admitted.started {
            self.ranges.push(series.range());
        }
        let mut labels = Vec::new();
        if out_of_range.is_some() || invalid.is_some() {
            series.labels_into(&mut labels)?;
        }
        if let Some((timestamp, samples)) = out_of_range {
            let reason = format!(
                "timestamp {timestamp} is out of range: want 0 to {} (now + future_max)",
                self.timestamp_max
            );
            self.reject(&labels, samples, &reason);
        }
        if let Some((reason, samples)) = invalid {
            self.reject(&labels, samples, &reason.to_string());
        }
        Ok(())
    }

    fn fingerprint_of(&mut self, labels: &[(&str, &str)]) -> Fingerprint {
        self.encoded.clear();
        for (name, value) in labels.iter().filter(|(_, value)| !value.is_empty()) {
            append_label_pair(&mut self.encoded, name, value);
        }
        Fingerprint::of(self.tenant, &self.encoded)
    }

    /// Adds what the request says about a metric to the batch of its shard.
    fn admit_metadata(&mut self, metadata: MetricMetadata) {
        let text_max = self.limits.label_value_bytes_max;
        let texts = [&metadata.metric, &metadata.help, &metadata.unit];
        if metadata.metric.is_empty() || texts.iter().any(|text| text.len() > text_max) {
            self.written.refused_notes += 1;
            return;
        }
        let fingerprint = ShardBatch::fingerprint_of_metric(self.tenant, &metadata.metric);
        let write = self.write_of(self.shards.shard_of(fingerprint));
        self.writes[write].0.metadata.push(metadata);
        self.written.metadata += 1;
    }

    fn write_of(&mut self, shard: ShardId) -> usize {
        *self.write_of_shard[usize::from(shard.0)].get_or_insert_with(|| {
            let mut batch = ShardBatch::new(self.tenant.clone(), shard);
            batch.reserve(self.series_of_shard);
            self.writes.push((batch, Vec::with_capacity(self.series_of_shard)));
            self.writes.len() - 1
        })
    }

    fn check_labels(&self, labels: &[(&str, &str)]) -> Result<(), String> {
        let limits = self.limits;
        if labels.len() > limits.labels_per_series_max {
            let (count, max) = (labels.len(), limits.labels_per_series_max);
            return Err(format!("{count} labels are over the limit of {max} (labels_per_series_max)"));
        }
        for (i, (name, value)) in labels.iter().enumerate() {
            if name.is_empty() {
                return Err(format!("label with an empty name (value {value:?})"));
            }
            if i > 0 && labels[i - 1].0 == *name {
                return Err(format!("duplicate label name {name:?}"));
            }
            if i > 0 && labels[i - 1].0 > *name {
                return Err(format!("labels are not sorted: {name:?} comes after {:?}", labels[i - 1].0));
            }
            if name.len() > limits.label_name_bytes_max {
                let max = limits.label_name_bytes_max;
                return Err(format!(
                    "label name of {} bytes is over the limit of {max} (label_name_bytes_max)",
                    name.len()
                ));
            }
            if value.len() > limits.label_value_bytes_max {
                let max = limits.label_value_bytes_max;
                return Err(format!(
                    "value of label {name:?} of {} bytes is over the limit of {max} (label_value_bytes_max)",
                    value.len()
                ));
            }
        }
        if !labels.iter().any(|(name, value)| *name == METRIC_NAME && !value.is_empty()) {
            return Err("no metric name (label \"__name__\")".into());
        }
        Ok(())
    }

    fn reject(&mut self, labels: &[(&str, &str)], samples: usize, reason: &str) {
        self.written.rejects.add(samples, || format!("{}: {reason}", name_series(labels)));
    }
}

/// The series as its sender wrote it, valid or not, shortened.
fn name_series(labels: &[(&str, &str)]) -> String {
    let pairs: Vec<String> =
        labels.iter().take(20).map(|(name, value)| format!("{name}={value:?}")).collect();
    let mut text = format!("{{{}}}", pairs.join(", "));
    if text.len() > 500 {
        let cut = (0..=500).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
        text.truncate(cut);
        text.push_str("...");
    }
    text
}

impl Rejects {
    fn add(&mut self, samples: usize, text: impl FnOnce() -> String) {
        self.series += 1;
        self.samples += samples;
        if self.texts.len() < REJECTS_NAMED_MAX {
            self.texts.push(text());
        }
    }

    /// The body of a 400 answer.
    pub(crate) fn describe(&self) -> String {
        let mut text = format!("{} samples of {} series were not stored:\n", self.samples, self.series);
        for reject in &self.texts {
            text.push_str(reject);
            text.push('\n');
        }
        if self.series > self.texts.len() {
            text.push_str(&format!("and {} more\n", self.series - self.texts.len()));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use saturn_model::{Exemplar, Sample};
    use saturn_proto::remote_write::put_time_series;

    const NOW: i64 = 1_700_000_000_000;

    fn gate() -> Gate {
        Gate::new(Arc::new(Limits::default()))
    }

    fn sample(timestamp: i64, value: f64) -> Sample {
        Sample { timestamp: TimestampMs(timestamp), value }
    }

    type Series<'a> = (&'a [(&'a str, &'a str)], &'a [Sample]);

    fn split(series: &[Series<'_>]) -> Split {
        split_over(0, series)
    }

    /// Over so many of 64 shards.
    fn split_over(shards: u16, series: &[Series<'_>]) -> Split {
        let mut request = Vec::new();
        for (labels, samples) in series {
            put_time_series(&mut request, labels.iter().copied(), samples);
        }
        let tenant = TenantId::new("t").expect("valid");
        Splitter::new(&tenant, &gate(), Subset::of(&tenant, shards, 64), NOW)
            .split(request)
            .expect("well-formed")
    }

    #[test]
    fn samples_join_the_batch_of_their_shard_and_labels_are_found_again() {
        let names: Vec<String> = (0..500).map(|i| format!("m{i}")).collect();
        let labels: Vec<[(&str, &str); 2]> =
            names.iter().map(|n| [("__name__", n.as_str()), ("job", "x")]).collect();
        let samples = [sample(NOW, 1.0), sample(NOW + 1, 2.0)];
        let series: Vec<_> = labels.iter().map(|l| (l.as_slice(), samples.as_slice())).collect();
        let tenant = TenantId::new("t").expect("valid");
        for shards in [0, 3] {
            let subset = Subset::of(&tenant, shards, 64);
            let split = split_over(shards, &series);
            assert_eq!(split.written.samples, 1000);
            assert!(split.written.rejects.texts.is_empty());
            assert!(split.shards.len() <= subset.len());
            let mut seen = 0;
            for write in &split.shards {
                assert!(write.batch.is_consistent());
                for (fingerprint, series) in write.batch.fingerprints.iter().zip(&write.series) {
                    let labels = split.labels.labels(*series);
                    assert_eq!(Fingerprint::of(&tenant, labels.as_encoded()), *fingerprint);
                    assert_eq!(subset.shard_of(*fingerprint), write.batch.shard);
                    seen += 1;
                }
            }
            assert_eq!(seen, 500);
        }
    }

    #[test]
    fn invalid_series_are_named_and_the_rest_is_kept() {
        let ok = [sample(NOW, 1.0)];
        let late = [sample(NOW, 1.0), sample(NOW + 3_600_000, 2.0), sample(-1, 3.0)];
        let split = split(&[
            (&[("__name__", "good")], &ok),
            (&[("__name__", "a"), ("b", "1"), ("b", "2")], &ok),
            (&[("__name__", "a"), ("", "1")], &ok),
            (&[("b", "1"), ("__name__", "unsorted")], &ok),
            (&[("b", "nameless")], &ok),
            (&[("__name__", "late")], &late),
        ]);
        assert_eq!(split.written.samples, 2);
        let rejects = &split.written.rejects;
        assert_eq!((rejects.series, rejects.samples), (5, 6));
        let text = rejects.describe();
        for want in [
            "duplicate label name \"b\"",
            "empty name",
            "not sorted",
            "{b=\"nameless\"}: no metric name",
            "{__name__=\"late\"}: timestamp 1700003600000 is out of range",
        ] {
            assert!(text.contains(want), "{want} not in {text}");
        }
    }

    #[test]
    fn exemplars_come_with_or_without_samples_and_nonsense_is_left_out() {
        use saturn_proto::remote_write::put_series_message;
        let exemplar = |time, id: &str| Exemplar {
            timestamp: TimestampMs(time),
            value: 1.5,
            labels: Labels::from_pairs([("trace_id", id)]).expect("valid"),
        };
        let described = |metric: &str, help: &str| MetricMetadata {
            metric: metric.into(),
            kind: saturn_model::MetricType::Counter,
            help: help.into(),
            unit: String::new(),
        };
        let mut request = Vec::new();
        let alone = [exemplar(NOW, "a"), exemplar(-1, "b"), exemplar(NOW, &"long".repeat(40))];
        put_series_message(&mut request, [("__name__", "alone")], &[], &alone);
        put_series_message(&mut request, [("__name__", "both")], &[sample(NOW, 1.0)], &[exemplar(NOW, "c")]);
        put_series_message(&mut request, [("__name__", "nonsense")], &[], &[exemplar(-1, "b")]);
        for metadata in [described("alone", "h"), described("", "h"), described("both", &"h".repeat(10_000))]
        {
            saturn_proto::remote_write::put_metadata(&mut request, &metadata);
        }
        let tenant = TenantId::new("t").expect("valid");
        let split = Splitter::new(&tenant, &gate(), Subset::of(&tenant, 0, 1), NOW)
            .split(request)
            .expect("well-formed");
        let Written { samples, exemplars, metadata, refused_notes, .. } = split.written;
        assert_eq!((samples, exemplars, metadata, refused_notes), (1, 2, 1, 5));
        assert!(split.written.rejects.texts.is_empty());
        let ShardWrite { batch, series } = &split.shards[0];
        assert_eq!(
            (batch.sample_counts.as_slice(), series.as_slice()),
            ([0, 1].as_slice(), [0, 1].as_slice())
        );
        let ids: Vec<_> = batch.exemplars.iter().map(|(at, e)| (*at, e.labels.get("trace_id"))).collect();
        assert_eq!(ids, [(0, Some("a")), (1, Some("c"))]);
        assert_eq!(batch.metadata, [described("alone", "h")]);
        assert!(batch.is_consistent());
    }

    #[test]
    fn an_empty_value_is_a_missing_label() {
        let ok = [sample(NOW, 1.0)];
        let with = split(&[(&[("__name__", "a"), ("b", "")], &ok)]);
        let without = split(&[(&[("__name__", "a")], &ok)]);
        assert_eq!(with.shards[0].batch.fingerprints, without.shards[0].batch.fingerprints);
    }

    #[test]
    fn values_are_kept_bit_for_bit() {
        let bits = [saturn_model::STALE_NAN_BITS, 0x7ff8_dead_beef_0001, 0x8000_0000_0000_0000];
        let samples: Vec<Sample> = (0..).zip(bits).map(|(i, b)| sample(NOW + i, f64::from_bits(b))).collect();
        let split = split(&[(&[("__name__", "a")], &samples)]);
        let kept: Vec<u64> = split.shards[0].batch.values.iter().map(|v| v.to_bits()).collect();
        assert_eq!(kept, bits);
    }

    #[test]
    fn series_that_came_before_are_the_same_series() {
        let gate = gate();
        let tenants = ["a", "b"].map(|name| TenantId::new(name).expect("valid"));
        let request = |time| {
            let mut request = Vec::new();
            let long = "x".repeat(200);
            for labels in [
                [("__name__", "m"), ("n", "1")],
                [("__name__", "m"), ("n", "2")],
                // What is equal without an empty label is one series.
                [("__name__", "m"), ("n", "")],
                [("__name__", "m"), ("n", long.as_str())],
                [("", "m"), ("n", "1")],
            ] {
                put_time_series(&mut request, labels, &[sample(time, 1.0)]);
            }
            request
        };
        let fingerprints = |tenant: &TenantId, time| {
            let split = Splitter::new(tenant, &gate, Subset::of(tenant, 0, 1), NOW)
                .split(request(time))
                .expect("well-formed");
            let rejects = split.written.rejects.texts;
            (
                split.shards.iter().flat_map(|write| write.batch.fingerprints.clone()).collect::<Vec<_>>(),
                rejects,
            )
        };
        let (first, rejects) = fingerprints(&tenants[0], NOW);
        assert_eq!((first.len(), rejects.len()), (4, 1));
        assert_eq!(fingerprints(&tenants[0], NOW), (first.clone(), rejects));
        let (theirs, _) = fingerprints(&tenants[1], NOW);
        assert!(theirs.iter().all(|fingerprint| !first.contains(fingerprint)));
        // A reject names a series that is known, too.
        let (stored, rejects) = fingerprints(&tenants[0], NOW + 1_000_000_000);
        assert_eq!((stored.len(), rejects.len()), (0, 5));
        assert!(rejects[0].contains("n=\"1\"") && rejects[0].contains("out of range"), "{rejects:?}");
    }
}

//! What one shard knows beside samples: exemplars of series, and metadata of metrics. `docs/data-format.md` shows
//! the same tables.
//!
//! All of it is in memory, within the bounds of [`NoteLimits`], and durable like samples: in the log when it is
//! acknowledged, and from the next flush on in rows of the `notes` family. A row that changed is written whole.
//!
//! | key field | bytes | | value, of `e` | value, of `m` |
//! |---|---|---|---|---|
//! | `e` or `m` | 1 | | length and encoded labels of the series | per metadata, the newest first: type (1), |
//! | shard | 2 | | per exemplar, ascending: time (8), value (8), | length and text of help, of unit |
//! | tenant | n | | length and encoded labels | |
//! | 0 | 1 | | | |
//! | fingerprint (16), or the metric's name | n | | | |
//!
//! Of exemplars the newest are kept, by their own time, so the same ones in any order leave the same state. Metadata
//! is not deleted: a metric keeps what was last said of it in so many different ways.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use saturn_model::{
    Exemplar, Fingerprint, Labels, Matcher, MetricMetadata, MetricType, Selection, SeriesExemplars, ShardId,
    TenantId, TimestampMs,
};

use crate::exported::ExportedNotes;
use crate::wire::{Reader, put_varint};

/// Most exemplars of one series, so that a busy one does not drive out all others.
const EXEMPLARS_PER_SERIES_MAX: usize = 512;
/// Most different metadata of one metric.
const METADATA_PER_METRIC_MAX: usize = 8;
const EXEMPLARS_ROW: u8 = b'e';
const METADATA_ROW: u8 = b'm';

/// How much a shard keeps of each tenant.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NoteLimits {
    pub(crate) exemplars: usize,
    pub(crate) metrics: usize,
}

/// The notes of one shard.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    tenants: HashMap<TenantId, TenantNotes>,
    /// What changed since the last flush began.
    changed: BTreeSet<NoteKey>,
}

/// Which row.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum NoteKey {
    Exemplars(TenantId, Fingerprint),
    Metadata(TenantId, String),
}

/// A row of the `notes` family. Without a value, it goes.
#[derive(Clone, Debug)]
pub(crate) struct NoteRow {
    pub(crate) note: NoteKey,
    pub(crate) key: Vec<u8>,
    pub(crate) value: Option<Vec<u8>>,
}

/// What came of exemplars and metadata.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Dropped {
    /// Exemplars that went because there were too many.
    pub(crate) exemplars: u64,
    /// Metadata that was not taken because there is some of too many metrics.
    pub(crate) metadata: u64,
}

#[derive(Debug, Default)]
struct TenantNotes {
    series: HashMap<Fingerprint, (Labels, BTreeSet<Exemplar>)>,
    /// Which series has exemplars of which time: the oldest go first.
    by_time: BTreeSet<(TimestampMs, Fingerprint)>,
    exemplars: usize,
    metadata: BTreeMap<String, Vec<MetricMetadata>>,
}

impl Notes {
    /// Whether the exemplar is there already.
    pub(crate) fn has_exemplar(&self, tenant: &TenantId, series: Fingerprint, exemplar: &Exemplar) -> bool {
        let known = self.tenants.get(tenant).and_then(|notes| notes.series.get(&series));
        known.is_some_and(|(_, exemplars)| exemplars.contains(exemplar))
    }

    /// Whether the metadata is there already.
    pub(crate) fn has_metadata(&self, tenant: &TenantId, metadata: &MetricMetadata) -> bool {
        let known = self.tenants.get(tenant).and_then(|notes| notes.metadata.get(&metadata.metric));
        known.is_some_and(|known| known.contains(metadata))
    }

    /// Adds an exemplar of a series.
    pub(crate) fn add_exemplar(
        &mut self,
        tenant: &TenantId,
        (series, labels): (Fingerprint, &Labels),
        exemplar: Exemplar,
        limits: NoteLimits,
        dropped: &mut Dropped,
    ) {
        let Self { tenants, changed } = self;
        let notes = tenants.entry(tenant.clone()).or_default();
        let (_, exemplars) = notes.series.entry(series).or_insert_with(|| (labels.clone(), BTreeSet::new()));
        let time = exemplar.timestamp;
        if !exemplars.insert(exemplar) {
            return;
        }
        notes.by_time.insert((time, series));
        notes.exemplars += 1;
        changed.insert(NoteKey::Exemplars(tenant.clone(), series));
        if exemplars.len() > EXEMPLARS_PER_SERIES_MAX {
            notes.drop_oldest_of(series);
            dropped.exemplars += 1;
        }
        while notes.exemplars > limits.exemplars {
            let (_, oldest) = *notes.by_time.first().expect("there are exemplars");
            notes.drop_oldest_of(oldest);
            changed.insert(NoteKey::Exemplars(tenant.clone(), oldest));
            dropped.exemplars += 1;
        }
    }

    /// Adds what a sender says about a metric.
    pub(crate) fn add_metadata(
        &mut self,
        tenant: &TenantId,
        metadata: MetricMetadata,
        limits: NoteLimits,
        dropped: &mut Dropped,
    ) {
        let notes = self.tenants.entry(tenant.clone()).or_default();
        let is_new = !notes.metadata.contains_key(&metadata.metric);
        if is_new && notes.metadata.len() >= limits.metrics {
            dropped.metadata += 1;
            return;
        }
        self.changed.insert(NoteKey::Metadata(tenant.clone(), metadata.metric.clone()));
        let known = notes.metadata.entry(metadata.metric.clone()).or_default();
        known.retain(|other| *other != metadata);
        known.insert(0, metadata);
        known.truncate(METADATA_PER_METRIC_MAX);
    }

    /// Adds metadata that another replica knows, behind what is known here.
    pub(crate) fn import_metadata(
        &mut self,
        tenant: &TenantId,
        metadata: MetricMetadata,
        limits: NoteLimits,
        dropped: &mut Dropped,
    ) {
        let notes = self.tenants.entry(tenant.clone()).or_default();
        let known = notes.metadata.get(&metadata.metric);
        if known.is_none() && notes.metadata.len() >= limits.metrics {
            dropped.metadata += 1;
            return;
        }
        if known.is_none_or(|known| known.len() < METADATA_PER_METRIC_MAX && !known.contains(&metadata)) {
            self.changed.insert(NoteKey::Metadata(tenant.clone(), metadata.metric.clone()));
            notes.metadata.entry(metadata.metric.clone()).or_default().push(metadata);
        }
    }

    /// All notes, in pieces of about `chunk_bytes`.
    pub(crate) fn export(&self, shard: ShardId, chunk_bytes: usize) -> Vec<ExportedNotes> {
        let mut chunks: Vec<ExportedNotes> = Vec::new();
        for (tenant, notes) in &self.tenants {
            let empty = || ExportedNotes {
                shard,
                tenant: tenant.clone(),
                exemplars: Vec::new(),
                metadata: Vec::new(),
            };
            let (mut chunk, mut bytes) = (empty(), 0);
            for (labels, exemplars) in notes.series.values() {
                let mut begun = false;
                for exemplar in exemplars {
                    if !begun {
                        bytes += labels.as_encoded().len();
                        let exemplars = Vec::new();
                        chunk.exemplars.push(SeriesExemplars { labels: labels.clone(), exemplars });
                    }
                    begun = true;
                    bytes += exemplar.size_bytes();
                    let own = chunk.exemplars.last_mut().expect("it was just begun");
                    own.exemplars.push(exemplar.clone());
                    if bytes >= chunk_bytes {
                        chunks.push(std::mem::replace(&mut chunk, empty()));
                        (bytes, begun) = (0, false);
                    }
                }
            }
            for metadata in notes.metadata.values().flatten() {
                bytes += metadata.size_bytes();
                chunk.metadata.push(metadata.clone());
                if bytes >= chunk_bytes {
                    chunks.push(std::mem::replace(&mut chunk, empty()));
                    bytes = 0;
                }
            }
            if !chunk.exemplars.is_empty() || !chunk.metadata.is_empty() {
                chunks.push(chunk);
            }
        }
        chunks
    }

    /// The exemplars from `start` to `end`, both inclusive, of the tenant's series that satisfy all matchers.
    pub(crate) fn exemplars(
        &self,
        tenant: &TenantId,
        matchers: &[Matcher],
        (start, end): (TimestampMs, TimestampMs),
    ) -> Vec<SeriesExemplars> {
        let Some(notes) = self.tenants.get(tenant) else { return Vec::new() };
        let matching = notes.series.values().filter(|(labels, _)| satisfies(labels, matchers));
        let found = matching.map(|(labels, exemplars)| SeriesExemplars {
            labels: labels.clone(),
            exemplars: exemplars.iter().filter(|e| (start..=end).contains(&e.timestamp)).cloned().collect(),
        });
        found.filter(|found| !found.exemplars.is_empty()).collect()
    }

    /// What is known of the tenant's metrics, or of one of them, in the order of their names; of at most `limit`
    /// metrics, and whether there are more.
    pub(crate) fn metadata(
        &self,
        tenant: &TenantId,
        metric: Option<&str>,
        limit: usize,
    ) -> (Vec<MetricMetadata>, bool) {
        let Some(notes) = self.tenants.get(tenant) else { return (Vec::new(), false) };
        let Some(metric) = metric else {
            let some = notes.metadata.values().take(limit).flatten().cloned();
            return (some.collect(), notes.metadata.len() > limit);
        };
        (notes.metadata.get(metric).cloned().unwrap_or_default(), false)
    }

    /// Removes the exemplars from `start` to `end`, both inclusive, of the tenant's series that satisfy all
    /// matchers. Returns how many there were.
    pub(crate) fn delete_exemplars(&mut self, selection: &Selection) -> usize {
        let Selection { tenant, matchers, start, end } = selection;
        let mut deleted = 0;
        let Self { tenants, changed } = self;
        let Some(notes) = tenants.get_mut(tenant) else { return 0 };
        let TenantNotes { series, by_time, exemplars: count, .. } = notes;
        series.retain(|fingerprint, (labels, exemplars)| {
            if satisfies(labels, matchers) {
                let before = exemplars.len();
                exemplars.retain(|e| !(start..=end).contains(&&e.timestamp));
                if exemplars.len() < before {
                    deleted += before - exemplars.len();
                    by_time.retain(|(time, other)| other != fingerprint || !(start..=end).contains(&time));
                    changed.insert(NoteKey::Exemplars(tenant.clone(), *fingerprint));
                }
            }
            !exemplars.is_empty()
        });
        *count -= deleted;
        deleted
    }

    /// Whether a flush has something to write.
    pub(crate) fn is_changed(&self) -> bool {
        !self.changed.is_empty()
    }

    /// The rows that changed since this was called last.
    pub(crate) fn take_changed(&mut self, shard: ShardId) -> Vec<NoteRow> {
        let changed = std::mem::take(&mut self.changed);
        changed.into_iter().map(|note| self.row(shard, note)).collect()
    }

    /// The rows were not written after all.
    pub(crate) fn mark_changed(&mut self, rows: &[NoteRow]) {
        self.changed.extend(rows.iter().map(|row| row.note.clone()));
    }

    fn row(&self, shard: ShardId, note: NoteKey) -> NoteRow {
        let (kind, tenant, name): (u8, &TenantId, &[u8]) = match &note {
            NoteKey::Exemplars(tenant, series) => (EXEMPLARS_ROW, tenant, &series.0.to_be_bytes()),
            NoteKey::Metadata(tenant, metric) => (METADATA_ROW, tenant, metric.as_bytes()),
        };
        let [high, low] = shard.0.to_be_bytes();
        let mut key = vec![kind, high, low];
        key.extend_from_slice(tenant.as_str().as_bytes());
        key.push(0);
        key.extend_from_slice(name);
        let notes = self.tenants.get(tenant);
        let value = match &note {
            NoteKey::Exemplars(_, series) => notes.and_then(|notes| {
                let (labels, exemplars) = notes.series.get(series)?;
                let mut value = Vec::new();
                put_text(&mut value, labels.as_encoded());
                exemplars.iter().for_each(|exemplar| put_exemplar(&mut value, exemplar));
                Some(value)
            }),
            NoteKey::Metadata(_, metric) => notes.and_then(|notes| {
                let mut value = Vec::new();
                notes.metadata.get(metric)?.iter().for_each(|known| put_metadata(&mut value, known));
                Some(value)
            }),
        };
        NoteRow { note, key, value }
    }

    /// Takes a row at start. `None` if it is damaged.
    pub(crate) fn restore(&mut self, key: &RowKey<'_>, value: &[u8]) -> Option<()> {
        let notes = self.tenants.entry(key.tenant.clone()).or_default();
        let mut reader = Reader::new(value);
        match key.kind {
            EXEMPLARS_ROW => {
                let series = Fingerprint(u128::from_be_bytes(key.name.try_into().ok()?));
                let labels = Labels::from_encoded(reader.text()?).ok()?;
                let mut exemplars = BTreeSet::new();
                while !reader.is_empty() {
                    let exemplar = take_exemplar(&mut reader)?;
                    notes.by_time.insert((exemplar.timestamp, series));
                    exemplars.insert(exemplar);
                }
                notes.exemplars += exemplars.len();
                notes.series.insert(series, (labels, exemplars));
            }
            METADATA_ROW => {
                let metric = std::str::from_utf8(key.name).ok()?;
                let mut all = Vec::new();
                while !reader.is_empty() {
                    all.push(take_metadata(&mut reader, metric)?);
                }
                notes.metadata.insert(metric.to_owned(), all);
            }
            _ => return None,
        }
        Some(())
    }
}

impl TenantNotes {
    fn drop_oldest_of(&mut self, series: Fingerprint) {
        let (_, exemplars) = self.series.get_mut(&series).expect("a series with a time has exemplars");
        let gone = exemplars.pop_first().expect("a series that is there has exemplars").timestamp;
        self.exemplars -= 1;
        if exemplars.first().is_none_or(|next| next.timestamp != gone) {
            self.by_time.remove(&(gone, series));
        }
        if exemplars.is_empty() {
            self.series.remove(&series);
        }
    }
}

/// The key of a row, in parts.
#[derive(Debug)]
pub(crate) struct RowKey<'a> {
    kind: u8,
    pub(crate) shard: ShardId,
    tenant: TenantId,
    name: &'a [u8],
}

impl<'a> RowKey<'a> {
    /// `None` if it is damaged.
    pub(crate) fn read(key: &'a [u8]) -> Option<Self> {
        let mut reader = Reader::new(key);
        let kind = reader.u8()?;
        let shard = ShardId(reader.array().map(u16::from_be_bytes)?);
        let end = reader.rest().iter().position(|byte| *byte == 0)?;
        let tenant = TenantId::new(std::str::from_utf8(reader.take(end)?).ok()?).ok()?;
        Some(Self { kind, shard, tenant, name: &reader.rest()[1..] })
    }
}

/// What the keys of a shard's rows begin with.
pub(crate) fn prefixes(shard: ShardId) -> [Vec<u8>; 2] {
    let [high, low] = shard.0.to_be_bytes();
    [EXEMPLARS_ROW, METADATA_ROW].map(|kind| vec![kind, high, low])
}

fn satisfies(labels: &Labels, matchers: &[Matcher]) -> bool {
    matchers.iter().all(|matcher| matcher.matches(labels.get(matcher.name()).unwrap_or_default()))
}

pub(crate) fn put_text(out: &mut Vec<u8>, text: &str) {
    put_varint(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

pub(crate) fn put_exemplar(out: &mut Vec<u8>, exemplar: &Exemplar) {
    out.extend_from_slice(&exemplar.timestamp.0.to_le_bytes());
    out.extend_from_slice(&exemplar.value.to_bits().to_le_bytes());
    put_text(out, exemplar.labels.as_encoded());
}

pub(crate) fn take_exemplar(reader: &mut Reader<'_>) -> Option<Exemplar> {
    let (timestamp, value) = (TimestampMs(reader.i64()?), f64::from_bits(reader.u64()?));
    let labels = Labels::from_encoded(reader.text()?).ok()?;
    Some(Exemplar { timestamp, value, labels })
}

/// All but the metric's name.
pub(crate) fn put_metadata(out: &mut Vec<u8>, metadata: &MetricMetadata) {
    out.push(metadata.kind.number());
    put_text(out, &metadata.help);
    put_text(out, &metadata.unit);
}

pub(crate) fn take_metadata(reader: &mut Reader<'_>, metric: &str) -> Option<MetricMetadata> {
    let kind = MetricType::from_number(u64::from(reader.u8()?));
    let (help, unit) = (reader.text()?.to_owned(), reader.text()?.to_owned());
    Some(MetricMetadata { metric: metric.to_owned(), kind, help, unit })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proptest::sample::Index;

    const SHARD: ShardId = ShardId(7);
    const LIMITS: NoteLimits = NoteLimits { exemplars: 10, metrics: 3 };

    fn tenant() -> TenantId {
        TenantId::new("demo").expect("valid")
    }

    fn exemplar(time: i64, value: u8) -> Exemplar {
        let labels = Labels::from_pairs([("id", value.to_string().as_str())]).expect("valid");
        Exemplar { timestamp: TimestampMs(time), value: f64::from(value), labels }
    }

    fn series(number: u8) -> (Fingerprint, Labels) {
        let labels = Labels::from_pairs([("n", number.to_string().as_str())]).expect("valid");
        (Fingerprint::of(&tenant(), labels.as_encoded()), labels)
    }

    fn add(notes: &mut Notes, number: u8, exemplar: Exemplar) -> u64 {
        let (fingerprint, labels) = series(number);
        let mut dropped = Dropped::default();
        notes.add_exemplar(&tenant(), (fingerprint, &labels), exemplar, LIMITS, &mut dropped);
        dropped.exemplars
    }

    fn all(notes: &Notes) -> Vec<SeriesExemplars> {
        let everything = (TimestampMs(i64::MIN), TimestampMs(i64::MAX));
        let mut found = notes.exemplars(&tenant(), &[], everything);
        found.sort_by(|a, b| a.labels.cmp(&b.labels));
        found
    }

    fn metadata(metric: &str, help: &str) -> MetricMetadata {
        let (metric, help, unit) = (metric.to_owned(), help.to_owned(), String::new());
        MetricMetadata { metric, kind: MetricType::Counter, help, unit }
    }

    fn reopened(rows: &[NoteRow]) -> Notes {
        let mut notes = Notes::default();
        for NoteRow { key, value, .. } in rows {
            let key = RowKey::read(key).expect("own key");
            assert_eq!(key.shard, SHARD);
            notes.restore(&key, value.as_ref().expect("a row that is there")).expect("own row");
        }
        notes
    }

    proptest! {
        /// The newest are kept, whatever the order and however often they come, and rows hold them all.
        #[test]
        fn order_and_repetition_make_no_difference(
            input in proptest::collection::vec((0_u8..4, 0_i64..12, 0_u8..3), 0..40),
            shuffled in proptest::collection::vec(any::<Index>(), 0..40),
        ) {
            let (mut notes, mut again) = (Notes::default(), Notes::default());
            for (number, time, value) in &input {
                add(&mut notes, *number, exemplar(*time, *value));
            }
            for index in shuffled.iter().filter(|_| !input.is_empty()) {
                let (number, time, value) = input[index.index(input.len())];
                add(&mut again, number, exemplar(time, value));
            }
            for (number, time, value) in input.iter().rev() {
                add(&mut again, *number, exemplar(*time, *value));
            }
            let kept: usize = all(&notes).iter().map(|series| series.exemplars.len()).sum();
            let different: BTreeSet<_> = input.iter().collect();
            prop_assert_eq!(kept, different.len().min(LIMITS.exemplars));
            prop_assert_eq!(all(&notes), all(&again));
            let times = all(&notes).into_iter().flat_map(|s| s.exemplars).map(|e| e.timestamp.0);
            let mut times: Vec<i64> = times.collect();
            times.sort_unstable();
            let mut newest: Vec<i64> = different.iter().map(|(_, time, _)| *time).collect();
            newest.sort_unstable();
            prop_assert_eq!(times, newest.split_off(newest.len() - kept));

            let rows: Vec<NoteRow> =
                notes.take_changed(SHARD).into_iter().filter(|row| row.value.is_some()).collect();
            prop_assert!(!notes.is_changed());
            prop_assert_eq!(all(&reopened(&rows)), all(&notes));
        }

        #[test]
        fn damaged_rows_are_refused_or_read(
            kind in prop_oneof![Just(b'e'), Just(b'm'), any::<u8>()],
            name in proptest::collection::vec(any::<u8>(), 0..20),
            value in proptest::collection::vec(any::<u8>(), 0..60),
        ) {
            let key = [&[kind, 0, 7], b"demo\0".as_slice(), &name].concat();
            if let Some(key) = RowKey::read(&key) {
                let _ = Notes::default().restore(&key, &value);
            }
            let _ = RowKey::read(&name);
        }
    }

    #[test]
    fn a_busy_series_drops_its_own_oldest() {
        let limits = NoteLimits { exemplars: usize::MAX, metrics: 1 };
        let (mut notes, mut dropped) = (Notes::default(), Dropped::default());
        let (fingerprint, labels) = series(1);
        for time in 0..600 {
            let exemplar = exemplar(time, 1);
            notes.add_exemplar(&tenant(), (fingerprint, &labels), exemplar, limits, &mut dropped);
        }
        let kept = &all(&notes)[0].exemplars;
        assert_eq!((kept.len(), dropped.exemplars), (512, 88));
        assert_eq!(kept[0].timestamp, TimestampMs(88));
    }

    #[test]
    fn deleted_exemplars_are_gone_with_their_rows() {
        let mut notes = Notes::default();
        for (number, time) in [(1, 1), (1, 5), (2, 5), (3, 2)] {
            add(&mut notes, number, exemplar(time, 0));
        }
        notes.take_changed(SHARD);
        let not_3 = Matcher::new("n", saturn_model::MatchOp::NotEqual, "3").expect("valid");
        let selection =
            Selection { tenant: tenant(), matchers: vec![not_3], start: TimestampMs(2), end: TimestampMs(9) };
        notes.delete_exemplars(&selection);
        let left = |notes: &Notes| -> Vec<(String, i64)> {
            let left = all(notes);
            left.iter()
                .flat_map(|s| s.exemplars.iter().map(|e| (s.labels.to_string(), e.timestamp.0)))
                .collect()
        };
        assert_eq!(left(&notes), [("{n=\"1\"}".into(), 1), ("{n=\"3\"}".into(), 2)]);
        let rows = notes.take_changed(SHARD);
        assert_eq!(rows.iter().filter(|row| row.value.is_none()).count(), 1);
        assert_eq!(rows.len(), 2);
        notes.mark_changed(&rows);
        assert!(notes.is_changed());
        // The books are right: ten more fit, less the two that are there.
        let dropped: u64 = (10..20).map(|time| add(&mut notes, 4, exemplar(time, 0))).sum();
        assert_eq!(dropped, 2);
    }

    #[test]
    fn metadata_is_bounded_by_metrics_and_the_newest_comes_first() {
        let (mut notes, mut dropped) = (Notes::default(), Dropped::default());
        for (metric, help) in [("a", "1"), ("b", "1"), ("a", "2"), ("c", "1"), ("d", "1"), ("a", "1")] {
            notes.add_metadata(&tenant(), metadata(metric, help), LIMITS, &mut dropped);
        }
        assert_eq!(dropped.metadata, 1);
        let helps = |notes: &Notes, metric| -> Vec<String> {
            notes.metadata(&tenant(), Some(metric), 9).0.into_iter().map(|known| known.help).collect()
        };
        assert_eq!(helps(&notes, "a"), ["1", "2"]);
        for help in 0..20 {
            notes.add_metadata(&tenant(), metadata("a", &help.to_string()), LIMITS, &mut dropped);
        }
        assert_eq!(helps(&notes, "a")[..2], ["19", "18"]);
        assert_eq!(helps(&notes, "a").len(), METADATA_PER_METRIC_MAX);
        let (some, more) = notes.metadata(&tenant(), None, 2);
        assert_eq!((some.len(), more), (METADATA_PER_METRIC_MAX + 1, true));
        assert!(notes.has_metadata(&tenant(), &metadata("b", "1")));
        let rows = notes.take_changed(SHARD);
        let reopened = reopened(&rows);
        assert_eq!(reopened.metadata(&tenant(), None, 9), notes.metadata(&tenant(), None, 9));
    }
}

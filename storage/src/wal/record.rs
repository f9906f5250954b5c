//! The records of the log. A record carries everything needed to apply it, given the records before.
//!
//! Mark, payload of 17 bytes:
//!
//! | field | bytes | content |
//! |---|---|---|
//! | kind | 1 | 1 |
//! | salt | 8 | of the segment's header |
//! | offset | 8 | of this record in the file: every byte before it is durable |
//!
//! Append: the stored part of one batch.
//!
//! | field | bytes | content |
//! |---|---|---|
//! | kind | 1 | 2 |
//! | shard | 2 | |
//! | tenant | varint + n | length and name |
//! | first new ordinal | varint | of the new series, which are numbered upwards from it |
//! | new series | varint | how many |
//! | per new series | 16, varint + n | fingerprint; length and encoded labels |
//! | series | varint | how many have samples here |
//! | per series | zigzag varint, varint | ordinal as difference to the one before (the first to 0); samples |
//! | times | zigzag varints | of all samples, series after series, as difference to the one before (the first to 0) |
//! | values | 8 each | bits, little-endian |
//! | histogram series | varint | how many have native histograms here; this and what follows is left out if none has |
//! | per series | zigzag varint, varint | as above |
//! | times | zigzag varints | as above |
//! | histograms | | their bytes (`Histogram::append_bytes`), one after the other |
//! | exemplar series | varint | how many have exemplars here; this and what follows is left out without exemplars and metadata |
//! | per series | 16, varint + n, varint | fingerprint; length and encoded labels; number of exemplars |
//! | per exemplar | 8, 8, varint + n | time; value; length and encoded labels |
//! | metadata | varint | how many |
//! | per metadata | varint + n, 1, varint + n, varint + n | metric; type; help; unit |
//!
//! Exemplars come with their series' labels, as the series may have left memory when they are replayed.
//!
//! Packed: the appends of one group, where that saves bytes.
//!
//! | field | bytes | content |
//! |---|---|---|
//! | kind | 1 | 3 |
//! | size | 4 | of what follows, unpacked, at most 2^28 |
//! | appends | rest | an LZ4 block: for each append the length of its payload as varint, and its payload |

use std::ops::Range;
use std::sync::Arc;

use saturn_model::{
    BatchHistograms, Exemplar, Fingerprint, Histogram, Labels, MetricMetadata, ShardId, TenantId,
};

use crate::notes::{put_exemplar, put_metadata, put_text, take_exemplar, take_metadata};
use crate::wire::{Reader, put_varint, put_zigzag};

const KIND_MARK: u8 = 1;
const KIND_APPEND: u8 = 2;
const KIND_PACKED: u8 = 3;
/// Less is not worth the trouble.
const PACKED_BYTES_MIN: usize = 512;
/// Length and checksum.
pub(super) const FRAME_BYTES: usize = 8;
pub(super) const MARK_BYTES: usize = FRAME_BYTES + 17;
/// Largest payload. A batch is far smaller: the front door bounds requests at 32 MiB.
pub(super) const PAYLOAD_BYTES_MAX: usize = 256 << 20;

/// What of a batch is to be stored: series that have their ordinals, and columns borrowed from the batch.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    pub(crate) shard: ShardId,
    pub(crate) tenant: &'a TenantId,
    /// Ordinal of the first new series; the others follow.
    pub(crate) first_new: u32,
    pub(crate) new_series: Vec<(Fingerprint, &'a Labels)>,
    /// Ordinal of each series, and where its samples are in the columns.
    pub(crate) series: Vec<(u32, Range<usize>)>,
    pub(crate) timestamps: &'a [i64],
    pub(crate) values: &'a [f64],
    /// Ordinal of each series that has native histograms, and where they are in their columns.
    pub(crate) histograms: Vec<(u32, Range<usize>)>,
    pub(crate) histogram_columns: &'a BatchHistograms,
    /// New exemplars, those of one series next to each other.
    pub(crate) exemplars: Vec<(Fingerprint, Labels, &'a Exemplar)>,
    /// New metadata.
    pub(crate) metadata: Vec<&'a MetricMetadata>,
}

/// An append as the log holds it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct AppendRecord {
    pub(crate) shard: ShardId,
    pub(crate) tenant: TenantId,
    pub(crate) first_new: u32,
    pub(crate) new_series: Vec<(Fingerprint, Labels)>,
    /// Ordinal and number of samples.
    pub(crate) series: Vec<(u32, usize)>,
    pub(crate) timestamps: Vec<i64>,
    pub(crate) values: Vec<f64>,
    /// Ordinal and number of native histograms.
    pub(crate) histogram_series: Vec<(u32, usize)>,
    pub(crate) histogram_timestamps: Vec<i64>,
    pub(crate) histograms: Vec<Arc<Histogram>>,
    /// `None`: neither exemplars nor metadata.
    pub(crate) notes: Option<Box<LoggedNotes>>,
}

/// Exemplars and metadata as the log holds them.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct LoggedNotes {
    /// By series: fingerprint, labels, exemplars.
    pub(crate) exemplars: Vec<(Fingerprint, Labels, Vec<Exemplar>)>,
    pub(crate) metadata: Vec<MetricMetadata>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Record {
    Mark {
        salt: u64,
        offset: u64,
    },
    Append(AppendRecord),
    /// Each with its length, unpacked and framed.
    Packed(Vec<(AppendRecord, usize)>),
}

fn start_frame(bytes: usize) -> Vec<u8> {
    let mut frame = Vec::with_capacity(FRAME_BYTES + bytes);
    frame.extend_from_slice(&[0; FRAME_BYTES]);
    frame
}

/// Fills in length and checksum. `None` if the payload is too large.
fn finish_frame(mut frame: Vec<u8>) -> Option<Vec<u8>> {
    let len = frame.len() - FRAME_BYTES;
    if len > PAYLOAD_BYTES_MAX {
        return None;
    }
    let len = u32::try_from(len).ok()?;
    let checksum = crc32c::crc32c(&frame[FRAME_BYTES..]);
    frame[..4].copy_from_slice(&len.to_le_bytes());
    frame[4..FRAME_BYTES].copy_from_slice(&checksum.to_le_bytes());
    Some(frame)
}

pub(super) fn encode_mark(salt: u64, offset: u64) -> Vec<u8> {
    let mut frame = start_frame(MARK_BYTES);
    frame.push(KIND_MARK);
    frame.extend_from_slice(&salt.to_le_bytes());
    frame.extend_from_slice(&offset.to_le_bytes());
    finish_frame(frame).expect("a mark is small")
}

/// Appends framed records to `out`, packed if that saves bytes. `scratch` is reused between calls.
pub(super) fn put_group(records: &[Vec<u8>], scratch: &mut Vec<u8>, out: &mut Vec<u8>) {
    let framed: usize = records.iter().map(Vec::len).sum();
    if !(PACKED_BYTES_MIN..=PAYLOAD_BYTES_MAX).contains(&framed) {
        records.iter().for_each(|record| out.extend_from_slice(record));
        return;
    }
    scratch.clear();
    for record in records {
        let payload = &record[FRAME_BYTES..];
        put_varint(scratch, payload.len() as u64);
        scratch.extend_from_slice(payload);
    }
    let mut frame = start_frame(5 + lz4_flex::block::get_maximum_output_size(scratch.len()));
    frame.push(KIND_PACKED);
    let size = u32::try_from(scratch.len()).expect("the records with larger frames fit");
    frame.extend_from_slice(&size.to_le_bytes());
    let at = frame.len();
    frame.resize(frame.capacity(), 0);
    let packed =
        lz4_flex::block::compress_into(scratch, &mut frame[at..]).expect("there is room for any input");
    frame.truncate(at + packed);
    match finish_frame(frame) {
        Some(frame) if frame.len() < framed => out.extend_from_slice(&frame),
        _ => records.iter().for_each(|record| out.extend_from_slice(record)),
    }
}

impl Plan<'_> {
    /// Whether the log has nothing to remember of it.
    pub(crate) fn is_empty(&self) -> bool {
        let no_notes = self.exemplars.is_empty() && self.metadata.is_empty();
        self.new_series.is_empty() && self.series.is_empty() && self.histograms.is_empty() && no_notes
    }

    /// The framed record. `None` if it is larger than a record may be.
    pub(crate) fn encode(&self) -> Option<Vec<u8>> {
        let samples: usize = self.series.iter().map(|(_, range)| range.len()).sum();
        let labels: usize = self.new_series.iter().map(|(_, labels)| labels.as_encoded().len() + 24).sum();
        let mut frame = start_frame(96 + samples * 10 + labels + self.series.len() * 4);
        frame.push(KIND_APPEND);
        frame.extend_from_slice(&self.shard.0.to_le_bytes());
        put_text(&mut frame, self.tenant.as_str());
        put_varint(&mut frame, u64::from(self.first_new));
        put_varint(&mut frame, self.new_series.len() as u64);
        for (fingerprint, labels) in &self.new_series {
            frame.extend_from_slice(&fingerprint.to_bytes());
            put_text(&mut frame, labels.as_encoded());
        }
        put_series(&mut frame, &self.series, self.timestamps);
        for (_, range) in &self.series {
            for value in &self.values[range.clone()] {
                frame.extend_from_slice(&value.to_bits().to_le_bytes());
            }
        }
        let has_notes = !self.exemplars.is_empty() || !self.metadata.is_empty();
        if !self.histograms.is_empty() || has_notes {
            put_series(&mut frame, &self.histograms, &self.histogram_columns.timestamps);
            for (_, range) in &self.histograms {
                let histograms = &self.histogram_columns.values[range.clone()];
                histograms.iter().for_each(|histogram| histogram.append_bytes(&mut frame));
            }
        }
        if has_notes {
            self.put_notes(&mut frame);
        }
        finish_frame(frame)
    }

    fn put_notes(&self, frame: &mut Vec<u8>) {
        let by_series = || self.exemplars.chunk_by(|a, b| a.0 == b.0);
        put_varint(frame, by_series().count() as u64);
        for exemplars in by_series() {
            let (fingerprint, labels, _) = &exemplars[0];
            frame.extend_from_slice(&fingerprint.to_bytes());
            put_text(frame, labels.as_encoded());
            put_varint(frame, exemplars.len() as u64);
            exemplars.iter().for_each(|(_, _, exemplar)| put_exemplar(frame, exemplar));
        }
        put_varint(frame, self.metadata.len() as u64);
        for metadata in &self.metadata {
            put_text(frame, &metadata.metric);
            put_metadata(frame, metadata);
        }
    }
}

/// Appends which series have how many samples, and all their times.
fn put_series(out: &mut Vec<u8>, series: &[(u32, Range<usize>)], timestamps: &[i64]) {
    put_varint(out, series.len() as u64);
    let mut last = 0;
    for (ordinal, range) in series {
        let ordinal = i64::from(*ordinal);
        put_zigzag(out, ordinal - last);
        put_varint(out, range.len() as u64);
        last = ordinal;
    }
    let mut last = 0_i64;
    for (_, range) in series {
        for timestamp in &timestamps[range.clone()] {
            put_zigzag(out, timestamp.wrapping_sub(last));
            last = *timestamp;
        }
    }
}

/// Takes the record at the start of `bytes`: it and its length with the frame. `None` if it does not check.
pub(super) fn decode(bytes: &[u8]) -> Option<(Record, usize)> {
    let payload = checked_payload(bytes)?;
    let mut reader = Reader::new(payload);
    let record = match reader.u8()? {
        KIND_MARK => Record::Mark { salt: reader.u64()?, offset: reader.u64()? },
        KIND_APPEND => Record::Append(decode_append(&mut reader)?),
        KIND_PACKED => Record::Packed(decode_packed(&mut reader)?),
        _ => return None,
    };
    reader.is_empty().then_some((record, FRAME_BYTES + payload.len()))
}

fn checked_payload(bytes: &[u8]) -> Option<&[u8]> {
    let mut reader = Reader::new(bytes);
    let len = usize::try_from(reader.u32()?).ok()?;
    let checksum = reader.u32()?;
    // A payload of length 0 would let a file of zero bytes check.
    if len == 0 || len > PAYLOAD_BYTES_MAX {
        return None;
    }
    let payload = reader.take(len)?;
    (crc32c::crc32c(payload) == checksum).then_some(payload)
}

fn decode_packed(reader: &mut Reader<'_>) -> Option<Vec<(AppendRecord, usize)>> {
    let size = usize::try_from(reader.u32()?).ok().filter(|size| *size <= PAYLOAD_BYTES_MAX)?;
    let packed = reader.rest();
    // LZ4 packs at most 255 bytes into one, so a damaged size does not take memory for nothing.
    if size / 256 > packed.len() {
        return None;
    }
    let unpacked =
        lz4_flex::block::decompress(packed, size).ok().filter(|unpacked| unpacked.len() == size)?;
    *reader = Reader::new(&[]);
    let mut inner = Reader::new(&unpacked);
    let mut records = Vec::new();
    while !inner.is_empty() {
        let len = inner.count()?;
        let mut payload = Reader::new(inner.take(len)?);
        if payload.u8()? != KIND_APPEND {
            return None;
        }
        records.push((decode_append(&mut payload)?, FRAME_BYTES + len));
        if !payload.is_empty() {
            return None;
        }
    }
    Some(records)
}

fn decode_append(reader: &mut Reader<'_>) -> Option<AppendRecord> {
    let shard = ShardId(reader.u16()?);
    let tenant = TenantId::new(reader.text()?).ok()?;
    let first_new = u32::try_from(reader.varint()?).ok()?;
    let mut new_series = Vec::with_capacity(reader.clone().count()?);
    for _ in 0..reader.count()? {
        let fingerprint = Fingerprint::from_bytes(reader.array()?);
        new_series.push((fingerprint, Labels::from_encoded(reader.text()?).ok()?));
    }
    let (series, timestamps) = read_series(reader)?;
    let mut values = Vec::with_capacity(timestamps.len());
    for _ in 0..timestamps.len() {
        values.push(f64::from_bits(reader.u64()?));
    }
    let (mut histogram_series, mut histogram_timestamps, mut histograms) =
        (Vec::new(), Vec::new(), Vec::new());
    if !reader.is_empty() {
        (histogram_series, histogram_timestamps) = read_series(reader)?;
        let mut rest = reader.rest();
        for _ in 0..histogram_timestamps.len() {
            histograms.push(Arc::new(Histogram::take_bytes(&mut rest)?));
        }
        *reader = Reader::new(rest);
    }
    let notes = if reader.is_empty() { None } else { Some(Box::new(read_notes(reader)?)) };
    Some(AppendRecord {
        shard,
        tenant,
        first_new,
        new_series,
        series,
        timestamps,
        values,
        histogram_series,
        histogram_timestamps,
        histograms,
        notes,
    })
}

fn read_notes(reader: &mut Reader<'_>) -> Option<LoggedNotes> {
    let mut exemplars = Vec::new();
    for _ in 0..reader.count()? {
        let fingerprint = Fingerprint::from_bytes(reader.array()?);
        let labels = Labels::from_encoded(reader.text()?).ok()?;
        let own: Option<Vec<_>> = (0..reader.count()?).map(|_| take_exemplar(reader)).collect();
        exemplars.push((fingerprint, labels, own?));
    }
    let mut metadata = Vec::new();
    for _ in 0..reader.count()? {
        let metric = reader.text()?;
        metadata.push(take_metadata(reader, metric)?);
    }
    Some(LoggedNotes { exemplars, metadata })
}

/// Series and how many samples each has; all their times.
#[expect(clippy::type_complexity, reason = "two columns")]
fn read_series(reader: &mut Reader<'_>) -> Option<(Vec<(u32, usize)>, Vec<i64>)> {
    let mut series = Vec::with_capacity(reader.clone().count()?);
    let mut last = 0_i64;
    let mut samples = 0_usize;
    for _ in 0..reader.count()? {
        last = last.checked_add(reader.zigzag()?)?;
        let count = usize::try_from(reader.varint()?).ok()?;
        samples = samples.checked_add(count)?;
        series.push((u32::try_from(last).ok()?, count));
    }
    if samples > reader.rest().len() {
        return None;
    }
    let mut timestamps = Vec::with_capacity(samples);
    let mut last = 0_i64;
    for _ in 0..samples {
        last = last.wrapping_add(reader.zigzag()?);
        timestamps.push(last);
    }
    Some((series, timestamps))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bits(values: &[f64]) -> Vec<u64> {
        values.iter().map(|v| v.to_bits()).collect()
    }

    proptest! {
        #[test]
        fn appends_survive(
            shard in any::<u16>(), first_new in any::<u32>(),
            names in proptest::collection::vec("\\PC{1,150}", 0..5),
            series in proptest::collection::vec(
                (any::<u32>(), proptest::collection::vec((any::<i64>(), any::<u64>()), 0..9)), 0..6,
            ),
            with_histograms in proptest::collection::vec((any::<u32>(), any::<i64>(), any::<u32>()), 0..4),
            with_exemplars in proptest::collection::vec((0_u128..3, any::<i64>(), "[a-z]{1,5}"), 0..5),
            helps in proptest::collection::vec("\\PC{0,150}", 0..3),
        ) {
            let tenant = TenantId::new("demo").expect("valid");
            let labels: Vec<Labels> =
                names.iter().map(|n| Labels::from_pairs([("l", n.as_str())]).expect("valid")).collect();
            let timestamps: Vec<i64> = series.iter().flat_map(|(_, s)| s.iter().map(|(t, _)| *t)).collect();
            let values: Vec<f64> =
                series.iter().flat_map(|(_, s)| s.iter().map(|(_, v)| f64::from_bits(*v))).collect();
            let mut columns = BatchHistograms::default();
            for (index, (_, time, count)) in (0..).zip(&with_histograms) {
                let histogram = Histogram { count: f64::from(*count), sum: f64::NAN, ..Histogram::default() };
                columns.push(index, saturn_model::TimestampMs(*time), Arc::new(histogram));
            }
            let exemplars: Vec<(Fingerprint, Exemplar)> = with_exemplars.iter().map(|(series, time, id)| {
                let labels = Labels::from_pairs([("id", id.as_str())]).expect("valid");
                let timestamp = saturn_model::TimestampMs(*time);
                (Fingerprint(*series), Exemplar { timestamp, value: -0.0, labels })
            }).collect();
            let metadata: Vec<MetricMetadata> = helps.iter().map(|help| MetricMetadata {
                metric: "up".into(), kind: saturn_model::MetricType::Gauge, help: help.clone(), unit: "s".into(),
            }).collect();
            let mut at = 0;
            let plan = Plan {
                shard: ShardId(shard), tenant: &tenant, first_new,
                new_series: labels.iter().map(|l| (Fingerprint::of(&tenant, l.as_encoded()), l)).collect(),
                series: series.iter().map(|(ordinal, samples)| {
                    at += samples.len();
                    (*ordinal, at - samples.len()..at)
                }).collect(),
                timestamps: &timestamps, values: &values,
                histograms: with_histograms.iter().zip(0..).map(|((ordinal, ..), at)| (*ordinal, at..at + 1)).collect(),
                histogram_columns: &columns,
                exemplars: exemplars.iter().map(|(series, e)| (*series, Labels::empty(), e)).collect(),
                metadata: metadata.iter().collect(),
            };
            let frame = plan.encode().expect("small");
            let (record, len) = decode(&frame).expect("own record");
            prop_assert_eq!(len, frame.len());
            let Record::Append(record) = record else { panic!("not an append") };
            prop_assert_eq!(record.shard, plan.shard);
            prop_assert_eq!(record.first_new, first_new);
            prop_assert_eq!(record.new_series.len(), labels.len());
            prop_assert!(record.new_series.iter().zip(&plan.new_series).all(|(a, b)| a.0 == b.0 && a.1 == *b.1));
            let counts: Vec<(u32, usize)> = series.iter().map(|(o, s)| (*o, s.len())).collect();
            prop_assert_eq!(record.series, counts);
            prop_assert_eq!(record.timestamps, timestamps);
            prop_assert_eq!(bits(&record.values), bits(&values));
            let counts: Vec<(u32, usize)> = with_histograms.iter().map(|(ordinal, ..)| (*ordinal, 1)).collect();
            prop_assert_eq!(record.histogram_series, counts);
            prop_assert_eq!(record.histogram_timestamps, columns.timestamps);
            prop_assert!(record.histograms.iter().zip(&columns.values).all(|(a, b)| a.total_cmp(b).is_eq()));
            prop_assert_eq!(record.notes.is_some(), !exemplars.is_empty() || !metadata.is_empty());
            let notes = record.notes.unwrap_or_default();
            let back: Vec<(Fingerprint, Exemplar)> = notes.exemplars.into_iter()
                .flat_map(|(series, _, own)| own.into_iter().map(move |e| (series, e))).collect();
            prop_assert_eq!(back, exemplars);
            prop_assert_eq!(notes.metadata, metadata);
        }

        #[test]
        fn payloads_with_a_right_checksum_never_panic(
            mut payload in proptest::collection::vec(any::<u8>(), 1..80), kind in 0_u8..5,
        ) {
            payload[0] = kind;
            let mut frame = start_frame(payload.len());
            frame.extend_from_slice(&payload);
            let _ = decode(&finish_frame(frame).expect("small"));
        }
    }

    #[test]
    fn the_format_is_pinned() {
        // Logs written by earlier versions must stay readable: these bytes must never change.
        let tenant = TenantId::new("demo").expect("valid");
        let labels = Labels::from_pairs([("a", "b")]).expect("valid");
        let plan = Plan {
            shard: ShardId(258),
            tenant: &tenant,
            first_new: 1,
            new_series: vec![(Fingerprint(0x0102), &labels)],
            series: vec![(0, 0..1), (1, 1..3)],
            timestamps: &[1000, 1000, 2000],
            values: &[1.0, -0.0, f64::NAN],
            histograms: Vec::new(),
            histogram_columns: &BatchHistograms::default(),
            exemplars: Vec::new(),
            metadata: Vec::new(),
        };
        let mut want = vec![65, 0, 0, 0];
        want.extend_from_slice(&0xc20c_b885_u32.to_le_bytes());
        want.extend_from_slice(&[2, 2, 1, 4, b'd', b'e', b'm', b'o', 1, 1]);
        want.extend_from_slice(&[2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        want.extend_from_slice(&[4, 1, b'a', 1, b'b']);
        want.extend_from_slice(&[2, 0, 1, 2, 2]);
        want.extend_from_slice(&[208, 15, 0, 208, 15]);
        want.extend_from_slice(&1.0_f64.to_le_bytes());
        want.extend_from_slice(&(-0.0_f64).to_le_bytes());
        want.extend_from_slice(&f64::NAN.to_le_bytes());
        assert_eq!(plan.encode().expect("small"), want);

        let mut columns = BatchHistograms::default();
        columns.push(0, saturn_model::TimestampMs(1000), Arc::new(Histogram::default()));
        let plan = Plan { histograms: vec![(1, 0..1)], histogram_columns: &columns, ..plan };
        let with_histogram = plan.encode().expect("small");
        want.extend_from_slice(&[1, 2, 1, 208, 15]);
        Histogram::default().append_bytes(&mut want);
        assert_eq!(with_histogram[FRAME_BYTES..], want[FRAME_BYTES..]);
        let exemplar =
            Exemplar { timestamp: saturn_model::TimestampMs(3), value: 2.0, labels: labels.clone() };
        let metadata = MetricMetadata {
            metric: "up".into(),
            kind: saturn_model::MetricType::Gauge,
            help: "h".into(),
            unit: String::new(),
        };
        let exemplars = vec![(Fingerprint(0x0102), labels.clone(), &exemplar)];
        let plan = Plan { exemplars, metadata: vec![&metadata], ..plan };
        want.extend_from_slice(&[1, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        want.extend_from_slice(&[4, 1, b'a', 1, b'b', 1, 3, 0, 0, 0, 0, 0, 0, 0]);
        want.extend_from_slice(&2.0_f64.to_le_bytes());
        want.extend_from_slice(&[4, 1, b'a', 1, b'b', 1, 2, b'u', b'p', 2, 1, b'h', 0]);
        assert_eq!(plan.encode().expect("small")[FRAME_BYTES..], want[FRAME_BYTES..]);
        assert_eq!(encode_mark(1, 32)[FRAME_BYTES..], [1, 1, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn a_group_is_packed_where_that_saves_bytes() {
        let tenant = TenantId::new("demo").expect("valid");
        let (timestamps, values): (Vec<i64>, Vec<f64>) =
            (0..200_u32).map(|i| (1000, f64::from(i % 7))).unzip();
        let record = |first: u32, values: &[f64]| {
            let plan = Plan {
                shard: ShardId(1),
                tenant: &tenant,
                first_new: 0,
                new_series: Vec::new(),
                series: (0..200).map(|at| (first + u32::try_from(at).expect("small"), at..at + 1)).collect(),
                timestamps: &timestamps,
                values,
                histograms: Vec::new(),
                histogram_columns: &BatchHistograms::default(),
                exemplars: Vec::new(),
                metadata: Vec::new(),
            };
            plan.encode().expect("small")
        };
        let records = [record(0, &values), record(1000, &values)];
        let framed: usize = records.iter().map(Vec::len).sum();
        let (mut scratch, mut out) = (Vec::new(), Vec::new());
        put_group(&records, &mut scratch, &mut out);
        assert!(out.len() * 4 < framed, "{} of {framed} bytes", out.len());
        let (Record::Packed(appends), len) = decode(&out).expect("own record") else { panic!("not packed") };
        assert_eq!(len, out.len());
        for ((append, len), record) in appends.iter().zip(&records) {
            assert_eq!((Record::Append(append.clone()), *len), decode(record).expect("own record"));
        }
        assert_eq!(appends.len(), 2);
        // What is within decides, too: a wrong kind, a length that is too large, something left over.
        let unpacked = scratch.clone();
        for (at, with) in [(2, KIND_MARK), (0, 0xff), (0, 1)] {
            let mut damaged = unpacked.clone();
            damaged[at] = with;
            let mut frame = start_frame(0);
            frame.push(KIND_PACKED);
            frame.extend_from_slice(&u32::try_from(damaged.len()).expect("small").to_le_bytes());
            frame.extend_from_slice(&lz4_flex::block::compress(&damaged));
            assert_eq!(decode(&finish_frame(frame).expect("small")), None, "byte {at}");
        }
        // Noise stays as it is, and so does what is small.
        let noise = (0..700_u64)
            .map(|i| (i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_pow(3).to_le_bytes()[6]);
        let noise: Vec<u8> = noise.collect();
        for record in [noise.clone(), noise[..100].to_vec(), vec![0; 100]] {
            out.clear();
            put_group(std::slice::from_ref(&record), &mut scratch, &mut out);
            assert_eq!(out, record);
        }
    }

    #[test]
    fn packed_bytes_are_pinned() {
        // Logs written by earlier versions must stay readable: this must never be refused.
        let mut frame = start_frame(0);
        frame.extend_from_slice(&[KIND_PACKED, 21, 0, 0, 0]);
        // An LZ4 block of 21 literal bytes: an append of one sample.
        frame.extend_from_slice(&[0xf0, 6, 20, 2, 2, 1, 1, b'd', 0, 0, 1, 0, 1, 208, 15]);
        frame.extend_from_slice(&1.0_f64.to_le_bytes());
        let (record, _) = decode(&finish_frame(frame).expect("small")).expect("readable");
        let Record::Packed(appends) = record else { panic!("not packed") };
        assert_eq!((appends.len(), appends[0].1), (1, 28));
        assert_eq!((&appends[0].0.timestamps[..], &appends[0].0.values[..]), (&[1000][..], &[1.0][..]));
    }

    #[test]
    fn zeros_are_no_record() {
        assert_eq!(decode(&[0; 64]), None);
    }
}

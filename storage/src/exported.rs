//! What one replica gives another, as bytes. `docs/data-format.md` shows the same tables.
//!
//! | field | bytes | content |
//! |---|---|---|
//! | kind | 1 | `s`: samples, an [`ExportChunk`]; `n`: exemplars and metadata, [`ExportedNotes`] |
//! | size | 4 | of the payload, unpacked, at most 2^22 |
//! | payload | n | an LZ4 block |
//! | checksum | 4 | CRC-32C of all before |
//!
//! Payload of `s`:
//!
//! | field | bytes | content |
//! |---|---|---|
//! | shard | 2 | |
//! | window | zigzag varint | first millisecond of the window |
//! | cursor | 32 | where the next chunk begins: window (4), series (20), time (8), big-endian |
//! | per series | varint + n, varint + n | length and name of the tenant, 0: as the series before; length and encoded labels |
//! | floats | varint, zigzag varints, 8 each | how many; times, each as difference to the one before, the first to the window; bits |
//! | histograms | varint, zigzag varints, n | the same, with the histograms' bytes one after the other |
//!
//! Payload of `n`:
//!
//! | field | bytes | content |
//! |---|---|---|
//! | shard | 2 | |
//! | tenant | varint + n | length and name |
//! | series | varint | how many have exemplars here |
//! | per series | varint + n, varint | length and encoded labels; number of exemplars |
//! | per exemplar | 8, 8, varint + n | time; bits of the value; length and encoded labels |
//! | per metadata | varint + n, 1, varint + n, varint + n | metric; type; help; unit |

use std::sync::Arc;

use saturn_model::{
    Histogram, HistogramColumns, Labels, MetricMetadata, SeriesColumns, SeriesExemplars, ShardId, TenantId,
    TimestampMs,
};

use crate::error::StorageError;
use crate::notes::{put_exemplar, put_metadata, put_text, take_exemplar, take_metadata};
use crate::snapshot::{ExportChunk, ExportCursor, ExportedSeries};
use crate::wire::{Reader, put_varint, put_zigzag};

/// Most bytes of a chunk as bytes, if not more than [`EXPORT_CHUNK_BYTES_MAX`] were asked for.
pub const EXPORT_BYTES_MAX: usize = 1 << 20;
/// Most bytes to ask an export for where its chunks become bytes: the largest histogram and the longest usual label
/// set have room beside it.
pub const EXPORT_CHUNK_BYTES_MAX: usize = 512 << 10;
/// Largest payload, unpacked.
const PAYLOAD_BYTES_MAX: usize = 4 << 20;
const KIND_SAMPLES: u8 = b's';
const KIND_NOTES: u8 = b'n';
/// Kind, size and checksum.
const FRAME_BYTES: usize = 9;

/// Exemplars and metadata of one tenant in one shard. See `Engine::export_notes`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportedNotes {
    /// The shard.
    pub shard: ShardId,
    /// Whose they are.
    pub tenant: TenantId,
    /// By series.
    pub exemplars: Vec<SeriesExemplars>,
    /// By metric, of each the newest first.
    pub metadata: Vec<MetricMetadata>,
}

impl ExportChunk {
    /// As bytes that [`ExportChunk::from_bytes`] reads, on any node.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut payload = Vec::new();
        payload.extend_from_slice(&self.shard.0.to_le_bytes());
        put_zigzag(&mut payload, self.window_start.0);
        payload.extend_from_slice(&self.next.to_bytes());
        let mut tenant = "";
        for series in &self.series {
            let own = series.tenant.as_str();
            put_text(&mut payload, if own == tenant { "" } else { own });
            tenant = own;
            let columns = &series.columns;
            put_text(&mut payload, columns.labels.as_encoded());
            put_times(&mut payload, self.window_start.0, &columns.timestamps);
            for value in &columns.values {
                payload.extend_from_slice(&value.to_bits().to_le_bytes());
            }
            put_times(&mut payload, self.window_start.0, &columns.histograms.timestamps);
            columns.histograms.values.iter().for_each(|histogram| histogram.append_bytes(&mut payload));
        }
        pack(KIND_SAMPLES, &payload)
    }

    /// Reads a chunk that came as bytes. Whether its samples fit its window, the importer checks.
    ///
    /// # Errors
    /// `Invalid` if the bytes are damaged, or more than a chunk has.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, StorageError> {
        let payload = unpack(KIND_SAMPLES, bytes)?;
        read_chunk(&mut Reader::new(&payload)).ok_or_else(|| invalid("the fields of a chunk make no sense"))
    }
}

impl ExportedNotes {
    /// As bytes that [`ExportedNotes::from_bytes`] reads, on any node.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut payload = Vec::new();
        payload.extend_from_slice(&self.shard.0.to_le_bytes());
        put_text(&mut payload, self.tenant.as_str());
        put_varint(&mut payload, self.exemplars.len() as u64);
        for SeriesExemplars { labels, exemplars } in &self.exemplars {
            put_text(&mut payload, labels.as_encoded());
            put_varint(&mut payload, exemplars.len() as u64);
            exemplars.iter().for_each(|exemplar| put_exemplar(&mut payload, exemplar));
        }
        for metadata in &self.metadata {
            put_text(&mut payload, &metadata.metric);
            put_metadata(&mut payload, metadata);
        }
        pack(KIND_NOTES, &payload)
    }

    /// Reads notes that came as bytes.
    ///
    /// # Errors
    /// As [`ExportChunk::from_bytes`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, StorageError> {
        let payload = unpack(KIND_NOTES, bytes)?;
        read_notes(&mut Reader::new(&payload)).ok_or_else(|| invalid("the fields of notes make no sense"))
    }
}

fn invalid(reason: impl Into<String>) -> StorageError {
    StorageError::Invalid { reason: reason.into() }
}

fn pack(kind: u8, payload: &[u8]) -> Vec<u8> {
    let size = u32::try_from(payload.len()).expect("an export's chunks are far smaller than 4 GiB");
    let mut bytes = Vec::with_capacity(FRAME_BYTES + payload.len() / 2);
    bytes.push(kind);
    bytes.extend_from_slice(&size.to_le_bytes());
    bytes.extend_from_slice(&lz4_flex::block::compress(payload));
    let checksum = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&checksum.to_le_bytes());
    bytes
}

fn unpack(kind: u8, bytes: &[u8]) -> Result<Vec<u8>, StorageError> {
    if bytes.len() > EXPORT_BYTES_MAX {
        let reason = format!("{} bytes are more than the {EXPORT_BYTES_MAX} that a chunk has", bytes.len());
        return Err(invalid(reason));
    }
    let short = || invalid(format!("{} bytes are no chunk", bytes.len()));
    let (checked, checksum) = bytes.split_last_chunk().ok_or_else(short)?;
    if crc32c::crc32c(checked) != u32::from_le_bytes(*checksum) {
        return Err(invalid("the checksum of a chunk is wrong"));
    }
    let mut reader = Reader::new(checked);
    let (actual, size) = reader.u8().zip(reader.u32()).ok_or_else(short)?;
    if actual != kind {
        return Err(invalid(format!("a chunk of kind {actual} came instead of {kind}")));
    }
    let size = usize::try_from(size).unwrap_or(usize::MAX);
    if size > PAYLOAD_BYTES_MAX {
        return Err(invalid(format!(
            "{size} bytes are more than the {PAYLOAD_BYTES_MAX} that a chunk unpacks to"
        )));
    }
    let payload = lz4_flex::block::decompress(reader.rest(), size);
    payload.ok().filter(|payload| payload.len() == size).ok_or_else(|| invalid("a chunk does not unpack"))
}

fn put_times(out: &mut Vec<u8>, window_start: i64, timestamps: &[i64]) {
    put_varint(out, timestamps.len() as u64);
    let mut last = window_start;
    for timestamp in timestamps {
        put_zigzag(out, timestamp.wrapping_sub(last));
        last = *timestamp;
    }
}

fn read_times(reader: &mut Reader<'_>, window_start: i64) -> Option<Vec<i64>> {
    let mut timestamps = Vec::with_capacity(reader.clone().count()?);
    let mut last = window_start;
    for _ in 0..reader.count()? {
        last = last.wrapping_add(reader.zigzag()?);
        timestamps.push(last);
    }
    Some(timestamps)
}

fn read_chunk(reader: &mut Reader<'_>) -> Option<ExportChunk> {
    let shard = ShardId(reader.u16()?);
    let window_start = TimestampMs(reader.zigzag()?);
    let next = ExportCursor::from_bytes(reader.take(ExportCursor::BYTES)?)?;
    let mut series: Vec<ExportedSeries> = Vec::new();
    while !reader.is_empty() {
        let tenant = match (reader.text()?, series.last()) {
            ("", before) => before?.tenant.clone(),
            (name, _) => TenantId::new(name).ok()?,
        };
        let labels = Labels::from_encoded(reader.text()?).ok()?;
        let timestamps = read_times(reader, window_start.0)?;
        let values: Option<Vec<f64>> =
            timestamps.iter().map(|_| Some(f64::from_bits(reader.u64()?))).collect();
        let mut histograms = HistogramColumns {
            timestamps: read_times(reader, window_start.0)?,
            ..HistogramColumns::default()
        };
        let mut rest = reader.rest();
        for _ in 0..histograms.timestamps.len() {
            histograms.values.push(Arc::new(Histogram::take_bytes(&mut rest)?));
        }
        *reader = Reader::new(rest);
        let columns = SeriesColumns { histograms, ..SeriesColumns::floats(labels, timestamps, values?) };
        series.push(ExportedSeries { tenant, columns });
    }
    Some(ExportChunk { shard, window_start, series, next })
}

fn read_notes(reader: &mut Reader<'_>) -> Option<ExportedNotes> {
    let shard = ShardId(reader.u16()?);
    let tenant = TenantId::new(reader.text()?).ok()?;
    let mut exemplars = Vec::new();
    for _ in 0..reader.count()? {
        let labels = Labels::from_encoded(reader.text()?).ok()?;
        let own: Option<Vec<_>> = (0..reader.count()?).map(|_| take_exemplar(reader)).collect();
        exemplars.push(SeriesExemplars { labels, exemplars: own? });
    }
    let mut metadata = Vec::new();
    while !reader.is_empty() {
        let metric = reader.text()?;
        metadata.push(take_metadata(reader, metric)?);
    }
    Some(ExportedNotes { shard, tenant, exemplars, metadata })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use saturn_model::{Buckets, Exemplar, MetricType};

    fn labels(name: &str) -> Labels {
        Labels::from_pairs([("__name__", name)]).expect("valid")
    }

    fn cursor() -> impl Strategy<Value = ExportCursor> {
        any::<[u8; ExportCursor::BYTES]>()
            .prop_map(|bytes| ExportCursor::from_bytes(&bytes).expect("as long as it must be"))
    }

    fn series() -> impl Strategy<Value = ExportedSeries> {
        let floats = proptest::collection::vec((any::<i64>(), any::<u64>()), 0..9);
        let histograms = proptest::collection::vec((any::<i64>(), any::<u64>(), 0_i32..9), 0..4);
        ("[ab]", "[a-zé]{1,9}", floats, histograms).prop_map(|(tenant, name, floats, histograms)| {
            let (timestamps, values) =
                floats.into_iter().map(|(time, bits)| (time, f64::from_bits(bits))).unzip();
            let mut columns = SeriesColumns::floats(labels(&name), timestamps, values);
            for (time, bits, buckets) in histograms {
                let sum = f64::from_bits(bits);
                let positive = Buckets::from_indexed((0..buckets).map(|index| (index * 2, sum)));
                let histogram = Histogram { sum, positive, ..Histogram::default() };
                columns.histograms.timestamps.push(time);
                columns.histograms.values.push(Arc::new(histogram));
            }
            ExportedSeries { tenant: TenantId::new(&tenant).expect("valid"), columns }
        })
    }

    fn chunk() -> impl Strategy<Value = ExportChunk> {
        let series = proptest::collection::vec(series(), 0..6);
        (any::<u16>(), any::<i64>(), cursor(), series).prop_map(|(shard, start, next, series)| ExportChunk {
            shard: ShardId(shard),
            window_start: TimestampMs(start),
            series,
            next,
        })
    }

    fn notes() -> impl Strategy<Value = ExportedNotes> {
        let exemplars = proptest::collection::vec((any::<i64>(), any::<u64>(), "[a-z]{0,9}"), 0..5);
        let of_series = proptest::collection::vec(("[a-z]{1,5}", exemplars), 0..4);
        let metadata = proptest::collection::vec(("[a-z]{1,5}", 0_u64..9, "\\PC{0,20}"), 0..4);
        (any::<u16>(), of_series, metadata).prop_map(|(shard, of_series, metadata)| ExportedNotes {
            shard: ShardId(shard),
            tenant: TenantId::new("demo").expect("valid"),
            exemplars: of_series
                .into_iter()
                .map(|(name, own)| {
                    let exemplar = |(time, bits, id): (i64, u64, String)| Exemplar {
                        timestamp: TimestampMs(time),
                        value: f64::from_bits(bits),
                        labels: labels(&id),
                    };
                    let exemplars = own.into_iter().map(exemplar).collect();
                    SeriesExemplars { labels: labels(&name), exemplars }
                })
                .collect(),
            metadata: metadata
                .into_iter()
                .map(|(metric, kind, help)| {
                    let (kind, unit) = (MetricType::from_number(kind), "s".to_owned());
                    MetricMetadata { metric, kind, help, unit }
                })
                .collect(),
        })
    }

    /// Everything of a chunk that must survive, floats and histograms by their bits.
    fn bits(chunk: &ExportChunk) -> String {
        let mut all = format!("{} {} {:?}", chunk.shard, chunk.window_start, chunk.next);
        for ExportedSeries { tenant, columns } in &chunk.series {
            let values: Vec<u64> = columns.values.iter().map(|value| value.to_bits()).collect();
            let mut histograms = Vec::new();
            columns.histograms.values.iter().for_each(|histogram| histogram.append_bytes(&mut histograms));
            all.push_str(&format!(
                "\n{tenant} {} {:?} {values:?} {:?} {histograms:?}",
                columns.labels, columns.timestamps, columns.histograms.timestamps
            ));
        }
        all
    }

    proptest! {
        #[test]
        fn chunks_survive_and_damage_is_refused(chunk in chunk(), flip in any::<(usize, u8)>(), cut in 1_usize..9) {
            let bytes = chunk.to_bytes();
            let back = ExportChunk::from_bytes(&bytes).expect("own bytes");
            prop_assert_eq!(bits(&back), bits(&chunk));
            let mut damaged = bytes.clone();
            damaged[flip.0 % bytes.len()] ^= flip.1.max(1);
            prop_assert!(ExportChunk::from_bytes(&damaged).is_err());
            prop_assert!(ExportChunk::from_bytes(&bytes[..bytes.len() - cut]).is_err());
            prop_assert!(ExportedNotes::from_bytes(&bytes).is_err());
        }

        #[test]
        fn notes_survive(notes in notes()) {
            let bytes = notes.to_bytes();
            prop_assert_eq!(ExportedNotes::from_bytes(&bytes).expect("own bytes"), notes);
            prop_assert!(ExportChunk::from_bytes(&bytes).is_err());
        }

        /// The checksum keeps accidents out; what is within must be safe to read all the same.
        #[test]
        fn any_payload_is_refused_or_read(payload in proptest::collection::vec(any::<u8>(), 0..120)) {
            let _ = ExportChunk::from_bytes(&pack(KIND_SAMPLES, &payload));
            let _ = ExportedNotes::from_bytes(&pack(KIND_NOTES, &payload));
        }
    }

    #[test]
    fn what_is_too_large_is_refused_before_it_takes_memory() {
        let refused = |bytes: &[u8]| ExportChunk::from_bytes(bytes).expect_err("refused").to_string();
        assert!(refused(&vec![0; EXPORT_BYTES_MAX + 1]).contains("1048577 bytes are more than the 1048576"));
        let bomb = pack(KIND_SAMPLES, &vec![0; PAYLOAD_BYTES_MAX + 1]);
        assert!(bomb.len() < EXPORT_BYTES_MAX);
        assert!(refused(&bomb).contains("4194305 bytes are more than the 4194304"), "{}", refused(&bomb));
        assert!(refused(&[]).contains("0 bytes are no chunk"));
    }

    #[test]
    fn bytes_are_pinned() {
        // Nodes of different versions give shards to each other.
        let next = ExportCursor::from_bytes(&[1; ExportCursor::BYTES]).expect("as long as it must be");
        let columns = SeriesColumns::floats(labels("up"), vec![7_200_005, 7_200_006], vec![1.0, 2.0]);
        let tenant = TenantId::new("t").expect("valid");
        let series = vec![ExportedSeries { tenant, columns }];
        let chunk = ExportChunk { shard: ShardId(3), window_start: TimestampMs(7_200_000), series, next };
        let mut want = vec![3, 0, 0x80, 0xf4, 0xee, 0x06];
        want.extend_from_slice(&[1; ExportCursor::BYTES]);
        want.extend_from_slice(b"\x01t\x0c\x08__name__\x02up\x02\x0a\x02");
        want.extend_from_slice(&1.0_f64.to_le_bytes());
        want.extend_from_slice(&2.0_f64.to_le_bytes());
        want.push(0);
        assert_eq!(unpack(KIND_SAMPLES, &chunk.to_bytes()).expect("own bytes"), want);
    }
}

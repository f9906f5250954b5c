//! Keys and rows of the three RocksDB column families. `docs/data-format.md` shows the same tables.
//!
//! Numbers in keys are big-endian, so that RocksDB's order of bytes is the order of numbers; numbers in
//! values are little-endian.
//!
//! `data`: one row per page (`page.rs`), written by ingesting table files, never by a put.
//!
//! | key field | bytes | content |
//! |---|---|---|
//! | window | 4 | number of the segment's first 2 h window (may be negative), plus 2^31 |
//! | segment | 8 | number of the flush or merge |
//! | shard | 2 | |
//! | series | 20 | [`SeriesKey`] of the page's last chunk, so that a search forwards finds the page |
//! | part | 2 | of the page's last chunk: 0, or higher if the series has several chunks |
//!
//! Window and segment come first because a flush or merge writes one table file per window for all shards:
//! such files never overlap each other, all lie in RocksDB's last level, and go away as files. Nothing in
//! rows of `data` depends on the replica but the segment's number.
//!
//! `index`: one row per series, and the rows of its days (`day_rows.rs`).
//!
//! | key field | bytes | | value field | bytes |
//! |---|---|---|---|---|
//! | `s` | 1 | | fingerprint | 16 |
//! | shard | 2 | | tenant length, tenant | 1 + n |
//! | ordinal | 4 | | encoded labels | rest |
//!
//! `meta`: what is live.
//!
//! | key | value |
//! |---|---|
//! | `v` | u32: version of the format, 5; version 4 had no `d`, version 3 no byte for the span |
//! | `n` | u64: number of the next flush, merge or tombstone; numbers are never used twice |
//! | `w` | u64: number of the first WAL segment that replay needs |
//! | `q` | u64: number of the last synced write (`rocks/durable.rs`) |
//! | `g`, window (4), segment (8), shard (2) | u64 samples, i64 first time, i64 last time, serialised roaring bitmap of the ordinals, [`Span`] (1, a missing one is 0) |
//! | `t`, shard (2), number (8) | i64 first time, i64 last time, serialised roaring bitmap of the ordinals: a [`Tombstone`] |
//! | `d`, shard (2) | u64: the last deletion that the shard's replicas agreed on and that is done here |
//! | `o`, shard (2) | u32: ordinals below it are never given again |
//! | `r`, shard (2) | u32 ordinals given before the last flush, serialised roaring bitmap of the series in memory then |

use roaring::RoaringBitmap;
pub(crate) use saturn_model::WINDOW_MS;
use saturn_model::{Fingerprint, Labels, ShardId, TenantId};

use crate::wire::Reader;

/// Version of everything in the data directory.
pub(crate) const FORMAT_VERSION: u32 = 5;
/// The oldest version that is read. Its rows mean the same.
pub(crate) const FORMAT_VERSION_MIN: u32 = 3;
/// Length of a key of `data`.
pub(crate) const DATA_KEY_BYTES: usize = 36;

pub(crate) const META_VERSION: &[u8] = b"v";
pub(crate) const META_NEXT_SEGMENT: &[u8] = b"n";
pub(crate) const META_REPLAY_FROM: &[u8] = b"w";
pub(crate) const META_WRITES: &[u8] = b"q";
pub(crate) const META_SEGMENT: u8 = b'g';
pub(crate) const META_TOMBSTONE: u8 = b't';
pub(crate) const META_DELETED: u8 = b'd';
pub(crate) const META_ORDINALS: u8 = b'o';
pub(crate) const META_RESIDENT: u8 = b'r';
pub(crate) const INDEX_SERIES: u8 = b's';

/// A 2 h window, numbered so that unsigned order is the order of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Window(pub(crate) u32);

impl Window {
    /// The window that holds a time in milliseconds; `None` beyond some 490,000 years around 1970.
    pub(crate) fn of(timestamp: i64) -> Option<Self> {
        let number = i32::try_from(timestamp.div_euclid(WINDOW_MS)).ok()?;
        // Every window has a whole day around it.
        let in_range = number.unsigned_abs() <= i32::MAX.unsigned_abs() - Span::Day.windows().unsigned_abs();
        in_range.then(|| Self::numbered(number))
    }

    fn numbered(number: i32) -> Self {
        Self(number.cast_unsigned() ^ 1 << 31)
    }

    /// Windows since 1970.
    pub(crate) fn number(self) -> i32 {
        (self.0 ^ 1 << 31).cast_signed()
    }

    /// The window's first millisecond.
    pub(crate) fn start(self) -> i64 {
        self.end() - WINDOW_MS
    }

    /// The first millisecond after the window.
    pub(crate) fn end(self) -> i64 {
        (i64::from(self.number()) + 1) * WINDOW_MS
    }
}

/// The time that a segment covers: one window, or several that merges put together, aligned in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Span {
    /// What flushes write.
    Window,
    HalfDay,
    Day,
}

impl Span {
    /// How many windows it has.
    pub(crate) fn windows(self) -> i32 {
        match self {
            Self::Window => 1,
            Self::HalfDay => 6,
            Self::Day => 12,
        }
    }

    /// Its length in milliseconds.
    pub(crate) fn ms(self) -> i64 {
        i64::from(self.windows()) * WINDOW_MS
    }

    /// The first window of the span that `window` lies in.
    pub(crate) fn first_window(self, window: Window) -> Window {
        Window::numbered(window.number().div_euclid(self.windows()) * self.windows())
    }

    fn to_byte(self) -> u8 {
        match self {
            Self::Window => 0,
            Self::HalfDay => 1,
            Self::Day => 2,
        }
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [] | [0] => Some(Self::Window),
            [1] => Some(Self::HalfDay),
            [2] => Some(Self::Day),
            _ => None,
        }
    }
}

/// Where a series is within a segment: CRC-32C of the metric's name, then the fingerprint, both big-endian. It
/// is the same on every replica, and the series of one metric are neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SeriesKey(pub(crate) [u8; Self::BYTES]);

impl SeriesKey {
    pub(crate) const BYTES: usize = 20;

    pub(crate) fn new(metric_name: &str, fingerprint: Fingerprint) -> Self {
        let mut key = [0; Self::BYTES];
        key[..4].copy_from_slice(&crc32c::crc32c(metric_name.as_bytes()).to_be_bytes());
        key[4..].copy_from_slice(&fingerprint.0.to_be_bytes());
        Self(key)
    }

    pub(crate) fn fingerprint(&self) -> Fingerprint {
        let bytes = self.0.last_chunk().expect("the key ends in 16 bytes of fingerprint");
        Fingerprint(u128::from_be_bytes(*bytes))
    }

    /// Number of leading bytes that both have.
    pub(crate) fn common(&self, other: &Self) -> usize {
        self.0.iter().zip(&other.0).take_while(|(a, b)| a == b).count()
    }
}

/// Samples that were deleted: those of some series in a range of time, in segments older than the tombstone.
/// What is stored later, even for the same range, stays.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tombstone {
    pub(crate) shard: ShardId,
    /// Segments with lower numbers are affected.
    pub(crate) number: u64,
    pub(crate) first_ms: i64,
    pub(crate) last_ms: i64,
    pub(crate) ordinals: RoaringBitmap,
}

impl Tombstone {
    /// Whether it may hide samples of the segment.
    pub(crate) fn concerns(&self, segment: &Segment) -> bool {
        segment.key.segment < self.number
            && segment.touches(self.first_ms, self.last_ms)
            && !self.ordinals.is_disjoint(&segment.ordinals)
    }

    pub(crate) fn to_row(&self) -> (Vec<u8>, Vec<u8>) {
        let mut key = vec![META_TOMBSTONE];
        key.extend_from_slice(&self.shard.0.to_be_bytes());
        key.extend_from_slice(&self.number.to_be_bytes());
        let mut value = Vec::with_capacity(16 + self.ordinals.serialized_size());
        value.extend_from_slice(&self.first_ms.to_le_bytes());
        value.extend_from_slice(&self.last_ms.to_le_bytes());
        self.ordinals.serialize_into(&mut value).expect("writing to memory does not fail");
        (key, value)
    }

    pub(crate) fn from_row(key: &[u8], value: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(key.strip_prefix(&[META_TOMBSTONE])?);
        let shard = ShardId(reader.array().map(u16::from_be_bytes)?);
        let number = reader.array().map(u64::from_be_bytes)?;
        if !reader.is_empty() {
            return None;
        }
        let mut reader = Reader::new(value);
        let (first_ms, last_ms) = (reader.i64()?, reader.i64()?);
        let ordinals = RoaringBitmap::deserialize_from(reader.rest()).ok()?;
        Some(Self { shard, number, first_ms, last_ms, ordinals })
    }
}

/// Which flushed data: one flush's or merge's samples of one shard and span of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SegmentKey {
    /// The first one of its span.
    pub(crate) window: Window,
    pub(crate) segment: u64,
    pub(crate) shard: ShardId,
}

/// A live segment, as its `meta` row describes it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Segment {
    pub(crate) key: SegmentKey,
    pub(crate) span: Span,
    pub(crate) samples: u64,
    pub(crate) first_ms: i64,
    pub(crate) last_ms: i64,
    /// Series that have a chunk in it.
    pub(crate) ordinals: RoaringBitmap,
}

/// A series, as its `index` row describes it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SeriesRow {
    pub(crate) shard: ShardId,
    pub(crate) ordinal: u32,
    pub(crate) fingerprint: Fingerprint,
    pub(crate) tenant: TenantId,
    pub(crate) labels: Labels,
}

impl SegmentKey {
    /// The first 14 bytes of all its keys in `data`.
    pub(crate) fn data_prefix(self) -> [u8; 14] {
        let mut prefix = [0; 14];
        prefix[..4].copy_from_slice(&self.window.0.to_be_bytes());
        prefix[4..12].copy_from_slice(&self.segment.to_be_bytes());
        prefix[12..].copy_from_slice(&self.shard.0.to_be_bytes());
        prefix
    }

    pub(crate) fn data_key(self, series: SeriesKey, part: u16) -> [u8; DATA_KEY_BYTES] {
        let mut key = [0; DATA_KEY_BYTES];
        key[..14].copy_from_slice(&self.data_prefix());
        key[14..34].copy_from_slice(&series.0);
        key[34..].copy_from_slice(&part.to_be_bytes());
        key
    }

    /// The key of its row in `meta`.
    pub(crate) fn to_row_key(self) -> Vec<u8> {
        [[META_SEGMENT].as_slice(), &self.data_prefix()].concat()
    }

    /// A key behind all its keys in `data`.
    pub(crate) fn data_end(self) -> [u8; DATA_KEY_BYTES + 1] {
        let mut key = [0xff; DATA_KEY_BYTES + 1];
        key[..14].copy_from_slice(&self.data_prefix());
        key
    }

    /// Splits a key of `data` into segment, series and part.
    pub(crate) fn from_data_key(key: &[u8]) -> Option<(Self, SeriesKey, u16)> {
        let mut reader = Reader::new(key);
        let segment = Self::read(&mut reader)?;
        let series = SeriesKey(reader.array()?);
        let part = reader.array().map(u16::from_be_bytes)?;
        reader.is_empty().then_some((segment, series, part))
    }

    fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let window = Window(reader.array().map(u32::from_be_bytes)?);
        let segment = reader.array().map(u64::from_be_bytes)?;
        let shard = ShardId(reader.array().map(u16::from_be_bytes)?);
        Some(Self { window, segment, shard })
    }
}

impl Segment {
    /// The first millisecond after its span.
    pub(crate) fn end(&self) -> i64 {
        self.key.window.start() + self.span.ms()
    }

    pub(crate) fn to_row(&self) -> (Vec<u8>, Vec<u8>) {
        let key = self.key.to_row_key();
        let mut value = Vec::with_capacity(24 + self.ordinals.serialized_size());
        value.extend_from_slice(&self.samples.to_le_bytes());
        value.extend_from_slice(&self.first_ms.to_le_bytes());
        value.extend_from_slice(&self.last_ms.to_le_bytes());
        self.ordinals.serialize_into(&mut value).expect("writing to memory does not fail");
        value.push(self.span.to_byte());
        (key, value)
    }

    pub(crate) fn from_row(key: &[u8], value: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(key.strip_prefix(&[META_SEGMENT])?);
        let key = SegmentKey::read(&mut reader)?;
        if !reader.is_empty() {
            return None;
        }
        let mut reader = Reader::new(value);
        let (samples, first_ms, last_ms) = (reader.u64()?, reader.i64()?, reader.i64()?);
        let mut rest = reader.rest();
        let ordinals = RoaringBitmap::deserialize_from(&mut rest).ok()?;
        let span = Span::from_bytes(rest)?;
        Some(Self { key, span, samples, first_ms, last_ms, ordinals })
    }
}

impl SeriesRow {
    /// Where the series is within segments.
    pub(crate) fn key_in_segments(&self) -> SeriesKey {
        SeriesKey::new(self.labels.metric_name(), self.fingerprint)
    }

    pub(crate) fn key(shard: ShardId, ordinal: u32) -> Vec<u8> {
        let mut key = vec![INDEX_SERIES];
        key.extend_from_slice(&shard.0.to_be_bytes());
        key.extend_from_slice(&ordinal.to_be_bytes());
        key
    }

    pub(crate) fn to_row(&self) -> (Vec<u8>, Vec<u8>) {
        let key = Self::key(self.shard, self.ordinal);
        let tenant = self.tenant.as_str();
        let labels = self.labels.as_encoded();
        let mut value = Vec::with_capacity(17 + tenant.len() + labels.len());
        value.extend_from_slice(&self.fingerprint.to_bytes());
        value.push(u8::try_from(tenant.len()).expect("tenant names are at most 63 bytes"));
        value.extend_from_slice(tenant.as_bytes());
        value.extend_from_slice(labels.as_bytes());
        (key, value)
    }

    pub(crate) fn from_row(key: &[u8], value: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(key.strip_prefix(&[INDEX_SERIES])?);
        let shard = ShardId(reader.array().map(u16::from_be_bytes)?);
        let ordinal = reader.array().map(u32::from_be_bytes)?;
        if !reader.is_empty() {
            return None;
        }
        let mut reader = Reader::new(value);
        let fingerprint = Fingerprint::from_bytes(reader.array()?);
        let tenant_len = usize::from(reader.u8()?);
        let tenant = TenantId::new(std::str::from_utf8(reader.take(tenant_len)?).ok()?).ok()?;
        let labels = Labels::from_encoded(std::str::from_utf8(reader.rest()).ok()?).ok()?;
        Some(Self { shard, ordinal, fingerprint, tenant, labels })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn data_keys_sort_like_their_fields(
            a in (any::<u32>(), any::<u64>(), any::<u16>(), any::<[u8; 20]>(), any::<u16>()),
            b in (any::<u32>(), any::<u64>(), any::<u16>(), any::<[u8; 20]>(), any::<u16>()),
        ) {
            let segment = |(window, segment, shard, _, _): (u32, u64, u16, [u8; 20], u16)| {
                SegmentKey { window: Window(window), segment, shard: ShardId(shard) }
            };
            let key = |fields| segment(fields).data_key(SeriesKey(fields.3), fields.4);
            prop_assert!(key(a).as_slice() < segment(a).data_end().as_slice());
            prop_assert!(key(a).as_slice() >= segment(a).data_prefix().as_slice());
            prop_assert_eq!(key(a).cmp(&key(b)), a.cmp(&b));
            let (back, series, part) = SegmentKey::from_data_key(&key(a)).expect("own key");
            prop_assert_eq!((back.window.0, back.segment, back.shard.0, series.0, part), a);
        }

        #[test]
        fn windows_hold_their_times(t in -1_000_000_000_000_000_i64..1_000_000_000_000_000) {
            let window = Window::of(t).expect("in range");
            prop_assert!((window.end() - WINDOW_MS..window.end()).contains(&t));
            prop_assert!(Window::of(t + WINDOW_MS).expect("in range") > window);
            for span in [Span::Window, Span::HalfDay, Span::Day] {
                let first = span.first_window(window);
                prop_assert!((first.start()..first.start() + span.ms()).contains(&t));
                prop_assert_eq!(first.start().rem_euclid(span.ms()), 0);
            }
        }

        #[test]
        fn rows_survive(
            shard in any::<u16>(), ordinal in any::<u32>(), value in "\\PC{1,40}",
            ordinals in proptest::collection::btree_set(any::<u32>(), 0..50),
        ) {
            let tenant = TenantId::new("demo").expect("valid");
            let labels = Labels::from_pairs([("l", value.as_str())]).expect("valid");
            let fingerprint = Fingerprint::of(&tenant, labels.as_encoded());
            let row = SeriesRow { shard: ShardId(shard), ordinal, fingerprint, tenant, labels };
            prop_assert_eq!(row.key_in_segments().fingerprint(), fingerprint);
            let (key, value) = row.to_row();
            prop_assert_eq!(SeriesRow::from_row(&key, &value), Some(row));
            let segment = Segment {
                key: SegmentKey { window: Window(7), segment: 9, shard: ShardId(shard) },
                span: [Span::Window, Span::HalfDay, Span::Day][usize::from(shard % 3)],
                samples: 3, first_ms: -4, last_ms: 5, ordinals: ordinals.into_iter().collect(),
            };
            let (key, value) = segment.to_row();
            if segment.span == Span::Window {
                // As version 3 wrote it.
                prop_assert_eq!(Segment::from_row(&key, &value[..value.len() - 1]), Some(segment.clone()));
            }
            let tombstone = Tombstone {
                shard: ShardId(shard), number: 8, first_ms: i64::MIN, last_ms: 5, ordinals: segment.ordinals.clone(),
            };
            prop_assert_eq!(Segment::from_row(&key, &value), Some(segment));
            let (key, value) = tombstone.to_row();
            prop_assert_eq!(Tombstone::from_row(&key, &value), Some(tombstone));
        }

        #[test]
        fn damaged_rows_are_refused_or_read(
            key in proptest::collection::vec(any::<u8>(), 0..16),
            value in proptest::collection::vec(any::<u8>(), 0..60),
        ) {
            let with = |kind: u8| [&[kind], key.as_slice()].concat();
            let _ = SeriesRow::from_row(&with(INDEX_SERIES), &value);
            let _ = Segment::from_row(&with(META_SEGMENT), &value);
            let _ = Tombstone::from_row(&with(META_TOMBSTONE), &value);
        }
    }

    #[test]
    fn extreme_times_have_no_window() {
        assert_eq!(Window::of(i64::MAX), None);
        assert_eq!(Window::of(i64::MIN), None);
        assert!(Window::of(-1).expect("in range") < Window::of(0).expect("in range"));
    }
}

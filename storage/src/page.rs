//! The page: up to 64 chunks of neighbouring series in one row of `data`, with the times they share.
//!
//! | field | bytes | content |
//! |---|---|---|
//! | format | 1 | 1; plus 128 if the next page begins with the next part of this page's last series |
//! | chunks | varint | 1 to 64 |
//! | directory | per chunk | byte 255: the next part of the series before; else the number of leading bytes of the [`SeriesKey`] that it shares with the chunk before (1 byte), the number of bytes that follow (1 byte), and these: as many as it takes to tell it from its neighbours in the segment |
//! | time vectors | varint | 1 to 64 |
//! | per time vector | varint | its length in bytes |
//! | per chunk | varint, varint | which time vector, from 0; length of its values in bytes |
//! | times | rest | the vectors (`codec/timestamps.rs`), relative to the window's start |
//! | values | rest | the chunks' values (`codec/values.rs`) or native histograms (`codec/histograms.rs`) |
//!
//! Invariants: a segment's chunks ascend by series and part, the floats of a series before its histograms; the
//! same series and samples make the same pages, whatever came before: pages end after 64 chunks or
//! [`PAGE_SAMPLES_MAX`] samples, and by nothing else. (A histogram counts as many samples as it has numbers.) A reader looks for series that the segment's row names, so a shortened key is unambiguous.
//!
//! There is no checksum in here: RocksDB's blocks have one.

use std::cmp::Ordering;
use std::ops::Range;
use std::sync::Arc;

use saturn_model::Histogram;

use crate::codec::{self, Effort, Scratch};
use crate::keys::SeriesKey;
use crate::wire::{Reader, put_varint};

/// Most samples of one chunk. A window of 2 h in milliseconds has at most 879 chunks of one series then, which
/// the 16-bit part number of a page can count.
pub(crate) const CHUNK_SAMPLES_MAX: usize = 8192;
/// Most chunks of one page.
pub(crate) const PAGE_CHUNKS_MAX: usize = 64;
/// A page with this many samples takes no more chunks.
pub(crate) const PAGE_SAMPLES_MAX: usize = 64 * 1024;

const FORMAT: u8 = 1;
/// Added to the format: the last series goes on in the next page. So nobody has to look there to find out,
/// and stumble over damage that is not his.
const GOES_ON: u8 = 128;
/// In the directory: the same series as the chunk before.
const SAME_SERIES: u8 = 255;

/// Flushes and merges must write the same bytes, so there is one effort for both.
const EFFORT: Effort = Effort::Dense;

/// Makes pages of a segment's chunks.
#[derive(Debug, Default)]
pub(crate) struct PageWriter {
    /// What times are relative to.
    origin: i64,
    scratch: Scratch,
    slots: Vec<Slot>,
    samples: usize,
    /// Time vectors, one after the other, and where each is.
    times: Vec<i64>,
    vectors: Vec<Range<usize>>,
    values: Vec<u8>,
    /// The last series of the page before.
    before: Option<SeriesKey>,
}

#[derive(Debug)]
struct Slot {
    series: SeriesKey,
    part: u16,
    vector: usize,
    value_bytes: usize,
}

/// A page ready to be stored: series and part of its last chunk, which are its key, and its bytes.
#[derive(Debug)]
pub(crate) struct FinishedPage {
    pub(crate) series: SeriesKey,
    pub(crate) part: u16,
    pub(crate) bytes: Vec<u8>,
}

impl PageWriter {
    /// `origin`: the window's start in milliseconds.
    pub(crate) fn new(origin: i64) -> Self {
        Self { origin, ..Self::default() }
    }

    /// Adds a chunk. Chunks must ascend by series and part. May complete the page before it.
    pub(crate) fn push(
        &mut self,
        series: SeriesKey,
        part: u16,
        timestamps: &[i64],
        values: &[f64],
    ) -> Option<FinishedPage> {
        let finished = self.begin(series, part, timestamps);
        codec::encode_values(values, EFFORT, &mut self.scratch, &mut self.values);
        self.end(values.len());
        finished
    }

    /// Adds a chunk of native histograms, as [`codec::next_chunk`] cuts them: that many `numbers`.
    pub(crate) fn push_histograms(
        &mut self,
        (series, part): (SeriesKey, u16),
        timestamps: &[i64],
        histograms: &[Arc<Histogram>],
        numbers: usize,
    ) -> Option<FinishedPage> {
        let finished = self.begin(series, part, timestamps);
        codec::encode_histograms(histograms, EFFORT, &mut self.scratch, &mut self.values);
        self.end(numbers);
        finished
    }

    /// Makes room for a chunk, whose values are still to come.
    fn begin(&mut self, series: SeriesKey, part: u16, timestamps: &[i64]) -> Option<FinishedPage> {
        let is_full = self.slots.len() == PAGE_CHUNKS_MAX || self.samples >= PAGE_SAMPLES_MAX;
        let finished = if is_full { self.finish(Some(series)) } else { None };
        let same = |vector: &Range<usize>| self.times[vector.clone()] == *timestamps;
        // Neighbours often come from one scrape, so the last vector is the likeliest.
        let vector = self.vectors.iter().rposition(same).unwrap_or_else(|| {
            let from = self.times.len();
            self.times.extend_from_slice(timestamps);
            self.vectors.push(from..self.times.len());
            self.vectors.len() - 1
        });
        let value_bytes = self.values.len();
        self.slots.push(Slot { series, part, vector, value_bytes });
        finished
    }

    /// The values of the chunk begun last are there.
    fn end(&mut self, samples: usize) {
        let slot = self.slots.last_mut().expect("a chunk was begun");
        slot.value_bytes = self.values.len() - slot.value_bytes;
        self.samples += samples;
    }

    /// Completes the page, if there is one. `next`: the series behind it in the segment.
    pub(crate) fn finish(&mut self, next: Option<SeriesKey>) -> Option<FinishedPage> {
        let last = self.slots.last()?;
        let (series, part) = (last.series, last.part);
        let goes_on = Some(series) == next;
        let mut bytes = vec![if goes_on { FORMAT | GOES_ON } else { FORMAT }];
        put_varint(&mut bytes, self.slots.len() as u64);
        self.put_directory(next, &mut bytes);
        let mut times = Vec::new();
        put_varint(&mut bytes, self.vectors.len() as u64);
        for vector in &self.vectors {
            let from = times.len();
            let vector = &self.times[vector.clone()];
            codec::encode_timestamps(vector, self.origin, EFFORT, &mut self.scratch, &mut times);
            put_varint(&mut bytes, (times.len() - from) as u64);
        }
        for slot in &self.slots {
            put_varint(&mut bytes, slot.vector as u64);
            put_varint(&mut bytes, slot.value_bytes as u64);
        }
        bytes.extend_from_slice(&times);
        bytes.extend_from_slice(&self.values);
        self.before = Some(series);
        self.slots.clear();
        self.samples = 0;
        self.times.clear();
        self.vectors.clear();
        self.values.clear();
        Some(FinishedPage { series, part, bytes })
    }

    fn put_directory(&self, next: Option<SeriesKey>, out: &mut Vec<u8>) {
        let mut before = self.before;
        for (at, slot) in self.slots.iter().enumerate() {
            if at > 0 && before == Some(slot.series) {
                out.push(SAME_SERIES);
                continue;
            }
            let after = self.slots[at..].iter().map(|s| s.series).find(|series| *series != slot.series);
            let common = |other: Option<SeriesKey>| other.map_or(0, |other| slot.series.common(&other));
            let needed = common(before).max(common(after.or(next))) + 1;
            let shared = if at == 0 { 0 } else { common(before) };
            let own = &slot.series.0[shared..needed.min(SeriesKey::BYTES)];
            out.push(byte(shared));
            out.push(byte(own.len()));
            out.extend_from_slice(own);
            before = Some(slot.series);
        }
    }
}

fn byte(len: usize) -> u8 {
    u8::try_from(len).expect("a series key is short")
}

/// A page being read.
#[derive(Debug, Default)]
pub(crate) struct Page {
    origin: i64,
    scratch: Scratch,
    bytes: Vec<u8>,
    goes_on: bool,
    slots: Vec<ReadSlot>,
    /// Where each time vector is in `bytes`.
    vectors: Vec<Range<usize>>,
    /// The vectors that were needed so far; the others are empty.
    times: Vec<Vec<i64>>,
}

#[derive(Debug)]
struct ReadSlot {
    /// The first bytes of the series' key; the rest is zero.
    prefix: [u8; SeriesKey::BYTES],
    prefix_len: usize,
    continues: bool,
    vector: usize,
    values: Range<usize>,
}

impl Page {
    /// `origin`: the window's start in milliseconds.
    pub(crate) fn new(origin: i64) -> Self {
        Self { origin, ..Self::default() }
    }

    /// Replaces the content. `None` if the bytes are damaged; the page must not be used then.
    pub(crate) fn parse(&mut self, bytes: &[u8]) -> Option<()> {
        self.bytes.clear();
        self.bytes.extend_from_slice(bytes);
        self.slots.clear();
        self.vectors.clear();
        for times in &mut self.times {
            times.clear();
        }
        let mut reader = Reader::new(bytes);
        let format = reader.u8()?;
        if format & !GOES_ON != FORMAT {
            return None;
        }
        self.goes_on = format & GOES_ON > 0;
        let chunks = limited(&mut reader)?;
        for _ in 0..chunks {
            let slot = read_slot(&mut reader, self.slots.last())?;
            self.slots.push(slot);
        }
        let vectors = limited(&mut reader)?;
        let mut time_bytes = 0;
        for _ in 0..vectors {
            let len = reader.count()?;
            self.vectors.push(time_bytes..time_bytes + len);
            time_bytes += len;
        }
        let mut value_bytes = 0;
        for slot in &mut self.slots {
            slot.vector = usize::try_from(reader.varint()?).ok().filter(|at| *at < vectors)?;
            let len = reader.count()?;
            slot.values = value_bytes..value_bytes + len;
            value_bytes += len;
        }
        let rest = reader.rest().len();
        if rest != time_bytes + value_bytes {
            return None;
        }
        let times_at = bytes.len() - rest;
        for vector in &mut self.vectors {
            *vector = vector.start + times_at..vector.end + times_at;
        }
        let values_at = times_at + time_bytes;
        for slot in &mut self.slots {
            slot.values = slot.values.start + values_at..slot.values.end + values_at;
        }
        if self.times.len() < vectors {
            self.times.resize_with(vectors, Vec::new);
        }
        Some(())
    }

    /// Number of chunks.
    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether the next page begins with the next part of the last series.
    pub(crate) fn goes_on(&self) -> bool {
        self.goes_on
    }

    /// How the series of chunk `at` is to `series`. Equal is certain only if the segment has `series`.
    pub(crate) fn compare(&self, at: usize, series: &SeriesKey) -> Ordering {
        let slot = &self.slots[at];
        slot.prefix[..slot.prefix_len].cmp(&series.0[..slot.prefix_len])
    }

    /// Whether chunk `at` is of the same series as the chunk before it in this page.
    pub(crate) fn continues(&self, at: usize) -> bool {
        self.slots[at].continues
    }

    /// Times of the first and the last sample of chunk `at`, without decoding the others. `None` if they are damaged.
    pub(crate) fn bounds(&self, at: usize) -> Option<(i64, i64)> {
        let vector = self.slots[at].vector;
        if let ([first, ..], [.., last]) = (&*self.times[vector], &*self.times[vector]) {
            return Some((*first, *last));
        }
        let summary = codec::summarize_timestamps(&self.bytes[self.vectors[vector].clone()], self.origin)?;
        Some((summary.first, summary.last))
    }

    /// The times of chunk `at`. `None` if they are damaged.
    pub(crate) fn times(&mut self, at: usize) -> Option<&[i64]> {
        let vector = self.slots[at].vector;
        let times = &mut self.times[vector];
        if times.is_empty() {
            let bytes = &self.bytes[self.vectors[vector].clone()];
            codec::decode_timestamps(bytes, self.origin, &mut self.scratch, times)?;
        }
        Some(times)
    }

    /// Appends the values of chunk `at` in `range`. `None` if they are damaged.
    pub(crate) fn decode_values(
        &mut self,
        at: usize,
        range: Range<usize>,
        values: &mut Vec<f64>,
    ) -> Option<()> {
        let chunk = &self.bytes[self.slots[at].values.clone()];
        codec::decode_value_range(chunk, range, &mut self.scratch, values)
    }

    /// The encoded values of chunk `at`.
    pub(crate) fn value_bytes(&self, at: usize) -> &[u8] {
        &self.bytes[self.slots[at].values.clone()]
    }

    /// Whether chunk `at` is one of native histograms.
    pub(crate) fn has_histograms(&self, at: usize) -> bool {
        codec::is_histograms(&self.bytes[self.slots[at].values.clone()])
    }

    /// Appends all histograms of chunk `at`. `None` if they are damaged.
    pub(crate) fn decode_histograms(
        &mut self,
        at: usize,
        histograms: &mut Vec<Arc<Histogram>>,
    ) -> Option<()> {
        let chunk = &self.bytes[self.slots[at].values.clone()];
        codec::decode_histograms(chunk, &mut self.scratch, histograms)
    }
}

fn limited(reader: &mut Reader<'_>) -> Option<usize> {
    reader.count().filter(|count| (1..=PAGE_CHUNKS_MAX).contains(count))
}

fn read_slot(reader: &mut Reader<'_>, before: Option<&ReadSlot>) -> Option<ReadSlot> {
    let mut slot =
        ReadSlot { prefix: [0; SeriesKey::BYTES], prefix_len: 0, continues: false, vector: 0, values: 0..0 };
    let shared = reader.u8()?;
    if shared == SAME_SERIES {
        let before = before?;
        (slot.prefix, slot.prefix_len, slot.continues) = (before.prefix, before.prefix_len, true);
        return Some(slot);
    }
    let shared = usize::from(shared);
    let own = usize::from(reader.u8()?);
    slot.prefix_len = shared + own;
    if slot.prefix_len > SeriesKey::BYTES || own == 0 {
        return None;
    }
    if shared > 0 {
        slot.prefix[..shared].copy_from_slice(before?.prefix.get(..shared)?);
    }
    slot.prefix[shared..slot.prefix_len].copy_from_slice(reader.take(own)?);
    Some(slot)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    type Chunks = BTreeMap<(SeriesKey, u16), (Vec<i64>, Vec<f64>)>;

    fn pages(chunks: &Chunks) -> Vec<FinishedPage> {
        let mut writer = PageWriter::default();
        let mut pages = Vec::new();
        for ((series, part), (timestamps, values)) in chunks {
            pages.extend(writer.push(*series, *part, timestamps, values));
        }
        pages.extend(writer.finish(None));
        pages
    }

    fn chunks() -> impl Strategy<Value = Chunks> {
        let series = (0_u8..4, 0_u8..60).prop_map(|(a, b)| {
            let mut key = [7; SeriesKey::BYTES];
            key[3] = a;
            key[11] = b;
            SeriesKey(key)
        });
        let times = prop_oneof![
            Just(vec![1, 2, 3]),
            proptest::collection::btree_set(any::<i64>(), 1..9).prop_map(|set| set.into_iter().collect())
        ];
        let chunk = (times, any::<u64>()).prop_map(|(times, seed): (Vec<i64>, u64)| {
            let values = (0..times.len() as u64).map(|i| f64::from_bits(seed.wrapping_mul(i + 1))).collect();
            (times, values)
        });
        proptest::collection::btree_map((series, 0_u16..2), chunk, 1..200)
    }

    proptest! {
        #[test]
        fn every_chunk_is_found(chunks in chunks()) {
            let series: Vec<SeriesKey> = chunks.keys().map(|(series, _)| *series).collect();
            let mut read = 0;
            let mut page = Page::default();
            for finished in pages(&chunks) {
                page.parse(&finished.bytes).expect("own page");
                let end = read + page.len();
                prop_assert_eq!(finished.series, series[end - 1]);
                prop_assert_eq!(page.goes_on(), end < series.len() && series[end] == series[end - 1]);
                for at in 0..page.len() {
                    let (key, (timestamps, values)) = chunks.iter().nth(read).expect("as many as written");
                    prop_assert_eq!(page.continues(at), at > 0 && series[read] == series[read - 1]);
                    for other in &series {
                        prop_assert_eq!(page.compare(at, other), key.0.cmp(other));
                    }
                    prop_assert_eq!(page.times(at).expect("own page"), timestamps.as_slice());
                    let mut decoded = Vec::new();
                    page.decode_values(at, 0..values.len(), &mut decoded).expect("own page");
                    let bits = |values: &[f64]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                    prop_assert_eq!(bits(&decoded), bits(values));
                    read += 1;
                }
            }
            prop_assert_eq!(read, chunks.len());
        }

        #[test]
        fn damage_never_panics(chunks in chunks(), at in any::<prop::sample::Index>(), with in any::<u8>()) {
            let mut bytes = pages(&chunks).swap_remove(0).bytes;
            let mut page = Page::default();
            let at = at.index(bytes.len());
            prop_assert!(page.parse(&bytes[..at]).is_none());
            bytes[at] = with;
            if page.parse(&bytes).is_some() {
                for at in 0..page.len() {
                    if let Some(count) = page.times(at).map(<[i64]>::len) {
                        let _ = page.decode_values(at, 0..count, &mut Vec::new());
                    }
                }
            }
        }
    }

    #[test]
    fn the_format_is_pinned() {
        // Files written by earlier versions must stay readable: these bytes must never change.
        let key = |last| {
            let mut key = [1; SeriesKey::BYTES];
            key[2] = last;
            SeriesKey(key)
        };
        let times = vec![1000, 2000];
        let chunks = Chunks::from([
            ((key(5), 0), (times.clone(), vec![1.0, 3.0])),
            ((key(5), 1), (vec![3000], vec![0.0])),
            ((key(9), 0), (times, vec![2.0, 2.5])),
        ]);
        let mut want = vec![1, 3];
        want.extend_from_slice(&[0, 3, 1, 1, 5, 255, 2, 1, 9]);
        want.extend_from_slice(&[2, 6, 5]);
        want.extend_from_slice(&[0, 7, 1, 4, 0, 7]);
        want.extend_from_slice(&[64, 2, 208, 15, 232, 7, 64, 1, 240, 46, 0]);
        want.extend_from_slice(&[66, 2, 0, 48, 2, 2, 2, 65, 1, 0, 0, 66, 2, 1, 48, 40, 5, 2]);
        assert_eq!(pages(&chunks)[0].bytes, want);
    }
}

//! Reading the pages of one segment, in ascending order of series.

use std::cmp::Ordering;
use std::ops::RangeInclusive;
use std::sync::Arc;

use rocksdb::DBRawIterator;
use saturn_model::{Histogram, SeriesColumns};

use super::{DATA, Rocks, hex, read_options};
use crate::codec;
use crate::error::StorageError;
use crate::keys::{Segment, SegmentKey, SeriesKey};
use crate::page::Page;
use crate::tombstones::Mask;

/// Pages to walk over before seeking: a step costs a fraction of a seek.
const STEPS_MAX: usize = 2;

/// A cursor over one segment's pages.
pub(crate) struct SegmentReader<'a> {
    rocks: &'a Rocks,
    segment: SegmentKey,
    /// The first millisecond after its span.
    end: i64,
    rows: DBRawIterator<'a>,
    place: Place,
    page: Page,
    values: Vec<f64>,
    histograms: Vec<Arc<Histogram>>,
    bytes_read: u64,
}

/// One chunk of a series on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkInfo {
    /// How its values are encoded: the class in `docs/codec-format.md`, or `histograms`.
    pub codec: &'static str,
    /// Number of samples.
    pub samples: usize,
    /// Time of the first, in milliseconds.
    pub first_ms: i64,
    /// Time of the last, in milliseconds.
    pub last_ms: i64,
    /// Bytes of the values; the times are shared between series.
    pub value_bytes: usize,
}

/// What comes of the blocks that are read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Blocks {
    /// They are likely to be read again soon: they go to the cache.
    ReadAgain,
    /// They are not, and the cache keeps what it has.
    ReadOnce,
}

/// Where the cursor is.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    BeforeFirst,
    /// At this chunk of the page that is parsed; may be one behind the last.
    Chunk(usize),
    End,
}

impl Rocks {
    /// A reader of one segment.
    pub(crate) fn segment_reader(&self, segment: &Segment, blocks: Blocks) -> SegmentReader<'_> {
        let mut options = read_options();
        options.fill_cache(blocks == Blocks::ReadAgain);
        options.set_iterate_lower_bound(segment.key.data_prefix());
        options.set_iterate_upper_bound(segment.key.data_end());
        let rows = self.db.raw_iterator_cf_opt(self.family(DATA), options);
        SegmentReader {
            rocks: self,
            segment: segment.key,
            end: segment.end(),
            rows,
            place: Place::BeforeFirst,
            page: Page::new(segment.key.window.start()),
            values: Vec::new(),
            histograms: Vec::new(),
            bytes_read: 0,
        }
    }
}

impl SegmentReader<'_> {
    /// Adds the samples of `series` in `range` (milliseconds) that `mask` leaves to `columns`, chunk after chunk. To
    /// be called with ascending series, of which the segment's row says that they are here.
    pub(crate) fn read(
        &mut self,
        series: &SeriesKey,
        ordinal: u32,
        range: &RangeInclusive<i64>,
        mask: &Mask,
        columns: &mut SeriesColumns,
    ) -> Result<(), StorageError> {
        let masked = mask.hides_some_of(ordinal).then_some((mask, ordinal));
        self.each_chunk(series, |reader, at| reader.add(at, range, masked, columns))
    }

    /// Goes through the chunks of `series`.
    fn each_chunk(
        &mut self,
        series: &SeriesKey,
        mut each: impl FnMut(&mut Self, usize) -> Result<(), StorageError>,
    ) -> Result<(), StorageError> {
        let Some(mut at) = self.find(series)? else {
            // Leaving it out would be a silent hole.
            return Err(self.damaged("a series is missing"));
        };
        loop {
            each(self, at)?;
            at += 1;
            self.place = Place::Chunk(at);
            if at < self.page.len() {
                if !self.page.continues(at) {
                    return Ok(());
                }
                continue;
            }
            if !self.page.goes_on() {
                return Ok(());
            }
            if !self.step()? || self.page.compare(0, series) != Ordering::Equal {
                return Err(self.damaged("a part of a series is missing"));
            }
            at = 0;
        }
    }

    /// Bytes of the pages read so far.
    pub(crate) fn bytes_read(&self) -> u64 {
        self.bytes_read
    }

    /// Describes the chunks of `series` one by one. To be called as [`SegmentReader::read`].
    pub(crate) fn describe(
        &mut self,
        series: &SeriesKey,
        mut each: impl FnMut(ChunkInfo),
    ) -> Result<(), StorageError> {
        self.each_chunk(series, |reader, at| {
            each(reader.describe_chunk(at)?);
            Ok(())
        })
    }

    fn describe_chunk(&mut self, at: usize) -> Result<ChunkInfo, StorageError> {
        let bytes = self.page.value_bytes(at);
        let value_bytes = bytes.len();
        let codec = if self.page.has_histograms(at) { Some("histograms") } else { codec::class_name(bytes) };
        let codec = codec.ok_or_else(|| self.damaged("values are damaged"))?;
        let times =
            self.page.times(at).map(|times| (times.len(), times.first().copied(), times.last().copied()));
        let Some((samples, Some(first), Some(last))) = times else {
            return Err(self.damaged("times are damaged"));
        };
        Ok(ChunkInfo { codec, samples, first_ms: first, last_ms: last, value_bytes })
    }

    /// Adds what is wanted of chunk `at`.
    fn add(
        &mut self,
        at: usize,
        range: &RangeInclusive<i64>,
        mask: Option<(&Mask, u32)>,
        columns: &mut SeriesColumns,
    ) -> Result<(), StorageError> {
        match self.page.bounds(at) {
            Some((first, last)) if last < *range.start() || *range.end() < first => return Ok(()),
            Some(_) => {}
            None => return Err(self.damaged("times are damaged")),
        }
        let Some(times) = self.page.times(at) else {
            return Err(self.damaged("times are damaged"));
        };
        let from = times.partition_point(|t| t < range.start());
        let to = times.partition_point(|t| t <= range.end()).max(from);
        if from == to {
            return Ok(());
        }
        let is_next = columns.timestamps.last().is_none_or(|last| *last < times[from]);
        let count = times.len();
        if self.page.has_histograms(at) {
            self.histograms.clear();
            let decoded = self.page.decode_histograms(at, &mut self.histograms);
            if decoded.is_none() || self.histograms.len() != count {
                return Err(self.damaged("histograms are damaged"));
            }
            let times = &self.page.times(at).expect("they were just decoded")[from..to];
            let histograms = &self.histograms[from..to];
            match mask {
                Some((mask, ordinal)) => {
                    mask.visible(ordinal, times, histograms, |t, h| columns.merge_histograms(t, h));
                }
                None => columns.merge_histograms(times, histograms),
            }
            return Ok(());
        }
        if is_next && mask.is_none() && columns.histograms.timestamps.is_empty() {
            // The usual chunk: values are decoded to where they stay.
            let times = self.page.times(at).expect("they were just decoded");
            columns.timestamps.extend_from_slice(&times[from..to]);
            let decoded = self.page.decode_values(at, from..to, &mut columns.values);
            if decoded.is_none() || columns.values.len() != columns.timestamps.len() {
                return Err(self.damaged("values are damaged"));
            }
            return Ok(());
        }
        self.values.clear();
        let decoded = self.page.decode_values(at, from..to, &mut self.values);
        if decoded.is_none() || self.values.len() != to - from {
            return Err(self.damaged("values are damaged"));
        }
        let times = &self.page.times(at).expect("they were just decoded")[from..to];
        match mask {
            Some((mask, ordinal)) => mask.visible(ordinal, times, &self.values, |t, v| columns.merge(t, v)),
            None => columns.merge(times, &self.values),
        }
        Ok(())
    }

    /// The first chunk of `series` in the page where the cursor is then.
    fn find(&mut self, series: &SeriesKey) -> Result<Option<usize>, StorageError> {
        for _ in 0..STEPS_MAX {
            if let Some(found) = self.find_in_page(series) {
                return Ok(found);
            }
            if !matches!(self.place, Place::Chunk(_)) || !self.step()? {
                break;
            }
        }
        if let Some(found) = self.find_in_page(series) {
            return Ok(found);
        }
        if self.place == Place::End {
            return Ok(None);
        }
        // Backwards (`seek_for_prev`) RocksDB would look into the file behind, which may be damaged.
        self.rows.seek(self.segment.data_key(*series, 0));
        self.load()?;
        Ok(self.find_in_page(series).flatten())
    }

    /// `None`: behind this page, if anywhere; `Some(None)`: nowhere.
    fn find_in_page(&mut self, series: &SeriesKey) -> Option<Option<usize>> {
        let Place::Chunk(from) = self.place else {
            return None;
        };
        for at in from..self.page.len() {
            match self.page.compare(at, series) {
                Ordering::Less => {}
                Ordering::Equal => return Some(Some(at)),
                Ordering::Greater => return Some(None),
            }
        }
        None
    }

    /// Goes to the next page. Whether there is one.
    fn step(&mut self) -> Result<bool, StorageError> {
        self.rows.next();
        self.load()
    }

    fn load(&mut self) -> Result<bool, StorageError> {
        let Some(bytes) = self.rows.value() else {
            self.place = Place::End;
            let read = self.rows.status();
            return read.map(|()| false).map_err(|e| self.damaged(&e.into_string()));
        };
        self.bytes_read += bytes.len() as u64;
        if self.page.parse(bytes).is_none() {
            self.place = Place::End;
            return Err(self.damaged("a page is damaged"));
        }
        self.place = Place::Chunk(0);
        Ok(true)
    }

    fn damaged(&self, what: &str) -> StorageError {
        let SegmentKey { window, segment, shard } = self.segment;
        let page = self.rows.key().map(hex).unwrap_or_default();
        self.rocks.inconsistent(format!(
            "{what} in segment {segment} of shard {shard}, {} to {} ms, page {page}",
            window.start(),
            self.end - 1
        ))
    }
}

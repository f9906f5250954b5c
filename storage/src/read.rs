//! Reads: from matchers to series, from series to merged samples, one series after the other.
//!
//! A [`Scan`] goes through the series in the order that they have in segments, with a cursor in each segment that
//! the range touches: a segment is read once, from front to back, and the memory that a read takes is that of
//! one series. For some series at a time it takes under the shard's lock what is in memory and the list of live
//! segments, and reads segments without any lock: they never change. Since a flush swaps memory for segments in
//! one step, and each series belongs to one such moment, no sample is missed or invented in between.

use std::ops::{ControlFlow, Range, RangeInclusive};
use std::sync::Arc;

use roaring::RoaringBitmap;
use saturn_model::{Fingerprint, Labels, Selection, SeriesColumns, ShardId};

use crate::engine::Store;
use crate::error::StorageError;
use crate::keys::{Segment, SeriesKey, Tombstone};
use crate::options::ReadLimits;
use crate::past;
use crate::rocks::{Blocks, SegmentReader};
use crate::shard::{Head, Shard};
use crate::tombstones::Mask;

/// Series that are copied from memory under one hold of the shard's lock.
const SERIES_PER_LOCK: usize = 64;
/// Series whose labels are looked up together: neighbours in segments are not neighbours in the index.
const SERIES_PER_LOOK_UP: usize = 1024;
/// Ordinals per series up to which a selection beyond the limit is counted exactly.
const ORDINALS_PER_SERIES: usize = 16;
/// Bytes of one sample in columns.
const SAMPLE_BYTES: u64 = 16;

/// A cursor over merged, visible samples.
pub(crate) struct Scan<'a> {
    store: &'a Store,
    shard: Arc<Shard>,
    range: RangeInclusive<i64>,
    blocks: Blocks,
    /// In the order of segments. A series that was away for a while is there once for each of its ordinals.
    series: Vec<(SeriesKey, u32)>,
    /// The next series.
    at: usize,
    /// What memory had of the series from `copied_from` to `copied_to`. There may be more columns, to be used again.
    in_memory: Vec<SeriesColumns>,
    copied_from: usize,
    copied_to: usize,
    /// Labels of the series from `labels_from` on; none of those that retention took.
    labels: Vec<Option<Labels>>,
    labels_from: usize,
    segments: Arc<Vec<Arc<Segment>>>,
    tombstones: Arc<Vec<Arc<Tombstone>>>,
    sources: Vec<Source<'a>>,
}

struct Source<'a> {
    segment: Arc<Segment>,
    mask: Mask,
    reader: SegmentReader<'a>,
}

impl<'a> Scan<'a> {
    /// Of those of `series`, in the order of segments, that have samples in `range` (milliseconds).
    pub(crate) fn new(
        store: &'a Store,
        shard: Arc<Shard>,
        series: Vec<(SeriesKey, u32)>,
        range: RangeInclusive<i64>,
        blocks: Blocks,
    ) -> Self {
        Self {
            store,
            shard,
            range,
            blocks,
            series,
            at: 0,
            in_memory: Vec::new(),
            copied_from: 0,
            copied_to: 0,
            labels: Vec::new(),
            labels_from: 0,
            segments: Arc::default(),
            tombstones: Arc::default(),
            sources: Vec::new(),
        }
    }

    /// Replaces `columns` by the next series that has samples. `None` at the end.
    pub(crate) fn next_into(
        &mut self,
        columns: &mut SeriesColumns,
    ) -> Result<Option<Fingerprint>, StorageError> {
        while let Some((key, _)) = self.series.get(self.at).copied() {
            if self.at >= self.labels_from + self.labels.len() {
                self.look_up_labels()?;
            }
            if self.at >= self.copied_to {
                self.copy_from_memory();
            }
            let same = self.at..self.at + same_series(&self.series[self.at..]);
            columns.clear_samples();
            self.read_segments(same.clone(), columns)?;
            for at in same.clone() {
                let in_memory = &mut self.in_memory[at - self.copied_from];
                if columns.is_empty() {
                    std::mem::swap(columns, in_memory);
                    continue;
                }
                if !in_memory.timestamps.is_empty() {
                    columns.merge(&in_memory.timestamps, &in_memory.values);
                }
                columns.merge_histograms(&in_memory.histograms.timestamps, &in_memory.histograms.values);
            }
            self.at = same.end;
            if columns.is_empty() {
                continue;
            }
            // Of a series that retention took there may be samples that are not gone yet.
            let labels = &self.labels[same.start - self.labels_from..same.end - self.labels_from];
            if let Some(labels) = labels.iter().flatten().next() {
                columns.labels.clone_from(labels);
                return Ok(Some(key.fingerprint()));
            }
        }
        Ok(None)
    }

    /// Looks up what the next series are called.
    fn look_up_labels(&mut self) -> Result<(), StorageError> {
        let mut to = self.series.len().min(self.at + SERIES_PER_LOOK_UP);
        to += same_series(&self.series[to - 1..]) - 1;
        let some = &self.series[self.at..to];
        let mut by_ordinal: Vec<(u32, usize)> =
            some.iter().enumerate().map(|(at, (_, ordinal))| (*ordinal, at)).collect();
        by_ordinal.sort_unstable();
        self.labels.clear();
        self.labels.resize(some.len(), None);
        self.labels_from = self.at;
        let mut absent = RoaringBitmap::new();
        {
            let index = self.shard.index.read();
            let mut look_ups = index.look_ups();
            for (ordinal, at) in &by_ordinal {
                self.labels[*at] = look_ups.labels(*ordinal);
                if self.labels[*at].is_none() {
                    absent.insert(*ordinal);
                }
            }
        }
        if absent.is_empty() {
            return Ok(());
        }
        for series in past::describe(self.store, &self.shard, &absent)? {
            let place = by_ordinal.binary_search_by_key(&series.ordinal, |(ordinal, _)| *ordinal);
            if let Ok(place) = place {
                self.labels[by_ordinal[place].1] = Some(series.labels);
            }
        }
        Ok(())
    }

    /// What memory has of the next series, and the segments as they are at that moment.
    fn copy_from_memory(&mut self) {
        let (start, end) = (*self.range.start(), *self.range.end());
        let mut to = self.series.len().min(self.at + SERIES_PER_LOCK);
        // All ordinals of a series belong to one moment.
        to += same_series(&self.series[to - 1..]) - 1;
        let some = &self.series[self.at..to];
        if self.in_memory.len() < some.len() {
            self.in_memory.resize_with(some.len(), SeriesColumns::default);
        }
        (self.copied_from, self.copied_to) = (self.at, to);
        let head = self.shard.head.lock();
        for ((_, ordinal), columns) in some.iter().zip(&mut self.in_memory) {
            copy_from_memory(&head, *ordinal, (start, end), columns);
        }
        let is_same =
            Arc::ptr_eq(&self.segments, &head.segments) && Arc::ptr_eq(&self.tombstones, &head.tombstones);
        if is_same {
            return;
        }
        self.segments = Arc::clone(&head.segments);
        self.tombstones = Arc::clone(&head.tombstones);
        drop(head);
        // Segments are in order of time, so that most merges only append.
        let touched = self.segments.iter().filter(|segment| segment.touches(start, end));
        let source = |segment: &Arc<Segment>| Source {
            segment: Arc::clone(segment),
            mask: Mask::new(&self.tombstones, segment),
            reader: self.store.rocks.segment_reader(segment, self.blocks),
        };
        self.sources = touched.map(source).collect();
    }

    /// Adds what segments have of the series with these ordinals.
    fn read_segments(&mut self, same: Range<usize>, columns: &mut SeriesColumns) -> Result<(), StorageError> {
        let place = same.start - self.labels_from..same.end - self.labels_from;
        let same = &self.series[same];
        for Source { segment, mask, reader } in &mut self.sources {
            let Some((key, ordinal)) = same.iter().find(|(_, ordinal)| segment.ordinals.contains(*ordinal))
            else {
                continue;
            };
            reader.read(key, *ordinal, &self.range, mask, columns).map_err(|error| {
                if matches!(error, StorageError::Corrupt { .. }) {
                    self.store.metrics.corrupt_reads.inc();
                }
                let labels = &self.labels[place.clone()];
                match labels.iter().flatten().next() {
                    Some(labels) => error.of_series(labels),
                    None => error,
                }
            })?;
        }
        Ok(())
    }
}

/// How many of the first entries are the first series.
fn same_series(series: &[(SeriesKey, u32)]) -> usize {
    series.iter().take_while(|(key, _)| *key == series[0].0).count()
}

/// The series of one shard that match, one after the other: see `Engine::select_stream`.
///
/// It holds files that merges and retention would remove until it is dropped; dropping it early is how a read is
/// cancelled.
pub struct SeriesStream<'a> {
    /// `None` if there is nothing, or nothing any more.
    scan: Option<Scan<'a>>,
    /// Samples of the series before.
    samples_likely: usize,
    bytes: u64,
    bytes_max: u64,
}

impl Iterator for SeriesStream<'_> {
    type Item = Result<SeriesColumns, StorageError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut columns = SeriesColumns {
            timestamps: Vec::with_capacity(self.samples_likely),
            values: Vec::with_capacity(self.samples_likely),
            ..SeriesColumns::default()
        };
        let more = self.next_into(&mut columns).transpose()?;
        self.samples_likely = columns.timestamps.len();
        Some(more.map(|()| columns))
    }
}

impl SeriesStream<'_> {
    /// Replaces `columns` by the next series. `None`, or after an error: there is none.
    fn next_into(&mut self, columns: &mut SeriesColumns) -> Result<Option<()>, StorageError> {
        let Some(scan) = &mut self.scan else {
            return Ok(None);
        };
        let found = scan.next_into(columns);
        let charged = found.and_then(|found| found.map(|_| self.charge(columns)).transpose());
        if !matches!(charged, Ok(Some(()))) {
            self.scan = None;
        }
        charged
    }

    fn charge(&mut self, series: &SeriesColumns) -> Result<(), StorageError> {
        let samples = series.weight() as u64;
        self.bytes += samples * SAMPLE_BYTES + series.labels.as_encoded().len() as u64;
        if self.bytes > self.bytes_max {
            return Err(StorageError::TooManyBytes { max: self.bytes_max });
        }
        Ok(())
    }

    /// Gives series after series to `each`, until it does not want more.
    pub(crate) fn for_each(
        mut self,
        mut each: impl FnMut(&SeriesColumns) -> ControlFlow<()>,
    ) -> Result<(), StorageError> {
        let mut columns = SeriesColumns::default();
        while self.next_into(&mut columns)?.is_some() {
            if each(&columns).is_break() {
                break;
            }
        }
        Ok(())
    }
}

impl std::fmt::Debug for SeriesStream<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let left = self.scan.as_ref().map_or(0, |scan| scan.series.len() - scan.at);
        f.debug_struct("SeriesStream").field("bytes", &self.bytes).field("series_left_max", &left).finish()
    }
}

/// See `Engine::select_stream`.
pub(crate) fn stream<'a>(
    store: &'a Store,
    shard: ShardId,
    selection: &Selection,
    limits: &ReadLimits,
) -> Result<SeriesStream<'a>, StorageError> {
    let bytes_max = limits.bytes_max;
    let Some(shard) = store.known_shard(shard) else {
        return Ok(SeriesStream { scan: None, samples_likely: 0, bytes: 0, bytes_max });
    };
    let (start, end) = (selection.start.0, selection.end.0);
    let matched = past::matching(store, &shard, selection)?;
    let present = shard.head.lock().present(&matched, start, end);
    let series = in_key_order(store, &shard, &present, limits.series_max)?;
    let scan = Scan::new(store, shard, series, start..=end, Blocks::ReadAgain);
    Ok(SeriesStream { scan: Some(scan), samples_likely: 0, bytes: 0, bytes_max })
}

/// Refuses more than `max` series. One that was away for a while has several ordinals and counts once.
fn in_key_order(
    store: &Store,
    shard: &Shard,
    present: &RoaringBitmap,
    max: usize,
) -> Result<Vec<(SeriesKey, u32)>, StorageError> {
    let ordinals_max = max.saturating_mul(ORDINALS_PER_SERIES) as u64;
    if present.len() > ordinals_max {
        return Err(StorageError::TooManySeries { matched: present.len(), max });
    }
    let series = past::in_key_order(store, shard, present)?;
    let matched = series.chunk_by(|a, b| a.0 == b.0).count();
    if matched > max {
        return Err(StorageError::TooManySeries { matched: matched as u64, max });
    }
    Ok(series)
}

/// Replaces `columns` by what memory has of a series.
fn copy_from_memory(head: &Head, ordinal: u32, (start, end): (i64, i64), columns: &mut SeriesColumns) {
    columns.clear_samples();
    let mut runs = head.runs(ordinal);
    if let Some(run) = runs.next() {
        run.read(start, end, &mut columns.timestamps, &mut columns.values);
    }
    for run in runs {
        let (mut timestamps, mut values) = (Vec::new(), Vec::new());
        run.read(start, end, &mut timestamps, &mut values);
        columns.merge(&timestamps, &values);
    }
    head.histograms.add_range(ordinal, start, end, columns);
}

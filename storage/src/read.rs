//! Reads: from matchers to series, from series to merged samples, one series after the other.
//!
//! A [`Scan`] goes through the series in the order that they have in segments, with a cursor in each segment that
//! the range touches: a segment is read once, from front to back, and the memory that a read takes is that of
//! one series. For some series at a time it takes under the shard's lock what is in memory and the list of live
//! segments, and reads segments without any lock: they never change. Since a flush swaps memory for segments in
//! one step, and each series belongs to one such moment, no sample is missed or invented in between.

use std::collections::HashMap;
use std::ops::{Range, RangeInclusive};
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
    /// What memory had of the series from `copied_from` on.
    in_memory: Vec<SeriesColumns>,
    copied_from: usize,
    /// Labels of those of them that are not in the index any more.
    labels: HashMap<u32, Labels>,
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
            labels: HashMap::new(),
            segments: Arc::default(),
            tombstones: Arc::default(),
            sources: Vec::new(),
        }
    }

    /// Replaces `columns` by the next series that has samples, labels left out. `None` at the end.
    pub(crate) fn next_into(
        &mut self,
        columns: &mut SeriesColumns,
    ) -> Result<Option<Fingerprint>, StorageError> {
        Ok(self.advance(columns)?.map(|(fingerprint, _)| fingerprint))
    }

    /// [`Scan::next_into`] with labels.
    pub(crate) fn next_labelled(&mut self) -> Result<Option<SeriesColumns>, StorageError> {
        let mut columns = SeriesColumns::default();
        let Some((_, labels)) = self.advance(&mut columns)? else {
            return Ok(None);
        };
        columns.labels = labels;
        Ok(Some(columns))
    }

    fn advance(
        &mut self,
        columns: &mut SeriesColumns,
    ) -> Result<Option<(Fingerprint, Labels)>, StorageError> {
        while let Some((key, _)) = self.series.get(self.at).copied() {
            if self.at >= self.copied_from + self.in_memory.len() {
                self.copy_from_memory()?;
            }
            let same = self.at..self.at + same_series(&self.series[self.at..]);
            columns.clear_samples();
            self.read_segments(same.clone(), columns)?;
            for at in same.clone() {
                let in_memory = &self.in_memory[at - self.copied_from];
                if !in_memory.timestamps.is_empty() {
                    columns.merge(&in_memory.timestamps, &in_memory.values);
                }
                columns.merge_histograms(&in_memory.histograms.timestamps, &in_memory.histograms.values);
            }
            self.at = same.end;
            if columns.is_empty() {
                continue;
            }
            // Retention may have taken the series meanwhile.
            if let Some(labels) = self.labels_of(same)? {
                return Ok(Some((key.fingerprint(), labels)));
            }
        }
        Ok(None)
    }

    /// What the series with these ordinals is called, unless retention took it.
    fn labels_of(&self, same: Range<usize>) -> Result<Option<Labels>, StorageError> {
        let ordinals = &self.series[same];
        {
            let index = self.shard.index.read();
            let here = ordinals.iter().rev().find_map(|(_, ordinal)| index.get(*ordinal));
            if let Some(series) = here {
                return Ok(Some(series.labels()));
            }
        }
        if let Some(labels) = ordinals.iter().find_map(|(_, ordinal)| self.labels.get(ordinal)) {
            return Ok(Some(labels.clone()));
        }
        // It left memory a moment ago.
        let ordinals = ordinals.iter().map(|(_, ordinal)| *ordinal).collect();
        let described = past::describe(self.store, &self.shard, &ordinals)?;
        Ok(described.into_iter().next().map(|series| series.labels))
    }

    /// What memory has of the next series, and the segments as they are at that moment.
    fn copy_from_memory(&mut self) -> Result<(), StorageError> {
        let (start, end) = (*self.range.start(), *self.range.end());
        let mut to = self.series.len().min(self.at + SERIES_PER_LOCK);
        // All ordinals of a series belong to one moment.
        to += same_series(&self.series[to - 1..]) - 1;
        let some = &self.series[self.at..to];
        let absent = {
            let index = self.shard.index.read();
            let ordinals: RoaringBitmap = some.iter().map(|(_, ordinal)| *ordinal).collect();
            ordinals - index.known()
        };
        self.labels.clear();
        if !absent.is_empty() {
            let described = past::describe(self.store, &self.shard, &absent)?;
            self.labels.extend(described.into_iter().map(|series| (series.ordinal, series.labels)));
        }
        let head = self.shard.head.lock();
        self.in_memory.clear();
        self.in_memory.extend(some.iter().map(|(_, ordinal)| copy_from_memory(&head, *ordinal, start, end)));
        self.copied_from = self.at;
        let is_same =
            Arc::ptr_eq(&self.segments, &head.segments) && Arc::ptr_eq(&self.tombstones, &head.tombstones);
        if is_same {
            return Ok(());
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
        Ok(())
    }

    /// Adds what segments have of the series with these ordinals.
    fn read_segments(&mut self, same: Range<usize>, columns: &mut SeriesColumns) -> Result<(), StorageError> {
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
                match self.shard.index.read().get(*ordinal) {
                    Some(series) => error.of_series(&series.labels()),
                    None => match self.labels.get(ordinal) {
                        Some(labels) => error.of_series(labels),
                        None => error,
                    },
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
    bytes: u64,
    bytes_max: u64,
}

impl Iterator for SeriesStream<'_> {
    type Item = Result<SeriesColumns, StorageError>;

    fn next(&mut self) -> Option<Self::Item> {
        let item = self.scan.as_mut()?.next_labelled().transpose();
        let checked = item.map(|series| self.charge(series?));
        if !matches!(checked, Some(Ok(_))) {
            self.scan = None;
        }
        checked
    }
}

impl SeriesStream<'_> {
    fn charge(&mut self, series: SeriesColumns) -> Result<SeriesColumns, StorageError> {
        let samples = series.weight() as u64;
        self.bytes += samples * SAMPLE_BYTES + series.labels.as_encoded().len() as u64;
        if self.bytes > self.bytes_max {
            return Err(StorageError::TooManyBytes { max: self.bytes_max });
        }
        Ok(series)
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
        return Ok(SeriesStream { scan: None, bytes: 0, bytes_max });
    };
    let (start, end) = (selection.start.0, selection.end.0);
    let matched = past::matching(store, &shard, selection)?;
    let present = shard.head.lock().present(&matched, start, end);
    let series = in_key_order(store, &shard, &present, limits.series_max)?;
    let scan = Scan::new(store, shard, series, start..=end, Blocks::ReadAgain);
    Ok(SeriesStream { scan: Some(scan), bytes: 0, bytes_max })
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

fn copy_from_memory(head: &Head, ordinal: u32, start: i64, end: i64) -> SeriesColumns {
    let mut columns = SeriesColumns::default();
    let mut runs = head.runs(ordinal);
    if let Some(run) = runs.next() {
        run.read(start, end, &mut columns.timestamps, &mut columns.values);
    }
    for run in runs {
        let (mut timestamps, mut values) = (Vec::new(), Vec::new());
        run.read(start, end, &mut timestamps, &mut values);
        columns.merge(&timestamps, &values);
    }
    head.histograms.add_range(ordinal, start, end, &mut columns);
    columns
}

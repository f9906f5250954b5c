//! Reads: from matchers to series, from series to merged samples.
//!
//! A read takes a snapshot of one shard under its lock (what is in memory, and the list of live segments)
//! and then reads segments without any lock: they never change. Since a flush swaps memory for segments in
//! one step, no sample is missed or invented in between.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::sync::Arc;

use roaring::RoaringBitmap;
use saturn_model::{Fingerprint, Labels, Selection, SeriesColumns, ShardId};

use crate::engine::Store;
use crate::error::StorageError;
use crate::keys::{Segment, SeriesKey, Tombstone};
use crate::shard::{Head, Shard};
use crate::tombstones::Mask;

/// What memory holds of the selected series, parallel to their ordinals.
struct Snapshot {
    ordinals: Vec<u32>,
    in_memory: Vec<SeriesColumns>,
    segments: Arc<Vec<Arc<Segment>>>,
    tombstones: Arc<Vec<Arc<Tombstone>>>,
}

/// See `Engine::select`.
pub(crate) fn select(
    store: &Store,
    shard: ShardId,
    selection: &Selection,
    series_max: usize,
) -> Result<Vec<SeriesColumns>, StorageError> {
    let Some(shard) = store.known_shard(shard) else {
        return Ok(Vec::new());
    };
    let range = selection.start.0..=selection.end.0;
    let matched = matching(&shard, selection);
    let found = columns(store, &shard, &matched, &range, series_max)?;
    Ok(found.into_iter().map(|(_, columns)| columns).collect())
}

/// The merged, visible samples in `range` of those series that have any.
pub(crate) fn columns(
    store: &Store,
    shard: &Shard,
    wanted: &RoaringBitmap,
    range: &RangeInclusive<i64>,
    series_max: usize,
) -> Result<Vec<(Fingerprint, SeriesColumns)>, StorageError> {
    let snapshot = take_snapshot(shard, wanted, *range.start(), *range.end(), series_max)?;
    let from_disk = read_segments(store, shard, &snapshot, range).inspect_err(|error| {
        if matches!(error, StorageError::Corrupt { .. }) {
            store.metrics.corrupt_reads.inc();
        }
    })?;
    let index = shard.index.read();
    let mut found = Vec::with_capacity(from_disk.len());
    for ((mut columns, in_memory), ordinal) in
        from_disk.into_iter().zip(&snapshot.in_memory).zip(&snapshot.ordinals)
    {
        if !in_memory.timestamps.is_empty() {
            columns.merge(&in_memory.timestamps, &in_memory.values);
        }
        // Retention may have taken the series since the snapshot.
        if let Some(series) = index.get(*ordinal).filter(|_| !columns.timestamps.is_empty()) {
            columns.labels = series.labels.clone();
            found.push((series.fingerprint, columns));
        }
    }
    Ok(found)
}

/// The series of the tenant that satisfy the matchers, whenever they had samples.
fn matching(shard: &Shard, selection: &Selection) -> RoaringBitmap {
    let index = shard.index.read();
    index.tenant(&selection.tenant).map(|tenant| tenant.matching(&selection.matchers)).unwrap_or_default()
}

fn take_snapshot(
    shard: &Shard,
    matched: &RoaringBitmap,
    start: i64,
    end: i64,
    series_max: usize,
) -> Result<Snapshot, StorageError> {
    let head = shard.head.lock();
    let present = head.present(matched, start, end);
    if present.len() > series_max as u64 {
        return Err(StorageError::TooManySeries { matched: present.len(), max: series_max });
    }
    let ordinals: Vec<u32> = present.iter().collect();
    let in_memory = ordinals.iter().map(|ordinal| copy_from_memory(&head, *ordinal, start, end)).collect();
    let (segments, tombstones) = (Arc::clone(&head.segments), Arc::clone(&head.tombstones));
    Ok(Snapshot { ordinals, in_memory, segments, tombstones })
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
    columns
}

/// The flushed samples of the snapshot's series, parallel to its ordinals.
fn read_segments(
    store: &Store,
    shard: &Shard,
    snapshot: &Snapshot,
    range: &RangeInclusive<i64>,
) -> Result<Vec<SeriesColumns>, StorageError> {
    let mut columns = vec![SeriesColumns::default(); snapshot.ordinals.len()];
    // Segments are in order of time, so that most merges only append.
    let touched = |segment: &&Arc<Segment>| segment.touches(*range.start(), *range.end());
    let mut segments = snapshot.segments.iter().filter(touched).peekable();
    if segments.peek().is_none() {
        return Ok(columns);
    }
    let mut series: Vec<(SeriesKey, u32, usize)> = {
        let index = shard.index.read();
        let keyed = |(at, ordinal): (usize, &u32)| Some((index.get(*ordinal)?.key(), *ordinal, at));
        snapshot.ordinals.iter().enumerate().filter_map(keyed).collect()
    };
    series.sort_unstable();
    for segment in segments {
        let mask = Mask::new(&snapshot.tombstones, segment);
        let mut reader = store.rocks.segment_reader(segment.key);
        for (key, ordinal, at) in series.iter().filter(|(_, ordinal, _)| segment.ordinals.contains(*ordinal))
        {
            let read = reader.read(key, range, |timestamps, values| {
                mask.visible(*ordinal, timestamps, values, |t, v| columns[*at].merge(t, v));
            });
            read.map_err(|error| match shard.index.read().get(*ordinal) {
                Some(series) => error.of_series(&series.labels),
                None => error,
            })?;
        }
    }
    Ok(columns)
}

/// The series that match and may have samples in the range.
fn present(shard: &Shard, selection: &Selection) -> RoaringBitmap {
    let matched = matching(shard, selection);
    shard.head.lock().present(&matched, selection.start.0, selection.end.0)
}

/// See `Engine::series`.
pub(crate) fn series(store: &Store, shard: ShardId, selection: &Selection) -> Vec<Labels> {
    let Some(shard) = store.known_shard(shard) else {
        return Vec::new();
    };
    let present = present(&shard, selection);
    let index = shard.index.read();
    present.iter().filter_map(|ordinal| Some(index.get(ordinal)?.labels.clone())).collect()
}

/// See `Engine::label_names`.
pub(crate) fn label_names(store: &Store, shard: ShardId, selection: &Selection) -> BTreeSet<String> {
    let Some(shard) = store.known_shard(shard) else {
        return BTreeSet::new();
    };
    let present = present(&shard, selection);
    let index = shard.index.read();
    index.tenant(&selection.tenant).map(|tenant| tenant.names_of(&present)).unwrap_or_default()
}

/// See `Engine::label_values`.
pub(crate) fn label_values(
    store: &Store,
    shard: ShardId,
    selection: &Selection,
    name: &str,
) -> BTreeSet<String> {
    let Some(shard) = store.known_shard(shard) else {
        return BTreeSet::new();
    };
    let present = present(&shard, selection);
    let index = shard.index.read();
    index.tenant(&selection.tenant).map(|tenant| tenant.values_of(name, &present)).unwrap_or_default()
}

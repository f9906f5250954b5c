//! Merges: few, canonical segments per window.
//!
//! A merge reads all segments of a window, shard by shard, resolves what they hold twice, leaves out what
//! tombstones hide, and writes one table file with one segment per shard. The order makes it safe:
//!
//! 1. The merge's number is taken for good, in a synced write.
//! 2. The table file is written and ingested: durable, but read by nobody.
//! 3. One synced write to `meta` makes the new segments live, the old ones not, and forgets the tombstones
//!    that concern nothing any more.
//! 4. In memory, the new segments replace the old ones in one step for readers.
//! 5. Files are removed once none of their segments is live, or in the snapshot of a running read.
//!
//! A crash before 3 leaves a file without live segments, one after 3 leaves the old files: both are removed
//! at start. Retention (`retention.rs`) is steps 3 to 5 without new segments.
//!
//! All of this runs under the lock that flushes take, one window at a time: whatever changes the list of
//! segments does so alone. A window with damaged data is left alone until the next start.

use std::collections::{BTreeMap, HashSet};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use roaring::RoaringBitmap;
use saturn_model::SeriesColumns;

use crate::engine::Store;
use crate::error::StorageError;
use crate::keys::{Segment, SegmentKey, Tombstone, WINDOW_MS, Window};
use crate::past;
use crate::rocks::Blocks;
use crate::segment::{LazyTable, Samples, SegmentWriter};
use crate::shard::Shard;
use crate::tombstones::Mask;

/// Segments of one shard and window beyond which they are merged even while the window is open.
const SEGMENTS_MAX: usize = 4;
/// How long after its end a window still counts as open, in milliseconds: late samples are the rule then.
const GRACE_MS: i64 = WINDOW_MS / 2;

/// What one shard contributes to a merge.
#[derive(Debug)]
struct Input {
    shard: Arc<Shard>,
    segments: Vec<Arc<Segment>>,
    tombstones: Arc<Vec<Arc<Tombstone>>>,
}

/// How one shard's live data changes.
#[derive(Debug)]
pub(crate) struct Change {
    shard: Arc<Shard>,
    pub(crate) removed: Vec<SegmentKey>,
    pub(crate) added: Option<Arc<Segment>>,
    /// The tombstones that are left.
    kept: Vec<Arc<Tombstone>>,
    pub(crate) forgotten: Vec<Arc<Tombstone>>,
}

/// What a step found to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Done,
    Idle,
}

/// Which windows a merge takes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    /// At this time: those that are closed and have something to merge, and those with too many segments.
    At(i64),
    /// Those of which tombstones hide something.
    Hidden,
}

/// See `Engine::clean_tombstones`.
pub(crate) fn clean(store: &Store) -> Result<(), StorageError> {
    while merge_next(store, Due::Hidden)? == Step::Done {}
    sweep(store)
}

/// Merges the window that needs it most, if any does.
pub(crate) fn merge_one(store: &Store, now_ms: i64) -> Result<Step, StorageError> {
    merge_next(store, Due::At(now_ms))
}

fn merge_next(store: &Store, due: Due) -> Result<Step, StorageError> {
    let mut next_segment = store.next_segment.lock();
    store.wal().check()?;
    let Some((window, inputs)) = choose(store, due) else {
        return Ok(Step::Idle);
    };
    let started = Instant::now();
    match merge(store, &mut next_segment, window, inputs) {
        Ok(()) => {
            store.metrics.merge_duration.observe(started.elapsed().as_secs_f64());
            Ok(Step::Done)
        }
        Err(error @ StorageError::Corrupt { .. }) => {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                window_start_ms = window.start(),
                "a window is damaged and stays as it is; repair it from another replica"
            );
            store.metrics.corrupt_reads.inc();
            store.quarantine.lock().insert(window);
            Ok(Step::Done)
        }
        Err(error) => Err(error),
    }
}

/// The window with the most segments among those that are due, and what to merge there.
fn choose(store: &Store, due: Due) -> Option<(Window, Vec<Input>)> {
    let mut windows: BTreeMap<Window, Vec<Input>> = BTreeMap::new();
    let mut hidden = HashSet::new();
    for shard in store.all_shards() {
        let (segments, tombstones) = shard.segments_and_tombstones();
        for group in segments.chunk_by(|a, b| a.key.window == b.key.window) {
            let window = group[0].key.window;
            if group.iter().any(|segment| tombstones.iter().any(|t| t.concerns(segment))) {
                hidden.insert(window);
            }
            windows.entry(window).or_default().push(Input {
                shard: Arc::clone(&shard),
                segments: group.to_vec(),
                tombstones: Arc::clone(&tombstones),
            });
        }
    }
    for (window, inputs) in &mut windows {
        // A table goes once no shard needs it. So where something is hidden, all shards are rewritten, or the space
        // would not come back.
        if !hidden.contains(window) {
            inputs.retain(|input| input.segments.len() > 1 && due != Due::Hidden);
        }
    }
    windows.retain(|_, inputs| !inputs.is_empty());
    let quarantine = store.quarantine.lock();
    let most = |inputs: &Vec<Input>| inputs.iter().map(|input| input.segments.len()).max().unwrap_or(0);
    let is_due = |(window, inputs): &(Window, Vec<Input>)| {
        let wanted = match due {
            Due::At(now_ms) => window.end().saturating_add(GRACE_MS) <= now_ms || most(inputs) > SEGMENTS_MAX,
            Due::Hidden => true,
        };
        wanted && !quarantine.contains(window)
    };
    windows.into_iter().filter(is_due).max_by_key(|(_, inputs)| most(inputs))
}

fn merge(
    store: &Store,
    next_segment: &mut u64,
    window: Window,
    inputs: Vec<Input>,
) -> Result<(), StorageError> {
    let number = *next_segment;
    *next_segment += 1;
    store.rocks.reserve_number(number + 1)?;
    store.failpoint("merge: number reserved")?;
    let path = store.temporary_dir().join(format!("{number:08}-{:08x}.sst", window.0));
    let mut table = LazyTable::new(&store.rocks, path);
    let mut changes = Vec::with_capacity(inputs.len());
    for input in inputs {
        let key = SegmentKey { window, segment: number, shard: input.shard.id };
        let merged = merge_shard(store, &input, SegmentWriter::new(&mut table, key))?.map(Arc::new);
        let removed = input.segments.iter().map(|segment| segment.key).collect();
        let (segments, _) = input.shard.segments_and_tombstones();
        changes.push(change(input.shard, &segments, &input.tombstones, removed, merged));
    }
    store.failpoint("merge: pages written")?;
    if let Some((path, bytes)) = table.finish()? {
        store.failpoint("merge: table finished")?;
        store.rocks.ingest(vec![path])?;
        store.metrics.merged_bytes.inc_by(bytes);
    }
    store.failpoint("merge: ingested")?;
    commit(store, &changes)?;
    store.failpoint("merge: committed")?;
    let samples: u64 = changes.iter().filter_map(|c| c.added.as_ref()).map(|segment| segment.samples).sum();
    store.metrics.merged_samples.inc_by(samples);
    apply(store, changes);
    sweep(store)
}

/// Writes the merged samples of one shard.
fn merge_shard(
    store: &Store,
    input: &Input,
    mut writer: SegmentWriter<'_, '_>,
) -> Result<Option<Segment>, StorageError> {
    let everything: RangeInclusive<i64> = i64::MIN..=i64::MAX;
    let mut ordinals = RoaringBitmap::new();
    for segment in &input.segments {
        ordinals |= &segment.ordinals;
    }
    let series = past::in_key_order(store, &input.shard, &ordinals)?;
    let mut sources: Vec<_> = input
        .segments
        .iter()
        .map(|s| {
            let reader = store.rocks.segment_reader(s.key, Blocks::ReadOnce);
            (s, Mask::new(&input.tombstones, s), reader)
        })
        .collect();
    let mut columns = SeriesColumns::default();
    // A series that was away for a while has several ordinals. It keeps them all, so that whoever holds one
    // of them finds it.
    for same in series.chunk_by(|a, b| a.0 == b.0) {
        columns.clear_samples();
        let key = same[0].0;
        for (segment, mask, reader) in &mut sources {
            if let Some((_, ordinal)) = same.iter().find(|(_, ordinal)| segment.ordinals.contains(*ordinal)) {
                reader.read(&key, *ordinal, &everything, mask, &mut columns)?;
            }
        }
        if !columns.is_empty() {
            writer.push(key, same[0].1, Samples::of(&columns))?;
            same[1..].iter().for_each(|(_, ordinal)| writer.add_ordinal(*ordinal));
        }
    }
    writer.finish()
}

/// What becomes of a shard's tombstones when segments go and come.
pub(crate) fn change(
    shard: Arc<Shard>,
    segments: &[Arc<Segment>],
    tombstones: &[Arc<Tombstone>],
    removed: Vec<SegmentKey>,
    added: Option<Arc<Segment>>,
) -> Change {
    let stays = |segment: &&Arc<Segment>| !removed.contains(&segment.key);
    let (kept, forgotten) = tombstones
        .iter()
        .cloned()
        .partition(|tombstone| segments.iter().filter(stays).any(|segment| tombstone.concerns(segment)));
    Change { shard, removed, added, kept, forgotten }
}

/// Makes changes durable, in one step.
pub(crate) fn commit(store: &Store, changes: &[Change]) -> Result<(), StorageError> {
    let mut index = Vec::new();
    for change in changes {
        past::rows_removed(store, &change.shard, &change.removed, change.added.as_ref(), &mut index)?;
    }
    store.rocks.commit_changes(changes, index)
}

/// Makes committed changes visible to reads.
pub(crate) fn apply(store: &Store, changes: Vec<Change>) {
    let mut graveyard = store.graveyard.lock();
    for change in changes {
        let Change { shard, removed, added, kept, .. } = change;
        let count = u64::from(added.is_some());
        let gone = shard.replace_segments(&removed, added, kept);
        store.disk_segments.fetch_add(count, Ordering::Relaxed);
        store.disk_segments.fetch_sub(gone.len() as u64, Ordering::Relaxed);
        graveyard.extend(gone);
    }
}

/// Removes the table files of which nothing is live, or read by anybody, any more.
pub(crate) fn sweep(store: &Store) -> Result<(), StorageError> {
    let mut graveyard = store.graveyard.lock();
    if graveyard.is_empty() {
        return Ok(());
    }
    let mut needed: HashSet<(Window, u64)> = HashSet::new();
    for shard in store.all_shards() {
        let (segments, _) = shard.segments_and_tombstones();
        needed.extend(segments.iter().map(|segment| (segment.key.window, segment.key.segment)));
    }
    // Nobody can take a new reference to a segment that is in no list of live ones.
    let read = graveyard.iter().filter(|segment| Arc::strong_count(segment) > 1);
    needed.extend(read.map(|segment| (segment.key.window, segment.key.segment)));
    let (kept, gone): (Vec<_>, Vec<_>) = std::mem::take(&mut *graveyard)
        .into_iter()
        .partition(|segment| needed.contains(&(segment.key.window, segment.key.segment)));
    *graveyard = kept;
    let tables: HashSet<(Window, u64)> =
        gone.iter().map(|segment| (segment.key.window, segment.key.segment)).collect();
    for (window, number) in tables {
        // What cannot be removed now is removed at the next start.
        store.rocks.remove_table(window, number)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;

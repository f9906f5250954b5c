//! Dropping a shard: what a node does with its copy once others own the shard.
//!
//! 1. A flush: the log below it, with all that was appended to the shard before, is not replayed any more.
//! 2. One synced write takes the rows of segments and tombstones out of `meta`, those of series and days out of
//!    `index`, those of exemplars and metadata out of `notes`, and says that no series is in memory.
//! 3. In memory, the shard is empty; files are removed as after a merge (`merge.rs`).
//!
//! A crash before 2 leaves everything, and whoever wanted it gone asks again; one after it leaves nothing. The
//! shard's ordinals stay taken: records of the log that name them find nobody, so they bring nothing back. What is
//! appended while this runs may stay or go; the fence above the engine keeps writers of a shard that is not owned out.
//!
//! Tables hold segments of many shards. Where a dropped shard was a good part of one, it is written anew without it by
//! the merges that follow; other space comes back when its window or day is merged anyway, or with retention. What was
//! dropped before a restart waits for that, too.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use roaring::RoaringBitmap;
use saturn_model::ShardId;

use crate::day_rows::{self, Day};
use crate::engine::Store;
use crate::error::StorageError;
use crate::flush;
use crate::keys::SeriesRow;
use crate::merge;
use crate::rocks::{DroppedRows, IndexWrite, Resident};

/// See `Engine::drop_shard`.
pub(crate) fn drop_shard(store: &Store, id: ShardId) -> Result<(), StorageError> {
    let Some(shard) = store.known_shard(id) else {
        return Ok(());
    };
    let mut next_segment = store.next_segment.lock();
    flush::flush_locked(store, &mut next_segment)?;
    let (segments, tombstones) = shard.segments_and_tombstones();
    let days: BTreeSet<Day> = segments.iter().map(|segment| Day::of(segment.key.window)).collect();
    let series = (SeriesRow::key(id, 0), day_rows::behind(&SeriesRow::key(id, u32::MAX)));
    let ranges = days.into_iter().map(|day| day.range(id)).chain([series]);
    let rows = DroppedRows {
        index: ranges.map(|(from, to)| IndexWrite::DeleteRange(from, to)).collect(),
        segments: segments.iter().map(|segment| segment.key).collect(),
        tombstones: &tombstones,
        resident: Resident { shard: id, ordinals: shard.next_ordinal(), series: RoaringBitmap::new() },
    };
    store.rocks.commit_drop(rows)?;
    store.failpoint("drop: committed")?;
    let cleared = shard.clear();
    store.forget_head(cleared.samples, cleared.bytes);
    store.count_series();
    store.quarantine.lock().retain(|(shard, _)| *shard != id);
    store.disk_segments.fetch_sub(segments.len() as u64, Ordering::Relaxed);
    merge::free_space_of(store, &segments);
    // This list and the shard's are the last that name them, but for reads.
    drop(segments);
    store.graveyard.lock().extend(Arc::unwrap_or_clone(cleared.segments));
    merge::sweep(store)
}

//! Deleting series: durable marks that hide samples at once, until merges leave them out for good.
//!
//! A tombstone is resolved when it is made: heads are flushed, so that everything there is lies in segments
//! with lower numbers, and the matchers become a set of ordinals. Samples that arrive later lie in segments
//! with higher numbers: they stay, whatever their time. A tombstone that concerns no live segment any more
//! is forgotten.
//!
//! The log must not bring a hidden sample back into memory after a crash, where no tombstone hides it. A flush
//! leaves what was appended while it began in the log that it keeps; so a deletion flushes twice, even if nothing
//! is in memory: the first flush moves what it hides to disk, the second one takes that out of the log. What the
//! second one moves lies above the tombstone, and stays. Exemplars are deleted from memory, and from their rows by the
//! first flush.

use std::ops::Range;
use std::sync::Arc;

use roaring::RoaringBitmap;
use saturn_model::Selection;

use crate::engine::Store;
use crate::error::StorageError;
use crate::flush;
use crate::keys::{Segment, Tombstone};
use crate::past;

/// The tombstones that hide samples of one segment.
#[derive(Debug)]
pub(crate) struct Mask(Vec<Arc<Tombstone>>);

impl Mask {
    pub(crate) fn new(tombstones: &[Arc<Tombstone>], segment: &Segment) -> Self {
        Self(tombstones.iter().filter(|tombstone| tombstone.concerns(segment)).cloned().collect())
    }

    /// Whether a series may have hidden samples.
    pub(crate) fn hides_some_of(&self, ordinal: u32) -> bool {
        self.0.iter().any(|tombstone| tombstone.ordinals.contains(ordinal))
    }

    /// Gives what is left of a series' samples to `each`, in one piece or several.
    pub(crate) fn visible<T>(
        &self,
        ordinal: u32,
        timestamps: &[i64],
        values: &[T],
        mut each: impl FnMut(&[i64], &[T]),
    ) {
        let mut left = Vec::from([Range { start: 0, end: timestamps.len() }]);
        for tombstone in self.0.iter().filter(|tombstone| tombstone.ordinals.contains(ordinal)) {
            let from = timestamps.partition_point(|t| *t < tombstone.first_ms);
            let to = timestamps.partition_point(|t| *t <= tombstone.last_ms).max(from);
            left = left.into_iter().flat_map(|piece| without(piece, from..to)).collect();
        }
        for piece in left.into_iter().filter(|piece| !piece.is_empty()) {
            each(&timestamps[piece.clone()], &values[piece]);
        }
    }
}

/// What is left of `piece` before and after `gone`.
fn without(piece: Range<usize>, gone: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let before = piece.start..piece.end.min(gone.start);
    let after = piece.start.max(gone.end)..piece.end;
    let parts = if gone.is_empty() { [piece, 0..0] } else { [before, after] };
    parts.into_iter().filter(|part| !part.is_empty())
}

/// The series of a segment that may have visible samples from `start` to `end`, both inclusive.
pub(crate) fn visible_ordinals(
    segment: &Segment,
    tombstones: &[Arc<Tombstone>],
    start: i64,
    end: i64,
) -> RoaringBitmap {
    let (start, end) = (start.max(segment.first_ms), end.min(segment.last_ms));
    let mut visible = segment.ordinals.clone();
    for tombstone in tombstones.iter().filter(|tombstone| tombstone.concerns(segment)) {
        if tombstone.first_ms <= start && end <= tombstone.last_ms {
            visible -= &tombstone.ordinals;
        }
    }
    visible
}

/// See `Engine::delete_series`.
pub(crate) fn delete(store: &Store, selection: &Selection) -> Result<u64, StorageError> {
    let (first_ms, last_ms) = (selection.start.0, selection.end.0);
    if first_ms > last_ms {
        return Err(StorageError::Invalid { reason: format!("the range {first_ms} to {last_ms} is empty") });
    }
    let mut next_segment = store.next_segment.lock();
    for shard in store.all_shards() {
        let range = (selection.start, selection.end);
        shard.notes.lock().delete_exemplars(&selection.tenant, &selection.matchers, range);
    }
    flush::flush_locked(store, &mut next_segment)?;
    let number = *next_segment;
    *next_segment += 1;
    flush::flush_locked(store, &mut next_segment)?;
    let mut made = Vec::new();
    let mut deleted = 0;
    for shard in store.all_shards() {
        let matched = past::matching(store, &shard, selection)?;
        if matched.is_empty() {
            continue;
        }
        let (segments, tombstones) = shard.segments_and_tombstones();
        let mut ordinals = RoaringBitmap::new();
        let below = segments.iter().filter(|segment| segment.key.segment < number);
        for segment in below.filter(|segment| segment.touches(first_ms, last_ms)) {
            ordinals |= visible_ordinals(segment, &tombstones, first_ms, last_ms) & &matched;
        }
        if !ordinals.is_empty() {
            deleted += ordinals.len();
            ordinals.optimize();
            let tombstone = Tombstone { shard: shard.id, number, first_ms, last_ms, ordinals };
            made.push((shard, Arc::new(tombstone)));
        }
    }
    if made.is_empty() {
        return Ok(0);
    }
    store.rocks.write_tombstones(made.iter().map(|(_, tombstone)| &**tombstone), *next_segment)?;
    store.failpoint("delete: tombstones written")?;
    for (shard, tombstone) in made {
        shard.add_tombstone(tombstone);
    }
    Ok(deleted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::{SegmentKey, Span, Window};
    use proptest::prelude::*;
    use saturn_model::ShardId;

    proptest! {
        #[test]
        fn a_mask_hides_exactly_its_ranges(
            times in proptest::collection::btree_set(0_i64..60, 1..40),
            ranges in proptest::collection::vec((0_i64..60, 0_i64..30, any::<bool>()), 0..5),
        ) {
            let times: Vec<i64> = times.into_iter().collect();
            let values = vec![1.0; times.len()];
            let key = SegmentKey { window: Window(0), segment: 5, shard: ShardId(1) };
            let ordinals = RoaringBitmap::from_iter([3]);
            let segment = Segment { key, span: Span::Window, samples: 1, first_ms: times[0], last_ms: 60, ordinals };
            let tombstones: Vec<Arc<Tombstone>> = ranges.iter().map(|(from, len, own)| Arc::new(Tombstone {
                shard: ShardId(1), number: 6, first_ms: *from, last_ms: from + len,
                ordinals: RoaringBitmap::from_iter([if *own { 3 } else { 4 }]),
            })).collect();
            let hidden = |t: i64| ranges.iter().any(|(from, len, own)| *own && (*from..=from + len).contains(&t));
            let want: Vec<i64> = times.iter().copied().filter(|t| !hidden(*t)).collect();
            let mut got = Vec::new();
            Mask::new(&tombstones, &segment).visible(3, &times, &values, |t, _| got.extend_from_slice(t));
            prop_assert_eq!(&got, &want);
            if !visible_ordinals(&segment, &tombstones, 0, 100).contains(3) {
                prop_assert!(want.is_empty());
            }
        }
    }
}

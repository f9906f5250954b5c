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
//! first flush. Where nothing matches, nothing is flushed.
//!
//! The replicas of a shard agree on deletions, and number them. Each remembers the last one that it has done, in the
//! same write as its tombstones, and takes samples from another replica (`import.rs`) only if that one has done the
//! same ones: otherwise a deleted sample would come back as a new one.

use std::ops::Range;
use std::sync::Arc;

use roaring::RoaringBitmap;
use saturn_model::{Selection, ShardId};

use crate::engine::Store;
use crate::error::StorageError;
use crate::flush;
use crate::keys::{Segment, Tombstone};
use crate::past;
use crate::shard::Shard;

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

/// What the replicas of a shard agreed to delete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgreedDeletions {
    /// Of which shard.
    pub shard: ShardId,
    /// The number of the last of them; numbers of a shard only grow.
    pub through: u64,
    /// What is deleted.
    pub selections: Vec<Selection>,
}

/// What to delete in one shard.
struct Order {
    shard: Arc<Shard>,
    selections: Vec<Selection>,
}

/// See `Engine::delete_series`.
pub(crate) fn delete(store: &Store, selection: &Selection) -> Result<u64, StorageError> {
    let shards = store.all_shards().into_iter();
    let orders = shards.map(|shard| Order { shard, selections: vec![selection.clone()] }).collect();
    carry_out(store, orders, &[])
}

/// See `Engine::delete_agreed`.
pub(crate) fn delete_agreed(store: &Store, agreed: Vec<AgreedDeletions>) -> Result<u64, StorageError> {
    let deleted: Vec<(ShardId, u64)> = agreed.iter().map(|order| (order.shard, order.through)).collect();
    let order = |AgreedDeletions { shard, selections, .. }| Order { shard: store.shard(shard), selections };
    carry_out(store, agreed.into_iter().map(order).collect(), &deleted)
}

/// `deleted`: the agreed deletions that are done then.
fn carry_out(store: &Store, orders: Vec<Order>, deleted: &[(ShardId, u64)]) -> Result<u64, StorageError> {
    for Selection { start, end, .. } in orders.iter().flat_map(|order| &order.selections) {
        if start > end {
            return Err(StorageError::Invalid { reason: format!("the range {start} to {end} is empty") });
        }
    }
    let mut next_segment = store.next_segment.lock();
    let mut concerns = false;
    for Order { shard, selections } in &orders {
        for selection in selections {
            concerns |= shard.notes.lock().delete_exemplars(selection) > 0;
            concerns |= !past::matching(store, shard, selection)?.is_empty();
        }
    }
    let mut made = Vec::new();
    if concerns {
        flush::flush_locked(store, &mut next_segment)?;
        let number = *next_segment;
        // Each tombstone of a shard needs a number of its own.
        *next_segment += orders.iter().map(|order| order.selections.len() as u64).max().unwrap_or_default();
        flush::flush_locked(store, &mut next_segment)?;
        for Order { shard, selections } in &orders {
            for (number, selection) in (number..).zip(selections) {
                let tombstone = tombstone(store, shard, number, selection)?;
                made.extend(tombstone.map(|tombstone| (shard, Arc::new(tombstone))));
            }
        }
    }
    if made.is_empty() && deleted.is_empty() {
        return Ok(0);
    }
    store.rocks.write_tombstones(made.iter().map(|(_, tombstone)| &**tombstone), deleted, *next_segment)?;
    store.failpoint("delete: tombstones written")?;
    let series = made.iter().map(|(_, tombstone)| tombstone.ordinals.len()).sum();
    for (shard, tombstone) in made {
        shard.add_tombstone(tombstone);
    }
    for (shard, through) in deleted {
        store.shard(*shard).set_deleted_through(*through);
    }
    Ok(series)
}

/// What hides the shard's matching samples in segments below `number`, if there are any.
fn tombstone(
    store: &Store,
    shard: &Shard,
    number: u64,
    selection: &Selection,
) -> Result<Option<Tombstone>, StorageError> {
    let matched = past::matching(store, shard, selection)?;
    let (first_ms, last_ms) = (selection.start.0, selection.end.0);
    let (segments, tombstones) = shard.segments_and_tombstones();
    let mut ordinals = RoaringBitmap::new();
    let below = segments.iter().filter(|segment| segment.key.segment < number);
    for segment in below.filter(|segment| segment.touches(first_ms, last_ms)) {
        ordinals |= visible_ordinals(segment, &tombstones, first_ms, last_ms) & &matched;
    }
    ordinals.optimize();
    let tombstone = Tombstone { shard: shard.id, number, first_ms, last_ms, ordinals };
    Ok((!tombstone.ordinals.is_empty()).then_some(tombstone))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::{SegmentKey, Span, Window};
    use proptest::prelude::*;

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

//! Retention: days that are too old go.
//!
//! Time is kept in whole days (UTC), per tenant; in whole windows of 2 h if the default is less than two days. A segment
//! of which nobody's samples are kept any more goes as a file, at no cost. Where tenants keep different times, those
//! whose time is over are hidden by a tombstone at once, and the next merge leaves them out: one rewrite of a day (or
//! window) per distinct retention.
//!
//! 1. One synced write to `meta` takes the rows of segments without kept samples out; then memory, then files,
//!    as in a merge (`merge.rs`).
//! 2. One synced write to `meta` adds the tombstones; then reads see them.
//!
//! A crash in between leaves the rest to the next round.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use roaring::RoaringBitmap;
use saturn_model::{Selection, TenantId, TimestampMs};

use crate::engine::Store;
use crate::error::StorageError;
use crate::keys::{SegmentKey, Span, Tombstone};
use crate::merge::{apply, change, commit, sweep};
use crate::past;
use crate::shard::Shard;
use crate::tombstones::visible_ordinals;

/// Below this default, time is kept by windows, and merges make no larger segments.
const DAYS_MATTER: Duration = Duration::from_secs(2 * 24 * 3600);

/// How long samples are kept, by whole days in UTC; by whole windows of 2 h if the default is less than two days.
/// `None`: for ever.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// For every tenant without a time of its own.
    pub default: Option<Duration>,
    /// For these tenants.
    pub tenants: BTreeMap<TenantId, Option<Duration>>,
}

impl Retention {
    /// The same for all tenants.
    pub fn of_all(default: Option<Duration>) -> Self {
        Self { default, tenants: BTreeMap::new() }
    }

    /// How long this tenant's samples are kept.
    pub fn of(&self, tenant: &TenantId) -> Option<Duration> {
        self.tenants.get(tenant).copied().unwrap_or(self.default)
    }

    fn is_for_ever(&self) -> bool {
        self.default.is_none() && self.tenants.values().all(Option::is_none)
    }

    /// The largest segments that merges make. Replicas must drop the same samples whatever they merged, so time is
    /// kept in such steps.
    pub(crate) fn longest_span(&self) -> Span {
        if self.default.is_none_or(|kept| kept >= DAYS_MATTER) { Span::Day } else { Span::Window }
    }

    /// Samples before it are not kept.
    fn cutoff(&self, kept: Duration, now_ms: i64) -> i64 {
        let cutoff = now_ms.saturating_sub(i64::try_from(kept.as_millis()).unwrap_or(i64::MAX));
        let step = self.longest_span().ms();
        cutoff.div_euclid(step).saturating_mul(step)
    }
}

/// Some series of a shard, and before which time they are not kept.
struct Expiry {
    series: Series,
    cutoff: i64,
}

/// Series by their ordinals.
enum Series {
    /// Of one tenant that has a time of its own.
    These(RoaringBitmap),
    /// Of all tenants but those.
    Others(RoaringBitmap),
}

impl Series {
    fn of(&self, ordinals: RoaringBitmap) -> RoaringBitmap {
        match self {
            Self::These(own) => ordinals & own,
            Self::Others(others) => ordinals - others,
        }
    }
}

/// Drops and hides what is not kept any more at `now_ms`.
pub(crate) fn expire(store: &Store, now_ms: i64) -> Result<(), StorageError> {
    let mut next_segment = store.next_segment.lock();
    if store.options.retention.is_for_ever() {
        return sweep(store);
    }
    let dropped = drop_segments(store, now_ms)?;
    let hidden = hide_series(store, now_ms, &mut next_segment)?;
    if dropped + hidden > 0 {
        tracing::info!(segments = dropped, series = hidden, "retention dropped what is too old");
    }
    sweep(store)
}

fn expiries(store: &Store, shard: &Shard, now_ms: i64) -> Result<Vec<Expiry>, StorageError> {
    let retention = &store.options.retention;
    let (mut expiries, mut with_own) = (Vec::new(), RoaringBitmap::new());
    for tenant in retention.tenants.keys() {
        let (start, end) = (TimestampMs(i64::MIN), TimestampMs(i64::MAX));
        let all = Selection { tenant: tenant.clone(), matchers: Vec::new(), start, end };
        let series = past::matching(store, shard, &all)?;
        with_own |= &series;
        if let Some(cutoff) = retention.of(tenant).map(|kept| retention.cutoff(kept, now_ms)) {
            expiries.push(Expiry { series: Series::These(series), cutoff });
        }
    }
    if let Some(kept) = retention.default {
        let series = Series::Others(with_own);
        expiries.push(Expiry { series, cutoff: retention.cutoff(kept, now_ms) });
    }
    Ok(expiries)
}

/// Takes out the segments of which nothing is kept. Returns how many.
fn drop_segments(store: &Store, now_ms: i64) -> Result<u64, StorageError> {
    let mut changes = Vec::new();
    for shard in store.all_shards() {
        let expiries = expiries(store, &shard, now_ms)?;
        let (segments, tombstones) = shard.segments_and_tombstones();
        let mut removed: Vec<SegmentKey> = Vec::new();
        for segment in segments.iter() {
            let mut kept = segment.ordinals.clone();
            for expiry in expiries.iter().filter(|expiry| segment.end() <= expiry.cutoff) {
                kept -= expiry.series.of(kept.clone());
            }
            if kept.is_empty() {
                removed.push(segment.key);
            }
        }
        if !removed.is_empty() {
            changes.push(change(shard, &segments, &tombstones, removed, None));
        }
    }
    if changes.is_empty() {
        return Ok(0);
    }
    commit(store, &changes)?;
    store.failpoint("retention: committed")?;
    let dropped = changes.iter().map(|change| change.removed.len() as u64).sum();
    apply(store, changes);
    store.metrics.expired_segments.inc_by(dropped);
    Ok(dropped)
}

/// Hides what shares its segments with samples that are kept. Returns how many series.
fn hide_series(store: &Store, now_ms: i64, next_segment: &mut u64) -> Result<u64, StorageError> {
    let first_number = *next_segment;
    let mut made: Vec<(Arc<Shard>, Arc<Tombstone>)> = Vec::new();
    for shard in store.all_shards() {
        let (segments, tombstones) = shard.segments_and_tombstones();
        let mut number = first_number;
        for Expiry { series, cutoff } in expiries(store, &shard, now_ms)? {
            let last_ms = cutoff.saturating_sub(1);
            let mut ordinals = RoaringBitmap::new();
            for segment in segments.iter().filter(|segment| segment.end() <= cutoff) {
                ordinals |= series.of(visible_ordinals(segment, &tombstones, i64::MIN, i64::MAX));
            }
            if !ordinals.is_empty() {
                ordinals.optimize();
                let tombstone = Tombstone { shard: shard.id, number, first_ms: i64::MIN, last_ms, ordinals };
                made.push((Arc::clone(&shard), Arc::new(tombstone)));
                // Two tombstones of one shard need two numbers.
                number += 1;
            }
        }
        *next_segment = number.max(*next_segment);
    }
    if made.is_empty() {
        return Ok(0);
    }
    store.rocks.write_tombstones(made.iter().map(|(_, tombstone)| &**tombstone), &[], *next_segment)?;
    store.failpoint("retention: tombstones written")?;
    let hidden = made.iter().map(|(_, tombstone)| tombstone.ordinals.len()).sum();
    for (shard, tombstone) in made {
        shard.add_tombstone(tombstone);
    }
    store.metrics.expired_series.inc_by(hidden);
    Ok(hidden)
}

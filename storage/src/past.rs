//! Series that are not in memory: found by the rows of their days, described by their own rows.
//!
//! What the rows of a day say is narrowed to the series that live segments of that day hold, so rows may say
//! too much (a flush died before its commit, or a series lost its last samples of the day) but never too little.
//! Results are remembered by the newest segment of the day: rows for a segment are written before it is live.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use parking_lot::Mutex;
use roaring::RoaringBitmap;
use saturn_model::{Labels, MatchOp, Matcher, Selection, ShardId, TenantId};

use crate::day_rows::{self, Day, DayRows};
use crate::engine::Store;
use crate::error::StorageError;
use crate::index::Cache;
use crate::keys::{Segment, SegmentKey, SeriesKey, SeriesRow};
use crate::rocks::IndexWrite;
use crate::shard::Shard;

/// So few series are looked at one by one rather than all values of a label.
const CANDIDATES_MAX: u64 = 64;

/// Remembered results of matchers, for all shards and days, bounded by bytes.
#[derive(Debug)]
pub(crate) struct PastCache(Mutex<Cache<Question, Arc<RoaringBitmap>>>);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Question {
    rows: DayRows,
    /// Number of the newest segment of the day.
    version: u64,
    name: Box<str>,
    op: MatchOp,
    value: Box<str>,
}

impl PastCache {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self(Mutex::new(Cache::new(bytes_max)))
    }
}

/// What a series is called, and where it is in segments.
#[derive(Clone, Debug)]
pub(crate) struct Described {
    pub(crate) ordinal: u32,
    pub(crate) key: SeriesKey,
    pub(crate) labels: Labels,
}

/// Series of one day that are not in memory.
#[derive(Debug)]
pub(crate) struct Absent {
    day: Day,
    version: u64,
    pub(crate) ordinals: RoaringBitmap,
}

/// The tenant's series that satisfy the matchers, of all times as far as they are in memory, and else of those
/// that may have samples in the range.
pub(crate) fn matching(
    store: &Store,
    shard: &Shard,
    selection: &Selection,
) -> Result<RoaringBitmap, StorageError> {
    // In this order: a series that leaves memory in between is found twice, one that left before by its rows.
    let mut found = shard.index.read().matching(&selection.tenant, &selection.matchers);
    for absent in absent_of(shard, selection.start.0, selection.end.0) {
        found |= absent.matching(store, shard.id, &selection.tenant, &selection.matchers)?;
    }
    Ok(found)
}

/// The shard's series with flushed samples from `start` to `end` that are not in memory, by day.
pub(crate) fn absent_of(shard: &Shard, start: i64, end: i64) -> Vec<Absent> {
    let head = shard.head.lock();
    absent(&head.segments, shard.index.read().known(), start, end)
}

fn absent(segments: &[Arc<Segment>], known: &RoaringBitmap, start: i64, end: i64) -> Vec<Absent> {
    let mut days: BTreeMap<Day, Absent> = BTreeMap::new();
    for segment in segments.iter().filter(|segment| segment.touches(start, end)) {
        if !segment.ordinals.is_subset(known) {
            let day = Day::of(segment.key.window);
            let absent = Absent { day, version: 0, ordinals: RoaringBitmap::new() };
            days.entry(day).or_insert(absent).ordinals |= &segment.ordinals - known;
        }
    }
    for segment in segments {
        if let Some(absent) = days.get_mut(&Day::of(segment.key.window)) {
            absent.version = absent.version.max(segment.key.segment);
        }
    }
    days.into_values().collect()
}

impl Absent {
    /// Those that satisfy all matchers.
    pub(crate) fn matching(
        &self,
        store: &Store,
        shard: ShardId,
        tenant: &TenantId,
        matchers: &[Matcher],
    ) -> Result<RoaringBitmap, StorageError> {
        let rows = DayRows::new(self.day, shard, tenant);
        let mut ordered: Vec<&Matcher> = matchers.iter().collect();
        ordered.sort_by_key(|matcher| (matcher.matches_empty(), matcher.literal_values().is_none()));
        let mut found = self.ordinals.clone();
        if ordered.first().is_none_or(|matcher| matcher.matches_empty()) {
            // No matcher takes other tenants' series out.
            found &= &*self.remembered(store, &rows, None)?;
        }
        for matcher in ordered {
            if found.is_empty() {
                break;
            }
            if matcher.literal_values().is_none() && found.len() <= CANDIDATES_MAX {
                found = filter(store, (shard, tenant), &found, matcher)?;
                continue;
            }
            let selected = self.remembered(store, &rows, Some(matcher))?;
            if matcher.matches_empty() {
                found -= &*selected;
            } else {
                found &= &*selected;
            }
        }
        Ok(found)
    }

    /// The series that have a value that the matcher accepts; for one that also accepts series without the label,
    /// those that have a value which it refuses. Without a matcher: all series of the tenant.
    fn remembered(
        &self,
        store: &Store,
        rows: &DayRows,
        matcher: Option<&Matcher>,
    ) -> Result<Arc<RoaringBitmap>, StorageError> {
        let (name, op, value) = matcher
            .map_or(("", MatchOp::Equal, ""), |matcher| (matcher.name(), matcher.op(), matcher.value()));
        let version = self.version;
        let question = Question { rows: rows.clone(), version, name: name.into(), op, value: value.into() };
        if let Some(known) = store.past.0.lock().get(&question) {
            return Ok(Arc::clone(known));
        }
        let mut found = match matcher {
            Some(matcher) => read_matcher(store, rows, matcher)?,
            None => store.rocks.day_row(&rows.all())?,
        };
        found.optimize();
        let found = Arc::new(found);
        let bytes = found.serialized_size() + name.len() + value.len() + 256;
        store.past.0.lock().insert(question, Arc::clone(&found), bytes);
        Ok(found)
    }

    /// Adds label names that occur on any of `series`, until there are more than `max`.
    pub(crate) fn names_of(
        &self,
        store: &Store,
        rows: &DayRows,
        series: &RoaringBitmap,
        max: usize,
        names: &mut BTreeSet<String>,
    ) -> Result<(), StorageError> {
        let mut from = rows.pairs();
        let end = day_rows::behind(&from);
        while names.len() <= max {
            // Value after value of one label until one occurs, then the next label.
            let mut next = None;
            store.rocks.each_day_row(&from, &end, |key, ordinals| {
                let (name, _) = rows.read_pair(key)?;
                if names.contains(&name) || !ordinals()?.is_disjoint(series) {
                    next = Some(day_rows::behind(&rows.pair(&name, "")));
                    names.insert(name);
                    return Some(false);
                }
                Some(true)
            })?;
            match next {
                Some(behind) => from = behind,
                None => break,
            }
        }
        Ok(())
    }

    /// Adds the values of label `name` that occur on any of `series`, until there are more than `max`.
    pub(crate) fn values_of(
        &self,
        store: &Store,
        (rows, name): (&DayRows, &str),
        series: &RoaringBitmap,
        max: usize,
        values: &mut BTreeSet<String>,
    ) -> Result<(), StorageError> {
        let from = rows.pair(name, "");
        store.rocks.each_day_row(&from, &day_rows::behind(&from), |key, ordinals| {
            if !ordinals()?.is_disjoint(series) {
                values.insert(rows.read_pair(key)?.1);
            }
            Some(values.len() <= max)
        })
    }

    /// The rows of this day.
    pub(crate) fn rows(&self, shard: ShardId, tenant: &TenantId) -> DayRows {
        DayRows::new(self.day, shard, tenant)
    }
}

/// See [`Absent::remembered`].
fn read_matcher(store: &Store, rows: &DayRows, matcher: &Matcher) -> Result<RoaringBitmap, StorageError> {
    let name = matcher.name();
    let wanted = !matcher.matches_empty();
    let mut found = RoaringBitmap::new();
    if !wanted && matcher.op() == MatchOp::NotEqual {
        return store.rocks.day_row(&rows.pair(name, matcher.value()));
    }
    if let (true, Some(values)) = (wanted, matcher.literal_values()) {
        for value in values {
            found |= store.rocks.day_row(&rows.pair(name, value))?;
        }
        return Ok(found);
    }
    let from = rows.pair(name, matcher.prefix().unwrap_or_default());
    let value_at = rows.pair(name, "").len();
    store.rocks.each_day_row(&from, &day_rows::behind(&from), |key, ordinals| {
        let value = std::str::from_utf8(key.get(value_at..)?).ok()?;
        if matcher.matches(value) == wanted {
            found |= ordinals()?;
        }
        Some(true)
    })?;
    Ok(found)
}

/// Leaves the series that satisfy the matcher, by their own rows.
fn filter(
    store: &Store,
    (shard, tenant): (ShardId, &TenantId),
    candidates: &RoaringBitmap,
    matcher: &Matcher,
) -> Result<RoaringBitmap, StorageError> {
    let mut found = RoaringBitmap::new();
    store.rocks.series_rows(shard, candidates, |row| {
        if row.tenant == *tenant && matcher.matches(row.labels.get(matcher.name()).unwrap_or_default()) {
            found.insert(row.ordinal);
        }
    })?;
    Ok(found)
}

/// What these series are called, from memory or disk, ascending by ordinal. Those that retention or a merge
/// has taken meanwhile are left out.
pub(crate) fn describe(
    store: &Store,
    shard: &Shard,
    ordinals: &RoaringBitmap,
) -> Result<Vec<Described>, StorageError> {
    let mut described = Vec::with_capacity(usize::try_from(ordinals.len()).unwrap_or(0));
    let missing = {
        let index = shard.index.read();
        index.each(ordinals, |series| {
            described.push(Described {
                ordinal: series.ordinal(),
                key: series.key(),
                labels: series.labels(),
            });
        });
        ordinals - index.known()
    };
    if missing.is_empty() {
        return Ok(described);
    }
    let mut read = RoaringBitmap::new();
    each_row(store, shard, &missing, |row| {
        read.insert(row.ordinal);
        described.push(Described { ordinal: row.ordinal, key: row.key_in_segments(), labels: row.labels });
    })?;
    described.sort_unstable_by_key(|series| series.ordinal);
    Ok(described)
}

/// These series in the order that they have in segments, with their ordinals. A series that was away for a
/// while is there once for each of its ordinals.
pub(crate) fn in_key_order(
    store: &Store,
    shard: &Shard,
    ordinals: &RoaringBitmap,
) -> Result<Vec<(SeriesKey, u32)>, StorageError> {
    let (mut keys, missing) = {
        let index = shard.index.read();
        (index.in_key_order(ordinals.iter()), ordinals - index.known())
    };
    if !missing.is_empty() {
        each_row(store, shard, &missing, |row| keys.push((row.key_in_segments(), row.ordinal)))?;
        keys.sort_unstable();
    }
    Ok(keys)
}

/// Gives the rows of these series to `each`. A live segment's series without a row is damage.
fn each_row(
    store: &Store,
    shard: &Shard,
    ordinals: &RoaringBitmap,
    mut each: impl FnMut(SeriesRow),
) -> Result<(), StorageError> {
    let mut found = RoaringBitmap::new();
    store.rocks.series_rows(shard.id, ordinals, |row| {
        found.insert(row.ordinal);
        each(row);
    })?;
    let mut missing = ordinals - found;
    if missing.is_empty() {
        return Ok(());
    }
    let (segments, _) = shard.segments_and_tombstones();
    missing.retain(|ordinal| segments.iter().any(|segment| segment.ordinals.contains(ordinal)));
    match missing.min() {
        Some(ordinal) => {
            Err(store.rocks.inconsistent(format!("series {ordinal} of shard {} is missing", shard.id)))
        }
        None => Ok(()),
    }
}

/// What the index gains before new segments of the shard become live: the days on which series are new.
pub(crate) fn rows_added(shard: &Shard, written: &[Arc<Segment>]) -> Vec<IndexWrite> {
    let (live, _) = shard.segments_and_tombstones();
    let mut days: BTreeMap<Day, RoaringBitmap> = BTreeMap::new();
    for segment in written.iter().filter(|segment| segment.key.shard == shard.id) {
        *days.entry(Day::of(segment.key.window)).or_default() |= &segment.ordinals;
    }
    let mut rows = Vec::new();
    let index = shard.index.read();
    for (day, mut series) in days {
        for segment in live.iter().filter(|segment| Day::of(segment.key.window) == day) {
            series -= &segment.ordinals;
        }
        index.each_pair_of(&series, |tenant, pair, mut ordinals| {
            let keys = DayRows::new(day, shard.id, tenant);
            let key = pair.map_or_else(|| keys.all(), |(name, value)| keys.pair(name, value));
            ordinals.optimize();
            rows.push(IndexWrite::Add(key, ordinals));
        });
    }
    rows
}

/// What the index loses when these series have left memory: the rows of those without samples.
pub(crate) fn rows_evicted(shard: &Shard, evicted: &RoaringBitmap) -> Vec<IndexWrite> {
    let mut gone = evicted.clone();
    for segment in shard.segments_and_tombstones().0.iter() {
        gone -= &segment.ordinals;
    }
    gone.iter().map(|ordinal| IndexWrite::Delete(SeriesRow::key(shard.id, ordinal))).collect()
}

/// What the index loses when segments of the shard go and perhaps one comes. A day without segments goes as a
/// range. After a merge, series that lost their samples leave the day's rows; those that retention takes from a
/// part of a day stay in them until the whole day goes, because they are many.
pub(crate) fn rows_removed(
    store: &Store,
    shard: &Shard,
    removed: &[SegmentKey],
    added: Option<&Arc<Segment>>,
    rows: &mut Vec<IndexWrite>,
) -> Result<(), StorageError> {
    let (live, _) = shard.segments_and_tombstones();
    let (mut gone, mut left) = (RoaringBitmap::new(), RoaringBitmap::new());
    for segment in live.iter() {
        let goes = removed.contains(&segment.key);
        *if goes { &mut gone } else { &mut left } |= &segment.ordinals;
    }
    if let Some(segment) = added {
        left |= &segment.ordinals;
    }
    gone -= left;
    gone -= shard.needs_rows();
    rows.extend(gone.iter().map(|ordinal| IndexWrite::Delete(SeriesRow::key(shard.id, ordinal))));
    let days: BTreeSet<Day> = removed.iter().map(|key| Day::of(key.window)).collect();
    for day in days {
        let of_day = |segment: &&Arc<Segment>| Day::of(segment.key.window) == day;
        let (mut gone, mut left) = (RoaringBitmap::new(), RoaringBitmap::new());
        for segment in live.iter().filter(of_day) {
            let goes = removed.contains(&segment.key);
            *if goes { &mut gone } else { &mut left } |= &segment.ordinals;
        }
        for segment in added.into_iter().filter(of_day) {
            left |= &segment.ordinals;
        }
        if left.is_empty() {
            let (from, to) = day.range(shard.id);
            rows.push(IndexWrite::DeleteRange(from, to));
        } else if added.is_some() {
            gone -= &left;
            subtract(store, shard, day, &gone, rows)?;
        }
    }
    Ok(())
}

/// Takes series out of a day's rows.
fn subtract(
    store: &Store,
    shard: &Shard,
    day: Day,
    gone: &RoaringBitmap,
    rows: &mut Vec<IndexWrite>,
) -> Result<(), StorageError> {
    let mut affected: BTreeMap<Vec<u8>, RoaringBitmap> = BTreeMap::new();
    let mut add = |ordinal, tenant: &TenantId, labels: &Labels| {
        let keys = DayRows::new(day, shard.id, tenant);
        let pairs = labels.iter().map(|(name, value)| keys.pair(name, value));
        for key in pairs.chain([keys.all()]) {
            affected.entry(key).or_default().insert(ordinal);
        }
    };
    let missing = {
        let index = shard.index.read();
        index.each(gone, |series| add(series.ordinal(), series.tenant(), &series.labels()));
        gone - index.known()
    };
    each_row(store, shard, &missing, |row| add(row.ordinal, &row.tenant, &row.labels))?;
    for (key, gone) in affected {
        let left = store.rocks.day_row(&key)? - gone;
        let empty = left.is_empty();
        rows.push(if empty {
            IndexWrite::Delete(key)
        } else {
            IndexWrite::Put(key, day_rows::encode(&left))
        });
    }
    Ok(())
}

#[cfg(test)]
pub(crate) use verify::verify;

#[cfg(test)]
mod verify {
    use super::*;

    /// Panics unless the index says of every live segment who is in it, and keeps nothing of who is gone. To be
    /// called right after a flush.
    pub(crate) fn verify(store: &Store) {
        for shard in store.all_shards() {
            let (segments, _) = shard.segments_and_tombstones();
            let mut days: BTreeMap<Day, RoaringBitmap> = BTreeMap::new();
            for segment in segments.iter() {
                *days.entry(Day::of(segment.key.window)).or_default() |= &segment.ordinals;
            }
            let mut live = RoaringBitmap::new();
            for (day, series) in &days {
                live |= series;
                store
                    .rocks
                    .series_rows(shard.id, series, |row| {
                        let keys = DayRows::new(*day, shard.id, &row.tenant);
                        for key in row.labels.iter().map(|(n, v)| keys.pair(n, v)).chain([keys.all()]) {
                            assert!(
                                store.rocks.day_row(&key).expect("read").contains(row.ordinal),
                                "{row:?}"
                            );
                        }
                    })
                    .expect("read");
            }
            let mut rows = RoaringBitmap::new();
            let everything = RoaringBitmap::from_iter(0..100_000);
            store
                .rocks
                .series_rows(shard.id, &everything, |row| {
                    rows.insert(row.ordinal);
                })
                .expect("read");
            assert!(live.is_subset(&rows), "a segment's series without a row");
            let kept = shard.needs_rows() | live;
            assert!(rows.is_subset(&kept), "rows of series that are gone: {:?}", rows - kept);
            for day in store.rocks.days(shard.id) {
                assert!(days.contains_key(&day), "rows of a day without segments");
            }
        }
    }
}

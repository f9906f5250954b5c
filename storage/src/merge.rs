//! Merges: few, canonical segments per day.
//!
//! Flushes write segments of 2 h windows. Merges put those of one window together, then those of half a day, then
//! those of a day: a closed day ends as one segment per shard, whose bytes depend on its samples only. A merge reads
//! all segments of a [`Scope`], shard by shard, resolves what they hold twice, leaves out what tombstones hide, and
//! writes one table file with one segment per shard. The order makes it safe:
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
//! Steps 1, 3 and 4 run under the lock that flushes take, step 2, which takes long, does not: meanwhile flushes add
//! segments, which the merge leaves alone; deletions hide samples, of the new segment too, because their numbers are
//! higher; and retention may drop what is being merged, which ends the merge. One merge runs at a time. What a shard
//! has of a scope stays as it is until the next start if it is damaged, or too dense for a larger span.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use roaring::RoaringBitmap;
use saturn_model::{SeriesColumns, ShardId};

use crate::engine::Store;
use crate::error::StorageError;
use crate::keys::{Segment, SegmentKey, Span, Tombstone, WINDOW_MS, Window};
use crate::past;
use crate::rocks::Blocks;
use crate::segment::{LazyTable, SERIES_SAMPLES_MAX, Samples, SegmentWriter};
use crate::shard::Shard;
use crate::tombstones::Mask;

/// Segments of one shard and window beyond which they are merged even while the window is open; and segments that
/// came after half a day or a day was merged, beyond which it is merged again.
const SEGMENTS_MAX: usize = 4;
/// How long after its end a window, or a day, still counts as open, in milliseconds: late samples are the rule then.
const GRACE_MS: i64 = WINDOW_MS / 2;
/// What came late is merged into its day once it is one in so many of the day's samples.
const LATE_SHARE: u64 = 20;
/// Or once so many flushes and merges came after it.
const LATE_NUMBERS: u64 = 16;
/// Tables are written anew without what they hold of dropped shards once that is one in so many of their other samples.
const DROPPED_SHARE: u64 = 4;

/// What a merge makes one segment of, for each shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Scope {
    span: Span,
    /// The first window.
    window: Window,
}

impl Scope {
    fn of(span: Span, segment: &Segment) -> Self {
        Self { span, window: span.first_window(segment.key.window) }
    }

    fn is_closed(self, now_ms: i64) -> bool {
        (self.window.start() + self.span.ms()).saturating_add(GRACE_MS) <= now_ms
    }

    fn holds(self, segment: &Segment) -> bool {
        segment.span <= self.span && self == Self::of(self.span, segment)
    }
}

/// What one shard contributes to a merge.
#[derive(Debug)]
struct Input {
    shard: Arc<Shard>,
    segments: Vec<Arc<Segment>>,
    tombstones: Arc<Vec<Arc<Tombstone>>>,
}

impl Input {
    /// Whether all of it is still there.
    fn is_live(&self) -> bool {
        let (live, _) = self.shard.segments_and_tombstones();
        let live: HashSet<SegmentKey> = live.iter().map(|segment| segment.key).collect();
        self.segments.iter().all(|segment| live.contains(&segment.key))
    }
}

/// One merge.
#[derive(Debug)]
struct Job {
    number: u64,
    scope: Scope,
    inputs: Vec<Input>,
}

/// Why a merge ended early.
#[derive(Debug)]
enum Failure {
    Error(StorageError),
    /// Because of what this shard has.
    OfShard(ShardId, StorageError),
    /// A series of this shard has too many samples for one segment.
    TooDense(ShardId),
    /// Retention took what was merged.
    Gone,
    /// The engine is being closed. The next start removes what was written.
    Stopping,
}

impl From<StorageError> for Failure {
    fn from(error: StorageError) -> Self {
        Self::Error(error)
    }
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

/// What a merge takes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    /// At this time: what is closed and has something to merge, and windows with too many segments.
    At(i64),
    /// That of which tombstones hide something.
    Hidden,
}

impl Due {
    fn includes(self, scope: Scope) -> bool {
        match self {
            Self::At(now_ms) => scope.is_closed(now_ms),
            Self::Hidden => true,
        }
    }

    /// Whether it is time to write the tables of a scope anew, in which so many samples are of dropped shards.
    fn frees(self, scope: Scope, dropped: u64, live: &HashMap<Scope, u64>) -> bool {
        let live = live.get(&scope).copied().unwrap_or(0);
        self.includes(scope) && (self == Self::Hidden || dropped >= live / DROPPED_SHARE)
    }
}

/// See `Engine::clean_tombstones`.
pub(crate) fn clean(store: &Store) -> Result<(), StorageError> {
    while merge_next(store, Due::Hidden)? == Step::Done {}
    sweep(store)
}

/// Merges what needs it most, if anything does.
pub(crate) fn merge_one(store: &Store, now_ms: i64) -> Result<Step, StorageError> {
    merge_next(store, Due::At(now_ms))
}

fn merge_next(store: &Store, due: Due) -> Result<Step, StorageError> {
    let _only_one = store.merging.lock();
    let Some(job) = begin(store, due)? else {
        return Ok(Step::Idle);
    };
    let started = Instant::now();
    match merge(store, &job) {
        Ok(()) => {
            store.dropped.lock().remove(&job.scope);
            store.metrics.merge_duration.observe(started.elapsed().as_secs_f64());
        }
        Err(Failure::Gone) => store.rocks.remove_table(job.scope.window, job.number)?,
        Err(Failure::OfShard(_, StorageError::Corrupt { .. })) if !job.inputs.iter().all(Input::is_live) => {}
        Err(Failure::OfShard(shard, error @ StorageError::Corrupt { .. })) => {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                shard = shard.0,
                start_ms = job.scope.window.start(),
                "what the shard has from there on is damaged and stays as it is; repair it from another replica"
            );
            store.metrics.corrupt_reads.inc();
            store.quarantine.lock().insert((shard, job.scope));
        }
        Err(Failure::TooDense(shard)) => {
            tracing::info!(
                shard = shard.0,
                start_ms = job.scope.window.start(),
                samples_max = SERIES_SAMPLES_MAX,
                "a series has too many samples for one segment of this time, so smaller ones stay"
            );
            store.quarantine.lock().insert((shard, job.scope));
        }
        Err(Failure::Stopping) => return Ok(Step::Idle),
        Err(Failure::Error(error) | Failure::OfShard(_, error)) => return Err(error),
    }
    // Nobody reads what was merged any more, unless a query does.
    drop(job);
    sweep(store)?;
    Ok(Step::Done)
}

/// Keeps merges away from what the shard has around a time, until the next start.
pub(crate) fn leave_alone(store: &Store, shard: ShardId, time_ms: i64) {
    let Some(window) = Window::of(time_ms) else {
        return;
    };
    let scopes = [Span::Window, Span::HalfDay, Span::Day]
        .map(|span| (shard, Scope { span, window: span.first_window(window) }));
    store.quarantine.lock().extend(scopes);
}

/// The shard of these segments is gone: the tables that have them are written anew once they hold much of such
/// samples.
pub(crate) fn free_space_of(store: &Store, gone: &[Arc<Segment>]) {
    let mut dropped = store.dropped.lock();
    for segment in gone {
        *dropped.entry(Scope::of(segment.span, segment)).or_default() += segment.samples;
    }
}

/// Chooses a merge and takes its number for good.
fn begin(store: &Store, due: Due) -> Result<Option<Job>, StorageError> {
    let mut next_segment = store.next_segment.lock();
    store.wal().check()?;
    let Some((scope, inputs)) = choose(store, due, *next_segment) else {
        return Ok(None);
    };
    let number = *next_segment;
    *next_segment += 1;
    store.rocks.reserve_number(number + 1)?;
    store.failpoint("merge: number reserved")?;
    Ok(Some(Job { number, scope, inputs }))
}

/// Of what is due, that with the most segments of one shard, and what to merge there.
fn choose(store: &Store, due: Due, next_segment: u64) -> Option<(Scope, Vec<Input>)> {
    let quarantine = store.quarantine.lock().clone();
    let mut wanted: HashMap<Scope, Vec<ShardId>> = HashMap::new();
    let mut hidden: HashSet<Scope> = HashSet::new();
    let mut inputs = Vec::new();
    let mut dropped = store.dropped.lock();
    let mut beside_dropped: HashMap<Scope, u64> = HashMap::new();
    for shard in store.all_shards() {
        let (segments, tombstones) = shard.segments_and_tombstones();
        for segment in segments.iter() {
            let scope = Scope::of(segment.span, segment);
            if dropped.contains_key(&scope) {
                *beside_dropped.entry(scope).or_default() += segment.samples;
            }
        }
        if let Due::At(now_ms) = due {
            let longest = store.options.retention.longest_span();
            let is_sound = |scope: Scope| !quarantine.contains(&(shard.id, scope));
            for scope in wanted_scopes(&segments, longest, now_ms, next_segment, is_sound) {
                wanted.entry(scope).or_default().push(shard.id);
            }
        }
        for segment in segments.iter().filter(|s| tombstones.iter().any(|t| t.concerns(s))) {
            let scope = Scope::of(segment.span, segment);
            if due.includes(scope) && !quarantine.contains(&(shard.id, scope)) {
                hidden.insert(scope);
            }
        }
        inputs.push(Input { shard, segments: segments.to_vec(), tombstones });
    }
    // What no shard has segments beside is gone as a whole, or in a larger scope.
    dropped.retain(|scope, _| beside_dropped.contains_key(scope));
    hidden.extend(
        dropped
            .iter()
            .filter(|(scope, samples)| due.frees(**scope, **samples, &beside_dropped))
            .map(|(scope, _)| *scope),
    );
    // A table goes once no shard needs it. So where something is hidden, all shards are rewritten, or the space
    // would not come back.
    let mut jobs: BTreeMap<Scope, Vec<Input>> = BTreeMap::new();
    for Input { shard, segments, tombstones } in inputs {
        let of_shard = wanted.iter().filter(|(_, shards)| shards.binary_search(&shard.id).is_ok());
        let scopes: HashSet<Scope> =
            of_shard.map(|(scope, _)| *scope).chain(hidden.iter().copied()).collect();
        for scope in scopes.into_iter().filter(|scope| !quarantine.contains(&(shard.id, *scope))) {
            let segments: Vec<_> = segments.iter().filter(|segment| scope.holds(segment)).cloned().collect();
            if !segments.is_empty() {
                let input =
                    Input { shard: Arc::clone(&shard), segments, tombstones: Arc::clone(&tombstones) };
                jobs.entry(scope).or_default().push(input);
            }
        }
    }
    let most = |inputs: &Vec<Input>| inputs.iter().map(|input| input.segments.len()).max();
    jobs.into_iter().max_by_key(|(_, inputs)| most(inputs))
}

/// What shall become one segment, of one shard's segments in the order of their windows: the largest scopes that
/// are due, and smaller ones where these are not.
fn wanted_scopes(
    segments: &[Arc<Segment>],
    longest: Span,
    now_ms: i64,
    next_segment: u64,
    is_sound: impl Fn(Scope) -> bool,
) -> Vec<Scope> {
    let mut wanted: Vec<Scope> = Vec::new();
    for span in [Span::Day, Span::HalfDay, Span::Window].into_iter().filter(|span| *span <= longest) {
        let smaller: Vec<&Arc<Segment>> = segments
            .iter()
            .filter(|segment| segment.span <= span && !wanted.iter().any(|scope| scope.holds(segment)))
            .collect();
        for group in smaller.chunk_by(|a, b| Scope::of(span, a) == Scope::of(span, b)) {
            let scope = Scope::of(span, group[0]);
            let is_due = if scope.is_closed(now_ms) {
                is_worth_merging(group, span, next_segment)
            } else {
                span == Span::Window && group.len() > SEGMENTS_MAX
            };
            if is_due && is_sound(scope) {
                wanted.push(scope);
            }
        }
    }
    wanted
}

/// Whether the segments of a closed scope shall become one.
fn is_worth_merging(group: &[&Arc<Segment>], span: Span, next_segment: u64) -> bool {
    match span {
        Span::Window => return group.len() > 1,
        // The day's merge will follow.
        Span::HalfDay if group.len() == 1 => return false,
        Span::HalfDay | Span::Day => {}
    }
    let (merged, late): (Vec<_>, Vec<_>) = group.iter().partition(|segment| segment.span == span);
    if merged.is_empty() {
        return true;
    }
    let samples = |some: &[&&Arc<Segment>]| some.iter().map(|segment| segment.samples).sum::<u64>();
    let is_old = |segment: &&&Arc<Segment>| segment.key.segment + LATE_NUMBERS <= next_segment;
    merged.len() > 1
        || late.len() > SEGMENTS_MAX
        || !late.is_empty() && samples(&late) >= samples(&merged) / LATE_SHARE
        || late.iter().any(is_old)
}

fn merge(store: &Store, job: &Job) -> Result<(), Failure> {
    let Job { number, scope: Scope { span, window }, inputs } = job;
    let path = store.table_path(*window, *number);
    let mut table = LazyTable::new(&store.rocks, path);
    let mut merged = Vec::with_capacity(inputs.len());
    for input in inputs {
        let key = SegmentKey { window: *window, segment: *number, shard: input.shard.id };
        merged.push(merge_shard(store, input, SegmentWriter::new(&mut table, key, *span))?.map(Arc::new));
    }
    store.failpoint("merge: pages written")?;
    if let Some((path, bytes)) = table.finish()? {
        store.failpoint("merge: table finished")?;
        store.rocks.ingest(vec![path])?;
        store.metrics.merged_bytes.inc_by(bytes);
    }
    store.failpoint("merge: ingested")?;
    let samples: u64 = merged.iter().flatten().map(|segment| segment.samples).sum();
    finish(store, inputs, merged)?;
    store.metrics.merged_samples.inc_by(samples);
    Ok(())
}

/// Steps 3 and 4 of the module's description.
fn finish(store: &Store, inputs: &[Input], merged: Vec<Option<Arc<Segment>>>) -> Result<(), Failure> {
    let _no_flush = store.next_segment.lock();
    if !inputs.iter().all(Input::is_live) {
        return Err(Failure::Gone);
    }
    let changes: Vec<Change> = inputs
        .iter()
        .zip(merged)
        .map(|(input, merged)| {
            let removed = input.segments.iter().map(|segment| segment.key).collect();
            // There may be more of both than when the merge began.
            let (segments, tombstones) = input.shard.segments_and_tombstones();
            change(Arc::clone(&input.shard), &segments, &tombstones, removed, merged)
        })
        .collect();
    commit(store, &changes)?;
    store.failpoint("merge: committed")?;
    apply(store, changes);
    Ok(())
}

/// Writes the merged samples of one shard.
fn merge_shard(
    store: &Store,
    input: &Input,
    mut writer: SegmentWriter<'_, '_>,
) -> Result<Option<Segment>, Failure> {
    let of_shard = |error| Failure::OfShard(input.shard.id, error);
    let everything: RangeInclusive<i64> = i64::MIN..=i64::MAX;
    let mut ordinals = RoaringBitmap::new();
    for segment in &input.segments {
        ordinals |= &segment.ordinals;
    }
    let series = past::in_key_order(store, &input.shard, &ordinals).map_err(of_shard)?;
    let mut sources: Vec<_> = input
        .segments
        .iter()
        .map(|s| (s, Mask::new(&input.tombstones, s), store.rocks.segment_reader(s, Blocks::ReadOnce)))
        .collect();
    let mut columns = SeriesColumns::default();
    // A series that was away for a while has several ordinals. It keeps them all, so that whoever holds one
    // of them finds it.
    for same in series.chunk_by(|a, b| a.0 == b.0) {
        if store.maintenance_stop.is_stopping() {
            return Err(Failure::Stopping);
        }
        columns.clear_samples();
        let key = same[0].0;
        for (segment, mask, reader) in &mut sources {
            if let Some((_, ordinal)) = same.iter().find(|(_, ordinal)| segment.ordinals.contains(*ordinal)) {
                reader.read(&key, *ordinal, &everything, mask, &mut columns).map_err(of_shard)?;
            }
            if columns.timestamps.len() + columns.histograms.timestamps.len() > SERIES_SAMPLES_MAX {
                return Err(Failure::TooDense(input.shard.id));
            }
        }
        if !columns.is_empty() {
            writer.push(key, same[0].1, Samples::of(&columns))?;
            same[1..].iter().for_each(|(_, ordinal)| writer.add_ordinal(*ordinal));
        }
    }
    Ok(writer.finish()?)
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
    let (kept, forgotten) = tombstones.iter().cloned().partition(|tombstone| {
        segments.iter().filter(stays).chain(&added).any(|segment| tombstone.concerns(segment))
    });
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

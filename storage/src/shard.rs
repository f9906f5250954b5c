//! One shard: its series, what it holds in memory, and which flushed segments are live.
//!
//! Three locks: `head` for the write path and the snapshot of a read, `index` for labels and postings, `notes` for
//! exemplars and metadata. A slow regular expression holds `index` for reading and stalls new series only. Order:
//! `head`, `index`, `notes`; none is ever held across an await, and `head` never during IO.
//!
//! An append makes its log record, enqueues it and inserts its samples under one hold of `head`. That has
//! two consequences that other modules build on: the log's order is the order in which series got their
//! ordinals, and a record enqueued before a rotation of the log has its samples in the head that is taken
//! after that rotation.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use roaring::RoaringBitmap;
use saturn_model::{Fingerprint, Histogram, Labels, ShardBatch, ShardId, TenantId};

use crate::error::StorageError;
use crate::head::HeadSamples;
use crate::histograms::{HistogramHead, HistogramRuns};
use crate::index::{Dictionary, Index};
use crate::keys::{Segment, SegmentKey, SeriesRow, Tombstone};
use crate::notes::{Dropped, NoteLimits, NoteRow, Notes};
use crate::run::Run;
use crate::snapshot::HeadCopy;
use crate::tombstones::visible_ordinals;
use crate::wal::{AppendRecord, Plan, Wal};

/// A virtual shard's data on this node.
#[derive(Debug)]
pub(crate) struct Shard {
    pub(crate) id: ShardId,
    pub(crate) head: Mutex<Head>,
    pub(crate) index: RwLock<Index>,
    pub(crate) notes: Mutex<Notes>,
    /// The last deletion that the shard's replicas agreed on and that is done here; 0: none was.
    deleted_through: AtomicU64,
}

/// What the write path touches.
#[derive(Debug, Default)]
pub(crate) struct Head {
    ordinals: HashMap<Fingerprint, SeriesRef, BuildHasherDefault<FingerprintHasher>>,
    pub(crate) samples: HeadSamples,
    /// What a flush is writing; still to be read.
    pub(crate) flushing: Option<Arc<HeadSamples>>,
    /// Those samples that are native histograms.
    pub(crate) histograms: HistogramHead,
    /// Live flushed segments, ascending by window and flush.
    pub(crate) segments: Arc<Vec<Arc<Segment>>>,
    /// Tombstones that concern any of them.
    pub(crate) tombstones: Arc<Vec<Arc<Tombstone>>>,
    /// Below this ordinal, series have their row in the database (or are gone).
    persisted: u32,
    /// Below this ordinal, none is given again, whatever the log says.
    reserved: u32,
    /// Which series had samples in the last flushes, and when those began.
    recent: VecDeque<(Instant, RoaringBitmap)>,
    /// Series that left memory since the last flush that succeeded.
    evicted: RoaringBitmap,
    /// The ordinal of the next series.
    next_ordinal: u32,
}

#[derive(Clone, Copy, Debug)]
struct SeriesRef {
    ordinal: u32,
    /// Position in [`Index::tenants`].
    tenant: u32,
}

/// A fingerprint is a hash already. Its low bits chose the shard, so the high ones are used.
#[derive(Debug, Default)]
pub(crate) struct FingerprintHasher(u64);

impl Hasher for FingerprintHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u128(&mut self, fingerprint: u128) {
        self.0 = u64::try_from(fingerprint >> 64).expect("64 bits are left");
    }
}

/// What one unit of a histogram's weight takes in memory, roughly.
const WEIGHT_BYTES: i64 = 16;

/// What an append to one shard did.
#[derive(Debug, Default)]
pub(crate) struct Appended {
    pub(crate) unknown: Vec<u32>,
    /// Whether a record was enqueued, and must become durable before the ack.
    pub(crate) logged: bool,
    pub(crate) new_series: usize,
    /// Samples whose time was not in the head.
    pub(crate) new_samples: usize,
    pub(crate) duplicates: usize,
    /// By how many samples memory grew, with histograms by their weight.
    pub(crate) grown: i64,
    /// By how many bytes, or shrank.
    pub(crate) grown_bytes: i64,
    pub(crate) dropped: Dropped,
}

/// Which series leave memory with a flush.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Eviction {
    /// None: records that are still to be replayed know them by their ordinals.
    Nobody,
    /// Those whose last sample came so long ago.
    IdleFor(Duration),
}

/// What a flush took out of a shard.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) samples: Arc<HeadSamples>,
    pub(crate) histograms: Arc<HistogramRuns>,
    /// Series whose row is not in the database yet.
    pub(crate) new_series: Vec<SeriesRow>,
    /// Ordinals below this have their row once these are written.
    pub(crate) ordinals: u32,
    /// The series in memory.
    pub(crate) resident: RoaringBitmap,
    /// Those that left it, and whose rows go unless a segment has samples of them.
    pub(crate) evicted: RoaringBitmap,
    /// Exemplars and metadata that changed.
    pub(crate) notes: Vec<NoteRow>,
}

/// What was cleared out of a shard.
#[derive(Debug)]
pub(crate) struct Cleared {
    pub(crate) segments: Arc<Vec<Arc<Segment>>>,
    /// As with [`Taken::samples`].
    pub(crate) samples: i64,
    /// As with [`Taken::bytes`].
    pub(crate) bytes: i64,
}

impl Taken {
    /// How many samples memory counts for what was taken, with histograms by their weight.
    pub(crate) fn samples(&self) -> i64 {
        to_i64(self.samples.len() + self.histograms.weight())
    }

    /// How many bytes memory counts for it.
    pub(crate) fn bytes(&self) -> i64 {
        to_i64(self.samples.bytes()) + to_i64(self.histograms.weight()) * WEIGHT_BYTES
    }
}

impl Shard {
    pub(crate) fn new(id: ShardId, dictionary: &Arc<Dictionary>) -> Self {
        let index = RwLock::new(Index::new(dictionary));
        Self {
            id,
            head: Mutex::default(),
            index,
            notes: Mutex::default(),
            deleted_through: AtomicU64::default(),
        }
    }

    pub(crate) fn deleted_through(&self) -> u64 {
        self.deleted_through.load(Ordering::Acquire)
    }

    /// Remembers a deletion that is durable.
    pub(crate) fn set_deleted_through(&self, through: u64) {
        self.deleted_through.fetch_max(through, Ordering::AcqRel);
    }

    /// Appends a checked batch: log record, then head. See the module's description.
    pub(crate) fn append(
        &self,
        batch: &ShardBatch,
        wal: &Wal,
        limits: NoteLimits,
    ) -> Result<Appended, StorageError> {
        let mut head = self.head.lock();
        let mut unknown = Vec::new();
        let tenant = self.index.read().tenants.iter().position(|t| t.tenant == batch.tenant);
        let tenant = tenant.map(|t| u32::try_from(t).expect("fewer than 2^32 tenants"));
        let mut plan = head.plan(batch, tenant, &mut unknown)?;
        self.plan_notes(&head, batch, limits, &mut plan);
        if plan.is_empty() {
            // What is there already may still be on its way into the log.
            let logged = batch.has_notes();
            return Ok(Appended { unknown, logged, ..Appended::default() });
        }
        let record = plan.encode().ok_or_else(|| StorageError::Invalid {
            reason: format!("a batch of {} samples is too large for the log", batch.sample_count()),
        })?;
        wal.enqueue(record)?;
        let mut appended = Appended { unknown, logged: true, ..Appended::default() };
        let before = head.bytes();
        if !plan.new_series.is_empty() {
            let new = plan.new_series.iter().map(|(fingerprint, labels)| (*fingerprint, (*labels).clone()));
            appended.new_series = self.add_series(&mut head, &batch.tenant, new);
        }
        for (ordinal, range) in &plan.series {
            let (timestamps, values) = (&batch.timestamps[range.clone()], &batch.values[range.clone()]);
            let new = head.samples.append(*ordinal, timestamps, values);
            appended.new_samples += new;
            appended.duplicates += range.len() - new;
        }
        appended.grown = to_i64(appended.new_samples);
        for (ordinal, range) in &plan.histograms {
            let columns = &batch.histograms;
            let (timestamps, values) = (&columns.timestamps[range.clone()], &columns.values[range.clone()]);
            let new = head.append_histograms(*ordinal, timestamps, values, &mut appended);
            appended.duplicates += range.len() - new;
        }
        appended.grown_bytes = head.bytes() - before;
        let mut notes = self.notes.lock();
        for (series, labels, exemplar) in plan.exemplars {
            let exemplar = exemplar.clone();
            notes.add_exemplar(&batch.tenant, (series, &labels), exemplar, limits, &mut appended.dropped);
        }
        for metadata in plan.metadata {
            notes.add_metadata(&batch.tenant, metadata.clone(), limits, &mut appended.dropped);
        }
        Ok(appended)
    }

    /// Adds the exemplars and metadata to the plan that are new, of series that are known or get known with it.
    fn plan_notes<'a>(&self, head: &Head, batch: &'a ShardBatch, limits: NoteLimits, plan: &mut Plan<'a>) {
        if !batch.has_notes() {
            return;
        }
        let (index, notes) = (self.index.read(), self.notes.lock());
        for (at, exemplar) in batch.exemplars.iter().filter(|_| limits.exemplars > 0) {
            let series = batch.fingerprints[*at as usize];
            if notes.has_exemplar(&batch.tenant, series, exemplar) {
                continue;
            }
            let known = head.ordinals.get(&series).and_then(|known| index.get(known.ordinal));
            let labels = known.map(|known| known.labels()).or_else(|| {
                let new = plan.new_series.iter().find(|(fingerprint, _)| *fingerprint == series);
                new.map(|(_, labels)| (*labels).clone())
            });
            plan.exemplars.extend(labels.map(|labels| (series, labels, exemplar)));
        }
        let new = batch.metadata.iter().filter(|metadata| !notes.has_metadata(&batch.tenant, metadata));
        plan.metadata.extend(new);
    }

    /// Applies a record of the log at start. Says in words what does not fit.
    pub(crate) fn replay(&self, record: AppendRecord, limits: NoteLimits) -> Result<Appended, String> {
        let mut head = self.head.lock();
        self.replay_notes(&record, limits);
        let (next, first) = (head.next_ordinal, record.first_new);
        if !record.new_series.is_empty() {
            // There is a gap where a power cut took series that a flush had given their ordinals.
            if first > next.max(head.reserved) {
                return Err(format!("series {first} of shard {} before series {next}", self.id));
            }
            Self::skip_to(&mut head, first);
        }
        // A flush may have written the rows of series whose records come only now.
        let repeated = record.new_series.len().min((next - first.min(next)) as usize);
        for (ordinal, (fingerprint, _)) in (first..).zip(&record.new_series[..repeated]) {
            // A series that is not in memory had its samples flushed, or never got any.
            if self.index.read().get(ordinal).is_some_and(|known| known.fingerprint() != *fingerprint) {
                return Err(format!("series {ordinal} of shard {} is not {fingerprint}", self.id));
            }
        }
        let new = record.new_series.into_iter().skip(repeated);
        let new_series = self.add_series(&mut head, &record.tenant, new);
        let mut appended = Appended { new_series, ..Appended::default() };
        let before = head.bytes();
        let mut at = 0;
        for (ordinal, count) in record.series {
            let (timestamps, values) = (&record.timestamps[at..at + count], &record.values[at..at + count]);
            at += count;
            if ordinal >= head.next_ordinal {
                return Err(format!("unknown series {ordinal} of shard {}", self.id));
            }
            if !self.index.read().known().contains(ordinal) {
                continue;
            }
            appended.new_samples += head.samples.append(ordinal, timestamps, values);
        }
        appended.grown = to_i64(appended.new_samples);
        let columns = &record.histograms;
        let mut at = 0;
        for (ordinal, count) in record.histogram_series {
            let range = at..at + count;
            at += count;
            if ordinal >= head.next_ordinal {
                return Err(format!("unknown series {ordinal} of shard {}", self.id));
            }
            if self.index.read().get(ordinal).is_some() {
                let timestamps = &record.histogram_timestamps[range.clone()];
                head.append_histograms(ordinal, timestamps, &columns[range], &mut appended);
            }
        }
        appended.grown_bytes = head.bytes() - before;
        Ok(appended)
    }

    fn replay_notes(&self, record: &AppendRecord, limits: NoteLimits) {
        let Some(logged) = &record.notes else { return };
        let mut notes = self.notes.lock();
        // What was dropped then was counted then.
        let mut dropped = Dropped::default();
        for (series, labels, exemplars) in &logged.exemplars {
            for exemplar in exemplars {
                notes.add_exemplar(&record.tenant, (*series, labels), exemplar.clone(), limits, &mut dropped);
            }
        }
        for metadata in &logged.metadata {
            if !notes.has_metadata(&record.tenant, metadata) {
                notes.add_metadata(&record.tenant, metadata.clone(), limits, &mut dropped);
            }
        }
    }

    /// Takes the row of a series that was in memory at the last flush. They come in order.
    pub(crate) fn restore_series(&self, row: SeriesRow) {
        let mut head = self.head.lock();
        Self::skip_to(&mut head, row.ordinal);
        self.add_series(&mut head, &row.tenant, [(row.fingerprint, row.labels)]);
    }

    /// The ordinals below this were given before the last flush.
    pub(crate) fn restore_ordinals(&self, ordinals: u32) {
        let mut head = self.head.lock();
        Self::skip_to(&mut head, ordinals);
        head.persisted = head.next_ordinal;
    }

    /// The ordinals below this are never given again.
    pub(crate) fn reserve_ordinals(&self, ordinals: u32) {
        self.head.lock().reserved = ordinals;
    }

    /// The log was replayed. What is in memory now counts as active.
    pub(crate) fn finish_restoring(&self) {
        let mut head = self.head.lock();
        let reserved = head.reserved;
        Self::skip_to(&mut head, reserved);
        let known = self.index.read().known().clone();
        head.recent.push_back((Instant::now(), known));
    }

    fn skip_to(head: &mut Head, ordinals: u32) {
        head.next_ordinal = head.next_ordinal.max(ordinals);
    }

    /// Takes the tombstones at start.
    pub(crate) fn restore_tombstones(&self, tombstones: Vec<Arc<Tombstone>>) {
        self.head.lock().tombstones = Arc::new(tombstones);
    }

    /// Takes the live segments at start.
    pub(crate) fn restore_segments(&self, mut segments: Vec<Arc<Segment>>) {
        segments.sort_unstable_by_key(|segment| segment.key);
        self.head.lock().segments = Arc::new(segments);
    }

    fn add_series(
        &self,
        head: &mut Head,
        tenant: &TenantId,
        series: impl IntoIterator<Item = (Fingerprint, Labels)>,
    ) -> usize {
        let before = head.next_ordinal;
        let mut index = self.index.write();
        let tenant = index.tenant_position(tenant);
        for (fingerprint, labels) in series {
            let ordinal = head.next_ordinal;
            head.next_ordinal = ordinal.checked_add(1).expect("ordinals were checked when they were given");
            head.ordinals.insert(fingerprint, SeriesRef { ordinal, tenant });
            index.add(tenant, ordinal, fingerprint, &labels);
        }
        (head.next_ordinal - before) as usize
    }

    /// Moves the head aside for a flush. `None` if there is nothing to flush.
    ///
    /// Series whose last sample came longer than `idle` ago leave memory, and those that never got one. If they
    /// come back they are new, with a new ordinal: reads and merges bring both together by their fingerprint.
    pub(crate) fn begin_flush(&self, eviction: Eviction) -> Option<Taken> {
        let mut head = self.head.lock();
        let mut index = self.index.write();
        if let Eviction::IdleFor(idle) = eviction {
            head.evict(&mut index, idle);
        }
        let new_series: Vec<SeriesRow> = (head.persisted..head.next_ordinal)
            .filter_map(|ordinal| Some((ordinal, index.get(ordinal)?)))
            .map(|(ordinal, series)| SeriesRow {
                shard: self.id,
                ordinal,
                fingerprint: series.fingerprint(),
                tenant: series.tenant().clone(),
                labels: series.labels(),
            })
            .collect();
        let nothing = head.samples.is_empty() && head.histograms.is_empty();
        let notes = self.notes.lock().take_changed(self.id);
        if nothing && new_series.is_empty() && head.evicted.is_empty() && notes.is_empty() {
            return None;
        }
        let next = HeadSamples::as_large_as(&head.samples);
        let samples = Arc::new(std::mem::replace(&mut head.samples, next));
        head.flushing = Some(Arc::clone(&samples));
        let histograms = head.histograms.begin_flush();
        let (resident, evicted) = (index.known().clone(), head.evicted.clone());
        let ordinals = head.next_ordinal;
        Some(Taken { samples, histograms, new_series, ordinals, resident, evicted, notes })
    }

    /// The flush is durable: its segments replace what was set aside, in one step for readers.
    pub(crate) fn finish_flush(&self, taken: &Taken, segments: Vec<Arc<Segment>>) {
        let mut head = self.head.lock();
        head.flushing = None;
        head.histograms.finish_flush();
        head.persisted = head.persisted.max(taken.ordinals);
        head.evicted -= &taken.evicted;
        let live = Arc::make_mut(&mut head.segments);
        live.extend(segments);
        live.sort_unstable_by_key(|segment| segment.key);
        drop(head);
        self.index.write().optimize();
    }

    /// The flush failed: what was set aside goes back. Returns by how many samples and bytes memory holds less
    /// than both together did.
    pub(crate) fn abort_flush(&self, taken: &Taken) -> (i64, i64) {
        let mut head = self.head.lock();
        self.notes.lock().mark_changed(&taken.notes);
        head.flushing = None;
        let samples = head.samples.len() + taken.samples.len();
        let bytes = head.samples.bytes() + taken.samples.bytes();
        head.samples.merge(&taken.samples);
        let repeated = to_i64(samples - head.samples.len());
        let weight = to_i64(head.histograms.weight() + taken.histograms.weight());
        head.histograms.abort_flush();
        let lighter = weight - to_i64(head.histograms.weight());
        let smaller = to_i64(bytes) - to_i64(head.samples.bytes());
        (repeated + lighter, smaller + lighter * WEIGHT_BYTES)
    }

    /// What is in memory, and what is live on disk, at one moment. No flush is under way.
    #[expect(clippy::type_complexity, reason = "a copy and two lists")]
    pub(crate) fn copy(&self) -> (HeadCopy, Arc<Vec<Arc<Segment>>>, Arc<Vec<Arc<Tombstone>>>) {
        let head = self.head.lock();
        let (samples, histograms) = (head.samples.clone(), head.histograms.copy());
        let mut ordinals: RoaringBitmap = samples.iter().map(|(ordinal, _)| ordinal).collect();
        ordinals.extend(histograms.times().map(|(ordinal, _)| ordinal));
        let mut series = HashMap::new();
        self.index.read().each(&ordinals, |known| {
            series.insert(known.ordinal(), (known.tenant().clone(), known.key(), known.labels()));
        });
        let copy = HeadCopy { samples, histograms, series };
        (copy, Arc::clone(&head.segments), Arc::clone(&head.tombstones))
    }

    /// The ordinal of a series in memory.
    pub(crate) fn ordinal_of(&self, fingerprint: Fingerprint) -> Option<u32> {
        self.head.lock().ordinals.get(&fingerprint).map(|known| known.ordinal)
    }

    /// The ordinal that the next series gets.
    pub(crate) fn next_ordinal(&self) -> u32 {
        self.head.lock().next_ordinal
    }

    /// Takes `count` ordinals for series that are not in memory, if all are below `end`. The first of them.
    pub(crate) fn take_ordinals(&self, count: u32, end: u32) -> Option<u32> {
        let mut head = self.head.lock();
        let first = head.next_ordinal;
        head.next_ordinal = first.checked_add(count).filter(|next| *next <= end)?;
        Some(first)
    }

    /// Makes segments that were not flushed from here visible to reads.
    pub(crate) fn add_segments(&self, segments: Vec<Arc<Segment>>) {
        let mut head = self.head.lock();
        let live = Arc::make_mut(&mut head.segments);
        live.extend(segments);
        live.sort_unstable_by_key(|segment| segment.key);
    }

    /// Forgets everything but which ordinals were given. No flush is under way.
    pub(crate) fn clear(&self) -> Cleared {
        let mut head = self.head.lock();
        let mut index = self.index.write();
        let known = index.known().clone();
        index.remove(&known);
        *self.notes.lock() = Notes::default();
        let samples = to_i64(head.samples.len() + head.histograms.weight());
        let bytes = head.bytes();
        let (next_ordinal, reserved) = (head.next_ordinal, head.reserved);
        let before = std::mem::take(&mut *head);
        *head = Head { persisted: next_ordinal, next_ordinal, reserved, ..Head::default() };
        Cleared { segments: before.segments, samples, bytes }
    }

    /// Whether there are series or samples.
    pub(crate) fn holds_anything(&self) -> bool {
        let head = self.head.lock();
        let is_empty = head.ordinals.is_empty() && head.flushing.is_none() && head.segments.is_empty();
        !is_empty || self.index.read().len() > 0
    }

    /// What is live on disk.
    #[expect(clippy::type_complexity, reason = "two lists")]
    pub(crate) fn segments_and_tombstones(&self) -> (Arc<Vec<Arc<Segment>>>, Arc<Vec<Arc<Tombstone>>>) {
        let head = self.head.lock();
        (Arc::clone(&head.segments), Arc::clone(&head.tombstones))
    }

    /// From now on, reads do not see what the tombstone hides.
    pub(crate) fn add_tombstone(&self, tombstone: Arc<Tombstone>) {
        Arc::make_mut(&mut self.head.lock().tombstones).push(tombstone);
    }

    /// Swaps segments and tombstones in one step for readers. Returns the segments that went.
    pub(crate) fn replace_segments(
        &self,
        removed: &[SegmentKey],
        added: Option<Arc<Segment>>,
        tombstones: Vec<Arc<Tombstone>>,
    ) -> Vec<Arc<Segment>> {
        let mut head = self.head.lock();
        head.tombstones = Arc::new(tombstones);
        let live = Arc::make_mut(&mut head.segments);
        let gone = live.extract_if(.., |segment| removed.contains(&segment.key)).collect();
        live.extend(added);
        live.sort_unstable_by_key(|segment| segment.key);
        gone
    }

    /// The series that are in memory, or left it with their rows not settled yet: their rows must stay.
    pub(crate) fn needs_rows(&self) -> RoaringBitmap {
        let head = self.head.lock();
        &head.evicted | self.index.read().known()
    }

    /// Of the tenant's series in memory: how many there are, their chunks in memory, and the times of the first
    /// and of the last sample there.
    pub(crate) fn figures(&self, tenant: &TenantId) -> (u64, u64, Option<(i64, i64)>) {
        let head = self.head.lock();
        let index = self.index.read();
        let Some(tenant) = index.tenant(tenant) else { return (0, 0, None) };
        let mut chunks = 0;
        let mut times: Option<(i64, i64)> = None;
        for ordinal in tenant.all() {
            let runs = head.runs(ordinal).filter_map(Run::bounds);
            for (first, last) in runs.chain(head.histograms.bounds(ordinal)) {
                chunks += 1;
                times = Some(times.map_or((first, last), |(a, b)| (a.min(first), b.max(last))));
            }
        }
        (tenant.all().len(), chunks, times)
    }

    /// Whether series or samples wait for a flush, or may leave memory with it.
    pub(crate) fn needs_flush(&self, idle: Duration) -> bool {
        let head = self.head.lock();
        head.persisted < head.next_ordinal
            || !head.samples.is_empty()
            || !head.histograms.is_empty()
            || self.notes.lock().is_changed()
            || !head.idle_series(&self.index.read(), idle).is_empty()
    }
}

impl Head {
    /// How many bytes its samples take; the buckets of histograms roughly.
    fn bytes(&self) -> i64 {
        to_i64(self.samples.bytes()) + to_i64(self.histograms.weight()) * WEIGHT_BYTES
    }

    /// Whether samples of the series wait for a flush.
    fn has_samples(&self, ordinal: u32) -> bool {
        self.samples.run(ordinal).is_some() || !self.histograms.lacks(ordinal)
    }

    /// The series without samples in memory, of which none came in flushes that began less than `idle` ago.
    fn idle_series(&self, index: &Index, idle: Duration) -> RoaringBitmap {
        let mut series = index.known().clone();
        for (_, active) in self.recent.iter().filter(|(began, _)| began.elapsed() < idle) {
            series -= active;
        }
        series.retain(|ordinal| !self.has_samples(ordinal));
        series
    }

    fn evict(&mut self, index: &mut Index, idle: Duration) {
        let gone = self.idle_series(index, idle);
        let mut active = index.known() - &gone;
        active.retain(|ordinal| self.has_samples(ordinal));
        active.optimize();
        self.recent.retain(|(began, _)| began.elapsed() < idle);
        match self.recent.back_mut() {
            // Flushes may follow each other fast.
            Some((began, last)) if began.elapsed() < idle / 8 => *last |= active,
            _ => self.recent.push_back((Instant::now(), active)),
        }
        for (ordinal, fingerprint) in index.remove(&gone) {
            // A younger series may have the name.
            if self.ordinals.get(&fingerprint).is_some_and(|known| known.ordinal == ordinal) {
                self.ordinals.remove(&fingerprint);
            }
        }
        if self.ordinals.len() < self.ordinals.capacity() / 4 {
            self.ordinals.shrink_to_fit();
        }
        self.evicted |= gone;
    }

    /// What of the batch is stored, and which series are unknown. Changes nothing.
    fn plan<'a>(
        &self,
        batch: &'a ShardBatch,
        tenant: Option<u32>,
        unknown: &mut Vec<u32>,
    ) -> Result<Plan<'a>, StorageError> {
        let first_new = self.next_ordinal;
        let mut plan = Plan {
            shard: batch.shard,
            tenant: &batch.tenant,
            first_new,
            new_series: Vec::new(),
            series: Vec::with_capacity(batch.series_count()),
            timestamps: &batch.timestamps,
            values: &batch.values,
            histograms: Vec::with_capacity(batch.histograms.series.len()),
            histogram_columns: &batch.histograms,
            exemplars: Vec::new(),
            metadata: Vec::new(),
        };
        let mut histograms = batch.histograms.series.iter().peekable();
        let mut histograms_at = 0;
        let mut new_ordinals: HashMap<Fingerprint, u32> = HashMap::new();
        let mut labels = batch.labels.iter().peekable();
        let mut at = 0;
        for (index, (fingerprint, count)) in
            (0_u32..).zip(batch.fingerprints.iter().zip(&batch.sample_counts))
        {
            let range = at..at + *count as usize;
            at = range.end;
            let own_histograms =
                histograms.next_if(|(i, _)| *i == index).map_or(0, |(_, count)| *count as usize);
            let histogram_range = histograms_at..histograms_at + own_histograms;
            histograms_at = histogram_range.end;
            let own_labels = labels.next_if(|(i, _)| *i == index).map(|(_, labels)| labels);
            let ordinal = match self.ordinals.get(fingerprint) {
                Some(known) if Some(known.tenant) == tenant => known.ordinal,
                Some(_) => {
                    let reason = format!("series {fingerprint} does not belong to tenant {}", batch.tenant);
                    return Err(StorageError::Invalid { reason });
                }
                None => match (new_ordinals.get(fingerprint), own_labels) {
                    (Some(ordinal), _) => *ordinal,
                    (None, Some(labels)) => {
                        let offset =
                            u32::try_from(plan.new_series.len()).map_err(|_| too_many_series(batch))?;
                        let ordinal = first_new.checked_add(offset).ok_or_else(|| too_many_series(batch))?;
                        plan.new_series.push((*fingerprint, labels));
                        new_ordinals.insert(*fingerprint, ordinal);
                        ordinal
                    }
                    (None, None) => {
                        unknown.push(index);
                        continue;
                    }
                },
            };
            if !range.is_empty() {
                plan.series.push((ordinal, range));
            }
            if !histogram_range.is_empty() {
                plan.histograms.push((ordinal, histogram_range));
            }
        }
        Ok(plan)
    }

    /// Adds histograms of a series. Returns how many of their times had none.
    fn append_histograms(
        &mut self,
        ordinal: u32,
        timestamps: &[i64],
        values: &[Arc<Histogram>],
        appended: &mut Appended,
    ) -> usize {
        let before = to_i64(self.histograms.weight());
        let new = self.histograms.append(ordinal, timestamps, values);
        appended.new_samples += new;
        appended.grown += to_i64(self.histograms.weight()) - before;
        new
    }

    /// The series of `wanted` that may have a sample from `start` to `end`, in memory or in a segment.
    pub(crate) fn present(&self, wanted: &RoaringBitmap, start: i64, end: i64) -> RoaringBitmap {
        let mut present = RoaringBitmap::new();
        for segment in self.segments.iter().filter(|s| s.touches(start, end)) {
            present |= visible_ordinals(segment, &self.tombstones, start, end) & wanted;
        }
        let missing = wanted - &present;
        for ordinal in missing {
            let in_floats = self.runs(ordinal).any(|run| run.touches(start, end));
            if in_floats || self.histograms.touches(ordinal, start, end) {
                present.insert(ordinal);
            }
        }
        present
    }

    /// What memory holds of a series: what a flush is writing, and what came since.
    pub(crate) fn runs(&self, ordinal: u32) -> impl Iterator<Item = &Run> {
        let flushing = self.flushing.as_ref().and_then(|samples| samples.run(ordinal));
        flushing.into_iter().chain(self.samples.run(ordinal))
    }
}

impl Segment {
    /// Whether it may have samples from `start` to `end`, both inclusive.
    pub(crate) fn touches(&self, start: i64, end: i64) -> bool {
        self.first_ms <= end && self.last_ms >= start
    }
}

fn to_i64(samples: usize) -> i64 {
    i64::try_from(samples).unwrap_or(i64::MAX)
}

fn too_many_series(batch: &ShardBatch) -> StorageError {
    StorageError::Invalid { reason: format!("shard {} has no ordinals left for new series", batch.shard) }
}

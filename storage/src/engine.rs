//! The engine: what the rest of Saturn calls.
//!
//! Invariants: an append that returned is in the log, synced (but see `durability.rs`), and visible to every later
//! read; a request that contradicts itself changes nothing of its shard; after an error of the log nothing is
//! acknowledged any more, while reads go on. This file wires the parts together; each part's own file says how it works.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use prometheus_client::registry::Registry;
use saturn_model::{
    BUCKETS_MAX, Cardinality, Fingerprint, Labels, MetricMetadata, Selection, SeriesColumns, SeriesExemplars,
    ShardBatch, ShardId, TenantId, TimestampMs,
};

use crate::check::CheckReport;
use crate::digest;
use crate::disk::Disk;
use crate::drop_shard;
use crate::durability::Durability;
use crate::error::StorageError;
use crate::exported::ExportedNotes;
use crate::flush::{self, FlushSignal};
use crate::import::{self, Importer};
use crate::index::Dictionary;
use crate::keys::{Segment, Window};
use crate::labels::{self, Listed};
use crate::maintenance;
use crate::merge;
use crate::metrics::Metrics;
use crate::notes::NoteLimits;
use crate::options::{EngineOptions, EngineStats, ReadLimits};
use crate::past::PastCache;
use crate::read::{self, SeriesStream};
use crate::rocks::{Meta, Rocks};
use crate::scrub;
use crate::shard::{Appended, Shard};
use crate::snapshot::{self, LogPosition, ShardSnapshot};
use crate::start::Opening;
use crate::tombstones::{self, AgreedDeletions};
use crate::wal::{self, Ack, Wal};

/// One node's data. Clones are handles to the same engine; the last one closes it.
#[derive(Clone, Debug)]
pub struct Engine {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: Arc<Store>,
    /// The threads for flushes, maintenance and scrubs, until they are joined.
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// What one batch's append left undone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AppendOutcome {
    /// Indexes of the series that this node does not know and that came without labels. Their samples are not
    /// stored: send them again with labels (`ShardBatch::subset_with_labels`).
    pub unknown: Vec<u32>,
}

/// Everything that the engine's threads share.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) options: EngineOptions,
    pub(crate) shards: RwLock<HashMap<ShardId, Arc<Shard>>>,
    /// The label pairs of all shards.
    pub(crate) dictionary: Arc<Dictionary>,
    /// What was found of series that are not in memory.
    pub(crate) past: PastCache,
    pub(crate) rocks: Rocks,
    disk: Disk,
    /// Set once the log is replayed.
    wal: OnceLock<Wal>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) flush_signal: FlushSignal,
    pub(crate) maintenance_stop: maintenance::Stop,
    /// Number of the next flush, merge or tombstone. Whatever changes the list of live segments holds its lock.
    pub(crate) next_segment: Mutex<u64>,
    pub(crate) disk_segments: AtomicU64,
    /// Segments that are not live any more, whose files may still be read.
    pub(crate) graveyard: Mutex<Vec<Arc<Segment>>>,
    /// Held by a merge from its choice to its end.
    pub(crate) merging: Mutex<()>,
    /// What merges leave alone, because it is damaged or too dense.
    pub(crate) quarantine: Mutex<HashSet<(ShardId, merge::Scope)>>,
    /// How many samples of dropped shards lie in tables that others need, since the engine was opened.
    pub(crate) dropped: Mutex<HashMap<merge::Scope, u64>>,
    /// Held while everything is read.
    pub(crate) scrubbing: Mutex<()>,
    /// Signed: a flush may count samples out before their append has counted them in.
    head_samples: AtomicI64,
    /// As `head_samples`: bytes of memory.
    head_bytes: AtomicI64,
}

impl Engine {
    /// Opens the data directory, creating it if needed, and replays the log. Blocks. See [`Opening`] for one that
    /// can be watched.
    ///
    /// # Errors
    /// `InUse` if another process has it, `Corrupt` if stored data is damaged, `Unavailable` on IO errors.
    pub fn open(options: EngineOptions, registry: &mut Registry) -> Result<Self, StorageError> {
        Opening::new(options, registry).open()
    }

    /// Starts the threads of a store that has its log.
    pub(crate) fn start(store: Store) -> Result<Self, StorageError> {
        let store = Arc::new(store);
        store.request_flush_if_due();
        let threads = vec![
            spawn(&store, "saturn-flush", flush::run_guarded)?,
            spawn(&store, "saturn-maintain", maintenance::run_guarded)?,
            spawn(&store, "saturn-scrub", scrub::run_guarded)?,
        ];
        Ok(Self { inner: Arc::new(Inner { store, threads: Mutex::new(threads) }) })
    }

    /// Stores the batches. Resolves when the samples of every known series are in the log, synced, and
    /// visible to reads. The result is parallel to `batches`. If all are of tenants with [`Durability::Interval`], it
    /// resolves before they are synced.
    ///
    /// If this returns an error or is dropped, any part of the batches may be stored; appending them again is
    /// harmless.
    ///
    /// # Errors
    /// `Invalid` names what is wrong; `Overloaded` and `DiskFull` ask to try later; `Failed` and `Closed` are final.
    pub async fn append(&self, batches: Vec<Arc<ShardBatch>>) -> Result<Vec<AppendOutcome>, StorageError> {
        let store = &self.inner.store;
        store.wal().check()?;
        store.check_load()?;
        store.check_disk()?;
        let mut bytes = 0;
        for batch in &batches {
            check(batch)?;
            bytes += record_bytes_estimate(batch);
        }
        let room = store.wal().room(bytes).await?;
        let mut outcomes = Vec::with_capacity(batches.len());
        let mut wait_for = None;
        for batch in &batches {
            let appended = store.shard(batch.shard).append(batch, store.wal(), store.note_limits())?;
            if appended.logged {
                wait_for = match store.options.durability.of(&batch.tenant) {
                    Durability::Fsync => Some(Ack::Durable),
                    Durability::Interval => wait_for.or(Some(Ack::Written)),
                };
            }
            store.count_append(&appended);
            outcomes.push(AppendOutcome { unknown: appended.unknown });
        }
        if let Some(ack) = wait_for {
            store.request_flush_if_due();
            store.wal().wait(ack, room).await?;
        }
        Ok(outcomes)
    }

    /// The samples of one shard's series that match, from memory and disk, merged: times ascending and unique,
    /// within the range. Series without a sample in the range are left out. The order is that of metrics within
    /// segments, not that of labels. Blocks.
    ///
    /// # Errors
    /// `TooManySeries` if more than `series_max` series match; `Corrupt` if stored data is damaged.
    pub fn select(
        &self,
        shard: ShardId,
        selection: &Selection,
        series_max: usize,
    ) -> Result<Vec<SeriesColumns>, StorageError> {
        self.select_stream(shard, selection, ReadLimits { series_max, bytes_max: u64::MAX })?.collect()
    }

    /// [`Engine::select`] one series after the other: each call of `next` reads one, and what was handed out is
    /// the caller's. A series shows all samples that were acknowledged before this was called; later ones it may
    /// show, so that one series may know more than another. Blocks, as does each `next`.
    ///
    /// # Errors
    /// `TooManySeries` at once. Instead of a series, and then nothing follows: `TooManyBytes`, `Corrupt`.
    pub fn select_stream(
        &self,
        shard: ShardId,
        selection: &Selection,
        limits: ReadLimits,
    ) -> Result<SeriesStream<'_>, StorageError> {
        read::stream(&self.inner.store, shard, selection, &limits)
    }

    /// [`Engine::select_stream`] for who keeps no samples: gives one series after the other to `each`, until it does not
    /// want more. Aggregations at the data build on this: only one series is in memory at a time, in room that is used
    /// again. The limit on bytes counts what was given in all. Blocks.
    ///
    /// # Errors
    /// As with [`Engine::select_stream`]; what was given before counts for nothing then.
    pub fn for_each_series(
        &self,
        shard: ShardId,
        selection: &Selection,
        limits: ReadLimits,
        each: impl FnMut(&SeriesColumns) -> ControlFlow<()>,
    ) -> Result<(), StorageError> {
        read::stream(&self.inner.store, shard, selection, &limits)?.for_each(each)
    }

    /// The label sets of one shard's series that match and have samples in the range, or on disk in the same 2 h
    /// window, or the same day if that is over. At most `limit`, and whether there are more.
    ///
    /// # Errors
    /// As with [`Engine::select`], as for the other listings.
    pub fn series(
        &self,
        shard: ShardId,
        selection: &Selection,
        limit: usize,
    ) -> Result<Listed<Labels>, StorageError> {
        labels::series(&self.inner.store, shard, selection, limit)
    }

    /// The label names of those series (see [`Engine::series`]). Without matchers: of all of the tenant's.
    pub fn label_names(
        &self,
        shard: ShardId,
        selection: &Selection,
        limit: usize,
    ) -> Result<Listed<String>, StorageError> {
        labels::label_names(&self.inner.store, shard, selection, limit)
    }

    /// The values that label `name` has on those series (see [`Engine::series`]).
    pub fn label_values(
        &self,
        shard: ShardId,
        selection: &Selection,
        name: &str,
        limit: usize,
    ) -> Result<Listed<String>, StorageError> {
        labels::label_values(&self.inner.store, shard, selection, name, limit)
    }

    /// How many series the tenant's labels have, of the series of these shards that are in memory; of each list
    /// the `top` first. Blocks.
    pub fn cardinality(&self, tenant: &TenantId, shards: &[ShardId], top: usize) -> Cardinality {
        labels::cardinality(&self.inner.store, tenant, shards, top)
    }

    /// The exemplars of one shard's series that match, in the selection's range.
    pub fn exemplars(&self, shard: ShardId, selection: &Selection) -> Vec<SeriesExemplars> {
        let Some(shard) = self.inner.store.known_shard(shard) else { return Vec::new() };
        let Selection { tenant, matchers, start, end } = selection;
        let notes = shard.notes.lock();
        notes.exemplars(tenant, matchers, (*start, *end))
    }

    /// What senders said about the tenant's metrics, or about one of them, as far as one shard keeps it: of at most
    /// `limit` metrics.
    pub fn metadata(
        &self,
        shard: ShardId,
        tenant: &TenantId,
        metric: Option<&str>,
        limit: usize,
    ) -> Listed<MetricMetadata> {
        let Some(shard) = self.inner.store.known_shard(shard) else { return Listed::nothing() };
        let (items, truncated) = shard.notes.lock().metadata(tenant, metric, limit);
        Listed { items, truncated }
    }

    /// Moves what is in memory to RocksDB and removes the log that is not needed any more. Blocks.
    pub fn flush(&self) -> Result<(), StorageError> {
        flush::flush(&self.inner.store)
    }

    /// Deletes the samples that there are of the tenant's matching series in the selection's range, in all
    /// shards of this node. When this returns, that is durable and every read sees it; the space comes back
    /// with later merges. Samples that are appended after it returned stay, whatever their time; of those that are
    /// appended while it runs some are deleted, for good.
    /// Returns how many series it concerns. Blocks.
    ///
    /// # Errors
    /// `Invalid` if the range is empty; else those of a flush, and nothing is deleted.
    pub fn delete_series(&self, selection: &Selection) -> Result<u64, StorageError> {
        tombstones::delete(&self.inner.store, selection)
    }

    /// Does what the replicas of shards agreed to delete, as [`Engine::delete_series`] does, all at once, and remembers
    /// durably how far each shard is with that: [`Engine::deleted_through`]. Blocks.
    ///
    /// # Errors
    /// As [`Engine::delete_series`].
    pub fn delete_agreed(&self, agreed: Vec<AgreedDeletions>) -> Result<u64, StorageError> {
        tombstones::delete_agreed(&self.inner.store, agreed)
    }

    /// The number of the last deletion in a shard that its replicas agreed on and that is done here; 0 before the first.
    pub fn deleted_through(&self, shard: ShardId) -> u64 {
        self.inner.store.known_shard(shard).map_or(0, |shard| shard.deleted_through())
    }

    /// Rewrites the windows of which tombstones hide samples, so that the space of deleted samples comes back now
    /// and not with a later merge. Blocks for as long as that takes.
    ///
    /// # Errors
    /// `Unavailable` on IO errors: it may work later. Damaged windows are reported and skipped.
    pub fn clean_tombstones(&self) -> Result<(), StorageError> {
        merge::clean(&self.inner.store)
    }

    /// Does what the background does from time to time, as if it were `now`: drops what retention does not
    /// cover, merges what has too many segments. Blocks.
    ///
    /// # Errors
    /// `Unavailable` on IO errors: it may work later. Damaged windows are reported and skipped.
    pub fn maintain(&self, now: TimestampMs) -> Result<(), StorageError> {
        maintenance::maintain(&self.inner.store, now.0)
    }

    /// Reads everything on disk through all checksums, no faster than the options allow, and says what is damaged.
    /// Merges leave windows with damage alone from then on. One runs at a time; a second one waits. Blocks.
    ///
    /// # Errors
    /// `Unavailable` on IO errors, `Closed` when the engine is closed meanwhile. Damage is no error.
    pub fn scrub(&self) -> Result<CheckReport, StorageError> {
        scrub::scrub(&self.inner.store)
    }

    /// A digest of the shard's samples in the 2 h window that begins at `window_start`: equal samples give
    /// equal digests on every node, whatever their way there. 256 buckets by the fingerprint's highest byte.
    /// Blocks.
    ///
    /// # Errors
    /// `Invalid` if no window begins there; `Corrupt` if stored data is damaged.
    pub fn digest(&self, shard: ShardId, window_start: TimestampMs) -> Result<[u64; 256], StorageError> {
        self.digest_until(shard, window_start, TimestampMs(i64::MAX))
    }

    /// As [`Engine::digest`], of the samples before `until` only: what is being written does not matter then.
    ///
    /// # Errors
    /// Those of [`Engine::digest`].
    pub fn digest_until(
        &self,
        shard: ShardId,
        window_start: TimestampMs,
        until: TimestampMs,
    ) -> Result<[u64; 256], StorageError> {
        let window = Window::of(window_start.0).filter(|window| window.start() == window_start.0);
        let window = window.ok_or_else(|| StorageError::Invalid {
            reason: format!("no 2 h window begins at {window_start} ms"),
        })?;
        digest::digest(&self.inner.store, shard, window, until)
    }

    /// The shard as it is now, to be given out: see [`ShardSnapshot`]. Samples in memory are copied, under the shard's
    /// lock; table files stay until it is dropped. Blocks for as long as a flush or merge runs. A shard that is not
    /// known is empty.
    pub fn snapshot(&self, shard: ShardId) -> ShardSnapshot<'_> {
        snapshot::snapshot(&self.inner.store, shard)
    }

    /// Takes what another replica gave out, or old samples in bulk, into segments of their own: memory and log are
    /// not touched. See [`Importer::ingest`]. `deleted_through`: as [`Engine::deleted_through`] of whoever gave it out;
    /// nothing is taken while this shard's is another one. Blocks.
    ///
    /// # Errors
    /// `Corrupt` if the rows of the shard's series cannot be read.
    pub fn importer(&self, shard: ShardId, deleted_through: u64) -> Result<Importer<'_>, StorageError> {
        import::importer(&self.inner.store, shard, deleted_through)
    }

    /// The exemplars and metadata that the shard has now, in pieces of about `chunk_bytes`, for another replica
    /// ([`Importer::ingest_notes`]). Those of one series may be in several.
    pub fn export_notes(&self, shard: ShardId, chunk_bytes: usize) -> Vec<ExportedNotes> {
        let Some(known) = self.inner.store.known_shard(shard) else { return Vec::new() };
        known.notes.lock().export(shard, chunk_bytes)
    }

    /// First milliseconds of the windows of which the shard may have samples on disk, ascending. Looks at no sample.
    pub fn windows_on_disk(&self, shard: ShardId) -> Vec<TimestampMs> {
        let Some(shard) = self.inner.store.known_shard(shard) else { return Vec::new() };
        let (segments, _) = shard.segments_and_tombstones();
        let windows = snapshot::windows_on_disk(&segments).into_iter();
        windows.map(|window| TimestampMs(window.start())).collect()
    }

    /// Whether this node has anything of the shard that [`Engine::drop_shard`] would remove: series, or samples. Looks
    /// at no sample.
    pub fn holds_shard(&self, shard: ShardId) -> bool {
        self.inner.store.known_shard(shard).is_some_and(|shard| shard.holds_anything())
    }

    /// Removes all that this node has of the shard: samples, series, exemplars, metadata, deletions. When this
    /// returns, that is durable; the space comes back with merges, at the latest with retention. What is appended or
    /// imported later is kept as in a shard that is new. Flushes all shards first. Blocks.
    ///
    /// # Errors
    /// Those of a flush, `Unavailable` on IO errors: call it again. The shard is whole or gone then, nothing between.
    pub fn drop_shard(&self, shard: ShardId) -> Result<(), StorageError> {
        drop_shard::drop_shard(&self.inner.store, shard)
    }

    /// The end of what is durable of the log: all that was acknowledged (but see [`Durability::Interval`]) is before it.
    /// It grows for as long as the directory lives, with every append and every time that the engine is opened.
    pub fn durable_position(&self) -> LogPosition {
        self.inner.store.wal().durable_position()
    }

    /// What [`Engine::durable_position`] was when the engine was opened: the end of what was found on the disk. If an
    /// earlier run had a larger one, the disk has lost what was acknowledged.
    pub fn recovered_position(&self) -> LogPosition {
        self.inner.store.wal().recovered_position()
    }

    /// The engine's figures now.
    pub fn stats(&self) -> EngineStats {
        let store = &self.inner.store;
        let shards = store.shards.read();
        let index_bytes: usize = shards.values().map(|shard| shard.index.read().bytes()).sum();
        EngineStats {
            head_series: shards.values().map(|shard| shard.head.lock().samples.series() as u64).sum(),
            head_bytes: store.head_bytes(),
            series: shards.values().map(|shard| shard.index.read().len()).sum(),
            index_bytes: (index_bytes + store.dictionary.bytes()) as u64,
            head_samples: store.samples_in_memory(),
            wal_bytes: store.wal().bytes(),
            disk_bytes: store.rocks.disk_bytes(),
            flushed_segments: store.disk_segments.load(Ordering::Relaxed),
        }
    }

    /// How long the data directory takes for a small write and an fdatasync, the file's creation not counted.
    /// Blocks.
    pub fn measure_fsync(&self) -> Result<Duration, StorageError> {
        let path = temporary_dir(&self.inner.store.options.dir).join("fsync-probe");
        let probe = |path: &Path| {
            let mut file = File::create(path)?;
            file.write_all(&[0; 4096])?;
            file.sync_all()?;
            let started = Instant::now();
            file.write_all(&[1; 4096])?;
            file.sync_data()?;
            let elapsed = started.elapsed();
            fs::remove_file(path)?;
            Ok(elapsed)
        };
        probe(&path).map_err(|e| StorageError::io("measure fdatasync with", &path, e))
    }

    /// Stops accepting, makes what was accepted durable, and ends the threads. Idempotent; reads go on. Blocks.
    ///
    /// # Errors
    /// `Failed` if the log failed at any time.
    pub fn close(&self) -> Result<(), StorageError> {
        self.inner.close()
    }
}

impl Inner {
    fn close(&self) -> Result<(), StorageError> {
        self.store.flush_signal.stop();
        self.store.maintenance_stop.stop();
        let mut threads = self.threads.lock();
        for thread in threads.drain(..) {
            thread.join().expect("the threads catch their panics");
        }
        self.store.rocks.sync_note();
        self.store.wal().close()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // An error was logged when it occurred.
        let _ = self.close();
    }
}

impl Store {
    /// Without shards and log.
    pub(crate) fn new(options: EngineOptions, rocks: Rocks, metrics: Arc<Metrics>, meta: &Meta) -> Self {
        Self {
            disk: Disk::new(options.dir.clone(), options.reserve_bytes),
            past: PastCache::new(options.index_cache_bytes),
            options,
            shards: RwLock::default(),
            dictionary: Arc::default(),
            rocks,
            wal: OnceLock::new(),
            metrics,
            flush_signal: FlushSignal::default(),
            maintenance_stop: maintenance::Stop::default(),
            next_segment: Mutex::new(meta.next_segment),
            disk_segments: AtomicU64::new(meta.segments.len() as u64),
            graveyard: Mutex::default(),
            merging: Mutex::default(),
            quarantine: Mutex::default(),
            dropped: Mutex::default(),
            scrubbing: Mutex::default(),
            head_samples: AtomicI64::new(0),
            head_bytes: AtomicI64::new(0),
        }
    }

    /// Takes the log, behind what was replayed.
    pub(crate) fn start_wal(&self, wal: Wal) {
        self.wal.set(wal).expect("a log is started once");
    }

    pub(crate) fn wal(&self) -> &Wal {
        self.wal.get().expect("the log is started before anybody has the engine")
    }

    pub(crate) fn temporary_dir(&self) -> PathBuf {
        temporary_dir(&self.options.dir)
    }

    /// Where the table file of this window and number is made.
    pub(crate) fn table_path(&self, window: Window, number: u64) -> PathBuf {
        self.temporary_dir().join(format!("{number:08}-{:08x}.sst", window.0))
    }

    pub(crate) fn known_shard(&self, shard: ShardId) -> Option<Arc<Shard>> {
        self.shards.read().get(&shard).cloned()
    }

    /// All shards, ascending.
    pub(crate) fn all_shards(&self) -> Vec<Arc<Shard>> {
        let mut shards: Vec<Arc<Shard>> = self.shards.read().values().cloned().collect();
        shards.sort_unstable_by_key(|shard| shard.id);
        shards
    }

    /// A step at which tests let an operation die, see `steps.rs`.
    pub(crate) fn failpoint(&self, step: &'static str) -> Result<(), StorageError> {
        self.options.steps.pass(step)
    }

    /// The shard, which is added if it is new.
    pub(crate) fn shard(&self, shard: ShardId) -> Arc<Shard> {
        let new = || Arc::new(Shard::new(shard, &self.dictionary));
        let added = || Arc::clone(self.shards.write().entry(shard).or_insert_with(new));
        self.known_shard(shard).unwrap_or_else(added)
    }

    pub(crate) fn samples_in_memory(&self) -> u64 {
        u64::try_from(self.head_samples.load(Ordering::Relaxed)).unwrap_or(0)
    }

    fn head_bytes(&self) -> u64 {
        u64::try_from(self.head_bytes.load(Ordering::Relaxed)).unwrap_or(0)
    }

    /// Whether memory reached the bound at which a flush starts.
    pub(crate) fn is_head_full(&self) -> bool {
        self.head_bytes() >= self.options.flush_head_bytes_max as u64
    }

    fn check_load(&self) -> Result<(), StorageError> {
        let bytes = self.head_bytes();
        let max = 2 * self.options.flush_head_bytes_max as u64;
        if bytes >= max { Err(StorageError::Overloaded { bytes, max }) } else { Ok(()) }
    }

    pub(crate) fn check_disk(&self) -> Result<(), StorageError> {
        self.disk.check(&self.metrics)
    }

    fn count_append(&self, appended: &Appended) {
        self.count_replay(appended);
        self.metrics.appended_samples.inc_by(appended.new_samples as u64);
        self.metrics.duplicate_samples.inc_by(appended.duplicates as u64);
        self.metrics.unknown_series.inc_by(appended.unknown.len() as u64);
        self.metrics.series.inc_by(gauge(appended.new_series as u64));
        self.metrics.dropped_exemplars.inc_by(appended.dropped.exemplars);
        self.metrics.dropped_metadata.inc_by(appended.dropped.metadata);
    }

    pub(crate) fn note_limits(&self) -> NoteLimits {
        NoteLimits {
            exemplars: self.options.exemplars_per_shard_max,
            metrics: self.options.metadata_per_shard_max,
        }
    }

    /// Series came or went otherwise than by an append.
    pub(crate) fn count_series(&self) {
        let series: u64 = self.shards.read().values().map(|shard| shard.index.read().len()).sum();
        self.metrics.series.set(gauge(series));
    }

    /// Counts what came into memory from the log.
    pub(crate) fn count_replay(&self, appended: &Appended) {
        self.change_head_samples(appended.grown);
        self.change_head_bytes(appended.grown_bytes);
    }

    /// Samples left memory, and so many bytes of it are free.
    pub(crate) fn forget_head(&self, samples: i64, bytes: i64) {
        self.change_head_samples(-samples);
        self.change_head_bytes(-bytes);
    }

    fn change_head_samples(&self, by: i64) {
        let before = self.head_samples.fetch_add(by, Ordering::Relaxed);
        self.metrics.head_samples.set(before + by);
    }

    pub(crate) fn change_head_bytes(&self, by: i64) {
        let before = self.head_bytes.fetch_add(by, Ordering::Relaxed);
        self.metrics.head_bytes.set(before + by);
    }

    /// Asks for a flush if memory or the log reached its bound.
    pub(crate) fn request_flush_if_due(&self) {
        let due = self.is_head_full() || self.wal().bytes() >= self.options.flush_wal_bytes_max;
        if due {
            self.flush_signal.request();
        }
    }
}

#[cfg(test)]
impl Engine {
    pub(crate) fn store(&self) -> &Store {
        &self.inner.store
    }
}

/// Starts a thread of the engine.
fn spawn(store: &Arc<Store>, name: &str, run: fn(&Store)) -> Result<JoinHandle<()>, StorageError> {
    let own = Arc::clone(store);
    let thread = std::thread::Builder::new().name(name.into()).spawn(move || run(&own));
    thread.map_err(|e| StorageError::io("start a thread for", &store.options.dir, e))
}

pub(crate) fn temporary_dir(dir: &Path) -> PathBuf {
    dir.join("tmp")
}

pub(crate) fn gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Creates a directory and makes its name durable.
pub(crate) fn create_dir(dir: &Path) -> Result<(), StorageError> {
    let io = |e| StorageError::io("create", dir, e);
    fs::create_dir_all(dir).map_err(io)?;
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    wal::sync_dir(parent).map_err(io)
}

/// Whether a batch makes sense by itself.
fn check(batch: &ShardBatch) -> Result<(), StorageError> {
    let invalid = |reason: String| Err(StorageError::Invalid { reason });
    if !batch.is_consistent() {
        return invalid(format!("the columns of a batch for shard {} do not fit each other", batch.shard));
    }
    let mut timestamps = batch.timestamps.iter().chain(&batch.histograms.timestamps);
    if let Some(timestamp) = timestamps.find(|t| Window::of(**t).is_none()) {
        return invalid(format!("the time {timestamp} ms cannot be stored"));
    }
    if let Some(histogram) = batch.histograms.values.iter().find(|h| h.is_too_large()) {
        let buckets = histogram.positive.counts().len() + histogram.negative.counts().len();
        return invalid(format!(
            "a native histogram of {buckets} buckets is over the limit of {BUCKETS_MAX}"
        ));
    }
    for (index, labels) in &batch.labels {
        let announced = batch.fingerprints[*index as usize];
        let actual = Fingerprint::of(&batch.tenant, labels.as_encoded());
        if actual != announced {
            return invalid(format!(
                "series {labels} has fingerprint {actual}, not {announced} as announced"
            ));
        }
    }
    Ok(())
}

/// What the series of an exemplar takes in the log, roughly.
const EXEMPLAR_SERIES_BYTES: usize = 200;

/// Roughly how large the batch's log record will be.
fn record_bytes_estimate(batch: &ShardBatch) -> usize {
    let labels: usize = batch.labels.iter().map(|(_, labels)| labels.as_encoded().len() + 24).sum();
    let notes = batch.notes_bytes() + batch.exemplars.len() * EXEMPLAR_SERIES_BYTES;
    96 + notes + batch.histograms.size_bytes() + batch.sample_count() * 10 + batch.series_count() * 4 + labels
}

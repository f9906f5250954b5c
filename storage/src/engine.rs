//! The engine: what the rest of Saturn calls.
//!
//! Invariants: an append that returned is in the log, synced, and visible to every later read; a request
//! that contradicts itself changes nothing of its shard; after an error of the log nothing is acknowledged
//! any more, while reads go on. This file wires the parts together; each part's own file says how it works.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use prometheus_client::registry::Registry;
use saturn_model::{
    BUCKETS_MAX, Fingerprint, Labels, Selection, SeriesColumns, ShardBatch, ShardId, TenantId, TimestampMs,
};

use crate::digest;
use crate::disk::Disk;
use crate::error::StorageError;
use crate::flush::{self, FlushSignal};
use crate::index::Dictionary;
use crate::keys::{Segment, Tombstone, Window};
use crate::labels::{self, Cardinality, Listed};
use crate::maintenance;
use crate::merge;
use crate::metrics::Metrics;
use crate::options::{EngineOptions, EngineStats, ReadLimits};
use crate::past::PastCache;
use crate::read::{self, SeriesStream};
use crate::rocks::{Meta, Rocks};
use crate::shard::Shard;
use crate::tombstones;
use crate::wal::{self, FIRST_SEGMENT, Wal, WalOptions};

/// One node's data. Clones are handles to the same engine; the last one closes it.
#[derive(Clone, Debug)]
pub struct Engine {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: Arc<Store>,
    /// The flush thread and the maintenance thread, until they are joined.
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
    pub(crate) wal: Wal,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) flush_signal: FlushSignal,
    pub(crate) maintenance_stop: maintenance::Stop,
    /// Number of the next flush, merge or tombstone; its lock is what lets one of them run at a time.
    pub(crate) next_segment: Mutex<u64>,
    pub(crate) disk_segments: AtomicU64,
    /// Segments that are not live any more, whose files may still be read.
    pub(crate) graveyard: Mutex<Vec<Arc<Segment>>>,
    /// Windows that merges leave alone, because their data is damaged.
    pub(crate) quarantine: Mutex<HashSet<Window>>,
    /// Signed: a flush may count samples out before their append has counted them in.
    head_samples: AtomicI64,
}

impl Engine {
    /// Opens the data directory, creating it if needed, and replays the log. Blocks.
    ///
    /// # Errors
    /// `InUse` if another process has it, `Corrupt` if stored data is damaged, `Unavailable` on IO errors.
    pub fn open(options: EngineOptions, registry: &mut Registry) -> Result<Self, StorageError> {
        let started = Instant::now();
        let (wal_dir, rocks_dir) = (options.dir.join("wal"), options.dir.join("rocks"));
        for dir in [&options.dir, &wal_dir, &rocks_dir] {
            create_dir(dir)?;
        }
        // The database's lock comes before anything that changes files.
        let rocks = Rocks::open(&rocks_dir, &options)?;
        options.steps.pass("open: database opened")?;
        let temporary = temporary_dir(&options.dir);
        let clearing = |e| StorageError::io("clear", &temporary, e);
        if temporary.exists() {
            fs::remove_dir_all(&temporary).map_err(clearing)?;
        }
        fs::create_dir(&temporary).map_err(clearing)?;

        let mut shards = HashMap::new();
        let dictionary = Arc::default();
        let mut meta = rocks.load_meta()?;
        restore(&rocks, &mut meta, &mut shards, &dictionary)?;
        let live: BTreeSet<(Window, u64)> =
            meta.segments.iter().map(|segment| (segment.key.window, segment.key.segment)).collect();
        let orphans = rocks.remove_orphans(|window, number| live.contains(&(window, number)))?;
        options.steps.pass("open: orphans removed")?;
        let mut head_samples = 0;
        let replayed = wal::replay(&wal_dir, meta.replay_from, |record| {
            head_samples += shard_of(&mut shards, &dictionary, record.shard).replay(record)?.grown;
            Ok(())
        })?;
        let records = replayed.records;
        shards.values().for_each(|shard| shard.finish_restoring());
        let position = options.dir.join("position");
        wal::check_position(&position, &wal_dir, meta.replay_from.unwrap_or(FIRST_SEGMENT), &replayed)?;

        options.steps.pass("open: log replayed")?;

        let metrics = Arc::new(Metrics::new(registry));
        let wal_options = WalOptions {
            dir: wal_dir,
            position,
            segment_bytes: options.wal_segment_bytes,
            group_bytes_max: options.group_commit_bytes_max,
            queue_bytes_max: options.wal_queue_bytes_max,
            steps: options.steps.clone(),
        };
        let wal = Wal::start(wal_options, replayed, Arc::clone(&metrics))?;
        options.steps.pass("open: log started")?;
        if meta.replay_from.is_none() {
            rocks.initialise(FIRST_SEGMENT)?;
        }
        let series: u64 = shards.values().map(|shard| shard.index.read().len()).sum();
        metrics.series.set(gauge(series));
        metrics.head_samples.set(head_samples);
        tracing::info!(
            dir = %options.dir.display(), series, head_samples, records, orphans,
            segments = meta.segments.len(), seconds = started.elapsed().as_secs_f64(), "storage opened"
        );
        let store = Arc::new(Store {
            disk: Disk::new(options.dir.clone(), options.reserve_bytes),
            past: PastCache::new(options.index_cache_bytes),
            options,
            shards: RwLock::new(shards),
            dictionary,
            rocks,
            wal,
            metrics,
            flush_signal: FlushSignal::default(),
            maintenance_stop: maintenance::Stop::default(),
            next_segment: Mutex::new(meta.next_segment),
            disk_segments: AtomicU64::new(meta.segments.len() as u64),
            graveyard: Mutex::default(),
            quarantine: Mutex::default(),
            head_samples: AtomicI64::new(head_samples),
        });
        store.request_flush_if_due();
        let threads = vec![
            spawn(&store, "saturn-flush", flush::run_guarded)?,
            spawn(&store, "saturn-maintain", maintenance::run_guarded)?,
        ];
        Ok(Self { inner: Arc::new(Inner { store, threads: Mutex::new(threads) }) })
    }

    /// Stores the batches. Resolves when the samples of every known series are in the log, synced, and
    /// visible to reads. The result is parallel to `batches`.
    ///
    /// If this returns an error or is dropped, any part of the batches may be stored; appending them again is
    /// harmless.
    ///
    /// # Errors
    /// `Invalid` names what is wrong; `Overloaded` and `DiskFull` ask to try later; `Failed` and `Closed` are final.
    pub async fn append(&self, batches: Vec<Arc<ShardBatch>>) -> Result<Vec<AppendOutcome>, StorageError> {
        let store = &self.inner.store;
        store.wal.check()?;
        store.check_load()?;
        store.disk.check(&store.metrics)?;
        let mut bytes = 0;
        for batch in &batches {
            check(batch)?;
            bytes += record_bytes_estimate(batch);
        }
        let room = store.wal.room(bytes).await?;
        let mut outcomes = Vec::with_capacity(batches.len());
        let mut must_wait = false;
        for batch in &batches {
            let appended = store.shard(batch.shard).append(batch, &store.wal)?;
            must_wait |= appended.logged;
            store.count_append(&appended);
            outcomes.push(AppendOutcome { unknown: appended.unknown });
        }
        if must_wait {
            store.request_flush_if_due();
            store.wal.durable(room).await?;
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

    /// The label sets of one shard's series that match and have samples in the range, or in the same 2 h
    /// window on disk.
    /// At most `limit`, and whether there are more.
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

    /// How many series the tenant's labels have, of the series in memory, in all shards of this node; the `top`
    /// of each kind.
    pub fn cardinality(&self, tenant: &TenantId, top: usize) -> Cardinality {
        labels::cardinality(&self.inner.store, tenant, top)
    }

    /// Moves what is in memory to RocksDB and removes the log that is not needed any more. Blocks.
    pub fn flush(&self) -> Result<(), StorageError> {
        flush::flush(&self.inner.store)
    }

    /// Deletes the samples that there are of the tenant's matching series in the selection's range, in all
    /// shards of this node. When this returns, that is durable and every read sees it; the space comes back
    /// with later merges. Samples that are appended after this was called stay, whatever their time.
    /// Returns how many series it concerns. Blocks.
    ///
    /// # Errors
    /// `Invalid` if the range is empty; else those of a flush, and nothing is deleted.
    pub fn delete_series(&self, selection: &Selection) -> Result<u64, StorageError> {
        tombstones::delete(&self.inner.store, selection)
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

    /// A digest of the shard's samples in the 2 h window that begins at `window_start`: equal samples give
    /// equal digests on every node, whatever their way there. 256 buckets by the fingerprint's highest byte.
    /// Blocks.
    ///
    /// # Errors
    /// `Invalid` if no window begins there; `Corrupt` if stored data is damaged.
    pub fn digest(&self, shard: ShardId, window_start: TimestampMs) -> Result<[u64; 256], StorageError> {
        let window = Window::of(window_start.0).filter(|window| window.start() == window_start.0);
        let window = window.ok_or_else(|| StorageError::Invalid {
            reason: format!("no 2 h window begins at {window_start} ms"),
        })?;
        digest::digest(&self.inner.store, shard, window)
    }

    /// The engine's figures now.
    pub fn stats(&self) -> EngineStats {
        let store = &self.inner.store;
        let shards = store.shards.read();
        let (head_series, head_bytes) = shards.values().fold((0, 0), |(series, bytes), shard| {
            let head = shard.head.lock();
            (series + head.samples.series() as u64, bytes + head.samples.bytes() as u64)
        });
        let index_bytes: usize = shards.values().map(|shard| shard.index.read().bytes()).sum();
        EngineStats {
            head_series,
            head_bytes,
            series: shards.values().map(|shard| shard.index.read().len()).sum(),
            index_bytes: (index_bytes + store.dictionary.bytes()) as u64,
            head_samples: store.samples_in_memory(),
            wal_bytes: store.wal.bytes(),
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
        self.store.wal.close()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // An error was logged when it occurred.
        let _ = self.close();
    }
}

impl Store {
    pub(crate) fn temporary_dir(&self) -> PathBuf {
        temporary_dir(&self.options.dir)
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

    fn shard(&self, shard: ShardId) -> Arc<Shard> {
        self.known_shard(shard)
            .unwrap_or_else(|| Arc::clone(shard_of(&mut self.shards.write(), &self.dictionary, shard)))
    }

    fn samples_in_memory(&self) -> u64 {
        u64::try_from(self.head_samples.load(Ordering::Relaxed)).unwrap_or(0)
    }

    fn check_load(&self) -> Result<(), StorageError> {
        let samples = self.samples_in_memory();
        let max = 2 * self.options.flush_samples_max as u64;
        if samples >= max { Err(StorageError::Overloaded { samples, max }) } else { Ok(()) }
    }

    fn count_append(&self, appended: &crate::shard::Appended) {
        self.change_head_samples(appended.grown);
        self.metrics.appended_samples.inc_by(appended.new_samples as u64);
        self.metrics.duplicate_samples.inc_by(appended.duplicates as u64);
        self.metrics.unknown_series.inc_by(appended.unknown.len() as u64);
        self.metrics.series.inc_by(gauge(appended.new_series as u64));
    }

    /// Series came or went otherwise than by an append.
    pub(crate) fn count_series(&self) {
        let series: u64 = self.shards.read().values().map(|shard| shard.index.read().len()).sum();
        self.metrics.series.set(gauge(series));
    }

    /// Samples left memory.
    pub(crate) fn forget_head_samples(&self, gone: i64) {
        self.change_head_samples(-gone);
    }

    fn change_head_samples(&self, by: i64) {
        let before = self.head_samples.fetch_add(by, Ordering::Relaxed);
        self.metrics.head_samples.set(before + by);
    }

    /// Asks for a flush if memory or the log reached its bound.
    pub(crate) fn request_flush_if_due(&self) {
        let due = self.samples_in_memory() >= self.options.flush_samples_max as u64
            || self.wal.bytes() >= self.options.flush_wal_bytes_max;
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

fn temporary_dir(dir: &Path) -> PathBuf {
    dir.join("tmp")
}

fn gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Creates a directory and makes its name durable.
fn create_dir(dir: &Path) -> Result<(), StorageError> {
    let io = |e| StorageError::io("create", dir, e);
    fs::create_dir_all(dir).map_err(io)?;
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    wal::sync_dir(parent).map_err(io)
}

fn shard_of<'a>(
    shards: &'a mut HashMap<ShardId, Arc<Shard>>,
    dictionary: &Arc<Dictionary>,
    shard: ShardId,
) -> &'a Arc<Shard> {
    shards.entry(shard).or_insert_with(|| Arc::new(Shard::new(shard, dictionary)))
}

/// Brings back series and segments from the database.
fn restore(
    rocks: &Rocks,
    meta: &mut Meta,
    shards: &mut HashMap<ShardId, Arc<Shard>>,
    dictionary: &Arc<Dictionary>,
) -> Result<(), StorageError> {
    for resident in meta.resident.drain(..) {
        let shard = shard_of(shards, dictionary, resident.shard);
        let mut missing = resident.series.clone();
        rocks.series_rows(shard.id, &resident.series, |row| {
            missing.remove(row.ordinal);
            shard.restore_series(row);
        })?;
        if let Some(ordinal) = missing.min() {
            return Err(rocks.inconsistent(format!("series {ordinal} of shard {} is missing", shard.id)));
        }
        shard.restore_ordinals(resident.ordinals);
    }
    for (shard, ordinals) in &meta.ordinals {
        shard_of(shards, dictionary, *shard).reserve_ordinals(*ordinals);
    }
    let mut tombstones: HashMap<ShardId, Vec<Arc<Tombstone>>> = HashMap::new();
    for tombstone in meta.tombstones.drain(..) {
        tombstones.entry(tombstone.shard).or_default().push(Arc::new(tombstone));
    }
    for (shard, tombstones) in tombstones {
        shard_of(shards, dictionary, shard).restore_tombstones(tombstones);
    }
    let mut segments: HashMap<ShardId, Vec<Arc<Segment>>> = HashMap::new();
    for segment in &meta.segments {
        segments.entry(segment.key.shard).or_default().push(Arc::new(segment.clone()));
    }
    for (shard, segments) in segments {
        shard_of(shards, dictionary, shard).restore_segments(segments);
    }
    Ok(())
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

/// Roughly how large the batch's log record will be.
fn record_bytes_estimate(batch: &ShardBatch) -> usize {
    let labels: usize = batch.labels.iter().map(|(_, labels)| labels.as_encoded().len() + 24).sum();
    96 + batch.histograms.size_bytes() + batch.sample_count() * 10 + batch.series_count() * 4 + labels
}

//! From files to a running engine: the database, the log, and how far that has come.
//!
//! One thread reads and checks the log; workers apply its records, each to its own shards, so the order within
//! a shard is that of the log. Memory is bounded: few records are on their way, and a head that reaches the
//! flush limit is flushed at the end of a log segment, with nothing on its way. So every attempt to start gets
//! further than the last, even if it is killed.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::fs;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::Scope;
use std::time::Instant;

use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use saturn_model::ShardId;

use crate::engine::{Engine, Store, create_dir, gauge, temporary_dir};
use crate::error::StorageError;
use crate::flush;
use crate::keys::{Segment, Tombstone, Window};
use crate::metrics::Metrics;
use crate::options::EngineOptions;
use crate::rocks::{Meta, Rocks};
use crate::shard::Eviction;
use crate::wal::{self, AppendRecord, FIRST_SEGMENT, Sink, Wal, WalOptions};

/// Most threads that apply the log.
const WORKERS_MAX: usize = 8;
/// Most records that wait for one of them.
const RECORDS_WAITING_MAX: usize = 32;

/// An engine that is about to be opened.
#[derive(Debug)]
pub struct Opening {
    options: EngineOptions,
    metrics: Arc<Metrics>,
    progress: OpenProgress,
}

/// How far opening has come. Clones look at the same engine. `Display` says it in words.
#[derive(Clone, Debug, Default)]
pub struct OpenProgress {
    state: Arc<ProgressState>,
}

#[derive(Debug, Default)]
struct ProgressState {
    phase: AtomicU8,
    done: AtomicU64,
    total: AtomicU64,
    cancelled: AtomicBool,
}

/// Names of the phases; those that count bytes end in a colon.
const PHASES: [&str; 3] = ["opening the database", "reading the series", "replaying the write-ahead log:"];

#[derive(Clone, Copy)]
#[repr(u8)]
enum Phase {
    Series = 1,
    Log = 2,
}

impl OpenProgress {
    /// Bytes read, and bytes to read in all, of the part of opening that takes longest; (0, 0) before it.
    pub fn bytes(&self) -> (u64, u64) {
        (self.state.done.load(Ordering::Relaxed), self.state.total.load(Ordering::Relaxed))
    }

    /// Makes [`Opening::open`] end soon with [`StorageError::Closed`], if it still replays the log. What it did so
    /// far is kept.
    pub fn cancel(&self) {
        self.state.cancelled.store(true, Ordering::Relaxed);
    }

    fn is_cancelled(&self) -> bool {
        self.state.cancelled.load(Ordering::Relaxed)
    }

    fn enter(&self, phase: Phase, total: u64) {
        self.state.done.store(0, Ordering::Relaxed);
        self.state.total.store(total, Ordering::Relaxed);
        self.state.phase.store(phase as u8, Ordering::Relaxed);
    }

    fn done(&self, bytes: u64) {
        self.state.done.store(bytes, Ordering::Relaxed);
    }
}

impl fmt::Display for OpenProgress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let phase = PHASES[usize::from(self.state.phase.load(Ordering::Relaxed))];
        f.write_str(phase)?;
        if !phase.ends_with(':') {
            return Ok(());
        }
        let (done, total) = self.bytes();
        let (unit, name) = if total >= 1_000_000_000 { (1_000_000_000, "GB") } else { (1_000_000, "MB") };
        let tenths = |bytes: u64| (bytes / (unit / 10) / 10, bytes / (unit / 10) % 10);
        let ((a, b), (c, d)) = (tenths(done.min(total)), tenths(total));
        write!(f, " {a}.{b} of {c}.{d} {name}")
    }
}

impl Opening {
    /// Registers the engine's metrics. Does nothing else.
    pub fn new(options: EngineOptions, registry: &mut Registry) -> Self {
        let metrics = Arc::new(Metrics::new(registry));
        Self { options, metrics, progress: OpenProgress::default() }
    }

    /// To be looked at while [`Opening::open`] runs.
    pub fn progress(&self) -> OpenProgress {
        self.progress.clone()
    }

    /// Opens the data directory, creating it if needed, and replays the log. Blocks.
    ///
    /// # Errors
    /// `InUse` if another process has it, `Corrupt` if stored data is damaged, `Unavailable` on IO errors, `Closed`
    /// after [`OpenProgress::cancel`].
    pub fn open(self) -> Result<Engine, StorageError> {
        let started = Instant::now();
        let Self { options, metrics, progress } = self;
        let (wal_dir, rocks_dir) = (options.dir.join("wal"), options.dir.join("rocks"));
        for dir in [&options.dir, &wal_dir, &rocks_dir] {
            create_dir(dir)?;
        }
        // The database's lock comes before anything that changes files.
        let rocks = Rocks::open(&rocks_dir, &options)?;
        options.steps.pass("open: database opened")?;
        clear(&temporary_dir(&options.dir))?;
        progress.enter(Phase::Series, 0);
        let meta = rocks.load_meta()?;
        if meta.is_outdated() {
            rocks.upgrade()?;
        }
        let store = Store::new(options, rocks, metrics, &meta);
        let orphans = restore(&store, &meta)?;
        store.failpoint("open: orphans removed")?;

        let mut initialised = meta.replay_from.is_some();
        let mut replay_from = meta.replay_from.unwrap_or(FIRST_SEGMENT);
        let replayed = replay(&store, &wal_dir, &mut initialised, &mut replay_from, &progress)?;
        let position = store.options.dir.join("position");
        wal::check_position(&position, &wal_dir, replay_from, &replayed)?;
        let records = replayed.records;
        store.all_shards().iter().for_each(|shard| shard.finish_restoring());
        store.failpoint("open: log replayed")?;
        let wal_options = WalOptions {
            dir: wal_dir,
            position,
            segment_bytes: store.options.wal_segment_bytes,
            group_bytes_max: store.options.group_commit_bytes_max,
            queue_bytes_max: store.options.wal_queue_bytes_max,
            sync_interval: store.options.durability.interval,
            steps: store.options.steps.clone(),
        };
        store.start_wal(Wal::start(wal_options, replayed, Arc::clone(&store.metrics))?);
        store.failpoint("open: log started")?;
        if !initialised {
            store.rocks.initialise(FIRST_SEGMENT)?;
        }
        let series: u64 = store.all_shards().iter().map(|shard| shard.index.read().len()).sum();
        store.metrics.series.set(gauge(series));
        tracing::info!(
            dir = %store.options.dir.display(), series, head_samples = store.samples_in_memory(), records, orphans,
            segments = meta.segments.len(), seconds = started.elapsed().as_secs_f64(), "storage opened"
        );
        Engine::start(store)
    }
}

fn clear(temporary: &Path) -> Result<(), StorageError> {
    let clearing = |e| StorageError::io("clear", temporary, e);
    if temporary.exists() {
        fs::remove_dir_all(temporary).map_err(clearing)?;
    }
    fs::create_dir(temporary).map_err(clearing)
}

/// Brings back series and segments from the database. Returns how many tables were removed that no row knows.
fn restore(store: &Store, meta: &Meta) -> Result<usize, StorageError> {
    for resident in &meta.resident {
        let shard = store.shard(resident.shard);
        let mut missing = resident.series.clone();
        store.rocks.series_rows(shard.id, &resident.series, |row| {
            missing.remove(row.ordinal);
            shard.restore_series(row);
        })?;
        if let Some(ordinal) = missing.min() {
            let reason = format!("series {ordinal} of shard {} is missing", shard.id);
            return Err(store.rocks.inconsistent(reason));
        }
        shard.restore_ordinals(resident.ordinals);
    }
    store.rocks.each_note(|key, value| store.shard(key.shard).notes.lock().restore(key, value))?;
    for (shard, through) in &meta.deleted {
        store.shard(*shard).set_deleted_through(*through);
    }
    for (shard, ordinals) in &meta.ordinals {
        store.shard(*shard).reserve_ordinals(*ordinals);
    }
    let mut tombstones: HashMap<ShardId, Vec<Arc<Tombstone>>> = HashMap::new();
    for tombstone in &meta.tombstones {
        tombstones.entry(tombstone.shard).or_default().push(Arc::new(tombstone.clone()));
    }
    for (shard, tombstones) in tombstones {
        store.shard(shard).restore_tombstones(tombstones);
    }
    let mut segments: HashMap<ShardId, Vec<Arc<Segment>>> = HashMap::new();
    for segment in &meta.segments {
        segments.entry(segment.key.shard).or_default().push(Arc::new(segment.clone()));
    }
    for (shard, segments) in segments {
        store.shard(shard).restore_segments(segments);
    }
    let live: BTreeSet<(Window, u64)> =
        meta.segments.iter().map(|segment| (segment.key.window, segment.key.segment)).collect();
    store.rocks.remove_orphans(|window, number| live.contains(&(window, number)))
}

/// Replays the log through workers. `replay_from` moves on with each flush.
fn replay(
    store: &Store,
    dir: &Path,
    initialised: &mut bool,
    replay_from: &mut u64,
    progress: &OpenProgress,
) -> Result<wal::Replayed, StorageError> {
    let total = wal::bytes_from(dir, *replay_from).map_err(|e| StorageError::io("list", dir, e))?;
    progress.enter(Phase::Log, total);
    let known_flush = initialised.then_some(*replay_from);
    std::thread::scope(|scope| {
        let workers =
            Workers::start(scope, store).map_err(|e| StorageError::io("start threads to replay", dir, e))?;
        let mut replay =
            Replay { store, dir: dir.into(), workers, progress, initialised, replay_from, done: 0 };
        wal::replay(dir, known_flush, &mut replay)
    })
}

/// Applies the log.
struct Replay<'a> {
    store: &'a Store,
    dir: PathBuf,
    workers: Workers,
    progress: &'a OpenProgress,
    initialised: &'a mut bool,
    replay_from: &'a mut u64,
    /// Bytes read.
    done: u64,
}

impl Sink for Replay<'_> {
    fn record(&mut self, record: AppendRecord, bytes: usize) -> Result<(), String> {
        self.done += bytes as u64;
        self.progress.done(self.done);
        self.workers.apply(record)
    }

    fn settle(&mut self) -> Result<(), String> {
        self.workers.settle()
    }

    fn make_room(&mut self, next: u64) -> Result<bool, StorageError> {
        if self.progress.is_cancelled() {
            return Err(StorageError::Closed);
        }
        if !self.store.is_head_full() {
            return Ok(false);
        }
        if !*self.initialised {
            // The log is there from its beginning, which is all that this says.
            self.store.rocks.initialise(FIRST_SEGMENT)?;
            *self.initialised = true;
        }
        tracing::info!(dir = %self.dir.display(), next, "the head is full; flushing before the replay goes on");
        let mut next_segment = self.store.next_segment.lock();
        flush::move_to_disk(self.store, &mut next_segment, next, Eviction::Nobody)?;
        *self.replay_from = next;
        Ok(true)
    }
}

/// What a worker is told.
enum Order {
    Apply(AppendRecord),
    /// Answer when all before is applied.
    Settle(mpsc::SyncSender<()>),
}

/// Threads that apply records, by shard.
struct Workers {
    orders: Vec<mpsc::SyncSender<Order>>,
    state: Arc<WorkersState>,
}

#[derive(Default)]
struct WorkersState {
    failed: AtomicBool,
    /// The first record that did not fit, in words.
    misfit: Mutex<Option<String>>,
}

impl Workers {
    fn start<'scope>(scope: &'scope Scope<'scope, '_>, store: &'scope Store) -> std::io::Result<Self> {
        let count = std::thread::available_parallelism().map_or(1, NonZero::get).min(WORKERS_MAX);
        let state = Arc::new(WorkersState::default());
        let mut orders = Vec::with_capacity(count);
        for _ in 0..count {
            let (sender, receiver) = mpsc::sync_channel(RECORDS_WAITING_MAX);
            let state = Arc::clone(&state);
            let name = "saturn-replay".to_owned();
            std::thread::Builder::new().name(name).spawn_scoped(scope, move || {
                for order in receiver {
                    match order {
                        Order::Apply(record) => state.apply(store, record),
                        Order::Settle(done) => {
                            let _ = done.send(());
                        }
                    }
                }
            })?;
            orders.push(sender);
        }
        Ok(Self { orders, state })
    }

    fn apply(&self, record: AppendRecord) -> Result<(), String> {
        let worker = usize::from(record.shard.0) % self.orders.len();
        // It can be gone only if it panicked, and then the scope panics too.
        let _ = self.orders[worker].send(Order::Apply(record));
        self.state.check()
    }

    /// Waits until all records are applied.
    fn settle(&self) -> Result<(), String> {
        let (done, settled) = mpsc::sync_channel(self.orders.len());
        for worker in &self.orders {
            let _ = worker.send(Order::Settle(done.clone()));
        }
        drop(done);
        while settled.recv().is_ok() {}
        self.state.check()
    }
}

impl WorkersState {
    fn apply(&self, store: &Store, record: AppendRecord) {
        if self.failed.load(Ordering::Relaxed) {
            return;
        }
        match store.shard(record.shard).replay(record, store.note_limits()) {
            Ok(appended) => store.count_replay(&appended),
            Err(misfit) => {
                self.misfit.lock().get_or_insert(misfit);
                self.failed.store(true, Ordering::Relaxed);
            }
        }
    }

    fn check(&self) -> Result<(), String> {
        if !self.failed.load(Ordering::Relaxed) {
            return Ok(());
        }
        Err(self.misfit.lock().clone().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests;

//! Flush: from the head to table files in RocksDB, then removal of the log that it replaces.
//!
//! The order is what makes it safe; a crash between any two steps loses nothing:
//!
//! 1. The log starts a new segment `n`: all records before it are durable, and their samples in heads.
//! 2. Every shard's head is set aside (and stays readable).
//! 3. New series' rows go to `index`, and the flush's number is taken for good, in one synced write.
//! 4. Pages are written to table files, one per window, and ingested: durable, but read by nobody.
//! 5. One synced write to `meta` makes the segments live and says that replay starts at `n`; with it go the rows of
//!    exemplars and metadata that changed.
//! 6. In memory, the segments replace what was set aside.
//! 7. Log segments below `n` are removed.
//!
//! A crash before 5 leaves table files that no `meta` row knows; they are removed at start. Records of `n`
//! whose samples were flushed too are replayed into the same state. If a step fails, what was set aside goes
//! back into the heads, and the next flush does it all again.

use std::io;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use saturn_model::SeriesColumns;

use crate::engine::Store;
use crate::error::StorageError;
use crate::keys::{Segment, SegmentKey, SeriesKey, Span, Window};
use crate::past;
use crate::rocks::Resident;
use crate::segment::{LazyTable, Samples, SegmentWriter};
use crate::shard::{Eviction, Shard, Taken};

/// After a failed flush the thread waits this long.
const RETRY_AFTER: Duration = Duration::from_secs(10);
/// Wakes the flush thread.
#[derive(Debug, Default)]
pub(crate) struct FlushSignal {
    state: Mutex<SignalState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct SignalState {
    wanted: bool,
    stopping: bool,
}

#[derive(PartialEq)]
enum Wake {
    Flush,
    Stop,
}

impl FlushSignal {
    /// Asks for a flush soon.
    pub(crate) fn request(&self) {
        let mut state = self.state.lock();
        if !state.wanted {
            state.wanted = true;
            self.changed.notify_one();
        }
    }

    fn forget(&self) {
        self.state.lock().wanted = false;
    }

    /// Whether somebody wants the thread to flush, or to end.
    pub(crate) fn is_wanted(&self) -> bool {
        let state = self.state.lock();
        state.wanted || state.stopping
    }

    /// Asks the thread to end.
    pub(crate) fn stop(&self) {
        self.state.lock().stopping = true;
        self.changed.notify_one();
    }

    fn wait(&self, at_most: Duration) -> Wake {
        let mut state = self.state.lock();
        let until = Instant::now() + at_most;
        self.changed.wait_while_until(&mut state, |state| !state.wanted && !state.stopping, until);
        state.wanted = false;
        if state.stopping { Wake::Stop } else { Wake::Flush }
    }

    fn wait_to_retry(&self) {
        let mut state = self.state.lock();
        let until = Instant::now() + RETRY_AFTER;
        self.changed.wait_while_until(&mut state, |state| !state.stopping, until);
    }
}

/// The flush thread: flushes on request and at the interval, until it is stopped.
pub(crate) fn run_guarded(store: &Store) {
    let run = || {
        while store.flush_signal.wait(store.options.flush_interval) == Wake::Flush {
            match flush(store) {
                // Requests made meanwhile were for samples that are flushed now.
                Ok(()) => {
                    store.flush_signal.forget();
                    store.request_flush_if_due();
                }
                Err(StorageError::Failed { .. } | StorageError::Closed) => return,
                Err(error) => {
                    tracing::error!(error = &error as &dyn std::error::Error, "flush failed, trying again");
                    store.flush_signal.wait_to_retry();
                }
            }
        }
    };
    if std::panic::catch_unwind(AssertUnwindSafe(run)).is_err() {
        store.wal().fail(io::Error::other("the flush thread panicked"));
    }
}

/// Flushes all shards. One flush runs at a time; a second one waits for the first.
pub(crate) fn flush(store: &Store) -> Result<(), StorageError> {
    let mut next_segment = store.next_segment.lock();
    if store.all_shards().iter().any(|shard| shard.needs_flush(store.options.series_idle)) {
        return flush_locked(store, &mut next_segment);
    }
    store.wal().check()
}

/// Flushes all shards, even if nothing is in memory: afterwards the log holds nothing of what was appended before.
/// The caller holds the lock on the number of the next segment.
pub(crate) fn flush_locked(store: &Store, next_segment: &mut u64) -> Result<(), StorageError> {
    store.wal().check()?;
    let replay_from = store.wal().rotate()?;
    store.failpoint("flush: log rotated")?;
    move_to_disk(store, next_segment, replay_from, Eviction::IdleFor(store.options.series_idle))?;
    if let Err(error) = store.wal().remove_below(replay_from) {
        // The samples are safe twice; the next flush or start removes the files.
        tracing::warn!(error = &error as &dyn std::error::Error, "cannot remove old log segments");
    }
    Ok(())
}

/// Steps 2 to 6 of the module's description: log segments below `replay_from` are not needed any more then.
pub(crate) fn move_to_disk(
    store: &Store,
    next_segment: &mut u64,
    replay_from: u64,
    eviction: Eviction,
) -> Result<(), StorageError> {
    let started = Instant::now();
    // Listed only now: a shard that was new a moment ago may have records in the log that goes.
    let shards = store.all_shards();
    let taken: Vec<(Arc<Shard>, Taken)> = shards
        .into_iter()
        .filter_map(|shard| shard.begin_flush(eviction).map(|taken| (shard, taken)))
        .collect();
    let number = *next_segment;
    *next_segment += 1;
    match write(store, &taken, number, replay_from) {
        Ok(written) => {
            for (shard, taken) in &taken {
                let own = written.segments.iter().filter(|s| s.key.shard == shard.id).cloned().collect();
                shard.finish_flush(taken, own);
            }
            store.disk_segments.fetch_add(written.segments.len() as u64, Ordering::Relaxed);
            for (_, taken) in &taken {
                store.forget_head(taken.samples(), taken.bytes());
            }
            store.count_series();
            store.metrics.flushed_samples.inc_by(written.samples);
            store.metrics.flushed_bytes.inc_by(written.bytes);
        }
        Err(error) => {
            for (shard, taken) in &taken {
                let (samples, bytes) = shard.abort_flush(taken);
                store.forget_head(samples, bytes);
            }
            store.metrics.flush_failures.inc();
            return Err(error);
        }
    }
    store.metrics.flush_duration.observe(started.elapsed().as_secs_f64());
    Ok(())
}

#[derive(Debug)]
struct Written {
    segments: Vec<Arc<Segment>>,
    samples: u64,
    bytes: u64,
}

/// Steps 3 to 5 of the module's description.
fn write(
    store: &Store,
    taken: &[(Arc<Shard>, Taken)],
    number: u64,
    replay_from: u64,
) -> Result<Written, StorageError> {
    let rows = taken.iter().flat_map(|(_, taken)| taken.new_series.iter().cloned());
    let ordinals = taken.iter().map(|(shard, taken)| (shard.id, taken.ordinals));
    store.rocks.write_series(rows, ordinals, number + 1)?;
    store.failpoint("flush: rows written")?;
    let tables = write_tables(store, taken, number)?;
    store.failpoint("flush: pages written")?;
    for (shard, _) in taken {
        store.rocks.write_index(past::rows_added(shard, &tables.segments).into_iter())?;
    }
    store.failpoint("flush: days written")?;
    if !tables.paths.is_empty() {
        store.rocks.ingest(tables.paths)?;
    }
    store.failpoint("flush: ingested")?;
    let evicted = taken.iter().flat_map(|(shard, taken)| past::rows_evicted(shard, &taken.evicted)).collect();
    let segments = tables.segments.iter().map(|segment| &**segment);
    let notes = taken.iter().flat_map(|(_, taken)| &taken.notes);
    store.rocks.commit(segments, taken.iter().map(resident), (evicted, notes), replay_from)?;
    store.failpoint("flush: committed")?;
    let samples = tables.segments.iter().map(|segment| segment.samples).sum();
    Ok(Written { segments: tables.segments, samples, bytes: tables.bytes })
}

fn resident((shard, taken): &(Arc<Shard>, Taken)) -> Resident {
    Resident { shard: shard.id, ordinals: taken.ordinals, series: taken.resident.clone() }
}

/// The part of a run that lies in one window. Ordered like its place in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Piece {
    window: Window,
    /// Position in the list of shards, which is ordered by shard.
    shard: usize,
    series: SeriesKey,
    ordinal: u32,
}

/// Cuts every run at windows.
fn cut(taken: &[(Arc<Shard>, Taken)]) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let (mut timestamps, mut values) = (Vec::new(), Vec::new());
    for (position, (shard, taken)) in taken.iter().enumerate() {
        let index = shard.index.read();
        let mut look_ups = index.look_ups();
        for (ordinal, run) in taken.samples.iter() {
            let series = look_ups.key(ordinal).expect("a series with samples in memory stays");
            let piece = |window| Piece { window, shard: position, series, ordinal };
            let (first, last) = run.bounds().expect("a run in memory has samples");
            let (first, last) = (window_of(first), window_of(last));
            pieces.push(piece(first));
            if first == last {
                continue;
            }
            timestamps.clear();
            values.clear();
            run.read(first.end(), i64::MAX, &mut timestamps, &mut values);
            let same_window = |a: &i64, b: &i64| window_of(*a) == window_of(*b);
            pieces.extend(timestamps.chunk_by(same_window).map(|times| piece(window_of(times[0]))));
        }
        for (ordinal, timestamps) in taken.histograms.times() {
            let series = index.get(ordinal).expect("a series with samples in memory stays").key();
            let piece = |window| Piece { window, shard: position, series, ordinal };
            let same_window = |a: &i64, b: &i64| window_of(*a) == window_of(*b);
            pieces.extend(timestamps.chunk_by(same_window).map(|times| piece(window_of(times[0]))));
        }
    }
    pieces.sort_unstable();
    // A series may have samples of both kinds.
    pieces.dedup();
    pieces
}

fn window_of(timestamp: i64) -> Window {
    Window::of(timestamp).expect("appends check that times have a window")
}

#[derive(Debug, Default)]
struct Tables {
    paths: Vec<PathBuf>,
    bytes: u64,
    /// The rows of `meta` for what was written: one per window and shard.
    segments: Vec<Arc<Segment>>,
}

/// Writes one table file per window.
fn write_tables(store: &Store, taken: &[(Arc<Shard>, Taken)], number: u64) -> Result<Tables, StorageError> {
    let mut tables = Tables::default();
    let (mut timestamps, mut values) = (Vec::new(), Vec::new());
    for pieces in cut(taken).chunk_by(|a, b| a.window == b.window) {
        let window = pieces[0].window;
        let path = store.table_path(window, number);
        let mut table = LazyTable::new(&store.rocks, path);
        for pieces in pieces.chunk_by(|a, b| a.shard == b.shard) {
            let (shard, taken) = &taken[pieces[0].shard];
            let key = SegmentKey { window, segment: number, shard: shard.id };
            let mut writer = SegmentWriter::new(&mut table, key, Span::Window);
            for Piece { series, ordinal, .. } in pieces {
                let (start, end) = (window.start(), window.end() - 1);
                timestamps.clear();
                values.clear();
                if let Some(run) = taken.samples.run(*ordinal) {
                    run.read(start, end, &mut timestamps, &mut values);
                }
                let histograms = taken.histograms.range(*ordinal, start, end);
                let mut settled = SeriesColumns::default();
                let samples = if timestamps.is_empty() || histograms.0.is_empty() {
                    Samples { floats: (&timestamps, &values), histograms }
                } else {
                    settled.merge(&timestamps, &values);
                    settled.merge_histograms(histograms.0, histograms.1);
                    Samples::of(&settled)
                };
                writer.push(*series, *ordinal, samples)?;
            }
            tables.segments.extend(writer.finish()?.map(Arc::new));
        }
        if let Some((path, bytes)) = table.finish()? {
            tables.paths.push(path);
            tables.bytes += bytes;
        }
    }
    Ok(tables)
}

#[cfg(test)]
mod tests;

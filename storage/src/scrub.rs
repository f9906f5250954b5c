//! The scrub: from time to time everything on disk is read, so that damage is found while other replicas are whole.
//!
//! It looks through a read-only handle of its own (`rocks/read_only.rs`) at the files as they are, no faster than the
//! engine's options allow, while appends, queries, flushes and merges go on. `check.rs` says what is checked; after it
//! comes the log, as a start would read it. A shard's
//! segments with damage are left alone by merges from then on, and the report and the log name what was found; reads of
//! damaged series fail, all others go on.

use std::io;
use std::ops::ControlFlow;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::check::{self, CheckReport, Watch};
use crate::engine::{Store, gauge};
use crate::error::StorageError;
use crate::keys::SegmentKey;
use crate::merge;
use crate::offline;
use crate::rocks::Rocks;
use crate::wal::{self, AppendRecord, Sink};

/// How often everything is read at most, if readings differ.
const ATTEMPTS: u32 = 5;
const RETRY_AFTER: Duration = Duration::from_millis(200);
/// A wait for the rate is worth it from here on.
const LEAST_WAIT: Duration = Duration::from_millis(5);
/// Damaged places that the log names one by one.
const LOGGED_MAX: usize = 20;

/// Bounds the rate, ends with the engine, and knows which segments are live.
struct Pace<'a> {
    store: &'a Store,
    started: Instant,
    bytes: AtomicU64,
}

impl Watch for Pace<'_> {
    fn read(&self, bytes: u64) -> ControlFlow<()> {
        let bytes = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let due = match self.store.options.scrub_bytes_per_second {
            Some(rate) => Duration::from_millis(bytes.saturating_mul(1000) / rate.get()),
            None => Duration::ZERO,
        };
        let ahead = due.saturating_sub(self.started.elapsed());
        let wait = if ahead < LEAST_WAIT { Duration::ZERO } else { ahead };
        match self.store.maintenance_stop.wait(wait) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }

    fn is_live(&self, segment: SegmentKey) -> bool {
        let shard = self.store.known_shard(segment.shard);
        shard.is_some_and(|shard| shard.segments_and_tombstones().0.iter().any(|live| live.key == segment))
    }
}

/// The thread: a scrub at every interval, until the engine is closed.
pub(crate) fn run_guarded(store: &Store) {
    let run = || {
        let Some(interval) = store.options.scrub_interval else {
            return;
        };
        while !store.maintenance_stop.wait(interval) {
            match scrub(store) {
                Ok(_) => {}
                Err(StorageError::Closed) => return,
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::error!(error, "the scrub failed, trying again at the next interval");
                }
            }
        }
    };
    if std::panic::catch_unwind(AssertUnwindSafe(run)).is_err() {
        store.wal().fail(io::Error::other("the scrub thread panicked"));
    }
}

/// See `Engine::scrub`.
pub(crate) fn scrub(store: &Store) -> Result<CheckReport, StorageError> {
    let _one_at_a_time = store.scrubbing.lock();
    let pace = Pace { store, started: Instant::now(), bytes: AtomicU64::new(0) };
    let dir = store.options.dir.join("rocks");
    let report = read_everything(&dir, &pace)?;
    let metrics = &store.metrics;
    metrics.scrub_runs.inc();
    metrics.scrub_bytes.inc_by(report.bytes);
    metrics.scrub_damage.set(gauge(report.damage.len() as u64 + report.more_damage));
    for damage in &report.damage {
        if let (Some(shard), Some(_), Some((first_ms, _))) = (damage.shard, damage.segment, damage.range_ms) {
            merge::leave_alone(store, shard, first_ms);
        }
    }
    if report.damage.iter().any(|damage| damage.file.starts_with("wal/")) {
        // All that the log holds is in memory, too: after a flush it begins behind the damage.
        store.flush_signal.request();
    }
    for damage in report.damage.iter().take(LOGGED_MAX) {
        tracing::error!(%damage, "stored data is damaged; repair it from another replica");
    }
    tracing::info!(
        segments = report.segments,
        samples = report.samples,
        bytes = report.bytes,
        damage = report.damage.len() as u64 + report.more_damage,
        seconds = pace.started.elapsed().as_secs_f64(),
        "scrub done"
    );
    Ok(report)
}

/// Reads everything until two readings in a row find the same. RocksDB replaces files of the index and its own log
/// while they are read, and what that looks like is not damage.
fn read_everything(dir: &Path, pace: &Pace<'_>) -> Result<CheckReport, StorageError> {
    let mut before: Option<CheckReport> = None;
    for attempt in 1.. {
        let mut report = CheckReport::default();
        let opened = {
            // What a row says is live must be there in the same view: nobody commits while it is taken.
            let _no_commit = pace.store.next_segment.lock();
            Rocks::open_read_only(dir)
        };
        let checked = opened.and_then(|rocks| check::check(&rocks, pace, &mut report));
        let checked = checked.and_then(|meta| match meta {
            Some(meta) => read_log(pace, meta.replay_from, &mut report),
            None => Ok(()),
        });
        match checked {
            Ok(()) => {}
            Err(error @ StorageError::Corrupt { .. }) => {
                let what = check::text_of(&error);
                report.add(check::Damage { file: "rocks".to_owned(), what, ..check::Damage::default() });
            }
            Err(StorageError::Closed) => return Err(StorageError::Closed),
            Err(error) if attempt == ATTEMPTS => return Err(error),
            Err(_) => {
                before = None;
                pause(pace)?;
                continue;
            }
        }
        let is_confirmed = before.is_some_and(|before| before.damage == report.damage);
        if report.is_clean() || is_confirmed || attempt == ATTEMPTS {
            return Ok(report);
        }
        before = Some(report);
        pause(pace)?;
    }
    unreachable!("the last attempt returns")
}

/// Reads the log that a start would replay. What is being written looks like the torn tail of a power cut, and is none
/// of a scrub's business; files that a flush removes meanwhile are looked for again by another reading.
fn read_log(pace: &Pace<'_>, replay_from: Option<u64>, report: &mut CheckReport) -> Result<(), StorageError> {
    let dir = &pace.store.options.dir;
    let mut records = Records { pace, read: 0, bytes: 0, closed: false };
    let read = wal::inspect(&dir.join("wal"), replay_from, &mut records);
    report.rows += records.read;
    report.bytes += records.bytes;
    match read {
        _ if records.closed => Err(StorageError::Closed),
        Ok(_) => Ok(()),
        Err(error) => offline::note(dir, error, report),
    }
}

/// Counts the records of the log.
struct Records<'a> {
    pace: &'a Pace<'a>,
    read: u64,
    bytes: u64,
    closed: bool,
}

impl Sink for Records<'_> {
    fn record(&mut self, _record: AppendRecord, bytes: usize) -> Result<(), String> {
        self.read += 1;
        self.bytes += bytes as u64;
        self.closed = self.pace.read(bytes as u64).is_break();
        if self.closed { Err("the engine is closed".into()) } else { Ok(()) }
    }
}

fn pause(pace: &Pace<'_>) -> Result<(), StorageError> {
    match pace.store.maintenance_stop.wait(RETRY_AFTER) {
        true => Err(StorageError::Closed),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests;

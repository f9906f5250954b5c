//! Old samples in bulk: memory stays within its bound, live samples stay where they are, nothing is lost.

use std::path::Path;
use std::time::Duration;

use prometheus_client::registry::Registry;
use saturn_model::{Labels, ShardId, TimestampMs};
use saturn_storage::{Engine, EngineOptions, ExportScope, StorageError};

use crate::support::{Sending, append, batch, labels, tenant, within};

const SHARD: ShardId = ShardId(3);
const HEAD_BYTES_MAX: usize = 128 << 10;
const DAY_MS: i64 = 86_400_000;
const DAYS: i64 = 40;
const NOW: i64 = 100 * DAY_MS;
const EVERY_MS: i64 = 240_000;

fn open(dir: &Path) -> Engine {
    let options = EngineOptions {
        flush_head_bytes_max: HEAD_BYTES_MAX,
        maintenance_interval: Duration::from_secs(86_400),
        reserve_bytes: 0,
        ..EngineOptions::new(dir)
    };
    Engine::open(options, &mut Registry::default()).expect("opened")
}

fn series() -> Vec<Labels> {
    (0..10).map(|n| labels(&[("__name__", "m"), ("n", &n.to_string())])).collect()
}

/// One sample of each series at each of the times.
fn send(engine: &Engine, times: impl Iterator<Item = i64>) {
    let samples: Vec<(i64, f64)> = times.map(|t| (t, t as f64 * 0.25)).collect();
    let series = series();
    let all: Vec<(&Labels, &[(i64, f64)])> = series.iter().map(|labels| (labels, &*samples)).collect();
    let batch = batch(&tenant("demo"), SHARD, Sending::WithLabels, &all);
    while let Err(error) = append(engine, vec![batch.clone()]) {
        // A sender waits and sends again.
        assert!(matches!(error, StorageError::Overloaded { .. }), "{error}");
        engine.flush().expect("flushed");
    }
}

fn old(day: i64) -> impl Iterator<Item = i64> {
    (day * DAY_MS..(day + 1) * DAY_MS).step_by(usize::try_from(EVERY_MS).expect("positive"))
}

fn count(engine: &Engine, start: i64, end: i64) -> usize {
    let read = engine.select(SHARD, &within(&tenant("demo"), start, end), 100).expect("selected");
    read.iter().map(|columns| columns.timestamps.len()).sum()
}

#[test]
fn months_of_old_samples_are_appended_within_the_bound_of_memory() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let engine = open(dir.path());
    let mut most = 0;
    for day in 0..DAYS {
        // Live samples of the same series come meanwhile.
        send(&engine, std::iter::once(NOW + day * 15_000));
        send(&engine, old(day));
        most = most.max(engine.stats().head_bytes);
    }
    // Overload is refused at twice the bound; one more request may be on its way then.
    assert!(most < 3 * HEAD_BYTES_MAX as u64, "{most} bytes in memory");
    assert_eq!(count(&engine, 0, NOW - 1), 10 * (DAYS * DAY_MS / EVERY_MS) as usize);
    assert_eq!(count(&engine, NOW, i64::MAX), 10 * DAYS as usize);
    engine.flush().expect("flushed");
    engine.maintain(TimestampMs(NOW + DAY_MS)).expect("merged");
    assert_eq!(count(&engine, 0, NOW - 1), 10 * (DAYS * DAY_MS / EVERY_MS) as usize);
}

#[test]
fn old_samples_by_the_door_leave_live_ones_and_the_log_alone() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (source, engine) = (open(&dir.path().join("source")), open(&dir.path().join("live")));
    (0..DAYS).for_each(|day| send(&source, old(day)));
    send(&engine, (0..40).map(|n| NOW + n * 15_000));
    let before = engine.stats();
    let snapshot = source.snapshot(SHARD);
    let mut importer = engine.importer(SHARD, 0).expect("an importer");
    let chunks: Result<Vec<_>, _> =
        snapshot.export(ExportScope::Shard, None, 1 << 20).expect("valid").collect();
    for chunks in chunks.expect("readable").chunks(50) {
        importer.ingest(chunks).expect("taken");
    }
    let after = engine.stats();
    assert_eq!((after.head_samples, after.head_bytes), (before.head_samples, before.head_bytes));
    assert_eq!(after.series, before.series);
    assert!(after.wal_bytes - before.wal_bytes <= 25, "at most the mark of a log that is idle");
    assert_eq!(count(&engine, 0, NOW - 1), 10 * (DAYS * DAY_MS / EVERY_MS) as usize);
    assert_eq!(count(&engine, NOW, i64::MAX), 400);
    for window in [0, 3 * 12, DAYS * 12 - 1] {
        let start = TimestampMs(window * 7_200_000);
        let digest = |engine: &Engine| engine.digest(SHARD, start).expect("digested");
        assert_eq!(digest(&engine), digest(&source));
    }
}

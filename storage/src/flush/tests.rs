//! A flush that dies at any step, fails, or leaves files behind.

use std::fs;
use std::ops::Range;
use std::path::Path;

use prometheus_client::registry::Registry;
use saturn_model::{Fingerprint, Labels, Sample, Selection, ShardBatch, ShardId, TenantId, TimestampMs};

use crate::copy::copy_dir;

use super::*;
use crate::{Engine, EngineOptions};

fn open(dir: &Path) -> Engine {
    Engine::open(EngineOptions::new(dir), &mut Registry::default()).expect("opened")
}

fn tenant() -> TenantId {
    TenantId::new("demo").expect("valid")
}

fn append(engine: &Engine, series: u32, times: Range<i64>) {
    let mut batch = ShardBatch::new(tenant(), ShardId(1));
    let labels = Labels::from_pairs([("n", series.to_string().as_str())]).expect("valid");
    batch.push_series(Fingerprint::of(&tenant(), labels.as_encoded()));
    batch.labels.push((0, labels));
    for t in times {
        batch.push_sample(Sample { timestamp: TimestampMs(t * 600_000), value: f64::from(series) });
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(engine.append(vec![Arc::new(batch)])).expect("appended");
}

fn samples(engine: &Engine) -> Vec<(String, Vec<i64>)> {
    let selection = Selection {
        tenant: tenant(),
        matchers: Vec::new(),
        start: TimestampMs(i64::MIN),
        end: TimestampMs(i64::MAX),
    };
    let columns = engine.select(ShardId(1), &selection, 100).expect("selected");
    columns.into_iter().map(|c| (c.labels.to_string(), c.timestamps)).collect()
}

#[test]
fn a_crash_after_any_step_loses_nothing() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let at = |step: &str| dir.path().join(step);
    let engine = open(&at("live"));
    append(&engine, 1, 0..100);
    engine.flush().expect("flushed");
    append(&engine, 1, 50..150);
    append(&engine, 2, 0..10);
    let before = samples(&engine);
    assert_eq!(before.len(), 2);

    let store = engine.store();
    let crash = |step: &str| copy_dir(&at("live"), &at(step));
    let replay_from = store.wal().rotate().expect("rotated");
    crash("rotated");
    let shard = store.known_shard(ShardId(1)).expect("known");
    let taken = vec![(
        Arc::clone(&shard),
        shard.begin_flush(Eviction::IdleFor(Duration::ZERO)).expect("there is something to flush"),
    )];
    assert_eq!(samples(&engine), before);
    let ordinals = std::iter::once((shard.id, taken[0].1.ordinals));
    store.rocks.write_series(taken[0].1.new_series.iter().cloned(), ordinals, 3).expect("written");
    crash("series written");
    let Tables { paths, segments, .. } = write_tables(store, &taken, 2).expect("written");
    crash("tables written");
    store.rocks.write_index(past::rows_added(&shard, &segments).into_iter()).expect("written");
    crash("days written");
    store.rocks.ingest(paths).expect("ingested");
    crash("ingested");
    assert_eq!(samples(&engine), before);
    let live = segments.iter().map(|s| &**s);
    let rows = (Vec::new(), taken.iter().flat_map(|(_, taken)| &taken.notes));
    store.rocks.commit(live, taken.iter().map(resident), rows, replay_from).expect("committed");
    crash("committed");
    shard.finish_flush(&taken[0].1, segments);
    assert_eq!(samples(&engine), before);
    store.wal().remove_below(replay_from).expect("removed");
    crash("removed");
    drop(engine);

    for step in
        ["rotated", "series written", "tables written", "days written", "ingested", "committed", "removed"]
    {
        let engine = open(&at(step));
        assert_eq!(samples(&engine), before, "crash when {step}");
        append(&engine, 3, 0..3);
        engine.flush().expect("flushed");
        drop(engine);
        let again = open(&at(step));
        let found = samples(&again);
        assert!(before.iter().all(|series| found.contains(series)), "crash when {step}: {found:?}");
        assert_eq!(found.len(), 3);
        assert_eq!(again.stats().head_samples, 0);
    }
}

#[test]
fn an_ingested_file_without_its_row_is_removed() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let engine = open(dir.path());
    append(&engine, 1, 0..10);
    let store = engine.store();
    let shard = store.known_shard(ShardId(1)).expect("known");
    let taken = vec![(
        Arc::clone(&shard),
        shard.begin_flush(Eviction::IdleFor(Duration::ZERO)).expect("there is something to flush"),
    )];
    let tables = write_tables(store, &taken, 1).expect("written");
    store.rocks.ingest(tables.paths).expect("ingested");
    assert_eq!(store.rocks.remove_orphans(|_, _| false).expect("removed"), 1);
    assert_eq!(store.rocks.remove_orphans(|_, _| false).expect("removed"), 0);
}

#[test]
fn removing_an_orphan_spares_the_live_files_that_it_spans() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (live, crashed) = (dir.path().join("live"), dir.path().join("crashed"));
    let engine = open(&live);
    // Windows 70 to 89 are live when a backfill of windows 0 to 99 dies before its
    // commit.
    append(&engine, 1, 70 * 12..90 * 12);
    engine.flush().expect("flushed");
    append(&engine, 1, 0..100 * 12);
    let before = samples(&engine);
    let store = engine.store();
    let shard = store.known_shard(ShardId(1)).expect("known");
    let taken = vec![(
        Arc::clone(&shard),
        shard.begin_flush(Eviction::IdleFor(Duration::ZERO)).expect("there is something to flush"),
    )];
    store.rocks.write_series(std::iter::empty(), std::iter::empty(), 3).expect("written");
    let Tables { paths, .. } = write_tables(store, &taken, 2).expect("written");
    assert_eq!(paths.len(), 100);
    store.rocks.ingest(paths).expect("ingested");
    copy_dir(&live, &crashed);
    for _ in 0..2 {
        let engine = open(&crashed);
        assert_eq!(samples(&engine), before);
        engine.flush().expect("flushed");
        assert_eq!(samples(&engine), before);
    }
}

#[test]
fn what_a_failed_flush_took_comes_back() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let engine = open(dir.path());
    append(&engine, 1, 0..10);
    let before = samples(&engine);
    // Table files cannot be created in a folder that is gone.
    fs::remove_dir_all(engine.store().temporary_dir()).expect("removed");
    assert!(matches!(engine.flush(), Err(StorageError::Unavailable { .. })));
    assert_eq!(samples(&engine), before);
    assert_eq!(engine.stats().head_samples, 10);
    fs::create_dir(engine.store().temporary_dir()).expect("created");
    engine.flush().expect("flushed");
    assert_eq!(samples(&engine), before);
    assert_eq!(engine.stats().head_samples, 0);
    drop(engine);
    assert_eq!(samples(&open(dir.path())), before);
}

#[test]
fn reads_go_on_after_the_log_failed() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let engine = open(dir.path());
    append(&engine, 1, 0..10);
    let before = samples(&engine);
    engine.store().wal().fail(io::Error::other("injected"));
    assert!(matches!(engine.flush(), Err(StorageError::Failed { .. })));
    assert!(matches!(engine.close(), Err(StorageError::Failed { .. })));
    assert_eq!(samples(&engine), before);
    drop(engine);
    assert_eq!(samples(&open(dir.path())), before);
}

#[test]
fn long_runs_are_cut_into_chunks_of_bounded_size() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let engine = open(dir.path());
    let mut batch = ShardBatch::new(tenant(), ShardId(1));
    batch.push_series(Fingerprint::of(&tenant(), Labels::empty().as_encoded()));
    batch.labels.push((0, Labels::empty()));
    for t in -20_000..20_000 {
        batch.push_sample(Sample { timestamp: TimestampMs(t), value: 1.0 });
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(engine.append(vec![Arc::new(batch)])).expect("appended");
    engine.flush().expect("flushed");
    assert_eq!(samples(&engine)[0].1, (-20_000..20_000).collect::<Vec<_>>());
    assert_eq!(engine.stats().flushed_segments, 2);
}

#[test]
fn a_deletion_outlives_a_crash_even_of_what_came_while_a_flush_began() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (live, crashed) = (dir.path().join("live"), dir.path().join("crashed"));
    // Between the log's rotation and the head: in the flushed segments, and in the log that is kept.
    let late: Arc<std::sync::OnceLock<Engine>> = Arc::default();
    let hook = {
        let late = Arc::clone(&late);
        crate::StepHook::new(move |step| {
            if let Some(engine) = late.get().filter(|_| step == "flush: log rotated")
                && engine.stats().head_samples == 10
            {
                append(engine, 1, 10..20);
            }
            Ok(())
        })
    };
    let options = EngineOptions { steps: hook, ..EngineOptions::new(&live) };
    let engine = Engine::open(options, &mut Registry::default()).expect("opened");
    late.set(engine.clone()).expect("once");
    append(&engine, 1, 0..10);
    engine.flush().expect("flushed");
    assert_eq!(engine.stats().head_samples, 0);
    let everything = Selection {
        tenant: tenant(),
        matchers: Vec::new(),
        start: TimestampMs(i64::MIN),
        end: TimestampMs(i64::MAX),
    };
    assert_eq!(engine.delete_series(&everything).expect("deleted"), 1);
    assert_eq!(samples(&engine), []);
    copy_dir(&live, &crashed);
    assert_eq!(samples(&open(&crashed)), []);
}

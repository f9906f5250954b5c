//! Figures for the report, not a test: `cargo test --release -p saturn-storage -- --ignored --nocapture`.

use std::sync::Arc;
use std::time::Instant;

use prometheus_client::registry::Registry;
use saturn_model::{Fingerprint, Labels, Sample, ShardBatch, ShardId, TimestampMs};
use saturn_storage::{Engine, EngineOptions, EngineStats};

use crate::support::{everything, labels, open, tenant};

const SERIES: u32 = 100_000;
const SHARDS: u16 = 16;
const ROUNDS: i64 = 60;

/// One scrape of all series, per shard: counters, gauges of two decimals, constants, noise.
fn scrape(series: &[(Labels, Fingerprint)], round: i64, with_labels: bool) -> Vec<Arc<ShardBatch>> {
    let tenant = tenant("demo");
    // Without noise, whose bits no lossless codec removes, the size says more about the others.
    let kinds = if std::env::var_os("SATURN_WITHOUT_NOISE").is_some() { 3 } else { 4 };
    let mut batches: Vec<ShardBatch> =
        (0..SHARDS).map(|shard| ShardBatch::new(tenant.clone(), ShardId(shard))).collect();
    for ((labels, fingerprint), i) in series.iter().zip(0_i64..) {
        let batch = &mut batches[usize::from(fingerprint.shard(SHARDS).0)];
        batch.push_series(*fingerprint);
        if with_labels {
            let index = u32::try_from(batch.series_count() - 1).expect("small");
            batch.labels.push((index, labels.clone()));
        }
        let value = match i % kinds {
            0 => (round * (i % 100)) as f64,
            1 => ((round * 7919 + i) % 10_000) as f64 / 100.0,
            2 => i as f64,
            _ => ((round * 31 + i) as f64).sin(),
        };
        batch.push_sample(Sample { timestamp: TimestampMs(1_700_000_000_000 + round * 15_000), value });
    }
    batches.into_iter().map(Arc::new).collect()
}

#[test]
#[ignore = "prints figures and takes a while"]
fn figures() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let engine = Engine::open(EngineOptions::new(dir.path()), &mut Registry::default()).expect("opened");
    let demo = tenant("demo");
    let series: Vec<(Labels, Fingerprint)> = (0..SERIES)
        .map(|i| {
            let (instance, name) = (format!("host-{}", i / 500), format!("metric_{}", i % 500));
            let labels = labels(&[("__name__", &name), ("instance", &instance), ("job", "node")]);
            let fingerprint = Fingerprint::of(&demo, labels.as_encoded());
            (labels, fingerprint)
        })
        .collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().expect("a runtime");
    let report = |what: &str, started: Instant, count: f64| {
        let seconds = started.elapsed().as_secs_f64();
        eprintln!("{what}: {seconds:.3} s, {:.2} M/s", count / seconds / 1e6);
    };
    let samples = f64::from(SERIES) * ROUNDS as f64;
    let batches: Vec<_> = (0..ROUNDS).map(|round| scrape(&series, round, round == 0)).collect();
    let started = Instant::now();
    runtime.block_on(async {
        let tasks: Vec<_> = batches
            .into_iter()
            .enumerate()
            .map(|(round, batches)| {
                let engine = engine.clone();
                async move {
                    // The first scrape makes the series known.
                    if round > 0 {
                        return tokio::spawn(async move { engine.append(batches).await })
                            .await
                            .expect("no panic");
                    }
                    engine.append(batches).await
                }
            })
            .collect();
        for task in tasks {
            assert!(task.await.expect("appended").iter().all(|outcome| outcome.unknown.is_empty()));
        }
    });
    report("append, one scrape after the other, fsynced", started, samples);
    eprintln!("{:?}", engine.stats());
    let started = Instant::now();
    let mut read = 0;
    for shard in (0..SHARDS).map(ShardId) {
        let found = engine.select(shard, &everything(&demo), usize::MAX).expect("selected");
        read += found.iter().map(|c| c.timestamps.len()).sum::<usize>();
    }
    report("select all from memory", started, read as f64);
    drop(engine);
    let started = Instant::now();
    let engine = open(dir.path());
    report("reopen, replay", started, samples);
    let started = Instant::now();
    engine.flush().expect("flushed");
    report("flush", started, samples);
    let stats = engine.stats();
    eprintln!("{stats:?}: {:.3} B/sample with index", stats.disk_bytes as f64 / samples);
    let started = Instant::now();
    let mut read = 0;
    for shard in (0..SHARDS).map(ShardId) {
        let found = engine.select(shard, &everything(&demo), usize::MAX).expect("selected");
        read += found.iter().map(|c| c.timestamps.len()).sum::<usize>();
    }
    report("select all from RocksDB", started, read as f64);
    assert_eq!(read as f64, samples);
    runtime.block_on(async {
        for round in ROUNDS..2 * ROUNDS {
            engine.append(scrape(&series, round, false)).await.expect("appended");
        }
    });
    eprintln!("{}", merge(&engine, 2.0 * samples));
    eprintln!("fdatasync of 4 KiB: {:?}", engine.measure_fsync().expect("measured"));
    drop(engine);
    let started = Instant::now();
    drop(open(dir.path()));
    report("reopen, series", started, f64::from(SERIES));
}

/// Flushes a second segment into each window, merges, and says what that did.
fn merge(engine: &Engine, samples: f64) -> String {
    engine.flush().expect("flushed");
    let per_sample = |stats: EngineStats| stats.disk_bytes as f64 / samples;
    let before = per_sample(engine.stats());
    let started = Instant::now();
    engine.maintain(TimestampMs(1_800_000_000_000)).expect("merged");
    let (seconds, after) = (started.elapsed().as_secs_f64(), per_sample(engine.stats()));
    let speed = samples / seconds / 1e6;
    format!("merge of two segments each: {seconds:.3} s, {speed:.2} M/s, {before:.3} to {after:.3} B/sample")
}

//! Figures of reading, not a test: `cargo test --release -p saturn-storage --test it -- --ignored --nocapture`.
//!
//! Seconds are those that this thread computed, so that what else runs on the machine matters less.

use std::path::Path;

use saturn_model::{Fingerprint, Labels, Sample, ShardBatch, ShardId, TimestampMs};
use saturn_storage::{Engine, EngineOptions, ReadLimits};

use crate::support::{append, everything, labels, tenant};

const SHARD: ShardId = ShardId(0);
const START: i64 = 1_699_999_200_000;
const INTERVAL: i64 = 15_000;
/// Samples of a series in one window of 2 h.
const ROUNDS: i64 = 480;
const SERIES: u32 = 10_000;

/// Seconds that this thread has run.
pub(crate) fn thread_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
    stat.split(' ').next().and_then(|ns| ns.parse::<f64>().ok()).expect("nanoseconds") / 1e9
}

/// One shard of counters, gauges of two decimals and constants, `windows` windows of 2 h.
pub(crate) fn filled(dir: &Path, windows: i64) -> Engine {
    let options = EngineOptions { reserve_bytes: 0, ..EngineOptions::new(dir) };
    let engine =
        Engine::open(options, &mut prometheus_client::registry::Registry::default()).expect("opened");
    let demo = tenant("demo");
    let series: Vec<(Labels, Fingerprint)> = (0..SERIES)
        .map(|i| {
            let (instance, name) = (format!("host-{}", i / 500), format!("metric_{}", i % 500));
            let labels = labels(&[("__name__", &name), ("instance", &instance), ("job", "node")]);
            let fingerprint = Fingerprint::of(&demo, labels.as_encoded());
            (labels, fingerprint)
        })
        .collect();
    for window in 0..windows {
        let mut batch = ShardBatch::new(demo.clone(), SHARD);
        for ((labels, fingerprint), i) in series.iter().zip(0_i64..) {
            batch.push_series(*fingerprint);
            if window == 0 {
                batch.labels.push((u32::try_from(i).expect("small"), labels.clone()));
            }
            let mut sum = 0_i64;
            for round in window * ROUNDS..(window + 1) * ROUNDS {
                sum += (round * 7919 + i * 31) % 97;
                let value = match i % 3 {
                    0 => (sum + window * 100_000) as f64,
                    1 => ((round * 7919 + i) % 10_000) as f64 / 100.0,
                    _ => i as f64,
                };
                batch.push_sample(Sample { timestamp: TimestampMs(START + round * INTERVAL), value });
            }
        }
        append(&engine, vec![batch.into()]).expect("appended");
        engine.flush().expect("flushed");
    }
    engine
}

#[test]
#[ignore = "prints figures and takes a while"]
fn scan_figures() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let started = thread_seconds();
    let engine = filled(dir.path(), 2);
    eprintln!("filled in {:.3} s", thread_seconds() - started);
    let all = everything(&tenant("demo"));
    let scan = |what: &str| {
        let mut best = f64::MAX;
        let mut samples = 0;
        for _ in 0..5 {
            let started = thread_seconds();
            let found = engine.select(SHARD, &all, usize::MAX).expect("selected");
            best = best.min(thread_seconds() - started);
            samples = found.iter().map(|columns| columns.timestamps.len()).sum::<usize>();
        }
        eprintln!("select, {what}: {:.1} M samples/s, {samples} samples", samples as f64 / best / 1e6);
        let limits = ReadLimits { series_max: usize::MAX, bytes_max: u64::MAX };
        let mut best = f64::MAX;
        for _ in 0..5 {
            let started = thread_seconds();
            let stream = engine.select_stream(SHARD, &all, limits).expect("selected");
            let streamed: usize = stream.map(|series| series.expect("read").timestamps.len()).sum();
            best = best.min(thread_seconds() - started);
            assert_eq!(streamed, samples);
        }
        eprintln!("stream, {what}: {:.1} M samples/s", samples as f64 / best / 1e6);
    };
    scan("as flushed");
    let started = thread_seconds();
    engine.maintain(TimestampMs(START + 100 * 7_200_000)).expect("merged");
    eprintln!("maintain: {:.3} s", thread_seconds() - started);
    scan("after maintenance");
}

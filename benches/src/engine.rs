//! The storage engine alone, in this process: from a request's bytes to merged segments, without HTTP,
//! replication and other processes.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use prometheus_client::registry::Registry;
use saturn_model::{
    Fingerprint, FingerprintCache, Labels, MatchOp, Matcher, Selection, ShardBatch, ShardId, TenantId,
    TimestampMs, append_label_pair,
};
use saturn_proto::remote_write::{self, TimeSeries};
use saturn_proto::snappy;
use saturn_storage::{Engine, EngineOptions, Offline};

use tokio::task::JoinSet;

use crate::Load;
use crate::subject::TENANT;
use crate::usage::{disk_bytes, process_cpu_seconds, written_bytes};

/// Shards of the engine, as many as a node has by default.
pub(crate) const SHARDS: u16 = 64;

/// Requests under way at a time.
const IN_FLIGHT_MAX: usize = 8;

/// Time between two flushes, in the data's own time, in milliseconds.
const FLUSH_INTERVAL_MS: i64 = 30 * 60_000;

/// Later than all data by so much, every window is closed, in milliseconds.
const CLOSED_AFTER_MS: i64 = 3 * 24 * 3_600_000;

/// Series whose fingerprints are remembered, as a gateway does.
pub(crate) const FINGERPRINTS_MAX: usize = 4 << 20;

/// Largest request, in bytes, decompressed.
const REQUEST_BYTES_MAX: usize = 256 << 20;

/// What one sample cost.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineFigures {
    /// Samples, stale markers included.
    pub samples: u64,
    /// CPU of this process from the requests' bytes to durable samples, in seconds.
    pub append_cpu_seconds: f64,
    /// CPU of the flushes, in seconds.
    pub flush_cpu_seconds: f64,
    /// CPU of the merges, in seconds.
    pub merge_cpu_seconds: f64,
    /// Bytes that were written to disk for all of it.
    pub written_bytes: u64,
    /// The data directory after everything was flushed, in bytes; merges of closed windows included.
    pub flushed_bytes: u64,
    /// The data directory after all merges, in bytes.
    pub merged_bytes: u64,
    /// Of it, the tables with samples.
    pub merged_data_bytes: u64,
    /// Of it, the index.
    pub merged_index_bytes: u64,
}

/// One request, cut into batches.
pub(crate) struct Batches {
    request: Vec<u8>,
    batches: Vec<ShardBatch>,
    /// Per batch and series, where it is in the request.
    ranges: Vec<Vec<(u32, u32)>>,
    samples: u64,
    end_ms: i64,
}

/// Runs a load through an engine in `folder`: flushes every half hour of its time, merges after each flush,
/// and compares every sample at the end.
pub async fn measure_engine(load: &Load, folder: &Path) -> Result<EngineFigures> {
    let engine = open(folder)?;
    let tenant = TenantId::new(TENANT)?;
    let written_before = written_bytes("self")?;
    let mut figures = EngineFigures {
        samples: 0,
        append_cpu_seconds: 0.0,
        flush_cpu_seconds: 0.0,
        merge_cpu_seconds: 0.0,
        written_bytes: 0,
        flushed_bytes: 0,
        merged_bytes: 0,
        merged_data_bytes: 0,
        merged_index_bytes: 0,
    };
    let (mut tasks, mut next_flush) = (JoinSet::new(), i64::MIN);
    let fingerprints = FingerprintCache::new(FINGERPRINTS_MAX);
    let mut started = process_cpu_seconds("self")?;
    for body in &load.requests {
        let batches = cut(body, &tenant, &fingerprints)?;
        figures.samples += batches.samples;
        let end_ms = batches.end_ms;
        if tasks.len() >= IN_FLIGHT_MAX {
            tasks.join_next().await.context("tasks run")???;
        }
        tasks.spawn(append(engine.clone(), batches));
        if end_ms >= next_flush {
            while let Some(done) = tasks.join_next().await {
                done??;
            }
            if next_flush > i64::MIN {
                figures.append_cpu_seconds += process_cpu_seconds("self")? - started;
                flush_and_merge(&engine, end_ms, &mut figures)?;
                started = process_cpu_seconds("self")?;
            }
            next_flush = end_ms + FLUSH_INTERVAL_MS;
        }
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    figures.append_cpu_seconds += process_cpu_seconds("self")? - started;
    flush_and_merge(&engine, load.end_ms, &mut figures)?;
    // Closed, because RocksDB gives back what it reserved for its own log.
    engine.close()?;
    drop(engine);
    figures.flushed_bytes = disk_bytes(folder)?;
    let engine = open(folder)?;
    let before = process_cpu_seconds("self")?;
    engine.maintain(TimestampMs(load.end_ms + CLOSED_AFTER_MS))?;
    figures.merge_cpu_seconds += process_cpu_seconds("self")? - before;
    check_samples(&engine, load, &tenant)?;
    engine.close()?;
    drop(engine);
    figures.written_bytes = written_bytes("self")? - written_before;
    figures.merged_bytes = disk_bytes(folder)?;
    let stats = Offline::open(folder)?.stats()?;
    (figures.merged_data_bytes, figures.merged_index_bytes) = (stats.data_bytes, stats.index_bytes);
    Ok(figures)
}

/// What the data directory of a node that does not run takes: all flushed, and all merged.
pub(crate) fn weigh_data_dir(data_dir: &Path) -> Result<(u64, u64)> {
    let folder = data_dir.join("storage");
    let engine = open(&folder)?;
    engine.flush()?;
    engine.close()?;
    drop(engine);
    let flushed = disk_bytes(data_dir)?;
    let engine = open(&folder)?;
    engine.maintain(TimestampMs(saturn_chaos_tests::now_ms() + CLOSED_AFTER_MS))?;
    engine.close()?;
    drop(engine);
    Ok((flushed, disk_bytes(data_dir)?))
}

fn open(folder: &Path) -> Result<Engine> {
    let mut options = EngineOptions::new(folder);
    // Flushes come when they are asked for.
    options.flush_interval = Duration::from_secs(24 * 3600);
    Ok(Engine::open(options, &mut Registry::default())?)
}

fn flush_and_merge(engine: &Engine, now_ms: i64, figures: &mut EngineFigures) -> Result<()> {
    let before = process_cpu_seconds("self")?;
    engine.flush()?;
    let between = process_cpu_seconds("self")?;
    engine.maintain(TimestampMs(now_ms))?;
    figures.flush_cpu_seconds += between - before;
    figures.merge_cpu_seconds += process_cpu_seconds("self")? - between;
    Ok(())
}

/// As a gateway does it: walks the request, hashes labels, cuts by shard.
pub(crate) fn cut(body: &[u8], tenant: &TenantId, fingerprints: &FingerprintCache) -> Result<Batches> {
    let request = snappy::decompress(body, REQUEST_BYTES_MAX)?;
    let mut of_shard = vec![None; usize::from(SHARDS)];
    let (mut batches, mut ranges, mut samples, mut end_ms) = (Vec::new(), Vec::new(), 0, i64::MIN);
    let known = fingerprints.of_tenant(tenant);
    let (mut labels, mut encoded) = (Vec::new(), String::new());
    remote_write::walk_request(&request, |series| {
        let key = series.label_bytes().map(|bytes| known.key(bytes));
        let fingerprint = match key.and_then(|key| known.get(key)) {
            Some(fingerprint) => fingerprint,
            None => {
                series.labels_into(&mut labels)?;
                encoded.clear();
                for (name, value) in &labels {
                    append_label_pair(&mut encoded, name, value);
                }
                let fingerprint = Fingerprint::of(tenant, &encoded);
                key.into_iter().for_each(|key| known.put(key, fingerprint));
                fingerprint
            }
        };
        let shard = fingerprint.shard(SHARDS);
        let at = *of_shard[usize::from(shard.0)].get_or_insert_with(|| {
            let mut batch = ShardBatch::new(tenant.clone(), shard);
            batch.reserve(request.len() / 200 / usize::from(SHARDS) + 1);
            batches.push(batch);
            ranges.push(Vec::new());
            batches.len() - 1
        });
        batches[at].push_series(fingerprint);
        ranges[at].push(series.range());
        series.walk_samples(|sample| {
            batches[at].push_sample(sample);
            samples += 1;
            end_ms = end_ms.max(sample.timestamp.0);
        })?;
        Ok(())
    })?;
    Ok(Batches { request, batches, ranges, samples, end_ms })
}

/// Appends, and once more with labels what the engine does not know.
pub(crate) async fn append(engine: Engine, cut: Batches) -> Result<()> {
    let batches: Vec<Arc<ShardBatch>> = cut.batches.into_iter().map(Arc::new).collect();
    let outcomes = engine.append(batches.clone()).await?;
    let mut again = Vec::new();
    for ((batch, outcome), ranges) in batches.iter().zip(outcomes).zip(&cut.ranges) {
        if !outcome.unknown.is_empty() {
            let labels_of = |series: u32| {
                let series =
                    TimeSeries::at(&cut.request, ranges[series as usize]).expect("it was found there");
                let mut labels = Vec::new();
                series.labels_into(&mut labels).expect("it was walked before");
                Labels::from_pairs(labels).expect("the load is valid")
            };
            again.push(Arc::new(batch.subset_with_labels(&outcome.unknown, labels_of)));
        }
    }
    if !again.is_empty() {
        engine.append(again).await?;
    }
    Ok(())
}

/// Every sample of the load is there, bit by bit, and nothing else is.
fn check_samples(engine: &Engine, load: &Load, tenant: &TenantId) -> Result<()> {
    let fingerprints = FingerprintCache::new(FINGERPRINTS_MAX);
    let mut expected: HashMap<Fingerprint, Vec<(i64, u64)>> = HashMap::new();
    for body in &load.requests {
        for batch in cut(body, tenant, &fingerprints)?.batches {
            for (_, fingerprint, timestamps, values) in batch.series() {
                let samples = timestamps.iter().copied().zip(values.iter().map(|value| value.to_bits()));
                expected.entry(fingerprint).or_default().extend(samples);
            }
        }
    }
    let selection = Selection {
        tenant: tenant.clone(),
        matchers: vec![Matcher::new("__name__", MatchOp::NotEqual, "")?],
        start: TimestampMs(i64::MIN),
        end: TimestampMs(i64::MAX),
    };
    for shard in 0..SHARDS {
        for series in engine.select(ShardId(shard), &selection, usize::MAX)? {
            let fingerprint = Fingerprint::of(tenant, series.labels.as_encoded());
            let mut samples = expected.remove(&fingerprint).context("a series that was not sent")?;
            samples.sort_unstable();
            samples.dedup();
            let stored = series.timestamps.iter().copied().zip(series.values.iter().map(|v| v.to_bits()));
            ensure!(stored.eq(samples), "the samples of {} differ", series.labels);
        }
    }
    ensure!(expected.values().all(Vec::is_empty), "{} series are missing", expected.len());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LoadOptions;

    #[tokio::test]
    async fn a_load_comes_out_as_it_went_in() -> Result<()> {
        let options =
            LoadOptions { series: 300, rounds: 500, series_per_request: 100, end_ms: 1_700_000_000_000 };
        let folder = tempfile::tempdir()?;
        let figures = measure_engine(&Load::encode(&options), folder.path()).await?;
        assert_eq!(figures.samples, 150_000);
        assert!(figures.written_bytes > 0 && figures.merged_bytes > 0);
        Ok(())
    }
}

//! Old samples in bulk, into an engine whose memory holds newer samples of the same series: what they cost beside
//! the same samples in an engine that holds nothing, and by the door for replicas.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use prometheus_client::registry::Registry;
use saturn_model::{FingerprintCache, ShardId, TenantId, TimestampMs, WINDOW_MS};
use saturn_storage::{Engine, EngineOptions, ExportScope, StorageError};

use crate::Load;
use crate::engine::{FINGERPRINTS_MAX, SHARDS, append, cut};
use crate::subject::TENANT;
use crate::usage::process_cpu_seconds;

/// Bytes of memory at which a flush starts: small, so that there are many.
const HEAD_BYTES_MAX: usize = 32 << 20;
/// How long an append that was refused for overload waits.
const RETRY_AFTER: Duration = Duration::from_millis(5);
/// Bytes of samples of one chunk, and chunks that are taken together.
const CHUNK_BYTES: usize = 4 << 20;
const CHUNKS: usize = 8;

/// What one way cost.
#[derive(Debug, Clone, PartialEq)]
pub struct BackfillFigures {
    /// Samples, of the old ones only.
    pub samples: u64,
    /// CPU of this process for them, in seconds: from requests' bytes, or from another engine, to segments.
    pub cpu_seconds: f64,
    /// Most bytes of samples that were in memory.
    pub head_bytes_max: u64,
}

/// Figures of the three ways.
#[derive(Debug, Clone, PartialEq)]
pub struct Backfill {
    /// Into an engine that held nothing.
    pub alone: BackfillFigures,
    /// Into one that held newer samples of the same series.
    pub beside_live: BackfillFigures,
    /// From the first engine into another that held such newer samples, by the door for replicas.
    pub by_door: BackfillFigures,
}

/// Sends `old` to engines in `folder`, some of which have `live` in memory.
///
/// # Errors
/// If engines fail, or do not hold the same in the end.
pub async fn measure_backfill(live: &Load, old: &Load, folder: &Path) -> Result<Backfill> {
    let first = open(&folder.join("alone"))?;
    let alone = send_and_flush(&first, old).await?;
    let second = open(&folder.join("beside-live"))?;
    send(&second, live).await?;
    let beside_live = send_and_flush(&second, old).await?;
    let third = open(&folder.join("by-door"))?;
    send(&third, live).await?;
    let in_memory = third.stats().head_samples;
    let by_door = take(&first, &third)?;
    ensure!(in_memory == live.samples && third.stats().head_samples == in_memory, "memory was disturbed");
    let window = |ms: i64| ms.div_euclid(WINDOW_MS);
    for start in window(old.end_ms - old.span_ms)..window(old.end_ms) {
        for shard in (0..SHARDS).map(ShardId) {
            let digest = |engine: &Engine| engine.digest(shard, TimestampMs(start * WINDOW_MS));
            let want = digest(&first)?;
            ensure!(digest(&second)? == want && digest(&third)? == want, "shard {shard} differs");
        }
    }
    Ok(Backfill { alone, beside_live, by_door })
}

fn open(folder: &Path) -> Result<Engine> {
    let options = EngineOptions {
        flush_head_bytes_max: HEAD_BYTES_MAX,
        flush_interval: Duration::from_secs(24 * 3600),
        maintenance_interval: Duration::from_secs(24 * 3600),
        ..EngineOptions::new(folder)
    };
    Ok(Engine::open(options, &mut Registry::default())?)
}

/// Appends the load and flushes it.
async fn send_and_flush(engine: &Engine, load: &Load) -> Result<BackfillFigures> {
    let started = process_cpu_seconds("self")?;
    let head_bytes_max = send(engine, load).await?;
    engine.flush()?;
    let cpu_seconds = process_cpu_seconds("self")? - started;
    Ok(BackfillFigures { samples: load.samples, cpu_seconds, head_bytes_max })
}

/// Appends the load. Returns the most bytes that were in memory.
async fn send(engine: &Engine, load: &Load) -> Result<u64> {
    let tenant = TenantId::new(TENANT)?;
    let known = FingerprintCache::new(FINGERPRINTS_MAX);
    let mut head_bytes_max = 0;
    for body in &load.requests {
        while let Err(error) = append(engine.clone(), cut(body, &tenant, &known)?).await {
            ensure!(is_overload(&error), error);
            tokio::time::sleep(RETRY_AFTER).await;
        }
        head_bytes_max = head_bytes_max.max(engine.stats().head_bytes);
    }
    Ok(head_bytes_max)
}

fn is_overload(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(StorageError::Overloaded { .. }))
}

/// Gives all shards of one engine to another.
fn take(from: &Engine, to: &Engine) -> Result<BackfillFigures> {
    let started = process_cpu_seconds("self")?;
    let mut figures = BackfillFigures { samples: 0, cpu_seconds: 0.0, head_bytes_max: to.stats().head_bytes };
    for shard in (0..SHARDS).map(ShardId) {
        let snapshot = from.snapshot(shard);
        let mut importer = to.importer(shard, 0)?;
        let mut export = snapshot.export(ExportScope::Shard, None, CHUNK_BYTES)?;
        loop {
            let chunks = export.by_ref().take(CHUNKS).collect::<Result<Vec<_>, _>>()?;
            if chunks.is_empty() {
                break;
            }
            figures.samples += importer.ingest(&chunks)?.samples;
            figures.head_bytes_max = figures.head_bytes_max.max(to.stats().head_bytes);
        }
    }
    figures.cpu_seconds = process_cpu_seconds("self")? - started;
    Ok(figures)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LoadOptions;

    #[tokio::test]
    async fn all_ways_lead_to_the_same_samples() -> Result<()> {
        let load = |rounds, end_ms| {
            Load::encode(&LoadOptions { series: 100, rounds, series_per_request: 100, end_ms })
        };
        let (live, old) = (load(50, 1_700_000_000_000), load(1000, 1_690_000_000_000));
        let folder = tempfile::tempdir()?;
        let figures = measure_backfill(&live, &old, folder.path()).await?;
        assert_eq!((figures.alone.samples, figures.by_door.samples), (100_000, 100_000));
        assert!(figures.by_door.head_bytes_max > 0, "{figures:?}");
        Ok(())
    }
}

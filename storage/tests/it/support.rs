//! What the tests share: engines, batches, selections.

use std::path::Path;
use std::sync::Arc;

use prometheus_client::registry::Registry;
use saturn_model::{
    Fingerprint, Labels, MatchOp, Matcher, Sample, Selection, ShardBatch, ShardId, TenantId, TimestampMs,
};
use saturn_storage::{AppendOutcome, Engine, EngineOptions, StorageError};

pub(crate) fn tenant(name: &str) -> TenantId {
    TenantId::new(name).expect("valid")
}

pub(crate) fn labels(pairs: &[(&str, &str)]) -> Labels {
    Labels::from_pairs(pairs.iter().copied()).expect("valid")
}

pub(crate) fn open(dir: &Path) -> Engine {
    try_open(dir).expect("opened")
}

pub(crate) fn try_open(dir: &Path) -> Result<Engine, StorageError> {
    let options = EngineOptions { wal_segment_bytes: 4096, ..EngineOptions::new(dir) };
    Engine::open(options, &mut Registry::default())
}

/// Whether a batch carries its labels.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Sending {
    WithLabels,
    FingerprintsOnly,
}

pub(crate) fn batch(
    tenant: &TenantId,
    shard: ShardId,
    send: Sending,
    series: &[(&Labels, &[(i64, f64)])],
) -> Arc<ShardBatch> {
    let mut batch = ShardBatch::new(tenant.clone(), shard);
    for ((labels, samples), index) in series.iter().zip(0..) {
        batch.push_series(Fingerprint::of(tenant, labels.as_encoded()));
        for (timestamp, value) in *samples {
            batch.push_sample(Sample { timestamp: TimestampMs(*timestamp), value: *value });
        }
        if send == Sending::WithLabels {
            batch.labels.push((index, (*labels).clone()));
        }
    }
    Arc::new(batch)
}

/// Appends from outside of any runtime.
pub(crate) fn append(
    engine: &Engine,
    batches: Vec<Arc<ShardBatch>>,
) -> Result<Vec<AppendOutcome>, StorageError> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(engine.append(batches))
}

pub(crate) fn everything(tenant: &TenantId) -> Selection {
    within(tenant, i64::MIN, i64::MAX)
}

pub(crate) fn within(tenant: &TenantId, start: i64, end: i64) -> Selection {
    let (start, end) = (TimestampMs(start), TimestampMs(end));
    Selection { tenant: tenant.clone(), matchers: Vec::new(), start, end }
}

pub(crate) fn matcher(name: &str, op: MatchOp, value: &str) -> Matcher {
    Matcher::new(name, op, value).expect("valid")
}

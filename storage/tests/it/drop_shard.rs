//! A shard that is dropped is gone for good, and may come back as a new one.

use std::sync::Arc;

use saturn_model::{
    Exemplar, Labels, MetricMetadata, MetricType, Selection, ShardBatch, ShardId, TenantId, TimestampMs,
    WINDOW_MS,
};
use saturn_storage::{Engine, ExportChunk, ExportScope};

use crate::copy::copy_dir;
use crate::support::{Sending, append, batch, everything, labels, open, tenant, within};

const GONE: ShardId = ShardId(7);
const STAYS: ShardId = ShardId(8);

fn series(number: i64) -> Labels {
    labels(&[("__name__", "m"), ("n", &number.to_string())])
}

/// Noise, which takes its space on disk.
fn value(time: i64, number: i64) -> f64 {
    let seed = (time * 31 + number + 1).cast_unsigned().wrapping_mul(0x9e37_79b9_7f4a_7c15);
    f64::from_bits(seed.wrapping_pow(5) >> 2)
}

/// Twenty series with samples in window `window`, one of them with an exemplar, and metadata.
fn fill(engine: &Engine, tenant: &TenantId, shard: ShardId, window: i64) {
    let samples = |number| -> Vec<(i64, f64)> {
        (0..100).map(|i| window * WINDOW_MS + i * 1000).map(|time| (time, value(time, number))).collect()
    };
    let all: Vec<(Labels, Vec<(i64, f64)>)> =
        (0..20).map(|number| (series(number), samples(number))).collect();
    let all: Vec<(&Labels, &[(i64, f64)])> = all.iter().map(|(l, s)| (l, s.as_slice())).collect();
    let mut filled: ShardBatch = (*batch(tenant, shard, Sending::WithLabels, &all)).clone();
    let labels = labels(&[("trace_id", "x")]);
    filled.push_exemplar(Exemplar { timestamp: TimestampMs(window * WINDOW_MS), value: 1.0, labels });
    let (metric, help, unit) = ("m".to_owned(), "h".to_owned(), String::new());
    filled.metadata.push(MetricMetadata { metric, kind: MetricType::Counter, help, unit });
    append(engine, vec![Arc::new(filled)]).expect("appended");
}

/// Series, samples, exemplars, metadata, windows and label names of a shard.
fn figures(engine: &Engine, shard: ShardId, tenant: &TenantId) -> [usize; 6] {
    let all = everything(tenant);
    let found = engine.select(shard, &all, 1000).expect("selected");
    [
        engine.series(shard, &all, 1000).expect("listed").items.len(),
        found.iter().map(|columns| columns.timestamps.len()).sum(),
        engine.exemplars(shard, &all).len(),
        engine.metadata(shard, tenant, None, 10).items.len(),
        engine.snapshot(shard).windows().len(),
        engine.label_names(shard, &all, 10).expect("listed").items.len(),
    ]
}

fn chunks(engine: &Engine, shard: ShardId) -> Vec<ExportChunk> {
    let snapshot = engine.snapshot(shard);
    let chunks = snapshot.export(ExportScope::Shard, None, 1 << 20).expect("valid");
    chunks.collect::<Result<_, _>>().expect("readable")
}

#[test]
fn nothing_of_it_is_left_and_the_log_does_not_bring_it_back() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (live, crashed) = (dir.path().join("live"), dir.path().join("crashed"));
    let demo = tenant("demo");
    let engine = open(&live);
    for shard in [GONE, STAYS] {
        fill(&engine, &demo, shard, 0);
        fill(&engine, &demo, shard, 30);
    }
    engine.flush().expect("flushed");
    let mut some: Selection = within(&demo, 0, 50_000);
    some.matchers.push(crate::support::matcher("n", saturn_model::MatchOp::Regex, "1."));
    engine.delete_series(&some).expect("deleted");
    // In memory and in the log only.
    for shard in [GONE, STAYS] {
        fill(&engine, &demo, shard, 31);
    }
    let before = figures(&engine, GONE, &demo);
    assert_eq!(before, figures(&engine, STAYS, &demo));
    let given = chunks(&engine, GONE);
    let open_snapshot = engine.snapshot(GONE);
    engine.drop_shard(GONE).expect("dropped");
    engine.drop_shard(GONE).expect("dropped again");
    engine.drop_shard(ShardId(99)).expect("there was nothing");
    // Whoever reads it goes on.
    assert_eq!(open_snapshot.windows().len(), 3);
    drop(open_snapshot);
    let check = |engine: &Engine| {
        assert_eq!(figures(engine, GONE, &demo), [0; 6]);
        assert_eq!(figures(engine, STAYS, &demo), before);
        assert_eq!(engine.digest(GONE, TimestampMs(0)).expect("digested"), [0; 256]);
        assert_eq!(engine.cardinality(&demo, &[GONE], 5).series, 0);
        assert!(engine.scrub().expect("scrubbed").is_clean());
    };
    check(&engine);
    assert_eq!(engine.stats().head_samples, 0);
    copy_dir(&live, &crashed);
    check(&open(&crashed));

    // It comes back by writes: first it knows nobody, then it is as new.
    let known = batch(&demo, GONE, Sending::FingerprintsOnly, &[(&series(1), &[(5, 1.0)])]);
    let unknown = append(&engine, vec![known]).expect("appended").remove(0).unknown;
    assert_eq!(unknown, [0]);
    fill(&engine, &demo, GONE, 31);
    let again = |engine: &Engine| assert_eq!(figures(engine, GONE, &demo), [20, 2000, 1, 1, 1, 2]);
    again(&engine);
    std::fs::remove_dir_all(&crashed).expect("removed");
    copy_dir(&live, &crashed);
    again(&open(&crashed));
    // And by another replica.
    engine.drop_shard(GONE).expect("dropped");
    let mut importer = engine.importer(GONE, 0).expect("an importer");
    importer.ingest(&given).expect("taken");
    engine.drop_shard(GONE).expect("dropped");
    // With what an importer remembers from before, too.
    importer.ingest(&given).expect("taken");
    engine.flush().expect("flushed");
    drop(importer);
    let taken = |engine: &Engine| assert_eq!(figures(engine, GONE, &demo)[..2], before[..2]);
    taken(&engine);
    engine.close().expect("closed");
    drop(engine);
    let engine = open(&live);
    taken(&engine);
    assert!(engine.scrub().expect("scrubbed").is_clean());
}

#[test]
fn its_space_comes_back_with_the_next_merges() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let demo = tenant("demo");
    let engine = open(dir.path());
    let day_over = TimestampMs(1000 * WINDOW_MS);
    for shard in [GONE, STAYS] {
        (0..12).for_each(|window| fill(&engine, &demo, shard, window));
    }
    engine.flush().expect("flushed");
    engine.maintain(day_over).expect("merged");
    let (stats, stays) = (engine.stats(), figures(&engine, STAYS, &demo));
    assert_eq!(stats.flushed_segments, 2, "a day of each shard");
    engine.drop_shard(GONE).expect("dropped");
    engine.maintain(day_over).expect("merged");
    let left = engine.stats();
    assert_eq!(left.flushed_segments, 1);
    assert!(left.disk_bytes < stats.disk_bytes * 6 / 10, "{} of {}", left.disk_bytes, stats.disk_bytes);
    assert_eq!(figures(&engine, STAYS, &demo), stays);
    // The last shard of a table takes it along.
    engine.drop_shard(STAYS).expect("dropped");
    assert_eq!(engine.stats().flushed_segments, 0);
    assert!(engine.stats().disk_bytes < stats.disk_bytes / 10, "{}", engine.stats().disk_bytes);
}

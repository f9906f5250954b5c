//! Exemplars and metadata are as durable as samples, and bounded.

use std::sync::Arc;

use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use saturn_model::{
    Exemplar, Labels, MatchOp, MetricMetadata, MetricType, Selection, SeriesExemplars, ShardBatch, ShardId,
    TenantId, TimestampMs,
};
use saturn_storage::{Engine, EngineOptions, ExportedNotes, StorageError};

use crate::copy::copy_dir;
use crate::support::{Sending, append, batch, everything, labels, matcher, open, tenant, within};

const SHARD: ShardId = ShardId(7);

fn exemplar(time: i64) -> Exemplar {
    let labels = labels(&[("trace_id", &time.to_string())]);
    Exemplar { timestamp: TimestampMs(time), value: 0.5, labels }
}

fn said(metric: &str, help: &str) -> MetricMetadata {
    let (metric, help, unit) = (metric.to_owned(), help.to_owned(), "s".to_owned());
    MetricMetadata { metric, kind: MetricType::Histogram, help, unit }
}

/// A batch of one series without samples, with exemplars.
fn notes(tenant: &TenantId, series: &Labels, times: &[i64], metadata: &[MetricMetadata]) -> Arc<ShardBatch> {
    let mut batch = (*batch(tenant, SHARD, Sending::WithLabels, &[(series, &[])])).clone();
    times.iter().for_each(|time| batch.push_exemplar(exemplar(*time)));
    batch.metadata.extend_from_slice(metadata);
    Arc::new(batch)
}

fn times(engine: &Engine, selection: &Selection) -> Vec<(String, Vec<i64>)> {
    let mut found = engine.exemplars(SHARD, selection);
    found.sort_by(|a, b| a.labels.cmp(&b.labels));
    let times = |s: &SeriesExemplars| s.exemplars.iter().map(|e| e.timestamp.0).collect();
    found.iter().map(|s| (s.labels.to_string(), times(s))).collect()
}

#[test]
fn they_survive_a_crash_before_and_after_flushes() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (live, crashed) = (dir.path().join("live"), dir.path().join("crashed"));
    let (demo, other) = (tenant("demo"), tenant("other"));
    let (a, b) = (labels(&[("n", "a")]), labels(&[("n", "b")]));
    let engine = open(&live);
    append(&engine, vec![notes(&demo, &a, &[5, 3], &[said("m", "old")])]).expect("appended");
    append(&engine, vec![notes(&other, &a, &[4], &[])]).expect("appended");
    let check = |engine: &Engine, flushed: bool| {
        let mut all = vec![("{n=\"a\"}".to_owned(), vec![3, 5])];
        if flushed {
            all = vec![("{n=\"a\"}".to_owned(), vec![3, 5, 9]), ("{n=\"b\"}".to_owned(), vec![8])];
        }
        assert_eq!(times(engine, &everything(&demo)), all);
        assert_eq!(times(engine, &within(&demo, 5, 5)), [("{n=\"a\"}".to_owned(), vec![5])]);
        let mut of_b = everything(&demo);
        of_b.matchers.push(matcher("n", MatchOp::Equal, "b"));
        assert_eq!(times(engine, &of_b).len(), usize::from(flushed));
        assert_eq!(times(engine, &everything(&other)), [("{n=\"a\"}".to_owned(), vec![4])]);
        let helps = engine.metadata(SHARD, &demo, Some("m"), 9).items;
        let helps: Vec<&str> = helps.iter().map(|said| said.help.as_str()).collect();
        assert_eq!(helps, if flushed { vec!["new", "old"] } else { vec!["old"] });
        assert!(engine.metadata(SHARD, &other, None, 9).items.is_empty());
    };
    check(&engine, false);
    copy_dir(&live, &crashed);
    check(&open(&crashed), false);

    engine.flush().expect("flushed");
    let more = [notes(&demo, &a, &[9, 5], &[said("m", "new")]), notes(&demo, &b, &[8], &[])];
    append(&engine, more.to_vec()).expect("appended");
    for flush in [false, true] {
        if flush {
            engine.flush().expect("flushed");
        }
        std::fs::remove_dir_all(&crashed).expect("removed");
        copy_dir(&live, &crashed);
        check(&open(&crashed), true);
    }
    check(&engine, true);
    engine.close().expect("closed");
}

#[test]
fn what_is_known_already_is_not_logged_again() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let engine = open(dir.path());
    let (demo, a) = (tenant("demo"), labels(&[("n", "a")]));
    append(&engine, vec![notes(&demo, &a, &[5], &[said("m", "h")])]).expect("appended");
    let logged = engine.stats().wal_bytes;
    for _ in 0..100 {
        append(&engine, vec![notes(&demo, &a, &[5], &[said("m", "h")])]).expect("appended");
    }
    // The log gets a mark from time to time, whoever writes.
    assert!(engine.stats().wal_bytes < logged + 1000, "{} to {}", logged, engine.stats().wal_bytes);
}

#[test]
fn both_are_bounded_and_what_is_dropped_is_counted() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let mut registry = Registry::default();
    let options = EngineOptions {
        exemplars_per_shard_max: 3,
        metadata_per_shard_max: 2,
        ..EngineOptions::new(dir.path())
    };
    let engine = Engine::open(options, &mut registry).expect("opened");
    let (demo, a) = (tenant("demo"), labels(&[("n", "a")]));
    let metrics = ["m1", "m2", "m3"].map(|metric| said(metric, "h"));
    append(&engine, vec![notes(&demo, &a, &[1, 2, 3, 4, 5], &metrics)]).expect("appended");
    assert_eq!(times(&engine, &everything(&demo)), [("{n=\"a\"}".to_owned(), vec![3, 4, 5])]);
    assert_eq!(engine.metadata(SHARD, &demo, None, 9).items.len(), 2);
    let one = engine.metadata(SHARD, &demo, None, 1);
    assert_eq!((one.items.len(), one.truncated), (1, true));
    let mut text = String::new();
    encode(&mut text, &registry).expect("encodes");
    assert!(text.contains("saturn_storage_dropped_exemplars_total 2\n"), "{text}");
    assert!(text.contains("saturn_storage_dropped_metadata_total 1\n"), "{text}");
}

#[test]
fn deleted_exemplars_stay_deleted() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (live, crashed) = (dir.path().join("live"), dir.path().join("crashed"));
    let (demo, a, b) = (tenant("demo"), labels(&[("n", "a")]), labels(&[("n", "b")]));
    let engine = open(&live);
    append(&engine, vec![notes(&demo, &a, &[1, 5], &[]), notes(&demo, &b, &[5], &[])]).expect("appended");
    engine.flush().expect("flushed");
    append(&engine, vec![notes(&demo, &a, &[6], &[])]).expect("appended");
    let mut of_a = within(&demo, 2, 9);
    of_a.matchers.push(matcher("n", MatchOp::Equal, "a"));
    engine.delete_series(&of_a).expect("deleted");
    let left = [("{n=\"a\"}".to_owned(), vec![1]), ("{n=\"b\"}".to_owned(), vec![5])];
    assert_eq!(times(&engine, &everything(&demo)), left);
    copy_dir(&live, &crashed);
    assert_eq!(times(&open(&crashed), &everything(&demo)), left);
}

/// All notes of the shard, as bytes on the way.
fn transfer(from: &Engine, to: &Engine, chunk_bytes: usize) -> usize {
    let chunks = from.export_notes(SHARD, chunk_bytes);
    let bytes = chunks.iter().map(ExportedNotes::to_bytes);
    let chunks: Vec<_> = bytes.map(|bytes| ExportedNotes::from_bytes(&bytes).expect("own bytes")).collect();
    let importer = to.importer(SHARD, 0).expect("an importer");
    chunks.chunks(2).for_each(|some| importer.ingest_notes(some).expect("taken"));
    chunks.len()
}

#[test]
fn another_replica_takes_them_durably_and_again_without_harm() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (a, b) = (open(&dir.path().join("a")), open(&dir.path().join("b")));
    let (demo, other) = (tenant("demo"), tenant("other"));
    let (x, y) = (labels(&[("n", "x")]), labels(&[("n", "y")]));
    let many: Vec<i64> = (0..200).collect();
    append(&a, vec![notes(&demo, &x, &many, &[said("m", "old"), said("m", "new"), said("k", "k")])])
        .expect("appended");
    a.flush().expect("flushed");
    append(&a, vec![notes(&other, &y, &[7], &[])]).expect("appended");
    append(&b, vec![notes(&demo, &x, &[5, 1000], &[said("m", "newest"), said("m", "new")])])
        .expect("appended");
    assert!(transfer(&a, &b, 500) > 10, "chunks are small");
    assert_eq!(transfer(&a, &b, 1 << 20), 2, "one of each tenant");
    let check = |engine: &Engine| {
        let all = [&many[..], &[1000]].concat();
        assert_eq!(times(engine, &everything(&demo)), [("{n=\"x\"}".to_owned(), all)]);
        assert_eq!(times(engine, &everything(&other)), [("{n=\"y\"}".to_owned(), vec![7])]);
        let helps = engine.metadata(SHARD, &demo, None, 9).items;
        let helps: Vec<&str> = helps.iter().map(|said| said.help.as_str()).collect();
        assert_eq!(helps, ["k", "new", "newest", "old"]);
        assert_eq!(engine.stats().series, 1, "series without samples here are not made");
    };
    check(&b);
    let crashed = dir.path().join("crashed");
    copy_dir(&dir.path().join("b"), &crashed);
    check(&open(&crashed));
    let wrong = ExportedNotes { shard: ShardId(8), ..a.export_notes(SHARD, 1 << 20).remove(0) };
    let refused = b.importer(SHARD, 0).expect("an importer").ingest_notes(&[wrong]);
    assert!(matches!(refused, Err(StorageError::Invalid { .. })), "{refused:?}");
}

//! Deletions that the replicas of a shard agreed on: each is done once, remembered, and undone by nobody.

use saturn_model::{Selection, ShardId};
use saturn_storage::{AgreedDeletions, Engine, ExportChunk, ExportScope, StorageError};

use crate::copy::copy_dir;
use crate::support::{Sending, append, batch, everything, labels, open, tenant, within};

const SHARD: ShardId = ShardId(7);
const OTHER: ShardId = ShardId(8);

fn fill(engine: &Engine, shard: ShardId, from: i64) {
    let samples: Vec<(i64, f64)> = (from..from + 100).map(|t| (t * 1000, 0.5)).collect();
    let (demo, series) = (tenant("demo"), labels(&[("__name__", "m")]));
    append(engine, vec![batch(&demo, shard, Sending::WithLabels, &[(&series, &samples)])]).expect("appended");
}

fn samples(engine: &Engine, shard: ShardId) -> usize {
    let found = engine.select(shard, &everything(&tenant("demo")), 1000).expect("selected");
    found.iter().map(|columns| columns.timestamps.len()).sum()
}

fn agreed(shard: ShardId, through: u64, selections: Vec<Selection>) -> Vec<AgreedDeletions> {
    vec![AgreedDeletions { shard, through, selections }]
}

fn chunks(engine: &Engine) -> Vec<ExportChunk> {
    let snapshot = engine.snapshot(SHARD);
    let chunks = snapshot.export(ExportScope::Shard, None, 1 << 20).expect("valid");
    chunks.collect::<Result<_, _>>().expect("readable")
}

#[test]
fn an_agreed_deletion_concerns_its_shard_and_is_remembered_with_its_number() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (live, crashed) = (dir.path().join("live"), dir.path().join("crashed"));
    let demo = tenant("demo");
    let engine = open(&live);
    fill(&engine, SHARD, 0);
    fill(&engine, OTHER, 0);
    let parts = vec![within(&demo, 0, 9_999), within(&demo, 50_000, 59_999)];
    assert_eq!(engine.delete_agreed(agreed(SHARD, 4, parts)).expect("deleted"), 2);
    assert_eq!((samples(&engine, SHARD), samples(&engine, OTHER)), (80, 100));
    assert_eq!((engine.deleted_through(SHARD), engine.deleted_through(OTHER)), (4, 0));
    // Nothing matches: the number counts all the same.
    let nothing = vec![within(&tenant("nobody"), 0, 1)];
    assert_eq!(engine.delete_agreed(agreed(SHARD, 6, nothing)).expect("deleted"), 0);
    copy_dir(&live, &crashed);
    drop(engine);
    for dir in [&live, &crashed] {
        let engine = open(dir);
        assert_eq!((engine.deleted_through(SHARD), samples(&engine, SHARD)), (6, 80), "{dir:?}");
        assert_eq!(engine.deleted_through(OTHER), 0);
    }
}

#[test]
fn what_another_replica_has_not_deleted_does_not_come_back_from_it() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (from, to) = (open(&dir.path().join("from")), open(&dir.path().join("to")));
    fill(&from, SHARD, 0);
    fill(&to, SHARD, 0);
    let chunks_before = chunks(&from);
    let mut importer = to.importer(SHARD, from.deleted_through(SHARD)).expect("an importer");
    let deletion = agreed(SHARD, 4, vec![within(&tenant("demo"), 0, 49_999)]);
    to.delete_agreed(deletion.clone()).expect("deleted");
    let refused = importer.ingest(&chunks_before).expect_err("it is from before the deletion");
    assert!(matches!(&refused, StorageError::Invalid { reason } if reason.contains("up to 4")), "{refused}");
    importer.ingest_notes(&[]).expect_err("nor are notes taken");
    assert_eq!(samples(&to, SHARD), 50);

    from.delete_agreed(deletion).expect("deleted");
    fill(&from, SHARD, 200);
    let mut importer = to.importer(SHARD, from.deleted_through(SHARD)).expect("an importer");
    importer.ingest(&chunks(&from)).expect("both have done the same");
    assert_eq!(samples(&to, SHARD), 150);
    // The number outlives the samples: what is left of the shard elsewhere must not come back either.
    to.drop_shard(SHARD).expect("dropped");
    assert_eq!((to.deleted_through(SHARD), samples(&to, SHARD)), (4, 0));
}

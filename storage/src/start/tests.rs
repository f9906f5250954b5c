//! Flushes in the middle of a replay, records that do not fit, and progress in words.

use saturn_model::{
    BatchHistograms, Fingerprint, Labels, Sample, Selection, ShardBatch, TenantId, TimestampMs,
};

use super::*;
use crate::copy::copy_dir;
use crate::snapshot::LogPosition;
use crate::wal::Plan;

fn tenant() -> TenantId {
    TenantId::new("demo").expect("valid")
}

fn options(dir: &Path) -> EngineOptions {
    EngineOptions { wal_segment_bytes: 2048, ..EngineOptions::new(dir) }
}

fn open(options: EngineOptions) -> Result<Engine, StorageError> {
    Engine::open(options, &mut Registry::default())
}

/// A sample each for ten series in as many shards.
fn append(engine: &Engine, time: i64) {
    let batches = (0..10_u16).map(|i| {
        let labels = Labels::from_pairs([("n", i.to_string().as_str())]).expect("valid");
        let mut batch = ShardBatch::new(tenant(), ShardId(i));
        batch.push_series(Fingerprint::of(&tenant(), labels.as_encoded()));
        batch.labels.push((0, labels));
        batch.push_sample(Sample { timestamp: TimestampMs(time), value: f64::from(i) });
        Arc::new(batch)
    });
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(engine.append(batches.collect())).expect("appended");
}

fn times(engine: &Engine) -> Vec<Vec<i64>> {
    let selection = Selection {
        tenant: tenant(),
        matchers: Vec::new(),
        start: TimestampMs(i64::MIN),
        end: TimestampMs(i64::MAX),
    };
    let select = |shard| engine.select(ShardId(shard), &selection, 10).expect("selected");
    (0..10).flat_map(select).map(|columns| columns.timestamps).collect()
}

#[test]
fn a_replay_with_too_little_memory_gets_further_each_time() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (live, killed) = (dir.path().join("live"), dir.path().join("killed"));
    let engine = open(options(&live)).expect("opened");
    for time in 0..100 {
        append(&engine, time * 1_000_000);
    }
    let want = times(&engine);
    assert_eq!(want, vec![(0..100).map(|t| t * 1_000_000).collect::<Vec<_>>(); 10]);
    copy_dir(&live, &killed);
    drop(engine);

    // Without the tenth segment a start must fail, but what is before it is flushed and gone.
    let tenth = killed.join("wal").join("00000010.wal");
    let aside = dir.path().join("tenth");
    fs::rename(&tenth, &aside).expect("moved");
    let little = || EngineOptions { flush_head_bytes_max: 1, ..options(&killed) };
    for _ in 0..2 {
        assert!(matches!(open(little()), Err(StorageError::Corrupt { .. })));
        let left: Vec<_> = fs::read_dir(killed.join("wal")).expect("listed").flatten().collect();
        assert!(left.iter().all(|entry| entry.file_name() >= *"00000009.wal"), "{left:?}");
    }
    fs::rename(&aside, &tenth).expect("moved");
    let engine = open(little()).expect("opened");
    assert_eq!(times(&engine), want);
    drop(engine);
    assert_eq!(times(&open(options(&killed)).expect("opened")), want);
}

#[test]
fn a_record_that_does_not_fit_is_damage() {
    let dir = tempfile::tempdir().expect("temporary directory");
    drop(open(options(dir.path())).expect("opened"));
    let (demo, wal_dir) = (tenant(), dir.path().join("wal"));
    let wal_options = WalOptions {
        dir: wal_dir.clone(),
        position: dir.path().join("position"),
        segment_bytes: 1 << 20,
        group_bytes_max: 1 << 20,
        queue_bytes_max: 1 << 20,
        sync_interval: std::time::Duration::from_millis(10),
        steps: crate::StepHook::default(),
    };
    let replayed = wal::replay(&wal_dir, Some(1), &mut |_| Ok(())).expect("empty");
    let metrics = Arc::new(Metrics::new(&mut Registry::default()));
    let wal = Wal::start(wal_options, replayed, metrics).expect("started");
    let plan = Plan {
        shard: ShardId(4),
        tenant: &demo,
        first_new: 0,
        new_series: Vec::new(),
        series: vec![(7, 0..1)],
        timestamps: &[1],
        values: &[1.0],
        histograms: Vec::new(),
        histogram_columns: &BatchHistograms::default(),
        exemplars: Vec::new(),
        metadata: Vec::new(),
    };
    wal.enqueue(plan.encode().expect("small")).expect("enqueued");
    wal.close().expect("closed");
    let Err(StorageError::Corrupt { path, reason, .. }) = open(options(dir.path())) else {
        panic!("opened");
    };
    assert!(path.ends_with("00000002.wal"), "{}", path.display());
    assert_eq!(reason, "unknown series 7 of shard 4");
}

#[test]
fn progress_in_words() {
    let progress = OpenProgress::default();
    assert_eq!(progress.to_string(), "opening the database");
    progress.enter(Phase::Series, 0);
    assert_eq!(progress.to_string(), "reading the series");
    progress.enter(Phase::Log, 3_449_000_000);
    progress.done(1_200_000_000);
    assert_eq!(progress.to_string(), "replaying the write-ahead log: 1.2 of 3.4 GB");
    progress.enter(Phase::Log, 999_999_999);
    assert_eq!(progress.to_string(), "replaying the write-ahead log: 0.0 of 999.9 MB");
    assert_eq!(progress.bytes(), (0, 999_999_999));
}

#[test]
fn the_durable_position_grows_over_the_directorys_life() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (live, killed, old) = (dir.path().join("live"), dir.path().join("killed"), dir.path().join("old"));
    let mut last = LogPosition::default();
    let mut grows = |position: LogPosition| {
        assert!(position > last, "{position:?} after {last:?}");
        last = position;
        position
    };
    let engine = open(options(&live)).expect("opened");
    assert_eq!(engine.recovered_position(), LogPosition::default());
    grows(engine.durable_position());
    for time in 0..30 {
        append(&engine, time * 1_000_000);
        grows(engine.durable_position());
    }
    engine.flush().expect("flushed");
    append(&engine, 30_000_000);
    let position = grows(engine.durable_position());
    // A file that cannot be synced: the log goes on in a new one.
    engine.store().wal().fail_next_syncs(1);
    append(&engine, 31_000_000);
    assert!(grows(engine.durable_position()).segment > position.segment);
    let before_kill = engine.durable_position();
    copy_dir(&live, &killed);
    drop(engine);
    copy_dir(&live, &old);

    let after_kill = open(options(&killed)).expect("opened");
    assert!(after_kill.recovered_position() >= before_kill);
    assert!(after_kill.durable_position() > after_kill.recovered_position());
    let engine = open(options(&live)).expect("opened");
    assert!(engine.recovered_position() >= before_kill);
    grows(engine.durable_position());
    // Nothing was appended since, and it shows all the same that the copy is of before.
    let copy = open(options(&old)).expect("opened");
    assert!(copy.recovered_position() < engine.durable_position());
}

//! Scrubs: a clean report of clean data, damage with names, merges that keep away from it, an end when the engine
//! is closed.

use std::fs;
use std::num::NonZeroU64;
use std::sync::Arc;

use prometheus_client::registry::Registry;
use saturn_model::{Fingerprint, Labels, Sample, Selection, ShardBatch, ShardId, TenantId, TimestampMs};

use super::*;
use crate::keys::WINDOW_MS;
use crate::{Engine, EngineOptions};

fn tenant() -> TenantId {
    TenantId::new("demo").expect("valid")
}

fn options(dir: &Path) -> EngineOptions {
    EngineOptions {
        maintenance_interval: Duration::from_secs(86_400),
        reserve_bytes: 0,
        series_idle: Duration::ZERO,
        ..EngineOptions::new(dir)
    }
}

fn open(options: EngineOptions) -> Engine {
    Engine::open(options, &mut Registry::default()).expect("opened")
}

/// Samples that do not compress, for series `from` to `to` in shards 1 and 2, in windows 0 and 1; flushed.
fn fill(engine: &Engine, from: u32, to: u32) {
    let mut batches: Vec<ShardBatch> = [1, 2].map(|s| ShardBatch::new(tenant(), ShardId(s))).into();
    for series in from..to {
        let labels = Labels::from_pairs([("__name__", "m"), ("n", &format!("{series:04}"))]).expect("valid");
        let batch = &mut batches[(series % 2) as usize];
        let index = u32::try_from(batch.series_count()).expect("few");
        batch.push_series(Fingerprint::of(&tenant(), labels.as_encoded()));
        batch.labels.push((index, labels));
        for t in 0..20 {
            let value = f64::from_bits(u64::from(series * 20 + t).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let timestamp = TimestampMs(i64::from(t) * WINDOW_MS / 10);
            batch.push_sample(Sample { timestamp, value });
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(engine.append(batches.into_iter().map(Arc::new).collect())).expect("appended");
    engine.flush().expect("flushed");
}

fn everything(matchers: Vec<saturn_model::Matcher>) -> Selection {
    let (start, end) = (TimestampMs(i64::MIN), TimestampMs(i64::MAX));
    Selection { tenant: tenant(), matchers, start, end }
}

/// Flips a bit of shard 1 in the first table with samples. Returns its name.
fn damage_a_table(engine: &Engine) -> String {
    let mut files = engine.store().rocks.data_files().expect("listed");
    files.sort_by_key(|file| file.segment);
    let path = engine.store().options.dir.join("rocks").join(&files[0].name);
    let mut bytes = fs::read(&path).expect("read");
    let place = bytes.len() / 4;
    bytes[place] ^= 4;
    fs::write(&path, bytes).expect("written");
    files[0].name.clone()
}

#[test]
fn clean_data_is_reported_as_clean() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let engine = open(options(dir.path()));
    assert!(engine.scrub().expect("scrubbed").is_clean());
    fill(&engine, 0, 300);
    fill(&engine, 150, 450);
    let deleted = everything(vec![
        saturn_model::Matcher::new("n", saturn_model::MatchOp::Regex, "000.").expect("valid"),
    ]);
    assert_eq!(engine.delete_series(&deleted).expect("deleted"), 10);
    let report = engine.scrub().expect("scrubbed");
    assert!(report.is_clean(), "{report:?}");
    // What tombstones hide is read, too.
    assert_eq!((report.segments, report.samples), (8, 600 * 20));
    assert!(report.bytes > 600 * 20 * 8, "{report:?}");
    engine.maintain(TimestampMs(100 * WINDOW_MS)).expect("merged");
    let report = engine.scrub().expect("scrubbed");
    assert!(report.is_clean(), "{report:?}");
    assert_eq!((report.segments, report.samples), (2, 440 * 20));
    assert_eq!(engine.store().metrics.scrub_runs.get(), 3);
}

#[test]
fn damage_is_named_and_merges_leave_it_alone() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let engine = open(options(dir.path()));
    fill(&engine, 0, 1000);
    let name = damage_a_table(&engine);
    let report = engine.scrub().expect("scrubbed");
    let [damage] = report.damage.as_slice() else {
        panic!("{report:?}");
    };
    assert_eq!(damage.file, format!("rocks/{name}"));
    assert_eq!(damage.range_ms, Some((0, 9 * WINDOW_MS / 10)));
    assert!(damage.series.as_ref().is_some_and(|series| series.contains("m{n=")), "{damage}");
    // One block of 16 KiB; the others are read.
    assert!((1..200).contains(&damage.series_count), "{damage}");
    assert_eq!(report.segments, 4);
    assert_eq!(report.samples, 20_000 - 10 * damage.series_count);
    assert_eq!(engine.store().metrics.scrub_damage.get(), 1);
    let read = engine.select(damage.shard.expect("known"), &everything(Vec::new()), 1000);
    assert!(matches!(read, Err(StorageError::Corrupt { .. })), "{read:?}");

    // The damaged shard's other windows and the other shard's day are merged, and what comes late is stored.
    fill(&engine, 0, 10);
    engine.maintain(TimestampMs(100 * WINDOW_MS)).expect("merged");
    let count = |window: i64| {
        let shards = engine.store().all_shards();
        let all = shards.iter().flat_map(|shard| shard.segments_and_tombstones().0.to_vec());
        all.filter(|segment| segment.key.window.start() == window * WINDOW_MS).count()
    };
    assert_eq!((count(0), count(1)), (2 + 1, 1));
}

#[test]
fn what_went_meanwhile_is_no_damage() {
    struct Gone;
    impl Watch for Gone {
        fn read(&self, _bytes: u64) -> ControlFlow<()> {
            ControlFlow::Continue(())
        }
        fn is_live(&self, _segment: SegmentKey) -> bool {
            false
        }
    }
    let dir = tempfile::tempdir().expect("temporary directory");
    let engine = open(options(dir.path()));
    fill(&engine, 0, 1000);
    damage_a_table(&engine);
    let rocks = Rocks::open_read_only(&dir.path().join("rocks")).expect("opened");
    let mut report = CheckReport::default();
    check::check(&rocks, &Gone, &mut report).expect("checked");
    assert!(report.is_clean(), "{report:?}");
}

#[test]
fn a_scrub_ends_when_the_engine_is_closed() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let slow = EngineOptions { scrub_bytes_per_second: NonZeroU64::new(1), ..options(dir.path()) };
    let engine = open(slow);
    fill(&engine, 0, 100);
    let scrub = {
        let engine = engine.clone();
        std::thread::spawn(move || engine.scrub())
    };
    engine.close().expect("closed");
    assert!(matches!(scrub.join().expect("no panic"), Err(StorageError::Closed)));
}

#[test]
fn flushes_merges_and_deletions_meanwhile_are_no_damage() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let engine = open(options(dir.path()));
    let churn = {
        let engine = engine.clone();
        std::thread::spawn(move || {
            for round in 0..40 {
                fill(&engine, round * 5, round * 5 + 40);
                if round % 4 == 1 {
                    let some = format!("00{}.", round % 10);
                    let some = saturn_model::Matcher::new("n", saturn_model::MatchOp::Regex, &some);
                    engine.delete_series(&everything(vec![some.expect("valid")])).expect("deleted");
                }
                if round % 3 == 2 {
                    engine.maintain(TimestampMs(100 * WINDOW_MS)).expect("merged");
                }
            }
        })
    };
    let mut scrubs = 0;
    while !churn.is_finished() || scrubs == 0 {
        let report = engine.scrub().expect("scrubbed");
        assert!(report.is_clean(), "after {scrubs} scrubs: {report:?}");
        scrubs += 1;
    }
    churn.join().expect("no panic");
    assert!(engine.scrub().expect("scrubbed").is_clean());
    assert!(engine.store().quarantine.lock().is_empty());
}

/// Appends one sample for one series; a group of the log of its own.
fn append_one(engine: &Engine, t: i64) {
    let mut batch = ShardBatch::new(tenant(), ShardId(1));
    let labels = Labels::from_pairs([("__name__", "m"), ("n", "one")]).expect("valid");
    batch.push_series(Fingerprint::of(&tenant(), labels.as_encoded()));
    batch.labels.push((0, labels));
    batch.push_sample(Sample { timestamp: TimestampMs(t), value: 1.0 });
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(engine.append(vec![Arc::new(batch)])).expect("appended");
}

#[test]
fn damage_of_the_log_is_found_while_memory_has_its_samples() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let engine = open(options(dir.path()));
    (0..10).for_each(|t| append_one(&engine, t));
    let clean = engine.scrub().expect("scrubbed");
    assert!(clean.is_clean() && clean.rows >= 10, "{clean:?}");
    let path = dir.path().join("wal/00000001.wal");
    let mut bytes = fs::read(&path).expect("read");
    bytes[120] ^= 1;
    fs::write(&path, &bytes).expect("written");
    let report = engine.scrub().expect("scrubbed");
    let [damage] = report.damage.as_slice() else {
        panic!("{report:?}");
    };
    assert_eq!(damage.file, "wal/00000001.wal");
    assert!(damage.what.contains("WAL record is damaged"), "{damage}");
    // Nothing is lost: a flush replaces the log by segments.
    engine.flush().expect("flushed");
    let report = engine.scrub().expect("scrubbed");
    assert!(report.is_clean(), "{report:?}");
    assert_eq!(report.samples, 10);
}

//! A directory is read without a change of any byte, and counts what was put there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use prometheus_client::registry::Registry;
use saturn_model::{Fingerprint, MatchOp, Sample, ShardBatch, TimestampMs};

use super::*;
use crate::keys::{FORMAT_VERSION, WINDOW_MS};
use crate::{Engine, EngineOptions};

fn tenant() -> TenantId {
    TenantId::new("demo").expect("valid")
}

fn labels(series: u32) -> Labels {
    Labels::from_pairs([("__name__", "m"), ("n", &format!("{series:02}"))]).expect("valid")
}

/// Ten samples for each of `series`, in windows 0 and 1.
fn append(engine: &Engine, series: std::ops::Range<u32>) {
    let mut batch = ShardBatch::new(tenant(), ShardId(3));
    for (index, series) in (0..).zip(series) {
        let labels = labels(series);
        batch.push_series(Fingerprint::of(&tenant(), labels.as_encoded()));
        batch.labels.push((index, labels));
        for t in 0..10 {
            batch.push_sample(Sample { timestamp: TimestampMs(t * WINDOW_MS / 5), value: 1.5 });
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(engine.append(vec![Arc::new(batch)])).expect("appended");
}

/// Twenty series flushed, the last five and five new ones in the log only.
fn build(dir: &Path) {
    let options = EngineOptions { reserve_bytes: 0, ..EngineOptions::new(dir.join("storage")) };
    let engine = Engine::open(options, &mut Registry::default()).expect("opened");
    append(&engine, 0..20);
    engine.flush().expect("flushed");
    append(&engine, 15..25);
    engine.close().expect("closed");
}

/// Every file with its bytes and time of change.
fn files(dir: &Path) -> BTreeMap<PathBuf, (Vec<u8>, SystemTime)> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).expect("listed").map(|entry| entry.expect("an entry")) {
        let changed = entry.metadata().and_then(|metadata| metadata.modified()).expect("known");
        if entry.path().is_dir() {
            found.insert(entry.path(), (Vec::new(), changed));
            found.extend(files(&entry.path()));
        } else {
            found.insert(entry.path(), (fs::read(entry.path()).expect("read"), changed));
        }
    }
    found
}

#[test]
fn everything_is_counted_and_nothing_changed() {
    let dir = tempfile::tempdir().expect("temporary directory");
    build(dir.path());
    let before = files(dir.path());
    let report = Offline::verify(dir.path()).expect("verified");
    assert!(report.is_clean(), "{report:?}");
    assert_eq!((report.segments, report.samples), (2, 200));
    let offline = Offline::open(dir.path()).expect("opened");
    let stats = offline.stats().expect("counted");
    assert_eq!((stats.segments, stats.windows, stats.shards), (2, 2, 1));
    assert_eq!((stats.series, stats.samples), (20, 200));
    assert_eq!(stats.range_ms, Some((0, 9 * WINDOW_MS / 5)));
    assert_eq!((stats.wal_records, stats.wal_samples, stats.wal_new_series), (1, 100, 5));
    assert!(stats.data_bytes > 0 && stats.wal_bytes > 200 && stats.other_bytes > 0, "{stats:?}");

    let segments = offline.segments();
    assert_eq!(segments.len(), 2);
    assert!(
        segments.iter().all(|s| s.series == 20 && s.samples == 100 && s.shard == ShardId(3)),
        "{segments:?}"
    );
    let matcher = Matcher::new("n", MatchOp::Regex, "0[34]").expect("valid");
    let series = offline.series(Some(&tenant()), &[matcher], 10).expect("listed");
    assert_eq!(series.iter().map(|s| s.labels.clone()).collect::<Vec<_>>(), [labels(3), labels(4)]);
    for (segment, chunks) in &series[0].segments {
        let chunks = chunks.as_ref().expect("readable");
        let [chunk] = chunks.as_slice() else { panic!("{chunks:?}") };
        assert_eq!((chunk.codec, chunk.samples), ("constant decimal", 5));
        assert_eq!((chunk.first_ms, chunk.last_ms), (segment.first_ms, segment.last_ms));
    }
    let other = TenantId::new("other").expect("valid");
    assert_eq!(offline.series(Some(&other), &[], 10).expect("listed"), []);
    assert_eq!(offline.series(None, &[], 7).expect("listed").len(), 7);
    let mut records = Vec::new();
    offline.log_records(|record| records.push(record)).expect("read");
    assert_eq!((records[0].series, records[0].range_ms), (10, Some((0, 9 * WINDOW_MS / 5))));
    drop(offline);
    assert!(files(dir.path()) == before, "a file was changed");
}

#[test]
fn damage_of_any_kind_is_a_line_of_the_report() {
    let dir = tempfile::tempdir().expect("temporary directory");
    build(dir.path());
    let storage = dir.path().join("storage");
    let flip = |path: &Path, at: usize| {
        let mut bytes = fs::read(path).expect("read");
        bytes[at] ^= 1;
        fs::write(path, bytes).expect("written");
    };
    let line = || {
        let report = Offline::verify(dir.path()).expect("verified");
        report.damage.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    };
    // In the only record of the log, which the closing mark covers.
    let log = storage.join("wal/00000002.wal");
    flip(&log, 100);
    let found = line();
    assert!(found.starts_with("wal/00000002.wal: byte 65: "), "{found}");
    flip(&log, 100);
    let rocks = Rocks::open_read_only(&storage.join("rocks")).expect("opened");
    let table = rocks.data_files().expect("listed").remove(0).name;
    drop(rocks);
    flip(&storage.join("rocks").join(&table), 20);
    let found = line();
    assert!(
        found.starts_with(&format!("rocks/{table}, ")) && found.contains("20 series from m{n="),
        "{found}"
    );
    fs::write(storage.join("rocks/CURRENT"), "").expect("written");
    assert!(line().starts_with("rocks: "), "{}", line());
}

#[test]
fn what_is_no_data_directory_is_refused() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let error = Offline::open(dir.path()).expect_err("empty");
    assert!(error.to_string().contains("is no data directory"), "{error}");
    assert!(matches!(Offline::verify(dir.path()), Err(StorageError::Invalid { .. })));
}

#[test]
fn a_directory_of_an_earlier_version_is_read_or_says_what_it_lacks() {
    let dir = tempfile::tempdir().expect("temporary directory");
    build(dir.path());
    let options = EngineOptions { reserve_bytes: 0, ..EngineOptions::new(dir.path().join("storage")) };
    let engine = Engine::open(options.clone(), &mut Registry::default()).expect("opened");
    engine.store().rocks.pretend_version(3);
    engine.close().expect("closed");
    drop(engine);
    let offline = Offline::open(dir.path()).expect("opened");
    let stats = offline.stats().expect("counted");
    assert_eq!((stats.format_version, stats.samples), (3, 200));
    assert_eq!(offline.series(None, &[], 100).expect("listed").len(), 20);
    assert!(Offline::verify(dir.path()).expect("verified").is_clean());
    drop(offline);

    // The first directories of version 3 were made before there were exemplars.
    Rocks::drop_notes(&dir.path().join("storage/rocks"));
    for error in [
        Offline::open(dir.path()).expect_err("something is missing"),
        Offline::verify(dir.path()).expect_err("something is missing"),
    ] {
        let text = error.to_string();
        assert!(matches!(error, StorageError::Invalid { .. }), "{text}");
        assert!(text.contains("\"notes\"") && text.contains("start a node with it once"), "{text}");
    }
    Engine::open(options, &mut Registry::default()).expect("opened").close().expect("closed");
    assert!(Offline::verify(dir.path()).expect("verified").is_clean());
    assert_eq!(
        Offline::open(dir.path()).expect("opened").stats().expect("counted").format_version,
        FORMAT_VERSION
    );
}

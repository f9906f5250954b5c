//! One test per promise of a door.

use std::fs;
use std::ops::ControlFlow;
use std::sync::Arc;

use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use saturn_model::{Labels, MatchOp, SeriesColumns, ShardId, TimestampMs};
use saturn_storage::{AppendOutcome, Engine, EngineOptions, Listed, ReadLimits, StorageError};

use crate::copy::copy_dir;
use crate::support::{Sending, append, batch, everything, labels, matcher, open, tenant, try_open, within};

const SHARD: ShardId = ShardId(7);

#[test]
fn unknown_series_are_named_and_the_rest_is_stored() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let engine = open(dir.path());
    let (demo, a, b) = (tenant("demo"), labels(&[("n", "a")]), labels(&[("n", "b")]));
    append(&engine, vec![batch(&demo, SHARD, Sending::WithLabels, &[(&a, &[(1, 1.0)])])]).expect("appended");
    let both = batch(&demo, SHARD, Sending::FingerprintsOnly, &[(&b, &[(2, 2.0)]), (&a, &[(2, 2.0)])]);
    let outcomes = append(&engine, vec![Arc::clone(&both)]).expect("appended");
    assert_eq!(outcomes, [AppendOutcome { unknown: vec![0] }]);
    let columns = engine.select(SHARD, &everything(&demo), 10).expect("selected");
    assert_eq!(columns.len(), 1);
    assert_eq!(columns[0].timestamps, [1, 2]);
    let again = both.subset_with_labels(&[0], |_| b.clone());
    assert_eq!(append(&engine, vec![Arc::new(again)]).expect("appended"), [AppendOutcome::default()]);
    assert_eq!(engine.select(SHARD, &everything(&demo), 10).expect("selected").len(), 2);
}

#[test]
fn wrong_labels_tenants_and_columns_are_invalid_and_change_nothing() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let engine = open(dir.path());
    let (demo, other, a) = (tenant("demo"), tenant("other"), labels(&[("n", "a")]));
    let right = batch(&demo, SHARD, Sending::WithLabels, &[(&a, &[(1, 1.0)])]);
    let mut wrong = (*right).clone();
    wrong.labels[0].1 = labels(&[("n", "b")]);
    let error = append(&engine, vec![wrong.into()]).expect_err("the fingerprint is of other labels");
    assert!(matches!(error, StorageError::Invalid { .. }), "{error}");
    assert!(error.to_string().contains("{n=\"b\"}"), "{error}");
    assert_eq!(engine.stats().series, 0);

    append(&engine, vec![Arc::clone(&right)]).expect("appended");
    let mut foreign = (*right).clone();
    foreign.tenant = other.clone();
    foreign.labels.clear();
    let error = append(&engine, vec![foreign.into()]).expect_err("the series is another tenant's");
    assert!(matches!(error, StorageError::Invalid { .. }), "{error}");
    let mut uneven = (*right).clone();
    uneven.values.clear();
    assert!(matches!(append(&engine, vec![uneven.into()]), Err(StorageError::Invalid { .. })));
    let far = batch(&demo, SHARD, Sending::WithLabels, &[(&a, &[(i64::MAX, 1.0)])]);
    assert!(matches!(append(&engine, vec![far]), Err(StorageError::Invalid { .. })));
    assert_eq!(engine.select(SHARD, &everything(&other), 10).expect("selected").len(), 0);
    assert_eq!(engine.stats().head_samples, 1);
}

#[test]
fn ranges_and_limits_of_select() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let engine = open(dir.path());
    let (demo, a, b) = (tenant("demo"), labels(&[("n", "a")]), labels(&[("n", "b")]));
    let series: [(_, &[_]); 2] = [(&a, &[(1, 1.0), (5, 5.0)]), (&b, &[(9, 9.0)])];
    append(&engine, vec![batch(&demo, SHARD, Sending::WithLabels, &series)]).expect("appended");
    for _ in 0..2 {
        let found = engine.select(SHARD, &within(&demo, 2, 5), 10).expect("selected");
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].timestamps, [5]);
        assert_eq!(found[0].labels, a);
        assert!(engine.select(SHARD, &within(&demo, 6, 8), 10).expect("selected").is_empty());
        assert!(engine.select(SHARD, &within(&demo, 9, 1), 10).expect("selected").is_empty());
        assert!(engine.select(ShardId(1), &everything(&demo), 10).expect("selected").is_empty());
        let error = engine.select(SHARD, &everything(&demo), 1).expect_err("two series");
        assert!(matches!(error, StorageError::TooManySeries { matched: 2, max: 1 }), "{error}");
        engine.flush().expect("flushed");
    }
}

#[test]
fn names_and_values_keep_to_tenant_matchers_and_time() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let engine = open(dir.path());
    let (demo, other) = (tenant("demo"), tenant("other"));
    let (up, down) =
        (labels(&[("__name__", "up"), ("job", "x")]), labels(&[("__name__", "down"), ("host", "h")]));
    let old: &[(i64, f64)] = &[(0, 1.0)];
    let new: &[(i64, f64)] = &[(100_000_000, 1.0)];
    let mine = batch(&demo, SHARD, Sending::WithLabels, &[(&up, old), (&down, new)]);
    let theirs = batch(&other, SHARD, Sending::WithLabels, &[(&labels(&[("secret", "s")]), old)]);
    append(&engine, vec![mine, theirs]).expect("appended");
    for _ in 0..2 {
        let names = |selection| engine.label_names(SHARD, &selection, 10).expect("listed").items;
        assert_eq!(names(everything(&demo)), ["__name__", "host", "job"]);
        assert_eq!(names(within(&demo, 0, 10)), ["__name__", "job"]);
        let mut only_down = everything(&demo);
        only_down.matchers = vec![matcher("__name__", MatchOp::Equal, "down")];
        assert_eq!(names(only_down.clone()), ["__name__", "host"]);
        let values =
            |limit| engine.label_values(SHARD, &everything(&demo), "__name__", limit).expect("listed");
        assert_eq!(values(2), Listed { items: vec!["down".into(), "up".into()], truncated: false });
        assert_eq!((values(1).items.len(), values(1).truncated), (1, true));
        let names = engine.label_names(SHARD, &everything(&demo), 2).expect("listed");
        assert_eq!((names.items.len(), names.truncated), (2, true));
        let series = engine.series(SHARD, &everything(&demo), 1).expect("listed");
        assert_eq!((series.items.len(), series.truncated), (1, true));
        assert!(engine.label_values(SHARD, &only_down, "job", 1).expect("listed").items.is_empty());
        assert!(
            engine.label_values(SHARD, &everything(&demo), "secret", 1).expect("listed").items.is_empty()
        );
        assert_eq!(engine.series(SHARD, &only_down, 1).expect("listed").items, std::slice::from_ref(&down));
        engine.flush().expect("flushed");
    }
}

#[test]
fn a_second_process_is_told_that_the_directory_is_in_use() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let _engine = open(dir.path());
    let error = try_open(dir.path()).expect_err("open twice");
    assert!(matches!(error, StorageError::InUse { .. }), "{error:?}");
    assert!(error.to_string().contains("in use by another process"), "{error}");
}

#[test]
fn a_closed_engine_refuses_appends_and_still_reads() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let engine = open(dir.path());
    let (demo, a) = (tenant("demo"), labels(&[("n", "a")]));
    let one = batch(&demo, SHARD, Sending::WithLabels, &[(&a, &[(1, 1.0)])]);
    append(&engine, vec![Arc::clone(&one)]).expect("appended");
    engine.close().expect("closed");
    engine.close().expect("closing twice is fine");
    assert!(matches!(append(&engine, vec![one]), Err(StorageError::Closed)));
    assert!(matches!(engine.flush(), Err(StorageError::Closed)));
    assert_eq!(engine.select(SHARD, &everything(&demo), 10).expect("selected").len(), 1);
}

#[test]
fn too_much_in_memory_is_overload_until_flushed() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let options = EngineOptions { flush_head_bytes_max: 1, ..EngineOptions::new(dir.path()) };
    let engine = Engine::open(options, &mut Registry::default()).expect("opened");
    let (demo, a) = (tenant("demo"), labels(&[("n", "a")]));
    let ten: Vec<(i64, f64)> = (0..10).map(|t| (t, 1.0)).collect();
    append(&engine, vec![batch(&demo, SHARD, Sending::WithLabels, &[(&a, &ten)])]).expect("appended");
    // The flush thread was asked; wait for it as a client would.
    let next = batch(&demo, SHARD, Sending::WithLabels, &[(&a, &[(20, 1.0)])]);
    for _ in 0..2000 {
        match append(&engine, vec![Arc::clone(&next)]) {
            Ok(_) => return assert!(engine.stats().flushed_segments > 0),
            Err(StorageError::Overloaded { max: 2, .. }) => {
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            Err(error) => panic!("{error}"),
        }
    }
    panic!("the flush thread did not flush");
}

#[test]
fn a_flush_removes_the_log_and_figures_say_so() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let mut registry = Registry::default();
    let engine = Engine::open(EngineOptions::new(dir.path()), &mut registry).expect("opened");
    let (demo, a) = (tenant("demo"), labels(&[("n", "a")]));
    let many: Vec<(i64, f64)> = (0..5000).map(|t| (t, 0.5)).collect();
    append(&engine, vec![batch(&demo, SHARD, Sending::WithLabels, &[(&a, &many)])]).expect("appended");
    append(&engine, vec![batch(&demo, SHARD, Sending::FingerprintsOnly, &[(&a, &many)])]).expect("appended");
    let before = engine.stats();
    assert_eq!((before.series, before.head_samples, before.flushed_segments), (1, 5000, 0));
    engine.flush().expect("flushed");
    let after = engine.stats();
    assert_eq!((after.series, after.head_samples, after.flushed_segments), (1, 0, 1));
    assert!(after.wal_bytes < 100 && before.wal_bytes > 400, "{before:?} {after:?}");
    assert!(after.disk_bytes > 0);
    assert!(engine.measure_fsync().expect("measured") > std::time::Duration::ZERO);
    let mut text = String::new();
    encode(&mut text, &registry).expect("encoded");
    for line in [
        "saturn_storage_appended_samples_total 5000",
        "saturn_storage_duplicate_samples_total 5000",
        "saturn_storage_flushed_samples_total 5000",
        "saturn_storage_series 1",
        "saturn_storage_head_samples 0",
        "saturn_storage_wal_failed 0",
    ] {
        assert!(text.lines().any(|l| l == line), "no {line:?} in:\n{text}");
    }
}

#[test]
fn damaged_table_files_are_refused_and_never_give_wrong_values() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let live = dir.path().join("live");
    let engine = open(&live);
    let (demo, a) = (tenant("demo"), labels(&[("n", "a")]));
    let many: Vec<(i64, f64)> =
        (0..500).map(|t| (t, f64::from(u32::try_from(t).expect("small")).sqrt())).collect();
    append(&engine, vec![batch(&demo, SHARD, Sending::WithLabels, &[(&a, &many)])]).expect("appended");
    engine.flush().expect("flushed");
    drop(engine);
    let copy = dir.path().join("copy");
    copy_dir(&live, &copy);
    let tables: Vec<_> = fs::read_dir(copy.join("rocks"))
        .expect("listed")
        .map(|entry| entry.expect("listed").path())
        .filter(|path| path.extension().is_some_and(|e| e == "sst"))
        .collect();
    assert!(!tables.is_empty());
    for table in &tables {
        let mut bytes = fs::read(table).expect("read");
        bytes[100] ^= 1;
        fs::write(table, bytes).expect("written");
    }
    // Either opening or reading may find it.
    let error = match try_open(&copy) {
        Err(error) => error,
        Ok(engine) => engine.select(SHARD, &everything(&demo), 10).expect_err("damaged"),
    };
    assert!(matches!(error, StorageError::Corrupt { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn appends_of_many_tasks_are_all_there_after_a_kill() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let live = dir.path().join("live");
    let engine = open(&live);
    let demo = tenant("demo");
    let tasks: Vec<_> = (0..32_u16)
        .map(|task| {
            let (engine, demo) = (engine.clone(), demo.clone());
            tokio::spawn(async move {
                let own = labels(&[("task", &task.to_string())]);
                for t in 0..20 {
                    let samples = [(t, f64::from(task))];
                    let one = batch(&demo, ShardId(task % 4), Sending::WithLabels, &[(&own, &samples)]);
                    engine.append(vec![one]).await.expect("appended");
                    if task == 0 && t % 5 == 0 {
                        let engine = engine.clone();
                        tokio::task::spawn_blocking(move || engine.flush())
                            .await
                            .expect("no panic")
                            .expect("flushed");
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("no panic");
    }
    let copy = dir.path().join("copy");
    copy_dir(&live, &copy);
    let engine = open(&copy);
    let mut series = 0;
    for shard in (0..4).map(ShardId) {
        for columns in engine.select(shard, &everything(&demo), 100).expect("selected") {
            assert_eq!(columns.timestamps, (0..20).collect::<Vec<_>>());
            series += 1;
        }
    }
    assert_eq!(series, 32);
}

#[test]
fn a_nearly_full_disk_refuses_appends_and_still_reads() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let demo = tenant("demo");
    let one = labels(&[("a", "1")]);
    let batches = || vec![batch(&demo, ShardId(0), Sending::WithLabels, &[(&one, &[(1, 1.0)])])];
    append(&open(dir.path()), batches()).expect("there is room");
    let options = EngineOptions { reserve_bytes: u64::MAX - 1, ..EngineOptions::new(dir.path()) };
    let engine = Engine::open(options, &mut Registry::default()).expect("opened");
    let error = append(&engine, batches()).expect_err("no room");
    assert!(matches!(error, StorageError::DiskFull { .. }), "{error}");
    assert_eq!(engine.select(ShardId(0), &everything(&demo), 1).expect("selected").len(), 1);
    engine.flush().expect("a flush makes room");
    drop(engine);
    append(&open(dir.path()), batches()).expect("there is room again");
}

#[test]
fn a_log_that_lost_its_end_is_noticed() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let demo = tenant("demo");
    let one = labels(&[("a", "1")]);
    let engine = open(dir.path());
    append(&engine, vec![batch(&demo, ShardId(0), Sending::WithLabels, &[(&one, &[(1, 1.0)])])])
        .expect("appended");
    drop(engine);
    let segment = dir.path().join("wal/00000001.wal");
    let len = fs::metadata(&segment).expect("it is there").len();
    // Cut at the end of the header: without the position, this is a log that nothing was ever written to.
    fs::OpenOptions::new().write(true).open(&segment).and_then(|f| f.set_len(40)).expect("cut");
    let error = try_open(dir.path()).expect_err("acknowledged samples are lost");
    let text = error.to_string();
    assert!(matches!(error, StorageError::Corrupt { offset: 40, .. }), "{text}");
    assert!(text.contains("00000001.wal") && text.contains(&len.to_string()), "{text}");
}

#[test]
fn a_stream_goes_on_through_flushes_and_ends_at_its_limit_of_bytes() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let engine = open(dir.path());
    let demo = tenant("demo");
    let series: Vec<Labels> = (0..200).map(|i| labels(&[("__name__", "m"), ("i", &i.to_string())])).collect();
    let write = |samples: &[(i64, f64)]| {
        let all: Vec<(&Labels, &[(i64, f64)])> = series.iter().map(|labels| (labels, samples)).collect();
        append(&engine, vec![batch(&demo, SHARD, Sending::WithLabels, &all)]).expect("appended");
    };
    write(&[(1, 1.0), (2, 2.0)]);
    engine.flush().expect("flushed");
    write(&[(3, 3.0)]);
    let limits = |bytes_max| ReadLimits { series_max: 200, bytes_max };
    let all = everything(&demo);
    let mut stream = engine.select_stream(SHARD, &all, limits(u64::MAX)).expect("selected");
    let mut found: Vec<_> = stream.by_ref().take(3).map(|series| series.expect("read")).collect();
    engine.flush().expect("flushed");
    engine.maintain(TimestampMs(100 * 7_200_000)).expect("merged");
    found.extend(stream.map(|series| series.expect("read")));
    assert_eq!(found.len(), 200);
    assert!(found.iter().all(|series| series.timestamps == [1, 2, 3] && series.values == [1.0, 2.0, 3.0]));

    let mut lent = Vec::new();
    let read = engine.for_each_series(SHARD, &all, limits(u64::MAX), |series| {
        lent.push(series.clone());
        if lent.len() < 150 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    assert!(read.is_ok() && lent.len() == 150, "no more than what was wanted");
    let samples = |all: &[SeriesColumns]| {
        all.iter().map(|s| (s.labels.clone(), s.timestamps.clone(), s.values.clone())).collect::<Vec<_>>()
    };
    assert_eq!(samples(&lent), samples(&found[..150]));
    let mut lent = 0;
    let each = |_: &SeriesColumns| {
        lent += 1;
        ControlFlow::Continue(())
    };
    let error = engine.for_each_series(SHARD, &all, limits(1000), each).expect_err("too many bytes");
    assert!(matches!(error, StorageError::TooManyBytes { max: 1000 }) && (1..20).contains(&lent), "{lent}");

    let mut stream = engine.select_stream(SHARD, &all, limits(1000)).expect("selected");
    let handed_out = stream.by_ref().take_while(Result::is_ok).count();
    assert!((1..20).contains(&handed_out), "{handed_out} series in 1000 bytes");
    assert!(stream.next().is_none(), "nothing follows an error");
    let mut stream = engine.select_stream(SHARD, &all, limits(10)).expect("selected");
    let error = stream.next().expect("an answer").expect_err("too many bytes");
    assert!(
        matches!(error, StorageError::TooManyBytes { max: 10 }) && error.to_string().contains("10 bytes")
    );
    let few = ReadLimits { series_max: 199, bytes_max: u64::MAX };
    let refused = engine.select_stream(SHARD, &all, few).expect_err("too many series");
    assert!(matches!(refused, StorageError::TooManySeries { matched: 200, max: 199 }));
}

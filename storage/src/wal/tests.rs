//! Tests of the log as a whole: what is acknowledged comes back, damage is found, tails are cut.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::registry::Registry;
use saturn_model::{Fingerprint, Labels, ShardId, TenantId};

use super::record::{MARK_BYTES, Plan};
use super::{Ack, AppendRecord, HEADER_BYTES, Wal, WalOptions, replay, segment_path};
use crate::error::StorageError;
use crate::metrics::Metrics;
use crate::steps::StepHook;

fn options(dir: &Path) -> WalOptions {
    WalOptions {
        dir: dir.into(),
        position: dir.join("position"),
        segment_bytes: 1 << 20,
        group_bytes_max: 1 << 20,
        queue_bytes_max: 1 << 20,
        sync_interval: Duration::from_secs(3600),
        steps: StepHook::default(),
    }
}

fn metrics() -> Arc<Metrics> {
    Arc::new(Metrics::new(&mut Registry::default()))
}

/// Replays `dir` from a segment on (`None`: from the beginning).
fn read_from(dir: &Path, from: Option<u64>) -> Result<Vec<AppendRecord>, StorageError> {
    let mut records = Vec::new();
    replay(dir, from, &mut |record| {
        records.push(record);
        Ok(())
    })?;
    Ok(records)
}

/// The log in `dir`, and the records that it held.
fn open(options: WalOptions) -> Result<(Wal, Vec<AppendRecord>), StorageError> {
    let mut records = Vec::new();
    let replayed = replay(&options.dir, None, &mut |record| {
        records.push(record);
        Ok(())
    })?;
    Ok((Wal::start(options, replayed, metrics())?, records))
}

/// What `dir` holds, without changing it.
fn read(dir: &Path) -> Result<Vec<AppendRecord>, StorageError> {
    let copy = tempfile::tempdir().expect("temporary directory");
    for entry in fs::read_dir(dir).expect("listed") {
        let path = entry.expect("listed").path();
        fs::copy(&path, copy.path().join(path.file_name().expect("a file"))).expect("copied");
    }
    read_from(copy.path(), None)
}

/// A record whose value says which one it is.
fn record(number: u32) -> Vec<u8> {
    let tenant = TenantId::new("demo").expect("valid");
    let labels = Labels::from_pairs([("n", number.to_string().as_str())]).expect("valid");
    let plan = Plan {
        shard: ShardId(1),
        tenant: &tenant,
        first_new: number,
        new_series: vec![(Fingerprint::of(&tenant, labels.as_encoded()), &labels)],
        series: vec![(number, 0..1)],
        timestamps: &[1000],
        values: &[f64::from(number)],
        histograms: Vec::new(),
        histogram_columns: &saturn_model::BatchHistograms::default(),
        exemplars: Vec::new(),
        metadata: Vec::new(),
    };
    plan.encode().expect("small")
}

fn numbers(records: &[AppendRecord]) -> Vec<u32> {
    records.iter().map(|record| record.first_new).collect()
}

async fn append(wal: &Wal, number: u32) -> Result<(), StorageError> {
    append_and_wait(wal, number, Ack::Durable).await
}

async fn append_and_wait(wal: &Wal, number: u32, ack: Ack) -> Result<(), StorageError> {
    let room = wal.room(100).await?;
    wal.enqueue(record(number))?;
    wal.wait(ack, room).await
}

/// A closed log of one segment with `groups` groups of one record.
async fn written(dir: &Path, groups: u32) {
    let (wal, _) = open(options(dir)).expect("opened");
    for number in 0..groups {
        append(&wal, number).await.expect("appended");
    }
    wal.close().expect("closed");
}

#[tokio::test]
async fn segments_rotate_and_come_back_in_order() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let small = WalOptions { segment_bytes: 300, ..options(dir.path()) };
    let (wal, _) = open(small.clone()).expect("opened");
    for number in 0..20 {
        append(&wal, number).await.expect("appended");
    }
    let rotated = wal.rotate().expect("rotated");
    assert!(rotated > 3);
    append(&wal, 20).await.expect("appended");
    wal.close().expect("closed");
    wal.close().expect("closing twice is fine");
    assert!(matches!(append(&wal, 21).await, Err(StorageError::Closed)));
    let size: u64 =
        (1..=rotated).map(|n| fs::metadata(segment_path(dir.path(), n)).expect("there").len()).sum();
    assert_eq!(wal.bytes(), size);

    let (wal, records) = open(small).expect("opened");
    assert_eq!(numbers(&records), (0..=20).collect::<Vec<_>>());
    wal.remove_below(rotated).expect("removed");
    drop(wal);
    assert_eq!(numbers(&read_from(dir.path(), Some(rotated)).expect("read")), [20]);
    // Without the database that says where to start, the beginning is missing.
    assert!(matches!(read_from(dir.path(), None), Err(StorageError::Corrupt { .. })));
}

#[tokio::test]
async fn every_cut_of_the_last_segment_keeps_a_prefix() {
    let dir = tempfile::tempdir().expect("temporary directory");
    written(dir.path(), 4).await;
    let path = segment_path(dir.path(), 1);
    let whole = fs::read(&path).expect("read");
    let mut seen = 0;
    for len in 0..=whole.len() {
        fs::write(&path, &whole[..len]).expect("written");
        let found = numbers(&read(dir.path()).expect("a torn tail is no corruption"));
        assert!(found.len() >= seen, "cut at {len}");
        seen = found.len();
        assert_eq!(found, (0..4).take(seen).collect::<Vec<_>>(), "cut at {len}");
    }
    assert_eq!(seen, 4);
}

#[tokio::test]
async fn every_flipped_byte_is_corruption_or_a_lost_tail() {
    let dir = tempfile::tempdir().expect("temporary directory");
    written(dir.path(), 3).await;
    let path = segment_path(dir.path(), 1);
    let whole = fs::read(&path).expect("read");
    let closing_mark = whole.len() - MARK_BYTES;
    for at in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x10;
        fs::write(&path, &damaged).expect("written");
        match read(dir.path()) {
            // The closing mark proves that everything before it was durable.
            Err(StorageError::Corrupt { path, offset, .. }) => {
                assert!(at < closing_mark, "byte {at}");
                assert!(offset <= at as u64, "byte {at} found at {offset}");
                assert!(path.ends_with("00000001.wal"));
            }
            Err(error) => panic!("byte {at}: {error}"),
            Ok(records) => {
                assert!(at >= closing_mark, "byte {at}");
                assert_eq!(numbers(&records), [0, 1, 2]);
            }
        }
    }
}

#[tokio::test]
async fn without_a_closing_mark_a_damaged_last_group_is_a_torn_tail() {
    let dir = tempfile::tempdir().expect("temporary directory");
    written(dir.path(), 3).await;
    let path = segment_path(dir.path(), 1);
    let mut bytes = fs::read(&path).expect("read");
    bytes.truncate(bytes.len() - MARK_BYTES);
    let group = (bytes.len() - HEADER_BYTES) / 3;
    let last_group = bytes.len() - group;
    // A power cut may write later pages and not earlier ones: zeros in the middle of the last group.
    for at in last_group..bytes.len() {
        let mut torn = bytes.clone();
        torn[at..].iter_mut().take(40).for_each(|b| *b = 0);
        if torn == bytes {
            continue;
        }
        fs::write(&path, &torn).expect("written");
        assert_eq!(numbers(&read(dir.path()).expect("a torn tail")), [0, 1], "byte {at}");
    }
    // The group before it was durable when the last one was written.
    bytes[last_group - 1] ^= 1;
    fs::write(&path, &bytes).expect("written");
    assert!(matches!(read(dir.path()), Err(StorageError::Corrupt { .. })));
}

#[tokio::test]
async fn damage_in_an_earlier_segment_or_a_missing_one_is_corruption() {
    let dir = tempfile::tempdir().expect("temporary directory");
    written(dir.path(), 2).await;
    written(dir.path(), 0).await;
    written(dir.path(), 0).await;
    let first = segment_path(dir.path(), 1);
    let whole = fs::read(&first).expect("read");
    fs::write(&first, &whole[..whole.len() - 1]).expect("written");
    assert!(matches!(read(dir.path()), Err(StorageError::Corrupt { .. })));
    fs::write(&first, &whole).expect("written");
    assert_eq!(numbers(&read(dir.path()).expect("whole again")), [0, 1]);
    fs::remove_file(segment_path(dir.path(), 2)).expect("removed");
    let error = read(dir.path()).expect_err("a hole");
    assert!(error.to_string().contains("00000002.wal"), "{error}");
}

#[tokio::test]
async fn a_header_torn_by_a_power_cut_is_dropped() {
    let dir = tempfile::tempdir().expect("temporary directory");
    written(dir.path(), 1).await;
    for len in [0, 7, HEADER_BYTES - 1] {
        fs::write(segment_path(dir.path(), 2), vec![0; len]).expect("written");
        let (wal, records) = open(options(dir.path())).expect("opened");
        assert_eq!(numbers(&records), [0]);
        wal.close().expect("closed");
        fs::remove_file(segment_path(dir.path(), 2)).expect("removed");
    }
}

#[tokio::test]
async fn after_an_fsync_error_the_log_goes_on_in_a_new_segment() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (wal, _) = open(options(dir.path())).expect("opened");
    append(&wal, 0).await.expect("appended");
    let durable = fs::metadata(segment_path(dir.path(), 1)).expect("there").len();
    wal.fail_next_syncs(1);
    append(&wal, 1).await.expect("appended in a new segment");
    append(&wal, 2).await.expect("appended");
    wal.close().expect("closed");
    assert_eq!(numbers(&read(dir.path()).expect("read")), [0, 1, 2], "each once");

    // What the kernel made of the failed write does not count.
    let first = segment_path(dir.path(), 1);
    let whole = fs::read(&first).expect("read");
    let durable = usize::try_from(durable).expect("small");
    assert!(whole.len() > durable, "the write itself went through");
    for end in [durable, durable + 1, whole.len() - 1] {
        fs::write(&first, &whole[..end]).expect("written");
        assert_eq!(numbers(&read(dir.path()).expect("void")), [0, 1, 2], "{end} bytes");
    }
    fs::write(&first, &whole[..durable - 1]).expect("written");
    let error = read(dir.path()).expect_err("acknowledged bytes are gone");
    assert!(
        matches!(&error, StorageError::Corrupt { offset, .. } if *offset == durable as u64 - 1),
        "{error}"
    );
}

#[tokio::test]
async fn nothing_is_acknowledged_after_a_second_error() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let mut records = Vec::new();
    let metrics = metrics();
    let replayed = replay(dir.path(), None, &mut |record| {
        records.push(record);
        Ok(())
    });
    let wal =
        Wal::start(options(dir.path()), replayed.expect("empty"), Arc::clone(&metrics)).expect("started");
    append(&wal, 0).await.expect("appended");
    // Of the segment, and of the one that takes its place.
    wal.fail_next_syncs(2);
    assert!(matches!(append(&wal, 1).await, Err(StorageError::Failed { .. })));
    assert_eq!(metrics.wal_failed.get(), 1);
    let size = fs::metadata(segment_path(dir.path(), 1)).expect("there").len();
    assert!(matches!(append(&wal, 2).await, Err(StorageError::Failed { .. })));
    assert!(matches!(wal.rotate(), Err(StorageError::Failed { .. })));
    assert!(matches!(wal.close(), Err(StorageError::Failed { .. })));
    assert_eq!(fs::metadata(segment_path(dir.path(), 1)).expect("there").len(), size, "never written again");
    assert_eq!(numbers(&read(dir.path()).expect("read"))[0], 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_appenders_share_groups_within_the_queue_bound() {
    let dir = tempfile::tempdir().expect("temporary directory");
    // Room for two appenders only: the others wait their turn.
    let (wal, _) = open(WalOptions { queue_bytes_max: 200, ..options(dir.path()) }).expect("opened");
    let wal = Arc::new(wal);
    let tasks: Vec<_> = (0..200)
        .map(|number| {
            let wal = Arc::clone(&wal);
            tokio::spawn(async move { append(&wal, number).await })
        })
        .collect();
    for task in tasks {
        task.await.expect("no panic").expect("appended");
    }
    drop(wal);
    let mut found = numbers(&read(dir.path()).expect("read"));
    found.sort_unstable();
    assert_eq!(found, (0..200).collect::<Vec<_>>());
}

#[tokio::test]
async fn without_a_sync_a_record_is_written_but_not_called_durable() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (wal, _) = open(options(dir.path())).expect("opened");
    let file_len = || fs::metadata(segment_path(dir.path(), 1)).expect("there").len();
    for number in 0..3 {
        append_and_wait(&wal, number, Ack::Written).await.expect("written");
    }
    assert_eq!(wal.bytes(), HEADER_BYTES as u64, "nothing is synced");
    assert!(file_len() > HEADER_BYTES as u64);
    assert_eq!(numbers(&read(dir.path()).expect("what a killed process leaves")), [0, 1, 2]);
    // A power cut may take any part of it, and that is no damage.
    let path = segment_path(dir.path(), 1);
    let copy = tempfile::tempdir().expect("temporary directory");
    let whole = fs::read(&path).expect("read");
    for len in HEADER_BYTES..whole.len() {
        fs::write(segment_path(copy.path(), 1), &whole[..len]).expect("written");
        let kept = numbers(&read(copy.path()).expect("a torn tail"));
        assert!((0..3).collect::<Vec<_>>().starts_with(&kept), "{kept:?}");
    }
    // Who waits for the sync gets all of it.
    append(&wal, 3).await.expect("appended");
    assert_eq!(wal.bytes(), file_len());
    append_and_wait(&wal, 4, Ack::Written).await.expect("written");
    wal.close().expect("closed");
    assert_eq!(wal.bytes(), file_len());
    assert_eq!(numbers(&read(dir.path()).expect("read")), [0, 1, 2, 3, 4]);
}

#[tokio::test]
async fn what_is_only_written_is_synced_at_the_interval_when_a_group_is_full_and_before_a_rotation() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let soon = WalOptions { sync_interval: Duration::from_millis(5), ..options(dir.path()) };
    let (wal, _) = open(soon).expect("opened");
    append_and_wait(&wal, 0, Ack::Written).await.expect("written");
    while wal.bytes() == HEADER_BYTES as u64 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    wal.close().expect("closed");

    let dir = tempfile::tempdir().expect("temporary directory");
    let small = WalOptions { group_bytes_max: 200, ..options(dir.path()) };
    let (wal, _) = open(small).expect("opened");
    let mut number = 0;
    while wal.bytes() == HEADER_BYTES as u64 {
        append_and_wait(&wal, number, Ack::Written).await.expect("written");
        number += 1;
    }
    append_and_wait(&wal, number, Ack::Written).await.expect("written");
    let next = wal.rotate().expect("rotated");
    let header = fs::read(segment_path(dir.path(), next)).expect("there");
    let end = super::Header::decode(&header, next).expect("valid").previous_end;
    assert_eq!(end, fs::metadata(segment_path(dir.path(), 1)).expect("there").len());
    drop(wal);
    assert_eq!(numbers(&read(dir.path()).expect("read")), (0..=number).collect::<Vec<_>>());
}

#[tokio::test]
async fn an_fsync_error_takes_nothing_that_was_only_written() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (wal, _) = open(options(dir.path())).expect("opened");
    append(&wal, 0).await.expect("appended");
    append_and_wait(&wal, 1, Ack::Written).await.expect("written");
    append_and_wait(&wal, 2, Ack::Written).await.expect("written");
    wal.fail_next_syncs(1);
    append(&wal, 3).await.expect("appended in a new segment");
    wal.close().expect("closed");
    assert_eq!(numbers(&read(dir.path()).expect("read")), [0, 1, 2, 3], "each once");
}

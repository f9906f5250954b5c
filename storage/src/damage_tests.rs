//! Damage at rest, in every kind of file of a data directory: a flipped bit, a cut, a zeroed block, a lost file.
//!
//! Whatever it is, the engine gives exactly the acknowledged samples, or says what is damaged: it refuses to start and
//! names the file or folder, or a read is an error. Never a wrong value, never a sample missing without an error,
//! never a panic; neither at once, nor after flushes and merges, nor after another start. And where the offline
//! check finds nothing, nothing is wrong.
//!
//! A failure names its seed; `SATURN_SEED=<seed>` runs that one alone, `SATURN_RUNS=<n>` runs more.

use std::collections::BTreeMap;
use std::fs;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::registry::Registry;
use saturn_model::{
    Buckets, Fingerprint, Histogram, Labels, MatchOp, Matcher, Sample, Selection, ShardBatch, ShardId,
    TenantId, TimestampMs,
};
use tempfile::TempDir;

use crate::copy::copy_dir;
use crate::keys::WINDOW_MS;
use crate::{Engine, EngineOptions, Offline, StorageError};

const RUNS: u64 = 420;
const SHARDS: u16 = 3;
const SERIES: u32 = 60;
const BLOCK: usize = 4096;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % bound.max(1) as u64).expect("small")
    }
}

/// Kinds of files, by what their paths look like.
const KINDS: [&str; 12] = [
    "log segment",
    "position",
    "table with samples",
    "table with rows",
    "rocksdb log",
    "manifest",
    "CURRENT",
    "OPTIONS",
    "IDENTITY",
    "LOCK",
    "durable",
    "LOG",
];

fn kind_of(path: &Path, tables_with_samples: &[String]) -> &'static str {
    let name = path.file_name().and_then(|name| name.to_str()).expect("plain names");
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    let kinds = ["position", "CURRENT", "IDENTITY", "LOCK", "durable"];
    match extension {
        "wal" => "log segment",
        "sst" if tables_with_samples.iter().any(|table| table == name) => "table with samples",
        "sst" => "table with rows",
        "log" => "rocksdb log",
        _ if name.starts_with("MANIFEST") => "manifest",
        _ if name.starts_with("OPTIONS") => "OPTIONS",
        _ if name.starts_with("LOG") => "LOG",
        _ => kinds
            .into_iter()
            .find(|kind| *kind == name)
            .unwrap_or_else(|| panic!("a new kind of file: {name}")),
    }
}

fn options(dir: &Path) -> EngineOptions {
    EngineOptions {
        wal_segment_bytes: 4096,
        maintenance_interval: Duration::from_secs(86_400),
        scrub_interval: None,
        reserve_bytes: 0,
        // Whoever has no sample leaves memory with the next flush.
        series_idle: Duration::ZERO,
        ..EngineOptions::new(dir)
    }
}

fn open(dir: &Path) -> Result<Engine, StorageError> {
    Engine::open(options(dir), &mut Registry::default())
}

/// A folder in memory, where syncing costs nothing, if there is one.
fn folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    let folder = if memory.is_dir() { TempDir::new_in(memory) } else { TempDir::new() };
    folder.expect("temporary directory")
}

fn tenant(series: u32) -> TenantId {
    TenantId::new(if series.is_multiple_of(2) { "alpha" } else { "beta" }).expect("valid")
}

fn selection(tenant: TenantId, matchers: Vec<Matcher>) -> Selection {
    Selection { tenant, matchers, start: TimestampMs(i64::MIN), end: TimestampMs(i64::MAX) }
}

/// `count` samples for each of the series, from window `window` on, a quarter of a window apart.
fn append(engine: &Engine, random: &mut Random, series: std::ops::Range<u32>, window: i64, count: i64) {
    let mut batches: BTreeMap<(TenantId, ShardId), ShardBatch> = BTreeMap::new();
    for series in series {
        let tenant = tenant(series);
        let labels = [("__name__", "m"), ("n", &format!("{series:03}")), ("mod", &format!("{}", series % 7))];
        let labels = Labels::from_pairs(labels).expect("valid");
        let fingerprint = Fingerprint::of(&tenant, labels.as_encoded());
        let shard = fingerprint.shard(SHARDS);
        let new = || ShardBatch::new(tenant.clone(), shard);
        let batch = batches.entry((tenant.clone(), shard)).or_insert_with(new);
        let index = u32::try_from(batch.series_count()).expect("few");
        batch.push_series(fingerprint);
        batch.labels.push((index, labels));
        for step in 0..count {
            let timestamp = TimestampMs(window * WINDOW_MS + step * (WINDOW_MS / 4));
            let value = f64::from_bits(random.below(usize::MAX) as u64);
            if series.is_multiple_of(5) {
                let positive = Buckets::from_indexed([(1, 2.0), (3, 4.0)]);
                let histogram = Histogram { sum: value, positive, ..Histogram::default() };
                batch.push_histogram(timestamp, Arc::new(histogram));
            } else {
                batch.push_sample(Sample { timestamp, value });
            }
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(engine.append(batches.into_values().map(Arc::new).collect())).expect("appended");
}

/// Labels, floats by time, histograms by time; all as bits.
type Read = Vec<(String, Vec<(i64, u64)>, Vec<(i64, Vec<u8>)>)>;

/// Everything of one tenant in one shard.
fn read(engine: &Engine, tenant: TenantId, shard: u16) -> Result<Read, StorageError> {
    let series = engine.select(ShardId(shard), &selection(tenant, Vec::new()), 1000)?;
    let mut read: Read = Vec::new();
    for columns in series {
        let floats = columns.timestamps.iter().zip(&columns.values).map(|(t, v)| (*t, v.to_bits()));
        let histograms = columns.histograms.timestamps.iter().zip(&columns.histograms.values);
        let histograms = histograms.map(|(t, histogram)| {
            let mut bytes = Vec::new();
            histogram.append_bytes(&mut bytes);
            (*t, bytes)
        });
        read.push((columns.labels.to_string(), floats.collect(), histograms.collect()));
    }
    read.sort();
    Ok(read)
}

/// A closed data directory with something of everything, and what it holds.
struct Base {
    folder: TempDir,
    dir: PathBuf,
    files: Vec<(&'static str, PathBuf)>,
    want: Vec<(TenantId, u16, Read)>,
}

impl Base {
    fn build() -> Self {
        let folder = folder();
        let dir = folder.path().join("base");
        let random = &mut Random(7);
        let engine = open(&dir).expect("opened");
        append(&engine, random, 0..SERIES, 0, 10);
        engine.flush().expect("flushed");
        append(&engine, random, 0..SERIES / 2, 1, 8);
        engine.flush().expect("flushed");
        engine.maintain(TimestampMs(2 * WINDOW_MS)).expect("merged");
        drop(engine);
        // What the first life wrote is in tables now, what the second writes in RocksDB's own log.
        let engine = open(&dir).expect("opened");
        append(&engine, random, SERIES / 3..SERIES, 3, 12);
        engine.flush().expect("flushed");
        append(&engine, random, 0..SERIES, 5, 6);
        engine.flush().expect("flushed");
        let some = Matcher::new("mod", MatchOp::Regex, "[12]").expect("valid");
        for series in 0..2 {
            engine.delete_series(&selection(tenant(series), vec![some.clone()])).expect("deleted");
        }
        append(&engine, random, 0..SERIES, 5, 6);
        engine.flush().expect("flushed");
        engine.maintain(TimestampMs(3 * WINDOW_MS)).expect("merged");
        let last = Matcher::new("n", MatchOp::Equal, "004").expect("valid");
        engine.delete_series(&selection(tenant(4), vec![last])).expect("deleted");
        for step in 0..6 {
            append(&engine, random, 10..SERIES + 5, 6 + step, 3);
        }
        let mut want = Vec::new();
        for series in 0..2 {
            for shard in 0..SHARDS {
                let read = read(&engine, tenant(series), shard).expect("read");
                assert!(!read.is_empty());
                want.push((tenant(series), shard, read));
            }
        }
        let tables = engine.store().rocks.data_files().expect("listed");
        let tables: Vec<String> = tables.into_iter().map(|table| table.name).collect();
        engine.close().expect("closed");
        drop(engine);
        let files = files(&dir).into_iter().map(|path| (kind_of(&path, &tables), path)).collect();
        let base = Self { folder, dir, files, want };
        for kind in KINDS {
            assert!(base.files.iter().any(|(other, _)| *other == kind), "no {kind} in {:?}", base.files);
        }
        base
    }
}

/// All files below `dir`, by path.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).expect("listed").map(|entry| entry.expect("an entry")) {
        let path = entry.path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

/// Damages the file. Says how.
fn damage(path: &Path, random: &mut Random) -> String {
    let mut bytes = fs::read(path).expect("read");
    let at = random.below(bytes.len());
    let how = match random.below(if bytes.is_empty() { 1 } else { 10 }) {
        0 => {
            fs::remove_file(path).expect("removed");
            return "removed".to_owned();
        }
        1..5 => {
            bytes[at] ^= 1 << random.below(8);
            format!("bit flipped at {at}")
        }
        5..8 => {
            bytes.truncate(at);
            format!("cut at {at}")
        }
        _ => {
            let from = at / BLOCK * BLOCK;
            let to = bytes.len().min(from + BLOCK);
            bytes[from..to].fill(0);
            format!("zeros from {from} to {to}")
        }
    };
    fs::write(path, bytes).expect("written");
    how
}

/// How a damaged directory behaved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    Exact,
    Refused,
    Unreadable,
}

/// Reads everything: what can be read is right.
fn compare(base: &Base, engine: &Engine) -> Verdict {
    let mut verdict = Verdict::Exact;
    for (tenant, shard, want) in &base.want {
        match read(engine, tenant.clone(), *shard) {
            Ok(read) => assert!(read == *want, "tenant {tenant}, shard {shard}: wrong or missing samples"),
            Err(StorageError::Corrupt { .. }) => verdict = Verdict::Unreadable,
            Err(error) => panic!("a read says {error:?}"),
        }
    }
    verdict
}

fn judge(base: &Base, dir: &Path) -> Verdict {
    let verified = Offline::verify(dir);
    let verdict = match open(dir) {
        Err(error @ (StorageError::Corrupt { .. } | StorageError::Unavailable { .. })) => {
            let mut text = error.to_string();
            text.extend(std::error::Error::source(&error).map(|source| format!(": {source}")));
            assert!(text.contains(&*dir.to_string_lossy()), "{text} names no file");
            Verdict::Refused
        }
        Err(error) => panic!("opening says {error:?}"),
        Ok(engine) => {
            let verdict = compare(base, &engine);
            // What is damaged must not stop the flush of what is not, nor look whole after it.
            engine.flush().expect("flushed");
            engine.maintain(TimestampMs(100 * WINDOW_MS)).expect("merged");
            let after = compare(base, &engine);
            assert!(verdict != Verdict::Exact || after == Verdict::Exact, "merged: {after:?}");
            engine.close().expect("closed");
            drop(engine);
            match open(dir) {
                Ok(engine) => {
                    assert_eq!(compare(base, &engine), after, "opened again");
                    verdict
                }
                // Rows of series that were not needed before are needed now.
                Err(StorageError::Corrupt { .. }) => Verdict::Refused,
                Err(error) => panic!("opening again says {error:?}"),
            }
        }
    };
    let is_clean = verified.as_ref().is_ok_and(super::check::CheckReport::is_clean);
    assert!(!is_clean || verdict == Verdict::Exact, "{verdict:?}, but the offline check finds nothing");
    verdict
}

fn run(base: &Base, seed: u64) -> (&'static str, Verdict) {
    let mut random = Random(seed.wrapping_mul(0x1234_5678_9abc_def1));
    let kind = KINDS[usize::try_from(seed).expect("small") % KINDS.len()];
    let files: Vec<&PathBuf> =
        base.files.iter().filter(|(other, _)| *other == kind).map(|(_, p)| p).collect();
    let file = files[random.below(files.len())].strip_prefix(&base.dir).expect("inside");
    let dir = base.folder.path().join(seed.to_string());
    copy_dir(&base.dir, &dir);
    let how = damage(&dir.join(file), &mut random);
    let judged = std::panic::catch_unwind(AssertUnwindSafe(|| judge(base, &dir)));
    let verdict = judged.unwrap_or_else(|_| panic!("{}: {how}; SATURN_SEED={seed}", file.display()));
    fs::remove_dir_all(&dir).expect("removed");
    (kind, verdict)
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

fn run_seeds(seeds: impl Iterator<Item = u64>) {
    let base = Base::build();
    let mut tally: BTreeMap<(&str, Verdict), u32> = BTreeMap::new();
    for seed in seeds {
        *tally.entry(run(&base, seed)).or_default() += 1;
    }
    tracing::info!(?tally, "damage");
    println!("{tally:#?}");
}

#[test]
fn damage_is_never_a_wrong_answer_even_seeds() {
    match setting("SATURN_SEED") {
        Some(seed) => run_seeds(seed..=seed),
        None => run_seeds((0..setting("SATURN_RUNS").unwrap_or(RUNS)).filter(|seed| seed / 12 % 2 == 0)),
    }
}

#[test]
fn damage_is_never_a_wrong_answer_odd_seeds() {
    if setting("SATURN_SEED").is_none() {
        run_seeds((0..setting("SATURN_RUNS").unwrap_or(RUNS)).filter(|seed| seed / 12 % 2 == 1));
    }
}

#[test]
fn damage_in_a_neighbour_stops_no_flush() {
    let folder = folder();
    let dir = folder.path().join("data");
    let random = &mut Random(3);
    let engine = open(&dir).expect("opened");
    append(&engine, random, 0..SERIES, 5, 4);
    engine.flush().expect("flushed");
    let tables = engine.store().rocks.data_files().expect("listed");
    assert_eq!(tables.len(), 1);
    drop(engine);
    let table = dir.join("rocks").join(&tables[0].name);
    let mut bytes = fs::read(&table).expect("read");
    bytes[100] ^= 1;
    fs::write(&table, &bytes).expect("written");
    let engine = open(&dir).expect("opened");
    let before = |engine: &Engine, window: i64| {
        let end = TimestampMs(window * WINDOW_MS - 1);
        let selection = Selection { end, ..selection(tenant(0), Vec::new()) };
        let shards =
            (0..SHARDS).map(|shard| engine.select(ShardId(shard), &selection, 1000).expect("read").len());
        shards.sum::<usize>()
    };
    // RocksDB would look into the block behind to see whether the new table overlaps it.
    append(&engine, random, 0..SERIES, 4, 4);
    engine.flush().expect("flushed");
    assert_eq!(before(&engine, 5), SERIES as usize / 2);
    // And with nothing left of the file.
    fs::write(&table, vec![0; bytes.len()]).expect("written");
    append(&engine, random, 0..SERIES, 3, 4);
    engine.flush().expect("flushed");
    engine.maintain(TimestampMs(100 * WINDOW_MS)).expect("merged");
    assert_eq!(before(&engine, 5), SERIES as usize / 2);
}

#[test]
fn a_database_that_lost_its_end_or_all_is_refused_before_anything_is_removed() {
    let base = Base::build();
    let dir = base.folder.path().join("copy");
    let copy = || {
        copy_dir(&base.dir, &dir);
        let rocks = dir.join("rocks");
        let files: Vec<PathBuf> = files(&rocks);
        let of = |extension: &str| {
            let found = files.iter().find(|path| path.extension().is_some_and(|found| found == extension));
            found.cloned()
        };
        (rocks.clone(), of("log").expect("a log of RocksDB"), files.len())
    };
    // RocksDB itself takes this for the torn tail of a power cut.
    let (_, log, _) = copy();
    let whole = fs::read(&log).expect("read");
    for kept in [0, 1, whole.len() / 2, whole.len() - 1] {
        fs::write(&log, &whole[..kept]).expect("written");
        let error = open(&dir).expect_err("rows are lost").to_string();
        assert!(error.contains("were synced"), "{kept} bytes: {error}");
        fs::remove_dir_all(&dir).expect("removed");
        copy();
    }
    // It would begin anew, and remove all tables.
    let (rocks, ..) = copy();
    fs::remove_file(rocks.join("CURRENT")).expect("removed");
    let files_before = files(&rocks);
    let error = open(&dir).expect_err("the database is gone").to_string();
    assert!(error.contains("CURRENT"), "{error}");
    assert_eq!(files(&rocks), files_before);
}

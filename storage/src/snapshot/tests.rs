//! A shard given out and taken: equal digests on both sides, whatever was there, wherever it was interrupted.

use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use proptest::prelude::*;
use saturn_model::{
    Buckets, Fingerprint, Histogram, MatchOp, Matcher, STALE_NAN_BITS, Sample, Selection, ShardBatch,
};

use super::*;
use crate::copy::copy_dir;
use crate::import::Imported;
use crate::past;
use crate::{Engine, EngineOptions, Retention, StepHook};

const SHARD: ShardId = ShardId(1);
const WINDOWS: i64 = 6;
/// All windows are closed then.
const FAR: TimestampMs = TimestampMs(1000 * WINDOW_MS);

type Armed = Arc<Mutex<Option<&'static str>>>;

fn open_armed(dir: &Path, armed: &Armed) -> Engine {
    let armed = Arc::clone(armed);
    let options = EngineOptions {
        wal_segment_bytes: 4096,
        maintenance_interval: Duration::from_secs(86_400),
        scrub_interval: None,
        retention: Retention::of_all(None),
        reserve_bytes: 0,
        // Whoever has no sample leaves memory with the next flush.
        series_idle: Duration::ZERO,
        steps: StepHook::new(move |step| match armed.lock().take_if(|armed| *armed == step) {
            Some(_) => Err(std::io::Error::other("injected")),
            None => Ok(()),
        }),
        ..EngineOptions::new(dir)
    };
    Engine::open(options, &mut Registry::default()).expect("opened")
}

fn open(dir: &Path) -> Engine {
    open_armed(dir, &Armed::default())
}

fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let folder = if memory.is_dir() { tempfile::TempDir::new_in(memory) } else { tempfile::TempDir::new() };
    folder.expect("temporary directory")
}

/// Series, time and value; every fourth series has native histograms where values are above 2.
fn append(engine: &Engine, samples: &[(u32, i64, f64)]) {
    let mut batches =
        ["alpha", "beta"].map(|name| ShardBatch::new(TenantId::new(name).expect("valid"), SHARD));
    for (series, timestamp, value) in samples {
        let batch = &mut batches[usize::from(!series.is_multiple_of(3))];
        let name = format!("metric_{}", series % 5);
        let labels = Labels::from_pairs([("__name__", name.as_str()), ("n", &series.to_string())]);
        let labels = labels.expect("valid");
        let index = u32::try_from(batch.series_count()).expect("few");
        batch.push_series(Fingerprint::of(&batch.tenant, labels.as_encoded()));
        batch.labels.push((index, labels));
        let timestamp = TimestampMs(*timestamp);
        if series.is_multiple_of(4) && *value > 2.0 {
            let positive = Buckets::from_indexed([(-1, *value), (3, 2.0)]);
            let histogram = Histogram { sum: *value, positive, ..Histogram::default() };
            batch.push_histogram(timestamp, Arc::new(histogram));
        } else {
            batch.push_sample(Sample { timestamp, value: *value });
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(engine.append(batches.into_iter().map(Arc::new).collect())).expect("appended");
}

fn delete(engine: &Engine, tenant: &str, matcher: Option<Matcher>, range: Range<i64>) {
    let (start, end) = (TimestampMs(range.start), TimestampMs(range.end));
    let tenant = TenantId::new(tenant).expect("valid");
    let selection = Selection { tenant, matchers: matcher.into_iter().collect(), start, end };
    engine.delete_series(&selection).expect("deleted");
}

fn digests(engine: &Engine) -> Vec<[u64; 256]> {
    let digest = |window: i64| engine.digest(SHARD, TimestampMs(window * WINDOW_MS)).expect("digested");
    (0..WINDOWS).map(digest).collect()
}

/// Everything that both tenants' queries show.
fn read(engine: &Engine) -> Vec<String> {
    let mut all = Vec::new();
    for name in ["alpha", "beta"] {
        let (start, end) = (TimestampMs(i64::MIN), TimestampMs(i64::MAX));
        let tenant = TenantId::new(name).expect("valid");
        let selection = Selection { tenant, matchers: Vec::new(), start, end };
        for columns in engine.select(SHARD, &selection, 10_000).expect("selected") {
            let values: Vec<u64> = columns.values.iter().map(|value| value.to_bits()).collect();
            let (times, histograms) = (&columns.timestamps, &columns.histograms);
            all.push(format!("{name} {} {times:?} {values:?} {histograms:?}", columns.labels));
        }
    }
    all.sort();
    all
}

/// All of the shard, by chunks of `chunk_bytes`; every `interrupted`th one is followed by a new snapshot.
fn transfer(from: &Engine, to: &Engine, chunk_bytes: usize, interrupted: usize) -> Imported {
    let mut importer = to.importer(SHARD, 0).expect("an importer");
    let (mut cursor, mut sum) = (None, Imported::default());
    loop {
        let snapshot = from.snapshot(SHARD);
        let export = snapshot.export(ExportScope::Shard, cursor, chunk_bytes).expect("valid");
        let chunks: Vec<ExportChunk> =
            export.take(interrupted).map(|chunk| chunk.expect("readable")).collect();
        let Some(last) = chunks.last() else {
            return sum;
        };
        cursor = ExportCursor::from_bytes(&last.next.to_bytes());
        assert_eq!(cursor, Some(last.next));
        for chunks in chunks.chunks(2) {
            let imported = importer.ingest(chunks).expect("taken");
            sum.samples += imported.samples;
            sum.new_series += imported.new_series;
        }
    }
}

fn values() -> impl Strategy<Value = f64> {
    let special = vec![0.0, -0.0, 1.5, f64::from_bits(STALE_NAN_BITS), f64::NAN];
    prop_oneof![proptest::sample::select(special), any::<f64>(), (0_u8..9).prop_map(f64::from)]
}

fn samples() -> impl Strategy<Value = Vec<(u32, i64, f64)>> {
    let sample = (0_u32..60, 0..WINDOWS, 0_i64..120, values());
    let sample =
        sample.prop_map(|(series, window, t, value)| (series, window * WINDOW_MS + t * 60_000, value));
    proptest::collection::vec(sample, 1..200)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn what_is_given_out_and_taken_is_the_same(
        mine in proptest::collection::vec((samples(), 0_u8..8), 1..4), theirs in samples(),
        chunk_bytes in 1_usize..3000, interrupted in 1_usize..9, shared in any::<bool>(),
    ) {
        let folder = folder();
        let (a, b) = (open(&folder.path().join("a")), open(&folder.path().join("b")));
        for (samples, then) in &mine {
            append(&a, samples);
            match then {
                0..3 => a.flush().expect("flushed"),
                3 => {
                    a.flush().expect("flushed");
                    a.maintain(FAR).expect("merged");
                }
                4 => delete(&a, "beta", Matcher::new("n", MatchOp::Regex, "1.|2.").ok(), 0..2 * WINDOW_MS),
                _ => {}
            }
        }
        if shared {
            append(&b, &mine[0].0[..mine[0].0.len() / 2]);
            append(&b, &theirs);
            if interrupted > 4 {
                b.flush().expect("flushed");
            }
        }
        let before = b.stats();
        transfer(&a, &b, chunk_bytes, interrupted);
        prop_assert_eq!(b.stats().head_samples, before.head_samples);
        prop_assert!(b.stats().wal_bytes - before.wal_bytes <= 25, "at most the mark of a log that is idle");
        if shared {
            transfer(&b, &a, chunk_bytes, usize::MAX);
        }
        let (digest, all) = (digests(&a), read(&a));
        prop_assert_eq!(&digests(&b), &digest);
        prop_assert_eq!(&read(&b), &all);
        // Again: nothing changes. And series that came in between are others.
        let again = transfer(&a, &b, chunk_bytes, interrupted);
        prop_assert_eq!(again.new_series, 0);
        prop_assert_eq!(&digests(&b), &digest);
        append(&b, &[(1000, 5, 1.0), (1001, WINDOW_MS, 2.0)]);
        append(&a, &[(1001, WINDOW_MS, 2.0), (1000, 5, 1.0)]);
        let (digest, all) = (digests(&a), read(&a));
        let copy = folder.path().join("copy");
        copy_dir(&folder.path().join("b"), &copy);
        let killed = open(&copy);
        prop_assert_eq!(&digests(&killed), &digest);
        prop_assert_eq!(&read(&killed), &all);
        killed.flush().expect("flushed");
        past::verify(killed.store());
        killed.maintain(FAR).expect("merged");
        past::verify(killed.store());
        prop_assert_eq!(&read(&killed), &all);
    }

    #[test]
    fn cursors_are_their_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
        match ExportCursor::from_bytes(&bytes) {
            Some(cursor) => prop_assert_eq!(cursor.to_bytes().to_vec(), bytes),
            None => prop_assert_ne!(bytes.len(), ExportCursor::BYTES),
        }
    }
}

/// 200 series with samples in windows 0 to 2, some of them flushed.
fn fill(engine: &Engine) {
    let sample = |i: u32| (i % 200, i64::from(i) * WINDOW_MS / 1000, f64::from(i) * 0.1);
    let samples: Vec<_> = (0..3000).map(sample).collect();
    append(engine, &samples[..2000]);
    engine.flush().expect("flushed");
    append(engine, &samples[1500..]);
}

#[test]
fn a_snapshot_stays_as_it_was() {
    let folder = folder();
    let (a, b) = (open(&folder.path().join("a")), open(&folder.path().join("b")));
    fill(&a);
    let (digest, all) = (digests(&a), read(&a));
    let snapshot = a.snapshot(SHARD);
    assert!(snapshot.log_position() > LogPosition::default());
    assert_eq!(snapshot.windows(), [0, WINDOW_MS, 2 * WINDOW_MS].map(TimestampMs));
    // Everything goes: samples, segments, series and their rows.
    for name in ["alpha", "beta"] {
        delete(&a, name, None, 0..i64::MAX);
    }
    append(&a, &[(3, 5, 5.0)]);
    a.maintain(FAR).expect("merged");
    a.clean_tombstones().expect("cleaned");
    assert_eq!(read(&a).len(), 1);
    let mut importer = b.importer(SHARD, 0).expect("an importer");
    for chunk in snapshot.export(ExportScope::Shard, None, 10_000).expect("valid") {
        importer.ingest(&[chunk.expect("readable")]).expect("taken");
    }
    assert_eq!((digests(&b), read(&b)), (digest, all));
}

#[test]
fn chunks_are_bounded_and_a_window_can_be_had_alone() {
    let folder = folder();
    let (a, b) = (open(&folder.path().join("a")), open(&folder.path().join("b")));
    fill(&a);
    let snapshot = a.snapshot(SHARD);
    let window = ExportScope::Window(TimestampMs(WINDOW_MS));
    let chunks: Result<Vec<ExportChunk>, _> = snapshot.export(window, None, 1000).expect("valid").collect();
    let chunks = chunks.expect("readable");
    assert!(chunks.len() > 10);
    for chunk in &chunks {
        let bytes: usize = chunk.series.iter().map(|series| size_of(&series.columns)).sum();
        assert!(bytes < 2000 && chunk.window_start.0 == WINDOW_MS, "{bytes}");
    }
    b.importer(SHARD, 0).expect("an importer").ingest(&chunks).expect("taken");
    let (a, b) = (digests(&a), digests(&b));
    assert_eq!((a[1], b[0], b[2]), (b[1], [0; 256], [0; 256]));
    let wrong = ExportScope::Window(TimestampMs(5));
    assert!(matches!(snapshot.export(wrong, None, 10), Err(StorageError::Invalid { .. })));
}

#[test]
fn a_series_larger_than_a_chunk_is_given_out_in_parts() {
    let folder = folder();
    let (a, b) = (open(&folder.path().join("a")), open(&folder.path().join("b")));
    let samples: Vec<_> =
        (0..500).map(|t| (4, t * 1000, f64::from(i32::try_from(t).expect("small") % 5))).collect();
    append(&a, &samples);
    let imported = transfer(&a, &b, 100, 3);
    assert_eq!((imported.samples, imported.new_series), (500, 1));
    assert_eq!((digests(&b), read(&b)), (digests(&a), read(&a)));
}

#[test]
fn what_does_not_fit_is_refused() {
    let folder = folder();
    let (a, b) = (open(&folder.path().join("a")), open(&folder.path().join("b")));
    fill(&a);
    let snapshot = a.snapshot(SHARD);
    let chunk = snapshot.export(ExportScope::Shard, None, 1000).expect("valid").next();
    let good = chunk.expect("a chunk").expect("readable");
    let mut importer = b.importer(SHARD, 0).expect("an importer");
    let mut bad = vec![good.clone(); 5];
    bad[0].shard = ShardId(2);
    bad[1].window_start.0 += 1;
    bad[2].series[0].columns.timestamps.reverse();
    bad[3].series[0].columns.timestamps.iter_mut().for_each(|t| *t += 3 * WINDOW_MS);
    bad[4].series[0].columns.values.clear();
    for (at, bad) in bad.into_iter().enumerate() {
        let refused = importer.ingest(&[good.clone(), bad]);
        assert!(matches!(refused, Err(StorageError::Invalid { .. })), "{at}: {refused:?}");
    }
    assert_eq!(read(&b).len(), 0, "nothing of a refused call is stored");
    assert_eq!(importer.ingest(&[]).expect("nothing"), Imported::default());
}

#[test]
fn a_crash_at_any_step_leaves_all_or_nothing() {
    let folder = folder();
    let source = open(&folder.path().join("a"));
    fill(&source);
    let snapshot = source.snapshot(SHARD);
    let chunks: Result<Vec<_>, _> =
        snapshot.export(ExportScope::Shard, None, 1 << 20).expect("valid").collect();
    let chunks = chunks.expect("readable");
    let want = digests(&source);
    for step in crate::STEPS.iter().filter(|step| step.starts_with("import: ")) {
        let dir = folder.path().join(step.replace(' ', "-"));
        let armed = Armed::default();
        let engine = open_armed(&dir, &armed);
        append(&engine, &[(500, 7, 1.0)]);
        *armed.lock() = Some(*step);
        let died = engine.importer(SHARD, 0).expect("an importer").ingest(&chunks);
        assert!(matches!(died, Err(StorageError::Unavailable { .. })), "{step}: {died:?}");
        // Series that come now must not get the ordinals of those that were about to come.
        append(&engine, &[(501, 8, 1.0), (3, 9, 1.0)]);
        let killed = folder.path().join(format!("{}-killed", step.replace(' ', "-")));
        copy_dir(&dir, &killed);
        for (engine, is_killed) in [(engine, false), (open(&killed), true)] {
            let count = read(&engine).len();
            let all = is_killed && *step == "import: committed";
            assert_eq!(count, if all { 202 } else { 3 }, "{step}");
            assert_eq!(engine.store().rocks.tables(), if all { 3 } else { engine.store().rocks.tables() });
            if !is_killed && *step == "import: committed" {
                // It does not know that it did: that is for the next start.
                continue;
            }
            engine.importer(SHARD, 0).expect("an importer").ingest(&chunks).expect("taken");
            append(&source, &[(500, 7, 1.0), (501, 8, 1.0), (3, 9, 1.0)]);
            assert_eq!(digests(&engine), digests(&source), "{step}");
            engine.flush().expect("flushed");
            past::verify(engine.store());
            assert_eq!(digests(&engine), digests(&source), "{step}, flushed");
        }
    }
    assert_ne!(want, digests(&source), "the source has three samples more in the end");
}

//! Merges: canonical bytes, files that are read and go, tombstones that are forgotten, damage.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use prometheus_client::registry::Registry;
use proptest::prelude::*;
use saturn_model::{
    Buckets, Fingerprint, Histogram, Labels, STALE_NAN_BITS, Sample, Selection, ShardBatch, ShardId,
    TenantId, TimestampMs,
};

use super::*;
use crate::copy::copy_dir;
use crate::keys::WINDOW_MS;
use crate::{Engine, EngineOptions, Retention};

const HOUR: i64 = 3_600_000;
const FAR: i64 = 1000 * HOUR;

fn open(dir: &Path, retention: Option<Duration>) -> Engine {
    open_with(dir, Retention::of_all(retention))
}

fn open_with(dir: &Path, retention: Retention) -> Engine {
    // These tests say when maintenance runs.
    let maintenance_interval = Duration::from_secs(86_400);
    let options = EngineOptions {
        retention,
        maintenance_interval,
        reserve_bytes: 0,
        // Whoever has no sample leaves memory with the next flush.
        series_idle: Duration::ZERO,
        ..EngineOptions::new(dir)
    };
    Engine::open(options, &mut Registry::default()).expect("opened")
}

fn tenant() -> TenantId {
    TenantId::new("demo").expect("valid")
}

fn append(engine: &Engine, samples: &[(u32, i64, f64)]) {
    let mut batch = ShardBatch::new(tenant(), ShardId(1));
    for ((series, timestamp, value), index) in samples.iter().zip(0..) {
        let name = format!("metric_{}", series % 7);
        let labels = Labels::from_pairs([("__name__", name.as_str()), ("n", &series.to_string())]);
        let labels = labels.expect("valid");
        batch.push_series(Fingerprint::of(&tenant(), labels.as_encoded()));
        batch.labels.push((index, labels));
        let timestamp = TimestampMs(*timestamp);
        // Every fifth series is of native histograms where its values are above 2, and where they are markers.
        if series % 5 == 4 && value.to_bits() > 2_f64.to_bits() {
            let positive = Buckets::from_indexed([(-1, *value), (i32::from(*value > 5.0), 2.0)]);
            batch.push_histogram(
                timestamp,
                Arc::new(Histogram { sum: *value, positive, ..Histogram::default() }),
            );
        } else {
            batch.push_sample(Sample { timestamp, value: *value });
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(engine.append(vec![Arc::new(batch)])).expect("appended");
}

fn everything() -> Selection {
    let (start, end) = (TimestampMs(i64::MIN), TimestampMs(i64::MAX));
    Selection { tenant: tenant(), matchers: Vec::new(), start, end }
}

fn times(engine: &Engine) -> Vec<i64> {
    let columns = engine.select(ShardId(1), &everything(), 1000).expect("selected");
    let mut times: Vec<i64> =
        columns.into_iter().flat_map(|c| [c.timestamps, c.histograms.timestamps].concat()).collect();
    times.sort_unstable();
    times
}

fn segments(engine: &Engine) -> Arc<Vec<Arc<Segment>>> {
    engine.store().known_shard(ShardId(1)).expect("known").segments_and_tombstones().0
}

type Pages = Vec<(Vec<u8>, Vec<u8>)>;

/// All rows of `data` but for the numbers of the segments.
fn canonical(engine: &Engine) -> Vec<(Window, Pages)> {
    let pages = |segment: &Arc<Segment>| (segment.key.window, engine.store().rocks.pages(segment.key));
    segments(engine).iter().map(pages).collect()
}

fn values() -> impl Strategy<Value = f64> {
    let special = vec![0.0, -0.0, 1.5, f64::from_bits(STALE_NAN_BITS), f64::NAN];
    prop_oneof![proptest::sample::select(special), any::<f64>(), (0_u8..9).prop_map(f64::from)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn equal_samples_end_as_equal_bytes(
        samples in proptest::collection::vec((0_u32..150, 0_i64..5, 0_i64..90, values()), 1..400),
        order in any::<u64>(), cuts in 1_usize..7,
    ) {
        let samples: Vec<(u32, i64, f64)> =
            samples.iter().map(|(series, w, t, value)| (*series, w * WINDOW_MS + t * 60_000, *value)).collect();
        let dir = tempfile::tempdir().expect("temporary directory");
        let once = open(&dir.path().join("once"), None);
        append(&once, &samples);
        once.flush().expect("flushed");
        let noon = TimestampMs(12 * HOUR);
        let often = open(&dir.path().join("often"), None);
        let mut shuffled = samples.clone();
        shuffled.sort_by_key(|(series, t, _)| (u64::from(*series) ^ t.cast_unsigned()).wrapping_mul(order | 1));
        for some in shuffled.chunks(samples.len().div_ceil(cuts)) {
            append(&often, some);
            often.flush().expect("flushed");
            if order.is_multiple_of(3) {
                often.maintain(TimestampMs(0)).expect("merged");
            }
        }
        let digests = |engine: &Engine| {
            let starts = (0..5).map(|window| TimestampMs(window * WINDOW_MS));
            starts.map(|start| engine.digest(ShardId(1), start).expect("digested")).collect::<Vec<_>>()
        };
        let digests_before = digests(&once);
        // All windows are over, the half day is not.
        often.maintain(noon).expect("merged");
        prop_assert_eq!(canonical(&often), canonical(&once));
        prop_assert_eq!(digests(&often), digests(&once));
        if order.is_multiple_of(2) {
            often.maintain(TimestampMs(14 * HOUR)).expect("merged");
            prop_assert_eq!(segments(&often).len(), 1);
            prop_assert_eq!(&digests(&often), &digests_before);
        }
        for engine in [&often, &once] {
            engine.maintain(TimestampMs(FAR)).expect("merged");
        }
        prop_assert_eq!(canonical(&often).len(), 1);
        prop_assert_eq!(canonical(&often), canonical(&once));
        prop_assert_eq!(&digests(&often), &digests_before);
        prop_assert_eq!(&digests(&once), &digests_before);
    }
}

#[test]
fn an_open_window_is_merged_beyond_four_segments_and_a_closed_one_at_two() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let engine = open(dir.path(), None);
    for t in 0..5 {
        append(&engine, &[(1, t, 1.0), (1, WINDOW_MS + t, 1.0)]);
        if t > 2 {
            append(&engine, &[(1, 2 * WINDOW_MS + t, 1.0)]);
        }
        engine.flush().expect("flushed");
    }
    let before = times(&engine);
    let counts = |engine: &Engine| -> Vec<usize> {
        segments(engine).chunk_by(|a, b| a.key.window == b.key.window).map(<[_]>::len).collect()
    };
    assert_eq!(counts(&engine), [5, 5, 2]);
    engine.maintain(TimestampMs(0)).expect("merged");
    assert_eq!(counts(&engine), [1, 1, 2]);
    engine.maintain(TimestampMs(3 * WINDOW_MS + GRACE_MS - 1)).expect("merged");
    assert_eq!(counts(&engine), [1, 1, 2]);
    engine.maintain(TimestampMs(3 * WINDOW_MS + GRACE_MS)).expect("merged");
    assert_eq!(counts(&engine), [1, 1, 1]);
    assert_eq!(times(&engine), before);
    assert_eq!(engine.store().rocks.tables(), 3);
    assert_eq!(engine.stats().flushed_segments, 3);
}

#[test]
fn a_file_goes_when_its_last_reader_is_done() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let engine = open(dir.path(), None);
    for t in 0..2 {
        append(&engine, &[(1, t, 1.0)]);
        engine.flush().expect("flushed");
    }
    let reading = segments(&engine);
    engine.maintain(TimestampMs(FAR)).expect("merged");
    assert_eq!(engine.store().rocks.tables(), 3);
    assert_eq!(engine.store().rocks.pages(reading[0].key).len(), 1);
    drop(reading);
    engine.maintain(TimestampMs(FAR)).expect("nothing to merge");
    assert_eq!(engine.store().rocks.tables(), 1);
}

#[test]
fn retention_drops_whole_windows_and_series_without_samples() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let engine = open(dir.path(), Some(Duration::from_secs(4 * 3600)));
    append(&engine, &[(1, 0, 1.0), (2, 0, 1.0), (2, 5 * HOUR, 2.0)]);
    engine.flush().expect("flushed");
    engine.maintain(TimestampMs(6 * HOUR - 1)).expect("nothing expired");
    assert_eq!(times(&engine), [0, 0, 5 * HOUR]);
    engine.maintain(TimestampMs(6 * HOUR)).expect("expired");
    assert_eq!(times(&engine), [5 * HOUR]);
    assert_eq!(engine.stats().series, 2);
    engine.flush().expect("flushed");
    assert_eq!(engine.stats().series, 0);
    past::verify(engine.store());
    assert_eq!(times(&engine), [5 * HOUR]);
    assert_eq!(engine.store().rocks.tables(), 1);
    // The same series again is a new one, now and after a start.
    append(&engine, &[(1, 5 * HOUR, 3.0)]);
    drop(engine);
    let engine = open(dir.path(), None);
    assert_eq!(times(&engine), [5 * HOUR, 5 * HOUR]);
    assert_eq!(engine.stats().series, 1);
    engine.flush().expect("flushed");
    drop(engine);
    assert_eq!(times(&open(dir.path(), None)), [5 * HOUR, 5 * HOUR]);
}

#[test]
fn tenants_keep_their_own_time() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let names = ["long", "short", "ever"].map(|name| TenantId::new(name).expect("valid"));
    let hours = |n: u64| Some(Duration::from_secs(n * 3600));
    let tenants = [(names[1].clone(), hours(4)), (names[2].clone(), None)].into();
    let retention = Retention { default: hours(8), tenants };
    let engine = open_with(dir.path(), retention.clone());
    let write = |engine: &Engine, tenant: &TenantId, time: i64| {
        let mut batch = ShardBatch::new(tenant.clone(), ShardId(1));
        let labels = Labels::from_pairs([("__name__", "m")]).expect("valid");
        batch.push_series(Fingerprint::of(tenant, labels.as_encoded()));
        batch.labels.push((0, labels));
        batch.push_sample(Sample { timestamp: TimestampMs(time), value: 1.0 });
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(engine.append(vec![Arc::new(batch)])).expect("appended");
    };
    for time in [HOUR, 3 * HOUR, 5 * HOUR] {
        names.iter().for_each(|tenant| write(&engine, tenant, time));
        engine.flush().expect("flushed");
    }
    let kept = |engine: &Engine| {
        names.clone().map(|tenant| {
            let found =
                engine.select(ShardId(1), &Selection { tenant, ..everything() }, 10).expect("selected");
            found.into_iter().flat_map(|c| c.timestamps).map(|t| t / HOUR).collect::<Vec<_>>()
        })
    };
    engine.maintain(TimestampMs(8 * HOUR)).expect("expired");
    assert_eq!(kept(&engine), [vec![1, 3, 5], vec![5], vec![1, 3, 5]]);
    drop(engine);
    let engine = open_with(dir.path(), retention.clone());
    assert_eq!(kept(&engine), [vec![1, 3, 5], vec![5], vec![1, 3, 5]]);
    // The merges of that round left the hidden samples out, and the tombstones went with them.
    assert_eq!(engine.store().rocks.load_meta().expect("read").tombstones, []);
    engine.maintain(TimestampMs(12 * HOUR)).expect("expired");
    assert_eq!(kept(&engine), [vec![5], vec![], vec![1, 3, 5]]);
    engine.maintain(TimestampMs(40 * HOUR)).expect("expired");
    assert_eq!(kept(&engine), [vec![], vec![], vec![1, 3, 5]]);
    // Without the tenant that keeps everything, all windows go as files.
    drop(engine);
    let engine = open_with(dir.path(), Retention::of_all(hours(8)));
    engine.maintain(TimestampMs(40 * HOUR)).expect("expired");
    engine.flush().expect("the series leave memory");
    assert_eq!((engine.stats().series, engine.store().rocks.tables()), (0, 0));
}

#[test]
fn maintenance_has_its_own_clock() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let options = EngineOptions {
        retention: Retention::of_all(Some(Duration::from_secs(3600))),
        maintenance_interval: Duration::from_millis(10),
        ..EngineOptions::new(dir.path())
    };
    let engine = Engine::open(options, &mut Registry::default()).expect("opened");
    append(&engine, &[(1, HOUR, 1.0)]);
    engine.flush().expect("flushed");
    let gone = (0..2000).any(|_| {
        std::thread::sleep(Duration::from_millis(5));
        times(&engine).is_empty() && engine.store().metrics.maintenance_runs.get() > 0
    });
    assert!(gone, "what is decades old stays");
}

#[test]
fn a_tombstone_hides_at_once_spares_what_comes_later_and_is_forgotten() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let engine = open(dir.path(), None);
    append(&engine, &[(1, 1, 1.0), (1, 2, 1.0), (2, 2, 1.0)]);
    let (start, end) = (TimestampMs(2), TimestampMs(3));
    assert_eq!(engine.delete_series(&Selection { start, end, ..everything() }).expect("deleted"), 2);
    assert_eq!(times(&engine), [1]);
    assert_eq!(
        engine.series(ShardId(1), &Selection { start, end, ..everything() }, 9).expect("listed").items.len(),
        0
    );
    append(&engine, &[(2, 3, 1.0)]);
    assert_eq!(times(&engine), [1, 3]);
    drop(engine);
    let engine = open(dir.path(), None);
    assert_eq!(times(&engine), [1, 3]);
    engine.flush().expect("flushed");
    let tombstones = |engine: &Engine| engine.store().rocks.load_meta().expect("read").tombstones.len();
    assert_eq!(tombstones(&engine), 1);
    engine.maintain(TimestampMs(FAR)).expect("merged");
    assert_eq!(tombstones(&engine), 0);
    assert_eq!(times(&engine), [1, 3]);
    let none = Selection { start: TimestampMs(9), end: TimestampMs(9), ..everything() };
    assert_eq!(engine.delete_series(&none).expect("nothing to delete"), 0);
    let reversed = Selection { start: end, end: start, ..everything() };
    assert!(matches!(engine.delete_series(&reversed), Err(StorageError::Invalid { .. })));
    engine.delete_series(&everything()).expect("deleted");
    engine.maintain(TimestampMs(FAR)).expect("merged");
    engine.flush().expect("flushed");
    assert_eq!((engine.stats().series, engine.stats().flushed_segments), (0, 0));
    past::verify(engine.store());
    assert_eq!(engine.store().rocks.tables(), 0);
}

#[test]
fn a_series_that_left_memory_and_came_back_is_one_series() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let engine = open(dir.path(), None);
    for t in 0..4 {
        append(&engine, &[(1, t, 1.0), (1 + 7 * (u32::try_from(t).expect("small") + 1), t, 1.0)]);
        engine.flush().expect("flushed");
        assert_eq!(engine.stats().series, 2);
        engine.flush().expect("nobody is active");
        assert_eq!((engine.stats().series, engine.stats().index_bytes < 1000), (0, true));
    }
    append(&engine, &[(1, 4, 1.0)]);
    for merged in [false, true] {
        let one = Selection {
            matchers: vec![
                saturn_model::Matcher::new("n", saturn_model::MatchOp::Equal, "1").expect("valid"),
            ],
            ..everything()
        };
        let found = engine.select(ShardId(1), &one, 1).expect("one series, however many ordinals");
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].timestamps, [0, 1, 2, 3, 4]);
        assert_eq!(engine.series(ShardId(1), &everything(), 9).expect("listed").items.len(), 5);
        let error = engine.select(ShardId(1), &everything(), 4).expect_err("five series");
        assert!(matches!(error, StorageError::TooManySeries { matched: 5, max: 4 }), "{error}");
        let values = engine.label_values(ShardId(1), &everything(), "n", 9).expect("listed");
        assert_eq!((values.items.len(), values.truncated), (5, false));
        assert_eq!(engine.label_values(ShardId(1), &everything(), "n", 3).expect("listed").items.len(), 3);
        let names = engine.label_names(ShardId(1), &everything(), 9).expect("listed");
        assert_eq!(names.items, ["__name__", "n"]);
        if !merged {
            engine.maintain(TimestampMs(FAR)).expect("merged");
            assert_eq!(segments(&engine).len(), 1);
        }
    }
    let counted = engine.cardinality(&tenant(), &[ShardId(1), ShardId(2)], 1);
    assert_eq!((counted.series, counted.label_pairs.count()), (1, 2));
    assert_eq!(counted.series_by_metric, [("metric_1".to_owned(), 1)]);
    engine.delete_series(&everything()).expect("deleted");
    assert!(times(&engine).is_empty());
    engine.maintain(TimestampMs(FAR)).expect("merged");
    engine.flush().expect("flushed");
    past::verify(engine.store());
}

#[test]
fn a_damaged_window_is_named_and_does_not_stop_the_others() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (live, damaged) = (dir.path().join("live"), dir.path().join("damaged"));
    let engine = open(&live, None);
    for t in 0..2 {
        append(&engine, &[(1, t, 1.0), (1, WINDOW_MS + t, 1.0), (1, 2 * WINDOW_MS + t, f64::from(7))]);
        engine.flush().expect("flushed");
    }
    // RocksDB looks into the file behind a file that it ingests, so damage may keep its predecessor from being
    // merged too; the first file has none.
    let victim = segments(&engine)[0].key;
    let page = engine.store().rocks.pages(victim).remove(0);
    drop(engine);
    copy_dir(&live, &damaged);
    // The file with this page: flip a bit of the page's key, which RocksDB's checksum covers.
    let prefix = victim.data_prefix();
    let mut flipped = 0;
    for entry in fs::read_dir(damaged.join("rocks")).expect("listed").flatten() {
        let path = entry.path();
        let mut bytes = fs::read(&path).expect("read");
        let is_table = path.extension().is_some_and(|e| e == "sst");
        if let Some(at) = bytes.windows(14).position(|w| w == prefix).filter(|_| is_table) {
            bytes[at + 14 + page.0.len() / 2] ^= 1;
            fs::write(&path, &bytes).expect("written");
            flipped += 1;
        }
    }
    assert_eq!(flipped, 1);
    let engine = open(&damaged, None);
    let reading = engine.select(ShardId(1), &everything(), 10).expect_err("damaged").to_string();
    assert!(reading.contains("shard 1") && reading.contains("metric_1"), "{reading}");
    engine.maintain(TimestampMs(FAR)).expect("the others are merged");
    let windows: Vec<i64> = segments(&engine).iter().map(|s| s.key.window.start()).collect();
    assert_eq!(windows, [0, 0, WINDOW_MS, 2 * WINDOW_MS]);
    let second =
        Selection { start: TimestampMs(WINDOW_MS), end: TimestampMs(2 * WINDOW_MS - 1), ..everything() };
    let found = engine.select(ShardId(1), &second, 10).expect("another range");
    assert_eq!(found[0].timestamps, [WINDOW_MS, WINDOW_MS + 1]);
    append(&engine, &[(1, 5 * WINDOW_MS, 1.0)]);
    engine.flush().expect("flushed");
}

#[test]
fn cleaning_gives_the_space_of_deleted_samples_back_at_once() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let engine = open(dir.path(), None);
    let sample = |i: i32| (u32::try_from(i % 50).expect("small"), i64::from(i) * 300, f64::from(i).sqrt());
    let samples: Vec<(u32, i64, f64)> = (0..20_000).map(sample).collect();
    append(&engine, &samples);
    append(&engine, &[(60, 1, 1.0)]);
    // A shard in the same table, of which nothing is deleted.
    let other = TenantId::new("other").expect("valid");
    let mut batch = ShardBatch::new(other.clone(), ShardId(2));
    let labels = Labels::from_pairs([("n", "1")]).expect("valid");
    batch.push_series(Fingerprint::of(&other, labels.as_encoded()));
    batch.labels.push((0, labels));
    batch.push_sample(Sample { timestamp: TimestampMs(1), value: 1.0 });
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(engine.append(vec![Arc::new(batch)])).expect("appended");
    engine.flush().expect("flushed");
    let tables = |engine: &Engine| {
        let rocks = fs::read_dir(dir.path().join("rocks")).expect("listed").flatten();
        let table = |entry: &fs::DirEntry| entry.path().extension().is_some_and(|e| e == "sst");
        let sizes = rocks.filter(table).map(|entry| entry.metadata().expect("there").len());
        (engine.store().rocks.tables(), sizes.sum::<u64>())
    };
    let before = tables(&engine);
    let name = saturn_model::Matcher::new("n", saturn_model::MatchOp::NotEqual, "60").expect("valid");
    engine.delete_series(&Selection { matchers: vec![name], ..everything() }).expect("deleted");
    assert_eq!(times(&engine), [1]);
    assert_eq!(tables(&engine).0, before.0);
    engine.clean_tombstones().expect("cleaned");
    assert_eq!(times(&engine), [1]);
    assert!(tables(&engine).1 * 10 < before.1, "{before:?} {:?}", tables(&engine));
    assert_eq!(engine.store().rocks.load_meta().expect("read").tombstones, []);
    let theirs =
        engine.select(ShardId(2), &Selection { tenant: other, ..everything() }, 9).expect("selected");
    assert_eq!(theirs[0].timestamps, [1]);
    engine.clean_tombstones().expect("there is nothing to clean");
}

/// Spans and first hours of the live segments.
fn spans(engine: &Engine) -> Vec<(Span, i64)> {
    segments(engine).iter().map(|s| (s.span, s.key.window.start() / HOUR)).collect()
}

#[test]
fn windows_become_half_days_and_days() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let engine = open(dir.path(), Some(Duration::from_secs(3 * 24 * 3600)));
    let hours: Vec<i64> = (-2..26).collect();
    for some in hours.chunks(3) {
        append(&engine, &some.iter().map(|hour| (1, hour * HOUR, 1.0)).collect::<Vec<_>>());
        engine.flush().expect("flushed");
    }
    let before = times(&engine);
    engine.maintain(TimestampMs(13 * HOUR - 1)).expect("merged");
    assert_eq!(spans(&engine)[..3], [(Span::Day, -24), (Span::Window, 0), (Span::Window, 2)]);
    engine.maintain(TimestampMs(13 * HOUR)).expect("merged");
    assert_eq!(spans(&engine)[..3], [(Span::Day, -24), (Span::HalfDay, 0), (Span::Window, 12)]);
    engine.maintain(TimestampMs(25 * HOUR)).expect("merged");
    assert_eq!(spans(&engine)[..2], [(Span::Day, -24), (Span::Day, 0)]);
    assert_eq!(times(&engine), before);
    drop(engine);
    let engine = open(dir.path(), Some(Duration::from_secs(3 * 24 * 3600)));
    assert_eq!(times(&engine), before);
    // Days go whole, and a range within one is found.
    engine.maintain(TimestampMs(96 * HOUR - 1)).expect("expired");
    assert_eq!(times(&engine), before[2..]);
    let (start, end) = (TimestampMs(5 * HOUR), TimestampMs(7 * HOUR));
    let found = engine.select(ShardId(1), &Selection { start, end, ..everything() }, 9).expect("selected");
    assert_eq!(found[0].timestamps, [5 * HOUR, 6 * HOUR, 7 * HOUR]);
    engine.maintain(TimestampMs(96 * HOUR)).expect("expired");
    assert_eq!(times(&engine), [24 * HOUR, 25 * HOUR]);
}

#[test]
fn a_little_that_comes_late_waits_and_much_is_merged_at_once() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let engine = open(dir.path(), None);
    let day: Vec<_> = (0..1440).map(|minute| (1, minute * 60_000, 1.0)).collect();
    append(&engine, &day);
    engine.flush().expect("flushed");
    engine.maintain(TimestampMs(FAR)).expect("merged");
    assert_eq!(spans(&engine), [(Span::Day, 0)]);
    for late in 1..=10 {
        append(&engine, &[(1, late, 2.0)]);
        engine.flush().expect("flushed");
        engine.maintain(TimestampMs(FAR)).expect("merged");
        // What is late becomes one segment; the day is left alone.
        assert_eq!((segments(&engine).len(), spans(&engine)[0]), (2, (Span::Day, 0)), "{late}");
    }
    assert_eq!(times(&engine).len(), 1450);
    append(&engine, &(1..=70).map(|late| (1, late * 60_000 + 1, 2.0)).collect::<Vec<_>>());
    engine.flush().expect("flushed");
    engine.maintain(TimestampMs(FAR)).expect("merged");
    assert_eq!(spans(&engine), [(Span::Day, 0)]);
    assert_eq!(times(&engine).len(), 1520);
    append(&engine, &[(1, 11, 2.0)]);
    engine.flush().expect("flushed");
    for far in 0..i64::try_from(LATE_NUMBERS).expect("small") {
        append(&engine, &[(1, FAR + far, 2.0)]);
        engine.flush().expect("flushed");
    }
    engine.maintain(TimestampMs(FAR)).expect("merged");
    assert_eq!(spans(&engine)[..1], [(Span::Day, 0)]);
    assert_ne!(spans(&engine)[1].1, 0);
}

/// An engine that calls `then` at the step, once.
fn open_that(
    dir: &Path,
    at: &'static str,
    then: impl Fn(&Engine) + Send + Sync + 'static,
) -> Arc<OnceLock<Engine>> {
    let itself: Arc<OnceLock<Engine>> = Arc::default();
    let weak = Arc::downgrade(&itself);
    let done = std::sync::atomic::AtomicBool::new(false);
    let steps = crate::StepHook::new(move |step| {
        if step == at && !done.swap(true, Ordering::Relaxed) {
            then(weak.upgrade().expect("alive").get().expect("open"));
        }
        Ok(())
    });
    let options = EngineOptions {
        steps,
        maintenance_interval: Duration::from_secs(86_400),
        reserve_bytes: 0,
        ..EngineOptions::new(dir)
    };
    let engine = Engine::open(options, &mut Registry::default()).expect("opened");
    itself.set(engine).expect("only once");
    itself
}

/// What was appended while a deletion ran is deleted or not, and a start from the log does not change that.
#[test]
fn a_deletion_hides_the_same_before_and_after_a_crash() {
    let steps =
        crate::STEPS.iter().filter(|step| step.starts_with("flush: ") || step.starts_with("delete: "));
    for (number, step) in steps.enumerate() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let held = open_that(&dir.path().join("node"), step, |engine| {
            append(engine, &[(1, 5, 1.0), (9, 6, 1.0)]);
        });
        let engine = held.get().expect("open");
        append(engine, &[(1, 1, 1.0), (2, 2, 1.0)]);
        engine.delete_series(&everything()).expect("deleted");
        let seen = times(engine);
        assert!(seen.is_empty() || seen == [5, 6], "{step}: {seen:?}");
        let after = dir.path().join("after");
        copy_dir(&dir.path().join("node"), &after);
        let again = open(&after, None);
        assert_eq!(times(&again), seen, "{step}, number {number}");
        again.flush().expect("flushed");
        assert_eq!(times(&again), seen, "{step}, flushed");
    }
}

#[test]
fn a_merge_stands_what_happens_meanwhile() {
    let at = "merge: pages written";
    let fill = |engine: &Engine| {
        for t in 0..4 {
            append(engine, &[(1, t, 1.0), (2, t, 1.0)]);
            engine.flush().expect("flushed");
        }
    };
    let dir = tempfile::tempdir().expect("temporary directory");
    let held = open_that(&dir.path().join("flush"), at, |engine| {
        append(engine, &[(1, 9, 1.0), (3, 9, 1.0)]);
        engine.flush().expect("flushes do not wait for merges");
    });
    let engine = held.get().expect("open");
    fill(engine);
    engine.maintain(TimestampMs(FAR)).expect("merged");
    assert_eq!(times(engine), [0, 0, 1, 1, 2, 2, 3, 3, 9, 9]);

    let held = open_that(&dir.path().join("delete"), at, |engine| {
        let (start, end) = (TimestampMs(1), TimestampMs(2));
        assert_eq!(engine.delete_series(&Selection { start, end, ..everything() }).expect("deleted"), 2);
        append(engine, &[(1, 2, 1.0)]);
    });
    let engine = held.get().expect("open");
    fill(engine);
    engine.maintain(TimestampMs(FAR)).expect("merged");
    assert_eq!(times(engine), [0, 0, 2, 3, 3]);
    engine.flush().expect("flushed");
    engine.maintain(TimestampMs(FAR)).expect("merged");
    assert_eq!(times(engine), [0, 0, 2, 3, 3]);
    assert_eq!(engine.store().rocks.load_meta().expect("read").tombstones, []);

    let held = open_that(&dir.path().join("retention"), at, |engine| {
        let mut number = engine.store().next_segment.lock();
        let live = segments(engine);
        let shard = engine.store().known_shard(ShardId(1)).expect("known");
        let gone = change(shard, &live, &[], live.iter().map(|s| s.key).collect(), None);
        *number += 1;
        commit(engine.store(), std::slice::from_ref(&gone)).expect("committed");
        apply(engine.store(), vec![gone]);
    });
    let engine = held.get().expect("open");
    fill(engine);
    engine.maintain(TimestampMs(FAR)).expect("nothing is left to merge");
    assert!(times(engine).is_empty());
    engine.maintain(TimestampMs(FAR)).expect("nothing is left to merge");
    assert_eq!(engine.store().rocks.tables(), 0);
}

#[test]
fn a_series_with_too_many_samples_keeps_smaller_segments() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let engine = open(dir.path(), None);
    for window in 0..3 {
        let many = i64::try_from(SERIES_SAMPLES_MAX).expect("small") * 2 / 5;
        append(&engine, &(0..many).map(|t| (1, window * WINDOW_MS + t, 1.0)).collect::<Vec<_>>());
        append(&engine, &[(2, (12 + window) * WINDOW_MS, 1.0)]);
        engine.flush().expect("flushed");
    }
    engine.maintain(TimestampMs(FAR)).expect("merged");
    let want = [(Span::Window, 0), (Span::Window, 2), (Span::Window, 4), (Span::Day, 24)];
    assert_eq!(spans(&engine), want);
}

#[test]
fn data_of_the_version_before_is_opened_and_upgraded() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let engine = open(dir.path(), None);
    append(&engine, &[(1, 1, 1.0)]);
    engine.flush().expect("flushed");
    engine.store().rocks.pretend_version(3);
    drop(engine);
    let engine = open(dir.path(), None);
    assert_eq!(times(&engine), [1]);
    assert!(!engine.store().rocks.load_meta().expect("read").is_outdated());
    engine.store().rocks.pretend_version(2);
    drop(engine);
    let options = EngineOptions::new(dir.path());
    let error = Engine::open(options, &mut Registry::default()).expect_err("too old").to_string();
    assert!(error.contains("version 2, this program reads versions 3 to 5"), "{error}");
}

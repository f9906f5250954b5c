//! Random operations against a map: whatever happened, the engine answers what the map answers.
//!
//! Operations: append and import (floats and native histograms, in and out of order, duplicates, conflicts), flush, merge up to
//! days, delete, clean, drop a shard, retention by windows or by days, reopen, a kill at rest, and a kill at any
//! named step of flush, merge, delete, drop and retention. A failure names its seed; `SATURN_SEED=<seed>` runs that one alone, `SATURN_RUNS=<n>` runs more.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use saturn_model::{
    Buckets, CounterResetHint, Fingerprint, Histogram, Labels, MatchOp, STALE_NAN_BITS, Sample, Selection,
    SeriesColumns, ShardBatch, ShardId, TenantId, TimestampMs, WINDOW_MS, float_beats_histogram, resolve,
    resolve_histograms,
};
use tempfile::TempDir;

#[path = "../tests/it/support.rs"]
#[expect(dead_code, reason = "shared with the integration tests")]
mod support;

use crate::copy::copy_dir;
use support::{Sending, append, labels, matcher, tenant};

use crate::digest;
use crate::keys::Window;
use crate::past;
use crate::{
    Engine, EngineOptions, ExportChunk, ExportCursor, ExportedSeries, ReadLimits, Retention, STEPS, StepHook,
    StorageError,
};

const SHARDS: u16 = 3;
const RUNS: u64 = 500;
const DAY_MS: i64 = 12 * WINDOW_MS;

const DELETED: &str = "delete: tombstones written";
const IMPORTED: &str = "import: committed";
const DROPPED: &str = "drop: committed";

/// The step at which the next operation dies.
type Armed = Arc<Mutex<Option<&'static str>>>;

/// Steps at which an operation may die: all but those that are final for the engine.
fn steps() -> Vec<&'static str> {
    let survivable = |step: &&&str| !step.starts_with("open: ") && !step.starts_with("wal: ");
    STEPS.iter().filter(survivable).copied().collect()
}

/// How long samples are kept: half of the runs by windows, so that merges stop there, half by days.
#[derive(Clone, Copy)]
struct Kept {
    step_ms: i64,
    ms: i64,
    /// So much shorter is the time that tenant beta's samples are kept.
    beta_less_ms: i64,
}

impl Kept {
    fn of_run(seed: u64) -> Self {
        if seed % 4 < 2 {
            Self { step_ms: WINDOW_MS, ms: DAY_MS, beta_less_ms: 2 * WINDOW_MS }
        } else {
            Self { step_ms: DAY_MS, ms: 20 * DAY_MS, beta_less_ms: DAY_MS }
        }
    }
}

fn open(dir: &Path, armed: &Armed, time: Kept) -> Engine {
    let armed = Arc::clone(armed);
    let kept = |ms: i64| Some(Duration::from_millis(ms.cast_unsigned()));
    let options = EngineOptions {
        wal_segment_bytes: 4096,
        // The model says when maintenance runs.
        maintenance_interval: Duration::from_secs(86_400),
        retention: Retention {
            default: kept(time.ms),
            tenants: [(tenant("beta"), kept(time.ms - time.beta_less_ms))].into(),
        },
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

/// A folder in memory, where syncing costs nothing, if there is one.
fn folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    let folder = if memory.is_dir() { TempDir::new_in(memory) } else { TempDir::new() };
    folder.expect("temporary directory")
}

/// SplitMix64: small, and the same for ever.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        let at = usize::try_from(self.below(from.len() as u64)).expect("an index");
        &from[at]
    }

    fn time(&mut self) -> i64 {
        let offset = i64::try_from(self.below(40)).expect("small");
        match self.below(4) {
            0 => offset * 1000,
            1 => WINDOW_MS - 20 + offset,
            2 => -offset * 500_000,
            _ => offset * WINDOW_MS / 4,
        }
    }

    /// Series with odd numbers have histograms, too.
    fn sample(&mut self, labels: &Labels) -> Value {
        let odd = labels.get("job") == Some("odd");
        if odd && self.one_in(2) { Value::Histogram(self.histogram()) } else { Value::Float(self.value()) }
    }

    fn histogram(&mut self) -> Arc<Histogram> {
        let mut histogram = Histogram { sum: self.value(), ..Histogram::default() };
        if self.one_in(5) {
            return Arc::new(histogram);
        }
        let hints = [CounterResetHint::Unknown, CounterResetHint::Reset, CounterResetHint::Gauge];
        histogram.hint = *self.pick(&hints);
        histogram.schema = *self.pick(&[0, 3, saturn_model::CUSTOM_BUCKETS_SCHEMA]);
        histogram.zero_count = self.value();
        let first = *self.pick(&[-3, 0, 5]);
        let buckets: Vec<(i32, f64)> =
            (0..*self.pick(&[0, 1, 5])).map(|i| (first + 2 * i, self.value())).collect();
        histogram.positive = Buckets::from_indexed(buckets);
        if self.one_in(3) {
            histogram.negative = Buckets::from_indexed([(1, self.value())]);
            histogram.custom_values = Arc::from([self.value()]);
        }
        histogram.count = self.value();
        Arc::new(histogram)
    }

    fn value(&mut self) -> f64 {
        let nan_with_payload = f64::from_bits(0x7ff8_0000_dead_beef);
        let values = [1.0, 2.0, -0.0, 0.0, 1.25, f64::from_bits(STALE_NAN_BITS), nan_with_payload];
        if self.one_in(3) { f64::from_bits(self.next()) } else { *self.pick(&values) }
    }
}

type Key = (TenantId, String);
type SeriesSamples = (Labels, Vec<(i64, Value)>);

/// A sample of either kind.
#[derive(Clone, Debug)]
enum Value {
    Float(f64),
    Histogram(Arc<Histogram>),
}

impl Value {
    fn resolve(&self, other: &Self) -> Self {
        match (self, other) {
            (Self::Float(a), Self::Float(b)) => Self::Float(resolve(*a, *b)),
            (Self::Histogram(a), Self::Histogram(b)) => Self::Histogram(resolve_histograms(a, b).clone()),
            (Self::Float(a), Self::Histogram(b)) | (Self::Histogram(b), Self::Float(a)) => {
                match float_beats_histogram(*a, b) {
                    true => Self::Float(*a),
                    false => Self::Histogram(b.clone()),
                }
            }
        }
    }

    /// The bits of a float, or the bytes of a histogram.
    fn bits(&self) -> (u64, Vec<u8>) {
        match self {
            Self::Float(value) => (value.to_bits(), Vec::new()),
            Self::Histogram(histogram) => {
                let mut bytes = Vec::new();
                histogram.append_bytes(&mut bytes);
                (0, bytes)
            }
        }
    }

    fn digest_bits(&self) -> u64 {
        match self {
            Self::Float(value) => value.to_bits(),
            Self::Histogram(histogram) => digest::histogram_bits(histogram),
        }
    }
}

struct World {
    random: Random,
    folder: TempDir,
    dir: PathBuf,
    copies: u32,
    armed: Armed,
    kept: Kept,
    engine: Option<Engine>,
    universe: Vec<(TenantId, Labels)>,
    /// Per series: its samples by time.
    model: BTreeMap<Key, BTreeMap<i64, Value>>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut universe = Vec::new();
        for name in ["alpha", "beta"] {
            for i in 0..8 {
                let job = if i % 2 == 0 { "even" } else { "odd" };
                universe
                    .push((tenant(name), labels(&[("__name__", "m"), ("i", &i.to_string()), ("job", job)])));
            }
            universe.push((tenant(name), labels(&[("__name__", "alone")])));
        }
        let folder = folder();
        let dir = folder.path().join("0");
        let armed = Armed::default();
        let kept = Kept::of_run(seed);
        let engine = Some(open(&dir, &armed, kept));
        let (random, model) = (Random(seed), BTreeMap::new());
        Self { random, folder, dir, copies: 0, armed, kept, engine, universe, model }
    }

    fn engine(&self) -> &Engine {
        self.engine.as_ref().expect("open between operations")
    }

    fn shard_of(tenant: &TenantId, labels: &Labels) -> ShardId {
        Fingerprint::of(tenant, labels.as_encoded()).shard(SHARDS)
    }

    fn append(&mut self) {
        let mut batches: BTreeMap<(TenantId, ShardId), Vec<SeriesSamples>> = BTreeMap::new();
        for _ in 0..=self.random.below(6) {
            let (tenant, labels) = self.random.pick(&self.universe).clone();
            let most = if self.random.one_in(10) { 80 } else { 6 };
            let count = self.random.below(most);
            let samples: Vec<(i64, Value)> =
                (0..count).map(|_| (self.random.time(), self.random.sample(&labels))).collect();
            let known = self.model.entry((tenant.clone(), labels.as_encoded().into())).or_default();
            for (timestamp, value) in &samples {
                known
                    .entry(*timestamp)
                    .and_modify(|known| *known = known.resolve(value))
                    .or_insert_with(|| value.clone());
            }
            let shard = Self::shard_of(&tenant, &labels);
            batches.entry((tenant, shard)).or_default().push((labels, samples));
        }
        let send = if self.random.one_in(3) { Sending::WithLabels } else { Sending::FingerprintsOnly };
        let batches: Vec<_> = batches
            .iter()
            .map(|((tenant, shard), series)| {
                let labels: Vec<Labels> = series.iter().map(|(l, _)| l.clone()).collect();
                (batch(tenant, *shard, send, series), labels)
            })
            .collect();
        let outcomes =
            append(self.engine(), batches.iter().map(|(b, _)| b.clone()).collect()).expect("appended");
        let resend: Vec<_> = outcomes
            .iter()
            .zip(&batches)
            .filter(|(outcome, _)| !outcome.unknown.is_empty())
            .map(|(outcome, (batch, labels))| subset(batch, &outcome.unknown, labels))
            .collect();
        let again = append(self.engine(), resend).expect("appended");
        assert!(again.iter().all(|outcome| outcome.unknown.is_empty()));
    }

    /// Samples of one series, by the door for replicas: past head and log, all or nothing.
    fn import(&mut self) {
        let (tenant, labels) = self.random.pick(&self.universe).clone();
        let shard = Self::shard_of(&tenant, &labels);
        let samples: Vec<(i64, Value)> =
            (0..=self.random.below(20)).map(|_| (self.random.time(), self.random.sample(&labels))).collect();
        let mut windows: BTreeMap<Window, SeriesColumns> = BTreeMap::new();
        for (timestamp, value) in &samples {
            let window = Window::of(*timestamp).expect("in range");
            let columns = windows.entry(window).or_default();
            match value {
                Value::Float(value) => columns.merge(&[*timestamp], &[*value]),
                Value::Histogram(histogram) => {
                    columns.merge_histograms(&[*timestamp], std::slice::from_ref(histogram))
                }
            }
        }
        let chunk = |(window, columns): (Window, SeriesColumns)| ExportChunk {
            shard,
            window_start: TimestampMs(window.start()),
            series: vec![ExportedSeries {
                tenant: tenant.clone(),
                columns: SeriesColumns { labels: labels.clone(), ..columns },
            }],
            next: ExportCursor::from_bytes(&[0; ExportCursor::BYTES]).expect("as long as it must be"),
        };
        let chunks: Vec<ExportChunk> = windows.into_iter().map(chunk).collect();
        let armed = self.arm();
        let done = self.engine().importer(shard, 0).and_then(|mut importer| importer.ingest(&chunks));
        if self.settle(done, armed) && armed != Some(IMPORTED) {
            return;
        }
        let known = self.model.entry((tenant, labels.as_encoded().into())).or_default();
        for (timestamp, value) in samples {
            known
                .entry(timestamp)
                .and_modify(|known| *known = known.resolve(&value))
                .or_insert_with(|| value.clone());
        }
    }

    fn step(&mut self) {
        match self.random.below(25) {
            0..9 => self.append(),
            9 | 10 => self.import(),
            11..14 => self.flush(),
            14..16 => self.maintain(),
            16 | 17 => self.delete(),
            18 => {
                self.engine().close().expect("closed");
                self.engine = None;
                self.engine = Some(open(&self.dir, &self.armed, self.kept));
            }
            19 => self.kill(),
            20 => self.engine().clean_tombstones().expect("cleaned"),
            21 => self.drop_shard(),
            _ => self.check(),
        }
    }

    /// Goes on with what a kill at this moment leaves.
    fn kill(&mut self) {
        self.copies += 1;
        let copy = self.folder.path().join(self.copies.to_string());
        copy_dir(&self.dir, &copy);
        self.engine = None;
        std::fs::remove_dir_all(&self.dir).expect("removed");
        self.dir = copy;
        self.engine = Some(open(&self.dir, &self.armed, self.kept));
    }

    /// Arms a random step, sometimes. Returns it.
    fn arm(&mut self) -> Option<&'static str> {
        let step = self.random.one_in(2).then(|| *self.random.pick(&steps()));
        *self.armed.lock() = step;
        step
    }

    /// The operation died, or not. Whether it did, at the step that was armed.
    fn settle<T>(&mut self, done: Result<T, StorageError>, armed: Option<&'static str>) -> bool {
        *self.armed.lock() = None;
        let Err(error) = done else {
            return false;
        };
        assert!(matches!(error, StorageError::Unavailable { .. }) && armed.is_some(), "{error:?}");
        // Whether a write that failed half-way is there, a process that lives on cannot know.
        let uncertain = [
            "flush: committed",
            "merge: committed",
            "retention: committed",
            "retention: tombstones written",
            DELETED,
            IMPORTED,
            DROPPED,
        ];
        if uncertain.contains(&armed.expect("armed")) || self.random.one_in(2) {
            self.kill();
        }
        true
    }

    fn flush(&mut self) {
        let armed = self.arm();
        let done = self.engine().flush();
        self.settle(done, armed);
    }

    /// Retention, and merges of the windows that it leaves.
    fn maintain(&mut self) {
        if self.random.one_in(2) {
            // Nothing is old enough: only windows with many segments are due; and what is over, if kept by days.
            let by_day = [-30 * WINDOW_MS, 7 * WINDOW_MS, 13 * WINDOW_MS];
            let now = if self.kept.step_ms == DAY_MS { *self.random.pick(&by_day) } else { by_day[0] };
            let armed = self.arm();
            let done = self.engine().maintain(TimestampMs(now));
            self.settle(done, armed);
            return;
        }
        // What is in memory would outlive its window.
        self.engine().flush().expect("flushed");
        let steps = if self.kept.step_ms == DAY_MS {
            *self.random.pick(&[-1, 0, 0])
        } else {
            *self.random.pick(&[-4, -3, -2, -1, 0, 1])
        };
        let cutoff = steps * self.kept.step_ms;
        let armed = self.arm();
        let now = TimestampMs(cutoff + self.kept.ms);
        let done = self.engine().maintain(now);
        for ((tenant, _), samples) in &mut self.model {
            let cutoff = if tenant.as_str() == "beta" { cutoff + self.kept.beta_less_ms } else { cutoff };
            *samples = samples.split_off(&cutoff);
        }
        if self.settle(done, armed) {
            // A round that died leaves the rest to the next.
            self.engine().maintain(now).expect("maintained");
        }
    }

    fn delete(&mut self) {
        let selection = self.selection(&["alpha", "beta", "nobody"]);
        let armed = self.arm();
        let done = self.engine().delete_series(&selection);
        let failed = self.settle(done, armed);
        if failed && armed != Some(DELETED) {
            return;
        }
        for ((tenant, encoded), samples) in &mut self.model {
            let labels = Labels::from_encoded(encoded).expect("own labels");
            if *tenant == selection.tenant && matches(&selection, &labels) {
                samples.retain(|t, _| !(selection.start.0..=selection.end.0).contains(t));
            }
        }
    }

    fn drop_shard(&mut self) {
        let shard = *self.random.pick(&[0, 1, 2].map(ShardId));
        let in_shard = |(tenant, encoded): &Key| Fingerprint::of(tenant, encoded).shard(SHARDS) == shard;
        let has_samples = self.model.iter().any(|(key, samples)| in_shard(key) && !samples.is_empty());
        assert!(!has_samples || self.engine().holds_shard(shard));
        let armed = self.arm();
        let done = self.engine().drop_shard(shard);
        assert!(done.is_err() || !self.engine().holds_shard(shard));
        if self.settle(done, armed) && armed != Some(DROPPED) {
            return;
        }
        self.model.retain(|key, _| !in_shard(key));
    }

    fn selection(&mut self, tenants: &[&str]) -> Selection {
        let a = self.random.time();
        let b = self.random.time();
        let (start, end) = if self.random.one_in(3) { (i64::MIN, i64::MAX) } else { (a.min(b), a.max(b)) };
        let matchers = match self.random.below(5) {
            0 => vec![matcher("job", MatchOp::Equal, "even")],
            1 => vec![matcher("job", MatchOp::NotEqual, "even"), matcher("i", MatchOp::Regex, "1|3|4")],
            2 => vec![matcher("i", MatchOp::NotRegex, "[0-3]")],
            3 => vec![matcher("job", MatchOp::Equal, "")],
            _ => Vec::new(),
        };
        let tenant = tenant(self.random.pick::<&str>(tenants));
        Selection { tenant, matchers, start: TimestampMs(start), end: TimestampMs(end) }
    }

    fn check(&mut self) {
        let mut selection = self.selection(&["alpha"]);
        for name in ["alpha", "beta", "nobody"] {
            selection.tenant = tenant(name);
            self.compare(&selection);
        }
        self.compare_digests(self.random.0 % 8);
    }

    /// The digests of the `n`th window from -2 on.
    fn compare_digests(&self, n: u64) {
        let start = (i64::try_from(n).expect("small") - 2) * WINDOW_MS;
        let window = Window::of(start).expect("in range");
        for shard in (0..SHARDS).map(ShardId) {
            let mut want = [0_u64; digest::BUCKETS];
            for ((tenant, encoded), samples) in &self.model {
                let fingerprint = Fingerprint::of(tenant, encoded);
                for (t, value) in
                    samples.range(start..window.end()).filter(|_| fingerprint.shard(SHARDS) == shard)
                {
                    let bucket = &mut want[digest::bucket_of(fingerprint)];
                    *bucket = bucket.wrapping_add(digest::hash(fingerprint, *t, value.digest_bits()));
                }
            }
            assert_eq!(self.engine().digest(shard, TimestampMs(start)).expect("digested"), want);
        }
    }

    /// What a shard has, by both doors.
    fn read(&self, shard: ShardId, selection: &Selection) -> Vec<SeriesColumns> {
        let handed_out = self.engine().select(shard, selection, 100).expect("selected");
        let mut lent = Vec::new();
        let limits = ReadLimits { series_max: 100, bytes_max: u64::MAX };
        let read = self.engine().for_each_series(shard, selection, limits, |series| {
            lent.push(series.clone());
            ControlFlow::Continue(())
        });
        read.expect("read");
        assert_eq!(format!("{lent:?}"), format!("{handed_out:?}"));
        handed_out
    }

    fn compare(&self, selection: &Selection) {
        let (start, end) = (selection.start.0, selection.end.0);
        let mut want: BTreeMap<String, BTreeMap<i64, (u64, Vec<u8>)>> = BTreeMap::new();
        for ((tenant, encoded), samples) in &self.model {
            let labels = Labels::from_encoded(encoded).expect("own labels");
            let in_range: BTreeMap<_, _> =
                samples.range(start..=end).map(|(t, value)| (*t, value.bits())).collect();
            if *tenant == selection.tenant && matches(selection, &labels) && !in_range.is_empty() {
                want.insert(labels.to_string(), in_range);
            }
        }
        let mut got = BTreeMap::new();
        let mut listed = BTreeSet::new();
        let mut values = BTreeSet::new();
        for shard in (0..SHARDS).map(ShardId) {
            for columns in self.read(shard, selection) {
                let floats = columns.values.iter().map(|v| Value::Float(*v).bits());
                let mut samples: BTreeMap<_, _> = columns.timestamps.iter().copied().zip(floats).collect();
                let histograms = columns.histograms.values.iter();
                let histograms = histograms.map(|histogram| Value::Histogram(histogram.clone()).bits());
                samples.extend(columns.histograms.timestamps.iter().copied().zip(histograms));
                assert_eq!(samples.len(), columns.len(), "a time twice");
                assert!(got.insert(columns.labels.to_string(), samples).is_none(), "a series twice");
            }
            let series = self.engine().series(shard, selection, 100).expect("listed").items;
            listed.extend(series.iter().map(Labels::to_string));
            values.extend(self.engine().label_values(shard, selection, "job", 100).expect("listed").items);
        }
        assert_eq!(got, want, "{selection:?}");
        assert!(listed.is_superset(&want.keys().cloned().collect()), "{selection:?}");
        for job in ["even", "odd"] {
            let needed = want.keys().any(|labels| labels.contains(job));
            assert!(!needed || values.contains(job), "{selection:?}");
        }
    }
}

fn matches(selection: &Selection, labels: &Labels) -> bool {
    selection.matchers.iter().all(|m| m.matches(labels.get(m.name()).unwrap_or("")))
}

fn batch(tenant: &TenantId, shard: ShardId, send: Sending, series: &[SeriesSamples]) -> Arc<ShardBatch> {
    let mut batch = ShardBatch::new(tenant.clone(), shard);
    for ((labels, samples), index) in series.iter().zip(0..) {
        batch.push_series(Fingerprint::of(tenant, labels.as_encoded()));
        for (timestamp, value) in samples {
            let timestamp = TimestampMs(*timestamp);
            match value {
                Value::Float(value) => batch.push_sample(Sample { timestamp, value: *value }),
                Value::Histogram(histogram) => batch.push_histogram(timestamp, histogram.clone()),
            }
        }
        if send == Sending::WithLabels {
            batch.labels.push((index, labels.clone()));
        }
    }
    Arc::new(batch)
}

fn subset(batch: &ShardBatch, unknown: &[u32], labels: &[Labels]) -> std::sync::Arc<ShardBatch> {
    batch.subset_with_labels(unknown, |index| labels[index as usize].clone()).into()
}

fn run(seed: u64) {
    let mut world = World::new(seed);
    for _ in 0..=world.random.below(40) {
        world.step();
    }
    world.check();
    world.compare(&support::everything(&tenant("alpha")));
    world.compare(&support::everything(&tenant("beta")));
    for window in 0..13 {
        world.compare_digests(window);
    }
    world.engine().flush().expect("flushed");
    past::verify(world.engine().store());
    world.compare(&support::everything(&tenant("alpha")));
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

/// A failing run names its seed in the panic's message.
fn run_seeds(seeds: impl Iterator<Item = u64>) {
    for seed in seeds {
        if std::panic::catch_unwind(|| run(seed)).is_err() {
            panic!("the model and the engine differ: SATURN_SEED={seed}");
        }
    }
}

#[test]
fn the_engine_is_a_map_even_seeds() {
    match setting("SATURN_SEED") {
        Some(seed) => run(seed),
        None => run_seeds((0..setting("SATURN_RUNS").unwrap_or(RUNS)).filter(|seed| seed % 2 == 0)),
    }
}

#[test]
fn the_engine_is_a_map_odd_seeds() {
    if setting("SATURN_SEED").is_none() {
        run_seeds((0..setting("SATURN_RUNS").unwrap_or(RUNS)).filter(|seed| seed % 2 == 1));
    }
}

//! Figures of the series index, not a test:
//! `cargo test --release -p saturn-storage --test it churn -- --ignored --nocapture`.
#![expect(clippy::print_stderr, reason = "figures are what it is for")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus_client::registry::Registry;
use saturn_model::{
    Fingerprint, Labels, MatchOp, Matcher, Sample, ShardBatch, ShardId, TenantId, TimestampMs,
};
use saturn_storage::{Engine, EngineOptions};

use crate::support::{matcher, tenant, within};

const SHARDS: u16 = 64;
const TARGETS: u32 = 2000;
const METRICS: u32 = 500;
const HOUR_MS: i64 = 3_600_000;
const START_MS: i64 = 1_700_006_400_000;

/// The series of one target: 12 labels, some 240 bytes.
fn target(target: u32, generation: &str) -> Vec<Labels> {
    let pod = format!("checkout-{generation}-7d9f{:04x}-{:05x}", target / 40, target);
    let instance = format!("10.{}.{}.{}:9100", target / 4096, target / 64 % 64, target % 64);
    let node = format!("ip-10-0-{}-{}.eu-west-1.compute.internal", target / 250, target % 250);
    let series = |metric: u32| {
        let name = format!("container_subsystem_{:03}_total", metric / 4);
        let device = format!("device{}", metric % 4);
        let namespace = format!("namespace-{}", target % 50);
        Labels::from_pairs([
            ("__name__", name.as_str()),
            ("cluster", "production-eu-west-1"),
            ("container", "checkout"),
            ("device", &device),
            ("endpoint", "http-metrics"),
            ("environment", "production"),
            ("instance", &instance),
            ("job", ["node", "kubelet", "cadvisor", "checkout"][target as usize % 4]),
            ("namespace", &namespace),
            ("node", &node),
            ("pod", &pod),
            ("service", "checkout-service"),
        ])
        .expect("valid")
    };
    (0..METRICS).map(series).collect()
}

/// One scrape of some targets, a batch per shard.
fn scrape(tenant: &TenantId, series: &[Labels], timestamp: i64, labels: bool) -> Vec<Arc<ShardBatch>> {
    let mut batches: Vec<ShardBatch> =
        (0..SHARDS).map(|shard| ShardBatch::new(tenant.clone(), ShardId(shard))).collect();
    for own in series {
        let fingerprint = Fingerprint::of(tenant, own.as_encoded());
        let batch = &mut batches[usize::from(fingerprint.shard(SHARDS).0)];
        batch.push_series(fingerprint);
        if labels {
            let index = u32::try_from(batch.series_count() - 1).expect("small");
            batch.labels.push((index, own.clone()));
        }
        batch.push_sample(Sample { timestamp: TimestampMs(timestamp), value: 1.0 });
    }
    batches.into_iter().filter(|batch| batch.series_count() > 0).map(Arc::new).collect()
}

fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a line");
    let kib: u64 = line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number");
    kib << 10
}

/// Makes a generation of series, ten targets a request. Returns the seconds inside of the engine.
fn create(engine: &Engine, demo: &TenantId, generation: &str, timestamp: i64) -> f64 {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let mut seconds = 0.0;
    for group in 0..TARGETS / 10 {
        let series: Vec<Labels> = (0..10).flat_map(|i| target(group * 10 + i, generation)).collect();
        let batches = scrape(demo, &series, timestamp, true);
        let started = Instant::now();
        let outcomes = runtime.block_on(engine.append(batches)).expect("appended");
        seconds += started.elapsed().as_secs_f64();
        assert!(outcomes.iter().all(|outcome| outcome.unknown.is_empty()));
    }
    seconds
}

fn report(engine: &Engine, what: &str) {
    let (stats, series) = (engine.stats(), f64::from(TARGETS * METRICS));
    let mib = resident_bytes() as f64 / f64::from(1 << 20);
    eprintln!(
        "{what}: {} series in memory; per million: index {:.1} B, samples {:.1} B; process {mib:.0} MiB",
        stats.series,
        stats.index_bytes as f64 / series,
        stats.head_bytes as f64 / series,
    );
}

fn select(engine: &Engine, demo: &TenantId, start: i64, what: &str, matchers: Vec<Matcher>) {
    for round in ["first", "second", "third"] {
        let mut selection = within(demo, start, start + HOUR_MS);
        selection.matchers.clone_from(&matchers);
        let started = Instant::now();
        let mut found = 0;
        for shard in (0..SHARDS).map(ShardId) {
            found += engine.series(shard, &selection, usize::MAX).expect("listed").items.len();
        }
        let elapsed = started.elapsed().as_secs_f64() * 1e3;
        eprintln!("  {what}, {round}: {found} series of {SHARDS} shards in {elapsed:.3} ms");
    }
}

fn select_all_kinds(engine: &Engine, demo: &TenantId, start: i64) {
    let name = matcher("__name__", MatchOp::Equal, "container_subsystem_007_total");
    let instance = matcher("instance", MatchOp::Equal, "10.0.5.7:9100");
    let job = matcher("job", MatchOp::Equal, "node");
    select(engine, demo, start, "name and instance", vec![name.clone(), instance.clone()]);
    select(
        engine,
        demo,
        start,
        "name and pod prefix",
        vec![name.clone(), matcher("pod", MatchOp::Regex, "checkout-(old|new)-7d9f000.*")],
    );
    select(
        engine,
        demo,
        start,
        "name and unanchored regex",
        vec![name.clone(), job, matcher("node", MatchOp::Regex, ".*-1-7[.].*")],
    );
    select(
        engine,
        demo,
        start,
        "instances",
        vec![name, matcher("instance", MatchOp::Regex, "10.0.5.7:9100|10.0.9.1:9100")],
    );
}

fn open(dir: &std::path::Path, block_cache_bytes: usize) -> Engine {
    let options = EngineOptions {
        // The next flush without a sample of a series takes it out of memory.
        series_idle: Duration::ZERO,
        block_cache_bytes,
        ..EngineOptions::new(dir)
    };
    Engine::open(options, &mut Registry::default()).expect("opened")
}

fn flush(engine: &Engine, what: &str) {
    let started = Instant::now();
    engine.flush().expect("flushed");
    eprintln!("{what}: {:.2} s", started.elapsed().as_secs_f64());
}

#[test]
#[ignore = "prints figures and takes a while"]
fn figures_of_the_index() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let engine = open(dir.path(), 128 << 20);
    let demo = tenant("demo");
    report(&engine, "empty");
    let series = f64::from(TARGETS * METRICS);
    for (generation, start) in [("old", START_MS), ("new", START_MS + HOUR_MS)] {
        let seconds = create(&engine, &demo, generation, start);
        eprintln!(
            "generation {generation}, log and fsync included: {:.2} us a series",
            seconds / series * 1e6
        );
        report(&engine, "one million series in the head");
        select_all_kinds(&engine, &demo, start);
        flush(&engine, "flush");
        report(&engine, "flushed");
        flush(&engine, "flush of the next hour, without them");
        report(&engine, "gone");
    }
    drop(engine);
    let started = Instant::now();
    let engine = open(dir.path(), 128 << 20);
    eprintln!("reopened in {:.3} s; both generations are on disk only", started.elapsed().as_secs_f64());
    report(&engine, "reopened");
    select_all_kinds(&engine, &demo, START_MS);
}

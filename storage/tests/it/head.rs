//! Figures of the head and of the start, not a test:
//! `cargo test --release -p saturn-storage --test it -- --ignored --nocapture head_figures`.
//!
//! `SATURN_SERIES` and `SATURN_SCRAPES` change the size: 1,000,000 series and 40 scrapes (ten minutes at 15 s).

use std::fmt::Debug;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus_client::registry::Registry;
use saturn_model::{Fingerprint, Labels, Sample, ShardBatch, ShardId, TenantId, TimestampMs};
use saturn_storage::{Engine, EngineOptions};
use tokio::runtime::Runtime;

use crate::support::{labels, tenant};

const SHARDS: u16 = 64;
/// Series of one request.
const REQUEST_SERIES: usize = 2000;

fn setting<T: FromStr<Err: Debug>>(name: &str, default: T) -> T {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

fn rss_bytes() -> f64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages: f64 = statm.split(' ').nth(1).expect("resident").parse().expect("a number");
    pages * 4096.0
}

/// CPU time of all threads of this process. The kernel counts in hundredths of a second.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("Linux");
    let after_name = stat.rsplit(')').next().expect("fields");
    let ticks = |field: usize| -> u64 {
        after_name.split_whitespace().nth(field).expect("there").parse().expect("a number")
    };
    Duration::from_millis((ticks(11) + ticks(12)) * 10)
}

struct Series {
    tenant: TenantId,
    known: Vec<(Labels, Fingerprint)>,
}

impl Series {
    fn new(count: usize) -> Self {
        let tenant = tenant("demo");
        let known = (0..count)
            .map(|i| {
                let (instance, name) =
                    (format!("host-{}:9100", i / 500), format!("node_metric_{}_total", i % 500));
                let labels = labels(&[
                    ("__name__", &name),
                    ("instance", &instance),
                    ("job", "node"),
                    ("zone", ["a", "b", "c"][i / 500 % 3]),
                ]);
                let fingerprint = Fingerprint::of(&tenant, labels.as_encoded());
                (labels, fingerprint)
            })
            .collect();
        Self { tenant, known }
    }

    /// The requests of one scrape: constants, counters, gauges of two decimals, and a little noise, roughly as
    /// node_exporter has them.
    fn requests(&self, round: i64, with_labels: bool) -> impl Iterator<Item = Vec<Arc<ShardBatch>>> {
        self.known.chunks(REQUEST_SERIES).zip(0_i64..).map(move |(series, request)| {
            let mut batches: Vec<ShardBatch> =
                (0..SHARDS).map(|shard| ShardBatch::new(self.tenant.clone(), ShardId(shard))).collect();
            for ((labels, fingerprint), i) in series.iter().zip(0_i64..) {
                let batch = &mut batches[usize::from(fingerprint.shard(SHARDS).0)];
                batch.push_series(*fingerprint);
                if with_labels {
                    batch
                        .labels
                        .push((u32::try_from(batch.series_count() - 1).expect("small"), labels.clone()));
                }
                let value = match i % 20 {
                    0..11 => i as f64,
                    11..15 => (round * (i % 100)) as f64,
                    15..19 => ((round * 7919 + i) % 10_000) as f64 / 100.0,
                    _ => ((round * 31 + i) as f64).sin(),
                };
                // Requests of a scrape are milliseconds apart.
                let timestamp = TimestampMs(1_700_000_000_000 + round * 15_000 + request * 7);
                batch.push_sample(Sample { timestamp, value });
            }
            batches.into_iter().filter(|batch| batch.series_count() > 0).map(Arc::new).collect()
        })
    }
}

/// Appends one scrape. Returns the wall and the CPU time of the engine alone.
fn scrape(runtime: &Runtime, engine: &Engine, series: &Series, round: i64) -> (Duration, Duration) {
    let (mut wall, mut spent) = (Duration::ZERO, Duration::ZERO);
    // Requests are built outside of the measurement, some at a time.
    let mut requests = series.requests(round, round == 0).peekable();
    while requests.peek().is_some() {
        let some: Vec<_> = requests.by_ref().take(100).collect();
        let (started, cpu_before) = (Instant::now(), cpu());
        runtime.block_on(async {
            let tasks: Vec<_> = some
                .into_iter()
                .map(|request| {
                    let engine = engine.clone();
                    tokio::spawn(async move { engine.append(request).await })
                })
                .collect();
            for task in tasks {
                task.await.expect("no panic").expect("appended");
            }
        });
        wall += started.elapsed();
        spent += cpu() - cpu_before;
    }
    (wall, spent)
}

fn open(dir: &Path) -> Engine {
    Engine::open(EngineOptions::new(dir), &mut Registry::default()).expect("opened")
}

#[test]
#[ignore = "prints figures and takes a while"]
fn head_figures() {
    let (count, scrapes): (usize, i64) = (setting("SATURN_SERIES", 1_000_000), setting("SATURN_SCRAPES", 40));
    let dir = tempfile::tempdir().expect("temporary directory");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().expect("a runtime");
    let series = Series::new(count);
    let engine = open(dir.path());
    let per = |duration: Duration, n: f64| duration.as_secs_f64() * 1e9 / n;
    let all = count as f64;
    let rss_before = rss_bytes();

    let (wall, spent) = scrape(&runtime, &engine, &series, 0);
    eprintln!("new series: {:.0} ns wall, {:.0} ns CPU each", per(wall, all), per(spent, all));
    let report_memory = |scraped: i64| {
        let stats = engine.stats();
        eprintln!(
            "{scraped} samples each: RSS grew by {:.0} B/series; head {:.0} B/series, of which all but its records {:.2} B/sample",
            (rss_bytes() - rss_before) / all,
            stats.head_bytes as f64 / all,
            (stats.head_bytes as f64 - all * 80.0) / stats.head_samples as f64,
        );
    };
    report_memory(1);
    let (mut wall, mut spent) = (Duration::ZERO, Duration::ZERO);
    for round in 1..scrapes {
        let (w, s) = scrape(&runtime, &engine, &series, round);
        wall += w;
        spent += s;
    }
    report_memory(scrapes);
    let appended = all * (scrapes - 1) as f64;
    eprintln!("append: {:.0} ns wall, {:.0} ns CPU per sample", per(wall, appended), per(spent, appended));
    eprintln!("{:?}", engine.stats());
    drop(engine);
    let (started, cpu_before) = (Instant::now(), cpu());
    let engine = open(dir.path());
    eprintln!(
        "start: {:.2} s, {:.2} s CPU",
        started.elapsed().as_secs_f64(),
        (cpu() - cpu_before).as_secs_f64()
    );
    let started = Instant::now();
    engine.flush().expect("flushed");
    eprintln!("flush: {:.2} s; {:?}", started.elapsed().as_secs_f64(), engine.stats());
}

//! How fast expressions are evaluated over columns in memory: samples that are read per second, on one core.
//! Beside it the time that Debian's Prometheus needs for the same queries over the same data, by its own
//! account (`evalTotalTime` of `stats=all`).
//!
//! `make bench-promql`. The data is 1,000 series of an hour, a sample
//! each 15 s, with steps of 30 s. A sample counts once, however many windows it is in. Prometheus reads its
//! head and decodes chunks while it evaluates; Saturn's evaluator is given columns.
#![expect(clippy::print_stdout, reason = "a command line tool talks to its terminal")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use saturn_benches::{Peer, PeerKind, machine};
use saturn_chaos_tests::Endpoint;
use saturn_chaos_tests::remote_write::{compress, encode_labels, put_series};
use saturn_model::{Buckets, CounterResetHint, Histogram, Labels, SeriesColumns, TimestampMs};
use saturn_promql::{EvalParams, SelectorRequest, Source, SourceError, Value, evaluate, parse};

const HOUR_MS: i64 = 3_600_000;
const INTERVAL_MS: i64 = 15_000;
const STEP_MS: i64 = 30_000;
const START_MS: i64 = 300_000;
/// How long a query is evaluated again and again.
const RUN: Duration = Duration::from_secs(2);

/// How often a query is evaluated at least; the median counts.
const RUNS_MIN: usize = 3;

/// Series in one request to Prometheus.
const SERIES_PER_REQUEST: usize = 100;

/// Samples of each series in one request.
const SAMPLES_PER_REQUEST: usize = 60;

const QUERIES: [&str; 9] = [
    "counters_total",
    "rate(counters_total[5m])",
    "sum by (instance) (rate(counters_total[5m]))",
    "avg_over_time(counters_total[5m])",
    "topk(10, rate(counters_total[5m]))",
    "counters_total * on (instance) group_left one",
    "histogram_quantile(0.9, sum by (le) (rate(buckets_bucket[5m])))",
    "histogram_quantile(0.9, rate(histograms[5m]))",
    "histogram_quantile(0.9, sum(rate(histograms[5m])))",
];

/// The same series for every selector with the same name.
struct Memory {
    counters: Arc<[SeriesColumns]>,
    buckets: Arc<[SeriesColumns]>,
    histograms: Arc<[SeriesColumns]>,
    one: Arc<[SeriesColumns]>,
}

impl Source for Memory {
    fn select(&self, request: &SelectorRequest) -> Result<Arc<[SeriesColumns]>, SourceError> {
        let name = request.matchers.iter().find(|matcher| matcher.name() == "__name__");
        Ok(Arc::clone(match name.map_or("", |matcher| matcher.value()) {
            "buckets_bucket" => &self.buckets,
            "histograms" => &self.histograms,
            "one" => &self.one,
            _ => &self.counters,
        }))
    }
}

/// Sample times from 5 minutes before the first step to the last.
fn times() -> Vec<i64> {
    (0..=(HOUR_MS + START_MS) / INTERVAL_MS).map(|i| i * INTERVAL_MS).collect()
}

fn series(name: &str, pod: usize, extra: Option<(&str, &str)>, slope: f64) -> SeriesColumns {
    let (pod, instance) = (format!("pod-{pod}"), format!("{}", pod % 10));
    let mut pairs = vec![("__name__", name), ("instance", instance.as_str()), ("pod", pod.as_str())];
    pairs.extend(extra);
    pairs.sort_unstable();
    let timestamps = times();
    let values = timestamps.iter().map(|t| *t as f64 * slope).collect();
    SeriesColumns::floats(Labels::from_pairs(pairs).expect("valid"), timestamps, values)
}

fn memory() -> Memory {
    let counters = (0..1000).map(|pod| series("counters_total", pod, None, 0.001 * (pod + 1) as f64));
    let bounds = ["0.1", "0.5", "1", "2.5", "5", "10", "30", "60", "120", "+Inf"];
    let buckets = (0..100).flat_map(|pod| {
        bounds
            .iter()
            .enumerate()
            .map(move |(i, bound)| series("buckets_bucket", pod, Some(("le", bound)), 0.001 * (i + 1) as f64))
    });
    let histograms = (0..1000).map(|pod| {
        let mut one = series("histograms", pod, None, 0.0);
        for (i, time) in std::mem::take(&mut one.timestamps).into_iter().enumerate() {
            // From 1: Prometheus 2.42 takes a histogram of floats without observations for one of integers.
            let each = (i + 1) as f64;
            let count = each * 20.0;
            let histogram = Histogram {
                hint: if i == 0 { CounterResetHint::Unknown } else { CounterResetHint::NotReset },
                schema: 3,
                count,
                sum: count,
                positive: Buckets::from_indexed((0..20).map(|index| (index, each))),
                ..Histogram::default()
            };
            one.histograms.push(time, Arc::new(histogram));
        }
        one.values.clear();
        one
    });
    let one = (0..10).map(|instance| {
        let labels = [("__name__", "one"), ("instance", &*instance.to_string())];
        let timestamps = times();
        let values = vec![1.0; timestamps.len()];
        SeriesColumns::floats(Labels::from_pairs(labels).expect("valid"), timestamps, values)
    });
    Memory {
        counters: counters.collect(),
        buckets: buckets.collect(),
        histograms: histograms.collect(),
        one: one.collect(),
    }
}

/// Measures Saturn's evaluator beside Prometheus's.
#[derive(Debug, Parser)]
struct Options {
    /// Only queries that contain this text.
    #[arg(long, default_value = "")]
    query: String,
    /// Only Saturn, without a table.
    #[arg(long)]
    alone: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let options = Options::parse();
    let memory = memory();
    let params = EvalParams::range(TimestampMs(START_MS), TimestampMs(START_MS + HOUR_MS), STEP_MS);
    let queries: Vec<&str> = QUERIES.into_iter().filter(|query| query.contains(&options.query)).collect();
    if options.alone {
        for query in queries {
            let (own, _) = time_saturn(query, &params, &memory)?;
            println!("{:>8.2} ms {:>8}  {query}", own * 1e3, rate(own));
        }
        return Ok(());
    }
    let peer = Peer::start(PeerKind::Prometheus).await?;
    let endpoint = peer.endpoint();
    // In the order of time: Prometheus's head takes nothing that is much older than its newest.
    for from in (0..times().len()).step_by(SAMPLES_PER_REQUEST) {
        for series in [&memory.counters, &memory.buckets, &memory.histograms, &memory.one] {
            fill(&endpoint, series, from).await?;
        }
    }
    println!("{}.\n", machine());
    println!("| query | Saturn | samples | Prometheus | samples | ratio |\n|---|---|---|---|---|---|");
    for query in queries {
        let (own, series) = time_saturn(query, &params, &memory)?;
        let theirs = time_prometheus(query, &endpoint, series).await?;
        println!(
            "| `{query}` | {:.2} ms | {} | {:.2} ms | {} | {:.1} |",
            own * 1e3,
            rate(own),
            theirs * 1e3,
            rate(theirs),
            theirs / own
        );
    }
    peer.stop().await?;
    Ok(())
}

/// Samples of all series in a second.
fn rate(seconds: f64) -> String {
    format!("{:.1} M/s", 1000.0 * times().len() as f64 / seconds / 1e6)
}

/// The median time of an evaluation in seconds, and how many series the answer has.
fn time_saturn(query: &str, params: &EvalParams, memory: &Memory) -> Result<(f64, usize)> {
    let expr = parse(query)?;
    let (begin, mut runs, mut series) = (Instant::now(), Vec::new(), 0);
    while runs.len() < RUNS_MIN || begin.elapsed() < RUN {
        let started = Instant::now();
        let result = evaluate(&expr, params, memory, &|| false)?;
        let Value::Matrix(matrix) = result.value else { anyhow::bail!("{query} is no matrix") };
        series = matrix.len();
        runs.push(started.elapsed().as_secs_f64());
    }
    Ok((median(runs), series))
}

/// The median time of an evaluation in seconds, by Prometheus's account.
async fn time_prometheus(query: &str, endpoint: &Endpoint, series: usize) -> Result<f64> {
    let (start, end) = ((START_MS / 1000).to_string(), ((START_MS + HOUR_MS) / 1000).to_string());
    let step = (STEP_MS / 1000).to_string();
    let parameters =
        [("query", query), ("start", &*start), ("end", &*end), ("step", &*step), ("stats", "all")];
    let (begin, mut runs) = (Instant::now(), Vec::new());
    while runs.len() < RUNS_MIN || begin.elapsed() < RUN {
        let data = endpoint.data("/api/v1/query_range", &parameters).await?;
        let found = data["result"].as_array().context("a matrix")?.len();
        ensure!(found == series, "{query} has {series} series here and {found} there");
        runs.push(data["stats"]["timings"]["evalTotalTime"].as_f64().context("a time")?);
    }
    Ok(median(runs))
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_unstable_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

/// Writes a part of the samples of series to Prometheus.
async fn fill(endpoint: &Endpoint, series: &[SeriesColumns], from: usize) -> Result<()> {
    for chunk in series.chunks(SERIES_PER_REQUEST) {
        let mut request = Vec::new();
        for one in chunk {
            let labels: Vec<(String, String)> =
                one.labels.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
            let mut message = encode_labels(&labels);
            let histograms = one.histograms.timestamps.iter().zip(&one.histograms.values);
            for (time, histogram) in histograms.skip(from).take(SAMPLES_PER_REQUEST) {
                put_message(&mut message, 4, &encode_histogram(histogram, *time));
            }
            let samples = one.timestamps.iter().copied().zip(one.values.iter().copied());
            let samples: Vec<(i64, f64)> = samples.skip(from).take(SAMPLES_PER_REQUEST).collect();
            put_series(&mut request, &message, &samples);
        }
        let reply = endpoint.write_body(compress(&request)).await?;
        ensure!(reply.status / 100 == 2, "Prometheus refused: {}: {}", reply.status, reply.text);
    }
    Ok(())
}

/// A `prometheus.Histogram` of floats without zero and negative buckets.
fn encode_histogram(histogram: &Histogram, time_ms: i64) -> Vec<u8> {
    let mut message = Vec::new();
    let mut put_double = |field: u8, value: f64| {
        message.push(field << 3 | 1);
        message.extend_from_slice(&value.to_bits().to_le_bytes());
    };
    put_double(2, histogram.count);
    put_double(3, histogram.sum);
    put_double(5, histogram.zero_threshold);
    put_double(7, histogram.zero_count);
    message.push(4 << 3);
    put_varint(&mut message, zigzag(histogram.schema));
    for span in histogram.positive.spans() {
        let mut part = vec![1 << 3];
        put_varint(&mut part, zigzag(span.offset));
        part.push(2 << 3);
        put_varint(&mut part, u64::from(span.length));
        put_message(&mut message, 11, &part);
    }
    let counts: Vec<u8> =
        histogram.positive.counts().iter().flat_map(|c| c.to_bits().to_le_bytes()).collect();
    put_message(&mut message, 13, &counts);
    message.push(15 << 3);
    put_varint(&mut message, time_ms.unsigned_abs());
    message
}

fn put_message(out: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    out.push(field << 3 | 2);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn put_varint(out: &mut Vec<u8>, value: u64) {
    saturn_proto::varint::put_varint(out, value);
}

fn zigzag(value: i32) -> u64 {
    saturn_proto::varint::zigzag(i64::from(value))
}

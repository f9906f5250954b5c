//! How fast expressions are evaluated over columns in memory: samples that are read per second, on one core.
//!
//! `cargo run --release -p saturn-benches --bin promql`. The data is 1,000 series of an hour, a sample
//! each 15 s, with steps of 30 s. A sample counts once, however many windows it is in.

use std::sync::Arc;
use std::time::{Duration, Instant};

use saturn_model::{Buckets, CounterResetHint, Histogram, Labels, SeriesColumns, TimestampMs};
use saturn_promql::{EvalParams, SelectorRequest, Source, SourceError, evaluate, parse};

const HOUR_MS: i64 = 3_600_000;
const INTERVAL_MS: i64 = 15_000;
const RUN: Duration = Duration::from_secs(1);

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
    (0..=(HOUR_MS + 300_000) / INTERVAL_MS).map(|i| i * INTERVAL_MS).collect()
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
            let count = (i * 20) as f64;
            let histogram = Histogram {
                hint: if i == 0 { CounterResetHint::Unknown } else { CounterResetHint::NotReset },
                schema: 3,
                count,
                sum: count,
                positive: Buckets::from_indexed((0..20).map(|index| (index, i as f64))),
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

#[expect(clippy::print_stdout, reason = "the figures are the result")]
fn main() {
    let memory = memory();
    let start = 300_000;
    let params = EvalParams::range(TimestampMs(start), TimestampMs(start + HOUR_MS), 30_000);
    let samples = 1000.0 * times().len() as f64;
    for query in [
        "counters_total",
        "rate(counters_total[5m])",
        "sum by (instance) (rate(counters_total[5m]))",
        "avg_over_time(counters_total[5m])",
        "topk(10, rate(counters_total[5m]))",
        "counters_total * on (instance) group_left one",
        "histogram_quantile(0.9, sum by (le) (rate(buckets_bucket[5m])))",
        "histogram_quantile(0.9, rate(histograms[5m]))",
        "histogram_quantile(0.9, sum(rate(histograms[5m])))",
    ] {
        let expr = parse(query).expect("valid");
        let (begin, mut runs) = (Instant::now(), 0);
        while runs == 0 || begin.elapsed() < RUN {
            evaluate(&expr, &params, &memory, &|| false).expect("evaluates");
            runs += 1;
        }
        let seconds = begin.elapsed().as_secs_f64() / f64::from(runs);
        println!("{:>8.2} ms {:>8.2} M samples/s  {query}", seconds * 1e3, samples / seconds / 1e6);
    }
}

//! The load of real senders: many series of many hosts, one sample of each a request, scraped every 15
//! seconds, with label sets like node_exporter's.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Result, anyhow};
use saturn_chaos_tests::remote_write::{compress, encode_labels, put_series};
use saturn_model::{METRIC_NAME, is_stale_nan};
use saturn_proto::{remote_write, snappy};

use crate::recording::read_recording;

/// Largest request of a recording, in bytes, decompressed.
const REQUEST_BYTES_MAX: usize = 256 << 20;

/// Time between two samples of a series.
pub const SCRAPE_INTERVAL_MS: i64 = 15_000;

/// Series of one host, which are sent together.
const SERIES_PER_HOST: usize = 500;

/// Series of one metric of one host.
const SERIES_PER_METRIC: usize = 10;

/// How much there is to send.
#[derive(Debug, Clone, Copy)]
pub struct LoadOptions {
    /// Series in all.
    pub series: usize,
    /// Samples of each.
    pub rounds: usize,
    /// Series in one request, one sample each.
    pub series_per_request: usize,
    /// Time of the last round, in milliseconds.
    pub end_ms: i64,
}

/// All requests of a run, compressed, in the order of their times.
#[derive(Debug)]
pub struct Load {
    /// The bodies.
    pub requests: Vec<Vec<u8>>,
    /// Samples in all requests together, without stale markers.
    pub samples: u64,
    /// The metrics' names, for queries that count.
    pub metrics: Vec<String>,
    /// Time of the last sample.
    pub end_ms: i64,
    /// Time from before the first sample to the last.
    pub span_ms: i64,
}

impl Load {
    /// Makes and encodes everything. The same options give the same bytes.
    pub fn encode(options: &LoadOptions) -> Self {
        let mut generator = Generator { state: 0x9e37_79b9_7f4a_7c15 };
        let mut sources: Vec<Source> =
            (0..options.series).map(|index| Source::new(index, &mut generator)).collect();
        let mut requests = Vec::new();
        for round in 0..options.rounds {
            let rounds_left = i64::try_from(options.rounds - 1 - round).unwrap_or(i64::MAX);
            let timestamp_ms = options.end_ms - rounds_left * SCRAPE_INTERVAL_MS;
            for chunk in sources.chunks_mut(options.series_per_request) {
                let mut request = Vec::new();
                for source in chunk {
                    let sample = (timestamp_ms, source.next_value(&mut generator));
                    put_series(&mut request, &source.labels, &[sample]);
                }
                requests.push(compress(&request));
            }
        }
        let metrics = (0..SERIES_PER_HOST / SERIES_PER_METRIC).map(metric_name).collect();
        let rounds = i64::try_from(options.rounds).unwrap_or(i64::MAX);
        Self {
            requests,
            samples: (options.series * options.rounds) as u64,
            metrics,
            end_ms: options.end_ms,
            span_ms: rounds * SCRAPE_INTERVAL_MS,
        }
    }

    /// The requests of a recording.
    pub fn recorded(path: &Path) -> Result<Self> {
        let requests = read_recording(path)?;
        let (mut samples, mut metrics) = (0, BTreeSet::new());
        let (mut first_ms, mut end_ms) = (i64::MAX, i64::MIN);
        for body in &requests {
            let request = snappy::decompress(body, REQUEST_BYTES_MAX)?;
            let mut labels = Vec::new();
            remote_write::walk_request(&request, |series| {
                series.labels_into(&mut labels)?;
                metrics
                    .extend(labels.iter().filter(|(name, _)| *name == METRIC_NAME).map(|l| l.1.to_owned()));
                series.walk_samples(|sample| {
                    (first_ms, end_ms) = (first_ms.min(sample.timestamp.0), end_ms.max(sample.timestamp.0));
                    samples += u64::from(!is_stale_nan(sample.value));
                })?;
                Ok(())
            })?;
        }
        let span_ms = end_ms.checked_sub(first_ms).filter(|span| *span >= 0);
        let span_ms = span_ms.ok_or_else(|| anyhow!("{} holds no sample", path.display()))? + 1;
        Ok(Self { requests, samples, metrics: metrics.into_iter().collect(), end_ms, span_ms })
    }

    /// Bytes of all bodies.
    pub fn bytes(&self) -> u64 {
        self.requests.iter().map(|body| body.len() as u64).sum()
    }
}

fn metric_name(index: usize) -> String {
    let kind = [
        "cpu_seconds_total",
        "network_receive_bytes_total",
        "memory_bytes",
        "disk_io_time_seconds_total",
        "up_info",
    ];
    format!("node_bench_{index}_{}", kind[index % kind.len()])
}

/// How a series moves.
#[derive(Debug, Clone, Copy)]
enum Shape {
    /// Grows by a whole number, as byte and packet counters do.
    Counter,
    /// Grows by hundredths, as CPU seconds do.
    Seconds,
    /// Wanders, as memory does.
    Gauge,
    /// Stays, as most do.
    Constant,
}

/// A series and its latest value.
#[derive(Debug)]
struct Source {
    /// As they are in a request.
    labels: Vec<u8>,
    shape: Shape,
    value: f64,
}

impl Source {
    fn new(index: usize, generator: &mut Generator) -> Self {
        let (host, of_host) = (index / SERIES_PER_HOST, index % SERIES_PER_HOST);
        let (metric, of_metric) = (of_host / SERIES_PER_METRIC, of_host % SERIES_PER_METRIC);
        let mode = ["idle", "iowait", "irq", "nice", "softirq", "steal", "system", "user", "guest", "other"];
        let labels = [
            ("__name__", metric_name(metric)),
            ("cluster", format!("production-{}", host % 3)),
            ("cpu", (of_metric % 4).to_string()),
            ("datacenter", format!("eu-central-{}", host % 2)),
            ("device", format!("/dev/disk/by-id/nvme-{:08x}", host * 31 + of_metric)),
            ("instance", format!("10.{}.{}.{}:9100", host / 65_536, host / 256 % 256, host % 256)),
            ("job", "node-exporter".to_owned()),
            ("mode", mode[of_metric].to_owned()),
            ("team", format!("team-{}", host % 17)),
        ];
        let shape = match metric % 5 {
            0 | 3 => Shape::Seconds,
            1 => Shape::Counter,
            2 => Shape::Gauge,
            _ => Shape::Constant,
        };
        let labels: Vec<(String, String)> =
            labels.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let value = match shape {
            Shape::Constant => 1.0,
            _ => generator.below(1_000_000_000) as f64,
        };
        Self { labels: encode_labels(&labels), shape, value }
    }

    fn next_value(&mut self, generator: &mut Generator) -> f64 {
        self.value = match self.shape {
            Shape::Counter => self.value + generator.below(100_000) as f64,
            // Kept in whole hundredths, as the kernel counts.
            Shape::Seconds => ((self.value * 100.0).round() + generator.below(1500) as f64) / 100.0,
            Shape::Gauge => (self.value + generator.below(2_000_000) as f64 - 1e6).max(0.0),
            Shape::Constant => self.value,
        };
        self.value
    }
}

/// xorshift64*: enough for values, and the same everywhere.
#[derive(Debug)]
struct Generator {
    state: u64,
}

impl Generator {
    fn below(&mut self, bound: u64) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        (self.state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) % bound
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> LoadOptions {
        LoadOptions { series: 1000, rounds: 3, series_per_request: 200, end_ms: 1_700_000_000_000 }
    }

    #[test]
    fn the_load_is_whole_and_repeatable() {
        let load = Load::encode(&options());
        assert_eq!((load.requests.len(), load.samples, load.metrics.len()), (15, 3000, 50));
        assert_eq!(load.requests, Load::encode(&options()).requests);
        assert_eq!(load.span_ms, 45_000);
    }

    #[test]
    fn series_are_distinct() {
        let mut generator = Generator { state: 1 };
        let sources: Vec<Source> = (0..2000).map(|index| Source::new(index, &mut generator)).collect();
        let mut labels: Vec<_> = sources.iter().map(|source| source.labels.clone()).collect();
        labels.sort();
        labels.dedup();
        assert_eq!(labels.len(), 2000);
    }
}

//! What the node counts about itself: requests, members, and the process.

use std::fmt::Write as _;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabelSet, EncodeLabelValue, EncodeMetric, LabelValueEncoder,
};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::write_path::Written;

/// How a write request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum WriteOutcome {
    Stored,
    PartlyInvalid,
    Invalid,
    Unavailable,
}

impl EncodeLabelValue for WriteOutcome {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        encoder.write_str(match self {
            Self::Stored => "stored",
            Self::PartlyInvalid => "partly_invalid",
            Self::Invalid => "invalid",
            Self::Unavailable => "unavailable",
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: WriteOutcome,
}

/// Counters of the HTTP listener.
pub(crate) struct HttpMetrics {
    writes: Family<OutcomeLabel, Counter>,
    written_samples: Counter,
    rejected_samples: Counter,
    written_exemplars: Counter,
    written_metadata: Counter,
    refused_notes: Counter,
    write_duration_seconds: Histogram,
}

impl HttpMetrics {
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            writes: Family::default(),
            written_samples: Counter::default(),
            rejected_samples: Counter::default(),
            written_exemplars: Counter::default(),
            written_metadata: Counter::default(),
            refused_notes: Counter::default(),
            write_duration_seconds: Histogram::new(exponential_buckets(0.000_5, 2.0, 15)),
        };
        let registry = registry.sub_registry_with_prefix("saturn_node");
        registry.register("write_requests", "Write requests by how they ended", metrics.writes.clone());
        let samples = metrics.written_samples.clone();
        registry.register("written_samples", "Samples acknowledged", samples);
        let samples = metrics.rejected_samples.clone();
        registry.register("rejected_samples", "Samples refused as invalid", samples);
        let mut counter = |name: &str, help: &str, counter: &Counter| {
            registry.register(name, help, counter.clone());
        };
        counter("written_exemplars", "Exemplars acknowledged", &metrics.written_exemplars);
        counter("written_metadata", "Metadata entries acknowledged", &metrics.written_metadata);
        counter(
            "refused_notes",
            "Exemplars and metadata left out because they make no sense",
            &metrics.refused_notes,
        );
        registry.register_with_unit(
            "write_duration",
            "Time from a write request's headers to its answer",
            Unit::Seconds,
            metrics.write_duration_seconds.clone(),
        );
        metrics
    }

    pub(crate) fn count_write(&self, outcome: WriteOutcome, took: std::time::Duration) {
        self.writes.get_or_create(&OutcomeLabel { outcome }).inc();
        self.write_duration_seconds.observe(took.as_secs_f64());
    }

    pub(crate) fn count_samples(&self, written: &Written) {
        self.written_samples.inc_by(written.samples as u64);
        self.rejected_samples.inc_by(written.rejects.samples as u64);
        self.written_exemplars.inc_by(written.exemplars as u64);
        self.written_metadata.inc_by(written.metadata as u64);
        self.refused_notes.inc_by(written.refused_notes as u64);
    }
}

/// The standard metrics of a process, read from /proc when scraped.
#[derive(Debug)]
pub(crate) struct ProcessMetrics;

impl Collector for ProcessMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Ok(process) = procfs::process::Process::myself() else { return Ok(()) };
        let Ok(stat) = process.stat() else { return Ok(()) };
        let ticks = procfs::ticks_per_second() as f64;
        let cpu = ConstCounter::new((stat.utime + stat.stime) as f64 / ticks);
        let descriptor = encoder.encode_descriptor(
            "process_cpu",
            "User and system CPU time",
            Some(&Unit::Seconds),
            prometheus_client::metrics::MetricType::Counter,
        )?;
        cpu.encode(descriptor)?;
        let resident = stat.rss.saturating_mul(procfs::page_size());
        encode_gauge(&mut encoder, "process_resident_memory_bytes", "Resident memory", resident)?;
        let descriptors = process.fd_count().unwrap_or_default() as u64;
        encode_gauge(&mut encoder, "process_open_fds", "Open file descriptors", descriptors)
    }
}

fn encode_gauge(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    value: u64,
) -> Result<(), std::fmt::Error> {
    let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
    let kind = prometheus_client::metrics::MetricType::Gauge;
    gauge.encode(encoder.encode_descriptor(name, help, None, kind)?)
}

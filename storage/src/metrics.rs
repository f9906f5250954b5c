//! The crate's own metrics, built from the registry that the node passes in.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// Counters end in `_total` in the exposition; the client library adds that.
#[derive(Debug)]
pub(crate) struct Metrics {
    pub(crate) appended_samples: Counter,
    pub(crate) duplicate_samples: Counter,
    pub(crate) unknown_series: Counter,
    pub(crate) dropped_exemplars: Counter,
    pub(crate) dropped_metadata: Counter,
    pub(crate) series: Gauge,
    pub(crate) head_samples: Gauge,
    pub(crate) head_bytes: Gauge,
    pub(crate) wal_fsync_duration: Histogram,
    pub(crate) wal_written_bytes: Counter,
    pub(crate) wal_group_bytes: Histogram,
    pub(crate) wal_failed: Gauge,
    pub(crate) wal_abandoned_segments: Counter,
    pub(crate) flush_duration: Histogram,
    pub(crate) flushed_samples: Counter,
    pub(crate) flushed_bytes: Counter,
    pub(crate) flush_failures: Counter,
    pub(crate) imported_samples: Counter,
    pub(crate) imported_bytes: Counter,
    pub(crate) merge_duration: Histogram,
    pub(crate) merged_samples: Counter,
    pub(crate) merged_bytes: Counter,
    pub(crate) merge_failures: Counter,
    pub(crate) expired_segments: Counter,
    pub(crate) expired_series: Counter,
    pub(crate) maintenance_runs: Counter,
    pub(crate) maintenance_duration: Histogram,
    pub(crate) corrupt_reads: Counter,
    pub(crate) scrub_runs: Counter,
    pub(crate) scrub_bytes: Counter,
    pub(crate) scrub_damage: Gauge,
    pub(crate) disk_full: Gauge,
}

impl Metrics {
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            appended_samples: Counter::default(),
            duplicate_samples: Counter::default(),
            unknown_series: Counter::default(),
            dropped_exemplars: Counter::default(),
            dropped_metadata: Counter::default(),
            series: Gauge::default(),
            head_samples: Gauge::default(),
            head_bytes: Gauge::default(),
            wal_fsync_duration: Histogram::new(exponential_buckets(0.000_1, 2.0, 16)),
            wal_written_bytes: Counter::default(),
            wal_group_bytes: Histogram::new(exponential_buckets(256.0, 4.0, 8)),
            wal_failed: Gauge::default(),
            wal_abandoned_segments: Counter::default(),
            flush_duration: Histogram::new(exponential_buckets(0.01, 2.0, 14)),
            flushed_samples: Counter::default(),
            flushed_bytes: Counter::default(),
            flush_failures: Counter::default(),
            imported_samples: Counter::default(),
            imported_bytes: Counter::default(),
            merge_duration: Histogram::new(exponential_buckets(0.01, 2.0, 14)),
            merged_samples: Counter::default(),
            merged_bytes: Counter::default(),
            merge_failures: Counter::default(),
            expired_segments: Counter::default(),
            expired_series: Counter::default(),
            maintenance_runs: Counter::default(),
            maintenance_duration: Histogram::new(exponential_buckets(0.001, 4.0, 10)),
            corrupt_reads: Counter::default(),
            scrub_runs: Counter::default(),
            scrub_bytes: Counter::default(),
            scrub_damage: Gauge::default(),
            disk_full: Gauge::default(),
        };
        metrics.register(registry);
        metrics
    }

    fn register(&self, registry: &mut Registry) {
        let mut counter = |name: &str, help: &str, counter: &Counter| {
            registry.register(format!("saturn_storage_{name}"), help, counter.clone());
        };
        counter("appended_samples", "Samples stored, duplicates not counted", &self.appended_samples);
        counter("duplicate_samples", "Samples whose time was already there", &self.duplicate_samples);
        counter("unknown_series", "Series sent back for their labels", &self.unknown_series);
        counter("dropped_exemplars", "Exemplars that gave way to newer ones", &self.dropped_exemplars);
        counter(
            "dropped_metadata",
            "Metadata not kept because its tenant has some of too many metrics",
            &self.dropped_metadata,
        );
        counter(
            "wal_abandoned_segments",
            "WAL files that were left after an error of write or fdatasync",
            &self.wal_abandoned_segments,
        );
        counter("wal_written_bytes", "Bytes written to the WAL", &self.wal_written_bytes);
        counter("flushed_samples", "Samples moved from the head to RocksDB", &self.flushed_samples);
        counter("flushed_bytes", "Bytes of table files written by flushes", &self.flushed_bytes);
        counter("flush_failures", "Flushes that failed and will be tried again", &self.flush_failures);
        counter("imported_samples", "Samples taken from other replicas or in bulk", &self.imported_samples);
        counter("imported_bytes", "Bytes of table files written for them", &self.imported_bytes);
        counter("merged_samples", "Samples written by merges", &self.merged_samples);
        counter("merged_bytes", "Bytes of table files written by merges", &self.merged_bytes);
        counter(
            "merge_failures",
            "Merges or expiries that failed and will be tried again",
            &self.merge_failures,
        );
        counter("expired_segments", "Segments dropped by retention", &self.expired_segments);
        counter(
            "expired_series",
            "Series hidden by retention where other tenants keep the window",
            &self.expired_series,
        );
        counter("maintenance_runs", "Rounds of retention and merges", &self.maintenance_runs);
        counter("corrupt_reads", "Reads and merges that found damaged data", &self.corrupt_reads);
        counter("scrub_runs", "Scrubs: everything on disk was read through its checksums", &self.scrub_runs);
        counter("scrub_bytes", "Bytes of rows and pages read by scrubs", &self.scrub_bytes);
        let mut gauge = |name: &str, help: &str, gauge: &Gauge| {
            registry.register(format!("saturn_storage_{name}"), help, gauge.clone());
        };
        gauge("series", "Series known", &self.series);
        gauge("head_samples", "Samples in memory", &self.head_samples);
        gauge("head_bytes", "Bytes of memory of these samples", &self.head_bytes);
        gauge("wal_failed", "1 once writing failed and nothing is acknowledged any more", &self.wal_failed);
        gauge("disk_full", "1 while writes are refused to keep the reserve of free space", &self.disk_full);
        gauge("scrub_damage", "Damaged places that the last scrub found", &self.scrub_damage);
        let mut histogram = |name: &str, help: &str, histogram: &Histogram| {
            registry.register(format!("saturn_storage_{name}"), help, histogram.clone());
        };
        histogram("wal_fsync_duration_seconds", "Time of one fdatasync of the WAL", &self.wal_fsync_duration);
        histogram("wal_group_bytes", "Bytes written before one fdatasync", &self.wal_group_bytes);
        histogram("flush_duration_seconds", "Time of one flush", &self.flush_duration);
        histogram(
            "maintenance_duration_seconds",
            "Time of one round of retention and merges",
            &self.maintenance_duration,
        );
        histogram("merge_duration_seconds", "Time to merge one window", &self.merge_duration);
    }
}

//! Bounds on what one tenant may send and ask. Every bound has a default that is finite.

use std::time::Duration;

/// The limits of one tenant. Sizes in bytes, counts in items.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Largest remote-write body as sent (compressed).
    pub write_body_bytes_max: usize,
    /// Largest remote-write body after decompression.
    pub write_decoded_bytes_max: usize,
    /// Most labels on one series, the metric name included.
    pub labels_per_series_max: usize,
    /// Longest label name.
    pub label_name_bytes_max: usize,
    /// Longest label value.
    pub label_value_bytes_max: usize,
    /// How far ahead of the node's clock a sample may be.
    pub future_max: Duration,
    /// Longest query text.
    pub query_bytes_max: usize,
    /// Most samples that one query may hold in memory (Prometheus: `query.max-samples`).
    pub query_samples_max: usize,
    /// Longest that one query may run.
    pub query_timeout: Duration,
    /// Most series that one selector may match.
    pub query_series_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            write_body_bytes_max: 32 << 20,
            write_decoded_bytes_max: 32 << 20,
            labels_per_series_max: 64,
            label_name_bytes_max: 1024,
            label_value_bytes_max: 8192,
            future_max: Duration::from_secs(600),
            query_bytes_max: 16 << 10,
            query_samples_max: 50_000_000,
            query_timeout: Duration::from_secs(120),
            query_series_max: 1_000_000,
        }
    }
}

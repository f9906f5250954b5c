//! What the frontend counts about itself.

use std::fmt::Write as _;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// How a query ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Outcome {
    Complete,
    Incomplete,
    Refused,
    Failed,
}

impl EncodeLabelValue for Outcome {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        encoder.write_str(match self {
            Self::Complete => "complete",
            Self::Incomplete => "incomplete",
            Self::Refused => "refused",
            Self::Failed => "failed",
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct OutcomeLabel {
    pub(crate) outcome: Outcome,
}

#[derive(Clone)]
pub(crate) struct Metrics {
    pub(crate) queries: Family<OutcomeLabel, Counter>,
    pub(crate) running: Gauge,
    pub(crate) duration_seconds: Histogram,
    pub(crate) fetched_samples: Counter,
    pub(crate) aggregated_selectors: Counter,
}

impl Metrics {
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            queries: Family::default(),
            running: Gauge::default(),
            duration_seconds: Histogram::new(exponential_buckets(0.001, 2.0, 16)),
            fetched_samples: Counter::default(),
            aggregated_selectors: Counter::default(),
        };
        let registry = registry.sub_registry_with_prefix("saturn_query_frontend");
        registry.register("queries", "Queries by how they ended", metrics.queries.clone());
        registry.register("queries_running", "Queries running now", metrics.running.clone());
        registry.register(
            "query_duration_seconds",
            "Time from a query's arrival to its answer",
            metrics.duration_seconds.clone(),
        );
        registry.register(
            "fetched_samples",
            "Samples fetched for queries, after merging the replicas",
            metrics.fetched_samples.clone(),
        );
        registry.register(
            "aggregated_selectors",
            "Selectors that were aggregated where their samples are, without fetching them",
            metrics.aggregated_selectors.clone(),
        );
        metrics
    }

    pub(crate) fn count(&self, outcome: Outcome) {
        self.queries.get_or_create(&OutcomeLabel { outcome }).inc();
    }
}

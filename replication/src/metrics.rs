//! The crate's own metrics, built from the registry that the node passes in.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// A counter with one label of a closed set of values.
type Labelled = Family<[(&'static str, &'static str); 1], Counter>;

/// How a write ended.
#[derive(Clone, Copy, Debug)]
pub(crate) enum WriteOutcome {
    Acked,
    NoQuorum,
}

/// Why a replica did not store what it was sent.
#[derive(Clone, Copy, Debug)]
pub(crate) enum AppendErrorKind {
    Unreachable,
    Timeout,
    Overloaded,
    Failed,
    Stale,
    Behind,
    NotOwner,
}

/// Why a request to a replica was given up after its write had been answered.
#[derive(Clone, Copy, Debug)]
pub(crate) enum BackgroundDrop {
    /// Too many bytes were under way to that replica.
    Budget,
    /// The replica took too long.
    Timeout,
}

/// Counters end in `_total` in the exposition; the client library adds that.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    writes: Labelled,
    pub(crate) resent_series: Counter,
    append_errors: Labelled,
    background_drops: Labelled,
    pub(crate) reads: Counter,
    pub(crate) hedged_reads: Counter,
    pub(crate) incomplete_reads: Counter,
    pub(crate) write_duration: Durations,
    pub(crate) read_duration: Durations,
}

/// A histogram of seconds, from a millisecond to half a minute.
#[derive(Clone, Debug)]
pub(crate) struct Durations(pub(crate) Histogram);

impl Default for Durations {
    fn default() -> Self {
        Self(Histogram::new(exponential_buckets(0.001, 2.0, 16)))
    }
}

impl Metrics {
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let name = |name: &str| format!("saturn_replication_{name}");
        registry.register(name("writes"), "Writes by how they ended", metrics.writes.clone());
        let help = "Series sent to a replica again because it did not know their labels";
        registry.register(name("resent_series"), help, metrics.resent_series.clone());
        let help = "Replicas' failures and refusals to store, one per request or batch";
        registry.register(name("append_errors"), help, metrics.append_errors.clone());
        let help = "Requests to replicas given up after their write was answered";
        registry.register(name("background_drops"), help, metrics.background_drops.clone());
        registry.register(name("reads"), "Reads over all shards", metrics.reads.clone());
        let help = "Reads that asked further replicas because the first were slow";
        registry.register(name("hedged_reads"), help, metrics.hedged_reads.clone());
        let help = "Reads that some shard had no quorum for";
        registry.register(name("incomplete_reads"), help, metrics.incomplete_reads.clone());
        let help = "Time until a write had its quorum or failed";
        registry.register(name("write_duration_seconds"), help, metrics.write_duration.0.clone());
        let help = "Time until a read had its answers, merging not included";
        registry.register(name("read_duration_seconds"), help, metrics.read_duration.0.clone());
        metrics
    }

    pub(crate) fn write(&self, outcome: WriteOutcome) {
        let outcome = match outcome {
            WriteOutcome::Acked => "acked",
            WriteOutcome::NoQuorum => "no_quorum",
        };
        self.writes.get_or_create(&[("outcome", outcome)]).inc();
    }

    pub(crate) fn append_error(&self, kind: AppendErrorKind) {
        let kind = match kind {
            AppendErrorKind::Unreachable => "unreachable",
            AppendErrorKind::Timeout => "timeout",
            AppendErrorKind::Overloaded => "overloaded",
            AppendErrorKind::Failed => "failed",
            AppendErrorKind::Stale => "stale",
            AppendErrorKind::Behind => "behind",
            AppendErrorKind::NotOwner => "not_owner",
        };
        self.append_errors.get_or_create(&[("kind", kind)]).inc();
    }

    pub(crate) fn background_drop(&self, reason: BackgroundDrop) {
        let reason = match reason {
            BackgroundDrop::Budget => "budget",
            BackgroundDrop::Timeout => "timeout",
        };
        self.background_drops.get_or_create(&[("reason", reason)]).inc();
    }
}

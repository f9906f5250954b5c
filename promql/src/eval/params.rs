//! What an evaluation needs besides the expression, and what it gives back.

use std::sync::Arc;

use saturn_model::{Histogram, Labels, Matcher, SeriesColumns, TimestampMs};

use crate::annotations::Annotations;
use crate::eval::grid::Grid;
use crate::eval::selector_aggregate::{PartialGroups, SelectorAggregate};
use crate::syntax::durations::DurationContext;

/// Time range and settings of one evaluation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EvalParams {
    /// First step.
    pub start: TimestampMs,
    /// No step lies after this.
    pub end: TimestampMs,
    /// Distance of the steps; 0 for an instant query, which has the one step `start`.
    pub step_ms: i64,
    /// How far an instant selector looks back for a sample.
    pub lookback_ms: i64,
    /// Step of subqueries that do not say theirs.
    pub default_subquery_step_ms: i64,
    /// Most samples that may be held at one time (`query.max-samples`).
    pub samples_max: usize,
    /// When functions drop the metric's name.
    pub name_removal: NameRemoval,
    /// Whether functions of counters look at start timestamps.
    pub start_timestamps: StartTimestamps,
}

/// Whether functions of counters look at start timestamps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartTimestamps {
    /// No; what a stock Prometheus does.
    Ignored,
    /// Yes (Prometheus's `use-start-timestamps`).
    Used,
}

/// When functions drop the metric's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameRemoval {
    /// At each operation that drops it; what a stock Prometheus does.
    Immediate,
    /// Once, at the very end (Prometheus's `promql-delayed-name-removal`).
    Delayed,
}

/// What evaluation will read: series that satisfy all matchers, samples in an inclusive range of time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SelectorRequest {
    /// All must hold.
    pub matchers: Vec<Matcher>,
    /// First millisecond, inclusive.
    pub start: TimestampMs,
    /// Last millisecond, inclusive.
    pub end: TimestampMs,
    /// How the samples will be used; a source may ignore it.
    pub hints: SelectorHints,
}

/// How the samples of a selector will be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SelectorHints {
    /// Distance of the steps at which the selector is evaluated; 0 for one step.
    pub step_ms: i64,
    /// The range of a range selector; 0 for an instant selector.
    pub range_ms: i64,
}

/// Where samples come from. Evaluation asks for exactly the requests of
/// [`selector_requests`](crate::selector_requests), possibly several times.
pub trait Source: Sync {
    /// The series of a request, each at most once, in any order. Samples outside of the requested range
    /// do no harm; stale markers must be included.
    fn select(&self, request: &SelectorRequest) -> Result<Arc<[SeriesColumns]>, SourceError>;

    /// The groups of an aggregation of one selector, if the source has computed them. Otherwise the evaluation reads
    /// the selector and computes them itself.
    fn aggregate(&self, aggregate: &SelectorAggregate) -> Result<Option<Arc<PartialGroups>>, SourceError> {
        let _ = aggregate;
        Ok(None)
    }
}

/// Why a source has no answer.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct SourceError {
    /// What happened.
    pub message: String,
    /// The error below, for logs and for the caller to look into.
    #[source]
    pub source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

/// The value of a query, and remarks on it.
#[derive(Clone, Debug)]
pub struct QueryResult {
    /// The value.
    pub value: Value,
    /// Warnings and infos.
    pub annotations: Annotations,
    /// How much data the evaluation looked at.
    pub samples: SampleStats,
}

/// How many samples an evaluation looked at; a native histogram counts as several. The numbers are those of
/// Prometheus's `stats`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SampleStats {
    /// For each step: its time, and all samples in the windows that it looked at.
    pub queryable_per_step: Vec<(i64, u64)>,
    /// For each step: its time, and the samples in its windows that no step before it had looked at. What
    /// subqueries read counts at the first step.
    pub read_per_step: Vec<(i64, u64)>,
    /// The most that were held in memory at one time.
    pub peak: usize,
}

/// The value of a query.
#[derive(Clone, Debug)]
pub enum Value {
    /// One number.
    Scalar {
        /// The evaluation time.
        timestamp: TimestampMs,
        /// The number.
        value: f64,
    },
    /// One text. What was not UTF-8 has become replacement characters.
    String {
        /// The evaluation time.
        timestamp: TimestampMs,
        /// The text.
        value: String,
    },
    /// The answer to an instant query: one sample of each series, in the order that Prometheus gives.
    Vector(Vec<VectorSample>),
    /// Many samples of each series, sorted by labels.
    Matrix(Vec<SeriesColumns>),
}

/// One sample of an instant query's answer.
#[derive(Clone, Debug)]
pub struct VectorSample {
    /// What the series is called.
    pub labels: Labels,
    /// The evaluation time.
    pub timestamp: TimestampMs,
    /// The value.
    pub value: SampleValue,
}

/// What a sample holds.
#[derive(Clone, Debug, PartialEq)]
pub enum SampleValue {
    /// A number.
    Float(f64),
    /// A native histogram.
    Histogram(Arc<Histogram>),
}

impl EvalParams {
    /// An instant query at `time`, with Prometheus's defaults.
    pub fn instant(time: TimestampMs) -> Self {
        Self::range(time, time, 0)
    }

    /// A range query, with Prometheus's defaults.
    pub fn range(start: TimestampMs, end: TimestampMs, step_ms: i64) -> Self {
        Self {
            start,
            end,
            step_ms,
            lookback_ms: 5 * 60_000,
            default_subquery_step_ms: 60_000,
            samples_max: 50_000_000,
            name_removal: NameRemoval::Immediate,
            start_timestamps: StartTimestamps::Ignored,
        }
    }

    /// The steps of the whole query.
    pub(super) fn grid(&self) -> Grid {
        Grid::covering(self.start.0, self.end.0, self.step_ms)
    }

    /// Whether there is one step and the answer is a vector.
    pub(super) fn is_instant(&self) -> bool {
        self.step_ms == 0
    }

    pub(super) fn duration_context(&self) -> DurationContext {
        let range_ms = self.end.0.saturating_sub(self.start.0);
        DurationContext { step_ms: self.step_ms, range_ms }
    }
}

impl SourceError {
    /// An error with nothing below it.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), source: None }
    }
}

impl SampleStats {
    /// All samples in all windows of all steps.
    pub fn queryable(&self) -> u64 {
        self.queryable_per_step.iter().map(|(_, count)| count).sum()
    }

    /// All samples that were read.
    pub fn read(&self) -> u64 {
        self.read_per_step.iter().map(|(_, count)| count).sum()
    }
}

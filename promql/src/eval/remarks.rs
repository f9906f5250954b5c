//! What functions have to say about the series and samples that they meet, in Prometheus's words.
//!
//! Source: the constructors of `util/annotations/annotations.go`.

use saturn_model::Histogram;

use crate::eval::engine::Evaluator;
use crate::go_text::quote;
use crate::histogram::{Added, HistogramSum, IncompatibleSchemas, NanObservations};
use crate::span::Span;

/// Remarks about one series, at one place of the query.
#[derive(Clone, Copy)]
pub(super) struct Remarks<'a> {
    pub(super) evaluator: &'a Evaluator<'a>,
    /// The metric's name.
    pub(super) metric: &'a str,
    pub(super) span: Span,
}

/// What was done when custom buckets had to be reconciled or counter resets collided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Addition,
    Subtraction,
    Aggregation,
}

impl Operation {
    pub(super) fn name(self) -> &'static str {
        match self {
            Operation::Addition => "addition",
            Operation::Subtraction => "subtraction",
            Operation::Aggregation => "aggregation",
        }
    }
}

/// The end of a message that names the metric, if there is a name.
pub(super) fn for_metric(name: &str) -> String {
    if name.is_empty() { String::new() } else { format!(" for metric name {}", quote(name.as_bytes())) }
}

impl Remarks<'_> {
    fn warn(&self, text: &str) {
        self.evaluator.annotations().warn(self.span, text);
    }

    fn inform(&self, text: &str) {
        self.evaluator.annotations().inform(self.span, text);
    }

    fn quoted_metric(&self) -> String {
        quote(self.metric.as_bytes())
    }

    /// A range holds both floats and histograms, and the function cannot take both.
    pub(super) fn mixed_types(&self) {
        let metric = self.quoted_metric();
        self.warn(&format!("encountered a mix of histograms and floats for metric name {metric}"));
    }

    /// A range holds both floats and histograms, and the function looks at floats only.
    pub(super) fn ignored_histograms(&self) {
        let metric = self.quoted_metric();
        self.inform(&format!(
            "ignored histograms in a range containing both floats and histograms for metric name {metric}"
        ));
    }

    /// Histograms with exponential and custom buckets cannot be computed with.
    pub(super) fn mixed_schemas(&self) {
        let metric = self.quoted_metric();
        self.warn(&format!(
            "vector contains a mix of histograms with exponential and custom buckets schemas for metric name \
             {metric}"
        ));
    }

    /// A function of counters met a gauge.
    pub(super) fn not_a_counter(&self) {
        let metric = self.quoted_metric();
        self.warn(&format!("this native histogram metric is not a counter: {metric}"));
    }

    /// A function of gauges met what is none.
    pub(super) fn not_a_gauge(&self) {
        let metric = self.quoted_metric();
        self.warn(&format!("this native histogram metric is not a gauge: {metric}"));
    }

    /// The name does not look like that of a counter.
    pub(super) fn name_is_no_counters(&self) {
        let metric = self.quoted_metric();
        self.inform(&format!(
            "metric might not be a counter, name does not end in _total/_sum/_count/_bucket: {metric}"
        ));
    }

    /// A sample claims to have started before the one before it.
    pub(super) fn start_overlap(&self) {
        let metric = self.quoted_metric();
        self.warn(&format!(
            "sample has start time that overlaps with previous sample timestamp for metric {metric}"
        ));
    }

    /// Custom buckets differed.
    pub(super) fn reconciled(&self, operation: Operation) {
        self.inform(&format!("mismatched custom buckets were reconciled during {}", operation.name()));
    }

    /// Some histograms say that there was a counter reset, others that there was none.
    pub(super) fn reset_collision(&self, operation: Operation) {
        self.warn(&format!("conflicting counter resets during histogram {}", operation.name()));
    }

    /// An aggregation has no use for histograms.
    pub(super) fn ignored_in_aggregation(&self, aggregation: &str) {
        self.inform(&format!("ignored histogram in {aggregation} aggregation"));
    }

    /// A group holds both floats and histograms.
    pub(super) fn mixed_aggregation(&self) {
        self.warn("encountered a mix of histograms and floats for aggregation");
    }

    /// The same labels have both kinds of histograms.
    pub(super) fn mixed_classic_and_native(&self) {
        let name = for_metric(self.metric);
        self.warn(&format!("vector contains a mix of classic and native histograms{name}"));
    }

    /// What NaN among the observations does to a result.
    pub(super) fn nan_observations(&self, effect: NanObservations) {
        let text = match effect {
            NanObservations::ResultIsNan => "input to histogram_quantile has NaN observations, result is NaN",
            NanObservations::ResultIsSkewed => {
                "input to histogram_quantile has NaN observations, result is skewed higher"
            }
            NanObservations::Excluded => {
                "input to histogram_fraction has NaN observations, which are excluded from all fractions"
            }
        };
        self.inform(&format!("{text}{}", for_metric(self.metric)));
    }

    /// Adds to a sum and remarks on what is remarkable, except for collisions of resets, which the functions
    /// of one series handle themselves.
    pub(super) fn add(&self, sum: &mut HistogramSum, other: &Histogram) -> Option<()> {
        self.check(sum.add(other), Operation::Addition)
    }

    /// Subtracts, likewise.
    pub(super) fn subtract(&self, sum: &mut HistogramSum, other: &Histogram) -> Option<()> {
        self.check(sum.subtract(other), Operation::Subtraction)
    }

    fn check(&self, added: Result<Added, IncompatibleSchemas>, operation: Operation) -> Option<()> {
        match added {
            Err(IncompatibleSchemas) => {
                self.mixed_schemas();
                None
            }
            Ok(added) => {
                if added.bounds_reconciled {
                    self.reconciled(operation);
                }
                Some(())
            }
        }
    }
}

//! Arithmetic of native histograms. Pure: it knows no series, steps or queries.
//!
//! * `buckets`: where buckets begin and end.
//! * `sum`: adding, subtracting and scaling, with schemas, zero buckets and custom bounds reconciled.
//! * `reset`: whether a counter was reset between two histograms.
//! * `quantile`: quantiles, fractions and variance.
//! * `trim`: cutting at a bound.
//! * `text`: a histogram as Prometheus writes it.
//!
//! Source of the rules: Prometheus's `model/histogram/float_histogram.go` and `promql/quantile.go`.

mod buckets;
mod quantile;
mod reset;
mod sum;
mod text;
mod trim;

pub use buckets::{HistogramBucket, histogram_buckets};
pub(crate) use quantile::{NanObservations, histogram_fraction, histogram_quantile, variance};
pub(crate) use reset::{detect_reset, same_data};
pub(crate) use sum::{Added, HistogramSum, IncompatibleSchemas, divided, multiplied, with_schema};
pub use sum::{histogram_difference, histogram_sum};
pub(crate) use text::describe;
pub(crate) use trim::{Kept, trimmed};

//! `histogram_quantile`, `histogram_quantiles` and `histogram_fraction`, on native histograms and on classic
//! ones: series with an `le` label.
//!
//! Source: `BucketQuantile` and `BucketFraction` of Prometheus's `quantile.go`, `resetHistograms` of `engine.go`.

use std::collections::HashMap;

use saturn_model::{Histogram, Labels};

use crate::annotations::MonotonicityRepair;
use crate::ast::Expr;
use crate::error::EvalError;
use crate::eval::block::{Block, Cell, SeriesName};
use crate::eval::engine::Evaluator;
use crate::eval::grid::Grid;
use crate::eval::names::{BlockBuilder, Duplicates, keep_labels};
use crate::eval::numerics::almost_equal;
use crate::eval::params::SampleValue;
use crate::eval::remarks::{Remarks, for_metric};
use crate::eval::window::metric_name;
use crate::go_text::{format_openmetrics, parse_float, quote};
use crate::histogram::{histogram_fraction, histogram_quantile};
use crate::span::Span;

const BUCKET_LABEL: &str = "le";
/// Relative differences below this come from scraping and adding, not from data.
const SMALL_DELTA: f64 = 1e-12;

/// A cumulative bucket.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Bucket {
    upper: f64,
    count: f64,
}

/// The series that make one histogram: buckets of a classic one, or a native one. At one step there may be
/// only one kind.
struct HistogramSeries {
    name: SeriesName,
    /// Upper bound and index of the bucket series.
    buckets: Vec<(f64, usize)>,
    /// Index of the series of native histograms.
    native: Option<usize>,
}

/// A histogram at one step.
enum HistogramInput<'a> {
    /// The buckets may be changed.
    Classic(&'a mut Vec<Bucket>),
    Native(&'a Histogram),
}

impl Evaluator<'_> {
    pub(super) fn histogram_quantile(&self, args: &[Expr], grid: &Grid) -> Result<Block, EvalError> {
        let phis = self.scalar(&args[0], grid)?;
        self.warn_of_quantiles(&phis, args[0].span);
        let input = self.vector(&args[1], grid)?;
        let block = self.map_histograms(&input, args[1].span, grid, |name, step, histogram| {
            self.quantile_of(phis[step], (name, args[1].span), grid.time(step), histogram)
        })?;
        self.drop_names(block, Duplicates::MergeDisjoint)
    }

    /// Several quantiles at once, told apart by a label.
    pub(super) fn histogram_quantiles(&self, args: &[Expr], grid: &Grid) -> Result<Block, EvalError> {
        let label = self.label_names(&args[1..2], grid)?.remove(0);
        let mut phis = Vec::new();
        for arg in &args[2..] {
            let values = self.scalar(arg, grid)?;
            self.warn_of_quantiles(&values, arg.span);
            phis.push(values);
        }
        let input = self.vector(&args[0], grid)?;
        let mut result = BlockBuilder::new(input.like());
        for values in phis {
            let block = self.map_histograms(&input, args[0].span, grid, |name, step, histogram| {
                self.quantile_of(values[step], (name, args[0].span), grid.time(step), histogram)
            })?;
            for (name, row) in block.rows() {
                for (step, value) in row.floats() {
                    let labels =
                        name.labels.to_builder().set(&label, &format_openmetrics(values[step])).build();
                    let at = result.row(labels, name.drop_name)?;
                    result.set(at, step, SampleValue::Float(value))?;
                }
            }
        }
        self.drop_names(result.block, Duplicates::MergeDisjoint)
    }

    fn quantile_of(
        &self,
        phi: f64,
        (name, span): (&SeriesName, Span),
        time: i64,
        histogram: HistogramInput<'_>,
    ) -> f64 {
        let buckets = match histogram {
            HistogramInput::Native(histogram) => {
                let (value, nan) = histogram_quantile(phi, histogram);
                nan.into_iter().for_each(|nan| self.remarks_on_histogram(name, span).nan_observations(nan));
                return value;
            }
            HistogramInput::Classic(buckets) => buckets,
        };
        let (value, repair) = bucket_quantile(phi, buckets);
        if let Some(repair) = repair {
            let repair = MonotonicityRepair { timestamp_min: time, timestamp_max: time, ..repair };
            let text = format!(
                "input to histogram_quantile needed to be fixed for monotonicity (see \
                 https://prometheus.io/docs/prometheus/latest/querying/functions/#histogram_quantile){}",
                for_metric(self.remarks_on_histogram(name, span).metric)
            );
            self.annotations().inform_of_repair(span, &text, repair);
        }
        value
    }

    pub(super) fn histogram_fraction(&self, args: &[Expr], grid: &Grid) -> Result<Block, EvalError> {
        let lower = self.scalar(&args[0], grid)?;
        let upper = self.scalar(&args[1], grid)?;
        let input = self.vector(&args[2], grid)?;
        let span = args[2].span;
        let block = self.map_histograms(&input, span, grid, |name, step, histogram| match histogram {
            HistogramInput::Classic(buckets) => bucket_fraction(lower[step], upper[step], buckets),
            HistogramInput::Native(histogram) => {
                let (value, nan) = histogram_fraction(lower[step], upper[step], histogram);
                nan.into_iter().for_each(|nan| self.remarks_on_histogram(name, span).nan_observations(nan));
                value
            }
        })?;
        self.drop_names(block, Duplicates::MergeDisjoint)
    }

    /// Computes one value for each histogram and step. Names stay as they are.
    fn map_histograms(
        &self,
        input: &Block,
        span: Span,
        grid: &Grid,
        compute: impl Fn(&SeriesName, usize, HistogramInput<'_>) -> f64,
    ) -> Result<Block, EvalError> {
        let mut block = input.like();
        let mut buckets = Vec::new();
        for histogram in self.histogram_series(input, span) {
            self.check_cancelled()?;
            let mut row = block.push(histogram.name.clone())?;
            for step in 0..grid.count {
                buckets.clear();
                buckets.extend(histogram.buckets.iter().filter_map(|(upper, index)| {
                    Some(Bucket { upper: *upper, count: input.row(*index).float(step)? })
                }));
                let native = match histogram.native.and_then(|index| input.row(index).get(step)) {
                    Some(Cell::Histogram(native)) => Some(native),
                    _ => None,
                };
                let found = match (native, buckets.is_empty()) {
                    (Some(native), true) => HistogramInput::Native(native),
                    (None, false) => HistogramInput::Classic(&mut buckets),
                    (None, true) => continue,
                    (Some(_), false) => {
                        self.remarks_on_histogram(&histogram.name, span).mixed_classic_and_native();
                        continue;
                    }
                };
                row.set_float(step, compute(&histogram.name, step, found));
            }
        }
        Ok(block)
    }

    /// The histograms among the series; warns of series of floats that are no bucket.
    fn histogram_series(&self, input: &Block, span: Span) -> Vec<HistogramSeries> {
        let mut index_of: HashMap<Labels, usize> = HashMap::new();
        let mut histograms: Vec<HistogramSeries> = Vec::new();
        let mut place = |labels: Labels, drop_name: bool, histograms: &mut Vec<HistogramSeries>| {
            *index_of.entry(labels.clone()).or_insert_with(|| {
                let name = SeriesName { labels, drop_name };
                histograms.push(HistogramSeries { name, buckets: Vec::new(), native: None });
                histograms.len() - 1
            })
        };
        for (index, (name, row)) in input.rows().enumerate() {
            if row.has_histograms() {
                let at = place(name.labels.clone(), name.drop_name, &mut histograms);
                histograms[at].native = Some(index);
            }
            if row.floats().next().is_none() {
                continue;
            }
            let bound = name.labels.get(BUCKET_LABEL).unwrap_or("");
            let Ok(upper) = parse_float(bound) else {
                let text = format!(
                    "bucket label \"le\" is missing or has a malformed value of {}{}",
                    quote(bound.as_bytes()),
                    for_metric(self.remarks_on_histogram(name, span).metric)
                );
                self.annotations().warn(span, &text);
                continue;
            };
            let labels = keep_labels(&name.labels, |name| name != BUCKET_LABEL);
            let at = place(labels, name.drop_name, &mut histograms);
            histograms[at].buckets.push((upper, index));
        }
        for histogram in &mut histograms {
            histogram.buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        }
        histograms
    }

    /// Remarks that name the metric only where names are removed in the end: else it is gone already.
    fn remarks_on_histogram<'a>(&'a self, name: &'a SeriesName, span: Span) -> Remarks<'a> {
        let metric = if self.delays_name_removal() { metric_name(name) } else { "" };
        Remarks { evaluator: self, metric, span }
    }
}

/// Joins buckets with equal bounds. They must be sorted by bound.
fn coalesce(buckets: &mut Vec<Bucket>) {
    buckets.dedup_by(|next, kept| {
        let same = next.upper == kept.upper;
        if same {
            kept.count += next.count;
        }
        same
    });
}

/// Whether the sorted buckets end at +Inf, as those of a whole histogram do.
fn is_complete(buckets: &[Bucket]) -> bool {
    buckets.last().is_some_and(|last| last.upper == f64::INFINITY)
}

/// The `phi`-quantile, by linear interpolation within its bucket. Says if counts had to be repaired.
fn bucket_quantile(phi: f64, buckets: &mut Vec<Bucket>) -> (f64, Option<MonotonicityRepair>) {
    if phi.is_nan() {
        return (f64::NAN, None);
    }
    if phi < 0.0 {
        return (f64::NEG_INFINITY, None);
    }
    if phi > 1.0 {
        return (f64::INFINITY, None);
    }
    if !is_complete(buckets) {
        return (f64::NAN, None);
    }
    coalesce(buckets);
    let repair = make_monotonic(buckets);
    (monotonic_quantile(phi, buckets), repair)
}

fn monotonic_quantile(phi: f64, buckets: &[Bucket]) -> f64 {
    let [finite @ .., Bucket { count: total, .. }] = buckets else {
        return f64::NAN;
    };
    let Some(highest) = finite.last().filter(|_| *total != 0.0) else {
        return f64::NAN;
    };
    let mut rank = phi * total;
    // A count that is NaN reaches no rank.
    let at = finite.partition_point(|bucket| bucket.count < rank || bucket.count.is_nan() || rank.is_nan());
    let Some(bucket) = finite.get(at) else {
        return highest.upper;
    };
    let (mut lower, mut count) = (0.0, bucket.count);
    match at.checked_sub(1) {
        None if bucket.upper <= 0.0 => return bucket.upper,
        None => {}
        Some(before) => {
            lower = finite[before].upper;
            count -= finite[before].count;
            rank -= finite[before].count;
        }
    }
    lower + (bucket.upper - lower) * (rank / count)
}

/// Makes cumulative counts never decrease. Says what was changed, if it was more than noise.
fn make_monotonic(buckets: &mut [Bucket]) -> Option<MonotonicityRepair> {
    let mut repair: Option<MonotonicityRepair> = None;
    let mut before = buckets[0].count;
    for bucket in &mut buckets[1..] {
        if bucket.count == before {
            continue;
        }
        if almost_equal(before, bucket.count, SMALL_DELTA) {
            bucket.count = before;
        } else if bucket.count < before {
            let found = repair.get_or_insert(MonotonicityRepair {
                bucket_min: bucket.upper,
                bucket_max: bucket.upper,
                difference_max: 0.0,
                samples: 1,
                timestamp_min: 0,
                timestamp_max: 0,
            });
            found.bucket_max = bucket.upper;
            found.difference_max = found.difference_max.max(before - bucket.count);
            bucket.count = before;
        } else {
            before = bucket.count;
        }
    }
    repair
}

/// The share of observations between `lower` and `upper`.
fn bucket_fraction(lower: f64, upper: f64, buckets: &mut Vec<Bucket>) -> f64 {
    if !is_complete(buckets) {
        return f64::NAN;
    }
    coalesce(buckets);
    let total = buckets.last().map_or(0.0, |last| last.count);
    if total == 0.0 || lower.is_nan() || upper.is_nan() {
        return f64::NAN;
    }
    if lower >= upper {
        return 0.0;
    }
    (rank_of(upper, buckets, total) - rank_of(lower, buckets, total)) / total
}

/// How many observations are below `bound`, by linear interpolation within its bucket.
fn rank_of(bound: f64, buckets: &[Bucket], total: f64) -> f64 {
    let mut rank = 0.0;
    for (i, bucket) in buckets.iter().enumerate() {
        let bucket_lower = match i.checked_sub(1) {
            Some(before) => buckets[before].upper,
            None if bucket.upper > 0.0 => 0.0,
            None => f64::NEG_INFINITY,
        };
        if bucket_lower >= bound {
            return rank;
        }
        if bucket.upper > bound {
            let share = match (bucket_lower.is_finite(), bucket.upper.is_finite()) {
                (true, true) => (bound - bucket_lower) / (bucket.upper - bucket_lower),
                // Within an infinite bucket nothing is known: all of it lies at its infinite end.
                (false, _) => 1.0,
                (true, false) => 0.0,
            };
            return (rank + (bucket.count - rank) * share).min(total);
        }
        rank = bucket.count;
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buckets(counts: &[(f64, f64)]) -> Vec<Bucket> {
        counts.iter().map(|(upper, count)| Bucket { upper: *upper, count: *count }).collect()
    }

    #[test]
    fn interpolates_within_the_bucket() {
        let all = [(1.0, 10.0), (2.0, 20.0), (f64::INFINITY, 20.0)];
        assert_eq!(bucket_quantile(0.5, &mut buckets(&all)).0, 1.0);
        assert_eq!(bucket_quantile(0.75, &mut buckets(&all)).0, 1.5);
        assert_eq!(bucket_quantile(1.0, &mut buckets(&all[..2])).0.to_bits(), f64::NAN.to_bits());
        assert_eq!(bucket_fraction(0.0, 1.5, &mut buckets(&all)), 0.75);
    }

    #[test]
    fn repairs_what_decreases() {
        let falling = [(1.0, 10.0), (2.0, 8.0), (3.0, 7.0), (f64::INFINITY, 12.0)];
        let (value, repair) = bucket_quantile(0.5, &mut buckets(&falling));
        let repair = repair.expect("counts decrease");
        assert_eq!((repair.bucket_min, repair.bucket_max, repair.difference_max), (2.0, 3.0, 3.0));
        assert_eq!(value, 0.6);
    }
}

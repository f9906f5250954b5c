//! `histogram_quantile` and `histogram_fraction` on classic histograms: series with an `le` label.
//!
//! Source: `BucketQuantile` and `BucketFraction` of Prometheus's `quantile.go`.

use std::collections::HashMap;

use saturn_model::{Labels, METRIC_NAME};

use crate::annotations::MonotonicityRepair;
use crate::ast::Expr;
use crate::error::EvalError;
use crate::eval::block::{Block, SeriesName};
use crate::eval::engine::Evaluator;
use crate::eval::grid::Grid;
use crate::eval::names::{Duplicates, keep_labels};
use crate::eval::numerics::almost_equal;
use crate::go_text::{parse_float, quote};
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

/// The bucket series of one histogram.
struct ClassicHistogram {
    name: SeriesName,
    /// Upper bound and index of the series.
    buckets: Vec<(f64, usize)>,
}

impl Evaluator<'_> {
    pub(super) fn histogram_quantile(&self, args: &[Expr], grid: &Grid) -> Result<Block, EvalError> {
        let phis = self.scalar(&args[0], grid)?;
        self.warn_of_quantiles(&phis, args[0].span);
        let input = self.vector(&args[1], grid)?;
        self.map_histograms(&input, args[1].span, grid, |histogram, step, buckets| {
            let (value, repair) = bucket_quantile(phis[step], buckets);
            if let Some(repair) = repair {
                let time = grid.time(step);
                let repair = MonotonicityRepair { timestamp_min: time, timestamp_max: time, ..repair };
                let text = format!(
                    "input to histogram_quantile needed to be fixed for monotonicity (see \
                     https://prometheus.io/docs/prometheus/latest/querying/functions/#histogram_quantile){}",
                    self.for_metric(&histogram.name.labels)
                );
                self.annotations.borrow_mut().inform_of_repair(args[1].span, &text, repair);
            }
            value
        })
    }

    pub(super) fn histogram_fraction(&self, args: &[Expr], grid: &Grid) -> Result<Block, EvalError> {
        let lower = self.scalar(&args[0], grid)?;
        let upper = self.scalar(&args[1], grid)?;
        let input = self.vector(&args[2], grid)?;
        self.map_histograms(&input, args[2].span, grid, |_, step, buckets| {
            bucket_fraction(lower[step], upper[step], buckets)
        })
    }

    /// Computes one value for each histogram and step. `compute` may change the buckets that it gets.
    fn map_histograms(
        &self,
        input: &Block,
        span: Span,
        grid: &Grid,
        compute: impl Fn(&ClassicHistogram, usize, &mut Vec<Bucket>) -> f64,
    ) -> Result<Block, EvalError> {
        let mut block = input.like();
        let mut buckets = Vec::new();
        for histogram in self.classic_histograms(input, span) {
            self.check_cancelled()?;
            let mut row = block.push(histogram.name.clone())?;
            for step in 0..grid.count {
                buckets.clear();
                buckets.extend(histogram.buckets.iter().filter_map(|(upper, index)| {
                    Some(Bucket { upper: *upper, count: input.row(*index).get(step)? })
                }));
                if !buckets.is_empty() {
                    row.set(step, compute(&histogram, step, &mut buckets));
                }
            }
        }
        self.drop_names(block, Duplicates::MergeDisjoint)
    }

    /// The histograms among the series; warns of series that are no bucket.
    fn classic_histograms(&self, input: &Block, span: Span) -> Vec<ClassicHistogram> {
        let mut index_of: HashMap<Labels, usize> = HashMap::new();
        let mut histograms: Vec<ClassicHistogram> = Vec::new();
        for (index, (name, row)) in input.rows().enumerate() {
            if row.is_empty() {
                continue;
            }
            let bound = name.labels.get(BUCKET_LABEL).unwrap_or("");
            let Ok(upper) = parse_float(bound) else {
                let text = format!(
                    "bucket label \"le\" is missing or has a malformed value of {}{}",
                    quote(bound.as_bytes()),
                    self.for_metric(&name.labels)
                );
                self.annotations.borrow_mut().warn(span, &text);
                continue;
            };
            let labels = keep_labels(&name.labels, |name| name != BUCKET_LABEL);
            let at = *index_of.entry(labels.clone()).or_insert_with(|| {
                let name = SeriesName { labels, drop_name: name.drop_name };
                histograms.push(ClassicHistogram { name, buckets: Vec::new() });
                histograms.len() - 1
            });
            histograms[at].buckets.push((upper, index));
        }
        for histogram in &mut histograms {
            histogram.buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        }
        histograms
    }

    /// The end of a message that names the metric, where the name is still known.
    fn for_metric(&self, labels: &Labels) -> String {
        match labels.get(METRIC_NAME) {
            Some(name) if self.delays_name_removal() => {
                format!(" for metric name {}", quote(name.as_bytes()))
            }
            _ => String::new(),
        }
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

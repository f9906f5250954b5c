//! Sums of histograms: schemas, zero buckets and custom bounds are reconciled as the sum grows.
//!
//! All counts are kept as compensated sums, so that the order of addition hardly matters. Adding two
//! histograms is the special case of a sum of two.
//!
//! Source: `Add`, `Sub`, `KahanAdd`, `Mul`, `Div` and their helpers in `float_histogram.go`.

use std::sync::Arc;

use saturn_model::{Buckets, CounterResetHint, Histogram};

use crate::histogram::buckets::{Side, exponential_bound, side_buckets, side_of};
use crate::kahan::KahanSum;

/// Exponential and custom buckets have nothing in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IncompatibleSchemas;

/// What is remarkable about an addition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Added {
    /// One histogram says that there was a counter reset, the other that there was none.
    pub(crate) reset_collision: bool,
    /// Custom bounds differed: only those that both have are left.
    pub(crate) bounds_reconciled: bool,
}

/// Buckets of one side: index and count, ascending.
type Counts = Vec<(i32, KahanSum)>;

/// A growing sum of histograms.
#[derive(Clone, Debug)]
pub(crate) struct HistogramSum {
    pub(crate) hint: CounterResetHint,
    schema: i32,
    zero_threshold: f64,
    zero_count: KahanSum,
    count: KahanSum,
    sum: KahanSum,
    positive: Counts,
    negative: Counts,
    custom_values: Arc<[f64]>,
}

impl From<&Histogram> for HistogramSum {
    fn from(histogram: &Histogram) -> Self {
        let counts =
            |buckets: &Buckets| buckets.iter().map(|(index, count)| (index, KahanSum::new(count))).collect();
        Self {
            hint: histogram.hint,
            schema: histogram.schema,
            zero_threshold: histogram.zero_threshold,
            zero_count: KahanSum::new(histogram.zero_count),
            count: KahanSum::new(histogram.count),
            sum: KahanSum::new(histogram.sum),
            positive: counts(&histogram.positive),
            negative: counts(&histogram.negative),
            custom_values: Arc::clone(&histogram.custom_values),
        }
    }
}

impl HistogramSum {
    /// Adds a histogram.
    pub(crate) fn add(&mut self, other: &Histogram) -> Result<Added, IncompatibleSchemas> {
        self.add_times(other, 1.0)
    }

    /// Subtracts a histogram.
    pub(crate) fn subtract(&mut self, other: &Histogram) -> Result<Added, IncompatibleSchemas> {
        self.add_times(other, -1.0)
    }

    fn add_times(&mut self, other: &Histogram, sign: f64) -> Result<Added, IncompatibleSchemas> {
        let custom = other.uses_custom_buckets();
        if custom != (self.schema == saturn_model::CUSTOM_BUCKETS_SCHEMA) {
            return Err(IncompatibleSchemas);
        }
        let mut added = Added::default();
        (self.hint, added.reset_collision) = merged_hint(self.hint, other.hint);
        if !custom {
            let zero_count = self.reconcile_zero_buckets(other);
            self.zero_count.add(sign * zero_count);
        }
        self.count.add(sign * other.count);
        self.sum.add(sign * other.sum);
        if custom && !same_bounds(&self.custom_values, &other.custom_values) {
            added.bounds_reconciled = true;
            let common = common_bounds(&self.custom_values, &other.custom_values);
            self.positive = rebucket(&self.positive, &self.custom_values, &common);
            let other_counts: Counts =
                other.positive.iter().map(|(i, count)| (i, KahanSum::new(count))).collect();
            let other_counts = rebucket(&other_counts, &other.custom_values, &common);
            add_counts(&mut self.positive, other_counts.iter().map(|(i, count)| (*i, count.total())), sign);
            self.custom_values = common;
            return Ok(added);
        }
        if other.schema < self.schema {
            self.reduce(other.schema);
        }
        for side in [Side::Positive, Side::Negative] {
            let (schema, threshold) = (self.schema, self.zero_threshold);
            // What lies within the zero bucket has been counted there.
            let counts = reduced(side_of(other, side), other.schema, schema)
                .into_iter()
                .skip_while(|(index, _)| !custom && exponential_bound(*index, schema) <= threshold);
            let own = if side == Side::Positive { &mut self.positive } else { &mut self.negative };
            add_counts(own, counts, sign);
        }
        Ok(added)
    }

    /// Multiplies all counts and the sum. A negative factor makes a gauge.
    pub(crate) fn scale(&mut self, factor: f64) {
        self.for_each_count(|count| {
            count.sum *= factor;
            count.compensation *= factor;
        });
        if factor < 0.0 {
            self.hint = CounterResetHint::Gauge;
        }
    }

    /// Divides all counts and the sum; unlike multiplying with the inverse, this rounds once.
    pub(crate) fn divide(&mut self, divisor: f64) {
        self.for_each_count(|count| {
            count.sum /= divisor;
            count.compensation /= divisor;
        });
    }

    /// Whether any count or the sum has become infinite.
    pub(crate) fn has_overflow(&self) -> bool {
        let infinite = |count: &KahanSum| count.sum.is_infinite();
        [&self.zero_count, &self.count, &self.sum].into_iter().any(infinite)
            || self.positive.iter().chain(&self.negative).any(|(_, count)| infinite(count))
    }

    /// The sum as a histogram. It may have buckets without observations.
    pub(crate) fn finish(self) -> Histogram {
        let buckets = |counts: &Counts| {
            Buckets::from_indexed(counts.iter().map(|(index, count)| (*index, count.corrected())))
        };
        Histogram {
            hint: self.hint,
            schema: self.schema,
            zero_threshold: self.zero_threshold,
            zero_count: self.zero_count.corrected(),
            count: self.count.corrected(),
            sum: self.sum.corrected(),
            positive: buckets(&self.positive),
            negative: buckets(&self.negative),
            custom_values: self.custom_values,
        }
    }

    fn for_each_count(&mut self, mut change: impl FnMut(&mut KahanSum)) {
        [&mut self.zero_count, &mut self.count, &mut self.sum].into_iter().for_each(&mut change);
        self.positive.iter_mut().chain(&mut self.negative).for_each(|(_, count)| change(count));
    }

    fn reduce(&mut self, schema: i32) {
        for counts in [&mut self.positive, &mut self.negative] {
            let mut merged: Counts = Vec::with_capacity(counts.len());
            for (index, count) in counts.iter() {
                let index = coarser_index(*index, self.schema, schema);
                match merged.last_mut() {
                    Some((last, total)) if *last == index => {
                        total.add(count.sum);
                        total.add(count.compensation);
                    }
                    _ => merged.push((index, *count)),
                }
            }
            *counts = merged;
        }
        self.schema = schema;
    }

    /// Widens the zero bucket until both histograms could have it. Returns the other's count in it.
    fn reconcile_zero_buckets(&mut self, other: &Histogram) -> f64 {
        let (mut other_count, mut other_threshold) = (other.zero_count, other.zero_threshold);
        while other_threshold != self.zero_threshold {
            if self.zero_threshold > other_threshold {
                (other_count, other_threshold) = widened_zero_bucket(other, self.zero_threshold);
            }
            if other_threshold > self.zero_threshold {
                let own = self.clone().finish();
                let (_, threshold) = widened_zero_bucket(&own, other_threshold);
                self.absorb_into_zero_bucket(threshold);
            }
            if other_threshold.is_nan() || self.zero_threshold.is_nan() {
                break;
            }
        }
        other_count
    }

    fn absorb_into_zero_bucket(&mut self, threshold: f64) {
        self.zero_threshold = threshold;
        for counts in [&mut self.positive, &mut self.negative] {
            let absorbed = counts.partition_point(|(index, _)| {
                exponential_bound(index.saturating_sub(1), self.schema) < threshold
            });
            for (_, count) in counts.drain(..absorbed) {
                self.zero_count.add(count.sum);
                self.zero_count.add(count.compensation);
            }
        }
    }
}

/// The count that the zero bucket would have with a larger threshold, and that threshold: moved to the end of
/// a bucket with observations if it would cut one.
pub(super) fn widened_zero_bucket(histogram: &Histogram, threshold: f64) -> (f64, f64) {
    let mut threshold = threshold;
    if threshold == histogram.zero_threshold {
        return (histogram.zero_count, threshold);
    }
    loop {
        let mut count = histogram.zero_count;
        let mut cut = None;
        'sides: for side in [Side::Positive, Side::Negative] {
            for bucket in side_buckets(histogram, side) {
                // Both sides look alike in magnitudes.
                let (near, far) = match side {
                    Side::Positive => (bucket.lower, bucket.upper),
                    Side::Negative => (-bucket.upper, -bucket.lower),
                };
                if near >= threshold {
                    break;
                }
                count += bucket.count;
                if far > threshold {
                    if bucket.count != 0.0 {
                        cut = Some(far);
                        break 'sides;
                    }
                    break;
                }
            }
        }
        match cut {
            // What the sides hold below the moved threshold has to be counted again.
            Some(far) => threshold = far,
            None => return (count, threshold),
        }
    }
}

/// What is known of a sum's counter resets, and whether the parts contradict each other.
fn merged_hint(a: CounterResetHint, b: CounterResetHint) -> (CounterResetHint, bool) {
    use CounterResetHint::{Gauge, Unknown};
    match (a, b) {
        _ if a == b => (a, false),
        (Gauge, _) | (_, Gauge) => (Gauge, false),
        (Unknown, _) | (_, Unknown) => (Unknown, false),
        _ => (Unknown, true),
    }
}

/// The index at a lower resolution of the bucket that has `index` at a higher one.
pub(super) fn coarser_index(index: i32, from: i32, to: i32) -> i32 {
    (index.wrapping_sub(1) >> from.saturating_sub(to).clamp(0, 31)).wrapping_add(1)
}

/// Buckets at a lower resolution.
pub(super) fn reduced(buckets: &Buckets, from: i32, to: i32) -> Vec<(i32, f64)> {
    if from <= to {
        return buckets.iter().collect();
    }
    let mut merged: Vec<(i32, f64)> = Vec::new();
    for (index, count) in buckets.iter() {
        let index = coarser_index(index, from, to);
        match merged.last_mut() {
            Some((last, total)) if *last == index => *total += count,
            _ => merged.push((index, count)),
        }
    }
    merged
}

/// Adds `sign` times the other counts.
fn add_counts(own: &mut Counts, other: impl Iterator<Item = (i32, f64)>, sign: f64) {
    let mut at = 0;
    let mut new: Counts = Vec::new();
    for (index, count) in other {
        while own.get(at).is_some_and(|(own_index, _)| *own_index < index) {
            at += 1;
        }
        match own.get_mut(at) {
            Some((own_index, own_count)) if *own_index == index => own_count.add(sign * count),
            _ => new.push((index, KahanSum::new(sign * count))),
        }
    }
    if !new.is_empty() {
        own.append(&mut new);
        own.sort_by_key(|(index, _)| *index);
    }
}

/// Whether two lists of bounds are equal.
pub(super) fn same_bounds(a: &Arc<[f64]>, b: &Arc<[f64]>) -> bool {
    Arc::ptr_eq(a, b) || a == b
}

/// The bounds that both ascending lists have.
pub(super) fn common_bounds(a: &[f64], b: &[f64]) -> Arc<[f64]> {
    let is_in_b = |bound: &&f64| b.binary_search_by(|other| other.total_cmp(bound)).is_ok();
    a.iter().filter(is_in_b).copied().collect()
}

/// Counts of buckets with `bounds` in buckets with a part of these bounds. Empty buckets are left out.
fn rebucket(counts: &Counts, bounds: &[f64], common: &[f64]) -> Counts {
    let mut target: Counts = Vec::new();
    for (index, count) in counts {
        let bound = usize::try_from(*index).ok().and_then(|index| bounds.get(index));
        // Above the last common bound there is only the bucket that ends at +Inf.
        let place = bound.map_or(common.len(), |bound| common.partition_point(|common| common < bound));
        let place = i32::try_from(place).unwrap_or(i32::MAX);
        match target.last_mut() {
            Some((last, total)) if *last == place => {
                total.add(count.sum);
                total.add(count.compensation);
            }
            _ => target.push((place, *count)),
        }
    }
    target.retain(|(_, count)| count.corrected() != 0.0);
    target
}

/// A histogram with all counts and the sum multiplied. A negative factor makes a gauge.
pub(crate) fn multiplied(mut product: Histogram, factor: f64) -> Histogram {
    for_each_count(&mut product, |count| *count *= factor);
    if factor < 0.0 {
        product.hint = CounterResetHint::Gauge;
    }
    product
}

/// A histogram with all counts and the sum divided. Division by zero leaves no buckets.
pub(crate) fn divided(mut quotient: Histogram, divisor: f64) -> Histogram {
    for_each_count(&mut quotient, |count| *count /= divisor);
    if divisor == 0.0 {
        quotient.positive = Buckets::default();
        quotient.negative = Buckets::default();
    } else if divisor < 0.0 {
        quotient.hint = CounterResetHint::Gauge;
    }
    quotient
}

fn for_each_count(histogram: &mut Histogram, mut change: impl FnMut(&mut f64)) {
    let Histogram { zero_count, count, sum, .. } = histogram;
    [zero_count, count, sum].into_iter().for_each(&mut change);
    histogram.positive.counts_mut().iter_mut().for_each(&mut change);
    histogram.negative.counts_mut().iter_mut().for_each(&mut change);
}

/// A histogram at a lower resolution.
pub(crate) fn with_schema(histogram: &Histogram, schema: i32) -> Histogram {
    if histogram.schema == schema {
        return histogram.clone();
    }
    let reduce = |buckets| Buckets::from_indexed(reduced(buckets, histogram.schema, schema));
    Histogram {
        hint: CounterResetHint::Unknown,
        schema,
        positive: reduce(&histogram.positive),
        negative: reduce(&histogram.negative),
        ..histogram.clone()
    }
}

/// The sum of two histograms; nothing if one has exponential and the other custom buckets.
pub fn histogram_sum(a: &Histogram, b: &Histogram) -> Option<Histogram> {
    let mut sum = HistogramSum::from(a);
    sum.add(b).ok().map(|_| sum.finish())
}

/// The difference of two histograms, likewise. Its hint is made as that of a sum.
pub fn histogram_difference(a: &Histogram, b: &Histogram) -> Option<Histogram> {
    let mut sum = HistogramSum::from(a);
    sum.subtract(b).ok().map(|_| sum.finish())
}

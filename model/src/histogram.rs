//! Native histograms: one sample that is a whole distribution.
//!
//! The layout is that of Prometheus's `model/histogram` (float histograms): counts are absolute, and runs of
//! buckets are described by [`Span`]s. What can be computed with histograms lives in `promql`, as storing and
//! moving them needs none of it.
//!
//! Histograms of whole numbers and of floats have one type: a count is a double, and whole numbers up to 2^53
//! are exact in it. `check.rs`: what a sender may send; `bytes.rs`: one histogram as bytes.

mod bytes;
mod check;
#[cfg(test)]
pub(crate) mod random;

use std::sync::Arc;

pub use check::{BUCKETS_MAX, CountKind, InvalidHistogram};

use crate::is_stale_nan;

/// The schema of histograms whose bucket bounds are listed one by one.
pub const CUSTOM_BUCKETS_SCHEMA: i32 = -53;

/// A distribution of observations.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Histogram {
    /// What is known about a counter reset before this sample.
    pub hint: CounterResetHint,
    /// Resolution: each power of two has `2^schema` buckets, from -4 to 8; or [`CUSTOM_BUCKETS_SCHEMA`].
    pub schema: i32,
    /// Observations with at most this magnitude are in the zero bucket.
    pub zero_threshold: f64,
    /// Observations in the zero bucket.
    pub zero_count: f64,
    /// All observations, those that were NaN included.
    pub count: f64,
    /// Sum of the observations; the stale marker makes the sample stale.
    pub sum: f64,
    /// Buckets above zero, or all buckets of a histogram with custom bounds.
    pub positive: Buckets,
    /// Buckets below zero; indexes grow away from zero.
    pub negative: Buckets,
    /// Upper bounds of custom buckets, strictly ascending, without +Inf. Empty in other schemas.
    pub custom_values: Arc<[f64]>,
}

/// What is known about a counter reset between the sample before and this one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum CounterResetHint {
    /// Nothing; the counts have to be compared.
    #[default]
    Unknown,
    /// There was one.
    Reset,
    /// There was none.
    NotReset,
    /// The histogram is no counter.
    Gauge,
}

/// Consecutive buckets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Span {
    /// Distance to the end of the span before; of the first span, the index of its first bucket.
    pub offset: i32,
    /// How many buckets.
    pub length: u32,
}

/// The buckets of one side. Each has an index; counts are absolute.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Buckets {
    spans: Vec<Span>,
    counts: Vec<f64>,
}

/// Spans and counts that do not fit each other.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid histogram: {0}")]
pub struct InvalidBuckets(String);

impl Buckets {
    /// Checks that the spans describe as many buckets as there are counts, in ascending order.
    pub fn new(spans: Vec<Span>, counts: Vec<f64>) -> Result<Self, InvalidBuckets> {
        let mut described = 0_usize;
        let mut index = 0_i32;
        for (i, span) in spans.iter().enumerate() {
            if i > 0 && span.offset < 0 {
                return Err(InvalidBuckets(format!("span number {} with offset {}", i + 1, span.offset)));
            }
            let length = i32::try_from(span.length).ok();
            let end = length.and_then(|length| index.checked_add(span.offset)?.checked_add(length));
            index = end.ok_or_else(|| InvalidBuckets("a bucket index needs more than 32 bits".into()))?;
            described = described.saturating_add(span.length as usize);
        }
        if described != counts.len() {
            let text = format!("spans need {described} buckets, have {} buckets", counts.len());
            return Err(InvalidBuckets(text));
        }
        Ok(Self { spans, counts })
    }

    /// Buckets with strictly ascending indexes.
    pub fn from_indexed(buckets: impl IntoIterator<Item = (i32, f64)>) -> Self {
        let mut spans: Vec<Span> = Vec::new();
        let mut counts = Vec::new();
        // One past the last index; 64 bits hold every distance.
        let mut end = 0_i64;
        for (index, count) in buckets {
            let gap = i64::from(index) - end;
            debug_assert!(spans.is_empty() || gap >= 0, "bucket indexes must ascend");
            match spans.last_mut() {
                Some(span) if gap == 0 => span.length += 1,
                _ => spans.push(Span { offset: i32::try_from(gap).unwrap_or(i32::MAX), length: 1 }),
            }
            counts.push(count);
            end = i64::from(index) + 1;
        }
        Self { spans, counts }
    }

    /// The spans.
    pub fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// The counts, in the order of the indexes.
    pub fn counts(&self) -> &[f64] {
        &self.counts
    }

    /// The counts, to be changed.
    pub fn counts_mut(&mut self) -> &mut [f64] {
        &mut self.counts
    }

    /// Whether there is no bucket at all.
    pub fn is_empty(&self) -> bool {
        self.counts.is_empty()
    }

    /// Index and count of each bucket, ascending by index.
    pub fn iter(&self) -> impl Iterator<Item = (i32, f64)> + '_ {
        let mut end = 0_i32;
        let indexes = self.spans.iter().flat_map(move |span| {
            let start = end.wrapping_add(span.offset);
            end = start.wrapping_add_unsigned(span.length);
            start..end
        });
        indexes.zip(self.counts.iter().copied())
    }

    /// Removes buckets without observations and joins spans that touch (Prometheus's `Compact(0)`).
    pub fn compact(&mut self) {
        let joined = self.spans.iter().skip(1).all(|span| span.offset > 0 && span.length > 0)
            && self.spans.first().is_none_or(|span| span.length > 0);
        if !joined || self.counts.contains(&0.0) {
            let kept: Vec<(i32, f64)> = self.iter().filter(|(_, count)| *count != 0.0).collect();
            *self = Self::from_indexed(kept);
        }
    }
}

impl Histogram {
    /// Whether the bounds of the buckets are listed one by one.
    pub fn uses_custom_buckets(&self) -> bool {
        self.schema == CUSTOM_BUCKETS_SCHEMA
    }

    /// Whether the sample ends its series, as the stale marker does for floats.
    pub fn is_stale(&self) -> bool {
        is_stale_nan(self.sum)
    }

    /// Removes buckets without observations.
    pub fn compact(&mut self) {
        self.positive.compact();
        self.negative.compact();
    }

    /// The bytes that Prometheus counts for a histogram (`FloatHistogram.Size`).
    pub fn size_bytes(&self) -> usize {
        let side = |side: &Buckets| 8 * (side.spans.len() + side.counts.len());
        168 + side(&self.positive) + side(&self.negative) + 8 * self.custom_values.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_and_indexes_are_the_same_thing() {
        let spans = vec![Span { offset: -2, length: 2 }, Span { offset: 3, length: 1 }];
        let buckets = Buckets::new(spans, vec![1.0, 0.0, 5.0]).expect("valid");
        assert_eq!(buckets.iter().collect::<Vec<_>>(), [(-2, 1.0), (-1, 0.0), (3, 5.0)]);
        assert_eq!(Buckets::from_indexed(buckets.iter()), buckets);
        let mut compact = buckets.clone();
        compact.compact();
        assert_eq!(compact.iter().collect::<Vec<_>>(), [(-2, 1.0), (3, 5.0)]);
        assert_eq!(compact.spans(), [Span { offset: -2, length: 1 }, Span { offset: 4, length: 1 }]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let span = |offset, length| Span { offset, length };
        assert!(Buckets::new(vec![span(0, 2)], vec![1.0]).is_err());
        assert!(Buckets::new(vec![span(0, 1), span(-1, 1)], vec![1.0, 2.0]).is_err());
        assert!(Buckets::new(vec![span(i32::MAX, 1)], vec![1.0]).is_err());
        assert!(Buckets::new(vec![span(0, u32::MAX)], vec![1.0]).is_err());
    }
}

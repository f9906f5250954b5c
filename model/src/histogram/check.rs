//! What a native histogram that somebody sends must look like to be stored.
//!
//! The rules are those of `Histogram.Validate` and `FloatHistogram.Validate` of Prometheus's
//! `model/histogram`, and a bound on the number of buckets.

use super::{Buckets, CounterResetHint, Histogram};

/// Most buckets, of both sides together, and most custom bounds of a histogram that is stored. Senders limit theirs to a
/// few hundred.
pub const BUCKETS_MAX: usize = 8192;
/// Resolutions that are stored. Finer ones are reduced to the finest.
const SCHEMAS: std::ops::RangeInclusive<i32> = -4..=8;
/// The finest resolution that may be sent.
const SCHEMA_SENT_MAX: i32 = 52;

/// What a sender counts in. Only of whole numbers it can be asked that the buckets add up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CountKind {
    /// Whole numbers.
    Integer,
    /// Doubles.
    Float,
}

/// A histogram that contradicts itself or is too large.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid native histogram: {0}")]
pub struct InvalidHistogram(pub String);

fn invalid<T>(reason: impl Into<String>) -> Result<T, InvalidHistogram> {
    Err(InvalidHistogram(reason.into()))
}

impl Histogram {
    /// Whether it has more than [`BUCKETS_MAX`] buckets or bounds.
    pub fn is_too_large(&self) -> bool {
        self.positive.counts.len() + self.negative.counts.len() > BUCKETS_MAX
            || self.custom_values.len() > BUCKETS_MAX
    }

    /// Checks a histogram that was sent, and brings it into the form that is stored: a resolution that is
    /// known, spans that do not touch, and no claim that there was no reset. (Such a claim is about the
    /// sample that the sender sent before, which need not be the sample before in storage.)
    ///
    /// # Errors
    /// The reason, in Prometheus's words.
    pub fn admit(mut self, kind: CountKind) -> Result<Self, InvalidHistogram> {
        if self.is_too_large() {
            return invalid(format!(
                "{} buckets and {} bounds are over the limit of {BUCKETS_MAX}",
                self.positive.counts.len() + self.negative.counts.len(),
                self.custom_values.len()
            ));
        }
        if self.uses_custom_buckets() {
            self.check_custom()?;
        } else {
            if !(*SCHEMAS.start()..=SCHEMA_SENT_MAX).contains(&self.schema) {
                return invalid(format!(
                    "schema {}: histogram has an invalid schema, which must be between -4 and 8 for \
                     exponential buckets, or -53 for custom buckets",
                    self.schema
                ));
            }
            if !self.custom_values.is_empty() {
                return invalid("histogram with exponential schema must not have custom bounds");
            }
        }
        self.check_counts(kind)?;
        if self.hint == CounterResetHint::NotReset {
            self.hint = CounterResetHint::Unknown;
        }
        let levels = if self.uses_custom_buckets() { 0 } else { (self.schema - SCHEMAS.end()).max(0) };
        self.schema -= levels;
        for side in [&mut self.positive, &mut self.negative] {
            *side = reduced(side, levels);
        }
        Ok(self)
    }

    fn check_custom(&self) -> Result<(), InvalidHistogram> {
        let bounds = &self.custom_values;
        if bounds.iter().any(|bound| bound.is_nan()) {
            return invalid("custom buckets: histogram custom bounds must not be NaN");
        }
        if !bounds.is_sorted_by(|a, b| a < b) || bounds.first() == Some(&f64::NEG_INFINITY) {
            return invalid("custom buckets: histogram custom bounds must be in strictly increasing order");
        }
        if bounds.last() == Some(&f64::INFINITY) {
            return invalid("custom buckets: last +Inf bound must not be explicitly defined");
        }
        if self.positive.spans.first().is_some_and(|span| span.offset < 0) {
            return invalid("custom buckets: histogram has a span whose offset is negative");
        }
        let length: i64 =
            self.positive.spans.iter().map(|span| i64::from(span.offset) + i64::from(span.length)).sum();
        if i64::try_from(bounds.len()).is_ok_and(|bounds| bounds + 1 < length) {
            return invalid(format!(
                "custom buckets: only {} custom bounds defined which is insufficient to cover total span \
                 length of {length}",
                bounds.len()
            ));
        }
        if self.zero_count != 0.0 || self.zero_threshold != 0.0 || !self.negative.spans.is_empty() {
            return invalid("custom buckets: must have neither a zero bucket nor negative buckets");
        }
        Ok(())
    }

    fn check_counts(&self, kind: CountKind) -> Result<(), InvalidHistogram> {
        let mut in_buckets = self.zero_count;
        for (side, name) in [(&self.negative, "negative"), (&self.positive, "positive")] {
            if let Some(at) = side.counts.iter().position(|count| *count < 0.0) {
                return invalid(format!(
                    "{name} side: bucket number {} has observation count of {}: histogram has a bucket whose \
                     observation count is negative",
                    at + 1,
                    side.counts[at]
                ));
            }
            in_buckets += side.counts.iter().sum::<f64>();
        }
        if self.zero_count < 0.0 || self.count < 0.0 {
            return invalid("histogram has a negative count");
        }
        let count = self.count;
        match kind {
            CountKind::Float => Ok(()),
            CountKind::Integer if self.sum.is_nan() && in_buckets > count => invalid(format!(
                "{in_buckets} observations found in buckets, but the Count field is {count}: histogram's \
                 observation count should be at least the number of observations found in the buckets"
            )),
            CountKind::Integer if !self.sum.is_nan() && in_buckets != count => invalid(format!(
                "{in_buckets} observations found in buckets, but the Count field is {count}: histogram's \
                 observation count should equal the number of observations found in the buckets (in \
                 absence of NaN)"
            )),
            CountKind::Integer => Ok(()),
        }
    }
}

/// The buckets at a resolution that is `levels` coarser, with spans that do not touch. A bucket of index i
/// holds what is above bound i - 1 and not above bound i, and each level leaves every other bound out.
fn reduced(side: &Buckets, levels: i32) -> Buckets {
    let mut merged: Vec<(i32, f64)> = Vec::with_capacity(side.counts.len());
    for (index, count) in side.iter() {
        // ceil(index / 2^levels)
        let index = -(-i64::from(index) >> levels);
        let index = i32::try_from(index).expect("it is not larger than before");
        match merged.last_mut() {
            Some((last, sum)) if *last == index => *sum += count,
            _ => merged.push((index, count)),
        }
    }
    Buckets::from_indexed(merged)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CUSTOM_BUCKETS_SCHEMA, Span};
    use std::sync::Arc;

    fn exponential() -> Histogram {
        Histogram {
            count: 10.0,
            zero_count: 2.0,
            sum: 7.5,
            positive: Buckets::from_indexed([(0, 3.0), (4, 4.0)]),
            negative: Buckets::from_indexed([(1, 1.0)]),
            ..Histogram::default()
        }
    }

    fn custom() -> Histogram {
        Histogram {
            schema: CUSTOM_BUCKETS_SCHEMA,
            count: 3.0,
            sum: 7.5,
            positive: Buckets::from_indexed([(0, 1.0), (2, 2.0)]),
            custom_values: Arc::from([1.0, 2.0]),
            ..Histogram::default()
        }
    }

    #[test]
    fn what_adds_up_is_admitted() {
        assert_eq!(exponential().admit(CountKind::Integer), Ok(exponential()));
        assert_eq!(custom().admit(CountKind::Integer), Ok(custom()));
        let with_nan = Histogram { sum: f64::NAN, count: 11.0, ..exponential() };
        assert!(with_nan.admit(CountKind::Integer).is_ok());
        let float = Histogram { count: 10.5, ..exponential() };
        assert!(float.admit(CountKind::Float).is_ok());
        let stale = Histogram { sum: f64::from_bits(crate::STALE_NAN_BITS), ..Histogram::default() };
        assert!(stale.admit(CountKind::Integer).is_ok());
        let sure = Histogram { hint: CounterResetHint::NotReset, ..exponential() };
        assert_eq!(sure.admit(CountKind::Integer), Ok(exponential()));
        let gauge = Histogram { hint: CounterResetHint::Gauge, ..exponential() };
        assert_eq!(gauge.clone().admit(CountKind::Integer), Ok(gauge));
    }

    #[test]
    fn what_contradicts_itself_is_refused_with_the_reason() {
        let refused = |histogram: Histogram, kind| match histogram.admit(kind) {
            Ok(admitted) => panic!("admitted: {admitted:?}"),
            Err(InvalidHistogram(reason)) => reason,
        };
        let integer = CountKind::Integer;
        let cases = [
            (Histogram { count: 9.0, ..exponential() }, "should equal the number"),
            (Histogram { count: 9.0, sum: f64::NAN, ..exponential() }, "should be at least"),
            (Histogram { schema: -5, ..exponential() }, "invalid schema"),
            (Histogram { schema: 53, ..exponential() }, "invalid schema"),
            (Histogram { custom_values: Arc::from([1.0]), ..exponential() }, "must not have custom bounds"),
            (
                Histogram { positive: Buckets::from_indexed([(0, -1.0)]), ..exponential() },
                "positive side: bucket number 1 has observation count of -1",
            ),
            (
                Histogram {
                    positive: Buckets::from_indexed((0..8193).map(|i| (i, 0.0))),
                    ..Histogram::default()
                },
                "over the limit of 8192",
            ),
            (Histogram { custom_values: Arc::from([2.0, 1.0]), ..custom() }, "strictly increasing"),
            (Histogram { custom_values: Arc::from([1.0, f64::NAN]), ..custom() }, "must not be NaN"),
            (Histogram { custom_values: Arc::from([1.0, f64::INFINITY]), ..custom() }, "+Inf"),
            (Histogram { custom_values: Arc::from([1.0]), ..custom() }, "only 1 custom bounds"),
            (Histogram { zero_threshold: 1.0, ..custom() }, "zero bucket"),
            (Histogram { positive: Buckets::from_indexed([(-1, 3.0)]), ..custom() }, "offset is negative"),
        ];
        for (histogram, want) in cases {
            let reason = refused(histogram, integer);
            assert!(reason.contains(want), "{want} not in {reason}");
        }
        assert!(refused(Histogram { count: -1.0, ..exponential() }, CountKind::Float).contains("negative"));
    }

    #[test]
    fn finer_resolutions_are_reduced_and_spans_joined() {
        let fine = Histogram {
            schema: 10,
            count: 15.0,
            positive: Buckets::from_indexed([(-4, 1.0), (-3, 2.0), (1, 4.0), (4, 3.0), (5, 5.0)]),
            ..Histogram::default()
        };
        let admitted = fine.admit(CountKind::Integer).expect("it adds up");
        assert_eq!(admitted.schema, 8);
        let buckets: Vec<(i32, f64)> = admitted.positive.iter().collect();
        assert_eq!(buckets, [(-1, 1.0), (0, 2.0), (1, 7.0), (2, 5.0)]);

        let finest = Histogram {
            schema: 52,
            positive: Buckets::from_indexed([(i32::MIN, 0.0), (-7, 0.0)]),
            ..Histogram::default()
        };
        assert!(finest.admit(CountKind::Integer).is_ok());

        let spans =
            vec![Span { offset: 1, length: 0 }, Span { offset: 1, length: 1 }, Span { offset: 0, length: 2 }];
        let positive = Buckets::new(spans, vec![1.0, 0.0, 2.0]).expect("they fit");
        let split = Histogram { positive, count: 3.0, ..Histogram::default() };
        let admitted = split.admit(CountKind::Integer).expect("it adds up");
        assert_eq!(admitted.positive.spans(), [Span { offset: 2, length: 3 }]);
        assert_eq!(admitted.positive.counts(), [1.0, 0.0, 2.0]);
    }
}

//! The message `prometheus.Histogram` of remote-write and remote-read.
//!
//! Source: `prompb/types.proto` of Prometheus. The message has two flavours: counts that are whole numbers, with
//! buckets as differences to the bucket before, and counts that are doubles. prost decodes it: next to the
//! buckets that a histogram has, a walk in place would save little.

use prost::Message;
use saturn_model::{Buckets, CountKind, CounterResetHint, Histogram, InvalidHistogram, Span};

/// Counts below this are exact as doubles, which they are from here on.
const COUNT_BOUND: u64 = 1 << 53;

/// `prometheus.Histogram`
#[derive(Clone, PartialEq, Message)]
pub struct PbHistogram {
    /// All observations, in the flavour of whole numbers.
    #[prost(uint64, optional, tag = "1")]
    pub count_int: Option<u64>,
    /// All observations, in the flavour of doubles.
    #[prost(double, optional, tag = "2")]
    pub count_float: Option<f64>,
    /// Sum of the observations.
    #[prost(double, tag = "3")]
    pub sum: f64,
    /// -4 to 8, or -53.
    #[prost(sint32, tag = "4")]
    pub schema: i32,
    /// Width of the zero bucket.
    #[prost(double, tag = "5")]
    pub zero_threshold: f64,
    /// Of whole numbers.
    #[prost(uint64, optional, tag = "6")]
    pub zero_count_int: Option<u64>,
    /// Of doubles.
    #[prost(double, optional, tag = "7")]
    pub zero_count_float: Option<f64>,
    /// Which buckets there are below zero.
    #[prost(message, repeated, tag = "8")]
    pub negative_spans: Vec<BucketSpan>,
    /// Of whole numbers: differences to the bucket before.
    #[prost(sint64, repeated, tag = "9")]
    pub negative_deltas: Vec<i64>,
    /// Of doubles.
    #[prost(double, repeated, tag = "10")]
    pub negative_counts: Vec<f64>,
    /// Which buckets there are above zero.
    #[prost(message, repeated, tag = "11")]
    pub positive_spans: Vec<BucketSpan>,
    /// Of whole numbers: differences to the bucket before.
    #[prost(sint64, repeated, tag = "12")]
    pub positive_deltas: Vec<i64>,
    /// Of doubles.
    #[prost(double, repeated, tag = "13")]
    pub positive_counts: Vec<f64>,
    /// 0 unknown, 1 yes, 2 no, 3 gauge.
    #[prost(int32, tag = "14")]
    pub reset_hint: i32,
    /// Milliseconds.
    #[prost(int64, tag = "15")]
    pub timestamp: i64,
    /// Bounds of custom buckets.
    #[prost(double, repeated, tag = "16")]
    pub custom_values: Vec<f64>,
}

/// `prometheus.BucketSpan`
#[derive(Clone, PartialEq, Message)]
pub struct BucketSpan {
    /// Distance to the span before.
    #[prost(sint32, tag = "1")]
    pub offset: i32,
    /// Number of buckets.
    #[prost(uint32, tag = "2")]
    pub length: u32,
}

impl PbHistogram {
    /// The histogram that the message describes, checked ([`Histogram::admit`]).
    ///
    /// # Errors
    /// What is wrong with it, in Prometheus's words.
    pub fn to_model(&self) -> Result<Histogram, InvalidHistogram> {
        let kind = if self.count_float.is_some() { CountKind::Float } else { CountKind::Integer };
        let (count, zero_count) = match kind {
            CountKind::Float => {
                (self.count_float.unwrap_or_default(), self.zero_count_float.unwrap_or_default())
            }
            CountKind::Integer => {
                (whole(self.count_int.unwrap_or_default())?, whole(self.zero_count_int.unwrap_or_default())?)
            }
        };
        let side = |name: &str, spans: &[BucketSpan], deltas: &[i64], counts: &[f64]| {
            let counts = match kind {
                CountKind::Float => counts.to_vec(),
                CountKind::Integer => absolute(name, deltas)?,
            };
            let span = |span: &BucketSpan| Span { offset: span.offset, length: span.length };
            Buckets::new(spans.iter().map(span).collect(), counts)
                .map_err(|error| InvalidHistogram(format!("{name} side: {error}")))
        };
        let histogram = Histogram {
            hint: match self.reset_hint {
                1 => CounterResetHint::Reset,
                2 => CounterResetHint::NotReset,
                3 => CounterResetHint::Gauge,
                _ => CounterResetHint::Unknown,
            },
            schema: self.schema,
            zero_threshold: self.zero_threshold,
            zero_count,
            count,
            sum: self.sum,
            positive: side("positive", &self.positive_spans, &self.positive_deltas, &self.positive_counts)?,
            negative: side("negative", &self.negative_spans, &self.negative_deltas, &self.negative_counts)?,
            custom_values: self.custom_values.clone().into(),
        };
        histogram.admit(kind)
    }

    /// A sample as a message: of whole numbers, if all counts are.
    pub fn from_model(timestamp: i64, histogram: &Histogram) -> Self {
        let spans = |side: &Buckets| {
            let span = |span: &Span| BucketSpan { offset: span.offset, length: span.length };
            side.spans().iter().map(span).collect()
        };
        let mut message = Self {
            sum: histogram.sum,
            schema: histogram.schema,
            zero_threshold: histogram.zero_threshold,
            negative_spans: spans(&histogram.negative),
            positive_spans: spans(&histogram.positive),
            reset_hint: match histogram.hint {
                CounterResetHint::Unknown => 0,
                CounterResetHint::Reset => 1,
                CounterResetHint::NotReset => 2,
                CounterResetHint::Gauge => 3,
            },
            timestamp,
            custom_values: histogram.custom_values.to_vec(),
            ..Self::default()
        };
        if histogram.has_whole_counts() {
            message.count_int = Some(to_whole(histogram.count).unsigned_abs());
            message.zero_count_int = Some(to_whole(histogram.zero_count).unsigned_abs());
            message.negative_deltas = deltas(histogram.negative.counts());
            message.positive_deltas = deltas(histogram.positive.counts());
        } else {
            message.count_float = Some(histogram.count);
            message.zero_count_float = Some(histogram.zero_count);
            message.negative_counts = histogram.negative.counts().to_vec();
            message.positive_counts = histogram.positive.counts().to_vec();
        }
        message
    }
}

#[expect(clippy::cast_precision_loss, reason = "the number was checked to be below 2^53")]
fn whole(count: u64) -> Result<f64, InvalidHistogram> {
    if count >= COUNT_BOUND {
        return Err(InvalidHistogram(format!(
            "the count {count} is not below 2^53, and would not be kept exactly"
        )));
    }
    Ok(count as f64)
}

#[expect(clippy::cast_possible_truncation, reason = "the count is whole and below 2^53")]
fn to_whole(count: f64) -> i64 {
    count as i64
}

/// Counts of whole numbers from their differences.
fn absolute(side: &str, deltas: &[i64]) -> Result<Vec<f64>, InvalidHistogram> {
    let mut count = 0_i64;
    let mut counts = Vec::with_capacity(deltas.len());
    for (delta, number) in deltas.iter().zip(1..) {
        count = count.saturating_add(*delta);
        let positive = u64::try_from(count).map_err(|_| {
            InvalidHistogram(format!(
                "{side} side: bucket number {number} has observation count of {count}: histogram has a bucket \
                 whose observation count is negative"
            ))
        })?;
        counts.push(whole(positive)?);
    }
    Ok(counts)
}

fn deltas(counts: &[f64]) -> Vec<i64> {
    let mut last = 0;
    let delta = |count: &f64| {
        let count = to_whole(*count);
        let delta = count - last;
        last = count;
        delta
    };
    counts.iter().map(delta).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes(histogram: &Histogram) -> Vec<u8> {
        let mut bytes = Vec::new();
        histogram.append_bytes(&mut bytes);
        bytes
    }

    proptest! {
        #[test]
        fn both_flavours_survive(
            positive in proptest::collection::btree_map(-50_i32..50, 0_u32..1000, 0..9),
            negative in proptest::collection::btree_map(-50_i32..50, 0_u32..1000, 0..9),
            zero_count in 0_u32..9, scale in prop_oneof![Just(1.0), Just(0.25)], gauge in any::<bool>(),
        ) {
            let side = |buckets: &std::collections::BTreeMap<i32, u32>| {
                Buckets::from_indexed(buckets.iter().map(|(i, count)| (*i, f64::from(*count) * scale)))
            };
            let total: u32 = positive.values().chain(negative.values()).sum();
            let histogram = Histogram {
                hint: if gauge { CounterResetHint::Gauge } else { CounterResetHint::Unknown },
                schema: 2, zero_threshold: 0.001, zero_count: f64::from(zero_count) * scale,
                count: f64::from(total + zero_count) * scale, sum: 1.5,
                positive: side(&positive), negative: side(&negative), ..Histogram::default()
            };
            let message = PbHistogram::from_model(7, &histogram);
            let back = PbHistogram::decode(message.encode_to_vec().as_slice()).expect("own message");
            prop_assert_eq!(back.timestamp, 7);
            prop_assert_eq!(bytes(&back.to_model().expect("it adds up")), bytes(&histogram));
        }

        #[test]
        fn noise_never_panics(noise in proptest::collection::vec(any::<u8>(), 0..100)) {
            if let Ok(message) = PbHistogram::decode(noise.as_slice()) {
                let _ = message.to_model();
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let span = |offset, length| BucketSpan { offset, length };
        let good = PbHistogram {
            count_int: Some(3),
            zero_count_int: Some(0),
            positive_spans: vec![span(0, 2)],
            positive_deltas: vec![1, 1],
            ..PbHistogram::default()
        };
        assert_eq!(good.to_model().expect("it adds up").positive.counts(), [1.0, 2.0]);
        let refused = |message: PbHistogram| message.to_model().expect_err("refused").to_string();
        assert!(refused(PbHistogram { count_int: Some(4), ..good.clone() }).contains("should equal"));
        assert!(refused(PbHistogram { positive_deltas: vec![1, -2], ..good.clone() }).contains("negative"));
        let spans = vec![span(0, 3)];
        assert!(
            refused(PbHistogram { positive_spans: spans, ..good.clone() }).contains("spans need 3 buckets")
        );
        let spans = vec![span(0, 1), span(-1, 1)];
        assert!(refused(PbHistogram { positive_spans: spans, ..good.clone() }).contains("offset -1"));
        assert!(refused(PbHistogram { count_int: Some(1 << 53), ..good.clone() }).contains("2^53"));
        assert!(refused(PbHistogram { positive_deltas: vec![i64::MAX, 1], ..good }).contains("2^53"));
    }
}

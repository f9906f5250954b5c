//! A histogram as Prometheus's `FloatHistogram.String` writes it: `{count:2, sum:3, (1,2]:2}`.

use std::fmt::Write;

use saturn_model::Histogram;

use crate::go_text::format_general;
use crate::histogram::histogram_buckets;

/// Writes a histogram with its buckets that have observations, from the lowest to the highest.
pub(crate) fn describe(histogram: &Histogram) -> String {
    let mut text =
        format!("{{count:{}, sum:{}", format_general(histogram.count), format_general(histogram.sum));
    for bucket in histogram_buckets(histogram).iter().filter(|bucket| bucket.count != 0.0) {
        let open = if bucket.lower_inclusive { '[' } else { '(' };
        let close = if bucket.upper_inclusive { ']' } else { ')' };
        let (lower, upper) = (format_general(bucket.lower), format_general(bucket.upper));
        write!(text, ", {open}{lower},{upper}{close}:{}", format_general(bucket.count))
            .expect("a string can be written to");
    }
    text.push('}');
    text
}

//! One native histogram as bytes, and an order of all histograms.
//!
//! | field | bytes | content |
//! |---|---|---|
//! | flags | 1 | bits 0-1: reset hint (0 unknown, 1 reset, 2 not reset, 3 gauge); bit 2: all counts are whole numbers; bit 3: there are custom bounds; bit 4: there are negative buckets |
//! | schema | zigzag varint | |
//! | zero threshold, sum | 8 each | bits, little-endian |
//! | count, zero count | varint each, or 8 each | whole number, or bits |
//! | positive side | see below | |
//! | negative side | see below | only with its flag |
//! | bounds | varint, 8 each | only with their flag: how many, and their bits |
//!
//! A side:
//!
//! | field | bytes | content |
//! |---|---|---|
//! | spans | varint | how many |
//! | per span | zigzag varint, varint | offset, length |
//! | counts | zigzag varint each, or 8 each | of all buckets: whole numbers as difference to the one before (the first to 0), or bits |
//!
//! Invariant: histograms have equal bytes if and only if they have equal bits. Counts are written as whole
//! numbers whenever all of them are whole, not negative (so no -0) and below 2^53.

use std::cmp::Ordering;
use std::sync::Arc;

use super::{Buckets, CounterResetHint, Histogram, Span};

const WHOLE: u8 = 1 << 2;
const CUSTOM: u8 = 1 << 3;
const NEGATIVE: u8 = 1 << 4;
const KNOWN: u8 = (1 << 5) - 1;
/// 2^53: below it, every whole number is a double.
const WHOLE_BOUND: f64 = 9_007_199_254_740_992.0;

impl Histogram {
    /// Appends the histogram's bytes.
    pub fn append_bytes(&self, out: &mut Vec<u8>) {
        let whole = self.has_whole_counts();
        let flag = |set: bool, bit: u8| if set { bit } else { 0 };
        let has_negative = !self.negative.spans.is_empty();
        out.push(
            hint_bits(self.hint)
                | flag(whole, WHOLE)
                | flag(!self.custom_values.is_empty(), CUSTOM)
                | flag(has_negative, NEGATIVE),
        );
        put_zigzag(out, i64::from(self.schema));
        put_bits(out, self.zero_threshold);
        put_bits(out, self.sum);
        for count in [self.count, self.zero_count] {
            match whole {
                true => put_varint(out, whole_number(count).unsigned_abs()),
                false => put_bits(out, count),
            }
        }
        put_side(out, &self.positive, whole);
        if has_negative {
            put_side(out, &self.negative, whole);
        }
        if !self.custom_values.is_empty() {
            put_varint(out, self.custom_values.len() as u64);
            self.custom_values.iter().for_each(|bound| put_bits(out, *bound));
        }
    }

    /// Takes a histogram from the front of `bytes`. `None` if there is none; `bytes` is of no use then.
    pub fn take_bytes(bytes: &mut &[u8]) -> Option<Self> {
        let [flags] = *take(bytes)?;
        if flags & !KNOWN != 0 {
            return None;
        }
        let whole = flags & WHOLE > 0;
        let hint = hint_of(flags);
        let schema = i32::try_from(take_zigzag(bytes)?).ok()?;
        let (zero_threshold, sum) = (take_bits(bytes)?, take_bits(bytes)?);
        let mut take_count = || match whole {
            true => double(i64::try_from(take_varint(bytes)?).ok()?),
            false => take_bits(bytes),
        };
        let (count, zero_count) = (take_count()?, take_count()?);
        let positive = take_side(bytes, whole)?;
        let negative = if flags & NEGATIVE > 0 { take_side(bytes, whole)? } else { Buckets::default() };
        let bounds = if flags & CUSTOM > 0 { take_len(bytes, 8)? } else { 0 };
        let custom_values = (0..bounds).map(|_| take_bits(bytes)).collect::<Option<Arc<[f64]>>>()?;
        Some(Self { hint, schema, zero_threshold, zero_count, count, sum, positive, negative, custom_values })
    }

    /// Whether all counts are whole numbers that are stored as such.
    pub fn has_whole_counts(&self) -> bool {
        let counts = self.positive.counts.iter().chain(&self.negative.counts);
        [&self.count, &self.zero_count].into_iter().chain(counts).all(|count| is_whole(*count))
    }

    /// An order of all histograms by all their bits: more observations, then the larger sum is greater.
    pub fn total_cmp(&self, other: &Self) -> Ordering {
        let by_figures = self.count.total_cmp(&other.count).then(self.sum.total_cmp(&other.sum));
        by_figures.then_with(|| {
            let bytes = |histogram: &Self| {
                let mut bytes = Vec::new();
                histogram.append_bytes(&mut bytes);
                bytes
            };
            bytes(self).cmp(&bytes(other))
        })
    }
}

fn is_whole(count: f64) -> bool {
    count.is_sign_positive() && count < WHOLE_BOUND && count.fract() == 0.0
}

/// A count that [`is_whole`].
#[expect(clippy::cast_possible_truncation, reason = "the number is whole and below 2^53")]
fn whole_number(count: f64) -> i64 {
    count as i64
}

/// `None` if the number is no count that is stored as a whole number.
#[expect(clippy::cast_precision_loss, reason = "the number was checked to be below 2^53")]
fn double(number: i64) -> Option<f64> {
    (0..1 << 53).contains(&number).then_some(number as f64)
}

fn hint_bits(hint: CounterResetHint) -> u8 {
    match hint {
        CounterResetHint::Unknown => 0,
        CounterResetHint::Reset => 1,
        CounterResetHint::NotReset => 2,
        CounterResetHint::Gauge => 3,
    }
}

fn hint_of(bits: u8) -> CounterResetHint {
    match bits & 3 {
        0 => CounterResetHint::Unknown,
        1 => CounterResetHint::Reset,
        2 => CounterResetHint::NotReset,
        _ => CounterResetHint::Gauge,
    }
}

fn put_side(out: &mut Vec<u8>, side: &Buckets, whole: bool) {
    put_varint(out, side.spans.len() as u64);
    for span in &side.spans {
        put_zigzag(out, i64::from(span.offset));
        put_varint(out, u64::from(span.length));
    }
    let mut last = 0;
    for count in &side.counts {
        if whole {
            let count = whole_number(*count);
            put_zigzag(out, count - last);
            last = count;
        } else {
            put_bits(out, *count);
        }
    }
}

fn take_side(bytes: &mut &[u8], whole: bool) -> Option<Buckets> {
    let mut described = 0_u64;
    let mut spans = Vec::new();
    for _ in 0..take_len(bytes, 2)? {
        let offset = i32::try_from(take_zigzag(bytes)?).ok()?;
        let length = u32::try_from(take_varint(bytes)?).ok()?;
        described += u64::from(length);
        spans.push(Span { offset, length });
    }
    let buckets = usize::try_from(described).ok().filter(|n| fits(*n, if whole { 1 } else { 8 }, bytes))?;
    let mut counts = Vec::with_capacity(buckets);
    let mut last = 0_i64;
    for _ in 0..buckets {
        counts.push(if whole {
            last = last.checked_add(take_zigzag(bytes)?)?;
            double(last)?
        } else {
            take_bits(bytes)?
        });
    }
    Buckets::new(spans, counts).ok()
}

/// A number of things of at least `size` bytes each. What does not fit must not be allocated.
fn take_len(bytes: &mut &[u8], size: usize) -> Option<usize> {
    let len = usize::try_from(take_varint(bytes)?).ok()?;
    fits(len, size, bytes).then_some(len)
}

fn fits(count: usize, size: usize, bytes: &[u8]) -> bool {
    count.checked_mul(size).is_some_and(|needed| needed <= bytes.len())
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

fn put_zigzag(out: &mut Vec<u8>, value: i64) {
    put_varint(out, ((value << 1) ^ (value >> 63)).cast_unsigned());
}

fn put_bits(out: &mut Vec<u8>, value: f64) {
    out.extend_from_slice(&value.to_bits().to_le_bytes());
}

fn take<'a, const N: usize>(bytes: &mut &'a [u8]) -> Option<&'a [u8; N]> {
    let (taken, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(taken)
}

fn take_bits(bytes: &mut &[u8]) -> Option<f64> {
    Some(f64::from_bits(u64::from_le_bytes(*take(bytes)?)))
}

fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let [byte] = *take(bytes)?;
        let bits = u64::from(byte & 0x7f);
        if bits << shift >> shift != bits {
            return None;
        }
        value |= bits << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

fn take_zigzag(bytes: &mut &[u8]) -> Option<i64> {
    let value = take_varint(bytes)?;
    Some((value >> 1).cast_signed() ^ -(value & 1).cast_signed())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::histogram::random::{any_histogram, bits};
    use proptest::prelude::*;

    fn bytes(histogram: &Histogram) -> Vec<u8> {
        let mut bytes = Vec::new();
        histogram.append_bytes(&mut bytes);
        bytes
    }

    proptest! {
        #[test]
        fn histograms_survive(a in any_histogram(), b in any_histogram()) {
            let (bytes_a, bytes_b) = (bytes(&a), bytes(&b));
            let both = [bytes_a.as_slice(), &bytes_b].concat();
            let mut rest = both.as_slice();
            let back = Histogram::take_bytes(&mut rest).expect("own bytes");
            prop_assert_eq!(bits(&back), bits(&a));
            let back = Histogram::take_bytes(&mut rest).expect("own bytes");
            prop_assert_eq!(bits(&back), bits(&b));
            prop_assert!(rest.is_empty());
            prop_assert_eq!(bytes_a == bytes_b, bits(&a) == bits(&b));
            prop_assert_eq!(a.total_cmp(&b).is_eq(), bits(&a) == bits(&b));
            prop_assert_eq!(a.total_cmp(&b), b.total_cmp(&a).reverse());
        }

        #[test]
        fn damage_is_refused_or_read(
            histogram in any_histogram(), at in any::<prop::sample::Index>(), with in any::<u8>(),
        ) {
            let mut bytes = bytes(&histogram);
            let at = at.index(bytes.len());
            prop_assert!(Histogram::take_bytes(&mut &bytes[..at]).is_none());
            bytes[at] = with;
            let _ = Histogram::take_bytes(&mut bytes.as_slice());
        }

        #[test]
        fn noise_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = Histogram::take_bytes(&mut bytes.as_slice());
        }
    }

    #[test]
    fn the_format_is_pinned() {
        // Logs, files' digests and other nodes hold these bytes: they must never change.
        let histogram = Histogram {
            hint: CounterResetHint::Gauge,
            schema: -1,
            zero_threshold: 0.5,
            zero_count: 1.0,
            count: 300.0,
            sum: -2.0,
            positive: Buckets::from_indexed([(-2, 200.0), (-1, 98.0)]),
            negative: Buckets::from_indexed([(3, 1.0)]),
            custom_values: Arc::from([]),
        };
        let mut want = vec![0b1_0111, 1];
        want.extend_from_slice(&0.5_f64.to_le_bytes());
        want.extend_from_slice(&(-2.0_f64).to_le_bytes());
        want.extend_from_slice(&[172, 2, 1]);
        want.extend_from_slice(&[1, 3, 2, 144, 3, 203, 1]);
        want.extend_from_slice(&[1, 6, 1, 2]);
        assert_eq!(bytes(&histogram), want);

        let custom = Histogram {
            schema: crate::CUSTOM_BUCKETS_SCHEMA,
            count: 1.5,
            positive: Buckets::from_indexed([(0, 1.5)]),
            custom_values: Arc::from([10.0]),
            ..Histogram::default()
        };
        let mut want = vec![0b0_1000, 105];
        for field in [0.0, 0.0, 1.5, 0.0] {
            want.extend_from_slice(&f64::to_le_bytes(field));
        }
        want.extend_from_slice(&[1, 0, 1]);
        want.extend_from_slice(&1.5_f64.to_le_bytes());
        want.push(1);
        want.extend_from_slice(&10.0_f64.to_le_bytes());
        assert_eq!(bytes(&custom), want);
    }
}

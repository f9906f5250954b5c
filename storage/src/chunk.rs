//! Columns as bytes, without loss: a vector of times, and a chunk of values, up to [`CHUNK_SAMPLES_MAX`] each.
//!
//! Times: a varint of their number; the first as zigzag varint in milliseconds; then zigzag varints, first
//! the difference to the time before, then differences of differences. Several series share one vector,
//! so it is stored apart from their values (`page.rs`).
//!
//! Values: one byte says how they follow; their number is that of their times.
//!
//! | coding | values |
//! |---|---|
//! | 0 constant | 8 bytes: the bits of all values, little-endian |
//! | 1 decimal | exponent `e` (1 byte, 0 to 9); zigzag varints: the first `m`, then differences; value = `m / 10^e` |
//! | 2 xor | 8 bytes: the first value's bits, little-endian; then a stream of bits (most significant first), per value: `0` same bits as before; `10` + the changed bits at the place of the last change; `11` + 6 bits count of leading zeros + 6 bits count of changed bits less one + the changed bits; zero bits fill the last byte |
//!
//! Invariants: equal columns give equal bytes; every `f64` comes back bit for bit (NaN payloads, stale markers, -0); times are strictly
//! ascending; differences wrap, so any `i64` is a valid time. There is no checksum in here: RocksDB's
//! blocks have one. Blocks are also compressed (zstd), which is why times stay in whole bytes.

use crate::bits::{BitReader, BitWriter};
use crate::wire::{Reader, put_varint, put_zigzag};

/// Most samples of one chunk. A window of 2 h in milliseconds has at most 7,032 chunks of one series then,
/// which the 16-bit part number of a page can count.
pub(crate) const CHUNK_SAMPLES_MAX: usize = 1024;

const CONSTANT: u8 = 0;
const DECIMAL: u8 = 1;
const XOR: u8 = 2;

/// Powers of ten up to the largest exponent tried. All are exact in `f64`.
const POWERS_OF_TEN: [f64; 10] = [1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9];
/// Integers below this are exact in `f64`.
const MANTISSA_MAX: f64 = 9_007_199_254_740_992.0;

/// Appends the bytes of these times, which ascend strictly, to `out`.
///
/// # Panics
/// If there are none, or more than [`CHUNK_SAMPLES_MAX`].
pub(crate) fn encode_times(timestamps: &[i64], out: &mut Vec<u8>) {
    assert!((1..=CHUNK_SAMPLES_MAX).contains(&timestamps.len()), "{} times in a chunk", timestamps.len());
    put_varint(out, timestamps.len() as u64);
    put_zigzag(out, timestamps[0]);
    let mut last_delta = 0_i64;
    for pair in timestamps.windows(2) {
        let delta = pair[1].wrapping_sub(pair[0]);
        put_zigzag(out, delta.wrapping_sub(last_delta));
        last_delta = delta;
    }
}

/// Appends the times to the column. `None` if they are damaged; the column may have grown by a part then.
pub(crate) fn decode_times(bytes: &[u8], timestamps: &mut Vec<i64>) -> Option<()> {
    let mut reader = Reader::new(bytes);
    let count = usize::try_from(reader.varint()?).ok()?;
    if !(1..=CHUNK_SAMPLES_MAX).contains(&count) {
        return None;
    }
    timestamps.reserve(count);
    let mut time = reader.zigzag()?;
    let mut delta = 0_i64;
    timestamps.push(time);
    for _ in 1..count {
        delta = delta.wrapping_add(reader.zigzag()?);
        let next = time.wrapping_add(delta);
        if next <= time {
            return None;
        }
        time = next;
        timestamps.push(time);
    }
    reader.is_empty().then_some(())
}

/// Appends the chunk of these values to `out`.
///
/// # Panics
/// If there are none, or more than [`CHUNK_SAMPLES_MAX`].
pub(crate) fn encode_values(values: &[f64], out: &mut Vec<u8>) {
    assert!((1..=CHUNK_SAMPLES_MAX).contains(&values.len()), "{} samples in a chunk", values.len());
    let first = values[0].to_bits();
    if values.iter().all(|v| v.to_bits() == first) {
        out.push(CONSTANT);
        out.extend_from_slice(&first.to_le_bytes());
    } else if let Some(exponent) = decimal_exponent(values) {
        out.push(DECIMAL);
        encode_decimal(values, exponent, out);
    } else {
        out.push(XOR);
        encode_xor(values, out);
    }
}

/// Appends a chunk's `count` values to the column. `None` if the chunk is damaged; the column may have grown
/// by a part of it then.
pub(crate) fn decode_values(chunk: &[u8], count: usize, values: &mut Vec<f64>) -> Option<()> {
    let mut reader = Reader::new(chunk);
    values.reserve(count);
    match reader.u8()? {
        CONSTANT => {
            let value = f64::from_bits(reader.u64()?);
            values.resize(values.len() + count, value);
            reader.is_empty().then_some(())
        }
        DECIMAL => {
            decode_decimal(&mut reader, count, values)?;
            reader.is_empty().then_some(())
        }
        XOR => decode_xor(&mut reader, count, values),
        _ => None,
    }
}

/// `value * 10^exponent`, if dividing that by `10^exponent` gives `value` bit for bit.
#[expect(clippy::cast_possible_truncation, reason = "the mantissa is a whole number below 2^53")]
fn mantissa(value: f64, exponent: usize) -> Option<i64> {
    let power = POWERS_OF_TEN[exponent];
    let scaled = (value * power).round();
    if scaled.abs() >= MANTISSA_MAX || scaled.is_nan() {
        return None;
    }
    // Compared through the integer, as it will be decoded: -0 is not a whole number in that sense.
    let mantissa = scaled as i64;
    (from_mantissa(mantissa, power).to_bits() == value.to_bits()).then_some(mantissa)
}

#[expect(clippy::cast_precision_loss, reason = "mantissas are below 2^53; a damaged one only gives a value")]
fn from_mantissa(mantissa: i64, power: f64) -> f64 {
    mantissa as f64 / power
}

/// The smallest exponent that makes whole numbers of all values.
fn decimal_exponent(values: &[f64]) -> Option<usize> {
    let fits = |exponent: &usize| values.iter().all(|v| mantissa(*v, *exponent).is_some());
    (0..POWERS_OF_TEN.len()).find(fits)
}

fn encode_decimal(values: &[f64], exponent: usize, out: &mut Vec<u8>) {
    out.push(exponent.to_le_bytes()[0]);
    let mut last = 0_i64;
    for value in values {
        let m = mantissa(*value, exponent).expect("the exponent was chosen to fit every value");
        put_zigzag(out, m.wrapping_sub(last));
        last = m;
    }
}

fn decode_decimal(reader: &mut Reader<'_>, count: usize, values: &mut Vec<f64>) -> Option<()> {
    let power = *POWERS_OF_TEN.get(usize::from(reader.u8()?))?;
    let mut m = 0_i64;
    for _ in 0..count {
        m = m.wrapping_add(reader.zigzag()?);
        values.push(from_mantissa(m, power));
    }
    Some(())
}

fn encode_xor(values: &[f64], out: &mut Vec<u8>) {
    let mut last = values[0].to_bits();
    out.extend_from_slice(&last.to_le_bytes());
    let mut writer = BitWriter::default();
    let (mut leading, mut changed) = (0, 0);
    for value in &values[1..] {
        let bits = value.to_bits();
        let xor = bits ^ last;
        last = bits;
        if xor == 0 {
            writer.put(out, 0b0, 1);
            continue;
        }
        let trailing = 64 - leading - changed;
        if changed > 0 && xor.leading_zeros() >= leading && xor.trailing_zeros() >= trailing {
            writer.put(out, 0b10, 2);
            writer.put(out, xor >> trailing, changed);
        } else {
            leading = xor.leading_zeros();
            changed = 64 - leading - xor.trailing_zeros();
            writer.put(out, 0b11, 2);
            writer.put(out, u64::from(leading), 6);
            writer.put(out, u64::from(changed - 1), 6);
            writer.put(out, xor >> xor.trailing_zeros(), changed);
        }
    }
    writer.finish(out);
}

fn decode_xor(reader: &mut Reader<'_>, count: usize, values: &mut Vec<f64>) -> Option<()> {
    let mut bits = reader.u64()?;
    values.push(f64::from_bits(bits));
    let mut stream = BitReader::new(reader.rest());
    let (mut leading, mut changed) = (0, 0);
    for _ in 1..count {
        if stream.get(1)? == 1 {
            if stream.get(1)? == 1 {
                leading = u32::try_from(stream.get(6)?).ok()?;
                changed = u32::try_from(stream.get(6)?).ok()? + 1;
            }
            if changed == 0 || leading + changed > 64 {
                return None;
            }
            bits ^= stream.get(changed)? << (64 - leading - changed);
        }
        values.push(f64::from_bits(bits));
    }
    stream.is_finished().then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use saturn_model::STALE_NAN_BITS;

    fn bits(values: &[f64]) -> Vec<u64> {
        values.iter().map(|v| v.to_bits()).collect()
    }

    fn round_trip(timestamps: &[i64], values: &[f64]) -> (Vec<u8>, Vec<u8>) {
        let (mut times, mut chunk) = (Vec::new(), Vec::new());
        encode_times(timestamps, &mut times);
        encode_values(values, &mut chunk);
        let (mut t, mut v) = (Vec::new(), Vec::new());
        decode_times(&times, &mut t).expect("own times");
        decode_values(&chunk, values.len(), &mut v).expect("own chunk");
        assert_eq!(t, timestamps);
        assert_eq!(bits(&v), bits(values));
        (times, chunk)
    }

    fn value() -> impl Strategy<Value = f64> {
        prop_oneof![
            any::<u64>().prop_map(f64::from_bits),
            (-1000_i32..1000).prop_map(f64::from),
            (-100_000_i32..100_000).prop_map(|n| f64::from(n) / 100.0),
            proptest::sample::select(vec![
                f64::from_bits(STALE_NAN_BITS),
                f64::NAN,
                f64::INFINITY,
                f64::NEG_INFINITY,
                -0.0,
                0.0,
                f64::MIN_POSITIVE / 2.0,
                0.1 + 0.2,
                9_007_199_254_740_993.0,
                1e300,
            ]),
        ]
    }

    fn samples() -> impl Strategy<Value = (Vec<i64>, Vec<f64>)> {
        let times = prop_oneof![
            proptest::collection::btree_set(any::<i64>(), 1..300),
            proptest::collection::btree_set(0_i64..100_000, 1..300),
        ];
        let kinds = prop_oneof![
            proptest::collection::vec(value(), 300),
            proptest::collection::vec((-5000_i32..5000).prop_map(|n| f64::from(n) / 1000.0), 300),
            proptest::collection::vec(proptest::sample::select(vec![1.0, 0.0, -0.0, 2.5, f64::NAN]), 300),
            proptest::collection::vec(proptest::sample::select(vec![1.0, -0.0, 0.25]), 300),
            value().prop_map(|v| vec![v; 300]),
        ];
        (times, kinds).prop_map(|(times, values)| {
            let times: Vec<i64> = times.into_iter().collect();
            let values = values[..times.len()].to_vec();
            (times, values)
        })
    }

    proptest! {
        #[test]
        fn every_bit_comes_back((timestamps, values) in samples()) {
            round_trip(&timestamps, &values);
        }

        #[test]
        fn damage_never_panics(
            (timestamps, values) in samples(), at in any::<prop::sample::Index>(), with in any::<u8>(),
        ) {
            let (mut times, mut chunk) = round_trip(&timestamps, &values);
            let (mut t, mut v) = (Vec::new(), Vec::new());
            let cut = at.index(times.len());
            prop_assert!(decode_times(&times[..cut], &mut t).is_none());
            times[cut] = with;
            t.clear();
            if decode_times(&times, &mut t).is_some() {
                prop_assert!(t.windows(2).all(|pair| pair[0] < pair[1]));
            }
            let cut = at.index(chunk.len());
            prop_assert!(decode_values(&chunk[..cut], values.len(), &mut v).is_none());
            chunk[cut] = with;
            v.clear();
            if decode_values(&chunk, values.len(), &mut v).is_some() {
                prop_assert_eq!(v.len(), values.len());
            }
        }
    }

    #[test]
    fn the_format_is_pinned() {
        // Files written by earlier versions must stay readable: these bytes must never change.
        let times = [1000, 2000, 3001];
        let (time_bytes, constant) = round_trip(&times, &[7.0; 3]);
        assert_eq!(time_bytes, [3, 208, 15, 208, 15, 2]);
        assert_eq!(constant, [0, 0, 0, 0, 0, 0, 0, 28, 64]);
        assert_eq!(round_trip(&times, &[1.5, 1.25, -2.0]).1, [1, 2, 172, 2, 49, 137, 5]);
        let stale = f64::from_bits(STALE_NAN_BITS);
        assert_eq!(
            round_trip(&times, &[1.0, stale, stale]).1,
            [2, 0, 0, 0, 0, 0, 0, 240, 63, 193, 246, 0, 0, 0, 0, 0, 0, 0, 16]
        );
    }

    #[test]
    fn regular_series_are_small() {
        let times: Vec<i64> = (0..480).map(|i| 1_700_000_000_000 + i * 15_000).collect();
        let counter: Vec<f64> = (0..480).map(|i| f64::from(i * 7)).collect();
        let (times, values) = round_trip(&times, &counter);
        assert!(times.len() + values.len() < 1000);
    }
}

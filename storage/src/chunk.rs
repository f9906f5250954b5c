//! The chunk: up to [`CHUNK_SAMPLES_MAX`] samples of one series as bytes, without loss.
//!
//! | field | bytes | content |
//! |---|---|---|
//! | format | 1 | 1 |
//! | count | varint | number of samples, 1 to 1024 |
//! | first time | zigzag varint | milliseconds |
//! | other times | zigzag varints | first the difference to the time before, then differences of differences |
//! | coding | 1 | how the values follow |
//! | values | rest | see below |
//!
//! | coding | values |
//! |---|---|
//! | 0 constant | 8 bytes: the bits of all values, little-endian |
//! | 1 decimal | exponent `e` (1 byte, 0 to 9); zigzag varints: the first `m`, then differences; value = `m / 10^e` |
//! | 2 xor | 8 bytes: the first value's bits, little-endian; then a stream of bits (most significant first), per value: `0` same bits as before; `10` + the changed bits at the place of the last change; `11` + 6 bits count of leading zeros + 6 bits count of changed bits less one + the changed bits; zero bits fill the last byte |
//!
//! Invariants: every `f64` comes back bit for bit (NaN payloads, stale markers, -0); times are strictly
//! ascending; differences wrap, so any `i64` is a valid time. There is no checksum in here: RocksDB's
//! blocks have one. Blocks are also compressed (zstd), which is why times stay in whole bytes.

use crate::bits::{BitReader, BitWriter};
use crate::wire::{Reader, put_varint, put_zigzag};

/// Most samples of one chunk. A window of 2 h in milliseconds has at most 7,032 chunks of one series then,
/// which the 16-bit part number in the key can count.
pub(crate) const CHUNK_SAMPLES_MAX: usize = 1024;

const FORMAT: u8 = 1;
const CONSTANT: u8 = 0;
const DECIMAL: u8 = 1;
const XOR: u8 = 2;

/// Powers of ten up to the largest exponent tried. All are exact in `f64`.
const POWERS_OF_TEN: [f64; 10] = [1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9];
/// Integers below this are exact in `f64`.
const MANTISSA_MAX: f64 = 9_007_199_254_740_992.0;

/// Appends the chunk of these samples to `out`.
///
/// # Panics
/// If there are no samples, more than [`CHUNK_SAMPLES_MAX`], or the columns differ in length.
pub(crate) fn encode(timestamps: &[i64], values: &[f64], out: &mut Vec<u8>) {
    assert_eq!(timestamps.len(), values.len(), "columns of one series");
    assert!((1..=CHUNK_SAMPLES_MAX).contains(&values.len()), "{} samples in a chunk", values.len());
    out.push(FORMAT);
    put_varint(out, values.len() as u64);
    encode_times(timestamps, out);
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

/// Appends a chunk's samples to the columns. `None` if the chunk is damaged; the columns may have grown
/// by a part of it then.
pub(crate) fn decode(chunk: &[u8], timestamps: &mut Vec<i64>, values: &mut Vec<f64>) -> Option<()> {
    let mut reader = Reader::new(chunk);
    if reader.u8()? != FORMAT {
        return None;
    }
    let count = usize::try_from(reader.varint()?).ok()?;
    if !(1..=CHUNK_SAMPLES_MAX).contains(&count) {
        return None;
    }
    timestamps.reserve(count);
    values.reserve(count);
    decode_times(&mut reader, count, timestamps)?;
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

fn encode_times(timestamps: &[i64], out: &mut Vec<u8>) {
    put_zigzag(out, timestamps[0]);
    let mut last_delta = 0_i64;
    for pair in timestamps.windows(2) {
        let delta = pair[1].wrapping_sub(pair[0]);
        put_zigzag(out, delta.wrapping_sub(last_delta));
        last_delta = delta;
    }
}

fn decode_times(reader: &mut Reader<'_>, count: usize, timestamps: &mut Vec<i64>) -> Option<()> {
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
    Some(())
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

    fn round_trip(timestamps: &[i64], values: &[f64]) -> Vec<u8> {
        let mut chunk = Vec::new();
        encode(timestamps, values, &mut chunk);
        let (mut t, mut v) = (Vec::new(), Vec::new());
        decode(&chunk, &mut t, &mut v).expect("own chunk");
        assert_eq!(t, timestamps);
        assert_eq!(bits(&v), bits(values));
        chunk
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
            let mut chunk = Vec::new();
            encode(&timestamps, &values, &mut chunk);
            let at = at.index(chunk.len());
            let (mut t, mut v) = (Vec::new(), Vec::new());
            prop_assert!(decode(&chunk[..at], &mut t, &mut v).is_none());
            chunk[at] = with;
            let (mut t, mut v) = (Vec::new(), Vec::new());
            if decode(&chunk, &mut t, &mut v).is_some() {
                prop_assert_eq!(t.len(), v.len());
                prop_assert!(t.windows(2).all(|pair| pair[0] < pair[1]));
            }
        }
    }

    #[test]
    fn the_format_is_pinned() {
        // Files written by earlier versions must stay readable: these bytes must never change.
        let times = [1000, 2000, 3001];
        assert_eq!(round_trip(&times, &[7.0; 3]), [1, 3, 208, 15, 208, 15, 2, 0, 0, 0, 0, 0, 0, 0, 28, 64]);
        assert_eq!(
            round_trip(&times, &[1.5, 1.25, -2.0]),
            [1, 3, 208, 15, 208, 15, 2, 1, 2, 172, 2, 49, 137, 5]
        );
        assert_eq!(
            round_trip(&times, &[1.0, f64::from_bits(STALE_NAN_BITS), f64::from_bits(STALE_NAN_BITS)]),
            [1, 3, 208, 15, 208, 15, 2, 2, 0, 0, 0, 0, 0, 0, 240, 63, 193, 246, 0, 0, 0, 0, 0, 0, 0, 16]
        );
    }

    #[test]
    fn regular_series_are_small() {
        let times: Vec<i64> = (0..480).map(|i| 1_700_000_000_000 + i * 15_000).collect();
        let counter: Vec<f64> = (0..480).map(|i| f64::from(i * 7)).collect();
        assert!(round_trip(&times, &counter).len() < 1000);
    }
}

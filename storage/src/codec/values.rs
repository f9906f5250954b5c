//! A chunk of values.
//!
//! | field | bytes | content |
//! |---|---|---|
//! | kind | 1 | bits 0-2: class; bit 3: a value is below the one before (a reset); bit 4: has stale markers; bit 5: has other values that are not finite; bits 6-7: version 1 |
//! | count | varint | number of values, 1 to 65,536 |
//! | body | rest | by class |
//!
//! | class | body |
//! |---|---|
//! | 0 constant | 8 bytes: the bits of all values, little-endian |
//! | 1 constant decimal | exponent `e` (1 byte); `m` (zigzag varint): all values are `m / 10^e` |
//! | 2 decimal | scale; patches; column of `m` |
//! | 3 near decimal | scale; patches; bytes of the next column (varint); column of `m`; column of residuals in units in the last place |
//! | 4 places | scale (0); patches; column of the values' places in the order of all values: the bits as a signed number, all but the sign inverted if it is negative |
//! | 5 xor | 8 bytes: the bits of the last value, little-endian; stream of `xor.rs` |
//!
//! Scale, 1 byte: bits 0-3: exponent `e`; bit 4: values are `m * 10^-e` instead of `m / 10^e`; bit 5: there are
//! patches. Columns are those of `ints.rs`, with the last number stored.
//!
//! Patches, if any: their count (varint), then each: varint of twice the values since the patch before
//! (exclusive; from the start for the first), plus one if 8 bytes with the value's bits follow; otherwise it
//! is a stale marker. They replace what the column says.

use super::bitio::bit_length;
use super::decimal::{self, Scale, place, value_at};
use super::ints::{self, LastNumber, Numbers};
use super::plan::choose_plan;
use super::simd::Finish;
use super::{CHUNK_SAMPLES_MAX, Effort, FORMAT_VERSION, Scratch, VERSION_SHIFT, xor};
use crate::wire::{Reader, put_varint, put_zigzag};
use saturn_model::{STALE_NAN_BITS, is_stale_nan};
use std::ops::Range;

const CONSTANT: u8 = 0;
const CONSTANT_DECIMAL: u8 = 1;
const DECIMAL: u8 = 2;
const NEAR_DECIMAL: u8 = 3;
const PLACES: u8 = 4;
const XOR: u8 = 5;
const CLASS_MASK: u8 = 7;

const EXPONENT_MASK: u8 = 0x0f;
const MULTIPLY: u8 = 0x10;
const PATCHED: u8 = 0x20;
const SCALE_UNKNOWN: u8 = 0xc0;

/// Bits of a patch that is not a stale marker, for estimates.
const PATCH_COST: u64 = 72;

/// What the kind of a chunk says of its values besides the class.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct ValueFlags(u8);

impl ValueFlags {
    const RESET: u8 = 0x08;
    const STALE: u8 = 0x10;
    const NOT_FINITE: u8 = 0x20;

    fn of(values: &[f64]) -> Self {
        let mut flags = 0;
        let mut last = f64::NEG_INFINITY;
        for value in values {
            if !value.is_finite() {
                flags |= if is_stale_nan(*value) { Self::STALE } else { Self::NOT_FINITE };
            }
            if *value < last {
                flags |= Self::RESET;
            }
            last = if value.is_nan() { last } else { *value };
        }
        Self(flags)
    }
}

/// Appends the chunk of `values` to `out`.
///
/// # Panics
/// If there are no values, or more than [`CHUNK_SAMPLES_MAX`].
pub(crate) fn encode_values(values: &[f64], effort: Effort, scratch: &mut Scratch, out: &mut Vec<u8>) {
    assert!((1..=CHUNK_SAMPLES_MAX).contains(&values.len()), "{} values in a chunk", values.len());
    let flags = ValueFlags::of(values);
    let kind = out.len();
    out.push(FORMAT_VERSION << VERSION_SHIFT | flags.0);
    put_varint(out, values.len() as u64);
    let bits = values[0].to_bits();
    let class = if values.iter().all(|value| value.to_bits() == bits) {
        encode_constant(values[0], out)
    } else {
        encode_varying(values, effort, scratch, out)
    };
    out[kind] |= class;
}

fn encode_constant(value: f64, out: &mut Vec<u8>) -> u8 {
    for exponent in 0..=decimal::EXPONENT_MAX {
        // From 2^47 on, a varint takes as long as the bits.
        if let Some(number) = decimal::decimal(value, exponent).filter(|m| bit_length(m.unsigned_abs()) < 48)
        {
            out.push(exponent);
            put_zigzag(out, number);
            return CONSTANT_DECIMAL;
        }
    }
    out.extend_from_slice(&value.to_bits().to_le_bytes());
    CONSTANT
}

/// Encodes values as decimals, if all that are finite are; otherwise in the cheapest class.
fn encode_varying(values: &[f64], effort: Effort, scratch: &mut Scratch, out: &mut Vec<u8>) -> u8 {
    let Scratch { buffers, numbers, residuals, places, patches } = scratch;
    let patched = |patches: &[usize]| PATCH_COST * patches.len() as u64;

    let exponent = decimal::decimals(values, numbers, patches);
    let decimal = exponent.map(|exponent| (exponent, choose_plan(numbers, effort, buffers)));
    if let Some((exponent, plan)) = &decimal
        && !patches.iter().any(|index| values[*index].is_finite())
    {
        put_scale(Scale::Divide(*exponent), values, patches, out);
        ints::encode(numbers, plan, LastNumber::Stored, buffers, out);
        return DECIMAL;
    }
    let decimal_cost = decimal.as_ref().map_or(u64::MAX, |(_, plan)| plan.cost + patched(patches));

    let near = decimal::near_scale(values)
        .filter(|scale| decimal::near_decimals(values, *scale, numbers, residuals, patches))
        .map(|scale| (scale, choose_plan(numbers, effort, buffers), choose_plan(residuals, effort, buffers)));
    let near_cost = near.as_ref().map_or(u64::MAX, |(_, m, rest)| m.cost + rest.cost + patched(patches) + 16);

    fill_places(values, places, patches);
    let places_plan = choose_plan(places, effort, buffers);
    let places_cost = places_plan.cost + patched(patches);
    let xor_cost = xor::cost(values) as u64 * 8 + 64;

    let least = decimal_cost.min(near_cost).min(places_cost).min(xor_cost);
    if let Some((exponent, plan)) = decimal.filter(|_| decimal_cost == least) {
        decimal::decimals_at(values, exponent, numbers, patches);
        put_scale(Scale::Divide(exponent), values, patches, out);
        ints::encode(numbers, &plan, LastNumber::Stored, buffers, out);
        return DECIMAL;
    }
    if let Some((scale, plan, residual_plan)) = near.filter(|_| near_cost == least) {
        decimal::near_decimals(values, scale, numbers, residuals, patches);
        put_scale(scale, values, patches, out);
        let mut column = Vec::with_capacity(values.len() * 8);
        ints::encode(numbers, &plan, LastNumber::Stored, buffers, &mut column);
        put_varint(out, column.len() as u64);
        out.extend_from_slice(&column);
        ints::encode(residuals, &residual_plan, LastNumber::Stored, buffers, out);
        return NEAR_DECIMAL;
    }
    if places_cost == least {
        put_scale(Scale::Divide(0), values, patches, out);
        ints::encode(places, &places_plan, LastNumber::Stored, buffers, out);
        return PLACES;
    }
    let last = values[values.len() - 1];
    out.extend_from_slice(&last.to_bits().to_le_bytes());
    xor::encode(values, out);
    XOR
}

/// Fills `places`; values that are not finite are patched, if they are at most a 16th.
fn fill_places(values: &[f64], places: &mut Vec<i64>, patches: &mut Vec<usize>) {
    places.clear();
    patches.clear();
    let not_finite = values.iter().filter(|value| !value.is_finite()).count();
    if not_finite == 0 || not_finite * 16 > values.len() {
        places.extend(values.iter().map(|value| place(*value)));
        return;
    }
    let mut last = values.iter().find(|value| value.is_finite()).map_or(0, |value| place(*value));
    for (index, value) in values.iter().enumerate() {
        if value.is_finite() {
            last = place(*value);
        } else {
            patches.push(index);
        }
        places.push(last);
    }
}

/// Appends the scale and the patches.
fn put_scale(scale: Scale, values: &[f64], patches: &[usize], out: &mut Vec<u8>) {
    let byte = match scale {
        Scale::Divide(exponent) => exponent,
        Scale::Multiply(exponent) => exponent | MULTIPLY,
    };
    if patches.is_empty() {
        out.push(byte);
        return;
    }
    out.push(byte | PATCHED);
    put_varint(out, patches.len() as u64);
    let mut next = 0;
    for index in patches {
        let gap = (index - next) as u64;
        let bits = values[*index].to_bits();
        put_varint(out, gap << 1 | u64::from(bits != STALE_NAN_BITS));
        if bits != STALE_NAN_BITS {
            out.extend_from_slice(&bits.to_le_bytes());
        }
        next = index + 1;
    }
}

/// The patches of a chunk, still as bytes.
#[derive(Clone, Debug)]
struct Patches<'a> {
    left: usize,
    next: usize,
    reader: Reader<'a>,
}

impl<'a> Patches<'a> {
    /// The scale, and the patches after it. The reader ends behind them.
    fn read(reader: &mut Reader<'a>, count: usize) -> Option<(Scale, Self)> {
        let byte = reader.u8()?;
        if byte & SCALE_UNKNOWN > 0 {
            return None;
        }
        let exponent = byte & EXPONENT_MASK;
        let scale = if byte & MULTIPLY > 0 { Scale::Multiply(exponent) } else { Scale::Divide(exponent) };
        let left = if byte & PATCHED > 0 { reader.count()? } else { 0 };
        let patches = Self { left, next: 0, reader: reader.clone() };
        let mut skim = patches.clone();
        while skim.left > 0 {
            let (index, _) = skim.take()?;
            if index >= count {
                return None;
            }
        }
        *reader = skim.reader;
        Some((scale, patches))
    }

    /// The next patch, of which there is one.
    fn take(&mut self) -> Option<(usize, f64)> {
        let word = self.reader.varint()?;
        let index = self.next.checked_add(usize::try_from(word >> 1).ok()?)?;
        let bits = if word & 1 == 1 { self.reader.u64()? } else { STALE_NAN_BITS };
        self.left -= 1;
        self.next = index + 1;
        Some((index, f64::from_bits(bits)))
    }

    /// Replaces patched values of `range`, which are `values`.
    fn apply(mut self, range: &Range<usize>, values: &mut [f64]) -> Option<()> {
        while self.left > 0 {
            let (index, value) = self.take()?;
            if range.contains(&index) {
                *values.get_mut(index - range.start)? = value;
            }
        }
        Some(())
    }
}

/// Class and count.
fn read_kind(reader: &mut Reader<'_>) -> Option<(u8, usize)> {
    let kind = reader.u8()?;
    let count = usize::try_from(reader.varint()?).ok()?;
    let known = kind >> VERSION_SHIFT == FORMAT_VERSION && (1..=CHUNK_SAMPLES_MAX).contains(&count);
    known.then_some((kind & CLASS_MASK, count))
}

/// Appends all values of a chunk. `None` if it is damaged.
pub(super) fn decode_values(chunk: &[u8], scratch: &mut Scratch, values: &mut Vec<f64>) -> Option<()> {
    let (_, count) = read_kind(&mut Reader::new(chunk))?;
    decode_value_range(chunk, 0..count, scratch, values)
}

/// Appends the values at `range`. In a chunk of more than 1,024 values it decodes little more than those.
/// `None` if the chunk is damaged or shorter.
pub(crate) fn decode_value_range(
    chunk: &[u8],
    range: Range<usize>,
    scratch: &mut Scratch,
    values: &mut Vec<f64>,
) -> Option<()> {
    let mut reader = Reader::new(chunk);
    let (class, count) = read_kind(&mut reader)?;
    if range.start > range.end || range.end > count {
        return None;
    }
    let at_end = range.end == count;
    let start = values.len();
    match class {
        CONSTANT => values.resize(start + range.len(), f64::from_bits(reader.u64()?)),
        CONSTANT_DECIMAL => {
            let exponent = reader.u8().filter(|exponent| *exponent <= decimal::EXPONENT_MAX)?;
            values.resize(start + range.len(), Scale::Divide(exponent).value(reader.zigzag()?));
        }
        DECIMAL | NEAR_DECIMAL | PLACES => {
            let (scale, patches) = Patches::read(&mut reader, count)?;
            if class == NEAR_DECIMAL {
                let bytes = usize::try_from(reader.varint()?).ok()?;
                let mut column = Reader::new(reader.take(bytes)?);
                ints::decode(&mut column, count, range.clone(), LastNumber::Stored, scale.finish(), values)?;
                scratch.residuals.clear();
                let residuals = &mut scratch.residuals;
                ints::decode(&mut reader, count, range.clone(), LastNumber::Stored, Numbers, residuals)?;
                for (value, residual) in values[start..].iter_mut().zip(residuals) {
                    *value = value_at(place(*value).wrapping_add(*residual));
                }
                if at_end && !column.is_empty() {
                    return None;
                }
            } else {
                let finish = if class == DECIMAL { scale.finish() } else { Finish::Place };
                ints::decode(&mut reader, count, range.clone(), LastNumber::Stored, finish, values)?;
            }
            patches.apply(&range, &mut values[start..])?;
        }
        XOR => {
            let last = reader.u64()?;
            xor::decode(&mut reader, count, range, values)?;
            if at_end && values.last().is_some_and(|value| value.to_bits() != last) {
                return None;
            }
        }
        _ => return None,
    }
    (!at_end || reader.is_empty()).then_some(())
}

/// What the class of a chunk is called. `None` if there is no such class.
pub(crate) fn class_name(chunk: &[u8]) -> Option<&'static str> {
    let (class, _) = read_kind(&mut Reader::new(chunk))?;
    let names = ["constant", "constant decimal", "decimal", "near decimal", "places", "xor"];
    names.get(usize::from(class)).copied()
}

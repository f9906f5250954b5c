//! From `f64` to whole numbers and back, bit for bit.
//!
//! A value is decimal with exponent `e` if `m / 10^e` (one IEEE 754 division, rounded to nearest even) has
//! its bits for a whole `m` below 2^53 (2^63 for `e` = 0). Values that are nearly so are `m / 10^e` or
//! `m * 10^-e` plus a residual, counted in representable numbers (units in the last place).
//!
//! Multiplication, division and rounding are exact operations of IEEE 754, so the choice made here is the
//! same on every machine. 10^e is exact up to 22; 10^-e is the literal's nearest number.

use super::bitio::{bit_length, zigzag};
use super::simd::Finish;

/// The largest exponent tried.
pub(super) const EXPONENT_MAX: u8 = 15;

const POWERS: [f64; 16] =
    [1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15];
const FRACTIONS: [f64; 16] =
    [1e0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9, 1e-10, 1e-11, 1e-12, 1e-13, 1e-14, 1e-15];
/// 2^53: whole numbers below are exact in `f64`.
const EXACT_LIMIT: f64 = 9_007_199_254_740_992.0;
/// 2^63.
const WHOLE_LIMIT: f64 = 9_223_372_036_854_775_808.0;
/// So many values, evenly spaced, choose an exponent.
const SAMPLE: usize = 16;
/// So many pairs of neighbours choose the exponent of a near-decimal column.
const NEAR_SAMPLE: usize = 8;

/// The whole number nearest to a value below 2^63; any number for others.
#[expect(clippy::cast_possible_truncation, reason = "whole and below 2^63, or the result is checked")]
fn whole(value: f64) -> i64 {
    value as i64
}

/// The value nearest to a whole number.
#[expect(clippy::cast_precision_loss, reason = "numbers from 2^53 on were checked to be exact")]
pub(super) fn real(number: i64) -> f64 {
    number as f64
}

/// A whole number for each bit pattern, in the order of the values; its own inverse.
pub(super) fn ordered(bits: i64) -> i64 {
    bits ^ ((bits >> 63).cast_unsigned() >> 1).cast_signed()
}

/// The place of a value in the order of all values.
pub(super) fn place(value: f64) -> i64 {
    ordered(value.to_bits().cast_signed())
}

/// The value at a place.
pub(super) fn value_at(place: i64) -> f64 {
    f64::from_bits(ordered(place).cast_unsigned())
}

/// How whole numbers become values.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Scale {
    /// `m / 10^e`
    Divide(u8),
    /// `m * 10^-e`
    Multiply(u8),
}

impl Scale {
    /// The value of `number`.
    pub(super) fn value(self, number: i64) -> f64 {
        match self {
            Self::Divide(exponent) => real(number) / POWERS[usize::from(exponent)],
            Self::Multiply(exponent) => real(number) * FRACTIONS[usize::from(exponent)],
        }
    }

    /// The same for the decoder.
    pub(super) fn finish(self) -> Finish {
        match self {
            Self::Divide(0) => Finish::Whole,
            Self::Divide(exponent) => Finish::Divide(POWERS[usize::from(exponent)]),
            Self::Multiply(exponent) => Finish::Multiply(FRACTIONS[usize::from(exponent)]),
        }
    }

    /// The number whose value is near `value`, if it is in the exact range.
    pub(super) fn near(self, value: f64) -> Option<i64> {
        let (Self::Divide(exponent) | Self::Multiply(exponent)) = self;
        let scaled = (value * POWERS[usize::from(exponent)]).round_ties_even();
        (scaled.abs() < EXACT_LIMIT).then(|| whole(scaled))
    }
}

/// The `m` of a decimal value.
pub(super) fn decimal(value: f64, exponent: u8) -> Option<i64> {
    // -0 is its own product, but no whole number.
    let negative_zero = value.to_bits() == 1 << 63;
    if exponent == 0 {
        // The division would change nothing, but take most of the time.
        let fits = value.abs() < WHOLE_LIMIT && value.round_ties_even() == value;
        return (fits && !negative_zero).then(|| whole(value));
    }
    let power = POWERS[usize::from(exponent)];
    let scaled = (value * power).round_ties_even();
    let fits = scaled.abs() < EXACT_LIMIT && (scaled / power).to_bits() == value.to_bits();
    (fits && !negative_zero).then(|| whole(scaled))
}

/// The smallest exponent from `least` on with which `value` is decimal.
fn exponent_of(value: f64, least: u8) -> Option<u8> {
    (least..=EXPONENT_MAX).find(|exponent| decimal(value, *exponent).is_some())
}

/// The exponent for a column: one digit more for all is weighed against patches for the few that need it.
/// `None` if hardly any value is decimal.
fn choose_exponent(needs: &[u32; 17], total: u32) -> Option<u8> {
    let mut best = None;
    let mut patched: u32 = needs[16];
    for exponent in (0..=EXPONENT_MAX).rev() {
        // A digit is 3.3 bits, a patch about 80: tenths of bits.
        let cost = u64::from(patched) * 800 + u64::from(total) * u64::from(exponent) * 33;
        if best.is_none_or(|(least, _)| cost <= least) {
            best = Some((cost, exponent));
        }
        patched += needs[usize::from(exponent)];
    }
    best.map(|(_, exponent)| exponent)
}

/// Fills `numbers` with the `m` of each value and `patches` with the indexes of those that are not decimal,
/// whose number repeats the one before. Returns the exponent, or `None` if more than a 16th of the
/// values would need a patch.
pub(super) fn decimals(values: &[f64], numbers: &mut Vec<i64>, patches: &mut Vec<usize>) -> Option<u8> {
    let mut needs = [0_u32; 17];
    let take = values.len().min(SAMPLE);
    let sampled = u32::try_from(take).expect("a small constant");
    for index in 0..take {
        let need = exponent_of(values[index * values.len() / take], 0).unwrap_or(16);
        needs[usize::from(need)] += 1;
        if needs[16] * 4 > sampled {
            return None;
        }
    }
    let mut exponent = choose_exponent(&needs, sampled)?;
    let limit = values.len() / 16;
    for _ in 0..3 {
        if decimals_at(values, exponent, numbers, patches) {
            return Some(exponent);
        }
        // The sample missed values with more digits: weigh again with what did not fit.
        let mut needs = [0_u32; 17];
        needs[usize::from(exponent)] = u32::try_from(values.len() - patches.len()).ok()?;
        for index in patches.iter().take(limit + 1) {
            needs[usize::from(exponent_of(values[*index], exponent + 1).unwrap_or(16))] += 1;
        }
        let longest = (0..16_u8).rev().find(|e| needs[usize::from(*e)] > 0)?;
        if longest == exponent || usize::try_from(needs[16]).ok()? > limit {
            return None;
        }
        exponent = longest;
    }
    None
}

/// [`decimals`] with a known exponent. Whether enough values are decimal with it; stops early if not.
pub(super) fn decimals_at(
    values: &[f64],
    exponent: u8,
    numbers: &mut Vec<i64>,
    patches: &mut Vec<usize>,
) -> bool {
    numbers.clear();
    patches.clear();
    let limit = values.len() / 16;
    let first = values.iter().find_map(|value| decimal(*value, exponent));
    let Some(mut last) = first else {
        return false;
    };
    for (index, value) in values.iter().enumerate() {
        match decimal(*value, exponent) {
            Some(number) => last = number,
            None => patches.push(index),
        }
        numbers.push(last);
        if patches.len() > limit {
            return false;
        }
    }
    true
}

/// The scale that makes the cheapest near-decimal column of `values`, by a sample of neighbours.
pub(super) fn near_scale(values: &[f64]) -> Option<Scale> {
    let mut best = None;
    for exponent in 0..=EXPONENT_MAX {
        if let Some(cost) = near_cost(values, Scale::Divide(exponent))
            && best.is_none_or(|(least, _)| cost < least)
        {
            best = Some((cost, exponent));
        }
    }
    let (cost, exponent) = best?;
    let product = near_cost(values, Scale::Multiply(exponent));
    let multiply = product.is_some_and(|product| product < cost);
    Some(if multiply { Scale::Multiply(exponent) } else { Scale::Divide(exponent) })
}

/// Bits of the differences and residuals of a sample.
fn near_cost(values: &[f64], scale: Scale) -> Option<u64> {
    let pairs = values.len() - 1;
    let take = pairs.min(NEAR_SAMPLE);
    let mut cost = 0;
    let mut fitting = 0;
    for index in 0..take {
        let at = index * pairs / take;
        let (Some(before), Some(number)) = (scale.near(values[at]), scale.near(values[at + 1])) else {
            continue;
        };
        let residual = place(values[at + 1]).wrapping_sub(place(scale.value(number)));
        cost += u64::from(bit_length(zigzag(number - before)) + bit_length(zigzag(residual)));
        fitting += 1;
    }
    (fitting > 0 && fitting * 8 >= take * 7).then(|| cost * take as u64 / fitting as u64)
}

/// Fills the columns of a near-decimal encoding: numbers, and residuals in units in the last place. A value
/// that cannot be scaled is patched: its index is in `patches`, its number repeats the one before. `false` if
/// more than a 16th of the values would need a patch.
pub(super) fn near_decimals(
    values: &[f64],
    scale: Scale,
    numbers: &mut Vec<i64>,
    residuals: &mut Vec<i64>,
    patches: &mut Vec<usize>,
) -> bool {
    numbers.clear();
    residuals.clear();
    patches.clear();
    let Some(mut last) = values.iter().find_map(|value| scale.near(*value)) else {
        return false;
    };
    for (index, value) in values.iter().enumerate() {
        let number = scale.near(*value);
        last = number.unwrap_or(last);
        numbers.push(last);
        if number.is_some() {
            residuals.push(place(*value).wrapping_sub(place(scale.value(last))));
        } else {
            patches.push(index);
            residuals.push(0);
        }
    }
    patches.len() <= values.len() / 16
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn places_are_ordered(a in any::<f64>(), b in any::<f64>()) {
            prop_assert_eq!(value_at(place(a)).to_bits(), a.to_bits());
            if a < b {
                prop_assert!(place(a) < place(b));
            }
        }

        #[test]
        fn decimals_come_back(number in -9_007_199_254_740_991_i64..=9_007_199_254_740_991, exponent in 0_u8..=15) {
            let value = Scale::Divide(exponent).value(number);
            if let Some(found) = decimal(value, exponent) {
                prop_assert_eq!(Scale::Divide(exponent).value(found).to_bits(), value.to_bits());
            }
        }
    }

    #[test]
    fn zero_with_a_sign_is_not_decimal() {
        assert_eq!(decimal(-0.0, 0), None);
        assert_eq!(decimal(0.0, 0), Some(0));
        assert_eq!(decimal(0.1 + 0.2, 15), None);
        assert_eq!(decimal(1e18, 0), Some(1_000_000_000_000_000_000));
        assert_eq!(decimal(9_223_372_036_854_775_808.0, 0), None);
    }
}

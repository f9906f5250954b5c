//! Numbers that are mostly zero: the gaps between the others as Rice codes, and the others packed.
//!
//! | field | bytes | content |
//! |---|---|---|
//! | others | varint | `k`, the count of numbers that are not zero |
//! | gaps | bits, filled up to a byte | per other number, the zeros before it: quotient by 2^`b` in unary (ones, then a zero), then `b` bits of the rest |
//! | values | blocks of `bitpack.rs` | the `k` numbers, each less one |
//!
//! `b` is not stored: it is the whole part of log2 of the mean gap (Rice's parameter for geometric gaps).

use super::bitio::{BitReader, BitWriter, bit_length, low_mask};
use super::bitpack::{self, BLOCK, Histogram};
use crate::wire::{Reader, put_varint};

/// So many places are found once, before the values; those of longer streams twice.
const PLACES_MAX: usize = 512;

/// The Rice parameter of `others` gaps that hold `zeros` zeros.
fn rice_bits(zeros: u64, others: u64) -> u32 {
    bit_length(zeros / others.max(1)).saturating_sub(1)
}

/// At most so many bits, by the histogram of the numbers.
pub(super) fn cost_max(counts: &Histogram) -> u64 {
    let others = u64::from(counts[1..].iter().sum::<u32>());
    let zeros = u64::from(counts[0]);
    let rice = rice_bits(zeros, others);
    let gaps = (zeros >> rice) + others * u64::from(1 + rice);
    // Less one, a number is at most as long; the numbers 1 become 0, so length 1 may count as 0.
    let mut shorter = *counts;
    shorter[0] = 0;
    let ones = std::mem::take(&mut shorter[1]);
    shorter[0] += ones;
    let (_, values) = bitpack::best_width(&shorter);
    let varint = if others < 128 { 8 } else { 16 };
    varint + gaps.next_multiple_of(8) + others.div_ceil(BLOCK as u64) * 8 + values
}

/// Appends `numbers`.
pub(super) fn encode(numbers: &[u64], out: &mut Vec<u8>) {
    let others: Vec<u64> = numbers.iter().filter(|n| **n != 0).map(|n| n - 1).collect();
    put_varint(out, others.len() as u64);
    let rice = rice_bits((numbers.len() - others.len()) as u64, others.len() as u64);
    let mut writer = BitWriter::new(out);
    let mut gap = 0_u64;
    for number in numbers {
        if *number == 0 {
            gap += 1;
            continue;
        }
        writer.put_unary(gap >> rice);
        writer.put(gap & low_mask(rice), rice);
        gap = 0;
    }
    writer.finish();
    bitpack::encode(&others, out);
}

/// Gives the places and numbers that are not zero to `each`, of `count` numbers.
pub(super) fn each_other(
    reader: &mut Reader<'_>,
    count: usize,
    mut each: impl FnMut(usize, u64),
) -> Option<()> {
    let others = usize::try_from(reader.varint()?).ok()?;
    let zeros = count.checked_sub(others)?;
    let rice = rice_bits(zeros as u64, others as u64);
    let mut gaps = BitReader::new(reader.rest());
    let mut places = [0_u32; PLACES_MAX];
    let mut skim = gaps.clone();
    let mut at = 0_usize;
    skim.get_rices(rice, zeros, &mut places[..others.min(PLACES_MAX)])?;
    for place in &mut places[..others.min(PLACES_MAX)] {
        at += *place as usize;
        *place = u32::try_from(at).ok()?;
        at += 1;
    }
    // The values begin behind all gaps.
    if others > PLACES_MAX {
        gaps = skim.clone();
        for _ in PLACES_MAX..others {
            skim.get_rice(rice, zeros)?;
        }
    }
    reader.take(skim.bytes_used())?;
    let mut block = [0; BLOCK];
    for start in (0..others).step_by(BLOCK) {
        let block = &mut block[..BLOCK.min(others - start)];
        bitpack::decode_block(reader, block)?;
        for (index, value) in (start..).zip(&*block) {
            let place = match places.get(index) {
                Some(place) => *place as usize,
                None => {
                    at += gaps.get_rice(rice, zeros)? + 1;
                    at - 1
                }
            };
            if place >= count {
                return None;
            }
            each(place, value.checked_add(1)?);
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode(reader: &mut Reader<'_>, count: usize) -> Option<Vec<u64>> {
        let mut numbers = vec![0; count];
        each_other(reader, count, |place, number| numbers[place] = number)?;
        Some(numbers)
    }

    proptest! {
        #[test]
        fn sparse_numbers_survive(
            numbers in proptest::collection::vec(prop_oneof![9 => Just(0_u64), 1 => 1..9_u64, 1 => any::<u64>()], 1..2000),
        ) {
            let mut out = Vec::new();
            encode(&numbers, &mut out);
            let mut reader = Reader::new(&out);
            prop_assert_eq!(decode(&mut reader, numbers.len()).unwrap(), numbers.clone());
            prop_assert!(reader.is_empty());
            for cut in 0..out.len() {
                prop_assert!(decode(&mut Reader::new(&out[..cut]), numbers.len()).is_none());
            }
        }
    }
}

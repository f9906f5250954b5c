//! Blocks of up to 128 numbers, packed at one width, with patches for the few that are wider.
//!
//! | field | bytes | content |
//! |---|---|---|
//! | width | 1 | low 7 bits: `w`, 0 to 64; high bit: there are patches |
//! | patches | 0 or 1 | how many |
//! | packed | ceil(numbers × `w` / 8) | the low `w` bits of each number, least significant bit first |
//! | each patch | 1 + varint | index in the block; the number without its low `w` bits |
//!
//! The width is the one with the fewest bytes, the smallest of equals: equal numbers give equal bytes. The
//! numbers lie one after the other (not transposed), so a short block costs no more than its bits.

use super::bitio::{BitWriter, bit_length, bytes_of_bits, low_mask, word_at};
use super::simd;
use crate::wire::{Reader, put_varint};

/// Numbers of a full block.
pub(super) const BLOCK: usize = 128;
/// In the width byte: patches follow.
const PATCHED: u8 = 0x80;

/// How often each bit length occurs.
pub(super) type Histogram = [u32; 65];

/// The bit lengths of these numbers.
pub(super) fn histogram(numbers: &[u64]) -> Histogram {
    // Four tables, because neighbours often have the same length, and a count must be stored before it is
    // loaded again. There are 128 rows so that no index needs a check.
    let mut rows = [[0_u32; 4]; 128];
    let mut groups = numbers.chunks_exact(4);
    for group in &mut groups {
        for (table, number) in group.iter().enumerate() {
            let count = &mut rows[quick_bit_length(*number) & 127][table];
            *count = count.wrapping_add(1);
        }
    }
    for number in groups.remainder() {
        rows[bit_length(*number) as usize][0] += 1;
    }
    std::array::from_fn(|length| rows[length].iter().sum())
}

/// [`bit_length`] from the exponent of a conversion to `f64`: the instruction for leading zeros that all
/// x86-64 processors have takes several times as long on some.
fn quick_bit_length(number: u64) -> usize {
    // Without the bit below the highest, rounding cannot reach the next power of two. Numbers from 2^63 on
    // are negative here, and their sign makes a large exponent.
    let signed = (number & !(number >> 1)).cast_signed();
    let exponent = super::decimal::real(signed).to_bits().to_le_bytes();
    let exponent = usize::from(u16::from_le_bytes([exponent[6], exponent[7]]) >> 4);
    exponent.saturating_sub(1022).min(64)
}

/// The cheapest width of a block with these bit lengths, and its cost in bits without the width byte.
pub(super) fn best_width(counts: &Histogram) -> (u32, u64) {
    // Only lengths that occur, and 0, can be the best width.
    let mut lengths = [(0_u32, 0_u32); 65];
    let mut used = 1;
    let mut total = counts[0];
    lengths[0].1 = counts[0];
    for (length, n) in (1..).zip(&counts[1..]).filter(|(_, n)| **n > 0) {
        lengths[used] = (length, *n);
        used += 1;
        total += n;
    }
    let lengths = &lengths[..used];
    let mut best = (64, u64::MAX);
    for (index, (width, _)) in lengths.iter().enumerate() {
        let mut cost = u64::from(total) * u64::from(*width);
        let wider = &lengths[index + 1..];
        for (length, n) in wider {
            cost += u64::from(*n) * 8 * u64::from(1 + (length - width).div_ceil(7));
        }
        cost += if wider.is_empty() { 0 } else { 8 };
        if cost < best.1 {
            best = (*width, cost);
        }
    }
    best
}

/// Appends all `numbers` as blocks.
pub(super) fn encode(numbers: &[u64], out: &mut Vec<u8>) {
    for block in numbers.chunks(BLOCK) {
        encode_block(block, best_width(&histogram(block)).0, out);
    }
}

/// Appends at most [`BLOCK`] numbers with the [`best_width`] `width`.
pub(super) fn encode_block(block: &[u64], width: u32, out: &mut Vec<u8>) {
    let mask = low_mask(width);
    let patches = block.iter().filter(|number| **number > mask).count();
    let width_byte = u8::try_from(width).expect("at most 64");
    if patches > 0 {
        out.push(width_byte | PATCHED);
        out.push(u8::try_from(patches).expect("a block has 128 numbers"));
    } else {
        out.push(width_byte);
    }
    let mut writer = BitWriter::new(out);
    for number in block {
        writer.put(number & mask, width);
    }
    writer.finish();
    for (index, number) in block.iter().enumerate().filter(|(_, number)| **number > mask) {
        out.push(u8::try_from(index).expect("a block has 128 numbers"));
        put_varint(out, number >> width);
    }
}

/// Reads one block into `numbers`, which has its length.
pub(super) fn decode_block(reader: &mut Reader<'_>, numbers: &mut [u64]) -> Option<()> {
    let width_byte = reader.u8()?;
    let width = u32::from(width_byte & !PATCHED);
    if width > 64 {
        return None;
    }
    let patches = if width_byte & PATCHED == 0 { 0 } else { reader.u8()? };
    // Loads of 8 bytes may reach into what follows the packed bytes; the mask removes that.
    let window = reader.rest();
    reader.take(bytes_of_bits(numbers.len() * width as usize))?;
    unpack(window, width, numbers);
    for _ in 0..patches {
        let number = numbers.get_mut(usize::from(reader.u8()?))?;
        let high = reader.varint()?;
        if high == 0 || bit_length(high) + width > 64 {
            return None;
        }
        *number |= high << width;
    }
    Some(())
}

/// Spreads `width` bits each to `numbers`. `window` has at least the packed bytes.
fn unpack(window: &[u8], width: u32, numbers: &mut [u64]) {
    let step = width as usize;
    let done = match simd::unpack(window, step, numbers) {
        0 => GROUPS.get(step).map_or(0, |groups| groups(window, numbers)),
        done => done,
    };
    unpack_from(done, window, width, numbers);
}

/// [`unpack`] from the number `done` on, one by one.
fn unpack_from(done: usize, window: &[u8], width: u32, numbers: &mut [u64]) {
    let mask = low_mask(width);
    let step = width as usize;
    let mut bit = done * step;
    for number in &mut numbers[done..] {
        let low = word_at(window, bit >> 3) >> (bit & 7);
        // Shifted twice, because a shift by 64 is none.
        let high = if width > 57 { word_at(window, (bit >> 3) + 8) << 1 << (63 - (bit & 7)) } else { 0 };
        *number = (low | high) & mask;
        bit += step;
    }
}

/// [`unpack`] for a known width of at most 57, in groups of eight numbers, as long as whole words can be
/// loaded. All shifts and offsets are constants then. Returns how many numbers it did.
fn unpack_groups<const WIDTH: usize>(window: &[u8], numbers: &mut [u64]) -> usize {
    let mask = (1 << WIDTH) - 1;
    let mut done = 0;
    let mut rest = window;
    for group in numbers.chunks_exact_mut(8) {
        let Some(bytes) = rest.get(..WIDTH + 8) else {
            break;
        };
        for (index, number) in group.iter_mut().enumerate() {
            let bit = index * WIDTH;
            let word = bytes[bit >> 3..].first_chunk::<8>().map_or(0, |word| u64::from_le_bytes(*word));
            *number = (word >> (bit & 7)) & mask;
        }
        rest = &rest[WIDTH..];
        done += 8;
    }
    done
}

/// [`unpack_groups`] of one width.
type Groups = fn(&[u8], &mut [u64]) -> usize;

/// [`unpack_groups`] by width.
const GROUPS: [Groups; 58] = [
    unpack_groups::<0>,
    unpack_groups::<1>,
    unpack_groups::<2>,
    unpack_groups::<3>,
    unpack_groups::<4>,
    unpack_groups::<5>,
    unpack_groups::<6>,
    unpack_groups::<7>,
    unpack_groups::<8>,
    unpack_groups::<9>,
    unpack_groups::<10>,
    unpack_groups::<11>,
    unpack_groups::<12>,
    unpack_groups::<13>,
    unpack_groups::<14>,
    unpack_groups::<15>,
    unpack_groups::<16>,
    unpack_groups::<17>,
    unpack_groups::<18>,
    unpack_groups::<19>,
    unpack_groups::<20>,
    unpack_groups::<21>,
    unpack_groups::<22>,
    unpack_groups::<23>,
    unpack_groups::<24>,
    unpack_groups::<25>,
    unpack_groups::<26>,
    unpack_groups::<27>,
    unpack_groups::<28>,
    unpack_groups::<29>,
    unpack_groups::<30>,
    unpack_groups::<31>,
    unpack_groups::<32>,
    unpack_groups::<33>,
    unpack_groups::<34>,
    unpack_groups::<35>,
    unpack_groups::<36>,
    unpack_groups::<37>,
    unpack_groups::<38>,
    unpack_groups::<39>,
    unpack_groups::<40>,
    unpack_groups::<41>,
    unpack_groups::<42>,
    unpack_groups::<43>,
    unpack_groups::<44>,
    unpack_groups::<45>,
    unpack_groups::<46>,
    unpack_groups::<47>,
    unpack_groups::<48>,
    unpack_groups::<49>,
    unpack_groups::<50>,
    unpack_groups::<51>,
    unpack_groups::<52>,
    unpack_groups::<53>,
    unpack_groups::<54>,
    unpack_groups::<55>,
    unpack_groups::<56>,
    unpack_groups::<57>,
];

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn numbers() -> impl Strategy<Value = Vec<u64>> {
        let wide = (any::<u64>(), 0..=64_u32).prop_map(|(n, width)| n & low_mask(width));
        (0..=64_u32).prop_flat_map(move |width| {
            let usual = any::<u64>().prop_map(move |n| n & low_mask(width));
            proptest::collection::vec(prop_oneof![20 => usual, 1 => wide.clone()], 1..=BLOCK)
        })
    }

    #[test]
    fn quick_lengths_are_right() {
        for width in 0..=64 {
            for number in [low_mask(width), low_mask(width).wrapping_add(1), low_mask(width) & !3] {
                assert_eq!(quick_bit_length(number), bit_length(number) as usize, "{number:x}");
            }
        }
    }

    proptest! {
        #[test]
        fn every_way_to_unpack_gives_the_same(
            bytes in proptest::collection::vec(any::<u8>(), 0..600), width in 0..=64_u32, count in 0..=BLOCK,
        ) {
            let step = width as usize;
            let count = (bytes.len() * 8).checked_div(step).map_or(count, |most| most.min(count));
            let mut want = vec![0; count];
            unpack_from(0, &bytes, width, &mut want);
            let mut got = vec![7; count];
            let groups = GROUPS.get(step).map_or(0, |groups| groups(&bytes, &mut got));
            prop_assert_eq!(&got[..groups], &want[..groups]);
            let mut got = vec![7; count];
            let vectors = simd::unpack(&bytes, step, &mut got);
            prop_assert_eq!(&got[..vectors], &want[..vectors]);
        }

        #[test]
        fn blocks_survive(block in numbers()) {
            let mut out = Vec::new();
            encode(&block, &mut out);
            let (_, cost) = best_width(&histogram(&block));
            prop_assert_eq!(out.len(), 1 + bytes_of_bits(usize::try_from(cost).unwrap()));
            let mut reader = Reader::new(&out);
            let mut back = vec![7; block.len()];
            decode_block(&mut reader, &mut back).unwrap();
            prop_assert_eq!(back, block);
            prop_assert!(reader.is_empty());
        }
    }
}

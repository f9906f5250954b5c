//! Huffman codes for bit lengths: each number is the code of its length and then its bits below the first.
//!
//! Table, once per stream of numbers:
//!
//! | field | bytes | content |
//! |---|---|---|
//! | first | 1 | the smallest bit length with a code |
//! | lengths | 1 | how many bit lengths follow, less one |
//! | code lengths | half a byte each | 0 (no code) to 8, the first in the low half; a last half byte is 0 |
//!
//! Codes are canonical: ordered by (code length, bit length), counted up, sent most significant bit first.
//!
//! Section, as often as there are restart points:
//!
//! | field | bytes | content |
//! |---|---|---|
//! | code bytes | varint | length of the next field |
//! | codes | bits, filled up to a byte | the code of each number's bit length `l` |
//! | rests | bits, filled up to a byte | the low `l - 1` bits of each number with `l` above 1 |
//!
//! Two streams, because the codes alone make a short dependency chain. A code of one bit length only takes
//! one bit (such streams are never chosen: packing them is as small).

use super::bitio::{BitReader, BitWriter, bit_length, bytes_of_bits, low_mask, word_at};
use super::bitpack::Histogram;
use crate::wire::{Reader, put_varint};

/// The longest code. Decoding looks at so many bits at once.
const CODE_BITS_MAX: u32 = 8;
const TABLE: usize = 1 << CODE_BITS_MAX;

/// Lengths and codes by bit length; code length 0 means none.
#[derive(Clone, Debug)]
pub(super) struct Code {
    lengths: [u8; 65],
    /// Bits in the order in which they are sent: the first in the lowest place.
    codes: [u8; 65],
}

impl Code {
    /// The code of these counts. Ties go to the smaller bit length, so that it is the same everywhere.
    pub(super) fn of(counts: &Histogram) -> Self {
        let mut weights = *counts;
        loop {
            let lengths = tree_depths(&weights);
            if lengths.iter().all(|length| u32::from(*length) <= CODE_BITS_MAX) {
                return Self::from_lengths(lengths).expect("Huffman's lengths fill the space of codes");
            }
            // Flatter counts give a flatter tree: 65 equal weights are 7 deep.
            for weight in weights.iter_mut().filter(|weight| **weight > 0) {
                *weight = (*weight).div_ceil(2);
            }
        }
    }

    /// Canonical codes, or `None` if the lengths belong to no code.
    fn from_lengths(lengths: [u8; 65]) -> Option<Self> {
        let mut codes = [0; 65];
        let mut next = 0_u32;
        for length in 1..=CODE_BITS_MAX {
            next <<= 1;
            for class in (0..65).filter(|class| u32::from(lengths[*class]) == length) {
                let code = u8::try_from(next).ok()?;
                codes[class] = code.reverse_bits() >> (CODE_BITS_MAX - length);
                next += 1;
            }
            if next > 1 << length {
                return None;
            }
        }
        Some(Self { lengths, codes })
    }

    /// Bits of all codes and rests of numbers with these lengths, without the table.
    pub(super) fn cost(&self, counts: &Histogram) -> u64 {
        let mut cost = 0;
        for (class, n) in counts.iter().enumerate() {
            let rest = class.saturating_sub(1) as u64;
            cost += u64::from(*n) * (u64::from(self.lengths[class]) + rest);
        }
        cost
    }

    /// Bits of the table.
    pub(super) fn table_cost(&self) -> u64 {
        let (first, last) = self.span();
        16 + 8 * ((last - first + 2) / 2) as u64
    }

    fn span(&self) -> (usize, usize) {
        let used = |class: &usize| self.lengths[*class] > 0;
        let first = (0..65).find(used).expect("a stream of numbers has one");
        let last = (0..65).rev().find(used).expect("a stream of numbers has one");
        (first, last)
    }

    /// Appends the table.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        let (first, last) = self.span();
        out.push(u8::try_from(first).expect("at most 64"));
        out.push(u8::try_from(last - first).expect("at most 64"));
        for pair in self.lengths[first..=last].chunks(2) {
            out.push(pair[0] | pair.get(1).copied().unwrap_or(0) << 4);
        }
    }

    /// Reads a table.
    pub(super) fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let first = usize::from(reader.u8()?);
        let classes = usize::from(reader.u8()?) + 1;
        let mut lengths = [0; 65];
        let used = lengths.get_mut(first..first + classes)?;
        for pair in used.chunks_mut(2) {
            let byte = reader.u8()?;
            pair[0] = byte & 15;
            match pair.get_mut(1) {
                Some(second) => *second = byte >> 4,
                None if byte >> 4 > 0 => return None,
                None => {}
            }
        }
        if lengths.iter().any(|length| u32::from(*length) > CODE_BITS_MAX) {
            return None;
        }
        Self::from_lengths(lengths)
    }

    /// Appends one section.
    pub(super) fn encode(&self, numbers: &[u64], out: &mut Vec<u8>) {
        let mut codes = Vec::with_capacity(numbers.len());
        let mut writer = BitWriter::new(&mut codes);
        for number in numbers {
            let class = bit_length(*number) as usize;
            writer.put(u64::from(self.codes[class]), u32::from(self.lengths[class]));
        }
        writer.finish();
        put_varint(out, codes.len() as u64);
        out.extend_from_slice(&codes);
        let mut writer = BitWriter::new(out);
        for number in numbers {
            let rest = bit_length(*number).saturating_sub(1);
            writer.put(number & low_mask(rest), rest);
        }
        writer.finish();
    }

    /// Per value of the next 8 bits: bit length and code length; code length 0 where no code fits.
    pub(super) fn decoder(&self) -> Decoder {
        let mut entries = [(0, 0); TABLE];
        for class in (0..65_u8).filter(|class| self.lengths[usize::from(*class)] > 0) {
            let length = self.lengths[usize::from(class)];
            let code = usize::from(self.codes[usize::from(class)]);
            for entry in entries.iter_mut().skip(code).step_by(1 << length) {
                *entry = (class, length);
            }
        }
        Decoder { entries }
    }
}

/// No code takes fewer bits, by Shannon's bound with logarithms rounded down.
pub(super) fn cost_min(counts: &Histogram) -> u64 {
    let total: u32 = counts.iter().sum();
    let mut cost = 0;
    for (class, n) in counts.iter().enumerate().filter(|(_, n)| **n > 0) {
        let code = bit_length(u64::from(total / n)).saturating_sub(1);
        cost += u64::from(*n) * (u64::from(code) + class.saturating_sub(1) as u64);
    }
    cost
}

/// Bits of the rest by bit length.
const WIDTHS: [u32; 128] = {
    let mut widths = [0; 128];
    let mut length = 1;
    while length <= 64 {
        widths[length] = if length > 1 { widths[length - 1] + 1 } else { 0 };
        length += 1;
    }
    widths
};

/// What decodes sections.
#[derive(Clone, Debug)]
pub(super) struct Decoder {
    entries: [(u8, u8); TABLE],
}

impl Decoder {
    /// Reads one section into `numbers`, which has its length.
    pub(super) fn decode(&self, reader: &mut Reader<'_>, numbers: &mut [u64]) -> Option<()> {
        let code_bytes = reader.count()?;
        let mut codes = BitReader::new(reader.take(code_bytes)?);
        for group in numbers.chunks_mut(7) {
            // 7 codes of 8 bits fit the 57 bits of one look.
            let mut bits = codes.peek();
            let mut used = 0;
            for number in group {
                let (class, length) = self.entries[usize::from(bits.to_le_bytes()[0])];
                if length == 0 {
                    return None;
                }
                *number = u64::from(class);
                bits >>= length;
                used += u32::from(length);
            }
            codes.skip(used)?;
        }
        if codes.bytes_used() != code_bytes {
            return None;
        }
        // Beyond the end, the window reads as zeros; the `take` below finds that out.
        let window = reader.rest();
        let mut bit = 0;
        for number in numbers {
            // Without branches on the length, because lengths are hard to predict.
            let width = WIDTHS[usize::from(number.to_le_bytes()[0] & 0x7f)];
            let top = u64::from(*number > 0) << width;
            let mut rest = word_at(window, bit >> 3) >> (bit & 7);
            if width > 57 {
                // Shifted twice, because a shift by 64 is none.
                rest |= word_at(window, (bit >> 3) + 8) << 1 << (63 - (bit & 7));
            }
            *number = top | (rest & ((1 << width) - 1));
            bit += width as usize;
        }
        reader.take(bytes_of_bits(bit))?;
        Some(())
    }
}

/// Depth of each weight in a Huffman tree; 0 for those without weight, 1 for a single one.
fn tree_depths(weights: &Histogram) -> [u8; 65] {
    // Node: weight, and which classes are below it. 65 classes fit a `u128`.
    let mut nodes: Vec<(u32, u128)> = Vec::with_capacity(65);
    for (class, weight) in weights.iter().enumerate().filter(|(_, weight)| **weight > 0) {
        nodes.push((*weight, 1 << class));
    }
    let mut depths = [0_u8; 65];
    if let [(_, only)] = nodes[..] {
        depths[only.trailing_zeros() as usize] = 1;
    }
    while nodes.len() > 1 {
        // Descending, so that the two lightest are at the end; the class set makes the order total.
        nodes.sort_unstable_by(|a, b| b.cmp(a));
        let light = nodes.pop().expect("more than one");
        let next = nodes.pop().expect("more than one");
        let below = light.1 | next.1;
        let mut classes = below;
        while classes > 0 {
            depths[classes.trailing_zeros() as usize] += 1;
            classes &= classes - 1;
        }
        nodes.push((light.0 + next.0, below));
    }
    depths
}

#[cfg(test)]
mod tests {
    use super::super::bitpack::histogram;
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn numbers_survive(
            numbers in proptest::collection::vec((any::<u64>(), 0..=64_u32, 0..=64_u32), 1..600),
        ) {
            let numbers: Vec<u64> = numbers.iter().map(|(n, a, b)| n & low_mask(*a.min(b))).collect();
            let code = Code::of(&histogram(&numbers));
            let mut out = Vec::new();
            code.write(&mut out);
            prop_assert_eq!(out.len() as u64 * 8, code.table_cost());
            prop_assert!(cost_min(&histogram(&numbers)) <= code.cost(&histogram(&numbers)));
            code.encode(&numbers, &mut out);
            let mut reader = Reader::new(&out);
            let mut back = vec![7; numbers.len()];
            Code::read(&mut reader).unwrap().decoder().decode(&mut reader, &mut back).unwrap();
            prop_assert_eq!(back, numbers);
            prop_assert!(reader.is_empty());
        }

        #[test]
        fn steep_counts_stay_short(steepness in 1..30_u32) {
            let mut counts = [0; 65];
            for (class, count) in counts.iter_mut().enumerate().take(20) {
                *count = 1 << (u32::try_from(class).unwrap() * steepness / 20).min(26);
            }
            prop_assert!(Code::of(&counts).lengths.iter().all(|length| *length <= 8));
        }
    }
}

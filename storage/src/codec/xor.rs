//! Floats as the changed bits of each against the one before (Gorilla, Pelkonen et al., VLDB 2015, 4.1.2),
//! for values that neither scaling nor counting in bit patterns makes small.
//!
//! | field | bytes | content |
//! |---|---|---|
//! | restart points | varint each | bytes of each section; only with more than 1,024 values |
//! | sections | bits, filled up to a byte | the first value's 64 bits; then per value: `0` the same; `01` the changed bits at the last place; `11` 6 bits count of leading zeros, 6 bits count of changed bits less one, the changed bits |
//!
//! Bits are sent least significant first. With more than 1,024 values, a section has 512 of them, else all.

use super::bitio::{BitReader, BitWriter, bytes_of_bits};
use crate::wire::{Reader, put_varint};

/// Values of one section.
const SECTION: usize = 512;
/// Up to so many values are one section.
const UNDIVIDED_MAX: usize = 1024;

fn section_length(count: usize) -> usize {
    if count > UNDIVIDED_MAX { SECTION } else { count.max(1) }
}

/// The place of the last changed bits.
#[derive(Clone, Copy, Debug, Default)]
struct Window {
    trailing: u32,
    changed: u32,
}

impl Window {
    fn holds(self, xor: u64) -> bool {
        self.changed > 0
            && xor.trailing_zeros() >= self.trailing
            && u64::BITS - xor.leading_zeros() <= self.trailing + self.changed
    }

    fn of(xor: u64) -> Self {
        let trailing = xor.trailing_zeros();
        Self { trailing, changed: u64::BITS - xor.leading_zeros() - trailing }
    }
}

/// Bytes of the encoding.
pub(super) fn cost(values: &[f64]) -> usize {
    let mut bytes = 0;
    for section in values.chunks(section_length(values.len())) {
        let mut bits = 64;
        let mut window = Window::default();
        for pair in section.windows(2) {
            let xor = pair[0].to_bits() ^ pair[1].to_bits();
            bits += match xor {
                0 => 1,
                _ if window.holds(xor) => 2 + window.changed as usize,
                _ => {
                    window = Window::of(xor);
                    14 + window.changed as usize
                }
            };
        }
        bytes += bytes_of_bits(bits);
    }
    bytes
}

/// Appends `values`.
pub(super) fn encode(values: &[f64], out: &mut Vec<u8>) {
    let mut body = Vec::with_capacity(values.len() * 8);
    let length = section_length(values.len());
    for section in values.chunks(length) {
        let start = body.len();
        encode_section(section, &mut body);
        if values.len() > UNDIVIDED_MAX {
            put_varint(out, (body.len() - start) as u64);
        }
    }
    out.extend_from_slice(&body);
}

fn encode_section(section: &[f64], out: &mut Vec<u8>) {
    let mut writer = BitWriter::new(out);
    writer.put(section[0].to_bits(), 64);
    let mut window = Window::default();
    for pair in section.windows(2) {
        let xor = pair[0].to_bits() ^ pair[1].to_bits();
        if xor == 0 {
            writer.put(0, 1);
            continue;
        }
        if window.holds(xor) {
            writer.put(0b01, 2);
        } else {
            window = Window::of(xor);
            writer.put(0b11, 2);
            writer.put(u64::from(xor.leading_zeros()), 6);
            writer.put(u64::from(window.changed - 1), 6);
        }
        writer.put(xor >> window.trailing, window.changed);
    }
    writer.finish();
}

/// Appends the values at `range` of `count` to `values`; the range is within the count.
pub(super) fn decode(
    reader: &mut Reader<'_>,
    count: usize,
    range: std::ops::Range<usize>,
    values: &mut Vec<f64>,
) -> Option<()> {
    let length = section_length(count);
    let sections = count.div_ceil(length);
    let mut lengths = Vec::with_capacity(sections);
    if count > UNDIVIDED_MAX {
        for _ in 0..sections {
            lengths.push(usize::try_from(reader.varint()?).ok()?);
        }
    } else {
        lengths.push(reader.rest().len());
    }
    for (index, bytes) in lengths.into_iter().enumerate() {
        let section = reader.take(bytes)?;
        let start = index * length;
        let end = count.min(start + length);
        if end <= range.start || start >= range.end {
            continue;
        }
        let wanted = range.start.max(start) - start..range.end.min(end) - start;
        decode_section(section, end - start, wanted, values)?;
    }
    Some(())
}

fn decode_section(
    section: &[u8],
    count: usize,
    wanted: std::ops::Range<usize>,
    values: &mut Vec<f64>,
) -> Option<()> {
    let mut reader = BitReader::new(section);
    let mut bits = reader.get(64)?;
    let mut window = Window::default();
    for index in 0..wanted.end {
        if index > 0 && reader.get(1)? == 1 {
            if reader.get(1)? == 1 {
                let leading = u32::try_from(reader.get(6)?).ok()?;
                let changed = u32::try_from(reader.get(6)?).ok()? + 1;
                window = Window { trailing: (u64::BITS - leading).checked_sub(changed)?, changed };
            }
            if window.changed == 0 {
                return None;
            }
            bits ^= reader.get(window.changed)? << window.trailing;
        }
        if index >= wanted.start {
            values.push(f64::from_bits(bits));
        }
    }
    (wanted.end < count || reader.bytes_used() == section.len()).then_some(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::column;
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn values_and_ranges_survive(
            values in prop_oneof![1..100_usize, 1000..2600_usize].prop_flat_map(column),
            a in any::<proptest::sample::Index>(), b in any::<proptest::sample::Index>(),
        ) {
            let mut out = Vec::new();
            encode(&values, &mut out);
            let lengths = if values.len() > UNDIVIDED_MAX { 2 * values.len().div_ceil(SECTION) } else { 0 };
            prop_assert!(out.len() <= cost(&values) + lengths);
            let (a, b) = (a.index(values.len() + 1), b.index(values.len() + 1));
            for range in [0..values.len(), a.min(b)..a.max(b)] {
                let (mut reader, mut back) = (Reader::new(&out), Vec::new());
                decode(&mut reader, values.len(), range.clone(), &mut back).expect("own bytes");
                let bits = |values: &[f64]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
                prop_assert_eq!(bits(&back), bits(&values[range]));
                prop_assert!(reader.is_empty());
            }
        }
    }
}

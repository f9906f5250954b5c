//! Streams of bits, least significant bit of each byte first, and the small number helpers of the codec.
//!
//! A [`BitReader`] never panics and never reads beyond its bytes. Neither type knows what the bits mean.

/// How many bits `value` takes: 0 for 0, 64 for `u64::MAX`.
pub(super) fn bit_length(value: u64) -> u32 {
    u64::BITS - value.leading_zeros()
}

/// A number whose low `width` (at most 64) bits are set.
pub(super) fn low_mask(width: u32) -> u64 {
    u64::MAX.checked_shr(u64::BITS - width).unwrap_or(0)
}

/// 0, -1, 1, -2, ... become 0, 1, 2, 3, ...
pub(super) fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)).cast_unsigned()
}

/// The inverse of [`zigzag`].
pub(super) fn unzigzag(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -(value & 1).cast_signed()
}

/// The bytes that `bits` bits take.
pub(super) fn bytes_of_bits(bits: usize) -> usize {
    bits.div_ceil(8)
}

/// Appends bits to bytes.
#[derive(Debug)]
pub(super) struct BitWriter<'a> {
    out: &'a mut Vec<u8>,
    pending: u64,
    /// Bits of `pending` in use: 0 to 63.
    filled: u32,
}

impl<'a> BitWriter<'a> {
    pub(super) fn new(out: &'a mut Vec<u8>) -> Self {
        Self { out, pending: 0, filled: 0 }
    }

    /// Appends the low `width` (at most 64) bits of `value`; the others must be zero.
    pub(super) fn put(&mut self, value: u64, width: u32) {
        debug_assert!(value & !low_mask(width) == 0, "{value} in {width} bits");
        self.pending |= value << self.filled;
        let total = self.filled + width;
        if total < u64::BITS {
            self.filled = total;
            return;
        }
        self.out.extend_from_slice(&self.pending.to_le_bytes());
        self.pending = value.checked_shr(u64::BITS - self.filled).unwrap_or(0);
        self.filled = total - u64::BITS;
    }

    /// Appends `ones` one bits and a zero bit.
    pub(super) fn put_unary(&mut self, mut ones: u64) {
        while ones >= 32 {
            self.put(low_mask(32), 32);
            ones -= 32;
        }
        // The loop left at most 31 ones: shifting cannot lose any, and 31 + 1 bits fit.
        let width = u32::try_from(ones).expect("below 32") + 1;
        self.put(low_mask(width - 1), width);
    }

    /// Fills the last byte with zero bits.
    pub(super) fn finish(self) {
        let used = self.filled.div_ceil(8) as usize;
        self.out.extend_from_slice(&self.pending.to_le_bytes()[..used]);
    }
}

/// The 8 bytes at `at`, with zeros for those beyond the end.
#[inline]
pub(super) fn word_at(bytes: &[u8], at: usize) -> u64 {
    match bytes.get(at..).and_then(|rest| rest.first_chunk::<8>()) {
        Some(word) => u64::from_le_bytes(*word),
        None => last_word_at(bytes, at),
    }
}

fn last_word_at(bytes: &[u8], at: usize) -> u64 {
    let rest = bytes.get(at..).unwrap_or(&[]);
    // Columns are often so short that every word is near the end.
    if let (Some(last), false) = (bytes.last_chunk::<8>(), rest.is_empty()) {
        return u64::from_le_bytes(*last) >> (8 * (8 - rest.len()));
    }
    rest.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte))
}

/// What one look at the bytes shows at least.
const PEEK_BITS: u32 = 57;

/// Reads what a [`BitWriter`] wrote.
#[derive(Clone, Debug)]
pub(super) struct BitReader<'a> {
    bytes: &'a [u8],
    /// The next bit.
    at: usize,
}

impl<'a> BitReader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// At least the next 57 bits, zeros beyond the end.
    pub(super) fn peek(&self) -> u64 {
        word_at(self.bytes, self.at >> 3) >> (self.at & 7)
    }

    /// Moves on; `None` beyond the end.
    pub(super) fn skip(&mut self, bits: u32) -> Option<()> {
        self.at += bits as usize;
        (self.at <= self.bytes.len() * 8).then_some(())
    }

    /// The next `width` (at most 64) bits, or `None` at the end.
    pub(super) fn get(&mut self, width: u32) -> Option<u64> {
        let mut value = self.peek();
        let spill = self.at & 7;
        if width > 57 && spill > 0 {
            value |= word_at(self.bytes, (self.at >> 3) + 8) << (64 - spill);
        }
        self.skip(width)?;
        Some(value & low_mask(width))
    }

    /// Counts one bits up to the next zero bit and takes them all, at most `max` of them.
    pub(super) fn get_unary(&mut self, max: usize) -> Option<usize> {
        let mut ones = 0;
        loop {
            // The shift of `peek` filled the top with zeros, so a run never seems longer than it is.
            let run = self.peek().trailing_ones();
            ones += run as usize;
            self.skip(run)?;
            if ones > max {
                return None;
            }
            if run < 57 {
                self.skip(1)?;
                return Some(ones);
            }
        }
    }

    /// A number in Rice's code: a quotient of at most `max` in unary, and `rest` (less than 32) bits.
    #[inline]
    pub(super) fn get_rice(&mut self, rest: u32, max: usize) -> Option<usize> {
        let word = self.peek();
        let ones = word.trailing_ones();
        if ones + 1 + rest > PEEK_BITS {
            let quotient = self.get_unary(max)?;
            return (quotient << rest).checked_add(usize::try_from(self.get(rest)?).ok()?);
        }
        self.skip(ones + 1 + rest)?;
        let low = word >> (ones + 1) & low_mask(rest);
        (ones as usize <= max).then_some(((ones as usize) << rest) + usize::try_from(low).ok()?)
    }

    /// [`BitReader::get_rice`] for each of `numbers`. Several are taken from one look at the bytes.
    pub(super) fn get_rices(&mut self, rest: u32, max: usize, numbers: &mut [u32]) -> Option<()> {
        let (mut word, mut used) = (self.peek(), 0_u32);
        for number in numbers {
            let mut ones = word.trailing_ones();
            if used + ones + 1 + rest > PEEK_BITS {
                self.skip(used)?;
                (word, used) = (self.peek(), 0);
                ones = word.trailing_ones();
            }
            if ones + 1 + rest > PEEK_BITS {
                *number = u32::try_from(self.get_rice(rest, max)?).ok()?;
                word = self.peek();
                continue;
            }
            let low = word >> (ones + 1) & low_mask(rest);
            let quotient = ones as usize;
            *number = u32::try_from((quotient << rest) + usize::try_from(low).ok()?).ok()?;
            if quotient > max {
                return None;
            }
            word >>= ones + 1 + rest;
            used += ones + 1 + rest;
        }
        self.skip(used)
    }

    /// How many bytes were begun.
    pub(super) fn bytes_used(&self) -> usize {
        bytes_of_bits(self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn several_rice_codes_are_as_one_by_one(
            numbers in proptest::collection::vec(prop_oneof![8 => 0..200_usize, 1 => 0..5000_usize], 0..60),
            rest in 0..8_u32,
            cut in 0..400_usize,
        ) {
            let mut out = Vec::new();
            let mut writer = BitWriter::new(&mut out);
            for number in &numbers {
                writer.put_unary((number >> rest) as u64);
                writer.put(*number as u64 & low_mask(rest), rest);
            }
            writer.finish();
            out.truncate(cut);
            let (mut one_by_one, mut several) = (BitReader::new(&out), BitReader::new(&out));
            let want: Option<Vec<usize>> = numbers.iter().map(|_| one_by_one.get_rice(rest, 5000)).collect();
            let mut got = vec![0; numbers.len()];
            let read = several.get_rices(rest, 5000, &mut got);
            prop_assert_eq!(read.is_some(), want.is_some());
            if let Some(want) = want {
                prop_assert_eq!(got.iter().map(|n| *n as usize).collect::<Vec<_>>(), want);
                prop_assert_eq!(several.bytes_used(), one_by_one.bytes_used());
            }
        }

        #[test]
        fn bits_survive(items in proptest::collection::vec((any::<u64>(), 0..=64_u32, 0..200_usize), 0..100)) {
            let mut out = Vec::new();
            let mut writer = BitWriter::new(&mut out);
            for (value, width, ones) in &items {
                writer.put(value & low_mask(*width), *width);
                writer.put_unary(*ones as u64);
            }
            writer.finish();
            let mut reader = BitReader::new(&out);
            for (value, width, ones) in &items {
                prop_assert_eq!(reader.get(*width), Some(value & low_mask(*width)));
                prop_assert_eq!(reader.get_unary(200), Some(*ones));
            }
            prop_assert_eq!(reader.bytes_used(), out.len());
            prop_assert_eq!(reader.get(8), None);
        }

        #[test]
        fn zigzag_survives(value in any::<i64>()) {
            prop_assert_eq!(unzigzag(zigzag(value)), value);
        }
    }
}

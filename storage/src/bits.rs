//! A stream of bits, most significant bit of each byte first. Used by the XOR coding of values only.

/// Collects bits into bytes.
#[derive(Debug, Default)]
pub(crate) struct BitWriter {
    /// Pending bits, in the low `pending_bits` bits.
    pending: u64,
    pending_bits: u32,
}

impl BitWriter {
    /// Appends the low `bits` (at most 64) bits of `value`; whole bytes go to `out`.
    pub(crate) fn put(&mut self, out: &mut Vec<u8>, value: u64, bits: u32) {
        if bits > 32 {
            self.put_short(out, value >> 32, bits - 32);
            self.put_short(out, value & 0xffff_ffff, 32);
        } else {
            self.put_short(out, value, bits);
        }
    }

    /// `bits` is at most 32, so that pending (at most 7) and new bits fit the accumulator.
    fn put_short(&mut self, out: &mut Vec<u8>, value: u64, bits: u32) {
        let value = value & ((1_u64 << bits) - 1);
        self.pending = (self.pending << bits) | value;
        self.pending_bits += bits;
        while self.pending_bits >= 8 {
            self.pending_bits -= 8;
            out.push((self.pending >> self.pending_bits).to_le_bytes()[0]);
        }
        self.pending &= (1_u64 << self.pending_bits) - 1;
    }

    /// Fills the last byte with zero bits.
    pub(crate) fn finish(mut self, out: &mut Vec<u8>) {
        if self.pending_bits > 0 {
            let fill = 8 - self.pending_bits;
            self.put_short(out, 0, fill);
        }
    }
}

/// Reads what a [`BitWriter`] wrote.
#[derive(Debug)]
pub(crate) struct BitReader<'a> {
    bytes: &'a [u8],
    pending: u64,
    pending_bits: u32,
}

impl<'a> BitReader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, pending: 0, pending_bits: 0 }
    }

    /// The next `bits` (at most 64) bits, or `None` at the end.
    pub(crate) fn get(&mut self, bits: u32) -> Option<u64> {
        if bits > 32 {
            let high = self.get_short(bits - 32)?;
            Some(high << 32 | self.get_short(32)?)
        } else {
            self.get_short(bits)
        }
    }

    fn get_short(&mut self, bits: u32) -> Option<u64> {
        while self.pending_bits < bits {
            let (first, rest) = self.bytes.split_first()?;
            self.bytes = rest;
            self.pending = (self.pending << 8) | u64::from(*first);
            self.pending_bits += 8;
        }
        self.pending_bits -= bits;
        let value = self.pending >> self.pending_bits;
        self.pending &= (1_u64 << self.pending_bits) - 1;
        Some(value)
    }

    /// Whether only the zero bits that fill the last byte are left.
    pub(crate) fn is_finished(&self) -> bool {
        self.bytes.is_empty() && self.pending_bits < 8 && self.pending == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn bits_survive(items in proptest::collection::vec((any::<u64>(), 0..=64_u32), 0..100)) {
            let mut out = Vec::new();
            let mut writer = BitWriter::default();
            for (value, bits) in &items {
                writer.put(&mut out, *value, *bits);
            }
            writer.finish(&mut out);
            let mut reader = BitReader::new(&out);
            for (value, bits) in &items {
                let mask = if *bits == 64 { u64::MAX } else { (1 << bits) - 1 };
                prop_assert_eq!(reader.get(*bits), Some(value & mask));
            }
            prop_assert!(reader.is_finished());
        }
    }
}

//! Snappy block format, bounded.
//!
//! The block's header claims the decompressed size. It is compared with the limit before anything is
//! allocated, so that a forged header costs nothing.

use crate::WireError;

/// The decompressed size that a block claims, if it is at most `bytes_max` and credible.
///
/// # Errors
/// [`WireError::TooLarge`] if the header claims more than `bytes_max`; [`WireError::Invalid`] if the block
/// cannot hold what it claims, or has no header.
pub fn claimed_len(block: &[u8], bytes_max: usize) -> Result<usize, WireError> {
    let claimed = snap::raw::decompress_len(block).map_err(|e| damaged(&e, bytes_max))?;
    if claimed > bytes_max {
        return Err(WireError::TooLarge { what: "decompressed body", bytes: claimed, bytes_max });
    }
    // A snappy element of two bytes or more yields at most 64 bytes (format_description.txt, section 2),
    // so a short block that claims much is damaged: refuse it before allocating.
    if claimed > block.len().saturating_mul(64) {
        let text = format!("{} bytes cannot hold the {claimed} that the header claims", block.len());
        return Err(WireError::Invalid(format!("snappy block is damaged: {text}")));
    }
    Ok(claimed)
}

/// Decompresses a block of at most `bytes_max` decompressed bytes.
///
/// # Errors
/// As [`claimed_len`], and [`WireError::Invalid`] if the block is damaged.
pub fn decompress(block: &[u8], bytes_max: usize) -> Result<Vec<u8>, WireError> {
    claimed_len(block, bytes_max)?;
    snap::raw::Decoder::new().decompress_vec(block).map_err(|e| damaged(&e, bytes_max))
}

fn damaged(error: &snap::Error, bytes_max: usize) -> WireError {
    match error {
        // The header's claim cannot even be represented: over any limit.
        snap::Error::TooBig { given, .. } => WireError::TooLarge {
            what: "decompressed body",
            bytes: usize::try_from(*given).unwrap_or(usize::MAX),
            bytes_max,
        },
        other => WireError::Invalid(format!("snappy block is damaged: {other}")),
    }
}

/// Compresses `bytes` into one block.
pub fn compress(bytes: &[u8]) -> Vec<u8> {
    let compressed = snap::raw::Encoder::new().compress_vec(bytes);
    compressed.expect("input of a remote-write request is below snappy's limit of 4 GiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roundtrip() {
        let bytes: Vec<u8> = (0..100_000_u32).flat_map(|i| (i / 7).to_le_bytes()).collect();
        assert_eq!(decompress(&compress(&bytes), 400_000), Ok(bytes));
        assert_eq!(decompress(&compress(&[7; 1 << 20]), 1 << 20), Ok(vec![7; 1 << 20]));
    }

    #[test]
    fn a_claim_of_gigabytes_is_too_large() {
        // Varint of 0xffff_fff0, then one literal byte.
        let bomb = [0xf0, 0xff, 0xff, 0xff, 0x0f, 0x00, b'a'];
        assert!(matches!(decompress(&bomb, 32 << 20), Err(WireError::TooLarge { .. })));
        // A claim beyond 32 bits.
        let bomb = [0xff, 0xff, 0xff, 0xff, 0xff, 0x0f, 0x00, b'a'];
        assert!(decompress(&bomb, 32 << 20).is_err());
    }

    #[test]
    fn a_claim_that_the_block_cannot_hold_is_damaged() {
        let bomb = [0x80, 0x80, 0x80, 0x08, 0x00, b'a'];
        assert!(matches!(decompress(&bomb, 32 << 20), Err(WireError::Invalid(_))));
    }

    #[test]
    fn garbage_is_damaged() {
        for garbage in [&b"hello world"[..], &[], &[0xff; 20]] {
            assert!(decompress(garbage, 1 << 20).is_err());
        }
    }
}

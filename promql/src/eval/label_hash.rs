//! The hash by which `limit_ratio` keeps or drops a series; identical to Prometheus's.
//!
//! XXH64 with seed 0 over the length-prefixed names and values, sorted by name: one byte of length below
//! 255, else the byte 255 and three bytes, little-endian (`labels_stringlabels.go`).

use saturn_model::Labels;
use xxhash_rust::xxh64::xxh64;

/// The hash of a label set.
pub(super) fn label_hash(labels: &Labels) -> u64 {
    let mut bytes = Vec::new();
    for text in labels.iter().flat_map(|(name, value)| [name, value]) {
        match u8::try_from(text.len()) {
            Ok(length) if length < 255 => bytes.push(length),
            _ => {
                bytes.push(255);
                bytes.extend_from_slice(&text.len().to_le_bytes()[..3]);
            }
        }
        bytes.extend_from_slice(text.as_bytes());
    }
    xxh64(&bytes, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_part_of_the_hash() {
        let labels = Labels::from_pairs([("a", "bc")]).expect("valid");
        assert_eq!(label_hash(&labels), xxh64(b"\x01a\x02bc", 0));
        let long = "x".repeat(300);
        let labels = Labels::from_pairs([("a", long.as_str())]).expect("valid");
        let bytes = [b"\x01a\xff\x2c\x01\x00", long.as_bytes()].concat();
        assert_eq!(label_hash(&labels), xxh64(&bytes, 0));
    }
}

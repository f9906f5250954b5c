//! Digests: what two replicas compare to find where their samples differ.
//!
//! A digest covers one shard and window: 256 buckets of series, each the wrapping sum of one hash per
//! sample over fingerprint, time and bits of the value (of a native histogram: a hash of its bytes). It is taken over merged and visible samples, from
//! memory and disk, so it depends on neither order, chunking, codec, nor on what was flushed or merged.
//! The sum finds accidents, not adversaries.

use saturn_model::{Fingerprint, Histogram, SeriesColumns, ShardId, TimestampMs};

use crate::engine::Store;
use crate::error::StorageError;
use crate::keys::Window;
use crate::past;
use crate::read::Scan;
use crate::rocks::Blocks;

/// Buckets of a digest.
pub(crate) const BUCKETS: usize = 256;

/// See `Engine::digest`.
pub(crate) fn digest(
    store: &Store,
    shard: ShardId,
    window: Window,
    until: TimestampMs,
) -> Result<[u64; BUCKETS], StorageError> {
    let mut buckets = [0_u64; BUCKETS];
    let Some(shard) = store.known_shard(shard) else {
        return Ok(buckets);
    };
    let range = window.start()..=window.end().min(until.0) - 1;
    if range.is_empty() {
        return Ok(buckets);
    }
    let present = {
        let head = shard.head.lock();
        let mut all = shard.index.read().known().clone();
        head.segments.iter().for_each(|segment| all |= &segment.ordinals);
        head.present(&all, *range.start(), *range.end())
    };
    let series = past::in_key_order(store, &shard, &present)?;
    let mut scan = Scan::new(store, shard, series, range, Blocks::ReadOnce);
    let mut columns = SeriesColumns::default();
    while let Some(fingerprint) = scan.next_into(&mut columns)? {
        let bucket = &mut buckets[bucket_of(fingerprint)];
        for (timestamp, value) in columns.timestamps.iter().zip(&columns.values) {
            *bucket = bucket.wrapping_add(hash(fingerprint, *timestamp, value.to_bits()));
        }
        let histograms = &columns.histograms;
        for (timestamp, histogram) in histograms.timestamps.iter().zip(&histograms.values) {
            *bucket = bucket.wrapping_add(hash(fingerprint, *timestamp, histogram_bits(histogram)));
        }
    }
    Ok(buckets)
}

/// The fingerprint's highest byte: the lowest ones chose the shard.
pub(crate) fn bucket_of(fingerprint: Fingerprint) -> usize {
    usize::from(fingerprint.to_bytes()[15])
}

/// Two rounds of the SplitMix64 finaliser over the sample. Part of the protocol between replicas.
pub(crate) fn hash(fingerprint: Fingerprint, timestamp: i64, bits: u64) -> u64 {
    let [low, high] = halves(fingerprint);
    let series = mix(low ^ mix(high));
    mix(mix(series ^ timestamp.cast_unsigned()).wrapping_add(bits))
}

/// What stands for the bits of a value: the histogram's bytes (`Histogram::append_bytes`), eight by eight, the
/// last ones filled up with zeros, each mixed into what came before. Starts from the number of bytes.
pub(crate) fn histogram_bits(histogram: &Histogram) -> u64 {
    let mut bytes = Vec::new();
    histogram.append_bytes(&mut bytes);
    let len = bytes.len() as u64;
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    let (words, _) = bytes.as_chunks::<8>();
    words.iter().fold(mix(len), |sum, word| mix(sum ^ u64::from_le_bytes(*word)))
}

fn halves(fingerprint: Fingerprint) -> [u64; 2] {
    let bytes = fingerprint.to_bytes();
    let half = |at: usize| u64::from_le_bytes(*bytes[at..].first_chunk().expect("16 bytes have two halves"));
    [half(0), half(8)]
}

fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_pinned() {
        // Replicas of different versions compare digests: this must never change.
        let hashes = [
            hash(Fingerprint(1), 2, 3),
            hash(Fingerprint(1 << 64), 2, 3),
            hash(Fingerprint(1), 3, 2),
            hash(Fingerprint(1), -2, 3),
        ];
        assert!((0..4).all(|a| (0..a).all(|b| hashes[a] != hashes[b])));
        assert_eq!(hashes[0], PINNED);
        assert_eq!(bucket_of(Fingerprint(0xab << 120)), 0xab);
    }

    #[test]
    fn histograms_hash_by_all_their_bits() {
        let histogram = Histogram { count: 3.0, zero_count: 3.0, sum: 1.5, ..Histogram::default() };
        let other = Histogram { sum: 1.25, ..histogram.clone() };
        assert_ne!(histogram_bits(&histogram), histogram_bits(&other));
        assert_eq!(histogram_bits(&histogram), PINNED_HISTOGRAM);
    }

    const PINNED_HISTOGRAM: u64 = 14_022_563_238_326_796_184;
    const PINNED: u64 = 3_267_521_951_600_202_103;
}

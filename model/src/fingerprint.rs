//! Where a series lives: a 128-bit fingerprint, reduced to a virtual shard.

use std::fmt;

use xxhash_rust::xxh3::Xxh3;

use crate::TenantId;

/// Key of the fingerprint hash. It is part of the on-disk and on-wire format (`docs/data-format.md`):
/// every node must compute the same fingerprint for the same series, for ever.
const FINGERPRINT_KEY: u64 = 0x5361_7475_726e_2046; // "Saturn F"

/// Identity of a series across the cluster: XXH3-128 over tenant and canonical labels.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint(pub u128);

/// A virtual shard: `0 .. shards`, with `shards` fixed when the cluster forms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId(pub u16);

impl Fingerprint {
    /// The fingerprint of the series that `tenant` calls `encoded_labels`
    /// (the canonical encoding, see [`crate::Labels::as_encoded`]).
    pub fn of(tenant: &TenantId, encoded_labels: &str) -> Self {
        let mut hasher = Xxh3::with_seed(FINGERPRINT_KEY);
        hasher.update(tenant.as_str().as_bytes());
        // 0xff never occurs in UTF-8, so tenant and labels cannot run into each other.
        hasher.update(&[0xff]);
        hasher.update(encoded_labels.as_bytes());
        Self(hasher.digest128())
    }

    /// The virtual shard of this series in a cluster of `shards` shards.
    pub fn shard(self, shards: u16) -> ShardId {
        // The remainder of the number of 128 bits, by halves: division of such numbers is a call.
        let shards = u64::from(shards);
        let [low, high] = [self.0, self.0 >> 64].map(|half| (half & u128::from(u64::MAX)) as u64 % shards);
        let two_to_64 = (u64::MAX % shards + 1) % shards;
        let shard = (high * two_to_64 + low) % shards;
        ShardId(u16::try_from(shard).expect("a remainder of a u16 fits a u16"))
    }

    /// Little-endian bytes, as stored and sent.
    pub fn to_bytes(self) -> [u8; 16] {
        self.0.to_le_bytes()
    }

    /// Inverse of [`Fingerprint::to_bytes`].
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(u128::from_le_bytes(bytes))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Labels;

    #[test]
    fn the_format_is_pinned() {
        let tenant = TenantId::new("demo").expect("valid");
        let labels = Labels::from_pairs([("__name__", "up"), ("job", "node")]).expect("valid");
        let fingerprint = Fingerprint::of(&tenant, labels.as_encoded());
        // Data written by earlier versions is found by this number: it must never change.
        assert_eq!(fingerprint.to_string(), "9c315a0c122890f3e933bebbc9949808");
        assert_eq!(Fingerprint::from_bytes(fingerprint.to_bytes()), fingerprint);
    }

    #[test]
    fn tenants_do_not_share_fingerprints() {
        let labels = Labels::from_pairs([("__name__", "up")]).expect("valid");
        let of = |t: &str| Fingerprint::of(&TenantId::new(t).expect("valid"), labels.as_encoded());
        assert_ne!(of("a"), of("b"));
    }

    #[test]
    fn the_shard_is_the_remainder() {
        let numbers = (0..1000_u128).map(|i| (i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835));
        for number in numbers.chain([0, 1, u128::MAX, u128::from(u64::MAX), 1 << 64]) {
            for shards in [1, 2, 3, 64, 1000, 1024, u16::MAX] {
                let want = number % u128::from(shards);
                assert_eq!(u128::from(Fingerprint(number).shard(shards).0), want, "{number} {shards}");
            }
        }
    }

    #[test]
    fn shards_fill_evenly() {
        let tenant = TenantId::new("demo").expect("valid");
        let mut counts = [0_u32; 64];
        for i in 0..64_000 {
            let labels = Labels::from_pairs([("i", i.to_string().as_str())]).expect("valid");
            let shard = Fingerprint::of(&tenant, labels.as_encoded()).shard(64);
            counts[usize::from(shard.0)] += 1;
        }
        assert!(counts.iter().all(|c| (850..1150).contains(c)), "{counts:?}");
    }
}

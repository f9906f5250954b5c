//! Shuffle sharding: a tenant's own few of all shards, so that what one tenant does reaches few of the others.
//!
//! Every tenant has an order of all shards of its own (rendezvous hashing of its name and the shard's number), and its
//! series go to the first so many of it. Hence the set for a number is contained in the set for any larger number,
//! sets of two tenants have little in common, and nobody needs to remember anything. Shards are spread over nodes and
//! zones by the placement already.
//!
//! Pure, and part of what all nodes must agree on: the same tenant, number and fingerprint give the same shard on every
//! version of Saturn. A tenant that uses all shards is spread as if none of this were here.

use std::collections::BTreeMap;

use saturn_model::{Fingerprint, ShardId, TenantId};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Seed of the tenants' orders.
const ORDER_SEED: u64 = 0x5361_7475_726e_2053; // "Saturn S"

/// Over how many shards a tenant is spread. 0 means all, so the default is not to be spread over fewer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spread {
    /// Its series are written to so many.
    pub written: u16,
    /// Queries ask so many: at least as many as were ever written to, as long as what was written is kept.
    pub read: u16,
}

/// The spread of every tenant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spreads {
    /// Of those without one of their own.
    pub default: Spread,
    /// Of these.
    pub tenants: BTreeMap<TenantId, Spread>,
}

/// Some shards of a tenant, or all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subset {
    /// In the cluster.
    shards: u16,
    /// In the tenant's order; `None`: all.
    chosen: Option<Vec<ShardId>>,
}

impl Spread {
    /// Whether queries ask at least the shards that are written to.
    pub fn is_valid(self) -> bool {
        self.read == 0 || (self.written != 0 && self.written <= self.read)
    }
}

impl Spreads {
    /// The spread of one tenant.
    pub fn of(&self, tenant: &TenantId) -> Spread {
        self.tenants.get(tenant).copied().unwrap_or(self.default)
    }
}

impl Subset {
    /// The first `size` of the tenant's shards in a cluster of `shards`; all of them if `size` is 0 or not less.
    pub fn of(tenant: &TenantId, size: u16, shards: u16) -> Self {
        if size == 0 || size >= shards {
            return Self { shards, chosen: None };
        }
        let mut order: Vec<(u64, ShardId)> =
            (0..shards).map(ShardId).map(|shard| (score(tenant, shard), shard)).collect();
        order.sort_unstable();
        Self {
            shards,
            chosen: Some(order.into_iter().take(usize::from(size)).map(|(_, shard)| shard).collect()),
        }
    }

    /// The shard of a series. When a subset grows by one, one series in as many as it has then goes to the new shard,
    /// and the others stay; all may move when it becomes, or was, all shards.
    pub fn shard_of(&self, fingerprint: Fingerprint) -> ShardId {
        match &self.chosen {
            None => fingerprint.shard(self.shards),
            Some(chosen) => chosen[jump(low_half(fingerprint), chosen.len())],
        }
    }

    /// How many shards the cluster has.
    pub fn cluster_shards(&self) -> u16 {
        self.shards
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.chosen.as_ref().map_or(usize::from(self.shards), Vec::len)
    }

    /// Whether there is none, which is so in a cluster without shards only.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the shard is one of them.
    pub fn contains(&self, shard: ShardId) -> bool {
        self.chosen.as_ref().map_or(shard.0 < self.shards, |chosen| chosen.contains(&shard))
    }

    /// All of them, ascending.
    pub fn ids(&self) -> Vec<ShardId> {
        let mut ids = self.chosen.clone().unwrap_or_else(|| (0..self.shards).map(ShardId).collect());
        ids.sort_unstable();
        ids
    }
}

/// Where the shard stands in the tenant's order: lower first.
fn score(tenant: &TenantId, shard: ShardId) -> u64 {
    let mut key = tenant.as_str().as_bytes().to_vec();
    // No name contains it.
    key.push(0);
    key.extend_from_slice(&shard.0.to_be_bytes());
    xxh3_64_with_seed(&key, ORDER_SEED)
}

fn low_half(fingerprint: Fingerprint) -> u64 {
    let bytes = fingerprint.to_bytes();
    u64::from_le_bytes(*bytes.first_chunk().expect("a fingerprint has 16 bytes"))
}

/// Jump consistent hash (Lamping and Veach, 2014): a bucket below `buckets`, which is not 0.
fn jump(mut key: u64, buckets: usize) -> usize {
    let (mut bucket, mut next) = (0_u64, 0_u64);
    while next < buckets as u64 {
        bucket = next;
        key = key.wrapping_mul(2_862_933_555_777_941_757).wrapping_add(1);
        next = ((bucket + 1) as f64 * ((1_u64 << 31) as f64 / ((key >> 33) + 1) as f64)) as u64;
    }
    usize::try_from(bucket).expect("it is below a usize")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn tenant(name: &str) -> TenantId {
        TenantId::new(name).expect("valid")
    }

    fn ids(subset: &Subset) -> BTreeSet<u16> {
        subset.ids().into_iter().map(|shard| shard.0).collect()
    }

    proptest! {
        #[test]
        fn a_larger_subset_contains_a_smaller_one(name in "[a-z0-9]{1,9}", shards in 1_u16..300, size in 1_u16..310) {
            let of = |size| Subset::of(&tenant(&name), size, shards);
            let (small, large) = (of(size), of(size + 1));
            prop_assert!(ids(&small).is_subset(&ids(&large)));
            prop_assert_eq!(small.len(), usize::from(size.min(shards)));
            prop_assert_eq!(ids(&small).len(), small.len());
            prop_assert!(ids(&small).iter().all(|shard| *shard < shards && small.contains(ShardId(*shard))));
            prop_assert_eq!((0..shards).filter(|s| small.contains(ShardId(*s))).count(), small.len());
            prop_assert_eq!(of(0), of(shards));
        }

        #[test]
        fn series_go_to_shards_of_the_subset(name in "[a-z0-9]{1,9}", fingerprint in any::<u128>(), size in 0_u16..20) {
            let subset = Subset::of(&tenant(&name), size, 16);
            let fingerprint = Fingerprint(fingerprint);
            prop_assert!(subset.contains(subset.shard_of(fingerprint)));
            // A subset that grows moves series to its new shard only.
            let grown = Subset::of(&tenant(&name), size + 1, 16);
            if (1..15).contains(&size) && subset.shard_of(fingerprint) != grown.shard_of(fingerprint) {
                prop_assert!(!subset.contains(grown.shard_of(fingerprint)));
            }
            if size == 0 {
                prop_assert_eq!(subset.shard_of(fingerprint), fingerprint.shard(16));
            }
        }
    }

    #[test]
    fn tenants_are_balanced_over_shards_and_series_over_a_subset() {
        let (shards, size, tenants) = (64, 8, 4000);
        let mut load = vec![0_usize; usize::from(shards)];
        for number in 0..tenants {
            for shard in Subset::of(&tenant(&format!("tenant-{number}")), size, shards).ids() {
                load[usize::from(shard.0)] += 1;
            }
        }
        // 500 each; the standard deviation is 21.
        assert!(load.iter().all(|count| (400..=600).contains(count)), "{load:?}");

        let subset = Subset::of(&tenant("demo"), size, shards);
        let mut series = BTreeMap::<ShardId, usize>::new();
        for number in 0..8000 {
            let fingerprint = Fingerprint::of(&tenant("demo"), &number.to_string());
            *series.entry(subset.shard_of(fingerprint)).or_default() += 1;
        }
        // 1,000 each; the standard deviation is 30.
        assert_eq!(series.len(), 8);
        assert!(series.values().all(|count| (850..=1150).contains(count)), "{series:?}");
    }

    #[test]
    fn two_tenants_seldom_share_most_of_their_shards() {
        let subsets: Vec<BTreeSet<u16>> =
            (0..100).map(|n| ids(&Subset::of(&tenant(&format!("t{n}")), 4, 64))).collect();
        let shared = |a: &BTreeSet<u16>, b: &BTreeSet<u16>| a.intersection(b).count();
        let pairs = (0..100).flat_map(|a| (0..a).map(move |b| (a, b)));
        let much = pairs.filter(|(a, b)| shared(&subsets[*a], &subsets[*b]) >= 3).count();
        // One pair in 2,600 shares three of four, of 4,950.
        assert!(much <= 10, "{much} pairs");
    }

    #[test]
    fn orders_and_places_are_pinned() {
        // Series that were written must be found by every later version.
        let of = |size| Subset::of(&tenant("demo"), size, 64);
        let order: Vec<u16> = of(6).chosen.expect("not all").iter().map(|shard| shard.0).collect();
        assert_eq!(order, PINNED_ORDER);
        let fingerprints = [0, 1, u128::MAX, 0x0123_4567_89ab_cdef << 3].map(Fingerprint);
        assert_eq!(fingerprints.map(|fingerprint| of(6).shard_of(fingerprint).0), PINNED_SHARDS);
    }

    const PINNED_ORDER: [u16; 6] = [52, 25, 40, 23, 20, 60];
    const PINNED_SHARDS: [u16; 4] = [52, 52, 40, 40];

    #[test]
    fn reads_cover_writes() {
        let spread = |written, read| Spread { written, read };
        for valid in [(0, 0), (5, 0), (5, 5), (5, 9)] {
            assert!(spread(valid.0, valid.1).is_valid(), "{valid:?}");
        }
        for wrong in [(0, 5), (6, 5)] {
            assert!(!spread(wrong.0, wrong.1).is_valid(), "{wrong:?}");
        }
        let tenants = BTreeMap::from([(tenant("a"), spread(2, 3))]);
        let spreads = Spreads { default: spread(4, 0), tenants };
        assert_eq!((spreads.of(&tenant("a")), spreads.of(&tenant("b"))), (spread(2, 3), spread(4, 0)));
    }
}

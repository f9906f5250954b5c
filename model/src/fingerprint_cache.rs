//! Fingerprints of series that came before, by the bytes that their labels came as.
//!
//! A sender repeats the labels of a series with every sample. Reading, checking, canonically encoding and hashing them
//! costs several times what storing the sample does; hashing the bytes as they came and looking that up does not.
//!
//! Entries are found by a 128-bit hash of the bytes (XXH3-128, of which a few series of a billion collide with a
//! probability below 10^-20) under a seed that is secret and differs between tenants, so that nobody can make bytes
//! that stand for somebody else's series. What is in here was valid when it was put in, so a cache must not outlive a
//! change of the limits.

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState};

use parking_lot::Mutex;
use xxhash_rust::xxh3::xxh3_128_with_seed;

use crate::{Fingerprint, TenantId};

/// Parts with a lock each.
const STRIPES: usize = 64;

/// Bounded, shared by all requests. When it is full, what was not asked for lately goes.
#[derive(Debug)]
pub struct FingerprintCache {
    stripes: Vec<Mutex<Stripe>>,
    entries_max: usize,
    secret: RandomState,
}

/// Half of the entries that a stripe may have, and the half before them.
#[derive(Debug, Default)]
struct Stripe {
    young: Entries,
    old: Entries,
}

type Entries = HashMap<u128, Fingerprint, BuildHasherDefault<FirstHalf>>;

/// The key is a hash.
#[derive(Debug, Default)]
struct FirstHalf(u64);

impl Hasher for FirstHalf {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _bytes: &[u8]) {
        unreachable!("the keys are numbers of 128 bits");
    }

    #[expect(clippy::cast_possible_truncation, reason = "one half is enough")]
    fn write_u128(&mut self, key: u128) {
        self.0 = key as u64;
    }
}

/// The cache as one tenant sees it.
#[derive(Clone, Copy, Debug)]
pub struct TenantFingerprints<'a> {
    cache: &'a FingerprintCache,
    seed: u64,
}

/// What the bytes of some labels are found by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LabelBytesKey(u128);

impl FingerprintCache {
    /// A cache of at most so many series; each takes some 40 to 75 bytes.
    pub fn new(entries_max: usize) -> Self {
        let stripes = (0..STRIPES).map(|_| Mutex::default()).collect();
        Self { stripes, entries_max: (entries_max / STRIPES).max(2), secret: RandomState::new() }
    }

    /// The part for this tenant's series.
    pub fn of_tenant(&self, tenant: &TenantId) -> TenantFingerprints<'_> {
        TenantFingerprints { cache: self, seed: self.secret.hash_one(tenant.as_str()) }
    }

    fn stripe(&self, key: LabelBytesKey) -> &Mutex<Stripe> {
        let [high, ..] = key.0.to_be_bytes();
        &self.stripes[usize::from(high) % STRIPES]
    }
}

impl TenantFingerprints<'_> {
    /// The key of labels that came as these bytes.
    pub fn key(&self, label_bytes: &[u8]) -> LabelBytesKey {
        LabelBytesKey(xxh3_128_with_seed(label_bytes, self.seed))
    }

    /// The fingerprint, if it was put in and is still there.
    pub fn get(&self, key: LabelBytesKey) -> Option<Fingerprint> {
        let mut stripe = self.cache.stripe(key).lock();
        if let Some(fingerprint) = stripe.young.get(&key.0) {
            return Some(*fingerprint);
        }
        let fingerprint = stripe.old.remove(&key.0)?;
        stripe.put(key, fingerprint, self.cache.entries_max);
        Some(fingerprint)
    }

    /// Remembers the fingerprint of valid labels.
    pub fn put(&self, key: LabelBytesKey, fingerprint: Fingerprint) {
        self.cache.stripe(key).lock().put(key, fingerprint, self.cache.entries_max);
    }
}

impl Stripe {
    fn put(&mut self, key: LabelBytesKey, fingerprint: Fingerprint, entries_max: usize) {
        if self.young.len() >= entries_max / 2 {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key.0, fingerprint);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(name: &str) -> TenantId {
        TenantId::new(name).expect("valid")
    }

    #[test]
    fn what_was_put_in_is_found_by_its_tenant_only() {
        let cache = FingerprintCache::new(1000);
        let (a, b) = (tenant("a"), tenant("b"));
        let mine = cache.of_tenant(&a);
        let key = mine.key(b"labels");
        assert_eq!(mine.get(key), None);
        mine.put(key, Fingerprint(7));
        assert_eq!(cache.of_tenant(&a).get(cache.of_tenant(&a).key(b"labels")), Some(Fingerprint(7)));
        assert_eq!(mine.get(mine.key(b"label")), None);
        let theirs = cache.of_tenant(&b);
        assert_ne!(theirs.key(b"labels"), key);
        assert_eq!(theirs.get(theirs.key(b"labels")), None);
    }

    #[test]
    fn it_is_bounded_and_keeps_what_is_asked_for() {
        let cache = FingerprintCache::new(64 * 100);
        let tenant = tenant("a");
        let of_tenant = cache.of_tenant(&tenant);
        let put = |n: u128| of_tenant.put(of_tenant.key(&n.to_le_bytes()), Fingerprint(n));
        let get = |n: u128| of_tenant.get(of_tenant.key(&n.to_le_bytes()));
        for n in 0..100_000 {
            put(n);
            if n >= 10 {
                assert_eq!(get(5), Some(Fingerprint(5)), "after {n}");
            }
        }
        let entries_of = |stripe: &Stripe| stripe.young.len() + stripe.old.len();
        let entries: usize = cache.stripes.iter().map(|stripe| entries_of(&stripe.lock())).sum();
        assert!((3200..=6400).contains(&entries), "{entries}");
        assert_eq!((get(99_999), get(6)), (Some(Fingerprint(99_999)), None));
    }
}

//! The series of one shard that are in memory: who is there, and which of them carry which label.
//!
//! Label pairs are kept once per tenant and node (`index/symbols.rs`); a series is a record of their numbers
//! (`index/records.rs`), and a pair has a posting of ordinals (`index/postings.rs`), per tenant: nothing of one
//! tenant can be reached through another. Ordinals are in order of arrival, and never used twice.

use std::borrow::Cow;
use std::sync::Arc;

use roaring::RoaringBitmap;
use saturn_model::{Fingerprint, Labels, Matcher, TenantId};

use crate::keys::SeriesKey;

mod cache;
mod postings;
mod records;
mod symbols;
mod tenant;
#[cfg(test)]
mod tests;

pub(crate) use cache::Cache;
use records::{Cursor, Record, Records};
pub(crate) use symbols::Dictionary;
pub(crate) use tenant::TenantIndex;

/// The series of one shard.
#[derive(Debug, Default)]
pub(crate) struct Index {
    dictionary: Arc<Dictionary>,
    records: Records,
    known: RoaringBitmap,
    pub(crate) tenants: Vec<TenantIndex>,
}

/// What is known of a series but for its samples.
#[derive(Debug)]
pub(crate) struct Series<'a> {
    tenant: &'a TenantIndex,
    record: Cow<'a, Record>,
}

impl Series<'_> {
    pub(crate) fn ordinal(&self) -> u32 {
        self.record.ordinal
    }

    pub(crate) fn tenant(&self) -> &TenantId {
        &self.tenant.tenant
    }

    pub(crate) fn fingerprint(&self) -> Fingerprint {
        self.record.fingerprint()
    }

    pub(crate) fn labels(&self) -> Labels {
        self.tenant.symbols.labels(&self.record.pairs)
    }

    /// Where the series is within segments.
    pub(crate) fn key(&self) -> SeriesKey {
        key_of(self.tenant, &self.record)
    }
}

/// See [`Index::look_ups`].
#[derive(Debug)]
pub(crate) struct LookUps<'a> {
    index: &'a Index,
    cursor: Cursor<'a>,
}

impl LookUps<'_> {
    /// Where a series is within segments, if it is here.
    pub(crate) fn key(&mut self, ordinal: u32) -> Option<SeriesKey> {
        let record = self.cursor.find(ordinal)?;
        Some(key_of(&self.index.tenants[record.tenant as usize], record))
    }

    /// What a series is called, if it is here.
    pub(crate) fn labels(&mut self, ordinal: u32) -> Option<Labels> {
        let record = self.cursor.find(ordinal)?;
        Some(self.index.tenants[record.tenant as usize].symbols.labels(&record.pairs))
    }
}

fn key_of(tenant: &TenantIndex, record: &Record) -> SeriesKey {
    let key = |metric: &str| SeriesKey::new(metric, record.fingerprint());
    match record.metric {
        Some(at) => tenant.symbols.with_texts(record.pairs[at as usize], |_, metric| key(metric)),
        None => key(""),
    }
}

impl Index {
    /// An index without series, whose pairs are kept in `dictionary`.
    pub(crate) fn new(dictionary: &Arc<Dictionary>) -> Self {
        Self { dictionary: Arc::clone(dictionary), ..Self::default() }
    }

    /// A series, if it is here.
    pub(crate) fn get(&self, ordinal: u32) -> Option<Series<'_>> {
        let record = self.records.cursor().find(ordinal)?.clone();
        Some(Series { tenant: &self.tenants[record.tenant as usize], record: Cow::Owned(record) })
    }

    /// Gives those of these series that are here to `each`, ascending.
    pub(crate) fn each(&self, ordinals: &RoaringBitmap, mut each: impl FnMut(Series<'_>)) {
        let mut cursor = self.records.cursor();
        for ordinal in ordinals {
            if let Some(record) = cursor.find(ordinal) {
                let tenant = &self.tenants[record.tenant as usize];
                each(Series { tenant, record: Cow::Borrowed(record) });
            }
        }
    }

    /// Looks series up. Cheapest in ascending order.
    pub(crate) fn look_ups(&self) -> LookUps<'_> {
        LookUps { index: self, cursor: self.records.cursor() }
    }

    /// The series that are here.
    pub(crate) fn known(&self) -> &RoaringBitmap {
        &self.known
    }

    /// How many series are here.
    pub(crate) fn len(&self) -> u64 {
        self.records.len() as u64
    }

    /// These series in the order that they have in segments, with their ordinals. Those that are not here are
    /// left out.
    pub(crate) fn in_key_order(&self, ordinals: impl Iterator<Item = u32>) -> Vec<(SeriesKey, u32)> {
        let mut look_ups = self.look_ups();
        let mut keys: Vec<(SeriesKey, u32)> =
            ordinals.filter_map(|ordinal| Some((look_ups.key(ordinal)?, ordinal))).collect();
        keys.sort_unstable();
        keys
    }

    /// The position of a tenant, which is added if it is new.
    pub(crate) fn tenant_position(&mut self, tenant: &TenantId) -> u32 {
        let known = self.tenants.iter().position(|t| t.tenant == *tenant);
        let position = known.unwrap_or_else(|| {
            self.tenants.push(TenantIndex::new(tenant.clone(), self.dictionary.tenant(tenant)));
            self.tenants.len() - 1
        });
        u32::try_from(position).expect("fewer than 2^32 tenants")
    }

    /// Adds a series of the tenant at this position. Its ordinal is above all others.
    pub(crate) fn add(&mut self, tenant: u32, ordinal: u32, fingerprint: Fingerprint, labels: &Labels) {
        let at = &mut self.tenants[tenant as usize];
        let mut pairs = Vec::with_capacity(16);
        at.symbols.intern(labels, &mut pairs);
        let metric = at.symbols.metric_position(&pairs).and_then(|at| u32::try_from(at).ok());
        at.add(ordinal, &pairs);
        self.known.insert(ordinal);
        self.records.push(&Record { ordinal, tenant, fingerprint: fingerprint.0, metric, pairs });
    }

    /// Takes series out. Returns what they were, ascending.
    pub(crate) fn remove(&mut self, gone: &RoaringBitmap) -> Vec<(u32, Fingerprint)> {
        let mut removed = Vec::new();
        let mut pairs = vec![Vec::new(); self.tenants.len()];
        self.records.remove(gone, |record| {
            removed.push((record.ordinal, record.fingerprint()));
            pairs[record.tenant as usize].extend_from_slice(&record.pairs);
        });
        self.known -= gone;
        for (tenant, pairs) in self.tenants.iter_mut().zip(pairs) {
            if !tenant.all().is_disjoint(gone) {
                tenant.remove(gone, pairs);
            }
        }
        removed
    }

    /// Makes everything as small as it can be.
    pub(crate) fn optimize(&mut self) {
        self.known.optimize();
        for tenant in &mut self.tenants {
            tenant.optimize();
        }
    }

    pub(crate) fn tenant(&self, tenant: &TenantId) -> Option<&TenantIndex> {
        self.tenants.iter().find(|t| t.tenant == *tenant)
    }

    /// The tenant's series that satisfy all matchers.
    pub(crate) fn matching(&self, tenant: &TenantId, matchers: &[Matcher]) -> RoaringBitmap {
        self.tenant(tenant).map(|found| found.matching(matchers, &self.records)).unwrap_or_default()
    }

    /// Gives every label pair that occurs on any of `series`, with its tenant and those that have it, to `each`;
    /// and every tenant of them with all its series, as a pair without a name.
    pub(crate) fn each_pair_of(
        &self,
        series: &RoaringBitmap,
        mut each: impl FnMut(&TenantId, Option<(&str, &str)>, RoaringBitmap),
    ) {
        for tenant in self.tenants.iter().filter(|tenant| !tenant.all().is_disjoint(series)) {
            each(&tenant.tenant, None, tenant.all() & series);
            tenant.each_pair_of(series, &self.records, |name, value, ordinals| {
                each(&tenant.tenant, Some((name, value)), ordinals);
            });
        }
    }

    /// Bytes in use, roughly, without those of the dictionary.
    pub(crate) fn bytes(&self) -> usize {
        let tenants: usize = self.tenants.iter().map(TenantIndex::bytes).sum();
        self.records.bytes() + self.known.serialized_size() + tenants
    }
}

//! The label index of one shard: who is there, and which series carry which label.
//!
//! Postings are roaring bitmaps of ordinals, per tenant, label name and value; nothing of one tenant can be
//! reached through another. Ordinals are in order of arrival, never used twice. Series whose samples are all
//! gone are taken out.

use std::collections::{BTreeMap, BTreeSet};

use roaring::RoaringBitmap;
use saturn_model::{Fingerprint, Labels, MatchOp, Matcher, TenantId};

use crate::keys::SeriesKey;

/// What is known of a series but for its samples.
#[derive(Clone, Debug)]
pub(crate) struct Series {
    /// Position in [`Index::tenants`].
    pub(crate) tenant: u32,
    pub(crate) fingerprint: Fingerprint,
    pub(crate) labels: Labels,
}

impl Series {
    /// Where the series is within segments.
    pub(crate) fn key(&self) -> SeriesKey {
        SeriesKey::new(self.labels.metric_name(), self.fingerprint)
    }
}

/// The series of one shard.
#[derive(Debug, Default)]
pub(crate) struct Index {
    /// By ordinal. `None`: gone for good, or never known to this process.
    series: Vec<Option<Series>>,
    known: RoaringBitmap,
    pub(crate) tenants: Vec<TenantIndex>,
}

/// One tenant's postings in one shard.
#[derive(Debug)]
pub(crate) struct TenantIndex {
    pub(crate) tenant: TenantId,
    all: RoaringBitmap,
    names: BTreeMap<Box<str>, BTreeMap<Box<str>, RoaringBitmap>>,
}

impl Index {
    /// A series, unless it is gone.
    pub(crate) fn get(&self, ordinal: u32) -> Option<&Series> {
        self.series.get(ordinal as usize)?.as_ref()
    }

    /// The series that are there.
    pub(crate) fn known(&self) -> RoaringBitmap {
        self.known.clone()
    }

    /// How many series are there.
    pub(crate) fn len(&self) -> u64 {
        self.known.len()
    }

    /// These series in the order that they have in segments, with their ordinals. Those that are gone are
    /// left out.
    pub(crate) fn in_key_order(&self, ordinals: impl Iterator<Item = u32>) -> Vec<(SeriesKey, u32)> {
        let mut keys: Vec<(SeriesKey, u32)> =
            ordinals.filter_map(|ordinal| Some((self.get(ordinal)?.key(), ordinal))).collect();
        keys.sort_unstable();
        keys
    }

    /// Uses up the next ordinal for a series that is gone.
    pub(crate) fn skip(&mut self) {
        self.series.push(None);
    }

    /// Takes a series out. Its ordinal is never used again.
    pub(crate) fn remove(&mut self, ordinal: u32) -> Option<Series> {
        let series = self.series.get_mut(ordinal as usize)?.take()?;
        self.known.remove(ordinal);
        let tenant = &mut self.tenants[series.tenant as usize];
        tenant.all.remove(ordinal);
        for (name, value) in series.labels.iter() {
            let Some(values) = tenant.names.get_mut(name) else {
                continue;
            };
            if let Some(postings) = values.get_mut(value) {
                postings.remove(ordinal);
                if postings.is_empty() {
                    values.remove(value);
                }
            }
            if values.is_empty() {
                tenant.names.remove(name);
            }
        }
        Some(series)
    }

    /// The position of a tenant, which is added if it is new.
    pub(crate) fn tenant_position(&mut self, tenant: &TenantId) -> u32 {
        let known = self.tenants.iter().position(|t| t.tenant == *tenant);
        let position = known.unwrap_or_else(|| {
            self.tenants.push(TenantIndex {
                tenant: tenant.clone(),
                all: RoaringBitmap::new(),
                names: BTreeMap::new(),
            });
            self.tenants.len() - 1
        });
        u32::try_from(position).expect("fewer than 2^32 tenants")
    }

    /// Adds the series with the next ordinal.
    pub(crate) fn add(&mut self, series: Series) {
        let ordinal = u32::try_from(self.series.len()).expect("ordinals were checked when they were given");
        let tenant = &mut self.tenants[series.tenant as usize];
        tenant.all.insert(ordinal);
        for (name, value) in series.labels.iter() {
            if !tenant.names.contains_key(name) {
                tenant.names.insert(name.into(), BTreeMap::new());
            }
            let values = tenant.names.get_mut(name).expect("just added");
            match values.get_mut(value) {
                Some(postings) => {
                    postings.insert(ordinal);
                }
                None => {
                    values.insert(value.into(), RoaringBitmap::from_iter([ordinal]));
                }
            }
        }
        self.known.insert(ordinal);
        self.series.push(Some(series));
    }

    pub(crate) fn tenant(&self, tenant: &TenantId) -> Option<&TenantIndex> {
        self.tenants.iter().find(|t| t.tenant == *tenant)
    }
}

impl TenantIndex {
    /// The series that satisfy all matchers.
    pub(crate) fn matching(&self, matchers: &[Matcher]) -> RoaringBitmap {
        // A matcher that needs the label narrows by union; one that also accepts a missing label can only
        // take series away.
        let (optional, needed): (Vec<&Matcher>, Vec<&Matcher>) =
            matchers.iter().partition(|matcher| matcher.matches_empty());
        let mut result: Option<RoaringBitmap> = None;
        for matcher in needed {
            let found = self.with_value(matcher);
            result = Some(match result {
                Some(narrowed) => narrowed & found,
                None => found,
            });
        }
        let mut result = result.unwrap_or_else(|| self.all.clone());
        for matcher in optional {
            if result.is_empty() {
                break;
            }
            for (value, postings) in self.names.get(matcher.name()).into_iter().flatten() {
                if !matcher.matches(value) {
                    result -= postings;
                }
            }
        }
        result
    }

    /// The series that have the matcher's label with a value that matches.
    fn with_value(&self, matcher: &Matcher) -> RoaringBitmap {
        let Some(values) = self.names.get(matcher.name()) else {
            return RoaringBitmap::new();
        };
        match matcher.op() {
            MatchOp::Equal => values.get(matcher.value()).cloned().unwrap_or_default(),
            MatchOp::Regex if is_literal_set(matcher.value()) => {
                let mut found = RoaringBitmap::new();
                for postings in matcher.value().split('|').filter_map(|literal| values.get(literal)) {
                    found |= postings;
                }
                found
            }
            MatchOp::Regex | MatchOp::NotEqual | MatchOp::NotRegex => {
                let mut found = RoaringBitmap::new();
                for (value, postings) in values {
                    if matcher.matches(value) {
                        found |= postings;
                    }
                }
                found
            }
        }
    }

    /// Label names that occur on any of `series`.
    pub(crate) fn names_of(&self, series: &RoaringBitmap) -> BTreeSet<String> {
        let occurs = |values: &BTreeMap<Box<str>, RoaringBitmap>| {
            values.values().any(|postings| !postings.is_disjoint(series))
        };
        let names = self.names.iter().filter(|(_, values)| occurs(values));
        names.map(|(name, _)| String::from(&**name)).collect()
    }

    /// Values of label `name` that occur on any of `series`.
    pub(crate) fn values_of(&self, name: &str, series: &RoaringBitmap) -> BTreeSet<String> {
        let values = self.names.get(name).into_iter().flatten();
        let occurring = values.filter(|(_, postings)| !postings.is_disjoint(series));
        occurring.map(|(value, _)| String::from(&**value)).collect()
    }
}

/// Whether a regular expression is nothing but alternatives without special characters.
fn is_literal_set(pattern: &str) -> bool {
    pattern.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b':' | b'/' | b' ' | b'|'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn index(sets: &[Vec<(String, String)>]) -> Index {
        let mut index = Index::default();
        let tenant = index.tenant_position(&TenantId::new("demo").expect("valid"));
        for set in sets {
            let pairs = set.iter().map(|(n, v)| (n.as_str(), v.as_str()));
            let labels = Labels::from_pairs(pairs).expect("valid");
            index.add(Series { tenant, fingerprint: Fingerprint(0), labels });
        }
        index
    }

    fn label_set() -> impl Strategy<Value = Vec<(String, String)>> {
        proptest::collection::btree_map("[ab]", "[xyz]{1,2}", 0..3).prop_map(|m| m.into_iter().collect())
    }

    fn matcher() -> impl Strategy<Value = Matcher> {
        let op = proptest::sample::select(vec![
            MatchOp::Equal,
            MatchOp::NotEqual,
            MatchOp::Regex,
            MatchOp::NotRegex,
        ]);
        let value =
            proptest::sample::select(vec!["", "x", "xy", "x|yy|zz", "x.*", ".+", ".*", "(x|)", "x|", "[^x]"]);
        ("[abc]", op, value).prop_map(|(name, op, value)| Matcher::new(&name, op, value).expect("valid"))
    }

    proptest! {
        #[test]
        fn postings_equal_a_scan(
            sets in proptest::collection::vec(label_set(), 0..12),
            matchers in proptest::collection::vec(matcher(), 0..4),
        ) {
            let index = index(&sets);
            let want: Vec<u32> = index.series.iter().flatten().zip(0..)
                .filter(|(s, _)| matchers.iter().all(|m| m.matches(s.labels.get(m.name()).unwrap_or(""))))
                .map(|(_, ordinal)| ordinal).collect();
            let got: Vec<u32> = index.tenants[0].matching(&matchers).into_iter().collect();
            prop_assert_eq!(got, want);
        }
    }

    #[test]
    fn names_and_values_of_some_series() {
        let pair = |n: &str, v: &str| (n.to_owned(), v.to_owned());
        let index = index(&[vec![pair("a", "1"), pair("b", "2")], vec![pair("a", "3")]]);
        let second = RoaringBitmap::from_iter([1]);
        assert_eq!(index.tenants[0].names_of(&second), BTreeSet::from(["a".to_owned()]));
        assert_eq!(index.tenants[0].values_of("a", &second), BTreeSet::from(["3".to_owned()]));
        assert_eq!(index.tenants[0].values_of("b", &second), BTreeSet::new());
    }
}

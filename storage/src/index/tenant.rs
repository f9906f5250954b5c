//! One tenant's series of one shard that are in memory: from matchers to ordinals, and what labels there are.

use std::collections::{BTreeSet, HashMap};
use std::hash::BuildHasherDefault;
use std::sync::Arc;

use roaring::RoaringBitmap;
use saturn_model::{MatchOp, Matcher, TenantId};

use super::postings::{PairHasher, Posting};
use super::records::Records;
use super::symbols::{PairId, Symbols};

/// So few series are looked at one by one rather than the postings of all values that match.
const CANDIDATES_MAX: u64 = 512;

/// One tenant's postings in one shard.
#[derive(Debug)]
pub(crate) struct TenantIndex {
    pub(crate) tenant: TenantId,
    pub(crate) symbols: Arc<Symbols>,
    all: RoaringBitmap,
    postings: HashMap<PairId, Posting, BuildHasherDefault<PairHasher>>,
}

impl TenantIndex {
    pub(super) fn new(tenant: TenantId, symbols: Arc<Symbols>) -> Self {
        Self { tenant, symbols, all: RoaringBitmap::new(), postings: HashMap::default() }
    }

    /// Adds a series above all others.
    pub(super) fn add(&mut self, ordinal: u32, pairs: &[PairId]) {
        self.all.insert(ordinal);
        for pair in pairs {
            self.postings
                .entry(*pair)
                .and_modify(|posting| posting.push(ordinal))
                .or_insert_with(|| Posting::of(ordinal));
        }
    }

    /// Takes series out that have these pairs, given once for each.
    pub(super) fn remove(&mut self, gone: &RoaringBitmap, mut pairs: Vec<PairId>) {
        self.all -= gone;
        self.symbols.release(&pairs);
        pairs.sort_unstable();
        pairs.dedup();
        for pair in pairs {
            let left = self.postings.remove(&pair).and_then(|posting| posting.without(gone));
            if let Some(left) = left {
                self.postings.insert(pair, left);
            }
        }
        if self.postings.len() < self.postings.capacity() / 4 {
            self.postings.shrink_to_fit();
        }
    }

    /// Makes everything as small as it can be.
    pub(super) fn optimize(&mut self) {
        self.all.optimize();
        for posting in self.postings.values_mut() {
            posting.optimize();
        }
    }

    /// The tenant's series.
    pub(crate) fn all(&self) -> &RoaringBitmap {
        &self.all
    }

    /// The series that satisfy all matchers.
    pub(super) fn matching(&self, matchers: &[Matcher], records: &Records) -> RoaringBitmap {
        // What names its values narrows first: it costs least. Last come matchers that also accept series
        // without the label, which can only take series away.
        let mut ordered: Vec<&Matcher> = matchers.iter().collect();
        ordered.sort_by_key(|matcher| (matcher.matches_empty(), matcher.literal_values().is_none()));
        let mut found: Option<RoaringBitmap> = None;
        for matcher in ordered {
            let candidates = found.as_ref().unwrap_or(&self.all);
            if candidates.is_empty() {
                break;
            }
            found = Some(if is_known(matcher) || candidates.len() > CANDIDATES_MAX {
                self.narrow(found, matcher)
            } else {
                self.filter(candidates, matcher, records)
            });
        }
        found.unwrap_or_else(|| self.all.clone())
    }

    /// Leaves the series that satisfy the matcher, by postings. `None` stands for all.
    fn narrow(&self, found: Option<RoaringBitmap>, matcher: &Matcher) -> RoaringBitmap {
        let name = matcher.name();
        let posting = |value: &String| self.postings.get(&self.symbols.find(name, value)?);
        if matcher.matches_empty() {
            let mut left = found.unwrap_or_else(|| self.all.clone());
            if matcher.op() == MatchOp::NotEqual {
                if let Some(posting) = posting(&matcher.value().into()) {
                    posting.remove_from(&mut left);
                }
            } else {
                self.each_selected(matcher, |posting| posting.remove_from(&mut left));
            }
            return left;
        }
        let Some(values) = matcher.literal_values() else {
            let mut with_value = RoaringBitmap::new();
            self.each_selected(matcher, |posting| posting.add_to(&mut with_value));
            return with_value_of(found, with_value);
        };
        let mut postings = values.iter().filter_map(posting);
        let (first, second) = (postings.next(), postings.next());
        match (first, second, found) {
            (None, ..) => RoaringBitmap::new(),
            (Some(only), None, None) => only.to_bitmap(),
            (Some(only), None, Some(mut found)) => {
                only.narrow(&mut found);
                found
            }
            (Some(first), Some(second), found) => {
                let mut with_value = first.to_bitmap();
                second.add_to(&mut with_value);
                postings.for_each(|posting| posting.add_to(&mut with_value));
                with_value_of(found, with_value)
            }
        }
    }

    /// Gives the postings of the pairs that the matcher selects (see [`Symbols::selected`]) to `each`.
    fn each_selected(&self, matcher: &Matcher, mut each: impl FnMut(&Posting)) {
        let selected = self.symbols.selected(matcher);
        if selected.len() <= self.postings.len() as u64 {
            selected.iter().filter_map(|pair| self.postings.get(&pair)).for_each(&mut each);
        } else {
            let postings = self.postings.iter().filter(|(pair, _)| selected.contains(**pair));
            postings.for_each(|(_, posting)| each(posting));
        }
    }

    /// Leaves the candidates that satisfy the matcher, by their labels.
    fn filter(&self, candidates: &RoaringBitmap, matcher: &Matcher, records: &Records) -> RoaringBitmap {
        let selected = self.symbols.selected(matcher);
        let wanted = !matcher.matches_empty();
        let mut cursor = records.cursor();
        let mut satisfies = |ordinal: &u32| {
            let record = cursor.find(*ordinal).expect("a series with postings has its record");
            record.pairs.iter().any(|pair| selected.contains(*pair)) == wanted
        };
        candidates.iter().filter(|ordinal| satisfies(ordinal)).collect()
    }

    /// The pairs that occur on any of `series`, by number.
    fn pairs_of(&self, series: &RoaringBitmap) -> Vec<PairId> {
        let everything = self.all.is_subset(series);
        let occurring = self.postings.iter().filter(|(_, posting)| everything || posting.touches(series));
        occurring.map(|(pair, _)| *pair).collect()
    }

    /// Adds the label names that occur on any of `series`, until there are more than `max`.
    pub(crate) fn names_of(&self, series: &RoaringBitmap, max: usize, names: &mut BTreeSet<String>) {
        self.symbols.for_each(&self.pairs_of(series), |_, name, _| {
            if names.len() <= max && !names.contains(name) {
                names.insert(name.into());
            }
        });
    }

    /// Adds the values of label `label` that occur on any of `series`, until there are more than `max`.
    pub(crate) fn values_of(
        &self,
        label: &str,
        series: &RoaringBitmap,
        max: usize,
        values: &mut BTreeSet<String>,
    ) {
        // Whether it is the right label is cheaper to see than whether the series have it.
        let pairs: Vec<PairId> = self.postings.keys().copied().collect();
        let everything = self.all.is_subset(series);
        self.symbols.for_each(&pairs, |pair, name, value| {
            if values.len() <= max && name == label && (everything || self.postings[&pair].touches(series)) {
                values.insert(value.into());
            }
        });
    }

    /// Gives every pair with the number of its series to `each`.
    pub(crate) fn counts(&self, mut each: impl FnMut(&str, &str, u64)) {
        let pairs: Vec<PairId> = self.postings.keys().copied().collect();
        self.symbols.for_each(&pairs, |pair, name, value| {
            each(name, value, self.postings[&pair].len());
        });
    }

    /// Gives every label pair that occurs on any of `series`, with those that have it, to `each`.
    pub(super) fn each_pair_of(
        &self,
        series: &RoaringBitmap,
        records: &Records,
        mut each: impl FnMut(&str, &str, RoaringBitmap),
    ) {
        let mut pairs: Vec<(PairId, u32)> = Vec::new();
        let mut cursor = records.cursor();
        for ordinal in series & &self.all {
            let record = cursor.find(ordinal).expect("a series with postings has its record");
            pairs.extend(record.pairs.iter().map(|pair| (*pair, ordinal)));
        }
        pairs.sort_unstable();
        for some in pairs.chunk_by(|a, b| a.0 == b.0) {
            let ordinals = some.iter().map(|(_, ordinal)| *ordinal).collect();
            self.symbols.with_texts(some[0].0, |name, value| each(name, value, ordinals));
        }
    }

    /// Bytes in use, roughly.
    pub(super) fn bytes(&self) -> usize {
        let slot = size_of::<(PairId, Posting)>() + 1;
        let heap: usize = self.postings.values().map(Posting::heap_bytes).sum();
        self.postings.capacity() * 8 / 7 * slot + heap + self.all.serialized_size()
    }
}

/// Whether a matcher names the values that it needs or refuses.
fn is_known(matcher: &Matcher) -> bool {
    matcher.op() == MatchOp::NotEqual && matcher.matches_empty()
        || !matcher.matches_empty() && matcher.literal_values().is_some()
}

fn with_value_of(found: Option<RoaringBitmap>, with_value: RoaringBitmap) -> RoaringBitmap {
    match found {
        None => with_value,
        Some(found) => found & with_value,
    }
}

//! The label pairs of one tenant, each kept once for all shards of the node and named by a number.
//!
//! A pair lives as long as a series in memory uses it: [`Symbols::intern`] counts up, [`Symbols::release`]
//! down, and the number of a pair that nobody uses may be given to another one. A number is therefore valid
//! only while its series cannot go: shards hold the lock on their index from finding pairs to using them.
//!
//! The lock here is held for moments. A scan of many values takes it in pieces.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::{Mutex, RwLock};
use roaring::RoaringBitmap;
use saturn_model::{Labels, METRIC_NAME, Matcher, TenantId, append_label_pair};

use super::cache::Cache;

/// Values looked at under one hold of the lock.
const VALUES_PER_HOLD: usize = 1024;
/// Most bytes that remembered results of regular expressions take, per tenant.
const CACHE_BYTES_MAX: usize = 4 << 20;

/// A label pair's number.
pub(crate) type PairId = u32;

/// The pairs of every tenant on this node.
#[derive(Debug, Default)]
pub(crate) struct Dictionary {
    tenants: Mutex<HashMap<TenantId, Arc<Symbols>>>,
}

impl Dictionary {
    /// A tenant's pairs.
    pub(crate) fn tenant(&self, tenant: &TenantId) -> Arc<Symbols> {
        let mut tenants = self.tenants.lock();
        Arc::clone(tenants.entry(tenant.clone()).or_default())
    }

    /// Roughly the bytes that all pairs take.
    pub(crate) fn bytes(&self) -> usize {
        self.tenants.lock().values().map(|symbols| symbols.state.read().bytes).sum()
    }
}

/// One tenant's pairs.
#[derive(Debug)]
pub(crate) struct Symbols {
    state: RwLock<State>,
    /// Which pairs a matcher selects (see [`Symbols::selected`]).
    selected: Mutex<Cache<Matching, Selected>>,
}

/// A matcher, as a key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Matching(Box<str>, saturn_model::MatchOp, Box<str>);

#[derive(Clone, Debug)]
struct Selected {
    /// Version of the label's values for which it is right.
    version: u64,
    pairs: Arc<RoaringBitmap>,
}

#[derive(Debug, Default)]
struct State {
    pairs: Vec<Pair>,
    free_pairs: Vec<PairId>,
    names: Vec<Name>,
    free_names: Vec<u32>,
    by_name: BTreeMap<Arc<str>, u32>,
    bytes: usize,
    /// Grows with every change of any name's values.
    version: u64,
}

#[derive(Debug)]
struct Pair {
    name: u32,
    /// Series that have it.
    users: AtomicU32,
    value: Arc<str>,
}

#[derive(Debug)]
struct Name {
    text: Arc<str>,
    values: BTreeMap<Arc<str>, PairId>,
    version: u64,
}

impl Default for Symbols {
    fn default() -> Self {
        Self { state: RwLock::default(), selected: Mutex::new(Cache::new(CACHE_BYTES_MAX)) }
    }
}

impl Symbols {
    /// Writes the pairs of a new series to `out`, in the order of its labels. They stay until they are released.
    pub(crate) fn intern(&self, labels: &Labels, out: &mut Vec<PairId>) {
        out.clear();
        let known = {
            let state = self.state.read();
            labels.iter().all(|(name, value)| match state.find(name, value) {
                Some(pair) => {
                    state.pairs[pair as usize].users.fetch_add(1, Ordering::Relaxed);
                    out.push(pair);
                    true
                }
                None => false,
            })
        };
        if !known {
            let mut state = self.state.write();
            for (name, value) in labels.iter().skip(out.len()) {
                let pair = state.find(name, value).unwrap_or_else(|| state.add(name, value));
                state.pairs[pair as usize].users.fetch_add(1, Ordering::Relaxed);
                out.push(pair);
            }
        }
    }

    /// Series that are gone do not use these pairs any more: one mention each per series.
    pub(crate) fn release(&self, pairs: &[PairId]) {
        let mut state = self.state.write();
        for pair in pairs {
            if state.pairs[*pair as usize].users.fetch_sub(1, Ordering::Relaxed) == 1 {
                state.remove(*pair);
            }
        }
    }

    /// The number of a pair, if it is there.
    pub(crate) fn find(&self, name: &str, value: &str) -> Option<PairId> {
        self.state.read().find(name, value)
    }

    /// The label set of these pairs.
    pub(crate) fn labels(&self, pairs: &[PairId]) -> Labels {
        let mut encoded = String::with_capacity(256);
        let state = self.state.read();
        for pair in pairs {
            let (name, value) = state.texts(*pair);
            append_label_pair(&mut encoded, name, value);
        }
        Labels::from_encoded(&encoded).expect("the pairs of a label set, in its order")
    }

    /// Gives a pair's name and value to `with`.
    pub(crate) fn with_texts<T>(&self, pair: PairId, with: impl FnOnce(&str, &str) -> T) -> T {
        let state = self.state.read();
        let (name, value) = state.texts(pair);
        with(name, value)
    }

    /// Gives each of these pairs with its name and value to `each`.
    pub(crate) fn for_each(&self, pairs: &[PairId], mut each: impl FnMut(PairId, &str, &str)) {
        for some in pairs.chunks(VALUES_PER_HOLD) {
            let state = self.state.read();
            for pair in some {
                let (name, value) = state.texts(*pair);
                each(*pair, name, value);
            }
        }
    }

    /// Where among `pairs` the metric's name is.
    pub(crate) fn metric_position(&self, pairs: &[PairId]) -> Option<usize> {
        let state = self.state.read();
        let metric = *state.by_name.get(METRIC_NAME)?;
        pairs.iter().position(|pair| state.pairs[*pair as usize].name == metric)
    }

    /// The pairs of the matcher's label whose values satisfy it; for a matcher that accepts series without the
    /// label, those that do not. They are looked for once and remembered.
    pub(crate) fn selected(&self, matcher: &Matcher) -> Arc<RoaringBitmap> {
        let wanted = !matcher.matches_empty();
        let key = Matching(matcher.name().into(), matcher.op(), matcher.value().into());
        let Some(version) = self.state.read().name(matcher.name()).map(|name| name.version) else {
            return Arc::default();
        };
        if let Some(known) = self.selected.lock().get(&key).filter(|known| known.version == version) {
            return Arc::clone(&known.pairs);
        }
        let mut pairs = RoaringBitmap::new();
        self.scan(matcher.name(), matcher.prefix(), |pair, value| {
            if matcher.matches(value) == wanted {
                pairs.insert(pair);
            }
        });
        pairs.optimize();
        let pairs = Arc::new(pairs);
        let bytes = pairs.serialized_size() + key.0.len() + key.2.len() + 128;
        // If values came or went meanwhile, the version is older than they, and nobody will use this.
        self.selected.lock().insert(key, Selected { version, pairs: Arc::clone(&pairs) }, bytes);
        pairs
    }

    /// Gives every value of label `name` that begins with `prefix` to `each`, ascending.
    fn scan(&self, name: &str, prefix: Option<&str>, mut each: impl FnMut(PairId, &str)) {
        let prefix = prefix.unwrap_or_default();
        let mut last: Option<Arc<str>> = None;
        loop {
            let state = self.state.read();
            let Some(name) = state.name(name) else {
                return;
            };
            let from = last.as_deref().map_or(Bound::Included(prefix), Bound::Excluded);
            let mut some = name.values.range::<str, _>((from, Bound::Unbounded)).take(VALUES_PER_HOLD);
            let mut seen = 0;
            for (value, pair) in some.by_ref() {
                if !value.starts_with(prefix) {
                    return;
                }
                each(*pair, value);
                seen += 1;
                if seen == VALUES_PER_HOLD {
                    last = Some(Arc::clone(value));
                }
            }
            if seen < VALUES_PER_HOLD {
                return;
            }
        }
    }
}

impl State {
    fn name(&self, name: &str) -> Option<&Name> {
        self.by_name.get(name).map(|id| &self.names[*id as usize])
    }

    fn find(&self, name: &str, value: &str) -> Option<PairId> {
        self.name(name)?.values.get(value).copied()
    }

    fn texts(&self, pair: PairId) -> (&str, &str) {
        let pair = &self.pairs[pair as usize];
        (&self.names[pair.name as usize].text, &pair.value)
    }

    /// Adds a pair that nobody uses yet.
    fn add(&mut self, name: &str, value: &str) -> PairId {
        self.version += 1;
        let name_id = match self.by_name.get(name) {
            Some(id) => *id,
            None => {
                let text: Arc<str> = name.into();
                let new = Name { text: Arc::clone(&text), values: BTreeMap::new(), version: 0 };
                let id = place(&mut self.names, &mut self.free_names, new);
                self.by_name.insert(text, id);
                id
            }
        };
        let value: Arc<str> = value.into();
        self.bytes += pair_bytes(&value);
        let pair = Pair { name: name_id, users: AtomicU32::new(0), value: Arc::clone(&value) };
        let id = place(&mut self.pairs, &mut self.free_pairs, pair);
        let name = &mut self.names[name_id as usize];
        name.version = self.version;
        name.values.insert(value, id);
        id
    }

    fn remove(&mut self, id: PairId) {
        self.version += 1;
        let pair = &mut self.pairs[id as usize];
        let value = std::mem::replace(&mut pair.value, Arc::from(""));
        let name_id = pair.name;
        self.free_pairs.push(id);
        self.bytes -= pair_bytes(&value);
        let name = &mut self.names[name_id as usize];
        name.version = self.version;
        name.values.remove(&value);
        if name.values.is_empty() {
            self.by_name.remove(&name.text);
            self.free_names.push(name_id);
        }
    }
}

/// Puts something where there is room. Returns where.
fn place<T>(all: &mut Vec<T>, free: &mut Vec<u32>, new: T) -> u32 {
    if let Some(at) = free.pop() {
        all[at as usize] = new;
        return at;
    }
    all.push(new);
    u32::try_from(all.len() - 1).expect("fewer than 2^32 label pairs fit in memory")
}

/// Roughly what a pair takes: its text, its place in the table, its share of a tree.
fn pair_bytes(value: &str) -> usize {
    value.len() + 16 + size_of::<Pair>() + 32
}

#[cfg(test)]
mod tests {
    use super::*;
    use saturn_model::MatchOp;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        Labels::from_pairs(pairs.iter().copied()).expect("valid")
    }

    #[test]
    fn pairs_are_shared_and_go_with_their_last_user() {
        let symbols = Symbols::default();
        let (mut one, mut two) = (Vec::new(), Vec::new());
        let (a, b) = (labels(&[("job", "x"), ("n", "1")]), labels(&[("job", "x"), ("n", "2")]));
        symbols.intern(&a, &mut one);
        symbols.intern(&b, &mut two);
        assert_eq!(one[0], two[0]);
        assert_eq!((symbols.labels(&one), symbols.labels(&two)), (a, b.clone()));
        symbols.release(&one);
        assert_eq!(symbols.find("n", "1"), None);
        assert_eq!(symbols.find("job", "x"), Some(two[0]));
        symbols.release(&two);
        assert_eq!(symbols.find("job", "x"), None);
        assert_eq!(symbols.state.read().bytes, 0);
        // Numbers are used again.
        symbols.intern(&b, &mut one);
        assert!(one.iter().all(|pair| *pair < 3));
        assert_eq!(symbols.labels(&one), b);
    }

    #[test]
    fn remembered_results_follow_the_values() {
        let symbols = Symbols::default();
        let mut pairs = Vec::new();
        let matcher = Matcher::new("n", MatchOp::Regex, "a.*c").expect("valid");
        let negative = Matcher::new("n", MatchOp::NotRegex, "a.*c").expect("valid");
        let count = |matcher| symbols.selected(matcher).len();
        assert_eq!(count(&matcher), 0);
        for i in 0..3000 {
            symbols.intern(
                &labels(&[("n", &format!("a{i}{}", if i % 2 == 0 { "c" } else { "b" }))]),
                &mut pairs,
            );
        }
        symbols.intern(&labels(&[("n", "bc")]), &mut pairs);
        assert_eq!(count(&matcher), 1500);
        // Accepts series without the label: it selects what must go.
        assert_eq!(count(&negative), 1500);
        assert_eq!(count(&matcher), 1500);
        symbols.intern(&labels(&[("n", "axc")]), &mut pairs);
        assert_eq!(count(&matcher), 1501);
        symbols.release(&pairs);
        assert_eq!(count(&matcher), 1500);
    }
}

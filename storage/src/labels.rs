//! What series and labels there are: listings that stop early, and how many series the labels have.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use roaring::RoaringBitmap;
use saturn_model::{Labels, METRIC_NAME, Selection, ShardId, TenantId};

use crate::engine::Store;
use crate::error::StorageError;
use crate::past::{self, Absent};
use crate::shard::Shard;

/// What a listing found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed<T> {
    /// At most as many as asked for, each once.
    pub items: Vec<T>,
    /// Whether there are more.
    pub truncated: bool,
}

impl<T> Listed<T> {
    fn nothing() -> Self {
        Self { items: Vec::new(), truncated: false }
    }

    fn new(items: impl IntoIterator<Item = T>, limit: usize) -> Self {
        let mut items = items.into_iter();
        let taken = items.by_ref().take(limit).collect();
        Self { items: taken, truncated: items.next().is_some() }
    }
}

/// How many series a tenant's labels have, of the series in memory on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cardinality {
    /// Series.
    pub series: u64,
    /// Different label pairs.
    pub label_pairs: u64,
    /// Metric names with the most series, and how many.
    pub series_by_metric: Vec<(String, u64)>,
    /// Label names with the most different values, and how many.
    pub values_by_label: Vec<(String, u64)>,
    /// Label names whose different values take the most bytes, and how many.
    pub value_bytes_by_label: Vec<(String, u64)>,
    /// Label pairs (`name=value`) with the most series, and how many.
    pub series_by_pair: Vec<(String, u64)>,
}

/// The series that match and may have samples in the range, and those of them that are not in memory by day.
struct Present {
    shard: Arc<Shard>,
    ordinals: RoaringBitmap,
    days: Vec<Absent>,
}

impl Present {
    fn find(store: &Store, shard: ShardId, selection: &Selection) -> Result<Option<Self>, StorageError> {
        let Some(shard) = store.known_shard(shard) else {
            return Ok(None);
        };
        let (start, end) = (selection.start.0, selection.end.0);
        let matched = past::matching(store, &shard, selection)?;
        let ordinals = shard.head.lock().present(&matched, start, end);
        let days = past::absent_of(&shard, start, end);
        Ok((!ordinals.is_empty()).then_some(Self { shard, ordinals, days }))
    }
}

/// See `Engine::series`.
pub(crate) fn series(
    store: &Store,
    shard: ShardId,
    selection: &Selection,
    limit: usize,
) -> Result<Listed<Labels>, StorageError> {
    let Some(present) = Present::find(store, shard, selection)? else {
        return Ok(Listed::nothing());
    };
    // A series that was away for a while has several ordinals: a few more than the limit may be needed.
    let mut seen = HashSet::new();
    let mut items = Vec::new();
    let mut left = present.ordinals;
    while !left.is_empty() && items.len() <= limit {
        let count = (limit - items.len()).saturating_add(1).clamp(64, 1 << 16);
        let some: RoaringBitmap = left.iter().take(count).collect();
        left -= &some;
        for series in past::describe(store, &present.shard, &some)? {
            if seen.insert(series.key) {
                items.push(series.labels);
            }
        }
    }
    Ok(Listed::new(items, limit))
}

/// See `Engine::label_names`.
pub(crate) fn label_names(
    store: &Store,
    shard: ShardId,
    selection: &Selection,
    limit: usize,
) -> Result<Listed<String>, StorageError> {
    let Some(Present { shard, ordinals, days }) = Present::find(store, shard, selection)? else {
        return Ok(Listed::nothing());
    };
    let mut names = BTreeSet::new();
    if let Some(tenant) = shard.index.read().tenant(&selection.tenant) {
        tenant.names_of(&ordinals, limit, &mut names);
    }
    for absent in days {
        let rows = absent.rows(shard.id, &selection.tenant);
        absent.names_of(store, &rows, &ordinals, limit, &mut names)?;
    }
    Ok(Listed::new(names, limit))
}

/// See `Engine::label_values`.
pub(crate) fn label_values(
    store: &Store,
    shard: ShardId,
    selection: &Selection,
    name: &str,
    limit: usize,
) -> Result<Listed<String>, StorageError> {
    let Some(Present { shard, ordinals, days }) = Present::find(store, shard, selection)? else {
        return Ok(Listed::nothing());
    };
    let mut values = BTreeSet::new();
    if let Some(tenant) = shard.index.read().tenant(&selection.tenant) {
        tenant.values_of(name, &ordinals, limit, &mut values);
    }
    for absent in days {
        let rows = absent.rows(shard.id, &selection.tenant);
        absent.values_of(store, (&rows, name), &ordinals, limit, &mut values)?;
    }
    Ok(Listed::new(values, limit))
}

/// See `Engine::cardinality`.
pub(crate) fn cardinality(store: &Store, tenant: &TenantId, top: usize) -> Cardinality {
    let mut found = Cardinality::default();
    let mut pairs: HashMap<(String, String), u64> = HashMap::new();
    for shard in store.all_shards() {
        let index = shard.index.read();
        if let Some(tenant) = index.tenant(tenant) {
            found.series += tenant.all().len();
            tenant.counts(|name, value, series| {
                *pairs.entry((name.into(), value.into())).or_default() += series;
            });
        }
    }
    found.label_pairs = pairs.len() as u64;
    let mut values: HashMap<&str, (u64, u64)> = HashMap::new();
    for (name, value) in pairs.keys() {
        let (count, bytes) = values.entry(name).or_default();
        *count += 1;
        *bytes += value.len() as u64;
    }
    let named = |(name, count): (&&str, u64)| ((*name).to_owned(), count);
    found.values_by_label = largest(values.iter().map(|(name, (count, _))| named((name, *count))), top);
    found.value_bytes_by_label = largest(values.iter().map(|(name, (_, bytes))| named((name, *bytes))), top);
    let metrics = pairs.iter().filter(|((name, _), _)| name == METRIC_NAME);
    found.series_by_metric = largest(metrics.map(|((_, value), count)| (value.clone(), *count)), top);
    let pairs = pairs.iter().map(|((name, value), count)| (format!("{name}={value}"), *count));
    found.series_by_pair = largest(pairs, top);
    found
}

/// The `top` with the highest numbers, those first; equal ones by name.
fn largest(all: impl Iterator<Item = (String, u64)>, top: usize) -> Vec<(String, u64)> {
    let mut all: Vec<(String, u64)> = all.collect();
    all.sort_unstable_by(|a, b| (Reverse(a.1), &a.0).cmp(&(Reverse(b.1), &b.0)));
    all.truncate(top);
    all
}

//! What series and labels there are: listings that stop early, and how many series the labels have.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use roaring::RoaringBitmap;
use saturn_model::{
    Cardinality, LabelCardinality, Labels, METRIC_NAME, Selection, ShardId, TenantId, largest,
};

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
    pub(crate) fn nothing() -> Self {
        Self { items: Vec::new(), truncated: false }
    }

    fn new(items: impl IntoIterator<Item = T>, limit: usize) -> Self {
        let mut items = items.into_iter();
        let taken = items.by_ref().take(limit).collect();
        Self { items: taken, truncated: items.next().is_some() }
    }
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
pub(crate) fn cardinality(store: &Store, tenant: &TenantId, shards: &[ShardId], top: usize) -> Cardinality {
    let shards: Vec<Arc<Shard>> = shards.iter().filter_map(|shard| store.known_shard(*shard)).collect();
    let mut found = Cardinality::default();
    // By hash: a tenant may have millions of pairs, and the texts of most of them are not needed.
    let mut series_of: HashMap<u64, u64> = HashMap::new();
    let mut metrics: HashSet<u64> = HashSet::new();
    let mut labels: HashMap<String, LabelCardinality> = HashMap::new();
    for shard in &shards {
        let (series, chunks, times) = shard.figures(tenant);
        let of_shard = Cardinality { series, chunks, times, ..Cardinality::default() };
        found.merge(of_shard, top);
        each_pair(shard, tenant, |name, value, series| {
            let hash = Cardinality::pair_hash(name, value);
            let count = series_of.entry(hash).or_default();
            if *count == 0 {
                found.label_pairs.add(hash);
                if name == METRIC_NAME {
                    metrics.insert(hash);
                }
                if !labels.contains_key(name) {
                    labels.insert(name.into(), LabelCardinality { name: name.into(), ..Default::default() });
                }
                let label = labels.get_mut(name).expect("it was just added");
                label.values.add(hash);
                label.value_bytes += value.len() as u64;
            }
            *count += series;
        });
    }
    found.label_pairs.settle();
    labels.values_mut().for_each(|label| label.values.settle());
    found.labels = labels.into_values().collect();
    found.labels.sort_by_cached_key(|label| (Reverse(label.values.count()), label.name.clone()));
    found.labels.truncate(top);

    let at_top = most_series(series_of.iter().map(|(hash, count)| (*hash, *count)), top);
    let metrics = series_of.iter().filter(|(hash, _)| metrics.contains(hash));
    let metrics_at_top = most_series(metrics.map(|(hash, count)| (*hash, *count)), top);
    let (mut by_pair, mut by_metric) = (HashMap::new(), HashMap::new());
    for shard in &shards {
        each_pair(shard, tenant, |name, value, _| {
            let hash = Cardinality::pair_hash(name, value);
            let count = series_of.get(&hash).copied().unwrap_or(0);
            if at_top.contains(&hash) {
                by_pair.entry(format!("{name}={value}")).or_insert(count);
            }
            if metrics_at_top.contains(&hash) {
                by_metric.entry(value.to_owned()).or_insert(count);
            }
        });
    }
    found.series_by_pair = largest(by_pair, top);
    found.series_by_metric = largest(by_metric, top);
    found
}

/// Gives each label pair of the tenant's series in memory, and how many of them have it, to `each`.
fn each_pair(shard: &Shard, tenant: &TenantId, each: impl FnMut(&str, &str, u64)) {
    let index = shard.index.read();
    if let Some(tenant) = index.tenant(tenant) {
        tenant.counts(each);
    }
}

/// The `top` with the most series, and all that have as many as the last of them, up to twice as many.
fn most_series(counts: impl Iterator<Item = (u64, u64)>, top: usize) -> HashSet<u64> {
    let mut counts: Vec<(u64, u64)> = counts.collect();
    counts.sort_unstable_by_key(|(hash, count)| (Reverse(*count), *hash));
    let last = counts.get(top.saturating_sub(1)).map_or(0, |(_, count)| *count);
    let counts = counts.into_iter().take_while(|(_, count)| *count >= last);
    counts.map(|(hash, _)| hash).take(top.saturating_mul(2)).collect()
}

//! A query's road to its data: the quorum of each shard's replicas, merged.
//!
//! The frontend asks [`QuorumSource`] for each selector of a query; the label endpoints use
//! [`describe_missing`] for the same promise: an answer that misses shards says so. Where this node has the only replica
//! of every shard, aggregations of one selector are computed at the storage engine, series by series.

use std::collections::{BTreeMap, HashSet};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use saturn_model::{Fingerprint, SampleBudget, Selection};
use saturn_promql::{PartialGroups, SelectorAggregate, SeriesFold};
use saturn_query_frontend::{FetchError, Fetched, SeriesSource};
use saturn_replication::{Completeness, Coordinator, ReadError, SelectRequest};

use crate::peers::NodePeers;
use crate::replica::Replica;

/// How many shards an incomplete answer names per reason.
const SHARDS_NAMED_MAX: usize = 8;

/// Series by quorum reads.
pub(crate) struct QuorumSource {
    pub(crate) coordinator: Arc<Coordinator<NodePeers>>,
    pub(crate) replica: Replica,
}

/// Tells a thread that nobody waits for it any more.
struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl SeriesSource for QuorumSource {
    async fn select(
        &self,
        selection: Selection,
        series_max: usize,
        budget: &Arc<SampleBudget>,
    ) -> Result<Fetched, FetchError> {
        let answer = self.coordinator.select(&selection, series_max, budget).await.map_err(|e| match e {
            ReadError::TooManySeries { .. } => FetchError::TooLarge(e.to_string()),
            ReadError::TooManySamples(_) => FetchError::TooManySamples,
            other => FetchError::Unavailable(other.to_string()),
        })?;
        let asked = self.coordinator.shards_read(&selection.tenant).len();
        if nothing_answered(&answer.completeness, asked) {
            return Err(FetchError::Unavailable(describe_missing(&answer.completeness).join("; ")));
        }
        Ok(Fetched { series: answer.value, missing: describe_missing(&answer.completeness) })
    }

    async fn aggregate(
        &self,
        selection: Selection,
        aggregate: &SelectorAggregate,
        series_max: usize,
    ) -> Result<Option<PartialGroups>, FetchError> {
        let Some(mut shards) = self.replica.shards_if_alone() else { return Ok(None) };
        let read = self.coordinator.shards_read(&selection.tenant);
        shards.retain(|(shard, _)| read.contains(*shard));
        let request = SelectRequest { selection, shards, series_max };
        let (replica, aggregate) = (self.replica.clone(), aggregate.clone());
        let stopped = Arc::new(AtomicBool::new(false));
        let _stop = StopOnDrop(Arc::clone(&stopped));
        let folding = tokio::task::spawn_blocking(move || {
            let mut fold = SeriesFold::new(aggregate);
            let mut seen = HashSet::new();
            for shard in &request.shards {
                let (mut added, mut twice) = (Ok(()), false);
                let read = replica.read_shard(*shard, &request, |series| {
                    // After its tenant's spread changed, a series is in two shards, which only a read puts together.
                    let labels = series.labels.as_encoded();
                    twice |= !seen.insert(Fingerprint::of(&request.selection.tenant, labels));
                    added = fold.add(series);
                    let stop = twice || added.is_err() || stopped.load(Ordering::Relaxed);
                    if stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                });
                // What this cannot do, and what fails, is read as any other selector: that says what is wrong.
                if read.is_err() || twice || added.is_err() || stopped.load(Ordering::Relaxed) {
                    return None;
                }
            }
            Some(fold.finish())
        });
        folding.await.map_err(|e| FetchError::Unavailable(format!("the aggregation failed: {e}")))
    }
}

/// Whether none of so many shards could be read.
pub(crate) fn nothing_answered(completeness: &Completeness, asked: usize) -> bool {
    matches!(completeness, Completeness::Partial { missing } if missing.len() == asked)
}

/// What an answer does not cover, in one line per reason; nothing if it is complete.
pub(crate) fn describe_missing(completeness: &Completeness) -> Vec<String> {
    let Completeness::Partial { missing } = completeness else { return Vec::new() };
    let mut by_reason: BTreeMap<&str, Vec<u16>> = BTreeMap::new();
    for shard in missing {
        by_reason.entry(shard.reason.as_str()).or_default().push(shard.shard.0);
    }
    let describe = |(reason, shards): (&str, Vec<u16>)| {
        let named: Vec<String> = shards.iter().take(SHARDS_NAMED_MAX).map(u16::to_string).collect();
        let more = if shards.len() > named.len() { ", ..." } else { "" };
        let (count, named) = (shards.len(), named.join(", "));
        format!("incomplete answer: {count} shards ({named}{more}) could not be read: {reason}")
    };
    by_reason.into_iter().map(describe).collect()
}

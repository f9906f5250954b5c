//! A query's road to its data: the quorum of each shard's replicas, merged.
//!
//! The frontend asks [`QuorumSource`] for each selector of a query; the label endpoints use
//! [`describe_missing`] for the same promise: an answer that misses shards says so.

use std::collections::BTreeMap;
use std::sync::Arc;

use saturn_model::{SampleBudget, Selection};
use saturn_query_frontend::{FetchError, Fetched, SeriesSource};
use saturn_replication::{Completeness, Coordinator, ReadError};

use crate::peers::NodePeers;

/// How many shards an incomplete answer names per reason.
const SHARDS_NAMED_MAX: usize = 8;

/// Series by quorum reads.
pub(crate) struct QuorumSource {
    pub(crate) coordinator: Arc<Coordinator<NodePeers>>,
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
        if nothing_answered(&answer.completeness, self.coordinator.shards()) {
            return Err(FetchError::Unavailable(describe_missing(&answer.completeness).join("; ")));
        }
        Ok(Fetched { series: answer.value, missing: describe_missing(&answer.completeness) })
    }
}

/// Whether no shard at all could be read.
pub(crate) fn nothing_answered(completeness: &Completeness, shards: u16) -> bool {
    matches!(completeness, Completeness::Partial { missing } if missing.len() == usize::from(shards))
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

//! Deleting: every node of a shard must know what was deleted, and give the space back; and who did not is named.
//!
//! What is deleted is part of the shard's record (`ring/src/record.rs`), and a node that adopts a record has first
//! done its deletions. So a deletion is in force once enough of the shard's nodes have adopted the record
//! ([`ShardRecord::is_in_force`]): no read is complete, and no write acknowledged, under an older one. The other nodes
//! adopt it before they serve anything again.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use saturn_model::ShardId;
use saturn_ring::{NodeId, Placement, ShardRecord};
use tokio::task::JoinSet;

use crate::coordinator::Core;
use crate::{PeerError, Peers};

/// Nodes that did not do something, by name, and why.
pub type Missing = Vec<(NodeId, String)>;

/// Makes all nodes of some shards adopt the shards' records.
pub(crate) async fn spread<P: Peers>(core: &Arc<Core<P>>, records: &[(ShardId, ShardRecord)]) -> Missing {
    let nodes = records.iter().flat_map(|(_, record)| record.writers()).cloned().collect();
    let mut newer = Placement::clone(&core.placement.load());
    for (shard, record) in records {
        if let Some(known) = newer.shards.get_mut(usize::from(shard.0)).filter(|r| r.epoch < record.epoch) {
            known.clone_from(record);
        }
    }
    let newer = Arc::new(newer);
    on_all(core, nodes, |core, node| {
        let newer = Arc::clone(&newer);
        async move {
            if node != core.me {
                return core.peers.push_placement(&node, &newer).await;
            }
            let adopted = tokio::task::spawn_blocking(move || core.placement.adopt_placement(&newer)).await;
            let failed = |error: &dyn std::error::Error| PeerError::Failed(error.to_string());
            adopted.map_err(|e| failed(&e))?.map(drop).map_err(|e| failed(&e))
        }
    })
    .await
}

/// Makes all nodes give back the space of what was deleted.
pub(crate) async fn clean<P: Peers>(core: &Arc<Core<P>>) -> Missing {
    let placement = core.placement.load();
    let nodes = placement.shards.iter().flat_map(ShardRecord::writers).cloned().collect();
    on_all(core, nodes, |core, node| async move { core.peers.clean_tombstones(&node).await }).await
}

/// Does something with all these nodes at once, each within the time that a deletion may take.
async fn on_all<P: Peers, F>(
    core: &Arc<Core<P>>,
    nodes: BTreeSet<NodeId>,
    order: impl Fn(Arc<Core<P>>, NodeId) -> F,
) -> Missing
where
    F: Future<Output = Result<(), PeerError>> + Send + 'static,
{
    let limit: Duration = core.settings.delete_timeout;
    let mut orders = JoinSet::new();
    for node in nodes {
        let order = order(Arc::clone(core), node.clone());
        orders.spawn(async move {
            let done = tokio::time::timeout(limit, order).await;
            (node, done.unwrap_or(Err(PeerError::Timeout)))
        });
    }
    let mut missing = Missing::new();
    while let Some(ended) = orders.join_next().await {
        let (node, done) = ended.expect("an order neither panics nor is cancelled");
        missing.extend(done.err().map(|error| (node, error.to_string())));
    }
    missing.sort();
    missing
}

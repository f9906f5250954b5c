//! Erasing: what every replica of every shard must do, and who did not.
//!
//! There is no quorum here. A replica that did not hide samples would bring them back into merged answers, so the
//! answer names each one that failed, and the caller repeats the request: erasing twice is harmless.

use std::collections::BTreeSet;
use std::sync::Arc;

use saturn_model::{Selection, ShardId};
use saturn_ring::{Epoch, NodeId, Placement, ShardRecord};
use tokio::task::JoinSet;

use crate::coordinator::Core;
use crate::{PeerError, Peers};

/// What a replica shall erase.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Erase {
    /// The samples that these selections match now, in all shards. They are gone from answers at once.
    Series(Vec<Selection>),
    /// What was erased before and still takes space.
    Tombstones,
}

/// An order to one replica.
#[derive(Clone, Debug)]
pub struct EraseRequest {
    /// What to erase.
    pub what: Erase,
    /// The shards that the replica holds, each with the epoch of its record, as the sender knows it. A replica that
    /// disagrees about one of them erases nothing.
    pub shards: Vec<(ShardId, Epoch)>,
}

/// What a replica says to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EraseReply {
    /// Done and durable; so many series are concerned.
    Done {
        /// Series of which samples were hidden, over all shards.
        series: u64,
    },
    /// The replica holds an older placement; nothing was erased.
    Behind,
    /// Anything else. What was erased is unknown.
    Failed(String),
}

/// What came of an erasure.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Erased {
    /// Series concerned, the most that one replica says.
    pub series: u64,
    /// Replicas that did not do it, by name, and why. Unless it is empty, erase again.
    pub missing: Vec<(NodeId, String)>,
}

/// Orders all replicas of all shards to erase.
pub(crate) async fn erase<P: Peers>(core: &Arc<Core<P>>, what: Erase) -> Erased {
    let placement = core.placement.load();
    let mut orders = JoinSet::new();
    let nodes: BTreeSet<&NodeId> = placement.shards.iter().flat_map(ShardRecord::writers).collect();
    for node in nodes {
        let (core, node) = (Arc::clone(core), node.clone());
        let request = EraseRequest { what: what.clone(), shards: shards_of(&placement, &node) };
        orders.spawn(async move {
            let reply = tokio::time::timeout(core.settings.erase_timeout, order(&core, &node, request)).await;
            (node, reply.unwrap_or(Err(PeerError::Timeout)))
        });
    }
    let mut erased = Erased::default();
    while let Some(ended) = orders.join_next().await {
        let (node, reply) = ended.expect("an order neither panics nor is cancelled");
        match reply {
            Ok(EraseReply::Done { series }) => erased.series = erased.series.max(series),
            Ok(EraseReply::Behind) => {
                erased
                    .missing
                    .push((node, "holds an older placement, and does not take the newer one".into()));
            }
            Ok(EraseReply::Failed(text)) => erased.missing.push((node, text)),
            Err(error) => erased.missing.push((node, error.to_string())),
        }
    }
    erased.missing.sort();
    erased
}

/// One replica. One that is behind is handed the placement and asked once more.
async fn order<P: Peers>(
    core: &Core<P>,
    node: &NodeId,
    request: EraseRequest,
) -> Result<EraseReply, PeerError> {
    let reply = core.peers.erase(node, request.clone()).await?;
    if reply != EraseReply::Behind {
        return Ok(reply);
    }
    core.peers.push_placement(node, &core.placement.load()).await?;
    core.peers.erase(node, request).await
}

fn shards_of(placement: &Placement, node: &NodeId) -> Vec<(ShardId, Epoch)> {
    let numbered = (0..).map(ShardId).zip(&placement.shards);
    numbered
        .filter(|(_, record)| record.is_writer(node))
        .map(|(shard, record)| (shard, record.epoch))
        .collect()
}

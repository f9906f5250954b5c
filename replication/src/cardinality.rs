//! Counting series: one replica of each shard is asked, this node first, and the counts are added up.
//!
//! There is no quorum here. What one replica holds in memory is as good an answer as another's; a replica that does
//! not answer is replaced by the next one of the shard.

use std::collections::{BTreeMap, HashMap};

use saturn_model::{Cardinality, ShardId, TenantId};
use saturn_ring::{Epoch, NodeId};

use crate::coordinator::Core;
use crate::progress::preference;
use crate::{CardinalityReply, CardinalityRequest, Completeness, MissingShard, PeerError, Peers, ReadAnswer};

/// How often what is left is asked for again, of other replicas.
const ROUNDS_MAX: u32 = 3;

/// A shard that was not counted yet.
struct Uncounted {
    epoch: Epoch,
    /// Whom to ask, from the end.
    candidates: Vec<NodeId>,
    /// What the last one said.
    reason: String,
}

/// See [`crate::Coordinator::cardinality`].
pub(crate) async fn count<P: Peers>(
    core: &Core<P>,
    tenant: &TenantId,
    top: usize,
) -> ReadAnswer<Cardinality> {
    let placement = core.placement.load();
    let uncounted = |(shard, record)| {
        let mut candidates = preference(shard, record, &core.me, |node| core.peers.is_alive(node));
        candidates.reverse();
        (shard, Uncounted { epoch: record.epoch, candidates, reason: "was not asked for".into() })
    };
    let read = core.shards_read(tenant);
    let shards = (0..).map(ShardId).zip(&placement.shards).filter(|(shard, _)| read.contains(*shard));
    let mut left: BTreeMap<ShardId, Uncounted> = shards.map(uncounted).collect();
    let mut total = Cardinality::default();
    for _ in 0..ROUNDS_MAX {
        let mut orders: BTreeMap<NodeId, Vec<(ShardId, Epoch)>> = BTreeMap::new();
        for (shard, uncounted) in &mut left {
            if let Some(node) = uncounted.candidates.pop() {
                orders.entry(node).or_default().push((*shard, uncounted.epoch));
            }
        }
        let answers = orders.into_iter().map(|(node, shards)| ask(core, node, tenant, shards, top));
        for (shards, answer) in futures::future::join_all(answers).await {
            let refused: HashMap<ShardId, String> = match answer {
                Ok(CardinalityReply { counted, refused }) => {
                    total.merge(counted, top);
                    refused.into_iter().collect()
                }
                Err(reason) => shards.iter().map(|(shard, _)| (*shard, reason.clone())).collect(),
            };
            for (shard, _) in shards {
                match refused.get(&shard) {
                    None => _ = left.remove(&shard),
                    Some(reason) => {
                        left.get_mut(&shard).expect("it was asked for").reason.clone_from(reason);
                    }
                }
            }
        }
        if left.is_empty() {
            break;
        }
    }
    let missing = |(shard, uncounted): (ShardId, Uncounted)| MissingShard { shard, reason: uncounted.reason };
    let completeness = if left.is_empty() {
        Completeness::Complete
    } else {
        Completeness::Partial { missing: left.into_iter().map(missing).collect() }
    };
    ReadAnswer { value: total, completeness }
}

/// Asks one replica, and says which shards it was asked for.
async fn ask<P: Peers>(
    core: &Core<P>,
    node: NodeId,
    tenant: &TenantId,
    shards: Vec<(ShardId, Epoch)>,
    top: usize,
) -> (Vec<(ShardId, Epoch)>, Result<CardinalityReply, String>) {
    let request = CardinalityRequest { tenant: tenant.clone(), shards: shards.clone(), top };
    let timeout = core.settings.read_timeout / ROUNDS_MAX;
    let answer = tokio::time::timeout(timeout, core.peers.cardinality(&node, request)).await;
    let answer = answer.unwrap_or(Err(PeerError::Timeout));
    (shards, answer.map_err(|error| format!("{node}: {error}")))
}

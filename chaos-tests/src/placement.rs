//! What shards that move come to.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::{Cluster, Endpoint, eventually};

/// How long a set of moves may take on a busy machine.
const MOVES_LIMIT: Duration = Duration::from_secs(120);
/// How long it may take until deletions are known to be done.
const DELETIONS_LIMIT: Duration = Duration::from_secs(60);

/// Waits until [`check_settled`] finds nothing.
pub async fn settled(cluster: &Cluster, ask: usize, owners: &[usize]) -> Result<BTreeMap<String, usize>> {
    eventually("the shards have moved", MOVES_LIMIT, async || {
        check_settled(cluster, ask, owners).await.map(Some)
    })
    .await
}

/// Fails unless nothing is left to move, as the node at `ask` sees it, and the nodes at these indexes, and no others,
/// own shards. Returns how many each owns.
pub async fn check_settled(
    cluster: &Cluster,
    ask: usize,
    owners: &[usize],
) -> Result<BTreeMap<String, usize>> {
    let status = Endpoint::plain(&cluster.url(ask)).data("/api/v1/status/ring", &[]).await?;
    ensure!(status["movesPlanned"] == 0 && status["movesUnderWay"] == 0, "{status}");
    let members = status["members"].as_array().context("members")?;
    let owned: BTreeMap<String, usize> = members
        .iter()
        .filter_map(|member| {
            let shards = usize::try_from(member["shardsOwned"].as_u64()?).ok()?;
            (shards > 0).then(|| (text(&member["id"]), shards))
        })
        .collect();
    let wanted = owners.iter().map(|index| cluster.nodes()[*index].id.clone());
    ensure!(owned.keys().cloned().eq(wanted.collect::<BTreeSet<_>>()), "{status}");
    Ok(owned)
}

/// Waits until all nodes are known to have done all deletions, as the node at `ask` sees it.
pub async fn settled_deletions(cluster: &Cluster, ask: usize) -> Result<()> {
    eventually("all are known to have deleted", DELETIONS_LIMIT, async || {
        let shards = Endpoint::plain(&cluster.url(ask)).data("/api/v1/status/shards", &[]).await?;
        let left = shards.as_array().context("shards")?.iter().find(|shard| shard["deletions"] != 0);
        ensure!(left.is_none(), "{left:?}");
        Ok(Some(()))
    })
    .await
}

/// Waits until the nodes of every shard's slots, which are among these, hold the same.
pub async fn equal_replicas(cluster: &Cluster, alive: &[usize]) -> Result<()> {
    eventually("the replicas of all shards are equal", MOVES_LIMIT, async || {
        let mut digests: BTreeMap<(u64, String), String> = BTreeMap::new();
        let mut slots: BTreeMap<u64, Vec<String>> = BTreeMap::new();
        for index in alive {
            let shards = cluster.saturnctl(*index, &["-o", "json", "shard", "ls", "--digest"])?;
            let shards: Value = serde_json::from_str(&shards).context("saturnctl shard ls")?;
            for shard in shards.as_array().context("shards")? {
                let number = shard["shard"].as_u64().context("number")?;
                slots.insert(number, shard["slots"].as_array().context("slots")?.iter().map(text).collect());
                digests.insert((number, cluster.nodes()[*index].id.clone()), text(&shard["digest"]));
            }
        }
        for (shard, nodes) in slots {
            let held: Vec<_> = nodes.iter().map(|node| digests.get(&(shard, node.clone()))).collect();
            if held.iter().any(|digest| digest.is_none() || *digest != held[0]) {
                bail!("shard {shard}: {nodes:?} hold {held:?}");
            }
        }
        Ok(Some(()))
    })
    .await
}

/// The index of the node that leads the member list, as the node at `ask` sees it.
pub async fn member_list_leader(cluster: &Cluster, ask: usize) -> Result<usize> {
    let status = Endpoint::plain(&cluster.url(ask)).data("/api/v1/status/ring", &[]).await?;
    index_of(cluster, &status["leader"])
}

/// The indexes of the nodes that vote on the member list, as the node at `ask` sees it.
pub async fn council(cluster: &Cluster, ask: usize) -> Result<BTreeSet<usize>> {
    let status = Endpoint::plain(&cluster.url(ask)).data("/api/v1/status/ring", &[]).await?;
    status["council"].as_array().context("council")?.iter().map(|id| index_of(cluster, id)).collect()
}

/// The indexes of the nodes that lead the shards' groups, as the node at `ask` sees it: of all that it takes part in,
/// by shard.
pub async fn shard_leaders(cluster: &Cluster, ask: usize) -> Result<Vec<usize>> {
    let shards = Endpoint::plain(&cluster.url(ask)).data("/api/v1/status/shards", &[]).await?;
    let leaders = shards.as_array().context("shards")?.iter().map(|shard| &shard["leader"]);
    leaders.filter(|leader| !leader.is_null()).map(|leader| index_of(cluster, leader)).collect()
}

fn index_of(cluster: &Cluster, id: &Value) -> Result<usize> {
    let index = cluster.nodes().iter().position(|node| *id == node.id.as_str());
    index.with_context(|| format!("{id} is no node"))
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

//! Replicas that lack something get it: what a node missed while it was away, and which windows are the same on all.
//!
//! A node that was down, or could not be reached, lacks writes that a quorum acknowledged without it. Every node compares
//! the shards that it holds with the shards' other nodes: digests of the latest windows, of the samples that are not
//! just being written. Where they differ it takes the other's samples from the first such window on. Every node does so,
//! and taking is a union, so all have the same in the end.
//!
//! Windows that are over and the same on all nodes are written down in the shard's metadata by the leader of its group:
//! the manifest. They are not compared again. Windows older than [`WINDOWS`] are not compared either.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use saturn_model::{ShardId, TimestampMs};
use saturn_ring::{Epoch, NodeId, ShardRecord};
use saturn_storage::ExportCursor;
use tokio::sync::watch;

use crate::authority::Authority;
use crate::clock;
use crate::transfer::{Progress, Transfers, WindowDigests, Windows, differing_windows};

/// Time between two comparisons of everything.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// Samples younger than this may still be on their way to some of the nodes.
const SETTLED_MS: i64 = 30_000;
/// How long after its end a window is written down: late samples should be there by then.
const GRACE_MS: i64 = 3_600_000;
/// Length of a window.
const WINDOW_MS: i64 = 2 * 3_600_000;
/// How many windows are compared, the present one included.
const WINDOWS: i64 = 13;

/// What a comparison brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Repaired {
    /// Shards compared.
    pub(crate) shards: u64,
    /// Shards that could not be compared with all of their nodes.
    pub(crate) failed: u64,
    /// Copies of shards that differed, and of which samples were taken.
    pub(crate) taken: u64,
}

/// See the module's description. Cloning shares everything.
#[derive(Clone)]
pub(crate) struct Repairer {
    authority: Authority,
    transfers: Arc<Transfers>,
}

impl Repairer {
    pub(crate) fn new(authority: Authority, transfers: Arc<Transfers>) -> Self {
        Self { authority, transfers }
    }

    /// Compares again and again, for ever.
    pub(crate) async fn run(self) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            self.round(TimestampMs(clock::unix_ms() - SETTLED_MS)).await;
        }
    }

    /// Compares all shards of this node once: their samples before `until`.
    pub(crate) async fn round(&self, until: TimestampMs) -> Repaired {
        let placement = self.authority.placement.load();
        let mut repaired = Repaired::default();
        for (shard, record) in (0..).map(ShardId).zip(&placement.shards) {
            if record.moving.is_some() || !record.slots.contains(&self.authority.me) || record.slots.len() < 2
            {
                continue;
            }
            repaired.shards += 1;
            match self.repair(shard, record, until).await {
                Ok(taken) => repaired.taken += taken,
                Err(error) => {
                    repaired.failed += 1;
                    tracing::debug!(%shard, error = format!("{error:#}"), "a shard was not compared");
                }
            }
        }
        if repaired.taken > 0 {
            tracing::info!(
                shards = repaired.shards,
                taken = repaired.taken,
                "took what this node had missed"
            );
        }
        repaired
    }

    /// Takes what this node lacks of a shard, and has windows written down that are the same on all. Returns from how
    /// many nodes something was taken.
    async fn repair(&self, shard: ShardId, record: &ShardRecord, until: TimestampMs) -> anyhow::Result<u64> {
        let sealed = self.authority.groups.shard_meta(shard).map(|meta| meta.sealed).unwrap_or_default();
        let mut windows = latest_windows(until);
        windows.starts.retain(|start| !sealed.contains_key(&start.0));
        let mut taken = 0;
        let mut same = true;
        for node in record.slots.iter().filter(|node| **node != self.authority.me) {
            let differs = reconcile(&self.transfers, (shard, record.epoch), node, &windows).await?;
            same &= !differs;
            taken += u64::from(differs);
        }
        let leads = self.authority.groups.standing(shard.into()).is_some_and(|standing| standing.leads);
        if same && leads {
            windows.starts.retain(|start| start.0 + WINDOW_MS + GRACE_MS < clock::unix_ms());
            self.seal(shard, record.epoch, windows).await?;
        }
        Ok(taken)
    }

    async fn seal(&self, shard: ShardId, epoch: Epoch, windows: Windows) -> anyhow::Result<()> {
        if windows.starts.is_empty() {
            return Ok(());
        }
        for (window, digest) in self.transfers.local_digests(shard, &windows).await? {
            self.authority.seal(shard, epoch, window, digest).await?;
        }
        Ok(())
    }
}

/// The windows that may still differ.
pub(crate) fn latest_windows(until: TimestampMs) -> Windows {
    let last = until.0.div_euclid(WINDOW_MS) * WINDOW_MS;
    let starts = (0..WINDOWS).rev().map(|back| TimestampMs(last - back * WINDOW_MS)).collect();
    Windows { starts, until }
}

/// Compares a shard with another node, and takes that one's samples from the first window on in which they differ.
/// Says whether they did.
pub(crate) async fn reconcile(
    transfers: &Transfers,
    (shard, epoch): (ShardId, Epoch),
    node: &NodeId,
    windows: &Windows,
) -> anyhow::Result<bool> {
    let mine: WindowDigests = transfers.local_digests(shard, windows).await?;
    let theirs = transfers.remote_digests((shard, epoch), node, windows).await;
    let theirs = theirs.with_context(|| format!("cannot compare with {node}"))?;
    let Some(first) = differing_windows(&mine, &theirs).first().copied() else { return Ok(false) };
    let (progress, _) = watch::channel(Progress::default());
    let (_keep, cancel) = watch::channel(false);
    let from = ExportCursor::at(first);
    let pulled = transfers.pull_from((shard, epoch), node, from, &progress, cancel).await;
    pulled.with_context(|| format!("cannot take from {node} what differs"))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_windows_end_with_the_present_one() {
        let windows = latest_windows(TimestampMs(100 * WINDOW_MS + 5));
        assert_eq!(windows.starts.len(), 13);
        assert_eq!(windows.starts.last(), Some(&TimestampMs(100 * WINDOW_MS)));
        assert_eq!(windows.starts.first(), Some(&TimestampMs(88 * WINDOW_MS)));
        assert!(windows.starts.iter().all(|start| ExportCursor::at(*start).is_some()));
    }
}

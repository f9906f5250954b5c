//! Which windows of a shard are the same on all of its replicas.
//!
//! The leader of a shard's group compares the digests of windows that are over with those of the shard's other nodes.
//! Where all agree it has the window and its digest written down in the shard's metadata: the manifest. A window that
//! changes later, by a late sample or a deletion, is compared again and written down under a higher generation.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use saturn_model::{ShardId, TimestampMs};
use saturn_ring::ShardRecord;

use crate::authority::Authority;
use crate::clock;
use crate::transfer::{Transfers, WindowDigests, differing_windows};

/// Time between two looks at all shards that this node leads.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// How long after its end a window is compared: late samples should be there by then.
const GRACE_MS: i64 = 3_600_000;
/// Length of a window.
const WINDOW_MS: i64 = 2 * 3_600_000;

/// Runs for ever.
pub(crate) async fn run(authority: Authority, transfers: Arc<Transfers>) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let placement = authority.placement.load();
        for (shard, record) in (0..).map(ShardId).zip(&placement.shards) {
            let leads = authority.groups.standing(shard.into()).is_some_and(|standing| standing.leads);
            if !leads || record.moving.is_some() || !record.slots.contains(&authority.me) {
                continue;
            }
            if let Err(error) = seal(&authority, &transfers, shard, record).await {
                tracing::debug!(%shard, error = format!("{error:#}"), "a shard's windows were not compared");
            }
        }
    }
}

async fn seal(
    authority: &Authority,
    transfers: &Transfers,
    shard: ShardId,
    record: &ShardRecord,
) -> anyhow::Result<()> {
    let mut mine = transfers.local_digests(shard, &[]).await?;
    mine.retain(|window, _| is_closed(*window));
    let sealed = authority.groups.shard_meta(shard).map(|meta| meta.sealed).unwrap_or_default();
    mine.retain(|window, digest| sealed.get(&window.0).is_none_or(|sealed| sealed.digest != *digest));
    if mine.is_empty() {
        return Ok(());
    }
    let windows: Vec<TimestampMs> = mine.keys().copied().collect();
    for node in record.slots.iter().filter(|node| **node != authority.me) {
        let theirs: WindowDigests = transfers
            .remote_digests((shard, record.epoch), node, &windows)
            .await
            .with_context(|| format!("cannot compare with {node}"))?;
        for window in differing_windows(&mine, &theirs) {
            mine.remove(&window);
        }
    }
    for (window, digest) in mine {
        authority.seal(shard, record.epoch, window, digest).await?;
    }
    Ok(())
}

fn is_closed(window: TimestampMs) -> bool {
    window.0 + WINDOW_MS + GRACE_MS < clock::unix_ms()
}

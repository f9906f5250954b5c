//! Replicas that lack something get it: what a node missed while it was away, and which windows are the same on all.
//!
//! A node that was down, or could not be reached, lacks writes that a quorum acknowledged without it. Every node compares
//! the shards that it holds with the shards' other nodes: digests of the latest windows, of the samples that are not
//! just being written. Where they differ it takes the other's samples. Every node does so, and taking is a union, so all
//! have the same in the end.
//!
//! A node that has just started does so within a minute or two, as it was away; then it is done from time to time, since
//! digests read all that they are of.
//!
//! A node whose disk has lost what it had acknowledged (`durability.rs`) first takes all that the others have, of all times.
//!
//! Windows that are over and the same on all nodes are written down in the shard's metadata by the leader of its group:
//! the manifest. Of the other windows of before [`WINDOWS`], a few are compared in each round, in turn, so that all are in
//! the end; and one of those that are written down, as late samples may have reached only some of the nodes since.

use std::collections::{BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use parking_lot::Mutex;
use saturn_model::{ShardId, TimestampMs, WINDOW_MS};
use saturn_ring::{Epoch, NodeId, ShardMeta, ShardRecord};
use tokio::sync::watch;

use crate::authority::Authority;
use crate::clock;
use crate::durability::Lacking;
use crate::identity::{DataDir, Losses};
use crate::transfer::{Progress, Transfers, WindowDigests, Windows, differing_windows};

/// Time between two comparisons of everything: each reads, on every node, hours of data.
const LOOK_EVERY: Duration = Duration::from_secs(15 * 60);
/// Time before the first one, and after one that failed; it doubles up to the usual time.
const LOOK_SOON: Duration = Duration::from_secs(60);
/// Pause before what the disk has lost is looked for again where it could not be had; it doubles up to the largest.
const RECOVER_AGAIN_MIN: Duration = Duration::from_secs(1);
/// Largest such pause.
const RECOVER_AGAIN_MAX: Duration = Duration::from_secs(30);
/// Samples younger than this may still be on their way to some of the nodes.
const SETTLED_MS: i64 = 30_000;
/// How long after its end a window is written down: late samples should be there by then.
const GRACE_MS: i64 = 3_600_000;
/// How many windows are compared each time, the present one included.
const WINDOWS: i64 = 13;
/// How many older ones.
const OLDER_WINDOWS: usize = 12;
/// How many that are written down.
const SEALED_WINDOWS: usize = 1;

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

/// Which windows of a shard are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extent {
    All,
    /// The latest ones, and of the others those whose turn it is.
    Turn,
}

/// Gives windows their turns.
#[derive(Debug, Default)]
struct Turns {
    /// The last one that had its turn.
    last: Option<TimestampMs>,
}

impl Turns {
    /// The next of the windows, at most so many.
    fn next(&mut self, windows: &BTreeSet<TimestampMs>, count: usize) -> Vec<TimestampMs> {
        let last = self.last.unwrap_or(TimestampMs(i64::MIN));
        let before = windows.range(..=last);
        let behind = windows.range((Bound::Excluded(last), Bound::Unbounded));
        let next: Vec<TimestampMs> = behind.chain(before).take(count).copied().collect();
        self.last = next.last().copied().or(self.last);
        next
    }
}

/// The turns of a shard's windows.
#[derive(Debug, Default)]
struct ShardTurns {
    older: Turns,
    sealed: Turns,
}

impl ShardTurns {
    /// The latest windows that are not written down, and of the others those whose turn it is.
    fn next(
        &mut self,
        older: BTreeSet<TimestampMs>,
        latest: Vec<TimestampMs>,
        meta: &ShardMeta,
    ) -> Vec<TimestampMs> {
        let is_sealed = |start: &TimestampMs| meta.is_sealed(start.0);
        let (mut sealed, older): (BTreeSet<_>, BTreeSet<_>) = older.into_iter().partition(is_sealed);
        let (sealed_lately, mut starts): (Vec<_>, Vec<_>) = latest.into_iter().partition(is_sealed);
        sealed.extend(sealed_lately);
        starts.extend(self.older.next(&older, OLDER_WINDOWS));
        starts.extend(self.sealed.next(&sealed, SEALED_WINDOWS));
        starts.sort_unstable();
        starts
    }
}

/// See the module's description. Cloning shares everything.
#[derive(Clone)]
pub(crate) struct Repairer {
    authority: Authority,
    transfers: Arc<Transfers>,
    turns: Arc<Mutex<HashMap<ShardId, ShardTurns>>>,
}

impl Repairer {
    pub(crate) fn new(authority: Authority, transfers: Arc<Transfers>) -> Self {
        Self { authority, transfers, turns: Arc::default() }
    }

    /// Takes what the disk has lost, if it has; then compares again and again, for ever.
    pub(crate) async fn run(self, lacking: Arc<Lacking>, data: DataDir) {
        if !lacking.shards().is_empty() {
            self.recover(&lacking).await;
            let repaired = data.load_losses().map(|losses| Losses { is_lacking: false, ..losses });
            match repaired.and_then(|losses| data.save_losses(losses)) {
                Ok(()) => tracing::info!("all that the disk had lost was taken from the other replicas"),
                Err(error) => {
                    let error = format!("{error:#}");
                    tracing::error!(error, "the next start will repair once more what the disk had lost");
                }
            }
        }
        let mut pause = LOOK_SOON;
        loop {
            tokio::time::sleep(pause).await;
            let until = TimestampMs(clock::unix_ms() - SETTLED_MS);
            let repaired = self.compare(None, until, Extent::Turn).await;
            pause = if repaired.failed == 0 { LOOK_EVERY } else { (pause * 2).min(LOOK_EVERY) };
        }
    }

    /// Takes all that the other nodes of the lacking shards have, however old. A shard is answered for again as soon as
    /// each of them has handed over what it has: whatever this node had acknowledged, one of them has, too.
    async fn recover(&self, lacking: &Lacking) {
        let mut pause = RECOVER_AGAIN_MIN;
        let mut lost = Vec::new();
        loop {
            for shard in lacking.shards() {
                match self.recover_shard(shard).await {
                    Ok(is_whole) => {
                        lacking.remove(shard);
                        if !is_whole {
                            lost.push(shard.0);
                            lacking.count_possible_loss();
                        }
                    }
                    Err(error) => {
                        tracing::info!(%shard, error = format!("{error:#}"), "a shard is not whole yet");
                    }
                }
            }
            if lacking.shards().is_empty() {
                break;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RECOVER_AGAIN_MAX);
        }
        if !lost.is_empty() {
            tracing::error!(
                shards = ?lost,
                "another replica of these shards had lost something as well, or there is none: what was acknowledged by just \
                 these is lost; all that is left is here again"
            );
        }
    }

    /// Says whether all is there again: a shard's other nodes may have lost something as well.
    async fn recover_shard(&self, shard: ShardId) -> anyhow::Result<bool> {
        let (placement, me) = (self.authority.placement.load(), &self.authority.me);
        let record = placement.record(shard).context("there is no such shard")?;
        // What is still to come here is fetched whole anyway, and what has gone is nobody's loss.
        if !record.is_writer(me) || record.is_fetching(me) {
            return Ok(true);
        }
        let mut comparison = Comparison::new(&self.transfers, (shard, record.epoch), Windows::all()).await?;
        // Without another replica, what is lost stays lost.
        let mut is_made_up_for = record.slots.len() > 1 || record.moving.is_some();
        for node in record.slots.iter().filter(|node| *node != me) {
            is_made_up_for &= !comparison.with(node).await?.is_lacking;
        }
        Ok(is_made_up_for)
    }

    /// Compares all of this node's shards, or one: all samples before `until`.
    pub(crate) async fn compare_all(&self, shard: Option<ShardId>, until: TimestampMs) -> Repaired {
        self.compare(shard, until, Extent::All).await
    }

    async fn compare(&self, only: Option<ShardId>, until: TimestampMs, extent: Extent) -> Repaired {
        let placement = self.authority.placement.load();
        let mut repaired = Repaired::default();
        for (shard, record) in (0..).map(ShardId).zip(&placement.shards) {
            let is_compared = record.moving.is_none()
                && record.slots.contains(&self.authority.me)
                && record.slots.len() > 1;
            if !is_compared || only.is_some_and(|only| only != shard) {
                continue;
            }
            repaired.shards += 1;
            if let Err(error) = self.repair(shard, record, (until, extent), &mut repaired.taken).await {
                repaired.failed += 1;
                tracing::debug!(%shard, error = format!("{error:#}"), "a shard was not compared");
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

    /// Takes what this node lacks of a shard, and has windows written down that are the same on all. Adds to `taken`
    /// from how many nodes something was taken.
    async fn repair(
        &self,
        shard: ShardId,
        record: &ShardRecord,
        (until, extent): (TimestampMs, Extent),
        taken: &mut u64,
    ) -> anyhow::Result<()> {
        let meta = self.authority.groups.shard_meta(shard).unwrap_or_default();
        let windows = match extent {
            Extent::All => Windows::until(until),
            Extent::Turn => {
                let latest = latest_windows(until);
                let older = self.older_windows(shard, record, latest[0]).await;
                let mut turns = self.turns.lock();
                let starts = turns.entry(shard).or_default().next(older, latest, &meta);
                Windows { starts, ..Windows::until(until) }
            }
        };
        let mut comparison = Comparison::new(&self.transfers, (shard, record.epoch), windows).await?;
        let (mut same, mut outcome) = (true, Ok(()));
        for node in record.slots.iter().filter(|node| **node != self.authority.me) {
            match comparison.with(node).await {
                Ok(Compared { differs, .. }) => {
                    same &= !differs;
                    *taken += u64::from(differs);
                }
                // The others may have what is lacking.
                Err(error) => outcome = Err(error),
            }
        }
        outcome?;
        let leads = self.authority.groups.standing(shard.into()).is_some_and(|standing| standing.leads);
        if same && leads {
            let new = |(start, digest): &(TimestampMs, [u8; 32])| !meta.is_sealed_as(start.0, digest);
            self.seal(shard, record.epoch, comparison.mine.into_iter().filter(new).collect()).await?;
        }
        Ok(())
    }

    /// The windows before `latest` of which any of the shard's nodes may have samples, as far as they say so.
    async fn older_windows(
        &self,
        shard: ShardId,
        record: &ShardRecord,
        latest: TimestampMs,
    ) -> BTreeSet<TimestampMs> {
        let mut older: BTreeSet<TimestampMs> = self.transfers.local_windows(shard).into_iter().collect();
        for node in record.slots.iter().filter(|node| **node != self.authority.me) {
            // A node that does not answer is complained of when it is compared with.
            let theirs = self.transfers.remote_windows((shard, record.epoch), node).await;
            older.extend(theirs.unwrap_or_default());
        }
        older.retain(|start| *start < latest);
        older
    }

    /// Has it written down which of these windows are over: all nodes have these digests of them.
    async fn seal(&self, shard: ShardId, epoch: Epoch, same: WindowDigests) -> anyhow::Result<()> {
        let over = clock::unix_ms() - WINDOW_MS - GRACE_MS;
        for (window, digest) in same.range(..TimestampMs(over)) {
            self.authority.seal(shard, epoch, *window, *digest).await?;
        }
        Ok(())
    }
}

/// The windows that may still differ.
pub(crate) fn latest_windows(until: TimestampMs) -> Vec<TimestampMs> {
    let last = until.0.div_euclid(WINDOW_MS) * WINDOW_MS;
    (0..WINDOWS).rev().map(|back| TimestampMs(last - back * WINDOW_MS)).collect()
}

/// What a comparison with another node has shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Compared {
    /// Whether that one's samples of some windows were taken.
    pub(crate) differs: bool,
    /// Whether it may itself lack what it had acknowledged.
    pub(crate) is_lacking: bool,
}

/// What this node holds of a shard, to compare it with other nodes one after the other.
pub(crate) struct Comparison<'a> {
    transfers: &'a Transfers,
    shard: (ShardId, Epoch),
    windows: Windows,
    mine: WindowDigests,
}

impl<'a> Comparison<'a> {
    /// Digests what is here.
    pub(crate) async fn new(
        transfers: &'a Transfers,
        shard: (ShardId, Epoch),
        windows: Windows,
    ) -> anyhow::Result<Self> {
        let mine = transfers.local_digests(shard.0, &windows).await?;
        Ok(Self { transfers, shard, windows, mine })
    }

    /// Compares with another node, and takes that one's samples of the windows in which they differ.
    pub(crate) async fn with(&mut self, node: &NodeId) -> anyhow::Result<Compared> {
        let theirs = self.transfers.remote_digests(self.shard, node, &self.windows).await;
        let theirs = theirs.with_context(|| format!("cannot compare with {node}"))?;
        let differing = differing_windows(&self.mine, &theirs.windows);
        let compared = Compared { differs: !differing.is_empty(), is_lacking: theirs.is_lacking };
        if differing.is_empty() {
            return Ok(compared);
        }
        let (progress, _) = watch::channel(Progress::default());
        let (_keep, cancel) = watch::channel(false);
        let pulled = self.transfers.pull_windows(self.shard, node, differing, &progress, cancel).await;
        pulled.with_context(|| format!("cannot take from {node} what differs"))?;
        self.mine = self.transfers.local_digests(self.shard.0, &self.windows).await?;
        Ok(compared)
    }
}

#[cfg(test)]
mod tests {
    use saturn_ring::ShardCommand;

    use super::*;

    #[test]
    fn the_latest_windows_end_with_the_present_one() {
        let windows = latest_windows(TimestampMs(100 * WINDOW_MS + 5));
        assert_eq!(windows.len(), 13);
        assert_eq!(windows.last(), Some(&TimestampMs(100 * WINDOW_MS)));
        assert_eq!(windows.first(), Some(&TimestampMs(88 * WINDOW_MS)));
        assert!(windows.iter().all(|start| start.0 % WINDOW_MS == 0));
    }

    #[test]
    fn what_is_written_down_has_its_turn_too() {
        let window = |number: i64| TimestampMs(number * WINDOW_MS);
        let mut meta = ShardMeta::default();
        let record = ShardRecord::stable(Epoch(3), vec![NodeId::new("a").expect("valid")]);
        let sealed = (1..4).chain(6..8).map(|number| ShardCommand::Seal {
            epoch: Epoch(3),
            window_ms: window(number).0,
            digest: [7; 32],
        });
        for command in std::iter::once(ShardCommand::Found(record)).chain(sealed) {
            meta.apply(command).expect("fits");
        }
        let (older, latest): (BTreeSet<_>, Vec<_>) =
            ((0..5).map(window).collect(), (5..9).map(window).collect());
        let mut turns = ShardTurns::default();
        let mut next = || -> Vec<i64> {
            let starts = turns.next(older.clone(), latest.clone(), &meta);
            starts.into_iter().map(|start| start.0 / WINDOW_MS).collect()
        };
        assert_eq!(next(), [0, 1, 4, 5, 8]);
        assert_eq!(next(), [0, 2, 4, 5, 8]);
        assert_eq!(next(), [0, 3, 4, 5, 8]);
        assert_eq!(next(), [0, 4, 5, 6, 8]);
        assert_eq!(next(), [0, 4, 5, 7, 8]);
        assert_eq!(next(), [0, 1, 4, 5, 8]);
    }

    #[test]
    fn older_windows_have_their_turns() {
        let windows: BTreeSet<TimestampMs> = (0..30).map(TimestampMs).collect();
        let mut seen = Vec::new();
        let mut turns = Turns::default();
        for _ in 0..5 {
            let turn = turns.next(&windows, 12);
            assert_eq!(turn.len(), 12);
            seen.extend(turn.iter().map(|start| start.0));
        }
        assert!(seen.iter().copied().eq((0..60).map(|number| number % 30)), "{seen:?}");
        let few = BTreeSet::from([TimestampMs(3), TimestampMs(5)]);
        let mut turns = Turns { last: Some(TimestampMs(3)) };
        assert_eq!(turns.next(&few, 12), [TimestampMs(5), TimestampMs(3)]);
        assert_eq!(turns.next(&BTreeSet::new(), 12), []);
        assert_eq!(turns.next(&few, 1), [TimestampMs(5)]);
    }
}

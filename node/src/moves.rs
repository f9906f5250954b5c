//! Shards that come to this node, and what is left of those that went.
//!
//! The node that a slot moves to drives the move: it makes the others know the record, fetches what they have, and has
//! the next step decided. Every part of that can be done again, so a crash, of this node or another one, delays the
//! move and no more. The record says how far it is. `ring/src/record.rs` says why it is done in this order.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use parking_lot::Mutex;
use saturn_model::{ShardId, TimestampMs, WINDOW_MS};
use saturn_ring::{MoveStep, NodeId, RecordStep, ShardRecord, SlotMove};
use saturn_storage::Engine;
use tokio::sync::watch;

use crate::authority::Authority;
use crate::clock;
use crate::raft::{GroupId, Standing};
use crate::repair::{Comparison, latest_windows};
use crate::steps;
use crate::transfer::{Progress, Transfers, WindowDigests, Windows, differing_windows};

/// Time between two looks at the placement.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Time between two looks for shards that are not this node's any more.
const CLEAN_EVERY: Duration = Duration::from_secs(15);
/// How long a node votes in the group of a shard that is others' now, unless it knows that it votes no more.
const VOTE_FOR: Duration = Duration::from_secs(120);
/// Pause after a step that failed; it doubles up to the largest.
const PAUSE_MIN: Duration = Duration::from_millis(500);
/// Largest pause.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// A shard on its way to this node.
#[derive(Clone, Debug)]
struct Coming {
    since: Instant,
    progress: watch::Receiver<Progress>,
}

/// What is known about a shard on its way to this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MoveStatus {
    pub(crate) shard: ShardId,
    pub(crate) since: Duration,
    pub(crate) progress: Progress,
}

/// See the module's description. Cloning shares everything.
#[derive(Clone)]
pub(crate) struct Mover {
    authority: Authority,
    transfers: Arc<Transfers>,
    engine: Engine,
    coming: Arc<Mutex<HashMap<ShardId, Coming>>>,
    /// Since when this node only votes in the groups of shards that others hold.
    leaving: Arc<Mutex<HashMap<ShardId, Instant>>>,
}

impl Mover {
    pub(crate) fn new(authority: Authority, transfers: Arc<Transfers>, engine: Engine) -> Self {
        Self { authority, transfers, engine, coming: Arc::default(), leaving: Arc::default() }
    }

    /// What takes shards from others, and compares with them.
    pub(crate) fn transfers(&self) -> Arc<Transfers> {
        Arc::clone(&self.transfers)
    }

    /// The shards on their way to this node.
    pub(crate) fn status(&self) -> Vec<MoveStatus> {
        let coming = self.coming.lock();
        let status = |(shard, coming): (&ShardId, &Coming)| MoveStatus {
            shard: *shard,
            since: coming.since.elapsed(),
            progress: *coming.progress.borrow(),
        };
        let mut all: Vec<MoveStatus> = coming.iter().map(status).collect();
        all.sort_by_key(|status| status.shard);
        all
    }

    /// Takes what is to come and cleans up what has gone, for ever.
    pub(crate) async fn run(self) {
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let cleaner = self.clone();
        let cleaning = async move {
            let mut staying = HashMap::new();
            loop {
                tokio::time::sleep(CLEAN_EVERY).await;
                cleaner.clean(&mut staying).await;
            }
        };
        let taking = async {
            loop {
                look.tick().await;
                self.take_all();
            }
        };
        tokio::join!(cleaning, taking);
    }

    /// Starts a task for every shard that is to come and has none.
    fn take_all(&self) {
        let placement = self.authority.placement.load();
        for (shard, record) in (0..).map(ShardId).zip(&placement.shards) {
            if !self.is_coming(record) || self.coming.lock().contains_key(&shard) {
                continue;
            }
            let (progress, watching) = watch::channel(Progress::default());
            self.coming.lock().insert(shard, Coming { since: Instant::now(), progress: watching });
            let mover = self.clone();
            tokio::spawn(async move {
                mover.take(shard, &progress).await;
                mover.coming.lock().remove(&shard);
            });
        }
    }

    fn is_coming(&self, record: &ShardRecord) -> bool {
        record.moving.as_ref().is_some_and(|moving| moving.to == self.authority.me)
    }

    fn record(&self, shard: ShardId) -> Option<ShardRecord> {
        self.authority.placement.load().record(shard).cloned()
    }

    /// Step after step, until the shard is not on its way any more.
    async fn take(&self, shard: ShardId, progress: &watch::Sender<Progress>) {
        let mut pause = PAUSE_MIN;
        while let Some(record) = self.record(shard).filter(|record| self.is_coming(record)) {
            let Some(moving) = record.moving.clone() else { return };
            let from = record.slots[usize::from(moving.slot)].clone();
            let done = match moving.step {
                MoveStep::Begun => self.fetch(shard, &record, &moving, progress).await,
                MoveStep::Activated => self.finish(shard, &record).await,
            };
            match done {
                Ok(()) => {
                    pause = PAUSE_MIN;
                    if moving.step == MoveStep::Activated {
                        tracing::info!(%shard, slot = moving.slot, %from, "shard moved here");
                    }
                }
                Err(error) => {
                    let error = format!("{error:#}");
                    tracing::info!(%shard, %from, error, "a shard's move will go on later");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                }
            }
        }
    }

    /// Fetches what the shard's nodes have, and has it decided that this node answers reads.
    async fn fetch(
        &self,
        shard: ShardId,
        record: &ShardRecord,
        moving: &SlotMove,
        progress: &watch::Sender<Progress>,
    ) -> anyhow::Result<()> {
        steps::reach("fetch: begin adopted");
        let fenced = self.fence(shard, record).await?;
        steps::reach("fetch: fenced");
        let leaving = &record.slots[usize::from(moving.slot)];
        let from: Vec<&NodeId> = if fenced.contains(leaving) {
            vec![leaving]
        } else {
            record.slots.iter().filter(|node| fenced.contains(*node)).collect()
        };
        let mut sources = BTreeSet::new();
        for source in from {
            let (cancel, cancelled) = watch::channel(false);
            let pulling = self.transfers.pull_shard((shard, record.epoch), source, progress, cancelled);
            let mut pulling = std::pin::pin!(pulling);
            let pulled = tokio::select! {
                pulled = &mut pulling => pulled,
                () = self.changed(shard, record) => {
                    // Whatever comes next, nothing of this pull may still be stored then.
                    cancel.send_replace(true);
                    let _ = pulling.await;
                    bail!("the shard's record has changed meanwhile");
                }
            };
            pulled.with_context(|| format!("cannot fetch the shard from {source}"))?;
            sources.insert(source.clone());
        }
        steps::reach("fetch: fetched");
        self.complete(shard, record, &fenced).await;
        ensure!(
            record.covered_by(moving.slot, &sources),
            "too few of the shard's nodes can be reached to fetch all of it"
        );
        self.authority.decide(shard, record, RecordStep::Activate { fenced, sources }).await?;
        Ok(())
    }

    /// The source may lack what a quorum acknowledged without it: what the others have besides is taken as well. The
    /// move does not depend on it.
    async fn complete(&self, shard: ShardId, record: &ShardRecord, fenced: &BTreeSet<NodeId>) {
        let until = TimestampMs(clock::unix_ms());
        let windows = Windows { starts: latest_windows(until), ..Windows::until(until) };
        let compared = async {
            let mut comparison = Comparison::new(&self.transfers, (shard, record.epoch), windows).await?;
            for node in fenced {
                if let Err(error) = comparison.with(node).await {
                    tracing::debug!(%shard, error = format!("{error:#}"), "a shard that moves was not compared");
                }
            }
            anyhow::Ok(())
        };
        if let Err(error) = compared.await {
            tracing::debug!(%shard, error = format!("{error:#}"), "a shard that moves was not compared");
        }
    }

    /// Has it decided that the slot is this node's, once the others know that it answers reads.
    async fn finish(&self, shard: ShardId, record: &ShardRecord) -> anyhow::Result<()> {
        let fenced = self.fence(shard, record).await?;
        let next = self.authority.decide(shard, record, RecordStep::Finish { fenced }).await?;
        // Whoever does not hear of it now learns it when it asks, or is asked.
        let pushes =
            record.slots.iter().map(|node| self.authority.groups.control().push_record(node, shard, &next));
        futures::future::join_all(pushes).await;
        Ok(())
    }

    /// Makes the shard's nodes know its record, and says which do. Enough of them, or it is an error.
    async fn fence(&self, shard: ShardId, record: &ShardRecord) -> anyhow::Result<BTreeSet<NodeId>> {
        let fenced = fence(&self.authority, shard, record).await;
        ensure!(
            fenced.len() >= record.barrier(),
            "{} of the shard's nodes could be told its record, {} must be",
            fenced.len(),
            record.barrier()
        );
        Ok(fenced)
    }

    /// Returns when the shard has another record than this one.
    async fn changed(&self, shard: ShardId, record: &ShardRecord) {
        while self.record(shard).is_some_and(|now| now.epoch == record.epoch) {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Deletes what this node has of shards that are others' now, once these hold the same. `staying`: why a shard was
    /// not deleted the last time.
    async fn clean(&self, staying: &mut HashMap<ShardId, String>) {
        let placement = self.authority.placement.load();
        for (shard, record) in (0..).map(ShardId).zip(&placement.shards) {
            if record.moving.is_some() || record.is_writer(&self.authority.me) {
                staying.remove(&shard);
                self.leaving.lock().remove(&shard);
                continue;
            }
            match self.clean_shard(shard, record).await {
                Ok(()) => _ = staying.remove(&shard),
                Err(error) => {
                    let error = format!("{error:#}");
                    if staying.get(&shard) != Some(&error) {
                        tracing::info!(%shard, error, "what is left of a shard stays for now");
                        staying.insert(shard, error);
                    }
                }
            }
        }
    }

    async fn clean_shard(&self, shard: ShardId, record: &ShardRecord) -> anyhow::Result<()> {
        let group = GroupId::from(shard);
        let standing = self.authority.groups.standing(group);
        // The leader first hands the group over to its new voters.
        if standing.as_ref().is_some_and(|standing| standing.leads) {
            return Ok(());
        }
        if self.engine.holds_shard(shard) {
            self.compare(shard, record).await?;
            steps::reach("clean: compared");
            let (engine, placement) = (self.engine.clone(), Arc::clone(&self.authority.placement));
            let epoch = record.epoch;
            // The shard may be on its way back already: then what comes is not to be deleted.
            let drop = move || placement.while_at(shard, epoch, || engine.drop_shard(shard));
            let dropped = tokio::task::spawn_blocking(drop).await?;
            dropped.context("the shard's record has changed meanwhile")??;
            steps::reach("clean: dropped");
            tracing::info!(%shard, "deleted what was left of a shard that others hold");
        }
        if self.may_leave(shard, standing.as_ref()) {
            self.authority.groups.leave(group).await;
        }
        Ok(())
    }

    /// Whether a group that this node votes in, as far as it knows, can do without it: its vote may still be needed to
    /// decide who votes from now on. Nobody tells a node that it votes no more, so after a while it takes that for granted.
    fn may_leave(&self, shard: ShardId, standing: Option<&Standing>) -> bool {
        let votes = standing.is_some_and(|standing| standing.voters.contains(&self.authority.voter));
        let mut leaving = self.leaving.lock();
        let since = leaving.entry(shard).or_insert_with(Instant::now);
        let may = !votes || since.elapsed() >= VOTE_FOR;
        if may {
            leaving.remove(&shard);
        }
        may
    }

    /// Whether the shard's nodes hold the same in all windows that are over.
    async fn compare(&self, shard: ShardId, record: &ShardRecord) -> anyhow::Result<()> {
        let mut first: Option<WindowDigests> = None;
        for node in &record.slots {
            let digests = self.transfers.remote_digests((shard, record.epoch), node, &Windows::all()).await;
            let digests = digests.with_context(|| format!("cannot compare with {node}"))?;
            ensure!(!digests.is_lacking, "the disk of {node} has lost something and is being repaired");
            let mut digests = digests.windows;
            digests.retain(|window, _| is_over(*window));
            match &first {
                None => first = Some(digests),
                Some(first) => {
                    let differing = differing_windows(first, &digests).len();
                    ensure!(differing == 0, "its nodes do not hold the same in {differing} windows yet");
                }
            }
        }
        Ok(())
    }
}

/// Whether nothing new should come into the window that begins there.
fn is_over(window: TimestampMs) -> bool {
    window.0 + WINDOW_MS < clock::unix_ms()
}

/// Makes the nodes of a shard's slots know its record, and says which of them do.
pub(crate) async fn fence(authority: &Authority, shard: ShardId, record: &ShardRecord) -> BTreeSet<NodeId> {
    let push = |node: &NodeId| {
        let (authority, node) = (authority.clone(), node.clone());
        async move {
            if node == authority.me {
                return authority
                    .placement
                    .load()
                    .record(shard)
                    .filter(|mine| mine.epoch >= record.epoch)
                    .map(|_| node);
            }
            match authority.groups.control().push_record(&node, shard, record).await {
                Ok(()) => Some(node),
                Err(error) => {
                    tracing::debug!(%shard, error, "a node was not told a shard's record");
                    None
                }
            }
        }
    };
    let pushes = futures::future::join_all(record.slots.iter().map(push)).await;
    pushes.into_iter().flatten().collect()
}

//! The write path: every batch to all replicas of its shard, done at the quorum.
//!
//! One task per replica sends all batches that the replica gets, in one request; it repeats those that come
//! back for labels, or because the replica held an older record, and reports batch by batch. The request's
//! own task counts the reports ([`QuorumTracker`]). A shard whose record turns out to be out of date is
//! started again under the newer one: acknowledgements under different epochs are never added up.
//!
//! When the request has been answered, or its caller is gone, the tasks still running have
//! [`crate::Settings::background_timeout`] left, within a budget of bytes for each replica.

use std::collections::BTreeMap;
use std::sync::Arc;

use saturn_model::ShardBatch;
use saturn_ring::{Epoch, NodeId, ShardRecord};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::coordinator::Core;
use crate::metrics::{AppendErrorKind, BackgroundDrop, WriteOutcome};
use crate::progress::RESTARTS_MAX;
use crate::quorum::{QuorumTracker, Standing};
use crate::{
    AppendRequest, BatchReply, FencedBatch, LabelSource, MissingShard, PeerError, Peers, ShardWrite,
    WriteError,
};

/// Reports that may wait for the request's own task.
const REPORTS_QUEUED_MAX: usize = 64;

/// What a replica did with one shard's batch.
struct Report {
    index: usize,
    node: NodeId,
    epoch: Epoch,
    outcome: Outcome,
}

enum Outcome {
    Stored,
    Stale(ShardRecord),
    Failed(String),
}

/// One batch on its way to one replica.
struct Item {
    /// Index of the shard in the request.
    index: usize,
    epoch: Epoch,
    batch: Arc<ShardBatch>,
    /// Whether `batch` is the part of the original that carries labels.
    labelled: bool,
    /// Whether the replica was handed this node's placement.
    pushed: bool,
}

/// What every task of a request shares.
struct Shared<P> {
    core: Arc<Core<P>>,
    shards: Arc<[ShardWrite]>,
    labels: Arc<dyn LabelSource>,
    reports: mpsc::Sender<Report>,
    /// Closes when the request has been answered or given up.
    answered: watch::Receiver<()>,
}

impl<P> Clone for Shared<P> {
    fn clone(&self) -> Self {
        Self {
            core: Arc::clone(&self.core),
            shards: Arc::clone(&self.shards),
            labels: Arc::clone(&self.labels),
            reports: self.reports.clone(),
            answered: self.answered.clone(),
        }
    }
}

/// See [`crate::Coordinator::write`].
pub(crate) async fn write<P: Peers>(
    core: &Arc<Core<P>>,
    shards: Vec<ShardWrite>,
    labels: Arc<dyn LabelSource>,
) -> Result<(), WriteError> {
    let started = Instant::now();
    let result = write_shards(core, shards.into(), labels).await;
    core.metrics.write_duration.0.observe(started.elapsed().as_secs_f64());
    let outcome = if result.is_ok() { WriteOutcome::Acked } else { WriteOutcome::NoQuorum };
    core.metrics.write(outcome);
    result
}

async fn write_shards<P: Peers>(
    core: &Arc<Core<P>>,
    shards: Arc<[ShardWrite]>,
    labels: Arc<dyn LabelSource>,
) -> Result<(), WriteError> {
    let deadline = Instant::now() + core.settings.write_timeout;
    let placement = core.placement.load();
    let mut records = Vec::with_capacity(shards.len());
    for write in &*shards {
        let shard = write.batch.shard;
        let Some(record) = placement.record(shard) else {
            let missing = MissingShard { shard, reason: "there is no such shard".into() };
            return Err(WriteError::NoQuorum { missing: vec![missing] });
        };
        records.push(record);
    }
    let mut tracker = QuorumTracker::new(records.iter().copied());
    let (reports, mut reported) = mpsc::channel(REPORTS_QUEUED_MAX);
    // Dropped when this future ends, however it ends: the tasks' sign that the request is answered.
    let (_unanswered, answered) = watch::channel(());
    let shared = Shared { core: Arc::clone(core), shards, labels, reports, answered };
    shared.send(records.into_iter().enumerate());
    let mut restarts = vec![0; shared.shards.len()];
    let mut silence = "has not answered yet".to_owned();
    while tracker.standing() == Standing::Pending {
        let report = tokio::select! {
            report = reported.recv() => report,
            () = tokio::time::sleep_until(deadline) => None,
        };
        let Some(Report { index, node, epoch, outcome }) = report else {
            silence = format!("no answer within {:?}", core.settings.write_timeout);
            break;
        };
        if epoch != tracker.epoch(index) {
            continue; // About an attempt under an older record.
        }
        match outcome {
            Outcome::Stored => tracker.stored(index, &node),
            Outcome::Failed(reason) => tracker.failed(index, &node, reason),
            Outcome::Stale(record) if restarts[index] < RESTARTS_MAX && record.epoch > epoch => {
                restarts[index] += 1;
                tracker.restart(index, &record);
                shared.send([(index, &record)]);
            }
            Outcome::Stale(_) => {
                tracker.failed(index, &node, "the shard's record keeps changing".into());
            }
        }
    }
    if tracker.standing() == Standing::Acked {
        return Ok(());
    }
    let missing = tracker.missing(&silence).into_iter();
    let name =
        |(index, reason): (usize, String)| MissingShard { shard: shared.shards[index].batch.shard, reason };
    Err(WriteError::NoQuorum { missing: missing.map(name).collect() })
}

impl<P: Peers> Shared<P> {
    /// Sends shards' batches to all nodes of their records, in one task per node.
    fn send<'a>(&self, records: impl IntoIterator<Item = (usize, &'a ShardRecord)>) {
        let mut by_node: BTreeMap<&NodeId, Vec<Item>> = BTreeMap::new();
        for (index, record) in records {
            for node in record.writers() {
                let batch = Arc::clone(&self.shards[index].batch);
                let item = Item { index, epoch: record.epoch, batch, labelled: false, pushed: false };
                by_node.entry(node).or_default().push(item);
            }
        }
        for (node, items) in by_node {
            let (shared, node) = (self.clone(), node.clone());
            tokio::spawn(async move {
                let bytes = items.iter().map(|item| batch_bytes(&item.batch)).sum();
                tokio::select! {
                    () = shared.deliver(&node, items) => {}
                    () = shared.limit_background(&node, bytes) => {}
                }
            });
        }
    }

    /// Ends when the replica has had its time after the request was answered.
    async fn limit_background(&self, node: &NodeId, bytes: usize) {
        // Nothing is ever sent: this waits for the channel to close.
        while self.answered.clone().changed().await.is_ok() {}
        let Some(_permit) = self.core.background_permit(node, bytes) else {
            return self.core.metrics.background_drop(BackgroundDrop::Budget);
        };
        tokio::time::sleep(self.core.settings.background_timeout).await;
        self.core.metrics.background_drop(BackgroundDrop::Timeout);
    }

    /// Sends batches to one replica until it has stored or refused each. Ends: a batch is repeated once with
    /// labels and once after the replica was handed the placement, no more.
    async fn deliver(&self, node: &NodeId, mut items: Vec<Item>) {
        while !items.is_empty() {
            let fence = |item: &Item| FencedBatch { epoch: item.epoch, batch: Arc::clone(&item.batch) };
            let request = AppendRequest { batches: items.iter().map(fence).collect() };
            let replies = match self.core.peers.append(node, request).await {
                Ok(replies) if replies.len() == items.len() => replies,
                Ok(_) => {
                    let error = PeerError::Failed("its answer does not fit the request".into());
                    return self.fail(node, items, &error).await;
                }
                Err(error) => return self.fail(node, items, &error).await,
            };
            let mut behind = Vec::new();
            let mut again = Vec::new();
            for (item, reply) in items.into_iter().zip(replies) {
                match reply {
                    BatchReply::Stored { unknown } if !unknown.is_empty() && !item.labelled => {
                        match self.with_labels(item, unknown).await {
                            Ok(item) => again.push(item),
                            Err((item, reason)) => self.report(node, &item, Outcome::Failed(reason)).await,
                        }
                    }
                    BatchReply::Behind if !item.pushed => {
                        self.core.metrics.append_error(AppendErrorKind::Behind);
                        behind.push(Item { pushed: true, ..item });
                    }
                    reply => {
                        let outcome = self.judge(&item, reply).await;
                        self.report(node, &item, outcome).await;
                    }
                }
            }
            if !behind.is_empty() {
                let placement = self.core.placement.load();
                match self.core.peers.push_placement(node, &placement).await {
                    Ok(()) => again.append(&mut behind),
                    Err(error) => self.fail(node, behind, &error).await,
                }
            }
            items = again;
        }
    }

    /// What a final reply means.
    async fn judge(&self, item: &Item, reply: BatchReply) -> Outcome {
        let (kind, outcome) = match reply {
            BatchReply::Stored { unknown } if unknown.is_empty() => return Outcome::Stored,
            BatchReply::Stored { .. } => {
                let reason = "asks for labels that it was given".to_owned();
                (AppendErrorKind::Failed, Outcome::Failed(reason))
            }
            BatchReply::Stale(record) => {
                let adopted = self.core.adopt(item.batch.shard, record.clone()).await;
                let outcome = adopted.map_or_else(Outcome::Failed, |_| Outcome::Stale(record));
                (AppendErrorKind::Stale, outcome)
            }
            BatchReply::Behind => {
                let reason = "holds an older record of the shard, even after it was handed this one";
                (AppendErrorKind::Behind, Outcome::Failed(reason.to_owned()))
            }
            BatchReply::NotOwner => {
                (AppendErrorKind::NotOwner, Outcome::Failed("does not own the shard".to_owned()))
            }
            BatchReply::Failed(reason) => (AppendErrorKind::Failed, Outcome::Failed(reason)),
        };
        self.core.metrics.append_error(kind);
        outcome
    }

    /// The part of the batch that the replica wants again, now with labels. Walking a large request's bytes
    /// takes a while, hence the thread.
    async fn with_labels(&self, item: Item, unknown: Vec<u32>) -> Result<Item, (Item, String)> {
        let series = item.batch.series_count();
        let ascending = unknown.windows(2).all(|pair| pair[0] < pair[1]);
        if !ascending || unknown.last().is_some_and(|last| *last as usize >= series) {
            return Err((item, "asks for labels of series that the batch does not have".to_owned()));
        }
        self.core.metrics.resent_series.inc_by(unknown.len() as u64);
        let (batch, index) = (Arc::clone(&item.batch), item.index);
        let (shards, labels) = (Arc::clone(&self.shards), Arc::clone(&self.labels));
        let subset = tokio::task::spawn_blocking(move || {
            batch.subset_with_labels(&unknown, |i| labels.labels(shards[index].series[i as usize]))
        });
        match subset.await {
            Ok(batch) => Ok(Item { batch: Arc::new(batch), labelled: true, ..item }),
            Err(error) => Err((item, format!("its labels were not found: {error}"))),
        }
    }

    async fn fail(&self, node: &NodeId, items: Vec<Item>, error: &PeerError) {
        self.core.metrics.append_error(match error {
            PeerError::Unreachable(_) => AppendErrorKind::Unreachable,
            PeerError::Timeout => AppendErrorKind::Timeout,
            PeerError::Overloaded(_) => AppendErrorKind::Overloaded,
            PeerError::Failed(_) | PeerError::OverBudget { .. } => AppendErrorKind::Failed,
        });
        tracing::debug!(%node, %error, batches = items.len(), "a replica did not store what it was sent");
        for item in items {
            self.report(node, &item, Outcome::Failed(error.to_string())).await;
        }
    }

    async fn report(&self, node: &NodeId, item: &Item, outcome: Outcome) {
        let report = Report { index: item.index, node: node.clone(), epoch: item.epoch, outcome };
        // Nobody listens any more once the request is answered.
        let _ = self.reports.send(report).await;
    }
}

/// About how much memory a batch takes.
fn batch_bytes(batch: &ShardBatch) -> usize {
    let samples = batch.sample_count() * 16 + batch.histograms.size_bytes();
    samples + batch.notes_bytes() + batch.series_count() * 20
}

//! The read path: a quorum of every shard's replicas is asked, their answers are merged.
//!
//! [`ReadProgress`] decides whom to ask for what; this module sends, waits, and hedges. One request per
//! replica covers all shards that it is asked for; its answers come shard by shard, and several for one shard become
//! one at once, so that no more copies are held than must be. When the read has its answers, or its caller is gone,
//! the requests still under way are dropped.

use std::collections::HashMap;
use std::sync::Arc;

use futures::future::BoxFuture;
use saturn_model::{OverBudget, SampleBudget, Selection, SeriesColumns, ShardId};
use saturn_ring::{Epoch, NodeId, Subset};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::coordinator::Core;
use crate::progress::{Ask, ReadProgress};
use crate::taking::{SelectSink, Taking};
use crate::{
    Completeness, LabelItems, LabelsAnswer, LabelsQuestion, LabelsRequest, MissingShard, PeerError, Peers,
    ReadAnswer, ReadError, SelectRequest, ShardRefusal, ShardReply, merge,
};

/// Shards' answers of one replica, and of all, that wait to be looked at.
const REPLIES_WAITING_MAX: usize = 2;

/// A call to a replica for some shards, whose replies go to the sender.
type Call<T> = dyn Fn(
        NodeId,
        Vec<(ShardId, Epoch)>,
        mpsc::Sender<ShardReply<T>>,
    ) -> BoxFuture<'static, Result<(), PeerError>>
    + Send
    + Sync;

/// Makes one answer for a shard of several.
type Combine<T> = dyn Fn(ShardId, Vec<T>) -> Result<T, OverBudget> + Send + Sync;

/// What is asked of the replicas.
struct Question<T> {
    call: Arc<Call<T>>,
    /// `None`: several answers for a shard are kept as they are.
    combine: Option<Arc<Combine<T>>>,
    /// Which shards are asked, and the answer of one that is not.
    shards: Subset,
    nothing: fn() -> T,
}

/// News of a call.
enum Event<T> {
    Reply {
        node: NodeId,
        epoch: Epoch,
        reply: ShardReply<T>,
    },
    /// It is over, and these shards got no reply.
    Ended {
        node: NodeId,
        silent: HashMap<ShardId, Epoch>,
        error: Option<PeerError>,
    },
}

/// Tells replicas that still send that the read is over.
struct StopOnDrop(Arc<Taking>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// Samples of the selected series, charged while they come.
pub(crate) async fn select<P: Peers>(
    core: &Arc<Core<P>>,
    selection: &Selection,
    series_max: usize,
    budget: &Arc<SampleBudget>,
) -> Result<ReadAnswer<Vec<SeriesColumns>>, ReadError> {
    let taking = Arc::new(Taking::new(Arc::clone(budget)));
    let _stop = StopOnDrop(Arc::clone(&taking));
    let shards = core.shards_read(&selection.tenant);
    let (peers, selection, taken) = (Arc::clone(&core.peers), selection.clone(), Arc::clone(&taking));
    let call = move |node: NodeId, shards, replies| {
        let (peers, sink) = (Arc::clone(&peers), SelectSink::new(Arc::clone(&taken), replies));
        let request = SelectRequest { selection: selection.clone(), shards, series_max };
        Box::pin(async move { peers.select(&node, request, sink).await }) as BoxFuture<'static, _>
    };
    let combine = move |shard, answers| {
        let merged = merge::merge_series(answers);
        taking.hold(shard, merged.iter().map(SeriesColumns::weight).sum())?;
        Ok(merged)
    };
    let (call, combine) = (Arc::new(call), Some(Arc::new(combine) as Arc<Combine<_>>));
    read(core, Question { call, combine, shards, nothing: Vec::new }, merge::join_series).await
}

/// Something about the labels of the selected series, at most `limit` items of each shard; `merge` makes one
/// answer of many.
pub(crate) async fn labels<P: Peers, R: Send + 'static>(
    core: &Arc<Core<P>>,
    selection: &Selection,
    (question, limit): (LabelsQuestion, usize),
    merge: fn(Vec<LabelsAnswer>) -> R,
) -> Result<ReadAnswer<R>, ReadError> {
    let shards = core.shards_read(&selection.tenant);
    let (peers, selection) = (Arc::clone(&core.peers), selection.clone());
    let call = move |node: NodeId, shards, replies: mpsc::Sender<_>| {
        let peers = Arc::clone(&peers);
        let (selection, question) = (selection.clone(), question.clone());
        let request = LabelsRequest { selection, question, shards, limit };
        Box::pin(async move {
            for reply in peers.labels(&node, request).await? {
                // Nobody listens any more once the read has its answers.
                let _ = replies.send(reply).await;
            }
            Ok(())
        }) as BoxFuture<'static, _>
    };
    let nothing = || LabelsAnswer { items: LabelItems::Texts(Vec::new()), truncated: false };
    read(core, Question { call: Arc::new(call), combine: None, shards, nothing }, merge).await
}

async fn read<P: Peers, T: Send + 'static, R: Send + 'static>(
    core: &Arc<Core<P>>,
    question: Question<T>,
    merge: fn(Vec<T>) -> R,
) -> Result<ReadAnswer<R>, ReadError> {
    let started = Instant::now();
    core.metrics.reads.inc();
    let (answers, missing) = gather(core, &question, started).await?;
    core.metrics.read_duration.0.observe(started.elapsed().as_secs_f64());
    let completeness = if missing.is_empty() {
        Completeness::Complete
    } else {
        core.metrics.incomplete_reads.inc();
        Completeness::Partial { missing }
    };
    // Millions of samples take a while, hence the thread.
    let value = tokio::task::spawn_blocking(move || merge(answers)).await;
    let value = value.map_err(|e| ReadError::Internal(e.to_string()))?;
    Ok(ReadAnswer { value, completeness })
}

/// Asks until every shard has its quorum, or nobody is left to ask, or time is up.
async fn gather<P: Peers, T: Send + 'static>(
    core: &Arc<Core<P>>,
    question: &Question<T>,
    started: Instant,
) -> Result<(Vec<T>, Vec<MissingShard>), ReadError> {
    let settings = &core.settings;
    let (hedge_at, deadline) = (started + settings.hedge_delay, started + settings.read_timeout);
    let placement = core.placement.load();
    let mut progress = ReadProgress::new(&placement, &core.me, |node| core.peers.is_alive(node));
    // Other shards never had series of this tenant: that is their answer, whoever would give it.
    for (shard, record) in (0..).map(ShardId).zip(&placement.shards) {
        if !question.shards.contains(shard) {
            record.slots.iter().for_each(|_| progress.answered(shard, record.epoch, (question.nothing)()));
        }
    }
    let (events, mut news) = mpsc::channel(REPLIES_WAITING_MAX);
    let mut requests: JoinSet<()> = JoinSet::new();
    let send = |requests: &mut JoinSet<()>, ask| {
        requests.spawn(ask_replica(Arc::clone(core), Arc::clone(&question.call), ask, events.clone()));
    };
    let mut hedged = false;
    loop {
        for ask in progress.ask_needed() {
            send(&mut requests, ask);
        }
        if progress.is_done() {
            break;
        }
        tokio::select! {
            event = news.recv() => {
                let event = event.expect("this function holds a sender");
                take(core, question, &mut progress, event).await?;
            }
            Some(ended) = requests.join_next() => {
                ended.map_err(|error| ReadError::Internal(error.to_string()))?;
            }
            () = tokio::time::sleep_until(hedge_at), if !hedged => {
                hedged = true;
                let spare = progress.ask_spare();
                if !spare.is_empty() {
                    core.metrics.hedged_reads.inc();
                }
                for ask in spare {
                    send(&mut requests, ask);
                }
            }
            () = tokio::time::sleep_until(deadline) => break,
        }
    }
    Ok(progress.finish(&format!("no answer within {:?}", settings.read_timeout)))
}

/// Asks one replica. One that is behind is handed the placement and asked once more.
async fn ask_replica<P: Peers, T: Send + 'static>(
    core: Arc<Core<P>>,
    call: Arc<Call<T>>,
    Ask { node, shards }: Ask,
    events: mpsc::Sender<Event<T>>,
) {
    let mut silent: HashMap<ShardId, Epoch> = shards.iter().copied().collect();
    let mut wanted = shards;
    let mut pushed = false;
    let error = loop {
        let (replies, mut arriving) = mpsc::channel(REPLIES_WAITING_MAX);
        let calling = call(node.clone(), wanted, replies);
        let forwarding = async {
            let mut behind = Vec::new();
            while let Some(reply) = arriving.recv().await {
                let Some(epoch) = silent.get(&reply.shard).copied() else { continue };
                if !pushed && matches!(reply.result, Err(ShardRefusal::Behind)) {
                    behind.push((reply.shard, epoch));
                    continue;
                }
                silent.remove(&reply.shard);
                // Nobody listens any more once the read has its answers.
                let _ = events.send(Event::Reply { node: node.clone(), epoch, reply }).await;
            }
            behind
        };
        let (result, behind) = tokio::join!(calling, forwarding);
        if behind.is_empty() {
            break result.err();
        }
        pushed = true;
        if core.peers.push_placement(&node, &core.placement.load()).await.is_err() {
            for (shard, epoch) in behind {
                silent.remove(&shard);
                let reply = ShardReply { shard, result: Err(ShardRefusal::Behind) };
                let _ = events.send(Event::Reply { node: node.clone(), epoch, reply }).await;
            }
            break result.err();
        }
        wanted = behind;
    };
    let _ = events.send(Event::Ended { node, silent, error }).await;
}

/// Tells the progress what a replica said, and adopts what it knows better.
async fn take<P: Peers, T: Send + 'static>(
    core: &Core<P>,
    question: &Question<T>,
    progress: &mut ReadProgress<T>,
    event: Event<T>,
) -> Result<(), ReadError> {
    let (node, epoch, ShardReply { shard, result }) = match event {
        Event::Reply { node, epoch, reply } => (node, epoch, reply),
        Event::Ended { error: Some(PeerError::OverBudget { samples_max }), .. } => {
            return Err(OverBudget { samples_max }.into());
        }
        Event::Ended { node, silent, error } => {
            if let Some(error) = &error {
                tracing::debug!(%node, %error, shards = silent.len(), "a replica did not answer a read");
            }
            let left_out = || "left the shard out of its answer".to_owned();
            let reason = error.map_or_else(left_out, |error| error.to_string());
            silent.into_iter().for_each(|(shard, epoch)| progress.failed(shard, epoch, &node, &reason));
            return Ok(());
        }
    };
    match result {
        Ok(answer) => {
            progress.answered(shard, epoch, answer);
            if let Some(combine) = &question.combine
                && let Some(several) = progress.take_several(shard)
            {
                let combine = Arc::clone(combine);
                let one = tokio::task::spawn_blocking(move || combine(shard, several)).await;
                progress.put_back(shard, one.map_err(|e| ReadError::Internal(e.to_string()))??);
            }
        }
        Err(ShardRefusal::TooManySeries(reason)) => return Err(ReadError::TooManySeries { reason }),
        Err(ShardRefusal::Stale(record)) => {
            let failure = match core.adopt(shard, record.clone()).await {
                Ok(_) => "the shard's record keeps changing".to_owned(),
                Err(reason) => reason,
            };
            let is_alive = |node: &NodeId| core.peers.is_alive(node);
            if !progress.restart(shard, &record, &core.me, is_alive) {
                progress.failed(shard, epoch, &node, &failure);
            }
        }
        Err(refusal) => progress.failed(shard, epoch, &node, &refusal.to_string()),
    }
    Ok(())
}

//! The read path: a quorum of every shard's replicas is asked, their answers are merged.
//!
//! [`ReadProgress`] decides whom to ask for what; this module sends, waits, and hedges. One request per
//! replica covers all shards that it is asked for. When the read has its answers, or its caller is gone,
//! the requests still under way are dropped.

use std::collections::HashMap;
use std::sync::Arc;

use futures::future::BoxFuture;
use saturn_model::{Selection, SeriesColumns, ShardId};
use saturn_ring::{Epoch, NodeId};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::coordinator::Core;
use crate::progress::{Ask, ReadProgress};
use crate::{
    Completeness, LabelsAnswer, LabelsQuestion, LabelsRequest, MissingShard, PeerError, Peers, ReadAnswer,
    ReadError, SelectRequest, ShardRefusal, ShardReply,
};

/// A call to a replica for some shards.
type Call<T> = dyn Fn(NodeId, Vec<(ShardId, Epoch)>) -> BoxFuture<'static, Result<Vec<ShardReply<T>>, PeerError>>
    + Send
    + Sync;

/// What came of one [`Ask`].
struct Answered<T> {
    ask: Ask,
    result: Result<Vec<ShardReply<T>>, PeerError>,
}

/// Samples of the selected series; `merge` makes one answer of many.
pub(crate) async fn select<P: Peers, R: Send + 'static>(
    core: &Arc<Core<P>>,
    selection: &Selection,
    series_max: usize,
    merge: fn(Vec<Vec<SeriesColumns>>) -> R,
) -> Result<ReadAnswer<R>, ReadError> {
    let (peers, selection) = (Arc::clone(&core.peers), selection.clone());
    let call = move |node: NodeId, shards| {
        let peers = Arc::clone(&peers);
        let request = SelectRequest { selection: selection.clone(), shards, series_max };
        Box::pin(async move { peers.select(&node, request).await }) as BoxFuture<'static, _>
    };
    read(core, Arc::new(call), merge).await
}

/// Something about the labels of the selected series, at most `limit` items of each shard; `merge` makes one answer of many.
pub(crate) async fn labels<P: Peers, R: Send + 'static>(
    core: &Arc<Core<P>>,
    selection: &Selection,
    (question, limit): (LabelsQuestion, usize),
    merge: fn(Vec<LabelsAnswer>) -> R,
) -> Result<ReadAnswer<R>, ReadError> {
    let (peers, selection) = (Arc::clone(&core.peers), selection.clone());
    let call = move |node: NodeId, shards| {
        let peers = Arc::clone(&peers);
        let (selection, question) = (selection.clone(), question.clone());
        let request = LabelsRequest { selection, question, shards, limit };
        Box::pin(async move { peers.labels(&node, request).await }) as BoxFuture<'static, _>
    };
    read(core, Arc::new(call), merge).await
}

async fn read<P: Peers, T: Send + 'static, R: Send + 'static>(
    core: &Arc<Core<P>>,
    call: Arc<Call<T>>,
    merge: fn(Vec<T>) -> R,
) -> Result<ReadAnswer<R>, ReadError> {
    let started = Instant::now();
    core.metrics.reads.inc();
    let (answers, missing) = gather(core, call, started).await?;
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
    call: Arc<Call<T>>,
    started: Instant,
) -> Result<(Vec<T>, Vec<MissingShard>), ReadError> {
    let settings = &core.settings;
    let (hedge_at, deadline) = (started + settings.hedge_delay, started + settings.read_timeout);
    let placement = core.placement.load();
    let mut progress = ReadProgress::new(&placement, &core.me, |node| core.peers.is_alive(node));
    let mut requests: JoinSet<Answered<T>> = JoinSet::new();
    let mut hedged = false;
    loop {
        for ask in progress.ask_needed() {
            requests.spawn(ask_replica(Arc::clone(core), Arc::clone(&call), ask));
        }
        if progress.is_done() {
            break;
        }
        tokio::select! {
            answered = requests.join_next() => match answered {
                Some(Ok(answered)) => take(core, &mut progress, answered).await?,
                Some(Err(error)) => return Err(ReadError::Internal(error.to_string())),
                None => break,
            },
            () = tokio::time::sleep_until(hedge_at), if !hedged => {
                hedged = true;
                let spare = progress.ask_spare();
                if !spare.is_empty() {
                    core.metrics.hedged_reads.inc();
                }
                for ask in spare {
                    requests.spawn(ask_replica(Arc::clone(core), Arc::clone(&call), ask));
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
    ask: Ask,
) -> Answered<T> {
    let mut result = call(ask.node.clone(), ask.shards.clone()).await;
    if let Ok(replies) = &mut result {
        let is_behind = |reply: &ShardReply<T>| matches!(reply.result, Err(ShardRefusal::Behind));
        let behind: Vec<ShardId> = replies.iter().filter(|r| is_behind(r)).map(|r| r.shard).collect();
        if !behind.is_empty() {
            let placement = core.placement.load();
            let pushed = core.peers.push_placement(&ask.node, &placement).await;
            let shards = ask.shards.iter().filter(|(shard, _)| behind.contains(shard)).copied().collect();
            if pushed.is_ok()
                && let Ok(again) = call(ask.node.clone(), shards).await
            {
                replies.retain(|reply| !is_behind(reply));
                replies.extend(again);
            }
        }
    }
    Answered { ask, result }
}

/// Tells the progress what a replica said, and adopts what it knows better.
async fn take<P: Peers, T>(
    core: &Core<P>,
    progress: &mut ReadProgress<T>,
    answered: Answered<T>,
) -> Result<(), ReadError> {
    let Answered { ask: Ask { node, shards }, result } = answered;
    let (mut replies, silence) = match result {
        Ok(replies) => {
            let by_shard = replies.into_iter().map(|reply| (reply.shard, reply.result));
            (by_shard.collect::<HashMap<_, _>>(), "left the shard out of its answer".to_owned())
        }
        Err(error) => {
            tracing::debug!(%node, %error, shards = shards.len(), "a replica did not answer a read");
            (HashMap::new(), error.to_string())
        }
    };
    for (shard, epoch) in shards {
        match replies.remove(&shard) {
            Some(Ok(answer)) => progress.answered(shard, epoch, answer),
            Some(Err(ShardRefusal::TooManySeries(reason))) => {
                return Err(ReadError::TooManySeries { reason });
            }
            Some(Err(ShardRefusal::Stale(record))) => {
                let failure = match core.adopt(shard, record.clone()).await {
                    Ok(_) => "the shard's record keeps changing".to_owned(),
                    Err(reason) => reason,
                };
                let is_alive = |node: &NodeId| core.peers.is_alive(node);
                if !progress.restart(shard, &record, &core.me, is_alive) {
                    progress.failed(shard, epoch, &node, &failure);
                }
            }
            Some(Err(refusal)) => progress.failed(shard, epoch, &node, &refusal.to_string()),
            None => progress.failed(shard, epoch, &node, &silence),
        }
    }
    Ok(())
}

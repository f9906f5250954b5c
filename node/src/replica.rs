//! This node as one of a shard's replicas: fencing, then the storage engine.
//!
//! Local requests and those of other nodes come through here alike, so that both obey the same rule: a
//! request that carries another epoch than the one this replica holds is refused, never served.

use std::ops::ControlFlow;
use std::sync::Arc;

use saturn_model::{Cardinality, MetricMetadata, SeriesColumns, ShardId};
use saturn_replication::{
    AppendRequest, BatchReply, CardinalityReply, CardinalityRequest, LabelItems, LabelsAnswer,
    LabelsQuestion, LabelsRequest, PeerError, PlacementHandle, SelectRequest, SelectSink, ShardRefusal,
    ShardReply,
};
use saturn_ring::{Access, Epoch, Fence, NodeId, ShardRecord};
use saturn_storage::{Engine, Listed, ReadLimits, StorageError};
use tokio::sync::{OwnedRwLockWriteGuard, RwLock};

use crate::durability::Lacking;

/// Most bytes of samples with which one shard answers a read: 64 Mi samples.
const SHARD_BYTES_MAX: u64 = 1 << 30;

/// The replica side of this node.
#[derive(Clone)]
pub(crate) struct Replica {
    pub(crate) id: NodeId,
    pub(crate) engine: Engine,
    pub(crate) placement: Arc<PlacementHandle>,
    /// What this node's disk has lost and is not repaired yet.
    pub(crate) lacking: Arc<Lacking>,
    /// Held shared from an append's check of epochs until its samples are stored.
    admission: Admission,
}

/// The door for appends. Cloning shares it.
#[derive(Clone, Default)]
pub(crate) struct Admission(Arc<RwLock<()>>);

impl Admission {
    /// Returns when every append is over that was let in, and lets none in until what is returned is dropped. Blocks.
    pub(crate) fn close(&self) -> OwnedRwLockWriteGuard<()> {
        tokio::runtime::Handle::current().block_on(Arc::clone(&self.0).write_owned())
    }
}

impl Replica {
    pub(crate) fn new(
        id: NodeId,
        engine: Engine,
        placement: Arc<PlacementHandle>,
        admission: Admission,
        lacking: Arc<Lacking>,
    ) -> Self {
        Self { id, engine, placement, lacking, admission }
    }

    /// Returns when every append is over that was admitted under an older record. Blocks.
    pub(crate) fn settle(&self) {
        drop(self.admission.close());
    }

    fn check(&self, shard: ShardId, epoch: Epoch, access: Access) -> Result<(), ShardRefusal> {
        let placement = self.placement.load();
        match saturn_ring::fence(placement.record(shard), &self.id, epoch, access) {
            Fence::Current if access == Access::Read => self.check_whole(shard),
            Fence::Current => Ok(()),
            Fence::Stale(record) => Err(ShardRefusal::Stale(record)),
            Fence::Behind => Err(ShardRefusal::Behind),
            Fence::NotOwner => Err(ShardRefusal::NotOwner),
        }
    }

    /// Refuses if this node may lack what it had acknowledged of the shard.
    pub(crate) fn check_whole(&self, shard: ShardId) -> Result<(), ShardRefusal> {
        if self.lacking.contains(shard) {
            let text =
                "its disk has lost what it had acknowledged, and is being repaired from the other replicas";
            return Err(ShardRefusal::Failed(text.into()));
        }
        Ok(())
    }

    /// As [`Replica::check`], for those who take the shard from here: only a node that fills a slot, and that has
    /// stored exactly this epoch, may be their source.
    pub(crate) fn check_source(&self, shard: ShardId, epoch: Epoch) -> Result<(), ShardRefusal> {
        self.check(shard, epoch, Access::Write)?;
        let placement = self.placement.load();
        match placement.record(shard) {
            Some(record) if record.slots.contains(&self.id) => Ok(()),
            _ => Err(ShardRefusal::NotOwner),
        }
    }

    /// Stores the batches whose epoch is current; answers when they are durable.
    pub(crate) async fn append(&self, request: AppendRequest) -> Vec<BatchReply> {
        let _admitted = self.admission.0.read().await;
        let mut replies = Vec::with_capacity(request.batches.len());
        let mut admitted = Vec::with_capacity(request.batches.len());
        for fenced in request.batches {
            match self.check(fenced.batch.shard, fenced.epoch, Access::Write) {
                Ok(()) => {
                    replies.push(None);
                    admitted.push(fenced.batch);
                }
                Err(refusal) => replies.push(Some(refusal.into())),
            }
        }
        let stored = self.engine.append(admitted).await;
        let mut outcomes = match stored {
            Ok(outcomes) => Ok(outcomes.into_iter()),
            Err(e) => Err(e.to_string()),
        };
        let stored_reply = || match &mut outcomes {
            Ok(outcomes) => {
                let outcome = outcomes.next().expect("the engine answers each batch");
                BatchReply::Stored { unknown: outcome.unknown }
            }
            Err(text) => BatchReply::Failed(text.clone()),
        };
        let mut stored_reply = stored_reply;
        replies.into_iter().map(|reply| reply.unwrap_or_else(&mut stored_reply)).collect()
    }

    /// Reads shard after shard, as long as the sink wants more. Blocking work: runs off the async threads.
    pub(crate) async fn select(&self, request: SelectRequest, sink: SelectSink) -> Result<(), PeerError> {
        let replica = self.clone();
        let read = tokio::task::spawn_blocking(move || {
            for (shard, epoch) in &request.shards {
                let result = replica.collect_shard((*shard, *epoch), &request, &sink)?;
                sink.reply_blocking(ShardReply { shard: *shard, result });
            }
            Ok(())
        });
        read.await.unwrap_or_else(|e| Err(PeerError::Failed(format!("read task failed: {e}"))))
    }

    fn collect_shard(
        &self,
        shard: (ShardId, Epoch),
        request: &SelectRequest,
        sink: &SelectSink,
    ) -> Result<Result<Vec<SeriesColumns>, ShardRefusal>, PeerError> {
        let (mut found, mut samples) = (Vec::new(), 0);
        let stream = self.check(shard.0, shard.1, Access::Read).and_then(|()| {
            self.engine.select_stream(shard.0, &request.selection, limits(request)).map_err(refusal_of)
        });
        let stream = match stream {
            Ok(stream) => stream,
            Err(refusal) => return Ok(Err(refusal)),
        };
        for series in stream {
            match series {
                Ok(series) => {
                    samples += series.weight();
                    sink.hold(shard.0, samples)?;
                    found.push(series);
                }
                Err(error) => return Ok(Err(refusal_of(error))),
            }
        }
        Ok(self.check(shard.0, shard.1, Access::Read).map(|()| found))
    }

    /// Reads one shard, and gives series after series to `each`, until it does not want more. Blocks. What was
    /// given does not count if this returns a refusal: as when the record has changed while it was read, since this
    /// node may have deleted its copy then.
    pub(crate) fn read_shard(
        &self,
        (shard, epoch): (ShardId, Epoch),
        request: &SelectRequest,
        each: impl FnMut(&SeriesColumns) -> ControlFlow<()>,
    ) -> Result<(), ShardRefusal> {
        self.check(shard, epoch, Access::Read)?;
        self.engine.for_each_series(shard, &request.selection, limits(request), each).map_err(refusal_of)?;
        self.check(shard, epoch, Access::Read)
    }

    /// All shards, with the epochs of their records, if this node is the only one that has any of them.
    pub(crate) fn shards_if_alone(&self) -> Option<Vec<(ShardId, Epoch)>> {
        let placement = self.placement.load();
        let mine = |record: &ShardRecord| record.readers().eq([&self.id]);
        let numbers = (0..placement.shard_count()).map(ShardId);
        placement
            .shards
            .iter()
            .all(mine)
            .then(|| numbers.zip(&placement.shards).map(|(shard, record)| (shard, record.epoch)).collect())
    }

    /// Reads label names, values or sets of whole shards, off the async threads.
    pub(crate) async fn labels(&self, request: LabelsRequest) -> Vec<ShardReply<LabelsAnswer>> {
        let replica = self.clone();
        let shards = request.shards.clone();
        let read = tokio::task::spawn_blocking(move || {
            let read = |shard, epoch| {
                replica.check(shard, epoch, Access::Read)?;
                let answer = replica.labels_of_shard(shard, &request).map_err(refusal_of)?;
                replica.check(shard, epoch, Access::Read).map(|()| answer)
            };
            let answer = |(shard, epoch): &(ShardId, Epoch)| ShardReply {
                shard: *shard,
                result: read(*shard, *epoch),
            };
            request.shards.iter().map(answer).collect()
        });
        read.await.unwrap_or_else(|e| all_failed(&shards, &e))
    }

    /// Gives back the space of deleted samples. Blocking work: runs off the async threads.
    pub(crate) async fn clean_tombstones(&self) -> Result<(), PeerError> {
        let engine = self.engine.clone();
        let cleaned = tokio::task::spawn_blocking(move || engine.clean_tombstones()).await;
        let failed = |error: &dyn std::error::Error| PeerError::Failed(error.to_string());
        cleaned.map_err(|e| failed(&e))?.map_err(|e| failed(&e))
    }

    /// Counts the series in memory of the shards whose epoch is current, off the async threads.
    pub(crate) async fn cardinality(&self, request: CardinalityRequest) -> CardinalityReply {
        let mut refused = Vec::new();
        let mut shards = Vec::with_capacity(request.shards.len());
        for (shard, epoch) in &request.shards {
            match self.check(*shard, *epoch, Access::Read) {
                Ok(()) => shards.push(*shard),
                Err(refusal) => refused.push((*shard, refusal.to_string())),
            }
        }
        let engine = self.engine.clone();
        let (counting, tenant) = (shards.clone(), request.tenant);
        let counted =
            tokio::task::spawn_blocking(move || engine.cardinality(&tenant, &counting, request.top)).await;
        let counted = counted.unwrap_or_else(|error| {
            let reason = format!("the counting task failed: {error}");
            refused.extend(shards.into_iter().map(|shard| (shard, reason.clone())));
            Cardinality::default()
        });
        CardinalityReply { counted, refused }
    }

    fn labels_of_shard(&self, shard: ShardId, request: &LabelsRequest) -> Result<LabelsAnswer, StorageError> {
        let (engine, selection, limit) = (&self.engine, &request.selection, request.limit);
        let texts = |listed: Listed<String>| LabelsAnswer {
            items: LabelItems::Texts(listed.items),
            truncated: listed.truncated,
        };
        let metadata = |listed: Listed<MetricMetadata>| LabelsAnswer {
            items: LabelItems::Metadata(listed.items),
            truncated: listed.truncated,
        };
        Ok(match &request.question {
            LabelsQuestion::Names => texts(engine.label_names(shard, selection, limit)?),
            LabelsQuestion::ValuesOf(name) => texts(engine.label_values(shard, selection, name, limit)?),
            LabelsQuestion::Series => {
                let Listed { items, truncated } = engine.series(shard, selection, limit)?;
                LabelsAnswer { items: LabelItems::Series(items), truncated }
            }
            LabelsQuestion::Exemplars => {
                let items = LabelItems::Exemplars(engine.exemplars(shard, selection));
                LabelsAnswer { items, truncated: false }
            }
            LabelsQuestion::Metadata => metadata(engine.metadata(shard, &selection.tenant, None, limit)),
            LabelsQuestion::MetadataOf(metric) => {
                metadata(engine.metadata(shard, &selection.tenant, Some(metric), limit))
            }
        })
    }
}

fn limits(request: &SelectRequest) -> ReadLimits {
    ReadLimits { series_max: request.series_max, bytes_max: SHARD_BYTES_MAX }
}

fn refusal_of(error: StorageError) -> ShardRefusal {
    match error {
        StorageError::TooManySeries { .. } | StorageError::TooManyBytes { .. } => {
            ShardRefusal::TooManySeries(error.to_string())
        }
        other => ShardRefusal::Failed(other.to_string()),
    }
}

fn all_failed<T>(shards: &[(ShardId, Epoch)], error: &tokio::task::JoinError) -> Vec<ShardReply<T>> {
    let refusal = ShardRefusal::Failed(format!("read task failed: {error}"));
    shards.iter().map(|(shard, _)| ShardReply { shard: *shard, result: Err(refusal.clone()) }).collect()
}

//! The coordinator: what the write path and the read path call.
//!
//! Every node coordinates; coordinators share nothing and need no agreement, since the epochs of the records
//! fence those that are out of date.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use saturn_model::{
    Cardinality, Labels, MetricMetadata, OverBudget, SampleBudget, Selection, SeriesColumns, SeriesExemplars,
    ShardBatch, ShardId, TenantId, TimestampMs,
};
use saturn_ring::{NodeId, ShardRecord, Spreads, Subset};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::metrics::Metrics;
use crate::{
    Adoption, LabelsQuestion, Listed, Missing, Peers, PlacementHandle, cardinality, delete, merge, read,
    write,
};

/// Times and bounds.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How long a write may wait for its quorum.
    pub write_timeout: Duration,
    /// How long replicas that were not needed for the quorum have after the write was answered.
    pub background_timeout: Duration,
    /// Most bytes under way to one replica after their writes were answered.
    pub background_bytes_max: usize,
    /// How long a read may wait for its quorums.
    pub read_timeout: Duration,
    /// After how long a read asks further replicas.
    pub hedge_delay: Duration,
    /// How long a replica may take to delete.
    pub delete_timeout: Duration,
    /// Over which shards tenants are spread.
    pub spreads: Spreads,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            write_timeout: Duration::from_secs(9),
            background_timeout: Duration::from_secs(2),
            background_bytes_max: 64 << 20,
            read_timeout: Duration::from_secs(30),
            hedge_delay: Duration::from_secs(1),
            delete_timeout: Duration::from_secs(60),
            spreads: Spreads::default(),
        }
    }
}

/// The part of a write request that belongs to one shard.
#[derive(Clone, Debug)]
pub struct ShardWrite {
    /// The samples, without labels.
    pub batch: Arc<ShardBatch>,
    /// For each series of the batch its index in the whole request, for [`LabelSource`].
    pub series: Vec<u32>,
}

/// Finds the labels of a request's series again. Called only for series that a replica does not know.
pub trait LabelSource: Send + Sync + 'static {
    /// The labels of the series with this index in the request.
    fn labels(&self, series: u32) -> Labels;
}

/// A shard that an answer does not cover, or that a write did not reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingShard {
    /// Which shard.
    pub shard: ShardId,
    /// What its replicas said.
    pub reason: String,
}

/// Why a write was not acknowledged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// Some shards have no quorum: what was stored stays, the rest is unknown. Send the request again.
    #[error(
        "{} of the request's shards have no quorum; send the request again (shard {}: {})",
        missing.len(),
        missing.first().map_or(ShardId(0), |first| first.shard),
        missing.first().map_or("", |first| first.reason.as_str())
    )]
    NoQuorum {
        /// Those shards.
        missing: Vec<MissingShard>,
    },
}

/// Why a read has no answer at all. Replicas that fail are no reason: see [`Completeness`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Select less.
    #[error("{reason}")]
    TooManySeries {
        /// The limit and what exceeded it.
        reason: String,
    },
    /// Select less: the budget is used up.
    #[error(transparent)]
    TooManySamples(#[from] OverBudget),
    /// This is a defect of the coordinator.
    #[error("the read ended unexpectedly: {0}")]
    Internal(String),
}

/// An answer and what it covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadAnswer<T> {
    /// The answer.
    pub value: T,
    /// What it covers.
    pub completeness: Completeness,
}

/// Whether an answer covers everything that was acknowledged before the read began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Completeness {
    /// It does.
    Complete,
    /// These shards had no quorum. What single replicas of them said is in the answer.
    Partial {
        /// By shard number.
        missing: Vec<MissingShard>,
    },
}

/// Writes to and reads from the replicas of all shards. Cloning shares everything.
pub struct Coordinator<P> {
    core: Arc<Core<P>>,
}

impl<P> Clone for Coordinator<P> {
    fn clone(&self) -> Self {
        Self { core: Arc::clone(&self.core) }
    }
}

/// What writes and reads have in common.
pub(crate) struct Core<P> {
    pub(crate) peers: Arc<P>,
    pub(crate) me: NodeId,
    pub(crate) placement: Arc<PlacementHandle>,
    pub(crate) settings: Settings,
    pub(crate) metrics: Metrics,
    background: Mutex<HashMap<NodeId, Arc<Semaphore>>>,
}

impl<P: Peers> Coordinator<P> {
    /// A coordinator on node `me`.
    pub fn new(
        peers: Arc<P>,
        me: NodeId,
        placement: Arc<PlacementHandle>,
        settings: Settings,
        registry: &mut Registry,
    ) -> Self {
        let metrics = Metrics::new(registry);
        let background = Mutex::new(HashMap::new());
        Self { core: Arc::new(Core { peers, me, placement, settings, metrics, background }) }
    }

    /// The shards that a tenant's series go to.
    pub fn shards_written(&self, tenant: &TenantId) -> Subset {
        let shards = self.core.placement.load().shard_count();
        Subset::of(tenant, self.core.settings.spreads.of(tenant).written, shards)
    }

    /// The shards that may have series of a tenant: all that reads ask.
    pub fn shards_read(&self, tenant: &TenantId) -> Subset {
        self.core.shards_read(tenant)
    }

    /// Stores a request on the replicas of its shards (at most one [`ShardWrite`] per shard). Returns when
    /// a quorum of each shard's replicas has stored every series of it, or when that has become
    /// impossible. Replicas that were not needed are given a little longer in the background.
    pub async fn write(
        &self,
        shards: Vec<ShardWrite>,
        labels: Arc<dyn LabelSource>,
    ) -> Result<(), WriteError> {
        write::write(&self.core, shards, labels).await
    }

    /// The selected series, sorted by labels; at most `series_max`, and as many samples as the budget has left. Its
    /// samples are charged while replicas send them, so no more are ever held than quorum-many copies of it, and as a
    /// rule one.
    pub async fn select(
        &self,
        selection: &Selection,
        series_max: usize,
        budget: &Arc<SampleBudget>,
    ) -> Result<ReadAnswer<Vec<SeriesColumns>>, ReadError> {
        let answer = read::select(&self.core, selection, series_max, budget).await?;
        if answer.value.len() > series_max {
            let reason = format!(
                "the selection matches {} series, over the limit of {series_max}",
                answer.value.len()
            );
            return Err(ReadError::TooManySeries { reason });
        }
        Ok(answer)
    }

    /// The names of all labels of the selected series, sorted. If there are more than `limit`, some of them, and at
    /// least so many.
    pub async fn label_names(
        &self,
        selection: &Selection,
        limit: usize,
    ) -> Result<ReadAnswer<Listed<String>>, ReadError> {
        read::labels(&self.core, selection, (LabelsQuestion::Names, limit), merge::merge_texts).await
    }

    /// The values of label `name` of the selected series, sorted; limited like the names.
    pub async fn label_values(
        &self,
        selection: &Selection,
        name: &str,
        limit: usize,
    ) -> Result<ReadAnswer<Listed<String>>, ReadError> {
        let question = LabelsQuestion::ValuesOf(name.to_owned());
        read::labels(&self.core, selection, (question, limit), merge::merge_texts).await
    }

    /// The label sets of the selected series, sorted; limited like the names.
    pub async fn series(
        &self,
        selection: &Selection,
        limit: usize,
    ) -> Result<ReadAnswer<Listed<Labels>>, ReadError> {
        read::labels(&self.core, selection, (LabelsQuestion::Series, limit), merge::merge_label_sets).await
    }

    /// The exemplars of the selected series in the selection's range, by series.
    pub async fn exemplars(
        &self,
        selection: &Selection,
    ) -> Result<ReadAnswer<Vec<SeriesExemplars>>, ReadError> {
        let question = (LabelsQuestion::Exemplars, usize::MAX);
        read::labels(&self.core, selection, question, merge::merge_exemplars).await
    }

    /// What senders said about the tenant's metrics, or about one of them, by metric; of at least `limit` metrics
    /// if there are more.
    pub async fn metadata(
        &self,
        tenant: &TenantId,
        metric: Option<&str>,
        limit: usize,
    ) -> Result<ReadAnswer<Listed<MetricMetadata>>, ReadError> {
        let question = metric.map_or(LabelsQuestion::Metadata, |m| LabelsQuestion::MetadataOf(m.to_owned()));
        let (start, end) = (TimestampMs(i64::MIN), TimestampMs(i64::MAX));
        let everything = Selection { tenant: tenant.clone(), matchers: Vec::new(), start, end };
        read::labels(&self.core, &everything, (question, limit), merge::merge_metadata).await
    }

    /// How many series the tenant's labels have, of the series that replicas hold in memory: one replica is asked
    /// for each shard. Of each list the `top` first; over several nodes, what is far down may be missing from them.
    pub async fn cardinality(&self, tenant: &TenantId, top: usize) -> ReadAnswer<Cardinality> {
        cardinality::count(&self.core, tenant, top).await
    }

    /// Makes the nodes of shards adopt the shards' records, which say what was deleted, and says which did not.
    pub async fn spread(&self, records: &[(ShardId, ShardRecord)]) -> Missing {
        delete::spread(&self.core, records).await
    }

    /// Makes all nodes give back the space of what was deleted, and says which did not.
    pub async fn clean_tombstones(&self) -> Missing {
        delete::clean(&self.core).await
    }
}

impl<P: Peers> Core<P> {
    /// See [`Coordinator::shards_read`].
    pub(crate) fn shards_read(&self, tenant: &TenantId) -> Subset {
        Subset::of(tenant, self.settings.spreads.of(tenant).read, self.placement.load().shard_count())
    }

    /// Takes over a record that a replica holds and this node does not. Storing it blocks, hence the thread.
    pub(crate) async fn adopt(&self, shard: ShardId, record: ShardRecord) -> Result<Adoption, String> {
        let placement = Arc::clone(&self.placement);
        let adopted = tokio::task::spawn_blocking(move || placement.adopt(shard, record)).await;
        match adopted {
            Ok(Ok(adoption)) => {
                tracing::info!(%shard, ?adoption, "a replica holds a newer record of a shard");
                Ok(adoption)
            }
            Ok(Err(error)) => Err(format!("its newer record was not adopted: {error}")),
            Err(error) => Err(format!("its newer record was not adopted: {error}")),
        }
    }

    /// Room for `bytes` under way to `node` after their write was answered, if there is any.
    pub(crate) fn background_permit(&self, node: &NodeId, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let room_kib = (self.settings.background_bytes_max / 1024).min(Semaphore::MAX_PERMITS);
        let wanted_kib = u32::try_from(bytes.div_ceil(1024)).ok()?;
        let mut rooms = self.background.lock();
        let room = rooms.entry(node.clone()).or_insert_with(|| Arc::new(Semaphore::new(room_kib)));
        Arc::clone(room).try_acquire_many_owned(wanted_kib).ok()
    }
}

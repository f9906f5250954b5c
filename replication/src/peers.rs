//! The replicas as this crate sees them: a trait, and the messages that go through it.

use std::fmt;
use std::sync::Arc;

use saturn_model::{
    Cardinality, Labels, MetricMetadata, Selection, SeriesExemplars, ShardBatch, ShardId, TenantId,
};
use saturn_ring::{Epoch, NodeId, Placement, ShardRecord};

use crate::SelectSink;

/// Calls to replicas, this node's own included. Timeouts are the caller's business: a call may take as
/// long as it likes, and must stop when its future is dropped.
pub trait Peers: Send + Sync + 'static {
    /// Stores batches. One reply per batch, in order; a batch is stored durably before its reply says so.
    fn append(
        &self,
        to: &NodeId,
        request: AppendRequest,
    ) -> impl Future<Output = Result<Vec<BatchReply>, PeerError>> + Send;

    /// Reads series. One reply per shard goes to the sink as soon as it is whole; before, the sink is told how it
    /// grows.
    fn select(
        &self,
        to: &NodeId,
        request: SelectRequest,
        sink: SelectSink,
    ) -> impl Future<Output = Result<(), PeerError>> + Send;

    /// Reads label names, values or sets. One reply per shard.
    fn labels(
        &self,
        to: &NodeId,
        request: LabelsRequest,
    ) -> impl Future<Output = Result<Vec<ShardReply<LabelsAnswer>>, PeerError>> + Send;

    /// Counts the series of some shards.
    fn cardinality(
        &self,
        to: &NodeId,
        request: CardinalityRequest,
    ) -> impl Future<Output = Result<CardinalityReply, PeerError>> + Send;

    /// Gives back the space of deleted samples.
    fn clean_tombstones(&self, to: &NodeId) -> impl Future<Output = Result<(), PeerError>> + Send;

    /// Hands this node's placement to one that is behind. It is durable there before this returns.
    fn push_placement(
        &self,
        to: &NodeId,
        placement: &Placement,
    ) -> impl Future<Output = Result<(), PeerError>> + Send;

    /// Gossip's opinion. It decides whom to ask first, never whether somebody is asked.
    fn is_alive(&self, node: &NodeId) -> bool;
}

/// A batch and the epoch of its shard's record, as the sender knows it.
#[derive(Clone, Debug)]
pub struct FencedBatch {
    /// The epoch.
    pub epoch: Epoch,
    /// The samples.
    pub batch: Arc<ShardBatch>,
}

/// Batches of different shards for one replica.
#[derive(Clone, Debug)]
pub struct AppendRequest {
    /// At most one per shard.
    pub batches: Vec<FencedBatch>,
}

/// What became of one batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BatchReply {
    /// Every series of the batch is durable, but those at these indexes (ascending): the replica does not
    /// know their labels, and wants these series again with them.
    Stored {
        /// Indexes into the batch's series.
        unknown: Vec<u32>,
    },
    /// The replica holds this newer record of the shard; nothing was stored.
    Stale(ShardRecord),
    /// The replica holds an older record of the shard, or none; nothing was stored.
    Behind,
    /// The record, which both sides agree on, names other nodes; nothing was stored.
    NotOwner,
    /// Anything else. What was stored is unknown.
    Failed(String),
}

/// A selection over some shards, for one replica.
#[derive(Clone, Debug)]
pub struct SelectRequest {
    /// Which series, and when.
    pub selection: Selection,
    /// Each shard with the epoch of its record, as the sender knows it.
    pub shards: Vec<(ShardId, Epoch)>,
    /// Most series that one shard may answer with.
    pub series_max: usize,
}

/// What is asked about labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LabelsQuestion {
    /// The names of all labels.
    Names,
    /// The values of one label.
    ValuesOf(String),
    /// The label sets.
    Series,
    /// Their exemplars in the selection's range; not limited, as replicas keep few.
    Exemplars,
    /// What senders said about the tenant's metrics, whatever is selected; the limit is one of metrics.
    Metadata,
    /// What they said about one metric.
    MetadataOf(String),
}

/// A question about the labels of the selected series, for one replica.
#[derive(Clone, Debug)]
pub struct LabelsRequest {
    /// Which series.
    pub selection: Selection,
    /// What about them.
    pub question: LabelsQuestion,
    /// Each shard with the epoch of its record, as the sender knows it.
    pub shards: Vec<(ShardId, Epoch)>,
    /// Most items that one shard may answer with.
    pub limit: usize,
}

/// The answer to a [`LabelsQuestion`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelsAnswer {
    /// At most as many items as allowed, in any order.
    pub items: LabelItems,
    /// Whether there are more.
    pub truncated: bool,
}

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LabelItems {
    /// Names or values.
    Texts(Vec<String>),
    /// Label sets.
    Series(Vec<Labels>),
    /// Series with exemplars.
    Exemplars(Vec<SeriesExemplars>),
    /// Metadata.
    Metadata(Vec<MetricMetadata>),
}

/// An order to count the series of some shards that are in memory.
#[derive(Clone, Debug)]
pub struct CardinalityRequest {
    /// Whose series.
    pub tenant: TenantId,
    /// Each shard with the epoch of its record, as the sender knows it.
    pub shards: Vec<(ShardId, Epoch)>,
    /// How long the lists of the answer may be.
    pub top: usize,
}

/// What one replica counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CardinalityReply {
    /// Over all shards but those that were refused.
    pub counted: Cardinality,
    /// Shards that are not in it, and why.
    pub refused: Vec<(ShardId, String)>,
}

/// What a replica says about one shard.
#[derive(Clone, Debug)]
pub struct ShardReply<T> {
    /// Which shard.
    pub shard: ShardId,
    /// Its answer, or why there is none.
    pub result: Result<T, ShardRefusal>,
}

/// Why a replica does not answer for a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShardRefusal {
    /// The replica holds this newer record of the shard.
    Stale(ShardRecord),
    /// The replica holds an older record of the shard, or none.
    Behind,
    /// The record, which both sides agree on, names other nodes.
    NotOwner,
    /// The selection matches more series than the request allows, or more samples than one shard answers with.
    /// The text names the limit.
    TooManySeries(String),
    /// Anything else.
    Failed(String),
}

/// Why a replica did not answer at all.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// No connection. Others may be reachable.
    #[error("unreachable: {0}")]
    Unreachable(String),
    /// No answer in time.
    #[error("timed out")]
    Timeout,
    /// The replica has too much to do. Try later.
    #[error("overloaded: {0}")]
    Overloaded(String),
    /// The replica refused the call, or its answer makes no sense.
    #[error("{0}")]
    Failed(String),
    /// The answer was not taken to its end, as the query would hold too much.
    #[error("the answer is over the query's budget of {samples_max} samples")]
    OverBudget {
        /// The budget.
        samples_max: usize,
    },
}

impl From<ShardRefusal> for BatchReply {
    fn from(refusal: ShardRefusal) -> Self {
        match refusal {
            ShardRefusal::Stale(record) => Self::Stale(record),
            ShardRefusal::Behind => Self::Behind,
            ShardRefusal::NotOwner => Self::NotOwner,
            ShardRefusal::TooManySeries(text) | ShardRefusal::Failed(text) => Self::Failed(text),
        }
    }
}

impl fmt::Display for ShardRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stale(record) => write!(f, "the shard's record has a newer epoch, {}", record.epoch),
            Self::Behind => f.write_str("holds an older record of the shard"),
            Self::NotOwner => f.write_str("does not own the shard"),
            Self::TooManySeries(text) | Self::Failed(text) => f.write_str(text),
        }
    }
}

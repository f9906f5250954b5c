//! What nodes say to each other.

use std::rc::Rc;

use saturn_model::ShardId;
use saturn_ring::{Epoch, Placement, ShardCommand, ShardRecord};

use crate::bits::Bits;

/// A sample of a shard, by its number there.
pub(crate) type Sample = usize;

/// A call.
#[derive(Clone, Debug)]
pub(crate) enum Request {
    /// Store samples.
    Append(Vec<(ShardId, Epoch, Sample)>),
    /// Read whole shards.
    Select(Vec<(ShardId, Epoch)>),
    PushPlacement(Rc<Placement>),
    PushRecord(ShardId, ShardRecord),
    PullPlacement,
    /// The next part of a shard. Without a stream one is opened.
    Frame {
        shard: ShardId,
        epoch: Epoch,
        stream: Option<u64>,
        cursor: usize,
    },
    /// All that a node has of a shard, to compare.
    Digest(ShardId, Epoch),
    /// To whom is thought to lead the shard's group.
    Propose(ShardId, ShardCommand),
}

impl Request {
    /// A number for the trace.
    pub(crate) fn code(&self) -> u64 {
        match self {
            Self::Append(batches) => 100 + batches.len() as u64,
            Self::Select(shards) => 200 + shards.len() as u64,
            Self::PushPlacement(_) => 300,
            Self::PushRecord(shard, record) => 400 + u64::from(shard.0) + (record.epoch.0 << 16),
            Self::PullPlacement => 500,
            Self::Frame { shard, cursor, .. } => 600 + u64::from(shard.0) + ((*cursor as u64) << 16),
            Self::Digest(shard, _) => 700 + u64::from(shard.0),
            Self::Propose(shard, _) => 800 + u64::from(shard.0),
        }
    }
}

/// Why a replica did not serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    Stale(ShardRecord),
    Behind,
    NotOwner,
}

/// An answer.
#[derive(Clone, Debug)]
pub(crate) enum Response {
    /// Batch by batch.
    Appended(Vec<Result<(), Refusal>>),
    /// Shard by shard.
    Selected(Vec<(ShardId, Result<Bits, Refusal>)>),
    /// What was pushed is on the disk.
    Adopted,
    Placement(Rc<Placement>),
    Frame {
        stream: u64,
        words: Vec<u64>,
        is_last: bool,
    },
    Digest(Bits),
    Proposed(Proposed),
    Refused,
}

/// What became of a proposal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Proposed {
    Decided,
    Refused,
    NotLeader,
}

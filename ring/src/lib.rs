//! Who is there and who owns what.
//!
//! * [`NodeId`], [`Zone`], [`Generation`], [`ClusterId`], [`Epoch`]: names and numbers.
//! * [`Membership`]: who is there, by gossip in sealed packets ([`KeyRing`], [`DropReason`]).
//! * [`Placement`], [`ShardRecord`], [`fence`]: who owns what, and refusing requests that are out of date.
//! * [`ClusterMeta`], [`ShardMeta`]: what the cluster and the replicas of a shard agree on, command by command;
//!   [`Placement::plan`]: the moves that a changed member list asks for; [`Rebalance`]: which of them is next.
//! * [`Subset`], [`Spreads`]: over which shards a tenant's series are spread.
//! * [`decide`]: how a new cluster comes to its placement.
//!
//! This crate does no IO. It knows no clock and no randomness but what is passed in: a test replays
//! a whole cluster from one seed (`tests/it/`).

mod action;
mod cluster_meta;
mod envelope;
mod formation;
mod ids;
mod member;
mod membership;
mod placement;
mod plan;
mod rebalance;
mod record;
mod seal;
mod shard_meta;
mod shuffle;
pub mod steps;
#[cfg(test)]
mod testing;

pub use action::{Action, ConflictWinner, Dropped, MembershipConfig, MembershipEvent};
pub use cluster_meta::{ClusterChange, ClusterCommand, ClusterMeta, MemberChange, MemberError};
pub use formation::{FormationDecision, FormationView, WaitReason, decide};
pub use ids::{ClusterId, Epoch, Generation, InvalidName, NodeId, Zone};
pub use member::{DurablePosition, Liveness, Member, MemberState};
pub use membership::Membership;
pub use placement::{Placement, PlacementError, PlacementMember, Standing};
pub use plan::PlannedMove;
pub use rebalance::Rebalance;
pub use record::{
    Access, DELETIONS_MAX, Deletion, Fence, MoveError, MoveStep, Overdue, ShardRecord, SlotMove, fence,
};
pub use seal::{
    BOOT_NONCE_BYTES, DropReason, KeyRing, KeyRingError, PACKET_BYTES_MAX, REPLAY_WINDOW, SEAL_BYTES,
};
pub use shard_meta::{RecordChange, RecordStep, SealedWindow, ShardCommand, ShardMeta};
pub use shuffle::{Spread, Spreads, Subset};

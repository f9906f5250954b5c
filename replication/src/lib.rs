//! Three replicas as one: quorum append and read merge.
//!
//! * [`Peers`]: how the replicas are reached; the node supplies it. Requests and replies are beside it.
//! * [`PlacementHandle`]: the placement that this node acts on; epochs only grow, durable before visible.
//! * [`Coordinator`]: [`Coordinator::write`] and the reads, over the pure parts [`QuorumTracker`] (who has stored
//!   what), [`ReadProgress`] (whom to ask next), `merge` (many answers to one), `taking` (what is held meanwhile).
//!   The first two are public for the simulator in `tests/sim/`, which drives them without a network or a clock.
//! * `delete`: what all replicas must do, and who did not; `cardinality`: what one replica of each shard counts.
//!
//! Invariants: a write is acked when, and only when, a quorum of each of its shards' replicas stored every
//! series under one epoch; a read says which shards it does not cover.
//!
//! This crate never sees the storage engine, gRPC, HTTP or configuration. It keeps no hints: a replica that
//! missed a write lacks it until it is sent again, or the node compares its replicas (`node/src/repair.rs`).

mod cardinality;
mod coordinator;
mod delete;
mod handle;
mod merge;
mod metrics;
mod peers;
mod progress;
mod quorum;
mod read;
mod taking;
mod write;

pub use coordinator::{
    Completeness, Coordinator, LabelSource, MissingShard, ReadAnswer, ReadError, Settings, ShardWrite,
    WriteError,
};
pub use delete::Missing;
pub use handle::{AdoptError, Adoption, Held, MemberList, PersistError, PlacementHandle};
pub use merge::Listed;
pub use peers::{
    AppendRequest, BatchReply, CardinalityReply, CardinalityRequest, FencedBatch, LabelItems, LabelsAnswer,
    LabelsQuestion, LabelsRequest, PeerError, Peers, SelectRequest, ShardRefusal, ShardReply,
};
pub use progress::{Ask, RESTARTS_MAX, ReadProgress};
pub use quorum::{QuorumTracker, Standing};
pub use taking::{SelectSink, Taking};

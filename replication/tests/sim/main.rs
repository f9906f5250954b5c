//! A whole cluster simulated from one seed, to find out whether moves of shards lose or hide acknowledged writes.
//!
//! * Shipped code: records, fences, plans and the metadata of `ring`; [`saturn_replication::PlacementHandle`],
//!   [`saturn_replication::QuorumTracker`], [`saturn_replication::ReadProgress`]; in some seeds the gossip core.
//! * Simulated here, after the node's own: the shells around them (`coordinator.rs`, `replica.rs`, `mover.rs`,
//!   `rebalance.rs`, `deletions.rs`), network, disks and clocks (`world.rs`, `node.rs`), the logs of the shards (`raft.rs`).
//! * `nemesis.rs`: what goes wrong. `checks.rs`: what must be true. `planted.rs`: bugs that must be found.
//! * `marks.rs`: situations that a batch of seeds must have been in.
//!
//! `SATURN_SEED=n` runs one seed, with `SATURN_TRACE=1` it prints what happened; `SATURN_SEEDS=n` runs so many.

mod batch;
mod bits;
mod checks;
mod client;
mod coordinator;
mod deletions;
mod marks;
mod message;
mod mover;
mod nemesis;
mod node;
mod planted;
mod raft;
mod random;
mod rebalance;
mod replica;
mod view;
mod world;

//! Named steps of a move: the moments at which a crash is most interesting, and whose crash.
//!
//! `node/src/steps.rs` lets a process die at one of them. Every step stands in [`STEPS`], so that a test can go through
//! all of them.

/// Who passes a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Participant {
    /// The leader of the member list, which begins moves.
    Rebalancer,
    /// The leader of the shard's Raft group, which decides the steps of its record and follows it with the voters.
    GroupLeader,
    /// The node that gets the slot, which drives the move.
    Target,
    /// The node that loses the slot.
    Source,
}

/// All steps, about in the order in which a move passes them.
///
/// A step of a record is `asked` for and `decided`, both where the node that asks sees it, and `committed` where the
/// group's leader sees it, which has told nobody yet; then it is `adopted` by who asked, which has told nobody yet.
/// `voters` are those of the shard's group, the `council` those of the member list.
pub const STEPS: &[(&str, Participant)] = &[
    ("council: learner added", Participant::Rebalancer),
    ("council: joint", Participant::Rebalancer),
    ("begin: asked", Participant::Rebalancer),
    ("begin: committed", Participant::GroupLeader),
    ("begin: decided", Participant::Rebalancer),
    ("begin: adopted", Participant::Rebalancer),
    ("voters: learner added", Participant::GroupLeader),
    ("fetch: begin adopted", Participant::Target),
    ("source: record adopted", Participant::Source),
    ("fetch: fenced", Participant::Target),
    ("source: frame sent", Participant::Source),
    ("fetch: frame received", Participant::Target),
    ("fetch: batch stored", Participant::Target),
    ("fetch: fetched", Participant::Target),
    ("activate: asked", Participant::Target),
    ("activate: committed", Participant::GroupLeader),
    ("activate: decided", Participant::Target),
    ("activate: adopted", Participant::Target),
    ("finish: asked", Participant::Target),
    ("finish: committed", Participant::GroupLeader),
    ("finish: decided", Participant::Target),
    ("finish: adopted", Participant::Target),
    ("voters: joint", Participant::GroupLeader),
    ("clean: compared", Participant::Source),
    ("clean: dropped", Participant::Source),
];

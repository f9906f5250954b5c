//! Counting acknowledgements: has every shard of a write its quorum, or can one no longer get it?
//!
//! Pure: the coordinator's core for writes, driven by `write` and by the simulator (`tests/sim/`) alike. A shard's quorum is the quorum of each of its series: all series of a batch go to the same
//! replicas, and a replica counts only when it has stored every one of them. A slot that is on its way to another
//! node counts only when both nodes have. Answers count within one epoch: a shard that is started again under a
//! newer record forgets those to the older one.

use saturn_ring::{Epoch, NodeId, ShardRecord};

/// One write's shards, by their index in the request.
#[derive(Debug)]
pub struct QuorumTracker {
    shards: Vec<ShardProgress>,
}

#[derive(Debug)]
struct ShardProgress {
    epoch: Epoch,
    quorum: usize,
    /// Each node that is written to, with its slot.
    nodes: Vec<(NodeId, usize, NodeState)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum NodeState {
    Waiting,
    Stored,
    Failed(String),
}

/// How a write stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Answers are awaited.
    Pending,
    /// Every shard has its quorum.
    Acked,
    /// Some shard cannot reach its quorum any more.
    Impossible,
}

impl ShardProgress {
    fn new(record: &ShardRecord) -> Self {
        let slots = record.slot_members().enumerate();
        let nodes = slots.flat_map(|(slot, nodes)| {
            nodes.into_iter().map(move |node| (node.clone(), slot, NodeState::Waiting))
        });
        Self { epoch: record.epoch, quorum: record.quorum(), nodes: nodes.collect() }
    }

    /// A slot has stored when all of its nodes have, and has failed when one of them has.
    fn standing(&self) -> Standing {
        let slots = self.nodes.chunk_by(|a, b| a.1 == b.1);
        let (mut stored, mut open) = (0, 0);
        for slot in slots {
            if slot.iter().all(|(_, _, state)| *state == NodeState::Stored) {
                stored += 1;
            } else if !slot.iter().any(|(_, _, state)| matches!(state, NodeState::Failed(_))) {
                open += 1;
            }
        }
        if stored >= self.quorum {
            Standing::Acked
        } else if stored + open < self.quorum {
            Standing::Impossible
        } else {
            Standing::Pending
        }
    }
}

impl QuorumTracker {
    /// Nothing has been answered yet.
    pub fn new<'a>(records: impl IntoIterator<Item = &'a ShardRecord>) -> Self {
        Self { shards: records.into_iter().map(ShardProgress::new).collect() }
    }

    /// The epoch that answers for this shard must be given under to count.
    pub fn epoch(&self, index: usize) -> Epoch {
        self.shards[index].epoch
    }

    /// `node` has stored everything of the shard.
    pub fn stored(&mut self, index: usize, node: &NodeId) {
        self.set(index, node, NodeState::Stored);
    }

    /// `node` will not store the shard's batch, or not tell.
    pub fn failed(&mut self, index: usize, node: &NodeId, reason: String) {
        self.set(index, node, NodeState::Failed(reason));
    }

    /// Starts a shard again under a newer record.
    pub fn restart(&mut self, index: usize, record: &ShardRecord) {
        self.shards[index] = ShardProgress::new(record);
    }

    fn set(&mut self, index: usize, node: &NodeId, state: NodeState) {
        let nodes = &mut self.shards[index].nodes;
        if let Some((_, _, known)) = nodes.iter_mut().find(|(id, _, _)| id == node) {
            *known = state;
        }
    }

    /// How the whole write stands.
    pub fn standing(&self) -> Standing {
        let mut all = Standing::Acked;
        for shard in &self.shards {
            match shard.standing() {
                Standing::Impossible => return Standing::Impossible,
                Standing::Pending => all = Standing::Pending,
                Standing::Acked => {}
            }
        }
        all
    }

    /// The shards without quorum, by index, each with what its replicas said.
    pub fn missing(&self, silence: &str) -> Vec<(usize, String)> {
        let unacked = self.shards.iter().enumerate().filter(|(_, shard)| shard.standing() != Standing::Acked);
        let describe = |shard: &ShardProgress| {
            let mut reasons = Vec::new();
            for (node, _, state) in &shard.nodes {
                match state {
                    NodeState::Stored => {}
                    NodeState::Waiting => reasons.push(format!("{node}: {silence}")),
                    NodeState::Failed(reason) => reasons.push(format!("{node}: {reason}")),
                }
            }
            reasons.join("; ")
        };
        unacked.map(|(index, shard)| (index, describe(shard))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> NodeId {
        NodeId::new(name).expect("valid")
    }

    fn record(epoch: u64, nodes: &[&str]) -> ShardRecord {
        ShardRecord::stable(Epoch(epoch), nodes.iter().map(|name| node(name)).collect())
    }

    #[test]
    fn two_of_three_of_every_shard_ack() {
        let mut tracker = QuorumTracker::new(&[record(1, &["a", "b", "c"]), record(1, &["b", "c", "d"])]);
        tracker.stored(0, &node("a"));
        tracker.stored(0, &node("b"));
        tracker.stored(1, &node("b"));
        assert_eq!(tracker.standing(), Standing::Pending);
        tracker.failed(1, &node("c"), "down".into());
        assert_eq!(tracker.standing(), Standing::Pending);
        tracker.stored(1, &node("d"));
        assert_eq!(tracker.standing(), Standing::Acked);
        assert!(tracker.missing("silent").is_empty());
    }

    #[test]
    fn one_node_counts_once_and_strangers_do_not_count() {
        let mut tracker = QuorumTracker::new(&[record(1, &["a", "b", "c"])]);
        tracker.stored(0, &node("a"));
        tracker.stored(0, &node("a"));
        tracker.stored(0, &node("z"));
        assert_eq!(tracker.standing(), Standing::Pending);
    }

    #[test]
    fn two_failures_of_three_are_final() {
        let mut tracker = QuorumTracker::new(&[record(1, &["a", "b", "c"])]);
        tracker.failed(0, &node("a"), "down".into());
        assert_eq!(tracker.standing(), Standing::Pending);
        tracker.failed(0, &node("c"), "full".into());
        assert_eq!(tracker.standing(), Standing::Impossible);
        assert_eq!(tracker.missing("silent"), [(0, "a: down; b: silent; c: full".to_owned())]);
    }

    #[test]
    fn a_newer_record_starts_over() {
        let mut tracker = QuorumTracker::new(&[record(1, &["a", "b", "c"])]);
        tracker.stored(0, &node("a"));
        tracker.restart(0, &record(2, &["a", "b", "d"]));
        tracker.stored(0, &node("b"));
        assert_eq!((tracker.standing(), tracker.epoch(0)), (Standing::Pending, Epoch(2)));
        tracker.stored(0, &node("d"));
        assert_eq!(tracker.standing(), Standing::Acked);
    }

    #[test]
    fn a_moving_slot_counts_when_both_of_its_nodes_have_stored() {
        let begun = record(1, &["a", "b", "c"]).begin(2, &node("d")).expect("begins");
        let mut tracker = QuorumTracker::new([&begun]);
        tracker.stored(0, &node("c"));
        tracker.stored(0, &node("a"));
        assert_eq!(tracker.standing(), Standing::Pending, "any two of four are not enough");
        tracker.stored(0, &node("d"));
        assert_eq!(tracker.standing(), Standing::Acked);
        let mut tracker = QuorumTracker::new(&[begun]);
        tracker.failed(0, &node("d"), "down".into());
        tracker.failed(0, &node("c"), "down".into());
        assert_eq!(tracker.standing(), Standing::Pending, "one slot failed, not two");
        tracker.failed(0, &node("b"), "down".into());
        assert_eq!(tracker.standing(), Standing::Impossible);
    }

    #[test]
    fn a_single_replica_is_its_own_quorum() {
        let mut tracker = QuorumTracker::new(&[record(1, &["a"])]);
        assert_eq!(tracker.standing(), Standing::Pending);
        tracker.stored(0, &node("a"));
        assert_eq!(tracker.standing(), Standing::Acked);
        assert_eq!(QuorumTracker::new(&[]).standing(), Standing::Acked);
    }
}

//! What was said to be durable, by this node and by others, and what a disk has lost of it.
//!
//! Every node says how far its log is on its disk: in each gossip packet, and in each answer to a write, so that whoever
//! acknowledges a write knows it of the replicas that it asked. The others remember the highest that each data directory
//! has ever said, for as long as they run. A node that starts asks them before it takes part in anything (`recall` in
//! `cluster.rs`). If it finds less on its disk, then that disk has lost what was acknowledged: it lied about fdatasync, or
//! an older copy of the data directory took its place.
//!
//! What this node had decided with others may be lost, too: a voter that forgets is worse than one that is gone. So the
//! node takes part under a new generation from then on, with an empty Raft log (`identity.rs`), which the cluster accepts
//! once (`MemberChange::Renew`). It keeps its samples, stores what is written, and answers no reads of a shard before it
//! has taken all that the shard's other nodes have of it (`repair.rs`).
//!
//! A directory that is lost altogether is replaced by an empty one under the same name when the operator says so
//! (`saturnctl ring replace NODE NODE`); it is filled in the same way.
//!
//! A loss goes unnoticed if nobody who remembers is left, and if it is of the last moment before the end of a process that
//! had acknowledged writes which it coordinated itself: others hear of its own part with the next packet only.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Mutex, RwLock};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use saturn_model::ShardId;
use saturn_proto::peer;
use saturn_ring::{DurablePosition, Generation, NodeId};
use saturn_storage::{Engine, LogPosition};
use uuid::Uuid;

use crate::identity::Losses;

/// Most data directories of which a position is remembered: those of more members than a cluster has.
const HEARD_MAX: usize = 10_000;

/// Positions of this node and of those that it has heard of.
pub(crate) struct Positions {
    engine: Engine,
    generation: Generation,
    /// Whether others may be told.
    is_judged: AtomicBool,
    heard: Mutex<HashMap<(NodeId, Generation), DurablePosition>>,
}

impl Positions {
    pub(crate) fn new(engine: Engine, generation: Generation) -> Self {
        Self { engine, generation, is_judged: AtomicBool::new(false), heard: Mutex::default() }
    }

    /// How far this node's log is on its disk. The beginning of all before [`Positions::judged`]: else others would
    /// remember this run's positions, when they are asked for those of earlier ones.
    pub(crate) fn own(&self) -> DurablePosition {
        if !self.is_judged.load(Ordering::Acquire) {
            return DurablePosition::default();
        }
        position(self.engine.durable_position())
    }

    /// How far it was when it was opened.
    pub(crate) fn recovered(&self) -> DurablePosition {
        position(self.engine.recovered_position())
    }

    /// Others have said what they remember, and nothing was lost.
    pub(crate) fn judged(&self) {
        self.is_judged.store(true, Ordering::Release);
    }

    /// What a node said of itself, or another one of it.
    pub(crate) fn hear(&self, node: &NodeId, generation: Generation, position: DurablePosition) {
        let mut heard = self.heard.lock();
        let key = (node.clone(), generation);
        if heard.len() < HEARD_MAX || heard.contains_key(&key) {
            let known = heard.entry(key).or_default();
            *known = position.max(*known);
        }
    }

    /// The highest that was heard of a data directory.
    pub(crate) fn remembered(&self, node: &NodeId, generation: Generation) -> Option<DurablePosition> {
        self.heard.lock().get(&(node.clone(), generation)).copied()
    }

    /// What goes with an answer to a write.
    pub(crate) fn own_message(&self) -> peer::DurablePosition {
        message(self.generation, self.own())
    }

    /// What came with an answer to a write.
    pub(crate) fn hear_message(&self, node: &NodeId, message: &peer::DurablePosition) {
        if let Ok(generation) = Uuid::from_slice(&message.generation) {
            self.hear(node, Generation(generation), position_from(message));
        }
    }

    /// What goes with a confirmation: what this node remembers of another one.
    pub(crate) fn remembered_message(
        &self,
        node: &NodeId,
        generation: Generation,
    ) -> Option<peer::DurablePosition> {
        Some(message(generation, self.remembered(node, generation)?))
    }
}

fn position(LogPosition { segment, offset }: LogPosition) -> DurablePosition {
    DurablePosition { segment, offset }
}

fn message(generation: Generation, position: DurablePosition) -> peer::DurablePosition {
    let DurablePosition { segment, offset } = position;
    let generation = bytes::Bytes::copy_from_slice(generation.0.as_bytes());
    peer::DurablePosition { generation, segment, offset }
}

/// A position as another node sent it.
pub(crate) fn position_from(message: &peer::DurablePosition) -> DurablePosition {
    let peer::DurablePosition { segment, offset, .. } = *message;
    DurablePosition { segment, offset }
}

/// The shards of which this node may lack what it had acknowledged: it answers no reads of them.
#[derive(Debug, Default)]
pub(crate) struct Lacking {
    /// How many there are in all.
    all: u16,
    shards: RwLock<BTreeSet<ShardId>>,
    left: Gauge,
    losses: Counter,
    possible: Counter,
}

impl Lacking {
    /// Of a node whose disk has had these losses, in a cluster of so many shards.
    pub(crate) fn new(losses: Losses, shards: u16, registry: &mut Registry) -> Self {
        let lacking = Self { all: shards, ..Self::default() };
        lacking.losses.inc_by(u64::from(losses.noticed));
        if losses.is_lacking {
            lacking.add_all();
        }
        let registry = registry.sub_registry_with_prefix("saturn_node");
        let help = "Times that this data directory had lost what was acknowledged when the node started";
        registry.register("disk_losses", help, lacking.losses.clone());
        let help = "Shards of which more replicas had lost something at a time than can be made up for";
        registry.register("possible_losses", help, lacking.possible.clone());
        let help = "Shards not read from here until what the disk has lost was taken from their other nodes";
        registry.register("lacking_shards", help, lacking.left.clone());
        lacking
    }

    /// The directory has just taken the place of one that is lost.
    pub(crate) fn stand_in(&self) {
        self.losses.inc();
        self.add_all();
    }

    /// More replicas of a shard have lost something than can be made up for.
    pub(crate) fn count_possible_loss(&self) {
        self.possible.inc();
    }

    fn add_all(&self) {
        self.add((0..self.all).map(ShardId));
    }

    /// These shards are not to be read from here.
    pub(crate) fn add(&self, shards: impl Iterator<Item = ShardId>) {
        let mut lacking = self.shards.write();
        lacking.extend(shards);
        self.left.set(i64::try_from(lacking.len()).unwrap_or(i64::MAX));
    }

    /// All is there again of a shard.
    pub(crate) fn remove(&self, shard: ShardId) {
        let mut lacking = self.shards.write();
        lacking.remove(&shard);
        self.left.set(i64::try_from(lacking.len()).unwrap_or(i64::MAX));
    }

    pub(crate) fn contains(&self, shard: ShardId) -> bool {
        self.shards.read().contains(&shard)
    }

    /// The shards, ascending.
    pub(crate) fn shards(&self) -> Vec<ShardId> {
        self.shards.read().iter().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use saturn_storage::EngineOptions;

    use super::*;

    #[test]
    fn the_highest_position_of_each_disk_is_remembered() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let engine = Engine::open(EngineOptions::new(dir.path()), &mut Registry::default()).expect("opened");
        let (mine, disk, other_disk) =
            (Generation(Uuid::from_u128(1)), Generation(Uuid::from_u128(2)), Generation(Uuid::from_u128(3)));
        let node = NodeId::new("b").expect("valid");
        let positions = Positions::new(engine, mine);
        let at = |segment, offset| DurablePosition { segment, offset };
        assert_eq!(positions.remembered(&node, disk), None);
        for position in [at(3, 40), at(2, 900), at(3, 41)] {
            positions.hear(&node, disk, position);
        }
        positions.hear_message(&node, &message(other_disk, at(9, 9)));
        assert_eq!(positions.remembered(&node, disk), Some(at(3, 41)));
        assert_eq!(positions.remembered(&node, other_disk), Some(at(9, 9)));
        let told = positions.remembered_message(&node, disk).expect("it is remembered");
        assert_eq!(position_from(&told), at(3, 41));

        assert_eq!(positions.own(), DurablePosition::default());
        positions.judged();
        assert!(positions.recovered() < positions.own());
    }
}

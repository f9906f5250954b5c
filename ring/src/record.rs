//! A shard's record: who fills its slots, as of which epoch, and the move of one slot that may be under way.
//!
//! A slot moves from one node to another in committed steps, each with an epoch of its own:
//!
//! | record | writes go to | the moving slot counts when | reads may use |
//! |---|---|---|---|
//! | stable | the slots | its node has stored | the slots |
//! | begun | the slots and the new node | both have stored | the slots |
//! | activated | the slots and the new node | both have stored | the slots, the new node for the old |
//! | finished | the slots, the new node for the old | its node has stored | the same |
//! | aborted (from begun only) | the slots | its node has stored | the slots |
//!
//! Why each step, fence and barrier is needed: `ring/tests/it/move_model.rs` explores all orders of one move, one
//! write, one read and one lost node with this very code, and finds the loss when one of them is left out.
//!
//! What is deleted in the shard is part of the record, too: a deletion is a new epoch, and a node that adopts it has
//! first done the deletion. So the fence that keeps an old owner out also keeps out whoever has not deleted yet: no
//! read is complete and no write is acknowledged with it, and nobody fetches from it. Once all nodes are known to have
//! done it, the record forgets it ([`ShardRecord::settle`]). `ring/tests/it/deletion_model.rs` explores all orders of
//! one deletion with this code, and of a move that is under way meanwhile.
//!
//! Pure: a transition is a function of the record and the evidence for it.

use std::collections::BTreeSet;

use saturn_model::Selection;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{Epoch, NodeId, RecordStep};

/// The replicas of one shard. The index of a node is its slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardRecord {
    /// Version of this record.
    pub epoch: Epoch,
    /// Who fills each slot; the leaving node while a slot moves.
    pub slots: Vec<NodeId>,
    /// The move under way: at most one slot of a shard moves at a time.
    #[serde(default)]
    pub moving: Option<SlotMove>,
    /// What was deleted, the oldest first, until all of the shard's nodes are known to have done so.
    #[serde(default)]
    pub deletions: Vec<Deletion>,
    /// The epoch of the last deletion that is not listed any more; 0 if there was none.
    #[serde(default)]
    pub settled: Epoch,
}

/// Samples that the replicas of a shard agreed to delete.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deletion {
    /// What asked for it, so that asking twice deletes once.
    pub id: Uuid,
    /// The epoch of the record that brought it: deletions of a shard are done in this order.
    pub epoch: Epoch,
    /// The samples that match any of these.
    pub selections: Vec<Selection>,
}

/// What a node must delete before it acts on a record: see [`ShardRecord::overdue`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overdue {
    /// How far the node is with the shard's deletions afterwards.
    pub through: Epoch,
    /// Whether there are deletions that the node has not done and that the record does not list any more. Then all that
    /// the node has of the shard must go: it is from an earlier time, and the node fetches everything anyway.
    pub missed: bool,
    /// What to delete.
    pub selections: Vec<Selection>,
}

/// Most deletions of a shard that not all of its nodes have done: each travels with every record.
pub const DELETIONS_MAX: usize = 8;

/// A slot on its way to another node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotMove {
    /// Which slot.
    pub slot: u8,
    /// Who will fill it.
    pub to: NodeId,
    /// How far it is.
    pub step: MoveStep,
}

/// How far a move is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MoveStep {
    /// The new node stores what is written and fetches what was; nobody reads from it.
    Begun,
    /// The new node answers reads, the old one does not any more.
    Activated,
}

/// Why a record did not change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum MoveError {
    /// Somebody else was faster: look again.
    #[error("the shard's record is at epoch {actual}, not {expected}")]
    WrongEpoch {
        /// What the command was made for.
        expected: Epoch,
        /// What the record has.
        actual: Epoch,
    },
    /// One move at a time.
    #[error("slot {slot} of the shard is moving to {to}")]
    Moving {
        /// The slot under way.
        slot: u8,
        /// Its new node.
        to: NodeId,
    },
    /// There is no move in the step that the command follows.
    #[error("no move of the shard is in the step that this one follows")]
    NotMoving,
    /// There are fewer slots.
    #[error("the shard has no slot {0}")]
    NoSuchSlot(u8),
    /// A node fills one slot of a shard at most.
    #[error("{0} fills a slot of the shard already")]
    AlreadyOwner(NodeId),
    /// A reader or writer with the older record could still find a quorum.
    #[error("{known} of the shard's slots know this epoch, {needed} must")]
    NotFenced {
        /// How many do.
        known: usize,
        /// How many must.
        needed: usize,
    },
    /// An acknowledged write could be missing on the new node.
    #[error("the new node has fetched from too few of the slots")]
    NotCovered,
    /// Some node does not come back to do them; it must be replaced first.
    #[error("{DELETIONS_MAX} deletions wait for a node of the shard that has not done them yet")]
    TooManyDeletions,
    /// Whoever has not done a deletion would bring its samples back.
    #[error("not all of the shard's nodes are known to have done its deletions")]
    NotSettled,
}

impl ShardRecord {
    /// A record without a move.
    pub fn stable(epoch: Epoch, slots: Vec<NodeId>) -> Self {
        Self { epoch, slots, moving: None, deletions: Vec::new(), settled: Epoch::default() }
    }

    /// Slots that must agree before a write or a read is complete.
    pub fn quorum(&self) -> usize {
        self.slots.len() / 2 + 1
    }

    /// Slots that must know an epoch so that no quorum can be found under an older one.
    pub fn barrier(&self) -> usize {
        self.slots.len() + 1 - self.quorum()
    }

    /// Whether so many of the shard's nodes know this epoch that no quorum can be found under an older one. While a slot
    /// moves and its new node answers reads, those who have not heard of that would still ask the old one: both count.
    pub fn is_in_force(&self, known: &BTreeSet<NodeId>) -> bool {
        let enough = |count: usize| count >= self.barrier();
        enough(self.slots.iter().filter(|node| known.contains(*node)).count())
            && enough(self.readers().filter(|node| known.contains(*node)).count())
    }

    /// Whom writes go to: the slots in order, then the new node of a moving one.
    pub fn writers(&self) -> impl Iterator<Item = &NodeId> {
        self.slots.iter().chain(self.moving.iter().map(|moving| &moving.to))
    }

    /// Whom reads may ask, by slot.
    pub fn readers(&self) -> impl Iterator<Item = &NodeId> {
        (0_u8..).zip(&self.slots).map(|(index, node)| match &self.moving {
            Some(moving) if moving.slot == index && moving.step == MoveStep::Activated => &moving.to,
            _ => node,
        })
    }

    /// The nodes that must have stored a write for each slot to count.
    pub fn slot_members(&self) -> impl Iterator<Item = Vec<&NodeId>> {
        (0_u8..).zip(&self.slots).map(|(index, node)| match &self.moving {
            Some(moving) if moving.slot == index => vec![node, &moving.to],
            _ => vec![node],
        })
    }

    /// Whether `node` stores what is written to the shard.
    pub fn is_writer(&self, node: &NodeId) -> bool {
        self.writers().any(|writer| writer == node)
    }

    /// Whether `node` answers reads of the shard.
    pub fn is_reader(&self, node: &NodeId) -> bool {
        self.readers().any(|reader| reader == node)
    }

    /// Whether `node` is to fill a slot of the shard and still fetches what the others have.
    pub fn is_fetching(&self, node: &NodeId) -> bool {
        self.moving.as_ref().is_some_and(|moving| moving.step == MoveStep::Begun && moving.to == *node)
    }

    /// The record that follows this one by a step.
    ///
    /// # Errors
    /// Those of the step's own function.
    pub fn after(&self, step: &RecordStep) -> Result<Self, MoveError> {
        match step {
            RecordStep::Begin { slot, to } => self.begin(*slot, to),
            RecordStep::Activate { fenced, sources } => self.activate(fenced, sources),
            RecordStep::Finish { fenced } => self.finish(fenced),
            RecordStep::Abort => self.abort(),
            RecordStep::Settle { known } => self.settle(known),
        }
    }

    /// The first step: `to` will take the place of who fills `slot`.
    ///
    /// # Errors
    /// If the shard has no such slot, has a move under way, or `to` fills a slot of it.
    pub fn begin(&self, slot: u8, to: &NodeId) -> Result<Self, MoveError> {
        if let Some(SlotMove { slot, to, .. }) = self.moving.clone() {
            return Err(MoveError::Moving { slot, to });
        }
        if usize::from(slot) >= self.slots.len() {
            return Err(MoveError::NoSuchSlot(slot));
        }
        if self.slots.contains(to) {
            return Err(MoveError::AlreadyOwner(to.clone()));
        }
        let moving = Some(SlotMove { slot, to: to.clone(), step: MoveStep::Begun });
        Ok(Self { epoch: self.epoch.next(), moving, ..self.clone() })
    }

    /// The second step. `fenced`: who has this epoch on its disk. `sources`: from whom of them the new node has
    /// fetched all, after that.
    ///
    /// # Errors
    /// If the evidence does not suffice, or no move is in its first step.
    pub fn activate(&self, fenced: &BTreeSet<NodeId>, sources: &BTreeSet<NodeId>) -> Result<Self, MoveError> {
        let moving = self.moving_in(MoveStep::Begun)?;
        self.check_fenced(fenced)?;
        if !self.covered_by(moving.slot, sources) {
            return Err(MoveError::NotCovered);
        }
        let moving = Some(SlotMove { step: MoveStep::Activated, ..moving.clone() });
        Ok(Self { epoch: self.epoch.next(), moving, ..self.clone() })
    }

    /// The last step: the slot is the new node's.
    ///
    /// # Errors
    /// If too few nodes have this epoch on their disks, or no move is in its second step.
    pub fn finish(&self, fenced: &BTreeSet<NodeId>) -> Result<Self, MoveError> {
        let moving = self.moving_in(MoveStep::Activated)?;
        self.check_fenced(fenced)?;
        let mut slots = self.slots.clone();
        slots[usize::from(moving.slot)] = moving.to.clone();
        Ok(Self { epoch: self.epoch.next(), slots, moving: None, ..self.clone() })
    }

    /// The slot stays where it is.
    ///
    /// # Errors
    /// If no move is in its first step: from the second on, the new node may have answered reads.
    pub fn abort(&self) -> Result<Self, MoveError> {
        self.moving_in(MoveStep::Begun)?;
        Ok(Self { epoch: self.epoch.next(), moving: None, ..self.clone() })
    }

    /// The epoch of the last deletion; 0 if there was none.
    pub fn deleted_through(&self) -> Epoch {
        self.deletions.last().map_or(self.settled, |deletion| deletion.epoch)
    }

    /// What `node` must delete in its copy before it acts on this record, if it has done the deletions up to `done`.
    pub fn overdue(&self, node: &NodeId, done: Epoch) -> Option<Overdue> {
        let through = self.deleted_through();
        if done >= through || !self.is_writer(node) {
            return None;
        }
        let missing = self.deletions.iter().filter(|deletion| deletion.epoch > done);
        let selections = missing.flat_map(|deletion| deletion.selections.iter().cloned()).collect();
        Some(Overdue { through, missed: self.settled > done, selections })
    }

    /// Samples are deleted. A deletion that is listed already changes nothing.
    ///
    /// # Errors
    /// If there are too many that not all nodes have done.
    pub fn delete(&self, id: Uuid, selections: Vec<Selection>) -> Result<Self, MoveError> {
        if self.deletions.iter().any(|deletion| deletion.id == id) {
            return Ok(self.clone());
        }
        if self.deletions.len() >= DELETIONS_MAX {
            return Err(MoveError::TooManyDeletions);
        }
        let epoch = self.epoch.next();
        let mut deletions = self.deletions.clone();
        deletions.push(Deletion { id, epoch, selections });
        Ok(Self { epoch, deletions, ..self.clone() })
    }

    /// The deletions are forgotten. `known`: who has this epoch on its disk.
    ///
    /// # Errors
    /// If there are none, or one of the shard's nodes is not known to have done them.
    pub fn settle(&self, known: &BTreeSet<NodeId>) -> Result<Self, MoveError> {
        if self.deletions.is_empty() || !self.writers().all(|node| known.contains(node)) {
            return Err(MoveError::NotSettled);
        }
        let settled = self.deleted_through();
        Ok(Self { epoch: self.epoch.next(), deletions: Vec::new(), settled, ..self.clone() })
    }

    /// Whether these sources together have every write that was acknowledged before the move began: the leaving
    /// node has its part of each, and so have enough of the others that no quorum misses them all.
    pub fn covered_by(&self, slot: u8, sources: &BTreeSet<NodeId>) -> bool {
        let leaving = usize::from(slot);
        let others = self.slots.iter().enumerate().filter(|(index, _)| *index != leaving);
        let others = others.filter(|(_, node)| sources.contains(*node)).count();
        self.slots.get(leaving).is_some_and(|node| sources.contains(node)) || others >= self.barrier()
    }

    fn moving_in(&self, step: MoveStep) -> Result<&SlotMove, MoveError> {
        self.moving.as_ref().filter(|moving| moving.step == step).ok_or(MoveError::NotMoving)
    }

    fn check_fenced(&self, fenced: &BTreeSet<NodeId>) -> Result<(), MoveError> {
        let known = self.slots.iter().filter(|node| fenced.contains(*node)).count();
        let needed = self.barrier();
        if known < needed { Err(MoveError::NotFenced { known, needed }) } else { Ok(()) }
    }
}

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// It stores.
    Write,
    /// It reads.
    Read,
}

/// Whether a node serves a request for a shard, by the record that it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fence {
    /// Serve it.
    Current,
    /// The request's epoch is lower than the record's: refuse, and hand over this newer record.
    Stale(ShardRecord),
    /// The request's epoch is higher than the record's: learn the newer record first.
    Behind,
    /// The record names other nodes for this.
    NotOwner,
}

/// Judges a request stamped `epoch` that reached `node`, whose own record of the shard is `mine`.
pub fn fence(mine: Option<&ShardRecord>, node: &NodeId, epoch: Epoch, access: Access) -> Fence {
    match mine {
        None => Fence::Behind,
        Some(mine) if epoch < mine.epoch => Fence::Stale(mine.clone()),
        Some(mine) if epoch > mine.epoch => Fence::Behind,
        Some(mine) => {
            let serves = match access {
                Access::Write => mine.is_writer(node),
                Access::Read => mine.is_reader(node),
            };
            if serves { Fence::Current } else { Fence::NotOwner }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{node, set};

    fn record(names: &[&str]) -> ShardRecord {
        ShardRecord::stable(Epoch(5), names.iter().map(|name| node(name)).collect())
    }

    fn names<'a>(nodes: impl Iterator<Item = &'a NodeId>) -> String {
        nodes.map(NodeId::as_str).collect()
    }

    #[test]
    fn a_slot_moves_in_three_steps() {
        let begun = record(&["a", "b", "c"]).begin(2, &node("d")).expect("begins");
        assert_eq!(
            (begun.epoch, names(begun.writers()), names(begun.readers())),
            (Epoch(6), "abcd".into(), "abc".into())
        );
        let pairs: Vec<String> = begun.slot_members().map(|nodes| names(nodes.into_iter())).collect();
        assert_eq!(pairs, ["a", "b", "cd"]);
        let active = begun.activate(&set(&["a", "c"]), &set(&["c"])).expect("activates");
        assert_eq!(
            (active.epoch, names(active.writers()), names(active.readers())),
            (Epoch(7), "abcd".into(), "abd".into())
        );
        let done = active.finish(&set(&["a", "b"])).expect("finishes");
        assert_eq!(
            (done.epoch, names(done.writers()), names(done.readers())),
            (Epoch(8), "abd".into(), "abd".into())
        );
        assert_eq!(done.moving, None);
    }

    #[test]
    fn each_step_wants_its_evidence() {
        let begun = record(&["a", "b", "c"]).begin(2, &node("d")).expect("begins");
        let too_few = MoveError::NotFenced { known: 1, needed: 2 };
        assert_eq!(begun.activate(&set(&["a", "d"]), &set(&["c"])), Err(too_few.clone()));
        assert_eq!(begun.activate(&set(&["a", "b"]), &set(&["a"])), Err(MoveError::NotCovered));
        assert_eq!(begun.finish(&set(&["a", "b"])), Err(MoveError::NotMoving));
        let active =
            begun.activate(&set(&["a", "b"]), &set(&["a", "b"])).expect("the leaving one may be dead");
        assert_eq!(active.finish(&set(&["a"])), Err(too_few));
        assert_eq!(active.abort(), Err(MoveError::NotMoving));
        let aborted = begun.abort().expect("aborts");
        assert_eq!(aborted, ShardRecord { epoch: Epoch(7), ..record(&["a", "b", "c"]) });
    }

    #[test]
    fn what_makes_no_sense_does_not_begin() {
        let stable = record(&["a", "b", "c"]);
        assert_eq!(stable.begin(0, &node("c")), Err(MoveError::AlreadyOwner(node("c"))));
        assert_eq!(stable.begin(3, &node("d")), Err(MoveError::NoSuchSlot(3)));
        let begun = stable.begin(0, &node("d")).expect("begins");
        assert_eq!(begun.begin(1, &node("e")), Err(MoveError::Moving { slot: 0, to: node("d") }));
    }

    #[test]
    fn a_single_replica_moves_from_itself_only() {
        let begun = record(&["a"]).begin(0, &node("b")).expect("begins");
        assert_eq!(begun.activate(&set(&["a"]), &set(&[])), Err(MoveError::NotCovered));
        let active = begun.activate(&set(&["a"]), &set(&["a"])).expect("activates");
        assert_eq!(names(active.finish(&set(&["a"])).expect("finishes").slots.iter()), "b");
    }

    #[test]
    fn deletions_are_listed_until_all_nodes_have_done_them() {
        let (first, second) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let begun = record(&["a", "b", "c"]).begin(2, &node("d")).expect("begins");
        assert_eq!(begun.settle(&set(&["a", "b", "c", "d"])), Err(MoveError::NotSettled));
        let one = begun.delete(first, Vec::new()).expect("deletes");
        assert_eq!((one.epoch, one.deleted_through(), one.settled), (Epoch(7), Epoch(7), Epoch(0)));
        assert_eq!(one.delete(first, Vec::new()), Ok(one.clone()));
        let active = one.activate(&set(&["a", "b"]), &set(&["c"])).expect("a move goes on");
        let two = active.delete(second, Vec::new()).expect("deletes");
        let in_force = [&["a", "c"][..], &["a", "d"], &["b", "c", "d"], &["a", "b"]]
            .map(|known| two.is_in_force(&set(known)));
        assert_eq!(in_force, [false, false, true, true], "old and new readers must be kept from a quorum");
        assert_eq!((two.epoch, two.deletions.len()), (Epoch(9), 2));
        assert_eq!(two.settle(&set(&["a", "b", "c"])), Err(MoveError::NotSettled), "the new node has not");
        let settled = two.settle(&set(&["a", "b", "c", "d"])).expect("all have");
        assert_eq!((settled.epoch, settled.deletions.len()), (Epoch(10), 0));
        assert_eq!((settled.settled, settled.deleted_through()), (Epoch(9), Epoch(9)));
        let overdue = |record: &ShardRecord, name, done| {
            record.overdue(&node(name), Epoch(done)).map(|overdue| (overdue.through.0, overdue.missed))
        };
        assert_eq!(
            [0, 7, 8, 9].map(|done| overdue(&two, "d", done)),
            [Some((9, false)), Some((9, false)), Some((9, false)), None]
        );
        assert_eq!([8, 9].map(|done| overdue(&settled, "a", done)), [Some((9, true)), None]);
        assert_eq!(overdue(&two, "e", 0), None, "it stores nothing of the shard");
        let done = settled.finish(&set(&["a", "b"])).expect("finishes");
        assert_eq!((done.deleted_through(), names(done.slots.iter())), (Epoch(9), "abd".into()));
    }

    #[test]
    fn not_more_deletions_than_fit_a_record() {
        let mut full = record(&["a", "b", "c"]);
        for id in 0..DELETIONS_MAX {
            full = full.delete(Uuid::from_u128(id as u128), Vec::new()).expect("deletes");
        }
        let more = full.delete(Uuid::max(), Vec::new());
        assert_eq!(more, Err(MoveError::TooManyDeletions));
        assert_eq!(
            full.begin(0, &node("d")).and_then(|begun| begun.abort()).expect("aborts").deletions.len(),
            8
        );
    }

    #[test]
    fn the_fence() {
        let begun = record(&["a", "b", "c"]).begin(2, &node("d")).expect("begins");
        let judge = |name, epoch, access| fence(Some(&begun), &node(name), Epoch(epoch), access);
        assert_eq!(judge("a", 6, Access::Read), Fence::Current);
        assert_eq!(judge("d", 6, Access::Write), Fence::Current);
        assert_eq!(judge("d", 6, Access::Read), Fence::NotOwner);
        assert_eq!(judge("e", 6, Access::Write), Fence::NotOwner);
        assert_eq!(judge("a", 5, Access::Write), Fence::Stale(begun.clone()));
        assert_eq!(judge("a", 7, Access::Read), Fence::Behind);
        assert_eq!(fence(None, &node("a"), Epoch(1), Access::Read), Fence::Behind);
        let active = begun.activate(&set(&["a", "b"]), &set(&["c"])).expect("activates");
        assert_eq!(fence(Some(&active), &node("c"), Epoch(7), Access::Read), Fence::NotOwner);
        assert_eq!(fence(Some(&active), &node("c"), Epoch(7), Access::Write), Fence::Current);
        assert_eq!(fence(Some(&active), &node("d"), Epoch(7), Access::Read), Fence::Current);
    }

    #[test]
    fn records_of_before_moves_existed_are_read() {
        let old: ShardRecord = serde_json::from_str(r#"{"epoch":1,"slots":["a"]}"#).expect("reads");
        assert_eq!(old, ShardRecord::stable(Epoch(1), vec![node("a")]));
    }
}

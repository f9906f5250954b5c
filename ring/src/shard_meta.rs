//! What the replicas of a shard agree on, applied command by command from a log that they share.
//!
//! Pure and deterministic: the same commands give the same state everywhere.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};

use crate::{Epoch, MoveError, MoveStep, NodeId, ShardRecord};

/// Changes of a shard's record that are remembered.
const HISTORY_MAX: usize = 32;

/// A shard's metadata.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardMeta {
    /// Who owns it; none before the first command.
    pub record: Option<ShardRecord>,
    /// Windows of which all replicas hold the same, by their first millisecond.
    pub sealed: BTreeMap<i64, SealedWindow>,
    /// How the record became what it is, the latest last.
    pub history: VecDeque<RecordChange>,
}

/// A window of time that does not change any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedWindow {
    /// How often it was sealed: late samples and deletions open it again.
    pub generation: u32,
    /// Digest of its samples.
    pub digest: [u8; 32],
}

/// A change of a shard's record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordChange {
    /// When (Unix milliseconds), by the clock of the node that asked for it.
    pub at_ms: i64,
    /// The record since then.
    pub record: ShardRecord,
}

/// What can happen to a shard's metadata.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ShardCommand {
    /// The first record. Says nothing if there is one.
    Found(ShardRecord),
    /// A step of a move.
    Step {
        /// When (Unix milliseconds), by the clock of the node that asks.
        at_ms: i64,
        /// The epoch of the record that it follows.
        epoch: Epoch,
        /// Which step.
        step: RecordStep,
    },
    /// All replicas hold the same in a window.
    Seal {
        /// The epoch of the record whose nodes were compared.
        epoch: Epoch,
        /// First millisecond of the window.
        window_ms: i64,
        /// Digest of its samples.
        digest: [u8; 32],
    },
}

/// A step of a move; see [`ShardRecord`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RecordStep {
    /// Begins one.
    Begin {
        /// Which slot.
        slot: u8,
        /// To whom.
        to: NodeId,
    },
    /// The new node answers reads.
    Activate {
        /// Who has the epoch on its disk.
        fenced: BTreeSet<NodeId>,
        /// From whom the new node has fetched.
        sources: BTreeSet<NodeId>,
    },
    /// The slot is the new node's.
    Finish {
        /// Who has the epoch on its disk.
        fenced: BTreeSet<NodeId>,
    },
    /// The slot stays where it is.
    Abort,
}

impl ShardMeta {
    /// Applies a command.
    ///
    /// # Errors
    /// If the command does not fit the state, which then stays as it is. Every replica says the same.
    pub fn apply(&mut self, command: ShardCommand) -> Result<(), MoveError> {
        match command {
            ShardCommand::Found(record) => {
                self.record.get_or_insert(record);
            }
            ShardCommand::Step { at_ms, epoch, step } => {
                let record = self.record_at(epoch)?.after(&step)?;
                self.record = Some(record.clone());
                self.history.push_back(RecordChange { at_ms, record });
                while self.history.len() > HISTORY_MAX {
                    self.history.pop_front();
                }
            }
            ShardCommand::Seal { epoch, window_ms, digest } => {
                self.record_at(epoch)?;
                let sealed = self.sealed.entry(window_ms);
                let sealed = sealed.or_insert(SealedWindow { generation: 0, digest: [0; 32] });
                if sealed.generation == 0 || sealed.digest != digest {
                    *sealed = SealedWindow { generation: sealed.generation + 1, digest };
                }
            }
        }
        Ok(())
    }

    /// Whether a move is in its last step, and only the barrier is missing.
    pub fn is_finishing(&self) -> bool {
        let moving = self.record.as_ref().and_then(|record| record.moving.as_ref());
        moving.is_some_and(|moving| moving.step == MoveStep::Activated)
    }

    fn record_at(&self, epoch: Epoch) -> Result<&ShardRecord, MoveError> {
        let actual = self.record.as_ref().map_or(Epoch(0), |record| record.epoch);
        self.record
            .as_ref()
            .filter(|record| record.epoch == epoch)
            .ok_or(MoveError::WrongEpoch { expected: epoch, actual })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> NodeId {
        NodeId::new(name).expect("valid")
    }

    fn set(names: &[&str]) -> BTreeSet<NodeId> {
        names.iter().map(|name| node(name)).collect()
    }

    fn step(epoch: u64, step: RecordStep) -> ShardCommand {
        ShardCommand::Step { at_ms: 7, epoch: Epoch(epoch), step }
    }

    #[test]
    fn a_move_from_command_to_command() {
        let mut meta = ShardMeta::default();
        let begin = || RecordStep::Begin { slot: 0, to: node("d") };
        let refused = meta.apply(step(1, begin()));
        assert_eq!(refused, Err(MoveError::WrongEpoch { expected: Epoch(1), actual: Epoch(0) }));
        let first = ShardRecord::stable(Epoch::FIRST, vec![node("a"), node("b"), node("c")]);
        meta.apply(ShardCommand::Found(first.clone())).expect("founds");
        let other = ShardRecord::stable(Epoch::FIRST, vec![node("x"), node("y"), node("z")]);
        meta.apply(ShardCommand::Found(other)).expect("says nothing");
        assert_eq!(meta.record, Some(first));
        meta.apply(step(1, begin())).expect("begins");
        let twice = meta.apply(step(1, begin()));
        assert_eq!(twice, Err(MoveError::WrongEpoch { expected: Epoch(1), actual: Epoch(2) }));
        let activate = RecordStep::Activate { fenced: set(&["a", "b"]), sources: set(&["a"]) };
        meta.apply(step(2, activate)).expect("activates");
        assert!(meta.is_finishing());
        meta.apply(step(3, RecordStep::Finish { fenced: set(&["b", "c"]) })).expect("finishes");
        let record = meta.record.as_ref().expect("there");
        assert_eq!(record, &ShardRecord::stable(Epoch(4), vec![node("d"), node("b"), node("c")]));
        assert_eq!(meta.history.len(), 3);
    }

    #[test]
    fn a_window_is_sealed_anew_when_its_content_changed() {
        let mut meta = ShardMeta::default();
        meta.apply(ShardCommand::Found(ShardRecord::stable(Epoch(1), vec![node("a")]))).expect("founds");
        let mut seal = |digest| {
            let window_ms = 7_200_000;
            meta.apply(ShardCommand::Seal { epoch: Epoch(1), window_ms, digest: [digest; 32] })
                .expect("seals");
            meta.sealed[&7_200_000].generation
        };
        assert_eq!([seal(1), seal(1), seal(2)], [1, 1, 2]);
    }
}

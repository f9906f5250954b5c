//! What the replicas of a shard agree on, applied command by command from a log that they share.
//!
//! Pure and deterministic: the same commands give the same state everywhere.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use saturn_model::{Selection, WINDOW_MS};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{Epoch, MoveError, MoveStep, NodeId, ShardRecord};

/// Changes of a shard's record that are remembered.
const HISTORY_MAX: usize = 32;
/// Sealed windows that are remembered, the latest: eleven months. Each change of the state writes all of it.
const SEALED_MAX: usize = 4096;

/// A shard's metadata.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardMeta {
    /// Who owns it; none before the first command.
    pub record: Option<ShardRecord>,
    /// Windows of which all replicas hold the same, by their first millisecond: the latest ones.
    pub sealed: BTreeMap<i64, SealedWindow>,
    /// How the record became what it is, the latest last.
    pub history: VecDeque<RecordChange>,
}

/// A window of time that does not change any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedWindow {
    /// How often it was sealed: late samples and deletions open it again.
    pub generation: u32,
    /// Digest of its samples; none while it is open again.
    pub digest: Option<[u8; 32]>,
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
    /// Samples are deleted. Says nothing if that is listed in the record.
    Delete {
        /// Of the deletion.
        id: Uuid,
        /// The samples that match any of these.
        selections: Vec<Selection>,
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
    /// The deletions are done everywhere.
    Settle {
        /// Who has the epoch on its disk.
        known: BTreeSet<NodeId>,
    },
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
                if matches!(step, RecordStep::Settle { .. }) {
                    return Ok(());
                }
                self.history.push_back(RecordChange { at_ms, record });
                while self.history.len() > HISTORY_MAX {
                    self.history.pop_front();
                }
            }
            ShardCommand::Delete { id, selections } => {
                let unfounded = MoveError::WrongEpoch { expected: Epoch::FIRST, actual: Epoch(0) };
                let next = self.record.as_ref().ok_or(unfounded)?.delete(id, selections.clone())?;
                for (window_ms, sealed) in &mut self.sealed {
                    if selections.iter().any(|selection| concerns(selection, *window_ms)) {
                        sealed.digest = None;
                    }
                }
                self.record = Some(next);
            }
            ShardCommand::Seal { epoch, window_ms, digest } => {
                self.record_at(epoch)?;
                let sealed = self.sealed.entry(window_ms);
                let sealed = sealed.or_insert(SealedWindow { generation: 0, digest: None });
                if sealed.digest != Some(digest) {
                    *sealed = SealedWindow { generation: sealed.generation + 1, digest: Some(digest) };
                }
                while self.sealed.len() > SEALED_MAX {
                    self.sealed.pop_first();
                }
            }
        }
        Ok(())
    }

    /// Whether all replicas are known to hold the same in the window that begins there.
    pub fn is_sealed(&self, window_ms: i64) -> bool {
        self.sealed.get(&window_ms).is_some_and(|sealed| sealed.digest.is_some())
    }

    /// Whether all replicas are known to hold, in the window that begins there, what has this digest.
    pub fn is_sealed_as(&self, window_ms: i64, digest: &[u8; 32]) -> bool {
        self.sealed.get(&window_ms).is_some_and(|sealed| sealed.digest.as_ref() == Some(digest))
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

/// Whether a deletion may change the window that begins there.
fn concerns(selection: &Selection, window_ms: i64) -> bool {
    selection.start.0 < window_ms.saturating_add(WINDOW_MS) && window_ms <= selection.end.0
}

#[cfg(test)]
mod tests {
    use saturn_model::{TenantId, TimestampMs};

    use super::*;
    use crate::testing::{node, set};

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

    #[test]
    fn the_latest_sealed_windows_are_remembered() {
        let mut meta = ShardMeta::default();
        meta.apply(ShardCommand::Found(ShardRecord::stable(Epoch(1), vec![node("a")]))).expect("founds");
        for number in 0..SEALED_MAX as i64 + 3 {
            let window_ms = number * WINDOW_MS;
            meta.apply(ShardCommand::Seal { epoch: Epoch(1), window_ms, digest: [1; 32] }).expect("seals");
        }
        assert_eq!(meta.sealed.len(), SEALED_MAX);
        assert!(!meta.is_sealed(2 * WINDOW_MS) && meta.is_sealed(3 * WINDOW_MS));
    }

    #[test]
    fn a_deletion_is_an_epoch_of_its_own_and_opens_the_windows_that_it_concerns() {
        let mut meta = ShardMeta::default();
        let delete = |start, end| ShardCommand::Delete {
            id: Uuid::from_u128(1),
            selections: vec![Selection {
                tenant: TenantId::new("demo").expect("valid"),
                matchers: Vec::new(),
                start: TimestampMs(start),
                end: TimestampMs(end),
            }],
        };
        meta.apply(delete(0, 1)).expect_err("nobody owns the shard yet");
        meta.apply(ShardCommand::Found(ShardRecord::stable(Epoch(1), vec![node("a")]))).expect("founds");
        for window_ms in [0, WINDOW_MS, 2 * WINDOW_MS, 3 * WINDOW_MS] {
            meta.apply(ShardCommand::Seal { epoch: Epoch(1), window_ms, digest: [1; 32] }).expect("seals");
        }
        for _ in 0..2 {
            meta.apply(delete(2 * WINDOW_MS - 1, 2 * WINDOW_MS)).expect("deletes once");
            let open = meta.sealed.keys().filter(|window| !meta.is_sealed(**window)).copied();
            assert_eq!(open.collect::<Vec<_>>(), [WINDOW_MS, 2 * WINDOW_MS]);
            assert_eq!(
                meta.record.as_ref().map(|record| (record.epoch, record.deletions.len())),
                Some((Epoch(2), 1))
            );
        }
        let seal = ShardCommand::Seal { epoch: Epoch(1), window_ms: WINDOW_MS, digest: [1; 32] };
        meta.apply(seal).expect_err("the nodes were compared before the deletion");
        let seal = ShardCommand::Seal { epoch: Epoch(2), window_ms: WINDOW_MS, digest: [2; 32] };
        meta.apply(seal).expect("seals");
        assert_eq!(meta.sealed[&WINDOW_MS], SealedWindow { generation: 2, digest: Some([2; 32]) });
        meta.apply(step(2, RecordStep::Settle { known: set(&["a"]) })).expect("settles");
        let record = meta.record.expect("there");
        assert_eq!((record.epoch, record.settled, record.deletions.len()), (Epoch(3), Epoch(2), 0));
        assert!(meta.history.is_empty(), "the history is of moves");
    }
}

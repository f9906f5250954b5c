//! Situations that a batch of seeds must have been in at least once, else it proves less than it seems to.

use std::fmt;

macro_rules! marks {
    ($($name:ident),+ $(,)?) => {
        /// A situation.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Mark { $($name),+ }

        impl Mark {
            pub(crate) const ALL: &[Self] = &[$(Self::$name),+];
        }
    };
}

marks! {
    WriteAcked, WriteWithoutQuorum, WriteStartedAgain, WriteAckedUnderPastEpoch, WriteAckedWhileMoving,
    ReadComplete, ReadIncomplete, ReadStartedAgain, ReadHedged, ReadRefusedAtItsEnd, ReplicaBehind,
    MoveBegun, MoveActivated, MoveFinished, MoveAborted, FinishedWithoutItsTarget, FetchedFromTheOthers,
    StreamResumed, StreamRefused, SourceSettled, SingleReplicaMoved,
    ProposalWithoutAnswer, ProposalRefused, LeaderLost, TwoRebalancers,
    NodeCrashed, UnsyncedLost, TargetCrashed, SourceCrashed, NodeLost, NodeLostWhileMoving, NodeReplaced,
    NodeJoined, NodeDrained, NodeUndrained, NodeForgotten, MovesPaused,
    DeletionDone, DeletionUndone, DeletionSettled, DeletionWhileMoving, OldCopyDropped, AppendDeletedBeforeItsEnd,
    CopyDropped, DropRefused, Partitioned, CutOneWay, NodeSlow, Healed, ClockJumped, PacketDuplicated,
    GossipSaysDown, GossipSaysUpAgain,
}

/// How often each was seen.
#[derive(Clone)]
pub(crate) struct Marks(Vec<u64>);

impl fmt::Display for Marks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Mark::ALL.iter().try_for_each(|mark| write!(f, "{mark:?} {} ", self.count(*mark)))
    }
}

impl Default for Marks {
    fn default() -> Self {
        Self(vec![0; Mark::ALL.len()])
    }
}

impl Marks {
    pub(crate) fn see(&mut self, mark: Mark) {
        self.0[mark as usize] += 1;
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.0.iter_mut().zip(&other.0).for_each(|(mine, theirs)| *mine += theirs);
    }

    pub(crate) fn count(&self, mark: Mark) -> u64 {
        self.0[mark as usize]
    }

    /// Those never seen.
    pub(crate) fn unseen(&self) -> Vec<Mark> {
        Mark::ALL.iter().copied().filter(|mark| self.count(*mark) == 0).collect()
    }
}

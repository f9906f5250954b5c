//! Bugs that the simulated shells can have, to show that the simulator finds them. The cores are the shipped ones.

/// What is done wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    /// A replica answers reads of past epochs.
    SkippedFence,
    /// A move goes on although nobody was told the record.
    SkippedBarrier,
    /// Activation and the last step are decided at once.
    TwoStepMove,
    /// Any two of the four nodes acknowledge a write.
    AnyTwoOfFour,
    /// The new node takes what one node of the shard has, whatever record that holds.
    UnfencedSource,
    /// A replica stores what was written under past epochs.
    StaleEpochAccepted,
    /// A source gives out what it has while appends of the past epoch are under way.
    UnsettledSource,
    /// A replica acknowledges what is not on its disk.
    AckBeforeSync,
    /// A copy is deleted by a record from before the comparison.
    DropWithoutLook,
    /// A read that took long counts although the record has changed meanwhile.
    ReadWithoutSecondLook,
    /// A node that was handed the whole placement adopts it without deleting.
    DeletionMissed,
    /// A node deletes while appends that it let in before are under way.
    UnsettledDeletion,
}

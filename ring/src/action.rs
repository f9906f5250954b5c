//! What goes into the membership core, and what comes out: its configuration, actions and events.

use std::net::SocketAddr;

use crate::seal::{BOOT_NONCE_BYTES, DropReason, KeyRing};
use crate::{ClusterId, DurablePosition, Member};

/// What a [`crate::Membership`] starts from.
#[derive(Clone, Debug)]
pub struct MembershipConfig {
    /// This node, with the addresses at which others reach it.
    pub me: Member,
    /// Larger than at any earlier start of this node: milliseconds since the Unix epoch at start will do.
    pub boot: u64,
    /// Keys of the packets.
    pub keys: KeyRing,
    /// Where to look for the cluster; this node's own address may be among them.
    pub seeds: Vec<SocketAddr>,
    /// Fresh random bytes, never used before: they keep the packets' nonces unique.
    pub boot_nonce: [u8; BOOT_NONCE_BYTES],
    /// Seed of the choice of whom to probe.
    pub rng_seed: u64,
    /// The cluster, if this node already belongs to one.
    pub cluster: Option<ClusterId>,
    /// Version of the placement that this node holds, 0 for none.
    pub placement_version: u64,
}

/// What the caller must do next.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "a handful of actions a second, kept for microseconds")]
pub enum Action {
    /// Send a packet over UDP.
    Send {
        /// To whom.
        to: SocketAddr,
        /// At most [`crate::PACKET_BYTES_MAX`] bytes.
        packet: Vec<u8>,
    },
    /// Take notice.
    Event(MembershipEvent),
}

/// What became known about the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MembershipEvent {
    /// A member is there, for the first time or again.
    Up(Member),
    /// A member is gone or has left. It stays listed.
    Down(Member),
    /// A later life of a node took the place of an earlier one: a restart, perhaps elsewhere. If the
    /// earlier one was down, [`MembershipEvent::Up`] follows.
    Replaced {
        /// What the node was before.
        old: Member,
        /// What it is now.
        new: Member,
    },
    /// A member said that it now holds this version of the placement.
    PlacementVersion {
        /// Who.
        member: Member,
        /// Which; 0 for none.
        version: u64,
    },
    /// A member said how far its log is on its disk: further than it said before, if it did.
    DurablePosition {
        /// Who.
        member: Member,
        /// How far.
        position: DurablePosition,
    },
    /// A packet was dropped for this reason, for the first time in this run. Later ones are only counted.
    PacketDropped {
        /// From where.
        from: SocketAddr,
        /// Why; [`DropReason::ForeignCluster`] and [`DropReason::NameConflict`] have events of their own.
        reason: DropReason,
    },
    /// A packet of another cluster with the same secret arrived. Reported at most once a minute.
    ForeignCluster {
        /// From where.
        from: SocketAddr,
        /// Which cluster.
        cluster: ClusterId,
    },
    /// Another process uses this node's id. Who was there first keeps it, if that was for some seconds; else who
    /// started later. Reported at most once a minute.
    NameConflict {
        /// The other one, with its address and generation.
        other: Member,
        /// Which of the two the cluster listens to.
        winner: ConflictWinner,
    },
    /// The others thought this node dead; it is on its way back.
    Rejoining,
}

/// Who keeps a contested node id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConflictWinner {
    /// This process.
    Myself,
    /// The other one: this process stays out of the cluster until it is restarted or renamed.
    Other,
}

/// Packets that were not used, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dropped([u64; DropReason::ALL.len()]);

impl Dropped {
    /// Each reason with its count since start.
    pub fn iter(&self) -> impl Iterator<Item = (DropReason, u64)> {
        DropReason::ALL.into_iter().zip(self.0)
    }

    /// The count of one reason.
    pub fn get(&self, reason: DropReason) -> u64 {
        self.0[reason as usize]
    }

    pub(crate) fn count(&mut self, reason: DropReason) {
        self.0[reason as usize] += 1;
    }
}

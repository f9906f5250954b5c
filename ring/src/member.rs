//! A member of the cluster, and the identity under which it gossips.
//!
//! The identity is the member plus its boot number. Two identities with one node id are two lives of one
//! node: the larger boot number wins, everywhere and for ever, so a restarted node replaces its old
//! life at once, whatever address it comes back on.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{Generation, NodeId, Zone};

/// A node as the others know it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Member {
    /// Its name.
    pub id: NodeId,
    /// The life of its data directory.
    pub generation: Generation,
    /// Where it stands.
    pub zone: Zone,
    /// Where its gossip packets go (UDP).
    pub gossip_addr: SocketAddr,
    /// Where its peers call it.
    pub grpc_addr: SocketAddr,
    /// Where its users call it.
    pub http_addr: SocketAddr,
}

/// How far a node's log is known to be on its disk.
///
/// It grows for as long as the data directory lives, over restarts too. So a node that comes back with a lower one than
/// others remember of that directory has lost what it had acknowledged: its disk lied about that, or an older copy took
/// its place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DurablePosition {
    /// Number of a file of its log.
    pub segment: u64,
    /// Every byte of that file before this one is durable, as is all of the files before.
    pub offset: u64,
}

impl fmt::Display for DurablePosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "byte {} of file {}", self.offset, self.segment)
    }
}

/// What gossip thinks of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Liveness {
    /// It answers.
    Alive,
    /// It missed a probe and has a few seconds to object.
    Suspect,
    /// It is gone, or has left.
    Down,
}

/// A member and what is known about it now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberState {
    /// The member, as it described itself.
    pub member: Member,
    /// Whether it answers.
    pub liveness: Liveness,
    /// Since when (time since this process started) `liveness` is what it is.
    pub since: Duration,
    /// The version of the placement that the member itself last said it holds (0: none); `None` while
    /// no packet has come from it directly.
    pub placement_version: Option<u64>,
}

/// What gossip identifies a member by. Field order matters: identities compare by boot number first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Identity {
    /// Grows with every start of the node, and whenever the cluster has declared this identity dead.
    pub(crate) boot: u64,
    /// Who.
    pub(crate) member: Member,
}

impl Identity {
    /// Whether `self` replaces `other`, another identity of the same node.
    pub(crate) fn beats(&self, other: &Self) -> bool {
        self > other
    }
}

impl foca::Identity for Identity {
    type Addr = NodeId;

    /// Never: [`crate::Membership`] paces rejoining, so that two nodes of one name cannot start a storm.
    fn renew(&self) -> Option<Self> {
        None
    }

    fn addr(&self) -> NodeId {
        self.member.id.clone()
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        self.beats(adversary)
    }
}

//! Drives the membership core over a UDP socket.
//!
//! One task owns the core and the socket; everybody else reads the [`View`] that it publishes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::bail;
use saturn_ring::{
    Action, ClusterId, ConflictWinner, DropReason, Dropped, KeyRing, Liveness, Member, MemberState,
    Membership, MembershipEvent, NodeId,
};
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, watch};

use crate::durability::Positions;

/// Largest datagram that is read; gossip packets are at most 1,400 bytes.
const DATAGRAM_BYTES_MAX: usize = 2048;

/// How long after its start a node ends when its id turns out to be another process's.
const GIVE_WAY_WITHIN: Duration = Duration::from_secs(60);

/// What gossip knows, as of the last change.
#[derive(Clone, Default)]
pub(crate) struct View {
    /// Everybody ever heard of, this node included.
    pub(crate) members: Arc<[MemberState]>,
    /// Packets that were not let in, by reason.
    pub(crate) dropped: Dropped,
    /// A node with the same secret that belongs to another cluster, if one was heard of.
    pub(crate) foreign: Option<ForeignNode>,
}

/// Where a node of another cluster spoke from.
#[derive(Clone, Debug)]
pub(crate) struct ForeignNode {
    pub(crate) address: SocketAddr,
    pub(crate) cluster: ClusterId,
}

impl View {
    /// The member `id`, if it was ever heard of.
    pub(crate) fn member(&self, id: &NodeId) -> Option<&MemberState> {
        self.members.iter().find(|state| state.member.id == *id)
    }

    /// Whether `id` is believed to be there; a suspect still is.
    pub(crate) fn is_alive(&self, id: &NodeId) -> bool {
        self.member(id).is_some_and(|state| state.liveness != Liveness::Down)
    }
}

/// What the gossip task is told.
pub(crate) enum Command {
    /// The node now belongs to this cluster and holds this version of its placement.
    SetPlacement(ClusterId, u64),
    /// What the names of the join list resolve to now.
    SetSeeds(Vec<SocketAddr>),
    /// The cluster's secrets have changed.
    SetKeys(KeyRing),
    /// Say goodbye and end.
    Leave,
}

/// Runs until [`Command::Leave`] or until the socket fails.
pub(crate) async fn run(
    mut membership: Membership,
    socket: UdpSocket,
    started: Instant,
    mut commands: mpsc::Receiver<Command>,
    (view, positions): (watch::Sender<View>, Arc<Positions>),
) -> anyhow::Result<()> {
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    let mut actions = Vec::new();
    let mut leaving = false;
    let me = membership.me().clone();
    membership.set_durable_position(positions.own());
    membership.handle_tick(started.elapsed(), &mut actions);
    loop {
        let namesake = perform(&mut actions, &membership, &socket, &view, &positions).await;
        if leaving {
            return Ok(());
        }
        if let Some(namesake) = namesake.filter(|_| started.elapsed() < GIVE_WAY_WITHIN) {
            bail!(why_give_way(&me, &namesake));
        }
        let wait = membership.next_tick().saturating_sub(started.elapsed()).max(Duration::from_millis(1));
        tokio::select! {
            received = socket.recv_from(&mut buffer) => match received {
                Ok((len, from)) => {
                    membership.handle_packet(started.elapsed(), from, &buffer[..len], &mut actions);
                }
                // Linux reports an earlier packet's ICMP refusal here: the peer is down, not the socket.
                Err(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => {}
                Err(e) => return Err(anyhow::Error::new(e).context("the gossip socket failed")),
            },
            () = tokio::time::sleep(wait) => membership.handle_tick(started.elapsed(), &mut actions),
            command = commands.recv() => match command {
                Some(Command::SetPlacement(cluster, version)) => {
                    membership.set_cluster_id(cluster);
                    membership.set_placement_version(version);
                }
                Some(Command::SetSeeds(seeds)) => membership.set_seeds(seeds),
                Some(Command::SetKeys(keys)) => membership.set_keys(keys),
                Some(Command::Leave) | None => {
                    membership.leave(started.elapsed(), &mut actions);
                    leaving = true;
                }
            },
        }
        // What the core makes of this is in the packets from the next turn on.
        membership.set_durable_position(positions.own());
    }
}

/// Why a node that has just started ends: the cluster listens to another process of its id.
fn why_give_way(me: &Member, namesake: &Member) -> String {
    let Member { id, gossip_addr, .. } = namesake;
    if me.generation == namesake.generation {
        return format!(
            "node {id} runs at {gossip_addr} already, with the data directory of which this one is a copy: a copy \
             lacks what was written since, and must not stand in for it; start with an empty --data-dir and a \
             --node.id of its own, or stop that process first"
        );
    }
    format!(
        "node {id} runs at {gossip_addr} already, with another data directory (generation {}, this one is {}): give \
         this node a --node.id of its own, or stop that process first",
        namesake.generation, me.generation
    )
}

/// Sends what the core wants sent, logs what it saw, publishes the view. Returns the process that has taken this
/// node's id.
async fn perform(
    actions: &mut Vec<Action>,
    membership: &Membership,
    socket: &UdpSocket,
    view: &watch::Sender<View>,
    positions: &Positions,
) -> Option<Member> {
    let (mut foreign, mut namesake) = (None, None);
    for action in actions.drain(..) {
        match action {
            Action::Send { to, packet } => {
                // Gossip is best effort: what is lost is sent again by the protocol.
                if let Err(e) = socket.send_to(&packet, to).await {
                    tracing::debug!(%to, error = %e, "gossip packet not sent");
                }
            }
            Action::Event(event) => {
                log_event(&event);
                if let MembershipEvent::NameConflict { other, winner: ConflictWinner::Other } = &event {
                    namesake = Some(other.clone());
                }
                match event {
                    MembershipEvent::ForeignCluster { from, cluster } => {
                        foreign = Some(ForeignNode { address: from, cluster });
                    }
                    MembershipEvent::DurablePosition { member, position } => {
                        positions.hear(&member.id, member.generation, position);
                    }
                    _ => {}
                }
            }
        }
    }
    let dropped = membership.dropped();
    view.send_if_modified(|view| {
        let unchanged = view.members.iter().eq(membership.members()) && view.dropped == dropped;
        if unchanged && foreign.is_none() {
            return false;
        }
        view.members = membership.members().cloned().collect();
        view.dropped = dropped;
        view.foreign = foreign.or(view.foreign.take());
        true
    });
    namesake
}

fn log_event(event: &MembershipEvent) {
    match event {
        MembershipEvent::Up(member) => {
            tracing::info!(node = %member.id, zone = %member.zone, address = %member.gossip_addr, "member is up");
        }
        MembershipEvent::Down(member) => {
            tracing::info!(node = %member.id, zone = %member.zone, address = %member.gossip_addr, "member is down");
        }
        MembershipEvent::Replaced { new, .. } => {
            tracing::info!(node = %new.id, zone = %new.zone, address = %new.gossip_addr, "member has restarted");
        }
        MembershipEvent::PlacementVersion { member, version } => {
            tracing::debug!(node = %member.id, version, "member holds placement");
        }
        // As often as it grows.
        MembershipEvent::DurablePosition { .. } => {}
        MembershipEvent::ForeignCluster { from, cluster } => {
            tracing::warn!(%from, %cluster, "packet of another cluster dropped");
        }
        MembershipEvent::PacketDropped { from, reason } => log_drop(*from, *reason),
        MembershipEvent::NameConflict { other, winner: ConflictWinner::Myself } => {
            tracing::warn!(address = %other.gossip_addr, "another process uses this node's id; the cluster listens to this one");
        }
        MembershipEvent::NameConflict { other, winner: ConflictWinner::Other } => {
            tracing::error!(
                address = %other.gossip_addr,
                "another process uses this node's id, and the cluster listens to it: stop one of them or give it another --node.id"
            );
        }
        MembershipEvent::Rejoining => tracing::info!("the others thought this node dead; rejoining"),
    }
}

/// Explains the first packet that was dropped for a reason; the others are in `saturn_ring_dropped_packets_total`.
fn log_drop(from: SocketAddr, reason: DropReason) {
    let why = match reason {
        DropReason::UnknownKey => {
            "it is sealed with a secret that this node does not have: compare the nodes' secret files"
        }
        DropReason::Tampered => "it was altered on the way, or its sender only guesses at the secret",
        DropReason::Version => "another version of saturn, which this one does not understand, made it",
        DropReason::Replayed => "it came before: somebody repeats packets, or the network does",
        DropReason::Length | DropReason::Malformed => "it is no packet of a member",
        DropReason::ForeignCluster | DropReason::NameConflict | DropReason::FromMyself => {
            "it is not for here"
        }
    };
    let reason_text = reason.as_str();
    match reason {
        DropReason::UnknownKey | DropReason::Tampered | DropReason::Version => {
            tracing::warn!(%from, reason = reason_text, why, "gossip packet dropped; others like it are only counted");
        }
        _ => {
            tracing::info!(%from, reason = reason_text, why, "gossip packet dropped; others like it are only counted");
        }
    }
}

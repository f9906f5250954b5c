//! How this node comes to belong to a cluster.
//!
//! [`establish`] returns with the placement under which the node serves: its own from an earlier run, the
//! one it forms as the founder, or the one it pulls from a member. A node whose data directory does
//! not fit the cluster refuses to go on, with the reason.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use saturn_proto::peer::confirm_reply::Verdict;
use saturn_proto::peer::{ConfirmReply, ConfirmRequest, PullPlacementRequest};
use saturn_replication::{Held, PlacementHandle};
use saturn_ring::{
    ClusterId, DurablePosition, FormationDecision, FormationView, Generation, Liveness, Member, MemberChange,
    MemberError, MemberState, NodeId, Placement, PlacementMember, decide,
};
use saturn_storage::Engine;
use tokio::sync::{mpsc, watch};
use uuid::Uuid;

use crate::authority::Authority;
use crate::durability::{Lacking, Positions, position_from};
use crate::gossip::{Command, View};
use crate::identity::DataDir;
use crate::peers::Connections;
use crate::raft::{GroupId, Groups, ProposeError, Voter};
use crate::replica::Admission;
use crate::{deletions, shepherd, wire};

/// How often names of the join list are looked up again.
const RESOLVE_EVERY: Duration = Duration::from_secs(5);
/// Time between two questions for what others remember.
const ASK_EVERY: Duration = Duration::from_millis(100);
/// Time between two attempts to be confirmed.
const CONFIRM_EVERY: Duration = Duration::from_millis(300);
/// How long a member may take to hand over its placement.
const PULL_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a node waits for what members remember of it whom gossip does not know to be down.
const REMEMBER_WITHIN: Duration = Duration::from_secs(2);
/// How long if gossip has heard of nobody yet.
const ANYBODY_WITHIN: Duration = Duration::from_secs(10);
/// How long a node whose disk has lost something waits before it becomes another one: if the process lives of whose data
/// directory this is a copy, gossip says so before, and this one ends.
const BEFORE_RENEWAL: Duration = Duration::from_secs(10);
/// How long after its start a node still leaves when it finds itself among strangers.
const STRANGERS_WITHIN: Duration = Duration::from_secs(60);

/// What joining needs to know.
pub(crate) struct Joining {
    pub(crate) me: Member,
    pub(crate) data: DataDir,
    /// `HOST:PORT` of the gossip of every founding member, the founder first.
    pub(crate) join: Vec<String>,
    pub(crate) replication_factor: u8,
    pub(crate) shards: u16,
    /// How much this node should hold, compared with others of its zone.
    pub(crate) weight: u32,
    pub(crate) started: Instant,
    pub(crate) view: watch::Receiver<View>,
    pub(crate) gossip: mpsc::Sender<Command>,
    pub(crate) connections: Arc<Connections>,
    /// Told why the node is not ready yet.
    pub(crate) waiting_for: watch::Sender<String>,
    pub(crate) positions: Arc<Positions>,
}

/// Looks up the join list. Names that do not resolve are left out, and logged.
pub(crate) async fn resolve(join: &[String]) -> Vec<SocketAddr> {
    let mut addresses = Vec::new();
    for entry in join {
        match tokio::net::lookup_host(entry).await {
            // A list written for IPv4 listeners may name hosts that have IPv6 addresses as well.
            Ok(found) => addresses.extend(found.min_by_key(SocketAddr::is_ipv6)),
            Err(e) => tracing::info!(entry, error = %e, "an entry of the join list does not resolve"),
        }
    }
    addresses
}

/// Comes back with the placement to serve under, and the door for appends. Whatever the placement is changed to is in
/// force once this node has done the deletions of its shards, for which it closes the door.
pub(crate) async fn establish(
    joining: &Joining,
    engine: &Engine,
    lacking: &Arc<Lacking>,
) -> anyhow::Result<(Arc<PlacementHandle>, Admission)> {
    let placement = match joining.data.load_placement()? {
        Some(placement) => placement,
        None => form_or_pull(joining).await?,
    };
    check_shape(&placement, joining)?;
    let announce = Command::SetPlacement(placement.cluster, placement.version);
    joining.gossip.send(announce).await.context("the gossip task has ended")?;
    let (data, engine, me) = (joining.data.clone(), engine.clone(), joining.me.id.clone());
    let lacking = Arc::clone(lacking);
    let admission = Admission::default();
    let door = admission.clone();
    let persist = move |placement: &Placement| {
        let mut held: Held = None;
        if deletions::prepare(&engine, &me, placement)? {
            held = Some(Box::new(door.close()));
            deletions::carry_out(&engine, &me, &lacking, placement)?;
        }
        data.save_placement(placement)?;
        Ok(held)
    };
    Ok((Arc::new(PlacementHandle::new(placement, persist)), admission))
}

/// What was fixed when the cluster formed cannot be changed by a flag; better to say so than to ignore it.
fn check_shape(placement: &Placement, joining: &Joining) -> anyhow::Result<()> {
    let settings = [
        ("cluster.shards", u64::from(joining.shards), u64::from(placement.shard_count())),
        (
            "cluster.replication-factor",
            u64::from(joining.replication_factor),
            u64::from(placement.replication_factor),
        ),
    ];
    match settings.into_iter().find(|(_, wanted, formed)| wanted != formed) {
        None => Ok(()),
        Some((flag, wanted, formed)) => bail!(
            "--{flag} is {wanted}, but cluster {} was formed with {formed}, which cannot be changed: set it to {formed}",
            placement.cluster
        ),
    }
}

/// Asks the members what they remember of this node's log, before it takes part in anything. An error if the disk has
/// lost something: then the node starts again as another one, see `durability.rs`.
pub(crate) async fn recall(placement: &Placement, joining: &Joining) -> anyhow::Result<()> {
    let recovered = joining.positions.recovered();
    let remembered = if joining.data.was_member() { remembered(placement, joining).await } else { None };
    let Some(remembered) = remembered.filter(|remembered| *remembered > recovered) else {
        joining.positions.judged();
        return Ok(());
    };
    tracing::error!(
        %remembered, found = %recovered,
        "the disk has lost what this node had acknowledged: others remember that its log was durable up to a later place \
         than it ends at; either the disk does not keep what it says that it has synced, or the data directory was \
         replaced by an older copy. The node starts again, and takes what is missing from the others before it answers reads"
    );
    joining.waiting_for.send_replace("the disk has lost what this node had acknowledged".to_owned());
    tokio::time::sleep(BEFORE_RENEWAL).await;
    joining.data.note_loss()?;
    Err(StartAgain.into())
}

/// The node must start again: its data directory belongs to another generation from then on.
#[derive(Debug, thiserror::Error)]
#[error("the node starts again with another generation of its data directory")]
pub(crate) struct StartAgain;

/// The highest position of this data directory that any member remembers.
async fn remembered(placement: &Placement, joining: &Joining) -> Option<DurablePosition> {
    let started = Instant::now();
    let others = placement.members.iter().map(|member| &member.id).filter(|id| **id != joining.me.id);
    let mut silent: BTreeSet<&NodeId> = others.collect();
    let (mut remembered, mut was_heard) = (None, false);
    while !silent.is_empty() {
        let view = joining.view.borrow().clone();
        silent.retain(|id| view.member(id).is_none_or(|state| state.liveness != Liveness::Down));
        let known: Vec<&MemberState> = silent.iter().filter_map(|id| view.member(id)).collect();
        was_heard |= !known.is_empty();
        let replies = known.iter().map(|state| ask_memory(placement.cluster, &state.member, joining));
        let replies = futures::future::join_all(replies).await;
        for (state, reply) in known.iter().zip(replies) {
            if let Ok(position) = reply {
                remembered = remembered.max(position);
                silent.remove(&state.member.id);
            }
        }
        if started.elapsed() > if was_heard { REMEMBER_WITHIN } else { ANYBODY_WITHIN } {
            break;
        }
        if !silent.is_empty() {
            joining
                .waiting_for
                .send_replace("waiting for what others remember of this node's disk".to_owned());
            tokio::time::sleep(ASK_EVERY).await;
        }
    }
    remembered
}

async fn ask_memory(
    cluster: ClusterId,
    member: &Member,
    joining: &Joining,
) -> Result<Option<DurablePosition>, tonic::Status> {
    let mut client = joining.connections.control(member.grpc_addr);
    let message = ConfirmRequest {
        cluster: bytes::Bytes::copy_from_slice(cluster.0.as_bytes()),
        node: joining.me.id.to_string(),
        generation: bytes::Bytes::copy_from_slice(joining.me.generation.0.as_bytes()),
    };
    let reply = tokio::time::timeout(REMEMBER_WITHIN, client.confirm(message)).await;
    let reply = reply.map_err(|_| tonic::Status::deadline_exceeded("no answer"))??;
    Ok(reply.into_inner().remembered.as_ref().map(position_from))
}

/// Comes back when the cluster has confirmed that this node, with its very disk, is a member: before, it serves
/// nothing. A node that the cluster does not know joins it.
pub(crate) async fn become_member(
    authority: &Authority,
    joining: &Joining,
    lacking: &Lacking,
) -> anyhow::Result<()> {
    let former = joining.data.load_losses()?.former.map(Generation);
    loop {
        let placement = authority.placement.load();
        let listed = placement.members.iter().find(|member| member.id == joining.me.id);
        let wanted = PlacementMember {
            weight: joining.weight,
            ..listed.cloned().unwrap_or_else(|| PlacementMember::from(&joining.me))
        };
        let wanted =
            PlacementMember { zone: joining.me.zone.clone(), generation: joining.me.generation, ..wanted };
        let why = match listed {
            None if joining.data.was_member() => bail!(forgotten(&joining.me.id)),
            Some(listed) if *listed == wanted => match confirm(authority).await {
                Ok(()) => {
                    if stands_in(authority, joining) {
                        tracing::warn!(
                            "this data directory takes the place of one that is lost, and is filled by the others"
                        );
                        joining.data.note_stand_in()?;
                        lacking.stand_in();
                    }
                    return joining.data.remember_membership();
                }
                Err(Unconfirmed::No(reason)) => bail!(reason),
                Err(Unconfirmed::Unknown(why)) => why,
            },
            Some(listed) if Some(listed.generation) == former => {
                let (id, generation) = (listed.id.clone(), wanted.generation);
                let renew = MemberChange::Renew { id, former: listed.generation, generation };
                match authority.change_members(renew).await {
                    Ok(()) => "this node has just become another one".to_owned(),
                    Err(ProposeError::Refused(reason)) => bail!(reason),
                    Err(error) => error.to_string(),
                }
            }
            _ => match authority.change_members(MemberChange::Register(wanted)).await {
                Ok(()) => "this node has just joined".to_owned(),
                Err(ProposeError::Refused(reason)) => bail!(reason),
                Err(error) => error.to_string(),
            },
        };
        joining.waiting_for.send_replace(format!("waiting for the cluster to confirm this node: {why}"));
        tokio::time::sleep(CONFIRM_EVERY).await;
    }
}

/// Whether this directory, new to the cluster, has been given slots that another one filled before: whoever is new
/// otherwise holds none, but for the founders, whose member list is the first.
fn stands_in(authority: &Authority, joining: &Joining) -> bool {
    let placement = authority.placement.load();
    !joining.data.was_member() && placement.version > 1 && placement.slots_of(&authority.me) > 0
}

pub(crate) fn forgotten(me: &NodeId) -> String {
    format!("the cluster has forgotten node {me}: to join it again, start with an empty --data-dir")
}

/// Why a node is not confirmed.
enum Unconfirmed {
    /// It is not the member that it says it is.
    No(String),
    /// Nobody could say.
    Unknown(String),
}

/// Asks whoever leads the member list.
async fn confirm(authority: &Authority) -> Result<(), Unconfirmed> {
    let placement = authority.placement.load();
    let control = authority.groups.control();
    let mut last = "nobody could be asked".to_owned();
    for member in &placement.members {
        let reply = if member.id == authority.me {
            judge(&authority.groups, &authority.placement, &authority.me, authority.voter).await
        } else {
            let Ok(mut client) = control.client(&member.id) else { continue };
            let message = ConfirmRequest {
                cluster: bytes::Bytes::copy_from_slice(placement.cluster.0.as_bytes()),
                node: authority.me.to_string(),
                generation: bytes::Bytes::copy_from_slice(authority.voter.0.as_bytes()),
            };
            match tokio::time::timeout(PULL_TIMEOUT, client.confirm(message)).await {
                Ok(Ok(reply)) => reply.into_inner(),
                Ok(Err(status)) => {
                    last = format!("{}: {}", member.id, status.message());
                    continue;
                }
                Err(_) => {
                    last = format!("{}: no answer", member.id);
                    continue;
                }
            }
        };
        match reply.verdict() {
            Verdict::Unknown => last = "nobody leads the member list yet".to_owned(),
            Verdict::NotAMember => {
                return Err(Unconfirmed::No(forgotten(&authority.me)));
            }
            Verdict::OtherGeneration => {
                let error = MemberError::OtherGeneration(authority.me.clone());
                return Err(Unconfirmed::No(error.to_string()));
            }
            Verdict::Member => {
                let theirs = wire::placement_from_bytes(&reply.placement);
                let theirs = theirs.map_err(|e| Unconfirmed::Unknown(e.to_string()))?;
                let adopted = shepherd::adopt(&authority.placement, theirs).await;
                return adopted.map(drop).map_err(|e| Unconfirmed::Unknown(format!("{e:#}")));
            }
        }
    }
    Err(Unconfirmed::Unknown(last))
}

/// Whether a node is a member, if this node leads the member list and so can say.
pub(crate) async fn judge(
    groups: &Groups,
    placement: &PlacementHandle,
    node: &NodeId,
    voter: Voter,
) -> ConfirmReply {
    if groups.linearize(GroupId::CLUSTER).await.is_err() {
        return ConfirmReply::default();
    }
    let Some(meta) = groups.cluster_meta().filter(|meta| meta.version > 0) else {
        return ConfirmReply::default();
    };
    let verdict = match meta.member(node) {
        None => Verdict::NotAMember,
        Some(member) if Voter::from(member) != voter => Verdict::OtherGeneration,
        Some(_) => Verdict::Member,
    };
    let placement = wire::placement_to_bytes(&placement.load());
    ConfirmReply { verdict: verdict.into(), placement, remembered: None }
}

async fn form_or_pull(joining: &Joining) -> anyhow::Result<Placement> {
    let mut view = joining.view.clone();
    let mut join = Vec::new();
    let mut resolved: Option<Instant> = None;
    loop {
        if resolved.is_none_or(|at| at.elapsed() >= RESOLVE_EVERY) && join.len() < joining.join.len() {
            join = resolve(&joining.join).await;
            resolved = Some(Instant::now());
            let seeds = Command::SetSeeds(join.clone());
            joining.gossip.send(seeds).await.context("the gossip task has ended")?;
        }
        let seen = view.borrow_and_update().clone();
        if let Some(placement) = step(joining, &join, &seen).await? {
            return Ok(placement);
        }
        let changed = tokio::time::timeout(Duration::from_millis(500), view.changed()).await;
        if let Ok(Err(_)) = changed {
            bail!("the gossip task has ended");
        }
    }
}

/// One look at the world: a placement, or another round.
async fn step(joining: &Joining, join: &[SocketAddr], view: &View) -> anyhow::Result<Option<Placement>> {
    let unresolved = joining.join.len() - join.len();
    if unresolved > 0 {
        let text = format!("{unresolved} entries of the join list do not resolve");
        joining.waiting_for.send_replace(text);
    }
    let decision = decide(&FormationView {
        now: joining.started.elapsed(),
        me: &joining.me,
        placement_version: 0,
        join,
        replication_factor: joining.replication_factor,
        members: view.members.iter().collect(),
    });
    match decision {
        FormationDecision::Pull(holders) => Ok(pull(joining, &holders).await),
        FormationDecision::Form(members) if unresolved == 0 => {
            let cluster = ClusterId(Uuid::new_v4());
            let placement = Placement::form(cluster, &members, joining.shards, joining.replication_factor)?;
            joining.data.save_placement(&placement)?;
            tracing::info!(%cluster, members = members.len(), shards = joining.shards, "cluster formed");
            Ok(Some(placement))
        }
        FormationDecision::Form(_) | FormationDecision::Formed => Ok(None),
        FormationDecision::Wait(reason) => {
            joining.waiting_for.send_if_modified(|text| {
                let new = reason.to_string();
                let changed = *text != new;
                *text = new;
                changed
            });
            Ok(None)
        }
    }
}

/// Fetches the placement from the first of `holders` that answers.
async fn pull(joining: &Joining, holders: &[Member]) -> Option<Placement> {
    for holder in holders {
        let mut client = joining.connections.reader(holder.grpc_addr);
        let call = client.pull_placement(PullPlacementRequest::default());
        let reply = match tokio::time::timeout(PULL_TIMEOUT, call).await {
            Ok(Ok(reply)) => reply.into_inner(),
            Ok(Err(e)) => {
                tracing::info!(from = %holder.id, error = %e, "placement not pulled");
                continue;
            }
            Err(_) => {
                tracing::info!(from = %holder.id, "placement not pulled: no answer");
                continue;
            }
        };
        let stored = wire::placement_from_bytes(&reply.placement).map_err(anyhow::Error::from);
        match stored.and_then(|placement| joining.data.save_placement(&placement).map(|()| placement)) {
            Ok(placement) => {
                tracing::info!(cluster = %placement.cluster, from = %holder.id, "joined the cluster");
                return Some(placement);
            }
            Err(e) => tracing::warn!(from = %holder.id, error = format!("{e:#}"), "placement not adopted"),
        }
    }
    None
}

/// Ends with an error if the members that this node was told to join belong to another cluster.
pub(crate) async fn watch_for_strangers(
    placement: Arc<PlacementHandle>,
    me: Member,
    started: Instant,
    mut view: watch::Receiver<View>,
) -> anyhow::Result<()> {
    while started.elapsed() < STRANGERS_WITHIN {
        let placement = placement.load();
        {
            let view = view.borrow_and_update();
            let others = placement.members.iter().filter(|member| member.id != me.id);
            let among_friends = others.clone().any(|member| view.is_alive(&member.id));
            if among_friends {
                return Ok(());
            }
            if let Some(foreign) = &view.foreign {
                bail!(
                    "the data directory belongs to cluster {}, but the node at {} belongs to cluster {}: \
                     check --cluster.join and --data-dir",
                    placement.cluster,
                    foreign.address,
                    foreign.cluster
                );
            }
        }
        if let Ok(Err(_)) = tokio::time::timeout(Duration::from_secs(1), view.changed()).await {
            return Ok(());
        }
    }
    Ok(())
}

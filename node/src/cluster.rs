//! How this node comes to belong to a cluster.
//!
//! [`establish`] returns with the placement under which the node serves: its own from an earlier run, the
//! one it forms as the founder, or the one it pulls from a member. A node whose data directory does
//! not fit the cluster refuses to go on, with the reason.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use saturn_proto::peer::PullPlacementRequest;
use saturn_replication::PlacementHandle;
use saturn_ring::{ClusterId, FormationDecision, FormationView, Member, Placement, decide};
use tokio::sync::{mpsc, watch};
use uuid::Uuid;

use crate::gossip::{Command, View};
use crate::identity::DataDir;
use crate::peers::Connections;
use crate::wire;

/// How often names of the join list are looked up again.
const RESOLVE_EVERY: Duration = Duration::from_secs(5);
/// How long a member may take to hand over its placement.
const PULL_TIMEOUT: Duration = Duration::from_secs(3);
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
    pub(crate) started: Instant,
    pub(crate) view: watch::Receiver<View>,
    pub(crate) gossip: mpsc::Sender<Command>,
    pub(crate) connections: Connections,
    /// Told why the node is not ready yet.
    pub(crate) waiting_for: watch::Sender<String>,
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

/// Comes back with the placement to serve under.
pub(crate) async fn establish(joining: &Joining) -> anyhow::Result<Arc<PlacementHandle>> {
    let placement = match joining.data.load_placement()? {
        Some(placement) => placement,
        None => form_or_pull(joining).await?,
    };
    check_shape(&placement, joining)?;
    check_registration(&placement, &joining.me)?;
    let announce = Command::SetPlacement(placement.cluster, placement.version);
    joining.gossip.send(announce).await.context("the gossip task has ended")?;
    let data = joining.data.clone();
    let persist = move |placement: &Placement| Ok(data.save_placement(placement)?);
    Ok(Arc::new(PlacementHandle::new(placement, persist)))
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

/// A node that lost its disk must not pose as the replica that it was.
fn check_registration(placement: &Placement, me: &Member) -> anyhow::Result<()> {
    let Some(registered) = placement.members.iter().find(|member| member.id == me.id) else {
        tracing::info!(node = %me.id, "this node owns no shards: it takes writes and answers queries for the others");
        return Ok(());
    };
    if registered.generation != me.generation {
        bail!(
            "the cluster knows node {} with the data directory of generation {}, but this one is of generation {}: \
             was it lost or replaced? A node cannot be replaced yet; bring back its data directory, \
             or start this one under an id of its own",
            me.id,
            registered.generation,
            me.generation
        );
    }
    Ok(())
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

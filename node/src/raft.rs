//! Small Raft groups over the cluster's metadata: group 0 for the member list, one per shard for who owns it.
//!
//! All of openraft ends in this module. The logs of all groups are in one database, whose writer makes one fsync of
//! what they append at the same time (`log.rs`); what a log says is applied to [`ClusterMeta`] or [`ShardMeta`]
//! (`state.rs`); messages go over one connection per peer (`network.rs`).
//!
//! **No clocks of its own.** A group sends nothing while nothing is proposed: openraft's ticks are off, and there are
//! no heartbeats. Who leads is watched by [`shepherd`](crate::shepherd), which knows from gossip who is there. So a
//! thousand idle groups cost nothing but memory, and one failure detector serves all of them.
//!
//! A voter is a node id and the generation of its data directory: one that lost its disk is another voter.

mod log;
mod network;
mod state;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use openraft::error::{ClientWriteError, InitializeError, RaftError};
use openraft::{ChangeMembers, EmptyNode, Raft, ServerState, SnapshotPolicy};
use parking_lot::{Mutex, RwLock};
use saturn_model::ShardId;
use saturn_ring::{
    ClusterCommand, ClusterMeta, Generation, NodeId, PlacementMember, ShardCommand, ShardMeta, ShardRecord,
};
use saturn_storage::GroupLog;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use uuid::Uuid;

use crate::steps;

pub(crate) use network::{Control, Founding};
use state::{Saved, StateMachine};

/// How long a proposal may take on the node that leads the group.
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// Log entries after which a group's state is kept as a snapshot, and the log purged.
const SNAPSHOT_EVERY: u64 = 200;
/// Groups that are brought up at the same time.
const STARTING_MAX: usize = 64;

openraft::declare_raft_types!(
    pub(crate) Types:
        D = Command,
        R = Applied,
        NodeId = Voter,
        Node = EmptyNode,
        SnapshotData = Vec<u8>,
);

/// A node with the very disk that it had when it became a member: the generation of its data directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Voter(pub(crate) Uuid);

impl fmt::Display for Voter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl From<Generation> for Voter {
    fn from(generation: Generation) -> Self {
        Self(generation.0)
    }
}

impl From<&PlacementMember> for Voter {
    fn from(member: &PlacementMember) -> Self {
        member.generation.into()
    }
}

/// A group: 0 for the cluster, above that the shard's number plus one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct GroupId(pub(crate) u32);

impl GroupId {
    pub(crate) const CLUSTER: Self = Self(0);

    /// The shard that the group is about.
    pub(crate) fn shard(self) -> Option<ShardId> {
        let number = self.0.checked_sub(1)?;
        u16::try_from(number).ok().map(ShardId)
    }
}

impl From<ShardId> for GroupId {
    fn from(shard: ShardId) -> Self {
        Self(u32::from(shard.0) + 1)
    }
}

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.shard() {
            None => f.write_str("the member list"),
            Some(shard) => write!(f, "shard {shard}"),
        }
    }
}

/// What is proposed to a group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Command {
    /// To group 0.
    Cluster(ClusterCommand),
    /// To a shard's.
    Shard(ShardCommand),
}

/// What became of a command, the same on every replica.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Applied {
    /// Why it changed nothing.
    pub(crate) refusal: Option<String>,
    /// The shard's record, once it is applied to a shard's group.
    pub(crate) record: Option<ShardRecord>,
}

/// Why a command is not known to be applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ProposeError {
    /// It contradicts the state. Asking again will not help.
    #[error("{0}")]
    Refused(String),
    /// Another node leads, if it is known which.
    #[error("another node leads the group")]
    NotLeader(Option<NodeId>),
    /// No majority, or no answer: it may be applied or not.
    #[error("{0}")]
    Unavailable(String),
}

/// Groups whose state has changed, until somebody looks.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    groups: Mutex<BTreeSet<GroupId>>,
    wake: Notify,
}

impl Changes {
    pub(crate) fn add(&self, group: GroupId) {
        self.groups.lock().insert(group);
        self.wake.notify_one();
    }

    /// Waits until there are some, and takes them.
    pub(crate) async fn take(&self) -> BTreeSet<GroupId> {
        loop {
            let taken = std::mem::take(&mut *self.groups.lock());
            if !taken.is_empty() {
                return taken;
            }
            self.wake.notified().await;
        }
    }
}

#[derive(Clone)]
struct Group {
    raft: Raft<Types>,
    saved: Arc<RwLock<Saved>>,
}

/// How a group stands, as this node sees it.
#[derive(Clone, Debug)]
pub(crate) struct Standing {
    /// Whether its task has failed, by a defect or because the disk refused something.
    pub(crate) has_failed: bool,
    /// Whether it has members at all.
    pub(crate) is_founded: bool,
    /// Who leads, as far as this node knows.
    pub(crate) leader: Option<Voter>,
    /// Whether this node does.
    pub(crate) leads: bool,
    /// Who votes; more than the final ones while that changes.
    pub(crate) voters: BTreeSet<Voter>,
    /// Who follows without a vote.
    pub(crate) learners: BTreeSet<Voter>,
    /// Whether the voters are about to change.
    pub(crate) is_joint: bool,
    /// If this node leads: who has not confirmed all of its log.
    pub(crate) lagging: BTreeSet<Voter>,
}

/// The groups that this node takes part in.
pub(crate) struct Groups {
    me: Voter,
    log: Arc<GroupLog>,
    config: Arc<openraft::Config>,
    control: Control,
    groups: RwLock<BTreeMap<GroupId, Group>>,
    /// Held while a group is brought up, so that it is brought up once.
    starting: tokio::sync::Mutex<()>,
    changes: Arc<Changes>,
}

impl Groups {
    /// Brings up the groups that the log knows.
    pub(crate) async fn open(me: Voter, log: GroupLog, control: Control) -> anyhow::Result<Arc<Self>> {
        let config = openraft::Config {
            cluster_name: "saturn".into(),
            // With ticks off these are only timeouts of calls, and how long a vote is refused after a leader spoke.
            heartbeat_interval: 1000,
            election_timeout_min: 1500,
            election_timeout_max: 2000,
            install_snapshot_timeout: 5000,
            max_payload_entries: 64,
            replication_lag_threshold: 2 * SNAPSHOT_EVERY,
            snapshot_policy: SnapshotPolicy::LogsSinceLast(SNAPSHOT_EVERY),
            max_in_snapshot_log_to_keep: SNAPSHOT_EVERY / 2,
            enable_tick: false,
            enable_heartbeat: false,
            enable_elect: false,
            ..openraft::Config::default()
        };
        let known = log.groups().context("cannot read the group log")?;
        let groups = Arc::new(Self {
            me,
            log: Arc::new(log),
            config: Arc::new(config.validate()?),
            control,
            groups: RwLock::default(),
            starting: tokio::sync::Mutex::default(),
            changes: Arc::default(),
        });
        for group in known {
            groups.join(GroupId(group)).await?;
        }
        Ok(groups)
    }

    /// Which groups have changed since somebody asked last.
    pub(crate) fn changes(&self) -> &Changes {
        &self.changes
    }

    /// The way to other nodes.
    pub(crate) fn control(&self) -> &Control {
        &self.control
    }

    /// Takes part in a group from now on: with what the log has of it, or knowing nothing of it.
    pub(crate) async fn join(&self, id: GroupId) -> anyhow::Result<()> {
        if self.groups.read().contains_key(&id) {
            return Ok(());
        }
        let _one_at_a_time = self.starting.lock().await;
        if self.groups.read().contains_key(&id) {
            return Ok(());
        }
        let (log, changes) = (Arc::clone(&self.log), Arc::clone(&self.changes));
        let (machine, saved) = StateMachine::open((id, self.me), log, changes)
            .with_context(|| format!("cannot read the state of {id}"))?;
        let raft = Raft::new(
            self.me,
            Arc::clone(&self.config),
            network::Factory::new(id, self.control.clone()),
            log::Log::new(id, Arc::clone(&self.log)),
            machine,
        );
        let raft = raft.await.with_context(|| format!("cannot start the group of {id}"))?;
        self.groups.write().insert(id, Group { raft, saved });
        Ok(())
    }

    /// Takes no part in a group any more, until its leader writes again. Its log and vote stay on the disk: a voter
    /// that forgot them could elect a leader that lacks what was decided.
    pub(crate) async fn leave(&self, id: GroupId) {
        let _one_at_a_time = self.starting.lock().await;
        let left = self.groups.write().remove(&id);
        if let Some(group) = left {
            // A panicked task has ended as well.
            let _ = group.raft.shutdown().await;
        }
    }

    /// Takes part anew in a group whose task has failed, with what is on the disk.
    pub(crate) async fn revive(&self, id: GroupId) -> anyhow::Result<()> {
        self.leave(id).await;
        self.join(id).await
    }

    /// Ends all groups.
    pub(crate) async fn close(&self) {
        let groups = std::mem::take(&mut *self.groups.write());
        for group in groups.into_values() {
            // A panicked task has ended as well.
            let _ = group.raft.shutdown().await;
        }
    }

    /// The groups that this node takes part in.
    pub(crate) fn ids(&self) -> Vec<GroupId> {
        self.groups.read().keys().copied().collect()
    }

    fn group(&self, id: GroupId) -> Option<Group> {
        self.groups.read().get(&id).cloned()
    }

    /// How a group stands; `None` if this node takes no part in it.
    pub(crate) fn standing(&self, id: GroupId) -> Option<Standing> {
        let group = self.group(id)?;
        let metrics = group.raft.metrics();
        let metrics = metrics.borrow();
        let membership = metrics.membership_config.membership();
        let voters: BTreeSet<Voter> = membership.voter_ids().collect();
        Some(Standing {
            has_failed: metrics.running_state.is_err(),
            is_founded: metrics.last_log_index.is_some(),
            leader: metrics.current_leader,
            leads: metrics.state == ServerState::Leader,
            learners: membership.learner_ids().filter(|id| !voters.contains(id)).collect(),
            voters,
            is_joint: membership.get_joint_config().len() > 1,
            lagging: metrics
                .replication
                .iter()
                .flatten()
                .filter(|(voter, matched)| {
                    **voter != self.me && matched.map(|id| id.index) < metrics.last_log_index
                })
                .map(|(voter, _)| *voter)
                .collect(),
        })
    }

    /// The member list as this node has applied it.
    pub(crate) fn cluster_meta(&self) -> Option<ClusterMeta> {
        self.group(GroupId::CLUSTER)?.saved.read().state.cluster().cloned()
    }

    /// A shard's metadata as this node has applied it.
    pub(crate) fn shard_meta(&self, shard: ShardId) -> Option<ShardMeta> {
        self.group(shard.into())?.saved.read().state.shard().cloned()
    }

    /// Founds groups that nobody has founded, each with its first voters. One of them does this.
    pub(crate) async fn found(&self, groups: Vec<(GroupId, BTreeSet<Voter>)>) {
        for some in groups.chunks(STARTING_MAX) {
            let founding = some.iter().map(|(id, voters)| self.found_one(*id, voters.clone()));
            for result in futures::future::join_all(founding).await {
                if let Err(error) = result {
                    tracing::info!(error = format!("{error:#}"), "a group was not founded yet");
                }
            }
        }
    }

    async fn found_one(&self, id: GroupId, voters: BTreeSet<Voter>) -> anyhow::Result<()> {
        self.join(id).await?;
        let Some(group) = self.group(id) else { return Ok(()) };
        let voters: BTreeMap<Voter, EmptyNode> =
            voters.into_iter().map(|voter| (voter, EmptyNode::new())).collect();
        match group.raft.initialize(voters).await {
            // Somebody else was faster.
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
            Err(error) => Err(anyhow::Error::new(error).context(format!("cannot found the group of {id}"))),
        }
    }

    /// Asks the other voters to let this node lead.
    pub(crate) async fn elect(&self, id: GroupId) {
        if let Some(group) = self.group(id)
            && let Err(error) = group.raft.trigger().elect().await
        {
            tracing::error!(group = %id, %error, "a group has ended");
        }
    }

    /// Sends the group's other members what they lack. A message that did not get through is repeated by this only:
    /// openraft leaves that to its heartbeats, which are off.
    pub(crate) async fn resend(&self, id: GroupId) {
        if let Some(group) = self.group(id)
            && let Err(error) = group.raft.trigger().heartbeat().await
        {
            tracing::error!(group = %id, %error, "a group has ended");
        }
    }

    /// Makes `voters` the group's voters, and `learner` one that follows. Only its leader can.
    pub(crate) async fn set_voters(
        &self,
        id: GroupId,
        voters: BTreeSet<Voter>,
        learner: Option<Voter>,
    ) -> Result<(), ProposeError> {
        let group = self.group(id).ok_or(ProposeError::NotLeader(None))?;
        let change = async {
            let known = self.standing(id).ok_or(ProposeError::NotLeader(None))?;
            let coming = voters.iter().chain(&learner);
            for new in coming.filter(|voter| !known.voters.contains(voter) && !known.learners.contains(voter))
            {
                let added = group.raft.add_learner(*new, EmptyNode::new(), false).await;
                added.map_err(|e| self.write_error(e))?;
                steps::reach_in_voters(id.shard(), "learner added");
            }
            if known.voters != voters || known.is_joint {
                let change = ChangeMembers::ReplaceAllVoters(voters.clone());
                group.raft.change_membership(change, false).await.map_err(|e| self.write_error(e))?;
            }
            if !voters.contains(&self.me) {
                // This node gives the lead up as soon as that is known to the others, and changes no more.
                return Ok(());
            }
            let wanted = |voter: &&Voter| voters.contains(voter) || learner.as_ref() == Some(*voter);
            let gone: BTreeSet<Voter> =
                known.learners.iter().filter(|voter| !wanted(voter)).copied().collect();
            if !gone.is_empty() {
                let change = ChangeMembers::RemoveNodes(gone);
                group.raft.change_membership(change, false).await.map_err(|e| self.write_error(e))?;
            }
            Ok(())
        };
        timeout(change).await
    }

    /// Proposes a command to a group that this node leads; returns when it is applied here.
    pub(crate) async fn propose(
        &self,
        id: GroupId,
        command: Command,
    ) -> Result<Option<ShardRecord>, ProposeError> {
        let group = self.group(id).ok_or(ProposeError::NotLeader(None))?;
        let write = async { group.raft.client_write(command).await.map_err(|e| self.write_error(e)) };
        let applied = timeout(write).await?.data;
        match applied.refusal {
            None => Ok(applied.record),
            Some(refusal) => Err(ProposeError::Refused(refusal)),
        }
    }

    /// Returns when this node, as the leader, has applied all that was committed before the call.
    pub(crate) async fn linearize(&self, id: GroupId) -> Result<(), ProposeError> {
        let group = self.group(id).ok_or(ProposeError::NotLeader(None))?;
        timeout(async {
            let read = group.raft.ensure_linearizable().await;
            read.map(drop).map_err(|error| match error.forward_to_leader::<EmptyNode>() {
                Some(forward) => ProposeError::NotLeader(self.name_of(forward.leader_id)),
                None => ProposeError::Unavailable(error.to_string()),
            })
        })
        .await
    }
}

impl Groups {
    fn write_error(&self, error: RaftError<Voter, ClientWriteError<Voter, EmptyNode>>) -> ProposeError {
        match error {
            RaftError::APIError(ClientWriteError::ForwardToLeader(forward)) => {
                ProposeError::NotLeader(self.name_of(forward.leader_id))
            }
            other => ProposeError::Unavailable(other.to_string()),
        }
    }

    /// What a voter is called, if gossip knows it.
    pub(crate) fn name_of(&self, voter: Option<Voter>) -> Option<NodeId> {
        self.control.find(voter?).map(|state| state.member.id)
    }
}

async fn timeout<T>(work: impl Future<Output = Result<T, ProposeError>>) -> Result<T, ProposeError> {
    let unavailable = || ProposeError::Unavailable(format!("no majority within {PROPOSE_TIMEOUT:?}"));
    tokio::time::timeout(PROPOSE_TIMEOUT, work).await.unwrap_or_else(|_| Err(unavailable()))
}

impl fmt::Debug for Groups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Groups").field("me", &self.me).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use openraft::Vote;
    use openraft::raft::{VoteRequest, VoteResponse};
    use saturn_proto::peer;
    use saturn_ring::ClusterId;
    use tokio::sync::watch;

    use super::*;
    use crate::gossip::View;
    use crate::peers::Connections;
    use crate::rpc_auth::Token;

    async fn groups(dir: &std::path::Path, me: Voter) -> Arc<Groups> {
        let connections = Arc::new(Connections::new(Token::derive(&[b"a secret of sixteen bytes"])));
        let control = Control::new(ClusterId(Uuid::nil()), watch::channel(View::default()).1, connections);
        Groups::open(me, GroupLog::open(dir).expect("opens"), control).await.expect("opens")
    }

    fn ask(me: Voter, candidate: Voter, term: u64) -> peer::RaftRequest {
        let request: VoteRequest<Voter> = VoteRequest::new(Vote::new(term, candidate), None);
        peer::RaftRequest {
            group: 5,
            generation: bytes::Bytes::copy_from_slice(me.0.as_bytes()),
            kind: peer::RaftKind::Vote.into(),
            payload: postcard::to_allocvec(&request).expect("serialises").into(),
            ..peer::RaftRequest::default()
        }
    }

    fn granted(reply: &[u8]) -> bool {
        postcard::from_bytes::<VoteResponse<Voter>>(reply).expect("a reply").vote_granted
    }

    #[tokio::test]
    async fn whoever_left_a_group_votes_no_more_and_forgets_no_vote() {
        let dir = tempfile::tempdir().expect("temporary directory");
        // Of two votes of one term, openraft takes that for the higher id as the newer one.
        let (me, a, b) = (Voter(Uuid::from_u128(1)), Voter(Uuid::from_u128(3)), Voter(Uuid::from_u128(2)));
        let groups = groups(dir.path(), me).await;
        let stranger = groups.answer(&ask(me, a, 1), Founding::Over).await.expect_err("no vote");
        assert!(stranger.to_string().contains("takes no part in the group of shard 4"), "{stranger}");
        assert!(granted(&groups.answer(&ask(me, a, 7), Founding::Possible).await.expect("answers")));
        groups.leave(GroupId(5)).await;
        groups.answer(&ask(me, b, 9), Founding::Over).await.expect_err("it has left");
        // It is back, say with another shard of the same number: the vote that it gave still counts.
        groups.join(GroupId(5)).await.expect("joins");
        assert!(!granted(&groups.answer(&ask(me, b, 7), Founding::Over).await.expect("answers")));
        groups.close().await;
    }
}

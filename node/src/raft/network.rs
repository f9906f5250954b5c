//! Messages between the nodes that keep metadata: those of the groups, proposals, and records that must be known.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use openraft::error::{
    Fatal, NetworkError, RPCError, RaftError, ReplicationClosed, StreamingError, Unreachable,
};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse,
};
use openraft::{AnyError, EmptyNode, OptionalSend, Snapshot, SnapshotMeta, Vote};
use saturn_model::ShardId;
use saturn_proto::peer;
use saturn_proto::peer::propose_reply::Outcome;
use saturn_ring::{ClusterId, Liveness, MemberState, NodeId, Placement, ShardRecord};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use super::{Command, GroupId, Groups, ProposeError, Types, Voter};
use crate::gossip::View;
use crate::peers::{Client, Connections};
use crate::wire;

/// How long a node may take to make a record durable.
const PUSH_TIMEOUT: Duration = Duration::from_secs(5);
/// The same of all records, with the deletions that come with them.
const PUSH_ALL_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a proposal may take on another node; longer than it may take there.
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(7);
/// Pauses between attempts to reach a voter that does not answer; the last one repeats.
const BACKOFF_MS: [u64; 4] = [200, 500, 1000, 3000];

/// How this node calls others about metadata. Cloning shares everything.
#[derive(Clone)]
pub(crate) struct Control {
    cluster: ClusterId,
    view: watch::Receiver<View>,
    connections: Arc<Connections>,
}

impl Control {
    pub(crate) fn new(
        cluster: ClusterId,
        view: watch::Receiver<View>,
        connections: Arc<Connections>,
    ) -> Self {
        Self { cluster, view, connections }
    }

    /// What gossip knows.
    pub(crate) fn view(&self) -> watch::Receiver<View> {
        self.view.clone()
    }

    /// What gossip knows about a voter.
    pub(crate) fn find(&self, voter: Voter) -> Option<MemberState> {
        self.view.borrow().members.iter().find(|state| Voter::from(state.member.generation) == voter).cloned()
    }

    fn cluster_bytes(&self) -> bytes::Bytes {
        bytes::Bytes::copy_from_slice(self.cluster.0.as_bytes())
    }

    /// A client for a node that is there.
    pub(crate) fn client(&self, node: &NodeId) -> Result<Client, String> {
        let view = self.view.borrow();
        let state = view.member(node).ok_or_else(|| format!("{node} was not heard of yet"))?;
        self.client_of(state)
    }

    fn client_of(&self, state: &MemberState) -> Result<Client, String> {
        if state.liveness == Liveness::Down {
            return Err(format!("{} is down", state.member.id));
        }
        Ok(self.connections.control(state.member.grpc_addr))
    }

    async fn raft<Q: Serialize, A: DeserializeOwned>(
        &self,
        (group, voter): (GroupId, Voter),
        kind: peer::RaftKind,
        question: &Q,
        timeout: Duration,
    ) -> Result<A, CallError> {
        let state =
            self.find(voter).ok_or_else(|| CallError::Absent("nobody heard of the voter yet".into()))?;
        let mut client = self.client_of(&state).map_err(CallError::Absent)?;
        let payload = postcard::to_allocvec(question).map_err(|e| CallError::Failed(e.to_string()))?;
        let message = peer::RaftRequest {
            cluster: self.cluster_bytes(),
            group: group.0,
            generation: bytes::Bytes::copy_from_slice(voter.0.as_bytes()),
            kind: kind.into(),
            payload: payload.into(),
        };
        let call = tokio::time::timeout(timeout, client.raft(message)).await;
        let reply = call.map_err(|_| CallError::Failed(format!("no answer within {timeout:?}")))?;
        let reply = reply.map_err(|status| CallError::Failed(status.message().to_owned()))?;
        postcard::from_bytes(&reply.into_inner().payload).map_err(|e| CallError::Failed(e.to_string()))
    }

    /// Asks a node to propose a command to a group that it may lead.
    pub(crate) async fn propose(
        &self,
        node: &NodeId,
        group: GroupId,
        command: &Command,
    ) -> Result<Option<ShardRecord>, ProposeError> {
        let mut client = self.client(node).map_err(ProposeError::Unavailable)?;
        let command = postcard::to_allocvec(command).map_err(|e| ProposeError::Refused(e.to_string()))?;
        let message =
            peer::ProposeRequest { cluster: self.cluster_bytes(), group: group.0, command: command.into() };
        let no_answer =
            |_| ProposeError::Unavailable(format!("{node}: no answer within {PROPOSE_TIMEOUT:?}"));
        let reply =
            tokio::time::timeout(PROPOSE_TIMEOUT, client.propose(message)).await.map_err(no_answer)?;
        let reply = reply.map_err(|s| ProposeError::Unavailable(format!("{node}: {}", s.message())))?;
        let reply = reply.into_inner();
        match reply.outcome() {
            Outcome::Applied => {
                let record = reply.record.map(wire::record_from).transpose();
                record.map_err(|e| ProposeError::Unavailable(format!("{node}: {e}")))
            }
            Outcome::Refused => Err(ProposeError::Refused(reply.text)),
            Outcome::NotLeader => Err(ProposeError::NotLeader(NodeId::new(&reply.leader).ok())),
            Outcome::Unavailable => Err(ProposeError::Unavailable(format!("{node}: {}", reply.text))),
        }
    }

    /// Makes sure that a node has all records of a placement, or newer ones, on its disk.
    pub(crate) async fn push_placement(&self, node: &NodeId, placement: &Placement) -> Result<(), String> {
        let mut client = self.client(node)?;
        let placement = wire::placement_to_bytes(placement);
        let message = peer::PushPlacementRequest { cluster: self.cluster_bytes(), placement };
        let call = tokio::time::timeout(PUSH_ALL_TIMEOUT, client.push_placement(message)).await;
        let reply = call.map_err(|_| format!("{node}: no answer within {PUSH_ALL_TIMEOUT:?}"))?;
        reply.map(drop).map_err(|status| format!("{node}: {}", status.message()))
    }

    /// Makes sure that a node has a record, or a newer one, on its disk.
    pub(crate) async fn push_record(
        &self,
        node: &NodeId,
        shard: ShardId,
        record: &ShardRecord,
    ) -> Result<(), String> {
        let mut client = self.client(node)?;
        let message = peer::PushRecordRequest {
            cluster: self.cluster_bytes(),
            shard: u32::from(shard.0),
            record: Some(wire::record_message(record)),
        };
        let call = tokio::time::timeout(PUSH_TIMEOUT, client.push_record(message)).await;
        let reply = call.map_err(|_| format!("{node}: no answer within {PUSH_TIMEOUT:?}"))?;
        reply.map(drop).map_err(|status| format!("{node}: {}", status.message()))
    }
}

/// Why a voter did not answer.
enum CallError {
    /// It is not there.
    Absent(String),
    Failed(String),
}

impl CallError {
    fn into_rpc<E: std::error::Error>(self) -> RPCError<Voter, EmptyNode, E> {
        match self {
            Self::Absent(text) => Unreachable::new(&AnyError::error(text)).into(),
            // "Unreachable" as well: openraft repeats what failed otherwise at once and for ever.
            Self::Failed(text) => Unreachable::new(&AnyError::error(text)).into(),
        }
    }
}

/// Makes the clients of one group.
pub(super) struct Factory {
    group: GroupId,
    control: Control,
}

impl Factory {
    pub(super) fn new(group: GroupId, control: Control) -> Self {
        Self { group, control }
    }
}

impl RaftNetworkFactory<Types> for Factory {
    type Network = VoterClient;

    async fn new_client(&mut self, target: Voter, _: &EmptyNode) -> VoterClient {
        VoterClient { group: self.group, target, control: self.control.clone() }
    }
}

/// Whether a group may still be about to be founded, as far as a node knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Founding {
    Possible,
    Over,
}

/// One voter, as another one of its group sees it.
pub(super) struct VoterClient {
    group: GroupId,
    target: Voter,
    control: Control,
}

/// A snapshot as it travels.
type SnapshotMessage = (Vote<Voter>, SnapshotMeta<Voter, EmptyNode>, Vec<u8>);

impl RaftNetwork<Types> for VoterClient {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Voter>, RPCError<Voter, EmptyNode, RaftError<Voter>>> {
        let to = (self.group, self.target);
        let reply = self.control.raft(to, peer::RaftKind::Append, &rpc, option.hard_ttl()).await;
        reply.map_err(CallError::into_rpc)
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<Voter>,
        option: RPCOption,
    ) -> Result<VoteResponse<Voter>, RPCError<Voter, EmptyNode, RaftError<Voter>>> {
        let to = (self.group, self.target);
        let reply = self.control.raft(to, peer::RaftKind::Vote, &rpc, option.hard_ttl()).await;
        reply.map_err(CallError::into_rpc)
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote<Voter>,
        snapshot: Snapshot<Types>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<Voter>, StreamingError<Types, Fatal<Voter>>> {
        let message: SnapshotMessage = (vote, snapshot.meta, *snapshot.snapshot);
        let to = (self.group, self.target);
        let sent = self.control.raft(to, peer::RaftKind::Snapshot, &message, option.hard_ttl());
        tokio::select! {
            closed = cancel => Err(StreamingError::Closed(closed)),
            reply = sent => reply.map_err(|error| match error {
                CallError::Absent(text) => Unreachable::new(&AnyError::error(text)).into(),
                CallError::Failed(text) => NetworkError::new(&AnyError::error(text)).into(),
            }),
        }
    }

    fn backoff(&self) -> Backoff {
        let last = *BACKOFF_MS.last().expect("there are pauses");
        Backoff::new(BACKOFF_MS.into_iter().chain(std::iter::repeat(last)).map(Duration::from_millis))
    }
}

impl Groups {
    /// Answers another voter of a group; takes part in the group from now on if it did not. `founding`: whether the
    /// group may not be founded yet. Else a vote is asked only of who takes part: whoever left the group is a voter
    /// only to those who lack the decision that it is none any more, and must not help one of these to lead.
    pub(crate) async fn answer(
        &self,
        request: &peer::RaftRequest,
        founding: Founding,
    ) -> anyhow::Result<Vec<u8>> {
        anyhow::ensure!(
            request.generation[..] == self.me.0.as_bytes()[..],
            "this node has another data directory than the message is for"
        );
        let id = GroupId(request.group);
        let may_join = founding == Founding::Possible || request.kind() != peer::RaftKind::Vote;
        anyhow::ensure!(may_join || self.group(id).is_some(), "this node takes no part in the group of {id}");
        self.join(id).await?;
        let group = self.group(id).ok_or_else(|| anyhow::anyhow!("the group of {id} was just left"))?;
        let payload = &request.payload;
        Ok(match request.kind() {
            peer::RaftKind::Append => {
                let reply = group.raft.append_entries(postcard::from_bytes(payload)?).await?;
                postcard::to_allocvec(&reply)?
            }
            peer::RaftKind::Vote => {
                let reply = group.raft.vote(postcard::from_bytes(payload)?).await?;
                postcard::to_allocvec(&reply)?
            }
            peer::RaftKind::Snapshot => {
                let (vote, meta, bytes): SnapshotMessage = postcard::from_bytes(payload)?;
                let snapshot = Snapshot { meta, snapshot: Box::new(bytes) };
                let reply = group.raft.install_full_snapshot(vote, snapshot).await?;
                postcard::to_allocvec(&reply)?
            }
            peer::RaftKind::Unspecified => {
                anyhow::bail!("a message of a kind that this version does not know")
            }
        })
    }

    /// Proposes on behalf of another node.
    pub(crate) async fn answer_proposal(&self, request: &peer::ProposeRequest) -> peer::ProposeReply {
        let outcome = match postcard::from_bytes(&request.command) {
            Ok(command) => self.propose(GroupId(request.group), command).await,
            Err(error) => Err(ProposeError::Refused(format!("the command makes no sense: {error}"))),
        };
        let reply = |outcome: Outcome| peer::ProposeReply { outcome: outcome.into(), ..Default::default() };
        match outcome {
            Ok(record) => peer::ProposeReply {
                record: record.map(|record| wire::record_message(&record)),
                ..reply(Outcome::Applied)
            },
            Err(ProposeError::Refused(text)) => peer::ProposeReply { text, ..reply(Outcome::Refused) },
            Err(ProposeError::NotLeader(leader)) => {
                let leader = leader.map(|id| id.to_string()).unwrap_or_default();
                peer::ProposeReply { leader, ..reply(Outcome::NotLeader) }
            }
            Err(ProposeError::Unavailable(text)) => {
                peer::ProposeReply { text, ..reply(Outcome::Unavailable) }
            }
        }
    }
}

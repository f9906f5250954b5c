//! The internal service: what other nodes ask of this one.

use std::ops::ControlFlow;
use std::sync::{Arc, OnceLock};

use saturn_proto::peer;
use saturn_proto::peer::peer_server::Peer;
use saturn_replication::{PlacementHandle, SelectRequest};
use saturn_ring::{ClusterId, Epoch, Generation, NodeId, Placement};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use crate::durability::Positions;
use crate::raft::{Founding, GroupId, Groups, Voter};
use crate::replica::Replica;
use crate::transfer::source;
use crate::{cluster, steps, wire};

/// Size at which an answer's frame is sent.
const FRAME_BYTES: usize = 1 << 20;
/// Frames that wait for the network before reading waits, too.
const FRAMES_WAITING_MAX: usize = 2;

/// Answers other nodes.
pub(crate) struct PeerService {
    /// Empty until this node belongs to a cluster.
    pub(crate) replica: Arc<OnceLock<Replica>>,
    /// Empty until this node holds a placement.
    pub(crate) placement: Arc<OnceLock<Arc<PlacementHandle>>>,
    pub(crate) streams: source::Streams,
    /// Empty until this node takes part in deciding.
    pub(crate) groups: Arc<OnceLock<Arc<Groups>>>,
    pub(crate) positions: Arc<Positions>,
}

type FrameStream = ReceiverStream<Result<peer::SelectFrame, Status>>;

impl PeerService {
    /// This node's replica, if the caller speaks for the same cluster.
    fn replica(&self, cluster: &[u8]) -> Result<Replica, Status> {
        let replica = self.replica.get();
        let replica =
            replica.ok_or_else(|| Status::unavailable("this node does not belong to a cluster yet"))?;
        let mine = replica.placement.load().cluster;
        if cluster_from(cluster)? == mine {
            Ok(replica.clone())
        } else {
            Err(Status::failed_precondition(format!("this node belongs to another cluster, {mine}")))
        }
    }
}

impl PeerService {
    /// What this node knows about metadata, if the caller speaks for the same cluster.
    fn metadata(&self, cluster: &[u8]) -> Result<(Arc<PlacementHandle>, Arc<Groups>), Status> {
        let (placement, groups) = (self.placement(cluster)?, self.groups.get());
        let groups =
            groups.ok_or_else(|| Status::unavailable("this node does not belong to a cluster yet"))?;
        Ok((Arc::clone(placement), Arc::clone(groups)))
    }

    fn placement(&self, cluster: &[u8]) -> Result<&Arc<PlacementHandle>, Status> {
        let placement = self.placement.get();
        let placement =
            placement.ok_or_else(|| Status::unavailable("this node does not belong to a cluster yet"))?;
        let mine = placement.load().cluster;
        if cluster_from(cluster)? != mine {
            return Err(Status::failed_precondition(format!("this node belongs to another cluster, {mine}")));
        }
        Ok(placement)
    }
}

/// Whether a group may still be unfounded: until the first change of what it decides. `None` if there is no such group.
fn founding_of(placement: &Placement, group: GroupId) -> Option<Founding> {
    let is_first = match group.shard() {
        Some(shard) => placement.record(shard)?.epoch == Epoch::FIRST,
        None if group == GroupId::CLUSTER => placement.version <= 1,
        None => return None,
    };
    Some(if is_first { Founding::Possible } else { Founding::Over })
}

fn cluster_from(bytes: &[u8]) -> Result<ClusterId, Status> {
    let id = Uuid::from_slice(bytes).map(ClusterId);
    id.map_err(|_| Status::invalid_argument("the cluster id is not 16 bytes"))
}

fn invalid(error: saturn_proto::WireError) -> Status {
    Status::invalid_argument(error.to_string())
}

/// Reads shard after shard, no faster than the caller takes the frames, and stops when it is gone.
fn send_series(
    replica: &Replica,
    request: &SelectRequest,
    frames: &mpsc::Sender<Result<peer::SelectFrame, Status>>,
) {
    for (shard, epoch) in &request.shards {
        let mut writer = wire::FrameWriter::new(*shard, FRAME_BYTES);
        let read = replica.read_shard((*shard, *epoch), request, |series| {
            let sent = writer.push(series).is_none_or(|frame| frames.blocking_send(Ok(frame)).is_ok());
            if sent { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        if frames.blocking_send(Ok(writer.finish(read))).is_err() {
            return;
        }
    }
}

#[tonic::async_trait]
impl Peer for PeerService {
    type SelectStream = FrameStream;
    type StreamShardStream = source::FrameStream;

    async fn append(
        &self,
        request: Request<peer::AppendRequest>,
    ) -> Result<Response<peer::AppendReply>, Status> {
        let message = request.into_inner();
        let replica = self.replica(&message.cluster)?;
        let request = wire::append_request_from(&message).map_err(invalid)?;
        // A caller that hangs up must not stop an append half way: it goes on in its own task.
        let append = tokio::spawn(async move { replica.append(request).await });
        let replies = append.await.map_err(|e| Status::internal(e.to_string()))?;
        let durable = Some(self.positions.own_message());
        Ok(Response::new(wire::append_reply_message(replies, durable)))
    }

    async fn select(&self, request: Request<peer::SelectRequest>) -> Result<Response<FrameStream>, Status> {
        let message = request.into_inner();
        let replica = self.replica(&message.cluster)?;
        let request = wire::select_request_from(&message).map_err(invalid)?;
        let (frames, answer) = mpsc::channel(FRAMES_WAITING_MAX);
        tokio::task::spawn_blocking(move || send_series(&replica, &request, &frames));
        Ok(Response::new(ReceiverStream::new(answer)))
    }

    async fn labels(
        &self,
        request: Request<peer::LabelsRequest>,
    ) -> Result<Response<peer::LabelsReply>, Status> {
        let message = request.into_inner();
        let replica = self.replica(&message.cluster)?;
        let request = wire::labels_request_from(&message).map_err(invalid)?;
        Ok(Response::new(wire::labels_reply_message(replica.labels(request).await)))
    }

    async fn count(
        &self,
        request: Request<peer::CountRequest>,
    ) -> Result<Response<peer::CountReply>, Status> {
        let message = request.into_inner();
        let replica = self.replica(&message.cluster)?;
        let request = wire::count_request_from(&message).map_err(invalid)?;
        Ok(Response::new(wire::count_reply_message(replica.cardinality(request).await)))
    }

    async fn clean_tombstones(
        &self,
        request: Request<peer::CleanTombstonesRequest>,
    ) -> Result<Response<peer::CleanTombstonesReply>, Status> {
        let replica = self.replica(&request.into_inner().cluster)?;
        replica.clean_tombstones().await.map_err(|e| Status::unavailable(e.to_string()))?;
        Ok(Response::new(peer::CleanTombstonesReply {}))
    }

    async fn stream_shard(
        &self,
        request: Request<peer::StreamShardRequest>,
    ) -> Result<Response<source::FrameStream>, Status> {
        let message = request.into_inner();
        let replica = self.replica(&message.cluster)?;
        let request = source::stream_request_from(&message).map_err(invalid)?;
        Ok(Response::new(self.streams.start(replica, request)?))
    }

    async fn shard_digest(
        &self,
        request: Request<peer::ShardDigestRequest>,
    ) -> Result<Response<peer::ShardDigestReply>, Status> {
        let message = request.into_inner();
        let replica = self.replica(&message.cluster)?;
        let (shard, windows) = source::digest_request_from(&message).map_err(invalid)?;
        Ok(Response::new(self.streams.digest(replica, shard, windows).await?))
    }

    async fn list_windows(
        &self,
        request: Request<peer::ListWindowsRequest>,
    ) -> Result<Response<peer::ListWindowsReply>, Status> {
        let message = request.into_inner();
        let replica = self.replica(&message.cluster)?;
        Ok(Response::new(source::list_windows(&replica, &message).map_err(invalid)?))
    }

    async fn pull_placement(
        &self,
        request: Request<peer::PullPlacementRequest>,
    ) -> Result<Response<peer::PlacementReply>, Status> {
        let peer::PullPlacementRequest { cluster: asker, fingerprint } = request.into_inner();
        let Some(handle) = self.placement.get() else {
            return Ok(Response::new(peer::PlacementReply::default()));
        };
        let placement = handle.load();
        if !asker.is_empty() && cluster_from(&asker)? != placement.cluster {
            return Err(Status::failed_precondition("this node belongs to another cluster"));
        }
        if fingerprint == placement.fingerprint() {
            return Ok(Response::new(peer::PlacementReply::default()));
        }
        Ok(Response::new(peer::PlacementReply { placement: wire::placement_to_bytes(&placement) }))
    }

    async fn push_placement(
        &self,
        request: Request<peer::PushPlacementRequest>,
    ) -> Result<Response<peer::PushPlacementReply>, Status> {
        let message = request.into_inner();
        let (handle, _) = self.metadata(&message.cluster)?;
        let placement = wire::placement_from_bytes(&message.placement).map_err(invalid)?;
        let adopt = tokio::task::spawn_blocking(move || handle.adopt_placement(&placement));
        let adopted = adopt.await.map_err(|e| Status::internal(e.to_string()))?;
        adopted.map_err(|e| Status::failed_precondition(e.to_string()))?;
        Ok(Response::new(peer::PushPlacementReply {}))
    }

    async fn push_record(
        &self,
        request: Request<peer::PushRecordRequest>,
    ) -> Result<Response<peer::PushRecordReply>, Status> {
        let message = request.into_inner();
        let (handle, _) = self.metadata(&message.cluster)?;
        let shard = saturn_proto::convert::shard_from_number(message.shard).map_err(invalid)?;
        let record = message.record.ok_or_else(|| Status::invalid_argument("a push without a record"))?;
        let record = wire::record_from(record).map_err(|e| Status::invalid_argument(e.to_string()))?;
        let adopt = tokio::task::spawn_blocking(move || handle.adopt(shard, record));
        let adopted = adopt.await.map_err(|e| Status::internal(e.to_string()))?;
        adopted.map_err(|e| Status::failed_precondition(e.to_string()))?;
        steps::reach("source: record adopted");
        Ok(Response::new(peer::PushRecordReply {}))
    }

    async fn raft(&self, request: Request<peer::RaftRequest>) -> Result<Response<peer::RaftReply>, Status> {
        let message = request.into_inner();
        let (placement, groups) = self.metadata(&message.cluster)?;
        let founding = founding_of(&placement.load(), GroupId(message.group))
            .ok_or_else(|| Status::invalid_argument(format!("there is no group {}", message.group)))?;
        // A caller that hangs up must not stop an answer half way.
        let answer = tokio::spawn(async move { groups.answer(&message, founding).await });
        let payload = answer.await.map_err(|e| Status::internal(e.to_string()))?;
        let payload = payload.map_err(|e| Status::failed_precondition(format!("{e:#}")))?;
        Ok(Response::new(peer::RaftReply { payload: payload.into() }))
    }

    async fn propose(
        &self,
        request: Request<peer::ProposeRequest>,
    ) -> Result<Response<peer::ProposeReply>, Status> {
        let message = request.into_inner();
        let (_, groups) = self.metadata(&message.cluster)?;
        Ok(Response::new(groups.answer_proposal(&message).await))
    }

    async fn confirm(
        &self,
        request: Request<peer::ConfirmRequest>,
    ) -> Result<Response<peer::ConfirmReply>, Status> {
        let message = request.into_inner();
        let placement = self.placement(&message.cluster)?;
        let id = NodeId::new(&message.node).map_err(|e| Status::invalid_argument(e.to_string()))?;
        let generation = Uuid::from_slice(&message.generation);
        let generation =
            generation.map_err(|_| Status::invalid_argument("the generation is not 16 bytes"))?;
        // What this node remembers it can say before it takes part in deciding.
        let mut reply = match self.groups.get() {
            Some(groups) => cluster::judge(groups, placement, &id, Voter(generation)).await,
            None => peer::ConfirmReply::default(),
        };
        reply.remembered = self.positions.remembered_message(&id, Generation(generation));
        Ok(Response::new(reply))
    }
}

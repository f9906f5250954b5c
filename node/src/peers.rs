//! The other nodes, as the replication layer sees them: this node's own replica called directly, the
//! others over gRPC.
//!
//! Writes and reads use separate connections, so that a large answer never delays an acknowledgement.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use saturn_proto::peer;
use saturn_proto::peer::peer_client::PeerClient;
use saturn_replication::{
    AppendRequest, BatchReply, CardinalityReply, CardinalityRequest, LabelsAnswer, LabelsRequest, PeerError,
    Peers, SelectRequest, SelectSink, ShardReply,
};
use saturn_ring::{ClusterId, NodeId, Placement};
use tokio::sync::watch;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};

use crate::durability::Positions;
use crate::gossip::View;
use crate::replica::Replica;
use crate::rpc_auth::Token;
use crate::{transfer, wire};

/// Largest message between nodes, both ways.
pub(crate) const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// Flow-control windows: the defaults of 64 KiB cost four fifths of the throughput.
pub(crate) const STREAM_WINDOW_BYTES: u32 = 4 << 20;
pub(crate) const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// A peer that does not answer pings for `KEEP_ALIVE_EVERY + KEEP_ALIVE_TIMEOUT` is disconnected.
pub(crate) const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(2);
pub(crate) const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(3);

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Lane {
    Append,
    Read,
    /// Whole shards: a stream that waits must not fill the windows of the others.
    Transfer,
    /// Metadata: small, and never behind anything large.
    Control,
}

/// A client of one peer; each call proves that this node knows the cluster's secret.
pub(crate) type Client = PeerClient<InterceptedService<Channel, Token>>;

/// Connections to peers by address, opened when first used.
pub(crate) struct Connections {
    token: Token,
    channels: Mutex<HashMap<(SocketAddr, Lane), Channel>>,
}

impl Connections {
    pub(crate) fn new(token: Token) -> Self {
        Self { token, channels: Mutex::new(HashMap::new()) }
    }

    /// A client for requests that read.
    pub(crate) fn reader(&self, address: SocketAddr) -> Client {
        self.client(address, Lane::Read)
    }

    /// A client for requests about metadata.
    pub(crate) fn control(&self, address: SocketAddr) -> Client {
        self.client(address, Lane::Control)
    }

    fn client(&self, address: SocketAddr, lane: Lane) -> Client {
        let mut channels = self.channels.lock();
        let channel = channels.entry((address, lane)).or_insert_with(|| connect_lazily(address));
        PeerClient::with_interceptor(channel.clone(), self.token.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }
}

fn connect_lazily(address: SocketAddr) -> Channel {
    Endpoint::from_shared(format!("http://{address}"))
        .expect("a socket address makes a valid URI")
        .connect_timeout(Duration::from_secs(1))
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE_EVERY)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .connect_lazy()
}

/// All replicas of the cluster.
pub(crate) struct NodePeers {
    pub(crate) replica: Replica,
    pub(crate) cluster: ClusterId,
    pub(crate) view: watch::Receiver<View>,
    pub(crate) connections: Arc<Connections>,
    pub(crate) positions: Arc<Positions>,
}

impl NodePeers {
    /// A client for `node`, if gossip knows its address and it is the node that the placement means.
    fn client(&self, node: &NodeId, lane: Lane) -> Result<Client, PeerError> {
        let unknown = || PeerError::Unreachable(format!("{node} was not heard of yet"));
        let member = self.view.borrow().member(node).ok_or_else(unknown)?.member.clone();
        let placement = self.replica.placement.load();
        let registered = placement.members.iter().find(|m| m.id == *node);
        if registered.is_none_or(|registered| registered.generation != member.generation) {
            let text = format!("{node} came back with another data directory than the cluster knows");
            return Err(PeerError::Unreachable(text));
        }
        Ok(self.connections.client(member.grpc_addr, lane))
    }

    /// A client for whole shards.
    pub(crate) fn transfer_client(&self, node: &NodeId) -> Result<Client, PeerError> {
        Ok(self.client(node, Lane::Transfer)?.max_decoding_message_size(transfer::FRAME_BYTES_MAX))
    }

    pub(crate) fn cluster_bytes(&self) -> bytes::Bytes {
        bytes::Bytes::copy_from_slice(self.cluster.0.as_bytes())
    }
}

impl Peers for NodePeers {
    async fn append(&self, to: &NodeId, request: AppendRequest) -> Result<Vec<BatchReply>, PeerError> {
        if *to == self.replica.id {
            return Ok(self.replica.append(request).await);
        }
        let mut client = self.client(to, Lane::Append)?;
        let message = wire::append_request(self.cluster_bytes(), &request);
        let reply = client.append(message).await.map_err(|e| wire::peer_error(&e))?.into_inner();
        if let Some(durable) = &reply.durable {
            self.positions.hear_message(to, durable);
        }
        wire::append_reply(&request, reply)
    }

    async fn select(&self, to: &NodeId, request: SelectRequest, sink: SelectSink) -> Result<(), PeerError> {
        if *to == self.replica.id {
            return self.replica.select(request, sink).await;
        }
        let mut client = self.client(to, Lane::Read)?;
        let message = wire::select_request(self.cluster_bytes(), &request);
        let mut frames = client.select(message).await.map_err(|e| wire::peer_error(&e))?.into_inner();
        let mut collector = wire::SelectCollector::new(&request);
        while let Some(frame) = frames.message().await.map_err(|e| wire::peer_error(&e))? {
            if let Some(reply) = collector.add(frame, |shard, samples| sink.hold(shard, samples))? {
                sink.reply(reply).await;
            }
        }
        collector.finish()
    }

    async fn labels(
        &self,
        to: &NodeId,
        request: LabelsRequest,
    ) -> Result<Vec<ShardReply<LabelsAnswer>>, PeerError> {
        if *to == self.replica.id {
            return Ok(self.replica.labels(request).await);
        }
        let mut client = self.client(to, Lane::Read)?;
        let message = wire::labels_request(self.cluster_bytes(), &request);
        let reply = client.labels(message).await.map_err(|e| wire::peer_error(&e))?;
        wire::labels_reply(&request, reply.into_inner())
    }

    async fn cardinality(
        &self,
        to: &NodeId,
        request: CardinalityRequest,
    ) -> Result<CardinalityReply, PeerError> {
        if *to == self.replica.id {
            return Ok(self.replica.cardinality(request).await);
        }
        let mut client = self.client(to, Lane::Read)?;
        let message = wire::count_request(self.cluster_bytes(), &request);
        let reply = client.count(message).await.map_err(|e| wire::peer_error(&e))?;
        wire::count_reply(reply.into_inner())
    }

    async fn clean_tombstones(&self, to: &NodeId) -> Result<(), PeerError> {
        if *to == self.replica.id {
            return self.replica.clean_tombstones().await;
        }
        let mut client = self.client(to, Lane::Read)?;
        let message = peer::CleanTombstonesRequest { cluster: self.cluster_bytes() };
        client.clean_tombstones(message).await.map_err(|e| wire::peer_error(&e))?;
        Ok(())
    }

    async fn push_placement(&self, to: &NodeId, placement: &Placement) -> Result<(), PeerError> {
        let mut client = self.client(to, Lane::Append)?;
        let placement = wire::placement_to_bytes(placement);
        let message = peer::PushPlacementRequest { cluster: self.cluster_bytes(), placement };
        client.push_placement(message).await.map_err(|e| wire::peer_error(&e))?;
        Ok(())
    }

    fn is_alive(&self, node: &NodeId) -> bool {
        *node == self.replica.id || self.view.borrow().is_alive(node)
    }
}

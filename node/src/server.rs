//! A node's life: bind, open, join, serve, drain, close.

use std::num::NonZeroU64;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use saturn_model::Limits;
use saturn_proto::operator;
use saturn_proto::peer::peer_server::PeerServer;
use saturn_query_frontend::{Frontend, Settings as FrontendSettings};
use saturn_replication::{Coordinator, PlacementHandle, Settings as ReplicationSettings};
use saturn_ring::{KeyRing, Member, Membership, MembershipConfig, NodeId, Placement, Spreads, Zone};
use saturn_storage::{Engine, EngineOptions, GroupLog, OpenProgress, Opening};
use tokio::net::{TcpListener, UdpSocket};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;

use crate::authority::Authority;
use crate::cluster::{self, Joining};
use crate::config::Config;
use crate::durability::{Lacking, Positions};
use crate::gossip::{self, Command, View};
use crate::grpc::PeerService;
use crate::http::{App, Serving};
use crate::identity::{DataDir, Losses};
use crate::metrics::{HttpMetrics, ProcessMetrics};
use crate::moves::Mover;
use crate::peers::{self, Connections, NodePeers};
use crate::raft::{Control, Founding, Groups, Voter};
use crate::read_path::QuorumSource;
use crate::repair::Repairer;
use crate::replica::{Admission, Replica};
use crate::ring_status::RingStatus;
use crate::rpc_auth::Token;
use crate::shepherd::{self, Shepherd};
use crate::transfer::Transfers;
use crate::transfer::source::Streams;
use crate::write_path::Gate;
use crate::{clock, http, rebalance, secrets};

/// How long requests in flight may take when the node stops.
const DRAIN_MAX: Duration = Duration::from_secs(10);
/// How often the text of `/-/ready` is renewed while the storage opens.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);

/// The sockets of a node, bound before anything else happens.
struct Listeners {
    http: TcpListener,
    grpc: TcpListener,
    gossip: UdpSocket,
}

impl Listeners {
    async fn bind(config: &Config) -> anyhow::Result<Self> {
        let in_use = |flag: &str, address| format!("cannot listen on {address} (--{flag})");
        Ok(Self {
            http: TcpListener::bind(config.http_listen)
                .await
                .with_context(|| in_use("http.listen", config.http_listen))?,
            grpc: TcpListener::bind(config.grpc_listen)
                .await
                .with_context(|| in_use("grpc.listen", config.grpc_listen))?,
            gossip: UdpSocket::bind(config.gossip_listen)
                .await
                .with_context(|| in_use("gossip.listen", config.gossip_listen))?,
        })
    }
}

/// Who this node is: its data directory, and what others are told.
fn identify(config: &Config, listeners: &Listeners) -> anyhow::Result<(DataDir, Member)> {
    let (id, zone) = (NodeId::new(&config.node_id)?, Zone::new(&config.zone)?);
    let data = DataDir::open(&config.data_dir, &id)?;
    let me = Member {
        id,
        generation: data.generation,
        zone,
        gossip_addr: listeners.gossip.local_addr()?,
        grpc_addr: listeners.grpc.local_addr()?,
        http_addr: listeners.http.local_addr()?,
    };
    Ok((data, me))
}

/// Everything that lives as long as the node does.
struct Node {
    me: Member,
    data: DataDir,
    /// Filled once the storage is open.
    engine: Arc<OnceLock<Engine>>,
    registry: Arc<Mutex<Registry>>,
    limits: Arc<Limits>,
    spreads: Spreads,
    view: watch::Receiver<View>,
    gossip: mpsc::Sender<Command>,
    token: Token,
    /// Filled once the node belongs to a cluster.
    placement: Arc<OnceLock<Arc<PlacementHandle>>>,
    /// Filled a moment later.
    groups: Arc<OnceLock<Arc<Groups>>>,
    /// Filled with the groups.
    authority: Arc<OnceLock<Authority>>,
    connections: Arc<Connections>,
    moves_bytes_per_second: Option<NonZeroU64>,
    replica: Arc<OnceLock<Replica>>,
    serving: Arc<OnceLock<Serving>>,
    started: Instant,
}

/// Runs a node until `stop` resolves or a part of it fails.
pub(crate) async fn serve(config: Config, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
    // First of all, as the system's default is sudden death.
    let hangup = signal(SignalKind::hangup()).context("cannot handle SIGHUP")?;
    let listeners = Listeners::bind(&config).await?;
    let (data, me) = identify(&config, &listeners)?;
    tracing::info!(
        node = %me.id, zone = %me.zone, http = %me.http_addr, grpc = %me.grpc_addr, gossip = %me.gossip_addr,
        data = %config.data_dir.display(), "starting"
    );
    let registry = Arc::new(Mutex::new(Registry::default()));
    let opening = Opening::new(engine_options(&config, &data), &mut registry.lock());
    let (gossip_commands, gossip_inbox) = mpsc::channel(16);
    let (view_sender, view) = watch::channel(View::default());
    let (waiting_for, waiting) = watch::channel("starting".to_owned());
    let secrets =
        config.secret.as_ref().map_or(vec![operator::LOOPBACK_SECRET], |file| file.secrets.expose());
    let token = Token::derive(&secrets);
    let node = Node {
        me,
        data,
        engine: Arc::default(),
        registry,
        limits: Arc::new(Limits::default()),
        spreads: config.spreads.clone(),
        view,
        gossip: gossip_commands,
        connections: Arc::new(Connections::new(token.clone())),
        moves_bytes_per_second: config.moves_bytes_per_second,
        token,
        placement: Arc::default(),
        groups: Arc::default(),
        authority: Arc::default(),
        replica: Arc::default(),
        serving: Arc::default(),
        started: Instant::now(),
    };
    let (draining, drained) = watch::channel(false);
    let router = http::router(Arc::new(node.app(&config, waiting)));
    let http = axum::serve(listeners.http, router).with_graceful_shutdown(until_true(drained.clone()));
    let mut http = tokio::spawn(http.into_future());
    let mut stop = std::pin::pin!(stop);
    // Health, readiness and metrics are answered meanwhile; nobody else knows of this node yet.
    tokio::select! {
        opened = node.open_engine(opening, &waiting_for) => opened?,
        () = &mut stop => {
            tracing::info!("stopped before the storage was open");
            return Ok(());
        }
        ended = &mut http => return Err(why_http_ended(ended)),
    }

    let positions = Arc::new(Positions::new(node.engine().clone(), node.me.generation));
    let membership = node.membership(&config, KeyRing::new(&secrets)?).await?;
    let outlets = (view_sender, Arc::clone(&positions));
    let gossip = gossip::run(membership, listeners.gossip, node.started, gossip_inbox, outlets);
    let mut gossip = tokio::spawn(gossip);
    let mut grpc = tokio::spawn(node.grpc(listeners.grpc, Arc::clone(&positions), until_true(drained)));
    let joining = node.joining(&config, waiting_for, positions);

    let outcome = tokio::select! {
        () = &mut stop => Ok(()),
        ended = &mut gossip => Err(flatten(ended).err().unwrap_or_else(|| anyhow::anyhow!("gossip ended"))),
        ended = &mut grpc => Err(flatten(ended).err().unwrap_or_else(|| anyhow::anyhow!("the RPC server ended"))),
        ended = &mut http => Err(why_http_ended(ended)),
        failed = node.join_and_watch(joining) => Err(failed),
        () = node.follow_secrets(&config, hangup) => Err(anyhow::anyhow!("nobody hears SIGHUP any more")),
    };
    tracing::info!("stopping");
    draining.send_replace(true);
    let _ = node.gossip.send(Command::Leave).await;
    drain(http, grpc, gossip).await;
    if let Some(groups) = node.groups.get() {
        groups.close().await;
    }
    let closed = close(node.engine().clone()).await;
    outcome.and(closed)?;
    tracing::info!("stopped");
    Ok(())
}

fn engine_options(config: &Config, data: &DataDir) -> EngineOptions {
    config.storage.engine_options(data.storage_path(), config.retention.clone())
}

async fn close(engine: Engine) -> anyhow::Result<()> {
    let closed = tokio::task::spawn_blocking(move || engine.close()).await;
    closed.context("closing the storage")?.context("cannot close the storage")
}

fn why_http_ended(ended: Result<std::io::Result<()>, tokio::task::JoinError>) -> anyhow::Error {
    match ended {
        Ok(Ok(())) => anyhow::anyhow!("the HTTP server ended"),
        Ok(Err(error)) => anyhow::Error::new(error).context("the HTTP server failed"),
        Err(panic) => anyhow::Error::new(panic).context("the HTTP server panicked"),
    }
}

/// Cancels the opening of the storage when nobody waits for it any more.
struct CancelOnDrop(OpenProgress);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// A task that ends with the node.
struct Task(JoinHandle<()>);

impl Task {
    fn spawn(work: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(tokio::spawn(work))
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn flatten(ended: Result<anyhow::Result<()>, tokio::task::JoinError>) -> anyhow::Result<()> {
    ended.context("a background task panicked")?
}

/// Waits until nothing is in flight any more, but not for ever.
async fn drain<A, B, C>(http: JoinHandle<A>, grpc: JoinHandle<B>, gossip: JoinHandle<C>) {
    let drain = async {
        until_ended(http).await;
        until_ended(grpc).await;
        until_ended(gossip).await;
    };
    if tokio::time::timeout(DRAIN_MAX, drain).await.is_err() {
        tracing::info!("requests in flight were cut off");
    }
}

/// Waits for a task, of which the outcome may have been taken already.
async fn until_ended<T>(task: JoinHandle<T>) {
    if !task.is_finished() {
        let _ = task.await;
    }
}

async fn until_true(mut flag: watch::Receiver<bool>) {
    // An error means that the sender is gone, and with it the node.
    let _ = flag.wait_for(|set| *set).await;
}

impl Node {
    /// Opens the storage, and says meanwhile how far that is.
    async fn open_engine(&self, opening: Opening, waiting_for: &watch::Sender<String>) -> anyhow::Result<()> {
        let progress = CancelOnDrop(opening.progress());
        let mut open = tokio::task::spawn_blocking(move || opening.open());
        let opened = loop {
            waiting_for.send_replace(progress.0.to_string());
            if let Ok(opened) = tokio::time::timeout(PROGRESS_EVERY, &mut open).await {
                break opened;
            }
        };
        let engine = opened.context("opening the storage")?.context("cannot open the storage")?;
        self.engine.set(engine).expect("the storage is opened once");
        Ok(())
    }

    fn engine(&self) -> &Engine {
        self.engine.get().expect("the node joins nobody before its storage is open")
    }

    fn app(&self, config: &Config, waiting_for: watch::Receiver<String>) -> App {
        let ring = RingStatus {
            view: self.view.clone(),
            placement: Arc::clone(&self.placement),
            groups: Arc::clone(&self.groups),
            started: jiff::Timestamp::now(),
            wanted_replication_factor: config.replication_factor,
            wanted_shards: config.shards,
        };
        let mut registry = self.registry.lock();
        registry.register_collector(Box::new(ring.clone()));
        registry.register_collector(Box::new(ProcessMetrics));
        App {
            serving: Arc::clone(&self.serving),
            ring,
            settings: config.listing.clone(),
            gate: Arc::new(Gate::new(Arc::clone(&self.limits))),
            default_tenant: config.default_tenant.clone(),
            admin: config.admin,
            registry: Arc::clone(&self.registry),
            metrics: HttpMetrics::new(&mut registry),
            write_budget: App::write_budget(),
            engine: Arc::clone(&self.engine),
            authority: Arc::clone(&self.authority),
            token: self.token.clone(),
            moves_bytes_per_second: config.moves_bytes_per_second,
            node_id: self.me.id.clone(),
            zone: self.me.zone.clone(),
            waiting_for,
        }
    }

    async fn membership(&self, config: &Config, keys: KeyRing) -> anyhow::Result<Membership> {
        let mut boot_nonce = [0; saturn_ring::BOOT_NONCE_BYTES];
        let mut seed = [0; 8];
        getrandom::fill(&mut boot_nonce).context("cannot draw random bytes")?;
        getrandom::fill(&mut seed).context("cannot draw random bytes")?;
        let placement = self.data.load_placement()?;
        let config = MembershipConfig {
            me: self.me.clone(),
            boot: u64::try_from(clock::unix_ms()).unwrap_or_default(),
            keys,
            seeds: cluster::resolve(&config.join).await,
            boot_nonce,
            rng_seed: u64::from_le_bytes(seed),
            cluster: placement.as_ref().map(|p| p.cluster),
            placement_version: placement.as_ref().map_or(0, |p| p.version),
        };
        Ok(Membership::new(config, self.started.elapsed()))
    }

    fn grpc(
        &self,
        listener: TcpListener,
        positions: Arc<Positions>,
        drained: impl Future<Output = ()> + Send + 'static,
    ) -> impl Future<Output = anyhow::Result<()>> + Send + 'static {
        let service = PeerService {
            replica: Arc::clone(&self.replica),
            placement: Arc::clone(&self.placement),
            streams: Streams::default(),
            groups: Arc::clone(&self.groups),
            positions,
        };
        let service = PeerServer::new(service)
            .max_decoding_message_size(peers::MESSAGE_BYTES_MAX)
            .max_encoding_message_size(peers::MESSAGE_BYTES_MAX);
        let token = self.token.clone();
        let check = move |request| token.check(request);
        let service = tonic::service::interceptor::InterceptedService::new(service, check);
        let server = tonic::transport::Server::builder()
            .initial_stream_window_size(peers::STREAM_WINDOW_BYTES)
            .initial_connection_window_size(peers::CONNECTION_WINDOW_BYTES)
            .http2_keepalive_interval(Some(peers::KEEP_ALIVE_EVERY))
            .http2_keepalive_timeout(Some(peers::KEEP_ALIVE_TIMEOUT))
            .add_service(service)
            .serve_with_incoming_shutdown(TcpListenerStream::new(listener), drained);
        async move { server.await.context("the RPC server failed") }
    }

    fn joining(
        &self,
        config: &Config,
        waiting_for: watch::Sender<String>,
        positions: Arc<Positions>,
    ) -> Joining {
        Joining {
            me: self.me.clone(),
            data: self.data.clone(),
            join: config.join.clone(),
            replication_factor: config.replication_factor,
            shards: config.shards,
            weight: config.weight,
            started: self.started,
            view: self.view.clone(),
            gossip: self.gossip.clone(),
            connections: Arc::clone(&self.connections),
            waiting_for,
            positions,
        }
    }

    fn follow_secrets(&self, config: &Config, hangup: Signal) -> impl Future<Output = ()> + use<> {
        secrets::follow(config.secret.clone(), hangup, self.token.clone(), self.gossip.clone())
    }

    /// Joins the cluster, opens the doors, and watches; returns only why the node must stop.
    async fn join_and_watch(&self, joining: Joining) -> anyhow::Error {
        match self.join(&joining).await {
            Ok(()) => std::future::pending().await,
            Err(e) => e,
        }
    }

    async fn join(&self, joining: &Joining) -> anyhow::Result<()> {
        let losses = self.data.load_losses()?;
        let lacking = Arc::new(Lacking::new(losses, joining.shards, &mut self.registry.lock()));
        let (placement, admission) = cluster::establish(joining, self.engine(), &lacking).await?;
        // Each cell is filled here only, and once.
        let _ = self.placement.set(Arc::clone(&placement));
        cluster::recall(&placement.load(), joining).await?;
        let authority = self.authority(&placement).await?;
        let _ = self.groups.set(Arc::clone(&authority.groups));
        let _ = self.authority.set(authority.clone());
        let founding = self.founding(losses, &placement.load());
        let _shepherd = Task::spawn(Shepherd::new(authority.clone(), founding).run());
        let following = shepherd::follow(authority.clone(), self.gossip.clone());
        let serving = async {
            cluster::become_member(&authority, joining, &lacking).await?;
            let mover = self.open_doors(&authority, &joining.positions, (admission, &lacking));
            tracing::info!(
                cluster = %placement.load().cluster,
                shards_owned = placement.load().slots_of(&self.me.id),
                ready_after_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
                "ready"
            );
            let repairer = Repairer::new(authority.clone(), mover.transfers());
            let _repairer = Task::spawn(repairer.run(lacking, self.data.clone()));
            let _mover = Task::spawn(mover.run());
            let _rebalancer = Task::spawn(rebalance::run(authority.clone(), self.started));
            std::future::pending::<anyhow::Result<()>>().await
        };
        let (me, view) = (self.me.clone(), self.view.clone());
        let watching = cluster::watch_for_strangers(Arc::clone(&placement), me, self.started, view);
        tokio::try_join!(following, serving, watching).map(|((), (), ())| ())
    }

    /// Whether this node may found groups: one that has lost its part in them could found them twice, and so could one
    /// whose empty directory takes the place of a lost one.
    fn founding(&self, losses: Losses, placement: &Placement) -> Founding {
        let was_there = self.data.was_member() || placement.version == 1;
        if losses.noticed == 0 && was_there { Founding::Possible } else { Founding::Over }
    }

    /// Brings up what this node takes part in deciding.
    async fn authority(&self, placement: &Arc<PlacementHandle>) -> anyhow::Result<Authority> {
        let path = self.data.raft_path();
        let log = tokio::task::spawn_blocking(move || GroupLog::open(&path)).await?;
        let log = log.context("cannot open the log of the cluster's metadata")?;
        let voter = Voter::from(self.me.generation);
        let cluster = placement.load().cluster;
        let control = Control::new(cluster, self.view.clone(), Arc::clone(&self.connections));
        let groups = Groups::open(voter, log, control).await?;
        Ok(Authority { me: self.me.id.clone(), voter, groups, placement: Arc::clone(placement) })
    }

    /// Starts to serve; returns what takes shards.
    fn open_doors(
        &self,
        authority: &Authority,
        positions: &Arc<Positions>,
        (admission, lacking): (Admission, &Arc<Lacking>),
    ) -> Mover {
        let placement = &authority.placement;
        let mut registry = self.registry.lock();
        let (me, engine) = (self.me.id.clone(), self.engine().clone());
        let replica = Replica::new(me, engine, Arc::clone(placement), admission, Arc::clone(lacking));
        let peers = Arc::new(NodePeers {
            replica: replica.clone(),
            cluster: placement.load().cluster,
            view: self.view.clone(),
            connections: Arc::clone(&self.connections),
            positions: Arc::clone(positions),
        });
        let transfers = Transfers::new(Arc::clone(&peers), self.moves_bytes_per_second, &mut registry);
        let coordinator = Arc::new(Coordinator::new(
            peers,
            self.me.id.clone(),
            Arc::clone(placement),
            ReplicationSettings { spreads: self.spreads.clone(), ..ReplicationSettings::default() },
            &mut registry,
        ));
        let source =
            Arc::new(QuorumSource { coordinator: Arc::clone(&coordinator), replica: replica.clone() });
        let limits = (*self.limits).clone();
        let frontend = Frontend::new(source, FrontendSettings::default(), limits, &mut registry);
        // Each cell is filled here only, and once.
        let _ = self.replica.set(replica);
        let mover = Mover::new(authority.clone(), Arc::new(transfers), self.engine().clone());
        let _ = self.serving.set(Serving { coordinator, frontend, mover: mover.clone() });
        mover
    }
}

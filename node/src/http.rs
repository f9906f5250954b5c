//! The HTTP listener: Prometheus's API, per tenant, and the operator's pages.
//!
//! Every path of the API also exists below `/prometheus`, `/api/prom` and `/t/<tenant>`.

pub(crate) mod admin;
mod answer;
mod ast;
mod cardinality;
mod exemplars;
mod federate;
mod metadata;
mod names;
mod params;
mod query;
mod remote_read;
mod ring;
mod status;
mod tenant;
mod write;
mod zstd;

use std::num::NonZeroU64;
use std::sync::{Arc, OnceLock};

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{get, post};
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use saturn_model::TenantId;
use saturn_query_frontend::Frontend;
use saturn_replication::Coordinator;
use saturn_ring::{NodeId, Zone};
use saturn_storage::Engine;
use tokio::sync::{Semaphore, watch};
use tower_http::compression::CompressionLayer;

use crate::authority::Authority;
use crate::config::Listing;
use crate::metrics::HttpMetrics;
use crate::moves::Mover;
use crate::peers::NodePeers;
use crate::read_path::QuorumSource;
use crate::ring_status::RingStatus;
use crate::rpc_auth::Token;
use crate::write_path::Gate;

/// Largest form body of a query request.
const FORM_BYTES_MAX: usize = 1 << 20;
/// Bytes of write requests, compressed and not, that may be in memory at once, in KiB.
const WRITE_KIB_MAX: usize = 512 << 10;

/// What the node can do once it belongs to a cluster.
pub(crate) struct Serving {
    pub(crate) coordinator: Arc<Coordinator<NodePeers>>,
    pub(crate) frontend: Frontend<QuorumSource>,
    pub(crate) mover: Mover,
}

/// What the handlers share.
pub(crate) struct App {
    /// Empty until the node belongs to a cluster.
    pub(crate) serving: Arc<OnceLock<Serving>>,
    pub(crate) ring: RingStatus,
    pub(crate) settings: Listing,
    /// The limits, and what write requests are held against.
    pub(crate) gate: Arc<Gate>,
    pub(crate) default_tenant: TenantId,
    /// Whether the admin endpoints are on.
    pub(crate) admin: admin::AdminApi,
    pub(crate) registry: Arc<Mutex<Registry>>,
    pub(crate) metrics: HttpMetrics,
    pub(crate) write_budget: Arc<Semaphore>,
    /// Empty until the storage is open.
    pub(crate) engine: Arc<OnceLock<Engine>>,
    /// Empty until the node takes part in deciding.
    pub(crate) authority: Arc<OnceLock<Authority>>,
    /// Knows operators by their `Authorization` header.
    pub(crate) token: Token,
    pub(crate) moves_bytes_per_second: Option<NonZeroU64>,
    pub(crate) node_id: NodeId,
    pub(crate) zone: Zone,
    /// Why the node is not ready yet.
    pub(crate) waiting_for: watch::Receiver<String>,
}

impl App {
    /// The budget of write requests' bytes, see [`WRITE_KIB_MAX`].
    pub(crate) fn write_budget() -> Arc<Semaphore> {
        Arc::new(Semaphore::new(WRITE_KIB_MAX))
    }
}

/// All routes.
pub(crate) fn router(app: Arc<App>) -> Router {
    let api = api_routes();
    Router::new()
        .route("/metrics", get(status::metrics))
        .route("/-/ready", get(status::ready))
        .route("/-/healthy", get(status::healthy))
        .route("/", get(status::index))
        .merge(api.clone())
        .nest("/prometheus", api.clone())
        .nest("/api/prom", api.clone())
        .nest("/t/{tenant}", api)
        .fallback(status::not_found)
        .with_state(app)
}

fn api_routes() -> Router<Arc<App>> {
    let reads = Router::new()
        .route("/api/v1/query", get(query::instant).post(query::instant))
        .route("/api/v1/query_range", get(query::range).post(query::range))
        .route("/api/v1/query_exemplars", get(exemplars::query).post(exemplars::query))
        .route("/api/v1/metadata", get(metadata::metadata))
        .route("/api/v1/series", get(query::series).post(query::series))
        .route("/api/v1/labels", get(query::labels).post(query::labels))
        .route("/api/v1/label/{name}/values", get(query::label_values))
        .route("/api/v1/format_query", get(query::format).post(query::format))
        .route("/api/v1/parse_query", get(query::parse).post(query::parse))
        .route("/federate", get(federate::federate))
        .route("/api/v1/admin/tsdb/delete_series", post(admin::delete_series).put(admin::delete_series))
        .route(
            "/api/v1/admin/tsdb/clean_tombstones",
            post(admin::clean_tombstones).put(admin::clean_tombstones),
        )
        .route("/api/v1/admin/tenants/{name}/shards", get(admin::tenant_shards))
        .route("/api/v1/admin/tsdb/scrub", post(admin::scrub).put(admin::scrub))
        .route("/api/v1/status/buildinfo", get(status::buildinfo))
        .route("/api/v1/status/runtimeinfo", get(status::runtimeinfo))
        .route("/api/v1/status/config", get(status::config))
        .route("/api/v1/status/flags", get(status::flags))
        .route("/api/v1/status/tsdb", get(cardinality::tsdb))
        .route("/api/v1/status/ring", get(status::ring))
        .route("/api/v1/status/ring/plan", get(ring::plan))
        .route("/api/v1/status/ring/history", get(ring::history))
        .route("/api/v1/status/ring/owners", get(ring::owners))
        .route("/api/v1/status/shards", get(ring::shards))
        .route("/api/v1/admin/ring/{action}", post(ring::change))
        .route("/api/v1/admin/repair", post(ring::repair))
        .route("/api/v1/status/node", get(status::node))
        .layer(DefaultBodyLimit::max(FORM_BYTES_MAX))
        .layer(axum::middleware::from_fn(zstd::compress))
        .layer(CompressionLayer::new().gzip(true));
    // The write handler reads its body itself, within the tenant's limit; remote-read brings its own compression.
    let writes = Router::new()
        .route("/api/v1/write", post(write::write))
        .route("/api/v1/push", post(write::write))
        .route("/api/v1/read", post(remote_read::read))
        .layer(DefaultBodyLimit::disable());
    reads.merge(writes)
}

//! What a node tells its operator: the JSON of `/api/v1/status/ring`, `/api/v1/status/node` and
//! `/api/v1/admin/tenants/NAME/shards`, which `saturnctl` reads.

use serde::{Deserialize, Serialize};

/// The ring as one node sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RingReport {
    /// The cluster's UUID; `None` while it is not formed.
    pub cluster: Option<String>,
    /// Version of the placement, 0 while the cluster is not formed.
    pub placement_version: u64,
    /// Copies of each sample.
    pub replication_factor: u8,
    /// Number of virtual shards.
    pub shards: u16,
    /// Shards of which at least one replica is not alive.
    pub under_replicated_shards: usize,
    /// Shards of which no quorum is alive: they accept no writes and are missing in answers.
    pub shards_without_quorum: usize,
    /// Everybody in the placement or ever heard of, by id.
    pub members: Vec<MemberReport>,
}

/// One member of the ring.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MemberReport {
    /// Its name.
    pub id: String,
    /// Where it stands.
    pub zone: String,
    /// `alive`, `suspect`, `down`, or `unknown` if it was not heard of since this node started.
    pub state: String,
    /// In how many shards it holds a slot.
    pub shards_owned: usize,
    /// Since when its state is what it is, RFC 3339; `None` if it was not heard of.
    pub since: Option<String>,
    /// The life of its data directory.
    pub generation: String,
    /// Addresses; `None` if it was not heard of.
    pub http_address: Option<String>,
    /// See `http_address`.
    pub grpc_address: Option<String>,
    /// See `http_address`.
    pub gossip_address: Option<String>,
}

/// How one node is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeReport {
    /// Its name.
    pub id: String,
    /// Where it stands.
    pub zone: String,
    /// Version of its program.
    pub version: String,
    /// Whether it can serve.
    pub ready: bool,
    /// Its clock, milliseconds since the Unix epoch.
    pub unix_ms: i64,
    /// How long a small write with fdatasync to its data directory took just now, in milliseconds;
    /// `None` if it failed.
    pub fsync_ms: Option<f64>,
    /// Series in its index.
    pub series: u64,
    /// Samples in memory, not yet flushed to chunks.
    pub head_samples: u64,
    /// Bytes of write-ahead log.
    pub wal_bytes: u64,
    /// Bytes of its data directory.
    pub disk_bytes: u64,
}

/// Over which shards a tenant is spread.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TenantShardsReport {
    /// Its name.
    pub tenant: String,
    /// Number of virtual shards in the cluster.
    pub shards: u16,
    /// Those that queries of the tenant ask, ascending.
    pub placement: Vec<TenantShard>,
}

/// One shard of a tenant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TenantShard {
    /// Its number.
    pub shard: u16,
    /// Whether the tenant's series go there now; else it may have some from before.
    pub written: bool,
    /// Version of the shard's record.
    pub epoch: u64,
    /// Who fills its slots.
    pub nodes: Vec<String>,
}

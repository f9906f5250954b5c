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
    /// Shards of which a slot is on its way to another node.
    pub moves_under_way: usize,
    /// Moves that the member list asks for besides; `None` if it asks for what cannot be.
    pub moves_planned: Option<usize>,
    /// Whether the operator stopped moves from beginning.
    pub is_paused: bool,
    /// Who leads the member list, and so begins moves; `None` if the asked node takes no part in keeping it, or does not
    /// know.
    pub leader: Option<String>,
    /// Who votes on the member list, by id; both the former and the next ones while that changes. Empty if the asked node
    /// takes no part in keeping it.
    pub council: Vec<String>,
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
    /// How many shards are on their way to it.
    pub shards_coming: usize,
    /// How many shards are on their way from it.
    pub shards_leaving: usize,
    /// `active`, `draining`, or `stranger` if it is no member.
    pub standing: String,
    /// How much it should hold, compared with others of its zone; 0 for strangers.
    pub weight: u32,
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

/// A slot of a shard that is to move.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlannedMoveReport {
    /// Which shard.
    pub shard: u16,
    /// Which slot of it.
    pub slot: u8,
    /// Who fills it.
    pub from: String,
    /// Who shall.
    pub to: String,
}

/// What a change of the member list would do, before anything happens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlanReport {
    /// The moves, by shard.
    pub moves: Vec<PlannedMoveReport>,
    /// About how many bytes they send, by what the asked node has on its disk of a shard.
    pub bytes: u64,
    /// About how long that takes at the rate that is set; `None` if there is no limit.
    pub seconds: Option<f64>,
    /// What may go wrong meanwhile, in words.
    pub risks: Vec<String>,
    /// What would be lost or stop working; then the change needs to be forced.
    pub losses: Vec<String>,
}

/// One shard's metadata.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ShardReport {
    /// Its number.
    pub shard: u16,
    /// Version of its record.
    pub epoch: u64,
    /// Who fills its slots.
    pub slots: Vec<String>,
    /// The slot under way: which, to whom, and whether that node answers reads yet.
    pub moving: Option<SlotMoveReport>,
    /// Who leads its Raft group; `None` if the asked node takes no part in it, or does not know.
    pub leader: Option<String>,
    /// Windows of which all replicas hold the same.
    pub sealed_windows: usize,
    /// Deletions that not all of its nodes are known to have done.
    pub deletions: usize,
    /// A digest of what the asked node holds of it, if that was asked for: equal where the samples are.
    pub digest: Option<String>,
    /// How the record became what it is; empty if the asked node takes no part.
    pub history: Vec<HistoryEntry>,
}

/// What a comparison of a node's shards with the other nodes brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RepairReport {
    /// Shards compared.
    pub shards: u64,
    /// Shards that could not be compared with all of their nodes.
    pub failed: u64,
    /// Copies on other nodes that differed, and of which samples were taken.
    pub taken: u64,
}

/// A slot on its way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SlotMoveReport {
    /// Which slot.
    pub slot: u8,
    /// To whom.
    pub to: String,
    /// `begun` or `activated`.
    pub step: String,
    /// How far the asked node is with taking it, if it is the one that takes it.
    pub progress: Option<MoveProgress>,
}

/// How far a node is with taking a shard.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MoveProgress {
    /// Since how many seconds.
    pub seconds: f64,
    /// Bytes received.
    pub bytes: u64,
    /// Samples received.
    pub samples: u64,
    /// Windows of two hours that are there, of all.
    pub windows_done: usize,
    /// All of them; 0 before the source has answered.
    pub windows_total: usize,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HistoryEntry {
    /// When, RFC 3339.
    pub at: String,
    /// Version of the member list, or epoch of the shard's record, since then.
    pub version: u64,
    /// What.
    pub what: String,
}

/// Who holds a series.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OwnersReport {
    /// Whose series.
    pub tenant: String,
    /// Its labels.
    pub series: String,
    /// Its hash, hexadecimal.
    pub fingerprint: String,
    /// Its shard.
    pub shard: u16,
    /// Version of the shard's record.
    pub epoch: u64,
    /// Who fills its slots, and who will.
    pub owners: Vec<OwnerReport>,
}

/// One of the nodes that hold a series.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OwnerReport {
    /// Its name.
    pub node: String,
    /// Its zone.
    pub zone: String,
    /// As in [`MemberReport::state`].
    pub state: String,
    /// `slot N`, or `coming to slot N`.
    pub role: String,
}

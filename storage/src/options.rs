//! How an engine is set up, and what it says about itself.

use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::Duration;

use crate::durability::DurabilityOptions;
use crate::retention::Retention;
use crate::steps::StepHook;

/// Where an engine keeps its data, and its bounds.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// The data directory; created if it does not exist.
    pub dir: PathBuf,
    /// Size at which a new WAL segment starts, in bytes. A segment may exceed it by one group.
    pub wal_segment_bytes: u64,
    /// Most bytes written before one fdatasync. A larger record is a group of its own.
    pub group_commit_bytes_max: usize,
    /// Most bytes that wait for the WAL's writer; appenders wait beyond it.
    pub wal_queue_bytes_max: usize,
    /// Which tenants' appends wait for fdatasync.
    pub durability: DurabilityOptions,
    /// Bytes of samples in memory at which a flush starts. Twice as many are refused as overload.
    pub flush_head_bytes_max: usize,
    /// WAL size at which a flush starts, in bytes: bounds the time to start again.
    pub flush_wal_bytes_max: u64,
    /// Longest time between flushes.
    pub flush_interval: Duration,
    /// Time between rounds of maintenance: retention, and merges that are due.
    pub maintenance_interval: Duration,
    /// Time between scrubs, which read everything on disk through its checksums; `None`: only when asked.
    pub scrub_interval: Option<Duration>,
    /// Most bytes that a scrub reads in a second; `None`: as fast as it can.
    pub scrub_bytes_per_second: Option<NonZeroU64>,
    /// How long samples are kept.
    pub retention: Retention,
    /// Free space on the disk, in bytes, below which appends are refused.
    pub reserve_bytes: u64,
    /// Size of RocksDB's block cache, in bytes.
    pub block_cache_bytes: usize,
    /// Size of the cache of what was found of series that are not in memory, in bytes.
    pub index_cache_bytes: usize,
    /// How long a series stays in memory after its last sample came.
    pub series_idle: Duration,
    /// Most exemplars that a shard keeps of one tenant; 0: none are kept.
    pub exemplars_per_shard_max: usize,
    /// Most metrics of one tenant of which a shard keeps metadata.
    pub metadata_per_shard_max: usize,
    /// Most table files that RocksDB keeps open.
    pub open_files_max: i32,
    /// For tests that let an operation die: what happens at its steps.
    pub steps: StepHook,
}

impl EngineOptions {
    /// The defaults for a data directory.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            wal_segment_bytes: 64 << 20,
            group_commit_bytes_max: 2 << 20,
            wal_queue_bytes_max: 16 << 20,
            durability: DurabilityOptions::default(),
            flush_head_bytes_max: 512 << 20,
            flush_wal_bytes_max: 512 << 20,
            flush_interval: Duration::from_secs(30 * 60),
            maintenance_interval: Duration::from_secs(60),
            scrub_interval: Some(Duration::from_secs(24 * 3600)),
            scrub_bytes_per_second: NonZeroU64::new(32 << 20),
            retention: Retention::default(),
            reserve_bytes: 64 << 20,
            block_cache_bytes: 128 << 20,
            index_cache_bytes: 32 << 20,
            series_idle: Duration::from_secs(60 * 60),
            exemplars_per_shard_max: 2000,
            metadata_per_shard_max: 2000,
            open_files_max: 512,
            steps: StepHook::default(),
        }
    }
}

/// Bounds of one read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadLimits {
    /// Most series of one shard.
    pub series_max: usize,
    /// Most bytes that are handed out for one shard: 16 for each sample, and the labels.
    pub bytes_max: u64,
}

/// An engine's figures at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineStats {
    /// Series known, of all tenants and shards.
    pub series: u64,
    /// Bytes that labels and postings of the series in memory take, roughly.
    pub index_bytes: u64,
    /// Samples in memory, those that are just being flushed included.
    pub head_samples: u64,
    /// Bytes of memory of these samples: compressed, with the record of each series.
    pub head_bytes: u64,
    /// Series that have samples in memory, those being flushed not included.
    pub head_series: u64,
    /// Bytes of the WAL's segment files.
    pub wal_bytes: u64,
    /// Bytes of RocksDB's table files.
    pub disk_bytes: u64,
    /// Segments on disk: one per flush, shard and 2 h window, until merges make one of several, and at last one per day.
    pub flushed_segments: u64,
}

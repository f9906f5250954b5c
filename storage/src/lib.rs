//! One node's data: write-ahead log, head, chunks, label index, RocksDB. Knows no cluster.
//!
//! The way in, and the way out:
//!
//! * [`Engine`] (`engine.rs`): the only door. [`Engine::append`] acks what is durable and visible.
//! * `shard.rs`: one virtual shard, its series and ordinals; `head.rs`: its samples in memory, `run.rs`: those of
//!   one series; `histograms.rs`: those that are native histograms.
//! * `start.rs`: from files to a running engine, replay by several threads, and its progress.
//! * `wal/`: the log with group commit, its format, replay, and what counts as damage.
//! * `flush.rs`: from memory to RocksDB, step by step, safe at each; `codec/`: columns as bytes.
//! * `merge.rs`: fewer segments, at last one a day; `retention.rs`: none that are too old; `maintenance.rs`: when both
//!   happen; `tombstones.rs`: deleting series.
//! * `digest.rs`: what replicas compare; `snapshot.rs`, `import.rs`: what they give each other, `exported.rs`: as
//!   bytes; `drop_shard.rs`: the end of a shard on this node.
//! * `check.rs`: everything on disk, read through its checksums; `scrub.rs`: of a running engine; `offline.rs`: of a
//!   directory that nobody has open.
//! * `segment.rs`, `page.rs`: samples of a span of time as rows of RocksDB, the same whoever writes them.
//! * `keys.rs`: keys and rows in RocksDB; `rocks.rs`: RocksDB itself, whose types end there.
//! * `index.rs`: the series in memory, matchers to series; `past.rs`, `day_rows.rs`: those that left it.
//! * `notes.rs`: exemplars and metadata.
//! * [`GroupLog`] (`group_log.rs`): a database of its own for small replicated logs; nothing of the above is in it.
//! * `read.rs`: series to merged samples; `labels.rs`: what series and labels there are.
//! * `steps.rs`: where tests let operations die.
//! * `durability.rs`: what an acknowledgement means; `disk.rs`: room on the disk; `wire.rs`: varints; `metrics.rs`,
//!   `options.rs`, `error.rs`.
//!
//! This crate admits samples of any age and any tenant: quotas, limits and ages are the front door's.
//! It never asks who owns a shard. It asks the wall clock only which windows are closed or expired.
//! Byte formats: the modules' own tables, collected in `docs/data-format.md`.
#![deny(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss
)]

mod check;
mod codec;
#[cfg(test)]
#[path = "../tests/it/copy.rs"]
mod copy;
#[cfg(test)]
mod damage_tests;
mod day_rows;
mod digest;
mod disk;
mod drop_shard;
mod durability;
mod engine;
mod error;
mod exported;
mod flush;
mod group_log;
mod head;
mod histograms;
mod import;
mod index;
mod keys;
mod labels;
mod maintenance;
mod merge;
mod metrics;
#[cfg(test)]
mod model_tests;
mod notes;
mod offline;
mod options;
mod page;
mod past;
mod read;
mod retention;
mod rocks;
mod run;
mod scrub;
mod segment;
mod shard;
mod snapshot;
mod start;
mod steps;
mod tombstones;
mod wal;
mod wire;

#[cfg(test)]
extern crate self as saturn_storage;

pub use check::{CheckReport, Damage};
pub use durability::{Durability, DurabilityOptions};
pub use engine::{AppendOutcome, Engine};
pub use error::StorageError;
pub use exported::{EXPORT_BYTES_MAX, EXPORT_CHUNK_BYTES_MAX, ExportedNotes};
pub use group_log::{Change, Durable, GroupLog};
pub use import::{Imported, Importer};
pub use labels::Listed;
pub use offline::{LogRecord, Offline, OfflineStats, SegmentInfo, SeriesInfo};
pub use options::{EngineOptions, EngineStats, ReadLimits};
pub use read::SeriesStream;
pub use retention::Retention;
pub use rocks::ChunkInfo;
pub use snapshot::{
    Export, ExportChunk, ExportCursor, ExportScope, ExportedSeries, LogPosition, ShardSnapshot,
};
pub use start::{OpenProgress, Opening};
pub use steps::{STEPS, StepHook};
pub use tombstones::AgreedDeletions;

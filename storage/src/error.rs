//! What can go wrong in storage, by what the caller can do about it.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use saturn_model::Labels;

/// A cause whose type is nobody's business outside (RocksDB's errors, mostly).
pub(crate) type Cause = Box<dyn Error + Send + Sync>;

/// An error of the storage engine.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The request contradicts itself. Sending it again will not help.
    #[error("invalid request: {reason}")]
    Invalid {
        /// What is wrong, naming the series or field.
        reason: String,
    },
    /// More series match than the caller allows. Narrow the selection.
    #[error("the selection matches {matched} series, more than the limit of {max}")]
    TooManySeries {
        /// Series of this shard that match and may have samples in the range.
        matched: u64,
        /// The caller's limit.
        max: usize,
    },
    /// The series that match have more samples than the caller allows. Narrow the selection or its range.
    #[error("the series of the selection take more than the limit of {max} bytes")]
    TooManyBytes {
        /// The caller's limit.
        max: u64,
    },
    /// Appends arrive faster than flushes finish. Try again later.
    #[error("{bytes} bytes of samples wait in memory, the limit is {max} (twice flush_head_bytes_max)")]
    Overloaded {
        /// Bytes of the head now.
        bytes: u64,
        /// The limit.
        max: u64,
    },
    /// The disk is nearly full. Reads go on, and writes do again once there is room.
    #[error("only {free} bytes are free in {}, the reserve is {reserve} (reserve_bytes)", dir.display())]
    DiskFull {
        /// The data directory.
        dir: PathBuf,
        /// Bytes free now.
        free: u64,
        /// Bytes that must stay free.
        reserve: u64,
    },
    /// Another process has this data directory open.
    #[error("data directory {} is in use by another process", dir.display())]
    InUse {
        /// The data directory.
        dir: PathBuf,
        /// RocksDB's words.
        #[source]
        source: Cause,
    },
    /// Writing to the log failed earlier, or a background thread died: what was not acknowledged may be
    /// lost, and nothing is acknowledged any more until the process starts again. Reads go on.
    #[error("the engine stopped acknowledging writes")]
    Failed {
        /// The first error.
        #[source]
        source: Arc<io::Error>,
    },
    /// The disk or RocksDB refused this one operation; it may work later.
    #[error("cannot {action}")]
    Unavailable {
        /// What was tried, with the path.
        action: String,
        /// Why it failed.
        #[source]
        source: Cause,
    },
    /// Stored data is damaged. It must be repaired from another replica.
    #[error("corrupt data in {} at byte {offset}: {reason}", path.display())]
    Corrupt {
        /// The damaged file, or the database's folder.
        path: PathBuf,
        /// Where in the file; 0 if unknown.
        offset: u64,
        /// What was found.
        reason: String,
    },
    /// The engine was closed.
    #[error("storage is closed")]
    Closed,
}

impl StorageError {
    /// Adds to a report of damage whose data it is.
    pub(crate) fn of_series(mut self, labels: &Labels) -> Self {
        if let Self::Corrupt { reason, .. } = &mut self {
            reason.push_str(&format!(", series {labels}"));
        }
        self
    }

    /// An IO error of one operation on `path`.
    pub(crate) fn io(action: &str, path: &Path, source: io::Error) -> Self {
        Self::Unavailable { action: format!("{action} {}", path.display()), source: source.into() }
    }
}

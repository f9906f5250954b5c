//! Room on the disk: appends stop before there is none.
//!
//! What cannot be written half-way is better refused at the door. Below the reserve appends get a typed
//! error, while reads, flushes and merges go on: these two make room. Nothing has to be done to resume.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::error::StorageError;
use crate::metrics::Metrics;

/// How often the file system is asked.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// The file system of a data directory.
#[derive(Debug)]
pub(crate) struct Disk {
    dir: PathBuf,
    reserve: u64,
    last: Mutex<Option<Answer>>,
}

#[derive(Clone, Copy, Debug)]
struct Answer {
    at: Instant,
    /// `u64::MAX` if unknown.
    free: u64,
}

impl Disk {
    /// `reserve`: bytes that must stay free.
    pub(crate) fn new(dir: PathBuf, reserve: u64) -> Self {
        Self { dir, reserve, last: Mutex::new(None) }
    }

    /// Refuses if less than the reserve is free.
    pub(crate) fn check(&self, metrics: &Metrics) -> Result<(), StorageError> {
        if self.reserve == 0 {
            return Ok(());
        }
        let free = self.free(metrics);
        if free >= self.reserve {
            return Ok(());
        }
        Err(StorageError::DiskFull { dir: self.dir.clone(), free, reserve: self.reserve })
    }

    fn free(&self, metrics: &Metrics) -> u64 {
        let mut last = self.last.lock();
        if let Some(answer) = last.filter(|answer| answer.at.elapsed() < ASK_EVERY) {
            return answer.free;
        }
        // A file system that does not answer is not known to be full.
        let free = rustix::fs::statvfs(&self.dir)
            .map_or(u64::MAX, |found| found.f_bavail.saturating_mul(found.f_frsize));
        let was_full = last.is_some_and(|answer| answer.free < self.reserve);
        let is_full = free < self.reserve;
        if is_full != was_full {
            tracing::warn!(dir = %self.dir.display(), free, reserve = self.reserve, is_full, "room on the disk changed");
        }
        metrics.disk_full.set(i64::from(is_full));
        *last = Some(Answer { at: Instant::now(), free });
        free
    }
}

//! A data directory that no process has open: what is in it, and whether it is whole. Nothing is ever changed.
//!
//! The lock that keeps two nodes apart is taken shared: several tools may look at the same time, and no node can
//! start meanwhile. The verdict over the log is the one that a start would come to (`wal/replay.rs`); what RocksDB
//! holds is checked by `check.rs`.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use saturn_model::{Labels, Matcher, ShardId, TenantId};

use crate::check::{self, CheckReport, Damage, Watch};
use crate::error::StorageError;
use crate::keys::{FORMAT_VERSION, INDEX_SERIES, SegmentKey, SeriesKey, SeriesRow};
use crate::rocks::{Blocks, ChunkInfo, Meta, Rocks, TableBytes};
use crate::wal::{self, AppendRecord, Replayed, Sink};

/// A data directory, open for reading.
#[derive(Debug)]
pub struct Offline {
    dir: PathBuf,
    rocks: Rocks,
    meta: Meta,
    _lock: Option<File>,
}

/// What a data directory holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OfflineStats {
    /// Version of the format, as the node that had it open last wrote it.
    pub format_version: u32,
    /// Shards with live segments.
    pub shards: u64,
    /// Live segments: one shard's samples of one window, of one flush or merge.
    pub segments: u64,
    /// Different windows that they are of.
    pub windows: u64,
    /// Tombstones that hide samples of them.
    pub tombstones: u64,
    /// Series with a label record. One that was away for a while counts again.
    pub series: u64,
    /// Samples in live segments, of one time several if segments overlap.
    pub samples: u64,
    /// Time of the first and the last of them, in milliseconds.
    pub range_ms: Option<(i64, i64)>,
    /// Bytes of tables with samples.
    pub data_bytes: u64,
    /// Bytes of tables with label records and day rows.
    pub index_bytes: u64,
    /// Bytes of tables that say what is live.
    pub meta_bytes: u64,
    /// Bytes of the database's other files: its own log, manifests, messages.
    pub other_bytes: u64,
    /// Files of the write-ahead log.
    pub wal_segments: u64,
    /// Their bytes.
    pub wal_bytes: u64,
    /// Records that a start would replay, as far as the log can be read.
    pub wal_records: u64,
    /// Samples in them.
    pub wal_samples: u64,
    /// Series that begin in them.
    pub wal_new_series: u64,
}

/// One live segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentInfo {
    /// The shard.
    pub shard: ShardId,
    /// Number of the flush or merge that wrote it.
    pub number: u64,
    /// First millisecond of its window.
    pub window_start_ms: i64,
    /// Time of its first sample, in milliseconds.
    pub first_ms: i64,
    /// Time of its last sample, in milliseconds.
    pub last_ms: i64,
    /// Series that it has.
    pub series: u64,
    /// Samples that it has.
    pub samples: u64,
}

/// A series and its chunks.
#[derive(Clone, Debug, PartialEq)]
pub struct SeriesInfo {
    /// Whose it is.
    pub tenant: TenantId,
    /// Its labels.
    pub labels: Labels,
    /// The shard.
    pub shard: ShardId,
    /// Its number in the shard on this node.
    pub ordinal: u32,
    /// Its chunks by segment, or why those of a segment cannot be read.
    pub segments: Vec<(SegmentInfo, Result<Vec<ChunkInfo>, String>)>,
}

/// One append in the log.
#[derive(Clone, Debug, PartialEq)]
pub struct LogRecord {
    /// The shard.
    pub shard: ShardId,
    /// Whose samples.
    pub tenant: TenantId,
    /// Bytes in the log.
    pub bytes: u64,
    /// Series that begin here.
    pub new_series: u64,
    /// Series that have samples here.
    pub series: u64,
    /// Samples, native histograms among them.
    pub samples: u64,
    /// Times of the oldest and newest sample, in milliseconds.
    pub range_ms: Option<(i64, i64)>,
}

impl LogRecord {
    fn of(record: &AppendRecord, bytes: usize) -> Self {
        let times = || record.timestamps.iter().chain(&record.histogram_timestamps).copied();
        Self {
            shard: record.shard,
            tenant: record.tenant.clone(),
            bytes: bytes as u64,
            new_series: record.new_series.len() as u64,
            series: (record.series.len() + record.histogram_series.len()) as u64,
            samples: (record.timestamps.len() + record.histogram_timestamps.len()) as u64,
            range_ms: times().min().zip(times().max()),
        }
    }
}

/// Gives each record of the log to a function.
struct Each<F>(F);

impl<F: FnMut(LogRecord)> Sink for Each<F> {
    fn record(&mut self, record: AppendRecord, bytes: usize) -> Result<(), String> {
        (self.0)(LogRecord::of(&record, bytes));
        Ok(())
    }
}

impl Offline {
    /// Opens `dir`, a node's data directory or the folder `storage` in it.
    ///
    /// # Errors
    /// `Invalid` if it is none, `InUse` if a node has it open, `Corrupt` if what is live cannot be told.
    pub fn open(dir: &Path) -> Result<Self, StorageError> {
        let dir = storage_dir(dir)?;
        let lock = lock(&dir)?;
        let rocks = Rocks::open_read_only(&dir.join("rocks"))?;
        let meta = rocks.load_meta()?;
        Ok(Self { dir, rocks, meta, _lock: lock })
    }

    /// Counts. A log that is damaged counts as far as it can be read.
    ///
    /// # Errors
    /// `Corrupt` if label records cannot be read; `Unavailable` on IO errors.
    pub fn stats(&self) -> Result<OfflineStats, StorageError> {
        let mut stats = OfflineStats {
            format_version: self.meta.version.unwrap_or(FORMAT_VERSION),
            ..OfflineStats::default()
        };
        let segments = &self.meta.segments;
        stats.segments = segments.len() as u64;
        let count = |all: usize| all as u64;
        stats.windows = count(segments.iter().map(|s| s.key.window).collect::<BTreeSet<_>>().len());
        stats.shards = count(segments.iter().map(|s| s.key.shard).collect::<BTreeSet<_>>().len());
        stats.tombstones = count(self.meta.tombstones.len());
        stats.samples = segments.iter().map(|segment| segment.samples).sum();
        let first = segments.iter().map(|segment| segment.first_ms).min();
        stats.range_ms = first.zip(segments.iter().map(|segment| segment.last_ms).max());
        self.rocks.each_index_row(|key, _| {
            stats.series += u64::from(key.first() == Some(&INDEX_SERIES));
            Some(())
        })?;
        let TableBytes { data, index, meta } = self.rocks.table_bytes()?;
        (stats.data_bytes, stats.index_bytes, stats.meta_bytes) = (data, index, meta);
        let all = bytes_in(&self.dir.join("rocks"))?;
        stats.other_bytes = all.saturating_sub(data + index + meta);
        let wal_dir = self.dir.join("wal");
        stats.wal_bytes = bytes_in(&wal_dir)?;
        let listed = wal::list_segments(&wal_dir).map_err(|e| StorageError::io("list", &wal_dir, e))?;
        stats.wal_segments = listed.len() as u64;
        // What is wrong with the log is what `verify` says.
        let _ = self.log_records(|record| {
            stats.wal_records += 1;
            stats.wal_samples += record.samples;
            stats.wal_new_series += record.new_series;
        });
        Ok(stats)
    }

    /// The live segments, by shard and time.
    pub fn segments(&self) -> Vec<SegmentInfo> {
        let mut segments: Vec<SegmentInfo> = self.meta.segments.iter().map(SegmentInfo::of).collect();
        segments.sort_unstable_by_key(|segment| (segment.shard, segment.window_start_ms, segment.number));
        segments
    }

    /// The first `limit` series that have a label record and satisfy all matchers, of one tenant or of all, with
    /// their chunks, by shard and ordinal. Series that are in the log only are not among them.
    ///
    /// # Errors
    /// `Corrupt` if label records cannot be read. Chunks that cannot be read are said so in the answer.
    pub fn series(
        &self,
        tenant: Option<&TenantId>,
        matchers: &[Matcher],
        limit: usize,
    ) -> Result<Vec<SeriesInfo>, StorageError> {
        let mut found: Vec<(SeriesKey, SeriesInfo)> = Vec::new();
        self.rocks.each_index_row(|key, value| {
            if key.first() != Some(&INDEX_SERIES) || found.len() >= limit {
                return Some(());
            }
            let row = SeriesRow::from_row(key, value)?;
            let matches =
                |matcher: &Matcher| matcher.matches(row.labels.get(matcher.name()).unwrap_or_default());
            if tenant.is_none_or(|tenant| *tenant == row.tenant) && matchers.iter().all(matches) {
                let key = row.key_in_segments();
                let SeriesRow { shard, ordinal, tenant, labels, .. } = row;
                found.push((key, SeriesInfo { tenant, labels, shard, ordinal, segments: Vec::new() }));
            }
            Some(())
        })?;
        for (key, series) in &mut found {
            let own = self.meta.segments.iter().filter(|segment| segment.key.shard == series.shard);
            for segment in own.filter(|segment| segment.ordinals.contains(series.ordinal)) {
                let mut chunks = Vec::new();
                let mut reader = self.rocks.segment_reader(segment, Blocks::ReadOnce);
                let read = reader.describe(key, |chunk| chunks.push(chunk));
                let chunks = read.map(|()| chunks).map_err(|error| check::text_of(&error));
                series.segments.push((SegmentInfo::of(segment), chunks));
            }
        }
        Ok(found.into_iter().map(|(_, series)| series).collect())
    }

    /// Gives the records of the log that a start would replay to `each`, in their order.
    ///
    /// # Errors
    /// `Corrupt` where a start would be refused; what is before that place was given.
    pub fn log_records(&self, each: impl FnMut(LogRecord)) -> Result<(), StorageError> {
        wal::inspect(&self.dir.join("wal"), self.meta.replay_from, &mut Each(each)).map(|_| ())
    }

    /// Reads everything in `dir` and says what is damaged. See [`Offline::open`] for `dir`.
    ///
    /// # Errors
    /// `Invalid` if it is no data directory, `InUse` if a node has it open, `Unavailable` on IO errors. Damage is no
    /// error.
    pub fn verify(dir: &Path) -> Result<CheckReport, StorageError> {
        let dir = storage_dir(dir)?;
        let _lock = lock(&dir)?;
        let mut report = CheckReport::default();
        let rocks_dir = dir.join("rocks");
        let checked =
            Rocks::open_read_only(&rocks_dir).and_then(|rocks| check::check(&rocks, &Unhurried, &mut report));
        let meta = checked.or_else(|error| note(&dir, error, &mut report).map(|()| None))?;
        // Without `meta` nobody knows where the log begins; what is there can be read all the same.
        let replay_from = match meta {
            Some(meta) => meta.replay_from,
            None => wal::list_segments(&dir.join("wal")).unwrap_or_default().first().copied(),
        };
        verify_log(&dir, replay_from, &mut report)?;
        Ok(report)
    }
}

impl SegmentInfo {
    fn of(segment: &crate::keys::Segment) -> Self {
        Self {
            shard: segment.key.shard,
            number: segment.key.segment,
            window_start_ms: segment.key.window.start(),
            first_ms: segment.first_ms,
            last_ms: segment.last_ms,
            series: segment.ordinals.len(),
            samples: segment.samples,
        }
    }
}

/// Reads as fast as it can; nothing goes meanwhile.
struct Unhurried;

impl Watch for Unhurried {
    fn read(&self, _bytes: u64) -> std::ops::ControlFlow<()> {
        std::ops::ControlFlow::Continue(())
    }

    fn is_live(&self, _segment: SegmentKey) -> bool {
        true
    }
}

fn verify_log(dir: &Path, replay_from: Option<u64>, report: &mut CheckReport) -> Result<(), StorageError> {
    let (wal_dir, mut rows, mut bytes) = (dir.join("wal"), 0, 0);
    let read = wal::inspect(
        &wal_dir,
        replay_from,
        &mut Each(|record: LogRecord| {
            rows += 1;
            bytes += record.bytes;
        }),
    );
    report.rows += rows;
    report.bytes += bytes;
    let checked = read.and_then(|replayed: Replayed| {
        let from = replay_from.unwrap_or(wal::FIRST_SEGMENT);
        wal::check_position(&dir.join("position"), &wal_dir, from, &replayed)
    });
    checked.or_else(|error| note(dir, error, report))
}

/// Damage goes to the report; other errors stay errors.
pub(crate) fn note(dir: &Path, error: StorageError, report: &mut CheckReport) -> Result<(), StorageError> {
    let StorageError::Corrupt { path, offset, reason } = error else {
        return Err(error);
    };
    let path = path.strip_prefix(dir).unwrap_or(&path);
    let what = if offset > 0 { format!("byte {offset}: {reason}") } else { reason };
    report.add(Damage { file: path.display().to_string(), what, ..Damage::default() });
    Ok(())
}

/// The folder with the engine's files.
fn storage_dir(dir: &Path) -> Result<PathBuf, StorageError> {
    let candidates = [dir.to_owned(), dir.join("storage")];
    let found = candidates.into_iter().find(|dir| dir.join("rocks").is_dir() && dir.join("wal").is_dir());
    found.ok_or_else(|| StorageError::Invalid {
        reason: format!("{} is no data directory: it has no folders rocks and wal", dir.display()),
    })
}

/// Keeps nodes out until the file is closed. `None` if there is no file to lock.
fn lock(dir: &Path) -> Result<Option<File>, StorageError> {
    let path = dir.join("rocks").join("LOCK");
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(StorageError::io("open", &path, error)),
    };
    match rustix::fs::fcntl_lock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(Some(file)),
        Err(error @ (rustix::io::Errno::AGAIN | rustix::io::Errno::ACCESS)) => {
            Err(StorageError::InUse { dir: dir.into(), source: io::Error::from(error).into() })
        }
        Err(error) => Err(StorageError::io("lock", &path, error.into())),
    }
}

/// Bytes of the files in a folder.
fn bytes_in(dir: &Path) -> Result<u64, StorageError> {
    let sum = || -> io::Result<u64> {
        let mut bytes = 0;
        for entry in fs::read_dir(dir)? {
            bytes += entry?.metadata()?.len();
        }
        Ok(bytes)
    };
    sum().map_err(|e| StorageError::io("list", dir, e))
}

#[cfg(test)]
mod tests;

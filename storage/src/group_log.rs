//! The logs and states of many small replicated state machines in one database, with one fsync for all that is
//! written at the same time.
//!
//! A group is a number; this module does not know what its entries say. Everything goes through one writer thread: it
//! takes what waits, of whichever groups, writes it as one batch and syncs once if anybody asked for that. Writes
//! become visible and durable in the order in which they were handed over, so what was written without a sync is
//! durable as soon as anything later is.
//!
//! ```text
//! key                                            value
//! group u32 BE, 0x00, name u8                    bytes of the owner
//! group u32 BE, 0x01, index u64 BE               one entry of the group's log
//! ```

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use rocksdb::{DB, Direction, IteratorMode, Options, WriteBatch, WriteOptions};
use tokio::sync::{mpsc, oneshot};

use crate::error::StorageError;

/// Writes that may wait for the thread.
const WAITING_MAX: usize = 4096;
/// Most writes of one batch.
const BATCH_MAX: usize = 1024;
/// What a memtable may hold: logs are short, and purged.
const MEMTABLE_BYTES: usize = 8 << 20;

const VALUE: u8 = 0;
const ENTRY: u8 = 1;

/// Whether a write is answered only when it is on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durable {
    /// It is.
    Now,
    /// It becomes durable with a later write, at the latest when the log is closed.
    Later,
}

/// A part of a write. The parts of one write take effect together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Sets a value of the group.
    Value(u8, Vec<u8>),
    /// Appends, or replaces, the entry at an index.
    Entry(u64, Vec<u8>),
    /// Removes the entries from an index (inclusive) to another (exclusive).
    RemoveEntries(u64, u64),
}

struct Write {
    group: u32,
    changes: Vec<Change>,
    durable: Durable,
    done: oneshot::Sender<Result<(), Arc<rocksdb::Error>>>,
}

/// See the module's description. Dropping it ends the thread, after what was handed over.
pub struct GroupLog {
    db: Arc<DB>,
    path: PathBuf,
    writes: Option<mpsc::Sender<Write>>,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for GroupLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GroupLog").field("path", &self.path).finish_non_exhaustive()
    }
}

fn key(group: u32, kind: u8, rest: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(13);
    key.extend_from_slice(&group.to_be_bytes());
    key.push(kind);
    key.extend_from_slice(rest);
    key
}

fn entry_key(group: u32, index: u64) -> Vec<u8> {
    key(group, ENTRY, &index.to_be_bytes())
}

impl GroupLog {
    /// Opens the database at `path`, or makes a new one.
    ///
    /// # Errors
    /// `Unavailable` if RocksDB cannot open it: it is damaged, or in use.
    pub fn open(path: &Path) -> Result<Self, StorageError> {
        let mut options = Options::default();
        options.create_if_missing(true);
        options.set_paranoid_checks(true);
        options.set_write_buffer_size(MEMTABLE_BYTES);
        options.set_max_total_wal_size(4 * MEMTABLE_BYTES as u64);
        options.set_keep_log_file_num(2);
        options.set_stats_dump_period_sec(0);
        options.set_stats_persist_period_sec(0);
        options.set_compression_type(rocksdb::DBCompressionType::Lz4);
        let db = DB::open(&options, path).map(Arc::new).map_err(|e| error_at(path, "open", e))?;
        let (writes, waiting) = mpsc::channel(WAITING_MAX);
        let thread = std::thread::Builder::new().name("group-log".into());
        let writing = Arc::clone(&db);
        let thread = thread
            .spawn(move || write_all(&writing, waiting))
            .map_err(|e| error_at(path, "start a thread for", e))?;
        Ok(Self { db, path: path.into(), writes: Some(writes), thread: Some(thread) })
    }

    /// Applies the changes, in this order, all or none; returns when they are visible, and durable if asked for.
    ///
    /// # Errors
    /// `Unavailable` if RocksDB refuses. What was written before may then be lost as well: write nothing more.
    pub async fn write(
        &self,
        group: u32,
        changes: Vec<Change>,
        durable: Durable,
    ) -> Result<(), StorageError> {
        let (done, written) = oneshot::channel();
        let writes = self.writes.as_ref().expect("there until the log is dropped");
        let ended = || error_at(&self.path, "write to", "the writing thread has ended");
        writes.send(Write { group, changes, durable, done }).await.map_err(|_| ended())?;
        written.await.map_err(|_| ended())?.map_err(|e| error_at(&self.path, "write to", e))
    }

    /// A value of the group.
    ///
    /// # Errors
    /// `Unavailable` if it cannot be read.
    pub fn value(&self, group: u32, name: u8) -> Result<Option<Vec<u8>>, StorageError> {
        self.db.get(key(group, VALUE, &[name])).map_err(|e| error_at(&self.path, "read", e))
    }

    /// The entries from an index (inclusive) to another (exclusive) that there are, ascending.
    ///
    /// # Errors
    /// `Unavailable` if they cannot be read.
    pub fn entries(&self, group: u32, from: u64, to: u64) -> Result<Vec<(u64, Vec<u8>)>, StorageError> {
        let first = entry_key(group, from);
        let mut entries = Vec::new();
        for row in self.db.iterator(IteratorMode::From(&first, Direction::Forward)) {
            let (key, value) = row.map_err(|e| error_at(&self.path, "read", e))?;
            match index_of(group, &key) {
                Some(index) if index < to => entries.push((index, value.into_vec())),
                _ => break,
            }
        }
        Ok(entries)
    }

    /// The entry with the largest index.
    ///
    /// # Errors
    /// `Unavailable` if it cannot be read.
    pub fn last_entry(&self, group: u32) -> Result<Option<(u64, Vec<u8>)>, StorageError> {
        let end = entry_key(group, u64::MAX);
        let Some(row) = self.db.iterator(IteratorMode::From(&end, Direction::Reverse)).next() else {
            return Ok(None);
        };
        let (key, value) = row.map_err(|e| error_at(&self.path, "read", e))?;
        Ok(index_of(group, &key).map(|index| (index, value.into_vec())))
    }

    /// The groups of which there is anything, ascending.
    ///
    /// # Errors
    /// `Unavailable` if they cannot be read.
    pub fn groups(&self) -> Result<Vec<u32>, StorageError> {
        let mut groups = Vec::new();
        let mut from = Vec::new();
        loop {
            let mut rows = self.db.iterator(IteratorMode::From(&from, Direction::Forward));
            let Some(row) = rows.next() else { return Ok(groups) };
            let (key, _) = row.map_err(|e| error_at(&self.path, "read", e))?;
            let Some(group) = key.first_chunk().map(|bytes| u32::from_be_bytes(*bytes)) else {
                return Ok(groups);
            };
            groups.push(group);
            let Some(next) = group.checked_add(1) else { return Ok(groups) };
            from = next.to_be_bytes().to_vec();
        }
    }
}

impl Drop for GroupLog {
    fn drop(&mut self) {
        drop(self.writes.take());
        if let Some(thread) = self.thread.take() {
            // It has no more to say than what its writers were told.
            let _ = thread.join();
        }
    }
}

fn index_of(group: u32, key: &[u8]) -> Option<u64> {
    let rest = key.strip_prefix(&self::key(group, ENTRY, &[])[..])?;
    rest.try_into().ok().map(u64::from_be_bytes)
}

fn error_at(path: &Path, action: &str, error: impl Into<crate::error::Cause>) -> StorageError {
    StorageError::Unavailable {
        action: format!("{action} the group log {}", path.display()),
        source: error.into(),
    }
}

/// The thread: batch after batch, until nobody is left who might write.
fn write_all(db: &DB, mut waiting: mpsc::Receiver<Write>) {
    let mut writes = Vec::new();
    while waiting.blocking_recv_many(&mut writes, BATCH_MAX) > 0 {
        let mut batch = WriteBatch::default();
        let mut options = WriteOptions::default();
        options.set_sync(writes.iter().any(|write| write.durable == Durable::Now));
        for write in &writes {
            write.changes.iter().for_each(|change| put(&mut batch, write.group, change));
        }
        let written = db.write_opt(batch, &options).map_err(Arc::new);
        for write in writes.drain(..) {
            // Who does not wait any more does not need to know.
            let _ = write.done.send(written.clone());
        }
    }
    if let Err(error) = db.flush_wal(true) {
        tracing::error!(%error, "the group log was not synced when it was closed");
    }
}

fn put(batch: &mut WriteBatch, group: u32, change: &Change) {
    match change {
        Change::Value(name, bytes) => batch.put(key(group, VALUE, &[*name]), bytes),
        Change::Entry(index, bytes) => batch.put(entry_key(group, *index), bytes),
        Change::RemoveEntries(from, to) if from < to => {
            batch.delete_range(entry_key(group, *from), entry_key(group, *to));
        }
        Change::RemoveEntries(..) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn write(log: &GroupLog, group: u32, changes: Vec<Change>) {
        log.write(group, changes, Durable::Now).await.expect("writes");
    }

    fn entry(index: u64) -> Change {
        Change::Entry(index, format!("entry {index}").into_bytes())
    }

    fn indexes(log: &GroupLog, group: u32) -> Vec<u64> {
        log.entries(group, 0, u64::MAX).expect("reads").into_iter().map(|(index, _)| index).collect()
    }

    #[tokio::test]
    async fn groups_do_not_see_each_other() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let log = GroupLog::open(dir.path()).expect("opens");
        write(&log, 1, (1..=9).map(entry).collect()).await;
        write(&log, 2, vec![entry(5), Change::Value(7, b"seven".to_vec())]).await;
        write(&log, 0, vec![Change::Value(7, b"zero".to_vec())]).await;
        assert_eq!(
            (indexes(&log, 0), indexes(&log, 1), indexes(&log, 2)),
            (vec![], (1..=9).collect(), vec![5])
        );
        assert_eq!(log.last_entry(0).expect("reads"), None);
        assert_eq!(log.last_entry(1).expect("reads"), Some((9, b"entry 9".to_vec())));
        assert_eq!(log.value(2, 7).expect("reads").as_deref(), Some(&b"seven"[..]));
        assert_eq!(log.value(1, 7).expect("reads"), None);
        assert_eq!(log.groups().expect("reads"), [0, 1, 2]);
        write(&log, 1, vec![Change::RemoveEntries(8, u64::MAX), Change::RemoveEntries(0, 3)]).await;
        assert_eq!(indexes(&log, 1), (3..=7).collect::<Vec<_>>());
        assert_eq!(log.entries(1, 4, 6).expect("reads").len(), 2);
        assert_eq!(indexes(&log, 2), [5]);
    }

    #[tokio::test]
    async fn what_was_written_is_there_after_a_restart() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let log = GroupLog::open(dir.path()).expect("opens");
        let writes = (0..200).map(|group| log.write(group, vec![entry(1), entry(2)], Durable::Now));
        for written in futures::future::join_all(writes).await {
            written.expect("writes");
        }
        log.write(7, vec![Change::Value(1, b"late".to_vec())], Durable::Later).await.expect("writes");
        drop(log);
        let log = GroupLog::open(dir.path()).expect("opens again");
        assert_eq!(log.groups().expect("reads").len(), 200);
        assert!((0..200).all(|group| indexes(&log, group) == [1, 2]));
        assert_eq!(log.value(7, 1).expect("reads").as_deref(), Some(&b"late"[..]));
    }

    #[test]
    fn one_process_at_a_time() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let _log = GroupLog::open(dir.path()).expect("opens");
        let error = GroupLog::open(dir.path()).expect_err("locked");
        assert!(error.to_string().contains("cannot open the group log"), "{error}");
    }
}

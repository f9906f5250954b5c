//! How far the database is known to be durable, kept outside of it.
//!
//! RocksDB takes a log or manifest whose end is missing for one that a power cut tore, and goes on without what was
//! there: segments, tombstones, series. So each synced write has a number, which it stores in a row of `meta`, and
//! which is noted in a file of ours once the write returned. A database whose row is behind the note has lost what
//! was durable. The note is synced only when the engine is closed: it may lag, but never runs ahead.
//!
//! | field | bytes | content |
//! |---|---|---|
//! | magic | 8 | `SATRNDUR` |
//! | number | 8 | writes up to this one are durable |
//! | checksum | 4 | CRC-32C of the 16 bytes before |
//!
//! A file that does not check says nothing: a power cut may tear it, and it only guards.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

use crate::error::StorageError;
use crate::wire::Reader;

const MAGIC: &[u8; 8] = b"SATRNDUR";
const BYTES: usize = 20;

/// The synced writes of one database.
#[derive(Debug)]
pub(super) struct Writes {
    /// What the file said when the database was opened; 0: nothing.
    noted: u64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Number of the last write.
    last: u64,
    /// `None` in a database that is only read.
    file: Option<File>,
    path: PathBuf,
}

/// Refuses to make a new database where one was: without `CURRENT`, RocksDB would.
pub(super) fn refuse_a_new_database(path: &Path) -> Result<(), StorageError> {
    let current = path.join("CURRENT");
    let has_log = || {
        let entries = fs::read_dir(path.with_file_name("wal")).into_iter().flatten();
        entries.flatten().any(|entry| entry.file_name().to_string_lossy().ends_with(".wal"))
    };
    if current.exists() || !(note_path(path).exists() || has_log()) {
        return Ok(());
    }
    let reason = "the file is missing, and with it the database".to_owned();
    Err(StorageError::Corrupt { path: current, offset: 0, reason })
}

fn note_path(database: &Path) -> PathBuf {
    database.with_file_name("durable")
}

impl Writes {
    /// Of the database in `path`, whose folder is beside the file.
    pub(super) fn open(path: &Path) -> Result<Self, StorageError> {
        let mut writes = Self::open_read_only(path);
        let path = note_path(path);
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(&path);
        writes.state.get_mut().file = Some(file.map_err(|e| StorageError::io("open", &path, e))?);
        Ok(writes)
    }

    /// As [`Writes::open`]; there must be no writes.
    pub(super) fn open_read_only(path: &Path) -> Self {
        let path = note_path(path);
        let noted = fs::read(&path).ok().and_then(|bytes| decode(&bytes)).unwrap_or(0);
        Self { noted, state: Mutex::new(State { last: 0, file: None, path }) }
    }

    /// Compares the note with the database's own number, and goes on from there. Says what is wrong.
    pub(super) fn check(&self, last: u64) -> Result<(), String> {
        if last < self.noted {
            return Err(format!(
                "the database ends with its synced write {last}, but {} were synced: the end of its log or manifest is \
                 missing",
                self.noted
            ));
        }
        self.state.lock().last = last;
        Ok(())
    }

    /// Gives the next number to `write`, and notes it if that succeeds.
    pub(super) fn number(
        &self,
        write: impl FnOnce(u64) -> Result<(), StorageError>,
    ) -> Result<(), StorageError> {
        let mut state = self.state.lock();
        let number = state.last + 1;
        write(number)?;
        state.last = number;
        state.warn_of(|file| file.write_all_at(&encode(number), 0));
        Ok(())
    }

    /// Makes the note durable.
    pub(super) fn sync(&self) {
        self.state.lock().warn_of(File::sync_all);
    }
}

impl State {
    /// The note is a guard: without it, the database is as good as before.
    fn warn_of(&self, act: impl FnOnce(&File) -> io::Result<()>) {
        if let Some(Err(error)) = self.file.as_ref().map(act) {
            let file = self.path.display();
            tracing::warn!(%file, %error, "cannot note the last synced write to the database");
        }
    }
}

fn encode(number: u64) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&number.to_le_bytes());
    let checksum = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&checksum.to_le_bytes());
    bytes
}

fn decode(bytes: &[u8]) -> Option<u64> {
    let checked = bytes.get(..BYTES - 4)?;
    let mut reader = Reader::new(bytes);
    let (magic, number) = (reader.array()?, reader.u64()?);
    let valid = magic == *MAGIC && reader.u32()? == crc32c::crc32c(checked) && reader.is_empty();
    valid.then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_survive_and_damage_says_nothing() {
        let bytes = encode(1 << 40);
        assert_eq!((bytes.len(), decode(&bytes)), (BYTES, Some(1 << 40)));
        for at in 0..BYTES {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert_eq!(decode(&damaged), None);
            assert_eq!(decode(&bytes[..at]), None);
        }
    }

    #[test]
    fn a_number_behind_the_note_is_refused_and_failed_writes_are_not_noted() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("rocks");
        let writes = Writes::open(&path).expect("opened");
        writes.check(0).expect("new");
        let expect = |expected: u64| {
            move |number: u64| {
                assert_eq!(number, expected);
                Ok(())
            }
        };
        writes.number(expect(1)).expect("written");
        writes.number(|_| Err(StorageError::Closed)).expect_err("failed");
        writes.number(expect(2)).expect("written");
        let again = Writes::open_read_only(&path);
        again.check(2).expect("all there");
        again.check(3).expect("the note lags");
        let text = again.check(1).expect_err("one is lost");
        assert!(text.contains("write 1") && text.contains("2 were synced"), "{text}");
        // A database that was never opened, and one that is gone.
        refuse_a_new_database(&dir.path().join("elsewhere/rocks")).expect("new");
        assert!(matches!(refuse_a_new_database(&path), Err(StorageError::Corrupt { .. })));
    }
}

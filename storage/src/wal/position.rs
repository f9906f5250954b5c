//! The durable position: how far the log is known to have been synced, kept outside of the log.
//!
//! Without it, a log whose end went missing looks like one that never had it. The file is written about once
//! a second, after fdatasync returned, and synced only when the log is closed: it may lag behind the log, but
//! never runs ahead. So a log that ends before the position has lost what was acknowledged.
//!
//! | field | bytes | content |
//! |---|---|---|
//! | magic | 8 | `SATRNPOS` |
//! | segment | 8 | number of a log segment |
//! | offset | 8 | every byte of that segment before it is durable |
//! | checksum | 4 | CRC-32C of the 24 bytes before |
//!
//! A file that is empty or does not check says nothing: the log may have been closed before its first write, a
//! power cut may tear the file, and it only guards.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::{Replayed, segment_path};
use crate::error::StorageError;
use crate::wire::Reader;

const MAGIC: &[u8; 8] = b"SATRNPOS";
const BYTES: usize = 28;

/// The file, open for writing.
#[derive(Debug)]
pub(super) struct PositionFile(File);

impl PositionFile {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        OpenOptions::new().write(true).create(true).truncate(false).open(path).map(Self)
    }

    /// Notes that every byte of `segment` before `offset` is durable.
    pub(super) fn note(&self, segment: u64, offset: u64) -> io::Result<()> {
        self.0.write_all_at(&encode(segment, offset), 0)
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        self.0.sync_all()
    }
}

fn encode(segment: u64, offset: u64) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&segment.to_le_bytes());
    bytes.extend_from_slice(&offset.to_le_bytes());
    let checksum = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&checksum.to_le_bytes());
    bytes
}

fn decode(bytes: &[u8]) -> Option<(u64, u64)> {
    let checked = bytes.get(..BYTES - 4)?;
    let mut reader = Reader::new(bytes);
    let (magic, segment, offset) = (reader.array()?, reader.u64()?, reader.u64()?);
    let valid = magic == *MAGIC && reader.u32()? == crc32c::crc32c(checked) && reader.is_empty();
    valid.then_some((segment, offset))
}

/// An error if the log in `dir`, of which segments below `replay_from` are not needed any more, ends before
/// the position in `path`.
pub(crate) fn check_position(
    path: &Path,
    dir: &Path,
    replay_from: u64,
    replayed: &Replayed,
) -> Result<(), StorageError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(StorageError::io("read", path, error)),
    };
    if bytes.is_empty() {
        // The log was closed before anything was written to it.
        return Ok(());
    }
    let Some((segment, offset)) = decode(&bytes) else {
        tracing::warn!(file = %path.display(), "the note of the durable position is damaged and says nothing");
        return Ok(());
    };
    let found = replayed.sizes.get(&segment).copied();
    if segment < replay_from || found.is_some_and(|found| found >= offset) {
        return Ok(());
    }
    let reason = match found {
        Some(found) => format!(
            "the log ends here, but was durable up to byte {offset}: {} bytes of acknowledged samples are lost",
            offset - found
        ),
        None => format!("the log segment is missing, but was durable up to byte {offset}"),
    };
    Err(StorageError::Corrupt { path: segment_path(dir, segment), offset: found.unwrap_or(0), reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_survive_and_damage_says_nothing() {
        let bytes = encode(7, 1 << 40);
        assert_eq!((bytes.len(), decode(&bytes)), (BYTES, Some((7, 1 << 40))));
        for at in 0..BYTES {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert_eq!(decode(&damaged), None);
            assert_eq!(decode(&bytes[..at]), None);
        }
    }

    #[test]
    fn a_log_that_ends_too_early_is_corrupt() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("position");
        let check = |from, size: u64| {
            let replayed = Replayed { sizes: [(7, size)].into(), ..Replayed::default() };
            check_position(&path, dir.path(), from, &replayed)
        };
        check(1, 10).expect("nothing was noted");
        let file = PositionFile::open(&path).expect("opened");
        check(1, 10).expect("nothing was noted yet");
        file.note(7, 100).expect("noted");
        check(1, 100).expect("it is all there");
        assert!(matches!(check(1, 99), Err(StorageError::Corrupt { offset: 99, .. })));
        check(8, 99).expect("it was flushed");
        let missing = check_position(&path, dir.path(), 1, &Replayed::default());
        assert!(matches!(missing, Err(StorageError::Corrupt { .. })));
    }
}

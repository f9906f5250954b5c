//! The write-ahead log: what is acknowledged is in here first.
//!
//! One log for all shards of a node, one thread that writes it ([`Wal`]), files `wal/00000001.wal` and on.
//! Appenders hand over framed records; the thread takes all that wait, writes them with one write, calls
//! fdatasync once, and completes everybody who waited. The next group forms meanwhile. Where nobody waits for
//! fdatasync, a group may be written piece by piece before it is synced (`durability.rs`).
//!
//! Segment file: a header of 40 bytes, then records.
//!
//! | header field | bytes | content |
//! |---|---|---|
//! | magic | 8 | `SATRNWAL` |
//! | version | 4 | 3; 2 had no packed records |
//! | number | 8 | as in the file's name |
//! | salt | 8 | random; the marks of this file repeat it |
//! | previous end | 8 | every byte before it of the segment before is durable, and what follows there is void |
//! | checksum | 4 | CRC-32C of the 36 bytes before |
//!
//! | record field | bytes | content |
//! |---|---|---|
//! | length | 4 | of the payload, at least 1 |
//! | checksum | 4 | CRC-32C of the payload |
//! | payload | length | first byte: 1 = mark, 2 = append, 3 = packed appends (`record.rs`) |
//!
//! **What damage means.** A group of records starts with a *mark*, which holds the salt and its own offset
//! in the file. The thread writes a group only after fdatasync of the group before returned, so a mark at
//! offset `p` proves that every byte below `p` was durable. Hence, when a record does not check:
//!
//! * in a segment that is not the last, before the end that the next one states: corruption;
//! * in the last one, with a valid mark behind it: corruption;
//! * in the last one, with no valid mark behind it: the torn tail of a power cut. Nothing in the
//!   last group was acknowledged unless its fdatasync returned; the tail is cut off.
//!
//! The one thing that this cannot tell from a torn tail is damage to the very last group after it was acknowledged;
//! beyond what the durable position (`position.rs`) proves, that is. To keep that gap short, a log that is idle for a
//! second, and one that is closed, gets a closing mark of its own.
//!
//! Starting always begins a new segment, so a file is never appended to by two processes.
//!
//! **After an error** of write or fdatasync, the file is never written or synced again: the kernel may have
//! dropped what it could not write, and a second fdatasync would not tell. The group goes to a new segment,
//! whose header says where the old one ends, and is acknowledged from there. If that fails too, nothing is
//! acknowledged any more.

mod position;
mod record;
mod replay;
#[cfg(test)]
mod tests;
mod writer;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

pub(crate) use position::check_position;
pub(crate) use record::{AppendRecord, Plan};
pub(crate) use replay::{Replayed, Sink, bytes_from, inspect, replay};
pub(crate) use writer::{Ack, Wal, WalOptions};

use crate::wire::Reader;

const MAGIC: &[u8; 8] = b"SATRNWAL";
const VERSION: u32 = 3;
/// The oldest version that is read.
const VERSION_MIN: u32 = 2;
/// Number of the first segment of a data directory.
pub(crate) const FIRST_SEGMENT: u64 = 1;
pub(crate) const HEADER_BYTES: usize = 40;

fn segment_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:08}.wal"))
}

/// The numbers of the segment files in `dir`, ascending. Other files are left alone.
pub(crate) fn list_segments(dir: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let number: Option<u64> = name.to_str().and_then(|n| n.strip_suffix(".wal")?.parse().ok());
        numbers.extend(number.filter(|number| segment_path(dir, *number).ends_with(&name)));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Makes the names in a directory durable.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// What the head of a segment file says.
#[derive(Clone, Copy, Debug)]
struct Header {
    number: u64,
    salt: u64,
    previous_end: u64,
}

impl Header {
    fn encode(self) -> Vec<u8> {
        let mut header = MAGIC.to_vec();
        header.extend_from_slice(&VERSION.to_le_bytes());
        header.extend_from_slice(&self.number.to_le_bytes());
        header.extend_from_slice(&self.salt.to_le_bytes());
        header.extend_from_slice(&self.previous_end.to_le_bytes());
        let checksum = crc32c::crc32c(&header);
        header.extend_from_slice(&checksum.to_le_bytes());
        header
    }

    /// The valid header of segment `number`.
    fn decode(bytes: &[u8], number: u64) -> Option<Self> {
        let mut reader = Reader::new(bytes.get(..HEADER_BYTES)?);
        let checked = &bytes[..HEADER_BYTES - 4];
        let valid = reader.array()? == *MAGIC
            && (VERSION_MIN..=VERSION).contains(&reader.u32()?)
            && reader.u64()? == number;
        let (salt, previous_end) = (reader.u64()?, reader.u64()?);
        let valid = valid && reader.u32()? == crc32c::crc32c(checked);
        valid.then_some(Self { number, salt, previous_end })
    }
}

/// Creates a segment, durable with its name before this returns.
fn create_segment(dir: &Path, header: Header) -> io::Result<File> {
    let mut file = OpenOptions::new().write(true).create_new(true).open(segment_path(dir, header.number))?;
    file.write_all(&header.encode())?;
    file.sync_all()?;
    sync_dir(dir)?;
    Ok(file)
}

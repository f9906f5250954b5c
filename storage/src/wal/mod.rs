//! The write-ahead log: what is acknowledged is in here first.
//!
//! One log for all shards of a node, one thread that writes it ([`Wal`]), files `wal/00000001.wal` and on.
//! Appenders hand over framed records; the thread takes all that wait, writes them with one write, calls
//! fdatasync once, and completes everybody who waited. The next group forms meanwhile.
//!
//! Segment file: a header of 32 bytes, then records.
//!
//! | header field | bytes | content |
//! |---|---|---|
//! | magic | 8 | `SATRNWAL` |
//! | version | 4 | 1 |
//! | number | 8 | as in the file's name |
//! | salt | 8 | random; the marks of this file repeat it |
//! | checksum | 4 | CRC-32C of the 28 bytes before |
//!
//! | record field | bytes | content |
//! |---|---|---|
//! | length | 4 | of the payload, at least 1 |
//! | checksum | 4 | CRC-32C of the payload |
//! | payload | length | first byte: 1 = mark, 2 = append (`record.rs`) |
//!
//! **What damage means.** A group of records starts with a *mark*, which holds the salt and its own offset
//! in the file. The thread writes a group only after fdatasync of the group before returned, so a mark at
//! offset `p` proves that every byte below `p` was durable. Hence, when a record does not check:
//!
//! * in a segment that is not the last: corruption (a segment is created only after the one before is
//!   durable);
//! * in the last one, with a valid mark behind it: corruption;
//! * in the last one, with no valid mark behind it: the torn tail of a power cut. Nothing in the
//!   last group was acknowledged unless its fdatasync returned; the tail is cut off.
//!
//! The one thing that this cannot tell from a torn tail is damage to the very last group after it was
//! acknowledged; beyond what the durable position (`position.rs`) proves, that is. To keep that gap short, a log that is idle for a second, and one that is closed, gets a
//! closing mark of its own.
//!
//! Starting always begins a new segment, so a file is never appended to by two processes, and after an
//! error of write or fdatasync no file is ever written again.

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
pub(crate) use replay::{Replayed, replay};
pub(crate) use writer::{Wal, WalOptions};

use crate::wire::Reader;

const MAGIC: &[u8; 8] = b"SATRNWAL";
const VERSION: u32 = 1;
/// Number of the first segment of a data directory.
pub(crate) const FIRST_SEGMENT: u64 = 1;
pub(crate) const HEADER_BYTES: usize = 32;

fn segment_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:08}.wal"))
}

/// The numbers of the segment files in `dir`, ascending. Other files are left alone.
fn list_segments(dir: &Path) -> io::Result<Vec<u64>> {
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

fn encode_header(number: u64, salt: u64) -> Vec<u8> {
    let mut header = MAGIC.to_vec();
    header.extend_from_slice(&VERSION.to_le_bytes());
    header.extend_from_slice(&number.to_le_bytes());
    header.extend_from_slice(&salt.to_le_bytes());
    let checksum = crc32c::crc32c(&header);
    header.extend_from_slice(&checksum.to_le_bytes());
    header
}

/// The salt of a valid header of segment `number`.
fn decode_header(bytes: &[u8], number: u64) -> Option<u64> {
    let mut reader = Reader::new(bytes.get(..HEADER_BYTES)?);
    let checked = &bytes[..HEADER_BYTES - 4];
    let valid = reader.array()? == *MAGIC && reader.u32()? == VERSION && reader.u64()? == number;
    let salt = reader.u64()?;
    (valid && reader.u32()? == crc32c::crc32c(checked)).then_some(salt)
}

/// Creates segment `number`, durable with its name before this returns.
fn create_segment(dir: &Path, number: u64, salt: u64) -> io::Result<File> {
    let mut file = OpenOptions::new().write(true).create_new(true).open(segment_path(dir, number))?;
    file.write_all(&encode_header(number, salt))?;
    file.sync_all()?;
    sync_dir(dir)?;
    Ok(file)
}

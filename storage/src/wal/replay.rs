//! Reading the log at start: apply every record, cut a torn tail off, refuse damage.
//!
//! What is damage and what is a torn tail is defined in `wal/mod.rs`. Cutting is idempotent: a second
//! power cut during it changes nothing. What was read is durable when the replay ends.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::path::Path;

use super::record::{AppendRecord, FRAME_BYTES, MARK_BYTES, Record, decode, encode_mark};
use super::{FIRST_SEGMENT, HEADER_BYTES, Header, list_segments, segment_path, sync_dir};
use crate::error::StorageError;
use crate::snapshot::LogPosition;

/// What the log held.
#[derive(Debug, Default)]
pub(crate) struct Replayed {
    /// Number for the next segment file.
    pub(crate) next_number: u64,
    /// Size in bytes of the segments that remain, by number.
    pub(crate) sizes: BTreeMap<u64, u64>,
    /// Append records applied.
    pub(crate) records: u64,
    /// Bytes of torn tail that were cut off.
    pub(crate) torn_bytes: u64,
}

impl Replayed {
    /// The end of the log; the very beginning if there is none.
    pub(crate) fn end(&self) -> LogPosition {
        end_of(&self.sizes)
    }
}

/// The end of the last of these segments, of which the sizes are given.
pub(super) fn end_of(sizes: &BTreeMap<u64, u64>) -> LogPosition {
    let last = sizes.last_key_value();
    last.map_or(LogPosition::default(), |(segment, offset)| LogPosition {
        segment: *segment,
        offset: *offset,
    })
}

/// Takes what the log holds.
pub(crate) trait Sink {
    /// Takes a record, which has so many bytes in the log. Says in words what it cannot accept, of this record or
    /// one since the last [`Sink::settle`].
    fn record(&mut self, record: AppendRecord, bytes: usize) -> Result<(), String>;

    /// Returns when all records so far are applied: a segment ends here.
    fn settle(&mut self) -> Result<(), String> {
        Ok(())
    }

    /// A place to move what was applied to the database, and note that replay starts at segment `next`, which is
    /// there. Returns whether it did.
    fn make_room(&mut self, _next: u64) -> Result<bool, StorageError> {
        Ok(false)
    }
}

impl<F: FnMut(AppendRecord) -> Result<(), String>> Sink for F {
    fn record(&mut self, record: AppendRecord, _bytes: usize) -> Result<(), String> {
        self(record)
    }
}

/// Bytes of the segments from `first` on.
pub(crate) fn bytes_from(dir: &Path, first: u64) -> io::Result<u64> {
    let segments = list_segments(dir)?.into_iter().filter(|number| *number >= first);
    segments.map(|number| Ok(fs::metadata(segment_path(dir, number))?.len())).sum()
}

/// Applies the log in `dir` from segment `replay_from` on. Older segments are removed: their samples are
/// flushed. `None` means that the database knows of no flush, so the log must be there from its beginning:
/// that is how a lost database is noticed.
pub(crate) fn replay(
    dir: &Path,
    replay_from: Option<u64>,
    sink: &mut impl Sink,
) -> Result<Replayed, StorageError> {
    walk(dir, replay_from, Files::Settle, sink)
}

/// As [`replay`], and with the same verdict, but no file is changed or removed.
pub(crate) fn inspect(
    dir: &Path,
    replay_from: Option<u64>,
    sink: &mut impl Sink,
) -> Result<Replayed, StorageError> {
    walk(dir, replay_from, Files::Keep, sink)
}

/// What becomes of files that are not needed, and of torn tails.
#[derive(Clone, Copy, PartialEq)]
enum Files {
    /// They go.
    Settle,
    /// They stay as they are.
    Keep,
}

fn walk(
    dir: &Path,
    replay_from: Option<u64>,
    files: Files,
    sink: &mut impl Sink,
) -> Result<Replayed, StorageError> {
    let listing = |e| StorageError::io("list", dir, e);
    let mut numbers = list_segments(dir).map_err(listing)?;
    if files == Files::Keep {
        numbers.retain(|number| *number >= replay_from.unwrap_or(0));
    } else if let Some(from) = replay_from {
        for number in numbers.extract_if(.., |n| *n < from) {
            let path = segment_path(dir, number);
            fs::remove_file(&path).map_err(|e| StorageError::io("remove", &path, e))?;
        }
        sync_dir(dir).map_err(listing)?;
    }
    let first = replay_from.unwrap_or(FIRST_SEGMENT);
    let mut replayed = Replayed { next_number: first, ..Replayed::default() };
    for (number, expected) in numbers.iter().zip(first..) {
        if *number != expected {
            return Err(corrupt(&segment_path(dir, expected), 0, "the WAL segment is missing"));
        }
        let place = match numbers.last() {
            Some(last) if last > number => Place::Inner { end: read_previous_end(dir, number + 1)? },
            _ => Place::Last,
        };
        let required = replay_from == Some(*number);
        let place_in_log = SegmentPlace { dir, number: *number, place, required, files };
        replay_segment(&place_in_log, &mut replayed, sink)?;
        // Whether the next one is there for good, its header says.
        if matches!(place, Place::Inner { end: Some(_) }) && sink.make_room(number + 1)? {
            for number in replayed.sizes.extract_if(..=number, |_, _| true).map(|(number, _)| number) {
                let path = segment_path(dir, number);
                fs::remove_file(&path).map_err(|e| StorageError::io("remove", &path, e))?;
            }
            sync_dir(dir).map_err(listing)?;
        }
    }
    if replay_from.is_some_and(|from| !numbers.contains(&from)) {
        return Err(corrupt(&segment_path(dir, first), 0, "the WAL segment is missing"));
    }
    Ok(replayed)
}

#[derive(Clone, Copy, PartialEq)]
enum Place {
    /// `end`: where it ends, if the next segment came to say so before the power went.
    Inner {
        end: Option<usize>,
    },
    Last,
}

/// What segment `number` says of the one before it.
fn read_previous_end(dir: &Path, number: u64) -> Result<Option<usize>, StorageError> {
    let path = segment_path(dir, number);
    let mut bytes = Vec::with_capacity(HEADER_BYTES);
    let read = File::open(&path).and_then(|file| file.take(HEADER_BYTES as u64).read_to_end(&mut bytes));
    match read {
        // That it is missing is reported when it is its turn.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read.map_err(|e| StorageError::io("read", &path, e))?,
    };
    let header = Header::decode(&bytes, number);
    Ok(header.map(|header| usize::try_from(header.previous_end).unwrap_or(usize::MAX)))
}

fn corrupt(path: &Path, offset: usize, reason: impl Into<String>) -> StorageError {
    StorageError::Corrupt { path: path.into(), offset: offset as u64, reason: reason.into() }
}

/// One segment of those that are replayed.
struct SegmentPlace<'a> {
    dir: &'a Path,
    number: u64,
    place: Place,
    /// Its header was durable before the database said that replay needs it.
    required: bool,
    files: Files,
}

fn replay_segment(
    segment: &SegmentPlace<'_>,
    replayed: &mut Replayed,
    sink: &mut impl Sink,
) -> Result<(), StorageError> {
    let SegmentPlace { dir, number, place, required, files } = *segment;
    let path = segment_path(dir, number);
    let mut bytes = fs::read(&path).map_err(|e| StorageError::io("read", &path, e))?;
    let Some(Header { salt, .. }) = Header::decode(&bytes, number) else {
        if place != Place::Last || required || bytes.len() > HEADER_BYTES {
            return Err(corrupt(&path, 0, "the header of the WAL segment is damaged"));
        }
        // The power went while the file was created: nothing was ever written to it.
        if files == Files::Settle {
            fs::remove_file(&path).map_err(|e| StorageError::io("remove", &path, e))?;
            sync_dir(dir).map_err(|e| StorageError::io("sync", dir, e))?;
        }
        replayed.torn_bytes += bytes.len() as u64;
        return Ok(());
    };
    if let Place::Inner { end: Some(end) } = place {
        if bytes.len() < end {
            let reason = format!("the segment is cut: the next one says that {end} bytes were durable");
            return Err(corrupt(&path, bytes.len(), reason));
        }
        // What follows was not written without an error, and is in the next segment if it was acknowledged.
        bytes.truncate(end);
    }
    let mut at = HEADER_BYTES;
    while at < bytes.len() {
        let record = decode(&bytes[at..]);
        match record {
            Some((Record::Append(record), len)) => {
                sink.record(record, len).map_err(|reason| corrupt(&path, at, reason))?;
                replayed.records += 1;
                at += len;
            }
            Some((Record::Packed(records), len)) => {
                for (record, len) in records {
                    sink.record(record, len).map_err(|reason| corrupt(&path, at, reason))?;
                    replayed.records += 1;
                }
                at += len;
            }
            Some((Record::Mark { salt: s, offset }, len)) if s == salt && offset == at as u64 => at += len,
            _ => {
                refuse_damage(&path, &bytes, at, salt, place)?;
                if files == Files::Settle {
                    cut(dir, &path, at)?;
                    tracing::info!(
                        file = %path.display(), offset = at, bytes = bytes.len() - at,
                        "cut an unacknowledged torn tail off the log"
                    );
                }
                replayed.torn_bytes += (bytes.len() - at) as u64;
                break;
            }
        }
    }
    sink.settle().map_err(|reason| corrupt(&path, at, reason))?;
    if files == Files::Settle && !matches!(place, Place::Inner { end: Some(_) }) {
        // A process that was killed may have written what it did not sync, and that was just read: from here on the log
        // counts on it.
        File::open(&path).and_then(|file| file.sync_all()).map_err(|e| StorageError::io("sync", &path, e))?;
    }
    replayed.sizes.insert(number, at as u64);
    replayed.next_number = number + 1;
    Ok(())
}

/// An error if the bad record at `at` is known to have been durable.
fn refuse_damage(path: &Path, bytes: &[u8], at: usize, salt: u64, place: Place) -> Result<(), StorageError> {
    if place != Place::Last {
        return Err(corrupt(path, at, "a WAL record is damaged in a segment that is not the last"));
    }
    match find_mark(bytes, at, salt) {
        Some(mark) => {
            let reason = format!("a WAL record is damaged, and a mark at byte {mark} proves it was durable");
            Err(corrupt(path, at, reason))
        }
        None => Ok(()),
    }
}

/// The offset of a valid mark behind `at`.
fn find_mark(bytes: &[u8], at: usize, salt: u64) -> Option<usize> {
    let salted = salt.to_le_bytes();
    (at + 1..(bytes.len() + 1).saturating_sub(MARK_BYTES)).find(|p| {
        let candidate = &bytes[*p..*p + MARK_BYTES];
        // Nearly every place fails this comparison, which is much cheaper than a checksum.
        candidate[FRAME_BYTES + 1..FRAME_BYTES + 9] == salted
            && candidate == encode_mark(salt, *p as u64).as_slice()
    })
}

fn cut(dir: &Path, path: &Path, len: usize) -> Result<(), StorageError> {
    let io = |e| StorageError::io("cut the torn tail of", path, e);
    let file = OpenOptions::new().write(true).open(path).map_err(io)?;
    file.set_len(len as u64).map_err(io)?;
    file.sync_all().map_err(io)?;
    sync_dir(dir).map_err(io)
}

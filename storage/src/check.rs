//! Reading everything that the database holds, as queries and merges read it, through all checksums.
//!
//! Used by the scrub of a running engine (`scrub.rs`) and by the offline tool (`offline/`); both look through a
//! read-only handle of their own, whose cache is empty, so what is read comes from the files. Every block is read,
//! every page parsed, every chunk decoded, and what the rows say is compared with what is there:
//!
//! * every row of `meta` and `index` parses, and those of `notes` can be read;
//! * a live segment has its table, its series have their label records and are named by the rows of their day;
//! * it holds as many samples, from the first time to the last, as its row says.
//!
//! Damage never ends the check: what is behind it is read, too, and the report names what is not readable.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::ops::{ControlFlow, RangeInclusive};

use roaring::RoaringBitmap;
use saturn_model::{SeriesColumns, ShardId};

use crate::day_rows::{self, Day};
use crate::error::StorageError;
use crate::keys::{INDEX_SERIES, Segment, SegmentKey, SeriesKey, SeriesRow};
use crate::rocks::{Blocks, Meta, Rocks};
use crate::tombstones::Mask;

/// Most places that a report names; more are counted.
const DAMAGE_MAX: usize = 1000;
/// After so many unreadable series one behind the other, the rest of the segment counts as unreadable.
const UNREADABLE_MAX: u64 = 1024;
const EVERYTHING: RangeInclusive<i64> = i64::MIN..=i64::MAX;

/// One damaged place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Damage {
    /// The file, relative to the data directory, as far as it is known; else the folder.
    pub file: String,
    /// The shard, if it is about a segment.
    pub shard: Option<ShardId>,
    /// Number of the segment.
    pub segment: Option<u64>,
    /// First and last time that the segment may have, in milliseconds.
    pub range_ms: Option<(i64, i64)>,
    /// The first of the series that cannot be read, if it can be told.
    pub series: Option<String>,
    /// How many series cannot be read here.
    pub series_count: u64,
    /// What was found.
    pub what: String,
}

/// What a check read and found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Live segments read.
    pub segments: u64,
    /// Samples decoded.
    pub samples: u64,
    /// Rows of `meta` and `index` read.
    pub rows: u64,
    /// Bytes of rows and pages read.
    pub bytes: u64,
    /// Damaged places, 1,000 at most.
    pub damage: Vec<Damage>,
    /// Damaged places beyond those.
    pub more_damage: u64,
}

impl CheckReport {
    /// Whether nothing is damaged.
    pub fn is_clean(&self) -> bool {
        self.damage.is_empty()
    }

    /// Adds a damaged place.
    pub(crate) fn add(&mut self, damage: Damage) {
        if self.damage.len() < DAMAGE_MAX {
            self.damage.push(damage);
        } else {
            self.more_damage += 1;
        }
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some((first, last)) = self.range_ms {
            write!(f, ", {first} to {last} ms")?;
        }
        if let (Some(shard), Some(segment)) = (self.shard, self.segment) {
            write!(f, ", shard {shard}, segment {segment}")?;
        }
        match (&self.series, self.series_count) {
            (Some(series), 0 | 1) => write!(f, ", series {series}")?,
            (Some(series), count) => write!(f, ", {count} series from {series} on")?,
            (None, 0) => {}
            (None, count) => write!(f, ", {count} series")?,
        }
        write!(f, ": {}", self.what)
    }
}

/// What a check asks of whoever runs it.
pub(crate) trait Watch {
    /// So many bytes were read. Whether to go on; may wait.
    fn read(&self, bytes: u64) -> ControlFlow<()>;

    /// Whether the segment is still live: files of others may go while they are read.
    fn is_live(&self, segment: SegmentKey) -> bool;
}

/// Reads the whole database.
///
/// # Errors
/// `Closed` if `watch` wants no more. Damage is no error.
pub(crate) fn check(
    rocks: &Rocks,
    watch: &impl Watch,
    report: &mut CheckReport,
) -> Result<Option<Meta>, StorageError> {
    let mut check =
        Check { rocks, watch, report, files: HashMap::new(), seen: Seen::default(), found: Vec::new() };
    check.index()?;
    check.notes()?;
    let meta = match rocks.load_meta() {
        Ok(meta) => meta,
        Err(error) => {
            check.family("meta", error)?;
            return Ok(None);
        }
    };
    check.report.rows += (meta.segments.len() + meta.tombstones.len() + meta.resident.len()) as u64;
    match rocks.data_files() {
        Ok(files) => check.files = files.into_iter().map(|file| (file.segment, file.name)).collect(),
        Err(error) => check.family("data", error)?,
    }
    let mut shards: BTreeMap<ShardId, Vec<&Segment>> = BTreeMap::new();
    for segment in &meta.segments {
        shards.entry(segment.key.shard).or_default().push(segment);
    }
    for (shard, segments) in shards {
        check.shard(shard, &segments)?;
    }
    Ok(Some(meta))
}

/// What the rows of `index` say.
#[derive(Default)]
struct Seen {
    /// Whether all rows could be read: else nothing is missed.
    complete: bool,
    /// Series with a label record.
    series: HashMap<ShardId, RoaringBitmap>,
    /// Series that the rows of a day name.
    days: HashMap<(Day, ShardId), RoaringBitmap>,
}

struct Check<'a, W> {
    rocks: &'a Rocks,
    watch: &'a W,
    report: &'a mut CheckReport,
    /// Names of tables with samples, by the window and number of their segments.
    files: HashMap<(crate::keys::Window, u64), String>,
    seen: Seen,
    /// What was found in the segment that is being read.
    found: Vec<Damage>,
}

impl<W: Watch> Check<'_, W> {
    fn count(&mut self, bytes: u64) -> Result<(), StorageError> {
        self.report.bytes += bytes;
        if self.watch.read(bytes).is_break() { Err(StorageError::Closed) } else { Ok(()) }
    }

    /// Damage of a whole family, or of a place in it that only RocksDB knows.
    fn family(&mut self, family: &str, error: StorageError) -> Result<(), StorageError> {
        let StorageError::Corrupt { reason, .. } = error else {
            return Err(error);
        };
        let file = format!("rocks ({family})");
        self.report.add(Damage { file, what: reason, ..Damage::default() });
        Ok(())
    }

    fn index(&mut self) -> Result<(), StorageError> {
        let (rocks, mut seen, mut stopped) = (self.rocks, Seen::default(), false);
        let read = rocks.each_index_row(|key, value| {
            self.report.rows += 1;
            stopped = self.count((key.len() + value.len()) as u64).is_err();
            if stopped {
                return None;
            }
            if key.first() == Some(&INDEX_SERIES) {
                let row = SeriesRow::from_row(key, value)?;
                seen.series.entry(row.shard).or_default().insert(row.ordinal);
                return Some(());
            }
            let (day, shard) = Day::of_key(key)?;
            let ordinals = day_rows::decode(value)?;
            *seen.days.entry((day, shard)).or_default() |= ordinals;
            Some(())
        });
        if stopped {
            return Err(StorageError::Closed);
        }
        seen.complete = read.is_ok();
        self.seen = seen;
        read.or_else(|error| self.family("index", error))
    }

    /// Exemplars and metadata: that each row can be read.
    fn notes(&mut self) -> Result<(), StorageError> {
        let (mut rows, mut bytes) = (0, 0);
        let read = self.rocks.each_note(|_, value| {
            rows += 1;
            bytes += value.len() as u64;
            Some(())
        });
        self.report.rows += rows;
        self.count(bytes)?;
        read.or_else(|error| self.family("notes", error))
    }

    fn shard(&mut self, shard: ShardId, segments: &[&Segment]) -> Result<(), StorageError> {
        let mut ordinals = RoaringBitmap::new();
        segments.iter().for_each(|segment| ordinals |= &segment.ordinals);
        let mut keys: Vec<(u32, SeriesKey)> = Vec::new();
        let read = self.rocks.series_rows(shard, &ordinals, |row| {
            keys.push((row.ordinal, row.key_in_segments()));
        });
        if let Err(error) = read {
            self.family("index", error)?;
        }
        for segment in segments {
            self.rows_of(segment);
            self.segment(segment, &keys)?;
            self.report.segments += 1;
            let found = std::mem::take(&mut self.found);
            // If it went while it was read, its rows and files went with it.
            if !found.is_empty() && self.watch.is_live(segment.key) {
                found.into_iter().for_each(|damage| self.report.add(damage));
            }
        }
        Ok(())
    }

    /// Whether the rows of `index` know the segment's series.
    fn rows_of(&mut self, segment: &Segment) {
        if !self.seen.complete {
            return;
        }
        let shard = segment.key.shard;
        let none = RoaringBitmap::new();
        let rows = self.seen.series.get(&shard).unwrap_or(&none);
        let days = self.seen.days.get(&(Day::of(segment.key.window), shard)).unwrap_or(&none);
        let missing = [
            (&segment.ordinals - rows, "series without a label record"),
            (&segment.ordinals - days, "series that the rows of their day do not name"),
        ];
        for (ordinals, what) in missing {
            if let Some(first) = ordinals.min() {
                let series = Some(format!("ordinal {first}"));
                let damage = self.damage_of(segment, what.to_owned());
                self.found.push(Damage { series, series_count: ordinals.len(), ..damage });
            }
        }
    }

    fn damage_of(&self, segment: &Segment, what: String) -> Damage {
        let SegmentKey { window, segment: number, shard } = segment.key;
        let file = self.files.get(&(window, number));
        Damage {
            file: file.map_or("rocks".to_owned(), |name| format!("rocks/{name}")),
            shard: Some(shard),
            segment: Some(number),
            range_ms: Some((segment.first_ms, segment.last_ms)),
            what,
            ..Damage::default()
        }
    }

    fn segment(&mut self, segment: &Segment, keys: &[(u32, SeriesKey)]) -> Result<(), StorageError> {
        if !self.files.contains_key(&(segment.key.window, segment.key.segment)) {
            let damage = self.damage_of(segment, "the table of the segment is missing".to_owned());
            self.found.push(Damage { series_count: segment.ordinals.len(), ..damage });
            return Ok(());
        }
        let own = keys.iter().filter(|(ordinal, _)| segment.ordinals.contains(*ordinal));
        let mut series: Vec<(SeriesKey, u32)> = own.map(|(ordinal, key)| (*key, *ordinal)).collect();
        series.sort_unstable();
        series.dedup_by_key(|(key, _)| *key);
        let mask = Mask::new(&[], segment);
        let mut reader = self.rocks.segment_reader(segment, Blocks::ReadOnce);
        let mut columns = SeriesColumns::default();
        let (mut samples, mut bounds) = (0, (i64::MAX, i64::MIN));
        let (mut unreadable, mut all_read): (Option<Damage>, bool) = (None, true);
        for (at, (key, ordinal)) in series.iter().enumerate() {
            columns.clear_samples();
            let before = reader.bytes_read();
            let read = reader.read(key, *ordinal, &EVERYTHING, &mask, &mut columns);
            self.count(reader.bytes_read() - before)?;
            let Err(error) = read else {
                self.found.extend(unreadable.take());
                for times in [&columns.timestamps, &columns.histograms.timestamps] {
                    samples += times.len() as u64;
                    bounds.0 = times.first().map_or(bounds.0, |first| bounds.0.min(*first));
                    bounds.1 = times.last().map_or(bounds.1, |last| bounds.1.max(*last));
                }
                continue;
            };
            all_read = false;
            reader = self.rocks.segment_reader(segment, Blocks::ReadOnce);
            match &mut unreadable {
                Some(damage) => damage.series_count += 1,
                None => {
                    let series = self.name(segment.key.shard, *ordinal);
                    let damage = self.damage_of(segment, text_of(&error));
                    unreadable = Some(Damage { series, series_count: 1, ..damage });
                }
            }
            if let Some(damage) = unreadable.as_mut().filter(|damage| damage.series_count >= UNREADABLE_MAX) {
                damage.series_count += (series.len() - at - 1) as u64;
                break;
            }
        }
        self.found.extend(unreadable);
        self.report.samples += samples;
        all_read &= series.len() as u64 == series_in(segment, keys);
        let as_said = samples == segment.samples && bounds == (segment.first_ms, segment.last_ms);
        if all_read && !as_said {
            let what = format!(
                "{samples} samples from {} to {} ms are there, the row of the segment says {} from {} to {} ms",
                bounds.0, bounds.1, segment.samples, segment.first_ms, segment.last_ms
            );
            let damage = self.damage_of(segment, what);
            self.found.push(damage);
        }
        Ok(())
    }

    /// What the series is called.
    fn name(&self, shard: ShardId, ordinal: u32) -> Option<String> {
        let mut name = None;
        let _ = self.rocks.series_rows(shard, &RoaringBitmap::from_iter([ordinal]), |row| {
            name = Some(format!("{} of tenant {}", row.labels, row.tenant));
        });
        name
    }
}

/// How many different series the segment has; those without a label record count, too.
fn series_in(segment: &Segment, keys: &[(u32, SeriesKey)]) -> u64 {
    let own = keys.iter().filter(|(ordinal, _)| segment.ordinals.contains(*ordinal));
    let mut own: Vec<SeriesKey> = own.map(|(_, key)| *key).collect();
    let known = own.len() as u64;
    own.sort_unstable();
    own.dedup();
    own.len() as u64 + segment.ordinals.len() - known
}

/// An error in one line, with its causes.
pub(crate) fn text_of(error: &StorageError) -> String {
    if let StorageError::Corrupt { reason, .. } = error {
        return reason.clone();
    }
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}

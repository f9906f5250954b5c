//! RocksDB behind our own words: no type of it leaves this file.
//!
//! Four column families (`keys.rs`, `notes.rs`). `data` receives whole table files only and is never compacted;
//! the others are small and written with a sync each. Every read verifies block checksums. The
//! database's own log holds rows of the small families only; our log (`wal/`) holds the samples.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB, DBCompactionStyle, DBCompressionType,
    DBRecoveryMode, IngestExternalFileOptions, IteratorMode, Options, ReadOptions, SstFileWriter, WriteBatch,
    WriteOptions,
};

use roaring::RoaringBitmap;
use saturn_model::ShardId;

use crate::day_rows;
use crate::error::StorageError;
use crate::keys::{
    FORMAT_VERSION, FORMAT_VERSION_MIN, META_DELETED, META_NEXT_SEGMENT, META_ORDINALS, META_REPLAY_FROM,
    META_RESIDENT, META_SEGMENT, META_TOMBSTONE, META_VERSION, META_WRITES, Segment, SegmentKey, SeriesRow,
    Tombstone, Window,
};
use crate::merge::Change;
use crate::notes::{self, NoteRow, RowKey};
use crate::options::EngineOptions;

mod durable;
mod index_rows;
mod read_only;
mod segment_reader;

use durable::Writes;
pub(crate) use index_rows::{IndexWrite, RowsThen};
pub(crate) use read_only::TableBytes;
pub use segment_reader::ChunkInfo;
pub(crate) use segment_reader::{Blocks, SegmentReader};

const DATA: &str = "data";
const INDEX: &str = "index";
const META: &str = "meta";
const NOTES: &str = "notes";

/// The database of one data directory.
pub(crate) struct Rocks {
    db: DB,
    writes: Writes,
    /// For new table files; the same as those of the column family.
    data_options: Options,
    path: PathBuf,
}

/// What `meta` says at start.
#[derive(Debug, Default)]
pub(crate) struct Meta {
    /// Version of the format; none in a directory that was never opened to the end.
    pub(crate) version: Option<u32>,
    pub(crate) next_segment: u64,
    /// `None` in a directory that was never opened to the end.
    pub(crate) replay_from: Option<u64>,
    /// Number of the last synced write.
    writes: u64,
    pub(crate) segments: Vec<Segment>,
    pub(crate) tombstones: Vec<Tombstone>,
    /// Per shard: the last deletion that its replicas agreed on and that is done here.
    pub(crate) deleted: HashMap<ShardId, u64>,
    /// Per shard: ordinals below it are never given again.
    pub(crate) ordinals: HashMap<ShardId, u32>,
    pub(crate) resident: Vec<Resident>,
}

impl Meta {
    /// Whether it was written by an older version, see [`Rocks::upgrade`].
    pub(crate) fn is_outdated(&self) -> bool {
        self.version.is_some_and(|version| version < FORMAT_VERSION)
    }
}

/// What a shard had in memory when its last flush began.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Resident {
    pub(crate) shard: ShardId,
    /// Ordinals given until then.
    pub(crate) ordinals: u32,
    pub(crate) series: RoaringBitmap,
}

impl Resident {
    fn to_row(&self) -> (Vec<u8>, Vec<u8>) {
        let mut value = self.ordinals.to_le_bytes().to_vec();
        self.series.serialize_into(&mut value).expect("writing to memory does not fail");
        (shard_key(META_RESIDENT, self.shard), value)
    }

    fn from_row(key: &[u8], value: &[u8]) -> Option<Self> {
        let shard = ShardId(u16::from_be_bytes(key.strip_prefix(&[META_RESIDENT])?.try_into().ok()?));
        let (ordinals, series) = value.split_first_chunk()?;
        let series = RoaringBitmap::deserialize_from(series).ok()?;
        Some(Self { shard, ordinals: u32::from_le_bytes(*ordinals), series })
    }
}

/// What goes with a shard.
#[derive(Debug)]
pub(crate) struct DroppedRows<'a> {
    /// The rows of its series and days.
    pub(crate) index: Vec<IndexWrite>,
    pub(crate) segments: Vec<SegmentKey>,
    pub(crate) tombstones: &'a [Arc<Tombstone>],
    /// What stays: which ordinals were given.
    pub(crate) resident: Resident,
}

fn shard_key(kind: u8, shard: ShardId) -> Vec<u8> {
    [[kind].as_slice(), &shard.0.to_be_bytes()].concat()
}

/// A table file in the making.
pub(crate) struct Table<'a> {
    writer: SstFileWriter<'a>,
    pub(crate) path: PathBuf,
}

impl Rocks {
    /// Opens or creates the database in `path`.
    pub(crate) fn open(path: &Path, options: &EngineOptions) -> Result<Self, StorageError> {
        durable::refuse_a_new_database(path)?;
        let cache = Cache::new_lru_cache(options.block_cache_bytes);
        let db = DB::open_cf_descriptors(&database_options(options.open_files_max), path, families(&cache))
            .map_err(|e| opening_error(path, options, e))?;
        let writes = Writes::open(path)?;
        Ok(Self { db, writes, data_options: data_options(&cache), path: path.into() })
    }

    fn family(&self, name: &str) -> &ColumnFamily {
        self.db.cf_handle(name).expect("the family was opened with the database")
    }

    fn error(&self, action: &str, error: rocksdb::Error) -> StorageError {
        read_error(&self.path, action, error)
    }

    /// Rows that contradict each other.
    pub(crate) fn inconsistent(&self, reason: String) -> StorageError {
        StorageError::Corrupt { path: self.path.clone(), offset: 0, reason }
    }

    /// A row that cannot be what was written.
    fn damaged(&self, family: &str, key: &[u8]) -> StorageError {
        self.inconsistent(format!("the row {} of {family} is damaged", hex(key)))
    }

    /// All rows of `meta`.
    pub(crate) fn load_meta(&self) -> Result<Meta, StorageError> {
        let mut meta = Meta { next_segment: 1, ..Meta::default() };
        let mut version = None;
        let loaded = self.for_each_row(META, |key, value| {
            match key {
                META_VERSION => version = Some(u32::from_le_bytes(value.try_into().ok()?)),
                META_NEXT_SEGMENT => meta.next_segment = u64::from_le_bytes(value.try_into().ok()?),
                META_WRITES => meta.writes = u64::from_le_bytes(value.try_into().ok()?),
                META_REPLAY_FROM => meta.replay_from = Some(u64::from_le_bytes(value.try_into().ok()?)),
                [META_SEGMENT, ..] => meta.segments.push(Segment::from_row(key, value)?),
                [META_TOMBSTONE, ..] => meta.tombstones.push(Tombstone::from_row(key, value)?),
                [META_RESIDENT, ..] => meta.resident.push(Resident::from_row(key, value)?),
                [META_DELETED, shard @ ..] => {
                    let shard = ShardId(u16::from_be_bytes(shard.try_into().ok()?));
                    meta.deleted.insert(shard, u64::from_le_bytes(value.try_into().ok()?));
                }
                [META_ORDINALS, shard @ ..] => {
                    let shard = ShardId(u16::from_be_bytes(shard.try_into().ok()?));
                    meta.ordinals.insert(shard, u32::from_le_bytes(value.try_into().ok()?));
                }
                _ => return None,
            }
            Some(())
        });
        // Rows of another version may well look damaged.
        match version {
            Some(version) if !(FORMAT_VERSION_MIN..=FORMAT_VERSION).contains(&version) => {
                return Err(self.inconsistent(format!(
                    "the data has format version {version}, this program reads versions {FORMAT_VERSION_MIN} to \
                     {FORMAT_VERSION}"
                )));
            }
            version => meta.version = version,
        }
        loaded?;
        self.writes.check(meta.writes).map_err(|reason| self.inconsistent(reason))?;
        Ok(meta)
    }

    fn for_each_row(
        &self,
        family: &str,
        mut each: impl FnMut(&[u8], &[u8]) -> Option<()>,
    ) -> Result<(), StorageError> {
        let rows = self.db.iterator_cf_opt(self.family(family), read_options(), IteratorMode::Start);
        for row in rows {
            let (key, value) = row.map_err(|e| self.error("read", e))?;
            each(&key, &value).ok_or_else(|| self.damaged(family, &key))?;
        }
        Ok(())
    }

    /// Keeps older versions from reading what this one writes.
    pub(crate) fn upgrade(&self) -> Result<(), StorageError> {
        let mut batch = WriteBatch::default();
        batch.put_cf(self.family(META), META_VERSION, FORMAT_VERSION.to_le_bytes());
        self.write_durably(batch)
    }

    /// Notes that the directory is complete, and where replay starts.
    pub(crate) fn initialise(&self, replay_from: u64) -> Result<(), StorageError> {
        let mut batch = WriteBatch::default();
        batch.put_cf(self.family(META), META_VERSION, FORMAT_VERSION.to_le_bytes());
        batch.put_cf(self.family(META), META_REPLAY_FROM, replay_from.to_le_bytes());
        self.write_durably(batch)
    }

    /// Writes the rows of new series, and takes their ordinals and a segment number for good.
    pub(crate) fn write_series(
        &self,
        rows: impl Iterator<Item = SeriesRow>,
        ordinals: impl Iterator<Item = (ShardId, u32)>,
        next_segment: u64,
    ) -> Result<(), StorageError> {
        // Ordinals first: a row of one that is given again would be another series.
        let mut batch = WriteBatch::default();
        batch.put_cf(self.family(META), META_NEXT_SEGMENT, next_segment.to_le_bytes());
        for (shard, ordinals) in ordinals {
            batch.put_cf(self.family(META), shard_key(META_ORDINALS, shard), ordinals.to_le_bytes());
        }
        self.write_durably(batch)?;
        let put = |row: SeriesRow| {
            let (key, value) = row.to_row();
            IndexWrite::Put(key, value)
        };
        self.write_index(rows.map(put))
    }

    /// Makes ingested segments live, and moves the start of replay, in one step; with what is in memory now, what
    /// the index loses, and what changed of exemplars and metadata.
    pub(crate) fn commit<'a>(
        &self,
        segments: impl Iterator<Item = &'a Segment>,
        resident: impl Iterator<Item = Resident>,
        (index, notes): (Vec<IndexWrite>, impl Iterator<Item = &'a NoteRow>),
        replay_from: u64,
    ) -> Result<(), StorageError> {
        let mut batch = WriteBatch::default();
        batch.put_cf(self.family(META), META_REPLAY_FROM, replay_from.to_le_bytes());
        let rows = segments.map(Segment::to_row).chain(resident.map(|resident| resident.to_row()));
        for (key, value) in rows {
            batch.put_cf(self.family(META), key, value);
        }
        for row in index {
            self.add_index_write(&mut batch, row);
        }
        notes.for_each(|row| self.add_note(&mut batch, row));
        self.write_durably(batch)
    }

    /// Gives all rows of exemplars and metadata to `each`, which says `None` of one that is damaged.
    pub(crate) fn each_note(
        &self,
        mut each: impl FnMut(&RowKey<'_>, &[u8]) -> Option<()>,
    ) -> Result<(), StorageError> {
        self.for_each_row(NOTES, |key, value| each(&RowKey::read(key)?, value))
    }

    /// Takes a shard's ordinals and a segment number for good.
    pub(crate) fn reserve_ordinals(
        &self,
        shard: ShardId,
        ordinals: u32,
        next_segment: u64,
    ) -> Result<(), StorageError> {
        let mut batch = WriteBatch::default();
        batch.put_cf(self.family(META), META_NEXT_SEGMENT, next_segment.to_le_bytes());
        batch.put_cf(self.family(META), shard_key(META_ORDINALS, shard), ordinals.to_le_bytes());
        self.write_durably(batch)
    }

    /// Makes ingested segments live that came by the door for replicas, with the rows of their series and days, in
    /// one step.
    pub(crate) fn commit_import<'a>(
        &self,
        segments: impl Iterator<Item = &'a Segment>,
        index: Vec<IndexWrite>,
    ) -> Result<(), StorageError> {
        let mut batch = WriteBatch::default();
        for row in index {
            self.add_index_write(&mut batch, row);
        }
        for (key, value) in segments.map(Segment::to_row) {
            batch.put_cf(self.family(META), key, value);
        }
        self.write_durably(batch)
    }

    /// Takes all that there is of a shard out, in one step.
    pub(crate) fn commit_drop(&self, dropped: DroppedRows<'_>) -> Result<(), StorageError> {
        let mut batch = WriteBatch::default();
        let shard = dropped.resident.shard;
        let (key, value) = dropped.resident.to_row();
        batch.put_cf(self.family(META), key, value);
        for key in &dropped.segments {
            batch.delete_cf(self.family(META), key.to_row_key());
        }
        for tombstone in dropped.tombstones {
            batch.delete_cf(self.family(META), tombstone.to_row().0);
        }
        for row in dropped.index {
            self.add_index_write(&mut batch, row);
        }
        for prefix in notes::prefixes(shard) {
            batch.delete_range_cf(self.family(NOTES), prefix.clone(), day_rows::behind(&prefix));
        }
        self.write_durably(batch)
    }

    /// Makes rows of exemplars and metadata durable.
    pub(crate) fn commit_notes(&self, notes: &[NoteRow]) -> Result<(), StorageError> {
        let mut batch = WriteBatch::default();
        notes.iter().for_each(|row| self.add_note(&mut batch, row));
        self.write_durably(batch)
    }

    fn add_note(&self, batch: &mut WriteBatch, NoteRow { key, value, .. }: &NoteRow) {
        match value {
            Some(value) => batch.put_cf(self.family(NOTES), key, value),
            None => batch.delete_cf(self.family(NOTES), key),
        }
    }

    /// Takes numbers below `next_segment` for good.
    pub(crate) fn reserve_number(&self, next_segment: u64) -> Result<(), StorageError> {
        let mut batch = WriteBatch::default();
        batch.put_cf(self.family(META), META_NEXT_SEGMENT, next_segment.to_le_bytes());
        self.write_durably(batch)
    }

    /// Makes tombstones durable, and takes their number for good. `deleted`: the agreed deletions that are done then.
    pub(crate) fn write_tombstones<'a>(
        &self,
        tombstones: impl Iterator<Item = &'a Tombstone>,
        deleted: &[(ShardId, u64)],
        next_segment: u64,
    ) -> Result<(), StorageError> {
        let mut batch = WriteBatch::default();
        batch.put_cf(self.family(META), META_NEXT_SEGMENT, next_segment.to_le_bytes());
        for tombstone in tombstones {
            let (key, value) = tombstone.to_row();
            batch.put_cf(self.family(META), key, value);
        }
        for (shard, through) in deleted {
            let [high, low] = shard.0.to_be_bytes();
            batch.put_cf(self.family(META), [META_DELETED, high, low], through.to_le_bytes());
        }
        self.write_durably(batch)
    }

    /// Replaces live segments, forgets tombstones, and changes the index accordingly, in one step.
    pub(crate) fn commit_changes(
        &self,
        changes: &[Change],
        index: Vec<IndexWrite>,
    ) -> Result<(), StorageError> {
        let mut batch = WriteBatch::default();
        for row in index {
            self.add_index_write(&mut batch, row);
        }
        for change in changes {
            for key in &change.removed {
                batch.delete_cf(self.family(META), key.to_row_key());
            }
            if let Some(segment) = &change.added {
                let (key, value) = segment.to_row();
                batch.put_cf(self.family(META), key, value);
            }
            for tombstone in &change.forgotten {
                batch.delete_cf(self.family(META), tombstone.to_row().0);
            }
        }
        self.write_durably(batch)
    }

    fn write_durably(&self, mut batch: WriteBatch) -> Result<(), StorageError> {
        let mut options = WriteOptions::default();
        options.set_sync(true);
        self.writes.number(|number| {
            batch.put_cf(self.family(META), META_WRITES, number.to_le_bytes());
            self.db.write_opt(batch, &options).map_err(|e| self.error("write rows to", e))
        })
    }

    /// Makes the note of how many writes were synced durable.
    pub(crate) fn sync_note(&self) {
        self.writes.sync();
    }

    /// Starts a table file at `path`.
    pub(crate) fn table(&self, path: PathBuf) -> Result<Table<'_>, StorageError> {
        let writer = SstFileWriter::create(&self.data_options);
        writer.open(&path).map_err(|e| read_error(&path, "create", e))?;
        Ok(Table { writer, path })
    }

    /// Moves finished table files into the database; durable when this returns, but not live.
    pub(crate) fn ingest(&self, paths: Vec<PathBuf>) -> Result<(), StorageError> {
        let mut options = IngestExternalFileOptions::default();
        options.set_move_files(true);
        // Else RocksDB would look into the neighbours, of which one may be damaged.
        options.set_ingest_behind(true);
        self.db
            .ingest_external_file_cf_opts(self.family(DATA), &options, paths)
            .map_err(|e| self.error("ingest table files into", e))
    }

    /// Removes table files without any live segment: a flush or merge died before its commit, or the process
    /// before it removed what a merge replaced. Returns how many.
    pub(crate) fn remove_orphans(
        &self,
        is_live: impl Fn(Window, u64) -> bool,
    ) -> Result<usize, StorageError> {
        let files = self.db.live_files().map_err(|e| self.error("list table files of", e))?;
        let mut removed = 0;
        for file in files.into_iter().filter(|file| file.column_family_name == DATA) {
            let Some(start) = file.start_key else {
                continue;
            };
            // A file has rows of one span and one number only.
            let (first, _, _) =
                SegmentKey::from_data_key(&start).ok_or_else(|| self.damaged(DATA, &start))?;
            if !is_live(first.window, first.segment) {
                self.remove_table(first.window, first.segment)?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// Removes the table file with the segments of this window and number, of all shards.
    pub(crate) fn remove_table(&self, window: Window, segment: u64) -> Result<(), StorageError> {
        let first = SegmentKey { window, segment, shard: ShardId(0) };
        let last = SegmentKey { window, segment, shard: ShardId(u16::MAX) };
        self.db
            .delete_file_in_range_cf(
                self.family(DATA),
                first.data_prefix().as_slice(),
                last.data_end().as_slice(),
            )
            .map_err(|e| self.error("remove table files from", e))
    }

    /// Bytes of all table files.
    pub(crate) fn disk_bytes(&self) -> u64 {
        let size = |family| {
            let property = rocksdb::properties::TOTAL_SST_FILES_SIZE;
            self.db.property_int_value_cf(self.family(family), property).ok().flatten().unwrap_or(0)
        };
        [DATA, INDEX, META, NOTES].into_iter().map(size).sum()
    }
}

impl Table<'_> {
    /// Adds a row. Keys must come in ascending order.
    pub(crate) fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), StorageError> {
        self.writer.put(key, value).map_err(|e| read_error(&self.path, "write", e))
    }

    /// Completes and syncs the file. Returns its size in bytes.
    pub(crate) fn finish(mut self) -> Result<(PathBuf, u64), StorageError> {
        self.writer.finish().map_err(|e| read_error(&self.path, "finish", e))?;
        let bytes = self.writer.file_size();
        Ok((self.path, bytes))
    }
}

#[cfg(test)]
impl Rocks {
    /// Makes the data look like another version's.
    pub(crate) fn pretend_version(&self, version: u32) {
        let mut batch = WriteBatch::default();
        batch.put_cf(self.family(META), META_VERSION, version.to_le_bytes());
        self.write_durably(batch).expect("written");
    }

    /// Makes a closed database one from before there were exemplars.
    pub(crate) fn drop_notes(path: &Path) {
        let cache = Cache::new_lru_cache(1 << 20);
        let mut db = DB::open_cf_descriptors(&database_options(16), path, families(&cache)).expect("opened");
        db.drop_cf(NOTES).expect("dropped");
    }

    /// A segment's rows without what depends on the replica.
    pub(crate) fn pages(&self, segment: SegmentKey) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut options = read_options();
        options.set_iterate_lower_bound(segment.data_prefix());
        options.set_iterate_upper_bound(segment.data_end());
        let rows = self.db.iterator_cf_opt(self.family(DATA), options, IteratorMode::Start);
        let prefix = segment.data_prefix().len();
        rows.map(|row| {
            let (key, value) = row.expect("readable");
            (key[prefix..].to_vec(), value.to_vec())
        })
        .collect()
    }

    /// Number of table files with samples.
    pub(crate) fn tables(&self) -> usize {
        let files = self.db.live_files().expect("listed");
        files.iter().filter(|file| file.column_family_name == DATA).count()
    }
}

/// The column families that hold anything.
const FAMILIES: [&str; 4] = [DATA, INDEX, NOTES, META];

fn families(cache: &Cache) -> Vec<ColumnFamilyDescriptor> {
    vec![
        ColumnFamilyDescriptor::new(rocksdb::DEFAULT_COLUMN_FAMILY_NAME, rows_options(cache)),
        ColumnFamilyDescriptor::new(DATA, data_options(cache)),
        ColumnFamilyDescriptor::new(INDEX, index_options(cache)),
        ColumnFamilyDescriptor::new(NOTES, rows_options(cache)),
        ColumnFamilyDescriptor::new(META, rows_options(cache)),
    ]
}

fn database_options(open_files_max: i32) -> Options {
    let mut db = Options::default();
    db.create_if_missing(true);
    db.create_missing_column_families(true);
    db.set_paranoid_checks(true);
    // Rows are written with a sync each: only an unacknowledged tail can be torn.
    db.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
    db.set_track_and_verify_wals_in_manifest(true);
    db.set_recycle_log_file_num(0);
    db.set_max_open_files(open_files_max);
    db.set_max_background_jobs(2);
    db.set_max_total_wal_size(64 << 20);
    db.set_keep_log_file_num(4);
    db.set_max_log_file_size(16 << 20);
    db.set_stats_dump_period_sec(0);
    db.set_stats_persist_period_sec(0);
    db
}

fn table_options(cache: &Cache) -> BlockBasedOptions {
    let mut table = BlockBasedOptions::default();
    table.set_block_size(16 << 10);
    table.set_block_cache(cache);
    table.set_cache_index_and_filter_blocks(true);
    table.set_checksum_type(rocksdb::ChecksumType::XXH3);
    table.set_format_version(6);
    table
}

fn rows_options(cache: &Cache) -> Options {
    let mut rows = Options::default();
    rows.set_write_buffer_size(8 << 20);
    rows.set_compression_type(DBCompressionType::Zstd);
    rows.set_block_based_table_factory(&table_options(cache));
    rows
}

fn index_options(cache: &Cache) -> Options {
    let mut table = table_options(cache);
    // Most label pairs that are asked for occur in few shards.
    table.set_bloom_filter(10.0, false);
    let mut index = rows_options(cache);
    index.set_block_based_table_factory(&table);
    index.set_merge_operator_associative("union", index_rows::merge_rows);
    index
}

fn data_options(cache: &Cache) -> Options {
    let mut data = rows_options(cache);
    data.set_disable_auto_compactions(true);
    // Nothing shrinks the number of files here, so it must not stall the other families.
    data.set_level_zero_slowdown_writes_trigger(i32::MAX);
    data.set_level_zero_stop_writes_trigger(i32::MAX);
    // Files go straight to the last level, where they fit by their keys; only this style has that.
    data.set_compaction_style(DBCompactionStyle::Universal);
    data.get_options_from_string("cf_allow_ingest_behind=true").expect("RocksDB knows its own option")
}

fn read_options() -> ReadOptions {
    let mut options = ReadOptions::default();
    options.set_verify_checksums(true);
    options
}

fn opening_error(path: &Path, options: &EngineOptions, error: rocksdb::Error) -> StorageError {
    let text = error.to_string();
    // RocksDB has no kind of its own for this: "While lock file: ...: Resource temporarily unavailable".
    if error.kind() == rocksdb::ErrorKind::IOError && text.contains("lock ") {
        return StorageError::InUse { dir: options.dir.clone(), source: error.into() };
    }
    if text.contains("No such file") {
        return StorageError::Corrupt { path: path.into(), offset: 0, reason: text };
    }
    read_error(path, "open", error)
}

fn read_error(path: &Path, action: &str, error: rocksdb::Error) -> StorageError {
    if error.kind() == rocksdb::ErrorKind::Corruption {
        return StorageError::Corrupt { path: path.into(), offset: 0, reason: error.into_string() };
    }
    StorageError::Unavailable { action: format!("{action} {}", path.display()), source: error.into() }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

impl std::fmt::Debug for Rocks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rocks").field("path", &self.path).finish_non_exhaustive()
    }
}

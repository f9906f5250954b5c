//! Rows of the `index` family: reading and writing them.

use roaring::RoaringBitmap;
use rocksdb::{
    DB, IteratorMode, MergeOperands, ReadOptions, SnapshotWithThreadMode, WriteBatch, WriteOptions,
};
use saturn_model::ShardId;

use super::{INDEX, Rocks, read_options};
use crate::day_rows;
use crate::error::StorageError;
use crate::keys::SeriesRow;

/// Rows are written in batches of about this size: the series of a busy window are many.
const BATCH_BYTES: usize = 4 << 20;
/// Rows to walk over before seeking: a step costs a fraction of a seek.
const STEPS_MAX: u32 = 8;

/// What to write to `index`.
#[derive(Debug)]
pub(crate) enum IndexWrite {
    /// Adds ordinals to a day's row.
    Add(Vec<u8>, RoaringBitmap),
    /// Replaces a row.
    Put(Vec<u8>, Vec<u8>),
    Delete(Vec<u8>),
    /// Removes the rows from the first key to before the second.
    DeleteRange(Vec<u8>, Vec<u8>),
}

/// The rows as they were at one moment.
pub(crate) struct RowsThen<'a>(SnapshotWithThreadMode<'a, DB>);

/// The merge operator of the family.
pub(super) fn merge_rows(_key: &[u8], existing: Option<&[u8]>, operands: &MergeOperands) -> Option<Vec<u8>> {
    day_rows::union(existing.into_iter().chain(operands))
}

impl Rocks {
    /// Writes rows that nothing refers to yet. They are durable with the next synced write.
    pub(crate) fn write_index(&self, rows: impl Iterator<Item = IndexWrite>) -> Result<(), StorageError> {
        let mut batch = WriteBatch::default();
        let write = |batch: &mut WriteBatch| {
            let batch = std::mem::take(batch);
            self.db.write_opt(batch, &WriteOptions::default()).map_err(|e| self.error("write rows to", e))
        };
        for row in rows {
            self.add_index_write(&mut batch, row);
            if batch.size_in_bytes() >= BATCH_BYTES {
                write(&mut batch)?;
            }
        }
        if batch.is_empty() { Ok(()) } else { write(&mut batch) }
    }

    pub(super) fn add_index_write(&self, batch: &mut WriteBatch, row: IndexWrite) {
        let index = self.family(INDEX);
        match row {
            IndexWrite::Add(key, ordinals) => batch.merge_cf(index, key, day_rows::encode(&ordinals)),
            IndexWrite::Put(key, value) => batch.put_cf(index, key, value),
            IndexWrite::Delete(key) => batch.delete_cf(index, key),
            IndexWrite::DeleteRange(from, to) => batch.delete_range_cf(index, from, to),
        }
    }

    /// The ordinals of one row of a day; none if it is not there.
    pub(crate) fn day_row(&self, key: &[u8]) -> Result<RoaringBitmap, StorageError> {
        let row = self.db.get_pinned_cf_opt(self.family(INDEX), key, &read_options());
        match row.map_err(|e| self.error("read", e))? {
            Some(value) => day_rows::decode(&value).ok_or_else(|| self.damaged(INDEX, key)),
            None => Ok(RoaringBitmap::new()),
        }
    }

    /// Gives the rows with keys from `from` to before `end` to `each`, with a way to decode their ordinals,
    /// until it returns false. It returns `None` for a damaged row.
    pub(crate) fn each_day_row(
        &self,
        from: &[u8],
        end: &[u8],
        mut each: impl FnMut(&[u8], &dyn Fn() -> Option<RoaringBitmap>) -> Option<bool>,
    ) -> Result<(), StorageError> {
        let mut options = read_options();
        options.set_iterate_lower_bound(from);
        options.set_iterate_upper_bound(end);
        for row in self.db.iterator_cf_opt(self.family(INDEX), options, IteratorMode::Start) {
            let (key, value) = row.map_err(|e| self.error("read", e))?;
            let decode = || day_rows::decode(&value);
            if !each(&key, &decode).ok_or_else(|| self.damaged(INDEX, &key))? {
                break;
            }
        }
        Ok(())
    }

    /// Gives the rows of these series to `each`, ascending. Those without a row are left out.
    pub(crate) fn series_rows(
        &self,
        shard: ShardId,
        ordinals: &RoaringBitmap,
        each: impl FnMut(SeriesRow),
    ) -> Result<(), StorageError> {
        self.read_series_rows(read_options(), shard, ordinals, each)
    }

    /// The rows as they are now, whatever is written later.
    pub(crate) fn rows_now(&self) -> RowsThen<'_> {
        RowsThen(self.db.snapshot())
    }

    /// [`Rocks::series_rows`] as they were then.
    pub(crate) fn series_rows_then(
        &self,
        then: &RowsThen<'_>,
        shard: ShardId,
        ordinals: &RoaringBitmap,
        each: impl FnMut(SeriesRow),
    ) -> Result<(), StorageError> {
        let mut options = read_options();
        options.set_snapshot(&then.0);
        self.read_series_rows(options, shard, ordinals, each)
    }

    fn read_series_rows(
        &self,
        mut options: ReadOptions,
        shard: ShardId,
        ordinals: &RoaringBitmap,
        mut each: impl FnMut(SeriesRow),
    ) -> Result<(), StorageError> {
        let (Some(first), Some(last)) = (ordinals.min(), ordinals.max()) else {
            return Ok(());
        };
        options.set_iterate_lower_bound(SeriesRow::key(shard, first));
        options.set_iterate_upper_bound(day_rows::behind(&SeriesRow::key(shard, last)));
        let mut rows = self.db.raw_iterator_cf_opt(self.family(INDEX), options);
        rows.seek_to_first();
        let mut steps = 0;
        for ordinal in ordinals {
            let wanted = SeriesRow::key(shard, ordinal);
            while rows.key().is_some_and(|key| key < wanted.as_slice()) {
                steps += 1;
                if steps > STEPS_MAX {
                    rows.seek(&wanted);
                } else {
                    rows.next();
                }
            }
            steps = 0;
            let Some((key, value)) = rows.item() else {
                break;
            };
            if key == wanted.as_slice() {
                each(SeriesRow::from_row(key, value).ok_or_else(|| self.damaged(INDEX, key))?);
            }
        }
        rows.status().map_err(|e| self.error("read", e))
    }
}

#[cfg(test)]
impl Rocks {
    /// The days of which the shard has rows.
    pub(crate) fn days(&self, shard: ShardId) -> std::collections::BTreeSet<day_rows::Day> {
        let mut days = std::collections::BTreeSet::new();
        let rows = self.db.iterator_cf_opt(self.family(INDEX), read_options(), IteratorMode::Start);
        for (key, _) in rows.map(|row| row.expect("readable")) {
            days.extend(day_rows::Day::of_key(&key).filter(|(_, of)| *of == shard).map(|(day, _)| day));
        }
        days
    }
}

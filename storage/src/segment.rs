//! Writing a segment: one shard's samples of one window, cut into chunks, packed into pages.
//!
//! A flush and a merge write through this file, so a segment's bytes depend on its samples only. Series come
//! in the order of their [`SeriesKey`].

use std::path::PathBuf;

use roaring::RoaringBitmap;

use crate::error::StorageError;
use crate::keys::{Segment, SegmentKey, SeriesKey};
use crate::page::{CHUNK_SAMPLES_MAX, FinishedPage, PageWriter};
use crate::rocks::{Rocks, Table};

/// A table file that exists only once it has a row.
pub(crate) struct LazyTable<'a> {
    rocks: &'a Rocks,
    path: PathBuf,
    table: Option<Table<'a>>,
}

impl<'a> LazyTable<'a> {
    pub(crate) fn new(rocks: &'a Rocks, path: PathBuf) -> Self {
        Self { rocks, path, table: None }
    }

    fn put(&mut self, segment: SegmentKey, page: &FinishedPage) -> Result<(), StorageError> {
        let table = match &mut self.table {
            Some(table) => table,
            None => self.table.insert(self.rocks.table(self.path.clone())?),
        };
        table.put(&segment.data_key(page.series, page.part), &page.bytes)
    }

    /// Completes and syncs the file. Its path and size in bytes; `None` if it had no row.
    pub(crate) fn finish(self) -> Result<Option<(PathBuf, u64)>, StorageError> {
        self.table.map(Table::finish).transpose()
    }
}

/// Writes one segment into a table.
pub(crate) struct SegmentWriter<'t, 'a> {
    table: &'t mut LazyTable<'a>,
    pages: PageWriter,
    written: Segment,
}

impl<'t, 'a> SegmentWriter<'t, 'a> {
    pub(crate) fn new(table: &'t mut LazyTable<'a>, key: SegmentKey) -> Self {
        let written = Segment {
            key,
            samples: 0,
            first_ms: i64::MAX,
            last_ms: i64::MIN,
            ordinals: RoaringBitmap::new(),
        };
        Self { table, pages: PageWriter::new(key.window.start()), written }
    }

    /// Adds all samples of a series in the window: times strictly ascending, at least one. `series` ascends.
    pub(crate) fn push(
        &mut self,
        series: SeriesKey,
        ordinal: u32,
        timestamps: &[i64],
        values: &[f64],
    ) -> Result<(), StorageError> {
        let chunks = timestamps.chunks(CHUNK_SAMPLES_MAX).zip(values.chunks(CHUNK_SAMPLES_MAX));
        for ((timestamps, values), part) in chunks.zip(0..) {
            if let Some(page) = self.pages.push(series, part, timestamps, values) {
                self.table.put(self.written.key, &page)?;
            }
        }
        let (first, last) = (timestamps[0], timestamps[timestamps.len() - 1]);
        self.written.samples += timestamps.len() as u64;
        self.written.first_ms = self.written.first_ms.min(first);
        self.written.last_ms = self.written.last_ms.max(last);
        self.written.ordinals.insert(ordinal);
        Ok(())
    }

    /// Another ordinal of the series that was pushed last.
    pub(crate) fn add_ordinal(&mut self, ordinal: u32) {
        self.written.ordinals.insert(ordinal);
    }

    /// Completes the segment. `None` if nothing was added.
    pub(crate) fn finish(mut self) -> Result<Option<Segment>, StorageError> {
        let Some(page) = self.pages.finish(None) else {
            return Ok(None);
        };
        self.table.put(self.written.key, &page)?;
        self.written.ordinals.optimize();
        Ok(Some(self.written))
    }
}

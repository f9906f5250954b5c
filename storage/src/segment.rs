//! Writing a segment: one shard's samples of one span of time, cut into chunks, packed into pages.
//!
//! A flush and a merge write through this file, so a segment's bytes depend on its samples only. Series come
//! in the order of their [`SeriesKey`].

use std::path::PathBuf;
use std::sync::Arc;

use roaring::RoaringBitmap;
use saturn_model::Histogram;

use crate::codec;
use crate::error::StorageError;
use crate::keys::{Segment, SegmentKey, SeriesKey, Span};
use crate::page::{CHUNK_SAMPLES_MAX, FinishedPage, PageWriter};
use crate::rocks::{Rocks, Table};

/// Most samples of one series in a segment: as many as a window of 2 h has milliseconds. So pages can number its
/// chunks.
pub(crate) const SERIES_SAMPLES_MAX: usize = if cfg!(test) { 20_000 } else { 7_200_000 };

/// Samples of one series, of either kind: times strictly ascending, none of them in both.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Samples<'a> {
    pub(crate) floats: (&'a [i64], &'a [f64]),
    pub(crate) histograms: (&'a [i64], &'a [Arc<Histogram>]),
}

impl<'a> Samples<'a> {
    pub(crate) fn of(columns: &'a saturn_model::SeriesColumns) -> Self {
        let histograms = &columns.histograms;
        Self {
            floats: (&columns.timestamps, &columns.values),
            histograms: (&histograms.timestamps, &histograms.values),
        }
    }
}

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
    pub(crate) fn new(table: &'t mut LazyTable<'a>, key: SegmentKey, span: Span) -> Self {
        let written = Segment {
            key,
            span,
            samples: 0,
            first_ms: i64::MAX,
            last_ms: i64::MIN,
            ordinals: RoaringBitmap::new(),
        };
        Self { table, pages: PageWriter::new(key.window.start()), written }
    }

    /// Adds all samples of a series in the span, at least one and at most [`SERIES_SAMPLES_MAX`]. `series` ascends.
    pub(crate) fn push(
        &mut self,
        series: SeriesKey,
        ordinal: u32,
        samples: Samples<'_>,
    ) -> Result<(), StorageError> {
        let mut part = 0;
        let (timestamps, values) = samples.floats;
        for (timestamps, values) in timestamps.chunks(CHUNK_SAMPLES_MAX).zip(values.chunks(CHUNK_SAMPLES_MAX))
        {
            if let Some(page) = self.pages.push(series, part, timestamps, values) {
                self.table.put(self.written.key, &page)?;
            }
            part += 1;
        }
        let (mut timestamps, mut histograms) = samples.histograms;
        while !histograms.is_empty() {
            let (len, numbers) = codec::next_chunk(histograms);
            let chunk = (&timestamps[..len], &histograms[..len]);
            if let Some(page) = self.pages.push_histograms((series, part), chunk.0, chunk.1, numbers) {
                self.table.put(self.written.key, &page)?;
            }
            (timestamps, histograms) = (&timestamps[len..], &histograms[len..]);
            part += 1;
        }
        for timestamps in [samples.floats.0, samples.histograms.0] {
            if let (Some(first), Some(last)) = (timestamps.first(), timestamps.last()) {
                self.written.samples += timestamps.len() as u64;
                self.written.first_ms = self.written.first_ms.min(*first);
                self.written.last_ms = self.written.last_ms.max(*last);
            }
        }
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

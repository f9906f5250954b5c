//! Samples that come by the door for replicas: into segments of their own, past head and log.
//!
//! What another replica gave out (`snapshot.rs`), or old samples in bulk, become segments at once. The order makes
//! it safe, as in a flush:
//!
//! 1. The number is taken for good, and the ordinals of new series, in one synced write.
//! 2. One table file per window is written and ingested: durable, but read by nobody.
//! 3. One synced write makes rows of series, rows of days and segments live.
//! 4. In memory, the segments join the others.
//!
//! A crash before 3 leaves a file that is removed at start, one after it leaves everything. Taking the same samples
//! twice changes nothing that a read can see; merges make one of both. Series that are not in memory stay out of it:
//! they are found by the rows of their days. Segments that come are younger than all tombstones that are here: what
//! the sender did not delete would come back, so they are refused unless both have done the same deletions.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use roaring::RoaringBitmap;
use saturn_model::{Fingerprint, SeriesColumns, SeriesExemplars, ShardId};

use crate::day_rows::{Day, DayRows};
use crate::engine::Store;
use crate::error::StorageError;
use crate::exported::ExportedNotes;
use crate::keys::{Segment, SegmentKey, SeriesKey, SeriesRow, Span, Window};
use crate::notes::Dropped;
use crate::past;
use crate::rocks::IndexWrite;
use crate::segment::{LazyTable, Samples, SegmentWriter};
use crate::shard::Shard;
use crate::snapshot::{ExportChunk, ExportedSeries};

/// Ordinals that are taken beyond those needed, because appends take some meanwhile.
const ORDINALS_SPARE: u32 = 1024;

/// Takes chunks for one shard. See `Engine::importer`.
///
/// It remembers which series it has seen, some 32 bytes each: one for each shard and transfer is enough.
#[derive(Debug)]
pub struct Importer<'a> {
    store: &'a Store,
    shard: Arc<Shard>,
    /// The last agreed deletion that the sender has done.
    deleted_through: u64,
    /// Series that are not in memory.
    ordinals: HashMap<Fingerprint, u32>,
}

/// What one call took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// Samples, those that were there before among them.
    pub samples: u64,
    /// Segments made: one for each window.
    pub segments: u64,
    /// Series that this shard did not know.
    pub new_series: u64,
}

/// A series of what came, and its ordinal.
struct Incoming {
    ordinal: u32,
    row: SeriesRow,
    samples: SeriesColumns,
}

/// See `Engine::importer`.
pub(crate) fn importer(
    store: &Store,
    shard: ShardId,
    deleted_through: u64,
) -> Result<Importer<'_>, StorageError> {
    let shard = store.shard(shard);
    let _unchanged = store.next_segment.lock();
    let (segments, _) = shard.segments_and_tombstones();
    let mut ordinals = RoaringBitmap::new();
    segments.iter().for_each(|segment| ordinals |= &segment.ordinals);
    let known = past::in_key_order(store, &shard, &ordinals)?;
    let ordinals = known.into_iter().map(|(key, ordinal)| (key.fingerprint(), ordinal)).collect();
    Ok(Importer { store, shard, deleted_through, ordinals })
}

impl Importer<'_> {
    /// Stores the samples of the chunks. When this returns, they are durable and every read sees them. Blocks, also
    /// for as long as a flush or merge runs.
    ///
    /// # Errors
    /// `Invalid` if a chunk is of another shard or contradicts itself, `DiskFull`, `Failed` if the engine failed;
    /// `Unavailable` on IO errors: it may be tried again. After an error nothing, or all, is stored.
    pub fn ingest(&mut self, chunks: &[ExportChunk]) -> Result<Imported, StorageError> {
        let store = self.store;
        store.wal().check()?;
        store.check_disk()?;
        let windows = self.sort(chunks)?;
        if windows.is_empty() {
            return Ok(Imported::default());
        }
        let mut next_segment = store.next_segment.lock();
        self.check_deletions()?;
        let number = *next_segment;
        *next_segment += 1;
        let known_before = self.ordinals.len();
        let (windows, assigned) = self.with_ordinals(windows, number)?;
        store.failpoint("import: number reserved")?;
        let mut written = Vec::with_capacity(windows.len());
        let mut paths = Vec::with_capacity(windows.len());
        for (window, series) in &windows {
            let (segment, path) = write(store, &self.shard, (*window, number), series)?;
            written.push(segment);
            paths.push(path);
        }
        store.failpoint("import: pages written")?;
        store.rocks.ingest(paths)?;
        store.failpoint("import: ingested")?;
        let rows = rows(&self.shard, &windows);
        store.rocks.commit_import(written.iter().map(|segment| &**segment), rows)?;
        store.failpoint("import: committed")?;
        self.ordinals.extend(assigned);
        let samples = written.iter().map(|segment| segment.samples).sum();
        let segments = written.len() as u64;
        self.shard.add_segments(written);
        store.disk_segments.fetch_add(segments, Ordering::Relaxed);
        store.metrics.imported_samples.inc_by(samples);
        Ok(Imported { samples, segments, new_series: (self.ordinals.len() - known_before) as u64 })
    }

    /// Takes exemplars and metadata, within this node's limits. When this returns, they are durable and every query
    /// sees them. Blocks, also for as long as a flush or merge runs.
    ///
    /// # Errors
    /// `Invalid` if they are of another shard, and nothing is stored; `Failed` if the engine failed; `Unavailable` on
    /// IO errors: it may be tried again.
    pub fn ingest_notes(&self, chunks: &[ExportedNotes]) -> Result<(), StorageError> {
        let store = self.store;
        store.wal().check()?;
        store.check_disk()?;
        if let Some(other) = chunks.iter().find(|chunk| chunk.shard != self.shard.id) {
            let reason = format!("notes of shard {} are not for shard {}", other.shard, self.shard.id);
            return Err(StorageError::Invalid { reason });
        }
        // A flush writes what changed, too.
        let _no_flush = store.next_segment.lock();
        self.check_deletions()?;
        let (mut dropped, limits) = (Dropped::default(), store.note_limits());
        let changed = {
            let mut notes = self.shard.notes.lock();
            for ExportedNotes { tenant, exemplars, metadata, .. } in chunks {
                for SeriesExemplars { labels, exemplars } in exemplars.iter().filter(|_| limits.exemplars > 0)
                {
                    let series = (Fingerprint::of(tenant, labels.as_encoded()), labels);
                    for exemplar in exemplars {
                        notes.add_exemplar(tenant, series, exemplar.clone(), limits, &mut dropped);
                    }
                }
                for metadata in metadata {
                    notes.import_metadata(tenant, metadata.clone(), limits, &mut dropped);
                }
            }
            notes.take_changed(self.shard.id)
        };
        let committed = store.rocks.commit_notes(&changed).and_then(|()| store.failpoint("notes: committed"));
        if committed.is_err() {
            self.shard.notes.lock().mark_changed(&changed);
        }
        store.metrics.dropped_exemplars.inc_by(dropped.exemplars);
        store.metrics.dropped_metadata.inc_by(dropped.metadata);
        committed
    }

    /// To be called while no deletion can come in between.
    fn check_deletions(&self) -> Result<(), StorageError> {
        let (theirs, mine) = (self.deleted_through, self.shard.deleted_through());
        if theirs == mine {
            return Ok(());
        }
        let shard = self.shard.id;
        let reason =
            format!("shard {shard} has done its deletions up to {mine}, what comes those up to {theirs}");
        Err(StorageError::Invalid { reason })
    }

    /// What came, by window and in the order of segments, checked. Ordinals are still to be given.
    fn sort(
        &self,
        chunks: &[ExportChunk],
    ) -> Result<BTreeMap<Window, BTreeMap<SeriesKey, ExportedSeries>>, StorageError> {
        let invalid = |reason: String| StorageError::Invalid { reason };
        let mut windows: BTreeMap<Window, BTreeMap<SeriesKey, ExportedSeries>> = BTreeMap::new();
        for chunk in chunks {
            let window = Window::of(chunk.window_start.0)
                .filter(|window| chunk.shard == self.shard.id && window.start() == chunk.window_start.0)
                .ok_or_else(|| {
                    let (shard, start) = (chunk.shard, chunk.window_start);
                    invalid(format!("shard {shard}, {start} ms is no window of shard {}", self.shard.id))
                })?;
            for series in &chunk.series {
                let (labels, columns) = (&series.columns.labels, &series.columns);
                if !fits(columns, window) {
                    let start = window.start();
                    return Err(invalid(format!(
                        "the samples of {labels} do not fit the window at {start} ms"
                    )));
                }
                let fingerprint = Fingerprint::of(&series.tenant, labels.as_encoded());
                let key = SeriesKey::new(labels.metric_name(), fingerprint);
                let known = windows.entry(window).or_default().entry(key).or_insert_with(|| ExportedSeries {
                    tenant: series.tenant.clone(),
                    columns: SeriesColumns { labels: labels.clone(), ..SeriesColumns::default() },
                });
                known.columns.merge(&columns.timestamps, &columns.values);
                let histograms = &columns.histograms;
                known.columns.merge_histograms(&histograms.timestamps, &histograms.values);
            }
        }
        windows.values_mut().for_each(|series| series.retain(|_, series| !series.columns.is_empty()));
        windows.retain(|_, series| !series.is_empty());
        Ok(windows)
    }

    /// Gives each series its ordinal: the one that it has in memory, or had before, or a new one. Those must not be
    /// given again, whatever happens, so they are taken durably before anything uses them.
    #[expect(clippy::type_complexity, reason = "the series by window, and the new ones")]
    fn with_ordinals(
        &self,
        windows: BTreeMap<Window, BTreeMap<SeriesKey, ExportedSeries>>,
        number: u64,
    ) -> Result<(Vec<(Window, Vec<Incoming>)>, HashMap<Fingerprint, u32>), StorageError> {
        let mut assigned: HashMap<Fingerprint, u32> = HashMap::new();
        for key in windows.values().flat_map(BTreeMap::keys) {
            let fingerprint = key.fingerprint();
            let is_known =
                self.shard.ordinal_of(fingerprint).is_some() || self.ordinals.contains_key(&fingerprint);
            if !is_known {
                assigned.insert(fingerprint, 0);
            }
        }
        let count = u32::try_from(assigned.len()).map_err(|_| too_many(&self.shard))?;
        let first = loop {
            let taken =
                self.shard.next_ordinal().checked_add(count).and_then(|n| n.checked_add(ORDINALS_SPARE));
            let taken = taken.ok_or_else(|| too_many(&self.shard))?;
            self.store.rocks.reserve_ordinals(self.shard.id, taken, number + 1)?;
            if let Some(first) = self.shard.take_ordinals(count, taken) {
                break first;
            }
        };
        for (ordinal, new) in (first..).zip(assigned.values_mut()) {
            *new = ordinal;
        }
        // Appends may have brought one of them to memory meanwhile; both ordinals are of the same series then.
        // What is looked up in memory last was there before the ordinals were taken, and lies below them.
        let ordinal_of = |fingerprint| {
            let given = assigned.get(&fingerprint).or_else(|| self.ordinals.get(&fingerprint)).copied();
            given.or_else(|| self.shard.ordinal_of(fingerprint))
        };
        let shard = self.shard.id;
        let incoming = |(key, series): (SeriesKey, ExportedSeries)| {
            let ExportedSeries { tenant, columns } = series;
            let fingerprint = key.fingerprint();
            let ordinal = ordinal_of(fingerprint).expect("each series is known or new");
            let row = SeriesRow { shard, ordinal, fingerprint, tenant, labels: columns.labels.clone() };
            Incoming { ordinal, row, samples: columns }
        };
        let windows =
            windows.into_iter().map(|(window, series)| (window, series.into_iter().map(incoming).collect()));
        Ok((windows.collect(), assigned))
    }
}

fn too_many(shard: &Shard) -> StorageError {
    StorageError::Invalid { reason: format!("shard {} has no ordinals left for new series", shard.id) }
}

/// Whether times ascend and lie in the window, and columns are as long as each other.
fn fits(columns: &SeriesColumns, window: Window) -> bool {
    let range = window.start()..window.end();
    let histograms = &columns.histograms;
    columns.timestamps.len() == columns.values.len()
        && histograms.timestamps.len() == histograms.values.len()
        && [&columns.timestamps, &histograms.timestamps]
            .into_iter()
            .all(|times| times.is_sorted_by(|a, b| a < b) && times.iter().all(|t| range.contains(t)))
        && histograms.values.iter().all(|histogram| !histogram.is_too_large())
}

/// Writes one window's table.
fn write(
    store: &Store,
    shard: &Shard,
    (window, number): (Window, u64),
    series: &[Incoming],
) -> Result<(Arc<Segment>, std::path::PathBuf), StorageError> {
    let path = store.table_path(window, number);
    let mut table = LazyTable::new(&store.rocks, path);
    let key = SegmentKey { window, segment: number, shard: shard.id };
    let mut writer = SegmentWriter::new(&mut table, key, Span::Window);
    for Incoming { ordinal, row, samples } in series {
        writer.push(row.key_in_segments(), *ordinal, Samples::of(samples))?;
    }
    let segment = writer.finish()?.expect("each window has a series with samples");
    let (path, bytes) = table.finish()?.expect("a segment has a row");
    store.metrics.imported_bytes.inc_by(bytes);
    Ok((Arc::new(segment), path))
}

/// What the index gains: rows of series that no segment has yet, and the days on which series are new.
fn rows(shard: &Shard, windows: &[(Window, Vec<Incoming>)]) -> Vec<IndexWrite> {
    let (live, _) = shard.segments_and_tombstones();
    let union = |segments: &mut dyn Iterator<Item = &Arc<Segment>>| {
        let mut ordinals = RoaringBitmap::new();
        segments.for_each(|segment| ordinals |= &segment.ordinals);
        ordinals
    };
    let with_row = union(&mut live.iter());
    let mut rows = Vec::new();
    let mut named: BTreeMap<Vec<u8>, RoaringBitmap> = BTreeMap::new();
    for (window, series) in windows {
        let day = Day::of(*window);
        let of_day = union(&mut live.iter().filter(|segment| Day::of(segment.key.window) == day));
        for Incoming { ordinal, row, .. } in series {
            if !with_row.contains(*ordinal) {
                let (key, value) = row.to_row();
                rows.push(IndexWrite::Put(key, value));
            }
            if !of_day.contains(*ordinal) {
                let keys = DayRows::new(day, shard.id, &row.tenant);
                let pairs = row.labels.iter().map(|(name, value)| keys.pair(name, value));
                for key in pairs.chain([keys.all()]) {
                    named.entry(key).or_default().insert(*ordinal);
                }
            }
        }
    }
    rows.extend(named.into_iter().map(|(key, ordinals)| IndexWrite::Add(key, ordinals)));
    rows
}

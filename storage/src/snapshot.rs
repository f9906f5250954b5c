//! A shard as it is at one moment, given out in pieces: what a replica that comes, or repairs itself, takes.
//!
//! A [`ShardSnapshot`] holds the list of live segments (whose files then stay), a copy of what is in memory, and the
//! rows of series as they are then, so it does not change whatever flushes, merges, deletes and retention do. It is
//! given out window by window, and within a window series by series in the order that they have in segments, in
//! [`ExportChunk`]s of bounded size. Each says where the next one begins: whoever was interrupted goes on there, with
//! a new snapshot if need be. What was stored before that place meanwhile is not in later chunks; who wants it must
//! get it on another way, as the writes of that time do.
//!
//! What tombstones hide is left out, what segments hold twice is settled, as in any read.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::RangeInclusive;
use std::sync::Arc;

use roaring::RoaringBitmap;
use saturn_model::{Labels, SeriesColumns, ShardId, TenantId, TimestampMs};

use crate::engine::Store;
use crate::error::StorageError;
use crate::head::HeadSamples;
use crate::histograms::HistogramRuns;
use crate::keys::{Segment, SeriesKey, Tombstone, WINDOW_MS, Window};
use crate::rocks::{Blocks, RowsThen, SegmentReader};
use crate::tombstones::Mask;
use crate::wire::Reader;

/// Bytes of one float sample in columns.
const SAMPLE_BYTES: usize = 16;

/// One shard at one moment. See `Engine::snapshot`.
pub struct ShardSnapshot<'a> {
    store: &'a Store,
    shard: ShardId,
    segments: Arc<Vec<Arc<Segment>>>,
    tombstones: Arc<Vec<Arc<Tombstone>>>,
    head: HeadCopy,
    rows: RowsThen<'a>,
    log: LogPosition,
    /// By window: the series that have samples in memory there.
    in_memory: BTreeMap<Window, Vec<(SeriesKey, u32)>>,
}

/// A place in the write-ahead log. Later places are larger, also after the engine was closed and opened, killed, or has
/// gone on in a new file: segments are numbered on, and no number is given twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct LogPosition {
    /// Number of a segment of the log.
    pub segment: u64,
    /// Bytes of it.
    pub offset: u64,
}

/// What memory held of a shard.
#[derive(Debug, Default)]
pub(crate) struct HeadCopy {
    pub(crate) samples: HeadSamples,
    pub(crate) histograms: HistogramRuns,
    /// What the series are called that have samples there.
    pub(crate) series: HashMap<u32, (TenantId, SeriesKey, Labels)>,
}

/// What of a shard is given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExportScope {
    /// All of it.
    Shard,
    /// The 2 h window that begins there.
    Window(TimestampMs),
}

/// Where an export goes on: with the samples of this series from this time on, and all series behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ExportCursor {
    window: Window,
    series: SeriesKey,
    from_ms: i64,
}

/// A series' samples in one window, or a part of them.
#[derive(Clone, Debug)]
pub struct ExportedSeries {
    /// Whose it is.
    pub tenant: TenantId,
    /// Labels and samples, times ascending.
    pub columns: SeriesColumns,
}

/// A piece of an export: samples of one window.
#[derive(Clone, Debug)]
pub struct ExportChunk {
    /// The shard.
    pub shard: ShardId,
    /// First millisecond of the window.
    pub window_start: TimestampMs,
    /// In the order of segments.
    pub series: Vec<ExportedSeries>,
    /// Where the next chunk begins.
    pub next: ExportCursor,
}

impl ExportCursor {
    /// Length of [`ExportCursor::to_bytes`].
    pub const BYTES: usize = 4 + SeriesKey::BYTES + 8;

    /// The place where a 2 h window begins; `None` if none begins there.
    pub fn at(window_start: TimestampMs) -> Option<Self> {
        let window = Window::of(window_start.0).filter(|window| window.start() == window_start.0)?;
        Some(Self { window, series: SeriesKey([0; SeriesKey::BYTES]), from_ms: i64::MIN })
    }

    /// As bytes that [`ExportCursor::from_bytes`] reads, on any node.
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..4].copy_from_slice(&self.window.0.to_be_bytes());
        bytes[4..4 + SeriesKey::BYTES].copy_from_slice(&self.series.0);
        bytes[4 + SeriesKey::BYTES..].copy_from_slice(&self.from_ms.to_be_bytes());
        bytes
    }

    /// `None` if it is no cursor.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(bytes);
        let window = Window(reader.array().map(u32::from_be_bytes)?);
        let series = SeriesKey(reader.array()?);
        let from_ms = reader.array().map(i64::from_be_bytes)?;
        reader.is_empty().then_some(Self { window, series, from_ms })
    }
}

/// See `Engine::snapshot`.
pub(crate) fn snapshot(store: &Store, shard: ShardId) -> ShardSnapshot<'_> {
    // Whoever changes segments or rows does so under this lock.
    let _unchanged = store.next_segment.lock();
    // Before the head: what is in the log by now is in there, or flushed.
    let log = store.wal().durable_position();
    let (head, segments, tombstones) = match store.known_shard(shard) {
        Some(known) => known.copy(),
        None => (HeadCopy::default(), Arc::default(), Arc::default()),
    };
    let in_memory = windows_of(&head);
    let rows = store.rocks.rows_now();
    ShardSnapshot { store, shard, segments, tombstones, head, rows, log, in_memory }
}

/// The windows of which these segments may have samples.
pub(crate) fn windows_on_disk(segments: &[Arc<Segment>]) -> BTreeSet<Window> {
    let mut windows = BTreeSet::new();
    for segment in segments {
        let mut start = segment.first_ms.div_euclid(WINDOW_MS).saturating_mul(WINDOW_MS);
        while start <= segment.last_ms {
            windows.extend(Window::of(start));
            start += WINDOW_MS;
        }
    }
    windows
}

fn windows_of(head: &HeadCopy) -> BTreeMap<Window, Vec<(SeriesKey, u32)>> {
    let mut windows: BTreeMap<Window, Vec<(SeriesKey, u32)>> = BTreeMap::new();
    let mut add = |ordinal: u32, timestamps: &[i64]| {
        let key = head.series[&ordinal].1;
        let of = |t: &i64| Window::of(*t).expect("appends check that times have a window");
        for times in timestamps.chunk_by(|a, b| of(a) == of(b)) {
            windows.entry(of(&times[0])).or_default().push((key, ordinal));
        }
    };
    let (mut timestamps, mut values) = (Vec::new(), Vec::new());
    for (ordinal, run) in head.samples.iter() {
        timestamps.clear();
        values.clear();
        run.read(i64::MIN, i64::MAX, &mut timestamps, &mut values);
        add(ordinal, &timestamps);
    }
    head.histograms.times().for_each(|(ordinal, timestamps)| add(ordinal, timestamps));
    windows
}

impl<'a> ShardSnapshot<'a> {
    /// A place in the log: whatever was in the log before it is in the snapshot.
    pub fn log_position(&self) -> LogPosition {
        self.log
    }

    /// First milliseconds of the windows that may have samples, ascending.
    pub fn windows(&self) -> Vec<TimestampMs> {
        let mut windows = windows_on_disk(&self.segments);
        windows.extend(self.in_memory.keys());
        windows.into_iter().map(|window| TimestampMs(window.start())).collect()
    }

    /// Gives the samples of `scope` out, from `from` on if that is given, in chunks of about `chunk_bytes`: 16 bytes
    /// for each sample, and the labels.
    ///
    /// # Errors
    /// `Invalid` if no window begins where the scope says. Instead of a chunk, and then nothing follows: `Corrupt`.
    pub fn export(
        &self,
        scope: ExportScope,
        from: Option<ExportCursor>,
        chunk_bytes: usize,
    ) -> Result<Export<'_, 'a>, StorageError> {
        let mut windows = self.windows();
        if let ExportScope::Window(start) = scope {
            if start.0.rem_euclid(WINDOW_MS) != 0 {
                let reason = format!("no 2 h window begins at {start} ms");
                return Err(StorageError::Invalid { reason });
            }
            windows.retain(|window| *window == start);
        }
        if let Some(from) = from {
            windows.retain(|window| window.0 >= from.window.start());
        }
        windows.reverse();
        Ok(Export { snapshot: self, windows, from, chunk_bytes, window: None, failed: false })
    }
}

impl std::fmt::Debug for ShardSnapshot<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let segments = self.segments.len();
        f.debug_struct("ShardSnapshot")
            .field("shard", &self.shard)
            .field("segments", &segments)
            .finish_non_exhaustive()
    }
}

/// The chunks of an export, one after the other: see [`ShardSnapshot::export`].
pub struct Export<'s, 'a> {
    snapshot: &'s ShardSnapshot<'a>,
    /// What is to come, the next one last.
    windows: Vec<TimestampMs>,
    from: Option<ExportCursor>,
    chunk_bytes: usize,
    /// The window that is being given out.
    window: Option<OpenWindow<'a>>,
    failed: bool,
}

/// A window that is being given out.
struct OpenWindow<'a> {
    window: Window,
    /// In the order of segments; a series is there once for each of its ordinals.
    series: Vec<(SeriesKey, u32)>,
    at: usize,
    sources: Vec<(Arc<Segment>, Mask, SegmentReader<'a>)>,
    /// What is left of a series that did not fit into a chunk.
    rest: Option<(SeriesKey, ExportedSeries)>,
}

impl Iterator for Export<'_, '_> {
    type Item = Result<ExportChunk, StorageError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let next = self.next_chunk().transpose();
        self.failed = matches!(next, Some(Err(_)));
        next
    }
}

impl<'a> Export<'_, 'a> {
    fn next_chunk(&mut self) -> Result<Option<ExportChunk>, StorageError> {
        loop {
            if self.window.is_none() {
                let Some(start) = self.windows.pop() else {
                    return Ok(None);
                };
                self.window = Some(self.open(start)?);
            }
            let mut window = self.window.take().expect("it was just opened");
            let chunk = self.fill(&mut window)?;
            if chunk.is_some() {
                self.window = Some(window);
                return Ok(chunk);
            }
        }
    }

    fn open(&self, start: TimestampMs) -> Result<OpenWindow<'a>, StorageError> {
        let snapshot = self.snapshot;
        let window = Window::of(start.0).expect("a snapshot has only windows that exist");
        let range = range_of(window);
        let mut sources = Vec::new();
        let mut ordinals = RoaringBitmap::new();
        for segment in snapshot.segments.iter().filter(|s| s.touches(*range.start(), *range.end())) {
            ordinals |= &segment.ordinals;
            let reader = snapshot.store.rocks.segment_reader(segment, Blocks::ReadOnce);
            sources.push((Arc::clone(segment), Mask::new(&snapshot.tombstones, segment), reader));
        }
        let mut series = snapshot.in_memory.get(&window).cloned().unwrap_or_default();
        let mut found = RoaringBitmap::new();
        snapshot.store.rocks.series_rows_then(&snapshot.rows, snapshot.shard, &ordinals, |row| {
            found.insert(row.ordinal);
            series.push((row.key_in_segments(), row.ordinal));
        })?;
        // In memory only the labels of series with samples there were copied; others have their rows.
        if let Some(ordinal) = (&ordinals - found).min() {
            let reason = format!("series {ordinal} of shard {} is missing", snapshot.shard);
            return Err(snapshot.store.rocks.inconsistent(reason));
        }
        series.sort_unstable();
        series.dedup();
        if let Some(from) = self.from.filter(|from| from.window == window) {
            series.retain(|(key, _)| *key >= from.series);
        }
        Ok(OpenWindow { window, series, at: 0, sources, rest: None })
    }

    /// The next chunk of the window. `None` at its end.
    fn fill(&self, window: &mut OpenWindow<'a>) -> Result<Option<ExportChunk>, StorageError> {
        let mut chunk: Vec<ExportedSeries> = Vec::new();
        let mut next = None;
        let mut bytes = 0;
        while bytes < self.chunk_bytes {
            let (key, mut series) = match window.rest.take() {
                Some(rest) => rest,
                None => match self.read(window)? {
                    Some(series) => series,
                    None => break,
                },
            };
            let room = (self.chunk_bytes - bytes).max(SAMPLE_BYTES);
            bytes += series.columns.labels.as_encoded().len();
            let rest = split(&mut series.columns, room);
            bytes += size_of(&series.columns);
            let end = ExportCursor { window: window.window, series: key, from_ms: window.window.end() };
            next = Some(match rest {
                None => end,
                Some(rest) => {
                    let from_ms = first_time(&rest);
                    let tenant = series.tenant.clone();
                    window.rest = Some((key, ExportedSeries { tenant, columns: rest }));
                    ExportCursor { from_ms, ..end }
                }
            });
            chunk.push(series);
        }
        let (shard, window_start) = (self.snapshot.shard, TimestampMs(window.window.start()));
        Ok(next.map(|next| ExportChunk { shard, window_start, series: chunk, next }))
    }

    /// The next series of the window that has samples.
    fn read(&self, window: &mut OpenWindow<'a>) -> Result<Option<(SeriesKey, ExportedSeries)>, StorageError> {
        let snapshot = self.snapshot;
        while let Some((key, _)) = window.series.get(window.at).copied() {
            let same = window.series[window.at..].iter().take_while(|(other, _)| *other == key).count();
            let same = window.at..window.at + same;
            window.at = same.end;
            let ordinals = &window.series[same];
            let resumed = self.from.filter(|from| (from.window, from.series) == (window.window, key));
            let range = range_of(window.window);
            let range = resumed.map_or(*range.start(), |from| from.from_ms)..=*range.end();
            let mut columns = SeriesColumns::default();
            for (segment, mask, reader) in &mut window.sources {
                let own = ordinals.iter().find(|(_, ordinal)| segment.ordinals.contains(*ordinal));
                if let Some((key, ordinal)) = own {
                    reader.read(key, *ordinal, &range, mask, &mut columns)?;
                }
            }
            for (_, ordinal) in ordinals {
                snapshot.head.add(*ordinal, &range, &mut columns);
            }
            if columns.is_empty() {
                continue;
            }
            let (tenant, labels) = self.name(ordinals)?;
            columns.labels = labels;
            return Ok(Some((key, ExportedSeries { tenant, columns })));
        }
        Ok(None)
    }

    fn name(&self, ordinals: &[(SeriesKey, u32)]) -> Result<(TenantId, Labels), StorageError> {
        let snapshot = self.snapshot;
        let in_memory = ordinals.iter().find_map(|(_, ordinal)| snapshot.head.series.get(ordinal));
        if let Some((tenant, _, labels)) = in_memory {
            return Ok((tenant.clone(), labels.clone()));
        }
        let ordinals: RoaringBitmap = ordinals.iter().map(|(_, ordinal)| *ordinal).collect();
        let mut name = None;
        snapshot.store.rocks.series_rows_then(&snapshot.rows, snapshot.shard, &ordinals, |row| {
            name = Some((row.tenant, row.labels));
        })?;
        Ok(name.expect("its row was there when the window was opened, and the rows do not change"))
    }
}

impl HeadCopy {
    fn add(&self, ordinal: u32, range: &RangeInclusive<i64>, columns: &mut SeriesColumns) {
        let (start, end) = (*range.start(), *range.end());
        if let Some(run) = self.samples.run(ordinal) {
            let (mut timestamps, mut values) = (Vec::new(), Vec::new());
            run.read(start, end, &mut timestamps, &mut values);
            columns.merge(&timestamps, &values);
        }
        let (timestamps, values) = self.histograms.range(ordinal, start, end);
        columns.merge_histograms(timestamps, values);
    }
}

fn range_of(window: Window) -> RangeInclusive<i64> {
    window.start()..=window.end() - 1
}

fn size_of(columns: &SeriesColumns) -> usize {
    let histograms: usize = columns.histograms.values.iter().map(|histogram| histogram.size_bytes()).sum();
    columns.timestamps.len() * SAMPLE_BYTES + histograms
}

fn first_time(columns: &SeriesColumns) -> i64 {
    let floats = columns.timestamps.first().copied().unwrap_or(i64::MAX);
    columns.histograms.timestamps.first().map_or(floats, |first| floats.min(*first))
}

/// Cuts what comes after about `bytes` off, at least one sample stays.
fn split(columns: &mut SeriesColumns, bytes: usize) -> Option<SeriesColumns> {
    if size_of(columns) <= bytes {
        return None;
    }
    let floats = columns.timestamps.get(bytes.div_ceil(SAMPLE_BYTES)).copied();
    let mut sum = 0;
    let histograms = columns.histograms.values.iter().position(|histogram| {
        let full = sum >= bytes;
        sum += histogram.size_bytes();
        full
    });
    let histograms = histograms.map(|at| columns.histograms.timestamps[at]);
    let at_ms = floats.into_iter().chain(histograms).min()?;
    let float = columns.timestamps.partition_point(|t| *t < at_ms);
    let histogram = columns.histograms.timestamps.partition_point(|t| *t < at_ms);
    let mut rest = SeriesColumns { labels: columns.labels.clone(), ..SeriesColumns::default() };
    rest.timestamps = columns.timestamps.split_off(float);
    rest.values = columns.values.split_off(float);
    rest.histograms.timestamps = columns.histograms.timestamps.split_off(histogram);
    rest.histograms.values = columns.histograms.values.split_off(histogram);
    Some(rest)
}

#[cfg(test)]
mod tests;

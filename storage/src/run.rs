//! A run: the samples of one series that are in memory, compressed, one per time.
//!
//! The usual append is newer than all and goes to the end of the growing chunk. What comes too late waits in a
//! small sorted buffer and joins the chunks once there are many. Invariants: chunks ascend and do not overlap;
//! a time is in one chunk or in the buffer, never in both; nothing in the buffer is newer than the growing
//! chunk. Conflicts end by [`resolve`], so the order of arrival never shows.

use saturn_model::{merge_columns, resolve};

use crate::codec::HotRun;

/// So many late samples join the chunks. It bounds what inserting one of them costs.
const LATE_MAX: usize = 240;

/// The samples of one series. 72 bytes and the slots of its chunks.
#[derive(Clone, Debug, Default)]
pub(crate) struct Run {
    /// The growing chunk. Empty only if the run is.
    hot: HotRun,
    /// What few series have.
    more: Option<Box<More>>,
}

#[derive(Clone, Debug, Default)]
struct More {
    /// Chunks before the growing one, ascending.
    sealed: Vec<HotRun>,
    /// Ascending by time.
    late: Vec<(i64, f64)>,
}

impl Run {
    /// Bytes on the heap.
    pub(crate) fn heap_bytes(&self) -> usize {
        let more = self.more.as_ref().map_or(0, |more| {
            let sealed: usize = more.sealed.iter().map(HotRun::bytes).sum();
            size_of::<More>()
                + more.sealed.capacity() * size_of::<HotRun>()
                + sealed
                + more.late.capacity() * size_of::<(i64, f64)>()
        });
        self.hot.bytes() + more
    }

    /// Times of the oldest and the newest sample.
    pub(crate) fn bounds(&self) -> Option<(i64, i64)> {
        let (_, last) = self.hot.bounds()?;
        let oldest = self.sealed().first().unwrap_or(&self.hot).bounds()?.0;
        let late = self.late().first().map_or(oldest, |(t, _)| *t);
        Some((oldest.min(late), last))
    }

    /// Whether a sample may lie from `start` to `end`, both inclusive: a chunk touches them, or a late sample
    /// lies there.
    pub(crate) fn touches(&self, start: i64, end: i64) -> bool {
        self.chunks().any(|chunk| touches(chunk, start, end)) || !self.late_within(start, end).is_empty()
    }

    /// Adds samples in any order. Returns how many times are new.
    pub(crate) fn append(&mut self, timestamps: &[i64], values: &[f64]) -> usize {
        timestamps.iter().zip(values).filter(|(t, v)| self.insert(**t, **v)).count()
    }

    /// Appends the samples from `start` to `end`, both inclusive, to the columns: times ascending.
    pub(crate) fn read(&self, start: i64, end: i64, timestamps: &mut Vec<i64>, values: &mut Vec<f64>) {
        let from = timestamps.len();
        for chunk in self.chunks().filter(|chunk| touches(chunk, start, end)) {
            chunk.decode_into(timestamps, values);
        }
        // Only the first and the last of these chunks can reach beyond the range.
        let to = from + timestamps[from..].partition_point(|t| *t <= end);
        timestamps.truncate(to);
        values.truncate(to);
        let before = timestamps[from..].partition_point(|t| *t < start);
        timestamps.drain(from..from + before);
        values.drain(from..from + before);
        let late = self.late_within(start, end);
        if !late.is_empty() {
            let late: (Vec<i64>, Vec<f64>) = late.iter().copied().unzip();
            let merged = merge_columns((&timestamps[from..], &values[from..]), (&late.0, &late.1));
            timestamps.truncate(from);
            values.truncate(from);
            timestamps.extend_from_slice(&merged.0);
            values.extend_from_slice(&merged.1);
        }
    }

    fn sealed(&self) -> &[HotRun] {
        self.more.as_ref().map_or(&[], |more| &more.sealed)
    }

    fn late(&self) -> &[(i64, f64)] {
        self.more.as_ref().map_or(&[], |more| &more.late)
    }

    fn late_within(&self, start: i64, end: i64) -> &[(i64, f64)] {
        let late = self.late();
        let from = late.partition_point(|(t, _)| *t < start);
        let to = late.partition_point(|(t, _)| *t <= end).max(from);
        &late[from..to]
    }

    fn chunks(&self) -> impl Iterator<Item = &HotRun> {
        self.sealed().iter().chain([&self.hot])
    }

    /// Adds a sample. Returns whether its time is new.
    #[inline]
    fn insert(&mut self, timestamp: i64, value: f64) -> bool {
        self.hot.append(timestamp, value) || self.insert_slowly(timestamp, value)
    }

    /// Adds a sample that the growing chunk does not take.
    fn insert_slowly(&mut self, timestamp: i64, value: f64) -> bool {
        let (newest, last) = self.hot.last().expect("an empty chunk takes every sample");
        if timestamp > newest {
            let full = std::mem::take(&mut self.hot);
            self.more.get_or_insert_default().sealed.push(full);
            assert!(self.hot.append(timestamp, value), "an empty chunk takes every sample");
            return true;
        }
        // Whoever sends a request again is served at once.
        if timestamp == newest && resolve(last, value).to_bits() == last.to_bits() {
            return false;
        }
        if let Some(found) = self.change_in_chunk(timestamp, value) {
            return found;
        }
        let late = &mut self.more.get_or_insert_default().late;
        match late.binary_search_by_key(&timestamp, |(t, _)| *t) {
            Ok(at) => {
                late[at].1 = resolve(late[at].1, value);
                return false;
            }
            Err(at) => late.insert(at, (timestamp, value)),
        }
        if late.len() >= LATE_MAX {
            self.merge_late();
        }
        true
    }

    /// If a chunk has the time: settles the conflict there and returns `false`, for it is not new.
    fn change_in_chunk(&mut self, timestamp: i64, value: f64) -> Option<bool> {
        let ends_before = |chunk: &HotRun| chunk.bounds().is_some_and(|(_, last)| last < timestamp);
        let at = self.sealed().partition_point(ends_before);
        let chunk = self.sealed().get(at).unwrap_or(&self.hot);
        if !touches(chunk, timestamp, timestamp) {
            return None;
        }
        let (mut timestamps, mut values) = (Vec::new(), Vec::new());
        chunk.decode_into(&mut timestamps, &mut values);
        let found = timestamps.binary_search(&timestamp).ok()?;
        let resolved = resolve(values[found], value);
        if resolved.to_bits() != values[found].to_bits() {
            values[found] = resolved;
            let mut chunks = self.take_chunks();
            chunks.splice(at..=at, encode(&timestamps, &values));
            self.put_chunks(chunks);
        }
        Some(false)
    }

    /// Makes the late samples part of the chunks: of the one that holds their time, or the next one.
    fn merge_late(&mut self) {
        let late = self.more.as_mut().map(|more| std::mem::take(&mut more.late)).unwrap_or_default();
        let mut late = late.as_slice();
        let mut merged = Vec::new();
        for chunk in self.take_chunks() {
            let last = chunk.bounds().map_or(i64::MIN, |(_, last)| last);
            let (joining, rest) = late.split_at(late.partition_point(|(t, _)| *t <= last));
            late = rest;
            // Old samples in bulk become chunks of their own: what is behind them need not be encoded again.
            let first = chunk.bounds().map_or(i64::MIN, |(first, _)| first);
            let (old, rest) = joining.split_at(joining.partition_point(|(t, _)| *t < first));
            let joining = if old.len() >= LATE_MAX / 2 {
                let old: (Vec<i64>, Vec<f64>) = old.iter().copied().unzip();
                merged.extend(encode(&old.0, &old.1));
                rest
            } else {
                joining
            };
            if joining.is_empty() {
                merged.push(chunk);
                continue;
            }
            let (mut timestamps, mut values) = (Vec::new(), Vec::new());
            chunk.decode_into(&mut timestamps, &mut values);
            let joining: (Vec<i64>, Vec<f64>) = joining.iter().copied().unzip();
            let columns = merge_columns((&timestamps, &values), (&joining.0, &joining.1));
            merged.extend(encode(&columns.0, &columns.1));
        }
        assert!(late.is_empty(), "a late sample is not newer than the growing chunk");
        self.put_chunks(merged);
    }

    fn take_chunks(&mut self) -> Vec<HotRun> {
        let mut chunks = self.more.as_mut().map(|more| std::mem::take(&mut more.sealed)).unwrap_or_default();
        chunks.push(std::mem::take(&mut self.hot));
        chunks
    }

    fn put_chunks(&mut self, mut chunks: Vec<HotRun>) {
        self.hot = chunks.pop().expect("there is always the growing chunk");
        if !chunks.is_empty() || self.more.is_some() {
            self.more.get_or_insert_default().sealed = chunks;
        }
    }
}

fn touches(chunk: &HotRun, start: i64, end: i64) -> bool {
    chunk.bounds().is_some_and(|(first, last)| first <= end && start <= last)
}

/// Ascending samples as chunks.
fn encode(timestamps: &[i64], values: &[f64]) -> Vec<HotRun> {
    let mut chunks = Vec::new();
    let mut chunk = HotRun::default();
    for (timestamp, value) in timestamps.iter().zip(values) {
        if !chunk.append(*timestamp, *value) {
            chunks.push(std::mem::take(&mut chunk));
            assert!(chunk.append(*timestamp, *value), "an empty chunk takes every sample");
        }
    }
    chunks.push(chunk);
    chunks
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use saturn_model::STALE_NAN_BITS;
    use std::collections::BTreeMap;

    fn value() -> impl Strategy<Value = f64> {
        prop_oneof![
            4 => (0_i32..5).prop_map(f64::from),
            1 => any::<u64>().prop_map(f64::from_bits),
            1 => Just(f64::from_bits(STALE_NAN_BITS)),
        ]
    }

    /// Ascending, descending or mixed, near each other or far apart.
    fn batch() -> impl Strategy<Value = Vec<(i64, f64)>> {
        let step = prop_oneof![1_i64..3, 15_000_i64..15_002, Just(1 << 33)];
        let times = (0_i64..900, step, 0_usize..400, 0..4).prop_map(|(from, step, count, order)| {
            let mut times: Vec<i64> = (from..).step_by(1).take(count).map(|i| i * step).collect();
            match order {
                0 => times.reverse(),
                1 => times.sort_by_key(|t| (t * 7919) % 1009),
                _ => {}
            }
            times
        });
        times.prop_flat_map(|times| {
            let count = times.len();
            (Just(times), proptest::collection::vec(value(), count))
                .prop_map(|(times, values)| times.into_iter().zip(values).collect())
        })
    }

    fn bits(samples: impl IntoIterator<Item = (i64, f64)>) -> Vec<(i64, u64)> {
        samples.into_iter().map(|(t, v)| (t, v.to_bits())).collect()
    }

    fn read(run: &Run, start: i64, end: i64) -> Vec<(i64, u64)> {
        let (mut timestamps, mut values) = (vec![7], vec![7.0]);
        run.read(start, end, &mut timestamps, &mut values);
        assert_eq!((timestamps[0], values[0]), (7, 7.0));
        bits(timestamps.into_iter().zip(values).skip(1))
    }

    type Model = BTreeMap<i64, f64>;

    fn put(model: &mut Model, batch: &[(i64, f64)]) {
        for (t, value) in batch {
            model.entry(*t).and_modify(|old| *old = resolve(*old, *value)).or_insert(*value);
        }
    }

    fn columns(batch: &[(i64, f64)]) -> (Vec<i64>, Vec<f64>) {
        batch.iter().copied().unzip()
    }

    proptest! {
        #[test]
        fn a_run_is_a_map(
            batches in proptest::collection::vec(batch(), 0..6),
            ranges in proptest::collection::vec((0_i64..2000, 0_i64..2000), 4),
        ) {
            let mut model = Model::new();
            let mut run = Run::default();
            for batch in batches {
                let known = model.len();
                put(&mut model, &batch);
                let (times, values) = columns(&batch);
                prop_assert_eq!(run.append(&times, &values), model.len() - known);
                prop_assert_eq!(run.append(&times, &values), 0, "a repeated batch changes nothing");
            }
            prop_assert_eq!(read(&run, i64::MIN, i64::MAX), bits(model.clone()));
            let bounds = model.first_key_value().map(|(t, _)| *t).zip(model.last_key_value().map(|(t, _)| *t));
            prop_assert_eq!(run.bounds(), bounds);
            for (start, len) in ranges {
                for scale in [1, 15_000] {
                    let (start, end) = (start * scale, (start + len) * scale);
                    let want = bits(model.range(start..=end).map(|(t, v)| (*t, *v)));
                    prop_assert!(want.is_empty() || run.touches(start, end));
                    prop_assert_eq!(read(&run, start, end), want);
                }
            }
        }
    }

    #[test]
    fn ranges_include_both_ends() {
        let mut run = Run::default();
        run.append(&[10, 20, 30], &[1.0, 2.0, 3.0]);
        let times = |start, end| read(&run, start, end).iter().map(|(t, _)| *t).collect::<Vec<_>>();
        assert_eq!(times(10, 20), [10, 20]);
        assert_eq!(times(11, 19), [0_i64; 0]);
        assert_eq!(times(30, 10), [0_i64; 0]);
        assert!(!run.touches(0, 9) && !run.touches(31, 40) && run.touches(30, 30));
    }

    #[test]
    fn a_series_in_order_costs_its_record_and_few_bytes() {
        let mut run = Run::default();
        for i in 0..120_i32 {
            run.append(&[1_700_000_000_000 + i64::from(i) * 15_000], &[f64::from(i * 10)]);
        }
        assert_eq!(size_of::<Run>(), 72);
        assert!(run.more.is_none() && run.heap_bytes() <= 192, "{} bytes", run.heap_bytes());
    }
}

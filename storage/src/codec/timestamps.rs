//! A vector of ascending timestamps in milliseconds.
//!
//! Scrapes follow a grid of one interval, skip some of its points, and are a little off: timestamp `i` is
//! `first + point[i] * interval + jitter[i]`. `point[i] - point[i-1]` is 1 unless it is in the skips. Jitter
//! against a grid costs about 1.5 bits less than differences of differences, which contain it three times.
//! All arithmetic wraps at 2^64, so every ascending vector works.
//!
//! | field | bytes | content |
//! |---|---|---|
//! | kind | 1 | bit 0: skips follow; bit 1: jitter follows; bits 2-5: 0; bits 6-7: version 1 |
//! | count | varint | number of timestamps, 1 to 65,536 |
//! | first | zigzag varint | the first timestamp less the origin, which the caller knows (the window's start, or 0) |
//! | interval | varint | in milliseconds |
//! | last | zigzag varint | only with skips or jitter: the last timestamp less `first + (count - 1) * interval` |
//! | skip bytes | varint | only with skips: length of the next field |
//! | skips | column of `ints.rs` | only with skips: `point[i] - point[i-1] - 1`, for `i` from 1 |
//! | jitter | column of `ints.rs` | only with jitter: `jitter[i]` for all `i` |
//!
//! Irregular vectors have interval 0 and the distance from the first in the jitter.

use super::ints::{self, LastNumber, Numbers};
use super::plan::{Plan, choose_plan};
use super::{CHUNK_SAMPLES_MAX, Effort, FORMAT_VERSION, Scratch, VERSION_SHIFT};
use crate::wire::{Reader, put_varint, put_zigzag};

const SKIPS: u8 = 0x01;
const JITTER: u8 = 0x02;
/// The interval is the median of at most so many differences.
const SAMPLE: usize = 31;

/// Up to so many timestamps that are off by something else than the others are put in by themselves.
const EXCEPTIONS_MAX: usize = 32;

/// What stands in front of a vector.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct TimestampSummary {
    /// Number of timestamps.
    pub(crate) count: usize,
    /// The first timestamp in milliseconds.
    pub(crate) first: i64,
    /// The last timestamp in milliseconds.
    pub(crate) last: i64,
}

/// Appends the vector to `out`. `origin` must be given to the decoder again; any number is right, one near
/// the first timestamp saves bytes.
///
/// # Panics
/// If there are no timestamps, more than [`CHUNK_SAMPLES_MAX`], or they are not strictly ascending.
pub(crate) fn encode_timestamps(
    timestamps: &[i64],
    origin: i64,
    effort: Effort,
    scratch: &mut Scratch,
    out: &mut Vec<u8>,
) {
    let count = timestamps.len();
    assert!((1..=CHUNK_SAMPLES_MAX).contains(&count), "{count} timestamps in a vector");
    assert!(timestamps.windows(2).all(|pair| pair[0] < pair[1]), "timestamps ascend");
    let Scratch { buffers, numbers: skips, residuals: jitter, .. } = scratch;
    let mut interval = sampled_interval(timestamps);
    fill_grid(timestamps, interval, skips, jitter);
    let mut skip_plan = some_set(skips).then(|| choose_plan(skips, effort, buffers));
    let mut jitter_plan = some_set(jitter).then(|| choose_plan(jitter, effort, buffers));
    if let Some(plan) = &skip_plan {
        let cost = |plan: &Option<Plan>| plan.as_ref().map_or(0, |plan| plan.cost);
        let grid_cost = plan.cost + cost(&jitter_plan);
        fill_grid(timestamps, 0, skips, jitter);
        let irregular = some_set(jitter).then(|| choose_plan(jitter, effort, buffers));
        if cost(&irregular) < grid_cost {
            (interval, skip_plan, jitter_plan) = (0, None, irregular);
        } else {
            fill_grid(timestamps, interval, skips, jitter);
        }
    }
    let skip_flag = if skip_plan.is_some() { SKIPS } else { 0 };
    let jitter_flag = if jitter_plan.is_some() { JITTER } else { 0 };
    out.push(FORMAT_VERSION << VERSION_SHIFT | skip_flag | jitter_flag);
    put_varint(out, count as u64);
    put_zigzag(out, timestamps[0].wrapping_sub(origin));
    put_varint(out, interval.cast_unsigned());
    if skip_flag | jitter_flag > 0 {
        put_zigzag(out, timestamps[count - 1].wrapping_sub(on_grid(timestamps[0], interval, count - 1)));
    }
    if let Some(plan) = skip_plan {
        let mut column = Vec::new();
        ints::encode(skips, &plan, LastNumber::Omitted, buffers, &mut column);
        put_varint(out, column.len() as u64);
        out.extend_from_slice(&column);
    }
    if let Some(plan) = jitter_plan {
        ints::encode(jitter, &plan, LastNumber::Omitted, buffers, out);
    }
}

/// Every `interval` after `before`. Four at a time, so that none waits for the one before it.
fn fill_points(before: i64, interval: i64, points: &mut [i64]) {
    let mut next: [i64; 4] =
        std::array::from_fn(|lane| before.wrapping_add(interval.wrapping_mul(LANES[lane])));
    let mut groups = points.chunks_exact_mut(4);
    for group in &mut groups {
        group.copy_from_slice(&next);
        next = next.map(|point| point.wrapping_add(interval.wrapping_mul(4)));
    }
    for (point, next) in groups.into_remainder().iter_mut().zip(next) {
        *point = next;
    }
}

/// Intervals from the point before a group of four.
const LANES: [i64; 4] = [1, 2, 3, 4];

fn some_set(numbers: &[i64]) -> bool {
    numbers.iter().any(|number| *number != 0)
}

/// The grid point `index` after `first`, if none is skipped.
fn on_grid(first: i64, interval: i64, index: usize) -> i64 {
    let steps = i64::try_from(index).expect("counts are limited");
    first.wrapping_add(interval.wrapping_mul(steps))
}

/// The median of evenly spaced differences; 0 if there is none or it is not an interval.
fn sampled_interval(timestamps: &[i64]) -> i64 {
    let count = timestamps.len() - 1;
    let take = count.min(SAMPLE);
    if take == 0 {
        return 0;
    }
    let mut sample = [0; SAMPLE];
    for (index, slot) in sample[..take].iter_mut().enumerate() {
        let at = index * count / take;
        *slot = timestamps[at + 1].wrapping_sub(timestamps[at]);
    }
    (*sample[..take].select_nth_unstable(take / 2).1).max(0)
}

/// Fills both columns. Each step is rounded by itself, so that slow drift ends in the jitter, not in skips.
fn fill_grid(timestamps: &[i64], interval: i64, skips: &mut Vec<i64>, jitter: &mut Vec<i64>) {
    skips.clear();
    jitter.clear();
    let mut expected = timestamps[0];
    jitter.push(0);
    for pair in timestamps.windows(2) {
        let delta = pair[1].wrapping_sub(pair[0]);
        let near = delta.wrapping_sub(interval).unsigned_abs() <= interval.unsigned_abs() / 2;
        let steps = if interval == 0 {
            0
        } else if near {
            1
        } else {
            delta.wrapping_add(interval / 2).max(0) / interval
        };
        expected = expected.wrapping_add(steps.wrapping_mul(interval));
        skips.push(if interval == 0 { 0 } else { steps - 1 });
        jitter.push(pair[1].wrapping_sub(expected));
    }
}

fn read_front(reader: &mut Reader<'_>, origin: i64) -> Option<(u8, i64, TimestampSummary)> {
    let kind = reader.u8()?;
    let count = usize::try_from(reader.varint()?).ok()?;
    let flags = kind & !(u8::MAX << VERSION_SHIFT);
    let known = kind >> VERSION_SHIFT == FORMAT_VERSION && flags & !(SKIPS | JITTER) == 0;
    if !known || !(1..=CHUNK_SAMPLES_MAX).contains(&count) {
        return None;
    }
    let first = origin.wrapping_add(reader.zigzag()?);
    let interval = reader.varint()?.cast_signed();
    let off = if flags > 0 { reader.zigzag()? } else { 0 };
    let last = on_grid(first, interval, count - 1).wrapping_add(off);
    Some((flags, interval, TimestampSummary { count, first, last }))
}

/// Count, first and last timestamp, without decoding the others. `None` if the front is damaged.
pub(crate) fn summarize_timestamps(vector: &[u8], origin: i64) -> Option<TimestampSummary> {
    let (_, _, summary) = read_front(&mut Reader::new(vector), origin)?;
    Some(summary)
}

/// Appends all timestamps of a vector, strictly ascending. `None` if it is damaged.
pub(crate) fn decode_timestamps(
    vector: &[u8],
    origin: i64,
    scratch: &mut Scratch,
    timestamps: &mut Vec<i64>,
) -> Option<()> {
    let mut reader = Reader::new(vector);
    let (flags, interval, summary) = read_front(&mut reader, origin)?;
    let TimestampSummary { count, first, last } = summary;
    let Scratch { numbers: skips, residuals: jitter, .. } = scratch;
    if flags & SKIPS > 0 {
        let bytes = usize::try_from(reader.varint()?).ok()?;
        let mut column = Reader::new(reader.take(bytes)?);
        // Skips are between timestamps.
        let between = count.checked_sub(1).filter(|between| *between > 0)?;
        skips.clear();
        ints::decode(&mut column, between, 0..between, LastNumber::Omitted, Numbers, skips)?;
        if !column.is_empty() {
            return None;
        }
    }
    let mut off = 0;
    let mut exceptions = [(0, 0); EXCEPTIONS_MAX];
    let mut exception_count = 0;
    if flags & JITTER > 0 {
        // Most scrapes are as late as the others.
        let column = reader.clone();
        let usual = ints::decode_exceptions(&mut reader, count, |at, jitter| {
            if let Some(exception) = exceptions.get_mut(exception_count) {
                *exception = (at, jitter);
            }
            exception_count += 1;
        });
        jitter.clear();
        match usual {
            Some(usual) if exception_count <= EXCEPTIONS_MAX => off = usual?,
            _ => {
                (reader, exception_count) = (column, 0);
                ints::decode(&mut reader, count, 0..count, LastNumber::Omitted, Numbers, jitter)?;
            }
        }
    }
    if !reader.is_empty() {
        return None;
    }
    let start = timestamps.len();
    timestamps.resize(start + count, first);
    let decoded = &mut timestamps[start..];
    if flags & SKIPS > 0 {
        let mut point = first.wrapping_add(off);
        for (timestamp, skip) in decoded[1..].iter_mut().zip(&*skips) {
            point = point.wrapping_add(interval.wrapping_mul(skip.wrapping_add(1)));
            *timestamp = point;
        }
    } else {
        fill_points(first.wrapping_add(off), interval, &mut decoded[1..]);
    }
    for (at, jitter) in &exceptions[..exception_count] {
        decoded[*at] = decoded[*at].wrapping_sub(off).wrapping_add(*jitter);
    }
    if let Some((_, jitter)) = jitter.split_first().filter(|_| flags & JITTER > 0) {
        for (timestamp, jitter) in decoded[1..].iter_mut().zip(jitter) {
            *timestamp = timestamp.wrapping_add(*jitter);
        }
    }
    // All pairs are looked at, because that takes less time than to stop at one.
    let ascending = decoded.windows(2).fold(true, |ascending, pair| ascending & (pair[0] < pair[1]));
    (ascending && decoded.last() == Some(&last)).then_some(())
}

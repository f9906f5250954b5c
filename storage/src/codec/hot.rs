//! The growing run of one series in the head: appended to sample by sample, compressed at once.
//!
//! Two streams of byte operations share one slot: values grow up from its start, timestamps grow down from its
//! end. A repetition counts up the last byte in place. This lives in memory only: the format may change with any
//! version, and nothing reads it from a disk.
//!
//! The value before the first has all bits zero, `m` 0 and exponent 0.
//!
//! | value operation | bytes | meaning |
//! |---|---|---|
//! | `0ddddddd` | 1 | `m` changes by the slope and `d` (zigzag); value = `m / 10^e` |
//! | `10cccccc` | 1 | the same bits `c + 1` times more |
//! | `110ddddd`, `1110dddd` | 2, 3 | the same with 13, 20 bits; the operation has the highest |
//! | `f5`, `f0`, `f6`, `f1` | 4, 5, 6, 9 | the same with 24, 32, 40, 64 bits, little-endian |
//! | `f2` | 1 | a stale marker |
//! | `f3` + `e` | 2 | a new exponent, for `m` and slope too; no sample |
//! | `f4` | 1 | from now on a byte follows each change of `m`: what to add in units in the last place; no sample |
//! | `f8` to `ff` | 2 to 9 | the low 1 to 8 bytes, little-endian, that differ from the bits of the value before |
//!
//! After each change of `m`, the slope grows by a quarter of `d` (by all of it at the second sample, not at the
//! first): near the rate of a counter, near zero for a gauge.
//!
//! | timestamp operation | bytes | meaning |
//! |---|---|---|
//! | (first) | 8 | the first timestamp, little-endian |
//! | `0jjjjjjj` | 1 | one interval further on the grid, and off it by `j` (zigzag) |
//! | `10cccccc` | 1 | `c + 1` intervals further, with a sample on each |
//! | `110jjjjj`, `1110jjjj` | 2, 3 | as the first, with 13, 20 bits |
//! | `f0` + varint | 2 to 6 | the milliseconds to the last timestamp, which are the interval from now on |
//! | `f1` + count | 2 | so many grid points are skipped; no sample |

use super::bitio::{bit_length, unzigzag, zigzag};
use super::decimal::{self, Scale, place, value_at};
use saturn_model::{STALE_NAN_BITS, is_stale_nan};

/// Most samples of a run.
pub(crate) const HOT_SAMPLES_MAX: u16 = 240;
/// Most bytes of a run's slot. Only noise in all bits needs so many.
pub(crate) const HOT_BYTES_MAX: usize = 1024;

/// The first size of a slot.
const SLOT_MIN: usize = 32;

const RUN: u8 = 0x80;
const RUN_END: u8 = 0xbf;
const TWO_BYTES: u8 = 0xc0;
const THREE_BYTES: u8 = 0xe0;
const FIVE_BYTES: u8 = 0xf0;
const NINE_BYTES: u8 = 0xf1;
const STALE: u8 = 0xf2;
const EXPONENT: u8 = 0xf3;
const RESIDUALS: u8 = 0xf4;
const FOUR_BYTES: u8 = 0xf5;
const SIX_BYTES: u8 = 0xf6;
const CHANGED_BYTES: u8 = 0xf7;
const INTERVAL: u8 = 0xf0;
const SKIP: u8 = 0xf1;

/// The last value operation is a repetition.
const VALUE_RUN: u8 = 0x01;
/// The last timestamp operation is a repetition.
const TIME_RUN: u8 = 0x02;
/// Residuals follow each change of `m`.
const WITH_RESIDUALS: u8 = 0x04;
/// One more sample that no exponent fitted, in the high half.
const MISS: u8 = 0x10;
const MISSES_MAX: u8 = 0x40;
/// After that many misses, only one of so many samples is tried.
const RETRY: u16 = 16;
/// The largest exponent tried.
const EXPONENT_MAX: u8 = 12;

/// A run of ascending timestamps with values. 64 bytes and its slot.
#[derive(Clone, Debug, Default)]
pub(crate) struct HotRun {
    slot: Box<[u8]>,
    /// The grid point of the last timestamp.
    grid: i64,
    /// The last value.
    bits: u64,
    /// The last `m`.
    number: i64,
    slope: i64,
    interval: u32,
    /// The last timestamp less its grid point.
    jitter: i32,
    value_bytes: u16,
    time_bytes: u16,
    count: u16,
    exponent: u8,
    flags: u8,
}

/// A few bytes to be appended.
#[derive(Debug, Default)]
struct Operation {
    bytes: [u8; 16],
    len: usize,
}

impl Operation {
    fn put(&mut self, bytes: &[u8]) {
        // One byte is the usual case, and not worth a call to copy it.
        if let [byte] = bytes {
            self.bytes[self.len] = *byte;
            self.len += 1;
            return;
        }
        let end = self.len + bytes.len();
        self.bytes[self.len..end].copy_from_slice(bytes);
        self.len = end;
    }

    /// A zigzagged number, with the prefixes both streams share.
    fn put_number(&mut self, number: u64) {
        let [a, b, c, ..] = number.to_le_bytes();
        match bit_length(number) {
            0..=7 => self.put(&[a]),
            8..=13 => self.put(&[TWO_BYTES | b, a]),
            14..=20 => self.put(&[THREE_BYTES | c, b, a]),
            21..=24 => self.put(&[FOUR_BYTES, a, b, c]),
            25..=32 => {
                self.put(&[FIVE_BYTES]);
                self.put(&number.to_le_bytes()[..4]);
            }
            33..=40 => {
                self.put(&[SIX_BYTES]);
                self.put(&number.to_le_bytes()[..5]);
            }
            _ => {
                self.put(&[NINE_BYTES]);
                self.put(&number.to_le_bytes());
            }
        }
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// What a value would change, before there is room for it.
#[derive(Clone, Copy, Debug)]
struct NextNumber {
    number: i64,
    slope: i64,
    exponent: u8,
    flags: u8,
}

impl HotRun {
    /// Number of samples.
    pub(crate) fn len(&self) -> usize {
        usize::from(self.count)
    }

    /// Bytes of the slot, used or not, in memory.
    pub(crate) fn bytes(&self) -> usize {
        self.slot.len()
    }

    /// Bytes of the slot that are used.
    pub(crate) fn bytes_used(&self) -> usize {
        usize::from(self.value_bytes) + usize::from(self.time_bytes)
    }

    /// The last sample.
    pub(crate) fn last(&self) -> Option<(i64, f64)> {
        (self.count > 0).then(|| (self.last_timestamp(), f64::from_bits(self.bits)))
    }

    /// Times of the first and the last sample.
    pub(crate) fn bounds(&self) -> Option<(i64, i64)> {
        if self.count == 0 {
            return None;
        }
        let mut first = self.slot.last_chunk().copied().unwrap_or_default();
        first.reverse();
        Some((i64::from_le_bytes(first), self.last_timestamp()))
    }

    fn last_timestamp(&self) -> i64 {
        self.grid.wrapping_add(i64::from(self.jitter))
    }

    /// Appends a sample. `false`, and nothing happens, if it is not newer than the last, or the run is full.
    pub(crate) fn append(&mut self, timestamp: i64, value: f64) -> bool {
        if self.count >= HOT_SAMPLES_MAX {
            return false;
        }
        if self.repeats(timestamp, value) {
            return true;
        }
        let mut time = Operation::default();
        let Some(next_time) = self.plan_time(timestamp, &mut time) else {
            return false;
        };
        let mut number = Operation::default();
        let next_number = self.plan_value(value, &mut number);
        if !self.make_room(time.len + number.len) {
            return false;
        }
        self.push_value(number.bytes());
        self.push_time(time.bytes());
        (self.grid, self.interval, self.jitter) = next_time;
        self.bits = value.to_bits();
        NextNumber { number: self.number, slope: self.slope, exponent: self.exponent, .. } = next_number;
        self.flags = next_number.flags & !(VALUE_RUN | TIME_RUN);
        self.flags |= if number.len == 0 || number.bytes() == [RUN] { VALUE_RUN } else { 0 };
        self.flags |= if time.len == 0 || time.bytes() == [RUN] { TIME_RUN } else { 0 };
        self.count += 1;
        true
    }

    /// Counts up both last operations, if that is all a sample needs.
    #[inline]
    fn repeats(&mut self, timestamp: i64, value: f64) -> bool {
        let interval = i64::from(self.interval);
        let both = VALUE_RUN | TIME_RUN;
        if self.flags & both != both
            || value.to_bits() != self.bits
            || self.grid.checked_add(interval) != Some(timestamp)
        {
            return false;
        }
        let values = usize::from(self.value_bytes) - 1;
        let times = self.slot.len() - usize::from(self.time_bytes);
        if self.slot[values] == RUN_END || self.slot[times] == RUN_END {
            return false;
        }
        self.slot[values] += 1;
        self.slot[times] += 1;
        self.grid = timestamp;
        self.count += 1;
        true
    }

    /// The operation for `timestamp`, empty if the last one counts up; and the next grid point, interval and
    /// jitter. `None` if it is not newer, or the distance needs a new run.
    fn plan_time(&self, timestamp: i64, operation: &mut Operation) -> Option<(i64, u32, i32)> {
        if self.count == 0 {
            operation.put(&timestamp.to_le_bytes());
            return Some((timestamp, 0, 0));
        }
        let delta = u32::try_from(timestamp.checked_sub(self.last_timestamp())?).ok().filter(|d| *d > 0)?;
        let interval = i64::from(self.interval);
        let from_grid = i64::from(delta) + i64::from(self.jitter);
        let jitter = from_grid - interval;
        if jitter == 0 {
            let last = self.slot[self.slot.len() - usize::from(self.time_bytes)];
            if self.flags & TIME_RUN == 0 || last == RUN_END {
                operation.put(&[RUN]);
            }
            return Some((timestamp, self.interval, 0));
        }
        let fits = |jitter: i64| jitter.abs() <= interval / 2 && bit_length(zigzag(jitter)) <= 20;
        if fits(jitter) {
            operation.put_number(zigzag(jitter));
            return Some((timestamp - jitter, self.interval, i32::try_from(jitter).ok()?));
        }
        if interval > 0 {
            let steps = (from_grid + interval / 2) / interval;
            let jitter = from_grid - steps * interval;
            if let Ok(skipped) = u8::try_from(steps - 1)
                && skipped > 0
                && fits(jitter)
            {
                operation.put(&[SKIP, skipped]);
                operation.put_number(zigzag(jitter));
                return Some((timestamp - jitter, self.interval, i32::try_from(jitter).ok()?));
            }
        }
        operation.put(&[INTERVAL]);
        let mut rest = delta;
        while rest >= 0x80 {
            operation.put(&[rest.to_le_bytes()[0] | 0x80]);
            rest >>= 7;
        }
        operation.put(&[rest.to_le_bytes()[0]]);
        Some((timestamp, delta, 0))
    }

    /// The operation for `value`, empty if the last one counts up, and what changes.
    fn plan_value(&self, value: f64, operation: &mut Operation) -> NextNumber {
        let Self { number, slope, exponent, flags, .. } = *self;
        let mut next = NextNumber { number, slope, exponent, flags };
        if value.to_bits() == self.bits {
            let last = usize::from(self.value_bytes).checked_sub(1).map_or(RUN_END, |at| self.slot[at]);
            if flags & VALUE_RUN == 0 || last == RUN_END {
                operation.put(&[RUN]);
            }
            return next;
        }
        if is_stale_nan(value) {
            operation.put(&[STALE]);
            return next;
        }
        let tired = flags >= MISSES_MAX && !self.count.is_multiple_of(RETRY);
        let found = if tired { None } else { self.find_number(value) };
        let Some((number, residual, exponent)) = found else {
            let xor = value.to_bits() ^ self.bits;
            let bytes = bit_length(xor).div_ceil(8) as usize;
            operation.put(&[CHANGED_BYTES + u8::try_from(bytes).expect("at most 8")]);
            operation.put(&xor.to_le_bytes()[..bytes]);
            next.flags = if flags < MISSES_MAX { flags + MISS } else { flags };
            return next;
        };
        if exponent != next.exponent {
            operation.put(&[EXPONENT, exponent]);
            next.rescale(exponent);
        }
        if residual != 0 && flags & WITH_RESIDUALS == 0 {
            operation.put(&[RESIDUALS]);
            next.flags |= WITH_RESIDUALS;
        }
        let change = number.wrapping_sub(next.number).wrapping_sub(next.slope);
        operation.put_number(zigzag(change));
        if next.flags & WITH_RESIDUALS > 0 {
            operation.put(&residual.to_le_bytes());
        }
        next.step(change, self.count);
        next.flags &= MISS - 1;
        next
    }

    /// The `m`, the residual and the exponent for a value that is decimal or nearly so, if that is short.
    fn find_number(&self, value: f64) -> Option<(i64, i8, u8)> {
        if let Some(number) = decimal::decimal(value, self.exponent) {
            return Some((number, 0, self.exponent));
        }
        let with_residuals = self.flags & WITH_RESIDUALS > 0;
        for exponent in self.exponent..=EXPONENT_MAX {
            let rescaled = self.number.wrapping_mul(power(exponent - self.exponent));
            let near = |number: &i64| bit_length(zigzag(number.wrapping_sub(rescaled))) <= 32;
            if let Some(number) = decimal::decimal(value, exponent).filter(near) {
                return Some((number, 0, exponent));
            }
            if with_residuals && let Some((number, residual)) = residual_of(value, exponent, near) {
                return Some((number, residual, exponent));
            }
        }
        (self.exponent..=EXPONENT_MAX).find_map(|exponent| {
            let rescaled = self.number.wrapping_mul(power(exponent - self.exponent));
            let near = |number: &i64| bit_length(zigzag(number.wrapping_sub(rescaled))) <= 32;
            residual_of(value, exponent, near).map(|(number, residual)| (number, residual, exponent))
        })
    }

    /// Makes the slot so large that `more` bytes fit. `false` if it would be too large.
    fn make_room(&mut self, more: usize) -> bool {
        let needed = self.bytes_used() + more;
        let len = self.slot.len();
        if needed <= len {
            return true;
        }
        if needed > HOT_BYTES_MAX {
            return false;
        }
        let grown = (len + (len / 2).max(SLOT_MIN)).next_multiple_of(16);
        let mut slot = vec![0; grown.max(needed).min(HOT_BYTES_MAX)].into_boxed_slice();
        let (values, times) = (usize::from(self.value_bytes), usize::from(self.time_bytes));
        slot[..values].copy_from_slice(&self.slot[..values]);
        let at = slot.len() - times;
        slot[at..].copy_from_slice(&self.slot[len - times..]);
        self.slot = slot;
        true
    }

    /// Appends a value operation, or counts up the last one.
    fn push_value(&mut self, operation: &[u8]) {
        let at = usize::from(self.value_bytes);
        if operation.is_empty() {
            self.slot[at - 1] += 1;
        }
        if let [byte] = operation {
            self.slot[at] = *byte;
        } else {
            self.slot[at..at + operation.len()].copy_from_slice(operation);
        }
        self.value_bytes += u16::try_from(operation.len()).expect("an operation has at most 16 bytes");
    }

    /// Appends a timestamp operation, or counts up the last one.
    fn push_time(&mut self, operation: &[u8]) {
        let end = self.slot.len() - usize::from(self.time_bytes);
        if operation.is_empty() {
            self.slot[end] += 1;
        }
        for (index, byte) in operation.iter().enumerate() {
            self.slot[end - 1 - index] = *byte;
        }
        self.time_bytes += u16::try_from(operation.len()).expect("an operation has at most 16 bytes");
    }

    /// Appends all samples to the columns.
    pub(crate) fn decode_into(&self, timestamps: &mut Vec<i64>, values: &mut Vec<f64>) {
        timestamps.reserve(self.len());
        values.reserve(self.len());
        self.decode_times(timestamps);
        self.decode_values(values);
    }

    fn decode_times(&self, timestamps: &mut Vec<i64>) {
        let mut bytes = self.slot.iter().rev().copied();
        let mut next = || bytes.next().unwrap_or(0);
        let end = timestamps.len() + self.len();
        if self.count == 0 {
            return;
        }
        let mut grid = i64::from_le_bytes(std::array::from_fn(|_| next()));
        let (mut interval, mut jitter) = (0_i64, 0_i64);
        timestamps.push(grid);
        while timestamps.len() < end {
            let operation = next();
            match operation {
                RUN..=RUN_END => {
                    for _ in RUN..=operation {
                        grid = grid.wrapping_add(interval);
                        timestamps.push(grid);
                    }
                    jitter = 0;
                    continue;
                }
                INTERVAL => {
                    let mut delta = 0_i64;
                    for shift in (0..35).step_by(7) {
                        let byte = next();
                        delta |= i64::from(byte & 0x7f) << shift;
                        if byte < 0x80 {
                            break;
                        }
                    }
                    grid = grid.wrapping_add(jitter).wrapping_add(delta);
                    (interval, jitter) = (delta, 0);
                }
                SKIP => {
                    grid = grid.wrapping_add(interval.wrapping_mul(i64::from(next())));
                    continue;
                }
                _ => {
                    jitter = unzigzag(number_after(operation, &mut next));
                    grid = grid.wrapping_add(interval);
                }
            }
            timestamps.push(grid.wrapping_add(jitter));
        }
    }

    fn decode_values(&self, values: &mut Vec<f64>) {
        let mut bytes = self.slot.iter().copied();
        let mut next = || bytes.next().unwrap_or(0);
        let start = values.len();
        let mut state = NextNumber { number: 0, slope: 0, exponent: 0, flags: 0 };
        let mut last = 0.0_f64;
        while values.len() - start < self.len() {
            let operation = next();
            match operation {
                RUN..=RUN_END => {
                    let repeats = usize::from(operation - RUN) + 1;
                    values.resize(values.len() + repeats, last);
                    continue;
                }
                STALE => last = f64::from_bits(STALE_NAN_BITS),
                EXPONENT => {
                    state.rescale(next());
                    continue;
                }
                RESIDUALS => {
                    state.flags |= WITH_RESIDUALS;
                    continue;
                }
                CHANGED_BYTES.. => {
                    let changed = usize::from(operation - CHANGED_BYTES);
                    let xor = std::array::from_fn(|index| if index < changed { next() } else { 0 });
                    last = f64::from_bits(last.to_bits() ^ u64::from_le_bytes(xor));
                }
                _ => {
                    let change = unzigzag(number_after(operation, &mut next));
                    // Only the first two samples are told apart; saturating is as good.
                    state.step(change, u16::try_from(values.len() - start).unwrap_or(u16::MAX));
                    last = Scale::Divide(state.exponent).value(state.number);
                    if state.flags & WITH_RESIDUALS > 0 {
                        let residual = i64::from(i8::from_le_bytes([next()]));
                        last = value_at(place(last).wrapping_add(residual));
                    }
                }
            }
            values.push(last);
        }
    }
}

impl NextNumber {
    /// Moves to another exponent.
    fn rescale(&mut self, exponent: u8) {
        let factor = power(exponent.saturating_sub(self.exponent));
        self.number = self.number.wrapping_mul(factor);
        self.slope = self.slope.wrapping_mul(factor);
        self.exponent = exponent;
    }

    /// Changes `m` at sample `index`.
    fn step(&mut self, change: i64, index: u16) {
        self.number = self.number.wrapping_add(self.slope).wrapping_add(change);
        let more = match index {
            0 => 0,
            1 => change,
            _ => change >> 2,
        };
        self.slope = self.slope.wrapping_add(more);
    }
}

/// 10 to the `exponent`.
fn power(exponent: u8) -> i64 {
    10_i64.wrapping_pow(u32::from(exponent))
}

/// `m` and the residual in one byte, if the value is so near.
fn residual_of(value: f64, exponent: u8, near: impl Fn(&i64) -> bool) -> Option<(i64, i8)> {
    let scale = Scale::Divide(exponent);
    let number = scale.near(value).filter(near)?;
    let residual = place(value).wrapping_sub(place(scale.value(number)));
    Some((number, i8::try_from(residual).ok()?))
}

/// The number whose operation begins with `operation`.
fn number_after(operation: u8, next: &mut impl FnMut() -> u8) -> u64 {
    let mut wide =
        |count: usize| u64::from_le_bytes(std::array::from_fn(|i| if i < count { next() } else { 0 }));
    match operation {
        0..RUN => u64::from(operation),
        TWO_BYTES..THREE_BYTES => u64::from(operation & 0x1f) << 8 | wide(1),
        THREE_BYTES..FIVE_BYTES => {
            let middle = wide(1);
            u64::from(operation & 0x0f) << 16 | middle << 8 | wide(1)
        }
        FOUR_BYTES => wide(3),
        FIVE_BYTES => wide(4),
        SIX_BYTES => wide(5),
        _ => wide(8),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{ascending, column};
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_bit_comes_back((timestamps, values) in ascending(300).prop_flat_map(|t| (Just(t.clone()), column(t.len())))) {
            let mut runs = vec![HotRun::default()];
            for (timestamp, value) in timestamps.iter().zip(&values) {
                let run = runs.last_mut().unwrap();
                if let Some((last, _)) = run.last() {
                    prop_assert!(!run.append(last, *value));
                    prop_assert!(!run.append(last.saturating_sub(1), *value));
                }
                if !run.append(*timestamp, *value) {
                    let mut run = HotRun::default();
                    prop_assert!(run.append(*timestamp, *value));
                    runs.push(run);
                }
                let run = runs.last().unwrap();
                prop_assert_eq!(run.last().map(|(t, v)| (t, v.to_bits())), Some((*timestamp, value.to_bits())));
                prop_assert!(run.bytes_used() <= run.bytes() && run.bytes() <= HOT_BYTES_MAX);
            }
            prop_assert_eq!(HotRun::default().bounds(), None);
            let (mut t, mut v) = (Vec::new(), Vec::new());
            for run in &runs {
                let from = t.len();
                run.decode_into(&mut t, &mut v);
                prop_assert_eq!(t.len(), v.len());
                prop_assert_eq!(run.bounds(), t.get(from).copied().zip(t.last().copied()));
            }
            prop_assert_eq!(t, timestamps);
            let bits = |values: &[f64]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            prop_assert_eq!(bits(&v), bits(&values));
        }
    }

    #[test]
    fn a_run_is_a_cache_line_and_its_slot() {
        assert_eq!(std::mem::size_of::<HotRun>(), 64);
        let mut run = HotRun::default();
        for i in 0..240 {
            assert!(run.append(1_700_000_000_000 + i * 15_000, 42.0));
        }
        assert!(!run.append(i64::MAX, 42.0), "full");
        assert!(run.bytes() <= 32, "{} bytes", run.bytes());
    }
}

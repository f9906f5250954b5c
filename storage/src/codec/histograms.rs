//! A chunk of native histograms.
//!
//! | field | bytes | content |
//! |---|---|---|
//! | kind | 1 | bits 0-2: class 6, which no chunk of values has; bit 3: the counts are left out; bit 4: has stale markers; bit 5: 0; bits 6-7: version 1 |
//! | count | varint | number of histograms, 1 to 1,024 |
//! | layouts | varint | how many, 1 or more |
//! | per layout | see below | in order of first use |
//! | columns | rest | per column the length in bytes (varint), and a chunk of values (`values.rs`) |
//!
//! A layout is all of a histogram that is no count:
//!
//! | field | bytes | content |
//! |---|---|---|
//! | flags | 1 | bits 0-1: reset hint (0 unknown, 1 reset, 2 not reset, 3 gauge); other bits: 0 |
//! | schema | zigzag varint | |
//! | zero threshold | 8 | bits |
//! | positive, negative side | varint; zigzag varint, varint each | number of spans; offset and length of each |
//! | bounds | varint, 8 each | number of custom bounds, and their bits |
//!
//! Columns, in this order: with more than one layout, the number of each histogram's layout, from 0; the
//! counts, unless they are left out; the zero counts; the sums; then one column for each bucket that any layout
//! has, positive side first, ascending by index, with the counts of those histograms whose layout has it.
//!
//! Counts are left out if each is no NaN and, bit for bit, the zero count plus the buckets, added up from the left,
//! positive side first: of counters of whole numbers that is so.
//!
//! Bucket counts are cumulative in time only, so a column is much like a counter's. The same values in the
//! order of buckets within each histogram, as Prometheus has them, would need each bucket's rate again in
//! every sample.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use saturn_model::{BUCKETS_MAX, Buckets, CounterResetHint, Histogram, Span};

use super::values::{decode_values, encode_values};
use super::{Effort, FORMAT_VERSION, Scratch, VERSION_SHIFT};
use crate::wire::{Reader, put_varint, put_zigzag};

/// Most histograms of one chunk.
pub(crate) const HISTOGRAMS_MAX: usize = 1024;
/// A chunk with this many numbers takes no more histograms. With [`BUCKETS_MAX`] buckets it has 128 then, so
/// that a 2 h window in milliseconds has fewer chunks than the 16-bit part number of a page can count.
const NUMBERS_MAX: usize = 1 << 20;

const CLASS: u8 = 6;
const CLASS_MASK: u8 = 7;
const COUNTS_LEFT_OUT: u8 = 0x08;
const STALE: u8 = 0x10;

/// What is no count of a histogram.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Layout {
    hint: CounterResetHint,
    schema: i32,
    zero_threshold: u64,
    positive: Vec<Span>,
    negative: Vec<Span>,
    /// Bits of the custom bounds.
    bounds: Vec<u64>,
}

/// A bucket among all of a chunk: negative side or not, index.
type Bucket = (bool, i32);

impl Layout {
    fn of(histogram: &Histogram) -> Self {
        Self {
            hint: histogram.hint,
            schema: histogram.schema,
            zero_threshold: histogram.zero_threshold.to_bits(),
            positive: histogram.positive.spans().to_vec(),
            negative: histogram.negative.spans().to_vec(),
            bounds: histogram.custom_values.iter().map(|bound| bound.to_bits()).collect(),
        }
    }

    fn put(&self, out: &mut Vec<u8>) {
        out.push(match self.hint {
            CounterResetHint::Unknown => 0,
            CounterResetHint::Reset => 1,
            CounterResetHint::NotReset => 2,
            CounterResetHint::Gauge => 3,
        });
        put_zigzag(out, i64::from(self.schema));
        out.extend_from_slice(&self.zero_threshold.to_le_bytes());
        for side in [&self.positive, &self.negative] {
            put_varint(out, side.len() as u64);
            for span in side {
                put_zigzag(out, i64::from(span.offset));
                put_varint(out, u64::from(span.length));
            }
        }
        put_varint(out, self.bounds.len() as u64);
        for bound in &self.bounds {
            out.extend_from_slice(&bound.to_le_bytes());
        }
    }

    fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let hint = match reader.u8()? {
            0 => CounterResetHint::Unknown,
            1 => CounterResetHint::Reset,
            2 => CounterResetHint::NotReset,
            3 => CounterResetHint::Gauge,
            _ => return None,
        };
        let schema = i32::try_from(reader.zigzag()?).ok()?;
        let zero_threshold = reader.u64()?;
        let positive = read_spans(reader)?;
        let negative = read_spans(reader)?;
        let bounds = reader.count().filter(|count| *count <= BUCKETS_MAX)?;
        let bounds = (0..bounds).map(|_| reader.u64()).collect::<Option<_>>()?;
        Some(Self { hint, schema, zero_threshold, positive, negative, bounds })
    }

    fn len(&self) -> usize {
        self.positive.iter().chain(&self.negative).map(|span| span.length as usize).sum()
    }

    fn buckets(&self) -> impl Iterator<Item = Bucket> {
        let side = |spans: &[Span], negative: bool| {
            let mut end = 0_i32;
            let mut buckets = Vec::new();
            for span in spans {
                let start = end.wrapping_add(span.offset);
                end = start.wrapping_add_unsigned(span.length);
                buckets.extend((start..end).map(|index| (negative, index)));
            }
            buckets
        };
        side(&self.positive, false).into_iter().chain(side(&self.negative, true))
    }
}

fn read_spans(reader: &mut Reader<'_>) -> Option<Vec<Span>> {
    let spans = reader.count()?;
    let mut read = Vec::with_capacity(spans);
    let (mut end, mut buckets) = (0_i32, 0_usize);
    for at in 0..spans {
        let offset = i32::try_from(reader.zigzag()?).ok().filter(|offset| at == 0 || *offset >= 0)?;
        let length = u32::try_from(reader.varint()?).ok()?;
        end = end.checked_add(offset)?.checked_add_unsigned(length)?;
        buckets += usize::try_from(length).ok()?;
        if buckets > BUCKETS_MAX {
            return None;
        }
        read.push(Span { offset, length });
    }
    Some(read)
}

/// The distinct layouts of a chunk, and the columns that they need.
#[derive(Debug, Default)]
struct Columns {
    /// Per layout the columns of its buckets, in their order.
    of_layout: Vec<Vec<usize>>,
    /// Number of columns.
    len: usize,
}

impl Columns {
    fn of(layouts: &[Layout]) -> Self {
        let mut columns: BTreeMap<Bucket, usize> = BTreeMap::new();
        for layout in layouts {
            columns.extend(layout.buckets().map(|bucket| (bucket, 0)));
        }
        for (column, at) in columns.values_mut().zip(0..) {
            *column = at;
        }
        let of_layout = |layout: &Layout| layout.buckets().map(|bucket| columns[&bucket]).collect();
        Self { of_layout: layouts.iter().map(of_layout).collect(), len: columns.len() }
    }
}

/// The numbers that a histogram consists of, as far as sizes are concerned.
fn numbers(histogram: &Histogram) -> usize {
    3 + histogram.positive.counts().len() + histogram.negative.counts().len()
}

/// How many of the histograms, from the first on, make the next chunk, and how many numbers that are.
pub(crate) fn next_chunk(histograms: &[Arc<Histogram>]) -> (usize, usize) {
    let mut sum = 0;
    let mut len = 0;
    while len < histograms.len().min(HISTOGRAMS_MAX) && sum < NUMBERS_MAX {
        sum += numbers(&histograms[len]);
        len += 1;
    }
    (len, sum)
}

fn sum_of_buckets(histogram: &Histogram) -> f64 {
    let buckets = histogram.positive.counts().iter().chain(histogram.negative.counts());
    buckets.fold(histogram.zero_count, |sum, count| sum + count)
}

/// Whether a chunk is one of histograms.
pub(crate) fn is_histograms(chunk: &[u8]) -> bool {
    chunk.first().is_some_and(|kind| kind & CLASS_MASK == CLASS)
}

/// Appends the chunk of `histograms` to `out`.
///
/// # Panics
/// If there are none, or more than [`HISTOGRAMS_MAX`].
pub(crate) fn encode_histograms(
    histograms: &[Arc<Histogram>],
    effort: Effort,
    scratch: &mut Scratch,
    out: &mut Vec<u8>,
) {
    let count = histograms.len();
    assert!((1..=HISTOGRAMS_MAX).contains(&count), "{count} histograms in a chunk");
    let mut layouts: Vec<Layout> = Vec::new();
    let mut numbers: HashMap<Layout, usize> = HashMap::new();
    let mut layout_of = Vec::with_capacity(count);
    for histogram in histograms {
        let number = *numbers.entry(Layout::of(histogram)).or_insert_with_key(|layout| {
            layouts.push(layout.clone());
            layouts.len() - 1
        });
        layout_of.push(number);
    }
    let adds_up =
        histograms.iter().all(|h| !h.count.is_nan() && sum_of_buckets(h).to_bits() == h.count.to_bits());
    let stale = histograms.iter().any(|histogram| histogram.is_stale());
    let flag = |set: bool, bit: u8| if set { bit } else { 0 };
    out.push(FORMAT_VERSION << VERSION_SHIFT | CLASS | flag(adds_up, COUNTS_LEFT_OUT) | flag(stale, STALE));
    put_varint(out, count as u64);
    put_varint(out, layouts.len() as u64);
    layouts.iter().for_each(|layout| layout.put(out));

    let mut bytes = Vec::new();
    let mut put_column = |column: &[f64]| {
        bytes.clear();
        encode_values(column, effort, scratch, &mut bytes);
        put_varint(out, bytes.len() as u64);
        out.extend_from_slice(&bytes);
    };
    if layouts.len() > 1 {
        let numbers = layout_of.iter().map(|n| f64::from(u16::try_from(*n).expect("at most 1,024 layouts")));
        put_column(&numbers.collect::<Vec<f64>>());
    }
    let column = |number: fn(&Histogram) -> f64| histograms.iter().map(|h| number(h)).collect::<Vec<f64>>();
    if !adds_up {
        put_column(&column(|histogram| histogram.count));
    }
    put_column(&column(|histogram| histogram.zero_count));
    put_column(&column(|histogram| histogram.sum));
    let columns = Columns::of(&layouts);
    let mut buckets = vec![Vec::new(); columns.len];
    for (histogram, layout) in histograms.iter().zip(&layout_of) {
        let counts = histogram.positive.counts().iter().chain(histogram.negative.counts());
        for (count, column) in counts.zip(&columns.of_layout[*layout]) {
            buckets[*column].push(*count);
        }
    }
    buckets.iter().for_each(|column| put_column(column));
}

/// Appends all histograms of a chunk. `None` if it is damaged.
pub(crate) fn decode_histograms(
    chunk: &[u8],
    scratch: &mut Scratch,
    histograms: &mut Vec<Arc<Histogram>>,
) -> Option<()> {
    let mut reader = Reader::new(chunk);
    let kind = reader.u8()?;
    if kind & !(COUNTS_LEFT_OUT | STALE) != FORMAT_VERSION << VERSION_SHIFT | CLASS {
        return None;
    }
    let count = usize::try_from(reader.varint()?).ok().filter(|n| (1..=HISTOGRAMS_MAX).contains(n))?;
    let layouts = reader.count().filter(|layouts| (1..=count).contains(layouts))?;
    let layouts = (0..layouts).map(|_| Layout::read(&mut reader)).collect::<Option<Vec<_>>>()?;
    // Every layout is used, so that this bounds what is allocated for them.
    if layouts.iter().map(Layout::len).sum::<usize>() > NUMBERS_MAX + 2 * BUCKETS_MAX {
        return None;
    }
    let mut layout_of = vec![0; count];
    if layouts.len() > 1 {
        for (layout, number) in layout_of.iter_mut().zip(read_column(&mut reader, count, scratch)?) {
            *layout =
                (0..layouts.len()).find(|at| u16::try_from(*at).is_ok_and(|at| f64::from(at) == number))?;
        }
    }
    let sizes: Vec<usize> = layout_of.iter().map(|layout| 3 + layouts[*layout].len()).collect();
    if sizes[..count - 1].iter().sum::<usize>() >= NUMBERS_MAX {
        return None;
    }
    let counts = match kind & COUNTS_LEFT_OUT {
        0 => Some(read_column(&mut reader, count, scratch)?),
        _ => None,
    };
    let zero_counts = read_column(&mut reader, count, scratch)?;
    let sums = read_column(&mut reader, count, scratch)?;
    let columns = Columns::of(&layouts);
    let mut lens = vec![0; columns.len];
    for layout in &layout_of {
        columns.of_layout[*layout].iter().for_each(|column| lens[*column] += 1);
    }
    let mut buckets = Vec::with_capacity(columns.len);
    for len in lens {
        buckets.push(read_column(&mut reader, len, scratch)?.into_iter());
    }
    if !reader.is_empty() {
        return None;
    }
    let bounds: Vec<Arc<[f64]>> =
        layouts.iter().map(|l| l.bounds.iter().map(|b| f64::from_bits(*b)).collect()).collect();
    for at in 0..count {
        let layout = &layouts[layout_of[at]];
        let mut of_sample = columns.of_layout[layout_of[at]].iter().map(|column| buckets[*column].next());
        let mut side = |spans: &[Span]| {
            let len = spans.iter().map(|span| span.length as usize).sum();
            let counts = of_sample.by_ref().take(len).collect::<Option<Vec<f64>>>()?;
            Buckets::new(spans.to_vec(), counts).ok()
        };
        let mut histogram = Histogram {
            hint: layout.hint,
            schema: layout.schema,
            zero_threshold: f64::from_bits(layout.zero_threshold),
            zero_count: zero_counts[at],
            count: 0.0,
            sum: sums[at],
            positive: side(&layout.positive)?,
            negative: side(&layout.negative)?,
            custom_values: Arc::clone(&bounds[layout_of[at]]),
        };
        histogram.count = counts.as_ref().map_or_else(|| sum_of_buckets(&histogram), |counts| counts[at]);
        histograms.push(Arc::new(histogram));
    }
    Some(())
}

fn read_column(reader: &mut Reader<'_>, count: usize, scratch: &mut Scratch) -> Option<Vec<f64>> {
    let len = reader.count()?;
    let mut column = Vec::with_capacity(count);
    decode_values(reader.take(len)?, scratch, &mut column)?;
    (column.len() == count).then_some(column)
}

#[cfg(test)]
#[path = "histogram_tests.rs"]
mod tests;

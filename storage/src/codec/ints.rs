//! A column of whole numbers as bytes: what all other columns of the codec become.
//!
//! Numbers `x[0..n]` become `y[i] = (x[i] - x[0]) / gcd` with the greatest common divisor of all
//! differences. The residuals of order 0 are `y[i] - centre`, of order 1 `y[i] - y[i-1] - centre`, of
//! order 2 the differences of order 1 less the one before and less `centre`; they are zigzagged. All
//! arithmetic wraps at 2^64, so every `i64` works.
//!
//! | field | bytes | content |
//! |---|---|---|
//! | kind | 1 | bits 0-1: order; bits 2-3: coder; bit 4: gcd follows; bit 5: centre follows; bit 6: last follows; bit 7: 0 |
//! | first | zigzag varint | `x[0]` |
//! | gcd | varint | above 1; otherwise the gcd is 1 |
//! | centre | zigzag varint | otherwise 0 |
//! | slope | zigzag varint | order 2 only: `y[1]` |
//! | last | zigzag varint | `y[n-1]` less what it were if all residuals were zero |
//! | table | see `huffman.rs` | coder 3 only |
//! | restart points | see below | coders 1 and 3 with more than 1,024 residuals only |
//! | residuals | rest | see below |
//!
//! | coder | residuals |
//! |---|---|
//! | 0 zero | nothing: all are zero |
//! | 1 packed | sections of blocks of `bitpack.rs` |
//! | 2 sparse | `sparse.rs`; no sections, as it decodes faster than the others restart |
//! | 3 huffman | sections of `huffman.rs` |
//!
//! With more than 1,024 residuals, a section has 512 of them, else all. Restart points, per section:
//!
//! | field | bytes | content |
//! |---|---|---|
//! | length | varint | bytes of the section |
//! | state | zigzag varint | not for the first, orders 1 and 2: the `y` before the section less that before the last section (0 before the first) |
//! | slope | zigzag varint | not for the first, order 2: the same for the difference of the two `y` before it |
//!
//! The column knows neither its count nor its end in bytes; whoever embeds it stores the count.

use super::bitio::unzigzag;
use super::bitpack::{self, BLOCK};
use super::decimal::{real, value_at};
use super::huffman::{self, Code};
use super::plan::{Buffers, Plan, fill_residuals, scale_down};
use super::simd::{self, Finish};
use super::sparse;
use crate::wire::{Reader, put_varint, put_zigzag};

/// Residuals of one section.
const SECTION: usize = 512;
/// Up to so many residuals are one section.
const UNDIVIDED_MAX: usize = 1024;

const GCD: u8 = 0x10;
const CENTRE: u8 = 0x20;
const LAST: u8 = 0x40;
const UNKNOWN: u8 = 0x80;

/// Which differences of the numbers are encoded.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Order {
    Values,
    Deltas,
    DeltasOfDeltas,
}

impl Order {
    pub(super) const ALL: [Self; 3] = [Self::Values, Self::Deltas, Self::DeltasOfDeltas];

    /// Numbers without a residual.
    pub(super) fn head(self) -> usize {
        if self == Self::DeltasOfDeltas { 2 } else { 1 }
    }
}

/// How residuals are encoded.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Coder {
    Zero,
    Packed,
    Sparse,
    Huffman,
}

const CODERS: [Coder; 4] = [Coder::Zero, Coder::Packed, Coder::Sparse, Coder::Huffman];

/// Whether the column stores its last number in front, to be read without the residuals.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum LastNumber {
    Stored,
    Omitted,
}

/// Appends the column.
pub(super) fn encode(
    numbers: &[i64],
    plan: &Plan,
    last: LastNumber,
    buffers: &mut Buffers,
    out: &mut Vec<u8>,
) {
    let Plan { order, coder, gcd, centre, .. } = *plan;
    let numbers_scaled = scale_down(numbers, gcd, &mut buffers.scaled);
    fill_residuals(numbers_scaled, order, centre, &mut buffers.residuals);
    let coder = if buffers.residuals.is_empty() { Coder::Zero } else { coder };
    let y = |index: usize| numbers_scaled[index].wrapping_sub(numbers_scaled[0]);
    let with_last = last == LastNumber::Stored && coder != Coder::Zero;
    let flag = |set: bool, bit: u8| if set { bit } else { 0 };
    let kind = order as u8 | (coder as u8) << 2;
    out.push(kind | flag(gcd > 1, GCD) | flag(centre != 0, CENTRE) | flag(with_last, LAST));
    put_zigzag(out, numbers[0]);
    if gcd > 1 {
        put_varint(out, gcd);
    }
    if centre != 0 {
        put_zigzag(out, centre);
    }
    let slope = if order == Order::DeltasOfDeltas { y(1) } else { 0 };
    if order == Order::DeltasOfDeltas {
        put_zigzag(out, slope);
    }
    if with_last {
        let straight = straight_line(order, slope, centre, numbers.len());
        put_zigzag(out, y(numbers.len() - 1).wrapping_sub(straight));
    }
    match coder {
        Coder::Zero => {}
        Coder::Sparse => sparse::encode(&buffers.residuals, out),
        Coder::Packed if buffers.residuals.len() <= BLOCK => {
            bitpack::encode_block(&buffers.residuals, plan.width, out);
        }
        Coder::Packed => encode_sections(plan, &buffers.residuals, slope, out, &bitpack::encode),
        Coder::Huffman => {
            let code = plan.code.as_ref().expect("a plan with Huffman has its code");
            code.write(out);
            encode_sections(plan, &buffers.residuals, slope, out, &|section, out| code.encode(section, out));
        }
    }
}

/// Restart points, then all sections.
fn encode_sections(
    plan: &Plan,
    residuals: &[u64],
    slope: i64,
    out: &mut Vec<u8>,
    encode: &dyn Fn(&[u64], &mut Vec<u8>),
) {
    if residuals.len() <= UNDIVIDED_MAX {
        encode(residuals, out);
        return;
    }
    let mut state = State::start(plan.order, slope);
    let mut before = State { y: 0, slope: 0 };
    let mut body = Vec::with_capacity(residuals.len());
    for (index, section) in residuals.chunks(SECTION).enumerate() {
        let start = body.len();
        encode(section, &mut body);
        put_varint(out, (body.len() - start) as u64);
        if index > 0 && plan.order != Order::Values {
            put_zigzag(out, state.y.wrapping_sub(before.y));
        }
        if index > 0 && plan.order == Order::DeltasOfDeltas {
            put_zigzag(out, state.slope.wrapping_sub(before.slope));
        }
        if index > 0 {
            before = state;
        }
        for residual in section {
            state.step(plan.order, unzigzag(*residual).wrapping_add(plan.centre));
        }
    }
    out.extend_from_slice(&body);
}

/// `y[n-1]` if all residuals were zero.
fn straight_line(order: Order, slope: i64, centre: i64, count: usize) -> i64 {
    let steps = i64::try_from(count).expect("counts are limited") - 1;
    match order {
        Order::Values => centre,
        Order::Deltas => centre.wrapping_mul(steps),
        Order::DeltasOfDeltas => {
            slope.wrapping_mul(steps).wrapping_add(centre.wrapping_mul(steps * (steps - 1) / 2))
        }
    }
}

/// Where a decoder is: the last `y` and the last difference.
#[derive(Clone, Copy, Debug)]
struct State {
    y: i64,
    slope: i64,
}

impl State {
    /// After the numbers without a residual.
    fn start(order: Order, slope: i64) -> Self {
        if order == Order::DeltasOfDeltas { Self { y: slope, slope } } else { Self { y: 0, slope: 0 } }
    }

    /// The next `y`, from the residual with the centre added.
    fn step(&mut self, order: Order, residual: i64) -> i64 {
        match order {
            Order::Values => self.y = residual,
            Order::Deltas => self.y = self.y.wrapping_add(residual),
            Order::DeltasOfDeltas => {
                self.slope = self.slope.wrapping_add(residual);
                self.y = self.y.wrapping_add(self.slope);
            }
        }
        self.y
    }
}

/// What stands in front of a column's residuals.
#[derive(Clone, Debug)]
pub(super) struct Header {
    order: Order,
    coder: Coder,
    first: i64,
    gcd: u64,
    centre: i64,
    slope: i64,
    /// `y` of the last number, if stored or known without the residuals.
    last: Option<i64>,
}

impl Header {
    /// Reads the header of a column of `count` (at least 1) numbers.
    pub(super) fn read(reader: &mut Reader<'_>, count: usize) -> Option<Self> {
        let kind = reader.u8()?;
        let order = *Order::ALL.get(usize::from(kind & 3))?;
        let coder = CODERS[usize::from(kind >> 2 & 3)];
        if kind & UNKNOWN > 0 || count < order.head() {
            return None;
        }
        let first = reader.zigzag()?;
        let gcd = if kind & GCD > 0 { reader.varint()? } else { 1 };
        let centre = if kind & CENTRE > 0 { reader.zigzag()? } else { 0 };
        let slope = if order == Order::DeltasOfDeltas { reader.zigzag()? } else { 0 };
        let straight = straight_line(order, slope, centre, count);
        let last = match (kind & LAST > 0, coder, count) {
            (true, ..) => Some(straight.wrapping_add(reader.zigzag()?)),
            (false, _, 1) => Some(0),
            (false, Coder::Zero, _) => Some(straight),
            (false, ..) => None,
        };
        Some(Self { order, coder, first, gcd, centre, slope, last })
    }

    /// The last number, if it is known without the residuals.
    pub(super) fn last(&self) -> Option<i64> {
        self.last.map(|y| self.number(y))
    }

    fn number(&self, y: i64) -> i64 {
        self.first.wrapping_add(y.wrapping_mul(self.gcd.cast_signed()))
    }

    /// The line that numbers without residuals follow, from `state` on.
    fn line(&self, state: State) -> Line {
        let Self { order, first, gcd, centre, .. } = *self;
        Line { order, first, gcd, centre, y: state.y, slope: state.slope }
    }
}

/// How residuals become numbers, and where that stands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Line {
    pub(super) order: Order,
    pub(super) first: i64,
    pub(super) gcd: u64,
    pub(super) centre: i64,
    /// The last `y`, and the last difference.
    pub(super) y: i64,
    pub(super) slope: i64,
}

impl Line {
    /// Gives the number of each residual to `each`.
    #[inline]
    pub(super) fn follow(&mut self, residuals: &[u64], mut each: impl FnMut(usize, i64)) {
        // Sums are kept in variables of the loop: in fields they would live in memory.
        let Self { order, first, gcd, centre, mut y, mut slope } = *self;
        let gcd = gcd.cast_signed();
        let residuals = residuals.iter().map(|residual| unzigzag(*residual).wrapping_add(centre)).enumerate();
        match order {
            Order::Values => {
                for (at, residual) in residuals {
                    y = residual;
                    each(at, first.wrapping_add(y.wrapping_mul(gcd)));
                }
            }
            Order::Deltas => {
                for (at, residual) in residuals {
                    y = y.wrapping_add(residual);
                    each(at, first.wrapping_add(y.wrapping_mul(gcd)));
                }
            }
            Order::DeltasOfDeltas => {
                for (at, residual) in residuals {
                    slope = slope.wrapping_add(residual);
                    y = y.wrapping_add(slope);
                    each(at, first.wrapping_add(y.wrapping_mul(gcd)));
                }
            }
        }
        (self.y, self.slope) = (y, slope);
    }
}

/// What a column's numbers are decoded to.
pub(super) trait Target: Copy {
    type Item: Copy + Default;

    /// What becomes of one number.
    fn item(self, number: i64) -> Self::Item;

    /// What becomes of residuals, one per item of `out`.
    fn restore(self, line: &mut Line, residuals: &[u64], out: &mut [Self::Item]);

    /// Whether this is the same bit for bit.
    fn is_same(a: Self::Item, b: Self::Item) -> bool;
}

/// Numbers as they are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Numbers;

impl Target for Numbers {
    type Item = i64;

    fn item(self, number: i64) -> i64 {
        number
    }

    fn restore(self, line: &mut Line, residuals: &[u64], out: &mut [i64]) {
        let done = simd::numbers(line, residuals, out);
        let rest = &mut out[done..];
        line.follow(&residuals[done..], |at, number| rest[at] = number);
    }

    fn is_same(a: i64, b: i64) -> bool {
        a == b
    }
}

/// Values that are made of numbers.
impl Target for Finish {
    type Item = f64;

    fn item(self, number: i64) -> f64 {
        match self {
            Self::Whole => real(number),
            Self::Divide(power) => real(number) / power,
            Self::Multiply(fraction) => real(number) * fraction,
            Self::Place => value_at(number),
        }
    }

    fn restore(self, line: &mut Line, residuals: &[u64], out: &mut [f64]) {
        let done = simd::values(line, self, residuals, out);
        let (residuals, rest) = (&residuals[done..], &mut out[done..]);
        match self {
            Self::Whole => line.follow(residuals, |at, number| rest[at] = real(number)),
            Self::Divide(power) => line.follow(residuals, |at, number| rest[at] = real(number) / power),
            _ => line.follow(residuals, |at, number| rest[at] = self.item(number)),
        }
    }

    fn is_same(a: f64, b: f64) -> bool {
        a.to_bits() == b.to_bits()
    }
}

/// Appends what becomes of the numbers at `range` of a column of `count` to `out`. `None` if the column is
/// damaged (also if it lacks the last number), or the range is not in it. The reader ends behind the column
/// only if the range ends with it.
pub(super) fn decode<T: Target>(
    reader: &mut Reader<'_>,
    count: usize,
    range: std::ops::Range<usize>,
    last: LastNumber,
    target: T,
    out: &mut Vec<T::Item>,
) -> Option<()> {
    let header = Header::read(reader, count)?;
    let incomplete = last == LastNumber::Stored && header.last.is_none();
    if range.start > range.end || range.end > count || incomplete {
        return None;
    }
    let head = header.order.head();
    let residuals = count - head;
    let wanted = range.start.saturating_sub(head)..range.end.saturating_sub(head);
    let base = out.len();
    let mut column =
        Column { line: header.line(State::start(header.order, header.slope)), target, out, residuals };
    let is_divided = matches!(header.coder, Coder::Packed | Coder::Huffman) && residuals > UNDIVIDED_MAX;
    if !is_divided || wanted.start < SECTION {
        column.out.push(target.item(header.first));
        if head == 2 {
            column.out.push(target.item(header.number(header.slope)));
        }
    }
    let begun_at = match header.coder {
        Coder::Packed | Coder::Huffman if residuals == 0 => return None,
        Coder::Zero => column.straight(),
        Coder::Sparse => column.sparse(reader)?,
        Coder::Packed => column.sections(&header, None, reader, wanted)?,
        Coder::Huffman => {
            let decoder = Code::read(reader)?.decoder();
            column.sections(&header, Some(&decoder), reader, wanted)?
        }
    };
    let decoded = &out[base..];
    if begun_at + decoded.len() == count
        && let Some(last) = header.last()
        && !decoded.last().is_some_and(|decoded| T::is_same(*decoded, target.item(last)))
    {
        return None;
    }
    out.truncate(base + range.end - begun_at);
    out.drain(base..base + range.start - begun_at);
    Some(())
}

/// What all numbers of a column but the first are, if it is one whose numbers are the same but for few, and where the
/// others are: their indexes and what they are go to `others`. `None` if the column is of another kind, and the reader
/// stays where it is; `Some(None)` if it is damaged. For columns without their last number.
pub(super) fn decode_exceptions(
    reader: &mut Reader<'_>,
    count: usize,
    mut others: impl FnMut(usize, i64),
) -> Option<Option<i64>> {
    let mut after_header = reader.clone();
    let header = Header::read(&mut after_header, count)?;
    if header.order != Order::Values || header.coder != Coder::Sparse {
        return None;
    }
    *reader = after_header;
    let number = |residual: u64| header.number(unzigzag(residual).wrapping_add(header.centre));
    let read = sparse::each_other(reader, count - 1, |at, residual| others(at + 1, number(residual)));
    Some(read.map(|()| number(0)))
}

/// A column being decoded.
struct Column<'a, T: Target> {
    line: Line,
    target: T,
    out: &'a mut Vec<T::Item>,
    residuals: usize,
}

impl<T: Target> Column<'_, T> {
    fn restore(&mut self, residuals: &[u64]) {
        let start = self.out.len();
        self.out.resize(start + residuals.len(), T::Item::default());
        self.target.restore(&mut self.line, residuals, &mut self.out[start..]);
    }

    /// All residuals are zero. Returns the index of the first number that it appended, like the others.
    fn straight(&mut self) -> usize {
        let zeros = [0; BLOCK];
        for start in (0..self.residuals).step_by(BLOCK) {
            self.restore(&zeros[..BLOCK.min(self.residuals - start)]);
        }
        0
    }

    fn sparse(&mut self, reader: &mut Reader<'_>) -> Option<usize> {
        let mut numbers = vec![0; self.residuals];
        sparse::each_other(reader, self.residuals, |place, number| numbers[place] = number)?;
        self.restore(&numbers);
        Some(0)
    }

    /// The sections that hold the residuals `wanted`, packed if there is no decoder.
    fn sections(
        &mut self,
        header: &Header,
        decoder: Option<&huffman::Decoder>,
        reader: &mut Reader<'_>,
        wanted: std::ops::Range<usize>,
    ) -> Option<usize> {
        if self.residuals <= UNDIVIDED_MAX {
            self.section(decoder, reader, self.residuals)?;
            return Some(0);
        }
        let from = wanted.start / SECTION;
        let (mut skipped, mut bytes) = (0_usize, 0_usize);
        let mut restart = State { y: 0, slope: 0 };
        for index in 0..self.residuals.div_ceil(SECTION) {
            let length = usize::try_from(reader.varint()?).ok()?;
            if index > 0 && header.order != Order::Values {
                restart.y = restart.y.wrapping_add(reader.zigzag()?);
            }
            if index > 0 && header.order == Order::DeltasOfDeltas {
                restart.slope = restart.slope.wrapping_add(reader.zigzag()?);
            }
            if index < from {
                skipped = skipped.checked_add(length)?;
            }
            if index == from && index > 0 {
                self.line = header.line(restart);
            }
            bytes = bytes.checked_add(length)?;
        }
        let mut body = Reader::new(reader.take(bytes)?);
        body.take(skipped)?;
        for section in from..wanted.end.div_ceil(SECTION) {
            self.section(decoder, &mut body, SECTION.min(self.residuals - section * SECTION))?;
        }
        if wanted.end == self.residuals && !body.is_empty() {
            return None;
        }
        Some(if from == 0 { 0 } else { header.order.head() + from * SECTION })
    }

    fn section(
        &mut self,
        decoder: Option<&huffman::Decoder>,
        reader: &mut Reader<'_>,
        length: usize,
    ) -> Option<()> {
        if let Some(decoder) = decoder {
            let mut buffer = [0; UNDIVIDED_MAX];
            let numbers = &mut buffer[..length];
            decoder.decode(reader, numbers)?;
            self.restore(numbers);
            return Some(());
        }
        let mut buffer = [0; BLOCK];
        for start in (0..length).step_by(BLOCK) {
            let numbers = &mut buffer[..BLOCK.min(length - start)];
            bitpack::decode_block(reader, numbers)?;
            self.restore(numbers);
        }
        Some(())
    }
}

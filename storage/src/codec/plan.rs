//! Chooses how a column of whole numbers is encoded: gcd, order of differences, centre and coder.
//!
//! Costs are bits in whole numbers, from counts of bit lengths, and choices are made in a fixed order: equal
//! numbers give the same plan on every machine. Nothing is encoded on trial. The format is in `ints.rs`.

use super::Effort;
use super::bitio::{bit_length, zigzag};
use super::bitpack::{self, BLOCK, Histogram};
use super::huffman::{self, Code};
use super::ints::{Coder, Order};
use super::sparse;

/// The centre is about the median of so many residuals.
const SAMPLE: usize = 27;
/// So many residuals of each order say which orders are worth a look at all of them.
const FIRST_SAMPLE: usize = 9;
/// Bits by which an order may look worse in that sample and still be tried.
const SAMPLE_TOLERANCE: u32 = 5;

/// How a column will be encoded, and what that costs.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) order: Order,
    pub(super) coder: Coder,
    pub(super) gcd: u64,
    pub(super) centre: i64,
    pub(super) code: Option<Code>,
    /// The width of the only block, if the residuals fit one and are packed.
    pub(super) width: u32,
    /// Bits of the residuals, and a little for the rest. Exact for up to 128 residuals, else not too low
    /// by more than the restart points.
    pub(super) cost: u64,
}

/// Vectors that are used again from column to column.
#[derive(Clone, Debug, Default)]
pub(super) struct Buffers {
    pub(super) scaled: Vec<i64>,
    pub(super) residuals: Vec<u64>,
}

/// Chooses the cheapest way to encode `numbers`, of which there is at least one.
pub(super) fn choose_plan(numbers: &[i64], effort: Effort, buffers: &mut Buffers) -> Plan {
    let gcd = gcd_of_deltas(numbers);
    let numbers_scaled = scale_down(numbers, gcd, &mut buffers.scaled);
    let mut best: Option<(Plan, Histogram)> = None;
    let sampled = Order::ALL.map(|order| sampled_centre::<FIRST_SAMPLE>(numbers_scaled, order).1);
    let limit = *sampled.iter().min().expect("three orders");
    for (order, cost) in Order::ALL.into_iter().zip(sampled) {
        // Looking at all residuals costs more than all else here: an order that seems much worse is passed.
        if order.head() > numbers.len() || cost > limit + SAMPLE_TOLERANCE {
            continue;
        }
        let (centre, _) = sampled_centre::<SAMPLE>(numbers_scaled, order);
        fill_residuals(numbers_scaled, order, centre, &mut buffers.residuals);
        let counts = bitpack::histogram(&buffers.residuals);
        let (coder, width, cost) = cheapest_coder(&counts);
        let cost = cost + u64::from(bit_length(zigzag(centre)));
        if best.as_ref().is_none_or(|(best, _)| cost < best.cost) {
            best = Some((Plan { order, coder, gcd, centre, code: None, width, cost }, counts));
        }
        if coder == Coder::Zero {
            break;
        }
    }
    let (mut best, counts) = best.expect("order 0 needs only one number");
    if effort == Effort::Dense && best.coder != Coder::Zero {
        try_huffman(&mut best, &counts);
    }
    best.cost += u64::from(bit_length(zigzag(numbers[0]))) + u64::from(bit_length(gcd));
    best
}

/// The gcd of all differences; 1 if there are none but zeros.
fn gcd_of_deltas(numbers: &[i64]) -> u64 {
    let mut gcd = 0_u64;
    for pair in numbers.windows(2) {
        let delta = pair[1].wrapping_sub(pair[0]).unsigned_abs();
        if delta == 0 || delta == gcd || (gcd > 0 && delta.is_multiple_of(gcd)) {
            continue;
        }
        let (mut a, mut b) = (gcd, delta);
        while b > 0 {
            (a, b) = (b, a % b);
        }
        gcd = a;
        if gcd == 1 {
            break;
        }
    }
    // A divisor of 2^63 would not fit a signed number.
    if gcd > i64::MAX.unsigned_abs() { 1 } else { gcd.max(1) }
}

/// Replaces `scaled` by `y` if there is a gcd, and returns a column with the differences of `y`. Sums of
/// divided differences, because a distance that wrapped need not be a multiple of the gcd.
pub(super) fn scale_down<'a>(numbers: &'a [i64], gcd: u64, scaled: &'a mut Vec<i64>) -> &'a [i64] {
    if gcd == 1 {
        return numbers;
    }
    let divisor = gcd.cast_signed();
    let mut y = 0_i64;
    scaled.clear();
    scaled.push(0);
    scaled.extend(numbers.windows(2).map(|pair| {
        let delta = pair[1].wrapping_sub(pair[0]);
        y = y.wrapping_add(if delta == 0 { 0 } else { delta / divisor });
        y
    }));
    scaled
}

/// Zigzagged residuals of this order into `residuals`.
pub(super) fn fill_residuals(numbers: &[i64], order: Order, centre: i64, residuals: &mut Vec<u64>) {
    residuals.clear();
    let delta = |pair: &[i64]| pair[1].wrapping_sub(pair[0]);
    match order {
        Order::Values => {
            let base = numbers[0].wrapping_add(centre);
            residuals.extend(numbers[1..].iter().map(|x| zigzag(x.wrapping_sub(base))));
        }
        Order::Deltas => {
            residuals.extend(numbers.windows(2).map(|pair| zigzag(delta(pair).wrapping_sub(centre))));
        }
        Order::DeltasOfDeltas => {
            residuals.extend(numbers.windows(3).map(|three| {
                let change = delta(&three[1..]).wrapping_sub(delta(&three[..2]));
                zigzag(change.wrapping_sub(centre))
            }));
        }
    }
}

/// About the median of `SAMPLE` (a power of three) evenly spaced residuals, and the bits of those; good enough,
/// and the same work for all lengths.
fn sampled_centre<const SAMPLE: usize>(numbers: &[i64], order: Order) -> (i64, u32) {
    let count = numbers.len().saturating_sub(order.head());
    if count == 0 {
        return (0, 0);
    }
    let mut sample = [0_i64; SAMPLE];
    for (index, slot) in sample.iter_mut().enumerate() {
        let at = order.head() + index * count / SAMPLE;
        let delta = numbers[at].wrapping_sub(numbers[at - 1]);
        *slot = match order {
            Order::Values => numbers[at].wrapping_sub(numbers[0]),
            Order::Deltas => delta,
            Order::DeltasOfDeltas => delta.wrapping_sub(numbers[at - 1].wrapping_sub(numbers[at - 2])),
        };
    }
    let centre = median_of_medians(sample);
    let bits = sample.iter().map(|residual| bit_length(zigzag(residual.wrapping_sub(centre))));
    (centre, bits.sum())
}

/// The median of the medians of threes, and so on: near the median, without a branch.
fn median_of_medians<const SAMPLE: usize>(mut sample: [i64; SAMPLE]) -> i64 {
    let mut left = SAMPLE;
    while left > 1 {
        for index in 0..left / 3 {
            let [a, b, c] = [sample[3 * index], sample[3 * index + 1], sample[3 * index + 2]];
            sample[index] = a.min(b).max(a.max(b).min(c));
        }
        left /= 3;
    }
    sample[0]
}

/// The coder for residuals with these bit lengths, other than Huffman, the best width of all of them, and the
/// cost in bits.
fn cheapest_coder(counts: &Histogram) -> (Coder, u32, u64) {
    let total: u32 = counts.iter().sum();
    if counts[0] == total {
        return (Coder::Zero, 0, 0);
    }
    let (width, packed) = bitpack::best_width(counts);
    let packed = packed + 8 * u64::from(total).div_ceil(BLOCK as u64);
    if counts[0] >= total / 2 {
        let sparse = sparse::cost_max(counts);
        if sparse < packed {
            return (Coder::Sparse, width, sparse);
        }
    }
    (Coder::Packed, width, packed)
}

/// Changes the plan for residuals with these bit lengths if Huffman is worth it.
fn try_huffman(plan: &mut Plan, counts: &Histogram) {
    if huffman::cost_min(counts) * 10 > plan.cost * 9 {
        return;
    }
    let code = Code::of(counts);
    let huffman = code.cost(counts) + code.table_cost() + 16;
    // It decodes several times slower than the others, so it must save a tenth.
    if huffman * 10 <= plan.cost * 9 {
        *plan = Plan { coder: Coder::Huffman, code: Some(code), cost: huffman, ..*plan };
    }
}

//! The inner loops of decoding with AVX2, for processors that have it.
//!
//! Each function does a part from the front, says how much, and leaves the rest to the scalar loop that does
//! the same: all of it on other processors. The results are equal bit for bit (tests below). The shipped
//! binary is built for x86-64-v2, so AVX2 is looked for when it runs; the standard library caches the answer.
//!
//! `unsafe` is in here only: calling functions that need AVX2 after asking for it, and loads and stores that
//! the slices' lengths were checked for. It makes decoding about twice as fast as the scalar loops.
#![cfg_attr(
    target_arch = "x86_64",
    expect(
        unsafe_code,
        reason = "vector loads, stores and calls; bounds and features are checked beside them"
    )
)]

use super::ints::Line;

/// What becomes of whole numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Finish {
    /// `m`
    Whole,
    /// `m / power`
    Divide(f64),
    /// `m * fraction`
    Multiply(f64),
    /// The value at place `m`.
    Place,
}

/// The widest numbers that [`unpack`] does anything for.
#[cfg(target_arch = "x86_64")]
pub(super) const WIDTH_MAX: usize = 29;

#[cfg(not(target_arch = "x86_64"))]
mod other {
    use super::{Finish, Line};

    pub(in super::super) fn unpack(_: &[u8], _: usize, _: &mut [u64]) -> usize {
        0
    }

    pub(in super::super) fn numbers(_: &mut Line, _: &[u64], _: &mut [i64]) -> usize {
        0
    }

    pub(in super::super) fn values(_: &mut Line, _: Finish, _: &[u64], _: &mut [f64]) -> usize {
        0
    }
}

#[cfg(not(target_arch = "x86_64"))]
pub(super) use other::{numbers, unpack, values};

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{numbers, unpack, values};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::is_x86_feature_detected;
    use std::arch::x86_64::*;

    use super::super::ints::Order;
    use super::{Finish, Line, WIDTH_MAX};

    /// Spreads `width` (1 to [`WIDTH_MAX`]) bits each to `numbers`, as far as whole words can be loaded from
    /// `window`. Returns how many it did.
    pub(in super::super) fn unpack(window: &[u8], width: usize, numbers: &mut [u64]) -> usize {
        if !(1..=WIDTH_MAX).contains(&width) || !is_x86_feature_detected!("avx2") {
            return 0;
        }
        // SAFETY: the processor has AVX2.
        unsafe {
            if width <= 15 {
                unpack_narrow(window, width, numbers)
            } else {
                unpack_wide(window, width, numbers)
            }
        }
    }

    /// The numbers of residuals. Returns how many it did, a multiple of four; `line` stands behind them.
    pub(in super::super) fn numbers(line: &mut Line, residuals: &[u64], out: &mut [i64]) -> usize {
        assert_eq!(residuals.len(), out.len());
        if !is_x86_feature_detected!("avx2") {
            return 0;
        }
        // SAFETY: the processor has AVX2, and both slices have this length; `i64` may have any bits.
        unsafe { restore(line, residuals, out.as_mut_ptr().cast(), |number| number) }
    }

    /// The values of residuals, like [`numbers`].
    pub(in super::super) fn values(
        line: &mut Line,
        finish: Finish,
        residuals: &[u64],
        out: &mut [f64],
    ) -> usize {
        assert_eq!(residuals.len(), out.len());
        if !is_x86_feature_detected!("avx2") {
            return 0;
        }
        // SAFETY: the processor has AVX2, and both slices have this length; `f64` may have any bits.
        unsafe { values_avx2(line, finish, residuals, out.as_mut_ptr().cast()) }
    }

    /// # Safety
    /// `out` can be written for as many words as there are residuals.
    #[target_feature(enable = "avx2")]
    unsafe fn values_avx2(line: &mut Line, finish: Finish, residuals: &[u64], out: *mut __m256i) -> usize {
        // SAFETY: the caller's promise is the same.
        unsafe {
            match finish {
                Finish::Whole => restore(line, residuals, out, |m| bits(real(m))),
                Finish::Divide(power) => {
                    let power = _mm256_set1_pd(power);
                    restore(line, residuals, out, |m| bits(_mm256_div_pd(real(m), power)))
                }
                Finish::Multiply(fraction) => {
                    let fraction = _mm256_set1_pd(fraction);
                    restore(line, residuals, out, |m| bits(_mm256_mul_pd(real(m), fraction)))
                }
                Finish::Place => restore(line, residuals, out, |m| {
                    let negative = _mm256_cmpgt_epi64(_mm256_setzero_si256(), m);
                    _mm256_xor_si256(m, _mm256_srli_epi64::<1>(negative))
                }),
            }
        }
    }

    /// Eight bytes at `at`, which must lie in `window` wholly.
    ///
    /// # Safety
    /// `at + 8` is at most the length of `window`.
    #[inline]
    unsafe fn word(window: &[u8], at: usize) -> i64 {
        // SAFETY: the caller's promise; the load needs no alignment.
        unsafe { window.as_ptr().add(at).cast::<i64>().read_unaligned() }
    }

    /// Four numbers of at most 15 bits begin at bit 0 or 4 of a byte and end within eight bytes of it.
    #[target_feature(enable = "avx2")]
    fn unpack_narrow(window: &[u8], width: usize, numbers: &mut [u64]) -> usize {
        let mask = _mm256_set1_epi64x((1 << width) - 1);
        let lane = width.cast_signed() as i64;
        let first = _mm256_set_epi64x(3 * lane, 2 * lane, lane, 0);
        let second = _mm256_add_epi64(first, _mm256_set1_epi64x((4 * lane) & 7));
        let middle = width / 2;
        let (mut at, mut done) = (0, 0);
        for group in numbers.chunks_exact_mut(8) {
            if at + middle + 8 > window.len() {
                break;
            }
            // SAFETY: the larger offset was just checked; the group has room for two vectors.
            unsafe {
                let low = _mm256_set1_epi64x(word(window, at));
                let high = _mm256_set1_epi64x(word(window, at + middle));
                let out: *mut __m256i = group.as_mut_ptr().cast();
                _mm256_storeu_si256(out, _mm256_and_si256(_mm256_srlv_epi64(low, first), mask));
                _mm256_storeu_si256(out.add(1), _mm256_and_si256(_mm256_srlv_epi64(high, second), mask));
            }
            at += width;
            done += 8;
        }
        done
    }

    /// Two numbers of at most 29 bits begin at an even bit of a byte and end within eight bytes of it.
    #[target_feature(enable = "avx2")]
    fn unpack_wide(window: &[u8], width: usize, numbers: &mut [u64]) -> usize {
        let mask = _mm256_set1_epi64x((1 << width) - 1);
        let lane = width.cast_signed() as i64;
        let offset = |pair: usize| (2 * width * pair) >> 3;
        let shift = |pair: i64| (2 * lane * pair) & 7;
        let shifts = |a: i64, b: i64| _mm256_set_epi64x(shift(b) + lane, shift(b), shift(a) + lane, shift(a));
        let (first, second) = (shifts(0, 1), shifts(2, 3));
        let (mut at, mut done) = (0, 0);
        for group in numbers.chunks_exact_mut(8) {
            if at + offset(3) + 8 > window.len() {
                break;
            }
            // SAFETY: the largest offset was just checked; the group has room for two vectors.
            unsafe {
                let pairs = |a: usize, b: usize| {
                    let (a, b) = (word(window, at + offset(a)), word(window, at + offset(b)));
                    _mm256_set_epi64x(b, b, a, a)
                };
                let out: *mut __m256i = group.as_mut_ptr().cast();
                _mm256_storeu_si256(out, _mm256_and_si256(_mm256_srlv_epi64(pairs(0, 1), first), mask));
                _mm256_storeu_si256(
                    out.add(1),
                    _mm256_and_si256(_mm256_srlv_epi64(pairs(2, 3), second), mask),
                );
            }
            at += width;
            done += 8;
        }
        done
    }

    /// # Safety
    /// `out` can be written for as many words as there are residuals.
    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn restore(
        line: &mut Line,
        residuals: &[u64],
        out: *mut __m256i,
        finish: impl Fn(__m256i) -> __m256i,
    ) -> usize {
        // One loop for each case, because otherwise each of its rounds would do the work of all.
        const VALUES: u8 = Order::Values as u8;
        const DELTAS: u8 = Order::Deltas as u8;
        const DELTAS_OF_DELTAS: u8 = Order::DeltasOfDeltas as u8;
        // SAFETY: the caller's promise is the same.
        unsafe {
            match (line.order, line.gcd) {
                (Order::Values, 1) => restore_as::<VALUES, false>(line, residuals, out, finish),
                (Order::Values, _) => restore_as::<VALUES, true>(line, residuals, out, finish),
                (Order::Deltas, 1) => restore_as::<DELTAS, false>(line, residuals, out, finish),
                (Order::Deltas, _) => restore_as::<DELTAS, true>(line, residuals, out, finish),
                (Order::DeltasOfDeltas, 1) => {
                    restore_as::<DELTAS_OF_DELTAS, false>(line, residuals, out, finish)
                }
                (Order::DeltasOfDeltas, _) => {
                    restore_as::<DELTAS_OF_DELTAS, true>(line, residuals, out, finish)
                }
            }
        }
    }

    /// # Safety
    /// `out` can be written for as many words as there are residuals.
    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn restore_as<const ORDER: u8, const SCALED: bool>(
        line: &mut Line,
        residuals: &[u64],
        out: *mut __m256i,
        finish: impl Fn(__m256i) -> __m256i,
    ) -> usize {
        let centre = _mm256_set1_epi64x(line.centre);
        let first = _mm256_set1_epi64x(line.first);
        let gcd = _mm256_set1_epi64x(line.gcd.cast_signed());
        let one = _mm256_set1_epi64x(1);
        let mut slope = _mm256_set1_epi64x(line.slope);
        let mut y = _mm256_set1_epi64x(line.y);
        let groups = residuals.chunks_exact(4);
        let done = residuals.len() - groups.remainder().len();
        for (at, group) in groups.enumerate() {
            // SAFETY: the group has four words.
            let zigzag = unsafe { _mm256_loadu_si256(group.as_ptr().cast()) };
            let sign = _mm256_sub_epi64(_mm256_setzero_si256(), _mm256_and_si256(zigzag, one));
            let residual = _mm256_xor_si256(_mm256_srli_epi64::<1>(zigzag), sign);
            let residual = _mm256_add_epi64(residual, centre);
            let scaled = if ORDER == Order::Values as u8 {
                y = residual;
                y
            } else if ORDER == Order::Deltas as u8 {
                sums(residual, &mut y)
            } else {
                let slopes = sums(residual, &mut slope);
                sums(slopes, &mut y)
            };
            let scaled = if SCALED { product(scaled, gcd) } else { scaled };
            let number = finish(_mm256_add_epi64(scaled, first));
            // SAFETY: there is a word in `out` for each residual, by the caller's promise.
            unsafe { _mm256_storeu_si256(out.wrapping_add(at), number) };
        }
        if done > 0 {
            line.y = _mm256_extract_epi64::<3>(y);
            line.slope = _mm256_extract_epi64::<3>(slope);
        }
        done
    }

    /// Running sums on top of `before`, whose lanes are all the last sum and become the new one.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn sums(x: __m256i, before: &mut __m256i) -> __m256i {
        let zero = _mm256_setzero_si256();
        // (a, a+b, c, c+d), then the second's last on top of both of the third and fourth.
        let pairs = _mm256_add_epi64(x, _mm256_slli_si256::<8>(x));
        let low = _mm256_blend_epi32::<0b1111_0000>(zero, _mm256_permute4x64_epi64::<0b01_01_01_01>(pairs));
        let own = _mm256_add_epi64(pairs, low);
        let all = _mm256_add_epi64(own, *before);
        // Only this addition waits for the group before.
        *before = _mm256_add_epi64(*before, _mm256_permute4x64_epi64::<0b11_11_11_11>(own));
        all
    }

    /// The low 64 bits of each product.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn product(a: __m256i, b: __m256i) -> __m256i {
        let cross = _mm256_mul_epu32(_mm256_srli_epi64::<32>(a), b);
        let other = _mm256_mul_epu32(a, _mm256_srli_epi64::<32>(b));
        let high = _mm256_slli_epi64::<32>(_mm256_add_epi64(cross, other));
        _mm256_add_epi64(_mm256_mul_epu32(a, b), high)
    }

    /// The nearest `f64` of each number. AVX2 has no such instruction: the high 48 and the low 16 bits become
    /// the digits of two floats of known exponents, whose sum is rounded once.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn real(x: __m256i) -> __m256d {
        // 3 * 2^67, 2^52, and the sum of both.
        let high_exponent = _mm256_set1_pd(442_721_857_769_029_238_784.0);
        let low_exponent = _mm256_castpd_si256(_mm256_set1_pd(4_503_599_627_370_496.0));
        let both = _mm256_set1_pd(442_726_361_368_656_609_280.0);
        let high = _mm256_srai_epi32::<16>(x);
        let high = _mm256_blend_epi16::<0x33>(high, _mm256_setzero_si256());
        let high = _mm256_add_epi64(high, _mm256_castpd_si256(high_exponent));
        let low = _mm256_blend_epi16::<0x88>(x, low_exponent);
        _mm256_add_pd(_mm256_sub_pd(_mm256_castsi256_pd(high), both), _mm256_castsi256_pd(low))
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn bits(x: __m256d) -> __m256i {
        _mm256_castpd_si256(x)
    }
}

#[cfg(test)]
mod tests {
    use super::super::ints::{Order, Target};
    use super::*;
    use proptest::prelude::*;

    fn line() -> impl Strategy<Value = Line> {
        let small = || prop_oneof![any::<i64>(), -50..50_i64, Just(0)];
        let gcd = prop_oneof![Just(1), 1..5000_u64, any::<u64>()];
        (0..3_usize, small(), gcd, small(), small(), small()).prop_map(
            |(order, first, gcd, centre, y, slope)| Line {
                order: Order::ALL[order],
                first,
                gcd,
                centre,
                y,
                slope,
            },
        )
    }

    fn residuals() -> impl Strategy<Value = Vec<u64>> {
        let residual = prop_oneof![3 => 0..100_u64, 1 => any::<u64>(), 1 => (any::<u64>(), 0..64_u32).prop_map(|(n, s)| n >> s)];
        proptest::collection::vec(residual, 0..130)
    }

    proptest! {
        #[test]
        fn vectors_give_what_the_scalar_loop_gives(line in line(), residuals in residuals(), exponent in 0..16_i32) {
            let (mut fast, mut slow) = (line, line);
            let mut got = vec![0; residuals.len()];
            let done = numbers(&mut fast, &residuals, &mut got);
            let mut want = vec![0; done];
            slow.follow(&residuals[..done], |at, number| want[at] = number);
            prop_assert_eq!(&got[..done], &want[..]);
            prop_assert_eq!(fast, slow);

            let power = 10_f64.powi(exponent);
            for finish in [Finish::Whole, Finish::Divide(power), Finish::Multiply(1.0 / power), Finish::Place] {
                let (mut fast, mut got) = (line, vec![0.0; residuals.len()]);
                let done = values(&mut fast, finish, &residuals, &mut got);
                let bits = |value: f64| value.to_bits();
                let got: Vec<u64> = got[..done].iter().copied().map(bits).collect();
                let want: Vec<u64> = want[..done].iter().map(|number| bits(finish.item(*number))).collect();
                prop_assert_eq!(got, want);
                prop_assert_eq!(fast, slow);
            }
        }
    }
}

//! Random histograms for property tests: every field any bits, layouts from few, so that they repeat.

use proptest::prelude::*;
use std::sync::Arc;

use super::{Buckets, CounterResetHint, Histogram, Span};
use crate::{CUSTOM_BUCKETS_SCHEMA, STALE_NAN_BITS};

/// All that tells a histogram from another.
pub(crate) fn bits(h: &Histogram) -> impl PartialEq + std::fmt::Debug + Clone + use<> {
    let all = |values: &[f64]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    let side = |side: &Buckets| (side.spans.clone(), all(&side.counts));
    let figures = all(&[h.zero_threshold, h.zero_count, h.count, h.sum]);
    (h.hint, h.schema, figures, side(&h.positive), side(&h.negative), all(&h.custom_values))
}

fn any_double() -> impl Strategy<Value = f64> {
    prop_oneof![
        any::<u64>().prop_map(f64::from_bits),
        (0_u32..50).prop_map(f64::from),
        Just(-0.0),
        Just(f64::from_bits(STALE_NAN_BITS)),
        Just(9_007_199_254_740_992.0),
    ]
}

fn any_side() -> impl Strategy<Value = Buckets> {
    let span = (-3_i32..4, 0_u32..4).prop_map(|(offset, length)| Span { offset, length });
    let spans = proptest::collection::vec(span, 0..3).prop_map(|mut spans| {
        spans.iter_mut().skip(1).for_each(|span| span.offset = span.offset.abs());
        spans
    });
    spans.prop_flat_map(|spans| {
        let buckets: u32 = spans.iter().map(|span| span.length).sum();
        let whole = proptest::collection::vec((0_u32..900).prop_map(f64::from), buckets as usize);
        let counts = prop_oneof![whole, proptest::collection::vec(any_double(), buckets as usize)];
        counts.prop_map(move |counts| Buckets::new(spans.clone(), counts).expect("as many as described"))
    })
}

/// Any histogram, sensible or not.
pub(crate) fn any_histogram() -> impl Strategy<Value = Histogram> {
    let hints = [
        CounterResetHint::Unknown,
        CounterResetHint::Reset,
        CounterResetHint::NotReset,
        CounterResetHint::Gauge,
    ];
    let schema = prop_oneof![Just(CUSTOM_BUCKETS_SCHEMA), -4_i32..9, any::<i32>()];
    let figures = prop_oneof![
        [any_double(), any_double(), any_double(), any_double()],
        [0_u32..4, 0_u32..4, 0_u32..4, 0_u32..4].prop_map(|whole| whole.map(f64::from)),
    ];
    let bounds = proptest::collection::vec(any_double(), 0..3);
    (proptest::sample::select(hints.to_vec()), schema, figures, any_side(), any_side(), bounds).prop_map(
        |(hint, schema, [zero_threshold, zero_count, count, sum], positive, negative, bounds)| Histogram {
            hint,
            schema,
            zero_threshold,
            zero_count,
            count,
            sum,
            positive,
            negative,
            custom_values: Arc::from(bounds),
        },
    )
}

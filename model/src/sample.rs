//! Samples, timestamps and the rule that ends conflicts.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::Histogram;

/// The bits of the NaN that marks a series as stale (Prometheus, `model/value`).
pub const STALE_NAN_BITS: u64 = 0x7ff0_0000_0000_0002;

/// Length of a window in milliseconds: 2 h of samples are stored, compared and written down as equal together. Windows
/// begin at multiples of it.
pub const WINDOW_MS: i64 = 2 * 3600 * 1000;

/// Milliseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TimestampMs(pub i64);

impl fmt::Display for TimestampMs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// One value at one time. The value's bits are data: NaN payloads and stale markers are kept.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// When.
    pub timestamp: TimestampMs,
    /// What, bit for bit.
    pub value: f64,
}

/// Whether `value` is the stale marker and not just any NaN.
pub fn is_stale_nan(value: f64) -> bool {
    value.to_bits() == STALE_NAN_BITS
}

/// The value that two replicas agree on when they hold different bits for one series and timestamp.
///
/// A value beats a stale marker; among values the larger by IEEE 754 total order wins. A native histogram beats
/// a float, but not if it is a stale marker and the float is none ([`float_beats_histogram`]); among histograms
/// the greater by [`Histogram::total_cmp`] wins ([`resolve_histograms`]).
///
/// So there is one order of all samples: stale floats, stale histograms, floats, histograms. Taking the
/// greatest is commutative, associative and idempotent: any order of arrival, flush, merge and repair ends in
/// the same state, without clocks.
pub fn resolve(a: f64, b: f64) -> f64 {
    match (is_stale_nan(a), is_stale_nan(b)) {
        (true, _) => b,
        (_, true) => a,
        _ if a.total_cmp(&b).is_ge() => a,
        _ => b,
    }
}

/// The histogram that wins over the other, by the rule of [`resolve`].
pub fn resolve_histograms<'a>(a: &'a Arc<Histogram>, b: &'a Arc<Histogram>) -> &'a Arc<Histogram> {
    match (a.is_stale(), b.is_stale()) {
        (true, false) => b,
        (false, true) => a,
        _ if a.total_cmp(b).is_ge() => a,
        _ => b,
    }
}

/// Whether a float wins over a histogram at the same time, by the rule of [`resolve`].
pub fn float_beats_histogram(float: f64, histogram: &Histogram) -> bool {
    histogram.is_stale() && !is_stale_nan(float)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn value() -> impl Strategy<Value = f64> {
        prop_oneof![
            any::<u64>().prop_map(f64::from_bits),
            Just(f64::from_bits(STALE_NAN_BITS)),
            Just(0.0),
            Just(-0.0),
            Just(f64::INFINITY),
            Just(f64::NAN),
        ]
    }

    /// A sample of either kind.
    #[derive(Clone, Debug)]
    enum Either {
        Float(f64),
        Histogram(Arc<Histogram>),
    }

    impl Either {
        fn resolve(&self, other: &Self) -> Self {
            match (self, other) {
                (Self::Float(a), Self::Float(b)) => Self::Float(resolve(*a, *b)),
                (Self::Histogram(a), Self::Histogram(b)) => {
                    Self::Histogram(Arc::clone(resolve_histograms(a, b)))
                }
                (Self::Float(float), Self::Histogram(histogram))
                | (Self::Histogram(histogram), Self::Float(float)) => {
                    match float_beats_histogram(*float, histogram) {
                        true => Self::Float(*float),
                        false => Self::Histogram(Arc::clone(histogram)),
                    }
                }
            }
        }

        fn bits(&self) -> (Option<u64>, Option<impl PartialEq + fmt::Debug + use<>>) {
            match self {
                Self::Float(float) => (Some(float.to_bits()), None),
                Self::Histogram(histogram) => (None, Some(crate::histogram::random::bits(histogram))),
            }
        }
    }

    fn either() -> impl Strategy<Value = Either> {
        let histogram = crate::histogram::random::any_histogram();
        prop_oneof![
            value().prop_map(Either::Float),
            histogram.prop_map(|histogram| Either::Histogram(Arc::new(histogram))),
        ]
    }

    proptest! {
        #[test]
        fn resolving_kinds_is_order_free(a in either(), b in either(), c in either()) {
            prop_assert_eq!(a.resolve(&b).bits(), b.resolve(&a).bits());
            prop_assert_eq!(a.resolve(&b).resolve(&c).bits(), a.resolve(&b.resolve(&c)).bits());
            prop_assert_eq!(a.resolve(&a).bits(), a.bits());
        }

        #[test]
        fn resolve_is_order_free(a in value(), b in value(), c in value()) {
            let bits = |v: f64| v.to_bits();
            prop_assert_eq!(bits(resolve(a, b)), bits(resolve(b, a)));
            prop_assert_eq!(bits(resolve(resolve(a, b), c)), bits(resolve(a, resolve(b, c))));
            prop_assert_eq!(bits(resolve(a, a)), bits(a));
        }
    }

    #[test]
    fn a_value_beats_a_stale_marker() {
        let stale = f64::from_bits(STALE_NAN_BITS);
        assert_eq!(resolve(stale, f64::NEG_INFINITY), f64::NEG_INFINITY);
        assert_eq!(resolve(3.0, stale), 3.0);
        assert_eq!(resolve(3.0, 4.0), 4.0);
    }
}

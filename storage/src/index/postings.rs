//! Which series of a shard have a label pair. Most pairs have few series, or a run of neighbours (all series
//! of one target): those must not cost a bitmap each.

use std::hash::Hasher;

use roaring::RoaringBitmap;

/// Most ordinals that are kept as a list.
const FEW_MAX: usize = 64;

/// Ordinals of at least one series.
#[derive(Debug)]
pub(crate) enum Posting {
    /// From the first to the last, both inclusive.
    Run { first: u32, last: u32 },
    /// Ascending.
    #[expect(clippy::box_collection, reason = "a pointer is what keeps all postings at 16 bytes")]
    Few(Box<Vec<u32>>),
    /// Anything else.
    Many(Box<RoaringBitmap>),
}

impl Posting {
    pub(crate) fn of(ordinal: u32) -> Self {
        Self::Run { first: ordinal, last: ordinal }
    }

    /// Adds an ordinal above all others.
    pub(crate) fn push(&mut self, ordinal: u32) {
        match self {
            Self::Run { last, .. } if last.checked_add(1) == Some(ordinal) => *last = ordinal,
            Self::Run { first, last } => {
                let (first, last) = (*first, *last);
                *self = if (last - first) as usize + 2 <= FEW_MAX {
                    Self::Few(Box::new((first..=last).chain([ordinal]).collect()))
                } else {
                    let mut many = RoaringBitmap::new();
                    many.insert_range(first..=last);
                    many.insert(ordinal);
                    Self::Many(Box::new(many))
                };
            }
            Self::Few(few) if few.len() < FEW_MAX => few.push(ordinal),
            Self::Few(few) => {
                let many = few.iter().copied().chain([ordinal]).collect();
                *self = Self::Many(Box::new(many));
            }
            Self::Many(many) => {
                many.insert(ordinal);
            }
        }
    }

    /// Without `gone`; `None` if nothing is left.
    pub(crate) fn without(self, gone: &RoaringBitmap) -> Option<Self> {
        match self {
            Self::Run { first, last } if gone.range_cardinality(first..=last) == 0 => Some(self),
            Self::Many(mut many) => {
                *many -= gone;
                Self::from_bitmap(*many)
            }
            few => {
                let mut left = few.to_bitmap();
                left -= gone;
                Self::from_bitmap(left)
            }
        }
    }

    /// The smallest form. `None` if there are no ordinals.
    fn from_bitmap(mut bitmap: RoaringBitmap) -> Option<Self> {
        let (first, last, count) = (bitmap.min()?, bitmap.max()?, bitmap.len());
        Some(if u64::from(last - first) + 1 == count {
            Self::Run { first, last }
        } else if count <= FEW_MAX as u64 {
            Self::Few(Box::new(bitmap.iter().collect()))
        } else {
            bitmap.optimize();
            Self::Many(Box::new(bitmap))
        })
    }

    /// Makes it as small as it can be.
    pub(crate) fn optimize(&mut self) {
        match self {
            Self::Run { .. } => {}
            Self::Few(few) => few.shrink_to_fit(),
            Self::Many(many) => {
                many.optimize();
            }
        }
    }

    /// Adds its ordinals to a set.
    pub(crate) fn add_to(&self, set: &mut RoaringBitmap) {
        match self {
            Self::Run { first, last } => {
                set.insert_range(*first..=*last);
            }
            Self::Few(few) => set.extend(few.iter().copied()),
            Self::Many(many) => *set |= &**many,
        }
    }

    /// Takes its ordinals out of a set.
    pub(crate) fn remove_from(&self, set: &mut RoaringBitmap) {
        match self {
            Self::Run { first, last } => {
                set.remove_range(*first..=*last);
            }
            Self::Few(few) => {
                for ordinal in &**few {
                    set.remove(*ordinal);
                }
            }
            Self::Many(many) => *set -= &**many,
        }
    }

    /// Leaves in a set only its ordinals.
    pub(crate) fn narrow(&self, set: &mut RoaringBitmap) {
        match self {
            Self::Run { first, last } => {
                set.remove_range(..*first);
                if let Some(behind) = last.checked_add(1) {
                    set.remove_range(behind..);
                }
            }
            Self::Few(few) => *set = few.iter().copied().filter(|ordinal| set.contains(*ordinal)).collect(),
            Self::Many(many) => *set &= &**many,
        }
    }

    /// Whether one of its ordinals is in the set.
    pub(crate) fn touches(&self, set: &RoaringBitmap) -> bool {
        match self {
            Self::Run { first, last } => set.range_cardinality(*first..=*last) > 0,
            Self::Few(few) => few.iter().any(|ordinal| set.contains(*ordinal)),
            Self::Many(many) => !many.is_disjoint(set),
        }
    }

    pub(crate) fn to_bitmap(&self) -> RoaringBitmap {
        let mut set = RoaringBitmap::new();
        self.add_to(&mut set);
        set
    }

    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::Run { first, last } => u64::from(last - first) + 1,
            Self::Few(few) => few.len() as u64,
            Self::Many(many) => many.len(),
        }
    }

    /// Roughly the bytes behind the pointer.
    pub(crate) fn heap_bytes(&self) -> usize {
        match self {
            Self::Run { .. } => 0,
            Self::Few(few) => size_of::<Vec<u32>>() + few.capacity() * size_of::<u32>(),
            Self::Many(many) => size_of::<RoaringBitmap>() + many.serialized_size() + 48,
        }
    }
}

/// Pair numbers are small and dense: one multiplication spreads them.
#[derive(Debug, Default)]
pub(crate) struct PairHasher(u64);

impl Hasher for PairHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
    }

    fn write_u32(&mut self, pair: u32) {
        self.0 = u64::from(pair).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_posting_is_two_words() {
        assert_eq!(size_of::<Posting>(), 16);
    }

    proptest! {
        #[test]
        fn a_posting_is_a_set(
            steps in proptest::collection::vec(prop_oneof![4 => Just(1_u32), 1 => 2..50_u32], 1..300),
            gone in proptest::collection::btree_set(0..2000_u32, 0..300),
            from in 0..2000_u32, other in proptest::collection::btree_set(0..2000_u32, 0..100),
        ) {
            let ordinals: Vec<u32> =
                steps.iter().scan(0, |at, step| { *at += step; Some(*at) }).collect();
            let mut posting = Posting::of(ordinals[0]);
            for ordinal in &ordinals[1..] {
                posting.push(*ordinal);
            }
            let mut want: RoaringBitmap = ordinals.iter().copied().collect();
            let other: RoaringBitmap = other.into_iter().chain(from..from + 40).collect();
            let check = |posting: &Posting, want: &RoaringBitmap| {
                assert_eq!(posting.to_bitmap(), *want);
                assert_eq!(posting.len(), want.len());
                assert_eq!(posting.touches(&other), !want.is_disjoint(&other));
                let mut set = other.clone();
                posting.remove_from(&mut set);
                assert_eq!(set, &other - want);
                let mut set = other.clone();
                posting.narrow(&mut set);
                assert_eq!(set, &other & want);
            };
            check(&posting, &want);
            let gone: RoaringBitmap = gone.into_iter().collect();
            want -= &gone;
            let Some(mut left) = posting.without(&gone) else {
                prop_assert!(want.is_empty());
                return Ok(());
            };
            check(&left, &want);
            for ordinal in 20_000..20_003 {
                left.push(ordinal);
                want.insert(ordinal);
            }
            left.optimize();
            check(&left, &want);
        }
    }
}

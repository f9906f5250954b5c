//! The rows of the `index` family that say, day by day, which series have which label: how series that are not
//! in memory are found. `docs/data-format.md` shows the same table.
//!
//! | key field | bytes | content |
//! |---|---|---|
//! | `d` | 1 | |
//! | day | 4 | number of the day (UTC, may be negative), plus 2^31 |
//! | shard | 2 | |
//! | tenant | n | its name |
//! | 0 | 1 | no name contains it |
//! | `a`, or `p` and a label pair | | all series of the tenant; or those with this pair |
//!
//! A label pair is the name, each byte 0 followed by 255; 0 and 1; the value as it is. So the rows of a name are
//! neighbours, in the order of their values. The row's value is a roaring bitmap of ordinals in its portable
//! serialisation. Writing one adds to what is there (RocksDB's merge operator), so a flush reads nothing.

use roaring::RoaringBitmap;
use saturn_model::{ShardId, TenantId};

use crate::keys::{Span, Window};
use crate::wire::Reader;

const DAY_ROW: u8 = b'd';
const ALL: u8 = b'a';
const PAIR: u8 = b'p';

/// A day in UTC, numbered so that unsigned order is the order of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Day(u32);

impl Day {
    /// The day that the window lies in.
    pub(crate) fn of(window: Window) -> Self {
        let number = window.number().div_euclid(Span::Day.windows());
        Self(number.cast_unsigned() ^ 1 << 31)
    }

    /// The keys of one shard's rows of the day: the first, and one behind the last.
    pub(crate) fn range(self, shard: ShardId) -> (Vec<u8>, Vec<u8>) {
        let from = self.prefix(shard);
        // Tenants' names do not contain the byte 255.
        let to = [from.as_slice(), &[u8::MAX]].concat();
        (from, to)
    }

    /// Day and shard of a row.
    pub(crate) fn of_key(key: &[u8]) -> Option<(Self, ShardId)> {
        let mut reader = Reader::new(key.strip_prefix(&[DAY_ROW])?);
        let day = reader.array().map(u32::from_be_bytes)?;
        Some((Self(day), ShardId(reader.array().map(u16::from_be_bytes)?)))
    }

    fn prefix(self, shard: ShardId) -> Vec<u8> {
        let mut key = Vec::with_capacity(64);
        key.push(DAY_ROW);
        key.extend_from_slice(&self.0.to_be_bytes());
        key.extend_from_slice(&shard.0.to_be_bytes());
        key
    }
}

/// One tenant's rows of one shard and day.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct DayRows {
    prefix: Vec<u8>,
}

impl DayRows {
    pub(crate) fn new(day: Day, shard: ShardId, tenant: &TenantId) -> Self {
        let mut prefix = day.prefix(shard);
        prefix.extend_from_slice(tenant.as_str().as_bytes());
        prefix.push(0);
        Self { prefix }
    }

    /// The key of the row with all series.
    pub(crate) fn all(&self) -> Vec<u8> {
        [self.prefix.as_slice(), &[ALL]].concat()
    }

    /// The key of a pair's row; of an empty value, what all keys of the label begin with.
    pub(crate) fn pair(&self, name: &str, value: &str) -> Vec<u8> {
        let mut key = Vec::with_capacity(self.prefix.len() + name.len() + value.len() + 8);
        key.extend_from_slice(&self.prefix);
        key.push(PAIR);
        for byte in name.bytes() {
            key.push(byte);
            if byte == 0 {
                key.push(u8::MAX);
            }
        }
        key.extend_from_slice(&[0, 1]);
        key.extend_from_slice(value.as_bytes());
        key
    }

    /// What all keys of pairs begin with.
    pub(crate) fn pairs(&self) -> Vec<u8> {
        [self.prefix.as_slice(), &[PAIR]].concat()
    }

    /// Name and value of a key of these rows. `None` if it is none.
    pub(crate) fn read_pair(&self, key: &[u8]) -> Option<(String, String)> {
        let rest = key.strip_prefix(self.prefix.as_slice())?.strip_prefix(&[PAIR])?;
        let mut name = Vec::new();
        let mut at = 0;
        loop {
            match (rest.get(at)?, rest.get(at + 1)) {
                (0, Some(1)) => break,
                (0, Some(&u8::MAX)) => {
                    name.push(0);
                    at += 2;
                }
                (0, _) => return None,
                (byte, _) => {
                    name.push(*byte);
                    at += 1;
                }
            }
        }
        let value = String::from_utf8(rest.get(at + 2..)?.to_vec()).ok()?;
        Some((String::from_utf8(name).ok()?, value))
    }
}

/// The first key behind all keys that begin with `prefix`, which is not all 255s.
pub(crate) fn behind(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while end.pop_if(|last| *last == u8::MAX).is_some() {}
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

pub(crate) fn encode(ordinals: &RoaringBitmap) -> Vec<u8> {
    let mut value = Vec::with_capacity(ordinals.serialized_size());
    ordinals.serialize_into(&mut value).expect("writing to memory does not fail");
    value
}

pub(crate) fn decode(value: &[u8]) -> Option<RoaringBitmap> {
    RoaringBitmap::deserialize_from(value).ok()
}

/// The merge operator: everything that any of the values holds. `None` if one is damaged.
pub(crate) fn union<'a>(values: impl Iterator<Item = &'a [u8]>) -> Option<Vec<u8>> {
    let mut all = RoaringBitmap::new();
    for value in values {
        all |= decode(value)?;
    }
    all.optimize();
    Some(encode(&all))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::WINDOW_MS;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn keys_keep_pairs_and_their_order(
            mut pairs in proptest::collection::vec(("[a\0\u{1}é]{1,4}", "[a\0\u{1}é]{0,4}"), 2..6),
            day in any::<u32>(), shard in any::<u16>(),
        ) {
            let rows = DayRows::new(Day(day), ShardId(shard), &TenantId::new("demo").expect("valid"));
            for (name, value) in &pairs {
                prop_assert_eq!(rows.read_pair(&rows.pair(name, value)), Some((name.clone(), value.clone())));
                prop_assert!(rows.pair(name, value).starts_with(&rows.pair(name, "")));
                prop_assert!(rows.pair(name, value) < behind(&rows.pair(name, "")));
                let (from, to) = Day(day).range(ShardId(shard));
                prop_assert!(from < rows.pair(name, value) && rows.pair(name, value) < to && rows.all() < to);
            }
            let name = pairs[0].0.clone();
            for pair in &mut pairs {
                pair.0.clone_from(&name);
            }
            pairs.sort();
            let keys: Vec<Vec<u8>> = pairs.iter().map(|(n, v)| rows.pair(n, v)).collect();
            prop_assert!(keys.is_sorted());
        }

        #[test]
        fn a_day_has_twelve_windows(t in -1_000_000_000_000_000_i64..1_000_000_000_000_000) {
            let day_ms = 12 * WINDOW_MS;
            let day = |t| Day::of(Window::of(t).expect("in range"));
            let start = t.div_euclid(day_ms) * day_ms;
            prop_assert_eq!(day(t), day(start));
            prop_assert_eq!(day(start), day(start + day_ms - 1));
            prop_assert!(day(start) < day(start + day_ms));
        }

        #[test]
        fn merging_is_union(sets in proptest::collection::vec(proptest::collection::btree_set(any::<u32>(), 0..50), 0..5)) {
            let values: Vec<Vec<u8>> = sets.iter().map(|set| encode(&set.iter().copied().collect())).collect();
            let merged = union(values.iter().map(Vec::as_slice)).and_then(|value| decode(&value));
            prop_assert_eq!(merged, Some(sets.into_iter().flatten().collect()));
        }

        #[test]
        fn damaged_rows_are_refused_or_read(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let rows = DayRows::new(Day(0), ShardId(0), &TenantId::new("t").expect("valid"));
            let _ = rows.read_pair(&[rows.pairs(), bytes.clone()].concat());
            let _ = decode(&bytes);
        }
    }

    #[test]
    fn behind_is_behind() {
        assert_eq!(behind(b"ab"), b"ac");
        assert_eq!(behind(&[7, 255, 255]), [8]);
    }
}

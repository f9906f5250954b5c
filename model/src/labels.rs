//! Label sets in one canonical encoding.
//!
//! A label set is stored as a single string: for each label, sorted by name, the length of the name, the
//! name, the length of the value, the value. Lengths are written in ASCII bytes (seven bits each), so that
//! the whole stays valid UTF-8 and slices of it need no checks: one byte below 127, or the byte 127
//! followed by four bytes, most significant first. Equal label sets are equal strings, and hashing
//! or comparing a set touches one allocation.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

/// The label that holds the metric's name.
pub const METRIC_NAME: &str = "__name__";

/// Length byte that announces a four-byte length.
const LONG: u8 = 127;
/// Longest name or value that the encoding can hold, in bytes.
const TEXT_BYTES_MAX: usize = (1 << 28) - 1;

/// An immutable, canonical label set. Cloning shares the storage.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Labels(Arc<str>);

/// Why pairs of strings are no label set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidLabels {
    /// A label has no name.
    #[error("label with an empty name (value {value:?})")]
    EmptyName {
        /// The value that came with it.
        value: String,
    },
    /// Two labels have one name.
    #[error("duplicate label name {name:?}")]
    Duplicate {
        /// The name that occurs twice.
        name: String,
    },
    /// An encoded label set does not decode.
    #[error("label encoding is damaged at byte {at}")]
    Damaged {
        /// Offset of the first byte that makes no sense.
        at: usize,
    },
}

/// Appends one label to `encoded`. Labels must be appended in ascending order of their names.
pub fn append_label_pair(encoded: &mut String, name: &str, value: &str) {
    append_text(encoded, name);
    append_text(encoded, value);
}

fn append_text(encoded: &mut String, text: &str) {
    let len = text.len();
    assert!(len <= TEXT_BYTES_MAX, "label text of {len} bytes");
    if len < usize::from(LONG) {
        encoded.push(char::from(len.to_le_bytes()[0]));
    } else {
        encoded.push(char::from(LONG));
        for shift in [21, 14, 7, 0] {
            encoded.push(char::from(((len >> shift) & 0x7f).to_le_bytes()[0]));
        }
    }
    encoded.push_str(text);
}

/// Takes one length-prefixed text off `encoded` at `at`.
fn take_text(encoded: &str, at: usize) -> Option<(&str, usize)> {
    let bytes = encoded.as_bytes();
    let first = *bytes.get(at)?;
    let (len, start) = match first {
        LONG => {
            let digits = bytes.get(at + 1..at + 5)?;
            let len = digits.iter().fold(0_usize, |n, b| n << 7 | usize::from(*b));
            (len, at + 5)
        }
        len if len < LONG => (usize::from(len), at + 1),
        _ => return None,
    };
    let end = start.checked_add(len)?;
    Some((encoded.get(start..end)?, end))
}

/// The pairs of an encoded label set; stops at the first damaged byte.
pub fn decode_label_pairs(encoded: &str) -> impl Iterator<Item = (&str, &str)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let (name, next) = take_text(encoded, at)?;
        let (value, next) = take_text(encoded, next)?;
        at = next;
        Some((name, value))
    })
}

impl Labels {
    /// The label set without labels.
    pub fn empty() -> Self {
        Self("".into())
    }

    /// Sorts `pairs` and makes them a label set. Pairs with an empty value are dropped: in Prometheus's
    /// data model an empty label is a missing one.
    pub fn from_pairs<'a>(
        pairs: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, InvalidLabels> {
        let mut pairs: Vec<(&str, &str)> = pairs.into_iter().collect();
        pairs.sort_by_key(|(name, _)| *name);
        if let Some(pair) = pairs.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(InvalidLabels::Duplicate { name: pair[0].0.into() });
        }
        if let Some(("", value)) = pairs.first() {
            return Err(InvalidLabels::EmptyName { value: (*value).into() });
        }
        let mut encoded = String::new();
        for (name, value) in pairs.into_iter().filter(|(_, value)| !value.is_empty()) {
            append_label_pair(&mut encoded, name, value);
        }
        Ok(Self(encoded.into()))
    }

    /// Checks an encoding that came from disk or from another node.
    pub fn from_encoded(encoded: &str) -> Result<Self, InvalidLabels> {
        let mut at = 0;
        let mut last_name: Option<&str> = None;
        while at < encoded.len() {
            let damaged = InvalidLabels::Damaged { at };
            let Some((name, next)) = take_text(encoded, at) else {
                return Err(damaged);
            };
            let Some((value, next)) = take_text(encoded, next) else {
                return Err(damaged);
            };
            let in_order = last_name.is_none_or(|last| last < name);
            if !in_order || name.is_empty() || value.is_empty() {
                return Err(damaged);
            }
            last_name = Some(name);
            at = next;
        }
        Ok(Self(encoded.into()))
    }

    /// The canonical encoding (see the module's description).
    pub fn as_encoded(&self) -> &str {
        &self.0
    }

    /// The labels in ascending order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        decode_label_pairs(&self.0)
    }

    /// The value of label `name`, if the set has it.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.iter().find(|(n, _)| *n == name).map(|(_, value)| value)
    }

    /// The metric's name, or "" if it has none.
    pub fn metric_name(&self) -> &str {
        self.get(METRIC_NAME).unwrap_or_default()
    }

    /// Whether the set has no labels.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many labels the set has.
    pub fn len(&self) -> usize {
        self.iter().count()
    }

    /// Starts a changed copy.
    pub fn to_builder(&self) -> LabelsBuilder {
        LabelsBuilder { pairs: self.iter().map(|(n, v)| (n.into(), v.into())).collect() }
    }
}

impl Default for Labels {
    fn default() -> Self {
        Self::empty()
    }
}

impl Ord for Labels {
    /// Prometheus's `labels.Compare`: pair by pair, name before value; a prefix sorts first.
    fn cmp(&self, other: &Self) -> Ordering {
        self.iter().cmp(other.iter())
    }
}

impl PartialOrd for Labels {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Labels {
    /// `name{a="1", b="2"}`, as Prometheus prints series in messages.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.metric_name();
        f.write_str(name)?;
        let mut others = self.iter().filter(|(n, _)| *n != METRIC_NAME).peekable();
        if others.peek().is_none() && !name.is_empty() {
            return Ok(());
        }
        f.write_str("{")?;
        for (i, (name, value)) in others.enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            write!(f, "{comma}{name}={value:?}")?;
        }
        f.write_str("}")
    }
}

impl fmt::Debug for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Builds a changed label set. Kept sorted by name; the last value set for a name wins.
#[derive(Clone, Debug, Default)]
pub struct LabelsBuilder {
    pairs: Vec<(String, String)>,
}

impl LabelsBuilder {
    /// Starts from nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets `name` to `value`; an empty value removes the label.
    pub fn set(&mut self, name: &str, value: &str) -> &mut Self {
        match self.pairs.binary_search_by(|(n, _)| n.as_str().cmp(name)) {
            Ok(i) if value.is_empty() => {
                self.pairs.remove(i);
            }
            Ok(i) => self.pairs[i].1 = value.into(),
            Err(_) if value.is_empty() => {}
            Err(i) => self.pairs.insert(i, (name.into(), value.into())),
        }
        self
    }

    /// Removes the label `name`, if it is there.
    pub fn remove(&mut self, name: &str) -> &mut Self {
        self.set(name, "")
    }

    /// Keeps only the labels whose name satisfies `keep`.
    pub fn retain(&mut self, mut keep: impl FnMut(&str) -> bool) -> &mut Self {
        self.pairs.retain(|(name, _)| keep(name));
        self
    }

    /// The value of `name`, if set.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.pairs.binary_search_by(|(n, _)| n.as_str().cmp(name)).ok().map(|i| self.pairs[i].1.as_str())
    }

    /// The finished label set.
    pub fn build(&self) -> Labels {
        let mut encoded = String::new();
        for (name, value) in &self.pairs {
            append_label_pair(&mut encoded, name, value);
        }
        Labels(encoded.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_pairs_survive(pairs in proptest::collection::btree_map("\\PC{1,200}", "\\PC{1,300}", 0..8)) {
            let labels = Labels::from_pairs(pairs.iter().map(|(n, v)| (n.as_str(), v.as_str()))).expect("valid");
            let back: Vec<(&str, &str)> = labels.iter().collect();
            let want: Vec<(&str, &str)> = pairs.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
            prop_assert_eq!(back, want);
            prop_assert_eq!(Labels::from_encoded(labels.as_encoded()).expect("valid"), labels.clone());
            prop_assert_eq!(labels.to_builder().build(), labels);
        }

        #[test]
        fn any_text_decodes_or_is_refused(text in "\\PC{0,60}") {
            if let Ok(labels) = Labels::from_encoded(&text) {
                prop_assert_eq!(Labels::from_pairs(labels.iter()).expect("valid"), labels);
            }
        }
    }

    #[test]
    fn long_values_use_the_long_form() {
        for len in [126, 127, 128, 20_000] {
            let value = "v".repeat(len);
            let labels = Labels::from_pairs([("n", value.as_str())]).expect("valid");
            assert_eq!(labels.get("n"), Some(value.as_str()));
        }
    }

    #[test]
    fn refuses_duplicates_and_empty_names() {
        assert_eq!(
            Labels::from_pairs([("a", "1"), ("a", "2")]),
            Err(InvalidLabels::Duplicate { name: "a".into() })
        );
        assert_eq!(Labels::from_pairs([("", "1")]), Err(InvalidLabels::EmptyName { value: "1".into() }));
    }

    #[test]
    fn prints_like_prometheus() {
        let labels = Labels::from_pairs([("b", "x\"y"), ("__name__", "up"), ("a", "1")]).expect("valid");
        assert_eq!(labels.to_string(), r#"up{a="1", b="x\"y"}"#);
        assert_eq!(Labels::empty().to_string(), "{}");
    }

    #[test]
    fn orders_pair_by_pair() {
        let of = |pairs: &[(&'static str, &'static str)]| {
            Labels::from_pairs(pairs.iter().copied()).expect("valid")
        };
        assert!(of(&[("a", "1")]) < of(&[("a", "1"), ("b", "1")]));
        assert!(of(&[("a", "2")]) > of(&[("a", "10")]));
        assert!(of(&[("b", "1")]) > of(&[("a", "9"), ("z", "1")]));
    }
}

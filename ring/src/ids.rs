//! Names and numbers of the cluster: nodes, zones, generations, clusters, epochs.
//!
//! A node's or zone's name ends up in packets, metrics, file names and logs. It is checked once, here,
//! and travels as a [`NodeId`] or [`Zone`] from then on; deserialising checks it again.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Longest node or zone name, in bytes.
pub(crate) const NAME_BYTES_MAX: usize = 63;

/// What an operator calls a node: 1 to 63 of `[a-zA-Z0-9._-]`, starting with a letter or digit.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeId(Arc<str>);

/// Nodes of one zone may fail together (a rack, a data centre). Same rule for names as [`NodeId`].
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Zone(Arc<str>);

/// One life of a node's data directory. A node whose disk was wiped has the same id and another generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Generation(pub Uuid);

/// Which cluster; drawn when the cluster forms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ClusterId(pub Uuid);

/// Version of one shard's record. Replicas refuse requests stamped with a lower one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Epoch(pub u64);

/// Why a string names no node and no zone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "invalid name {name:?}: want 1 to {NAME_BYTES_MAX} of a-z, A-Z, 0-9, '.', '_' and '-', starting with a letter or digit"
)]
pub struct InvalidName {
    /// The offending text, shortened to 80 characters.
    pub name: String,
}

fn check_name(name: &str) -> Result<Arc<str>, InvalidName> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    let bytes = name.as_bytes();
    let valid = (1..=NAME_BYTES_MAX).contains(&bytes.len())
        && bytes.iter().all(|b| allowed(*b))
        && bytes[0].is_ascii_alphanumeric();
    if valid { Ok(name.into()) } else { Err(InvalidName { name: name.chars().take(80).collect() }) }
}

impl NodeId {
    /// Checks `name` and makes it a node id.
    pub fn new(name: &str) -> Result<Self, InvalidName> {
        check_name(name).map(Self)
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Zone {
    /// Checks `name` and makes it a zone.
    pub fn new(name: &str) -> Result<Self, InvalidName> {
        check_name(name).map(Self)
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Epoch {
    /// The epoch of every shard when the cluster forms.
    pub const FIRST: Self = Self(1);

    /// The epoch of the record that follows.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl TryFrom<String> for NodeId {
    type Error = InvalidName;

    fn try_from(name: String) -> Result<Self, InvalidName> {
        Self::new(&name)
    }
}

impl TryFrom<String> for Zone {
    type Error = InvalidName;

    fn try_from(name: String) -> Result<Self, InvalidName> {
        Self::new(&name)
    }
}

impl From<NodeId> for String {
    fn from(id: NodeId) -> Self {
        id.as_str().into()
    }
}

impl From<Zone> for String {
    fn from(zone: Zone) -> Self {
        zone.as_str().into()
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeId({})", self.0)
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Zone({})", self.0)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_host_names() {
        for name in ["a", "node-1", "Saturn_2.zone-a.example", "0", &"x".repeat(63)] {
            assert_eq!(NodeId::new(name).expect("valid").as_str(), name);
            assert_eq!(Zone::new(name).expect("valid").as_str(), name);
        }
    }

    #[test]
    fn refuses_what_could_leave_its_line_or_path() {
        for name in ["", ".", "..", ".a", "-a", "_a", "a/b", "a b", "é", "a\n", &"x".repeat(64)] {
            assert!(NodeId::new(name).is_err(), "{name:?}");
            assert!(Zone::new(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn deserialising_checks_names() {
        let bytes = postcard::to_allocvec("../x").expect("serialises");
        assert!(postcard::from_bytes::<NodeId>(&bytes).is_err());
        let bytes = postcard::to_allocvec("n1").expect("serialises");
        assert_eq!(postcard::from_bytes::<NodeId>(&bytes).expect("valid").as_str(), "n1");
    }
}

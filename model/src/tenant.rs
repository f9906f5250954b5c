//! Tenant names.
//!
//! A tenant name is untrusted input that ends up in metrics, logs and keys; it is checked once, here,
//! and travels as a [`TenantId`] from then on.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Longest tenant name, in bytes.
const TENANT_NAME_BYTES_MAX: usize = 63;

/// A checked tenant name: `[a-z0-9][a-z0-9_-]{0,62}`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TenantId(Arc<str>);

/// Why a string is no tenant name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "invalid tenant name {name:?}: want 1 to {TENANT_NAME_BYTES_MAX} of a-z, 0-9, '_' and '-', starting with a letter or digit"
)]
pub struct InvalidTenant {
    /// The offending text, shortened to 80 characters.
    pub name: String,
}

impl TryFrom<String> for TenantId {
    type Error = InvalidTenant;

    fn try_from(name: String) -> Result<Self, InvalidTenant> {
        Self::new(&name)
    }
}

impl From<TenantId> for String {
    fn from(tenant: TenantId) -> Self {
        tenant.0.as_ref().to_owned()
    }
}

impl TenantId {
    /// Checks `name` and makes it a tenant id.
    pub fn new(name: &str) -> Result<Self, InvalidTenant> {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-';
        let bytes = name.as_bytes();
        let valid = (1..=TENANT_NAME_BYTES_MAX).contains(&bytes.len())
            && bytes.iter().all(|b| allowed(*b))
            && bytes[0] != b'_'
            && bytes[0] != b'-';
        if valid {
            Ok(Self(name.into()))
        } else {
            Err(InvalidTenant { name: name.chars().take(80).collect() })
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TenantId({})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_plain_names() {
        for name in ["a", "demo", "team-a", "0", "a_b-c9", &"x".repeat(63)] {
            assert_eq!(TenantId::new(name).expect("valid").as_str(), name);
        }
    }

    #[test]
    fn refuses_what_could_leave_its_key_or_path() {
        for name in ["", "A", "-a", "_a", "a/b", "..", "a|b", "a b", "é", &"x".repeat(64), "a\0"] {
            assert!(TenantId::new(name).is_err(), "{name:?}");
        }
    }
}

//! What an acknowledgement of an append means, per tenant.

use std::collections::BTreeMap;
use std::time::Duration;

use saturn_model::TenantId;

/// What an append waits for before it is acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// fdatasync of the log: nothing acknowledged is lost in a power cut.
    #[default]
    Fsync,
    /// The write to the log only. A process that dies loses nothing; a power cut or a crash of the operating
    /// system may take what was acknowledged within [`DurabilityOptions::interval`] before.
    Interval,
}

/// Which tenants wait for what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DurabilityOptions {
    /// For every tenant without one of its own.
    pub default: Durability,
    /// For these tenants.
    pub tenants: BTreeMap<TenantId, Durability>,
    /// How long after its write a record is synced at the latest.
    pub interval: Duration,
}

impl Default for DurabilityOptions {
    fn default() -> Self {
        Self { default: Durability::Fsync, tenants: BTreeMap::new(), interval: Duration::from_millis(200) }
    }
}

impl DurabilityOptions {
    /// What this tenant's appends wait for.
    pub fn of(&self, tenant: &TenantId) -> Durability {
        self.tenants.get(tenant).copied().unwrap_or(self.default)
    }
}

//! How long which tenant's samples are kept: the default, named classes, and tenants that have a time or class
//! of their own.

use std::collections::BTreeMap;
use std::time::Duration;

use saturn_model::TenantId;
use saturn_storage::Retention;

use super::settings::{RETENTION_CLASSES, RETENTION_TENANTS, RETENTION_TIME, Setting};
use super::value::parse_kept;
use super::{ConfigError, Given};

/// Reads the settings of retention.
pub(super) fn read(given: &Given) -> Result<Retention, ConfigError> {
    let time = Setting::named(RETENTION_TIME);
    let parse = |text: &str| parse_kept(text, time.min, time.max);
    let mut retention = Retention::of_all(given.value(RETENTION_TIME).kept()?);
    let mut classes: BTreeMap<String, Option<Duration>> = BTreeMap::new();
    if let Some(value) = given.set(RETENTION_CLASSES) {
        for (name, text) in value.pairs()? {
            let kept = parse(&text)
                .ok_or_else(|| value.refused(format!("{}; class {name:?} has {text:?}", time.wants())))?;
            classes.insert(name, kept);
        }
    }
    if let Some(value) = given.set(RETENTION_TENANTS) {
        for (name, text) in value.pairs()? {
            let tenant = TenantId::new(&name)
                .map_err(|e| value.refused(format!("names of tenants; {name:?} is none: {e}")))?;
            let kept = classes.get(&text).copied().or_else(|| parse(&text)).ok_or_else(|| {
                let wants = format!("a class of --{RETENTION_CLASSES} or {}", time.wants());
                value.refused(format!("{wants}; tenant {name:?} has {text:?}"))
            })?;
            retention.tenants.insert(tenant, kept);
        }
    }
    Ok(retention)
}

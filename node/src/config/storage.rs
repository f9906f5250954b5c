//! Settings of the storage engine, but for retention.

use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::Duration;

use saturn_model::TenantId;
use saturn_storage::{Durability, DurabilityOptions, EngineOptions, Retention};

use super::settings::{
    CLUSTER_SHARDS, DURABILITY_INTERVAL, DURABILITY_MODE, DURABILITY_TENANTS, EXEMPLARS_MAX, INDEX_CACHE,
    METADATA_METRICS_MAX, SCRUB_INTERVAL, SCRUB_RATE, SERIES_IDLE,
};
use super::{ConfigError, Given};

const MIB: u64 = 1 << 20;

/// What an operator can set of the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StorageConfig {
    durability: DurabilityOptions,
    series_idle: Duration,
    index_cache_bytes: usize,
    exemplars_per_shard_max: usize,
    metadata_per_shard_max: usize,
    scrub_interval: Option<Duration>,
    scrub_bytes_per_second: Option<NonZeroU64>,
}

impl StorageConfig {
    /// Reads the settings.
    pub(super) fn read(given: &Given) -> Result<Self, ConfigError> {
        let interval = given.value(SCRUB_INTERVAL).duration()?;
        let index_cache = given.value(INDEX_CACHE);
        let shards: usize = given.value(CLUSTER_SHARDS).integer()?;
        let share = |flag| Ok::<_, ConfigError>(given.value(flag).integer::<usize>()?.div_ceil(shards));
        let bytes = usize::try_from(index_cache.integer::<u64>()? * MIB);
        Ok(Self {
            durability: durability(given)?,
            series_idle: given.value(SERIES_IDLE).duration()?,
            index_cache_bytes: bytes.map_err(|_| index_cache.refused("what fits into the address space"))?,
            exemplars_per_shard_max: share(EXEMPLARS_MAX)?,
            metadata_per_shard_max: share(METADATA_METRICS_MAX)?,
            scrub_interval: Some(interval).filter(|interval| !interval.is_zero()),
            scrub_bytes_per_second: NonZeroU64::new(given.value(SCRUB_RATE).integer::<u64>()? * MIB),
        })
    }

    /// The options of an engine in `dir`.
    pub(crate) fn engine_options(&self, dir: PathBuf, retention: Retention) -> EngineOptions {
        EngineOptions {
            retention,
            durability: self.durability.clone(),
            series_idle: self.series_idle,
            index_cache_bytes: self.index_cache_bytes,
            exemplars_per_shard_max: self.exemplars_per_shard_max,
            metadata_per_shard_max: self.metadata_per_shard_max,
            scrub_interval: self.scrub_interval,
            scrub_bytes_per_second: self.scrub_bytes_per_second,
            ..EngineOptions::new(dir)
        }
    }
}

fn durability(given: &Given) -> Result<DurabilityOptions, ConfigError> {
    let default = durability_of(given.value(DURABILITY_MODE).choice()?);
    let interval = given.value(DURABILITY_INTERVAL).duration()?;
    let mut tenants = std::collections::BTreeMap::new();
    if let Some(value) = given.set(DURABILITY_TENANTS) {
        for (name, text) in value.pairs()? {
            let tenant = TenantId::new(&name)
                .map_err(|e| value.refused(format!("names of tenants; {name:?} is none: {e}")))?;
            if !["fsync", "interval"].contains(&text.as_str()) {
                return Err(value.refused(format!("fsync or interval; tenant {name:?} has {text:?}")));
            }
            tenants.insert(tenant, durability_of(&text));
        }
    }
    Ok(DurabilityOptions { default, tenants, interval })
}

fn durability_of(word: &str) -> Durability {
    if word == "interval" { Durability::Interval } else { Durability::Fsync }
}

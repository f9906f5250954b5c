//! Over how many shards tenants are spread: the default, and tenants that have a spread of their own.

use saturn_model::TenantId;
use saturn_ring::{Spread, Spreads};

use super::settings::{SHARDS_OF_TENANTS, SHARDS_PER_TENANT, Setting};
use super::{ConfigError, Given};

/// Reads the settings of shuffle sharding.
pub(super) fn read(given: &Given) -> Result<Spreads, ConfigError> {
    let setting = Setting::named(SHARDS_PER_TENANT);
    let default = given.value(SHARDS_PER_TENANT);
    let parse = |text: &str| parse_spread(text, setting.max);
    let default = parse(&default.text).ok_or_else(|| default.refused(setting.wants()))?;
    let mut spreads = Spreads { default, ..Spreads::default() };
    if let Some(value) = given.set(SHARDS_OF_TENANTS) {
        for (name, text) in value.pairs()? {
            let tenant = TenantId::new(&name)
                .map_err(|e| value.refused(format!("names of tenants; {name:?} is none: {e}")))?;
            let spread = parse(&text)
                .ok_or_else(|| value.refused(format!("{}; tenant {name:?} has {text:?}", setting.wants())))?;
            spreads.tenants.insert(tenant, spread);
        }
    }
    Ok(spreads)
}

/// `N`, or `N/M`. With `N` alone, all shards are read.
fn parse_spread(text: &str, max: u64) -> Option<Spread> {
    let number = |text: &str| {
        let number: u16 = text.parse().ok()?;
        (u64::from(number) <= max).then_some(number)
    };
    let spread = match text.split_once('/') {
        None => Spread { written: number(text)?, read: 0 },
        Some((written, read)) => Spread { written: number(written)?, read: number(read)? },
    };
    spread.is_valid().then_some(spread)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_ask_all_shards_unless_told_otherwise() {
        let parsed = |text| parse_spread(text, 4096).map(|spread| (spread.written, spread.read));
        assert_eq!(parsed("0"), Some((0, 0)));
        assert_eq!(parsed("8"), Some((8, 0)));
        assert_eq!(parsed("8/8"), Some((8, 8)));
        assert_eq!(parsed("8/16"), Some((8, 16)));
        assert_eq!(parsed("8/0"), Some((8, 0)));
        for wrong in ["", "x", "8/", "/8", "-1", "4097", "16/8", "0/8", "8/4097", "8/8/8"] {
            assert_eq!(parsed(wrong), None, "{wrong}");
        }
    }
}

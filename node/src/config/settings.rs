//! The one table of the server's settings. Flags, environment variables, YAML keys, their help and the
//! table in `docs/configuration.md` are all made from it.
//!
//! A setting has one name, its flag's. The YAML path and the environment variable follow from it:
//! `--cluster.replication-factor`, `cluster.replication_factor`, `SATURN_CLUSTER_REPLICATION_FACTOR`.

#[cfg(test)]
use std::fmt::Write as _;

/// Most entries in a list of addresses.
const JOIN_ENTRIES_MAX: u64 = 64;

/// Most entries in a list of pairs.
const PAIRS_MAX: u64 = 10_000;

/// What a setting's text must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A path of a file or folder.
    Path,
    /// A name of letters, digits, `.`, `_` and `-`; minimum and maximum count bytes.
    Name,
    /// A tenant's name.
    Tenant,
    /// `IP:PORT` to listen on, and to tell the other nodes.
    Address,
    /// `HOST:PORT,...`; minimum and maximum count entries.
    AddressList,
    /// A whole number.
    Integer,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A Prometheus duration, or `forever`; minimum and maximum count hours.
    Kept,
    /// A Prometheus duration; minimum and maximum count milliseconds.
    Duration,
    /// `N`, or `N/M` with N up to M, both up to the maximum; 0 is all.
    Spread,
    /// `true` or `false`; the flag alone is `true`.
    Switch,
    /// `NAME=VALUE,...`; minimum and maximum count entries.
    Pairs,
}

/// A row of the table.
#[derive(Debug)]
pub(super) struct Setting {
    /// The flag without its dashes.
    pub(super) flag: &'static str,
    /// What the text must be.
    pub(super) kind: Kind,
    /// What minimum and maximum count, empty where there are none.
    pub(super) unit: &'static str,
    /// The least that is accepted, by the kind's measure.
    pub(super) min: u64,
    /// The most that is accepted, by the kind's measure.
    pub(super) max: u64,
    /// The value where nothing is set; empty: see the help.
    pub(super) default: &'static str,
    /// One or two sentences for `--help` and the documentation.
    pub(super) help: &'static str,
}

pub(super) const CONFIG_FILE: &str = "config.file";
pub(super) const DATA_DIR: &str = "data-dir";
pub(super) const NODE_ID: &str = "node.id";
pub(super) const NODE_ZONE: &str = "node.zone";
pub(super) const HTTP_LISTEN: &str = "http.listen";
pub(super) const GRPC_LISTEN: &str = "grpc.listen";
pub(super) const GOSSIP_LISTEN: &str = "gossip.listen";
pub(super) const CLUSTER_JOIN: &str = "cluster.join";
pub(super) const CLUSTER_REPLICATION_FACTOR: &str = "cluster.replication-factor";
pub(super) const CLUSTER_SHARDS: &str = "cluster.shards";
pub(super) const CLUSTER_WEIGHT: &str = "cluster.weight";
pub(super) const CLUSTER_SECRET_FILE: &str = "cluster.secret-file";
pub(super) const RETENTION_TIME: &str = "storage.tsdb.retention.time";
pub(super) const RETENTION_CLASSES: &str = "storage.retention.classes";
pub(super) const RETENTION_TENANTS: &str = "storage.retention.tenants";
pub(super) const DURABILITY_MODE: &str = "storage.durability.mode";
pub(super) const DURABILITY_TENANTS: &str = "storage.durability.tenants";
pub(super) const DURABILITY_INTERVAL: &str = "storage.durability.interval";
pub(super) const SERIES_IDLE: &str = "storage.series-idle";
pub(super) const INDEX_CACHE: &str = "storage.index-cache";
pub(super) const SCRUB_INTERVAL: &str = "storage.scrub.interval";
pub(super) const SCRUB_RATE: &str = "storage.scrub.rate";
pub(super) const EXEMPLARS_MAX: &str = "storage.exemplars.max-exemplars";
pub(super) const METADATA_METRICS_MAX: &str = "storage.metadata.max-metrics";
pub(super) const SHARDS_PER_TENANT: &str = "shuffle-sharding.shards-per-tenant";
pub(super) const SHARDS_OF_TENANTS: &str = "shuffle-sharding.tenants";
pub(super) const MOVES_RATE: &str = "moves.bytes-per-second";
pub(super) const ENABLE_ADMIN_API: &str = "web.enable-admin-api";
pub(super) const LOG_LEVEL: &str = "log.level";
pub(super) const LOG_FORMAT: &str = "log.format";
pub(super) const TENANT_DEFAULT: &str = "tenant.default";

/// Every setting of the server, in the order of `--help`.
pub(super) const SETTINGS: &[Setting] = &[
    Setting {
        flag: CONFIG_FILE,
        kind: Kind::Path,
        unit: "",
        min: 0,
        max: 0,
        default: "",
        help: "YAML file with any of the settings below. Unset: no file is read.",
    },
    Setting {
        flag: DATA_DIR,
        kind: Kind::Path,
        unit: "",
        min: 0,
        max: 0,
        default: "./data",
        help: "Folder of this node's data; it belongs to one node for good.",
    },
    Setting {
        flag: NODE_ID,
        kind: Kind::Name,
        unit: "bytes",
        min: 1,
        max: 64,
        default: "",
        help: "Name of this node, unique in the cluster. Unset: the host's name.",
    },
    Setting {
        flag: NODE_ZONE,
        kind: Kind::Name,
        unit: "bytes",
        min: 1,
        max: 64,
        default: "default",
        help: "What fails together with this node. Replicas go to different zones where there are enough.",
    },
    Setting {
        flag: HTTP_LISTEN,
        kind: Kind::Address,
        unit: "",
        min: 0,
        max: 0,
        default: "127.0.0.1:9090",
        help: "IP:PORT of the HTTP API: remote write, queries, metrics, health.",
    },
    Setting {
        flag: GRPC_LISTEN,
        kind: Kind::Address,
        unit: "",
        min: 0,
        max: 0,
        default: "127.0.0.1:9095",
        help: "IP:PORT (TCP) on which the other nodes reach this one.",
    },
    Setting {
        flag: GOSSIP_LISTEN,
        kind: Kind::Address,
        unit: "",
        min: 0,
        max: 0,
        default: "127.0.0.1:7946",
        help: "IP:PORT (UDP) of the membership gossip.",
    },
    Setting {
        flag: CLUSTER_JOIN,
        kind: Kind::AddressList,
        unit: "entries",
        min: 1,
        max: JOIN_ENTRIES_MAX,
        default: "",
        help: "HOST:PORT,... of the members' gossip addresses; the first one founds a new cluster. Unset: this node is alone.",
    },
    Setting {
        flag: CLUSTER_REPLICATION_FACTOR,
        kind: Kind::Integer,
        unit: "replicas",
        min: 1,
        max: 7,
        default: "",
        help: "Copies of every sample, fixed when the cluster is founded. Unset: 3, or 1 without --cluster.join.",
    },
    Setting {
        flag: CLUSTER_SHARDS,
        kind: Kind::Integer,
        unit: "shards",
        min: 1,
        max: 4096,
        default: "64",
        help: "Parts that the data is divided into, fixed when the cluster is founded.",
    },
    Setting {
        flag: CLUSTER_WEIGHT,
        kind: Kind::Integer,
        unit: "parts",
        min: 0,
        max: 10_000,
        default: "100",
        help: "How much of its zone this node holds, compared with the other nodes there. 0: it holds no samples.",
    },
    Setting {
        flag: CLUSTER_SECRET_FILE,
        kind: Kind::Path,
        unit: "",
        min: 0,
        max: 0,
        default: "",
        help: "File with the cluster's secret, a line of 16 to 4096 bytes, readable only by its owner; with two lines during a rotation. Unset: all listen addresses must be loopback.",
    },
    Setting {
        flag: RETENTION_TIME,
        kind: Kind::Kept,
        unit: "hours",
        min: 2,
        max: 876_000,
        default: "15d",
        help: "How long samples are kept, in whole days: a duration such as 15d or 1y, or forever.",
    },
    Setting {
        flag: RETENTION_CLASSES,
        kind: Kind::Pairs,
        unit: "entries",
        min: 1,
        max: PAIRS_MAX,
        default: "",
        help: "NAME=DURATION,... of retention times that tenants can be given by name. Unset: there are none.",
    },
    Setting {
        flag: RETENTION_TENANTS,
        kind: Kind::Pairs,
        unit: "entries",
        min: 1,
        max: PAIRS_MAX,
        default: "",
        help: "TENANT=DURATION,... or TENANT=CLASS,...: tenants whose samples are kept for another time. Unset: all keep the same.",
    },
    Setting {
        flag: DURABILITY_MODE,
        kind: Kind::Choice(&["fsync", "interval"]),
        unit: "",
        min: 0,
        max: 0,
        default: "fsync",
        help: "What a write waits for on each replica: fsync, or only the write to the log, which is synced at an interval.",
    },
    Setting {
        flag: DURABILITY_TENANTS,
        kind: Kind::Pairs,
        unit: "entries",
        min: 1,
        max: PAIRS_MAX,
        default: "",
        help: "TENANT=fsync,... or TENANT=interval,...: tenants whose writes wait for something else. Unset: all wait for the same.",
    },
    Setting {
        flag: DURABILITY_INTERVAL,
        kind: Kind::Duration,
        unit: "milliseconds",
        min: 10,
        max: 10_000,
        default: "200ms",
        help: "How long after its write to the log a sample is synced at the latest, of tenants that do not wait for it.",
    },
    Setting {
        flag: SERIES_IDLE,
        kind: Kind::Duration,
        unit: "milliseconds",
        min: 60_000,
        max: 604_800_000,
        default: "1h",
        help: "How long a series stays in memory after its last sample came.",
    },
    Setting {
        flag: INDEX_CACHE,
        kind: Kind::Integer,
        unit: "MiB",
        min: 1,
        max: 65_536,
        default: "32",
        help: "Memory for what queries found of series that are not in memory.",
    },
    Setting {
        flag: SCRUB_INTERVAL,
        kind: Kind::Duration,
        unit: "milliseconds",
        min: 0,
        max: 31_536_000_000,
        default: "1d",
        help: "Time between scrubs, which read everything on disk through its checksums; 0s: only when asked.",
    },
    Setting {
        flag: SCRUB_RATE,
        kind: Kind::Integer,
        unit: "MiB/s",
        min: 0,
        max: 65_536,
        default: "32",
        help: "Most that a scrub reads in a second; 0: as fast as it can.",
    },
    Setting {
        flag: EXEMPLARS_MAX,
        kind: Kind::Integer,
        unit: "exemplars",
        min: 0,
        max: 1_000_000,
        default: "100000",
        help: "Exemplars kept of each tenant, spread evenly over the shards; the oldest give way. 0: none are kept.",
    },
    Setting {
        flag: METADATA_METRICS_MAX,
        kind: Kind::Integer,
        unit: "metrics",
        min: 0,
        max: 1_000_000,
        default: "50000",
        help: "Metrics of each tenant of which metadata is kept, spread evenly over the shards; that of others is dropped.",
    },
    Setting {
        flag: SHARDS_PER_TENANT,
        kind: Kind::Spread,
        unit: "shards",
        min: 0,
        max: 4096,
        default: "0",
        help: "Shards that a tenant's series go to, 0 for all; or N/M: series go to N, queries ask M, the most that there ever were. With N alone, queries ask all.",
    },
    Setting {
        flag: SHARDS_OF_TENANTS,
        kind: Kind::Pairs,
        unit: "entries",
        min: 1,
        max: PAIRS_MAX,
        default: "",
        help: "TENANT=N,... or TENANT=N/M,...: tenants that are spread over another number of shards. Unset: all are spread alike.",
    },
    Setting {
        flag: MOVES_RATE,
        kind: Kind::Integer,
        unit: "bytes/s",
        min: 0,
        max: 100_000_000_000,
        default: "50000000",
        help: "Most that this node takes of shards that move to it, of all together; 0: as fast as it can.",
    },
    Setting {
        flag: ENABLE_ADMIN_API,
        kind: Kind::Switch,
        unit: "",
        min: 0,
        max: 0,
        default: "false",
        help: "Whether clients may delete series and start scrubs: the endpoints below /api/v1/admin.",
    },
    Setting {
        flag: LOG_LEVEL,
        kind: Kind::Choice(&["error", "warn", "info", "debug", "trace"]),
        unit: "",
        min: 0,
        max: 0,
        default: "info",
        help: "Least severe level that is logged.",
    },
    Setting {
        flag: LOG_FORMAT,
        kind: Kind::Choice(&["logfmt", "json"]),
        unit: "",
        min: 0,
        max: 0,
        default: "logfmt",
        help: "Form of a log line.",
    },
    Setting {
        flag: TENANT_DEFAULT,
        kind: Kind::Tenant,
        unit: "",
        min: 0,
        max: 0,
        default: "anonymous",
        help: "Tenant of requests that name none.",
    },
];

impl Setting {
    /// The row of `flag`.
    pub(super) fn named(flag: &str) -> &'static Self {
        SETTINGS
            .iter()
            .find(|setting| setting.flag == flag)
            .expect("the constants above are rows of the table")
    }

    /// The path of the YAML key, dots between its parts. `--config.file` cannot stand in the file.
    pub(super) fn yaml_path(&self) -> Option<String> {
        (self.flag != CONFIG_FILE).then(|| self.flag.replace('-', "_"))
    }

    /// The environment variable.
    pub(super) fn env(&self) -> String {
        format!("SATURN_{}", self.flag.replace(['.', '-'], "_").to_uppercase())
    }

    /// What is accepted, as a noun.
    pub(super) fn wants(&self) -> String {
        let Self { min, max, .. } = self;
        match self.kind {
            Kind::Path => "a path".to_owned(),
            Kind::Name => format!("a name of {min} to {max} letters, digits, '.', '_' and '-'"),
            Kind::Tenant => "a tenant name: 1 to 63 of a-z, 0-9, '_' and '-'".to_owned(),
            Kind::Address => "an address IP:PORT".to_owned(),
            Kind::AddressList => format!("{min} to {max} addresses HOST:PORT"),
            Kind::Integer => format!("a whole number from {min} to {max}"),
            Kind::Choice(words) => format!("one of {}", words.join(", ")),
            Kind::Kept => format!("a duration such as 15d, from {min} to {max} hours, or forever"),
            Kind::Duration => format!("a duration such as 1m30s, from {min} to {max} milliseconds"),
            Kind::Spread => format!("a number of shards N up to {max}, 0 for all, or N/M with M not less"),
            Kind::Switch => "true or false".to_owned(),
            Kind::Pairs => format!("{min} to {max} pairs NAME=VALUE"),
        }
    }

    /// The text of `--help`.
    pub(super) fn help_text(&self) -> String {
        let mut text = self.help.to_owned();
        let mut note = |note: String| text.push_str(&format!(" [{note}]"));
        match self.kind {
            Kind::Choice(words) => note(words.join(", ")),
            _ if !self.unit.is_empty() => note(format!("{} to {} {}", self.min, self.max, self.unit)),
            _ => {}
        }
        if !self.default.is_empty() {
            note(format!("default: {}", self.default));
        }
        note(format!("env: {}", self.env()));
        text
    }

    /// The name of the value in `--help`.
    pub(super) fn value_name(&self) -> &'static str {
        match self.kind {
            Kind::Path => "PATH",
            Kind::Name | Kind::Tenant => "NAME",
            Kind::Address => "IP:PORT",
            Kind::AddressList => "HOST:PORT,...",
            Kind::Integer => "NUMBER",
            Kind::Choice(_) => "WORD",
            Kind::Kept | Kind::Duration => "DURATION",
            Kind::Spread => "N/M",
            Kind::Switch => "true|false",
            Kind::Pairs => "NAME=VALUE,...",
        }
    }
}

/// The table of `docs/configuration.md`.
#[cfg(test)]
pub(super) fn markdown_table() -> String {
    let mut table = String::from(
        "| flag | YAML key | environment | unit | min | max | default | what it does |\n|---|---|---|---|---|---|---|---|\n",
    );
    for setting in SETTINGS {
        let code = |text: &str| if text.is_empty() { String::new() } else { format!("`{text}`") };
        let bound = |value: u64| if setting.unit.is_empty() { String::new() } else { value.to_string() };
        let words = match setting.kind {
            Kind::Choice(words) => format!(" One of `{}`.", words.join("`, `")),
            _ => String::new(),
        };
        let yaml = setting.yaml_path().unwrap_or_default();
        writeln!(
            table,
            "| `--{}` | {} | `{}` | {} | {} | {} | {} | {}{words} |",
            setting.flag,
            code(&yaml),
            setting.env(),
            setting.unit,
            bound(setting.min),
            bound(setting.max),
            code(setting.default),
            setting.help,
        )
        .expect("writing to a string does not fail");
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_holds_the_table() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/configuration.md");
        let document = std::fs::read_to_string(path).expect(path);
        let table = markdown_table();
        assert!(document.contains(&table), "docs/configuration.md must contain this table:\n\n{table}");
    }

    #[test]
    fn names_follow_from_the_flag() {
        let setting = Setting::named(CLUSTER_REPLICATION_FACTOR);
        assert_eq!(setting.yaml_path().as_deref(), Some("cluster.replication_factor"));
        assert_eq!(setting.env(), "SATURN_CLUSTER_REPLICATION_FACTOR");
        assert_eq!(Setting::named(DATA_DIR).env(), "SATURN_DATA_DIR");
        assert_eq!(Setting::named(CONFIG_FILE).yaml_path(), None);
    }

    #[test]
    fn rows_are_unique_and_consistent() {
        for (index, setting) in SETTINGS.iter().enumerate() {
            assert!(SETTINGS[..index].iter().all(|other| other.flag != setting.flag), "{}", setting.flag);
            assert!(setting.min <= setting.max, "{}", setting.flag);
            assert!(setting.help.ends_with('.'), "{}", setting.flag);
            assert!(!setting.default.is_empty() || setting.help.contains("Unset: "), "{}", setting.flag);
        }
    }
}

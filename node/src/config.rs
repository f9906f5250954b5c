//! The server's settings: from flags, environment and file to one checked [`Config`].
//!
//! A flag wins over its environment variable, that over the configuration file, that over the default.
//! The table of all settings is in `config/settings.rs`; a value that passes here is not checked again.

mod listing;
mod retention;
mod secret;
mod settings;
mod shuffle;
mod storage;
mod value;
mod yaml;

use std::collections::HashMap;
use std::io::{self, Read as _};
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};
use saturn_model::TenantId;
use saturn_ring::Spreads;
use saturn_storage::Retention;

pub(crate) use listing::Listing;
pub(crate) use secret::{SecretFile, Secrets};
pub(crate) use storage::StorageConfig;
pub(crate) use value::Origin;

use crate::http::admin::AdminApi;
use settings::{SETTINGS, Setting};
use value::Value;

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LogFormat {
    /// `level=info msg="..."`.
    Logfmt,
    /// One JSON object a line.
    Json,
}

/// Everything that an operator can set, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    /// Folder of this node's data.
    pub(crate) data_dir: PathBuf,
    /// Name of this node, unique in the cluster.
    pub(crate) node_id: String,
    /// What fails together with this node.
    pub(crate) zone: String,
    /// Address of the HTTP API.
    pub(crate) http_listen: SocketAddr,
    /// Address of the RPCs between nodes.
    pub(crate) grpc_listen: SocketAddr,
    /// UDP address of the gossip.
    pub(crate) gossip_listen: SocketAddr,
    /// Gossip addresses `HOST:PORT` of the members; the first is the founder's. Empty: this node is alone.
    pub(crate) join: Vec<String>,
    /// Copies of every sample.
    pub(crate) replication_factor: u8,
    /// Parts that the data is divided into.
    pub(crate) shards: u16,
    pub(crate) weight: u32,
    /// The cluster's secret. Without one, all addresses above are loopback.
    pub(crate) secret: Option<SecretFile>,
    /// How long samples are kept.
    pub(crate) retention: Retention,
    /// What else is set of the storage engine.
    pub(crate) storage: StorageConfig,
    /// Over how many shards tenants are spread.
    pub(crate) spreads: Spreads,
    /// Most bytes of shards that the node takes in a second; `None`: no limit.
    pub(crate) moves_bytes_per_second: Option<NonZeroU64>,
    /// Whether the admin endpoints are on.
    pub(crate) admin: AdminApi,
    /// Least severe level that is logged: error, warn, info, debug or trace.
    pub(crate) log_level: String,
    /// How a log line looks.
    pub(crate) log_format: LogFormat,
    /// Tenant of requests that name none.
    pub(crate) default_tenant: TenantId,
    /// All of the above as texts.
    pub(crate) listing: Listing,
}

/// Why the settings are refused. The operator must change one of them; there is nothing to retry.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// The command line is wrong, or asks for help or the version: print it, exit with its code.
    #[error(transparent)]
    Usage(#[from] clap::Error),
    /// A file that a setting names cannot be read.
    #[error("cannot read {path}, which --{flag} names")]
    File {
        /// The flag of the setting.
        flag: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The configuration file is no YAML, or has a key that is not known.
    #[error("{path}, line {line}: {text}")]
    Yaml {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong, with a suggestion where there is one.
        text: String,
    },
    /// A value has the wrong form or is out of bounds.
    #[error("--{flag} is {text:?} (from {origin}): want {wants}")]
    Invalid {
        /// The flag of the setting.
        flag: &'static str,
        /// What it was set to.
        text: String,
        /// Where that came from.
        origin: Origin,
        /// What is accepted.
        wants: String,
    },
    /// Two settings do not go together.
    #[error("{0}")]
    Conflict(String),
}

/// The command line of the server, to which the binary adds its subcommands.
pub(crate) fn command() -> Command {
    let args = SETTINGS.iter().map(|setting| {
        let arg = Arg::new(setting.flag);
        // `--flag` alone is `--flag=true`, as in Prometheus.
        let arg = match setting.kind {
            settings::Kind::Switch => arg.num_args(0..=1).require_equals(true).default_missing_value("true"),
            _ => arg,
        };
        arg.long(setting.flag)
            .value_name(setting.value_name())
            .action(ArgAction::Set)
            .allow_hyphen_values(matches!(setting.kind, settings::Kind::Integer))
            .help(setting.help_text())
    });
    Command::new("saturn")
        .version(env!("CARGO_PKG_VERSION"))
        .about("A distributed, Prometheus-compatible metrics database")
        .args(args)
}

impl Config {
    /// Reads the settings from a command line that [`command`] parsed, and the environment. An
    /// environment variable that is empty counts as unset.
    pub(crate) fn from_matches(
        matches: &ArgMatches,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        let given = Given::collect(matches, env)?;
        let address = |flag| given.value(flag).listen_address();
        let join = given.set(settings::CLUSTER_JOIN).map_or(Ok(Vec::new()), Value::address_list)?;
        let log_format = match given.value(settings::LOG_FORMAT).choice()? {
            "json" => LogFormat::Json,
            _ => LogFormat::Logfmt,
        };
        let mut config = Self {
            data_dir: given.value(settings::DATA_DIR).path()?,
            node_id: node_id(&given)?,
            zone: given.value(settings::NODE_ZONE).name()?,
            http_listen: address(settings::HTTP_LISTEN)?,
            grpc_listen: address(settings::GRPC_LISTEN)?,
            gossip_listen: address(settings::GOSSIP_LISTEN)?,
            replication_factor: replication_factor(&given, join.is_empty())?,
            join,
            shards: given.value(settings::CLUSTER_SHARDS).integer()?,
            weight: given.value(settings::CLUSTER_WEIGHT).integer()?,
            secret: given.set(settings::CLUSTER_SECRET_FILE).map(read_secret).transpose()?,
            retention: retention::read(&given)?,
            storage: StorageConfig::read(&given)?,
            spreads: shuffle::read(&given)?,
            moves_bytes_per_second: NonZeroU64::new(given.value(settings::MOVES_RATE).integer()?),
            admin: if given.value(settings::ENABLE_ADMIN_API).switch()? {
                AdminApi::Enabled
            } else {
                AdminApi::Disabled
            },
            log_level: given.value(settings::LOG_LEVEL).choice()?.to_owned(),
            log_format,
            default_tenant: given.value(settings::TENANT_DEFAULT).tenant()?,
            listing: Listing::default(),
        };
        config.listing = config.list(&given);
        config.check_addresses()?;
        Ok(config)
    }

    /// The texts of all settings, and what was found out where nothing was set.
    fn list(&self, given: &Given) -> Listing {
        let text = |setting: &Setting| match setting.flag {
            settings::NODE_ID => self.node_id.clone(),
            settings::CLUSTER_REPLICATION_FACTOR => self.replication_factor.to_string(),
            flag => given.value(flag).text,
        };
        Listing(SETTINGS.iter().map(|setting| (setting.flag, text(setting))).collect())
    }

    fn check_addresses(&self) -> Result<(), ConfigError> {
        if self.http_listen == self.grpc_listen {
            let text = format!(
                "--{} and --{} are both {}: give each an address of its own",
                settings::HTTP_LISTEN,
                settings::GRPC_LISTEN,
                self.http_listen
            );
            return Err(ConfigError::Conflict(text));
        }
        if self.secret.is_some() {
            return Ok(());
        }
        let listens = [
            (settings::HTTP_LISTEN, self.http_listen),
            (settings::GRPC_LISTEN, self.grpc_listen),
            (settings::GOSSIP_LISTEN, self.gossip_listen),
        ];
        match listens.into_iter().find(|(_, address)| !address.ip().is_loopback()) {
            None => Ok(()),
            Some((flag, address)) => Err(ConfigError::Conflict(format!(
                "--{flag} is {address}, which other hosts can reach, and there is no secret to keep strangers out of \
                 the cluster: set --{} to a file with one (the same on every node), or listen on 127.0.0.1 only",
                settings::CLUSTER_SECRET_FILE
            ))),
        }
    }
}

fn node_id(given: &Given) -> Result<String, ConfigError> {
    if let Some(value) = given.set(settings::NODE_ID) {
        return value.name();
    }
    let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let text = hostname.trim().to_owned();
    Value { setting: Setting::named(settings::NODE_ID), text, origin: Origin::Default }.name()
}

fn replication_factor(given: &Given, alone: bool) -> Result<u8, ConfigError> {
    let Some(value) = given.set(settings::CLUSTER_REPLICATION_FACTOR) else {
        return Ok(if alone { 1 } else { 3 });
    };
    match value.integer()? {
        factor if alone && factor > 1 => {
            Err(value
                .refused(format!("1, because this node is alone; more needs --{}", settings::CLUSTER_JOIN)))
        }
        factor => Ok(factor),
    }
}

fn read_secret(value: &Value) -> Result<SecretFile, ConfigError> {
    SecretFile::read(value.path()?)
        .map_err(|problem| value.refused(format!("the cluster's secret in a file, but it {problem}")))
}

/// What was set, each setting by its strongest origin.
struct Given {
    set: HashMap<&'static str, Value>,
}

impl Given {
    fn collect(matches: &ArgMatches, env: &dyn Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let mut set = HashMap::new();
        for setting in SETTINGS {
            let flag = matches.get_one::<String>(setting.flag);
            let from_flag = matches.value_source(setting.flag) == Some(ValueSource::CommandLine);
            let value = match (flag, env(&setting.env()).filter(|text| !text.is_empty())) {
                (Some(text), _) if from_flag => Some((text.clone(), Origin::Flag)),
                (_, Some(text)) => Some((text, Origin::Environment(setting.env()))),
                _ => None,
            };
            if let Some((text, origin)) = value {
                set.insert(setting.flag, Value { setting, text, origin });
            }
        }
        let mut given = Self { set };
        if let Some(file) = given.set(settings::CONFIG_FILE) {
            let path = file.path()?;
            given.add_file(&path)?;
        }
        Ok(given)
    }

    /// Adds the file's entries where nothing stronger is set.
    fn add_file(&mut self, path: &Path) -> Result<(), ConfigError> {
        let problem = |line, text| ConfigError::Yaml { path: path.to_owned(), line, text };
        let text = read_file(path)?;
        if text.len() as u64 > yaml::CONFIG_FILE_BYTES_MAX {
            let text = format!("the file is longer than {} bytes", yaml::CONFIG_FILE_BYTES_MAX);
            return Err(problem(1, text));
        }
        for entry in yaml::read(&text).map_err(|found| problem(found.line, found.text))? {
            let setting = SETTINGS.iter().find(|setting| setting.yaml_path().as_ref() == Some(&entry.path));
            let setting = setting.expect("yaml::read returns only keys of the table");
            let origin = Origin::File { path: path.to_owned(), line: entry.line };
            self.set.entry(setting.flag).or_insert(Value { setting, text: entry.value, origin });
        }
        Ok(())
    }

    /// The value of a setting, if somebody set it.
    fn set(&self, flag: &str) -> Option<&Value> {
        self.set.get(flag)
    }

    /// The value of a setting, its default if nobody set it.
    fn value(&self, flag: &str) -> Value {
        self.set(flag).cloned().unwrap_or_else(|| {
            let setting = Setting::named(flag);
            Value { setting, text: setting.default.to_owned(), origin: Origin::Default }
        })
    }
}

fn read_file(path: &Path) -> Result<String, ConfigError> {
    let read = || {
        let mut text = String::new();
        std::fs::File::open(path)?.take(yaml::CONFIG_FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
        Ok(text)
    };
    read().map_err(|source| ConfigError::File { flag: settings::CONFIG_FILE, path: path.to_owned(), source })
}

#[cfg(test)]
mod tests;

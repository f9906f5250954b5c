//! From a setting's text to its value, with the bounds of the table; whoever is refused learns the
//! setting, the text, what is wanted, and where the text came from.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use saturn_model::TenantId;

use super::ConfigError;
use super::settings::{Kind, Setting};

/// Where the text of a setting came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The command line.
    Flag,
    /// The environment variable of this name.
    Environment(String),
    /// This line of the configuration file.
    File {
        /// The file, as `--config.file` names it.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
    },
    /// Nobody set it.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag => f.write_str("the command line"),
            Self::Environment(variable) => write!(f, "the environment variable {variable}"),
            Self::File { path, line } => write!(f, "{}, line {line}", path.display()),
            Self::Default => f.write_str("the default"),
        }
    }
}

/// A setting with its text.
#[derive(Debug, Clone)]
pub(super) struct Value {
    pub(super) setting: &'static Setting,
    pub(super) text: String,
    pub(super) origin: Origin,
}

impl Value {
    /// The error that refuses this text, with what is wanted.
    pub(super) fn refused(&self, wants: impl Into<String>) -> ConfigError {
        ConfigError::Invalid {
            flag: self.setting.flag,
            text: self.text.chars().take(200).collect(),
            origin: self.origin.clone(),
            wants: wants.into(),
        }
    }

    pub(super) fn path(&self) -> Result<PathBuf, ConfigError> {
        if self.text.is_empty() {
            Err(self.refused(self.setting.wants()))
        } else {
            Ok(PathBuf::from(&self.text))
        }
    }

    pub(super) fn name(&self) -> Result<String, ConfigError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let sized = self.within(self.text.len() as u64);
        if sized && self.text.chars().all(plain) {
            Ok(self.text.clone())
        } else {
            Err(self.refused(self.setting.wants()))
        }
    }

    pub(super) fn tenant(&self) -> Result<TenantId, ConfigError> {
        TenantId::new(&self.text).map_err(|_| self.refused(self.setting.wants()))
    }

    /// An address to listen on. The other nodes are told the same address, so it must lead here from there.
    pub(super) fn listen_address(&self) -> Result<SocketAddr, ConfigError> {
        let address: SocketAddr = self.text.parse().map_err(|_| self.refused(self.setting.wants()))?;
        if address.ip().is_unspecified() {
            let wants = format!(
                "an address that the other nodes can reach, because they are told this one: not {} but, say, 192.168.1.5:{}",
                address.ip(),
                address.port()
            );
            return Err(self.refused(wants));
        }
        if address.port() == 0 {
            return Err(self.refused("a port other than 0, because the other nodes are told this one"));
        }
        Ok(address)
    }

    pub(super) fn address_list(&self) -> Result<Vec<String>, ConfigError> {
        let entries: Vec<String> = self.text.split(',').map(|entry| entry.trim().to_owned()).collect();
        if !self.within(entries.len() as u64) {
            return Err(self.refused(self.setting.wants()));
        }
        match entries.iter().find(|entry| !is_host_and_port(entry)) {
            Some(wrong) => Err(self.refused(format!("{}; {wrong:?} is none", self.setting.wants()))),
            None => Ok(entries),
        }
    }

    pub(super) fn integer<T: TryFrom<u64>>(&self) -> Result<T, ConfigError> {
        let number: Option<u64> = self.text.parse().ok().filter(|number| self.within(*number));
        number.and_then(|number| T::try_from(number).ok()).ok_or_else(|| self.refused(self.setting.wants()))
    }

    pub(super) fn choice(&self) -> Result<&'static str, ConfigError> {
        let Kind::Choice(words) = self.setting.kind else { unreachable!("only asked of choices") };
        let word = words.iter().find(|word| **word == self.text);
        word.copied().ok_or_else(|| self.refused(self.setting.wants()))
    }

    pub(super) fn switch(&self) -> Result<bool, ConfigError> {
        self.text.parse().map_err(|_| self.refused(self.setting.wants()))
    }

    /// How long samples are kept; `None` is for ever.
    pub(super) fn kept(&self) -> Result<Option<Duration>, ConfigError> {
        parse_kept(&self.text, self.setting.min, self.setting.max)
            .ok_or_else(|| self.refused(self.setting.wants()))
    }

    pub(super) fn duration(&self) -> Result<Duration, ConfigError> {
        let parsed = saturn_promql::parse_duration(&self.text).ok().and_then(|ms| u64::try_from(ms).ok());
        let ms = parsed.filter(|ms| self.within(*ms)).ok_or_else(|| self.refused(self.setting.wants()))?;
        Ok(Duration::from_millis(ms))
    }

    /// The pairs of a list, each name once, in their order.
    pub(super) fn pairs(&self) -> Result<Vec<(String, String)>, ConfigError> {
        let mut pairs: Vec<(String, String)> = Vec::new();
        for entry in self.text.split(',') {
            let Some((name, value)) = entry.split_once('=') else {
                return Err(self.refused(format!("{}; {entry:?} is none", self.setting.wants())));
            };
            let (name, value) = (name.trim().to_owned(), value.trim().to_owned());
            if pairs.iter().any(|(other, _)| *other == name) {
                return Err(self.refused(format!("each name once; {name:?} is there twice")));
            }
            pairs.push((name, value));
        }
        if self.within(pairs.len() as u64) { Ok(pairs) } else { Err(self.refused(self.setting.wants())) }
    }

    fn within(&self, measure: u64) -> bool {
        (self.setting.min..=self.setting.max).contains(&measure)
    }
}

/// A Prometheus duration within bounds of hours, or `forever`.
pub(super) fn parse_kept(text: &str, hours_min: u64, hours_max: u64) -> Option<Option<Duration>> {
    if text == "forever" {
        return Some(None);
    }
    let ms = u64::try_from(saturn_promql::parse_duration(text).ok()?).ok()?;
    (hours_min * 3_600_000..=hours_max * 3_600_000).contains(&ms).then(|| Some(Duration::from_millis(ms)))
}

/// `host:port` or `[v6]:port`, with a port that one can send to.
fn is_host_and_port(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let bracketed = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let host_fits = match bracketed {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c)),
    };
    host_fits && port.parse::<u16>().is_ok_and(|port| port != 0)
}

#[cfg(test)]
mod tests {
    use super::super::settings;
    use super::*;

    fn value(flag: &'static str, text: &str) -> Value {
        Value { setting: Setting::named(flag), text: text.to_owned(), origin: Origin::Flag }
    }

    #[test]
    fn integers_keep_to_their_bounds() {
        let shards = |text: &str| value(settings::CLUSTER_SHARDS, text).integer::<u16>();
        assert_eq!(shards("1").expect("in bounds"), 1);
        assert_eq!(shards("4096").expect("in bounds"), 4096);
        for wrong in ["0", "4097", "-1", "64.0", "x", "", "99999999999999999999"] {
            let error = shards(wrong).expect_err(wrong).to_string();
            let expected = format!(
                "--cluster.shards is {wrong:?} (from the command line): want a whole number from 1 to 4096"
            );
            assert_eq!(error, expected);
        }
    }

    #[test]
    fn listen_addresses_lead_back_here() {
        let listen = |text: &str| value(settings::HTTP_LISTEN, text).listen_address();
        assert!(listen("127.0.0.1:9090").is_ok());
        assert!(listen("[::1]:9090").is_ok());
        assert!(listen("0.0.0.0:9090").expect_err("refused").to_string().contains("can reach"));
        assert!(listen("[::]:9090").is_err());
        assert!(listen("127.0.0.1:0").is_err());
        assert!(listen("localhost:9090").is_err());
        assert!(listen(":9090").is_err());
    }

    #[test]
    fn lists_of_addresses_name_the_wrong_entry() {
        let join = |text: &str| value(settings::CLUSTER_JOIN, text).address_list();
        assert_eq!(join("a:1, b.example:2,[::1]:3").expect("fits"), ["a:1", "b.example:2", "[::1]:3"]);
        for (text, wrong) in
            [("a:1,b", "\"b\""), ("a:0", "\"a:0\""), ("a:1,,b:2", "\"\""), ("::1:5", "\"::1:5\"")]
        {
            assert!(join(text).expect_err(text).to_string().contains(wrong), "{text}");
        }
        assert!(join(&vec!["a:1"; 65].join(",")).is_err());
    }

    #[test]
    fn names_are_plain() {
        let id = |text: &str| value(settings::NODE_ID, text).name();
        assert_eq!(id("host-1.example_2").expect("fits"), "host-1.example_2");
        for wrong in ["", "a/b", "a b", "é", &"x".repeat(65)] {
            assert!(id(wrong).is_err(), "{wrong:?}");
        }
    }
}

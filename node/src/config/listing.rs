//! The settings in force, as `/api/v1/status/flags` and `/api/v1/status/config` show them.
//!
//! Of the secret only the path of its file is a setting, so nothing here has to be hidden.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::settings::{Kind, Setting};

/// Every setting with its text; empty where nothing is set and there is no default.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Listing(pub(super) Vec<(&'static str, String)>);

impl Listing {
    /// Texts by flag.
    pub(crate) fn flags(&self) -> BTreeMap<&str, &str> {
        self.0.iter().map(|(flag, text)| (*flag, text.as_str())).collect()
    }

    /// The configuration file that would set all of this.
    pub(crate) fn yaml(&self) -> String {
        let mut yaml = String::new();
        let mut section = String::new();
        for (flag, text) in &self.0 {
            let setting = Setting::named(flag);
            let Some(path) = setting.yaml_path().filter(|_| !text.is_empty()) else { continue };
            let text = match setting.kind {
                Kind::Integer => text.clone(),
                // A JSON string is a double-quoted YAML string.
                _ => serde_json::Value::from(text.as_str()).to_string(),
            };
            let (parent, key) = path.split_once('.').unwrap_or(("", &path));
            if parent != section {
                section = parent.to_owned();
                // Writing to a string does not fail, here and below.
                let _ = writeln!(yaml, "{section}:");
            }
            let indent = if parent.is_empty() { "" } else { "  " };
            let _ = writeln!(yaml, "{indent}{key}: {text}");
        }
        yaml
    }
}

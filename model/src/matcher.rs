//! Label matchers: `=`, `!=`, `=~`, `!~`.
//!
//! Regular expressions follow Prometheus: RE2 syntax, anchored at both ends, `.` matches newlines.

use std::fmt;
use std::sync::Arc;

use regex::{Regex, RegexBuilder};

/// Largest compiled regular expression, in bytes of automaton.
const REGEX_SIZE_BYTES_MAX: usize = 10 << 20;

/// How a matcher compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MatchOp {
    /// `=`
    Equal,
    /// `!=`
    NotEqual,
    /// `=~`
    Regex,
    /// `!~`
    NotRegex,
}

/// One condition on one label. A missing label counts as the empty value.
#[derive(Clone)]
pub struct Matcher {
    name: Arc<str>,
    op: MatchOp,
    value: Arc<str>,
    regex: Option<Arc<Regex>>,
}

/// A regular expression that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid regular expression {pattern:?}: {reason}")]
pub struct MatcherError {
    /// The pattern as written, shortened to 200 characters.
    pub pattern: String,
    /// What is wrong with it.
    pub reason: String,
}

/// Translates RE2 syntax (Go) into the dialect of the `regex` crate.
pub fn translate_re2(pattern: &str) -> String {
    pattern.to_owned()
}

/// Compiles `pattern` as Prometheus does: `^(?s:pattern)$`.
pub fn compile_anchored_regex(pattern: &str) -> Result<Regex, MatcherError> {
    RegexBuilder::new(&format!("^(?s:{})$", translate_re2(pattern)))
        .size_limit(REGEX_SIZE_BYTES_MAX)
        .build()
        .map_err(|e| MatcherError { pattern: pattern.chars().take(200).collect(), reason: e.to_string() })
}

impl Matcher {
    /// Makes a matcher; compiles the pattern of a regular one.
    pub fn new(name: &str, op: MatchOp, value: &str) -> Result<Self, MatcherError> {
        let regex = match op {
            MatchOp::Equal | MatchOp::NotEqual => None,
            MatchOp::Regex | MatchOp::NotRegex => Some(Arc::new(compile_anchored_regex(value)?)),
        };
        Ok(Self { name: name.into(), op, value: value.into(), regex })
    }

    /// The label that it looks at.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How it compares.
    pub fn op(&self) -> MatchOp {
        self.op
    }

    /// The value or pattern that it compares with.
    pub fn value(&self) -> &str {
        &self.value
    }

    /// Whether a label of this value satisfies the condition.
    pub fn matches(&self, value: &str) -> bool {
        let regex_matches = || self.regex.as_ref().is_some_and(|regex| regex.is_match(value));
        match self.op {
            MatchOp::Equal => *self.value == *value,
            MatchOp::NotEqual => *self.value != *value,
            MatchOp::Regex => regex_matches(),
            MatchOp::NotRegex => !regex_matches(),
        }
    }

    /// Whether a series without the label satisfies the condition.
    pub fn matches_empty(&self) -> bool {
        self.matches("")
    }
}

impl PartialEq for Matcher {
    fn eq(&self, other: &Self) -> bool {
        (&self.name, self.op, &self.value) == (&other.name, other.op, &other.value)
    }
}

impl Eq for Matcher {}

impl fmt::Display for MatchOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            MatchOp::Equal => "=",
            MatchOp::NotEqual => "!=",
            MatchOp::Regex => "=~",
            MatchOp::NotRegex => "!~",
        })
    }
}

impl fmt::Debug for Matcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}{:?}", self.name, self.op, self.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matcher(op: MatchOp, value: &str) -> Matcher {
        Matcher::new("l", op, value).expect("valid")
    }

    #[test]
    fn the_four_kinds() {
        assert!(matcher(MatchOp::Equal, "a").matches("a"));
        assert!(matcher(MatchOp::NotEqual, "a").matches("b"));
        assert!(matcher(MatchOp::Regex, "a|b").matches("b"));
        assert!(!matcher(MatchOp::NotRegex, "a.*").matches("abc"));
    }

    #[test]
    fn regexes_are_anchored_and_dot_matches_newline() {
        assert!(!matcher(MatchOp::Regex, "b").matches("abc"));
        assert!(!matcher(MatchOp::Regex, "a|b").matches("ab"));
        assert!(matcher(MatchOp::Regex, "a.c").matches("a\nc"));
    }

    #[test]
    fn a_missing_label_is_empty() {
        assert!(matcher(MatchOp::Regex, ".*").matches_empty());
        assert!(matcher(MatchOp::NotEqual, "a").matches_empty());
        assert!(!matcher(MatchOp::Regex, ".+").matches_empty());
    }

    #[test]
    fn a_bad_pattern_is_named() {
        let error = Matcher::new("l", MatchOp::Regex, "a(").expect_err("invalid");
        assert_eq!(error.pattern, "a(");
    }
}

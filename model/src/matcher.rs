//! Label matchers: `=`, `!=`, `=~`, `!~`.
//!
//! Regular expressions follow Prometheus: RE2 syntax, anchored at both ends, `.` matches newlines. Most
//! of those that people write are a list of values or a prefix; they are recognised once, and then
//! neither compiled nor run. [`Matcher::literal_values`] and [`Matcher::prefix`] tell an index about it.

use std::fmt;
use std::sync::Arc;

use regex::{Regex, RegexBuilder};
use regex_syntax::hir::{Class, Hir, HirKind};
use serde::{Deserialize, Serialize};

use crate::re2;

/// Largest compiled regular expression, in bytes of automaton.
const REGEX_SIZE_BYTES_MAX: usize = 10 << 20;
/// Most values that a regular expression is expanded to.
const LITERAL_VALUES_MAX: usize = 4096;

/// How a matcher compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
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
#[derive(Clone, Serialize, Deserialize)]
#[serde(try_from = "WrittenMatcher", into = "WrittenMatcher")]
pub struct Matcher {
    name: Arc<str>,
    op: MatchOp,
    value: Arc<str>,
    pattern: Arc<Pattern>,
}

/// What the value of a matcher accepts, before a negation.
enum Pattern {
    /// One of these, sorted.
    Values(Vec<String>),
    /// The prefix and then at least so many characters of any kind: `foo.*`, `foo.+`.
    Prefix { prefix: String, rest: Rest },
    /// Anything else; if every match begins with a text, that too.
    Regex { regex: Regex, prefix: String },
}

/// What follows a prefix.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rest {
    /// `.*`
    Anything,
    /// `.+`
    Something,
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

impl MatcherError {
    fn new(pattern: &str, reason: impl fmt::Display) -> Self {
        Self { pattern: pattern.chars().take(200).collect(), reason: reason.to_string() }
    }
}

/// Translates RE2 syntax (Go) into the dialect of the `regex` crate.
pub fn translate_re2(pattern: &str) -> Result<String, MatcherError> {
    re2::translate(pattern).map_err(|reason| MatcherError::new(pattern, reason))
}

/// Compiles `pattern` as Prometheus does: `^(?s:pattern)$`.
pub fn compile_anchored_regex(pattern: &str) -> Result<Regex, MatcherError> {
    RegexBuilder::new(&format!("^(?s:{})$", translate_re2(pattern)?))
        .size_limit(REGEX_SIZE_BYTES_MAX)
        .build()
        .map_err(|error| MatcherError::new(pattern, error))
}

impl Pattern {
    /// Reads a regular expression and compiles it if nothing simpler will do.
    fn parse(pattern: &str) -> Result<Self, MatcherError> {
        let translated = translate_re2(pattern)?;
        // Parentheses that are balanced only within `(?s:...)` would leave the group: such a pattern is
        // compiled as a whole, like those that are wrong.
        let balanced = regex_syntax::parse(&translated).is_ok();
        let hir = regex_syntax::parse(&format!("(?s:{translated})")).ok().filter(|_| balanced);
        if let Some(mut values) = hir.as_ref().and_then(literal_values) {
            values.sort();
            values.dedup();
            return Ok(Pattern::Values(values));
        }
        let (prefix, rest) = hir.as_ref().map(split_prefix).unwrap_or_default();
        Ok(match rest {
            Some(rest) => Pattern::Prefix { prefix, rest },
            None => Pattern::Regex { regex: compile_anchored_regex(pattern)?, prefix },
        })
    }

    fn matches(&self, value: &str) -> bool {
        match self {
            Pattern::Values(values) => match values.as_slice() {
                [only] => only == value,
                _ => values.binary_search_by(|candidate| candidate.as_str().cmp(value)).is_ok(),
            },
            Pattern::Prefix { prefix, rest } => {
                value.starts_with(prefix.as_str()) && (*rest == Rest::Anything || value.len() > prefix.len())
            }
            Pattern::Regex { regex, .. } => regex.is_match(value),
        }
    }
}

/// All texts that an expression matches, if they are few.
fn literal_values(hir: &Hir) -> Option<Vec<String>> {
    match hir.kind() {
        HirKind::Empty => Some(vec![String::new()]),
        HirKind::Literal(literal) => Some(vec![String::from_utf8(literal.0.to_vec()).ok()?]),
        HirKind::Class(Class::Unicode(class)) => {
            let count: usize = class.iter().map(|range| range.len()).sum();
            let chars = || class.iter().flat_map(|range| range.start()..=range.end());
            (count <= LITERAL_VALUES_MAX).then(|| chars().map(String::from).collect())
        }
        HirKind::Class(Class::Bytes(_)) | HirKind::Look(_) => None,
        HirKind::Capture(capture) => literal_values(&capture.sub),
        HirKind::Repetition(repetition) => match (repetition.min, repetition.max) {
            (0, Some(1)) => {
                let mut values = literal_values(&repetition.sub)?;
                values.push(String::new());
                Some(values)
            }
            _ => None,
        },
        HirKind::Concat(parts) => parts.iter().try_fold(vec![String::new()], |heads, part| {
            let tails = literal_values(part)?;
            (heads.len() * tails.len() <= LITERAL_VALUES_MAX).then(|| {
                heads.iter().flat_map(|head| tails.iter().map(move |tail| format!("{head}{tail}"))).collect()
            })
        }),
        HirKind::Alternation(parts) => {
            let mut values = Vec::new();
            for part in parts {
                values.extend(literal_values(part)?);
                if values.len() > LITERAL_VALUES_MAX {
                    return None;
                }
            }
            Some(values)
        }
    }
}

/// The text that every match begins with, and what follows if it is all of one kind.
fn split_prefix(hir: &Hir) -> (String, Option<Rest>) {
    match hir.kind() {
        HirKind::Capture(capture) => split_prefix(&capture.sub),
        HirKind::Literal(literal) => (String::from_utf8_lossy(&literal.0).into_owned(), None),
        HirKind::Repetition(_) => (String::new(), rest_of(hir)),
        HirKind::Concat(parts) => match parts.as_slice() {
            [first, others @ ..] => match first.kind() {
                HirKind::Literal(literal) => {
                    let prefix = String::from_utf8_lossy(&literal.0).into_owned();
                    let rest = if let [only] = others { rest_of(only) } else { None };
                    (prefix, rest)
                }
                _ => Default::default(),
            },
            [] => Default::default(),
        },
        _ => Default::default(),
    }
}

/// Which rest an expression is, if it is one.
fn rest_of(hir: &Hir) -> Option<Rest> {
    let HirKind::Repetition(repetition) = hir.kind() else {
        return None;
    };
    let HirKind::Class(Class::Unicode(class)) = repetition.sub.kind() else {
        return None;
    };
    let any_char = class.ranges() == [regex_syntax::hir::ClassUnicodeRange::new('\0', char::MAX)];
    match (repetition.min, repetition.max) {
        (0, None) if any_char => Some(Rest::Anything),
        (1, None) if any_char => Some(Rest::Something),
        _ => None,
    }
}

/// A matcher as it is stored.
#[derive(Serialize, Deserialize)]
struct WrittenMatcher {
    name: String,
    op: MatchOp,
    value: String,
}

impl TryFrom<WrittenMatcher> for Matcher {
    type Error = MatcherError;

    fn try_from(written: WrittenMatcher) -> Result<Self, MatcherError> {
        Self::new(&written.name, written.op, &written.value)
    }
}

impl From<Matcher> for WrittenMatcher {
    fn from(matcher: Matcher) -> Self {
        Self { name: matcher.name().to_owned(), op: matcher.op, value: matcher.value().to_owned() }
    }
}

impl Matcher {
    /// Makes a matcher; reads the pattern of a regular one.
    pub fn new(name: &str, op: MatchOp, value: &str) -> Result<Self, MatcherError> {
        let pattern = match op {
            MatchOp::Equal | MatchOp::NotEqual => Pattern::Values(vec![value.into()]),
            MatchOp::Regex | MatchOp::NotRegex => Pattern::parse(value)?,
        };
        Ok(Self { name: name.into(), op, value: value.into(), pattern: Arc::new(pattern) })
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
        self.pattern.matches(value) != self.is_negative()
    }

    /// Whether a series without the label satisfies the condition.
    pub fn matches_empty(&self) -> bool {
        self.matches("")
    }

    /// All values that satisfy the condition, sorted, if they are known and few: those of `=` and of a
    /// `=~` that is a list. The empty value stands for series without the label.
    pub fn literal_values(&self) -> Option<&[String]> {
        match &*self.pattern {
            Pattern::Values(values) if !self.is_negative() => Some(values),
            _ => None,
        }
    }

    /// A text that every value that satisfies the condition begins with, if there is one and
    /// [`Matcher::literal_values`] does not say more: `foo` of `=~"foo.*"`.
    pub fn prefix(&self) -> Option<&str> {
        match &*self.pattern {
            Pattern::Prefix { prefix, .. } | Pattern::Regex { prefix, .. }
                if !self.is_negative() && !prefix.is_empty() =>
            {
                Some(prefix)
            }
            _ => None,
        }
    }

    fn is_negative(&self) -> bool {
        matches!(self.op, MatchOp::NotEqual | MatchOp::NotRegex)
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
    use proptest::prelude::*;

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
        assert!(matcher(MatchOp::Regex, "a.*").matches("a\nc"));
        assert!(!matcher(MatchOp::Regex, "(?-s:a.*)").matches("a\nc"));
    }

    #[test]
    fn a_missing_label_is_empty() {
        assert!(matcher(MatchOp::Regex, ".*").matches_empty());
        assert!(matcher(MatchOp::NotEqual, "a").matches_empty());
        assert!(!matcher(MatchOp::Regex, ".+").matches_empty());
        assert!(matcher(MatchOp::Regex, "a|").matches_empty());
    }

    #[test]
    fn a_bad_pattern_is_named() {
        for pattern in ["a(", "a**", "(?x)a"] {
            let error = Matcher::new("l", MatchOp::Regex, pattern).expect_err("invalid");
            assert_eq!(error.pattern, pattern);
        }
    }

    #[test]
    fn lists_and_prefixes_are_recognised() {
        let values = |op, value| matcher(op, value).literal_values().map(<[String]>::to_vec);
        let strings = |texts: &[&str]| Some(texts.iter().map(|text| text.to_string()).collect::<Vec<_>>());
        assert_eq!(values(MatchOp::Equal, "a"), strings(&["a"]));
        assert_eq!(values(MatchOp::NotEqual, "a"), None);
        assert_eq!(values(MatchOp::Regex, "b|a|ab"), strings(&["a", "ab", "b"]));
        assert_eq!(values(MatchOp::Regex, "(foo|far)-[12]"), strings(&["far-1", "far-2", "foo-1", "foo-2"]));
        assert_eq!(values(MatchOp::Regex, "colou?r"), strings(&["color", "colour"]));
        assert_eq!(values(MatchOp::Regex, r"a\.b"), strings(&["a.b"]));
        assert_eq!(values(MatchOp::Regex, "a.*"), None);
        let prefix = |op, value| matcher(op, value).prefix().map(str::to_owned);
        assert_eq!(prefix(MatchOp::Regex, "foo.*"), Some("foo".into()));
        assert_eq!(prefix(MatchOp::Regex, "foo.+"), Some("foo".into()));
        assert_eq!(prefix(MatchOp::Regex, "foo[0-9]+x"), Some("foo".into()));
        assert_eq!(prefix(MatchOp::NotRegex, "foo.*"), None);
        assert_eq!(prefix(MatchOp::Regex, ".*foo"), None);
        assert!(!matcher(MatchOp::Regex, "foo.+").matches("foo"));
        assert!(matcher(MatchOp::Regex, "foo.+").matches("foo\n"));
    }

    proptest! {
        /// The fast paths say the same as the compiled expression, and what they tell an index is true.
        #[test]
        fn recognised_patterns_match_what_regexes_match(
            pattern in r"(\(\?i\))?([a-c]|\||\(a\|b\)|\[a-b\]|\.\*|\.\+|c\?|\^|\$|b\*){0,6}",
            values in proptest::collection::vec("[a-cA\n]{0,5}", 1..8),
        ) {
            let Ok(regex) = compile_anchored_regex(&pattern) else { return Ok(()) };
            let matcher = matcher(MatchOp::Regex, &pattern);
            for value in &values {
                let matches = regex.is_match(value);
                prop_assert_eq!(matcher.matches(value), matches, "{} on {:?}", pattern, value);
                if matches {
                    prop_assert!(matcher.literal_values().is_none_or(|values| values.contains(value)));
                    prop_assert!(matcher.prefix().is_none_or(|prefix| value.starts_with(prefix)));
                }
            }
        }
    }
}

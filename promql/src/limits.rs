//! Bounds on a query's text, checked before and while it is parsed.

/// How large a query may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParseLimits {
    /// Longest text.
    pub query_bytes_max: usize,
    /// Deepest nesting of parentheses, calls, signs and powers.
    pub nesting_max: usize,
    /// Most binary operators and selector modifiers. Together with `nesting_max` this bounds the depth of
    /// the tree, so that it can be walked recursively on a small stack.
    pub operators_max: usize,
}

impl Default for ParseLimits {
    fn default() -> Self {
        Self { query_bytes_max: 16 << 10, nesting_max: 128, operators_max: 1000 }
    }
}

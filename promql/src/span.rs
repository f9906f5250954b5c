//! Places in a query's text.
//!
//! Every node of the syntax tree and every annotation carries the bytes that it came from; only when a
//! message is shown do they become a line and a column.

use std::fmt;

/// A half-open range of bytes in a query's text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Span {
    /// First byte.
    pub start: usize,
    /// One past the last byte.
    pub end: usize,
}

/// A line and a column, both counted from 1. Columns count bytes, as Prometheus does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LineColumn {
    /// Counted from 1.
    pub line: usize,
    /// Bytes since the last line break, counted from 1.
    pub column: usize,
}

impl Span {
    /// The range `start..end`.
    pub fn new(start: usize, end: usize) -> Self {
        Self { start, end }
    }

    /// The smallest range that holds both.
    pub fn to(self, other: Self) -> Self {
        Self { start: self.start.min(other.start), end: self.end.max(other.end) }
    }

    /// Where the range starts in `text`.
    pub fn line_column(self, text: &str) -> LineColumn {
        let before = &text.as_bytes()[..self.start.min(text.len())];
        let line_start = before.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        LineColumn {
            line: 1 + before.iter().filter(|b| **b == b'\n').count(),
            column: 1 + before.len() - line_start,
        }
    }
}

impl fmt::Display for LineColumn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_columns_count_from_one() {
        let text = "sum(\n  x)";
        assert_eq!(Span::new(0, 3).line_column(text).to_string(), "1:1");
        assert_eq!(Span::new(7, 8).line_column(text).to_string(), "2:3");
        assert_eq!(Span::new(9, 9).line_column(text).to_string(), "2:5");
    }
}

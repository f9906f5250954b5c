//! What can go wrong, by what the caller can do about it.

use crate::span::LineColumn;
use crate::{SourceError, Span};

/// A text that is no query.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{at}: parse error: {message}")]
pub struct ParseError {
    /// Which kind of error.
    pub kind: ParseErrorKind,
    /// The bytes at fault.
    pub span: Span,
    /// Where they start.
    pub at: LineColumn,
    /// What is wrong, in Prometheus's words.
    pub message: String,
}

/// Kinds of parse errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParseErrorKind {
    /// The text breaks the grammar.
    Syntax,
    /// The text is well formed, but types or modifiers do not fit.
    Check,
    /// The text exceeds one of [`crate::ParseLimits`].
    TooLarge,
}

/// Why a query has no result.
#[derive(Debug, Clone, thiserror::Error)]
pub enum EvalError {
    /// The query asks for what cannot be, whatever the data.
    #[error("{0}")]
    Invalid(String),
    /// The query fails on this data, for example because series have no unique partner.
    #[error("{0}")]
    Execution(String),
    /// The query needs more memory than it may have.
    #[error("query processing would load too many samples into memory in query execution")]
    TooManySamples {
        /// The limit that it hit (`samples_max`).
        limit: usize,
    },
    /// The caller asked to stop.
    #[error("query was canceled in expression evaluation")]
    Cancelled,
    /// The data could not be read.
    #[error(transparent)]
    Source(#[from] SourceError),
}

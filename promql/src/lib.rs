//! The query language: lexer, parser, printer, checks and evaluation over a source trait. No IO.
//!
//! * [`parse`] makes an [`ast::Expr`] of a text; its `Display` writes it back.
//! * [`selector_requests`] says which data an evaluation will read, so that a caller can fetch it first.
//! * [`data_requests`] says which of it can be aggregated where it is, by a [`SeriesFold`].
//! * [`evaluate`] computes the [`QueryResult`] from a [`Source`], a series at a time; [`evaluate_on`] does so on
//!   several cores, which an [`Executor`] brings.
//! * [`fuzz`] holds the bodies of fuzzers.
//! * [`promqltest`] runs the scripts that Prometheus tests its own language with.
//! * [`parse_duration`], [`format_duration`] and [`format_value`] are the formats of Prometheus's API.
//!
//! The crate is pure: no tokio, no clock, no randomness, no threads of its own.

#![warn(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss
)]

mod annotations;
mod duration;
mod error;
mod eval;
mod functions;
pub mod fuzz;
mod go_text;
mod histogram;
mod kahan;
mod limits;
pub mod promqltest;
mod span;
mod syntax;

pub use annotations::{Annotation, Annotations, RenderedAnnotations};
pub use duration::{InvalidDuration, format_duration, parse_duration};
pub use error::{EvalError, ParseError, ParseErrorKind};
pub use eval::{
    DataRequest, EvalParams, Executor, NameRemoval, NotApart, PartialGroups, QueryResult, SampleStats,
    SampleValue, SelectorAggregate, SelectorHints, SelectorRequest, Sequential, SeriesFold, Source,
    SourceError, StartTimestamps, Value, VectorSample, data_requests, evaluate, evaluate_on,
    selector_requests,
};
pub use functions::{Function, FunctionId, Variadic, function_named};
pub use go_text::format_value;
pub use histogram::{HistogramBucket, histogram_buckets, histogram_difference, histogram_sum};
pub use limits::ParseLimits;
pub use span::{LineColumn, Span};
pub use syntax::ast;
pub use syntax::{parse, parse_selector, parse_with_limits};

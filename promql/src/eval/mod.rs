//! Evaluation: a series at a time over columns of steps.
//!
//! Every vector is a dense [`block::Block`] of series by steps; an instant query is a range query of one
//! step. Selectors decode each series once and slide their window along it. Nothing here does IO: data
//! comes from a [`Source`], which is asked for exactly what [`selector_requests`] announces.
//!
//! Source of the rules: Prometheus's `promql/engine.go` and `functions.go` (3.x); file by file below.

mod aggregate;
mod binary;
pub(crate) mod block;
mod calendar;
mod call;
mod engine;
mod extrapolate;
mod grid;
mod histogram;
mod instant_functions;
mod label_functions;
mod label_hash;
mod names;
mod numerics;
mod over_time;
mod params;
mod rank;
mod requests;
mod select;
mod sort;
mod support;
mod vector_matching;
mod window;

pub(crate) use calendar::format_rfc3339;
pub use engine::evaluate;
pub use params::{
    EvalParams, NameRemoval, QueryResult, SelectorHints, SelectorRequest, Source, SourceError, Value,
    VectorSample,
};
pub use requests::selector_requests;

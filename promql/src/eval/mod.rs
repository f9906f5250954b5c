//! Evaluation: a series at a time over columns of steps.
//!
//! Every vector is a dense [`block::Block`] of series by steps; an instant query is a range query of one
//! step. Selectors decode each series once and slide their window along it. Nothing here does IO: data
//! comes from a [`Source`], which is asked for exactly what [`selector_requests`] announces.
//!
//! Source of the rules: Prometheus's `promql/engine.go` and `functions.go` (3.x); file by file below.

mod accumulators;
mod aggregate;
mod binary;
pub(crate) mod block;
mod calendar;
mod call;
mod counts;
mod element;
mod engine;
mod executor;
mod extended;
mod extrapolate;
mod grid;
mod histogram;
mod histogram_change;
mod histogram_mean;
mod info;
mod instant_functions;
mod invariance;
mod label_functions;
mod label_hash;
mod names;
mod numerics;
mod over_time;
mod params;
mod range_functions;
mod rank;
mod remarks;
mod requests;
mod select;
mod selector_aggregate;
mod smoothed;
mod sort;
mod start_timestamps;
mod vector_matching;
mod window;

pub(crate) use calendar::format_rfc3339;
pub use engine::{evaluate, evaluate_on};
pub use executor::{Executor, Sequential};
pub use params::{
    EvalParams, NameRemoval, QueryResult, SampleStats, SampleValue, SelectorHints, SelectorRequest, Source,
    SourceError, StartTimestamps, Value, VectorSample,
};
pub use requests::{DataRequest, data_requests, selector_requests};
pub use selector_aggregate::{NotApart, PartialGroups, SelectorAggregate, SeriesFold};

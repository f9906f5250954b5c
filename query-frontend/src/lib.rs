//! A query's life, from text to answer.
//!
//! [`Frontend::query`] is the whole of it: parse, admit, plan, fetch what the plan names, evaluate,
//! answer. The crate knows no network and no storage: data comes through [`SeriesSource`], which the node
//! implements with the replicas' quorum reads. Every answer says whether it is complete
//! ([`QueryAnswer::missing`]).

mod cores;
mod frontend;
mod metrics;

pub use frontend::{
    FetchError, Fetched, Frontend, QueryAnswer, QueryError, QueryRequest, QueryTime, QueryTimings,
    SeriesSource, Settings,
};

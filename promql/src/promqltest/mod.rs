//! Prometheus's test scripts (`promqltest`): data, queries, and what they must answer.
//!
//! [`run_script`] runs one. Every instant evaluation runs again pinned with `@` at other times and as a range
//! query, as in Prometheus's own runner, with that runner's settings: start timestamps are used, at most 10,000
//! samples are held. [`Store`] is the storage that scripts load their series into.
//!
//! Source: `promql/promqltest/test.go`.

mod check;
mod runner;
mod script;
mod series;
mod store;

pub use check::{almost_equal, points, same_histogram};
pub use runner::{Failure, Score, run_script};
pub use store::{Aggregating, Announced, Store};

//! Integration tests of the query language: Prometheus's own scripts and cases, ours, and properties.

mod cases;
mod check;
mod properties;
mod runner;
mod script;
mod series;
mod store;

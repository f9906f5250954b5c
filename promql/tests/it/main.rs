//! Integration tests of the query language: Prometheus's own scripts and cases, ours, and properties.

mod cases;
mod fuzz;
mod hostile;
mod properties;
mod scripts;

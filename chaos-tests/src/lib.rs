//! Whole-cluster tests that start the real binaries.

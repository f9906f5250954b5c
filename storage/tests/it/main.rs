//! Integration tests of the storage engine through its public doors only.

mod copy;
mod doors;
mod model;
mod support;
mod throughput;

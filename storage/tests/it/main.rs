//! Integration tests of the storage engine through its public doors only.

mod copy;
mod doors;
mod support;
mod throughput;

//! Integration tests of the storage engine through its public doors only.

mod copy;
mod doors;
mod scan;
mod support;
mod throughput;

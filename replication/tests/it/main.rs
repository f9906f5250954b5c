//! The coordinator over replicas in memory, in virtual time.

mod cluster;
mod reads;
mod writes;

//! The coordinator over replicas in memory, in virtual time.

mod cluster;
mod erasures;
mod reads;
mod writes;

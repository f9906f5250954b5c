//! The coordinator over replicas in memory, in virtual time.

mod cluster;
mod deletions;
mod reads;
mod writes;

//! Integration tests of the storage engine through its public doors only.

mod backfill;
mod churn;
mod copy;
mod deletions;
mod doors;
mod drop_shard;
mod head;
mod notes;
mod scan;
mod support;
mod throughput;

//! Whole clusters of membership cores in virtual time, from one seed each; and models of one shard, explored whole.

mod cluster;
mod deletion_model;
mod membership;
mod move_model;
mod search;

//! Whole clusters of membership cores in virtual time, from one seed each.

mod cluster;
mod membership;
mod move_model;

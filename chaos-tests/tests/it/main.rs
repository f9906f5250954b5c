//! Black-box tests: real binaries, real peers, real disks that fail.
//!
//! * `harness`: the tools of these tests do what they claim.
//! * `road`: Prometheus in, PromQL out, the answers equal Prometheus's own; one node dies on the way.
//! * `ack`: what was acked is there after all nodes were killed, and after all disks lost power.
//! * `aggregation`: a node alone aggregates at its storage engine, and answers the same.
//! * `crash`: the storage engine alone, under power cuts at every named step.
//! * `deletion`: series deleted over HTTP, on all replicas.
//! * `bad_input`: what senders and clients get wrong, and tenants kept apart.
//! * `query_api`: statistics, limits, compression and pages about the server.
//! * `exemplars`: exemplars and metadata, in from a real Prometheus, and out as it has them.
//! * `compliance`: the public compliance queries, against a real Prometheus.
//! * `histograms`: native histograms in, through kills, and out by every door, as Prometheus has them.
//! * `remote_write2`: remote-write 2.0, and its counts of what was written.
//! * `guests`: packets and processes that do not belong to the cluster change nothing; a secret is rotated under load.
//! * `hostile`: queries that are made to cost are refused cheaply, and the node lives.
//! * `refusals`: a node that should not start does not, and says why.
//! * `operator`: `saturnctl` against a whole and a damaged cluster.
//! * `offline`: a data directory from outside, by `saturnctl storage`.
//! * `shuffle`: tenants on few shards, whose number changes while their samples are kept.
//! * `start`: a node that replays its log says so.
//! * `lost_disk`: a data directory that went back in time is noticed by what others remember, and repaired.
//! * `repair`: replicas that missed late samples get them.
//! * `moves`: nodes join, drain, die and are replaced under load; shards move, and nothing acked is lost or missed.
//! * `move_steps`: participants of a move die at its named steps, each once or several at a time, come back, and the
//!   move goes on by itself.
//! * `demo`: `saturn demo` comes up, answers, and leaves nothing behind.

mod ack;
mod aggregation;
mod bad_input;
mod compliance;
mod crash;
mod deletion;
mod demo;
mod exemplars;
mod guests;
mod harness;
mod histograms;
mod hostile;
mod lost_disk;
mod move_steps;
mod moves;
mod offline;
mod operator;
mod queries;
mod query_api;
mod refusals;
mod remote_write2;
mod repair;
mod road;
mod shuffle;
mod start;

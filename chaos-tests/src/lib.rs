//! Whole-cluster tests: this library starts real processes and knows what they must keep; the tests are in
//! `tests/it/`.
//!
//! * [`Cluster`]: `saturn` processes on loopback, which can be killed, stopped and restarted.
//! * [`Prometheus`], [`NodeExporter`]: the peers that the answers are compared with.
//! * [`Exporter`]: the metrics that the compliance queries ask for, or others.
//! * [`PowerCutDisk`]: a disk that loses everything unsynced.
//! * [`Endpoint`], [`Answer`]: the HTTP API as a client sees it, and [`compare`] for two answers.
//! * [`crash`]: the load and the check of the storage engine's crash tests.
//! * [`remote_write`]: requests, right and wrong ones.
//! * [`Writer`], [`History`]: load whose samples say who sent them, and the check that all acked ones are there.
//! * [`Reader`]: asks for all of them meanwhile, and believes an answer that calls itself complete.
//! * [`placement`]: what shards that move come to.
//!
//! Everything listens on loopback only. Every wait has a limit and polls; nothing sleeps for a fixed time.
//! A value of any type here that owns a process ends it when it is dropped, by its process id.

mod answers;
mod binaries;
mod cluster;
pub mod crash;
mod endpoint;
mod exporter;
mod history;
mod logs;
mod peers;
pub mod placement;
mod ports;
mod power_cut;
mod process;
mod reader;
pub mod remote_write;
mod wait;
mod writer;

pub use answers::{Order, compare};
pub use binaries::SaturnBinaries;
pub use cluster::{Cluster, ClusterOptions, Node};
pub use endpoint::{Answer, Endpoint, Reply};
pub use exporter::Exporter;
pub use history::{History, Outcome, Verdict};
pub use logs::Tolerance;
pub use peers::{NodeExporter, Prometheus, PrometheusOptions};
pub use ports::free_ports;
pub use power_cut::PowerCutDisk;
pub use process::{Process, Signal, resident_bytes};
pub use reader::Reader;
pub use wait::{eventually, now_ms};
pub use writer::{Writer, WriterOptions};

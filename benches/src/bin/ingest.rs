//! `ingest`: samples per second, CPU-seconds per million samples and bytes per sample of one Saturn node and
//! of three, and of a peer under the same load.
//!
//! Run it by `make bench-ingest`. It starts the binaries of `SATURN_BIN_DIR`, which should be release builds,
//! and prints the table for `docs/benchmarks.md`. The sender is not measured, but it shares the machine.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command line tool talks to its terminal")]

use std::sync::Arc;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use saturn_benches::{Load, LoadOptions, PeerKind, Subject, machine, measure, table};
use saturn_chaos_tests::now_ms;

/// Measures how Saturn takes samples in.
#[derive(Debug, Parser)]
struct Options {
    /// Series in all.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    series: u32,
    /// Samples of each series, 15 seconds apart.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Series in one request, one sample each.
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    series_per_request: u32,
    /// Senders, each with one request under way.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=256))]
    senders: u32,
    /// Sizes of the clusters to measure; `--nodes` alone: none, only peers.
    #[arg(long, value_delimiter = ',', num_args = 0.., default_values_t = [1, 3])]
    nodes: Vec<u8>,
    /// Peers to measure under the same load.
    #[arg(long, value_enum)]
    peer: Vec<Peer>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Peer {
    VictoriaMetrics,
    Prometheus,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let options = Options::parse();
    let load = Arc::new(Load::encode(&LoadOptions {
        series: options.series as usize,
        rounds: options.rounds as usize,
        series_per_request: options.series_per_request as usize,
        end_ms: now_ms(),
    }));
    let mib = load.bytes() >> 20;
    eprintln!("{} requests, {} samples, {mib} MiB compressed", load.requests.len(), load.samples);
    let mut runs = Vec::new();
    for peer in &options.peer {
        let subject = match peer {
            Peer::VictoriaMetrics => Subject::peer(PeerKind::VictoriaMetrics).await?,
            Peer::Prometheus => Subject::peer(PeerKind::Prometheus).await?,
        };
        eprintln!("measuring {}", subject.name());
        runs.push(measure(subject, &load, options.senders as usize).await?);
    }
    for nodes in &options.nodes {
        let subject = Subject::saturn(usize::from(*nodes)).await?;
        eprintln!("measuring {}", subject.name());
        runs.push(measure(subject, &load, options.senders as usize).await?);
    }
    println!("{}.", machine());
    println!(
        "{} series, {} samples of each, {} series a request, {} senders.\n",
        options.series, options.rounds, options.series_per_request, options.senders
    );
    print!("{}", table(&runs));
    Ok(())
}

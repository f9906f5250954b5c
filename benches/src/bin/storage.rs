//! `storage`: what samples cost on disk and in memory, beside peers that take the same requests in the same
//! run. `storage record FILE` records real data first.
//!
//! Run it by `make bench-storage`.


use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand};
use saturn_benches::record;

#[derive(Debug, Parser)]
struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Records what Prometheus sends while it scrapes a node_exporter, itself and three Saturn nodes.
    Record {
        /// The file to write.
        file: PathBuf,
        /// How long to record.
        #[arg(long, default_value_t = 60)]
        minutes: u64,
        /// Time between two scrapes.
        #[arg(long, default_value_t = 5)]
        interval_seconds: u64,
    },
}

#[tokio::main]
async fn main() -> Result<()> {
    match Options::parse().command {
        Command::Record { file, minutes, interval_seconds } => {
            record(&file, Duration::from_secs(60 * minutes), Duration::from_secs(interval_seconds)).await
        }
    }
}

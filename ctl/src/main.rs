//! `saturnctl`: the operator's command line.
//!
//! It speaks the HTTP API of any one node; `storage` looks into a data directory instead. Exit codes: 0 all is well;
//! 1 the command failed, or `doctor` found something broken; 2 the command line is wrong; 3 `storage verify` found damage;
//! 4 a change would do harm and was not forced, or was not confirmed; 5 `--wait` gave up.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command line talks through these")]

mod api;
mod doctor;
mod promql;
mod promql_test;
mod query;
mod ring;
mod storage;
mod table;
mod tenant;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand, ValueEnum};

use crate::api::Api;

/// Operates a Saturn cluster through any of its nodes.
#[derive(Parser)]
#[command(
    name = "saturnctl",
    version,
    after_help = "Exit codes: 0 all is well, 1 failed, 2 wrong command line, 3 damage (storage verify), 4 refused or not \
                  confirmed, 5 --wait gave up."
)]
struct Cli {
    /// HTTP address of any node.
    #[arg(long, global = true, env = "SATURN_ADDRESS", default_value = "http://127.0.0.1:9090")]
    address: String,
    /// File with the cluster's secret, to change who owns what. Not needed where there is none.
    #[arg(long, global = true, env = "SATURN_CLUSTER_SECRET_FILE")]
    secret_file: Option<PathBuf>,
    /// How results are printed.
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Table)]
    output: Output,
    #[command(subcommand)]
    command: Command,
}

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

#[derive(Subcommand)]
enum Command {
    /// Who is there and who owns what.
    #[command(subcommand)]
    Ring(ring::RingCommand),
    /// The parts that the data is divided into.
    #[command(subcommand)]
    Shard(ring::ShardCommand),
    /// Ask PromQL.
    #[command(subcommand)]
    Query(QueryCommand),
    /// Work on the language itself.
    #[command(subcommand)]
    Promql(promql::PromqlCommand),
    /// Tenants and their shards.
    #[command(subcommand)]
    Tenant(TenantCommand),
    /// Look into a data directory that no node has open.
    #[command(subcommand)]
    Storage(storage::StorageCommand),
    /// Compare the shards of the node at --address with those of the others, and take what is lacking there.
    Repair {
        /// Only this one.
        #[arg(long)]
        shard: Option<u16>,
    },
    /// Check reachability, clocks, replication and disks of all members.
    Doctor,
}

#[derive(Subcommand)]
enum TenantCommand {
    /// Which shards a tenant's series go to, and which queries ask (needs --web.enable-admin-api on the node).
    Shards {
        /// The tenant.
        name: String,
    },
}

#[derive(Subcommand)]
enum QueryCommand {
    /// Evaluate at one time.
    Instant(query::Instant),
    /// Evaluate over a range of time.
    Range(query::Range),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli).await {
        Ok(code) => code,
        Err(e) => {
            eprintln!("saturnctl: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// As nodes read it: the first line, without white space at its ends. A second one is there during a rotation.
fn read_secret(file: &Path) -> anyhow::Result<Vec<u8>> {
    let content = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let mut lines = content.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    let secret = lines.find(|line| !line.is_empty());
    secret.map(<[u8]>::to_vec).with_context(|| format!("{} holds no secret", file.display()))
}

async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let secret = cli.secret_file.as_deref().map(read_secret).transpose()?;
    let api = Api::new(&cli.address, secret.as_deref())?;
    match cli.command {
        Command::Ring(command) => ring::run(&api, &command, cli.output).await,
        Command::Shard(command) => ring::shards(&api, &command, cli.output).await,
        Command::Tenant(TenantCommand::Shards { name }) => tenant::shards(&api, &name, cli.output).await,
        Command::Query(QueryCommand::Instant(args)) => query::instant(&api, &args, cli.output).await,
        Command::Query(QueryCommand::Range(args)) => query::range(&api, &args, cli.output).await,
        Command::Promql(promql::PromqlCommand::Diff(args)) => promql::diff(&args, cli.output).await,
        Command::Promql(promql::PromqlCommand::Test(args)) => promql_test::run(&args, cli.output),
        Command::Storage(command) => storage::run(&command, cli.output),
        Command::Repair { shard } => ring::repair(&api, shard, cli.output).await,
        Command::Doctor => doctor::run(&api, cli.output).await,
    }
}

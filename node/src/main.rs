//! `saturn`: the server. Every node has every role.
//!
//! * [`write_path`] and [`read_path`]: a sample in, a query out.
//! * [`server`]: a node's life; [`cluster`]: how it comes to belong to a cluster; [`gossip`], [`grpc`],
//!   [`http`]: its listeners.
//! * [`replica`]: this node as one of three; [`peers`]: the others; [`transfer`]: whole shards between them.
//! * [`demo`]: a whole cluster on this machine.
//! * [`steps`]: where tests let a node die in the middle of a move.

mod authority;
mod clock;
mod cluster;
mod config;
mod deletions;
mod demo;
mod durability;
mod exposition;
mod gossip;
mod grpc;
mod http;
mod identity;
mod logging;
mod metrics;
mod moves;
mod peers;
mod raft;
mod read_path;
mod rebalance;
mod repair;
mod replica;
mod ring_status;
mod rpc_auth;
mod secrets;
mod server;
mod shepherd;
mod steps;
mod transfer;
mod wire;
mod write_path;

use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use tokio::signal::unix::{SignalKind, signal};

use crate::cluster::StartAgain;
use crate::config::{Config, ConfigError};

/// Exit code of a wrong command line or configuration, as usual in Unix tools.
const EXIT_USAGE: u8 = 2;

fn main() -> ExitCode {
    let command = config::command().subcommand(demo::command());
    let matches = command.get_matches();
    let runtime = tokio::runtime::Runtime::new().expect("the system gives threads to a new process");
    if let Some(("demo", matches)) = matches.subcommand() {
        return report(runtime.block_on(demo::run(demo::Options::from_matches(matches))));
    }
    let config = match Config::from_matches(&matches, &|name| std::env::var(name).ok()) {
        Ok(config) => config,
        Err(ConfigError::Usage(usage)) => usage.exit(),
        Err(e) => {
            complain(&anyhow::Error::new(e));
            return ExitCode::from(EXIT_USAGE);
        }
    };
    let outcome = runtime.block_on(async {
        let stop = stop_signal();
        logging::start(&config.log_level, config.log_format)?;
        demo::die_with_parent_if_child();
        steps::arm()?;
        server::serve(config, stop).await
    });
    match outcome {
        Err(error) if error.is::<StartAgain>() => report(Err(start_again())),
        outcome => report(outcome),
    }
}

/// Puts a new process in the place of this one, with its id and arguments. Returns why that was not possible.
fn start_again() -> anyhow::Error {
    // The same program, though its file may have been replaced.
    let error = Command::new("/proc/self/exe").args(std::env::args_os().skip(1)).exec();
    anyhow::Error::new(error).context("cannot start again")
}

/// Resolves at SIGINT or SIGTERM. The handlers are in place when this returns, before the first poll: a
/// signal right after the start must not meet the system's default, which is sudden death.
fn stop_signal() -> impl Future<Output = ()> {
    let handle = |kind| signal(kind).expect("signal handlers can be installed at start");
    let (mut interrupt, mut terminate) = (handle(SignalKind::interrupt()), handle(SignalKind::terminate()));
    async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    }
}

fn report(outcome: anyhow::Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            complain(&e);
            ExitCode::FAILURE
        }
    }
}

/// The last words of a process that could not do its work.
fn complain(error: &anyhow::Error) {
    let _ = writeln!(std::io::stderr(), "saturn: {error:#}");
}

//! Lets this process die at a named step of a move, as by SIGKILL: nothing is flushed, nobody is told.
//!
//! The black-box tests set [`SETTING`] to one of [`STEPS`](saturn_ring::steps::STEPS). The steps are failpoints of the
//! `fail` crate, which are only in binaries that are built together with those tests (`chaos-tests/Cargo.toml`): in all
//! others nobody dies, and a process that is told to does not start.

use std::io::Write as _;

use anyhow::ensure;
use saturn_model::ShardId;
use saturn_ring::RecordStep;
use saturn_ring::steps::STEPS;

/// Environment variable that names the step.
const SETTING: &str = "SATURN_DIE_AT";

/// Gets ready to die, if the environment says where.
///
/// # Errors
/// If there is no such step, or none at all in this binary.
pub(crate) fn arm() -> anyhow::Result<()> {
    let Ok(step) = std::env::var(SETTING) else { return Ok(()) };
    ensure!(fail::has_failpoints(), "{SETTING} is set, but this binary was built without steps to die at");
    ensure!(is_known(&step), "{SETTING} is {step:?}, which is no step of a move");
    let name = step.clone();
    fail::cfg_callback(step, move || die(&name)).map_err(anyhow::Error::msg)
}

fn die(step: &str) {
    let _ = writeln!(std::io::stderr(), "saturn: dies at {step:?}, as {SETTING} says");
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    // No thread gets further than the signal.
    std::process::abort()
}

fn is_known(step: &str) -> bool {
    STEPS.iter().any(|(name, _)| *name == step)
}

/// This node is at `step`.
pub(crate) fn reach(step: &str) {
    debug_assert!(is_known(step), "{step:?} is not in the list of steps");
    fail::fail_point!(step);
}

/// This node is at a moment of having a step of a record decided.
pub(crate) fn reach_in(step: &RecordStep, moment: &str) {
    let name = match step {
        RecordStep::Begin { .. } => "begin",
        RecordStep::Activate { .. } => "activate",
        RecordStep::Finish { .. } => "finish",
        RecordStep::Abort | RecordStep::Settle { .. } => return,
    };
    if fail::has_failpoints() {
        reach(&format!("{name}: {moment}"));
    }
}

/// This node is at a moment of changing who votes in the group of a shard, or in that of the member list.
pub(crate) fn reach_in_voters(shard: Option<ShardId>, moment: &str) {
    let name = if shard.is_some() { "voters" } else { "council" };
    if fail::has_failpoints() {
        reach(&format!("{name}: {moment}"));
    }
}

//! `saturnctl promql test`: scripts in the language of Prometheus's promqltest, run by Saturn's own engine.
//!
//! Each file begins with empty storage. Every evaluation counts once; it passes when all its forms do: as
//! written, pinned with `@`, and as a range query.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use saturn_promql::NameRemoval;
use saturn_promql::promqltest::{Failure, Score, run_script};
use serde_json::json;

use crate::Output;

/// Run scripts in the language of Prometheus's promqltest; needs no server.
#[derive(Args)]
pub(crate) struct Test {
    /// The scripts.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// When functions drop metric names: in the end, as Prometheus's own suite has it, or at once, as servers do.
    #[arg(long, value_enum, default_value_t = Names::Delayed)]
    name_removal: Names,
}

/// When functions drop metric names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Names {
    Delayed,
    Immediate,
}

pub(crate) fn run(args: &Test, output: Output) -> anyhow::Result<ExitCode> {
    let name_removal = match args.name_removal {
        Names::Delayed => NameRemoval::Delayed,
        Names::Immediate => NameRemoval::Immediate,
    };
    let run = |file: &PathBuf| match std::fs::read_to_string(file) {
        Ok(text) => run_script(&text, name_removal),
        Err(e) => Score {
            failures: vec![Failure { line: 0, text: format!("cannot read it: {e}") }],
            ..Score::default()
        },
    };
    let scores: Vec<(String, Score)> =
        args.files.iter().map(|file| (file.display().to_string(), run(file))).collect();
    let passed: usize = scores.iter().map(|(_, score)| score.passed).sum();
    let failed: usize = scores.iter().map(|(_, score)| score.failures.len()).sum();
    match output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&as_json(&scores))?),
        Output::Table => {
            for (file, score) in &scores {
                for Failure { line, text } in &score.failures {
                    println!("FAILED  {file}:{line}: {text}");
                }
                println!(
                    "{file}: {} passed, {} failed ({} queries)",
                    score.passed,
                    score.failures.len(),
                    score.queries
                );
            }
            println!("total: {passed} passed, {failed} failed");
        }
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn as_json(scores: &[(String, Score)]) -> serde_json::Value {
    let failure = |failure: &Failure| json!({"line": failure.line, "text": failure.text});
    let file = |(file, score): &(String, Score)| {
        let failures: Vec<_> = score.failures.iter().map(failure).collect();
        json!({"file": file, "passed": score.passed, "queries": score.queries, "failures": failures})
    };
    scores.iter().map(file).collect()
}

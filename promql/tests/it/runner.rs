//! Runs scripts of the promqltest language: each evaluation, the same pinned with `@` and evaluated at
//! other times, and as a range query.

use std::path::{Path, PathBuf};

use saturn_model::TimestampMs;
use saturn_promql::ast::{At, Expr, ExprKind};
use saturn_promql::{
    EvalError, EvalParams, NameRemoval, QueryResult, StartTimestamps, evaluate, parse, selector_requests,
};

use crate::check::{check_annotations, check_column, check_value};
use crate::script::{Command, CommandKind, Eval, parse_script};
use crate::store::{Announced, Store};

/// Functions whose value depends on the evaluation time whatever `@` says.
const UNPINNABLE: [&str; 15] = [
    "days_in_month",
    "day_of_month",
    "day_of_week",
    "day_of_year",
    "end",
    "hour",
    "minute",
    "month",
    "predict_linear",
    "range",
    "start",
    "step",
    "time",
    "timestamp",
    "year",
];

/// How many evaluations of a file came out how.
#[derive(Debug, Default)]
struct Score {
    passed: usize,
    /// Queries run, the pinned and the range ones included.
    queries: usize,
    failures: Vec<String>,
}

/// Scripts that come with the workspace's shared folder; they are not part of the project.
fn shared_scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/promqltest")
}

/// The folder of shared conformance data, if it is there. CI must have it.
pub(crate) fn shared_folder() -> Option<PathBuf> {
    let folder = shared_scripts();
    if folder.is_dir() {
        return Some(folder);
    }
    assert!(std::env::var_os("CI").is_none(), "{} is missing, and CI is set", folder.display());
    report(&format!("{} is missing: nothing to compare with", folder.display()));
    None
}

/// Shows a line to whoever runs the tests.
#[expect(clippy::print_stdout, reason = "the counts are the result of this test")]
pub(crate) fn report(line: &str) {
    println!("{line}");
}

fn scripts_in(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("the folder can be listed");
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("readable").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "test"));
    paths.sort();
    paths
}

/// Runs all scripts of a folder and fails if any evaluation does.
fn run_folder(folder: &Path, name_removal: NameRemoval) {
    let mut total = Score::default();
    for path in scripts_in(folder) {
        let text = std::fs::read_to_string(&path).expect("the script can be read");
        let score = run_script(&text, name_removal);
        let name = path.file_name().expect("a script has a name").to_string_lossy().into_owned();
        report(&format!(
            "{name}: {} passed, {} failed ({} queries)",
            score.passed,
            score.failures.len(),
            score.queries
        ));
        total.passed += score.passed;
        total.queries += score.queries;
        total.failures.extend(score.failures.into_iter().map(|failure| format!("{name}: {failure}")));
    }
    report(&format!(
        "total: {} passed, 0 unsupported, {} failed ({} queries)",
        total.passed,
        total.failures.len(),
        total.queries
    ));
    assert!(total.failures.is_empty(), "{}", total.failures.join("\n"));
}

fn run_script(text: &str, name_removal: NameRemoval) -> Score {
    let mut score = Score::default();
    let commands = match parse_script(text) {
        Ok(commands) => commands,
        Err(error) => {
            score.failures.push(error);
            return score;
        }
    };
    let mut runner = Runner { store: Store::default(), name_removal, queries: 0 };
    for Command { line, kind } in commands {
        match kind {
            CommandKind::Clear => runner.store = Store::default(),
            CommandKind::Load(load) => {
                if let Err(error) = runner.store.load(&load) {
                    score.failures.push(format!("line {line}: {error}"));
                }
            }
            CommandKind::Eval(eval) => match runner.eval(&eval) {
                Ok(()) => score.passed += 1,
                Err(text) => {
                    score.failures.push(format!("line {line}: {}: {text}", eval.query));
                }
            },
        }
    }
    score.queries = runner.queries;
    score
}

struct Runner {
    store: Store,
    name_removal: NameRemoval,
    queries: usize,
}

impl Runner {
    /// Runs an evaluation in all its variants.
    fn eval(&mut self, eval: &Eval) -> Result<(), String> {
        let expr = parse(&eval.query).map_err(|e| e.to_string())?;
        if eval.step_ms != 0 {
            return self.check(&expr, &eval.query, eval, (eval.start_ms, eval.end_ms, eval.step_ms));
        }
        let time = eval.start_ms;
        self.check_instant(&expr, &eval.query, eval, time)?;
        let Some(pinned) = pin(&expr, time) else {
            return Ok(());
        };
        let query = pinned.to_string();
        let pinned = parse(&query).map_err(|e| format!("printed as {query:?}: {e}"))?;
        let times =
            if time == 0 { vec![-1000, 0, 1000] } else { vec![-10 * time, 0, time / 5, time, 10 * time] };
        for other in times {
            self.check_instant(&pinned, &query, eval, other)
                .map_err(|text| format!("pinned as {query:?} at {other}: {text}"))?;
        }
        Ok(())
    }

    /// Runs an instant query, then the range query around it.
    fn check_instant(&mut self, expr: &Expr, query: &str, eval: &Eval, time: i64) -> Result<(), String> {
        self.check(expr, query, eval, (time, time, 0))?;
        let expected = &eval.expected;
        let depends_on_range = ["start()", "end()", "range()", "step()"].iter().any(|f| query.contains(f));
        let failed = expected.fail.is_some();
        if failed || expected.range_vector.is_some() || expected.string.is_some() || depends_on_range {
            return Ok(());
        }
        let result = self.run(expr, (time - 60_000, time + 60_000, 60_000));
        let result = result.map_err(|e| format!("as a range query: {e}"))?;
        check_column(&result.value, time, expected).map_err(|e| format!("as a range query: {e}"))?;
        Ok(())
    }

    fn check(
        &mut self,
        expr: &Expr,
        query: &str,
        eval: &Eval,
        steps: crate::script::Steps,
    ) -> Result<(), String> {
        match (self.run(expr, steps), &eval.expected.fail) {
            (Ok(_), Some(_)) => Err("want a failure".into()),
            (Ok(result), None) => {
                check_annotations(&result.annotations, query, &eval.expected)?;
                check_value(&result.value, eval)?;
                Ok(())
            }
            (Err(error), Some(wanted)) if wanted.matches(&error.to_string()) => Ok(()),
            (Err(error), _) => Err(format!("failed: {error}")),
        }
    }

    fn run(
        &mut self,
        expr: &Expr,
        (start, end, step): crate::script::Steps,
    ) -> Result<QueryResult, EvalError> {
        self.queries += 1;
        let mut params = EvalParams::range(TimestampMs(start), TimestampMs(end), step);
        params.name_removal = self.name_removal;
        params.start_timestamps = StartTimestamps::Used;
        params.samples_max = 10_000;
        let source = Announced { store: &self.store, requests: selector_requests(expr, &params) };
        evaluate(expr, &params, &source, &|| false)
    }
}

/// The expression with `@ time` on all its selectors, unless it depends on the evaluation time otherwise.
fn pin(expr: &Expr, time: i64) -> Option<Expr> {
    let mut pinned = expr.clone();
    pin_node(&mut pinned, At::Timestamp(time)).then_some(pinned)
}

fn pin_node(expr: &mut Expr, at: At) -> bool {
    let timestamp_is_set = |at: &Option<At>| matches!(at, Some(At::Timestamp(_)));
    match &mut expr.kind {
        ExprKind::Number(_) | ExprKind::Text(_) => true,
        ExprKind::VectorSelector(selector) => {
            if !timestamp_is_set(&selector.time.at) {
                selector.time.at = Some(at);
            }
            true
        }
        ExprKind::MatrixSelector(matrix) => {
            if !timestamp_is_set(&matrix.selector.time.at) {
                matrix.selector.time.at = Some(at);
            }
            true
        }
        ExprKind::Subquery(subquery) => {
            let mut unchanged = subquery.expr.clone();
            if !timestamp_is_set(&subquery.time.at) {
                subquery.time.at = Some(at);
            }
            // What is inside of a pinned subquery stays, but it may still be unpinnable.
            pin_node(&mut unchanged, at)
        }
        ExprKind::Call(call) => {
            !UNPINNABLE.contains(&call.function.name) && call.args.iter_mut().all(|arg| pin_node(arg, at))
        }
        ExprKind::Aggregate(aggregate) => {
            aggregate.param.as_mut().is_none_or(|param| pin_node(param, at))
                && pin_node(&mut aggregate.expr, at)
        }
        ExprKind::Binary(binary) => pin_node(&mut binary.left, at) && pin_node(&mut binary.right, at),
        ExprKind::Unary(_, inner) | ExprKind::Paren(inner) => pin_node(inner, at),
    }
}

#[test]
fn prometheus_scripts() {
    if let Some(folder) = shared_folder() {
        run_folder(&folder, NameRemoval::Delayed);
    }
}

/// Runs our own scripts: those of `testdata` and those of its `special` folder.
fn run_own(special: &str, name_removal: NameRemoval) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
    run_folder(&folder, name_removal);
    run_folder(&folder.join(special), name_removal);
}

#[test]
fn own_scripts_with_delayed_name_removal() {
    run_own("delayed", NameRemoval::Delayed);
}

#[test]
fn own_scripts_with_immediate_name_removal() {
    run_own("immediate", NameRemoval::Immediate);
}

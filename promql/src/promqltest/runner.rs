//! Runs scripts: each evaluation, the same pinned with `@` and evaluated at other times, and as a range query.

use saturn_model::TimestampMs;

use super::check::{check_annotations, check_column, check_value};
use super::script::{Command, CommandKind, Eval, Steps, parse_script};
use super::store::{Aggregating, Announced, Store};
use crate::ast::{At, Expr, ExprKind};
use crate::{
    EvalError, EvalParams, NameRemoval, QueryResult, StartTimestamps, data_requests, evaluate, parse,
    selector_requests,
};

/// Most samples that an evaluation may hold, as in Prometheus's own runner.
const SAMPLES_MAX: usize = 10_000;

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

/// How the evaluations of a script came out.
#[derive(Debug, Default)]
pub struct Score {
    /// Evaluations with the expected outcome in all their forms.
    pub passed: usize,
    /// Queries run, the pinned and the range ones included.
    pub queries: usize,
    /// What did not come out as expected.
    pub failures: Vec<Failure>,
}

/// A command of a script with another outcome than the expected one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Line on which the command begins, from 1.
    pub line: usize,
    /// What is wrong.
    pub text: String,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "line {}: {}", self.line, self.text)
    }
}

/// Runs a script. One that cannot be read as a whole is not begun: its only failure says why.
pub fn run_script(text: &str, name_removal: NameRemoval) -> Score {
    let mut score = Score::default();
    let commands = match parse_script(text) {
        Ok(commands) => commands,
        Err(failure) => {
            score.failures.push(failure);
            return score;
        }
    };
    let mut runner = Runner { store: Store::default(), name_removal, queries: 0 };
    for Command { line, kind } in commands {
        let outcome = match &kind {
            CommandKind::Clear => {
                runner.store = Store::default();
                continue;
            }
            CommandKind::Load(load) => runner.store.load(load),
            CommandKind::Eval(eval) => {
                let outcome = runner.eval(eval).map_err(|text| format!("{}: {text}", eval.query));
                score.passed += usize::from(outcome.is_ok());
                outcome
            }
        };
        score.failures.extend(outcome.err().map(|text| Failure { line, text }));
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

    fn check(&mut self, expr: &Expr, query: &str, eval: &Eval, steps: Steps) -> Result<(), String> {
        check_result(self.run(expr, steps), query, eval)?;
        check_result(self.run_at_source(expr, steps), query, eval).map_err(|e| format!("at the source: {e}"))
    }

    fn run(&mut self, expr: &Expr, steps: Steps) -> Result<QueryResult, EvalError> {
        self.queries += 1;
        let params = self.params(steps);
        let source = Announced { store: &self.store, requests: selector_requests(expr, &params) };
        evaluate(expr, &params, &source, &|| false)
    }

    /// [`Runner::run`] with what can be aggregated at the source aggregated there.
    fn run_at_source(&self, expr: &Expr, steps: Steps) -> Result<QueryResult, EvalError> {
        let params = self.params(steps);
        let source = Aggregating { store: &self.store, requests: data_requests(expr, &params) };
        evaluate(expr, &params, &source, &|| false)
    }

    fn params(&self, (start, end, step): Steps) -> EvalParams {
        let mut params = EvalParams::range(TimestampMs(start), TimestampMs(end), step);
        params.name_removal = self.name_removal;
        params.start_timestamps = StartTimestamps::Used;
        params.samples_max = SAMPLES_MAX;
        params
    }
}

fn check_result(result: Result<QueryResult, EvalError>, query: &str, eval: &Eval) -> Result<(), String> {
    match (result, &eval.expected.fail) {
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

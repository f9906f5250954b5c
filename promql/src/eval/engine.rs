//! The walk over the syntax tree, and the last steps that turn a block into an answer.

use std::sync::{Mutex, MutexGuard, PoisonError};

use saturn_model::{Labels, SeriesColumns, TimestampMs};

use crate::annotations::Annotations;
use crate::ast::{Binary, Expr, ExprKind, UnaryOp, ValueType};
use crate::error::EvalError;
use crate::eval::block::{Block, Budget};
use crate::eval::counts::SampleCounts;
use crate::eval::executor::{Executor, Sequential};
use crate::eval::extended::extended_samples;
use crate::eval::grid::Grid;
use crate::eval::invariance::is_step_invariant;
use crate::eval::names::{Duplicates, SAME_LABELSET, merge_duplicates, without_metadata};
use crate::eval::params::{EvalParams, NameRemoval, QueryResult, Source, Value, VectorSample};
use crate::eval::remarks::Remarks;
use crate::eval::select::SamplePart;
use crate::eval::window::samples_of_row;
use crate::histogram::multiplied;
use crate::span::Span;

/// Evaluates a parsed expression over the data of `source`. `cancelled` is asked at least once for each
/// series that an operation handles.
pub fn evaluate(
    expr: &Expr,
    params: &EvalParams,
    source: &dyn Source,
    cancelled: &(dyn Fn() -> bool + Sync),
) -> Result<QueryResult, EvalError> {
    evaluate_on(&Sequential, expr, params, source, cancelled)
}

/// [`evaluate`] with independent parts of the expression where `executor` runs them. The result is the same, bit
/// for bit; only the peak of samples is what it was.
pub fn evaluate_on(
    executor: &dyn Executor,
    expr: &Expr,
    params: &EvalParams,
    source: &dyn Source,
    cancelled: &(dyn Fn() -> bool + Sync),
) -> Result<QueryResult, EvalError> {
    match run(executor, expr, params, source, cancelled) {
        // Parts that run at the same time hold more at the same time.
        Err(EvalError::TooManySamples { .. }) if executor.parts(usize::MAX) > 1 => {
            run(&Sequential, expr, params, source, cancelled)
        }
        result => result,
    }
}

fn run(
    executor: &dyn Executor,
    expr: &Expr,
    params: &EvalParams,
    source: &dyn Source,
    cancelled: &(dyn Fn() -> bool + Sync),
) -> Result<QueryResult, EvalError> {
    let annotations = Mutex::default();
    // More steps than samples are refused where the first operand is evaluated.
    let counts = SampleCounts::new(params.grid().count.min(params.samples_max));
    let evaluator = Evaluator {
        params,
        source,
        cancelled,
        executor,
        budget: Budget::new(params.samples_max),
        annotations: &annotations,
        counts: &counts,
        resets: ResetHints::FromSource,
    };
    let value = evaluator.answer(expr)?;
    let peak = evaluator.budget.peak();
    let samples = counts.finish(params.grid().times(), peak);
    let annotations = annotations.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(QueryResult { value, annotations, samples })
}

/// The value of an expression at all steps of a grid.
pub(super) enum Evaluated {
    /// One number for each step.
    Scalar(Vec<f64>),
    /// One text for all steps.
    Text(Vec<u8>),
    /// Series by steps.
    Vector(Block),
}

pub(super) struct Evaluator<'a> {
    pub(super) params: &'a EvalParams,
    pub(super) source: &'a dyn Source,
    pub(super) cancelled: &'a (dyn Fn() -> bool + Sync),
    executor: &'a dyn Executor,
    pub(super) budget: Budget,
    annotations: &'a Mutex<Annotations>,
    /// Where selectors that are evaluated now count what they read.
    pub(super) counts: &'a SampleCounts,
    /// How selectors that are evaluated now treat hints.
    pub(super) resets: ResetHints,
}

/// What came of one of several parts, and what there is to say besides.
type Done<T> = (Result<T, EvalError>, Annotations);

/// What a selector does about histograms that do not know whether there was a counter reset before them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ResetHints {
    /// Leaves them as they are.
    FromSource,
    /// Compares them with the histogram before. Prometheus does so for `histogram_count`, `histogram_sum` and
    /// `histogram_avg`, whose selectors read no buckets (`HistogramStatsIterator`).
    Detected,
}

impl Evaluator<'_> {
    /// Fails if the caller wants to stop.
    pub(super) fn check_cancelled(&self) -> Result<(), EvalError> {
        if (self.cancelled)() { Err(EvalError::Cancelled) } else { Ok(()) }
    }

    pub(super) fn delays_name_removal(&self) -> bool {
        self.params.name_removal == NameRemoval::Delayed
    }

    fn answer(&self, expr: &Expr) -> Result<Value, EvalError> {
        let grid = self.params.grid();
        let value_type = expr.value_type();
        let instant = self.params.is_instant();
        if !instant && matches!(value_type, ValueType::Matrix | ValueType::Text) {
            return Err(EvalError::Invalid(format!(
                "invalid expression type \"{}\" for range query, must be Scalar or instant Vector",
                value_type.documented_name()
            )));
        }
        if value_type == ValueType::Matrix {
            return self.matrix_answer(expr, &grid);
        }
        let timestamp = TimestampMs(grid.start);
        match self.eval_unless_invariant(expr, &grid)? {
            Evaluated::Scalar(values) if instant => {
                let value = *values.first().expect("an instant query has one step");
                Ok(Value::Scalar { timestamp, value })
            }
            Evaluated::Scalar(values) => {
                let timestamps = grid.times().collect();
                Ok(Value::Matrix(vec![SeriesColumns::floats(Labels::empty(), timestamps, values)]))
            }
            Evaluated::Text(bytes) => {
                Ok(Value::String { timestamp, value: String::from_utf8_lossy(&bytes).into_owned() })
            }
            Evaluated::Vector(block) => {
                let block = self.remove_delayed_names(block)?;
                Ok(if instant { vector_of(&block, timestamp) } else { matrix_of(&block, &grid) })
            }
        }
    }

    /// The samples of a range selector or subquery at the top of an instant query.
    fn matrix_answer(&self, expr: &Expr, grid: &Grid) -> Result<Value, EvalError> {
        let ranges = self.ranges(expr, grid)?;
        let mut matrix = Vec::new();
        ranges.for_each_window(self, grid, |name, _, window| {
            let labels = if name.drop_name { without_metadata(&name.labels) } else { name.labels.clone() };
            let columns = match ranges.extension {
                None => window.to_columns(),
                Some(extension) => {
                    let remarks =
                        Remarks { evaluator: self, metric: name.labels.metric_name(), span: expr.span };
                    extended_samples(window, extension, &remarks)
                }
            };
            if !columns.is_empty() {
                matrix.push(SeriesColumns { labels, ..columns });
            }
            Ok(())
        })?;
        matrix.sort_by(|a, b| a.labels.cmp(&b.labels));
        if matrix.windows(2).any(|pair| pair[0].labels == pair[1].labels) {
            return Err(EvalError::Execution(SAME_LABELSET.into()));
        }
        Ok(Value::Matrix(matrix))
    }

    fn remove_delayed_names(&self, mut block: Block) -> Result<Block, EvalError> {
        if !block.names.iter().any(|name| name.drop_name) {
            return Ok(block);
        }
        for name in &mut block.names {
            if name.drop_name {
                *name = without_metadata(&name.labels).into();
            }
        }
        merge_duplicates(block, Duplicates::MergeDisjoint)
    }

    /// Evaluates `expr` at all steps of `grid`; once only, if it is pinned to one time.
    fn eval_unless_invariant(&self, expr: &Expr, grid: &Grid) -> Result<Evaluated, EvalError> {
        // Of a binary expression the operands are asked: chains of operators may be long.
        if grid.count <= 1 || matches!(expr.kind, ExprKind::Binary(_)) || !is_step_invariant(expr) {
            return self.eval(expr, grid);
        }
        let first = Grid { count: 1, ..*grid };
        let counts = SampleCounts::total();
        let value = self.counting_into(&counts).eval(expr, &first)?;
        self.counts.add_to_each(&counts);
        Ok(match value {
            Evaluated::Vector(block) => Evaluated::Vector(block.repeated(grid.count)?),
            Evaluated::Scalar(values) => Evaluated::Scalar(vec![values[0]; grid.count]),
            text @ Evaluated::Text(_) => text,
        })
    }

    /// The same evaluation with other rules for the hints of what is selected.
    pub(super) fn with_resets(&self, resets: ResetHints) -> Evaluator<'_> {
        Evaluator { resets, budget: self.budget.clone(), ..*self }
    }

    /// The same evaluation, counting what it reads elsewhere.
    pub(super) fn counting_into<'b>(&'b self, counts: &'b SampleCounts) -> Evaluator<'b> {
        Evaluator { counts, budget: self.budget.clone(), ..*self }
    }

    /// Into how many parts work of this size shall be cut (see [`Executor::parts`]).
    pub(super) fn parts(&self, work: usize) -> usize {
        self.executor.parts(work).max(1)
    }

    /// Evaluates independent parts, at the same time if the executor can. Gives the results in order, each with what
    /// there is to say besides it, which the caller adds in the order in which one evaluation would have said it.
    pub(super) fn in_parts<T: Send>(
        &self,
        parts: usize,
        part: impl Fn(&Evaluator<'_>, usize) -> Result<T, EvalError> + Sync,
    ) -> Result<Vec<(T, Annotations)>, EvalError> {
        let done: Vec<Mutex<Option<Done<T>>>> = (0..parts).map(|_| Mutex::new(None)).collect();
        self.executor.run(parts, &|at| {
            let annotations = Mutex::default();
            let own = Evaluator { annotations: &annotations, budget: self.budget.clone(), ..*self };
            let result = part(&own, at);
            let annotations = annotations.into_inner().unwrap_or_else(PoisonError::into_inner);
            *done[at].lock().unwrap_or_else(PoisonError::into_inner) = Some((result, annotations));
        });
        let done = done.into_iter().map(|done| {
            let done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
            let (result, annotations) = done.expect("the executor runs every part");
            result.map(|value| (value, annotations))
        });
        done.collect()
    }

    /// What there is to say besides the result.
    pub(super) fn annotations(&self) -> MutexGuard<'_, Annotations> {
        self.annotations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Evaluates `expr` at all steps of `grid`.
    pub(super) fn eval(&self, expr: &Expr, grid: &Grid) -> Result<Evaluated, EvalError> {
        self.check_cancelled()?;
        // Each level of the tree holds a few columns besides its blocks: scalars and scratch space.
        let mut columns = self.budget.charge();
        columns.grow(grid.count)?;
        match &expr.kind {
            ExprKind::Number(number) => Ok(Evaluated::Scalar(vec![number.value; grid.count])),
            ExprKind::Text(bytes) => Ok(Evaluated::Text(bytes.clone())),
            ExprKind::VectorSelector(selector) => {
                let part = SamplePart::Value;
                self.instant_selector(selector, expr.span, grid, part).map(Evaluated::Vector)
            }
            ExprKind::MatrixSelector(_) | ExprKind::Subquery(_) => {
                Err(EvalError::Invalid("a range vector cannot be used as a value here".into()))
            }
            ExprKind::Call(call) => self.call(call, expr.span, grid),
            ExprKind::Aggregate(aggregate) => {
                self.aggregate(aggregate, expr.span, grid).map(Evaluated::Vector)
            }
            ExprKind::Binary(binary) => {
                self.with_resets(ResetHints::FromSource).binary_chain(binary, expr.span, grid)
            }
            ExprKind::Unary(op, inner) => self.unary(*op, inner, grid),
            ExprKind::Paren(inner) => self.eval_unless_invariant(inner, grid),
        }
    }

    /// A chain of operators leans to the left and may be long: it is evaluated in a loop.
    fn binary_chain(&self, binary: &Binary, span: Span, grid: &Grid) -> Result<Evaluated, EvalError> {
        let mut chain = vec![(binary, span)];
        let mut innermost: &Expr = &binary.left;
        while let ExprKind::Binary(next) = &innermost.kind {
            chain.push((next, innermost.span));
            innermost = &next.left;
        }
        let rights = chain.iter().rev().map(|(binary, _)| -> &Expr { &binary.right });
        let operands: Vec<&Expr> = std::iter::once(innermost).chain(rights).collect();
        // As many operands at a time as can be evaluated at the same time.
        let several_read = operands.iter().filter(|operand| reads_data(operand)).nth(1).is_some();
        let width = if several_read { self.parts(usize::MAX) } else { 1 };
        let mut left: Option<Evaluated> = None;
        for some in operands.chunks(width) {
            let values = match some {
                [one] => vec![(self.eval_unless_invariant(one, grid)?, Annotations::default())],
                _ => self.in_parts(some.len(), |own, at| own.eval_unless_invariant(some[at], grid))?,
            };
            for (right, annotations) in values {
                self.annotations().merge(annotations);
                left = Some(match left {
                    None => right,
                    Some(left) => {
                        let (binary, span) = chain.pop().expect("one operator before each other operand");
                        self.binary(binary, span, (left, right), grid)?
                    }
                });
            }
        }
        Ok(left.expect("a chain has operands"))
    }

    fn unary(&self, op: UnaryOp, inner: &Expr, grid: &Grid) -> Result<Evaluated, EvalError> {
        match (op, self.eval_unless_invariant(inner, grid)?) {
            (UnaryOp::Minus, Evaluated::Scalar(values)) => {
                Ok(Evaluated::Scalar(values.into_iter().map(|value| -value).collect()))
            }
            (UnaryOp::Minus, Evaluated::Vector(mut block)) => {
                block.map_all(|value| -value, |histogram| multiplied(histogram.clone(), -1.0));
                self.drop_names(block, Duplicates::Refuse).map(Evaluated::Vector)
            }
            (_, same) => Ok(same),
        }
    }

    /// Evaluates an operand that the type check found to be a vector.
    pub(super) fn vector(&self, expr: &Expr, grid: &Grid) -> Result<Block, EvalError> {
        match self.eval_unless_invariant(expr, grid)? {
            Evaluated::Vector(block) => Ok(block),
            Evaluated::Scalar(_) | Evaluated::Text(_) => Err(wrong_type("instant vector")),
        }
    }

    /// Evaluates an operand that the type check found to be a scalar: a number for each step.
    pub(super) fn scalar(&self, expr: &Expr, grid: &Grid) -> Result<Vec<f64>, EvalError> {
        match self.eval_unless_invariant(expr, grid)? {
            Evaluated::Scalar(values) => Ok(values),
            Evaluated::Vector(_) | Evaluated::Text(_) => Err(wrong_type("scalar")),
        }
    }

    /// The bytes of an operand that the type check found to be a string.
    pub(super) fn text(&self, expr: &Expr, grid: &Grid) -> Result<Vec<u8>, EvalError> {
        match self.eval(expr, grid)? {
            Evaluated::Text(bytes) => Ok(bytes),
            Evaluated::Vector(_) | Evaluated::Scalar(_) => Err(wrong_type("string")),
        }
    }

    /// Removes the names of all series, now or in the end.
    pub(super) fn drop_names(&self, mut block: Block, duplicates: Duplicates) -> Result<Block, EvalError> {
        if self.delays_name_removal() {
            block.names.iter_mut().for_each(|name| name.drop_name = true);
            return Ok(block);
        }
        for name in &mut block.names {
            name.labels = without_metadata(&name.labels);
        }
        merge_duplicates(block, duplicates)
    }
}

/// Whether any selector is in the expression.
fn reads_data(expr: &Expr) -> bool {
    let mut open = vec![expr];
    while let Some(expr) = open.pop() {
        if matches!(expr.kind, ExprKind::VectorSelector(_) | ExprKind::MatrixSelector(_)) {
            return true;
        }
        open.extend(expr.children());
    }
    false
}

/// An expression built by hand rather than parsed may have operands of the wrong type.
fn wrong_type(wanted: &str) -> EvalError {
    EvalError::Invalid(format!("expected an expression of type {wanted}"))
}

fn vector_of(block: &Block, timestamp: TimestampMs) -> Value {
    let samples = block.rows().filter_map(|(name, row)| {
        let value = row.get(0)?.into();
        Some(VectorSample { labels: name.labels.clone(), timestamp, value })
    });
    Value::Vector(samples.collect())
}

fn matrix_of(block: &Block, grid: &Grid) -> Value {
    let series = block
        .rows()
        .filter(|(_, row)| !row.is_empty())
        .map(|(name, row)| SeriesColumns { labels: name.labels.clone(), ..samples_of_row(row, grid) });
    let mut matrix: Vec<SeriesColumns> = series.collect();
    matrix.sort_by(|a, b| a.labels.cmp(&b.labels));
    Value::Matrix(matrix)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::{SelectorRequest, SourceError, parse};

    /// One series with a sample each second.
    struct Seconds;

    impl Source for Seconds {
        fn select(&self, request: &SelectorRequest) -> Result<Arc<[SeriesColumns]>, SourceError> {
            let timestamps: Vec<i64> = (request.start.0..=request.end.0).filter(|t| t % 1000 == 0).collect();
            let values = vec![1.0; timestamps.len()];
            Ok([SeriesColumns::floats(Labels::empty(), timestamps, values)].into())
        }
    }

    fn run(
        query: &str,
        samples_max: usize,
        cancelled: &(dyn Fn() -> bool + Sync),
    ) -> Result<Value, EvalError> {
        let expr = parse(query).expect("valid");
        let params = EvalParams { samples_max, ..EvalParams::instant(TimestampMs(1_000_000)) };
        evaluate(&expr, &params, &Seconds, cancelled).map(|result| result.value)
    }

    #[test]
    fn memory_is_bounded_before_it_is_allocated() {
        let never = || false;
        assert!(run("sum_over_time(x[5m])", 400, &never).is_ok());
        for query in [
            "sum_over_time(x[10m])",
            "sum_over_time(x[100y:1ms])",
            "sum_over_time(vector(1 + (1 + time()))[100y:1ms])",
            "x[10m]",
        ] {
            let error = run(query, 400, &never).expect_err("too much");
            assert!(matches!(error, EvalError::TooManySamples { limit: 400 }), "{query}: {error}");
        }
    }

    /// Cuts everything, and counts how often it is asked to run parts.
    struct Cutting(AtomicUsize);

    impl Executor for Cutting {
        fn parts(&self, _work: usize) -> usize {
            4
        }

        fn run(&self, parts: usize, part: &(dyn Fn(usize) + Sync)) {
            self.0.fetch_add(1, Ordering::Relaxed);
            (0..parts).for_each(part);
        }
    }

    #[test]
    fn what_fits_one_after_the_other_fits_in_parts() {
        let cutting = Cutting(AtomicUsize::new(0));
        let little = EvalParams { samples_max: 10, ..EvalParams::instant(TimestampMs(1_000_000)) };
        let expr = parse("x[5m]").expect("valid");
        let error = evaluate_on(&cutting, &expr, &little, &Seconds, &|| false).expect_err("too much");
        assert!(matches!(error, EvalError::TooManySamples { limit: 10 }), "{error}");
        // The smallest budget that is enough one after the other is enough in parts: it is tried again in order.
        let expr = parse("sum_over_time(x[1m]) + sum_over_time(x[2m])").expect("valid");
        let fits = |max: usize, executor: &dyn Executor| {
            let params = EvalParams { samples_max: max, ..EvalParams::instant(TimestampMs(1_000_000)) };
            evaluate_on(executor, &expr, &params, &Seconds, &|| false).is_ok()
        };
        let enough = (1..1000).find(|max| fits(*max, &Sequential)).expect("some budget is enough");
        assert!(fits(enough, &cutting) && !fits(enough - 1, &cutting));

        let expr = parse("x + on() (x * 2) - x").expect("valid");
        let params = EvalParams::instant(TimestampMs(1_000_000));
        let cut = evaluate_on(&cutting, &expr, &params, &Seconds, &|| false).expect("evaluates").value;
        assert!(matches!(&cut, Value::Vector(samples) if samples.len() == 1), "{cut:?}");
        assert!(cutting.0.into_inner() > 0, "the operands were evaluated in parts");
    }

    /// What is looked at by each step, and what of that was read at it.
    #[test]
    fn samples_are_counted_by_step() {
        let counts = |query: &str| {
            let expr = parse(query).expect("valid");
            let params = EvalParams::range(TimestampMs(10_000), TimestampMs(12_000), 1000);
            let samples = evaluate(&expr, &params, &Seconds, &|| false).expect("evaluates").samples;
            assert_eq!(samples.queryable_per_step[2].0, 12_000);
            let counts = |steps: &[(i64, u64)]| steps.iter().map(|(_, count)| *count).collect::<Vec<_>>();
            (counts(&samples.queryable_per_step), counts(&samples.read_per_step))
        };
        assert_eq!(counts("x"), (vec![1, 1, 1], vec![1, 1, 1]));
        assert_eq!(counts("rate(x[5s])"), (vec![5, 5, 5], vec![5, 1, 1]));
        assert_eq!(counts("x + x"), (vec![2, 2, 2], vec![2, 2, 2]));
        assert_eq!(counts("sum_over_time(x[4s] @ 9)"), (vec![4, 4, 4], vec![4, 0, 0]));
        // The windows hold two results each; what the subquery read, it read for all of them.
        assert_eq!(counts("max_over_time(rate(x[2s])[4s:2s])"), (vec![2, 2, 2], vec![6, 0, 0]));
        assert_eq!(counts("1 + time()"), (vec![0; 3], vec![0; 3]));
    }

    #[test]
    fn evaluation_stops_when_asked_to() {
        let asked = AtomicUsize::new(0);
        let soon = || asked.fetch_add(1, Ordering::Relaxed) > 3;
        let query = "quantile_over_time(0.5, x[50m])[50m:1s]";
        let query = format!("max_over_time({query})");
        let error = run(&query, 1_000_000, &soon).expect_err("cancelled");
        assert!(matches!(error, EvalError::Cancelled));
        assert_eq!(asked.load(Ordering::Relaxed), 5);
    }

    #[test]
    fn a_range_vector_has_no_steps() {
        let never = || false;
        let expr = parse("x[5m]").expect("valid");
        let params = EvalParams::range(TimestampMs(0), TimestampMs(1), 1);
        let error = evaluate(&expr, &params, &Seconds, &never).expect_err("no vector");
        assert_eq!(
            error.to_string(),
            "invalid expression type \"range vector\" for range query, must be Scalar or instant Vector"
        );
    }
}

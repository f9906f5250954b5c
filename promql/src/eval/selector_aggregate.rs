//! Aggregations of one selector, `sum by (job) (rate(x[5m]))` and the like, computed where the samples are: series by
//! series, in any order, in parts that are merged. No more than one series need be in memory at a time.
//!
//! What is computed of a series is what the evaluator computes, bit for bit, by the same functions. Sums and means of
//! a group add the same numbers in another order, with compensation: they are within rounding of the evaluator's.
//! What needs to know all series (duplicates after names went, native histograms and the remarks on them) is not done
//! here: such series are refused, and the evaluator reads the selector as any other.

use saturn_model::{METRIC_NAME, MatchOp, SeriesColumns, is_stale_nan};

use crate::ast::{Aggregate, AggregateOp, ExprKind, Grouping, VectorSelector};
use crate::error::EvalError;
use crate::eval::block::Block;
use crate::eval::engine::Evaluator;
use crate::eval::extrapolate::Change;
use crate::eval::grid::{Grid, Reference, positive_duration, request_of};
use crate::eval::over_time::{float_function, sample_function};
use crate::eval::params::{EvalParams, NameRemoval, SampleValue, SelectorRequest, StartTimestamps};
use crate::eval::range_functions::{MEAN, SUM};
use crate::eval::window::{Fold, HistogramWindow, LANES, Window, any_stale, falls};
use crate::functions::FunctionId;
use crate::span::Span;

mod layout;
mod partial;

use layout::{Layout, Layouts};
pub use partial::PartialGroups;

/// An aggregation of one selector on the steps of a query.
#[derive(Clone, Debug, PartialEq)]
pub struct SelectorAggregate {
    request: SelectorRequest,
    op: AggregateOp,
    grouping: Grouping,
    /// `None`: the newest sample.
    function: Option<FunctionId>,
    range_ms: i64,
    lookback_ms: i64,
    starts: StartTimestamps,
    reference: Reference,
    grid: Grid,
    /// Of the selector in the query.
    span: Span,
}

/// A series that cannot be aggregated apart from the others, or too many groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the selector must be read as a whole")]
pub struct NotApart;

/// Adds series to an aggregation, one by one.
#[derive(Debug)]
pub struct SeriesFold {
    plan: SelectorAggregate,
    computation: Computation,
    layouts: Layouts,
    groups: PartialGroups,
    /// The series' values by step, as far as there are any.
    steps: Vec<u32>,
    values: Vec<f64>,
    /// The samples that are no stale markers.
    clean: SeriesColumns,
}

/// How the value of a step comes of a series.
#[derive(Clone, Copy, Debug)]
enum Computation {
    Newest,
    Change(Change),
    Fold(Fold),
    Float(fn(Window<'_>) -> Option<f64>),
    Sample(fn(Window<'_>) -> Option<SampleValue>),
}

impl Computation {
    fn of(function: Option<FunctionId>) -> Option<Self> {
        let Some(id) = function else { return Some(Self::Newest) };
        Some(match id {
            FunctionId::Rate => Self::Change(Change::Rate),
            FunctionId::Increase => Self::Change(Change::Increase),
            FunctionId::Delta => Self::Change(Change::Delta),
            FunctionId::SumOverTime => Self::Fold(SUM),
            FunctionId::AvgOverTime => Self::Fold(MEAN),
            _ => match (float_function(id), sample_function(id)) {
                (Some(function), _) => Self::Float(function),
                (None, Some(function)) => Self::Sample(function),
                (None, None) => return None,
            },
        })
    }

    fn is_of_counter(self) -> bool {
        matches!(self, Self::Change(change) if change.is_of_counter())
    }
}

impl SelectorAggregate {
    /// The aggregation as one of a selector, if it is one whose parts can be merged.
    pub(super) fn of(aggregate: &Aggregate, grid: &Grid, params: &EvalParams) -> Option<Self> {
        use AggregateOp::{Avg, Count, Max, Min, Sum};
        let Aggregate { op, expr, param: None, grouping } = aggregate else { return None };
        let delayed = params.name_removal == NameRemoval::Delayed;
        if !matches!(op, Sum | Avg | Count | Min | Max) || grid.count == 0 || delayed {
            return None;
        }
        let inner = expr.without_parens();
        let (selector, function, range_ms, span) = match &inner.kind {
            ExprKind::VectorSelector(selector) => (selector, None, 0, inner.span),
            ExprKind::Call(call) => {
                let [argument] = call.args.as_slice() else { return None };
                let ExprKind::MatrixSelector(matrix) = &argument.without_parens().kind else { return None };
                let range_ms = positive_duration(&matrix.range, params).ok()?;
                (&matrix.selector, Some(call.function.id), range_ms, argument.span)
            }
            _ => return None,
        };
        Computation::of(function)?;
        // Where names go, series of several metrics could become the same.
        if selector.extension.is_some() || drops_names(function) && metric_of(selector).is_none() {
            return None;
        }
        Some(Self {
            request: request_of(selector, range_ms, grid, params),
            op: *op,
            grouping: grouping.clone(),
            function,
            range_ms,
            lookback_ms: params.lookback_ms,
            starts: params.start_timestamps,
            reference: Reference::new(&selector.time, params),
            grid: *grid,
            span,
        })
    }

    /// What is to be read for it.
    pub fn request(&self) -> &SelectorRequest {
        &self.request
    }

    /// What each step sees: after the first time, up to the second.
    fn sight(&self, step: usize) -> (i64, i64) {
        let end = self.reference.at(self.grid.time(step));
        let back_ms = if self.function.is_some() { self.range_ms } else { self.lookback_ms };
        (end.saturating_sub(back_ms), end)
    }
}

/// Whether series lose their names.
fn drops_names(function: Option<FunctionId>) -> bool {
    !matches!(function, None | Some(FunctionId::FirstOverTime | FunctionId::LastOverTime))
}

/// The metric whose series are selected, if it is only one.
fn metric_of(selector: &VectorSelector) -> Option<&str> {
    let is_name = |matcher: &&saturn_model::Matcher| {
        matcher.name() == METRIC_NAME && matcher.op() == MatchOp::Equal && !matcher.value().is_empty()
    };
    selector.matchers.iter().find(is_name).map(saturn_model::Matcher::value)
}

impl SeriesFold {
    /// Without any series yet.
    pub fn new(plan: SelectorAggregate) -> Self {
        let computation =
            Computation::of(plan.function).expect("a plan is only made of what can be computed");
        Self {
            computation,
            layouts: Layouts::default(),
            groups: PartialGroups::new(plan.op, plan.grid.count),
            steps: Vec::new(),
            values: Vec::new(),
            clean: SeriesColumns::default(),
            plan,
        }
    }

    /// Adds a series, with its samples in the range of [`SelectorAggregate::request`] at least. Each series may be
    /// added once.
    ///
    /// # Errors
    /// [`NotApart`]: the whole aggregation must be computed otherwise.
    pub fn add(&mut self, series: &SeriesColumns) -> Result<(), NotApart> {
        let knows_starts = || series.start_timestamps.iter().any(|start| *start != 0);
        if !series.histograms.values.is_empty() || self.plan.starts == StartTimestamps::Used && knows_starts()
        {
            return Err(NotApart);
        }
        let is_stale = any_stale(&series.values);
        if is_stale && self.plan.function.is_some() {
            let mut clean = std::mem::take(&mut self.clean);
            clean.clear_samples();
            for (timestamp, value) in series.timestamps.iter().zip(&series.values) {
                if !is_stale_nan(*value) {
                    clean.timestamps.push(*timestamp);
                    clean.values.push(*value);
                }
            }
            self.compute(&clean.timestamps, &clean.values);
            self.clean = clean;
        } else {
            self.compute(&series.timestamps, &series.values);
        }
        if self.steps.is_empty() {
            return Ok(());
        }
        let group =
            self.groups.group_of(&series.labels, &self.plan.grouping, drops_names(self.plan.function))?;
        self.groups.add_row(group, &self.steps, &self.values);
        Ok(())
    }

    /// What came of all series.
    pub fn finish(mut self) -> PartialGroups {
        self.layouts.finish(&mut self.groups.counts);
        self.groups
    }

    /// Computes the values of one series.
    fn compute(&mut self, timestamps: &[i64], values: &[f64]) {
        self.steps.clear();
        self.values.clear();
        let change = match self.computation {
            Computation::Change(change) => Some(change),
            _ => None,
        };
        let layout = self.layouts.of(timestamps, (&self.plan, change), &mut self.groups.counts);
        match self.computation {
            Computation::Newest => {
                for window in &layout.windows {
                    let value = values[window.first as usize];
                    if !is_stale_nan(value) {
                        self.groups.counts.count(window.step as usize, 1, window.new as usize);
                        self.steps.push(window.step);
                        self.values.push(value);
                    }
                }
                return;
            }
            Computation::Change(_) => changes(layout, values, &mut self.steps, &mut self.values),
            Computation::Fold(fold) => folds(layout, values, fold, &mut self.steps, &mut self.values),
            Computation::Float(function) => {
                for window in layout.views(&self.plan, values) {
                    if let (step, Some(value)) = (window.0, function(window.1)) {
                        self.steps.push(step);
                        self.values.push(value);
                    }
                }
            }
            Computation::Sample(function) => {
                for window in layout.views(&self.plan, values) {
                    if let (step, Some(SampleValue::Float(value))) = (window.0, function(window.1)) {
                        self.steps.push(step);
                        self.values.push(value);
                    }
                }
            }
        }
        layout.series += 1;
    }
}

/// `rate` and the like of each window.
fn changes(layout: &Layout, values: &[f64], steps: &mut Vec<u32>, results: &mut Vec<f64>) {
    let falls = falls(values);
    for (window, timing) in layout.windows.iter().zip(&layout.timings) {
        let Some(timing) = timing else { continue };
        if let Some(result) = timing.change(&values[window.range()], falls) {
            steps.push(window.step);
            results.push(result);
        }
    }
}

/// Sums and means of each window, several at a time.
fn folds(layout: &Layout, values: &[f64], fold: Fold, steps: &mut Vec<u32>, results: &mut Vec<f64>) {
    steps.extend(layout.windows.iter().map(|window| window.step));
    let (several, rest) = layout.windows.as_chunks::<LANES>();
    for windows in several {
        let windows = std::array::from_fn(|lane| &values[windows[lane].range()]);
        results.extend((fold.several)(windows));
    }
    results.extend(rest.iter().map(|window| (fold.one)(&values[window.range()])));
}

impl Layout {
    /// The windows with what is in them.
    fn views<'a>(
        &'a self,
        plan: &'a SelectorAggregate,
        values: &'a [f64],
    ) -> impl Iterator<Item = (u32, Window<'a>)> {
        self.windows.iter().map(move |window| {
            let (start, end) = plan.sight(window.step as usize);
            let view = Window {
                timestamps: &self.timestamps[window.range()],
                values: &values[window.range()],
                starts: &[],
                histograms: HistogramWindow::default(),
                falls: true,
                time: plan.grid.time(window.step as usize),
                start,
                end,
            };
            (window.step, view)
        })
    }
}

impl Evaluator<'_> {
    /// The aggregation as the source computed it, if it did.
    pub(super) fn aggregate_at_source(
        &self,
        aggregate: &Aggregate,
        grid: &Grid,
    ) -> Result<Option<Block>, EvalError> {
        let Some(plan) = SelectorAggregate::of(aggregate, grid, self.params) else { return Ok(None) };
        let Some(groups) = self.source.aggregate(&plan)? else { return Ok(None) };
        let mut block = Block::new(grid.count, &self.budget);
        for (labels, group) in groups.in_order() {
            self.check_cancelled()?;
            groups.write(group, &mut block.push(labels.clone().into())?);
        }
        self.counts.add(&groups.counts);
        let is_of_counter = Computation::of(plan.function).is_some_and(Computation::is_of_counter);
        if is_of_counter && block.len() > 0 {
            let metric =
                plan.request.matchers.iter().find(|m| m.name() == METRIC_NAME && m.op() == MatchOp::Equal);
            self.remark_on_counter(metric.map_or("", |matcher| matcher.value()), plan.span);
        }
        Ok(Some(block))
    }
}

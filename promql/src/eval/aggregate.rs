//! Aggregations. Groups are found once per query; then each series is added to its group step by step.
//!
//! Source: `aggregation`, `aggregationK` and `aggregationCountValues` of Prometheus's `engine.go`.
//! Those that pick series rather than compute (`topk`, `limitk`, ...) are in `rank`.

use std::collections::HashMap;

use saturn_model::{Labels, METRIC_NAME};

use crate::ast::{Aggregate, AggregateOp, Expr, Grouping};
use crate::error::EvalError;
use crate::eval::block::{Block, RowMut, SeriesName};
use crate::eval::engine::Evaluator;
use crate::eval::grid::Grid;
use crate::eval::names::{BlockBuilder, keep_labels};
use crate::eval::numerics::{KahanSum, Mean, quantile};
use crate::eval::over_time::{larger, smaller};
use crate::go_text::{format_general, format_plain, quote};
use crate::span::Span;

/// Series that are aggregated together.
pub(super) struct Group {
    pub(super) name: SeriesName,
    /// Indexes of the series, ascending.
    pub(super) members: Vec<usize>,
}

impl Evaluator<'_> {
    pub(super) fn aggregate(&self, aggregate: &Aggregate, grid: &Grid) -> Result<Block, EvalError> {
        let block = self.vector(&aggregate.expr, grid)?;
        match (aggregate.op, &aggregate.param) {
            (AggregateOp::Quantile, Some(param)) => self.quantiles(aggregate, param, &block, grid),
            (AggregateOp::CountValues, Some(param)) => self.count_values(aggregate, param, &block, grid),
            (
                AggregateOp::Topk | AggregateOp::Bottomk | AggregateOp::Limitk | AggregateOp::LimitRatio,
                Some(param),
            ) => self.pick_series(aggregate, param, block, grid),
            _ => self.fold(aggregate, &block),
        }
    }

    /// The aggregations that need one pass over the values.
    fn fold(&self, aggregate: &Aggregate, block: &Block) -> Result<Block, EvalError> {
        let mut result = block.like();
        for group in groups(block, &aggregate.grouping) {
            self.check_cancelled()?;
            let mut row = result.push(group.name)?;
            let rows = group.members.iter().map(|member| block.row(*member));
            match aggregate.op {
                AggregateOp::Sum => {
                    fold_rows(rows, &mut row, KahanSum::default(), KahanSum::add, KahanSum::total)
                }
                AggregateOp::Avg => fold_rows(rows, &mut row, Mean::default(), Mean::add, Mean::mean),
                AggregateOp::Count => fold_rows(rows, &mut row, 0.0, |n, _| *n += 1.0, |n| n),
                AggregateOp::Group => fold_rows(rows, &mut row, 1.0, |_, _| {}, |one| one),
                AggregateOp::Min => {
                    fold_rows(rows, &mut row, f64::NAN, |best, v| *best = smaller(*best, v), |best| best);
                }
                AggregateOp::Max => {
                    fold_rows(rows, &mut row, f64::NAN, |best, v| *best = larger(*best, v), |best| best);
                }
                AggregateOp::Stdvar => {
                    fold_rows(rows, &mut row, Welford::default(), Welford::add, Welford::variance);
                }
                AggregateOp::Stddev => {
                    fold_rows(rows, &mut row, Welford::default(), Welford::add, |w| w.variance().sqrt());
                }
                _ => return Err(EvalError::Invalid(format!("{} needs a parameter", aggregate.op.name()))),
            }
        }
        Ok(result)
    }

    fn quantiles(
        &self,
        aggregate: &Aggregate,
        param: &Expr,
        block: &Block,
        grid: &Grid,
    ) -> Result<Block, EvalError> {
        let phis = self.scalar(param, grid)?;
        let mut result = block.like();
        self.warn_of_quantiles(&phis, param.span);
        let mut values = Vec::new();
        for group in groups(block, &aggregate.grouping) {
            let mut row = result.push(group.name)?;
            for (step, phi) in phis.iter().enumerate() {
                self.check_cancelled()?;
                values.clear();
                values.extend(group.members.iter().filter_map(|member| block.row(*member).get(step)));
                if !values.is_empty() {
                    row.set(step, quantile(*phi, &mut values));
                }
            }
        }
        Ok(result)
    }

    /// Warns of each of `phis` that is no quantile.
    pub(super) fn warn_of_quantiles(&self, phis: &[f64], span: Span) {
        let mut warned: Option<u64> = None;
        for phi in phis.iter().filter(|phi| !(0.0..=1.0).contains(*phi)) {
            if warned.replace(phi.to_bits()) != Some(phi.to_bits()) {
                let text = format!("quantile value should be between 0 and 1, got {}", format_general(*phi));
                self.annotations.borrow_mut().warn(span, &text);
            }
        }
    }

    fn count_values(
        &self,
        aggregate: &Aggregate,
        param: &Expr,
        block: &Block,
        grid: &Grid,
    ) -> Result<Block, EvalError> {
        let bytes = self.text(param, grid)?;
        let label = match std::str::from_utf8(&bytes) {
            Ok(label) if !label.is_empty() => label,
            _ => return Err(EvalError::Execution(format!("invalid label name {}", quote(&bytes)))),
        };
        let mut builder = BlockBuilder::new(block.like());
        let drop_name = block.names.iter().any(|name| name.drop_name);
        for (name, row) in block.rows() {
            self.check_cancelled()?;
            let group = group_labels(&name.labels, &aggregate.grouping);
            for (step, value) in row.cells() {
                let labels = group.to_builder().set(label, &format_plain(value)).build();
                let at = builder.row(labels, drop_name)?;
                let mut counts = builder.block.row_mut(at);
                let count = if counts.present[step] { counts.values[step] } else { 0.0 };
                counts.set(step, count + 1.0);
            }
        }
        Ok(builder.block)
    }
}

/// Adds the values of all rows, step by step, and writes the finished values of steps that had any.
fn fold_rows<'a, A: Clone>(
    rows: impl Iterator<Item = crate::eval::block::Row<'a>>,
    result: &mut RowMut<'_>,
    empty: A,
    mut add: impl FnMut(&mut A, f64),
    finish: impl Fn(A) -> f64,
) {
    let mut accumulators = vec![empty; result.values.len()];
    for row in rows {
        for ((accumulator, seen), (value, present)) in
            accumulators.iter_mut().zip(result.present.iter_mut()).zip(row.values.iter().zip(row.present))
        {
            if *present {
                *seen = true;
                add(accumulator, *value);
            }
        }
    }
    for ((value, seen), accumulator) in result.values.iter_mut().zip(result.present.iter()).zip(accumulators)
    {
        if *seen {
            *value = finish(accumulator);
        }
    }
}

/// Welford's running variance, without compensation, as in Prometheus's aggregators.
#[derive(Clone, Copy, Default)]
struct Welford {
    count: f64,
    mean: f64,
    squares: f64,
}

impl Welford {
    fn add(&mut self, value: f64) {
        self.count += 1.0;
        if self.count == 1.0 {
            self.mean = value;
            self.squares = if value.is_finite() { 0.0 } else { f64::NAN };
            return;
        }
        let delta = value - self.mean;
        self.mean += delta / self.count;
        self.squares += delta * (value - self.mean);
    }

    fn variance(self) -> f64 {
        self.squares / self.count
    }
}

/// The labels that the group of a series has.
fn group_labels(labels: &Labels, grouping: &Grouping) -> Labels {
    match grouping {
        Grouping::By(kept) if kept.is_empty() => Labels::empty(),
        Grouping::By(kept) => keep_labels(labels, |name| kept.iter().any(|label| label == name)),
        Grouping::Without(removed) => {
            keep_labels(labels, |name| name != METRIC_NAME && !removed.iter().any(|label| label == name))
        }
    }
}

/// The groups in the order in which their first series appear. Series without values make no group.
pub(super) fn groups(block: &Block, grouping: &Grouping) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    let mut index_of: HashMap<Labels, usize> = HashMap::new();
    for (index, (name, row)) in block.rows().enumerate() {
        if row.is_empty() {
            continue;
        }
        let labels = group_labels(&name.labels, grouping);
        let at = *index_of.entry(labels.clone()).or_insert_with(|| {
            groups.push(Group { name: labels.into(), members: Vec::new() });
            groups.len() - 1
        });
        groups[at].members.push(index);
        groups[at].name.drop_name |= name.drop_name;
    }
    groups
}

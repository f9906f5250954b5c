//! Aggregations. Groups are found once per query; then each series is added to its group step by step.
//!
//! Source: `aggregation`, `aggregationK` and `aggregationCountValues` of Prometheus's `engine.go`.
//! Those that pick series rather than compute (`topk`, `limitk`, ...) are in `rank`.

use std::collections::HashMap;
use std::sync::Arc;

use saturn_model::{Histogram, Labels, METRIC_NAME};

use crate::ast::{Aggregate, AggregateOp, Expr, Grouping};
use crate::error::EvalError;
use crate::eval::accumulators::{Accumulator, Count, Deviation, Greatest, Least, One, Variance};
use crate::eval::block::{Block, Cell, RowMut, SeriesName};
use crate::eval::engine::Evaluator;
use crate::eval::grid::Grid;
use crate::eval::histogram_mean::{HistogramMean, ResetsSeen};
use crate::eval::names::{BlockBuilder, keep_labels};
use crate::eval::numerics::{KahanSum, Mean, mean, quantile};
use crate::eval::over_time::sum;
use crate::eval::params::SampleValue;
use crate::eval::remarks::Remarks;
use crate::eval::window::metric_name;
use crate::go_text::{format_general, format_plain, quote};
use crate::histogram::{HistogramSum, IncompatibleSchemas, describe};
use crate::span::Span;

/// Series that are aggregated together.
pub(super) struct Group {
    pub(super) name: SeriesName,
    /// Indexes of the series, ascending.
    pub(super) members: Vec<usize>,
}

impl Evaluator<'_> {
    pub(super) fn aggregate(
        &self,
        aggregate: &Aggregate,
        span: Span,
        grid: &Grid,
    ) -> Result<Block, EvalError> {
        if let Some(done) = self.aggregate_at_source(aggregate, grid)? {
            return Ok(done);
        }
        let block = self.vector(&aggregate.expr, grid)?;
        match (aggregate.op, &aggregate.param) {
            (AggregateOp::Quantile, Some(param)) => self.quantiles(aggregate, param, block, grid),
            (AggregateOp::CountValues, Some(param)) => self.count_values(aggregate, param, &block, grid),
            (
                AggregateOp::Topk | AggregateOp::Bottomk | AggregateOp::Limitk | AggregateOp::LimitRatio,
                Some(param),
            ) => self.pick_series(aggregate, span, param, block, grid),
            _ => self.fold(aggregate, block),
        }
    }

    /// The aggregations that need one pass over the values.
    fn fold(&self, aggregate: &Aggregate, mut block: Block) -> Result<Block, EvalError> {
        match aggregate.op {
            AggregateOp::Sum | AggregateOp::Avg => {
                if block.rows().any(|(_, row)| row.has_histograms()) {
                    return self.fold_with_histograms(aggregate, &block);
                }
            }
            AggregateOp::Count | AggregateOp::Group => {}
            // Nothing is left of a group that has only histograms.
            _ => self.ignore_histograms(aggregate.op, aggregate.expr.span, &mut block),
        }
        let mut result = block.like();
        for group in groups(&block, &aggregate.grouping) {
            self.check_cancelled()?;
            let mut row = result.push(group.name)?;
            let rows = group.members.iter().map(|member| block.row(*member));
            match aggregate.op {
                AggregateOp::Sum => fold_rows::<KahanSum>(rows, &mut row),
                AggregateOp::Avg => fold_rows::<Mean>(rows, &mut row),
                AggregateOp::Count => fold_rows::<Count>(rows, &mut row),
                AggregateOp::Group => fold_rows::<One>(rows, &mut row),
                AggregateOp::Min => fold_rows::<Least>(rows, &mut row),
                AggregateOp::Max => fold_rows::<Greatest>(rows, &mut row),
                AggregateOp::Stdvar => fold_rows::<Variance>(rows, &mut row),
                AggregateOp::Stddev => fold_rows::<Deviation>(rows, &mut row),
                _ => return Err(EvalError::Invalid(format!("{} needs a parameter", aggregate.op.name()))),
            }
        }
        Ok(result)
    }

    /// `sum` and `avg` where there are histograms: each step of a group on its own.
    fn fold_with_histograms(&self, aggregate: &Aggregate, block: &Block) -> Result<Block, EvalError> {
        let mut result = block.like();
        let remarks = Remarks { evaluator: self, metric: "", span: aggregate.expr.span };
        for group in groups(block, &aggregate.grouping) {
            result.push(group.name)?;
            let row = result.len() - 1;
            for step in 0..block.steps() {
                self.check_cancelled()?;
                let cells =
                    group.members.iter().filter_map(|member| Some((*member, block.row(*member).get(step)?)));
                let (floats, histograms) = split(cells);
                let value = match (floats.is_empty(), histograms.is_empty()) {
                    (true, true) => None,
                    (false, true) if aggregate.op == AggregateOp::Sum => {
                        Some(SampleValue::Float(sum(&floats)))
                    }
                    (false, true) => Some(SampleValue::Float(mean(&floats))),
                    (true, false) => {
                        let members = histograms.iter().map(|(_, histogram)| *histogram);
                        match fold_histograms(aggregate.op, members, &remarks) {
                            Ok(result) => Some(SampleValue::Histogram(Arc::new(result))),
                            Err(IncompatibleSchemas) => {
                                // The remark names the metric of the series that did not fit.
                                let first = histograms[0].1.uses_custom_buckets();
                                let misfit = histograms
                                    .iter()
                                    .find(|(_, histogram)| histogram.uses_custom_buckets() != first)
                                    .map_or("", |(member, _)| metric_name(&block.names[*member]));
                                Remarks { metric: misfit, ..remarks }.mixed_schemas();
                                None
                            }
                        }
                    }
                    (false, false) => {
                        remarks.mixed_aggregation();
                        None
                    }
                };
                if let Some(value) = value {
                    result.set(row, step, value)?;
                }
            }
        }
        Ok(result)
    }

    /// Removes histograms from a block, and says so if there are any.
    pub(super) fn ignore_histograms(&self, op: AggregateOp, span: Span, block: &mut Block) {
        if block.rows().any(|(_, row)| row.has_histograms()) {
            Remarks { evaluator: self, metric: "", span }.ignored_in_aggregation(op.name());
            block.remove_histograms();
        }
    }

    fn quantiles(
        &self,
        aggregate: &Aggregate,
        param: &Expr,
        mut block: Block,
        grid: &Grid,
    ) -> Result<Block, EvalError> {
        let phis = self.scalar(param, grid)?;
        self.ignore_histograms(aggregate.op, aggregate.expr.span, &mut block);
        let mut result = block.like();
        self.warn_of_quantiles(&phis, param.span);
        let mut values = Vec::new();
        for group in groups(&block, &aggregate.grouping) {
            let mut row = result.push(group.name)?;
            for (step, phi) in phis.iter().enumerate() {
                self.check_cancelled()?;
                values.clear();
                values.extend(group.members.iter().filter_map(|member| block.row(*member).float(step)));
                if !values.is_empty() {
                    row.set_float(step, quantile(*phi, &mut values));
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
                self.annotations().warn(span, &text);
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
            for (step, cell) in row.cells() {
                let text = match cell {
                    Cell::Float(value) => format_plain(value),
                    Cell::Histogram(histogram) => describe(histogram),
                };
                let labels = group.to_builder().set(label, &text).build();
                let at = builder.row(labels, drop_name)?;
                let mut counts = builder.block.row_mut(at);
                let count = if counts.present[step] { counts.values[step] } else { 0.0 };
                counts.set_float(step, count + 1.0);
            }
        }
        Ok(builder.block)
    }
}

/// Floats and histograms of some cells, the latter with the series that they are of.
fn split<'a>(cells: impl Iterator<Item = (usize, Cell<'a>)>) -> (Vec<f64>, Vec<(usize, &'a Histogram)>) {
    let (mut floats, mut histograms) = (Vec::new(), Vec::new());
    for (member, cell) in cells {
        match cell {
            Cell::Float(value) => floats.push(value),
            Cell::Histogram(histogram) => histograms.push((member, &**histogram)),
        }
    }
    (floats, histograms)
}

/// The sum or the mean of at least one histogram.
fn fold_histograms<'a>(
    op: AggregateOp,
    histograms: impl Iterator<Item = &'a Histogram>,
    remarks: &Remarks<'_>,
) -> Result<Histogram, IncompatibleSchemas> {
    let mut seen = ResetsSeen::default();
    let mut total: Option<HistogramMean> = None;
    let mut sum: Option<HistogramSum> = None;
    for histogram in histograms {
        seen.see(histogram);
        match (op, &mut total, &mut sum) {
            (AggregateOp::Avg, Some(mean), _) => seen.added(mean.add(histogram)?),
            (AggregateOp::Avg, None, _) => total = Some(HistogramMean::new(histogram)),
            (_, _, Some(sum)) => seen.added(sum.add(histogram)?),
            (_, _, None) => sum = Some(histogram.into()),
        }
    }
    seen.remark(remarks);
    let result = total.map(HistogramMean::finish).or(sum.map(HistogramSum::finish));
    Ok(result.expect("a group has at least one member"))
}

/// Adds the values of all rows, step by step, and writes the finished values of steps that had any.
fn fold_rows<'a, A: Accumulator>(
    rows: impl Iterator<Item = crate::eval::block::Row<'a>>,
    result: &mut RowMut<'_>,
) {
    let mut accumulators = vec![A::default(); result.values.len()];
    for row in rows {
        for ((accumulator, seen), (value, present)) in
            accumulators.iter_mut().zip(result.present.iter_mut()).zip(row.values.iter().zip(row.present))
        {
            if *present {
                *seen = true;
                accumulator.add(*value);
            }
        }
    }
    for ((value, seen), accumulator) in result.values.iter_mut().zip(result.present.iter()).zip(accumulators)
    {
        if *seen {
            *value = accumulator.finish();
        }
    }
}

/// The labels that the group of a series has.
fn group_labels(labels: &Labels, grouping: &Grouping) -> Labels {
    match grouping {
        Grouping::By(kept) if kept.is_empty() => Labels::empty(),
        _ => keep_labels(labels, |name| keeps(grouping, name)),
    }
}

/// Whether the groups have the label with this name.
pub(super) fn keeps(grouping: &Grouping, name: &str) -> bool {
    match grouping {
        Grouping::By(kept) => kept.iter().any(|label| label == name),
        Grouping::Without(removed) => name != METRIC_NAME && !removed.iter().any(|label| label == name),
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

//! Aggregations that pick series: `topk`, `bottomk`, `limitk`, `limit_ratio`.
//!
//! They decide at each step on its own, so a picked series may have gaps. Picked series keep their
//! labels. In an instant query the order of the result is part of the answer.

use std::cmp::Ordering;

use crate::ast::{Aggregate, AggregateOp, Expr};
use crate::error::EvalError;
use crate::eval::aggregate::{Group, groups};
use crate::eval::block::{Block, Cell};
use crate::eval::engine::Evaluator;
use crate::eval::grid::Grid;
use crate::eval::label_hash::label_hash;
use crate::go_text::{format_general, to_integer};
use crate::span::Span;

impl Evaluator<'_> {
    pub(super) fn pick_series(
        &self,
        aggregate: &Aggregate,
        span: Span,
        param: &Expr,
        mut block: Block,
        grid: &Grid,
    ) -> Result<Block, EvalError> {
        let params = self.scalar(param, grid)?;
        if aggregate.op == AggregateOp::LimitRatio {
            return self.limit_ratio(block, params, param.span);
        }
        // NaN makes the maximum NaN, so that it is not taken for small.
        let max = params.iter().copied().reduce(|a, b| if a.is_nan() || a > b { a } else { b });
        if max.is_none_or(|max| max < 1.0) {
            return Ok(block.like());
        }
        check_count_params(&params)?;
        if matches!(aggregate.op, AggregateOp::Topk | AggregateOp::Bottomk) {
            self.ignore_histograms(aggregate.op, span, &mut block);
        }
        let groups = groups(&block, &aggregate.grouping);
        let mut order = Vec::new();
        for group in &groups {
            for (step, param) in params.iter().enumerate() {
                self.check_cancelled()?;
                let count = usize::try_from(to_integer(*param)).unwrap_or(0);
                let chosen = choose(aggregate.op, &block, group, step, count);
                for member in &group.members {
                    block.row_mut(*member).present[step] = false;
                }
                for member in &chosen {
                    block.row_mut(*member).present[step] = true;
                }
                if grid.count == 1 {
                    order.extend(chosen);
                }
            }
        }
        if grid.count == 1 { block.select(&order) } else { Ok(block) }
    }

    fn limit_ratio(&self, mut block: Block, mut ratios: Vec<f64>, span: Span) -> Result<Block, EvalError> {
        if ratios.iter().any(|ratio| ratio.is_nan()) {
            return Err(EvalError::Execution("Ratio value is NaN".into()));
        }
        for ratio in ratios.iter_mut().filter(|ratio| ratio.abs() > 1.0) {
            let capped = ratio.signum();
            let text = format!(
                "ratio value should be between -1 and 1, got {}, capping to {}",
                format_general(*ratio),
                format_general(capped)
            );
            self.annotations().warn(span, &text);
            *ratio = capped;
        }
        for index in 0..block.len() {
            self.check_cancelled()?;
            let position = hash_position(label_hash(&block.names[index].labels));
            let row = block.row_mut(index);
            for (present, ratio) in row.present.iter_mut().zip(&ratios) {
                let kept = if *ratio >= 0.0 { position < *ratio } else { position >= 1.0 + ratio };
                *present = *present && kept;
            }
        }
        Ok(block)
    }
}

/// Where a hash lies between 0 and 1.
#[expect(clippy::cast_precision_loss, reason = "as in Prometheus, the hash becomes a float")]
fn hash_position(hash: u64) -> f64 {
    hash as f64 / u64::MAX as f64
}

fn check_count_params(params: &[f64]) -> Result<(), EvalError> {
    if params.iter().any(|param| param.is_nan()) {
        return Err(EvalError::Execution("Parameter value is NaN".into()));
    }
    // 2^63, exactly a float.
    let bound = 9_223_372_036_854_775_808.0;
    match params.iter().find(|param| param.abs() >= bound) {
        None => Ok(()),
        Some(param) => {
            let direction = if *param < 0.0 { "under" } else { "over" };
            let text = format!("Scalar value {} {direction}flows int64", format_general(*param));
            Err(EvalError::Execution(text))
        }
    }
}

/// The chosen members of a group at one step, in the order of an instant answer.
fn choose(op: AggregateOp, block: &Block, group: &Group, step: usize, count: usize) -> Vec<usize> {
    let members = group.members.iter();
    let mut chosen: Vec<(usize, f64)> =
        members.filter_map(|member| Some((*member, order_of(block.row(*member).get(step)?)))).collect();
    match op {
        AggregateOp::Topk => keep_first(&mut chosen, count, descending),
        AggregateOp::Bottomk => keep_first(&mut chosen, count, ascending),
        _ => chosen.truncate(count),
    }
    chosen.into_iter().map(|(member, _)| member).collect()
}

/// Keeps the `count` that come first, in order. Equal ones stay in the order of the members, which ascend.
fn keep_first(members: &mut Vec<(usize, f64)>, count: usize, order: fn(f64, f64) -> Ordering) {
    let by_rank = |a: &(usize, f64), b: &(usize, f64)| order(a.1, b.1).then(a.0.cmp(&b.0));
    if count < members.len() {
        // Few are wanted as a rule: the others need no order.
        members.select_nth_unstable_by(count, by_rank);
        members.truncate(count);
    }
    members.sort_unstable_by(by_rank);
}

/// What a sample is ranked by; histograms are not.
fn order_of(cell: Cell<'_>) -> f64 {
    match cell {
        Cell::Float(value) => value,
        Cell::Histogram(_) => f64::NAN,
    }
}

/// Ascending, NaN last.
pub(super) fn ascending(a: f64, b: f64) -> Ordering {
    a.is_nan().cmp(&b.is_nan()).then_with(|| a.partial_cmp(&b).unwrap_or(Ordering::Equal))
}

/// Descending, NaN last.
pub(super) fn descending(a: f64, b: f64) -> Ordering {
    a.is_nan().cmp(&b.is_nan()).then_with(|| b.partial_cmp(&a).unwrap_or(Ordering::Equal))
}
